"""Boxes: their codings as offsets from a reference and as centre and extent, and the overlap of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

# Width and height may grow by at most this factor, so that an untrained network's boxes stay finite.
_LARGEST_GROWTH = math.log(1000 / 16)


def encode(boxes: jax.Array, reference: jax.Array, weights: tuple[float, float] = (1.0, 1.0)) -> jax.Array:
    """Offsets of boxes from reference boxes, f[...,4] (ymin, xmin, ymax, xmax) twice -> f[...,4] (dx, dy, dw, dh).

    The parametrisation of R-CNN (arXiv:1311.2524): centres relative to the reference's extent, logarithms of the
    extents' ratios; `weights` multiply the first two and the last two.
    """
    x, y, width, height = jnp.moveaxis(center(boxes), -1, 0)
    x0, y0, width0, height0 = jnp.moveaxis(center(reference), -1, 0)
    position, extent = weights
    return jnp.stack(
        [
            position * (x - x0) / width0,
            position * (y - y0) / height0,
            extent * jnp.log(width / width0),
            extent * jnp.log(height / height0),
        ],
        -1,
    )


def decode(offsets: jax.Array, reference: jax.Array, weights: tuple[float, float] = (1.0, 1.0)) -> jax.Array:
    """Inverse of `encode`: f[...,4] (dx, dy, dw, dh), reference boxes -> boxes f[...,4], at most 62.5 times larger."""
    dx, dy, dw, dh = jnp.moveaxis(offsets, -1, 0)
    x0, y0, width0, height0 = jnp.moveaxis(center(reference), -1, 0)
    position, extent = weights
    width = jnp.exp(jnp.minimum(dw / extent, _LARGEST_GROWTH)) * width0
    height = jnp.exp(jnp.minimum(dh / extent, _LARGEST_GROWTH)) * height0
    return corners(jnp.stack([dx / position * width0 + x0, dy / position * height0 + y0, width, height], -1))


def center(boxes: jax.Array) -> jax.Array:
    """f[...,4] (ymin, xmin, ymax, xmax) -> f[...,4] (x, y, width, height), x and y of the centre."""
    ymin, xmin, ymax, xmax = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([(xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin], -1)


def corners(boxes: jax.Array) -> jax.Array:
    """Inverse of `center`: f[...,4] (x, y, width, height) -> f[...,4] (ymin, xmin, ymax, xmax)."""
    x, y, width, height = jnp.moveaxis(boxes, -1, 0)
    return jnp.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], -1)


def clip(boxes: jax.Array, height: float, width: float) -> jax.Array:
    """Cuts boxes f[...,4] (ymin, xmin, ymax, xmax) at the border of an image."""
    return jnp.clip(boxes, 0, jnp.array([height, width, height, width], boxes.dtype))


def rescale(boxes: jax.Array, size: tuple[int, int], new_size: tuple[int, int]) -> jax.Array:
    """Boxes f[...,4] as fractions of an image of `size` (H, W) -> as fractions of another with the same first pixel."""
    if tuple(size) == tuple(new_size):
        return boxes
    return boxes * (jnp.array([*size, *size], boxes.dtype) / jnp.array([*new_size, *new_size], boxes.dtype))


def at_least_one(targets: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Gives targets without room for a box one that is not valid: of no boxes at all there is no nearest one.

    `targets` holds boxes f[B,N,4], box_labels i[B,N], box_valid bool[B,N], maybe box_masks; what else it holds stays.
    """
    if targets["boxes"].shape[1]:
        return dict(targets)
    arrays = {name: targets[name] for name in ("boxes", "box_labels", "box_valid", "box_masks") if name in targets}
    return targets | {name: jnp.zeros((len(x), 1, *x.shape[2:]), x.dtype) for name, x in arrays.items()}


def overlap(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """IoU and generalised IoU (arXiv:1902.09630) of boxes f[...,4], whose leading axes broadcast -> f[...] twice.

    The IoU is in [0, 1], the generalised one in [-1, 1]; both are 0 between two boxes that are one and the same point.
    """
    intersection = _area(jnp.maximum(first[..., :2], second[..., :2]), jnp.minimum(first[..., 2:], second[..., 2:]))
    union = _area(first[..., :2], first[..., 2:]) + _area(second[..., :2], second[..., 2:]) - intersection
    hull = _area(jnp.minimum(first[..., :2], second[..., :2]), jnp.maximum(first[..., 2:], second[..., 2:]))
    iou = _ratio(intersection, union)
    return iou, iou - _ratio(hull - union, hull)


def _area(low: jax.Array, high: jax.Array) -> jax.Array:
    return jnp.prod(jnp.maximum(high - low, 0), -1)


def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)

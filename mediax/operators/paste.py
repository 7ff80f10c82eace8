"""Masks of boxes: laid into the image, and compared with the true masks inside of true boxes.

`paste` follows torchvision's paste_masks_in_image; tests/test_paste.py compares them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def paste(mask: jax.Array, box: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Stretches a mask f[h,w] bilinearly over its box f[4] (ymin, xmin, ymax, xmax in pixels): f[H,W], 0 elsewhere.

    As in torchvision mask and box get a margin of one cell, and the corners of the box are cut to whole pixels.
    """
    mask = jnp.pad(mask, 1)
    cells = jnp.array(mask.shape, box.dtype)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * cells / (cells - 2)
    low, high = jnp.trunc(centre - half), jnp.trunc(centre + half)
    rows, columns = (
        _weights(low[axis], high[axis], mask.shape[axis], size[axis]).astype(mask.dtype) for axis in (0, 1)
    )
    return rows @ mask @ columns.T


def _weights(low: jax.Array, high: jax.Array, cells: int, length: int) -> jax.Array:
    """How much of each cell each pixel of an axis shows, f[length,cells]: bilinear from `low` to `high`, both in."""
    extent = jnp.maximum(high - low + 1, 1)
    pixel = jnp.arange(length)
    place = jnp.clip((pixel - low + 0.5) * cells / extent - 0.5, 0, cells - 1)
    weights = jnp.maximum(1 - jnp.abs(place[:, None] - jnp.arange(cells)), 0)
    return jnp.where(((pixel >= low) & (pixel < low + extent))[:, None], weights, 0)


def compare(
    masks: jax.Array, boxes: jax.Array, labels: jax.Array, shown: jax.Array, true: jax.Array, true_boxes: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The IoU f32[D,N] of found masks with true ones of the same structure, and the structures bool[H,W,K] shown.

    The true mask of a box is that of the found box's class inside it.

    Args:
      masks: f[D,h,w] in [0,1], of which 0.5 and more is called.
      boxes: f[D,4] ymin, xmin, ymax, xmax as fractions.
      labels: i[D] the structures of the found boxes.
      shown: bool[D] which found masks enter the second result.
      true: bool[H,W,K].
      true_boxes: f[N,4] as fractions.
    """
    size = true.shape[:2]
    pixels = jnp.array([*size, *size], boxes.dtype)
    corners = _whole(true_boxes * pixels)

    def add(structures: jax.Array, found) -> tuple[jax.Array, jax.Array]:
        mask, box, label, is_shown = found
        called = paste(mask, box * pixels, size) >= 0.5
        actual = jnp.take(true, label, axis=-1)
        both, whole = _within(called & actual, corners), _within(actual, corners)
        union = called.sum() + whole - both
        mine = (jnp.arange(true.shape[-1]) == label) & is_shown
        return structures | (called[..., None] & mine), both / jnp.maximum(union, 1)

    # One at a time: all of them at the size of the image would not fit.
    structures, iou = lax.scan(add, jnp.zeros(true.shape, bool), (masks, boxes, labels, shown))
    return iou, structures


def _whole(boxes: jax.Array) -> jax.Array:
    """The pixels whose centres lie in boxes f[N,4]: i32[N,4], the last ones excluded."""
    return jnp.concatenate([jnp.ceil(boxes[:, :2] - 0.5), jnp.ceil(boxes[:, 2:] - 0.5)], -1).astype(jnp.int32)


def _within(mask: jax.Array, corners: jax.Array) -> jax.Array:
    """Pixels of a mask bool[H,W] inside of whole boxes i32[N,4]: i32[N]."""
    sums = jnp.pad(mask.astype(jnp.int32).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    limits = jnp.array([*mask.shape, *mask.shape])
    ymin, xmin, ymax, xmax = jnp.clip(corners, 0, limits).T
    return sums[ymax, xmax] - sums[ymin, xmax] - sums[ymax, xmin] + sums[ymin, xmin]

"""Masks of boxes: laid into the image, and compared with the true masks of the boxes' own instances.

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
    masks: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    shown: jax.Array,
    true: jax.Array,
    size: tuple[int, int],
    classes: int,
) -> tuple[jax.Array, jax.Array]:
    """The IoU f32[D,N] of found masks with true ones of any class, and the masks bool[H,W,classes] of what is shown.

    Args:
      masks: f[D,h,w] in [0,1], of which 0.5 and more is called.
      boxes: f[D,4] ymin, xmin, ymax, xmax as fractions.
      labels: i[D] the classes of the found boxes.
      shown: bool[D] which found masks enter the second result.
      true: u8[N,H,O], the schema's `box_masks`.
      size: (H, W).
      classes: how many there are.
    """
    pixels = jnp.array([*size, *size], boxes.dtype)
    whole = _count(true)

    def add(structures: jax.Array, found) -> tuple[jax.Array, jax.Array]:
        mask, box, label, is_shown = found
        called = paste(mask, box * pixels, size) >= 0.5
        both = _count(true & jnp.packbits(called, axis=-1))
        union = called.sum() + whole - both
        mine = (jnp.arange(classes) == label) & is_shown
        return structures | (called[..., None] & mine), both / jnp.maximum(union, 1)

    # One at a time: all of them at the size of the image would not fit.
    structures, iou = lax.scan(add, jnp.zeros((*size, classes), bool), (masks, boxes, labels, shown))
    return iou, structures


def class_inside(masks: jax.Array, boxes: jax.Array, labels: jax.Array) -> jax.Array:
    """Stands in for the boxes' own masks where none are known: of each box its class's mask inside it, u8[N,H,O].

    Where boxes of one class overlap, each has pixels of the other in its mask. The result is laid out as the schema's
    `box_masks`.

    Args:
      masks: u8[H,W,K] of 0 and 1, one for each class.
      boxes: f[N,4] ymin, xmin, ymax, xmax as fractions.
      labels: i[N].
    """
    height, width = masks.shape[:2]
    pixels = jnp.array([height, width, height, width], boxes.dtype)
    rows, columns = (jnp.arange(length) + 0.5 for length in (height, width))

    def inside(box_and_label) -> jax.Array:
        (ymin, xmin, ymax, xmax), label = box_and_label
        box = ((rows >= ymin) & (rows < ymax))[:, None] & (columns >= xmin) & (columns < xmax)
        return jnp.packbits((masks[..., label] > 0) & box, axis=-1)

    return lax.map(inside, (boxes * pixels, labels))


def _count(packed: jax.Array) -> jax.Array:
    """The pixels of packed masks u8[N,H,O]: i32[N]."""
    return lax.population_count(packed).astype(jnp.int32).sum((1, 2))

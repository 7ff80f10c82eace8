"""RoIAlign: features of fixed size for boxes, from one level or from the level of a pyramid that fits each box."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mediax.operators.sampling import weighted_samples

# A box of adaptive sampling is spread over its level's rows and columns; this many boxes at a time bound the memory.
_BOXES_AT_ONCE = 16


def roi_align(
    pyramid: Mapping[int, jax.Array],
    boxes: jax.Array,
    size: int | tuple[int, int],
    *,
    level: jax.Array | int = 0,
    sampling_ratio: int = 2,
    aligned: bool = True,
) -> jax.Array:
    """Averages bilinear samples in each of `size` bins of a box (arXiv:1703.06870).

    pyramid: {stride: f[B,H/stride,W/stride,C]}; boxes: f32[B,N,4], (ymin, xmin, ymax, xmax) in pixels of the image;
    level: i32[B,N], which entry of the pyramid (in its order) each box reads, see `pyramid_level`
    -> f[B,N,rows,columns,C]. Equals torchvision.ops.roi_align (spatial_scale 1/stride) for each box's level.

    A bin has `sampling_ratio` x `sampling_ratio` samples, or with -1 as many as torchvision's adaptive rule says: about
    one a pixel. That number differs by box, so -1 multiplies by matrices of weights instead of gathering samples: exact
    for every box, but work grows with the size of the levels. `aligned` shifts by half a pixel, as pixel centres are
    at halves; without it boxes count as at least one pixel wide, as in the first implementations.

    A box outside its level, an empty one (with `aligned` and -1), and one with a NaN give zeros. Boxes get no gradient.
    Memory beside pyramid and result: twice the pyramid; with -1, O(B*16*columns*H*C) of the largest level instead.
    Raises ValueError for a sampling_ratio of 0 or below -1.
    """
    if sampling_ratio == 0 or sampling_ratio < -1:
        raise ValueError(f"roi_align takes a sampling_ratio of -1 (adaptive) or at least 1, not {sampling_ratio}.")
    bins = (size, size) if isinstance(size, int) else tuple(size)
    level = jnp.broadcast_to(level, boxes.shape[:2])
    boxes = lax.stop_gradient(jnp.asarray(boxes, jnp.promote_types(boxes.dtype, jnp.float32)))
    scale = jnp.array([1 / stride for stride in pyramid], boxes.dtype)[level]
    corners = boxes * scale[..., None] - (0.5 if aligned else 0.0)
    start, extent = corners[..., :2], corners[..., 2:] - corners[..., :2]
    if not aligned:
        extent = jnp.maximum(extent, 1.0)
    pool = _pool_adaptive if sampling_ratio == -1 else partial(_pool_samples, ratio=sampling_ratio)
    return pool(list(pyramid.values()), start, extent / jnp.array(bins, extent.dtype), level, bins)


def pyramid_level(
    boxes: jax.Array, strides: tuple[int, ...], *, canonical_size: float = 224, canonical_stride: int = 16
) -> jax.Array:
    """Which level suits each box: the one of `canonical_stride` from `canonical_size` pixels up to twice of it.

    f32[...,4] in pixels -> i32[...], an index into `strides`, which double from one to the next. Each octave of the
    root of the area is one level (equation 1 of arXiv:1612.03144, with torchvision's tolerance of 1e-6 octaves); boxes
    without an area go to the first level.
    """
    height, width = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    area = height * width
    octave = jnp.log2(jnp.sqrt(jnp.where(area > 0, area, 1)) / canonical_size) + 1e-6
    first = jnp.log2(strides[0] / canonical_stride)
    index = jnp.clip(jnp.floor(octave) - first, 0, len(strides) - 1)
    return jnp.where(area > 0, index, 0).astype(jnp.int32)


def _pool_samples(
    levels: list[jax.Array], start: jax.Array, extent: jax.Array, level: jax.Array, bins: tuple[int, int], *, ratio: int
) -> jax.Array:
    """Gathers the samples: start, extent f32[B,N,2] of a box and of its bins, in pixels of its level."""
    batch, boxes = level.shape

    def along(axis: int) -> tuple[jax.Array, jax.Array]:
        """Positions and weights of the samples along one axis: f32[B,N,bins,ratio]."""
        size = jnp.array([array.shape[1 + axis] for array in levels])[level][..., None, None]
        first, step = start[..., axis, None, None], extent[..., axis, None, None]
        return _clamp(first + jnp.arange(bins[axis])[:, None] * step + (jnp.arange(ratio) + 0.5) * step / ratio, size)

    (y, in_rows), (x, in_columns) = along(0), along(1)
    shape = (batch, boxes, *bins, ratio, ratio)
    y, in_rows = (jnp.broadcast_to(array[:, :, :, None, :, None], shape) for array in (y, in_rows))
    x, in_columns = (jnp.broadcast_to(array[:, :, None, :, None, :], shape) for array in (x, in_columns))
    samples = (array.reshape(batch, -1, 1, ratio**2) for array in (y, x, in_rows * in_columns / ratio**2))
    level = jnp.repeat(level, bins[0] * bins[1], 1)[:, :, None, None]
    pooled = weighted_samples([array[:, :, :, None] for array in levels], *samples, level=level)
    return pooled.reshape(batch, boxes, *bins, pooled.shape[-1])


def _pool_adaptive(
    levels: list[jax.Array], start: jax.Array, extent: jax.Array, level: jax.Array, bins: tuple[int, int]
) -> jax.Array:
    """Multiplies every level by weights of its rows and columns, which are zero for boxes of other levels."""

    def pool(box: tuple[jax.Array, ...]) -> jax.Array:
        start, extent, level = box  # of one box in each image: f32[B,2], f32[B,2], i32[B]
        total = 0.0
        for index, array in enumerate(levels):
            rows, columns = (
                _adaptive_weights(start[:, axis], extent[:, axis], bins[axis], array.shape[1 + axis]) for axis in (0, 1)
            )
            rows = jnp.where((level == index)[:, None, None], rows, 0)
            rows, columns = rows.astype(array.dtype), columns.astype(array.dtype)
            total += jnp.einsum("bpy,bqyc->bpqc", rows, jnp.einsum("bqx,byxc->bqyc", columns, array))
        return total

    by_box = tuple(jnp.moveaxis(array, 1, 0) for array in (start, extent, level))
    return jnp.moveaxis(lax.map(pool, by_box, batch_size=_BOXES_AT_ONCE), 0, 1)


def _adaptive_weights(start: jax.Array, extent: jax.Array, bins: int, size: int) -> jax.Array:
    """How much each pixel along an axis counts in each bin: f32[B] twice -> f32[B,bins,size].

    A bin of extent e has n = ceil(e) samples, e/n apart: more than half a pixel if n > 1. So at most five of them reach
    a pixel (they lie within one pixel of it), and n, which may be any number, does not bound the work.
    """
    start, extent = start[:, None, None], extent[:, None, None]
    count = jnp.ceil(extent)
    step = extent / jnp.where(count > 1, count, 1)
    first = start + extent * jnp.arange(bins)[:, None] + step / 2
    pixels = jnp.arange(size, dtype=start.dtype)
    lowest = jnp.where(count > 1, jnp.floor((pixels - 1 - first) / jnp.where(count > 1, step, 1)), 0)
    weights = 0.0
    for candidate in range(6):
        index = lowest + candidate
        position, inside = _clamp(first + index * step, size)
        reach = jnp.maximum(1 - jnp.abs(position - pixels), 0) * inside
        weights += jnp.where((index >= 0) & (index < count), reach, 0)
    return weights / jnp.where(count > 1, count, 1)


def _clamp(position: jax.Array, size: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Moves samples that are up to one pixel outside to the edge; 1 for those and for inner ones, 0 for others."""
    inside = (position >= -1) & (position <= size)
    return jnp.where(inside, jnp.clip(position, 0, size - 1), 0), inside.astype(position.dtype)

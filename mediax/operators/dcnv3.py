"""Deformable convolution v3: each pixel sums a few samples around it, at learned offsets and with learned weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mediax.operators.sampling import weighted_samples


def dcnv3(
    x: jax.Array,
    offsets: jax.Array,
    masks: jax.Array,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 1,
    dilation: int = 1,
    offset_scale: float = 1.0,
    remove_center: bool = False,
) -> jax.Array:
    """The core of DCNv3 (arXiv:2211.05778), without its projections: a weighted sum of samples at a shifted grid.

    x: f[B,H,W,G*D] in G groups; offsets: f32[B,H',W',G,K,2] in pixels, (x, y); masks: f32[B,H',W',G,K], normalised by
    the caller over K -> f[B,H',W',G*D], H' = floor((H + 2 * padding - dilation * (kernel_size - 1) - 1) / stride) + 1.
    K is kernel_size squared, one less with `remove_center`; the points of the grid go down its columns, left to right.
    `offset_scale` multiplies grid and offsets. Outside the image lie zeros. Equals OpenGVLab/InternImage's
    dcnv3_core_pytorch.

    Memory: O(B*H'*W'*G*(D + K)) beside x and its gradient; the K samples of a pixel are not stored.
    Raises ValueError where shapes do not fit, and for `remove_center` with an even kernel.
    """
    grid = _grid(kernel_size, dilation, remove_center)
    batch, height, width, channels = x.shape
    reach = dilation * (kernel_size - 1)
    rows, columns = ((size + 2 * padding - reach - 1) // stride + 1 for size in (height, width))
    groups = masks.shape[3]
    if masks.shape != (batch, rows, columns, groups, len(grid)) or offsets.shape != (*masks.shape, 2):
        raise ValueError(
            f"dcnv3 of an image {x.shape} was given masks {masks.shape} and offsets {offsets.shape}; "
            f"expected masks {(batch, rows, columns, 'G', len(grid))} and offsets of one axis more, 2."
        )
    if channels % groups:
        raise ValueError(f"dcnv3 cannot split {channels} channels into {groups} groups.")

    shift = offset_scale * (jnp.array(grid) + offsets)
    x_pixels = (jnp.arange(columns) * stride + reach // 2 - padding)[:, None, None] + shift[..., 0]
    y_pixels = (jnp.arange(rows) * stride + reach // 2 - padding)[:, None, None, None] + shift[..., 1]
    samples = (array.reshape(batch, rows * columns, groups, -1) for array in (y_pixels, x_pixels, masks))
    return weighted_samples([x.reshape(batch, height, width, groups, -1)], *samples).reshape(
        batch, rows, columns, channels
    )


def _grid(kernel_size: int, dilation: int, remove_center: bool) -> list[tuple[int, int]]:
    """The undisturbed points (x, y) around the centre, in pixels."""
    if remove_center and kernel_size % 2 == 0:
        raise ValueError(f"A kernel of size {kernel_size} has no centre to remove.")
    along = [dilation * index - dilation * (kernel_size - 1) // 2 for index in range(kernel_size)]
    grid = [(x, y) for x in along for y in along]
    if remove_center:
        del grid[len(grid) // 2]
    return grid

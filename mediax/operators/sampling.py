"""Bilinear sampling: weighted sums of samples, the core of deformable operators, and `grid_sample`."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax


def grid_sample(image: jax.Array, grid: jax.Array, *, padding: str = "zeros", align_corners: bool = False) -> jax.Array:
    """Samples an image bilinearly where a grid says, with the conventions of torch.nn.functional.grid_sample.

    f[B,H,W,C], f32[B,...,2] -> f[B,...,C]. The grid holds (x, y), and -1 and 1 are the centres of the outermost pixels
    with `align_corners`, the outer edges of the image without. Outside lie zeros, or with `padding` "border" the
    nearest pixel; a NaN coordinate gives zeros. Memory: that of the arguments and the result. Reverse mode only.
    Raises ValueError for another padding.
    """
    if padding not in ("zeros", "border"):
        raise ValueError(f"grid_sample has the paddings 'zeros' and 'border', not {padding!r}.")
    batch, height, width, channels = image.shape
    x, y = (grid[..., axis].reshape(batch, -1, 1, 1) for axis in range(2))
    y, x = (_pixels(along, size, align_corners) for along, size in ((y, height), (x, width)))
    if padding == "border":
        y, x = _clamp(y, height), _clamp(x, width)
    samples = weighted_samples([image[:, :, :, None]], y, x, jnp.ones_like(y))
    return samples.reshape(*grid.shape[:-1], channels)


def weighted_samples(
    levels: Sequence[jax.Array], y: jax.Array, x: jax.Array, weights: jax.Array, level: jax.Array | int = 0
) -> jax.Array:
    """For each query and group, the weighted sum of K bilinear samples, each from one of several levels.

    levels: f[B,H_l,W_l,G,D] each; y, x (pixels of the sample's own level, 0 the centre of the first one) and weights:
    f32[B,Q,G,K]; level: i32, broadcast to that shape -> f[B,Q,G,D]. Outside a level lie zeros; a NaN coordinate gives
    zero, with gradient zero. Sums in at least f32.

    Memory: the result, its gradient, and O(B*Q*G*K): neither direction stores the K samples, which a plain formula
    does. On a CPU, forward and backward together also take a third to a ninth of the plain formula's time
    (benchmarks/operators.py, beside torch). Reverse mode only.
    """
    dtype = jnp.promote_types(levels[0].dtype, jnp.float32)
    y, x, weights = (jnp.asarray(array).astype(dtype) for array in (y, x, weights))
    tops, heights, widths = _layout(levels)
    height, width, top = (jnp.asarray(table)[level] for table in (heights, widths, tops))

    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x, weights = (jnp.where(inside, array, 0) for array in (y, x, weights))
    upper, left = jnp.floor(y), jnp.floor(x)
    down, right = y - upper, x - left
    corners = jnp.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], -1)
    rows, columns = upper.astype(jnp.int32) + top, left.astype(jnp.int32) + 1
    by_sample = (jnp.moveaxis(array, 3, 0) for array in (rows, columns, corners * weights[..., None]))
    return _sum_corners(_canvas(levels), *by_sample)


def _pixels(along: jax.Array, size: int, align_corners: bool) -> jax.Array:
    return (along + 1) / 2 * (size - 1) if align_corners else ((along + 1) * size - 1) / 2


def _clamp(along: jax.Array, size: int) -> jax.Array:
    """Clips to [0, size - 1]; like torch's, the gradient is zero on the border too, where jnp.clip's is a half."""
    inner = (along > 0) & (along < size - 1)
    return jnp.where(inner, along, jnp.clip(lax.stop_gradient(along), 0, size - 1))


def _layout(levels: Sequence[jax.Array]) -> tuple[list[int], list[int], list[int]]:
    """Where the first row of each level lies on the canvas, below its margin, and the heights and widths."""
    heights, widths = [level.shape[1] for level in levels], [level.shape[2] for level in levels]
    tops = [1 + sum(heights[:index]) + 2 * index for index in range(len(levels))]
    return tops, heights, widths


def _canvas(levels: Sequence[jax.Array]) -> jax.Array:
    """The levels below each other, each with a margin of one zero pixel: f[B,sum(H_l+2),max(W_l)+2,G,D].

    One array for all levels: a sample's level becomes an offset of its row. The margin stands for all that is outside.
    """
    width = max(level.shape[2] for level in levels)
    margins = [((0, 0), (1, 1), (1, 1 + width - level.shape[2]), (0, 0), (0, 0)) for level in levels]
    return jnp.concatenate([jnp.pad(level, margin) for level, margin in zip(levels, margins)], 1)


def _corner(canvas: jax.Array, rows: jax.Array, columns: jax.Array, corner: int) -> jax.Array:
    """The pixels at corner 0 to 3 (upper left, upper right, lower left, lower right): i32[B,Q,G] -> f[B,Q,G,D].

    Batch and group are batching axes of the gather, so a batch that is split over devices needs no communication.
    """
    batch, height, width, groups, channels = canvas.shape
    index = (rows + corner // 2) * width + columns + corner % 2
    table = canvas.reshape(batch, height * width, groups, channels)
    return jnp.take_along_axis(table, index[..., None], 1, mode="promise_in_bounds")


# The loops below go over the K samples, in steps of this many at once: fused, these are faster than one by one.
_UNROLL = 3


@jax.custom_vjp
def _sum_corners(canvas: jax.Array, rows: jax.Array, columns: jax.Array, corners: jax.Array) -> jax.Array:
    """f[B,H,W,G,D], i32[K,B,Q,G] twice, f32[K,B,Q,G,4] -> f[B,Q,G,D]."""

    def add(total: jax.Array, sample: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        rows, columns, corners = sample
        for corner in range(4):
            total = total + _corner(canvas, rows, columns, corner) * corners[..., corner, None]
        return total, None

    total = jnp.zeros((*rows.shape[1:], canvas.shape[-1]), corners.dtype)
    return lax.scan(add, total, (rows, columns, corners), unroll=_UNROLL)[0].astype(canvas.dtype)


def _sum_corners_backward(saved: tuple[jax.Array, ...], g: jax.Array) -> tuple:
    canvas, *samples = saved
    g = g.astype(samples[-1].dtype)
    # One update of 2x2 pixels for each sample, not four: XLA's scatter on a CPU is a loop over updates.
    numbers = lax.ScatterDimensionNumbers(
        update_window_dims=(3, 4, 5),
        inserted_window_dims=(),
        scatter_dims_to_operand_dims=(1, 2),
        operand_batching_dims=(0, 3),
        scatter_indices_batching_dims=(0, 2),
    )

    def add(total: jax.Array, sample: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        rows, columns, corners = sample
        slopes = [jnp.sum(_corner(canvas, rows, columns, corner) * g, -1) for corner in range(4)]
        update = corners.reshape(*corners.shape[:-1], 2, 2, 1) * g[..., None, None, :]
        index = jnp.stack([rows, columns], -1)
        total = lax.scatter_add(total, index, update, numbers, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)
        return total, jnp.stack(slopes, -1)

    total, slopes = lax.scan(add, jnp.zeros(canvas.shape, g.dtype), tuple(samples))
    return total.astype(canvas.dtype), None, None, slopes


_sum_corners.defvjp(lambda *arguments: (_sum_corners(*arguments), arguments), _sum_corners_backward)

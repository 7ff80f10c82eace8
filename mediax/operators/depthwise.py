"""Depthwise convolution that is also fast on a CPU, where XLA's grouped convolution is not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def depthwise_conv(x: jax.Array, kernel: jax.Array, *, method: str | None = None) -> jax.Array:
    """Depthwise cross-correlation with stride 1 and zero padding that keeps the size.

    f[B,H,W,C], f[kh,kw,1,C] -> f[B,H,W,C], both of one dtype, kh and kw odd; H and W may be smaller than the kernel.
    `method` is "shift", "lax", or None: "shift" where the computation is lowered for a CPU, "lax" elsewhere.
    "lax" is `lax.conv_general_dilated`, whose values and gradients "shift" equals; on a CPU "shift" is several times
    faster (benchmarks/depthwise.py). Raises ValueError for an even kernel or another method. Reverse mode only.
    """
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"depthwise_conv keeps the size for odd kernels only, not for {kernel.shape[:2]}.")
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    if method is None:
        return _by_platform(x, kernel)
    if method not in ("shift", "lax"):
        raise ValueError(f"depthwise_conv has the methods 'shift' and 'lax', not {method!r}.")
    return {"shift": _shift, "lax": _lax}[method](x, kernel)


def _lax(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[-1]
    )


def _lax_pullback(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(_lax, x, kernel)[1](g)


def _wide(x: jax.Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)  # sums are at least f32


def _pad(x: jax.Array, kernel_shape: tuple[int, ...]) -> jax.Array:
    rows, columns = kernel_shape[0] // 2, kernel_shape[1] // 2
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


# Unrolled over the taps, the loops below are several times faster and take half a second to compile, for every layer.
# For an array smaller than this (a phantom, a test) that is a bad bargain: there they stay loops.
_UNROLL_FROM = 2**16


def _correlate(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One multiply-add over the whole image for each tap of the kernel: XLA fuses them into one vectorised loop."""
    rows, columns = kernel.shape[:2]
    height, width = x.shape[1:3]
    padded, taps = _pad(x, kernel.shape), kernel[:, :, 0].astype(_wide(x))

    def add_row(i: jax.Array, total: jax.Array) -> jax.Array:
        window = lax.dynamic_slice_in_dim(padded, i, height, 1)
        for j in range(columns):
            total = total + window[:, :, j : j + width] * taps[i, j]
        return total

    unroll = rows if x.size >= _UNROLL_FROM else 1
    return lax.fori_loop(0, rows, add_row, jnp.zeros(x.shape, taps.dtype), unroll=unroll).astype(x.dtype)


def _correlate_pullback(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    large = x.size >= _UNROLL_FROM and x.shape[1] > kernel.shape[0]
    kernel_gradient = (_kernel_gradient_by_tile if large else _kernel_gradient_by_tap)(x, g, kernel.shape)
    return _correlate(g, kernel[::-1, ::-1]), kernel_gradient.astype(kernel.dtype)


def _kernel_gradient_by_tap(x: jax.Array, g: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """dK[i,j,c] = sum over b,h,w of padded[b,h+i,w+j,c] * g[b,h,w,c] in f32: one pass over the image for each tap."""
    padded, columns = _pad(x, shape), shape[1]

    def tap(index: jax.Array) -> jax.Array:
        window = lax.dynamic_slice(padded, (0, index // columns, index % columns, 0), x.shape)
        return jnp.sum(window.astype(_wide(x)) * g, (1, 2))

    # The batch is summed in the end: where it is split over devices, they then wait for each other once, not each tap.
    return lax.map(tap, jnp.arange(shape[0] * columns)).sum(1).reshape(shape)


def _kernel_gradient_by_tile(x: jax.Array, g: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The same sum at about the cost of the forward pass: several times faster on large images.

    The image is cut into tiles of the kernel's size. For row p of a tile, h = rows * tile + p, and h + i for all i and
    all tiles is one contiguous range; columns alike. So for each position (p, q) in a tile, one multiply-add of a
    shifted image with g at (p, q) of its tile serves all taps at once, with the tiles left to add up in the end. The
    loop over bands of tiles keeps XLA from fusing that last sum with the others, which would be slow.
    """
    batch, height, width, channels = x.shape
    rows, columns = shape[:2]
    bands, tiles = -(-height // rows), -(-width // columns)
    below, right = bands * rows - height, tiles * columns - width
    padded = jnp.pad(_pad(x, shape), ((0, 0), (0, below), (0, right), (0, 0)))
    tiled = jnp.pad(g, ((0, 0), (0, below), (0, right), (0, 0))).reshape(batch, -1, tiles, columns, channels)

    def add_band(band: jax.Array, total: jax.Array) -> jax.Array:
        window = lax.dynamic_slice_in_dim(padded, band * rows, 2 * rows - 1, 1).astype(_wide(x))
        gradient = lax.dynamic_slice_in_dim(tiled, band * rows, rows, 1).astype(_wide(x))
        for p in range(rows):
            for q in range(columns):
                shifted = window[:, p : p + rows, q : q + tiles * columns]
                total = total + shifted.reshape(total.shape) * gradient[:, p, None, :, q, None]
        return total

    total = lax.fori_loop(0, bands, add_band, jnp.zeros((batch, rows, tiles, columns, channels), _wide(x)))
    return total.sum((0, 2)).reshape(shape)


@jax.custom_vjp
def _shift(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _correlate(x, kernel)


_shift.defvjp(lambda x, kernel: (_correlate(x, kernel), (x, kernel)), lambda saved, g: _correlate_pullback(*saved, g))


# platform_dependent decides when a computation is lowered, so code that is compiled for another device, or placed on
# the CPU of a GPU machine, gets the method of the device that runs it.
@jax.custom_vjp
def _by_platform(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=_correlate, default=_lax)


def _by_platform_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return lax.platform_dependent(*saved, g, cpu=_correlate_pullback, default=_lax_pullback)


_by_platform.defvjp(lambda x, kernel: (_by_platform(x, kernel), (x, kernel)), _by_platform_backward)

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


def _pad(x: jax.Array, kernel_shape: tuple[int, ...]) -> jax.Array:
    rows, columns = kernel_shape[0] // 2, kernel_shape[1] // 2
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))


def _correlate(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One multiply-add over the whole image for each tap of the kernel: XLA fuses them into one vectorised loop."""
    rows, columns = kernel.shape[:2]
    height, width = x.shape[1:3]
    padded, taps = _pad(x, kernel.shape), kernel[:, :, 0].astype(jnp.float32)

    def add_row(i: jax.Array, total: jax.Array) -> jax.Array:
        window = lax.dynamic_slice_in_dim(padded, i, height, 1)
        for j in range(columns):
            total = total + window[:, :, j : j + width] * taps[i, j]
        return total

    total = lax.fori_loop(0, rows, add_row, jnp.zeros(x.shape, jnp.float32), unroll=_unroll(x, rows))
    return total.astype(x.dtype)


def _unroll(x: jax.Array, rows: int) -> int:
    # Unrolled, the code is 5 times faster and takes half a second to compile; for a small array that is a bad bargain.
    return rows if x.size >= 2**16 else 1


def _correlate_pullback(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _correlate(g, kernel[::-1, ::-1]), _kernel_gradient(x, g, kernel.shape).astype(kernel.dtype)


def _kernel_gradient(x: jax.Array, g: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """dK[i,j,c] = sum over b,h,w of padded[b,h+i,w+j,c] * g[b,h,w,c], in f32, at about the cost of the forward pass.

    Summing tap by tap would read the whole image once per tap. Instead the image is cut into tiles of the kernel's size:
    where h = kh * tile + p, the rows kh * tile + p + i of all i and all tiles are one contiguous slice. So for each
    position (p, q) in a tile, one multiply-add of a shifted image with g at (p, q) of its tile yields all taps at once,
    with the tiles left to add up. The loop over bands of tiles keeps XLA from fusing that last sum into the first.
    """
    batch, height, width, channels = x.shape
    rows, columns = shape[:2]
    bands, tiles = -(-height // rows), -(-width // columns)
    below, right = bands * rows - height, tiles * columns - width
    padded = jnp.pad(x, ((0, 0), (rows // 2, rows // 2 + below), (columns // 2, columns // 2 + right), (0, 0)))
    tiled = jnp.pad(g, ((0, 0), (0, below), (0, right), (0, 0))).reshape(batch, -1, tiles, columns, channels)

    def add_band(band: jax.Array, total: jax.Array) -> jax.Array:
        def add_row(p: jax.Array, total: jax.Array) -> jax.Array:
            window = lax.dynamic_slice_in_dim(padded, band * rows + p, rows, 1)
            gradient = lax.dynamic_slice_in_dim(tiled, band * rows + p, 1, 1).astype(jnp.float32)
            for q in range(columns):
                shifted = window[:, :, q : q + tiles * columns].reshape(total.shape)
                total = total + shifted * gradient[:, :, :, q, None]
            return total

        return lax.fori_loop(0, rows, add_row, total, unroll=_unroll(x, rows))

    total = lax.fori_loop(0, bands, add_band, jnp.zeros((batch, rows, tiles, columns, channels), jnp.float32))
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

"""Pieces that several networks share: convolutions, perceptron, pooling, resizing, norms, drop path, remat."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from mediax.errors import InputError
from mediax.operators.depthwise import depthwise_conv


class Conv(nnx.Module):
    """Dense 2-D convolution with zero padding on both sides.

    f[B,H,W,in] -> f[B,H',W',out], H' = floor((H + 2 * padding - size) / stride) + 1, which is torch's rule and not
    XLA's "SAME". `kernel` is f32[size,size,in,out], `bias` f32[out] or absent; both are cast to `dtype` to compute.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        use_bias: bool = True,
        kernel_init: nnx.Initializer,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, in_channels, out_channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_channels)) if use_bias else nnx.data(None)
        self.size, self.stride, self.padding, self.dtype = size, stride, padding, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(self.dtype)
        if x.shape[-1] != kernel.shape[2]:
            raise InputError(
                f"A convolution built for {kernel.shape[2]} input channels was given an array of shape {x.shape}. "
                "For the first layer, set the backbone's in_channels to the channels of the image."
            )
        y = self._convolve(x.astype(self.dtype), kernel)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        # A matrix product is 2 to 4 times faster on a CPU than lax's convolution, and no slower elsewhere.
        if self.padding == 0 and self.size == 1:
            return by_row(jnp.matmul, x[:, :: self.stride, :: self.stride], kernel[0, 0])
        if self.padding == 0 and self.size == self.stride:
            return by_row(jnp.matmul, patches(x, self.size), kernel.reshape(-1, kernel.shape[-1]))
        return lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(self.padding, self.padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class Linear(nnx.Linear):
    """flax's linear layer for arrays of any rank, f[...,in] -> f[...,out], as fast on a CPU as for matrices."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return by_row(super().__call__, x)


class Perceptron(nnx.Module):
    """Two linear layers, 4 times wider in between, and GELU: f[...,C] -> f[...,C]."""

    def __init__(self, channels: int, *, kernel_init: nnx.Initializer, dtype: Any, rngs: nnx.Rngs):
        settings = {"kernel_init": kernel_init, "dtype": dtype, "rngs": rngs}
        self.expand = Linear(channels, 4 * channels, **settings)
        self.project = Linear(4 * channels, channels, **settings)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.project(gelu(self.expand(x)))


class DepthwiseConv(nnx.Module):
    """One odd-sized filter per channel, size-keeping: f[B,H,W,C] -> f[B,H,W,C]."""

    def __init__(self, channels: int, size: int, *, kernel_init: nnx.Initializer, dtype: Any, rngs: nnx.Rngs):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, 1, channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        y = depthwise_conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y + self.bias[...].astype(self.dtype)


def by_row(function: Callable[..., jax.Array], x: jax.Array, *others: jax.Array) -> jax.Array:
    """Applies a function of matrices f[N,in] -> f[N,out] to the last axis of f[...,in].

    XLA transposes arrays of higher rank for the gradient of the weights, which on a CPU takes as long as the product.
    """
    rows = function(x.reshape(-1, x.shape[-1]), *others)
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x times the normal distribution function of x (arXiv:1606.08415), computed in at least f32.

    Reverse mode only. Its gradient needs `x` alone; what autodiff keeps of `jax.nn.gelu` makes a perceptron several
    times slower on a CPU (benchmarks/operators.py).
    """
    return (wide(x) * _normal_distribution(wide(x))).astype(x.dtype)


def _normal_distribution(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x: jax.Array, slope: jax.Array) -> tuple[jax.Array]:
    # Without the barrier XLA computes this anew for each of the products that take it.
    x, slope = lax.optimization_barrier((x, slope))
    density = jnp.exp(-0.5 * wide(x) ** 2) * (1 / math.sqrt(2 * math.pi))
    return ((wide(slope) * (_normal_distribution(wide(x)) + wide(x) * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def patches(x: jax.Array, size: int) -> jax.Array:
    """Cuts an image into squares that do not overlap: f[B,H,W,C] -> f[B,H//size,W//size,size*size*C].

    Rows and columns that do not fill a square are dropped, as a strided convolution without padding does.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x[:, : rows * size, : columns * size].reshape(batch, rows, size, columns, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, size * size * channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def max_pool(x: jax.Array, size: int, stride: int, padding: int = 0) -> jax.Array:
    """Maximum of size x size windows: f[B,H,W,C] -> f[B,H',W',C], H' = floor((H + 2 * padding - size) / stride) + 1.

    The gradient goes to the first of equal maxima in a window, as torch's. XLA's own scatters it one by one, which on a
    CPU takes tens of times as long (benchmarks/operators.py).
    """
    return functools.reduce(jnp.maximum, _window_places(x, size, stride, padding))


def _window_places(x: jax.Array, size: int, stride: int, padding: int) -> list[jax.Array]:
    """What stands at each place of all windows, row by row: size * size arrays f[B,H',W',C]."""
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    batch, height, width, channels = x.shape
    rows, columns = ((side - size) // stride * stride + 1 for side in (height, width))
    return [
        lax.slice(x, (0, top, left, 0), (batch, top + rows, left + columns, channels), (1, stride, stride, 1))
        for top in range(size)
        for left in range(size)
    ]


def _max_pool_forward(x: jax.Array, size: int, stride: int, padding: int) -> tuple[jax.Array, tuple]:
    highest = max_pool(x, size, stride, padding)
    return highest, (x, highest)


def _max_pool_backward(size: int, stride: int, padding: int, saved: tuple, slope: jax.Array) -> tuple[jax.Array]:
    x, highest = saved
    total, given = 0.0, jnp.zeros(highest.shape, bool)
    padded = [side + 2 * padding for side in x.shape[1:3]]
    for index, value in enumerate(_window_places(x, size, stride, padding)):
        first = (value == highest) & ~given
        given |= first
        axes = [
            (place, side - place - ((windows - 1) * stride + 1), stride - 1)
            for place, side, windows in zip(divmod(index, size), padded, highest.shape[1:3])
        ]
        total += lax.pad(jnp.where(first, slope, 0), jnp.zeros((), slope.dtype), ((0, 0, 0), *axes, (0, 0, 0)))
    return (total[:, padding : padding + x.shape[1], padding : padding + x.shape[2]],)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def average_cells(x: jax.Array, cells: int) -> jax.Array:
    """Averages f[B,H,W,C] over a grid of cells: f[B,cells,cells,C].

    A cell reaches from floor(i * H / cells) to ceil((i + 1) * H / cells): neighbours overlap by a pixel where `cells`
    does not divide a side, as in torch's adaptive average pooling.
    """

    def weights(side: int) -> jax.Array:
        starts = np.arange(cells) * side // cells
        ends = -(-np.arange(1, cells + 1) * side // cells)
        inside = (np.arange(side) >= starts[:, None]) & (np.arange(side) < ends[:, None])
        return jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)

    return jnp.einsum("bhwc,ih,jw->bijc", x, weights(x.shape[1]), weights(x.shape[2]), precision="highest")


def wide(x: jax.Array) -> jax.Array:
    """At least f32, for what must not lose its last digits."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes f[B,h,w,C] to f[B,H,W,C]; a pixel takes the value at floor(place * h / H), as torch does."""
    for axis, side in zip((1, 2), size):
        factor, rest = divmod(side, x.shape[axis])
        places = np.arange(side) * x.shape[axis] // side
        x = jnp.take(x, places, axis=axis) if rest else jnp.repeat(x, factor, axis=axis)
    return x


def bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Resizes f[B,h,w,C] to f[B,H,W,C] by the pixels' centres, the border repeated."""
    return jax.image.resize(x, (len(x), *size, x.shape[-1]), "bilinear", antialias=False)


class BatchNorm(nnx.Module):
    """Batch normalisation with torch's conventions (arXiv:1502.03167): f[B,H,W,C] -> f[B,H,W,C] in `dtype`.

    Statistics are computed in at least f32 and kept in f32. In training the biased batch variance normalises and the
    UNBIASED one enters the running average (`nnx.BatchNorm` stores the biased one, and casts the statistics to
    `dtype`). The batch is the global one: under a sharded jit the means are means over all devices.
    """

    def __init__(
        self,
        channels: int,
        *,
        scale_init: nnx.Initializer = nnx.initializers.ones,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.scale = nnx.Param(scale_init(rngs.params(), (channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.mean = nnx.BatchStat(jnp.zeros(channels))
        self.var = nnx.BatchStat(jnp.ones(channels))
        self.momentum, self.epsilon, self.dtype = momentum, epsilon, dtype

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = wide(x)
        if train:
            mean = x.mean((0, 1, 2))
            var = jnp.square(x - mean).mean((0, 1, 2))
            count = x.size // x.shape[-1]
            self._update(self.mean, mean)
            self._update(self.var, var * (count / max(count - 1, 1)))
        else:
            mean, var = self.mean[...].astype(x.dtype), self.var[...].astype(x.dtype)
        return ((x - mean) * (self.scale[...] * lax.rsqrt(var + self.epsilon)) + self.bias[...]).astype(self.dtype)

    def _update(self, running: nnx.BatchStat, batch: jax.Array) -> None:
        batch = lax.stop_gradient(batch).astype(jnp.float32)
        running.set_value(self.momentum * running[...] + (1 - self.momentum) * batch)


def normalised(pyramid: Mapping[int, jax.Array], norms: Iterable[nnx.LayerNorm]) -> dict[int, jax.Array]:
    """Normalises each level {stride: f[B,h,w,C]} of a pyramid by a LayerNorm of its own."""
    return {stride: norm(x) for (stride, x), norm in zip(pyramid.items(), norms, strict=True)}


class ConvPair(nnx.Module):
    """Two 3x3 convolutions, each followed by [BatchNorm] and ReLU: f[B,H,W,in] -> f[B,H,W,out], or 4 less unpadded.

    The block of U-Net and of its kin, which derive theirs from it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        padding: int = 1,
        normalize: bool = True,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")  # arXiv:1505.04597, section 3
        options = {"padding": padding, "use_bias": not normalize, "kernel_init": init, "dtype": dtype}
        self.convs, self.norms = nnx.List(), nnx.List()
        for inputs in (in_channels, out_channels):
            self.convs.append(Conv(inputs, out_channels, 3, **options, rngs=rngs))
            if normalize:
                self.norms.append(BatchNorm(out_channels, dtype=dtype, rngs=rngs))

    def convolve(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies both convolutions with what follows each."""
        for index, conv in enumerate(self.convs):
            x = conv(x)
            x = jax.nn.relu(self.norms[index](x, train) if self.norms else x)
        return x


def drop_path(x: jax.Array, rate: float, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """Stochastic depth (arXiv:1603.09382): zeroes whole rows of f[B,...] with probability `rate`, scales the others up.

    Drawn from the stream `rngs.dropout`; the identity outside training or at rate 0.
    """
    if not train or rate == 0:
        return x
    if rngs is None:
        raise ValueError("drop_path needs rngs in training.")
    keep = jax.random.bernoulli(rngs.dropout(), 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), 0)


# Without these compiler options rematerialisation saves nothing on a CPU: its compiler removes the barriers between
# what was computed and what is recomputed, and then merges the two.
CPU_REMAT_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def run_block(block: nnx.Module, *arguments: Any, remat: bool) -> Any:
    """Calls `block(*arguments)`; with `remat` the backward pass recomputes its inside instead of storing it.

    Flags (bool) and sizes (tuple) are fixed when it is traced; all else is arrays, or holds them.
    """
    call = type(block).__call__
    if remat:
        static = tuple(place for place, value in enumerate(arguments, 1) if isinstance(value, (bool, tuple)))
        call = nnx.remat(call, static_argnums=static)
    return call(block, *arguments)

"""The code of a convolutional autoencoder and its decoder: a pyramid becomes a short vector, and that an image."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mediax.errors import InputError
from mediax.layers import Conv, run_block, wide

_kernel_init = nnx.initializers.xavier_uniform()


class Doubling(nnx.Module):
    """3x3 convolution and ReLU at twice the size: f[B,H,W,in] -> f[B,2H,2W,out].

    A transposed convolution of stride 2, or with `upsample` a convolution and then each pixel repeated 2x2. `kernel` is
    f32[3,3,out,in] when transposed, as in Keras, and f32[3,3,in,out] otherwise.
    """

    def __init__(self, in_channels: int, out_channels: int, *, upsample: bool, dtype: Any, rngs: nnx.Rngs):
        shape = (in_channels, out_channels) if upsample else (out_channels, in_channels)
        self.kernel = nnx.Param(_kernel_init(rngs.params(), (3, 3, *shape), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.upsample, self.dtype = upsample, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        if not self.upsample:
            y = lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=layout, transpose_kernel=True)
            return jax.nn.relu(y + bias)
        y = jax.nn.relu(lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout) + bias)
        return jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)


class Head(nnx.Module):
    """Pyramid {stride: f[B,H/s,W/s,C_s]} -> {"code": f32[B,code], "image": f32[B,H,W,out_channels] in [0,1]}.

    The coarsest level, flattened, gives the code by one linear layer; another one and as many doublings as there are
    levels give the image. `size` is (H, W) of the image: the linear layers fit that size alone. `upsample` doubles by
    repeating pixels instead of by transposed convolutions. `remat` stores one array per level for the backward pass and
    recomputes the rest. Raises InputError where a size does not fit.
    """

    def __init__(
        self,
        channels: dict[int, int],
        *,
        size: tuple[int, int],
        code: int = 128,
        out_channels: int = 1,
        upsample: bool = False,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.level, self.remat = max(channels), remat
        if any(length % self.level for length in size):
            raise InputError(f"The autoencoder's image size {size} is not a multiple of its stride {self.level}.")
        widths = [channels[stride] for stride in sorted(channels, reverse=True)]
        self.shape = (size[0] // self.level, size[1] // self.level, widths[0])
        features = self.shape[0] * self.shape[1] * self.shape[2]
        linear = {"kernel_init": _kernel_init, "dtype": dtype, "rngs": rngs}
        self.code = nnx.Linear(features, code, **linear)
        self.expand = nnx.Linear(code, features, **linear)
        steps = zip((widths[0], *widths), widths)
        self.levels = nnx.List([Doubling(*step, upsample=upsample, dtype=dtype, rngs=rngs) for step in steps])
        self.output = Conv(widths[-1], out_channels, 3, padding=1, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)

    def __call__(self, pyramid: dict[int, jax.Array], *, train: bool, rngs: nnx.Rngs | None) -> dict[str, jax.Array]:
        x = pyramid[self.level]
        if x.shape[1:] != self.shape:
            raise InputError(
                f"The autoencoder was built for features of {self.shape} and given {x.shape[1:]}: set its size to the "
                "image's."
            )
        code = self.code(x.reshape(len(x), -1))
        x = jax.nn.relu(self.expand(code)).reshape(x.shape)
        for level in self.levels:
            x = run_block(level, x, remat=self.remat)
        return {"code": wide(code), "image": jax.nn.sigmoid(wide(self.output(x)))}

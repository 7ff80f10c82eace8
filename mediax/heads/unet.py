"""U-Net's expanding path (arXiv:1505.04597) for any backbone: pyramid -> logits of each pixel.

By default the decoder of segmentation-models-pytorch's Unet. The paper's own, for the backbone `unet_encoder`, has
upsampling="transposed", normalize=False, output_size=1 and the encoder's widths. tests/test_unet.py compares both with
their references.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import Conv, ConvPair, nearest, run_block, wide


class Doubling(nnx.Module):
    """Transposed 2x2 convolution of stride 2: f[B,H,W,in] -> f[B,2H,2W,out]; `kernel` is f32[2,2,out,in]."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: Any, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=-1, out_axis=-2, batch_axis=(0, 1))
        self.kernel = nnx.Param(init(rngs.params(), (2, 2, out_channels, in_channels), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        y = jnp.einsum("bhwi,kloi->bhkwlo", x.astype(self.dtype), kernel) + bias
        batch, height, _, width, _, channels = y.shape
        return y.reshape(batch, 2 * height, 2 * width, channels)


class Block(ConvPair):
    """Upsampling, the skip of that level beside it, two 3x3 convolutions with [BatchNorm] and ReLU.

    f[B,h,w,in], f[B,H,W,skip] -> f[B,H,W,out] for padding "same"; "valid" doubles h and w, cuts the skip to that size,
    and gives 4 pixels less.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: int,
        out_channels: int,
        *,
        upsampling: str,
        valid: bool,
        normalize: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        learned = upsampling == "transposed"
        self.up = Doubling(in_channels, out_channels, dtype=dtype, rngs=rngs) if learned else nnx.data(None)
        self.valid = valid
        entering = (out_channels if learned else in_channels) + skip_channels
        options = {"padding": 0 if valid else 1, "normalize": normalize, "dtype": dtype}
        super().__init__(entering, out_channels, **options, rngs=rngs)

    def __call__(self, x: jax.Array, skip: jax.Array | None, size: tuple[int, int], train: bool) -> jax.Array:
        size = (2 * x.shape[1], 2 * x.shape[2]) if self.valid else size
        x = nearest(x, size) if self.up is None else centred(self.up(x), size)
        x = x if skip is None else jnp.concatenate([x, centred(skip, size).astype(x.dtype)], axis=-1)
        return self.convolve(x, train)


class Head(nnx.Module):
    """Pyramid {stride: f[B,H/s,W/s,C_s]}, size of the image (H, W) -> logits f32[B,H,W,K].

    From the coarsest level on, each block doubles the sides and takes in the next finer level, down to stride 1; where
    the backbone has no level of a stride (ResNet at 1, ConvNeXt at 2 and 1), the block goes without. Sizes that the
    strides do not divide are allowed: a block takes the size of its level.

    `channels` is the backbone's {stride: C_s}, with powers of two as strides. `widths` are the channels of the blocks,
    coarse to fine, by default 16 at stride 1 and twice as many at each one before. `upsampling` is "nearest", or
    "transposed" (a learned 2x2 convolution). `padding` "valid" is the paper's, for a `unet_encoder` of the same
    padding. `normalize` puts a BatchNorm before each ReLU; `output_size` is the side of the last convolution's kernel.
    `remat` stores one array per block for the backward pass and recomputes the rest.
    Raises InputError for options that do not fit.
    """

    def __init__(
        self,
        channels: Mapping[int, int],
        classes: int,
        *,
        widths: tuple[int, ...] = (),
        upsampling: Literal["nearest", "transposed"] = "nearest",
        padding: Literal["same", "valid"] = "same",
        normalize: bool = True,
        output_size: int = 3,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if upsampling not in ("nearest", "transposed"):
            raise InputError(f'unet head: upsampling={upsampling!r}; choose "nearest" or "transposed".')
        if padding not in ("same", "valid"):
            raise InputError(f'unet head: padding={padding!r}; choose "same" or "valid".')
        coarsest = max(channels)
        self.strides = tuple(2**power for power in reversed(range(coarsest.bit_length() - 1)))
        if any(level not in (coarsest, *self.strides) for level in channels):
            raise InputError(f"unet head: the backbone's strides are {sorted(channels)}; expected powers of two.")
        widths = tuple(widths) or tuple(16 * stride for stride in self.strides)
        if len(widths) != len(self.strides):
            raise InputError(
                f"unet head: widths={widths}; expected {len(self.strides)}, one for each of the strides {self.strides}."
            )
        self.coarsest, self.remat = coarsest, remat
        self.blocks = nnx.List()
        options = {"upsampling": upsampling, "valid": padding == "valid", "normalize": normalize, "dtype": dtype}
        for inputs, stride, width in zip((channels[coarsest], *widths), self.strides, widths):
            self.blocks.append(Block(inputs, channels.get(stride, 0), width, **options, rngs=rngs))
        self.output = Conv(
            widths[-1],
            classes,
            output_size,
            padding=output_size // 2,
            kernel_init=nnx.initializers.xavier_uniform(),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, pyramid: Mapping[int, jax.Array], size: tuple[int, int], *, train: bool, rngs: nnx.Rngs | None
    ) -> jax.Array:
        x = pyramid[self.coarsest]
        for stride, block in zip(self.strides, self.blocks):
            skip = pyramid.get(stride)
            level = skip.shape[1:3] if skip is not None else tuple(-(-side // stride) for side in size)
            x = run_block(block, x, skip, level, train, remat=self.remat)
        return wide(centred(self.output(x), size))


def centred(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Cuts f[B,h,w,C] to its middle f[B,H,W,C], or puts zeros around it."""
    for axis, side in zip((1, 2), size):
        missing = side - x.shape[axis]
        if missing > 0:
            pads = [(0, 0)] * x.ndim
            pads[axis] = (missing // 2, missing - missing // 2)
            x = jnp.pad(x, pads)
        start = max(0, -missing) // 2
        x = lax.slice_in_dim(x, start, start + side, axis=axis)
    return x


_NAMES = (
    # segmentation-models-pytorch
    *(
        (rf"decoder\.blocks\.(\d+)\.conv{index + 1}\.{layer}", rf"head/blocks/\1/{ours}/{index}")
        for index in range(2)
        for layer, ours in ((0, "convs"), (1, "norms"))
    ),
    (r"segmentation_head\.0", r"head/output"),
    # github.com/jvanvugt/pytorch-unet without BatchNorm
    (r"up_path\.(\d+)\.up", r"head/blocks/\1/up"),
    (r"up_path\.(\d+)\.conv_block\.block\.0", r"head/blocks/\1/convs/0"),
    (r"up_path\.(\d+)\.conv_block\.block\.2", r"head/blocks/\1/convs/1"),
    (r"last", r"head/output"),
)


def translate(weights: Mapping[str, np.ndarray]) -> dict[str, dict[Any, np.ndarray]]:
    """Published tensors by name -> {"backbone": {name: array}, "head": {path: array}}.

    Takes Unet of segmentation-models-pytorch, or pytorch-unet of jvanvugt without BatchNorm. The backbone's tensors
    keep the names that their own library gave them: they are for `translate` of the backbone's file.
    Raises InputError with the names it does not know.
    """
    encoder = {name: array for name, array in weights.items() if name.startswith(("encoder.", "down_path."))}
    own = {name: array for name, array in weights.items() if name not in encoder}
    return {
        "backbone": {name.removeprefix("encoder."): array for name, array in encoder.items()},
        "head": pretrained.rename(own, _NAMES)["head"],
    }

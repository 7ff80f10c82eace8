"""The contracting path of the plain U-Net (arXiv:1505.04597): image -> pyramid, for the head `unet`."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import ConvPair, max_pool, run_block

VARIANTS = {"2015": {"width": 1.0}, "half": {"width": 0.5}, "quarter": {"width": 0.25}, "eighth": {"width": 0.125}}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PUBLISHED: dict[str, Any] = {}  # the authors' weights are Caffe's, of one channel and two cell datasets


class Level(ConvPair):
    """One level of the path, as `run_block` calls it: f[B,H,W,in] -> f[B,H,W,out], or 4 less if unpadded."""

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        return self.convolve(x, train)


class Backbone(nnx.Module):
    """U-Net's contracting path: f32[B,H,W,in_channels] -> {1, 2, 4, 8, 16: f[B,H/stride,W/stride,C]}.

    Each level is two 3x3 convolutions with ReLU, after max-pooling that halves the sides (rounding down). `width`
    multiplies the channels 64, 128, 256, 512, 1024 and overrides the variant's; `levels` is their number.
    `padding` "valid" is the paper's: the image is mirrored at its border by as much as the unpadded convolutions of
    this path and of the head eat up, so that the logits cover the image and every one of them saw real or mirrored
    pixels; levels are then larger than H/stride, and the head must have padding "valid" too. "same" pads with zeros.
    `normalize` puts a BatchNorm before each ReLU, `dropout` a dropout after the coarsest level. `remat` stores one
    array per level for the backward pass. Parameters are f32; the computation and the pyramid are in `dtype`.
    Raises InputError for an unknown variant or padding.
    """

    def __init__(
        self,
        *,
        variant: str = "2015",
        in_channels: int = 3,
        width: float | None = None,
        levels: int = 5,
        padding: Literal["same", "valid"] = "same",
        normalize: bool = False,
        dropout: float = 0.0,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise InputError(f"unet_encoder has no variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        if padding not in ("same", "valid"):
            raise InputError(f'unet_encoder: padding={padding!r}; choose "same" or "valid".')
        width = VARIANTS[variant]["width"] if width is None else width
        self.widths = tuple(round(64 * width) * 2**level for level in range(levels))
        self.num_layers, self.valid, self.dropout, self.remat = levels, padding == "valid", dropout, remat
        self.levels = nnx.List()
        for inputs, channels in zip((in_channels, *self.widths), self.widths):
            options = {"padding": 0 if self.valid else 1, "normalize": normalize, "dtype": dtype}
            self.levels.append(Level(inputs, channels, **options, rngs=rngs))

    @property
    def channels(self) -> dict[int, int]:
        return {2**level: width for level, width in enumerate(self.widths)}

    @property
    def multiple(self) -> int:
        """What the sides of an image are to be multiples of: without padding any number, as it is mirrored."""
        return 1 if self.valid else max(self.channels)

    def __call__(self, image: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> dict[int, jax.Array]:
        x = _mirrored(image, len(self.widths)) if self.valid else image
        pyramid = {}
        for index, level in enumerate(self.levels):
            x = max_pool(x, 2, 2) if index else x
            x = run_block(level, x, train, rngs, remat=self.remat)
            pyramid[2**index] = x
        if train and self.dropout > 0:
            pyramid[2**index] = nnx.Dropout(self.dropout, deterministic=False)(x, rngs=rngs)
        return pyramid

    def layer_of(self, path: tuple[str | int, ...]) -> int:
        """Depth of the parameter at `path` for layer-wise learning-rate decay: its level."""
        return path[1]


def _mirrored(image: jax.Array, levels: int) -> jax.Array:
    """Mirrors the image at its border, so that all poolings see even sides and the logits cover the image."""
    pads = [(0, 0)]
    for side in image.shape[1:3]:
        # With n pixels left in the middle of the U, the input has n * stride + down of them and the output up fewer
        # than n * stride: each convolution takes 2 pixels of its own level.
        stride = 2 ** (levels - 1)
        up = 4 * (stride - 1)
        down = up + 4 * stride
        spare = -(-(side + up) // stride) * stride + down - side
        pads.append((spare // 2, spare - spare // 2))
    return jnp.pad(image, [*pads, (0, 0)], mode="reflect")


# Two convolutions of a level, and the names of https://github.com/jvanvugt/pytorch-unet without BatchNorm.
_NAMES = (
    (r"down_path\.(\d+)\.block\.0", r"backbone/levels/\1/convs/0"),
    (r"down_path\.(\d+)\.block\.2", r"backbone/levels/\1/convs/1"),
)


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict[pretrained.Path, np.ndarray]]:
    """Published tensors by name -> {"backbone": {path: array}, "head": {}}; the head `unet` translates its own.

    Takes the `down_path` of github.com/jvanvugt/pytorch-unet without BatchNorm. Raises InputError for other names.
    """
    return pretrained.rename(weights, _NAMES)


def adapt_input(
    backbone: dict[pretrained.Path, np.ndarray], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[pretrained.Path, np.ndarray]:
    """Translated backbone weights as they are, of any number of channels: nobody published a normalisation for them."""
    return backbone

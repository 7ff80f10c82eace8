"""Convolutional autoencoder: image -> pyramid, the encoder; `heads/autoencoder.py` holds the code and the decoder.

Follows the plain autoencoders of Keras' guide: 3x3 convolutions with ReLU and "same" padding, each halving the image by
its stride or by max-pooling. tests/test_autoencoder.py compares both parts with Keras, in outputs and gradients, and
reads Keras' .h5 file.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import Conv, max_pool, run_block
from mediax.operators.padding import pad_same

VARIANTS = {
    "strided": {"widths": (32, 64, 128, 256), "pool": False},
    "pooled": {"widths": (32, 64, 128, 256), "pool": True},
}

# Autoencoders of this kind see an image in [0,1] as it is.
MEAN = (0.0, 0.0, 0.0)
STD = (1.0, 1.0, 1.0)
PUBLISHED = {}  # weights come from the user's own .h5 file, as Keras writes it
# Whose names of published weights `translate` takes.
READS = ("Keras",)


class Halving(nnx.Module):
    """3x3 convolution and ReLU at half the size: f[B,H,W,in] -> f[B,ceil(H/2),ceil(W/2),out], floor with `pool`.

    The convolution has stride 2, or with `pool` stride 1 and a 2x2 max-pooling after the ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, *, pool: bool, dtype: Any, rngs: nnx.Rngs):
        self.stride = 1 if pool else 2
        settings = {"stride": self.stride, "kernel_init": nnx.initializers.xavier_uniform(), "dtype": dtype}
        self.conv = Conv(in_channels, out_channels, 3, **settings, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        x = jax.nn.relu(self.conv(pad_same(x, 3, self.stride)))
        return x if self.stride == 2 else max_pool(x, 2, 2)


class Backbone(nnx.Module):
    """The encoder: f32[B,H,W,in_channels] -> {stride: f[B,~H/stride,~W/stride,C]}, strides 2, 4, 8, ...

    `channels` is {stride: C}. `widths` overrides the variant's channels, one for each halving. `remat` stores one array
    per level for the backward pass. Parameters are f32; the computation and the pyramid are in `dtype`.
    Raises InputError for an unknown variant.
    """

    def __init__(
        self,
        *,
        variant: str = "strided",
        in_channels: int = 3,
        widths: tuple[int, ...] | None = None,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise InputError(f"The autoencoder has no variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        self.widths = tuple(widths or VARIANTS[variant]["widths"])
        self.remat = remat
        self.num_layers = len(self.widths)
        pool = VARIANTS[variant]["pool"]
        steps = zip((in_channels, *self.widths), self.widths)
        self.levels = nnx.List([Halving(*step, pool=pool, dtype=dtype, rngs=rngs) for step in steps])

    @property
    def channels(self) -> dict[int, int]:  # a property: a dict as an attribute makes the module's definition unhashable
        return {2 ** (level + 1): width for level, width in enumerate(self.widths)}

    def __call__(self, image: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> dict[int, jax.Array]:
        x, pyramid = image, {}
        for stride, level in zip(self.channels, self.levels):
            pyramid[stride] = x = run_block(level, x, train, rngs, remat=self.remat)
        return pyramid

    def layer_of(self, path: tuple[str | int, ...]) -> int:
        """Depth of the parameter at `path` for layer-wise learning-rate decay: 0 to num_layers - 1."""
        return path[1]


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict[pretrained.Path, np.ndarray]]:
    """Keras tensors in the order of their layers -> {"backbone": {path: array}, "head": {path: array}}.

    Layers are told by place, for their names are arbitrary: convolutions up to the first of two dense layers are the
    encoder, those after the second the decoder, the last one of them its output. The head is `heads/autoencoder.py`.
    Raises InputError for tensors that are no kernels and biases in this order.
    """
    kernels = {name: array for name, array in weights.items() if name.endswith("/kernel")}
    unknown = [name for name in weights if not name.endswith(("/kernel", "/bias"))]
    kinds = "".join({4: "c", 2: "d"}.get(array.ndim, "?") for array in kernels.values())
    encoder, _, decoder = kinds.partition("dd")
    if unknown or not encoder or not decoder or set(encoder + decoder) != {"c"}:
        raise InputError(
            f"{len(weights)} tensors are no convolutional autoencoder: expected kernels and biases of convolutions, "
            f"two dense layers and convolutions, found {', '.join(list(weights)[:8])}. Is this another network's file?"
        )
    places = [
        *(("backbone", "levels", level, "conv") for level in range(len(encoder))),
        ("head", "code"),
        ("head", "expand"),
        *(("head", "levels", level) for level in range(len(decoder) - 1)),
        ("head", "output"),
    ]
    parts: dict[str, dict[pretrained.Path, np.ndarray]] = {"backbone": {}, "head": {}}
    for name, (part, *path) in zip(kernels, places, strict=True):
        layer = name.removesuffix("/kernel")
        for word in ("kernel", "bias"):
            if f"{layer}/{word}" in weights:
                parts[part][*path, word] = weights[f"{layer}/{word}"]
    return parts


def adapt_input(
    backbone: dict[pretrained.Path, np.ndarray], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[pretrained.Path, np.ndarray]:
    """Translated encoder weights for images normalised by `mean` and `std`, one value per channel: 1 or 3 channels.

    The encoder then computes what it would for the same image in [0,1], a grey image being the same grey in all three
    channels, or for weights with one channel the mean of the channels: exactly, but for the pixels next to the border,
    where the zero padding stands for black there and for `mean` here. Raises InputError for another number of channels.
    """
    first = ("levels", 0, "conv")
    kernel = backbone[*first, "kernel"]
    kernel = np.repeat(kernel / 3, 3, axis=2) if kernel.shape[2] == 1 else kernel
    kernel, constant = pretrained.adapt_input(kernel, MEAN, STD, mean, std)
    return backbone | {(*first, "kernel"): kernel, (*first, "bias"): backbone[*first, "bias"] + constant}

"""DenseNet (arXiv:1608.06993): image -> pyramid, with the names of its published weights, also for chest radiographs.

Follows torchvision. TorchXRayVision's networks have the same names, one grey channel and another normalisation, which
`adapt_input` takes from the weights. tests/test_densenet.py compares the outputs, the gradients and the running
statistics with the reference.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import BatchNorm, Conv, max_pool, run_block

VARIANTS = {
    "121": {"depths": (6, 12, 24, 16), "growth": 32, "stem": 64},
    "161": {"depths": (6, 12, 36, 24), "growth": 48, "stem": 96},
    "169": {"depths": (6, 12, 32, 32), "growth": 32, "stem": 64},
    "201": {"depths": (6, 12, 48, 32), "growth": 32, "stem": 64},
}

# Whose names of published weights `translate` takes.
READS = ("torchvision", "timm", "torchxrayvision")

# The input normalisation of ImageNet's weights: red, green, blue of an image in [0,1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# TorchXRayVision's: one grey channel, [0,1] becomes [-1024,1024].
GREY_MEAN = (0.5,)
GREY_STD = (1 / 2048,)


def _published_by_torchxrayvision(data: str) -> dict[str, Any]:
    file = f"{data}-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
    source = f"https://github.com/mlmed/torchxrayvision/releases/download/v1/{file}"
    common = {"licence": "Apache-2.0", "classes": 18, "size": 224, "mean": GREY_MEAN, "std": GREY_STD}
    return {"file": file, "source": source} | common


# torchvision: ImageNet-1k. TorchXRayVision: 18 findings of chest radiographs; its files are pickled objects, which
# pretrained.read refuses because loading one runs code. Where you trust the file, save what
# `torchxrayvision.models.DenseNet(weights=...).state_dict()` gives, with torch.save or safetensors, and read that.
PUBLISHED = {
    "121": [
        pretrained.torchvision_file("densenet121-a639ec97.pth"),
        _published_by_torchxrayvision("nih-pc-chex-mimic_ch-google-openi-kaggle"),
        *(_published_by_torchxrayvision(data) for data in ("nih", "pc", "chex", "kaggle", "mimic_nb", "mimic_ch")),
    ],
    "161": [pretrained.torchvision_file("densenet161-8d451a50.pth")],
    "169": [pretrained.torchvision_file("densenet169-b2777c0a.pth")],
    "201": [pretrained.torchvision_file("densenet201-c1103571.pth")],
}

_BOTTLENECK = 4  # a layer's 1x1 convolution gives this many times the growth

_kernel_init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class Layer(nnx.Module):
    """The features that one layer adds to those before it: list of f[B,H,W,C_i] -> f[B,H,W,growth].

    BatchNorm, ReLU, 1x1 convolution to 4 * growth; BatchNorm, ReLU, 3x3 convolution; dropout.
    """

    def __init__(self, in_channels: int, growth: int, *, dropout: float, dtype: Any, rngs: nnx.Rngs):
        inner = _BOTTLENECK * growth
        self.norms = nnx.List([BatchNorm(channels, dtype=dtype, rngs=rngs) for channels in (in_channels, inner)])
        self.convs = nnx.List([_conv(in_channels, inner, 1, 1, dtype, rngs), _conv(inner, growth, 3, 1, dtype, rngs)])
        self.dropout = dropout

    def __call__(self, features: list[jax.Array], train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        # Concatenated here and not by the caller: with rematerialisation, each feature is then stored once.
        x = jnp.concatenate(features, axis=-1)
        for norm, conv in zip(self.norms, self.convs):
            x = conv(jax.nn.relu(norm(x, train)))
        if train and self.dropout > 0:
            x = nnx.Dropout(self.dropout, deterministic=False)(x, rngs=rngs)
        return x


class Transition(nnx.Module):
    """BatchNorm, ReLU, 1x1 convolution to half the channels, 2x2 mean: f[B,H,W,C] -> f[B,H//2,W//2,C//2]."""

    def __init__(self, channels: int, *, dtype: Any, rngs: nnx.Rngs):
        self.norm = BatchNorm(channels, dtype=dtype, rngs=rngs)
        self.conv = _conv(channels, channels // 2, 1, 1, dtype, rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return nnx.avg_pool(self.conv(jax.nn.relu(self.norm(x, train))), (2, 2), strides=(2, 2))


class Stem(nnx.Module):
    """7x7 convolution of stride 2, BatchNorm, ReLU, 3x3 max-pooling of stride 2: f[B,H,W,in] -> f[B,H/4,W/4,out]."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv = _conv(in_channels, out_channels, 7, 2, dtype, rngs)
        self.norm = BatchNorm(out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = jax.nn.relu(self.norm(self.conv(x), train))
        return max_pool(x, 3, 2, 1)


class Stage(nnx.Module):
    """The layers of one resolution, after the transition that leads to it (the first stage has none)."""

    def __init__(self, transition: Transition | None, layers: list[Layer]):
        self.transition = nnx.data(transition)
        self.layers = nnx.List(layers)


class Backbone(nnx.Module):
    """DenseNet without its classifier: f32[B,H,W,in_channels] -> {stride: f[B,~H/stride,~W/stride,C]}.

    `channels` is {stride: C} for the strides 4, 8, 16, 32. A level is all features of its stage, before the transition;
    the last one with BatchNorm and ReLU. The stem rounds sizes up, the transitions round down. `depths`, `growth` and
    `stem` (its channels) override the variant's. `dropout` zeroes entries of each layer's features. `remat` stores the
    features of each layer once for the backward pass and recomputes the rest. Parameters are f32; the computation and
    the pyramid are in `dtype`, BatchNorm's statistics in f32. Raises InputError for an unknown variant.
    """

    def __init__(
        self,
        *,
        variant: str = "121",
        in_channels: int = 3,
        depths: tuple[int, ...] | None = None,
        growth: int | None = None,
        stem: int | None = None,
        dropout: float = 0.0,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise InputError(f"DenseNet has no variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        self.depths = tuple(depths or VARIANTS[variant]["depths"])
        growth = growth or VARIANTS[variant]["growth"]
        channels = stem or VARIANTS[variant]["stem"]
        self.remat = remat
        self.num_layers = 1 + sum(self.depths)
        self.stem = Stem(in_channels, channels, dtype=dtype, rngs=rngs)
        self.stages = nnx.List()
        widths = []
        for stage, depth in enumerate(self.depths):
            transition = Transition(channels, dtype=dtype, rngs=rngs) if stage > 0 else None
            channels = channels // 2 if stage > 0 else channels
            layers = [
                Layer(channels + index * growth, growth, dropout=dropout, dtype=dtype, rngs=rngs)
                for index in range(depth)
            ]
            self.stages.append(Stage(transition, layers))
            channels += depth * growth
            widths.append(channels)
        self.widths = tuple(widths)
        self.norm = BatchNorm(channels, dtype=dtype, rngs=rngs)

    @property
    def channels(self) -> dict[int, int]:  # a property: a dict as an attribute makes the module's definition unhashable
        return {4 * 2**stage: width for stage, width in enumerate(self.widths)}

    def __call__(self, image: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> dict[int, jax.Array]:
        x = self.stem(image, train)
        pyramid = {}
        for stride, stage in zip(self.channels, self.stages):
            if stage.transition is not None:
                x = stage.transition(x, train)
            features = [x]
            for layer in stage.layers:
                features.append(run_block(layer, features, train, rngs, remat=self.remat))
            pyramid[stride] = x = jnp.concatenate(features, axis=-1)
        pyramid[stride] = jax.nn.relu(self.norm(x, train))
        return pyramid

    def layer_of(self, path: tuple[str | int, ...]) -> int:
        """Depth of the parameter at `path` for layer-wise learning-rate decay: 0 (stem) to num_layers - 1.

        A head comes after them all, at num_layers. Every dense layer is one layer; a transition belongs to the layer
        after it, the last BatchNorm to the one before it.
        """
        if path[0] == "stem":
            return 0
        if path[0] == "norm":
            return self.num_layers - 1
        _, stage, kind, *rest = path
        return 1 + sum(self.depths[:stage]) + (rest[0] if kind == "layers" else 0)


def _conv(in_channels: int, out_channels: int, size: int, stride: int, dtype: Any, rngs: nnx.Rngs) -> Conv:
    settings = {"stride": stride, "padding": size // 2, "use_bias": False, "kernel_init": _kernel_init, "dtype": dtype}
    return Conv(in_channels, out_channels, size, **settings, rngs=rngs)


def _from_zero(published: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Pairs of names whose published number counts from 1 and ours, `{}`, from 0."""
    return tuple((published.format(number + 1), ours.format(number)) for number in range(_MOST_LAYERS))


_MOST_LAYERS = max(max(variant["depths"]) for variant in VARIANTS.values())

# Published module -> ours, by full match of the name without its last word: see pretrained.rename. Older checkpoints
# write norm.1 for norm1.
_NAMES = (
    (r"features\.conv0", r"backbone/stem/conv"),
    (r"features\.norm0", r"backbone/stem/norm"),
    (r"features\.norm5", r"backbone/norm"),
    *(
        (rf"features\.transition{stage}\.{word}", rf"backbone/stages/{stage}/transition/{word}")
        for stage in range(1, 4)
        for word in ("norm", "conv")
    ),
    *(
        pair
        for stage in range(4)
        for index in range(2)
        for word in ("norm", "conv")
        for pair in _from_zero(
            rf"features\.denseblock{stage + 1}\.denselayer{{}}\.{word}\.?{index + 1}",
            rf"backbone/stages/{stage}/layers/{{}}/{word}s/{index}",
        )
    ),
    (r"classifier", r"head/linear"),
)


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict[pretrained.Path, np.ndarray]]:
    """Published tensors by name -> {"backbone": {path: array}, "head": {path: array}} in this file's layout.

    Takes the names of torchvision, which timm and TorchXRayVision share; the head is `heads/pooled.py` without
    normalize. TorchXRayVision's thresholds, `op_threshs`, are no weights and are dropped.
    Raises InputError with the names it does not know.
    """
    return pretrained.rename({name: array for name, array in weights.items() if name != "op_threshs"}, _NAMES)


def adapt_input(
    backbone: dict[pretrained.Path, np.ndarray], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[pretrained.Path, np.ndarray]:
    """Translated backbone weights for images normalised by `mean` and `std`, one value per channel: 1 or 3 channels.

    The network then computes what it would for the same image normalised as its weights expect: red, green and blue by
    MEAN and STD, a grey image being the same grey in all three; or, if the weights have one channel, the mean of the
    channels by GREY_MEAN and GREY_STD. Exact but for the pixels whose receptive field in the stem reaches the zero
    padding. The stem has no bias, so the constant goes into its BatchNorm's running mean (in training the batch mean
    removes it). Raises InputError for another number of channels.
    """
    kernel, published_mean, published_std = backbone["stem", "conv", "kernel"], MEAN, STD
    if kernel.shape[2] == 1:
        kernel, published_mean, published_std = np.repeat(kernel / 3, 3, axis=2), GREY_MEAN * 3, GREY_STD * 3
    kernel, constant = pretrained.adapt_input(kernel, published_mean, published_std, mean, std)
    running_mean = backbone["stem", "norm", "mean"] - constant
    return backbone | {("stem", "conv", "kernel"): kernel, ("stem", "norm", "mean"): running_mean}

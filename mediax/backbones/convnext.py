"""ConvNeXt (arXiv:2201.03545): image -> pyramid, with the name map of its published weights.

Follows facebookresearch/ConvNeXt; the variants below "tiny" are timm's. tests/test_convnext.py compares the outputs
and the gradients with the reference.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import Conv, DepthwiseConv, Linear, drop_path, gelu, normalised, run_block

VARIANTS = {
    "atto": {"depths": (2, 2, 6, 2), "widths": (40, 80, 160, 320)},
    "femto": {"depths": (2, 2, 6, 2), "widths": (48, 96, 192, 384)},
    "pico": {"depths": (2, 2, 6, 2), "widths": (64, 128, 256, 512)},
    "nano": {"depths": (2, 2, 8, 2), "widths": (80, 160, 320, 640)},
    "tiny": {"depths": (3, 3, 9, 3), "widths": (96, 192, 384, 768)},
    "small": {"depths": (3, 3, 27, 3), "widths": (96, 192, 384, 768)},
    "base": {"depths": (3, 3, 27, 3), "widths": (128, 256, 512, 1024)},
    "large": {"depths": (3, 3, 27, 3), "widths": (192, 384, 768, 1536)},
    "xlarge": {"depths": (3, 3, 27, 3), "widths": (256, 512, 1024, 2048)},
}

# Parameters that no classifier's file has, by the beginning of their path: without them they start as ones and zeros.
OPTIONAL = ("level_norms",)

# The input normalisation of the published weights: red, green, blue of an image in [0,1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _published_by_authors(file: str, classes: int, size: int = 224) -> dict[str, Any]:
    source = f"https://dl.fbaipublicfiles.com/convnext/{file}"
    return {"file": file, "source": source, "licence": "MIT", "classes": classes, "size": size}


def _published_by_timm(name: str) -> dict[str, Any]:
    source = f"https://huggingface.co/timm/{name}"
    return {"file": "model.safetensors", "source": source, "licence": "Apache-2.0", "classes": 1000, "size": 224}


# classes 1000: ImageNet-1k; 21841: ImageNet-22k. "22k_1k": trained on the second, then on the first.
PUBLISHED = {
    "atto": [_published_by_timm("convnext_atto.d2_in1k")],
    "femto": [_published_by_timm("convnext_femto.d1_in1k")],
    "pico": [_published_by_timm("convnext_pico.d1_in1k")],
    "nano": [_published_by_timm("convnext_nano.d1h_in1k")],
    "tiny": [
        _published_by_authors("convnext_tiny_1k_224_ema.pth", 1000),
        _published_by_authors("convnext_tiny_22k_224.pth", 21841),
        _published_by_authors("convnext_tiny_22k_1k_224.pth", 1000),
        _published_by_authors("convnext_tiny_22k_1k_384.pth", 1000, 384),
        pretrained.torchvision_file("convnext_tiny-983f1562.pth"),
    ],
    "small": [
        _published_by_authors("convnext_small_1k_224_ema.pth", 1000),
        _published_by_authors("convnext_small_22k_224.pth", 21841),
        _published_by_authors("convnext_small_22k_1k_224.pth", 1000),
        _published_by_authors("convnext_small_22k_1k_384.pth", 1000, 384),
        pretrained.torchvision_file("convnext_small-0c510722.pth"),
    ],
    "base": [
        _published_by_authors("convnext_base_1k_224_ema.pth", 1000),
        _published_by_authors("convnext_base_1k_384.pth", 1000, 384),
        _published_by_authors("convnext_base_22k_224.pth", 21841),
        _published_by_authors("convnext_base_22k_1k_224.pth", 1000),
        _published_by_authors("convnext_base_22k_1k_384.pth", 1000, 384),
        pretrained.torchvision_file("convnext_base-6075fbad.pth"),
    ],
    "large": [
        _published_by_authors("convnext_large_1k_224_ema.pth", 1000),
        _published_by_authors("convnext_large_1k_384.pth", 1000, 384),
        _published_by_authors("convnext_large_22k_224.pth", 21841),
        _published_by_authors("convnext_large_22k_1k_224.pth", 1000),
        _published_by_authors("convnext_large_22k_1k_384.pth", 1000, 384),
        pretrained.torchvision_file("convnext_large-ea097f82.pth"),
    ],
    "xlarge": [
        _published_by_authors("convnext_xlarge_22k_224.pth", 21841),
        _published_by_authors("convnext_xlarge_22k_1k_224_ema.pth", 1000),
        _published_by_authors("convnext_xlarge_22k_1k_384_ema.pth", 1000, 384),
    ],
}

# The authors truncate at +-2, a hundred standard deviations away: a plain normal distribution.
_kernel_init = nnx.initializers.normal(0.02)
_GROUP = 3  # consecutive blocks that share a learning rate under layer-wise decay, as in the authors' recipe


class Block(nnx.Module):
    """Residual block, f[B,H,W,C] -> f[B,H,W,C]: depthwise 7x7, LayerNorm, 4 times wider and back, LayerScale."""

    def __init__(self, channels: int, *, layer_scale: float, drop_path: float, dtype: Any, rngs: nnx.Rngs):
        self.depthwise = DepthwiseConv(channels, 7, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.norm = _layer_norm(channels, dtype, rngs)
        self.expand = Linear(channels, 4 * channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.project = Linear(4 * channels, channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.layer_scale = nnx.Param(jnp.full(channels, layer_scale)) if layer_scale > 0 else nnx.data(None)
        self.drop_path = drop_path

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        y = self.norm(self.depthwise(x))
        y = self.project(gelu(self.expand(y)))
        if self.layer_scale is not None:
            y = y * self.layer_scale[...].astype(y.dtype)
        return x + drop_path(y, self.drop_path, train=train, rngs=rngs)


class Downsample(nnx.Module):
    """LayerNorm and a 2x2 convolution of stride 2: f[B,H,W,in] -> f[B,H//2,W//2,out]."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: Any, rngs: nnx.Rngs):
        self.norm = _layer_norm(in_channels, dtype, rngs)
        self.conv = Conv(in_channels, out_channels, 2, stride=2, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(self.norm(x))


class Stem(nnx.Module):
    """Image to features at `stride`, then LayerNorm: f[B,H,W,in] -> f[B,H//4,W//4,out] at the published stride 4.

    Strides 1 and 2, for small images, use an overlapping 3x3 convolution with padding 1 (size ceil(H/stride)): a 1x1
    or 2x2 patch sees too little. The published stem fits stride 4 only.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, dtype: Any, rngs: nnx.Rngs):
        size, padding = (4, 0) if stride == 4 else (3, 1)
        self.conv = Conv(
            in_channels,
            out_channels,
            size,
            stride=stride,
            padding=padding,
            kernel_init=_kernel_init,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = _layer_norm(out_channels, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class Stage(nnx.Module):
    """The blocks of one resolution, after the downsampling that leads to it (the first stage has none)."""

    def __init__(self, downsample: Downsample | None, blocks: list[Block]):
        self.downsample = nnx.data(downsample)
        self.blocks = nnx.List(blocks)


class Backbone(nnx.Module):
    """ConvNeXt without its head: f32[B,H,W,in_channels] -> {stride: f[B,H//stride,W//stride,C]}.

    `channels` is {stride: C}: strides 4, 8, 16, 32, or `stem_stride` times 1, 2, 4, 8 (1 or 2 for small images).
    The levels are the sums that their stages end with; with `level_norms` each has a LayerNorm of its own, as published
    detectors and segmenters have it. `depths` and `widths` override the variant's. `drop_path` is the stochastic depth
    rate of the last block; it rises linearly from 0 at the first. `remat` stores one array per block for the backward
    pass and recomputes the rest. Parameters are f32; the computation and the pyramid are in `dtype`, LayerNorm's
    statistics in f32.
    Raises InputError for an unknown variant or stem_stride.
    """

    def __init__(
        self,
        *,
        variant: str = "tiny",
        in_channels: int = 3,
        depths: tuple[int, ...] | None = None,
        widths: tuple[int, ...] | None = None,
        stem_stride: int = 4,
        layer_scale: float = 1e-6,
        level_norms: bool = False,
        drop_path: float = 0.0,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise InputError(f"ConvNeXt has no variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        if stem_stride not in (1, 2, 4):
            raise InputError(f"ConvNeXt's stem_stride is {stem_stride}; choose 1, 2 or 4.")
        self.depths = tuple(depths or VARIANTS[variant]["depths"])
        widths = tuple(widths or VARIANTS[variant]["widths"])
        if len(self.depths) != len(widths):
            raise InputError(f"ConvNeXt's depths {self.depths} and widths {widths} must have the same length.")

        self.stem_stride, self.widths = stem_stride, widths
        self.num_layers = 1 + sum(_groups(depth) for depth in self.depths)
        self.remat = remat
        self.stem = Stem(in_channels, widths[0], stride=stem_stride, dtype=dtype, rngs=rngs)
        rates = iter(np.linspace(0, drop_path, sum(self.depths)).tolist())
        self.stages = nnx.List()
        for stage, (depth, width) in enumerate(zip(self.depths, widths)):
            downsample = Downsample(widths[stage - 1], width, dtype=dtype, rngs=rngs) if stage > 0 else None
            blocks = [
                Block(width, layer_scale=layer_scale, drop_path=next(rates), dtype=dtype, rngs=rngs)
                for _ in range(depth)
            ]
            self.stages.append(Stage(downsample, blocks))
        self.level_norms = nnx.List(_layer_norm(width, dtype, rngs) for width in (widths if level_norms else ()))

    @property
    def channels(self) -> dict[int, int]:  # a property: a dict as an attribute makes the module's definition unhashable
        return {self.stem_stride * 2**stage: width for stage, width in enumerate(self.widths)}

    def __call__(self, image: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> dict[int, jax.Array]:
        x = self.stem(image)
        pyramid = {}
        for stride, stage in zip(self.channels, self.stages):
            if stage.downsample is not None:
                x = stage.downsample(x)
            for block in stage.blocks:
                x = run_block(block, x, train, rngs, remat=self.remat)
            pyramid[stride] = x
        return normalised(pyramid, self.level_norms) if self.level_norms else pyramid

    def layer_of(self, path: tuple[str | int, ...]) -> int:
        """Depth of the parameter at `path` for layer-wise learning-rate decay: 0 (stem) to num_layers - 1.

        A head comes after them all, at num_layers, and with it the norms of the levels, as in the authors' recipe.
        Three consecutive blocks are one layer and a downsampling belongs to the layer after it: the authors' twelve
        layers, and for "tiny" their rule without the numbers it leaves unused.
        """
        if path[0] == "stem":
            return 0
        if path[0] == "level_norms":
            return self.num_layers
        _, stage, kind, *rest = path
        first = 1 + sum(_groups(depth) for depth in self.depths[:stage])
        return first + (rest[0] // _GROUP if kind == "blocks" else 0)


def _groups(depth: int) -> int:
    return -(-depth // _GROUP)


def _layer_norm(channels: int, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(channels, epsilon=1e-6, dtype=dtype, rngs=rngs)


# Published module -> ours, by full match of the name without its last word: see pretrained.rename.
_NAMES = (
    # facebookresearch/ConvNeXt; mmsegmentation, which abbreviates no layer's name
    (r"downsample_layers\.0\.0", r"backbone/stem/conv"),
    (r"downsample_layers\.0\.1", r"backbone/stem/norm"),
    (r"downsample_layers\.([1-3])\.0", r"backbone/stages/\1/downsample/norm"),
    (r"downsample_layers\.([1-3])\.1", r"backbone/stages/\1/downsample/conv"),
    (r"stages\.(\d+)\.(\d+)\.(?:dwconv|depthwise_conv)", r"backbone/stages/\1/blocks/\2/depthwise"),
    (r"stages\.(\d+)\.(\d+)\.norm", r"backbone/stages/\1/blocks/\2/norm"),
    (r"stages\.(\d+)\.(\d+)\.(?:pwconv1|pointwise_conv1)", r"backbone/stages/\1/blocks/\2/expand"),
    (r"stages\.(\d+)\.(\d+)\.(?:pwconv2|pointwise_conv2)", r"backbone/stages/\1/blocks/\2/project"),
    (r"stages\.(\d+)\.(\d+)\.gamma", r"backbone/stages/\1/blocks/\2/layer_scale"),
    (r"norm(\d)", r"backbone/level_norms/\1"),
    (r"norm", r"head/norm"),
    (r"head", r"head/linear"),
    # timm
    (r"stem\.0", r"backbone/stem/conv"),
    (r"stem\.1", r"backbone/stem/norm"),
    (r"stages\.([1-3])\.downsample\.0", r"backbone/stages/\1/downsample/norm"),
    (r"stages\.([1-3])\.downsample\.1", r"backbone/stages/\1/downsample/conv"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw", r"backbone/stages/\1/blocks/\2/depthwise"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm", r"backbone/stages/\1/blocks/\2/norm"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc1", r"backbone/stages/\1/blocks/\2/expand"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc2", r"backbone/stages/\1/blocks/\2/project"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.gamma", r"backbone/stages/\1/blocks/\2/layer_scale"),
    (r"head\.norm", r"head/norm"),
    (r"head\.fc", r"head/linear"),
    # torchvision: features.1, 3, 5, 7 are the stages, features.2, 4, 6 the downsamplings that lead to them
    (r"features\.0\.0", r"backbone/stem/conv"),
    (r"features\.0\.1", r"backbone/stem/norm"),
    *(
        (rf"features\.{2 * stage + offset}\.{published}", rf"backbone/stages/{stage}/{ours}")
        for stage in range(4)
        for offset, published, ours in (
            (0, r"0", r"downsample/norm"),
            (0, r"1", r"downsample/conv"),
            (1, r"(\d+)\.block\.0", r"blocks/\1/depthwise"),
            (1, r"(\d+)\.block\.2", r"blocks/\1/norm"),
            (1, r"(\d+)\.block\.3", r"blocks/\1/expand"),
            (1, r"(\d+)\.block\.5", r"blocks/\1/project"),
            (1, r"(\d+)\.layer_scale", r"blocks/\1/layer_scale"),
        )
    ),
    (r"classifier\.0", r"head/norm"),
    (r"classifier\.2", r"head/linear"),
    # transformers, where a classifier's file names the backbone first
    (r"(?:convnext\.)?embeddings\.patch_embeddings", r"backbone/stem/conv"),
    (r"(?:convnext\.)?embeddings\.layernorm", r"backbone/stem/norm"),
    *(
        (rf"(?:convnext\.)?encoder\.stages\.(\d+)\.{published}", rf"backbone/stages/\1/{ours}")
        for published, ours in (
            (r"downsampling_layer\.0", r"downsample/norm"),
            (r"downsampling_layer\.1", r"downsample/conv"),
            (r"layers\.(\d+)\.dwconv", r"blocks/\2/depthwise"),
            (r"layers\.(\d+)\.layernorm", r"blocks/\2/norm"),
            (r"layers\.(\d+)\.pwconv1", r"blocks/\2/expand"),
            (r"layers\.(\d+)\.pwconv2", r"blocks/\2/project"),
            (r"layers\.(\d+)\.layer_scale_parameter", r"blocks/\2/layer_scale"),
        )
    ),
    *((rf"hidden_states_norms\.stage{level + 1}", rf"backbone/level_norms/{level}") for level in range(4)),
    (r"(?:convnext\.)?layernorm", r"head/norm"),
    (r"classifier", r"head/linear"),
)


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict[pretrained.Path, np.ndarray]]:
    """Published tensors by name -> {"backbone": {path: array}, "head": {path: array}} in this file's layout.

    Takes the names of the authors, of torchvision, timm, transformers and mmsegmentation; the head is
    `heads/pooled.py` with normalize=True. Raises InputError with the names it does not know.
    """
    parts = pretrained.rename(weights, _NAMES)
    parts["backbone"] = {path: _layout(path, array) for path, array in parts["backbone"].items()}
    return parts


def _layout(path: pretrained.Path, array: np.ndarray) -> np.ndarray:
    if path[-1] == "layer_scale":
        return array.reshape(-1)  # torchvision stores [C,1,1]
    if path[-2] in ("expand", "project") and array.ndim == 4:
        return array[0, 0]  # timm's small variants store the linear layers as 1x1 convolutions
    return array


def adapt_input(
    backbone: dict[pretrained.Path, np.ndarray], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[pretrained.Path, np.ndarray]:
    """Translated backbone weights for images normalised by `mean` and `std`, one value per channel: 1 or 3 channels.

    The network then computes exactly what it would for the same image in RGB normalised by MEAN and STD, a grey image
    being the same grey in all three channels. Raises InputError for another number of channels.
    """
    kernel, constant = pretrained.adapt_input(backbone["stem", "conv", "kernel"], MEAN, STD, mean, std)
    bias = backbone["stem", "conv", "bias"] + constant
    return backbone | {("stem", "conv", "kernel"): kernel, ("stem", "conv", "bias"): bias}

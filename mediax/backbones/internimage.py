"""InternImage (arXiv:2211.05778): image -> pyramid by deformable convolutions, with the names of its published weights.

Follows OpenGVLab/InternImage. tests/test_internimage.py compares the outputs and the gradients of each kind of block
with the authors' network and its pure-PyTorch core.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import BatchNorm, Conv, DepthwiseConv, Linear, Perceptron, drop_path, gelu, run_block
from mediax.operators.dcnv3 import dcnv3

# `norm`: "pre" normalises the input of each of a block's two branches, "post" its output, "both" does both.
_SMALL = {"norm": "post", "layer_scale": 1e-5}
_LARGE = _SMALL | {"offset_scale": 2.0}
_HUGE = {"norm": "both", "depthwise_size": 5, "center_feature_scale": True}
VARIANTS = {
    "tiny": {"width": 64, "depths": (4, 4, 18, 4), "groups": 4, "norm": "pre"},
    "small": {"width": 80, "depths": (4, 4, 21, 4), "groups": 5} | _SMALL,
    "base": {"width": 112, "depths": (4, 4, 21, 4), "groups": 7} | _SMALL,
    "large": {"width": 160, "depths": (5, 5, 22, 5), "groups": 10} | _LARGE,
    "xlarge": {"width": 192, "depths": (5, 5, 24, 5), "groups": 12} | _LARGE,
    "huge": {"width": 320, "depths": (6, 6, 32, 6), "groups": 10, "third_stage_norms": (5, 11, 17, 23, 29)} | _HUGE,
}

# Whose names of published weights `translate` takes.
READS = ("the authors",)

# The input normalisation of the published weights: red, green, blue of an image in [0,1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _published(file: str, classes: int, size: int) -> dict[str, Any]:
    source = f"https://huggingface.co/OpenGVLab/InternImage/resolve/main/{file}"
    return {"file": file, "source": source, "licence": "MIT", "classes": classes, "size": size}


# classes 1000: ImageNet-1k; 21841: ImageNet-22k. "22kto1k": trained on the second, then on the first.
PUBLISHED = {
    "tiny": [_published("internimage_t_1k_224.pth", 1000, 224)],
    "small": [_published("internimage_s_1k_224.pth", 1000, 224)],
    "base": [_published("internimage_b_1k_224.pth", 1000, 224)],
    "large": [
        _published("internimage_l_22k_192to384.pth", 21841, 384),
        _published("internimage_l_22kto1k_384.pth", 1000, 384),
    ],
    "xlarge": [
        _published("internimage_xl_22k_192to384.pth", 21841, 384),
        _published("internimage_xl_22kto1k_384.pth", 1000, 384),
    ],
    "huge": [
        _published("internimage_h_jointto22k_384.pth", 21841, 384),
        _published("internimage_h_22kto1k_640.pth", 1000, 640),
    ],
}

_kernel_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default, which the authors keep
_linear_init = nnx.initializers.normal(0.02)
_POINTS = 9  # a 3x3 grid


class DeformableConv(nnx.Module):
    """DCNv3 with its projections: f[B,H,W,C] -> f[B,H,W,C].

    A depthwise convolution of the input, LayerNorm and GELU decide where each group samples its 3x3 points, and with
    which weights (softmax). `center_feature_scale` mixes each group with the projected input at the pixel itself.
    """

    def __init__(
        self,
        channels: int,
        *,
        groups: int,
        offset_scale: float,
        depthwise_size: int,
        center_feature_scale: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.depthwise = DepthwiseConv(channels, depthwise_size, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)
        self.norm = _layer_norm(channels, dtype, rngs)
        xavier = {"kernel_init": nnx.initializers.xavier_uniform(), "dtype": dtype, "rngs": rngs}
        zeros = {"kernel_init": nnx.initializers.zeros, "dtype": dtype, "rngs": rngs}
        self.offset = Linear(channels, groups * _POINTS * 2, **zeros)
        self.mask = Linear(channels, groups * _POINTS, **zeros)
        self.center = Linear(channels, groups, **zeros) if center_feature_scale else nnx.data(None)
        self.project_in = Linear(channels, channels, **xavier)
        self.project_out = Linear(channels, channels, **xavier)
        self.groups, self.offset_scale, self.dtype = groups, offset_scale, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        values = self.project_in(x)
        query = gelu(self.norm(self.depthwise(x)))
        # The samples' places are sums of pixels and offsets: bfloat16 would round 100.3 to 100.5.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        offsets = self.offset(query).astype(wide).reshape(*x.shape[:3], self.groups, _POINTS, 2)
        masks = jax.nn.softmax(self.mask(query).astype(wide).reshape(*x.shape[:3], self.groups, _POINTS))
        y = dcnv3(values, offsets, masks, offset_scale=self.offset_scale).astype(self.dtype)
        if self.center is not None:
            share = jnp.repeat(jax.nn.sigmoid(self.center(query)), x.shape[-1] // self.groups, axis=-1)
            y = y * (1 - share) + values * share
        return self.project_out(y)


class Branch(nnx.Module):
    """x + a function of x, normalised before it, after it or both, times LayerScale: f[B,H,W,C] -> f[B,H,W,C]."""

    def __init__(
        self,
        function: nnx.Module,
        channels: int,
        *,
        norm: str,
        layer_scale: float,
        drop_path: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.function = function
        self.post = norm == "post"
        self.norm = _layer_norm(channels, dtype, rngs)
        self.output_norm = _layer_norm(channels, dtype, rngs) if norm == "both" else nnx.data(None)
        self.layer_scale = nnx.Param(jnp.full(channels, layer_scale)) if layer_scale > 0 else nnx.data(None)
        self.drop_path = drop_path

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        y = self.norm(self.function(x)) if self.post else self.function(self.norm(x))
        if self.output_norm is not None:
            y = self.output_norm(y)
        if self.layer_scale is not None:
            y = y * self.layer_scale[...].astype(y.dtype)
        return x + drop_path(y, self.drop_path, train=train, rngs=rngs)


class Block(nnx.Module):
    """A branch with a deformable convolution, then one with a perceptron: f[B,H,W,C] -> f[B,H,W,C]."""

    def __init__(self, spatial: Branch, channelwise: Branch):
        self.spatial, self.channelwise = spatial, channelwise

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        return self.channelwise(self.spatial(x, train, rngs), train, rngs)


class Halving(nnx.Module):
    """3x3 convolution of stride 2 and LayerNorm: f[B,H,W,in] -> f[B,ceil(H/2),ceil(W/2),out]."""

    def __init__(self, in_channels: int, out_channels: int, *, use_bias: bool, dtype: Any, rngs: nnx.Rngs):
        settings = {"stride": 2, "padding": 1, "use_bias": use_bias, "kernel_init": _kernel_init, "dtype": dtype}
        self.conv = Conv(in_channels, out_channels, 3, **settings, rngs=rngs)
        self.norm = _layer_norm(out_channels, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class Stage(nnx.Module):
    """The blocks of one resolution, with a LayerNorm after some of them and after the last, and the way down."""

    def __init__(
        self,
        blocks: list[Block],
        block_norms: dict[int, nnx.LayerNorm],
        norm: nnx.LayerNorm | None,
        downsample: Halving | None,
    ):
        self.blocks = nnx.List(blocks)
        self.normed_blocks, self.block_norms = tuple(block_norms), nnx.List(block_norms.values())
        self.norm, self.downsample = nnx.data(norm), nnx.data(downsample)

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None, *, remat: bool) -> jax.Array:
        for index, block in enumerate(self.blocks):
            x = run_block(block, x, train, rngs, remat=remat)
            if index in self.normed_blocks:
                x = self.block_norms[self.normed_blocks.index(index)](x)
        return x if self.norm is None else self.norm(x)


class Backbone(nnx.Module):
    """InternImage without its classifier: f32[B,H,W,in_channels] -> {stride: f[B,ceil(H/stride),ceil(W/stride),C]}.

    `channels` is {stride: C} for the strides 4, 8, 16, 32. With `last_conv` the coarsest level has gone through the 1x1
    convolution to 1.5 times the channels, BatchNorm and GELU that the published classifier pools (None: as published,
    "huge" has none); without it (detection, segmentation) it is the last block's. `width` and `groups` are the first
    stage's and double from stage to stage; with `depths`, `norm` ("pre", "post", "both"), `layer_scale`,
    `offset_scale`, `depthwise_size`, `center_feature_scale` and `third_stage_norms` (the blocks of the third stage that
    end in a LayerNorm) they override the variant's. `drop_path` is the stochastic depth rate of the last block; it
    rises linearly from 0 at the first. `remat` stores one array per block for the backward pass and recomputes the
    rest. Parameters are f32; the computation and the pyramid are in `dtype`, statistics, offsets and sampling weights
    in f32. Raises InputError for an unknown variant or option.
    """

    def __init__(
        self,
        *,
        variant: str = "tiny",
        in_channels: int = 3,
        last_conv: bool | None = None,
        drop_path: float = 0.0,
        remat: bool = False,
        dtype: Any = jnp.float32,
        width: int | None = None,
        depths: tuple[int, ...] | None = None,
        groups: int | None = None,
        norm: str | None = None,
        layer_scale: float | None = None,
        offset_scale: float | None = None,
        depthwise_size: int | None = None,
        center_feature_scale: bool | None = None,
        third_stage_norms: tuple[int, ...] | None = None,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise InputError(f"InternImage has no variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        published = VARIANTS[variant]

        def setting(name: str, value: Any, default: Any = None) -> Any:
            return published.get(name, default) if value is None else value

        self.depths = tuple(setting("depths", depths))
        width, groups = setting("width", width), setting("groups", groups)
        norm, layer_scale = setting("norm", norm), setting("layer_scale", layer_scale, 0.0)
        if norm not in ("pre", "post", "both"):
            raise InputError(f'InternImage\'s norm is {norm!r}; choose "pre", "post" or "both".')
        if width % groups:
            raise InputError(f"InternImage's width {width} is not a multiple of its groups {groups}.")
        deformable = {
            "offset_scale": setting("offset_scale", offset_scale, 1.0),
            "depthwise_size": setting("depthwise_size", depthwise_size, 3),
            "center_feature_scale": setting("center_feature_scale", center_feature_scale, False),
        }
        third_stage_norms = setting("third_stage_norms", third_stage_norms, ())

        self.remat = remat
        self.num_layers = sum(self.depths)
        self.widths = tuple(width * 2**stage for stage in range(len(self.depths)))
        compute = {"dtype": dtype, "rngs": rngs}
        self.stem = nnx.List(
            [
                Halving(in_channels, width // 2, use_bias=True, **compute),
                Halving(width // 2, width, use_bias=True, **compute),
            ]
        )
        rates = iter(np.linspace(0, drop_path, sum(self.depths)).tolist())
        self.stages = nnx.List()
        for stage, (depth, channels) in enumerate(zip(self.depths, self.widths)):
            blocks = []
            for _ in range(depth):
                branch = {"norm": norm, "layer_scale": layer_scale, "drop_path": next(rates), **compute}
                convolution = DeformableConv(channels, groups=groups * 2**stage, **deformable, **compute)
                blocks.append(
                    Block(
                        Branch(convolution, channels, **branch),
                        Branch(Perceptron(channels, kernel_init=_linear_init, **compute), channels, **branch),
                    )
                )
            last = stage == len(self.depths) - 1
            ends_in_norm = norm != "post" or deformable["center_feature_scale"]
            normed = third_stage_norms if stage == 2 else ()
            self.stages.append(
                Stage(
                    blocks,
                    {index: _layer_norm(channels, dtype, rngs) for index in normed},
                    _layer_norm(channels, dtype, rngs) if ends_in_norm else None,
                    None if last else Halving(channels, 2 * channels, use_bias=False, **compute),
                )
            )
        last_conv = norm != "both" if last_conv is None else last_conv
        wide = int(1.5 * self.widths[-1])
        self.last = _last_conv(self.widths[-1], wide, dtype, rngs) if last_conv else nnx.data(None)
        self.last_norm = BatchNorm(wide, dtype=dtype, rngs=rngs) if last_conv else nnx.data(None)
        self.last_width = wide if last_conv else self.widths[-1]

    @property
    def channels(self) -> dict[int, int]:  # a property: a dict as an attribute makes the module's definition unhashable
        widths = (*self.widths[:-1], self.last_width)
        return {4 * 2**stage: width for stage, width in enumerate(widths)}

    def __call__(self, image: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> dict[int, jax.Array]:
        first, second = self.stem
        x = second(gelu(first(image)))
        pyramid = {}
        for stride, stage in zip(self.channels, self.stages):
            pyramid[stride] = x = stage(x, train, rngs, remat=self.remat)
            x = x if stage.downsample is None else stage.downsample(x)
        if self.last is not None:
            pyramid[stride] = gelu(self.last_norm(self.last(x), train))
        return pyramid

    def layer_of(self, path: tuple[str | int, ...]) -> int:
        """Depth of the parameter at `path` for layer-wise learning-rate decay: 0 to num_layers - 1.

        A head comes after them all, at num_layers. As in the authors' recipe every block is one layer, the stem belongs
        to the first block, a stage's norm and downsampling to the block after it; the last convolution to the last.
        """
        if path[0] == "stem":
            return 0
        if path[0] != "stages":
            return self.num_layers - 1
        _, stage, kind, *rest = path
        first = sum(self.depths[:stage])
        if kind == "blocks":
            return first + rest[0]
        if kind == "block_norms":
            return first + self.stages[stage].normed_blocks[rest[0]]
        return min(first + self.depths[stage], self.num_layers - 1)


def _last_conv(in_channels: int, channels: int, dtype: Any, rngs: nnx.Rngs) -> Conv:
    return Conv(in_channels, channels, 1, use_bias=False, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)


def _layer_norm(channels: int, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(channels, epsilon=1e-6, dtype=dtype, rngs=rngs)


_BLOCK = r"levels\.(\d+)\.blocks\.(\d+)\."
_SPATIAL = r"backbone/stages/\1/blocks/\2/spatial/"
_CHANNELWISE = r"backbone/stages/\1/blocks/\2/channelwise/"

# Published module -> ours, by full match of the name without its last word: see pretrained.rename.
_NAMES = (
    (r"patch_embed\.conv1", r"backbone/stem/0/conv"),
    (r"patch_embed\.norm1\.1", r"backbone/stem/0/norm"),
    (r"patch_embed\.conv2", r"backbone/stem/1/conv"),
    (r"patch_embed\.norm2\.1", r"backbone/stem/1/norm"),
    (_BLOCK + r"norm1\.0", _SPATIAL + "norm"),
    (_BLOCK + r"norm2\.0", _CHANNELWISE + "norm"),
    (_BLOCK + r"res_post_norm1\.0", _SPATIAL + "output_norm"),
    (_BLOCK + r"res_post_norm2\.0", _CHANNELWISE + "output_norm"),
    (_BLOCK + r"gamma1", _SPATIAL + "layer_scale"),
    (_BLOCK + r"gamma2", _CHANNELWISE + "layer_scale"),
    (_BLOCK + r"dcn\.dw_conv\.0", _SPATIAL + "function/depthwise"),
    (_BLOCK + r"dcn\.dw_conv\.1\.1", _SPATIAL + "function/norm"),
    (_BLOCK + r"dcn\.(offset|mask)", _SPATIAL + r"function/\3"),
    (_BLOCK + r"dcn\.input_proj", _SPATIAL + "function/project_in"),
    (_BLOCK + r"dcn\.output_proj", _SPATIAL + "function/project_out"),
    (_BLOCK + r"dcn\.center_feature_scale_proj_weight", _SPATIAL + "function/center/kernel"),
    (_BLOCK + r"dcn\.center_feature_scale_proj_bias", _SPATIAL + "function/center/bias"),
    (_BLOCK + r"mlp\.fc1", _CHANNELWISE + "function/expand"),
    (_BLOCK + r"mlp\.fc2", _CHANNELWISE + "function/project"),
    (r"levels\.2\.post_norms\.(\d+)\.0", r"backbone/stages/2/block_norms/\1"),
    (r"levels\.(\d+)\.norm\.0", r"backbone/stages/\1/norm"),
    (r"levels\.(\d+)\.downsample\.conv", r"backbone/stages/\1/downsample/conv"),
    (r"levels\.(\d+)\.downsample\.norm\.1", r"backbone/stages/\1/downsample/norm"),
    (r"conv_head\.0", r"backbone/last"),
    (r"conv_head\.1\.0", r"backbone/last_norm"),
    (r"head", r"head/linear"),
    # "huge" classifies with attention over its two coarsest levels
    (r"(dcnv3_head_x[34](?:\.0)?|clip_projector\..*|fc_norm\.0)", r"head/\1"),
)


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict[pretrained.Path, np.ndarray]]:
    """Published tensors by name -> {"backbone": {path: array}, "head": {path: array}} in this file's layout.

    Takes the authors' names; the head is `heads/pooled.py` without normalize, except for "huge", whose attention over
    two levels no head here computes. Raises InputError with the names it does not know.
    """
    return pretrained.rename(weights, _NAMES)


def adapt_input(
    backbone: dict[pretrained.Path, np.ndarray], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[pretrained.Path, np.ndarray]:
    """Translated backbone weights for images normalised by `mean` and `std`, one value per channel: 1 or 3 channels.

    The network then computes what it would for the same image in RGB normalised by MEAN and STD, a grey image being the
    same grey in all three channels: exactly, but for the pixels whose receptive field in the stem reaches the zero
    padding, which stands for the colour MEAN there and for `mean` here. Raises InputError for another number of
    channels.
    """
    kernel, constant = pretrained.adapt_input(backbone["stem", 0, "conv", "kernel"], MEAN, STD, mean, std)
    bias = backbone["stem", 0, "conv", "bias"] + constant
    return backbone | {("stem", 0, "conv", "kernel"): kernel, ("stem", 0, "conv", "bias"): bias}

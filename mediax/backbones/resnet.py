"""ResNet (arXiv:1512.03385): image -> pyramid, with the name map of its published weights.

Follows torchvision: the bottleneck has its stride in the 3x3 convolution ("v1.5"). tests/test_resnet.py compares the
outputs, the gradients and the running statistics with the reference.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import BatchNorm, Conv, drop_path, max_pool, run_block

VARIANTS = {
    "18": {"bottleneck": False, "depths": (2, 2, 2, 2)},
    "34": {"bottleneck": False, "depths": (3, 4, 6, 3)},
    "50": {"bottleneck": True, "depths": (3, 4, 6, 3)},
    "101": {"bottleneck": True, "depths": (3, 4, 23, 3)},
}

# The input normalisation of the published weights: red, green, blue of an image in [0,1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


# ImageNet-1k. The second file of a variant is torchvision's newer recipe ("V2").
PUBLISHED = {
    "18": [pretrained.torchvision_file("resnet18-f37072fd.pth")],
    "34": [pretrained.torchvision_file("resnet34-b627a593.pth")],
    "50": [pretrained.torchvision_file("resnet50-0676ba61.pth"), pretrained.torchvision_file("resnet50-11ad3fa6.pth")],
    "101": [
        pretrained.torchvision_file("resnet101-63fe2227.pth"),
        pretrained.torchvision_file("resnet101-cd907fc2.pth"),
    ],
}

_kernel_init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class Block(nnx.Module):
    """Residual block, f[B,H,W,in] -> f[B,ceil(H/stride),ceil(W/stride),out].

    Two 3x3 convolutions of `width` channels, out = width; or with `bottleneck` 1x1, 3x3, 1x1 and out = 4 * width. Each
    has a BatchNorm. A 1x1 convolution with BatchNorm is the shortcut where the shape changes.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        bottleneck: bool,
        stride: int,
        drop_path: float,
        zero_init_residual: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        if bottleneck:
            layers = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)]  # channels, size, stride
        else:
            layers = [(width, 3, stride), (width, 3, 1)]
        self.convs, self.norms = nnx.List(), nnx.List()
        channels = in_channels
        for index, (out_channels, size, step) in enumerate(layers):
            last = zero_init_residual and index == len(layers) - 1
            scale_init = nnx.initializers.zeros if last else nnx.initializers.ones
            self.convs.append(_conv(channels, out_channels, size, step, dtype, rngs))
            self.norms.append(BatchNorm(out_channels, scale_init=scale_init, dtype=dtype, rngs=rngs))
            channels = out_channels
        project = stride != 1 or in_channels != channels
        self.shortcut = _conv(in_channels, channels, 1, stride, dtype, rngs) if project else nnx.data(None)
        self.shortcut_norm = BatchNorm(channels, dtype=dtype, rngs=rngs) if project else nnx.data(None)
        self.drop_path = drop_path

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        y = x
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            y = norm(conv(y), train)
            if index < len(self.convs) - 1:
                y = jax.nn.relu(y)
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x), train)
        return jax.nn.relu(x + drop_path(y, self.drop_path, train=train, rngs=rngs))


class Stem(nnx.Module):
    """7x7 convolution of stride 2, BatchNorm, ReLU, 3x3 max-pooling of stride 2: f[B,H,W,in] -> f[B,H/4,W/4,out].

    With `stride` 1 or 2 a 3x3 convolution of that stride and no pooling, for images of about 32 pixels. Gives the
    features before and after pooling.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, dtype: Any, rngs: nnx.Rngs):
        self.pool = stride == 4
        size, conv_stride = (7, 2) if self.pool else (3, stride)
        self.conv = _conv(in_channels, out_channels, size, conv_stride, dtype, rngs)
        self.norm = BatchNorm(out_channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        x = jax.nn.relu(self.norm(self.conv(x), train))
        return x, max_pool(x, 3, 2, 1) if self.pool else x


class Backbone(nnx.Module):
    """ResNet without its head: f32[B,H,W,in_channels] -> {stride: f[B,ceil(H/stride),ceil(W/stride),C]}.

    `channels` is {stride: C} for the strides 4, 8, 16, 32, or `stem_stride` times 1, 2, 4, 8 (1 or 2, without pooling,
    for small images); `stem_level` adds stride 2, the stem before its pooling, for decoders. `depths` overrides the
    variant's; `width` multiplies all channels. `drop_path` is the stochastic depth rate of the last block; it rises
    linearly from 0 at the first. `zero_init_residual` starts each block as its shortcut. `remat` stores one array per
    block for the backward pass and recomputes the rest.
    Parameters are f32; the computation and the pyramid are in `dtype`, BatchNorm's statistics in f32.
    Raises InputError for an unknown variant or stem_stride, and for a `stem_level` where nothing is pooled.
    """

    def __init__(
        self,
        *,
        variant: str = "50",
        in_channels: int = 3,
        depths: tuple[int, ...] | None = None,
        width: float = 1.0,
        stem_stride: int = 4,
        stem_level: bool = False,
        zero_init_residual: bool = False,
        drop_path: float = 0.0,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise InputError(f"ResNet has no variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        if stem_stride not in (1, 2, 4):
            raise InputError(f"ResNet's stem_stride is {stem_stride}; choose 1, 2 or 4.")
        if stem_level and stem_stride != 4:
            raise InputError(f"ResNet's stem_level needs stem_stride 4, found {stem_stride}: there is no other level.")
        bottleneck = VARIANTS[variant]["bottleneck"]
        self.depths = tuple(depths or VARIANTS[variant]["depths"])
        inner = [round(64 * width) * 2**stage for stage in range(len(self.depths))]
        self.widths = tuple(4 * channels if bottleneck else channels for channels in inner)
        self.stem_stride, self.stem_level = stem_stride, stem_level
        self.num_layers = 1 + sum(self.depths)
        self.remat = remat
        self.stem_width = inner[0]
        self.stem = Stem(in_channels, inner[0], stride=stem_stride, dtype=dtype, rngs=rngs)
        rates = iter(np.linspace(0, drop_path, sum(self.depths)).tolist())
        self.stages = nnx.List()
        channels = inner[0]
        for stage, depth in enumerate(self.depths):
            blocks = nnx.List()
            for index in range(depth):
                block = Block(
                    channels,
                    inner[stage],
                    bottleneck=bottleneck,
                    stride=2 if stage > 0 and index == 0 else 1,
                    drop_path=next(rates),
                    zero_init_residual=zero_init_residual,
                    dtype=dtype,
                    rngs=rngs,
                )
                blocks.append(block)
                channels = self.widths[stage]
            self.stages.append(blocks)

    @property
    def channels(self) -> dict[int, int]:  # a property: a dict as an attribute makes the module's definition unhashable
        stem = {self.stem_stride // 2: self.stem_width} if self.stem_level else {}
        return stem | {self.stem_stride * 2**stage: width for stage, width in enumerate(self.widths)}

    def __call__(self, image: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> dict[int, jax.Array]:
        fine, x = self.stem(image, train)
        pyramid = {self.stem_stride // 2: fine} if self.stem_level else {}
        for stage, blocks in enumerate(self.stages):
            for block in blocks:
                x = run_block(block, x, train, rngs, remat=self.remat)
            pyramid[self.stem_stride * 2**stage] = x
        return pyramid

    def layer_of(self, path: tuple[str | int, ...]) -> int:
        """Depth of the parameter at `path` for layer-wise learning-rate decay: 0 (stem) to num_layers - 1.

        A head comes after them all, at num_layers. Every block is one layer.
        """
        if path[0] == "stem":
            return 0
        _, stage, block, *_ = path
        return 1 + sum(self.depths[:stage]) + block


def _conv(in_channels: int, out_channels: int, size: int, stride: int, dtype: Any, rngs: nnx.Rngs) -> Conv:
    return Conv(
        in_channels,
        out_channels,
        size,
        stride=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=_kernel_init,
        dtype=dtype,
        rngs=rngs,
    )


# Published module -> ours, by full match of the name without its last word: see pretrained.rename. torchvision numbers
# layers and their parts from 1; timm uses the same names.
_NAMES = (
    (r"conv1", r"backbone/stem/conv"),
    (r"bn1", r"backbone/stem/norm"),
    *(
        (rf"layer{stage + 1}\.(\d+)\.{published}", rf"backbone/stages/{stage}/\1/{ours}")
        for stage in range(4)
        for published, ours in (
            ("conv1", "convs/0"),
            ("conv2", "convs/1"),
            ("conv3", "convs/2"),
            ("bn1", "norms/0"),
            ("bn2", "norms/1"),
            ("bn3", "norms/2"),
            (r"downsample\.0", "shortcut"),
            (r"downsample\.1", "shortcut_norm"),
        )
    ),
    (r"fc", r"head/linear"),
)


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict[pretrained.Path, np.ndarray]]:
    """Published tensors by name -> {"backbone": {path: array}, "head": {path: array}} in this file's layout.

    Takes the names of torchvision, which timm shares; the head is `heads/pooled.py` without normalize.
    Raises InputError with the names it does not know.
    """
    return pretrained.rename(weights, _NAMES)


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
    kernel, constant = pretrained.adapt_input(backbone["stem", "conv", "kernel"], MEAN, STD, mean, std)
    running_mean = backbone["stem", "norm", "mean"] - constant
    return backbone | {("stem", "conv", "kernel"): kernel, ("stem", "norm", "mean"): running_mean}

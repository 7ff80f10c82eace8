"""Vision transformer (arXiv:2010.11929) as in DINOv2 (arXiv:2304.07193, registers: arXiv:2309.16588): image -> pyramid.

Follows facebookresearch/dinov2, with the name map of its published weights; the pyramid of four levels follows ViTDet
(arXiv:2203.16527). tests/test_vit.py compares the outputs and the gradients with the references.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import Conv, Linear, drop_path, gelu, max_pool, run_block

_SIZES = {
    "small": {"width": 384, "depth": 12, "heads": 6, "swiglu": False},
    "base": {"width": 768, "depth": 12, "heads": 12, "swiglu": False},
    "large": {"width": 1024, "depth": 24, "heads": 16, "swiglu": False},
    "giant": {"width": 1536, "depth": 40, "heads": 24, "swiglu": True},
}
# How the weights with and without registers were trained to see positions of another image size: see _resize.
_PLAIN = {"registers": 0, "antialias": False, "offset": 0.1}
_REGISTERS = {"registers": 4, "antialias": True, "offset": 0.0}
VARIANTS = {name: size | _PLAIN for name, size in _SIZES.items()}
VARIANTS |= {f"{name}_registers": size | _REGISTERS for name, size in _SIZES.items()}

# Whose names of published weights `translate` takes.
READS = ("the authors", "timm", "transformers")

# Parameters that no published file has, by the beginning of their path: without them they keep their initial values.
OPTIONAL = ("levels",)

# The input normalisation of the published weights: red, green, blue of an image in [0,1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _published(variant: str) -> list[dict[str, Any]]:
    size, _, registers = variant.partition("_")
    short = f"dinov2_vit{size[0]}14"
    file = f"{short}_reg4_pretrain.pth" if registers else f"{short}_pretrain.pth"
    name = f"dinov2-with-registers-{size}" if registers else f"dinov2-{size}"
    common = {"licence": "Apache-2.0", "classes": 0, "size": 518}
    return [
        {"file": file, "source": f"https://dl.fbaipublicfiles.com/dinov2/{short}/{file}"} | common,
        {"file": "model.safetensors", "source": f"https://huggingface.co/facebook/{name}"} | common,
    ]


PUBLISHED = {variant: _published(variant) for variant in VARIANTS}  # self-supervised on LVD-142M: no classes

_OUTPUTS = ("patches", "class", "both", "pyramid")
_PYRAMID_CHANNELS = 256
# The authors truncate at +-2, a hundred standard deviations away: a plain normal distribution.
_kernel_init = nnx.initializers.normal(0.02)
_patch_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default for a convolution


class Attention(nnx.Module):
    """Multi-head self-attention, f[B,N,C] -> f[B,N,C]; softmax in f32, memory O(B heads N^2)."""

    def __init__(self, channels: int, heads: int, *, dtype: Any, rngs: nnx.Rngs):
        self.qkv = _linear(channels, 3 * channels, dtype, rngs)
        self.project = _linear(channels, channels, dtype, rngs)
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, count, channels = x.shape
        split = self.qkv(x).reshape(batch, count, 3, self.heads, channels // self.heads)
        query, key, value = (split[:, :, index] for index in range(3))
        return self.project(jax.nn.dot_product_attention(query, key, value).reshape(x.shape))


class FeedForward(nnx.Module):
    """Two linear layers of each token, f[B,N,C] -> f[B,N,C]: GELU between them, or with `swiglu` SiLU(a) * b.

    The hidden width is 4 C, and with `swiglu` two thirds of that, rounded up to a multiple of 8 (arXiv:2002.05202).
    """

    def __init__(self, channels: int, *, swiglu: bool, dtype: Any, rngs: nnx.Rngs):
        hidden = -(-int(4 * channels * 2 / 3) // 8) * 8 if swiglu else 4 * channels
        self.expand = _linear(channels, 2 * hidden if swiglu else hidden, dtype, rngs)
        self.project = _linear(hidden, channels, dtype, rngs)
        self.swiglu = swiglu

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.expand(x)
        if self.swiglu:
            gate, x = jnp.split(x, 2, axis=-1)
            return self.project(jax.nn.silu(gate) * x)
        return self.project(gelu(x))


class Residual(nnx.Module):
    """LayerNorm, `layer` and LayerScale beside the identity: f[B,N,C] -> f[B,N,C]."""

    def __init__(
        self, layer: nnx.Module, channels: int, *, layer_scale: float, drop_path: float, dtype: Any, rngs: nnx.Rngs
    ):
        self.norm = _layer_norm(channels, dtype, rngs)
        self.layer = layer
        self.layer_scale = nnx.Param(jnp.full(channels, layer_scale)) if layer_scale > 0 else nnx.data(None)
        self.drop_path = drop_path

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        y = self.layer(self.norm(x))
        if self.layer_scale is not None:
            y = y * self.layer_scale[...].astype(y.dtype)
        return x + drop_path(y, self.drop_path, train=train, rngs=rngs)


class Block(nnx.Module):
    """Attention, then a feed-forward layer, each beside the identity: f[B,N,C] -> f[B,N,C]."""

    def __init__(self, channels: int, heads: int, *, swiglu: bool, dtype: Any, rngs: nnx.Rngs, **residual: float):
        attention = Attention(channels, heads, dtype=dtype, rngs=rngs)
        feed_forward = FeedForward(channels, swiglu=swiglu, dtype=dtype, rngs=rngs)
        self.attention = Residual(attention, channels, dtype=dtype, rngs=rngs, **residual)
        self.feed_forward = Residual(feed_forward, channels, dtype=dtype, rngs=rngs, **residual)

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        return self.feed_forward(self.attention(x, train, rngs), train, rngs)


class Double(nnx.Module):
    """Transposed 2x2 convolution of stride 2: f[B,H,W,in] -> f[B,2H,2W,out]."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: Any, rngs: nnx.Rngs):
        # Its windows do not overlap: each pixel becomes four by one matrix product.
        self.kernel = nnx.Param(_kernel_init(rngs.params(), (in_channels, 2, 2, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        x = jnp.einsum("bhwi,iyxo->bhywxo", x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return x.reshape(batch, 2 * height, 2 * width, -1) + self.bias[...].astype(self.dtype)


class Level(nnx.Module):
    """One level of ViTDet's simple feature pyramid: f[B,h,w,C] at stride `patch` -> f[B,H//stride,W//stride,256].

    The patch tokens are enlarged 4 or 2 times by transposed convolutions, taken as they are, or halved by pooling;
    then come a 1x1 and a 3x3 convolution, each with a LayerNorm. Between the two steps, a bilinear interpolation brings
    the features of a patch that is no power of two to `stride`: the identity where it is one.
    """

    def __init__(self, channels: int, patch: int, doublings: int, *, dtype: Any, rngs: nnx.Rngs):
        self.doublings, self.patch = doublings, patch
        self.stride = _pyramid_stride(patch, doublings)
        self.doubles, self.norms = nnx.List(), nnx.List()
        for step in range(doublings):
            self.doubles.append(Double(channels, channels // 2, dtype=dtype, rngs=rngs))
            channels //= 2
            if step < doublings - 1:
                self.norms.append(_layer_norm(channels, dtype, rngs))
        self.narrow = _convolution(channels, 1, dtype, rngs)
        self.narrow_norm = _layer_norm(_PYRAMID_CHANNELS, dtype, rngs)
        self.smooth = _convolution(_PYRAMID_CHANNELS, 3, dtype, rngs)
        self.smooth_norm = _layer_norm(_PYRAMID_CHANNELS, dtype, rngs)

    def __call__(self, tokens: jax.Array, size: tuple[int, int]) -> jax.Array:
        x = tokens
        for step, double in enumerate(self.doubles):
            x = double(x)
            if step < self.doublings - 1:
                x = gelu(self.norms[step](x))
        if self.doublings < 0:
            x = _halved(x)
        x = _align(x, self.patch * 2.0**-self.doublings, self.stride, size)
        x = self.narrow_norm(self.narrow(x))
        return self.smooth_norm(self.smooth(x))


def _halved(x: jax.Array) -> jax.Array:
    """Maxima of 2x2 windows: f[B,h,w,C] -> f[B,ceil(h/2),ceil(w/2),C]; those at an odd border are narrower."""
    # A border that is repeated changes no maximum of its window.
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), mode="edge")
    return max_pool(x, 2, 2)


class Backbone(nnx.Module):
    """Vision transformer without its head: f32[B,H,W,in_channels] -> {stride: f[B,H//stride,W//stride,C]}.

    `output` says what the pyramid holds, all after the last LayerNorm:
    - "patches": {patch: patch tokens}.
    - "class": {patch: the class token at every place}, whose mean in a pooled head is the class token.
    - "both": {patch: the class token and the patch tokens, 2 C}: a pooled head then sees the class token and the mean
      of the patch tokens side by side, which is the input of DINOv2's published linear classifiers.
    - "pyramid": strides 4, 8, 16, 32 (for a patch of 14 or 16) of 256 channels by ViTDet's simple feature pyramid, for
      detection and segmentation. Its layers are trained from scratch: no published weights hold them.
    `width`, `depth`, `heads`, `swiglu`, `registers`, `antialias` and `offset` override the variant's. `grid` is the
    side of the stored grid of positions (37 patches of 14: the published 518 pixels); other image sizes interpolate it.
    Rows and columns that do not fill a patch are dropped. `layer_scale` 0 leaves LayerScale out. `drop_path` is the
    stochastic depth rate of the last block; it rises linearly from 0 at the first. `remat` stores one array per block
    for the backward pass and recomputes the rest. Parameters are f32; the computation and the pyramid are in `dtype`.
    Raises InputError for an unknown variant or output, heads that do not divide the width, or a too small image.
    """

    def __init__(
        self,
        *,
        variant: str = "small",
        in_channels: int = 3,
        output: Literal["patches", "class", "both", "pyramid"] = "patches",
        patch: int = 14,
        grid: int = 37,
        width: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        swiglu: bool | None = None,
        registers: int | None = None,
        antialias: bool | None = None,
        offset: float | None = None,
        layer_scale: float = 1e-5,
        drop_path: float = 0.0,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise InputError(f"The vision transformer has no variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        if output not in _OUTPUTS:
            raise InputError(f"The vision transformer has no output {output!r}; choose one of {', '.join(_OUTPUTS)}.")
        overrides = {
            "width": width,
            "depth": depth,
            "heads": heads,
            "swiglu": swiglu,
            "registers": registers,
            "antialias": antialias,
            "offset": offset,
        }
        settings = VARIANTS[variant] | {name: value for name, value in overrides.items() if value is not None}
        self.width, self.depth, heads = settings["width"], settings["depth"], settings["heads"]
        if self.width % heads:
            raise InputError(f"The vision transformer's width {self.width} is not a multiple of its {heads} heads.")
        self.output, self.patch, self.grid, self.remat, self.dtype = output, patch, grid, remat, dtype
        self.antialias, self.offset = settings["antialias"], settings["offset"]
        self.num_layers = 1 + self.depth

        self.stem = Conv(in_channels, self.width, patch, stride=patch, kernel_init=_patch_init, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(nnx.initializers.normal(1e-6)(rngs.params(), (1, self.width)))
        self.positions = nnx.Param(_kernel_init(rngs.params(), (1 + grid * grid, self.width)))
        count = settings["registers"]
        self.registers = (
            nnx.Param(nnx.initializers.normal(1e-6)(rngs.params(), (count, self.width))) if count else nnx.data(None)
        )
        self.blocks = nnx.List(
            Block(
                self.width,
                heads,
                swiglu=settings["swiglu"],
                layer_scale=layer_scale,
                drop_path=rate,
                dtype=dtype,
                rngs=rngs,
            )
            for rate in np.linspace(0, drop_path, self.depth).tolist()
        )
        self.norm = _layer_norm(self.width, dtype, rngs)
        doublings = (2, 1, 0, -1) if output == "pyramid" else ()
        self.levels = nnx.List(Level(self.width, patch, times, dtype=dtype, rngs=rngs) for times in doublings)

    @property
    def channels(self) -> dict[int, int]:  # a property: a dict as an attribute makes the module's definition unhashable
        if self.output == "pyramid":
            return {level.stride: _PYRAMID_CHANNELS for level in self.levels}
        return {self.patch: 2 * self.width if self.output == "both" else self.width}

    def __call__(self, image: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> dict[int, jax.Array]:
        if min(image.shape[1:3]) < self.patch:
            raise InputError(
                f"The vision transformer cuts patches of {self.patch} pixels, the images have {image.shape[1:3]}."
            )
        x = self.stem(image)
        batch, rows, columns, channels = x.shape
        x = self._tokens(x)
        for block in self.blocks:
            x = run_block(block, x, train, rngs, remat=self.remat)
        x = self.norm(x)
        patches = x[:, -rows * columns :].reshape(batch, rows, columns, channels)
        if self.output == "pyramid":
            return {level.stride: level(patches, image.shape[1:3]) for level in self.levels}
        everywhere = jnp.broadcast_to(x[:, :1, None], patches.shape)
        if self.output == "both":
            return {self.patch: jnp.concatenate([everywhere, patches], axis=-1)}
        return {self.patch: patches if self.output == "patches" else everywhere}

    def _tokens(self, patches: jax.Array) -> jax.Array:
        """Class token, registers and patches in one row, with positions: f[B,h,w,C] -> f[B,1+R+h*w,C]."""
        batch, rows, columns, channels = patches.shape
        stored = self.positions[...]
        patches = patches + self._patch_positions(stored[1:], rows, columns).astype(self.dtype)
        first = [self.class_token[...] + stored[:1]]
        if self.registers is not None:
            first.append(self.registers[...])
        first = jnp.concatenate(first).astype(self.dtype)
        first = jnp.broadcast_to(first, (batch, *first.shape))
        return jnp.concatenate([first, patches.reshape(batch, rows * columns, channels)], axis=1)

    def _patch_positions(self, stored: jax.Array, rows: int, columns: int) -> jax.Array:
        stored = stored.reshape(self.grid, self.grid, -1)
        if rows == columns == self.grid:
            return stored
        down, across = (
            _resize(self.grid, size, antialias=self.antialias, offset=self.offset) for size in (rows, columns)
        )
        return jnp.einsum("hi,ijc,wj->hwc", down, stored, across)

    def layer_of(self, path: tuple[str | int, ...]) -> int:
        """Depth of the parameter at `path` for layer-wise learning-rate decay: 0 (stem, tokens) to num_layers - 1.

        A head comes after them all, at num_layers. Every block is one layer; what follows the last one belongs to it.
        """
        if path[0] == "blocks":
            return 1 + path[1]
        return self.depth if path[0] in ("norm", "levels") else 0


def _linear(in_channels: int, out_channels: int, dtype: Any, rngs: nnx.Rngs) -> Linear:
    return Linear(in_channels, out_channels, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)


def _layer_norm(channels: int, dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(channels, epsilon=1e-6, dtype=dtype, rngs=rngs)


def _convolution(channels: int, size: int, dtype: Any, rngs: nnx.Rngs) -> Conv:
    return Conv(
        channels,
        _PYRAMID_CHANNELS,
        size,
        padding=size // 2,
        use_bias=False,
        kernel_init=nnx.initializers.he_normal(),
        dtype=dtype,
        rngs=rngs,
    )


def _pyramid_stride(patch: int, doublings: int) -> int:
    return round(2.0 ** (round(math.log2(patch)) - doublings))


def _align(x: jax.Array, step: float, stride: int, size: tuple[int, int]) -> jax.Array:
    """Interpolates features that lie `step` image pixels apart to `stride`: f[B,h,w,C] -> f[B,H//stride,W//stride,C].

    Both grids begin at the image's upper left corner; beyond the last row and column the features are repeated.
    """
    shape = (x.shape[0], size[0] // stride, size[1] // stride, x.shape[3])
    if step == stride and shape == x.shape:
        return x
    # Outside of its input scale_and_translate gives zeros. The image may be up to a patch larger than its patches.
    missing = [max(0, math.ceil(new * stride / step) + 1 - old) for new, old in zip(shape[1:3], x.shape[1:3])]
    x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
    scale = jnp.full(2, step / stride, jnp.float32)
    # The step changes by less than a half, so neighbours suffice: a wider kernel would move features between pixels.
    return jax.image.scale_and_translate(x, shape, (1, 2), scale, jnp.zeros(2), "linear", antialias=False)


def _resize(size: int, new_size: int, *, antialias: bool, offset: float) -> np.ndarray:
    """Matrix f32[new_size,size] of torch's bicubic interpolation of a row, align_corners=False.

    `offset` is DINOv2's: it adds that many pixels to the new size in the scale alone. Without `antialias` Keys'
    coefficient is -0.75 and the border is repeated; with it, it is -0.5, the kernel widens where the row shrinks, and
    what lies beyond the border has no weight.
    """
    scale = size / (new_size + offset)
    centres = (np.arange(new_size) + 0.5) * scale - 0.5
    if antialias:
        weights = _keys((np.arange(size) - centres[:, None]) / max(scale, 1.0), -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    matrix = np.zeros((new_size, size))
    for tap in range(-1, 3):
        places = np.floor(centres).astype(int) + tap
        weights = _keys(places - centres, -0.75)
        np.add.at(matrix, (np.arange(new_size), places.clip(0, size - 1)), weights)
    return matrix.astype(np.float32)


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def _names(prefix: str, block: str, residuals: dict[str, str], rest: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Pairs of a spelling: of a block's layers by their place in attention and feed_forward, and of all others."""
    inside = ((rf"{prefix}{block}\.(\d+)\.{ours}", rf"backbone/blocks/\1/{place}") for ours, place in residuals.items())
    return (*inside, *((rf"{prefix}{published}", ours) for published, ours in rest.items()))


# Published module -> ours, by full match of the name without its last word: see pretrained.rename.
_NAMES = (
    # facebookresearch/dinov2, whose training checkpoints number chunks of blocks before the blocks; timm
    *_names(
        r"",
        r"blocks(?:\.\d+)?",
        {
            r"norm1": "attention/norm",
            r"attn\.qkv": "attention/layer/qkv",
            r"attn\.proj": "attention/layer/project",
            r"ls1\.gamma": "attention/layer_scale",
            r"norm2": "feed_forward/norm",
            r"mlp\.(?:fc1|w12)": "feed_forward/layer/expand",
            r"mlp\.(?:fc2|w3)": "feed_forward/layer/project",
            r"ls2\.gamma": "feed_forward/layer_scale",
        },
        {
            r"patch_embed\.proj": "backbone/stem",
            r"cls_token": "backbone/class_token",
            r"(?:register_tokens|reg_token)": "backbone/registers",
            r"pos_embed": "backbone/positions",
            r"norm": "backbone/norm",
            r"head": "head/linear",
        },
    ),
    # transformers, where a classifier's checkpoint names the backbone first
    *_names(
        r"(?:dinov2\.|dinov2_with_registers\.)?",
        r"encoder\.layer",
        {
            r"norm1": "attention/norm",
            r"attention\.qkv": "attention/layer/qkv",
            r"attention\.(?:output\.dense|o_proj)": "attention/layer/project",
            r"layer_scale1\.lambda1": "attention/layer_scale",
            r"norm2": "feed_forward/norm",
            r"mlp\.(?:fc1|weights_in)": "feed_forward/layer/expand",
            r"mlp\.(?:fc2|weights_out|down_proj)": "feed_forward/layer/project",
            r"layer_scale2\.lambda1": "feed_forward/layer_scale",
        },
        {
            r"embeddings\.patch_embeddings\.projection": "backbone/stem",
            r"embeddings\.cls_token": "backbone/class_token",
            r"embeddings\.register_tokens": "backbone/registers",
            r"embeddings\.position_embeddings": "backbone/positions",
            r"layernorm": "backbone/norm",
            r"classifier": "head/linear",
        },
    ),
)
_MASK_TOKEN = re.compile(r"(.*\.)?mask_token")  # stands for hidden patches in the self-supervised training alone
# What transformers keeps apart, before and since its version 5: see pretrained.join.
_JOINED = (
    (("attention.attention.query", "attention.attention.key", "attention.attention.value"), "attention.qkv"),
    (("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.qkv"),
    (("mlp.gate_proj", "mlp.up_proj"), "mlp.weights_in"),
)


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict[pretrained.Path, np.ndarray]]:
    """Published tensors by name -> {"backbone": {path: array}, "head": {path: array}} in this file's layout.

    Takes the names of the authors, of timm and of transformers; the head is `heads/pooled.py` on the output "class"
    (timm) or "both" (transformers). The mask token is left out: nothing here hides patches.
    Raises InputError with the names it does not know.
    """
    weights = {name: array for name, array in weights.items() if not _MASK_TOKEN.fullmatch(name)}
    parts = pretrained.rename(pretrained.join(weights, _JOINED), _NAMES)
    parts["backbone"] = {path: _layout(path, array) for path, array in parts["backbone"].items()}
    return parts


def _layout(path: pretrained.Path, array: np.ndarray) -> np.ndarray:
    if path[-1] not in ("class_token", "registers", "positions"):
        return array
    array = array[0]
    if path[-1] == "positions" and math.isqrt(len(array)) ** 2 == len(array):
        # timm's networks with registers have added the class token's position to the token.
        return np.concatenate([np.zeros_like(array[:1]), array])
    return array


def adapt_input(
    backbone: dict[pretrained.Path, np.ndarray], mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[pretrained.Path, np.ndarray]:
    """Translated backbone weights for images normalised by `mean` and `std`, one value per channel: 1 or 3 channels.

    The network then computes exactly what it would for the same image in RGB normalised by MEAN and STD, a grey image
    being the same grey in all three channels. Raises InputError for another number of channels.
    """
    kernel, constant = pretrained.adapt_input(backbone["stem", "kernel"], MEAN, STD, mean, std)
    return backbone | {("stem", "kernel"): kernel, ("stem", "bias"): backbone["stem", "bias"] + constant}

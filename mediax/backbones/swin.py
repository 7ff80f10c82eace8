"""Swin (arXiv:2103.14030) and Swin V2 (arXiv:2111.09883): image -> pyramid, with the name map of the published weights.

Follows microsoft/Swin-Transformer, and torchvision for images of any size. tests/test_swin.py compares the outputs and
the gradients with both.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import Conv, Linear, Perceptron, drop_path, normalised, run_block
from mediax.operators.window_attention import ContinuousBias, RelativeBias, attention, in_windows

_SIZES = {
    "tiny": {"width": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)},
    "small": {"width": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)},
    "base": {"width": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)},
    "large": {"width": 192, "depths": (2, 2, 18, 2), "heads": (6, 12, 24, 48)},
}


def _variant(
    size: str, *windows: int, post_norm: bool = False, pretrained_windows: tuple[int, ...] | None = None
) -> dict[str, Any]:
    pretrained_windows = pretrained_windows or windows
    return _SIZES[size] | {"windows": windows, "post_norm": post_norm, "pretrained_windows": pretrained_windows}


# The windows of the four stages, as at the image size of the published weights: where a window would be larger than
# the features there, it is as large as they are.
VARIANTS = {size: _variant(size, 7, 7, 7, 7) for size in _SIZES}  # 224 pixels
VARIANTS |= {f"{size}_window12": _variant(size, 12, 12, 12, 12) for size in ("base", "large")}  # 384
VARIANTS |= {f"v2_{size}": _variant(size, 8, 8, 8, 8, post_norm=True) for size in ("tiny", "small", "base")}  # 256
VARIANTS |= {f"v2_{size}_window16": _variant(size, 16, 16, 16, 8, post_norm=True) for size in ("tiny", "small", "base")}
for _size in ("base", "large"):  # trained at 192 pixels in windows of 12, then as said here
    _before = {"post_norm": True, "pretrained_windows": (12, 12, 12, 6)}
    VARIANTS[f"v2_{_size}_window12"] = _variant(_size, 12, 12, 12, 6, post_norm=True)  # 192
    VARIANTS[f"v2_{_size}_window12to16"] = _variant(_size, 16, 16, 16, 8, **_before)  # 256
    VARIANTS[f"v2_{_size}_window12to24"] = _variant(_size, 24, 24, 24, 12, **_before)  # 384

# Whose names of published weights `translate` takes.
READS = ("the authors", "torchvision", "timm", "transformers", "mmsegmentation")

# Parameters that no classifier's file has, by the beginning of their path: without them they start as ones and zeros.
OPTIONAL = ("level_norms",)

# The input normalisation of the published weights: red, green, blue of an image in [0,1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _published_by_authors(file: str, release: str, size: int, classes: int = 1000) -> dict[str, Any]:
    source = f"https://github.com/SwinTransformer/storage/releases/download/{release}/{file}"
    return {"file": file, "source": source, "licence": "MIT", "classes": classes, "size": size}


# classes 1000: ImageNet-1k; 21841: ImageNet-22k. "22kto1k": trained on the second, then on the first.
PUBLISHED = {
    "tiny": [
        _published_by_authors("swin_tiny_patch4_window7_224.pth", "v1.0.0", 224),
        _published_by_authors("swin_tiny_patch4_window7_224_22k.pth", "v1.0.8", 224, 21841),
        _published_by_authors("swin_tiny_patch4_window7_224_22kto1k_finetune.pth", "v1.0.8", 224),
        pretrained.torchvision_file("swin_t-704ceda3.pth"),
    ],
    "small": [
        _published_by_authors("swin_small_patch4_window7_224.pth", "v1.0.0", 224),
        _published_by_authors("swin_small_patch4_window7_224_22k.pth", "v1.0.8", 224, 21841),
        _published_by_authors("swin_small_patch4_window7_224_22kto1k_finetune.pth", "v1.0.8", 224),
        pretrained.torchvision_file("swin_s-5e29d889.pth"),
    ],
    "base": [
        _published_by_authors("swin_base_patch4_window7_224.pth", "v1.0.0", 224),
        _published_by_authors("swin_base_patch4_window7_224_22k.pth", "v1.0.0", 224, 21841),
        _published_by_authors("swin_base_patch4_window7_224_22kto1k.pth", "v1.0.0", 224),
        pretrained.torchvision_file("swin_b-68c6b09e.pth"),
    ],
    "large": [
        _published_by_authors("swin_large_patch4_window7_224_22k.pth", "v1.0.0", 224, 21841),
        _published_by_authors("swin_large_patch4_window7_224_22kto1k.pth", "v1.0.0", 224),
    ],
    "base_window12": [
        _published_by_authors("swin_base_patch4_window12_384.pth", "v1.0.0", 384),
        _published_by_authors("swin_base_patch4_window12_384_22k.pth", "v1.0.0", 384, 21841),
        _published_by_authors("swin_base_patch4_window12_384_22kto1k.pth", "v1.0.0", 384),
    ],
    "large_window12": [
        _published_by_authors("swin_large_patch4_window12_384_22k.pth", "v1.0.0", 384, 21841),
        _published_by_authors("swin_large_patch4_window12_384_22kto1k.pth", "v1.0.0", 384),
    ],
    "v2_tiny": [
        _published_by_authors("swinv2_tiny_patch4_window8_256.pth", "v2.0.0", 256),
        pretrained.torchvision_file("swin_v2_t-b137f0e2.pth", size=256),
    ],
    "v2_small": [
        _published_by_authors("swinv2_small_patch4_window8_256.pth", "v2.0.0", 256),
        pretrained.torchvision_file("swin_v2_s-637d8ceb.pth", size=256),
    ],
    "v2_base": [
        _published_by_authors("swinv2_base_patch4_window8_256.pth", "v2.0.0", 256),
        pretrained.torchvision_file("swin_v2_b-781e5279.pth", size=256),
    ],
    "v2_tiny_window16": [_published_by_authors("swinv2_tiny_patch4_window16_256.pth", "v2.0.0", 256)],
    "v2_small_window16": [_published_by_authors("swinv2_small_patch4_window16_256.pth", "v2.0.0", 256)],
    "v2_base_window16": [_published_by_authors("swinv2_base_patch4_window16_256.pth", "v2.0.0", 256)],
}
for _size in ("base", "large"):
    _file = f"swinv2_{_size}_patch4_window12"
    PUBLISHED |= {
        f"v2_{_size}_window12": [_published_by_authors(f"{_file}_192_22k.pth", "v2.0.0", 192, 21841)],
        f"v2_{_size}_window12to16": [_published_by_authors(f"{_file}to16_192to256_22kto1k_ft.pth", "v2.0.0", 256)],
        f"v2_{_size}_window12to24": [_published_by_authors(f"{_file}to24_192to384_22kto1k_ft.pth", "v2.0.0", 384)],
    }

_STRIDE = 4  # of the first stage
# The authors truncate at +-2, a hundred standard deviations away: a plain normal distribution.
_kernel_init = nnx.initializers.normal(0.02)
_patch_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's default for a convolution


class WindowAttention(nnx.Module):
    """Multi-head self-attention in windows that lie `shift` pixels off the corner: f[B,H,W,C] -> f[B,H,W,C].

    With `cosine` (Swin V2) the logits are cosines at a learnt scale, with a position bias that a small network gives
    and without a bias of the keys; otherwise scaled products with a table of position biases.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        window: int,
        pretrained_window: int,
        shift: int,
        cosine: bool,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        self.heads, self.window, self.shift, self.dtype = heads, (window, window), (shift, shift), dtype
        self.qkv = _linear(channels, 3 * channels, dtype, rngs, use_bias=not cosine)
        self.project = _linear(channels, channels, dtype, rngs)
        if cosine:
            before = (pretrained_window, pretrained_window)
            self.position_bias = ContinuousBias(self.window, heads, pretrained=before, rngs=rngs)
            self.query_bias = nnx.Param(jnp.zeros(channels))
            self.value_bias = nnx.Param(jnp.zeros(channels))
            self.logit_scale = nnx.Param(jnp.full(heads, jnp.log(10.0)))
        else:
            self.position_bias = RelativeBias(self.window, heads, rngs=rngs)
            self.query_bias, self.value_bias, self.logit_scale = (nnx.data(None) for _ in range(3))

    def __call__(self, x: jax.Array) -> jax.Array:
        return in_windows(x, self._attend, window=self.window, shift=self.shift)

    def _attend(self, windows: jax.Array, mask: jax.Array | None) -> jax.Array:
        qkv = self.qkv(windows)
        scale = None
        if self.logit_scale is not None:
            query_bias, value_bias = self.query_bias[...], self.value_bias[...]
            qkv += jnp.concatenate([query_bias, jnp.zeros_like(query_bias), value_bias]).astype(self.dtype)
            scale = self.logit_scale[...]
        qkv = qkv.reshape(*windows.shape[:3], 3, self.heads, windows.shape[3] // self.heads)
        query, key, value = (qkv[:, :, :, index] for index in range(3))
        bias = self.position_bias()
        return self.project(attention(query, key, value, bias=bias, mask=mask, logit_scale=scale))


class Residual(nnx.Module):
    """LayerNorm and `layer` beside the identity, f[B,H,W,C] -> f[B,H,W,C]; with `post_norm` LayerNorm comes last."""

    def __init__(
        self, layer: nnx.Module, channels: int, *, post_norm: bool, drop_path: float, dtype: Any, rngs: nnx.Rngs
    ):
        # A block of Swin V2 starts as the identity.
        scale_init = nnx.initializers.zeros if post_norm else nnx.initializers.ones
        self.norm = _layer_norm(channels, dtype, rngs, scale_init=scale_init)
        self.layer = layer
        self.post_norm, self.drop_path = post_norm, drop_path

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        y = self.norm(self.layer(x)) if self.post_norm else self.layer(self.norm(x))
        return x + drop_path(y, self.drop_path, train=train, rngs=rngs)


class Block(nnx.Module):
    """Attention in windows, then a feed-forward layer, each beside the identity: f[B,H,W,C] -> f[B,H,W,C]."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        post_norm: bool,
        drop_path: float,
        dtype: Any,
        rngs: nnx.Rngs,
        **windows: int,
    ):
        layers = {"dtype": dtype, "rngs": rngs}
        residual = layers | {"post_norm": post_norm, "drop_path": drop_path}
        window_attention = WindowAttention(channels, heads, cosine=post_norm, **windows, **layers)
        self.attention = Residual(window_attention, channels, **residual)
        self.feed_forward = Residual(Perceptron(channels, kernel_init=_kernel_init, **layers), channels, **residual)

    def __call__(self, x: jax.Array, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        return self.feed_forward(self.attention(x, train, rngs), train, rngs)


class Merge(nnx.Module):
    """Joins squares of four pixels: f[B,H,W,C] -> f[B,ceil(H/2),ceil(W/2),2C]; zeros fill an odd row or column.

    LayerNorm comes before the linear layer, with `post_norm` after it.
    """

    def __init__(self, channels: int, *, post_norm: bool, dtype: Any, rngs: nnx.Rngs):
        self.norm = _layer_norm(2 * channels if post_norm else 4 * channels, dtype, rngs)
        self.reduce = _linear(4 * channels, 2 * channels, dtype, rngs, use_bias=False)
        self.post_norm = post_norm

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(batch, height // 2, width // 2, 4 * channels)  # the published order: column, then row
        return self.norm(self.reduce(x)) if self.post_norm else self.reduce(self.norm(x))


class Stem(nnx.Module):
    """Patches of 4x4 pixels, then LayerNorm: f[B,H,W,in] -> f[B,H//4,W//4,C]."""

    def __init__(self, in_channels: int, channels: int, *, dtype: Any, rngs: nnx.Rngs):
        self.conv = Conv(
            in_channels, channels, _STRIDE, stride=_STRIDE, kernel_init=_patch_init, dtype=dtype, rngs=rngs
        )
        self.norm = _layer_norm(channels, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class Stage(nnx.Module):
    """The blocks of one resolution, after the merging that leads to it (the first stage has none)."""

    def __init__(self, merge: Merge | None, blocks: list[Block]):
        self.merge = nnx.data(merge)
        self.blocks = nnx.List(blocks)


class Backbone(nnx.Module):
    """Swin without its head: f32[B,H,W,in_channels] -> {stride: f[B,h,w,C]}, strides 4, 8, 16, 32.

    h is floor(H/4) at stride 4, then half of it, rounded up. The last level has the published last LayerNorm, the
    others are the sums that their stages end with; with `level_norms` each level has a LayerNorm of its own instead, as
    published detectors and segmenters have it. Zeros fill the windows at the right and bottom border and take part in
    the attention, as in torchvision; where one window covers the features it is not shifted. `width`, `depths`,
    `heads`, `windows`, `pretrained_windows` (the windows that the weights of a Swin V2 were trained with) and
    `post_norm` (Swin V2) override the variant's: one entry a stage. `drop_path` is the stochastic depth rate of the
    last block; it rises linearly from 0 at the first. `remat` stores one array per block for the backward pass and
    recomputes the rest. Parameters are f32; the computation and the pyramid are in `dtype`, softmax and LayerNorm's
    statistics in f32.
    Raises InputError for an unknown variant, settings that do not fit each other, or a too small image.
    """

    def __init__(
        self,
        *,
        variant: str = "tiny",
        in_channels: int = 3,
        width: int | None = None,
        depths: tuple[int, ...] | None = None,
        heads: tuple[int, ...] | None = None,
        windows: tuple[int, ...] | None = None,
        pretrained_windows: tuple[int, ...] | None = None,
        post_norm: bool | None = None,
        level_norms: bool = False,
        drop_path: float = 0.0,
        remat: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise InputError(f"Swin has no variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        settings = VARIANTS[variant]
        width, depths, heads = (
            given or settings[name] for name, given in (("width", width), ("depths", depths), ("heads", heads))
        )
        pretrained_windows = pretrained_windows or windows or settings["pretrained_windows"]
        windows = windows or settings["windows"]
        post_norm = settings["post_norm"] if post_norm is None else post_norm
        if not len(depths) == len(heads) == len(windows) == len(pretrained_windows):
            raise InputError(
                f"Swin's depths {tuple(depths)}, heads {tuple(heads)}, windows {tuple(windows)} and pretrained_windows "
                f"{tuple(pretrained_windows)} must have the same length."
            )
        self.depths, self.width, self.remat = tuple(depths), width, remat
        self.num_layers = 1 + sum(self.depths)
        layers = {"post_norm": post_norm, "dtype": dtype, "rngs": rngs}
        self.stem = Stem(in_channels, width, dtype=dtype, rngs=rngs)
        self.stages = nnx.List()
        rates = iter(np.linspace(0, drop_path, sum(self.depths)).tolist())
        for stage, channels in enumerate(self.channels.values()):
            if channels % heads[stage]:
                raise InputError(f"Swin's stage {stage} has {channels} channels, no multiple of {heads[stage]} heads.")
            merge = Merge(channels // 2, **layers) if stage > 0 else None
            window = {"window": windows[stage], "pretrained_window": pretrained_windows[stage]}
            shifts = [windows[stage] // 2 * (block % 2) for block in range(depths[stage])]
            blocks = [
                Block(channels, heads[stage], shift=shift, drop_path=next(rates), **window, **layers)
                for shift in shifts
            ]
            self.stages.append(Stage(merge, blocks))
        normed = self.channels.values() if level_norms else ()
        self.level_norms = nnx.List(_layer_norm(channels, dtype, rngs) for channels in normed)
        self.norm = nnx.data(None) if level_norms else _layer_norm(channels, dtype, rngs)

    @property
    def channels(self) -> dict[int, int]:  # a property: a dict as an attribute makes the module's definition unhashable
        return {_STRIDE * 2**stage: self.width * 2**stage for stage in range(len(self.depths))}

    def __call__(self, image: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> dict[int, jax.Array]:
        if min(image.shape[1:3]) < _STRIDE:
            raise InputError(f"Swin cuts patches of {_STRIDE} pixels, the images have {image.shape[1:3]}.")
        x = self.stem(image)
        pyramid = {}
        for stride, stage in zip(self.channels, self.stages):
            if stage.merge is not None:
                x = stage.merge(x)
            for block in stage.blocks:
                x = run_block(block, x, train, rngs, remat=self.remat)
            pyramid[stride] = x
        if self.level_norms:
            return normalised(pyramid, self.level_norms)
        return pyramid | {stride: self.norm(x)}

    def layer_of(self, path: tuple[str | int, ...]) -> int:
        """Depth of the parameter at `path` for layer-wise learning-rate decay: 0 (stem) to num_layers - 1.

        A head comes after them all, at num_layers, and with it the norms of the levels, which are learnt anew as it is.
        Every block is one layer; a merging belongs to the block after it and the last LayerNorm to the block before it.
        """
        if path[0] == "stem":
            return 0
        if path[0] == "level_norms":
            return self.num_layers
        if path[0] == "norm":
            return self.num_layers - 1
        _, stage, kind, *rest = path
        return 1 + sum(self.depths[:stage]) + (rest[0] if kind == "blocks" else 0)


def _linear(in_channels: int, out_channels: int, dtype: Any, rngs: nnx.Rngs, *, use_bias: bool = True) -> Linear:
    return Linear(in_channels, out_channels, use_bias=use_bias, kernel_init=_kernel_init, dtype=dtype, rngs=rngs)


def _layer_norm(channels: int, dtype: Any, rngs: nnx.Rngs, **options: Any) -> nnx.LayerNorm:
    return nnx.LayerNorm(channels, epsilon=1e-5, dtype=dtype, rngs=rngs, **options)


# Published part of a block -> ours: the authors' and timm's names, and torchvision's of the feed-forward layer; then
# those of transformers, before and since its version 5; mmsegmentation's have "w_msa" and "ffn".
_BLOCK = (
    (r"(?:norm1|layernorm_before)", "attention/norm"),
    (r"(?:attn(?:\.w_msa)?|attention)\.qkv", "attention/layer/qkv"),
    (r"attn\.q_bias", "attention/layer/query_bias"),
    (r"attn\.v_bias", "attention/layer/value_bias"),
    (r"(?:attn(?:\.w_msa)?\.proj|attention\.(?:output\.dense|o_proj))", "attention/layer/project"),
    (r"attn\.logit_scale", "attention/layer/logit_scale"),
    (
        r"(?:attn(?:\.w_msa)?|attention\.(?:self|relative_position_bias))\.relative_position_bias_table",
        "attention/layer/position_bias/table",
    ),
    (r"attn\.cpb_mlp\.0", "attention/layer/position_bias/hidden"),
    (r"attn\.cpb_mlp\.2", "attention/layer/position_bias/out"),
    (r"(?:norm2|layernorm_after)", "feed_forward/norm"),
    (r"(?:mlp\.(?:fc1|0)|intermediate\.dense|ffn\.layers\.0\.0)", "feed_forward/layer/expand"),
    (r"(?:mlp\.(?:fc2|3)|output\.dense|ffn\.layers\.1)", "feed_forward/layer/project"),
)
# What transformers keeps apart, before and since its version 5: see pretrained.join.
_JOINED = (
    (("attention.self.query", "attention.self.key", "attention.self.value"), "attention.qkv"),
    (("attention.q_proj", "attention.k_proj", "attention.v_proj"), "attention.qkv"),
)
# The stages of the authors and timm; of transformers, where most files name the network first; of mmsegmentation.
_STAGE = r"(?:(?:(?:swin\.)?encoder\.)?layers|stages)"
# Published module -> ours, by full match of the name without its last word: see pretrained.rename.
_NAMES = (
    # microsoft/Swin-Transformer, where a stage ends with the merging that leads to the next one; all but torchvision
    (r"(?:patch_embed\.proj(?:ection)?|(?:swin\.)?embeddings\.patch_embeddings\.projection)", r"backbone/stem/conv"),
    (r"(?:patch_embed|(?:swin\.)?embeddings)\.norm", r"backbone/stem/norm"),
    *(
        (rf"{_STAGE}\.(\d+)\.blocks\.(\d+)\.{published}", rf"backbone/stages/\1/blocks/\2/{ours}")
        for published, ours in _BLOCK
    ),
    *(
        (rf"{_STAGE}\.{stage}\.downsample\.{published}", rf"backbone/stages/{stage + 1}/merge/{ours}")
        for stage in range(3)
        for published, ours in (("norm", "norm"), ("reduction", "reduce"))
    ),
    # detectors and segmenters: the authors, IDEA-Research/DINO, mmsegmentation; transformers
    (r"norm(\d)", r"backbone/level_norms/\1"),
    *((rf"hidden_states_norms\.stage{level + 1}", rf"backbone/level_norms/{level}") for level in range(4)),
    # torchvision: features.1, 3, 5, 7 are the stages, features.2, 4, 6 the mergings that lead to them
    (r"features\.0\.0", r"backbone/stem/conv"),
    (r"features\.0\.2", r"backbone/stem/norm"),
    *(
        (rf"features\.{2 * stage + offset}\.{published}", rf"backbone/stages/{stage}/{ours}")
        for stage in range(4)
        for offset, published, ours in (
            (0, "norm", "merge/norm"),
            (0, "reduction", "merge/reduce"),
            *((1, rf"(\d+)\.{published}", rf"blocks/\1/{ours}") for published, ours in _BLOCK),
        )
    ),
    (r"(?:norm|(?:swin\.)?layernorm)", r"backbone/norm"),
    (r"(?:head(?:\.fc)?|classifier)", r"head/linear"),
)
_COMPUTED = re.compile(r".*\.(?:relative_position_index|relative_coords_table|attn_mask|k_bias)")  # tables, not learnt
_MMSEGMENTATION_MERGE = re.compile(r"stages\.\d\.downsample\.(?:norm|reduction)\.\w+")
_TIMM_MERGE = re.compile(r"layers\.(\d+)\.downsample\.(.*)")


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict[pretrained.Path, np.ndarray]]:
    """Published tensors by name -> {"backbone": {path: array}, "head": {path: array}} in this file's layout.

    Takes the names of the authors, of torchvision, of timm, and for the first version those of transformers and of
    mmsegmentation; the head is `heads/pooled.py` without normalize. Raises InputError with the names it does not know.
    """
    weights = {name: array for name, array in weights.items() if not _COMPUTED.fullmatch(name)}
    weights = pretrained.join(_authors_merging(_authors_stages(weights)), _JOINED)
    parts = pretrained.rename(_split_qkv_bias(weights), _NAMES)
    parts["backbone"] = {path: _layout(path, array) for path, array in parts["backbone"].items()}
    return parts


def _authors_stages(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Numbers the mergings as the authors do; a stage of timm begins with the merging that leads to it."""
    first = [name for name in weights if name.startswith("layers.0.")]
    if not first or any(name.startswith("layers.0.downsample.") for name in first):
        return weights
    return {
        _TIMM_MERGE.sub(lambda match: f"layers.{int(match[1]) - 1}.downsample.{match[2]}", name): array
        for name, array in weights.items()
    }


def _authors_merging(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Orders what a merging joins as the authors do; mmsegmentation has the four pixels of a channel side by side."""
    return {
        name: _pixels_first(array) if _MMSEGMENTATION_MERGE.fullmatch(name) else array
        for name, array in weights.items()
    }


def _pixels_first(array: np.ndarray) -> np.ndarray:
    """Moves the pixels before the channels, [...,C*4] -> [...,4*C], and down the columns instead of along the rows."""
    squares = array.reshape(*array.shape[:-1], -1, 2, 2)  # channel, row, column
    return squares.swapaxes(-1, -3).reshape(array.shape)


def _split_qkv_bias(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Takes the query's and the value's bias out of torchvision's joined one, whose third of the keys is not used."""
    result = {}
    for name, array in weights.items():
        module = name.removesuffix("qkv.bias")
        if module != name and f"{module}logit_scale" in weights:
            query, _, value = np.split(array, 3)
            result |= {f"{module}q_bias": query, f"{module}v_bias": value}
        else:
            result[name] = array
    return result


def _layout(path: pretrained.Path, array: np.ndarray) -> np.ndarray:
    if path[-1] == "table":
        return array.T  # no linear layer: it stays [positions,heads]
    return array.reshape(-1) if path[-1] == "logit_scale" else array


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

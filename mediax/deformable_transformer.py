"""What Deformable DETR (arXiv:2010.04159) and its successors share: levels in a row, layers, proposals, set losses.

Follows the authors' code. Boxes are (x, y, width, height) as fractions of the image where nothing else is said; levels
lie one after the other in `memory` f[B,S,C], and `sizes` are their heights and widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import Conv, Linear, wide
from mediax.operators import boxes as box
from mediax.operators.deformable_attention import deformable_attention
from mediax.operators.matching import match
from mediax.operators.padding import extent

Sizes = tuple[tuple[int, int], ...]  # (height, width) of each level

COSTS = {"class": 2.0, "l1": 5.0, "giou": 2.0}  # of the matching

_xavier = nnx.initializers.xavier_uniform()
_zeros = nnx.initializers.zeros


class Levels(nnx.Module):
    """Pyramid {stride: f[B,H/s,W/s,C_s]} -> memory f[B,S,width], the codes of its places f[S,width], and sizes.

    `strides` are the levels of the backbone that enter; strided convolutions add coarser ones up to `levels`. A place's
    code is that of its row and its column, `offset` (in pixels) from their edges, with wavelengths up to `temperature`,
    and an embedding of its level. Raises InputError for a stride that the backbone lacks, and for another width.
    """

    def __init__(
        self,
        channels: dict[int, int],
        strides: Sequence[int],
        levels: int,
        width: int,
        *,
        offset: float = 0.5,
        temperature: float = 10000.0,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        if missing := [stride for stride in strides if stride not in channels]:
            raise InputError(
                f"the head's strides {missing} are not among the backbone's, {sorted(channels)}; set strides"
            )
        if levels < len(strides) or width % 32:
            raise InputError(
                f"the head's levels={levels}, width={width}: expected at least {len(strides)} levels, one for each of "
                "its strides, and a width that 32 divides"
            )
        options = {"dtype": dtype, "rngs": rngs}
        self.strides, self.width = tuple(strides), width
        self.offset, self.temperature = offset, temperature
        entering = [(channels[stride], 1) for stride in strides]
        entering += [(channels[strides[-1]], 3), *[(width, 3)] * levels][: levels - len(strides)]
        self.inputs = nnx.List(
            Conv(count, width, size, stride=1 + size // 2, padding=size // 2, kernel_init=_xavier, **options)
            for count, size in entering
        )
        self.norms = nnx.List(nnx.GroupNorm(width, num_groups=32, epsilon=1e-5, **options) for _ in range(levels))
        self.level = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (levels, width), jnp.float32))

    def __call__(self, pyramid: dict[int, jax.Array]) -> tuple[jax.Array, jax.Array, Sizes]:
        levels: list[jax.Array] = []
        for index, (conv, norm) in enumerate(zip(self.inputs, self.norms, strict=True)):
            if index < len(self.strides):
                x = pyramid[self.strides[index]]
            else:
                x = pyramid[self.strides[-1]] if index == len(self.strides) else levels[-1]
            levels.append(norm(conv(x)))
        sizes = tuple(level.shape[1:3] for level in levels)
        codes = [self._codes(*size) + level for size, level in zip(sizes, self.level[...])]
        flat = jnp.concatenate([level.reshape(len(level), -1, self.width) for level in levels], 1)
        return flat, jnp.concatenate(codes).astype(flat.dtype), sizes

    def _codes(self, height: int, width: int) -> jax.Array:
        """Sines and cosines of the row, then of the column of each pixel: f32[height*width,features]."""
        half = self.width // 2
        rows, columns = (
            sines((jnp.arange(length) + self.offset) / (length + 1e-6), half, self.temperature)
            for length in (height, width)
        )
        codes = [
            jnp.broadcast_to(rows[:, None], (height, width, half)),
            jnp.broadcast_to(columns, (height, width, half)),
        ]
        return jnp.concatenate(codes, -1).reshape(-1, self.width)


class Proposals(nnx.Module):
    """Memory f[B,S,C] -> features f[B,S,C] and anchors f32[S,4], the logits of a box around every pixel.

    A pixel whose box would reach outside proposes none: its features are blank, and its anchor is at infinity.
    """

    def __init__(self, width: int, *, dtype: Any, rngs: nnx.Rngs):
        self.linear = Linear(width, width, kernel_init=_xavier, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, memory: jax.Array, sizes: Sizes) -> tuple[jax.Array, np.ndarray]:
        extents = np.repeat([0.05 * 2.0**level for level in range(len(sizes))], [h * w for h, w in sizes])
        anchors = np.concatenate([pixel_centers(sizes), extents[:, None], extents[:, None]], 1)
        inside = ((anchors > 0.01) & (anchors < 0.99)).all(1, keepdims=True)
        safe = np.where(inside, anchors, 0.5)
        anchors = np.where(inside, np.log(safe / (1 - safe)), np.inf)
        return self.norm(self.linear(jnp.where(inside, memory, 0))), anchors


class DeformableAttention(nnx.Module):
    """Queries f[B,Q,C] attend to `points` points of each level around their reference -> f[B,Q,C].

    The reference is f32[B,Q,2], points (x, y), or f32[B,Q,4], boxes (x, y, width, height), all as fractions; `memory`
    f[B,S,C] holds the levels of `sizes` one after the other.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int, *, dtype: Any, rngs: nnx.Rngs):
        if width % heads:
            raise InputError(f"the head's width={width}, heads={heads}: expected a width that its heads divide")
        options = {"dtype": dtype, "rngs": rngs}
        self.heads, self.levels, self.points = heads, levels, points
        around = _directions(heads, levels, points)
        self.offsets = Linear(
            width, around.size, kernel_init=_zeros, bias_init=lambda *_: jnp.asarray(around), **options
        )
        self.weights = Linear(width, heads * levels * points, kernel_init=_zeros, **options)
        self.values = Linear(width, width, kernel_init=_xavier, **options)
        self.output = Linear(width, width, kernel_init=_xavier, **options)

    def __call__(self, queries: jax.Array, reference: jax.Array, memory: jax.Array, sizes: Sizes) -> jax.Array:
        shape = (*queries.shape[:2], self.heads, self.levels, self.points)
        offsets = wide(self.offsets(queries)).reshape(*shape, 2)
        weights = jax.nn.softmax(wide(self.weights(queries)).reshape(*shape[:3], -1)).reshape(shape)
        reference = reference[:, :, None, None, None]
        if reference.shape[-1] == 2:
            locations = reference + offsets / np.array(sizes)[:, None, ::-1]
        else:
            locations = reference[..., :2] + offsets / self.points * reference[..., 2:] * 0.5
        values = self.values(memory)
        ends = np.cumsum([height * width for height, width in sizes])[:-1]
        values = [
            level.reshape(len(level), *size, self.heads, -1)
            for level, size in zip(jnp.split(values, ends, 1), sizes, strict=True)
        ]
        return self.output(deformable_attention(values, locations, weights.astype(values[0].dtype)))


def _directions(heads: int, levels: int, points: int) -> np.ndarray:
    """Each head starts by looking in its own direction, each point one pixel further: f32[heads*levels*points*2]."""
    angles = np.arange(heads) * (2 * math.pi / heads)
    directions = np.stack([np.cos(angles), np.sin(angles)], -1)
    directions /= np.abs(directions).max(-1, keepdims=True)
    steps = np.arange(1, points + 1)[:, None]
    return np.tile(directions[:, None, None] * steps, (1, levels, 1, 1)).reshape(-1).astype(np.float32)


class SelfAttention(nnx.Module):
    """Multi-head attention of queries f[B,Q,C] among themselves; their positions enter keys and queries alone.

    `sees` bool[B,Q,Q] says which query (second axis) may attend to which (third axis); None: all to all.
    """

    def __init__(self, width: int, heads: int, *, dtype: Any, rngs: nnx.Rngs):
        options = {"kernel_init": _xavier, "dtype": dtype, "rngs": rngs}
        self.heads = heads
        self.query, self.key, self.value, self.output = (Linear(width, width, **options) for _ in range(4))

    def __call__(self, x: jax.Array, positions: jax.Array, sees: jax.Array | None = None) -> jax.Array:
        placed = x + positions
        query, key, value = (
            layer(y).reshape(*x.shape[:2], self.heads, -1)
            for layer, y in ((self.query, placed), (self.key, placed), (self.value, x))
        )
        mask = None if sees is None else sees[:, None]
        return self.output(nnx.dot_product_attention(query, key, value, mask=mask).reshape(x.shape))


class Layer(nnx.Module):
    """One layer of the encoder, or with `decodes` of the decoder, whose queries first attend to each other."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        heads: int,
        levels: int,
        points: int,
        decodes: bool,
        dropout: float,
        dtype: Any,
        rngs: nnx.Rngs,
    ):
        options = {"dtype": dtype, "rngs": rngs}
        self.dropout = dropout
        self.self_attention = SelfAttention(width, heads, **options) if decodes else nnx.data(None)
        self.self_norm = nnx.LayerNorm(width, epsilon=1e-5, **options) if decodes else nnx.data(None)
        self.attention = DeformableAttention(width, heads, levels, points, **options)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, **options)
        self.expand = Linear(width, hidden, kernel_init=_xavier, **options)
        self.reduce = Linear(hidden, width, kernel_init=_xavier, **options)
        self.last_norm = nnx.LayerNorm(width, epsilon=1e-5, **options)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        reference: jax.Array,
        memory: jax.Array | None,
        sizes: Sizes,
        train: bool,
        rngs: nnx.Rngs | None,
        sees: jax.Array | None = None,
    ) -> jax.Array:
        def drop(y: jax.Array) -> jax.Array:
            return nnx.Dropout(self.dropout, deterministic=False)(y, rngs=rngs) if train and self.dropout else y

        if self.self_attention is not None:
            x = self.self_norm(x + drop(self.self_attention(x, positions, sees)))
        memory = x if memory is None else memory
        x = self.norm(x + drop(self.attention(x + positions, reference, memory, sizes)))
        y = self.reduce(drop(jax.nn.relu(self.expand(x))))
        return self.last_norm(x + drop(y))


class BoxNetwork(nnx.Module):
    """Three linear layers, f[...,C] -> logits of a box f32[...,4]; starts by predicting the same for every query."""

    def __init__(self, width: int, extent: float, *, dtype: Any, rngs: nnx.Rngs):
        options = {"dtype": dtype, "rngs": rngs}
        start = jnp.array([0.0, 0.0, extent, extent])
        self.layers = nnx.List(
            [
                Linear(width, width, **options),
                Linear(width, width, **options),
                Linear(width, 4, kernel_init=_zeros, bias_init=lambda *_: start, **options),
            ]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        first, second, last = self.layers
        return wide(last(jax.nn.relu(second(jax.nn.relu(first(x))))))


def targets_in(
    pyramid: dict[int, jax.Array], size: tuple[int, int], targets: dict[str, jax.Array] | None
) -> tuple[tuple[int, int], dict[str, jax.Array] | None]:
    """What a pyramid covers (H', W') of an image of `size`, and the targets with their boxes as fractions of that.

    The authors pad images to the largest of a batch, and each keeps its own fractions by way of masks. Here all images
    of a batch are padded alike, by less than a cell of the coarsest level: the padded image takes the image's place.
    """
    covered = extent(pyramid, size)
    if targets is not None:
        targets = box.at_least_one(targets)
        targets |= {"boxes": box.rescale(targets["boxes"], size, covered)}
    return covered, targets


def set_losses(
    layers: Sequence[tuple[jax.Array, jax.Array]], true: jax.Array, labels: jax.Array, valid: jax.Array
) -> dict[str, jax.Array]:
    """Focal, L1 and generalised IoU loss, f32[B] each, summed over layers; each layer is matched by itself.

    A layer is its class logits f32[B,Q,K] and boxes f32[B,Q,4]; the truth is boxes f32[B,N,4], labels i32[B,N] and
    valid bool[B,N]. The Hungarian algorithm matches at the COSTS.
    """
    logits, boxes = (jnp.stack(arrays) for arrays in zip(*layers, strict=True))
    losses = jax.vmap(_matched_losses, (0, 0, None, None, None))(logits, boxes, true, labels, valid)
    return {name: loss.sum(0) for name, loss in losses.items()}


def _matched_losses(
    logits: jax.Array, boxes: jax.Array, true: jax.Array, labels: jax.Array, valid: jax.Array
) -> dict[str, jax.Array]:
    query, matched = match(_cost(logits, boxes, true, labels), valid)
    rows = jnp.arange(len(logits))[:, None]
    wanted = jnp.zeros_like(logits).at[rows, query, labels].max(matched.astype(logits.dtype))
    l1, giou = box_losses(jnp.take_along_axis(boxes, query[..., None], 1), true)
    return {
        "class": focal_loss(logits, wanted).sum((1, 2)),
        "l1": jnp.where(matched, l1, 0).sum(1),
        "giou": jnp.where(matched, giou, 0).sum(1),
    }


def focal_loss(logits: jax.Array, wanted: jax.Array) -> jax.Array:
    """Binary focal loss (arXiv:1708.02002) with the usual alpha 0.25 and gamma 2: f32[...] twice -> f32[...]."""
    return optax.sigmoid_focal_loss(logits, wanted, alpha=0.25, gamma=2.0)


def box_losses(boxes: jax.Array, true: jax.Array) -> tuple[jax.Array, jax.Array]:
    """L1 distance and one minus the generalised IoU of boxes f32[...,4] and true ones -> f32[...] twice."""
    return jnp.abs(boxes - true).sum(-1), 1 - box.overlap(box.corners(boxes), box.corners(true))[1]


def best_pairs(
    logits: jax.Array, boxes: jax.Array, count: int, covered: tuple[int, int], size: tuple[int, int]
) -> dict[str, jax.Array]:
    """The pairs of query and class with the highest scores: f32[B,Q,K], f32[B,Q,4] -> at most `count` boxes.

    boxes f32[B,D,4] (ymin, xmin, ymax, xmax as fractions of the image of `size`, where those that come in are fractions
    of what the pyramid `covered`), scores f32[B,D] in [0,1], best first, labels i32[B,D].
    """
    scores = jax.nn.sigmoid(logits).reshape(len(logits), -1)
    scores, pair = lax.top_k(scores, min(count, scores.shape[1]))
    query, label = jnp.divmod(pair, logits.shape[-1])
    boxes = box.corners(jnp.take_along_axis(boxes, query[..., None], 1))
    boxes = box.clip(box.rescale(boxes, covered, size), 1, 1)
    return {"boxes": boxes, "scores": scores, "labels": label.astype(jnp.int32)}


def _cost(logits: jax.Array, boxes: jax.Array, true: jax.Array, labels: jax.Array) -> jax.Array:
    """What it costs to take a query for a true box, f32[B,Q,N]: the losses' terms with the losses' weights."""
    probability = jax.nn.sigmoid(logits)
    absent = 0.75 * probability**2 * -jnp.log(1 - probability + 1e-8)
    present = 0.25 * (1 - probability) ** 2 * -jnp.log(probability + 1e-8)
    entropy = jnp.take_along_axis(present - absent, labels[:, None, :], 2)
    distance = jnp.abs(boxes[:, :, None] - true[:, None]).sum(-1)
    giou = box.overlap(box.corners(boxes)[:, :, None], box.corners(true)[:, None])[1]
    return COSTS["class"] * entropy + COSTS["l1"] * distance - COSTS["giou"] * giou


def pixel_centers(sizes: Sizes) -> np.ndarray:
    """(x, y) of the pixels of all levels as fractions: f32[S,2]."""
    grids = [np.meshgrid((np.arange(w) + 0.5) / w, (np.arange(h) + 0.5) / h) for h, w in sizes]
    return np.concatenate([np.stack(grid, -1).reshape(-1, 2) for grid in grids]).astype(np.float32)


def sines(fractions: jax.Array, features: int, temperature: float = 10000.0) -> jax.Array:
    """f32[...] in [0,1] -> f32[...,features]: sine and cosine in turn, of wavelengths from 1 to `temperature`."""
    angles = fractions[..., None] * (2 * math.pi) / temperature ** (2 * np.arange(features // 2) / features)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(*fractions.shape, features)


def logit(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Inverse of the sigmoid, finite: nowhere closer than `epsilon` to 0 and 1."""
    x = jnp.clip(x, 0, 1)
    return jnp.log(jnp.maximum(x, epsilon) / jnp.maximum(1 - x, epsilon))


# Published module -> ours, for pretrained.rename: the authors' names, then transformers'.
NAMES = (
    (r"transformer\.level_embed|model\.level_embed", r"head/levels/level"),
    (r"(?:model\.)?input_proj\.(\d+)\.0", r"head/levels/inputs/\1"),
    (r"(?:model\.)?input_proj\.(\d+)\.1", r"head/levels/norms/\1"),
    (r"(?:transformer|model)\.enc_output", r"head/proposals/linear"),
    (r"(?:transformer|model)\.enc_output_norm", r"head/proposals/norm"),
    *(
        (rf"(?:transformer|model)\.{stack}\.layers\.(\d+)\.{published}", rf"head/{stack}/\1/{ours}")
        for stack, names in (
            (
                "encoder",
                (
                    (r"self_attn\.sampling_offsets", "attention/offsets"),
                    (r"self_attn\.attention_weights", "attention/weights"),
                    (r"self_attn\.value_proj", "attention/values"),
                    (r"self_attn\.output_proj", "attention/output"),
                    (r"(?:norm1|self_attn_layer_norm)", "norm"),
                    (r"(?:norm2|final_layer_norm)", "last_norm"),
                ),
            ),
            (
                "decoder",
                (
                    (r"(?:cross|encoder)_attn\.sampling_offsets", "attention/offsets"),
                    (r"(?:cross|encoder)_attn\.attention_weights", "attention/weights"),
                    (r"(?:cross|encoder)_attn\.value_proj", "attention/values"),
                    (r"(?:cross|encoder)_attn\.output_proj", "attention/output"),
                    (r"self_attn\.q_proj", "self_attention/query"),
                    (r"self_attn\.k_proj", "self_attention/key"),
                    (r"self_attn\.v_proj", "self_attention/value"),
                    (r"self_attn\.(?:o|out)_proj", "self_attention/output"),
                    (r"(?:norm2|self_attn_layer_norm)", "self_norm"),
                    (r"(?:norm1|encoder_attn_layer_norm)", "norm"),
                    (r"(?:norm3|final_layer_norm)", "last_norm"),
                ),
            ),
        )
        for published, ours in (
            *names,
            (r"(?:linear1|(?:mlp\.)?fc1)", "expand"),
            (r"(?:linear2|(?:mlp\.)?fc2)", "reduce"),
        )
    ),
)


_BODIES = ("backbone.0.body.", "backbone.0.", "model.backbone.conv_encoder.model.", "model.backbone.model.")
# The decoder's predictors are the detector's.
_COPIES = tuple(f"{model}.decoder.{one}_embed." for model in ("transformer", "model") for one in ("class", "bbox"))


def divide(weights: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Published tensors -> the backbone's without their prefix, and the others, for `NAMES`.

    The decoder's copies of the predictors are dropped, and the tensors that torch's attention stacks, in_proj_*, become
    those of query, key and value.
    """
    backbone, own = {}, {}
    for name, array in weights.items():
        body = next((prefix for prefix in _BODIES if name.startswith(prefix)), None)
        stem, _, last = name.rpartition(".")
        if body:
            backbone[name.removeprefix(body)] = array
        elif last in ("in_proj_weight", "in_proj_bias"):
            word = last.removeprefix("in_proj_")
            own |= {f"{stem}.{one}_proj.{word}": part for one, part in zip("qkv", np.split(array, 3))}
        elif not name.startswith(_COPIES):
            own[name] = array
    return backbone, own


def translate(
    weights: dict[str, np.ndarray], names: Sequence[tuple[str, str]], embeddings: Sequence[str]
) -> dict[str, dict]:
    """Published tensors -> {"backbone": {name: array}, "head": {path: array}} by `names`, which begin with `NAMES`.

    `embeddings` are tables, which pretrained.rename takes for linear layers. Raises InputError for unknown names.
    """
    backbone, own = divide(weights)
    head = pretrained.rename(own, names)["head"]
    for name in embeddings:
        if (name, "kernel") in head:
            head[name,] = head.pop((name, "kernel")).T
    if ("levels", "level") in head:
        head["levels", "level"] = head["levels", "level"].T
    return {"backbone": backbone, "head": head}

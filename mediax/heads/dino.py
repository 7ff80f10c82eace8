"""DINO (arXiv:2203.03605): Deformable DETR that learns to denoise boxes, selects its anchors and looks forward twice.

Follows the authors' code, https://github.com/IDEA-Research/DINO. tests/test_dino.py compares boxes, losses and
gradients with it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from mediax import deformable_transformer
from mediax.deformable_transformer import (
    COSTS,
    NAMES,
    BoxNetwork,
    Layer,
    Levels,
    Proposals,
    Sizes,
    best_pairs,
    box_losses,
    focal_loss,
    logit,
    pixel_centers,
    set_losses,
    sines,
    targets_in,
)
from mediax.errors import InputError
from mediax.layers import Linear, run_block, wide
from mediax.operators import boxes as box

# For tasks/detection.py: what the losses are averaged over, and how they add up.
NORMALIZED_BY = "boxes"
_TERMS = COSTS | {"class": 1.0}
LOSS_WEIGHTS = {prefix + name: weight for prefix in ("", "proposal_", "denoising_") for name, weight in _TERMS.items()}

NEAREST = 1e-3  # how near to 0 and 1 a box may come that is moved on
MATCHING, UNUSED = -1, -2  # groups of queries; those that denoise count from 0

_xavier = nnx.initializers.xavier_uniform()


class NoisyBoxes(NamedTuple):
    """What the denoising queries start from, and what each shall find."""

    labels: jax.Array  # i32[B,T], some of them wrong
    boxes: jax.Array  # f32[B,T,4] (x, y, width, height)
    true: jax.Array  # i32[B,T] which of the image's boxes it was
    positive: jax.Array  # bool[B,T] shall find the box; False: shall find nothing
    group: jax.Array  # i32[B,T]
    groups: jax.Array  # i32[B]


class Head(nnx.Module):
    """Pyramid {stride: f[B,H/s,W/s,C_s]} -> losses and a fixed number of boxes.

    `strides` are the levels of the backbone that enter, and strided convolutions add coarser ones up to `levels`.
    `queries` is the number of boxes that the decoder predicts: their content is learned, their first boxes are the
    encoder's best proposals. `detections` is the number of (box, class) pairs of highest score that an image gets.
    In training an image's true boxes, repeated in as many groups as `denoising` has room for (at least one), enter the
    decoder twice: with sides shifted by up to `box_noise` / 2 of their extent, to be restored, and by more, up to twice
    that, to be rejected. Half of the share `label_noise` of them get a label at random. A group sees itself and the
    queries, which see no group.

    Called as (pyramid, (H, W), targets). `targets` holds boxes f32[B,N,4] (ymin, xmin, ymax, xmax as fractions),
    box_labels i32[B,N], box_valid bool[B,N]; None predicts only. Returns
      losses: {class, l1, giou, proposal_* and in training denoising_*: f32[B]}, sums over queries and decoder layers:
        focal loss, L1 of (x, y, width, height) and generalised IoU of the boxes that the Hungarian algorithm matches;
        of the denoising queries the mean over an image's groups;
      boxes f32[B,D,4] in fractions, scores f32[B,D] in [0,1], labels i32[B,D].
    The noise draws from `rngs.denoising()`. Parameters, boxes and losses are f32, the rest is computed in `dtype`.
    `remat` stores one array per layer for the backward pass and recomputes the rest.
    The authors let the image with the most boxes say how many groups there are; here each image has its own number.
    All images of a batch are padded alike, if at all: inside, boxes are fractions of the padded image; see
    `deformable_transformer.targets_in`.
    Raises InputError for a stride that the backbone lacks, widths that do not divide, more queries than pixels.
    """

    def __init__(
        self,
        channels: dict[int, int],
        classes: int,
        *,
        strides: tuple[int, ...] = (8, 16, 32),
        levels: int = 4,
        width: int = 256,
        hidden: int = 2048,
        heads: int = 8,
        points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        queries: int = 900,
        denoising: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 0.4,
        detections: int = 300,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.queries, self.detections, self.width, self.remat = queries, detections, width, remat
        self.denoising, self.label_noise, self.box_noise = denoising, label_noise, box_noise
        options = {"dtype": dtype, "rngs": rngs}
        self.levels = Levels(channels, strides, levels, width, offset=1.0, temperature=20.0, **options)
        layer = {"heads": heads, "levels": levels, "points": points, "dropout": dropout, **options}
        self.encoder = nnx.List(Layer(width, hidden, decodes=False, **layer) for _ in range(encoder_layers))
        self.decoder = nnx.List(Layer(width, hidden, decodes=True, **layer) for _ in range(decoder_layers))
        self.decoder_norm = nnx.LayerNorm(width, epsilon=1e-5, **options)
        self.proposals = Proposals(width, **options)
        rare = nnx.initializers.constant(-math.log(99))  # a box is of a class with probability 0.01 at first
        self.proposal_classes, self.classes = (Linear(width, classes, bias_init=rare, **options) for _ in range(2))
        self.proposal_boxes, self.boxes = (BoxNetwork(width, 0.0, **options) for _ in range(2))
        self.place = nnx.List(
            Linear(entering, width, kernel_init=_xavier, **options) for entering in (2 * width, width)
        )
        self.query = nnx.Param(_xavier(rngs.params(), (queries, width), jnp.float32))
        self.labels = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (classes, width), jnp.float32))

    def __call__(
        self,
        pyramid: dict[int, jax.Array],
        size: tuple[int, int],
        targets: dict[str, jax.Array] | None = None,
        *,
        train: bool,
        rngs: nnx.Rngs | None,
    ) -> dict[str, Any]:
        covered, targets = targets_in(pyramid, size, targets)
        memory, positions, sizes = self.levels(pyramid)
        places = jnp.broadcast_to(pixel_centers(sizes), (*memory.shape[:2], 2))
        for layer in self.encoder:
            memory = run_block(layer, memory, positions, places, None, sizes, train, rngs, remat=self.remat)
        proposals = self._propose(memory, sizes)
        reference = lax.stop_gradient(proposals[1])
        x = jnp.broadcast_to(self.query[...], (len(memory), *self.query.shape)).astype(memory.dtype)
        noisy = sees = None
        if train and targets is not None and self.denoising:
            noisy = self._add_noise(targets, rngs.denoising())
            x = jnp.concatenate([self.labels[...][noisy.labels].astype(x.dtype), x], 1)
            reference = jnp.concatenate([jax.nn.sigmoid(logit(noisy.boxes, NEAREST)), reference], 1)
            sees = _visible(noisy.group, self.queries)
        outputs = self._decode(x, reference, memory, sizes, sees, train, rngs)
        denoised, found = _split(outputs, reference.shape[1] - self.queries)
        losses = {}
        if targets is not None:
            truth = box.center(targets["boxes"]), targets["box_labels"], targets["box_valid"]
            losses |= set_losses(found, *truth)
            losses |= {f"proposal_{name}": loss for name, loss in set_losses([proposals], *truth).items()}
            if noisy is not None:
                terms = [_denoising_losses(*one, noisy, *truth[:2]) for one in denoised]
                losses |= {f"denoising_{name}": sum(term[name] for term in terms) for name in terms[0]}
        return {"losses": losses} | ({} if train else best_pairs(*found[-1], self.detections, covered, size))

    def _propose(self, memory: jax.Array, sizes: Sizes) -> tuple[jax.Array, jax.Array]:
        """Class logits f32[B,Q,K] and boxes f32[B,Q,4] of the pixels that are surest to see a box of any class."""
        if memory.shape[1] < self.queries:
            raise InputError(
                f"dino head: queries={self.queries} of {memory.shape[1]} pixels in all levels; choose fewer queries, "
                "larger images or finer strides"
            )
        x, anchors = self.proposals(memory, sizes)
        logits = wide(self.proposal_classes(x))
        best = lax.top_k(logits.max(-1), self.queries)[1]
        x, logits = (jnp.take_along_axis(array, best[..., None], 1) for array in (x, logits))
        return logits, jax.nn.sigmoid(self.proposal_boxes(x) + jnp.asarray(anchors, logits.dtype)[best])

    def _add_noise(self, targets: dict[str, jax.Array], key: jax.Array) -> NoisyBoxes:
        boxes, labels, valid = targets["boxes"], targets["box_labels"], targets["box_valid"]
        # At least one group, however many boxes there are.
        slots = 2 * max(self.denoising, boxes.shape[1])
        drawn = _draw(key, (len(boxes), slots), self.labels.shape[0], boxes.dtype)

        def of_image(boxes, labels, valid, relabelled, other, sign, amount):
            count = jnp.maximum(valid.sum(), 1)
            groups = jnp.where(valid.any(), jnp.maximum(self.denoising // count, 1), 0)
            # All boxes, to be restored; all boxes, to be rejected; and so on for each group.
            turn, index = jnp.divmod(jnp.arange(slots), count)
            true = jnp.argsort(~valid, stable=True)[index]
            used, positive = turn < 2 * groups, turn % 2 == 0
            ymin, xmin, ymax, xmax = jnp.moveaxis(boxes[true], -1, 0)
            half = jnp.stack([xmax - xmin, ymax - ymin] * 2, -1) / 2
            shift = sign * (amount + ~positive[:, None]) * half * self.box_noise
            left, top, right, bottom = jnp.moveaxis(jnp.stack([xmin, ymin, xmax, ymax], -1) + shift, -1, 0)
            moved = box.center(box.clip(jnp.stack([top, left, bottom, right], -1), 1, 1))
            named = jnp.where(relabelled < self.label_noise / 2, other, labels[true])
            return NoisyBoxes(named, moved, true, positive & used, jnp.where(used, turn // 2, UNUSED), groups)

        return jax.vmap(of_image)(boxes, labels, valid, *drawn)

    def _decode(
        self,
        x: jax.Array,
        reference: jax.Array,
        memory: jax.Array,
        sizes: Sizes,
        sees: jax.Array | None,
        train: bool,
        rngs: nnx.Rngs | None,
    ) -> list[tuple[jax.Array, jax.Array]]:
        """Class logits f32[B,Q,K] and boxes f32[B,Q,4] (x, y, width, height) after each layer."""
        outputs, moved = [], reference
        for layer in self.decoder:
            positions = sines(reference[..., (1, 0, 2, 3)], self.width // 2).reshape(*x.shape[:2], -1)
            positions = self.place[1](jax.nn.relu(self.place[0](positions)))
            x = run_block(layer, x, positions, reference, memory, sizes, train, rngs, sees, remat=self.remat)
            seen = self.decoder_norm(x)
            # Look forward twice: this layer's loss also teaches the layer before, whose boxes it corrects.
            boxes = jax.nn.sigmoid(self.boxes(seen) + logit(moved, NEAREST))
            outputs.append((wide(self.classes(seen)), boxes))
            moved = jax.nn.sigmoid(self.boxes(x) + logit(reference, NEAREST))
            reference = lax.stop_gradient(moved)
        return outputs


def _draw(key: jax.Array, shape: tuple[int, int], classes: int, dtype: Any) -> tuple[jax.Array, ...]:
    """The noise of the denoising queries [B,T].

    f[B,T] in [0,1), whose small ones are relabelled; i32[B,T], the label they get; f[B,T,4], -1 or 1, the directions of
    xmin, ymin, xmax, ymax; f[B,T,4] in [0,1), how far.
    """
    keys = jax.random.split(key, 4)
    relabelled, amount = (jax.random.uniform(keys[i], end, dtype) for i, end in ((0, shape), (3, (*shape, 4))))
    other = jax.random.randint(keys[1], shape, 0, classes)
    return relabelled, other, jax.random.rademacher(keys[2], (*shape, 4), dtype), amount


def _visible(group: jax.Array, queries: int) -> jax.Array:
    """Which query may attend to which: groups i32[B,T] of the denoising queries -> bool[B,T+Q,T+Q]."""
    group = jnp.pad(group, ((0, 0), (0, queries)), constant_values=MATCHING)
    return (group[:, :, None] == group[:, None]) | (group[:, None] == MATCHING)


def _split(outputs: list[tuple[jax.Array, jax.Array]], count: int) -> tuple[list, list]:
    """The outputs of the first `count` queries, and those of the others."""
    first = [tuple(array[:, :count] for array in layer) for layer in outputs]
    return first, [tuple(array[:, count:] for array in layer) for layer in outputs]


def _denoising_losses(
    logits: jax.Array, boxes: jax.Array, noisy: NoisyBoxes, true: jax.Array, labels: jax.Array
) -> dict[str, jax.Array]:
    """Losses f32[B] of queries that know which box they shall find: no matching."""
    labels = jnp.take_along_axis(labels, noisy.true, 1)
    wanted = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype) * noisy.positive[..., None]
    l1, giou = box_losses(boxes, jnp.take_along_axis(true, noisy.true[..., None], 1))
    groups = jnp.maximum(noisy.groups, 1)
    return {
        "class": jnp.where(noisy.group >= 0, focal_loss(logits, wanted).sum(-1), 0).sum(1) / groups,
        "l1": jnp.where(noisy.positive, l1, 0).sum(1) / groups,
        "giou": jnp.where(noisy.positive, giou, 0).sum(1) / groups,
    }


# Published module -> ours: see pretrained.rename. All decoder layers share the predictors, which files repeat.
_NAMES = (
    *NAMES,
    (r"transformer\.decoder\.norm", r"head/decoder_norm"),
    (r"transformer\.decoder\.ref_point_head\.layers\.(\d)", r"head/place/\1"),
    (r"transformer\.tgt_embed", r"head/query"),
    (r"label_enc", r"head/labels"),
    (r"transformer\.enc_out_class_embed", r"head/proposal_classes"),
    (r"transformer\.enc_out_bbox_embed\.layers\.(\d)", r"head/proposal_boxes/layers/\1"),
    (r"class_embed\.\d+", r"head/classes"),
    (r"bbox_embed\.\d+\.layers\.(\d)", r"head/boxes/layers/\1"),
)


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict]:
    """The authors' tensors by name -> {"backbone": {name: array}, "head": {path: array}}.

    The backbone's tensors come without their prefix and are then for its own file's `translate`; the head's are in this
    file's layout. The last row of the authors' table of labels, which nothing reads, is dropped. Raises InputError with
    the names it does not know.
    """
    parts = deformable_transformer.translate(weights, _NAMES, ("query", "labels"))
    if ("labels",) in parts["head"]:
        parts["head"]["labels",] = parts["head"]["labels",][:-1]
    return parts

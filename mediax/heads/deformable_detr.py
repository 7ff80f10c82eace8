"""Deformable DETR (arXiv:2010.04159): a transformer looks at a few points of a pyramid and predicts a set of boxes.

Follows the authors' code and transformers' DeformableDetrForObjectDetection. tests/test_deformable_detr.py compares
boxes, losses and gradients with the latter.
"""

from __future__ import annotations

import math
from typing import Any

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
    logit,
    pixel_centers,
    set_losses,
    sines,
    targets_in,
)
from mediax.errors import InputError
from mediax.layers import Linear, run_block, wide
from mediax.operators import boxes as box

# `refine`: each decoder layer moves the boxes of the one before. `two_stage`: the encoder proposes the first boxes.
VARIANTS = {
    "plain": {"refine": False, "two_stage": False},
    "refined": {"refine": True, "two_stage": False},
    "two_stage": {"refine": True, "two_stage": True},
}

# For tasks/detection.py: what the losses are averaged over, and how they add up.
NORMALIZED_BY = "boxes"
LOSS_WEIGHTS = COSTS | {f"proposal_{name}": weight for name, weight in COSTS.items()}

_xavier = nnx.initializers.xavier_uniform()


class Head(nnx.Module):
    """Pyramid {stride: f[B,H/s,W/s,C_s]} -> losses and a fixed number of boxes.

    `variant` is "plain", "refined" (iterative bounding box refinement) or "two_stage"; `strides` are the levels of the
    backbone that enter, and strided convolutions add coarser ones up to `levels`. `queries` is the number of boxes
    that the decoder predicts, `detections` the number of (box, class) pairs of highest score that an image gets.

    Called as (pyramid, (H, W), targets). `targets` holds boxes f32[B,N,4] (ymin, xmin, ymax, xmax as fractions),
    box_labels i32[B,N], box_valid bool[B,N]; None predicts only. Returns
      losses: {class, l1, giou[, proposal_class, proposal_l1, proposal_giou]: f32[B]}, sums over queries and decoder
        layers: focal loss, L1 of (x, y, width, height) and generalised IoU of the boxes that the Hungarian algorithm
        matches; the proposals of all pixels are matched without regard to the class, as in the authors' code;
      boxes f32[B,D,4] in fractions, scores f32[B,D] in [0,1], labels i32[B,D].
    Parameters, boxes and losses are f32, the rest is computed in `dtype`. `remat` stores one
    array per layer for the backward pass and recomputes the rest. All images of a batch are padded alike, if at all:
    inside, boxes are fractions of the padded image, see `deformable_transformer.targets_in`.
    Raises InputError for an unknown variant, a stride that the backbone lacks, or widths that do not divide.
    """

    def __init__(
        self,
        channels: dict[int, int],
        classes: int,
        *,
        variant: str = "two_stage",
        strides: tuple[int, ...] = (8, 16, 32),
        levels: int = 4,
        width: int = 256,
        hidden: int = 1024,
        heads: int = 8,
        points: int = 4,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        queries: int = 300,
        detections: int = 100,
        dropout: float = 0.1,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if variant not in VARIANTS:
            raise InputError(f"deformable_detr has no variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
        self.refine, self.two_stage = VARIANTS[variant]["refine"], VARIANTS[variant]["two_stage"]
        self.queries, self.detections, self.width, self.remat = queries, detections, width, remat
        options = {"dtype": dtype, "rngs": rngs}

        self.levels = Levels(channels, strides, levels, width, **options)
        layer = {"heads": heads, "levels": levels, "points": points, "dropout": dropout, **options}
        self.encoder = nnx.List(Layer(width, hidden, decodes=False, **layer) for _ in range(encoder_layers))
        self.decoder = nnx.List(Layer(width, hidden, decodes=True, **layer) for _ in range(decoder_layers))
        if self.two_stage:
            self.proposals = Proposals(width, **options)
            self.place = Linear(2 * width, 2 * width, kernel_init=_xavier, **options)
            self.place_norm = nnx.LayerNorm(2 * width, epsilon=1e-5, **options)
        else:
            self.query = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (queries, 2 * width), jnp.float32))
            self.reference = Linear(width, 2, kernel_init=_xavier, **options)
        # Without refinement all layers share one predictor; the proposals of a two-stage detector have the last one.
        predictors = decoder_layers + self.two_stage if self.refine else 1
        rare = nnx.initializers.constant(-math.log(99))  # a box is of a class with probability 0.01 at first
        self.classes = nnx.List(Linear(width, classes, bias_init=rare, **options) for _ in range(predictors))
        extent = 0.0 if self.two_stage else -2.0
        self.boxes = nnx.List(BoxNetwork(width, 0.0 if i else extent, **options) for i in range(predictors))

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
        reference = jnp.broadcast_to(pixel_centers(sizes), (*memory.shape[:2], 2))
        for layer in self.encoder:
            memory = run_block(layer, memory, positions, reference, None, sizes, train, rngs, remat=self.remat)
        losses = {}
        truth = None if targets is None else (box.center(targets["boxes"]), targets["box_labels"], targets["box_valid"])
        if self.two_stage:
            if memory.shape[1] < self.queries:
                raise InputError(
                    f"deformable_detr head: queries={self.queries} of {memory.shape[1]} pixels in all levels; choose "
                    "fewer queries, larger images or finer strides"
                )
            logits, proposals = self._propose(memory, sizes)
            best = lax.top_k(logits[..., 0], self.queries)[1]
            first = lax.stop_gradient(jnp.take_along_axis(proposals, best[..., None], 1))
            content, query_positions = self._placed(jax.nn.sigmoid(first))
            reference = jax.nn.sigmoid(first)
            if truth is not None:
                true, labels, valid = truth
                every_pixel = [(logits, jax.nn.sigmoid(proposals))]
                found = set_losses(every_pixel, true, jnp.zeros_like(labels), valid)
                losses |= {f"proposal_{name}": loss for name, loss in found.items()}
        else:
            query = jnp.broadcast_to(self.query[...], (len(memory), *self.query.shape)).astype(memory.dtype)
            query_positions, content = jnp.split(query, 2, -1)
            reference = jax.nn.sigmoid(wide(self.reference(query_positions)))
        outputs = self._decode(content, query_positions, reference, memory, sizes, train, rngs)
        if truth is not None:
            losses |= set_losses(outputs, *truth)
        return {"losses": losses} | ({} if train else best_pairs(*outputs[-1], self.detections, covered, size))

    def _propose(self, memory: jax.Array, sizes: Sizes) -> tuple[jax.Array, jax.Array]:
        """Class logits f32[B,S,K] and box logits f32[B,S,4] of every pixel."""
        x, anchors = self.proposals(memory, sizes)
        return wide(self.classes[-1](x)), self.boxes[-1](x) + anchors

    def _placed(self, proposals: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Content and position of the queries, f[B,Q,C] each, from boxes f32[B,Q,4]."""
        codes = sines(proposals, self.width // 2).reshape(*proposals.shape[:2], -1)
        positions, content = jnp.split(self.place_norm(self.place(codes)), 2, -1)
        return content, positions

    def _decode(
        self,
        x: jax.Array,
        positions: jax.Array,
        reference: jax.Array,
        memory: jax.Array,
        sizes: Sizes,
        train: bool,
        rngs: nnx.Rngs | None,
    ) -> list[tuple[jax.Array, jax.Array]]:
        """Class logits f32[B,Q,K] and boxes f32[B,Q,4] (x, y, width, height) after each layer."""
        outputs = []
        for index, layer in enumerate(self.decoder):
            x = run_block(layer, x, positions, reference, memory, sizes, train, rngs, remat=self.remat)
            predictor = index if self.refine else 0
            moved = self.boxes[predictor](x)
            start = logit(reference)
            start = jnp.pad(start, ((0, 0), (0, 0), (0, 4 - start.shape[-1])))
            boxes = jax.nn.sigmoid(moved + start)
            outputs.append((wide(self.classes[predictor](x)), boxes))
            if self.refine:
                reference = lax.stop_gradient(boxes)
        return outputs


# Published module -> ours: see pretrained.rename; the authors' names, then transformers'.
_NAMES = (
    *NAMES,
    (r"(?:transformer|model)\.reference_points", r"head/reference"),
    (r"query_embed|model\.query_position_embeddings", r"head/query"),
    (r"(?:transformer|model)\.pos_trans", r"head/place"),
    (r"(?:transformer|model)\.pos_trans_norm", r"head/place_norm"),
    (r"class_embed\.(\d+)", r"head/classes/\1"),
    (r"bbox_embed\.(\d+)\.layers\.(\d+)", r"head/boxes/\1/layers/\2"),
)


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict]:
    """The authors' or transformers' tensors by name -> {"backbone": {name: array}, "head": {path: array}}.

    The backbone's tensors come without their prefix and are then for its own file's `translate`; the head's are in this
    file's layout. Files of "plain" repeat the one predictor for each layer; all but the first are dropped by the
    caller's warm start. Raises InputError with the names it does not know.
    """
    return deformable_transformer.translate(weights, _NAMES, ("query",))

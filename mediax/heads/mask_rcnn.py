"""Mask R-CNN (arXiv:1703.06870) on a feature pyramid (arXiv:1612.03144); without its masks, Faster R-CNN.

Follows torchvision's maskrcnn_resnet50_fpn, with shapes that do not depend on the data: a fixed number of proposals, of
sampled regions and of detections, each with a mask of those that exist. tests/test_mask_rcnn.py compares detections,
losses and gradients with torchvision.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from mediax import pretrained
from mediax.errors import InputError
from mediax.layers import Conv, nearest, run_block, wide
from mediax.operators import boxes as box
from mediax.operators.nms import nms
from mediax.operators.roi_align import pyramid_level, roi_align

# For tasks/detection.py: what the losses are averaged over, what else is learned, and how the losses add up.
NORMALIZED_BY = "images"
MASKS = True  # it learns a mask in each box, unless its option `masks` is False
LOSS_WEIGHTS = dict.fromkeys(("objectness", "proposal_box", "class", "box", "mask"), 1.0)

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1
REGION_WEIGHTS = (10.0, 5.0)  # of the offsets that the second stage predicts
SMALLEST_PROPOSAL, SMALLEST_DETECTION = 1e-3, 1e-2  # pixels

_he_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_he_normal = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class FeaturePyramid(nnx.Module):
    """FPN: {stride: f[B,H/s,W/s,C_s]} -> {stride: f[B,H/s,W/s,width]} with one coarser level added by subsampling."""

    def __init__(self, channels: dict[int, int], width: int, *, dtype: Any, rngs: nnx.Rngs):
        options = {"kernel_init": _he_uniform, "dtype": dtype, "rngs": rngs}
        self.strides = tuple(sorted(channels))
        self.lateral = nnx.List(Conv(channels[stride], width, 1, **options) for stride in self.strides)
        self.output = nnx.List(Conv(width, width, 3, padding=1, **options) for _ in self.strides)

    def __call__(self, pyramid: dict[int, jax.Array]) -> dict[int, jax.Array]:
        levels: dict[int, jax.Array] = {}
        merged = None
        for stride, lateral, output in reversed(list(zip(self.strides, self.lateral, self.output, strict=True))):
            x = lateral(pyramid[stride])
            merged = x if merged is None else x + nearest(merged, x.shape[1:3])
            levels[stride] = output(merged)
        levels = {stride: levels[stride] for stride in self.strides}
        coarsest = self.strides[-1]
        return levels | {2 * coarsest: levels[coarsest][:, ::2, ::2]}


class RegionProposals(nnx.Module):
    """RPN: levels f[B,h,w,width] -> objectness logits f32[B,A] and offsets f32[B,A,4] of all levels' anchors."""

    def __init__(self, width: int, anchors: int, *, dtype: Any, rngs: nnx.Rngs):
        options = {"kernel_init": nnx.initializers.normal(0.01), "dtype": dtype, "rngs": rngs}
        self.conv = Conv(width, width, 3, padding=1, **options)
        self.objectness = Conv(width, anchors, 1, **options)
        self.offsets = Conv(width, 4 * anchors, 1, **options)

    def __call__(self, levels: dict[int, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden = [jax.nn.relu(self.conv(x)) for x in levels.values()]
        batch = hidden[0].shape[0]
        logits = jnp.concatenate([self.objectness(x).reshape(batch, -1) for x in hidden], 1)
        offsets = jnp.concatenate([self.offsets(x).reshape(batch, -1, 4) for x in hidden], 1)
        return wide(logits), wide(offsets)


class BoxBranch(nnx.Module):
    """Pooled regions f[B,R,7,7,width] -> class logits f32[B,R,1+K], background first, and offsets f32[B,R,1+K,4]."""

    def __init__(self, width: int, size: int, hidden: int, classes: int, *, dtype: Any, rngs: nnx.Rngs):
        options = {"kernel_init": _he_uniform, "dtype": dtype, "rngs": rngs}
        self.hidden = nnx.List(
            [nnx.Linear(size * size * width, hidden, **options), nnx.Linear(hidden, hidden, **options)]
        )
        self.classes = nnx.Linear(hidden, 1 + classes, **options)
        self.offsets = nnx.Linear(hidden, 4 * (1 + classes), **options)

    def __call__(self, regions: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = regions.reshape(*regions.shape[:2], -1)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        return wide(self.classes(x)), wide(self.offsets(x)).reshape(*x.shape[:2], -1, 4)


class MaskBranch(nnx.Module):
    """Pooled regions f[B,R,P,P,width] -> logits f32[B,R,2P,2P,1+K], one mask for each class."""

    def __init__(self, width: int, classes: int, *, dtype: Any, rngs: nnx.Rngs):
        options = {"kernel_init": _he_normal, "dtype": dtype, "rngs": rngs}
        self.convs = nnx.List(Conv(width, width, 3, padding=1, **options) for _ in range(4))
        # A transposed 2x2 convolution of stride 2 writes four pixels from each one.
        self.enlarge = Conv(width, width, 2, **options)
        self.masks = Conv(width, 1 + classes, 1, **options)

    def __call__(self, regions: jax.Array) -> jax.Array:
        x = regions.reshape(-1, *regions.shape[2:])
        for conv in self.convs:
            x = jax.nn.relu(conv(x))
        kernel, bias = (array[...].astype(x.dtype) for array in (self.enlarge.kernel, self.enlarge.bias))
        x = jnp.einsum("nhwi,yxoi->nhywxo", x, kernel)
        x = jax.nn.relu(x.reshape(x.shape[0], 2 * x.shape[1], 2 * x.shape[3], -1) + bias)
        return wide(self.masks(x)).reshape(*regions.shape[:2], *x.shape[1:3], -1)


class Head(nnx.Module):
    """Pyramid {stride: f[B,H/s,W/s,C_s]} -> losses and detections of boxes, and of a mask in each box.

    `classes` is the number of classes without the background; `masks` False makes it Faster R-CNN. There is one anchor
    size (pixels, the root of the area) for each stride of the backbone and one more, and `aspects` (height / width) of
    each. The `candidates` best anchors of a level become at most `proposals` regions of an image by non-maximum
    suppression; in training there are more of both, `training_candidates` and `training_proposals`. Of these and the
    true boxes `sampled` learn, `foreground` of them on a box at most; `anchors_sampled` (half of them foreground) are
    the anchors that learn. `detections` is the fixed number of boxes that an image gets; they are chosen among the
    `scored` best pairs of region and class, which bounds the memory of suppression (scored^2 bytes an image) and
    changes nothing while fewer pairs reach `lowest_score`.

    Called as (pyramid, (H, W), targets); the pyramid may reach beyond the image, below and on the right. `targets`
    holds boxes f32[B,N,4] (ymin, xmin, ymax, xmax as fractions), box_labels i32[B,N], box_valid bool[B,N] and, to train
    masks, box_masks u8[B,N,H,O] (see mediax/batch.py) and mask_valid bool[B,K], which classes have masks; None predicts
    only. Returns
      losses: {objectness, proposal_box, class, box[, mask]: f32[B]}, each as torchvision gives it for an image alone;
      boxes f32[B,D,4] in fractions, scores f32[B,D] in [0,1] and 0 past the last, labels i32[B,D];
      masks: f32[B,D,28,28], the probability of the label's mask inside the box.
    The sampling draws from `rngs.sampling()`. Parameters, boxes and losses are f32, the convolutions in `dtype`.
    `remat` stores what enters a branch for the backward pass and recomputes what is inside.
    A box that no anchor touches gives no anchor, where torchvision would take all anchors that touch no box.
    Raises InputError if the anchor sizes do not fit the pyramid.
    """

    def __init__(
        self,
        channels: dict[int, int],
        classes: int,
        *,
        masks: bool = True,
        width: int = 256,
        hidden: int = 1024,
        anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512),
        aspects: tuple[float, ...] = (0.5, 1.0, 2.0),
        candidates: int = 1000,
        proposals: int = 1000,
        training_candidates: int = 2000,
        training_proposals: int = 2000,
        anchors_sampled: int = 256,
        sampled: int = 512,
        foreground: float = 0.25,
        scored: int = 1000,
        lowest_score: float = 0.05,
        detections: int = 100,
        dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(anchor_sizes) != len(channels) + 1:
            raise InputError(
                f"mask_rcnn head: {len(anchor_sizes)} anchor_sizes for a backbone of strides {sorted(channels)}; "
                f"expected {len(channels) + 1}, one for each stride and one for the level above them"
            )
        self.anchor_sizes, self.aspects = tuple(anchor_sizes), tuple(aspects)
        self.candidates, self.proposals, self.detections = candidates, proposals, detections
        self.training_candidates, self.training_proposals = training_candidates, training_proposals
        self.anchors_sampled, self.sampled, self.foreground = anchors_sampled, sampled, foreground
        self.scored, self.lowest_score, self.remat = scored, lowest_score, remat
        self.box_size, self.mask_size = 7, 14
        options = {"dtype": dtype, "rngs": rngs}
        self.fpn = FeaturePyramid(channels, width, **options)
        self.rpn = RegionProposals(width, len(self.aspects), **options)
        self.box_branch = BoxBranch(width, self.box_size, hidden, classes, **options)
        self.mask_branch = MaskBranch(width, classes, **options) if masks else nnx.data(None)

    def __call__(
        self,
        pyramid: dict[int, jax.Array],
        size: tuple[int, int],
        targets: dict[str, jax.Array] | None = None,
        *,
        train: bool,
        rngs: nnx.Rngs | None,
    ) -> dict[str, Any]:
        levels = self.fpn(pyramid)
        logits, offsets = run_block(self.rpn, levels, remat=self.remat)
        anchors = [
            _anchors(x.shape[1:3], step, anchor, self.aspects)
            for x, step, anchor in zip(levels.values(), _steps(levels), self.anchor_sizes, strict=True)
        ]
        proposals, exists = self._propose(lax.stop_gradient(logits), lax.stop_gradient(offsets), anchors, size, train)
        levels.pop(max(levels))  # of the proposals' network alone
        outputs: dict[str, Any] = {"losses": {}}
        if targets is not None:
            pixels = jnp.array([*size, *size], jnp.float32)
            targets = box.at_least_one(targets)
            truth = targets | {"boxes": targets["boxes"] * pixels}
            keys = jax.random.split(rngs.sampling(), 2 * len(logits)).reshape(2, -1)
            anchor_losses = jax.vmap(self._anchor_losses, (0, 0, None, 0, 0, 0))
            outputs["losses"] |= anchor_losses(
                logits, offsets, jnp.concatenate(anchors), truth["boxes"], truth["box_valid"], keys[0]
            )
            outputs["losses"] |= self._region_losses(levels, proposals, exists, truth, size, keys[1])
        if not train:
            outputs |= self._detect(levels, proposals, exists, size)
        return outputs

    def _propose(
        self, logits: jax.Array, offsets: jax.Array, anchors: list[np.ndarray], size: tuple[int, int], train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Boxes f32[B,P,4] in pixels, best first, and bool[B,P], False past the last."""
        candidates = self.training_candidates if train else self.candidates
        proposals = self.training_proposals if train else self.proposals
        first = np.cumsum([0, *map(len, anchors)])
        anchor_of = jnp.concatenate(anchors)

        def propose(logits: jax.Array, offsets: jax.Array) -> tuple[jax.Array, jax.Array]:
            best = [
                start + lax.top_k(logits[start : start + len(level)], min(candidates, len(level)))[1]
                for start, level in zip(first, anchors)
            ]
            level = jnp.repeat(jnp.arange(len(best)), np.array([len(index) for index in best]))
            best = jnp.concatenate(best)
            boxes = box.clip(box.decode(offsets[best], anchor_of[best]), *size)
            index, exists = nms(
                boxes,
                jax.nn.sigmoid(logits[best]),
                iou_threshold=0.7,
                labels=level,
                valid=_at_least(boxes, SMALLEST_PROPOSAL),
                max_boxes=proposals,
            )
            return boxes[index], exists

        return jax.vmap(propose)(logits, offsets)

    def _anchor_losses(
        self,
        logits: jax.Array,
        offsets: jax.Array,
        anchors: jax.Array,
        true: jax.Array,
        valid: jax.Array,
        key: jax.Array,
    ) -> dict[str, jax.Array]:
        matched, state = _assign(anchors, true, valid, high=0.7, low=0.3, best_of_each=True)
        learns = _sample(state, self.anchors_sampled, 0.5, key)
        positive = learns & (state == FOREGROUND)
        objectness = optax.sigmoid_binary_cross_entropy(logits, positive.astype(logits.dtype))
        distance = _smooth_l1(offsets, _encode_where(positive, true[matched], anchors))
        count = jnp.maximum(learns.sum(), 1)
        return {
            "objectness": jnp.where(learns, objectness, 0).sum() / count,
            "proposal_box": jnp.where(positive, distance, 0).sum() / count,
        }

    def _region_losses(
        self,
        levels: dict[int, jax.Array],
        proposals: jax.Array,
        exists: jax.Array,
        truth: dict[str, jax.Array],
        image: tuple[int, int],
        keys: jax.Array,
    ) -> dict[str, jax.Array]:
        # The true boxes are proposals too: early in training nothing else overlaps them.
        regions = jnp.concatenate([proposals, truth["boxes"]], 1)
        exists = jnp.concatenate([exists, truth["box_valid"]], 1)
        size = min(self.sampled, regions.shape[1])

        def choose(regions, exists, true, valid, key):
            matched, state = _assign(regions, true, valid, high=0.5, low=0.5)
            state = jnp.where(exists, state, IGNORED)
            learns = _sample(state, self.sampled, self.foreground, key)
            # Foreground first, so that the mask branch need not see the others.
            index = jnp.argsort(jnp.where(learns, -state, 1), stable=True)[:size]
            return regions[index], matched[index], state[index], learns[index]

        regions, matched, state, learns = jax.vmap(choose)(regions, exists, truth["boxes"], truth["box_valid"], keys)
        regions = lax.stop_gradient(regions)
        positive = learns & (state == FOREGROUND)
        labels = jnp.where(positive, 1 + jnp.take_along_axis(truth["box_labels"], matched, 1), 0)
        true = jnp.take_along_axis(truth["boxes"], matched[..., None], 1)
        pooled = self._pool(levels, regions, self.box_size)
        logits, offsets = run_block(self.box_branch, pooled, remat=self.remat)
        offsets = jnp.take_along_axis(offsets, labels[..., None, None], 2)[:, :, 0]
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        distance = _smooth_l1(offsets, _encode_where(positive, true, regions, REGION_WEIGHTS))
        count = jnp.maximum(learns.sum(1), 1)
        losses = {
            "class": jnp.where(learns, entropy, 0).sum(1) / count,
            "box": jnp.where(positive, distance, 0).sum(1) / count,
        }
        if self.mask_branch is not None and "box_masks" in truth:
            most = max(int(self.sampled * self.foreground), 1)
            positive, regions, matched, labels = (x[:, :most] for x in (positive, regions, matched, labels))
            losses["mask"] = self._mask_loss(levels, regions, matched, labels, positive, truth, image[1])
        return losses

    def _mask_loss(
        self,
        levels: dict[int, jax.Array],
        regions: jax.Array,
        matched: jax.Array,
        labels: jax.Array,
        positive: jax.Array,
        truth: dict[str, jax.Array],
        width: int,
    ) -> jax.Array:
        logits = run_block(self.mask_branch, self._pool(levels, regions, self.mask_size), remat=self.remat)
        logits = jnp.take_along_axis(logits, labels[..., None, None, None], 4)[..., 0]
        structure = jnp.maximum(labels - 1, 0)
        wanted = _mask_in_region(truth["box_masks"], width, matched, regions, logits.shape[2])
        entropy = optax.sigmoid_binary_cross_entropy(logits, wanted).mean((2, 3))
        known = positive & jnp.take_along_axis(truth["mask_valid"], structure, 1)
        return jnp.where(known, entropy, 0).sum(1) / jnp.maximum(known.sum(1), 1)

    def _detect(
        self, levels: dict[int, jax.Array], proposals: jax.Array, exists: jax.Array, size: tuple[int, int]
    ) -> dict[str, jax.Array]:
        logits, offsets = self.box_branch(self._pool(levels, proposals, self.box_size))
        scores = jax.nn.softmax(logits)[:, :, 1:]
        scores = jnp.where(exists[..., None], scores, 0).reshape(len(scores), -1)
        classes = logits.shape[-1] - 1

        def choose(scores, offsets, proposals):
            scores, pair = lax.top_k(scores, min(self.scored, len(scores)))
            region, label = pair // classes, pair % classes
            boxes = box.clip(box.decode(offsets[region, 1 + label], proposals[region], REGION_WEIGHTS), *size)
            valid = (scores > self.lowest_score) & _at_least(boxes, SMALLEST_DETECTION)
            index, kept = nms(boxes, scores, iou_threshold=0.5, labels=label, valid=valid, max_boxes=self.detections)
            return jnp.where(kept[:, None], boxes[index], 0), jnp.where(kept, scores[index], 0), label[index]

        boxes, scores, labels = jax.vmap(choose)(scores, offsets, proposals)
        fractions = boxes / jnp.array([*size, *size], boxes.dtype)
        found = {"boxes": fractions, "scores": scores, "labels": labels.astype(jnp.int32)}
        if self.mask_branch is not None:
            masks = self.mask_branch(self._pool(levels, boxes, self.mask_size))
            masks = jnp.take_along_axis(masks, 1 + labels[..., None, None, None], 4)[..., 0]
            found["masks"] = jax.nn.sigmoid(masks)
        return found

    def _pool(self, levels: dict[int, jax.Array], regions: jax.Array, size: int) -> jax.Array:
        level = pyramid_level(regions, tuple(levels))
        return roi_align(levels, regions, size, level=level, sampling_ratio=2, aligned=False)


def _steps(levels: dict[int, jax.Array]) -> list[tuple[int, int]]:
    """How far apart in pixels (y, x) the anchors of each level are: its stride.

    Of the level that subsampling added it is less where that rounded up, as in torchvision, whose weights know it so.
    """
    *strides, added = levels
    pixels = (strides[-1] * cells for cells in levels[strides[-1]].shape[1:3])
    last = tuple(length // cells for length, cells in zip(pixels, levels[added].shape[1:3], strict=True))
    return [*((stride, stride) for stride in strides), last]


def _anchors(grid: tuple[int, int], step: tuple[int, int], size: float, aspects: tuple[float, ...]) -> np.ndarray:
    """Boxes f32[h*w*aspects,4] in pixels around the points of a grid, rounded to whole pixels as torchvision does."""
    heights = size * np.sqrt(np.array(aspects, np.float32))
    widths = size / np.sqrt(np.array(aspects, np.float32))
    around = np.round(np.stack([-heights, -widths, heights, widths], 1) / 2)
    y, x = (np.arange(cells) * pixels for cells, pixels in zip(grid, step, strict=True))
    y, x = np.meshgrid(y, x, indexing="ij")
    points = np.stack([y, x, y, x], -1).reshape(-1, 1, 4)
    return (points + around).reshape(-1, 4).astype(np.float32)


def _assign(
    candidates: jax.Array, true: jax.Array, valid: jax.Array, *, high: float, low: float, best_of_each: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The true box that each candidate overlaps most, i32[A], and FOREGROUND, BACKGROUND or IGNORED, i32[A].

    Foreground from an IoU of `high`, background below `low`; with `best_of_each` also the candidates that no other one
    surpasses for some true box.
    """
    iou = jnp.where(valid[:, None], box.overlap(true[:, None], candidates[None])[0], -1)
    best = iou.max(0)
    state = jnp.where(best >= high, FOREGROUND, jnp.where(best < low, BACKGROUND, IGNORED))
    if best_of_each:
        highest = iou.max(1, keepdims=True)
        state = jnp.where(((iou == highest) & (highest > 0)).any(0), FOREGROUND, state)
    return iou.argmax(0), state


def _sample(state: jax.Array, size: int, foreground: float, key: jax.Array) -> jax.Array:
    """Draws `size` of the candidates, at most that share of them foreground, the others background: bool[A]."""
    order = jax.random.permutation(key, len(state))
    shuffled = state[order]
    positive, negative = shuffled == FOREGROUND, shuffled == BACKGROUND
    most = jnp.minimum(positive.sum(), int(size * foreground))
    chosen = (positive & (jnp.cumsum(positive) <= most)) | (negative & (jnp.cumsum(negative) <= size - most))
    return jnp.zeros(len(state), bool).at[order].set(chosen)


def _mask_in_region(masks: jax.Array, width: int, matched: jax.Array, regions: jax.Array, size: int) -> jax.Array:
    """The mask of the matched box, of u8[B,N,H,O] `width` pixels wide, as each region sees it: f32[B,R,size,size]."""

    def of_image(masks, matched, regions):
        def of_region(index, region):
            mask = jnp.unpackbits(masks[index], axis=-1, count=width).astype(regions.dtype)
            return roi_align({1: mask[None, :, :, None]}, region[None, None], size, sampling_ratio=-1, aligned=False)

        # One region at a time: a mask for every region at once would not fit.
        return lax.map(lambda row: of_region(*row), (matched, regions))[:, 0, 0, :, :, 0]

    return lax.stop_gradient(jax.vmap(of_image)(masks, matched, regions))


def _encode_where(positive: jax.Array, true: jax.Array, reference: jax.Array, weights=(1.0, 1.0)) -> jax.Array:
    # Elsewhere a box may be padding without extent, whose logarithm would poison the gradient.
    unit = jnp.array([0.0, 0.0, 1.0, 1.0], reference.dtype)
    true, reference = (jnp.where(positive[..., None], boxes, unit) for boxes in (true, reference))
    return box.encode(true, reference, weights)


def _smooth_l1(predicted: jax.Array, wanted: jax.Array, beta: float = 1 / 9) -> jax.Array:
    """f[...,4] twice -> f[...]: quadratic below `beta`, linear above it, summed over the four coordinates."""
    return (optax.huber_loss(predicted, wanted, delta=beta) / beta).sum(-1)


def _at_least(boxes: jax.Array, length: float) -> jax.Array:
    return (boxes[..., 2:] - boxes[..., :2] >= length).all(-1)


# Published module -> ours: see pretrained.rename. The last alternatives are the names of torchvision's own files, which
# are older than its code.
_NAMES = (
    (r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?", r"head/fpn/lateral/\1"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?", r"head/fpn/output/\1"),
    (r"rpn\.head\.conv(?:\.0\.0)?", r"head/rpn/conv"),
    (r"rpn\.head\.cls_logits", r"head/rpn/objectness"),
    (r"rpn\.head\.bbox_pred", r"head/rpn/offsets"),
    (r"roi_heads\.box_head\.fc6", r"head/box_branch/hidden/0"),
    (r"roi_heads\.box_head\.fc7", r"head/box_branch/hidden/1"),
    (r"roi_heads\.box_predictor\.cls_score", r"head/box_branch/classes"),
    (r"roi_heads\.box_predictor\.bbox_pred", r"head/box_branch/offsets"),
    (r"roi_heads\.mask_head\.(\d)\.0", r"head/mask_branch/convs/\1"),
    *((rf"roi_heads\.mask_head\.mask_fcn{index + 1}", rf"head/mask_branch/convs/{index}") for index in range(4)),
    (r"roi_heads\.mask_predictor\.conv5_mask", r"head/mask_branch/enlarge"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits", r"head/mask_branch/masks"),
)
_BODY = "backbone.body."


def translate(weights: dict[str, np.ndarray]) -> dict[str, dict]:
    """torchvision's tensors by name -> {"backbone": {name: array}, "head": {path: array}}.

    The backbone's tensors come without their prefix and are then for its own file's `translate`; the head's are in this
    file's layout. Raises InputError with the names it does not know.
    """
    backbone = {name.removeprefix(_BODY): array for name, array in weights.items() if name.startswith(_BODY)}
    own = {name: array for name, array in weights.items() if not name.startswith(_BODY)}
    head = pretrained.rename(own, _NAMES)["head"]
    flattened = ("box_branch", "hidden", 0, "kernel")
    if flattened in head:  # torch flattens channels first
        kernel = head[flattened]
        channels = len(kernel) // 49
        head[flattened] = kernel.reshape(channels, 7, 7, -1).transpose(1, 2, 0, 3).reshape(kernel.shape)
    return {"backbone": backbone, "head": head}

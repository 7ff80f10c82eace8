"""Non-maximum suppression: of boxes that overlap, only the best remains, or the others' scores fall."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mediax.operators.boxes import overlap


def nms(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    iou_threshold: float,
    max_boxes: int | None = None,
    labels: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Greedy suppression: best first, a box drops those that overlap it by more than the threshold.

    boxes: f32[N,4], two opposite corners (y before x or x before y), in any unit; scores: f32[N]; labels: i32[N], boxes
    of different labels do not meet; valid: bool[N], False on padding -> indices i32[M] by falling score, and bool[M],
    False past the last box that is left (its index is 0). M is `max_boxes`, or N. Equals torchvision.ops.nms, ties (the
    earlier box first) and boxes without an area (never dropped, and dropping none) included; with labels,
    torchvision.ops.batched_nms. Boxes whose score is NaN count as padding; no gradient. Under vmap, batches.

    Memory: N*N bytes. All boxes are decided at once, again and again until nothing changes: about as often as the
    longest chain of boxes that drop each other is long, a few times in practice, and never more than N.
    """
    order = jnp.argsort(-scores, stable=True)
    boxes = jnp.asarray(boxes)[order]
    candidates = _usable(scores, valid)[order]
    # The threshold is a double, the overlap a float: rounding the threshold down keeps `>` what it is for doubles.
    drops = overlap(boxes[:, None], boxes)[0] > _round_down(iou_threshold, boxes.dtype)
    if labels is not None:
        labels = jnp.asarray(labels)[order]
        drops &= labels[:, None] == labels
    drops = jnp.triu(drops, 1)  # [better, worse]

    def decide(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept, _ = state
        again = candidates & ~jnp.any(drops & kept[:, None], 0)
        return again, jnp.any(again != kept)

    kept, _ = lax.while_loop(lambda state: state[1], decide, (candidates, jnp.any(candidates)))
    best = jnp.argsort(~kept, stable=True)[:max_boxes]
    remains = kept[best]
    indices = jnp.where(remains, order[best], 0).astype(jnp.int32)
    missing = 0 if max_boxes is None else max(max_boxes - len(best), 0)
    return jnp.pad(indices, (0, missing)), jnp.pad(remains, (0, missing))


def soft_nms(
    boxes: jax.Array,
    scores: jax.Array,
    *,
    method: str = "gaussian",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.001,
    max_boxes: int | None = None,
    labels: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Soft-NMS (arXiv:1704.04503): each box that is taken, best first, lowers the scores of those that overlap it.

    Arguments as of `nms` -> indices i32[M], the lowered scores f32[M], bool[M]; where it is False, the others are 0.
    A score is multiplied by exp(-IoU^2 / sigma) ("gaussian"), or by 1 - IoU where the overlap exceeds `iou_threshold`
    ("linear"). It ends when no score reaches `min_score`. Memory: O(N); M steps, one after the other.
    Raises ValueError for another method.
    """
    if method not in ("gaussian", "linear"):
        raise ValueError(f"soft_nms has the methods 'gaussian' and 'linear', not {method!r}.")
    count = len(scores)
    steps = count if max_boxes is None else max_boxes
    if count == 0:
        return jnp.zeros(steps, jnp.int32), jnp.zeros(steps, scores.dtype), jnp.zeros(steps, bool)

    def take(scores: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        best = jnp.argmax(scores)
        shared, _ = overlap(boxes[best], boxes)
        if method == "gaussian":
            factor = jnp.exp(-jnp.square(shared) / sigma)
        else:
            factor = jnp.where(shared > iou_threshold, 1 - shared, 1)
        if labels is not None:
            factor = jnp.where(labels == labels[best], factor, 1)
        remains = scores[best] >= min_score
        taken = jnp.where(remains, best, 0).astype(jnp.int32), jnp.where(remains, scores[best], 0), remains
        # Only finite scores fall: zero times minus infinity would be NaN.
        return jnp.where(jnp.isfinite(scores), scores * factor, scores).at[best].set(-jnp.inf), taken

    boxes, labels = jnp.asarray(boxes), None if labels is None else jnp.asarray(labels)
    return lax.scan(take, jnp.where(_usable(scores, valid), scores, -jnp.inf), length=steps)[1]


def _usable(scores: jax.Array, valid: jax.Array | None) -> jax.Array:
    return ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)


def _round_down(number: float, dtype: jnp.dtype) -> np.floating:
    rounded = np.dtype(dtype).type(number)
    return rounded if float(rounded) <= number else np.nextafter(rounded, np.dtype(dtype).type(-np.inf))

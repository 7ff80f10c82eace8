"""Suppression equals torchvision's, order and ties included; soft-NMS equals the paper's loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import compare, operator_cases

from mediax.operators.nms import nms, soft_nms

GOLDEN = compare.load("operators")
BOXES, SCORES, LABELS = operator_cases.crowd()
run_nms = jax.jit(nms, static_argnames=("iou_threshold", "max_boxes"))
run_soft_nms = jax.jit(soft_nms, static_argnames=("method", "max_boxes"))


@pytest.mark.parametrize("threshold", operator_cases.THRESHOLDS)
def test_equals_torchvision(threshold):
    expected = GOLDEN[f"suppression/{threshold}/nms"]
    indices, remains = run_nms(BOXES, SCORES, iou_threshold=threshold)
    np.testing.assert_array_equal(indices[: len(expected)], expected)
    np.testing.assert_array_equal(remains, np.arange(len(SCORES)) < len(expected))
    assert not indices[len(expected) :].any()


@pytest.mark.parametrize("threshold", operator_cases.THRESHOLDS)
def test_by_class_equals_torchvision(threshold):
    """torchvision's order of equal scores is not that of their indices: compare as a set, and the scores in order."""
    expected = GOLDEN[f"suppression/{threshold}/batched"]
    indices, remains = run_nms(BOXES, SCORES, iou_threshold=threshold, labels=LABELS)
    np.testing.assert_array_equal(np.sort(indices[remains]), np.sort(expected))
    np.testing.assert_array_equal(SCORES[indices[remains]], SCORES[expected])


def greedy(boxes, scores, threshold):
    """The definition, one box after the other."""
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if all(overlap(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


def overlap(first, second):
    height, width = (max(min(first[2 + i], second[2 + i]) - max(first[i], second[i]), 0) for i in range(2))
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - height * width
    return height * width / union if union else 0.0


def test_batches_pads_and_truncates():
    rng = np.random.default_rng(1)
    boxes = rng.uniform(0, 20, (3, 50, 4))
    boxes[..., 2:] = boxes[..., :2] + rng.uniform(0.5, 12, (3, 50, 2))
    boxes, scores = boxes.astype(np.float32), rng.random((3, 50), np.float32)
    scores[:, 45:] = 2  # better than all, and padding
    valid = np.arange(50) < 45
    run = jax.jit(jax.vmap(lambda boxes, scores: nms(boxes, scores, iou_threshold=0.4, max_boxes=7, valid=valid)))
    indices, remains = run(boxes, scores)
    assert remains.all() and indices.shape == (3, 7)
    for row in range(3):
        np.testing.assert_array_equal(indices[row], greedy(boxes[row, :45], scores[row, :45], 0.4)[:7])


def test_a_chain_is_decided_from_its_best_end():
    """Each box drops the next one only if it is not dropped itself: every second one remains."""
    start = jnp.arange(60.0)
    boxes = jnp.stack([start, jnp.zeros(60), start + 2, jnp.ones(60)], -1)
    indices, remains = run_nms(boxes, -start, iou_threshold=0.3)
    np.testing.assert_array_equal(indices[remains], np.arange(0, 60, 2))


@pytest.mark.parametrize("suppress", [partial(run_nms, iou_threshold=0.5), run_soft_nms])
def test_degenerate_input(suppress):
    for count in (0, 2):  # none, and none that is valid
        indices, *_, remains = suppress(
            jnp.zeros((count, 4)), jnp.ones(count), max_boxes=3, valid=jnp.zeros(count, bool)
        )
        assert not remains.any() and not indices.any() and indices.shape == (3,)
    boxes = jnp.array([[0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 5, 5], [5, 5, 5, 5], [9, 9, 8, 8]], jnp.float32)
    indices, *_, remains = suppress(boxes, jnp.array([np.nan, 0.5, 0.4, 0.3, 0.2]))
    np.testing.assert_array_equal(indices[remains], [1, 2, 3, 4])


def bodla(boxes, scores, method, threshold, sigma, min_score):
    """Soft-NMS as the paper's figure 2 gives it."""
    scores, left, taken = scores.astype(np.float64), list(range(len(scores))), []
    while left:
        best = max(left, key=lambda index: scores[index])
        if scores[best] < min_score:
            break
        taken.append((best, scores[best]))
        left.remove(best)
        for index in left:
            shared = overlap(boxes[best], boxes[index])
            if method == "gaussian":
                scores[index] *= np.exp(-(shared**2) / sigma)
            elif shared > threshold:
                scores[index] *= 1 - shared
    return taken


@pytest.mark.parametrize("method", ["gaussian", "linear"])
def test_soft_nms_equals_the_paper(method):
    boxes = BOXES[:40].astype(np.float64)
    scores = np.random.default_rng(0).permutation(np.linspace(0.1, 1, 40)).astype(np.float32)
    expected = bodla(boxes, scores, method, 0.3, 0.5, 0.05)
    indices, lowered, remains = run_soft_nms(boxes.astype(np.float32), scores, method=method, min_score=0.05)
    assert 5 < len(expected) < 40
    np.testing.assert_array_equal(indices[remains], [index for index, _ in expected])
    np.testing.assert_allclose(lowered[remains], [score for _, score in expected], rtol=1e-5)


def test_soft_nms_keeps_labels_apart_and_refuses_unknown_methods():
    boxes, scores = jnp.array([[0.0, 0, 1, 1]] * 3), jnp.array([0.9, 0.8, 0.7])
    _, lowered, _ = run_soft_nms(boxes, scores, labels=jnp.array([0, 1, 0]))
    np.testing.assert_allclose(lowered, [0.9, 0.8, 0.7 * np.exp(-2)], rtol=1e-6)
    with pytest.raises(ValueError, match="'hard'"):
        soft_nms(boxes, scores, method="hard")

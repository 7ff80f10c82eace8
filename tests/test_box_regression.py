"""The box regression task: which box is the true one, losses against formulas, metrics against a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sheets import samples_of

from mediax import figures
from mediax.annotations import box_iou, boxes_to_fractions, masks_to_boxes
from mediax.errors import InputError
from mediax.tasks.box_regression import Task

NAMES = ("Lungs", "Heart", "Body")
TASK = Task("chest/boxes", structures=NAMES)
BOXED = Task("chest/boxes", box_classes=NAMES)
RNG = np.random.default_rng(0)
NAN = np.nan


def make_batch(rows=4, size=(12, 9)):
    masks = np.zeros((rows, *size, 3), np.uint8)
    for row, k in np.ndindex(rows, 3):
        y, x = RNG.integers(0, 5, 2)
        masks[row, y : y + RNG.integers(1, 8), x : x + RNG.integers(1, 5), k] = 1
    masks[1, :, :, 1] = 0  # an empty mask has no box
    known = np.ones((rows, 3), bool)
    known[2, 0] = False
    return {"masks": masks, "mask_valid": known, "valid": np.ones(rows, bool), "image": np.zeros((rows, *size, 1))}


def random_boxes(shape):
    low = RNG.random((*shape, 2)) * 0.5
    return np.concatenate([low, low + 0.05 + 0.4 * RNG.random((*shape, 2))], -1).astype(np.float32)


def true_boxes(batch):
    boxes = np.stack([boxes_to_fractions(masks_to_boxes(masks), *masks.shape[:2]) for masks in batch["masks"]])
    return np.where(batch["mask_valid"][..., None], boxes, NAN)


def test_the_box_of_a_structure_is_the_one_around_its_mask():
    batch = make_batch()
    targets = jax.device_get(jax.jit(TASK.targets)(batch))
    np.testing.assert_allclose(targets["boxes"], true_boxes(batch), rtol=1e-6)
    assert TASK.count(batch) == 10


def test_the_box_of_a_class_is_the_one_with_its_label():
    boxes, labels = random_boxes((2, 4)), np.int32([[2, 0, 1, 1], [1, 1, 0, 2]])
    valid = np.bool_([[1, 1, 1, 0], [1, 1, 1, 1]])
    batch = {"boxes": boxes, "box_labels": labels, "box_valid": valid, "valid": np.ones(2, bool)}
    targets = jax.device_get(BOXED.targets(batch))
    np.testing.assert_array_equal(targets["boxes"][0], boxes[0, [1, 2, 0]])
    np.testing.assert_array_equal(targets["found"], [[1, 1, 1], [1, 2, 1]])
    assert np.isnan(targets["boxes"][1, 1]).all() and BOXED.count(batch) == 5
    unknown = BOXED.targets(batch | {"boxes_known": np.bool_([0, 1])})
    assert np.isnan(unknown["boxes"][0]).all() and not unknown["found"][0].any()


def test_two_boxes_of_a_class_are_refused_by_name():
    targets = {"boxes": np.full((3, 3, 4), NAN), "found": np.int32([[1, 1, 1], [0, 2, 1], [1, 3, 1]])}
    predictions = {"boxes": random_boxes((3, 3))}
    with pytest.raises(InputError, match=r"2 images have several boxes of the class 'Heart'"):
        BOXED.metrics(predictions, targets, calibration={}, resamples=0)
    with pytest.raises(InputError, match="'Heart'"):
        BOXED.calibrate(predictions, targets)


def generalised_iou(a, b):
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inner / area, inner / area - (hull - area) / hull


def test_losses_are_their_formulas():
    batch, predicted = make_batch(), random_boxes((4, 3))
    true = true_boxes(batch)
    known = ~np.isnan(true[..., 0])
    pairs = list(zip(predicted[known].astype(float), true[known].astype(float)))
    error = np.abs([a - b for a, b in pairs])
    smooth = np.where(error < 0.1, error**2 / 0.2, error - 0.05).sum(1).mean()
    giou = np.mean([1 - generalised_iou(a, b)[1] for a, b in pairs])
    loss, logs = TASK.loss(jnp.asarray(predicted), batch, TASK.count(batch))
    assert logs["smooth_l1"] == pytest.approx(smooth, rel=1e-5) and logs["giou"] == pytest.approx(giou, rel=1e-5)
    assert loss == pytest.approx(smooth + giou, rel=1e-5)


def test_gradients_are_finite_and_unknown_boxes_have_none():
    batch = make_batch()
    batch["valid"][3] = False
    outputs = jnp.asarray(RNG.normal(size=(4, 12)), jnp.float32)

    def loss(outputs):
        return TASK.loss(TASK.apply(lambda part, x: x, outputs, batch), batch, TASK.count(batch))[0]

    gradient = np.asarray(jax.grad(loss)(outputs)).reshape(4, 3, 4)
    known = ~np.isnan(true_boxes(batch)[..., 0]) & batch["valid"][:, None]
    assert np.isfinite(gradient).all() and not gradient[~known].any() and gradient[known].any(-1).all()


def test_predicted_boxes_are_never_inside_out_and_lie_in_the_image():
    outputs = jnp.asarray(RNG.normal(0, 5, size=(50, 12)), jnp.float32)
    boxes = TASK.predict(TASK.apply(lambda part, x: x, outputs, {}), {})["boxes"]
    assert boxes.shape == (50, 3, 4) and (boxes >= 0).all() and (boxes <= 1).all()
    assert (boxes[..., :2] <= boxes[..., 2:]).all()


def test_iou_is_that_of_a_loop():
    first, second = random_boxes((40,)), random_boxes((40,))
    expected = [generalised_iou(a, b)[0] for a, b in zip(first.astype(float), second.astype(float))]
    np.testing.assert_allclose(box_iou(first, second), expected, rtol=1e-9)
    np.testing.assert_array_equal(box_iou(first[:, None], second[None]).diagonal(), box_iou(first, second))
    np.testing.assert_allclose(box_iou(first, first), 1)


def test_iou_without_extent_is_zero_and_unknown_where_a_box_is():
    assert box_iou(np.zeros(4), np.zeros(4)) == 0 and box_iou(np.float32([0.5, 0.5, 0.2, 0.2]), np.ones(4)) == 0
    known = random_boxes((3,))
    known[1, 2] = NAN
    np.testing.assert_array_equal(np.isnan(box_iou(known, random_boxes((3,)))), [False, True, False])
    assert box_iou(np.empty((0, 1, 4)), known[None]).shape == (0, 3)


def test_metrics_are_means_over_known_boxes():
    true, predicted = random_boxes((9, 3)), random_boxes((9, 3))
    true[0, 1] = true[:, 2] = NAN
    predicted[2:6] = true[2:6] + 0.01
    overlap = box_iou(predicted, true)
    targets = {"boxes": true, "found": (~np.isnan(true[..., 0])).astype(np.int32)}
    found = {m.name: m for m in TASK.metrics({"boxes": predicted}, targets, calibration={}, resamples=40)}
    for k, name in enumerate(NAMES[:2]):
        assert found[f"iou/{name}"].value == pytest.approx(np.nanmean(overlap[:, k]))
        share = np.mean(overlap[~np.isnan(overlap[:, k]), k] >= 0.5)
        assert found[f"iou_at_least_50/{name}"].value == pytest.approx(share)
    assert found["iou/Heart"].n == 8 and np.isnan(found["iou/Body"].value)
    assert found["iou/macro"].value == pytest.approx((found["iou/Lungs"].value + found["iou/Heart"].value) / 2)
    assert found["iou/macro"].low <= found["iou/macro"].value <= found["iou/macro"].high
    some = TASK.metrics({"boxes": predicted}, targets, classes=("Heart",), calibration={}, resamples=0)
    assert {m.name for m in some} == {f"{m}/{c}" for m in ("iou", "iou_at_least_50") for c in ("Heart", "macro")}


def test_the_trivial_predictor_knows_the_mean_boxes_alone():
    true = random_boxes((5, 3))
    true[0, 1] = true[:, 2] = NAN
    targets = {"boxes": true, "found": (~np.isnan(true[..., 0])).astype(np.int32)}
    calibration = TASK.calibrate({"boxes": random_boxes((5, 3))}, targets)
    trivial = TASK.trivial({"boxes": random_boxes((7, 3))}, calibration)["boxes"]
    assert trivial.shape == (7, 3, 4) and trivial.dtype == np.float32 and np.isnan(trivial[:, 2]).all()
    np.testing.assert_allclose(trivial[4, :2], [true[:, 0].mean(0), true[1:, 1].mean(0)], rtol=1e-6)


def test_head_pictures_and_findings(tmp_path, sheets):
    ((name, build),) = TASK.parts({4: 5, 8: 6}).items()
    assert name == "head/chest/boxes" and build(nnx.Rngs(0)).linear.kernel.shape == (6, 12)
    batch = make_batch()
    targets, predictions = {"boxes": true_boxes(batch)}, {"boxes": random_boxes((4, 3))}
    errors = TASK.errors(predictions, targets, {})
    iou = [
        np.nanmean(row) if np.isfinite(row).any() else np.nan for row in box_iou(predictions["boxes"], targets["boxes"])
    ]
    np.testing.assert_allclose(errors, 1 - np.array(iou))
    samples = samples_of(TASK, np.zeros((4, 24, 18, 1), np.float32), predictions, targets, {})
    TASK.draw_samples(tmp_path, "test", samples, {})
    assert sorted(row for rows in sheets[0].values() for row in rows) == [0, 1, 2, 3]
    assert min(Image.open(tmp_path / "samples_test.png").size) > 200
    found = TASK.findings(predictions, {}, 2, (12, 9))
    assert [box.label for box in found.boxes] == list(NAMES) and found.boxes[1].called
    assert found.boxes[1].corners == pytest.approx(tuple(predictions["boxes"][2, 1]))


def test_samples_show_the_protocols_classes_alone(tmp_path, monkeypatch):
    targets, predictions = {"boxes": true_boxes(make_batch())}, {"boxes": random_boxes((4, 3))}
    samples, shown = samples_of(TASK, np.zeros((4, 24, 18, 1), np.float32), predictions, targets, {}), {}
    monkeypatch.setattr(figures, "samples", lambda path, images, **options: shown.update(options))
    TASK.draw_samples(tmp_path, "test", samples._replace(classes=NAMES[1:2]), {})
    assert shown["classes"] == [NAMES[1]]
    np.testing.assert_array_equal(shown["prediction"].boxes, predictions["boxes"][:, 1:2])
    np.testing.assert_array_equal(shown["truth"].boxes, targets["boxes"][:, 1:2])


def test_errors_name_the_task():
    for options, words in (
        ({"structures": ()}, "box_classes and structures of task 'chest/boxes'"),
        ({"losses": {"smooth_l2": 1.0}}, "losses of task 'chest/boxes': no loss 'smooth_l2'; did you mean 'smooth_l1'"),
        ({"losses": {"giou": -1.0}}, "losses.giou of task 'chest/boxes' is -1.0"),
        ({"beta": 0.0}, "beta of task 'chest/boxes' is 0.0"),
    ):
        with pytest.raises(InputError, match=words):
            Task(**({"name": "chest/boxes", "structures": NAMES} | options))
    with pytest.raises(InputError, match="'chest/boxes' needs boxes, or a mask for each of"):
        TASK.count({"valid": np.ones(2, bool)})

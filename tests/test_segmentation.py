"""The segmentation task: losses against formulas, what is left out of them, metrics against a loop, thresholds."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from sheets import samples_of

from mediax import figures
from mediax.errors import InputError
from mediax.tasks.segmentation import CANDIDATES, CELLS, PER_PIXEL, Task

NAMES = ("Left Lung", "Right Lung", "Heart")
TASK = Task("stream/segmentation", NAMES)
RNG = np.random.default_rng(0)


def make_batch(rows=4, size=(6, 5), exclusive=False):
    masks = RNG.integers(0, 2, (rows, *size, 3), np.uint8)
    if exclusive:
        masks = (RNG.integers(0, 4, (rows, *size, 1)) == np.arange(1, 4)).astype(np.uint8)
    return {
        "image": np.zeros((rows, *size, 1), np.float32),
        "valid": np.ones(rows, bool),
        "masks": masks,
        "mask_valid": np.ones((rows, 3), bool),
    }


def logits_of(batch, outputs=3, branches=1):
    return jnp.asarray(RNG.normal(size=(branches, *batch["image"].shape[:3], outputs)), jnp.float32)


def whole_loss(task, logits, batch):
    return float(jax.jit(lambda x, batch: task.loss(x, batch, task.count(batch))[0])(logits, batch))


def evaluated(task, logits, batch):
    return jax.device_get(jax.jit(lambda x, batch: (task.predict(x, batch), task.targets(batch)))(logits, batch))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def test_losses_are_their_formulas():
    batch = make_batch()
    logits = logits_of(batch)
    p, y = sigmoid(logits[0]), batch["masks"]
    true = np.where(y, p, 1 - p)
    dice = (2 * (p * y).sum((1, 2)) + 1) / ((p + y).sum((1, 2)) + 1)
    expected = {
        "cross_entropy": -np.log(true).mean(),
        "focal": (-((1 - true) ** 2) * np.log(true)).mean(),
        "dice": (1 - dice).mean(),
    }
    for name, value in expected.items():
        assert whole_loss(replace(TASK, losses={name: 1.0}), logits, batch) == pytest.approx(value, rel=1e-5)
    loss, logs = jax.jit(lambda x: TASK.loss(x, batch, TASK.count(batch)))(logits)
    assert float(loss) == pytest.approx(expected["cross_entropy"] + expected["dice"], rel=1e-5)
    assert set(logs) == {"loss", "cross_entropy", "dice"}


def test_exclusive_losses_are_their_formulas():
    batch = make_batch(exclusive=True)
    logits = logits_of(batch, outputs=4)
    p = np.exp(np.asarray(logits[0], np.float64))
    p /= p.sum(-1, keepdims=True)
    y = np.concatenate([1 - batch["masks"].max(-1, keepdims=True), batch["masks"]], -1)
    true = (p * y).sum(-1)
    dice = (2 * (p * y).sum((1, 2)) + 1) / ((p + y).sum((1, 2)) + 1)
    expected = {
        "cross_entropy": -np.log(true).mean(),
        "focal": (-((1 - true) ** 2) * np.log(true)).mean(),
        "dice": (1 - dice[:, 1:]).mean(),
    }
    for name, value in expected.items():
        task = replace(TASK, exclusive=True, losses={name: 1.0})
        assert whole_loss(task, logits, batch) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("exclusive", [False, True])
def test_slices_add_up_and_padding_does_not_count(exclusive):
    task = replace(TASK, exclusive=exclusive)
    batch = make_batch(exclusive=exclusive)
    batch["mask_valid"][1, 2], batch["valid"][3] = False, False
    logits, count = logits_of(batch, 3 + exclusive), task.count(batch)
    assert float(count) == (2 if exclusive else 8)
    slices = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    sums = sum(float(task.loss(x, part, count)[0]) for x, part in zip((logits[:, :2], logits[:, 2:]), slices))
    assert sums == pytest.approx(whole_loss(task, logits, batch), rel=1e-5)


def test_unknown_structures_and_unseen_pixels_have_no_gradient():
    batch = make_batch()
    batch["mask_valid"][0, 1] = False
    batch["field_of_view"] = np.ones((4, 6, 5), np.uint8)
    batch["field_of_view"][:, :2] = 0
    slope = jax.jit(jax.grad(lambda x: TASK.loss(x, batch, TASK.count(batch))[0]))(logits_of(batch))[0]
    silent = np.zeros(slope.shape, bool)
    silent[0, ..., 1] = silent[:, :2] = True
    np.testing.assert_array_equal(np.asarray(slope) == 0, silent)


def test_branches_are_averaged():
    batch = make_batch()
    logits = logits_of(batch, branches=3)
    each = [whole_loss(TASK, branch[None], batch) for branch in logits]
    assert whole_loss(TASK, logits, batch) == pytest.approx(np.mean(each), rel=1e-5)
    probabilities = TASK.predict(logits, batch)["probabilities"]
    np.testing.assert_allclose(probabilities, sigmoid(logits).mean(0), rtol=1e-5)


def scored(task, logits, batch, groups=None, resamples=0, calibration=None, **options):
    predictions, targets = evaluated(task, logits, batch)
    calibration = task.calibrate(predictions, targets) if calibration is None else calibration
    results = task.metrics(predictions, targets, calibration=calibration, groups=groups, resamples=resamples, **options)
    return {metric.name: metric for metric in results}


@pytest.mark.parametrize("exclusive", [False, True])
def test_metrics_equal_a_loop_over_images(exclusive):
    task = replace(TASK, exclusive=exclusive)
    batch = make_batch(exclusive=exclusive)
    batch["field_of_view"] = RNG.integers(0, 2, (4, 6, 5), np.uint8)
    batch["mask_valid"][2, 0] = False
    logits = logits_of(batch, 3 + exclusive)
    results = scored(task, logits, batch)
    for k, name in enumerate(NAMES):
        dice, iou = [], []
        for row in range(4):
            if (row, k) == (2, 0):
                continue
            inside = batch["field_of_view"][row] == 1
            x = np.asarray(logits[0, row])
            called = (x.argmax(-1) == k + 1 if exclusive else x[..., k] >= 0)[inside]
            true = batch["masks"][row, ..., k][inside] == 1
            dice.append(2 * (called & true).sum() / (called.sum() + true.sum()))
            iou.append((called & true).sum() / (called | true).sum())
        assert results[f"dice/{name}"].value == pytest.approx(np.mean(dice))
        assert results[f"iou/{name}"].value == pytest.approx(np.mean(iou))
        assert results[f"dice/{name}"].n == len(dice)
    macro = np.mean([results[f"dice/{name}"].value for name in NAMES])
    assert results["dice/macro"].value == pytest.approx(macro)


def test_empty_masks_follow_the_rule():
    batch = make_batch()
    batch["masks"][:] = 0
    batch["masks"][0, 2, 2, 0] = 1
    logits = np.full((1, 4, 6, 5, 3), -9.0, np.float32)
    logits[0, 0, 2, 2, 0] = logits[0, 1, 0, 0, 0] = 9  # image 0 right, image 1 a false alarm, 2 and 3 rightly empty
    results = scored(TASK, jnp.asarray(logits), batch)
    assert results["dice/Left Lung"].value == results["iou/Left Lung"].value == 0.75
    assert results["dice_present/Left Lung"].value == 1 and results["dice_present/Left Lung"].n == 1
    assert results["dice/Heart"].value == 1
    assert np.isnan(results["dice_present/Heart"].value) and "undefined" in results["dice_present/Heart"].note
    assert results["dice_present/macro"].value == 1 and "Heart" in results["dice_present/macro"].note


def test_intervals_come_from_patients():
    batch = make_batch(rows=40, size=(3, 3))
    logits = logits_of(batch)
    by_image = scored(TASK, logits, batch, resamples=300)["dice/macro"]
    assert by_image.low < by_image.value < by_image.high
    one = scored(TASK, logits, batch, np.array(["a"] * 40), resamples=300)["dice/macro"]
    assert np.isnan(one.low) and one.value == pytest.approx(by_image.value)
    # The same images twice over are no more evidence if patients are drawn.
    twice = {name: np.concatenate([value, value]) for name, value in batch.items()}
    patients = np.tile(np.arange(40), 2)
    doubled = scored(TASK, jnp.concatenate([logits, logits], 1), twice, patients, resamples=300)["dice/macro"]
    assert (doubled.low, doubled.high) == pytest.approx((by_image.low, by_image.high))


def test_the_threshold_of_the_best_dice_is_chosen_on_validation_data():
    task = replace(TASK, threshold="dice")
    batch = make_batch()
    probabilities = np.where(batch["masks"], 0.28, 0.22)[None]  # every threshold from 0.22 to 0.28 is perfect
    logits = jnp.asarray(np.log(probabilities / (1 - probabilities)), jnp.float32)
    predictions, targets = evaluated(task, logits, batch)
    calibration = task.calibrate(predictions, targets)
    assert all(0.22 < threshold < 0.28 for threshold in calibration["thresholds"])
    assert scored(task, logits, batch, calibration=calibration)["dice/macro"].value == 1
    batch["mask_valid"][:] = False
    unknown = jax.device_get(task.targets(batch))
    nothing = {"mean_mask": [""] * 3, "median_ratio": [[None] * 3] * 3}
    assert task.calibrate(predictions, unknown) == {"thresholds": [0.5] * 3} | nothing


EMPTY = {"mean_mask": [""] * 3, "median_ratio": [[0.0] * 3] * 3}


def vessels(rows=3, size=(40, 30)):
    """Masks of some few pixels with logits that tell most of them, inside a field of view."""
    batch, rng = make_batch(rows, size), np.random.default_rng(0)
    batch["masks"] = (rng.random(batch["masks"].shape) < 0.1).astype(np.uint8)
    batch["field_of_view"] = (rng.random((rows, *size)) < 0.8).astype(np.uint8)
    logits = jnp.asarray(rng.normal(2.0 * batch["masks"] - 3, 1.0)[None], jnp.float32)
    return batch, logits


def test_figures_of_pooled_pixels_equal_scikit_learn():
    batch, logits = vessels()
    batch["mask_valid"][1, 0] = False
    task = replace(TASK, threshold="f1")
    predictions, targets = evaluated(task, logits, batch)
    calibration = task.calibrate(predictions, targets)
    results = scored(task, logits, batch, calibration=calibration, pooled=True)
    for k, name in enumerate(NAMES):
        seen = (batch["field_of_view"] > 0) & batch["mask_valid"][:, k, None, None]
        true, p = batch["masks"][..., k][seen], np.asarray(predictions["probabilities"][..., k][seen], np.float64)
        called = p >= calibration["thresholds"][k]
        expected = {
            "pixel_f1": sklearn.metrics.f1_score(true, called),
            "pixel_iou": sklearn.metrics.jaccard_score(true, called),
            "pixel_sensitivity": sklearn.metrics.recall_score(true, called),
            "pixel_specificity": sklearn.metrics.recall_score(1 - true, ~called),
            "pixel_accuracy": sklearn.metrics.accuracy_score(true, called),
        }
        for metric, value in expected.items():
            assert results[f"{metric}/{name}"].value == pytest.approx(value, rel=1e-9)
        assert results[f"pixel_auroc/{name}"].value == pytest.approx(sklearn.metrics.roc_auc_score(true, p), abs=2e-3)
        best = max(sklearn.metrics.f1_score(true, p >= threshold) for threshold in CANDIDATES)
        assert expected["pixel_f1"] == pytest.approx(best)


def test_pooled_figures_without_a_true_pixel_are_undefined():
    batch, logits = vessels()
    batch["masks"][..., 0] = 0
    batch["mask_valid"][:, 1] = False
    results = scored(TASK, logits, batch, pooled=True, resamples=20)
    assert results["pixel_f1/Left Lung"].value == 0 and np.isnan(results["pixel_sensitivity/Left Lung"].value)
    assert all(np.isnan(results[f"{metric}/Right Lung"].value) for metric in PER_PIXEL[:-1])
    assert "pixel_auroc/Heart" not in results  # one threshold is no curve
    assert results["pixel_f1/Heart"].low < results["pixel_f1/Heart"].value < results["pixel_f1/Heart"].high


def test_the_ratio_of_heights_is_compared_image_by_image():
    batch = make_batch(3, (20, 4))
    batch["masks"][:] = 0
    batch["masks"][:, 2:12, 1, 0] = 1  # ten rows
    batch["masks"][:, 4:9, 1, 1] = 1  # five of them
    called = np.zeros_like(batch["masks"])
    called[:, 2:12, :, 0], called[:, 3:11, 2, 1] = 1, 1  # eight of ten
    called[1, :, :, 1] = 0
    batch["mask_valid"][2, 0] = False
    results = scored(TASK, jnp.asarray(10.0 * called - 5)[None], batch, ratio=("Right Lung", "Left Lung"))
    assert results["ratio_error/Right Lung to Left Lung"].value == pytest.approx((0.3 + 0.5) / 2)
    assert results["ratio_error/macro"].n == 2


def test_a_second_reader_and_a_trivial_one_are_scored_alike():
    batch, logits = vessels()
    batch["second_masks"] = batch["masks"] * (RNG.random(batch["masks"].shape) < 0.7).astype(np.uint8)
    predictions, targets = evaluated(TASK, logits, batch)
    seen = batch["field_of_view"] > 0
    (second, nothing) = (
        {metric.name: metric.value for metric in TASK.metrics(each, targets, calibration={}, pooled=True, resamples=0)}
        for each in (TASK.second_reader(targets), TASK.trivial(predictions, EMPTY))
    )
    expected = sklearn.metrics.f1_score(batch["masks"][seen][:, 0], batch["second_masks"][seen][:, 0])
    assert second["pixel_f1/Left Lung"] == pytest.approx(expected)
    assert nothing["pixel_f1/macro"] == nothing["dice/macro"] == 0 and nothing["pixel_specificity/macro"] == 1
    del batch["second_masks"]
    assert TASK.second_reader(evaluated(TASK, logits, batch)[1]) is None


def anatomy(rows, size, exclusive):
    """Masks that are much alike: above one structure, below another, a third is rare; some masks are unknown."""
    rng = np.random.default_rng(rows)  # whichever tests ran before
    above = np.arange(size[0])[:, None, None] < size[0] // 2
    likely = np.where(above, [0.8, 0.1, 0.05], [0.1, 0.6, 0.05])
    low = np.cumsum(likely, -1) - likely if exclusive else 0.0
    draw = rng.random((rows, *size, 1 if exclusive else 3))
    batch = make_batch(rows, size) | {"masks": ((low <= draw) & (draw < low + likely)).astype(np.uint8)}
    batch["field_of_view"] = (rng.random((rows, *size)) < 0.7).astype(np.uint8)
    batch["mask_valid"][0, 0] = batch["mask_valid"][-1, 1] = False
    return batch


def mean_of_cells(batch, k):
    """How often a structure is in each cell, f64[H,W], by a loop over images and pixels."""
    height, width = batch["masks"].shape[1:3]
    rows, columns = np.arange(height) * CELLS // height, np.arange(width) * CELLS // width
    true, seen = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
    for i in np.flatnonzero(batch["mask_valid"][:, k]):
        for y, x in np.argwhere(batch["field_of_view"][i]):
            seen[rows[y], columns[x]] += 1
            true[rows[y], columns[x]] += batch["masks"][i, y, x, k]
    return (true / np.maximum(seen, 1))[rows][:, columns]


def mean_dice(called, batch, k):
    """The mean Dice of one mask bool[H,W] that is called in all images."""
    seen, known = batch["field_of_view"] > 0, np.flatnonzero(batch["mask_valid"][:, k])
    pairs = [(called & seen[i], (batch["masks"][i, ..., k] > 0) & seen[i]) for i in known]
    return np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) if (a | b).any() else 1 for a, b in pairs])


def pooled_f1(called, batch, k):
    seen, known = batch["field_of_view"] > 0, batch["mask_valid"][:, k]
    true = (batch["masks"][known, ..., k] > 0)[seen[known]]
    return sklearn.metrics.f1_score(true, np.broadcast_to(called, seen.shape)[known][seen[known]])


@pytest.mark.parametrize("size", [(9, 7), (100, 70)])
@pytest.mark.parametrize("rule", [0.5, 0.3, "dice", "f1", "exclusive"])
def test_the_trivial_predictor_calls_the_mean_mask_of_the_calibrating_split(rule, size):
    task = replace(TASK, exclusive=True) if rule == "exclusive" else replace(TASK, threshold=rule)
    of_calibration, batch = (anatomy(rows, size, task.exclusive) for rows in (7, 5))
    logits = logits_of(batch, 3 + task.exclusive)
    calibration = task.calibrate(*evaluated(task, logits_of(of_calibration, 3 + task.exclusive), of_calibration))
    calibration = json.loads(json.dumps(calibration))
    predictions, targets = evaluated(task, logits, batch)
    trivial = task.trivial(predictions, calibration)
    results = task.metrics(trivial, targets, calibration=calibration, resamples=0, pooled=True)
    found = {metric.name: metric.value for metric in results}
    means = np.stack([mean_of_cells(of_calibration, k) for k in range(3)], -1)
    for k, name in enumerate(NAMES):
        mean = means[..., k]
        called = mean >= (rule if isinstance(rule, float) else 0.5)
        if rule == "exclusive":
            called = np.concatenate([1 - means.sum(-1, keepdims=True), means], -1).argmax(-1) == 1 + k
        if rule in ("dice", "f1"):
            measure = {"dice": mean_dice, "f1": pooled_f1}[rule]
            nearest_first = sorted(CANDIDATES, key=lambda threshold: abs(threshold - 0.5))
            best = max(nearest_first, key=lambda one: round(float(measure(mean >= one, of_calibration, k)), 9))
            called = mean >= best
        assert found[f"dice/{name}"] == pytest.approx(mean_dice(called, batch, k))
        assert found[f"pixel_f1/{name}"] == pytest.approx(pooled_f1(called, batch, k))
    assert found["dice/Left Lung"] > 0.6  # not the empty mask


def test_the_trivial_predictor_knows_nothing_of_the_split_that_is_scored():
    task = replace(TASK, threshold="dice")
    calibration = task.calibrate(*evaluated(task, logits_of(batch := make_batch()), batch))
    batch = make_batch()
    batch["masks"][:] = 1  # all pixels are right: what is called is then what is right
    trivial = task.trivial(evaluated(task, logits_of(batch), batch)[0], calibration)
    np.testing.assert_array_equal(trivial["overlap"], trivial["called"])
    assert (trivial["called"] == trivial["called"][0]).all() and (trivial["called"] == trivial["called"][..., :1]).all()
    assert trivial["called"].shape == (4, 3, len(CANDIDATES))


@pytest.mark.parametrize("threshold", [0.5, "dice"])
def test_where_a_structure_is_rare_the_trivial_predictor_calls_none(threshold):
    """One image in four shows it, always at the same place: an empty mask is right in the three others."""
    task, batch = replace(TASK, threshold=threshold), make_batch(8)
    batch["masks"][:] = 0
    batch["masks"][:2, 2:4, 2:4] = 1
    predictions, targets = evaluated(task, logits_of(batch), batch)
    calibration = task.calibrate(predictions, targets)
    results = task.metrics(task.trivial(predictions, calibration), targets, calibration=calibration, resamples=0)
    found = {metric.name: metric.value for metric in results}
    assert calibration["mean_mask"] == [""] * 3 and found["dice/macro"] == 0.75 and found["dice_present/macro"] == 0


def test_the_trivial_ratio_is_the_median_of_images_that_know_both():
    batch = make_batch(4, (20, 4))
    batch["masks"][:] = 0
    batch["masks"][:, 2:12, 1, 0] = 1
    for row, height in enumerate((2, 3, 7, 9)):
        batch["masks"][row, 3 : 3 + height, 1, 1] = 1
    batch["mask_valid"][3, 1] = batch["mask_valid"][1, 2] = False
    predictions, targets = evaluated(TASK, logits_of(batch), batch)
    calibration = TASK.calibrate(predictions, targets)
    np.testing.assert_allclose(calibration["median_ratio"], [[1, 1, 1], [0.3, 1, 1], [0, 0, 0]])
    trivial = TASK.trivial(predictions, calibration)
    for pair, error in ((NAMES[1::-1], (0.1 + 0 + 0.4) / 3), (NAMES[2:0:-1], 0)):
        results = TASK.metrics(trivial, targets, calibration=calibration, resamples=0, ratio=pair)
        assert results[-1].name == "ratio_error/macro" and results[-1].value == pytest.approx(error)


def test_cells_count_every_pixel_once():
    batch = anatomy(3, (130, 65), exclusive=False)
    cells = evaluated(TASK, logits_of(batch), batch)[0]["cells"]
    assert cells.dtype == np.uint16 and cells.shape == (3, CELLS**2, 4)
    seen = batch["field_of_view"][..., None]
    expected = np.concatenate([batch["masks"] * seen, seen], -1).sum((1, 2), dtype=int)
    np.testing.assert_array_equal(cells.sum(1, dtype=int), expected)


def test_without_masks_there_are_probabilities_alone():
    batch = make_batch()
    logits = logits_of(batch)
    del batch["masks"]
    assert set(TASK.predict(logits, batch)) == {"probabilities"}


@pytest.mark.parametrize("exclusive", [False, True])
def test_overlays_are_drawn(exclusive, tmp_path, sheets):
    task = replace(TASK, exclusive=exclusive)
    batch = make_batch(size=(16, 16), exclusive=exclusive)
    batch["mask_valid"][1] = False
    predictions, targets = evaluated(task, logits_of(batch, 3 + exclusive), batch)
    calibration = task.calibrate(predictions, targets)
    samples = samples_of(task, batch["image"], predictions, targets, calibration)
    task.draw_samples(tmp_path, "test", samples, calibration)
    assert sorted(row for rows in sheets[0].values() for row in rows) == [*range(len(batch["image"]))]
    assert 1 in sheets[0]["others at random"]  # nothing is known of it
    assert (tmp_path / "samples_test.png").stat().st_size > 1000


def test_errors_and_annotations_are_those_of_the_protocols_structures():
    batch = make_batch(size=(16, 16))
    batch["mask_valid"][:] = True
    batch["mask_valid"][1, 0] = False
    batch["masks"][0, ..., 0] = 0
    predictions, targets = evaluated(TASK, logits_of(batch), batch)
    calibration = TASK.calibrate(predictions, targets)
    metrics_of_first = TASK.metrics(predictions, targets, classes=NAMES[:1], calibration=calibration, resamples=0)
    errors = TASK.errors(predictions, targets, calibration, classes=NAMES[:1], pooled=True)
    assert np.isnan(errors).tolist() == [row == 1 for row in range(len(errors))]
    assert 1 - np.nanmean(errors) == pytest.approx(metrics_of_first[0].value)
    assert TASK.annotated(targets, NAMES[:1]).tolist()[:2] == [False, False]
    assert TASK.annotated(targets).all()


def test_overlays_show_nothing_outside_of_the_field_of_view(tmp_path, monkeypatch):
    batch = make_batch(size=(16, 16))
    batch["field_of_view"] = np.zeros((len(batch["image"]), 16, 16), np.uint8)
    batch["field_of_view"][:, 4:12, 4:12] = 1
    logits = np.full_like(logits_of(batch), 9.0)  # everything is called everywhere
    predictions, targets = evaluated(TASK, logits, batch)
    shown = {}
    monkeypatch.setattr(figures, "samples", lambda path, images, **options: shown.update(options))
    calibration = TASK.calibrate(predictions, targets)
    samples = samples_of(TASK, batch["image"], predictions, targets, calibration)
    TASK.draw_samples(tmp_path, "test", samples, calibration)
    inside = np.broadcast_to(batch["field_of_view"][..., None] > 0, shown["prediction"].masks.shape)
    np.testing.assert_array_equal(shown["prediction"].masks, inside)


def test_overlays_show_the_protocols_structures_alone(tmp_path, monkeypatch):
    batch = make_batch(size=(16, 16))
    batch["mask_valid"][:] = True
    predictions, targets = evaluated(TASK, logits_of(batch, 3), batch)
    shown = []
    monkeypatch.setattr(figures, "samples", lambda path, images, **options: shown.append(options))
    calibration = TASK.calibrate(predictions, targets)
    samples = samples_of(TASK, batch["image"], predictions, targets, calibration)
    for classes in ((), NAMES[1:2]):
        TASK.draw_samples(tmp_path, "test", samples._replace(classes=classes), calibration)
    whole, one = shown
    assert list(whole["classes"]) == list(NAMES) and list(one["classes"]) == [NAMES[1]]
    for of_one, of_all in ((one[kind].masks, whole[kind].masks) for kind in ("truth", "prediction")):
        assert of_one.any()
        np.testing.assert_array_equal(of_one, of_all[..., 1:2])


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_of_certain_pixels_has_a_gradient(exclusive, gamma):
    batch = make_batch(exclusive=exclusive)
    task = replace(TASK, exclusive=exclusive, losses={"focal": 1.0}, focal_gamma=gamma)
    logits = 300 * logits_of(batch, outputs=3 + exclusive)
    gradient = jax.grad(lambda x: task.loss(x, batch, task.count(batch))[0])(logits)
    assert np.isfinite(gradient).all()


def test_exclusive_structures_do_not_overlap():
    disc, cup = np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)
    disc[2:18, 2:18], cup[6:12, 6:12] = 1, 1
    task = replace(TASK, structures=("Optic Disc", "Optic Cup"), exclusive=True)
    nested = {"id": "drishti_001", "masks": np.stack([disc, cup], -1)}
    with pytest.raises(InputError, match=r"exclusive .*image 'drishti_001' 36 pixels belong to several of .*to False"):
        task.check_example(nested)
    replace(task, exclusive=False).check_example(nested)
    task.check_example(nested | {"masks": np.stack([disc - cup, cup], -1)})
    cup[2, 2] = 1  # a pixel at a border
    task.check_example(nested | {"masks": np.stack([disc - cup + (cup & disc) * (np.arange(20) == 2), cup], -1)})
    task.check_example({"id": "unknown"})


def test_messages_name_what_fits():
    for options, words in (
        ({"losses": {"dise": 1.0}}, "did you mean 'dice'"),
        ({"losses": {}}, "expected name -> weight"),
        ({"losses": {"dice": -1.0}}, "expected 0 or more"),
        ({"threshold": "youden"}, "expected 0 to 1, or one of the rules dice, f1"),
        ({"exclusive": True, "threshold": "dice"}, "is 'dice': exclusive structures have no thresholds"),
        ({"focal_gamma": -1}, "focal_gamma of task 'stream/segmentation' is -1: expected 0 or more"),
        ({"structures": ()}, "expected the names of the masks' channels"),
        ({"head": "unet"}, "expected a dict"),
        ({"head": {"name": "unet", "width": 3}}, "did you mean 'widths'"),
    ):
        with pytest.raises(InputError, match=words):
            replace(TASK, **options)
    with pytest.raises(InputError, match=r"predicts 2 structures.*has 3 masks"):
        replace(TASK, structures=("Left Lung", "Heart")).targets(make_batch())

"""The regression task: losses against formulas, what is left out of them, metrics against scikit-learn and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scipy import stats
from sheets import samples_of
from sklearn import metrics as reference

from mediax import inference
from mediax.errors import InputError
from mediax.tasks.regression import PER_TARGET, Task, _evaluator, agreement

NAN = np.nan
NAMES = ("age", "dose")
TRUE = np.float32([[60, 1.5], [NAN, 0.5], [20, NAN], [NAN, NAN], [41, 2.0]])
OUTPUTS = np.random.default_rng(0).normal(0, 2, TRUE.shape).astype(np.float32)


def make_task(**options):
    return Task(**({"name": "chest/regression", "target_names": NAMES, "mean": (50, 1), "std": (15, 0.5)} | options))


def make_batch(true, valid=None):
    return {"target": jnp.asarray(true), "valid": jnp.asarray(np.ones(len(true), bool) if valid is None else valid)}


def entries(criterion, delta=1.0):
    error = np.abs(OUTPUTS - (TRUE - [50, 1]) / [15, 0.5])
    quadratic = error**2 / 2
    losses = {"l1": error, "l2": quadratic, "huber": np.where(error < delta, quadratic, delta * error - delta**2 / 2)}
    return losses[criterion][~np.isnan(TRUE)]


@pytest.mark.parametrize(("criterion", "delta"), [("l1", 1.0), ("l2", 1.0), ("huber", 1.0), ("huber", 0.3)])
def test_the_loss_is_the_mean_over_known_targets_in_standard_deviations(criterion, delta):
    task, batch = make_task(criterion=criterion, huber_delta=delta), make_batch(TRUE)
    count = task.count(batch)
    loss, logs = task.loss(jnp.asarray(OUTPUTS), batch, count)
    assert count == 6 and logs == {"loss": loss}
    assert loss == pytest.approx(entries(criterion, delta).mean(), rel=1e-5)


@pytest.mark.parametrize("criterion", ["l1", "l2", "huber"])
def test_gradients_are_finite_and_slices_of_a_batch_add_up(criterion):
    task, whole = make_task(criterion=criterion), make_batch(TRUE)
    count = task.count(whole)
    value, gradient = jax.value_and_grad(lambda x: task.loss(x, whole, count)[0])(jnp.asarray(OUTPUTS))
    assert np.isfinite(gradient).all() and not gradient[np.isnan(TRUE)].any() and gradient[~np.isnan(TRUE)].all()
    parts = [
        task.loss(jnp.asarray(OUTPUTS[rows]), make_batch(TRUE[rows]), count)[0] for rows in (slice(2), slice(2, 5))
    ]
    assert sum(map(float, parts)) == pytest.approx(float(value), rel=1e-6)


def test_padding_and_unknown_rows_have_no_loss_and_no_gradient():
    task = make_task()
    for batch in (make_batch(np.full_like(TRUE, NAN)), make_batch(TRUE, np.zeros(len(TRUE), bool))):
        count = task.count(batch)
        loss, gradient = jax.value_and_grad(lambda x, b=batch, c=count: task.loss(x, b, c)[0])(jnp.asarray(OUTPUTS))
        assert count == 0 and loss == 0 and not gradient.any()


def test_predictions_are_in_the_targets_units():
    batch = make_batch(TRUE)
    np.testing.assert_allclose(make_task().predict(OUTPUTS, batch)["target"], OUTPUTS * [15, 0.5] + [50, 1], rtol=1e-5)
    np.testing.assert_array_equal(make_task(mean=(), std=()).predict(OUTPUTS, batch)["target"], OUTPUTS)
    np.testing.assert_array_equal(make_task().targets(batch)["target"], TRUE)


def values_of(metrics):
    return {metric.name: metric.value for metric in metrics}


def expected(predicted, true):
    known = ~np.isnan(true)
    predicted, true = predicted[known].astype(np.float64), true[known].astype(np.float64)
    return {
        "mae": reference.mean_absolute_error(true, predicted),
        "rmse": reference.root_mean_squared_error(true, predicted),
        "r2": reference.r2_score(true, predicted),
        "pearson": stats.pearsonr(true, predicted).statistic,
        "bias": (predicted - true).mean(),
    }


@pytest.mark.parametrize("seed", range(4))
def test_metrics_equal_the_references(seed):
    rng = np.random.default_rng(seed)
    true = rng.normal([60, 1e4, 1e-3], [15, 0.1, 1e-4], (60, 3)).astype(np.float32)
    predicted = (true + rng.normal(0, [8, 0.05, 1e-4], true.shape)).astype(np.float32)
    true[rng.random(true.shape) < 0.2] = NAN
    true[:5, 0], predicted[:5, 0] = 60, 61  # ties
    found = values_of(agreement(predicted, true, ("age", "b", "c"), resamples=0))
    for k, name in enumerate(("age", "b", "c")):
        for metric, value in expected(predicted[:, k], true[:, k]).items():
            assert found[f"{metric}/{name}"] == pytest.approx(value, rel=1e-6, abs=1e-9), (metric, name)
    assert found["r2/macro"] == pytest.approx(np.mean([found[f"r2/{name}"] for name in ("age", "b", "c")]))
    assert "mae/macro" not in found  # years and other units have no mean


def test_a_resample_is_scored_as_its_rows():
    rng = np.random.default_rng(5)
    true, patients = rng.normal(50, 10, 30), rng.integers(0, 8, 30)
    true[3] = NAN
    predicted = true + rng.normal(0, 5, 30)
    predicted[3] = 0
    weights = rng.integers(0, 4, (6, 8)).astype(float)
    for row, figures in zip(weights, _evaluator(predicted, true, patients)(weights)):
        rows = np.repeat(np.arange(30), row[patients].astype(int))
        assert dict(zip(PER_TARGET, figures)) == pytest.approx(expected(predicted[rows], true[rows]), rel=1e-9)


def test_degenerate_splits_are_undefined_and_say_why():
    true, predicted = np.float32([[3], [5], [8]]), np.float32([[4], [4], [4]])
    constant = {metric.name: metric for metric in agreement(predicted, true, ("age",), resamples=50)}
    assert np.isnan(constant["pearson"].value) and "all predicted" in constant["pearson"].note
    assert constant["r2"].value == pytest.approx(reference.r2_score(true, predicted))
    flat = {metric.name: metric for metric in agreement(true, predicted, ("age",), resamples=50)}
    assert np.isnan(flat["r2"].value) and flat["r2"].note == "all true values are equal: undefined"
    assert flat["mae"].value == pytest.approx(2) and flat["bias"].value == pytest.approx(4 / 3)
    unknown = agreement(predicted, np.full_like(true, NAN), ("age",), resamples=50)
    assert all(np.isnan(metric.value) and metric.n == 0 and "no known value" in metric.note for metric in unknown)
    single = agreement(predicted, true, ("age",), ["p"] * 3, resamples=50)
    assert all("a single patient" in metric.note for metric in single if not np.isnan(metric.value))


def test_intervals_are_of_patients_and_hold_the_value():
    rng = np.random.default_rng(1)
    true = np.repeat(rng.normal(50, 10, 10), 6)[:, None]
    predicted = true + np.repeat(rng.normal(0, 5, 10), 6)[:, None]  # six images of a patient, one error
    patients = np.repeat(np.arange(10), 6)
    by_patient = {m.name: m for m in agreement(predicted, true, ("age",), patients, resamples=300)}
    by_image = {m.name: m for m in agreement(predicted, true, ("age",), resamples=300)}
    assert by_patient["mae"].value == by_image["mae"].value and by_patient["mae"].n == 60
    for metric in by_patient.values():
        assert metric.low <= metric.value <= metric.high
    widths = [m["mae"].high - m["mae"].low for m in (by_patient, by_image)]
    assert widths[0] > 1.5 * widths[1]


def test_the_trivial_predictor_knows_the_median_alone():
    task = make_task()
    calibration = task.calibrate({"target": OUTPUTS}, {"target": TRUE})
    assert calibration == {"median": [41.0, 1.5]}
    trivial = task.trivial({"target": OUTPUTS}, calibration)
    assert trivial["target"].dtype == OUTPUTS.dtype
    np.testing.assert_array_equal(trivial["target"], np.broadcast_to(np.float32([41, 1.5]), TRUE.shape))
    found = values_of(task.metrics(trivial, {"target": TRUE}, calibration=calibration, resamples=0))
    assert found["mae/age"] == pytest.approx(40 / 3) and found["r2/age"] <= 0
    nothing = task.calibrate({"target": OUTPUTS}, {"target": np.full_like(TRUE, NAN)})
    assert nothing == {"median": [None, None]} and np.isnan(task.trivial({"target": OUTPUTS}, nothing)["target"]).all()


def test_metrics_can_be_restricted_to_targets_and_one_target_needs_no_name():
    calibration = {"median": [0.0, 0.0]}
    found = make_task().metrics(
        {"target": OUTPUTS}, {"target": TRUE}, classes=("dose",), calibration=calibration, resamples=0
    )
    assert [metric.name for metric in found] == list(PER_TARGET)
    assert values_of(found)["mae"] == pytest.approx(np.nanmean(np.abs(OUTPUTS - TRUE)[:, 1]))


def test_the_head_is_a_part_named_after_the_task():
    ((name, build),) = make_task().parts({4: 5, 8: 6}).items()
    assert name == "head/chest/regression" and build(nnx.Rngs(0)).linear.kernel.shape == (6, 2)


def test_pictures_and_findings(tmp_path, sheets):
    task = make_task()
    predictions, targets = {"target": TRUE.copy()}, {"target": TRUE}
    predictions["target"][1:4] = 30
    task.draw(tmp_path, "test", predictions, targets, calibration={})
    images = np.zeros((5, 8, 8, 1), np.float32)
    task.draw_samples(tmp_path, "test", samples_of(task, images, predictions, targets, {}), {})
    errors = task.errors(predictions, targets, {})
    off = np.abs(predictions["target"] - TRUE) / task.std
    np.testing.assert_allclose(
        errors, [np.mean(row[np.isfinite(row)]) if np.isfinite(row).any() else NAN for row in off]
    )
    assert sorted(row for rows in sheets[0].values() for row in rows) == [*range(5)]
    assert sheets[0]["worst"][0] == np.nanargmax(errors)
    for path in (tmp_path / "scatter_test.png", tmp_path / "samples_test.png"):
        assert min(Image.open(path).size) > 200
    assert task.findings(predictions, {}, 1, (8, 8)).scores == {"age": 30.0, "dose": 30.0}


def test_errors_name_the_task():
    for options, words in (
        ({"criterion": "l3"}, "criterion of task 'chest/regression': no loss 'l3'; did you mean"),
        ({"mean": (1.0,)}, r"mean of task 'chest/regression' is \(1.0,\): expected 2 numbers"),
        ({"mean": 58.0}, r"mean of task 'chest/regression' is 58.0: expected 2 numbers, one for each target as in"),
        ({"std": (1.0, 0.0)}, "std of task 'chest/regression'.*above 0"),
        ({"huber_delta": 0}, "huber_delta of task"),
        ({"target_names": ()}, "target_names of task 'chest/regression'.*TARGETS"),
        ({"head": {"name": "pooled", "dropot": 1}}, "did you mean 'dropout'"),
    ):
        with pytest.raises(InputError, match=words):
            make_task(**options)
    with pytest.raises(InputError, match=r"'chest/regression' predicts .*the batch has no targets"):
        make_task().count({"valid": np.ones(2, bool)})


def test_targets_of_left_and_right_trade_places_in_a_mirrored_image():
    names = ("left lung volume", "heart volume", "right lung volume")
    task = make_task(target_names=names, mean=(2.0, 0.5, 3.0), std=(0.4, 0.1, 0.8))
    assert inference.names_of(task) == names
    outputs = np.float32([[0.5, -1, 2]])
    units = task.predict(outputs, {})["target"]
    for turn, order in (((False, True), [2, 1, 0]), ((True, False), [0, 1, 2])):
        back = task.predict(task.mirrored(outputs, jnp.array(turn)), {})["target"]
        np.testing.assert_allclose(back, units[:, order], rtol=1e-6)

"""Classification: the loss against plain numpy, what enters it, and what is chosen and scored on the host."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from sheets import samples_of

from mediax import metrics
from mediax.errors import InputError
from mediax.tasks.classification import Task

NAN = np.nan

CLASSES = ("Edema", "Fracture", "Mass")
WEIGHTS = ((0.5, 2.0), (1.0, 1.0), (0.7, 3.0))
HARD = np.float32([[1, 0, np.nan], [0, 1, 0], [np.nan, np.nan, np.nan], [1, 1, 0], [0, 0, 1], [0, np.nan, 1]])
SOFT = np.float32([[0.3, 0.7, 0], [np.nan, 0.2, 1], [0.5, 0.5, 0.9], [1, 0, 0], [0, np.nan, 0.1], [0.8, 0, 0.4]])
ONE_HOT = np.float32([[1, 0, 0], [0, 0, 1], [np.nan, np.nan, np.nan], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
MIXED = np.float32([[0.6, 0, 0.4], [0, 0, 1], [np.nan, np.nan, np.nan], [0.1, 0.9, 0], [0.5, 0.5, 0], [0, 0.2, 0.8]])
LOGITS = np.random.default_rng(0).normal(0, 3, HARD.shape).astype(np.float32)


def _task(**options):
    return Task(**({"name": "chest/classification", "classes": CLASSES} | options))


def _batch(labels, valid=None):
    return {"labels": jnp.asarray(labels), "valid": jnp.asarray(np.ones(len(labels), bool) if valid is None else valid)}


def _entries(task, logits, labels):
    """Lists the loss of every known entry, one at a time, straight from the definitions."""
    weights = task.class_weights or ((1.0, 1.0),) * len(CLASSES)
    smoothing, entries = task.label_smoothing, []
    for z, y in zip(logits.astype(np.float64), labels.astype(np.float64)):
        if task.exclusive:
            if not np.isnan(y).any():
                target = [(1 - smoothing) * label + smoothing / len(y) for label in y]
                weight = sum(label * present for label, (_, present) in zip(y, weights))
                entries.append(-weight * np.dot(target, np.log(np.exp(z) / np.exp(z).sum())))
            continue
        for logit, label, (absent, present) in zip(z, y, weights):
            if not np.isnan(label):
                # A soft label is present in part and absent in part; each state has its weight and its smoothed target.
                states = ((label, present, 1 - smoothing / 2), (1 - label, absent, smoothing / 2))
                probability = 1 / (1 + np.exp(-logit))
                entries.append(
                    -sum(
                        share * weight * (target * np.log(probability) + (1 - target) * np.log(1 - probability))
                        for share, weight, target in states
                    )
                )
    return entries


@pytest.mark.parametrize("options", [{}, {"class_weights": WEIGHTS}, {"label_smoothing": 0.2}], ids=str)
@pytest.mark.parametrize(
    ("labels", "exclusive"),
    [(HARD, False), (SOFT, False), (ONE_HOT, True), (MIXED, True)],
    ids=["hard", "soft", "one-hot", "mixed"],
)
def test_loss_is_the_mean_over_known_entries(labels, exclusive, options):
    task, batch = _task(exclusive=exclusive, **options), _batch(labels)
    expected = _entries(task, LOGITS, labels)
    count = task.count(batch)
    loss, logs = task.loss(jnp.asarray(LOGITS), batch, count)
    assert count == len(expected)
    assert loss == pytest.approx(np.mean(expected), rel=1e-5)
    assert logs == {"loss": loss}


def test_smoothing_and_weights_together():
    for exclusive, labels in ((False, SOFT), (True, MIXED)):
        task = _task(exclusive=exclusive, class_weights=WEIGHTS, label_smoothing=0.1)
        loss, _ = task.loss(jnp.asarray(LOGITS), _batch(labels), 1.0)
        assert loss == pytest.approx(np.sum(_entries(task, LOGITS, labels)), rel=1e-5)


def test_large_logits_stay_finite():
    logits = jnp.asarray([[200.0, -200.0, 0.0]])
    assert _task().loss(logits, _batch([[0.0, 1.0, np.nan]]), 2.0)[0] == pytest.approx(200)
    assert _task(exclusive=True).loss(logits, _batch([[0.0, 1.0, 0.0]]), 1.0)[0] == pytest.approx(400)


@pytest.mark.parametrize(("labels", "exclusive"), [(HARD, False), (MIXED, True)])
def test_counts_losses_and_gradients_of_slices_add_up(labels, exclusive):
    task, whole = _task(exclusive=exclusive, class_weights=WEIGHTS), _batch(labels)
    count = task.count(whole)

    def loss(logits, batch):
        return task.loss(logits, batch, count)[0]

    slices = [slice(0, 2), slice(2, 4), slice(4, 6)]
    batches = [jax.tree.map(lambda field, rows=rows: field[rows], whole) for rows in slices]
    results = [jax.value_and_grad(loss)(jnp.asarray(LOGITS[rows]), batch) for rows, batch in zip(slices, batches)]
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(LOGITS), whole)
    assert sum(task.count(batch) for batch in batches) == count
    assert sum(float(result[0]) for result in results) == pytest.approx(float(value), rel=1e-6)
    np.testing.assert_allclose(np.concatenate([result[1] for result in results]), gradient, rtol=1e-6)


@pytest.mark.parametrize(("labels", "exclusive"), [(HARD, False), (ONE_HOT, True)])
def test_padding_rows_never_enter(labels, exclusive):
    task, valid = _task(exclusive=exclusive), np.arange(len(labels)) < 4
    alone = _batch(labels[:4])
    expected = float(task.loss(jnp.asarray(LOGITS[:4]), alone, task.count(alone))[0])
    for padding in (labels[4:], np.eye(3, dtype=np.float32)[:2], np.full((2, 3), np.nan, np.float32)):
        batch = _batch(np.concatenate([labels[:4], padding]), valid)
        logits = jnp.asarray(np.concatenate([LOGITS[:4], [[90, -90, 0], [5, 5, -70]]]), jnp.float32)
        loss, gradient = jax.value_and_grad(lambda z, batch=batch: task.loss(z, batch, task.count(batch))[0])(logits)
        assert task.count(batch) == task.count(alone)
        assert loss == pytest.approx(expected, rel=1e-6)
        assert not gradient[4:].any() and gradient[:4].any()


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("why", ["unknown", "padding"])
def test_nothing_known_gives_no_loss_and_no_gradient(exclusive, why):
    task = _task(exclusive=exclusive, label_smoothing=0.1, class_weights=WEIGHTS)
    batch = _batch(np.full_like(HARD, np.nan)) if why == "unknown" else _batch(ONE_HOT, np.zeros(len(ONE_HOT), bool))
    assert task.count(batch) == 0
    loss, gradient = jax.value_and_grad(lambda z: task.loss(z, batch, task.count(batch))[0])(jnp.asarray(LOGITS))
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(LOGITS))


def test_an_exclusive_row_with_an_unknown_entry_is_left_out():
    task, labels = _task(exclusive=True), np.float32([[1, 0, 0], [0, np.nan, 0]])
    assert task.count(_batch(labels)) == 1
    assert task.loss(jnp.asarray(LOGITS[:2]), _batch(labels), 1.0)[0] == pytest.approx(
        _entries(task, LOGITS[:1], labels[:1])[0], rel=1e-5
    )


def test_predict_gives_probabilities():
    batch = _batch(HARD)
    apart = _task().predict(jnp.asarray(LOGITS), batch)["scores"]
    np.testing.assert_allclose(apart, 1 / (1 + np.exp(-LOGITS)), rtol=1e-5)
    together = _task(exclusive=True).predict(jnp.asarray(LOGITS), batch)["scores"]
    np.testing.assert_allclose(together, np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True), rtol=1e-5)
    np.testing.assert_array_equal(_task().targets(batch)["labels"], HARD)


def test_the_head_is_a_part_named_after_the_task():
    task = _task(head={"name": "pooled", "normalize": True})
    ((name, build),) = task.parts({4: 5, 8: 6}).items()
    assert name == "head/chest/classification"
    head = build(nnx.Rngs(0))
    assert head.norm is not None and head.linear.kernel.shape == (6, len(CLASSES))
    asked = []

    def run(part, pyramid):
        asked.append((part, pyramid))
        return jnp.ones((2, 3), jnp.bfloat16)

    logits = task.apply(run, {8: "features"}, {})
    assert asked == [(name, {8: "features"})] and logits.dtype == jnp.float32


# In falling order of score, by hand: Youden's index is highest at the sixth row (sensitivity 1, specificity 6/9), F1 at
# the third (4/6, which the sixth equals), accuracy at the first (10 of 12, which the third equals).
RANKED = np.stack([np.float32([1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]), np.zeros(12), np.full(12, np.nan)], axis=1)
SCORES = np.repeat((0.95 - 0.05 * np.arange(12))[:, None], 3, axis=1)


@pytest.mark.parametrize(
    ("rule", "row", "of_absent"),
    [("youden", 5, np.nan), ("f1", 2, np.nan), ("accuracy", 0, metrics.NEVER)],
)
def test_each_rule_chooses_its_threshold(rule, row, of_absent):
    calibration = _task(threshold=rule).calibrate({"scores": SCORES}, {"labels": RANKED})
    # The second class is never present, the third never known.
    np.testing.assert_array_equal(calibration["thresholds"], [SCORES[row, 0], of_absent, np.nan])


def test_a_number_is_the_threshold_of_every_class():
    calibration = _task(threshold=0.3).calibrate({"scores": SCORES}, {"labels": RANKED})
    assert calibration["thresholds"] == [0.3] * 3
    assert "thresholds" not in _task(exclusive=True).calibrate({"scores": SCORES}, {"labels": RANKED})


def test_the_trivial_predictor_answers_with_the_prevalence():
    task = _task()
    calibration = task.calibrate({"scores": SCORES}, {"labels": RANKED})
    known = ~np.isnan(RANKED[:, 0])
    trivial = task.trivial({"scores": SCORES}, calibration)["scores"]
    assert trivial.shape == SCORES.shape
    np.testing.assert_allclose(trivial, np.tile([RANKED[known, 0].mean(), 0, 0], (len(SCORES), 1)), rtol=1e-6)
    values = _values(task, trivial, RANKED, calibration=calibration)
    assert values["auroc/macro"] == 0.5 and values["average_precision/macro"] == pytest.approx(RANKED[known, 0].mean())
    exclusive = _task(exclusive=True)
    labels = np.eye(3)[[0, 0, 1, 2]]
    calibration = exclusive.calibrate({"scores": labels}, {"labels": labels})
    assert calibration == {"prevalence": [0.5, 0.25, 0.25]}
    values = _values(
        exclusive, exclusive.trivial({"scores": labels}, calibration)["scores"], labels, calibration=calibration
    )
    assert values["top1_accuracy"] == 0.5 and values["quadratic_weighted_kappa"] == 0


@pytest.mark.parametrize(
    ("threshold", "calls_rare", "calls_common"),
    [("youden", False, True), ("accuracy", False, True), ("f1", True, True), (0.5, False, True), (0.05, True, True)],
)
def test_the_trivial_predictor_has_thresholds_of_its_own(threshold, calls_rare, calls_common):
    labels = np.zeros((200, 3), np.float32)
    labels[:11, 0] = labels[:150, 1] = 1  # prevalence 0.055, 0.75, and 0
    scores = (np.random.default_rng(0).random(labels.shape) * 0.1).astype(np.float32)
    task = _task(threshold=threshold)
    calibration = json.loads(json.dumps(task.calibrate({"scores": scores}, {"labels": labels})))
    trivial = task.trivial({"scores": scores}, calibration)
    found = task.metrics(trivial, {"labels": labels}, calibration=calibration, resamples=0)
    values = {metric.name: metric.value for metric in found}
    for name, share, called in (("Edema", 0.055, calls_rare), ("Fracture", 0.75, calls_common)):
        assert values[f"accuracy/{name}"] == pytest.approx(share if called else 1 - share)
        assert values[f"sensitivity/{name}"] == 1 - values[f"specificity/{name}"] == called
        assert values[f"brier/{name}"] == pytest.approx(share * (1 - share))
    of_network = task.metrics({"scores": scores}, {"labels": labels}, calibration=calibration, resamples=0)
    undefined = {metric.name for metric in of_network if np.isnan(metric.value)}
    assert undefined == {name for name, value in values.items() if np.isnan(value)}


def _values(task, scores, labels, **options):
    found = task.metrics({"scores": scores}, {"labels": labels}, resamples=0, **options)
    return {metric.name: metric.value for metric in found}


def test_a_class_without_a_threshold_leaves_the_macro_mean():
    task = _task(threshold="youden")
    calibration = task.calibrate({"scores": SCORES}, {"labels": RANKED})
    values = _values(task, SCORES, RANKED, calibration=calibration)
    assert values["accuracy/Edema"] == values["accuracy/macro"] == pytest.approx(9 / 12)
    assert np.isnan([values["accuracy/Fracture"], values["accuracy/Mass"], values["sensitivity/Fracture"]]).all()
    assert values["brier/Fracture"] == pytest.approx((SCORES[:, 1] ** 2).mean())


def test_metrics_can_be_restricted_to_classes():
    rng = np.random.default_rng(1)
    scores, labels = rng.random((40, 3)), rng.integers(0, 2, (40, 3)).astype(np.float32)
    calibration = {"thresholds": [0.1, 0.5, 0.9]}
    everything = _values(_task(), scores, labels, calibration=calibration)
    some = _values(_task(), scores, labels, classes=("Mass", "Edema"), calibration=calibration)
    assert {name.split("/")[1] for name in some} == {"Mass", "Edema", "macro"}
    for name, value in some.items():
        if name.endswith("/macro"):
            kind = name.split("/")[0]
            assert value == pytest.approx((everything[f"{kind}/Mass"] + everything[f"{kind}/Edema"]) / 2)
        else:
            assert value == everything[name]
    assert everything["sensitivity/Edema"] > 0.7 > 0.3 > everything["sensitivity/Mass"]  # the thresholds went along


def test_exclusive_figures_need_all_classes():
    rng = np.random.default_rng(2)
    labels = np.eye(3)[rng.integers(0, 3, 30)]
    scores = rng.dirichlet(np.ones(3), 30)
    task = _task(exclusive=True)
    values = _values(task, scores, labels, calibration={})
    assert values["top1_accuracy"] == pytest.approx((scores.argmax(1) == labels.argmax(1)).mean())
    restricted = _values(task, scores, labels, classes=CLASSES[:2], calibration={})
    assert "top1_accuracy" not in restricted and restricted["auroc/Edema"] == values["auroc/Edema"]


def test_patients_are_the_groups_of_the_bootstrap():
    rng = np.random.default_rng(3)
    scores, labels = rng.random((20, 3)), rng.integers(0, 2, (20, 3)).astype(np.float32)
    groups = np.repeat([f"p{index}" for index in range(5)], 4)
    found = _task().metrics(
        {"scores": scores}, {"labels": labels}, calibration={"thresholds": [0.5] * 3}, groups=groups, resamples=20
    )
    assert found == metrics.classification(scores, labels, CLASSES, groups, resamples=20)
    assert all(metric.low <= metric.high for metric in found)


def test_errors_name_the_task():
    with pytest.raises(InputError, match=r"threshold of task 'chest/classification'.*did you mean 'youden'"):
        _task(threshold="yuden")
    with pytest.raises(InputError, match="'chest/classification': exclusive classification needs at least 2 classes"):
        _task(classes=("Edema",), exclusive=True)
    with pytest.raises(
        InputError, match=r"class_weights of task 'chest/classification'.*expected 'balanced' or 3 pairs"
    ):
        _task(class_weights=WEIGHTS[:2])
    with pytest.raises(InputError, match="head of task 'chest/classification': no option 'dropot'; did you mean 'drop"):
        _task(head={"name": "pooled", "dropot": 0.1})
    with pytest.raises(InputError, match="did you mean 'pooled'"):
        _task(head={"name": "poled"})


def test_the_most_confident_errors_are_the_worst(tmp_path, sheets):
    scores = np.array([[0.9, 0.1, 0], [0.6, 0.1, 0], [0.2, 0.1, 0], [0.99, 0.9, 0], [0.3, 0.1, 0]], np.float32)
    labels = np.array([[0, 0, 0], [0, 0, 0], [0, NAN, 0], [1, NAN, 0], [NAN, NAN, NAN]], np.float32)
    predictions, targets = {"scores": scores}, {"labels": labels}
    errors = _task().errors(predictions, targets, {})
    np.testing.assert_allclose(errors, [0.8, 0.2, -0.6, -0.98, NAN], rtol=1e-5)  # right ones by how sure they are
    strict = _task().errors(predictions, targets, {"thresholds": [0.95, 0.5, 0.5]})
    np.testing.assert_allclose(strict, [-0.05 / 0.95, -0.35 / 0.95, -0.75 / 0.95, -0.8, NAN], rtol=1e-5)
    without = _task().errors(predictions, targets, {"thresholds": [NAN, 0.5, 0.5]})
    np.testing.assert_allclose(without, [-0.8, -0.8, -1, -1, NAN], rtol=1e-5)  # no threshold, no decision
    some = _task().errors(predictions, targets, {}, classes=("Fracture",))
    np.testing.assert_allclose(some, [-0.8, -0.8, NAN, NAN, NAN], rtol=1e-5)  # a protocol scores some classes
    np.testing.assert_allclose(_task(exclusive=True).errors(predictions, targets, {})[:2], [0.9, 0.6], rtol=1e-6)
    samples = samples_of(_task(), np.zeros((5, 8, 8, 1)), predictions, targets, {})
    _task().draw_samples(tmp_path, "test", samples, {})
    assert sheets == [{"best": [3, 2], "worst": [0, 1], "others at random": [4]}]
    assert (tmp_path / "samples_test.png").is_file()


def test_a_class_without_a_threshold_is_neither_called_nor_not():
    found = _task().findings({"scores": np.float32([[0.7, 0.2, 0.9]])}, {"thresholds": [0.5, 0.5, np.nan]}, 0, (8, 8))
    assert found.decisions == {"Edema": True, "Fracture": False, "Mass": None}

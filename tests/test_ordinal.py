"""The ordinal task: losses against formulas, thresholds against a full search, metrics against scikit-learn."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sheets import samples_of
from sklearn import metrics as reference

from mediax import evaluate, figures, protocols, run
from mediax.errors import InputError
from mediax.samples import Samples
from mediax.tasks.ordinal import CRITERIA, Task, fellow_mean, grading, kappa_thresholds

GRADES = ("none", "mild", "moderate", "severe")
NAN = np.nan
TRUE = np.array([0, 2, 3, 1, 3])
LABELS = np.eye(4, dtype=np.float32)[TRUE]
LABELS[3] = NAN
KNOWN = np.array([0, 1, 2, 4])
WIDTHS = {"cross_entropy": 4, "mse": 1, "corn": 3}


def make_task(**options):
    return Task(**({"name": "eye/grade", "classes": GRADES} | options))


def make_batch(labels=LABELS, valid=None):
    return {"labels": jnp.asarray(labels), "valid": jnp.asarray(np.ones(len(labels), bool) if valid is None else valid)}


def outputs_of(criterion, rows=5):
    return np.random.default_rng(0).normal(0, 2, (rows, WIDTHS[criterion])).astype(np.float32)


def expected_loss(criterion, x):
    x, sigmoid = x.astype(np.float64), lambda z: 1 / (1 + np.exp(-z))
    if criterion == "cross_entropy":
        return np.mean([np.log(np.exp(x[row]).sum()) - x[row, TRUE[row]] for row in KNOWN])
    if criterion == "mse":
        return np.mean([(x[row, 0] - TRUE[row]) ** 2 for row in KNOWN])
    decisions = []  # whether a grade is passed, asked of those alone that reach it
    for row, k in itertools.product(KNOWN, range(3)):
        if TRUE[row] >= k:
            p = sigmoid(x[row, k])
            decisions.append(-np.log(p if TRUE[row] > k else 1 - p))
    return np.mean(decisions)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_losses_are_their_formulas_and_slices_add_up(criterion):
    task, x, batch = make_task(criterion=criterion), outputs_of(criterion), make_batch()
    count = task.count(batch)
    value, gradient = jax.value_and_grad(lambda x: task.loss(x, batch, count)[0])(jnp.asarray(x))
    assert value == pytest.approx(expected_loss(criterion, x), rel=1e-5)
    assert np.isfinite(gradient).all() and not gradient[3].any() and gradient[KNOWN].any(-1).all()
    halves = [slice(2), slice(2, 5)]
    assert sum(float(task.loss(x[rows], make_batch(LABELS[rows]), count)[0]) for rows in halves) == pytest.approx(
        float(value), rel=1e-6
    )
    assert sum(float(task.count(make_batch(LABELS[rows]))) for rows in halves) == count


@pytest.mark.parametrize("criterion", CRITERIA)
def test_nothing_known_gives_no_loss_and_no_gradient(criterion):
    task, x = make_task(criterion=criterion), jnp.asarray(outputs_of(criterion))
    for batch in (make_batch(np.full_like(LABELS, NAN)), make_batch(valid=np.zeros(5, bool))):
        loss, gradient = jax.value_and_grad(lambda x, b=batch: task.loss(x, b, task.count(b))[0])(x)
        assert task.count(batch) == 0 and loss == 0 and not gradient.any()


def test_the_expected_grade_follows_from_the_probabilities():
    for criterion in ("cross_entropy", "corn"):
        predictions = make_task(criterion=criterion).predict(jnp.asarray(outputs_of(criterion)), {})
        np.testing.assert_allclose(predictions["scores"].sum(-1), 1, rtol=1e-5)
        np.testing.assert_allclose(predictions["grade"], predictions["scores"] @ np.arange(4.0), rtol=1e-5)
    certain = make_task(criterion="corn").predict(jnp.asarray([[50.0, 50, -50], [-50, 9, 9]]), {})
    np.testing.assert_allclose(certain["grade"], [2, 0], atol=1e-6)
    assert set(make_task(criterion="mse").predict(jnp.ones((2, 1)), {})) == {"grade"}


def values_of(metrics):
    return {metric.name: metric.value for metric in metrics}


def check_against_reference(decided, true, labels):
    found = values_of(grading(decided, labels, GRADES, resamples=0))
    kappa = reference.cohen_kappa_score(true, decided, weights="quadratic", labels=range(4))
    assert found["quadratic_weighted_kappa"] == pytest.approx(kappa, rel=1e-9, abs=1e-12, nan_ok=True)
    assert found["cohen_kappa"] == pytest.approx(reference.cohen_kappa_score(true, decided), abs=1e-12, nan_ok=True)
    assert found["top1_accuracy"] == pytest.approx(np.mean(true == decided))
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(true, decided))


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 4, 50)
    decided = np.clip(true + rng.integers(-1, 2, 50), 0, 3)
    labels = np.eye(4)[true]
    labels[::7] = NAN
    known = ~np.isnan(labels[:, 0])
    found = values_of(grading(decided, labels, GRADES, resamples=0))
    alone = values_of(grading(decided[known], labels[known], GRADES, resamples=0))
    assert found == alone
    check_against_reference(decided[known], true[known], labels[known])


@pytest.mark.filterwarnings("ignore::UserWarning")  # scikit-learn says that its kappa is undefined
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("decided", "true"),
    [([1, 1, 1], [1, 1, 1]), ([2, 2, 2], [0, 0, 0]), ([1, 1, 1], [0, 1, 3]), ([0, 3], [3, 0]), ([2], [2])],
    ids=["one grade", "another one", "constant", "reversed", "one image"],
)
def test_degenerate_grades_are_what_scikit_learn_says(decided, true):
    check_against_reference(np.array(decided), np.array(true), np.eye(4)[true])


def test_undefined_figures_say_why():
    same = {m.name: m for m in grading(np.array([1, 1]), np.eye(4)[[1, 1]], GRADES, resamples=20)}
    assert "one and the same grade" in same["quadratic_weighted_kappa"].note and same["mae"].value == 0
    unknown = grading(np.array([1, 1]), np.full((2, 4), NAN), GRADES, resamples=20)
    assert all(np.isnan(m.value) and m.n == 0 and "no known grade" in m.note for m in unknown)
    partly = np.eye(4)[[0, 1, 2]]
    partly[1, 2] = NAN
    assert grading(np.array([0, 3, 2]), partly, GRADES, resamples=0)[1].value == 1
    single = grading(np.array([0, 1]), np.eye(4)[[0, 3]], GRADES, ["p", "p"], resamples=20)
    assert all("a single patient" in m.note for m in single)


def kappa_of(grade, true, thresholds):
    return reference.cohen_kappa_score(true, np.searchsorted(thresholds, grade, side="right"), weights="quadratic")


def test_thresholds_are_the_best_of_a_full_search():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 40)
    grade = 0.6 * true + 0.2 + rng.normal(0, 0.25, 40)  # a network that shrinks to the mean
    found = kappa_thresholds(grade, true, 3)
    best = max(kappa_of(grade, true, pair) for pair in itertools.combinations(np.arange(0.02, 2.0, 0.04), 2))
    assert found[0] < found[1]
    assert kappa_of(grade, true, found) >= best - 1e-9 > kappa_of(grade, true, [0.5, 1.5]) + 0.05
    assert kappa_thresholds(grade, true, 3) == found  # nothing of it is random


def test_thresholds_without_anything_to_choose_stay_in_the_middle():
    assert kappa_thresholds(np.array([0.2, 0.9]), np.array([1, 1]), 4)[1:] == [1.5, 2.5]
    assert kappa_thresholds(np.empty(0), np.empty(0, int), 4) == [0.5, 1.5, 2.5]
    perfect = kappa_thresholds(np.arange(4.0), np.arange(4), 4)
    assert perfect == [0.5, 1.5, 2.5]


def test_the_rules_of_decision():
    predictions = {"grade": np.float32([0.4, 1.5, 2.9, 1.4]), "scores": np.eye(4, dtype=np.float32)[[3, 0, 1, 2]]}
    targets = {"labels": np.eye(4)[[0, 1, 3, 1]]}
    nearest = make_task(decision="nearest")
    calibration = nearest.calibrate(predictions, targets)
    assert calibration == {"shares": [0.25, 0.5, 0, 0.25], "thresholds": [0.5, 1.5, 2.5]}
    np.testing.assert_array_equal(nearest.decide(predictions, calibration), [0, 2, 3, 1])
    likely = make_task(decision="most_likely")
    np.testing.assert_array_equal(likely.decide(predictions, likely.calibrate(predictions, targets)), [3, 0, 1, 2])
    best = make_task()
    np.testing.assert_array_equal(best.decide(predictions, best.calibrate(predictions, targets)), [0, 1, 3, 1])


def test_the_fellow_eye_is_the_mean_of_the_patients_other_images():
    values, groups = np.array([1.0, 2.0, 3.0, 7.0, 5.0]), ["a", "b", "a", "c", "a"]
    np.testing.assert_allclose(fellow_mean(values, groups), [4, 2, 3, 7, 2])
    np.testing.assert_array_equal(fellow_mean(values, None), values)


def test_pairs_help_where_both_eyes_are_alike():
    rng = np.random.default_rng(3)
    true = np.repeat(rng.integers(0, 4, 300), 2)
    groups = np.repeat([f"p{i}" for i in range(300)], 2)
    predictions = {"grade": (true + rng.normal(0, 1.2, 600)).astype(np.float32)}
    targets = {"labels": np.eye(4)[true]}
    kappas = {}
    for pairs in (False, True):
        task = make_task(criterion="mse", pairs=pairs)
        half = {"grade": predictions["grade"][:300]}
        calibration = task.calibrate(half, {"labels": targets["labels"][:300]}, groups[:300])
        found = task.metrics(predictions, targets, calibration=calibration, groups=groups, resamples=0)
        kappas[pairs] = found[0].value
        if pairs:
            own, fellow, _ = calibration["blend"]
            assert 0.2 < fellow < 0.6 and 0.2 < own < 0.6
    assert kappas[True] > kappas[False] + 0.05
    with pytest.raises(InputError, match="'eye/grade': pairs needs the patient of each image"):
        make_task(pairs=True).calibrate(predictions, targets)


def _pairs(seed=3, patients=200):
    """Noisy grades of eyes that are alike, their labels and patients."""
    rng = np.random.default_rng(seed)
    true = np.repeat(rng.integers(0, 4, patients), 2)
    grade = 1 + 0.5 * true + rng.normal(0, 0.6, 2 * patients)
    return {"grade": grade.astype(np.float32)}, {"labels": np.eye(4)[true]}, np.repeat(np.arange(patients), 2)


@pytest.mark.parametrize("pairs", [False, True])
def test_the_confusion_matrix_is_of_the_grades_that_are_scored(pairs, tmp_path, monkeypatch):
    predictions, targets, groups = _pairs()
    task, drawn = make_task(criterion="mse", pairs=pairs), {}
    calibration = task.calibrate(predictions, targets, groups)
    monkeypatch.setattr(figures, "confusion", lambda path, *arguments: drawn.update({path.name: arguments}))
    monkeypatch.setattr(figures, "samples", lambda path, images, **options: drawn.update({path.name: options}))
    images = np.zeros((400, 8, 8, 1), np.float32)
    evaluation = SimpleNamespace(name="test", tasks={"grade": task}, protocol=protocols.get("eyepacs/kappa"))
    collected = evaluate.Collected({"grade": predictions}, {"grade": targets}, {"patient_id": groups}, 0.0)
    samples = samples_of(task, images, predictions, targets, calibration, groups)
    run._draw(tmp_path, evaluate.Score(evaluation, "grade", []), collected, samples, calibration)
    decided, true, _ = drawn["confusion_test.png"]
    found = values_of(task.metrics(predictions, targets, calibration=calibration, groups=groups, resamples=0))
    kappa = reference.cohen_kappa_score(true, decided, weights="quadratic")
    assert found["quadratic_weighted_kappa"] == pytest.approx(kappa)
    np.testing.assert_array_equal(task.errors(predictions, targets, calibration, groups), np.abs(decided - true))
    # Some rows alone, with those that their grades depend on, are graded as among all.
    rows = task.companions(predictions, np.array([3, 250, 17]), groups)
    assert rows.tolist() == ([2, 3, 16, 17, 250, 251] if pairs else [3, 250, 17])
    some = Samples(
        {"": range(len(rows))},
        images[rows],
        *({k: v[rows] for k, v in a.items()} for a in (predictions, targets)),
        np.zeros(len(rows)),
        groups=groups[rows],
    )
    captions = drawn["samples_test.png"]["captions"]
    task.draw_samples(tmp_path, "test", some, calibration)
    assert drawn["samples_test.png"]["captions"] == [captions[row] for row in rows]
    alone = task.decide(predictions, calibration)
    assert (decided != alone).any() == pairs


def test_a_single_image_is_graded_as_without_pairs():
    predictions, targets, groups = _pairs()
    task, without = make_task(criterion="mse", pairs=True), make_task(criterion="mse")
    calibration, alone = task.calibrate(predictions, targets, groups), without.calibrate(predictions, targets)
    assert calibration["thresholds_alone"] == alone["thresholds"] != calibration["thresholds"]
    for row in range(40):
        assert task.findings(predictions, calibration, row, (8, 8)) == without.findings(predictions, alone, row, (8, 8))
    del calibration["thresholds_alone"]
    with pytest.raises(InputError, match=r"'eye/grade': the calibration lacks 'thresholds_alone'.*--mode=evaluate"):
        task.findings(predictions, calibration, 0, (8, 8))


@pytest.mark.parametrize("options", [{}, {"decision": "most_likely"}, {"criterion": "mse"}, {"pairs": True}], ids=str)
@pytest.mark.parametrize("most", range(4))
def test_the_trivial_predictor_calls_every_image_the_most_frequent_grade(options, most):
    rng = np.random.default_rng(most)
    true = np.concatenate([np.full(20, most), np.arange(4)])
    task, scores = make_task(**options), rng.dirichlet(np.ones(4), 24).astype(np.float32)
    predictions = {"grade": (scores @ np.arange(4)).astype(np.float32), "scores": scores}
    if task.criterion == "mse":
        del predictions["scores"]
    targets, groups = {"labels": np.eye(4)[true]}, np.arange(24) // 2
    calibration = task.calibrate(predictions, targets, groups)
    trivial = task.trivial(predictions, calibration)
    assert {n: (a.dtype, a.shape) for n, a in trivial.items()} == {
        n: (a.dtype, a.shape) for n, a in predictions.items()
    }
    assert (task.decide(trivial, calibration, groups) == most).all()
    found = values_of(task.metrics(trivial, targets, calibration=calibration, groups=groups, resamples=0))
    assert found["quadratic_weighted_kappa"] == pytest.approx(0, abs=1e-12)
    assert found["top1_accuracy"] == pytest.approx(21 / 24)


def test_head_pictures_and_findings(tmp_path, sheets):
    for criterion in CRITERIA:
        ((name, build),) = make_task(criterion=criterion).parts({4: 5, 8: 6}).items()
        assert name == "head/eye/grade" and build(nnx.Rngs(0)).linear.kernel.shape == (6, WIDTHS[criterion])
    task, targets = make_task(criterion="mse"), {"labels": LABELS}
    predictions = {"grade": np.float32([0.1, 0.2, 2.9, 1.0, 2.2])}
    calibration = {"thresholds": [0.5, 1.5, 2.5], "shares": [0.25] * 4}
    task.draw(tmp_path, "test", predictions, targets, calibration=calibration)
    images = np.zeros((5, 8, 8, 1), np.float32)
    task.draw_samples(tmp_path, "test", samples_of(task, images, predictions, targets, calibration), calibration)
    assert sorted(row for rows in sheets[0].values() for row in rows) == [*range(5)]
    for path in (tmp_path / "confusion_test.png", tmp_path / "samples_test.png"):
        assert min(Image.open(path).size) > 200
    found = task.findings(predictions, calibration, 2, (8, 8))
    assert found.scores["grade"] == pytest.approx(2.9)
    assert [name for name, called in found.decisions.items() if called] == ["severe"]


def test_examples_have_one_grade_or_none():
    task = make_task()
    for labels in ([0, 0, 1, 0, 0], [1, 0, 0, 0, 0], [NAN] * 5):
        task.check_example({"id": "10_left", "labels": np.float32(labels)})
    for labels in ([0, 1, 0, 1, 0], [0] * 5, [0.5, 0.5, 0, 0, 0]):
        with pytest.raises(InputError, match=r"'eye/grade' predicts one of .* image '10_left' has the labels .*grades"):
            task.check_example({"id": "10_left", "labels": np.float32(labels)})


def test_errors_name_the_task():
    for options, words in (
        ({"criterion": "mze"}, "criterion of task 'eye/grade': no criterion 'mze'; did you mean 'mse'"),
        ({"decision": "kapa"}, "did you mean 'kappa'"),
        ({"classes": ("one",)}, "'eye/grade': grading needs at least 2 classes"),
        ({"criterion": "mse", "decision": "most_likely"}, "criterion 'mse' gives an expected grade and no prob"),
        ({"pairs": True, "decision": "most_likely"}, "pairs gives an expected grade"),
    ):
        with pytest.raises(InputError, match=words):
            make_task(**options)
    with pytest.raises(InputError, match=r"'eye/grade' predicts one of .*the batch has 2 labels"):
        make_task().count(make_batch(np.zeros((3, 2), np.float32)))
    with pytest.raises(InputError, match="grades belong together"):
        make_task().metrics({}, {}, classes=("mild",), calibration={})

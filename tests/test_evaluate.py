"""Evaluation: every row once, in order, without padding; then cases, thresholds and figures."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
import toy

from mediax import data, evaluate, inference, protocols, sharding
from mediax.evaluate import Collected, Evaluation
from mediax.metrics import Metric
from mediax.protocols import Protocol
from mediax.samples import PLACES

TASK = "classification"


def _evaluation(rows=13, batch_size=8, **changes):
    training = toy.training()
    values = {
        "name": "validation",
        "dataset": "toy",
        "split": "validation",
        "protocol": protocols.get("image"),
        "tasks": training.streams["a"].tasks,
        "batches": partial(data.evaluation_batches, toy.Source(rows), toy.read, batch_size=batch_size),
        "size": rows,
        "calibrate_on": "validation",
        "during_training": True,
        "rows": "",
    }
    return Evaluation(**(values | changes))


def _log(probability):
    return np.log(np.asarray(probability, np.float64))


@pytest.fixture(scope="module")
def collected():
    """Gives a split of 13 rows, collected in batches of 8, and the progress that was shown."""
    training, evaluation, shown = toy.training(), _evaluation(), []
    step = evaluate.make_predict_step(training.model, evaluation.tasks, training.mesh)
    variables = training.model.init(jax.random.key(0))
    found = evaluate.collect(step, variables, evaluation, training.mesh, lambda *counts: shown.append(counts))
    return found, shown


def test_rows_come_in_the_order_of_the_source_and_without_padding(collected):
    found, shown = collected
    rows = [toy.Source()[index] for index in range(13)]
    assert found.host["id"].tolist() == [row["id"] for row in rows]
    assert found.host["patient_id"].tolist() == [row["patient_id"] for row in rows]
    np.testing.assert_array_equal(found.targets[TASK]["labels"], np.stack([row["labels"] for row in rows]))
    assert shown == [(8, 13), (13, 13)]


def test_scores_are_those_of_each_image_alone(collected):
    found, _ = collected
    training = toy.training()
    params, batch_stats = training.model.init(jax.random.key(0))
    images = np.stack([toy.Source()[index]["image"] for index in range(13)]).astype(np.float32) / 255
    tasks = training.streams["a"].tasks
    logits, _ = training.model.forward(tasks, params, batch_stats, {"image": images}, key=jax.random.key(1))
    np.testing.assert_allclose(found.predictions[TASK]["scores"], jax.nn.sigmoid(logits[TASK]), rtol=1e-5)


def test_loss_is_the_mean_over_known_entries(collected):
    found, _ = collected
    scores, labels = found.predictions[TASK]["scores"], found.targets[TASK]["labels"]
    known = ~np.isnan(labels)
    entries = np.where(labels == 1, -_log(scores), -_log(1 - scores))[known]
    assert len(entries) == 26 - 3  # every fifth label of the second class is unknown
    assert found.loss == pytest.approx(entries.mean(), rel=1e-5)


def _echo(batch):
    """A predict step that returns the first pixel as the score, and counts the valid rows as the loss."""
    valid = np.asarray(batch["valid"])
    scores = np.asarray(batch["image"])[:, 0, 0]
    outputs = {"predictions": {"scores": scores}, "targets": {"labels": np.asarray(batch["labels"])}}
    return {TASK: outputs | {"loss": np.float32(2 * valid.sum()), "count": np.float32(valid.sum())}}


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 8), (16, 8), (150, 20)])
def test_any_size_of_split_and_batch(rows, batch_size):
    evaluation = _evaluation(rows, batch_size)
    found = evaluate.collect(_echo, (), evaluation, sharding.mesh())
    expected = [toy.Source()[index]["image"][0, 0, 0] / 255 for index in range(rows)]
    np.testing.assert_allclose(found.predictions[TASK]["scores"][:, 0], expected, rtol=1e-6)
    assert found.host["id"].tolist() == [str(index) for index in range(rows)]
    assert found.loss == pytest.approx(2)


class Painter:
    """The toy's classification, which predicts a picture beside; one image is as wrong as `mistakes` say."""

    def __init__(self, mistakes, companions=()):
        self.task, self.mistakes = toy.training().streams["a"].tasks[TASK], np.asarray(mistakes, float)
        if companions:
            self.companions = lambda predictions, rows, groups: np.array(companions)

    def __getattr__(self, attribute):
        return getattr(self.task, attribute)

    def predict(self, logits, batch):
        return self.task.predict(logits, batch) | {"picture": 2 * batch["image"]}

    def targets(self, batch):
        return self.task.targets(batch) | {"true_picture": batch["image"] + 1}

    def errors(self, predictions, targets, calibration, groups, *, classes):
        assert not {"picture", "true_picture"} & {*predictions, *targets}
        assert len(predictions["scores"]) == len(targets["labels"]) == len(groups) == len(self.mistakes)
        return self.mistakes


def _samples(evaluation, name=TASK, views=inference.WHOLE):
    """Gives a split that was collected, what is looked at of it, and the rows that the second pass read."""
    training, read = toy.training(), []

    def batches(rows=None):
        read.append(None if rows is None else [*map(int, rows)])
        return evaluation.batches(rows=rows)

    spied = dataclasses.replace(evaluation, batches=batches, views=views)
    step = evaluate.make_predict_step(training.model, spied.tasks, training.mesh, views)
    variables = training.model.init(jax.random.key(0))
    found = evaluate.collect(step, variables, spied, training.mesh)
    samples = evaluate.samples(step, variables, spied, training.mesh, found, name, {})
    assert read[0] is None and len(read) == 2
    return found, samples, read[1]


def _mistakes(rows, worst):
    """Errors in which one row is the worst by far, and two rows are unknown."""
    errors = np.linspace(-1, 0.5, rows)
    errors[worst] = 9
    errors[[4, 7]] = np.nan
    return errors


def test_the_worst_row_of_the_whole_split_is_looked_at_with_its_pictures():
    task = Painter(_mistakes(200, worst=150))
    found, samples, read = _samples(_evaluation(200, 16, tasks={TASK: task}))
    assert list(samples.sections) == [f"{name}, of 200 images" for name in ("best", "worst", "others at random")]
    assert read == sorted(read) and len(read) == PLACES  # of 200 rows no other one goes through the model again
    worst = samples.sections["worst, of 200 images"][0]
    assert read[worst] == 150
    assert [read[place] for place in samples.sections["best, of 200 images"]] == [0, 1, 2, 3, 5, 6]
    images = np.stack([toy.Source()[row]["image"] for row in read]).astype(np.float32) / 255
    np.testing.assert_array_equal(samples.images, images)
    np.testing.assert_array_equal(samples.predictions["picture"], 2 * images)
    np.testing.assert_array_equal(samples.targets["true_picture"], images + 1)
    np.testing.assert_array_equal(samples.predictions["scores"], found.predictions[TASK]["scores"][read])
    np.testing.assert_array_equal(samples.targets["labels"], found.targets[TASK]["labels"][read])
    assert samples.groups.tolist() == [str(row // 2) for row in read]
    # The first pass keeps no picture.
    assert set(found.predictions[TASK]) == {"scores"} and set(found.targets[TASK]) == {"labels"}


@pytest.mark.parametrize("views", [inference.WHOLE, inference.Views(flips=("horizontal",))])
def test_the_second_pass_gives_what_a_pass_over_all_rows_does(views):
    class Draughtsman(Painter):
        """Predicts a picture by the network: the scores of the image, in four axes."""

        def predict(self, logits, batch):
            scores = self.task.predict(logits, batch)
            return scores | {"picture": scores["scores"][:, None, None]}

    evaluation = _evaluation(60, 8, tasks={TASK: Draughtsman(_mistakes(60, worst=50))})
    found, samples, read = _samples(evaluation, views=views)
    assert 50 in read and len(read) == PLACES
    np.testing.assert_allclose(
        samples.predictions["picture"][:, 0, 0], found.predictions[TASK]["scores"][read], rtol=1e-6
    )


def test_each_task_of_an_evaluation_has_its_own_worst_row():
    tasks = {TASK: Painter(_mistakes(100, worst=90))}
    other = tasks | {"other": Painter(_mistakes(100, worst=80))}
    for task in other.values():
        task.apply = lambda run, pyramid, batch: run("head/a/classification", pyramid)
    for name, worst in ((TASK, 90), ("other", 80)):
        _, samples, read = _samples(_evaluation(100, 16, tasks=other), name)
        assert read[samples.sections["worst, of 100 images"][0]] == worst
        assert len(samples.images) == len(samples.predictions["picture"]) == PLACES


def test_rows_are_judged_by_the_protocol():
    class Judged(Painter):
        def errors(self, predictions, targets, calibration, groups, *, classes, iou):
            assert iou == 0.2
            return self.task.errors(predictions, targets, calibration, groups, classes=classes)

        def annotated(self, targets, classes):
            assert classes == ("Fracture",)
            return np.isin(np.arange(len(targets["labels"])), [151, 153])

    protocol = Protocol("lesions", "", "", classes=("Fracture",), options={"iou": 0.2})
    task = Judged(np.zeros(200))
    evaluation = dataclasses.replace(_evaluation(200, 16, tasks={TASK: task}), protocol=protocol)
    found, samples, read = _samples(evaluation)
    arrays = found.predictions[TASK], found.targets[TASK]
    errors = task.task.errors(*arrays, {}, classes=("Fracture",))
    np.testing.assert_array_equal(samples.errors, errors[read])
    assert samples.classes == ("Fracture",)
    worst = [read[place] for place in samples.sections["worst, of 200 images"]]
    assert not set(worst) & set(np.flatnonzero(np.isnan(arrays[1]["labels"][:, 1])))
    best = [read[place] for place in samples.sections["best, of 2 annotated images"]]
    assert best == [min((151, 153), key=lambda row: errors[row])]


def test_a_small_split_is_looked_at_whole():
    _, samples, read = _samples(_evaluation(9, 4, tasks={TASK: Painter(_mistakes(9, worst=8))}))
    assert read == [*range(9)] and len(samples.images) == 9
    assert {4, 7} <= {*samples.sections["others at random, of 9 images"].tolist()}
    assert sorted(place for places in samples.sections.values() for place in places) == [*range(9)]


def test_rows_that_others_depend_on_come_along_in_no_section():
    task = Painter(_mistakes(200, worst=150), companions=(33, 44, 150))
    _, samples, read = _samples(_evaluation(200, 16, tasks={TASK: task}))
    shown = {read[place] for places in samples.sections.values() for place in places}
    assert len(shown) == PLACES and {*read} == shown | {33, 44}
    assert samples.images.shape[0] == len(read)


def test_a_study_is_scored_and_its_images_are_looked_at():
    by_study = Protocol("test", "", "", case="study")
    task = Painter(_mistakes(64, worst=63))
    _, samples, read = _samples(_evaluation(64, 16, tasks={TASK: task}, protocol=by_study))
    assert read[samples.sections["worst, of 64 images"][0]] == 63


def test_a_loss_without_known_entries_is_zero():
    def unknown(batch):
        return {TASK: _echo(batch)[TASK] | {"loss": np.float32(0), "count": np.float32(0)}}

    assert evaluate.collect(unknown, (), _evaluation(), sharding.mesh()).loss == 0


def test_evaluations_alike_share_a_predict_step():
    training = toy.training()
    one, other = (_evaluation(rows=13, tasks=training.streams["a"].tasks) for _ in range(2))
    flipped = dataclasses.replace(one, rows="flipped", views=inference.Views(flips=("horizontal",)))
    steps = evaluate.make_predict_steps(
        training.model, [one, dataclasses.replace(other, rows="other"), flipped], training.mesh
    )
    assert steps[""] is steps["other"] is not steps["flipped"]


class Stub:
    """A task that keeps what it is given: its threshold is the mean score, its figure that threshold."""

    def __init__(self):
        self.asked = {}

    def calibrate(self, predictions, targets, groups):
        return {"threshold": float(predictions["scores"].mean())}

    def trivial(self, predictions, calibration):
        return {"scores": 0 * predictions["scores"]}

    def metrics(self, predictions, targets, **options):
        if not predictions["scores"].any():
            return [Metric("threshold", -1.0, np.nan, np.nan, 0)]
        self.asked = options | {"scores": predictions["scores"], "labels": targets["labels"]}
        return [Metric("threshold", options["calibration"]["threshold"], np.nan, np.nan, len(targets["labels"]))]


def _collected(scores):
    scores = np.asarray(scores, np.float32)
    host = {
        "patient_id": np.array([f"p{row // 2}" for row in range(len(scores))]),
        "study_id": np.array([f"s{row // 2}" for row in range(len(scores))]),
    }
    return Collected({"stub": {"scores": scores}}, {"stub": {"labels": scores}}, host, 0.0)


SCORES = [[0.0, 0.2], [0.4, 0.2], [0.6, 0.8], [1.0, 0.0]]


def test_thresholds_come_from_one_split_and_figures_from_another():
    task = Stub()
    evaluation = _evaluation(tasks={"stub": task})
    calibration = evaluate.calibrate(evaluation, _collected([[0.25, 0.25]] * 4))
    assert calibration == {"stub": {"threshold": 0.25}}
    (scored,) = evaluate.score(evaluation, _collected(SCORES), calibration, resamples=7)
    assert (scored.evaluation, scored.task) == (evaluation, "stub")
    assert scored.metrics == [Metric("threshold", 0.25, np.nan, np.nan, 4, trivial=-1.0)]
    (alone,) = evaluate.score(evaluation, _collected(SCORES), calibration, resamples=7, beside=False)
    assert alone.metrics == [Metric("threshold", 0.25, np.nan, np.nan, 4)]
    assert task.asked["resamples"] == 7 and task.asked["classes"] == ()
    assert task.asked["groups"].tolist() == ["p0", "p0", "p1", "p1"]
    np.testing.assert_array_equal(task.asked["scores"], np.float32(SCORES))


def test_a_task_calibrates_with_the_patients_of_the_cases():
    class Pairs(Stub):
        def calibrate(self, predictions, targets, groups):
            return {"groups": groups.tolist()}

    tasks = {"stub": Pairs()}
    assert evaluate.calibrate(_evaluation(tasks=tasks), _collected(SCORES)) == {
        "stub": {"groups": ["p0", "p0", "p1", "p1"]}
    }
    by_study = _evaluation(tasks=tasks, protocol=Protocol("test", "", "", case="study"))
    assert evaluate.calibrate(by_study, _collected(SCORES)) == {"stub": {"groups": ["p0", "p1"]}}


def test_the_protocol_s_cases_are_calibrated_and_scored():
    task = Stub()
    protocol = Protocol("test", "", "", case="study", classes=("Fracture",), options={"iou": 0.4})
    evaluation = _evaluation(tasks={"stub": task}, protocol=protocol)
    studies = np.float32([[0.4, 0.2], [1.0, 0.8]])
    calibration = evaluate.calibrate(evaluation, _collected(SCORES))
    assert calibration["stub"]["threshold"] == pytest.approx(studies.mean())
    evaluate.score(evaluation, _collected(SCORES), calibration, resamples=0)
    assert (
        task.asked["classes"] == ("Fracture",)
        and task.asked["iou"] == 0.4
        and task.asked["groups"].tolist() == ["p0", "p1"]
    )
    np.testing.assert_array_equal(task.asked["scores"], studies)
    np.testing.assert_array_equal(task.asked["labels"], studies)


def test_evaluations_during_training_are_calibrated_on_themselves():
    evaluations = {
        "validation": _evaluation(),
        "external": _evaluation(name="external"),
        "test": _evaluation(name="test", during_training=False),
    }
    kept = evaluate.without_intervals(evaluations)
    assert {name: evaluation.calibrate_on for name, evaluation in kept.items()} == {
        "validation": "validation",
        "external": "external",
    }
    assert evaluations["external"].calibrate_on == "validation"

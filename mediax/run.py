"""One run: train, evaluate the best checkpoint on every split, leave results that a person can look at."""

import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from mediax import evaluate, experiment, figures, report, sharding, train
from mediax.checkpoint import Checkpoints, abstract
from mediax.errors import InputError
from mediax.files import naming_file, replace_file
from mediax.preemption import Preemption
from mediax.samples import Samples
from mediax.train import Training

CALIBRATED_UNDER = "config.evaluations"  # in calibration.json; no evaluation has a dot in its name


def run(config: Mapping[str, Any], folders: experiment.Folders, *, mode: str, arguments: Sequence[str]) -> None:
    """Trains (mode `train`) and evaluates the best checkpoint, writing everything below `folders.work`.

    `arguments` are those of the command line, which the results repeat.
    """
    started = _now()
    experiment.split_cpu(config)
    preemption = Preemption()
    if mode == "evaluate" and not (folders.work / "checkpoints" / "best").is_dir():
        raise InputError(f"{folders.work}: no checkpoint to evaluate; train first, with the same --workdir")
    with naming_file(folders.work):
        folders.work.mkdir(parents=True, exist_ok=True)
    training = experiment.compose(config, folders)
    if mode == "train":
        train.fit(training, folders.work, preemption)
    state, step = best_state(training, folders.work)
    results = evaluate_all(training, state, folders.work)
    if jax.process_index() != 0:
        return
    figures.curves(folders.work, best_step=step)
    about = {
        "command": ["python", "-m", "mediax.main", *arguments],
        "config": training.config,
        "config_hash": report.config_hash(training.config),
        "seed": training.seed,
        "step": step,
        "checkpoint": f"checkpoints/best/{step}",
        "versions": report.versions(),
        "devices": report.devices(),
        "git_revision": report.git_revision(),
        "started": started,
        "finished": _now(),
    }
    report.write_results(folders.work, run=about, results=results)
    for line in report.headlines(results):
        print(line)
    print(f"results: {folders.work / 'results.md'}")


def best_state(training: Training, workdir: Path) -> tuple[train.TrainState, int]:
    """Restores the best checkpoint of a run; raises InputError if it was trained with another config."""
    checkpoints = Checkpoints(workdir, "best")
    step = checkpoints.latest_step()
    if step is None:
        raise InputError(f"{checkpoints.folder}: no checkpoint to evaluate; train first, with the same --workdir")
    train.check_same_config(
        checkpoints.config(), training.config, checkpoints.folder, except_for=train.EVALUATED_FIELDS
    )
    shapes = jax.eval_shape(partial(train.init_state, training), jax.random.key(0))
    shardings = sharding.state_sharding(training.mesh, shapes, training.sharding)
    state, _ = checkpoints.restore(abstract(shapes, shardings), step)
    checkpoints.close()
    return state, step


def evaluate_all(training: Training, state: train.TrainState, workdir: Path) -> list[report.Result]:
    """Evaluates every split of the config, the thresholds coming from the evaluation that each is calibrated on.

    Beside pictures it leaves below `workdir` what later programs need: `calibration.json` and `predictions/`.
    """
    evaluations = training.evaluations
    logging.info("evaluating %s", ", ".join(f"{name} ({each.size:,} images)" for name, each in evaluations.items()))
    variables = state.evaluated()
    collected = evaluate.collect_all(training.predict_steps, variables, evaluations.values(), training.mesh)
    calibrations = {
        name: evaluate.calibrate(evaluations[name], collected[evaluations[name].rows])
        for name in {evaluation.calibrate_on for evaluation in evaluations.values()}
    }
    if jax.process_index() == 0:
        _clear(workdir)
    results = []
    for evaluation in evaluations.values():
        rows, calibration = collected[evaluation.rows], calibrations[evaluation.calibrate_on]
        step = training.predict_steps[evaluation.rows]
        for scored in evaluate.score(evaluation, rows, calibration, resamples=training.resamples):
            of_task = calibration[scored.task]
            results.append(_result(scored, of_task))
            samples = evaluate.samples(step, variables, evaluation, training.mesh, rows, scored.task, of_task)
            if jax.process_index() == 0:
                _draw(workdir, scored, rows, samples, of_task)
                _save_predictions(workdir / "predictions", scored, rows)
    if jax.process_index() == 0:
        _save_calibration(workdir, training, calibrations)
    return results


def _save_calibration(workdir: Path, training: Training, calibrations: Mapping[str, Any]) -> None:
    """Writes of each evaluation the thresholds of its tasks, and the config that the evaluations had."""
    evaluations = training.evaluations
    chosen = {name: calibrations[evaluation.calibrate_on] for name, evaluation in evaluations.items()}
    chosen[CALIBRATED_UNDER] = {name: training.config["evaluations"][name] for name in evaluations}
    # Plain for tasks to take back as they gave it: a threshold that does not exist stays NaN.
    text = json.dumps(chosen, indent=2, default=lambda array: array.tolist())
    replace_file(workdir / "calibration.json", text.encode() + b"\n")


def _result(scored: evaluate.Score, calibration: Mapping[str, Any]) -> report.Result:
    evaluation = scored.evaluation
    protocol = evaluation.protocol
    chosen = [name for name in calibration if name.startswith("threshold")]
    thresholds = f"; thresholds from {evaluation.calibrate_on}" if chosen else ""
    return report.Result(
        evaluation=evaluation.name,
        dataset=evaluation.dataset,
        split=evaluation.split,
        task=scored.task,
        protocol=f"{protocol.name} ({protocol.description}{thresholds})",
        metrics=tuple(scored.metrics),
        phantom=evaluation.phantom,
        headline=protocol.headline,
    )


def _clear(workdir: Path) -> None:
    """Deletes the pictures and predictions of an earlier evaluation, whose splits may have had other names."""
    for path in (*report.figure_files(workdir), *(workdir / "predictions").glob("*.npz")):
        with naming_file(path):
            path.unlink()


def _draw(
    workdir: Path,
    scored: evaluate.Score,
    rows: evaluate.Collected,
    samples: Samples,
    calibration: Mapping[str, Any],
) -> None:
    evaluation = scored.evaluation
    task = evaluation.tasks[scored.task]
    name = evaluation.name if len(evaluation.tasks) == 1 else f"{evaluation.name}_{scored.task}"
    predictions, targets, groups = evaluate.cases(evaluation, rows, scored.task)
    if hasattr(task, "draw"):  # of curves; not every task has some
        options = {"classes": evaluation.protocol.classes, "calibration": calibration, "groups": groups}
        task.draw(workdir, name, predictions, targets, **options)
    task.draw_samples(workdir, name, samples, calibration)


def _save_predictions(folder: Path, scored: evaluate.Score, rows: evaluate.Collected) -> None:
    """Writes `<evaluation>_<task>.npz`: all that was scored but pictures, and what pairs it with another run's.

    `prediction/<name>` and `target/<name>` are arrays [N,...] over the protocol's cases, `classes` the names of the
    columns of scores or of the boxes' labels, if the task has such. `case` [N] are hashes of the images' or studies'
    ids and `group` i[N] numbers the patients, so that files of the same split can be compared and name nobody. `draws`
    f32[M,R] are the bootstrap draws of the figures whose names are in `metric` [M]: those of two runs on the same cases
    are of the same patients, so their difference is a paired bootstrap.
    """
    evaluation = scored.evaluation
    predictions, targets, groups = evaluate.cases(evaluation, rows, scored.task)
    arrays = {
        f"{kind}/{name}": array
        for kind, of_kind in (("prediction", predictions), ("target", targets))
        for name, array in of_kind.items()
        if array.ndim < evaluate.PICTURE_AXES
    }
    cases = _case_ids(evaluation, rows)
    arrays["case"] = np.array([hashlib.sha256(str(case).encode()).hexdigest()[:16] for case in cases])
    arrays["group"] = np.arange(len(cases)) if groups is None else _numbered(groups)
    drawn = [metric for metric in scored.metrics if metric.draws is not None and metric.draws.size]
    arrays["metric"] = np.array([metric.name for metric in drawn], str)
    arrays["draws"] = np.array([metric.draws for metric in drawn], np.float32)
    task = evaluation.tasks[scored.task]
    arrays["classes"] = np.array(getattr(task, "classes", getattr(task, "box_classes", ())), str)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    with naming_file(folder):
        folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / f"{evaluation.name}_{scored.task}.npz", content.getvalue())


def _case_ids(evaluation: evaluate.Evaluation, rows: evaluate.Collected) -> np.ndarray:
    """The image or study that each of the protocol's cases is, in the order of `protocols.cases`."""
    return rows.host["id"] if evaluation.protocol.case == "image" else np.unique(rows.host["study_id"])


def _numbered(names: np.ndarray) -> np.ndarray:
    """Numbers names in the order in which they first appear: names [N] -> i[N]."""
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")

"""One run: train, evaluate the best checkpoint on every split, leave results that a person can look at."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import logging

from mediax import evaluate, experiment, figures, report, sharding, train
from mediax.checkpoint import Checkpoints, abstract
from mediax.errors import InputError
from mediax.files import naming_file
from mediax.preemption import Preemption
from mediax.train import Training


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
    for result in results:
        print(report.headline(result))
    print(f"results: {folders.work / 'results.md'}")


def best_state(training: Training, workdir: Path) -> tuple[train.TrainState, int]:
    """Restores the best checkpoint of a run; raises InputError if it was trained with another config."""
    checkpoints = Checkpoints(workdir, "best")
    step = checkpoints.latest_step()
    if step is None:
        raise InputError(f"{checkpoints.folder}: no checkpoint to evaluate; train first, with the same --workdir")
    train.check_same_config(checkpoints.config(), training.config, checkpoints.folder, except_for=("evaluations",))
    shapes = jax.eval_shape(partial(train.init_state, training), jax.random.key(0))
    shardings = sharding.state_sharding(training.mesh, shapes, training.sharding)
    state, _ = checkpoints.restore(abstract(shapes, shardings), step)
    checkpoints.close()
    return state, step


def evaluate_all(training: Training, state: train.TrainState, workdir: Path) -> list[report.Result]:
    """Evaluates every split of the config, the thresholds coming from the evaluation that each is calibrated on."""
    evaluations = training.evaluations
    logging.info("evaluating %s", ", ".join(f"{name} ({each.size:,} images)" for name, each in evaluations.items()))
    steps = evaluate.make_predict_steps(training.model, evaluations.values(), training.mesh)
    collected = evaluate.collect_all(steps, state.evaluated(), evaluations.values(), training.mesh)
    calibrations = {
        name: evaluate.calibrate(evaluations[name], collected[evaluations[name].rows])
        for name in {evaluation.calibrate_on for evaluation in evaluations.values()}
    }
    results = []
    for evaluation in evaluations.values():
        rows, calibration = collected[evaluation.rows], calibrations[evaluation.calibrate_on]
        for scored in evaluate.score(evaluation, rows, calibration, resamples=training.resamples):
            results.append(_result(scored))
            if jax.process_index() == 0:
                _draw(workdir, scored, rows, calibration[scored.task])
    return results


def _result(scored: evaluate.Score) -> report.Result:
    evaluation = scored.evaluation
    protocol = evaluation.protocol
    return report.Result(
        evaluation=evaluation.name,
        dataset=evaluation.dataset,
        split=evaluation.split,
        task=scored.task,
        protocol=f"{protocol.name} ({protocol.description}; thresholds from {evaluation.calibrate_on})",
        metrics=tuple(scored.metrics),
        phantom=evaluation.phantom,
    )


def _draw(workdir: Path, scored: evaluate.Score, rows: evaluate.Collected, calibration: Mapping[str, Any]) -> None:
    evaluation = scored.evaluation
    task = evaluation.tasks[scored.task]
    name = evaluation.name if len(evaluation.tasks) == 1 else f"{evaluation.name}_{scored.task}"
    predictions, targets, _ = evaluate.cases(evaluation, rows, scored.task)
    task.draw(workdir, name, predictions, targets, classes=evaluation.protocol.classes)
    task.draw_samples(workdir, name, rows.images, rows.predictions[scored.task], rows.targets[scored.task], calibration)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")

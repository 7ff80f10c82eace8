"""One run: train, evaluate the best checkpoint on every split, leave results that a person can look at."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from mediax import evaluate, experiment, figures, report, sharding, train
from mediax.checkpoint import Checkpoints, abstract
from mediax.errors import InputError
from mediax.train import Training


def run(config: Mapping[str, Any], folders: experiment.Folders, *, mode: str, command: Sequence[str]) -> None:
    """Trains (mode `train`) and evaluates the best checkpoint, writing everything below `folders.work`."""
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    training = experiment.compose(config, folders)
    if mode == "train":
        train.fit(training, folders.work)
    state, step = best_state(training, folders.work)
    results = evaluate_all(training, state, folders.work, resamples=config["resamples"])
    if jax.process_index() != 0:
        return
    figures.curves(folders.work, best_step=step)
    about = {
        "command": list(command),
        "config": training.config,
        "config_hash": report.config_hash(training.config),
        "seed": training.seed,
        "step": step,
        "checkpoint": f"checkpoints/best/{step}",
        "versions": report.versions(),
        "devices": report.devices(),
        "git_revision": report.git_revision(),
        "started": started,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    report.write_results(folders.work, run=about, results=results)
    for result in results:
        shown = [m for m in result.metrics if m.name.endswith("/macro") or m.name == "accuracy"][:3]
        figures_text = ", ".join(f"{m.name} {m.value:.4f} [{m.low:.4f}, {m.high:.4f}]" for m in shown)
        print(f"{result.evaluation} ({result.dataset} {result.split}, {result.protocol}): {figures_text}")
    print(f"results: {folders.work / 'results.md'}")


def best_state(training: Training, workdir: Path) -> tuple[train.TrainState, int]:
    """Restores the best checkpoint of a run; raises InputError if there is none."""
    checkpoints = Checkpoints(workdir, "best")
    step = checkpoints.latest_step()
    if step is None:
        raise InputError(f"{checkpoints.folder}: no checkpoint to evaluate; train first, with the same --workdir")
    shapes = jax.eval_shape(partial(train.init_state, training), jax.random.key(0))
    shardings = sharding.state_sharding(training.mesh, shapes, training.sharding)
    state, _ = checkpoints.restore(abstract(shapes, shardings), step)
    checkpoints.close()
    return state, step


def evaluate_all(training: Training, state: train.TrainState, workdir: Path, *, resamples: int) -> list[report.Result]:
    """Evaluates every split of the config, the thresholds coming from the evaluation that each is calibrated on."""
    evaluations = training.evaluations
    collected, results = {}, []
    for name, evaluation in evaluations.items():
        step = evaluate.make_predict_step(training.model, evaluation.tasks, training.mesh)
        collected[name] = evaluate.collect(step, state.evaluated(), evaluation, training.mesh)
    calibrations = {
        name: evaluate.calibrate(evaluations[name], collected[name])
        for name in {evaluation.calibrate_on for evaluation in evaluations.values()}
    }
    for name, evaluation in evaluations.items():
        calibration = calibrations[evaluation.calibrate_on]
        for scored in evaluate.score(evaluation, collected[name], calibration, resamples=resamples):
            results.append(
                report.Result(
                    evaluation=name,
                    dataset=evaluation.dataset,
                    split=evaluation.split,
                    task=scored.task,
                    protocol=f"{evaluation.protocol.name} ({evaluation.protocol.description}); thresholds from "
                    f"{evaluation.calibrate_on}",
                    metrics=tuple(scored.metrics),
                    phantom=evaluation.phantom,
                )
            )
            if jax.process_index() == 0:
                evaluation.tasks[scored.task].draw(
                    workdir,
                    name if len(evaluation.tasks) == 1 else f"{name}_{scored.task}",
                    collected[name].predictions[scored.task],
                    collected[name].targets[scored.task],
                    collected[name].images,
                    calibration[scored.task],
                )
    return results

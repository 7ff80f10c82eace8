"""Evaluation: every row of a split exactly once through the model, then the task's metrics under a protocol."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mediax import inference, protocols, sharding
from mediax.batch import HOST_FIELDS, Batch, device_fields
from mediax.metrics import Metric
from mediax.model import Model, Tree
from mediax.samples import Samples, choose

PICTURE_AXES = 4  # arrays with as many axes are pictures, f[B,H,W,S]: a whole split of them does not fit in memory


@dataclass(frozen=True)
class Evaluation:
    """A split to evaluate: `batches()` yields it once, `batches(rows=...)` these rows alone.

    `calibrate_on` names the evaluation that fixes thresholds. Evaluations with the same `rows` see the same model
    outputs, under protocols that may differ.
    """

    name: str
    dataset: str
    split: str
    protocol: protocols.Protocol
    tasks: Mapping[str, Any]
    batches: Callable[..., Iterator[Batch]]
    size: int
    calibrate_on: str
    during_training: bool
    rows: str
    views: inference.Views = inference.WHOLE
    phantom: bool = False


class Collected(NamedTuple):
    """A whole split on the host, but for pictures (`PICTURE_AXES`): predictions and targets by task, ids, mean loss."""

    predictions: dict[str, dict[str, np.ndarray]]
    targets: dict[str, dict[str, np.ndarray]]
    host: dict[str, np.ndarray]
    loss: float


class Score(NamedTuple):
    """The figures of one task on one split under one protocol."""

    evaluation: Evaluation
    task: str
    metrics: list[Metric]


def make_predict_step(
    model: Model, tasks: Mapping[str, Any], mesh: Mesh, views: inference.Views = inference.WHOLE
) -> Callable[..., Tree]:
    """Builds the jitted step (params, batch_stats, batch) -> predictions, targets and loss sums of each task."""

    def predict_step(params: Tree, batch_stats: Tree, batch: Batch) -> Tree:
        outputs = inference.forward(model, tasks, params, batch_stats, batch, views)
        return {
            name: {
                "predictions": task.predict(outputs[name], batch),
                "targets": task.targets(batch),
                "loss": task.loss(outputs[name], batch, 1.0)[0],
                "count": task.count(batch),
            }
            for name, task in tasks.items()
        }

    # Whole copies on every device, so that each process sees the rows of all.
    return jax.jit(predict_step, out_shardings=sharding.replicated(mesh))


def collect(
    predict_step: Callable[..., Tree], variables: tuple[Tree, Tree], evaluation: Evaluation, mesh: Mesh, progress=None
) -> Collected:
    """Runs a split through the model and brings the valid rows to the host, in the order of the source."""
    outputs, losses, hosts, valids, seen = [], [], [], [], 0
    for batch in evaluation.batches():
        output = predict_step(*variables, sharding.to_device(device_fields(batch), mesh))
        outputs.append(_arrays(output, pictures=False))
        losses.append({task: (float(of_task["loss"]), float(of_task["count"])) for task, of_task in output.items()})
        hosts.append({name: _gather(batch[name]) for name in HOST_FIELDS if name in batch})
        valids.append(_gather(batch["valid"]))
        seen += int(valids[-1].sum())
        if progress:
            progress(seen, evaluation.size)
    sums = [np.sum([loss[task] for loss in losses], axis=0) for task in evaluation.tasks]
    return Collected(
        **_joined(outputs, valids),
        host=_joined(hosts, valids),
        loss=float(sum(loss / max(count, 1.0) for loss, count in sums)),
    )


def samples(
    predict_step: Callable[..., Tree],
    variables: tuple[Tree, Tree],
    evaluation: Evaluation,
    mesh: Mesh,
    collected: Collected,
    name: str,
    calibration: Mapping[str, Any],
) -> Samples:
    """The best, the worst and some random rows of the split, as the task `name` judges them, with their pictures.

    The pictures come from a second pass, over these rows alone; all processes have to take part in it.
    """
    task = evaluation.tasks[name]
    predictions, targets = collected.predictions[name], collected.targets[name]
    groups, protocol = collected.host.get("patient_id"), evaluation.protocol
    options = {"classes": protocol.classes, **protocol.options}
    errors = task.errors(predictions, targets, calibration, groups, **options)
    annotated = task.annotated(targets, protocol.classes) if hasattr(task, "annotated") else None
    chosen, needed = choose(errors, annotated=annotated), np.zeros(len(errors), bool)
    needed[np.concatenate([*chosen.values()])] = True
    if hasattr(task, "companions"):
        needed[task.companions(predictions, np.flatnonzero(needed), groups)] = True
    rows = np.flatnonzero(_of_first_process(needed))
    pictures = _pictures(predict_step, variables, evaluation, mesh, rows)
    return Samples(
        sections={title: np.searchsorted(rows, shown) for title, shown in chosen.items()},
        images=pictures["images"],
        predictions={key: array[rows] for key, array in predictions.items()} | pictures["predictions"][name],
        targets={key: array[rows] for key, array in targets.items()} | pictures["targets"][name],
        errors=errors[rows],
        classes=protocol.classes,
        groups=None if groups is None else groups[rows],
    )


def _pictures(
    predict_step: Callable[..., Tree],
    variables: tuple[Tree, Tree],
    evaluation: Evaluation,
    mesh: Mesh,
    rows: np.ndarray,
) -> Tree:
    """The `images` of some rows, and of each task the `predictions` and `targets` that are pictures."""
    outputs, valids = [], []
    for batch in evaluation.batches(rows=rows):
        output = predict_step(*variables, sharding.to_device(device_fields(batch), mesh))
        outputs.append({"images": _gather(batch["image"])} | _arrays(output, pictures=True))
        valids.append(_gather(batch["valid"]))
    return _joined(outputs, valids)


def _arrays(output: Tree, *, pictures: bool) -> Tree:
    """Brings the predictions and targets of each task to the host: those that are pictures, or the others."""
    return jax.device_get(
        {
            kind: {
                task: {name: array for name, array in of_task[kind].items() if (array.ndim >= PICTURE_AXES) == pictures}
                for task, of_task in output.items()
            }
            for kind in ("predictions", "targets")
        }
    )


def _joined(batches: list[Tree], valids: list[np.ndarray]) -> Tree:
    """Joins the valid rows of batches, trees of arrays [B,...] with valids bool[B]."""
    valid = np.concatenate(valids)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays)[valid], *batches)


def make_predict_steps(model: Model, evaluations: Iterable[Evaluation], mesh: Mesh) -> dict[str, Callable[..., Tree]]:
    """Builds one predict step for each set of `rows` that the evaluations see; equal ones are compiled once."""
    steps: dict[str, Callable[..., Tree]] = {}
    built: dict[tuple, Callable[..., Tree]] = {}
    for each in evaluations:
        key = each.views, *((name, id(task)) for name, task in each.tasks.items())
        if key not in built:
            built[key] = make_predict_step(model, each.tasks, mesh, each.views)
        steps[each.rows] = built[key]
    return steps


def collect_all(
    predict_steps: Mapping[str, Callable[..., Tree]],
    variables: tuple[Tree, Tree],
    evaluations: Iterable[Evaluation],
    mesh: Mesh,
) -> dict[str, Collected]:
    """Runs each set of `rows` through the model once and returns it by `rows`."""
    collected: dict[str, Collected] = {}
    for evaluation in evaluations:
        if evaluation.rows not in collected:
            collected[evaluation.rows] = collect(predict_steps[evaluation.rows], variables, evaluation, mesh)
    return collected


def calibrate(evaluation: Evaluation, collected: Collected) -> dict[str, dict[str, Any]]:
    """Lets every task fix its thresholds on this split's cases, of which it gets the patients, too."""
    return {name: task.calibrate(*cases(evaluation, collected, name)) for name, task in evaluation.tasks.items()}


def score(
    evaluation: Evaluation,
    collected: Collected,
    calibration: Mapping[str, Mapping[str, Any]],
    *,
    resamples: int,
    beside: bool = True,
) -> list[Score]:
    """Computes every task's metrics on the protocol's cases, with `resamples` bootstrap draws (0 = no interval).

    `beside` adds to each figure what a predictor gets that never looks at an image, and where a second reader's
    annotations are there, what that reader gets.
    """
    scores = []
    for name, task in evaluation.tasks.items():
        predictions, targets, groups = cases(evaluation, collected, name)
        measure = partial(
            task.metrics,
            targets=targets,
            classes=evaluation.protocol.classes,
            calibration=calibration[name],
            groups=groups,
            **evaluation.protocol.options,
        )
        figures = measure(predictions, resamples=resamples)
        if beside:
            trivial = measure(task.trivial(predictions, calibration[name]), resamples=0)
            figures = _beside(figures, trivial, "trivial")
        if beside and (reader := getattr(task, "second_reader", lambda targets: None)(targets)):
            figures = _beside(figures, measure(reader, resamples=0), "reader")
        scores.append(Score(evaluation, name, figures))
    return scores


def _beside(figures: list[Metric], others: list[Metric], field: str) -> list[Metric]:
    values = {other.name: other.value for other in others}
    return [replace(figure, **{field: values.get(figure.name)}) for figure in figures]


def without_intervals(evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    """Picks the evaluations that run during training, each calibrated on itself."""
    return {
        name: replace(evaluation, calibrate_on=name)
        for name, evaluation in evaluations.items()
        if evaluation.during_training
    }


def cases(evaluation: Evaluation, collected: Collected, task: str):
    """Reduces the rows to the protocol's cases: (predictions, targets, patient of each case)."""
    return protocols.cases(evaluation.protocol, collected.predictions[task], collected.targets[task], collected.host)


def _gather(values: np.ndarray) -> np.ndarray:
    """Joins the rows of all processes in the order of their ranks."""
    if jax.process_count() == 1:
        return values
    if values.dtype.kind == "U":
        width = int(multihost_utils.process_allgather(np.asarray(values.itemsize // 4)).max())
        codes = values.astype(f"U{width}").view(np.uint32).reshape(len(values), width)
        joined = np.asarray(multihost_utils.process_allgather(codes, tiled=True), np.uint32)
        return np.ascontiguousarray(joined).view(f"U{width}").reshape(-1)
    return np.asarray(multihost_utils.process_allgather(values, tiled=True))


def _of_first_process(values: np.ndarray) -> np.ndarray:
    """The values bool[N] of the first process: what all of them do next has to be the same."""
    return values if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(values), bool)

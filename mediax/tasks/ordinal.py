"""Ordinal grading: exclusive classes in an order, such as the grades of a disease, scored by how far a miss is.

Every criterion leads to one number, the expected grade; thresholds between the grades turn it into a decision. A
grade that is unknown leaves the image out.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mediax import catalog, figures, metrics
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.findings import Findings
from mediax.model import Build
from mediax.samples import Samples

CRITERIA = ("cross_entropy", "mse", "corn")
DECISIONS = ("kappa", "nearest", "most_likely")
STEP = 0.01  # of the grades among which thresholds are searched


@dataclass(frozen=True)
class Task:
    """Predicts the grade of an image, the index of its class among the exclusive `classes`, which stand in order.

    `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` with its options. `criterion`:
      cross_entropy  one softmax over the grades
      mse            one output, the grade itself
      corn           the probability of each grade to be exceeded, given that it is reached (arXiv:2111.08851)
    `decision` is how the expected grade becomes a grade: "kappa", by thresholds that maximise quadratic weighted kappa
    on the calibrating split; "nearest", by rounding; "most_likely", the grade of the highest probability instead.
    `pairs` moves each expected grade towards that of the patient's other images (the fellow eye), by a linear blend
    that is fitted on the calibrating split; `findings` grades an image by itself, by thresholds chosen without the
    blend. Raises InputError for options that do not fit.
    """

    name: str
    classes: tuple[str, ...]
    head: Mapping[str, Any] = field(default_factory=lambda: {"name": "pooled"})
    criterion: str = "cross_entropy"
    decision: str = "kappa"
    pairs: bool = False
    image_axes: ClassVar[tuple[int, ...]] = ()  # of the outputs: none belongs to the image's rows or columns

    def __post_init__(self):
        for option, valid in (("criterion", CRITERIA), ("decision", DECISIONS)):
            value = getattr(self, option)
            if value not in valid:
                hint = catalog.suggestion(value, valid)
                raise InputError(f"config field {option} of task {self.name!r}: no {option} {value!r}; {hint}")
        if len(self.classes) < 2:
            raise InputError(f"task {self.name!r}: grading needs at least 2 classes, found {list(self.classes)}")
        if self.decision == "most_likely" and (self.criterion == "mse" or self.pairs):
            what = "pairs" if self.pairs else "criterion 'mse'"
            raise InputError(
                f"config field decision of task {self.name!r} is 'most_likely', but {what} gives an expected grade and "
                "no probabilities; choose 'kappa' or 'nearest'"
            )
        self._head()  # checks the name and the options

    def check_example(self, example: Mapping[str, Any]) -> None:
        """Raises InputError if the labels of an example are not one grade, or unknown."""
        labels = np.asarray(example.get("labels", np.nan), np.float64)
        if not np.isnan(labels).any() and not (sorted(labels)[-2:] == [0, 1] and labels.sum() == 1):
            raise InputError(
                f"task {self.name!r} predicts one of {list(self.classes)}, the image {example['id']!r} has the labels "
                f"{labels.tolist()}: choose a dataset whose labels are grades, or the task classification"
            )

    def parts(self, channels: Mapping[int, int]) -> dict[str, Build]:
        """Names the parts that this task adds to the backbone's `channels` (stride -> width), with their builds."""
        head, options = self._head()
        outputs = {"cross_entropy": len(self.classes), "mse": 1, "corn": len(self.classes) - 1}[self.criterion]
        return {f"head/{self.name}": lambda rngs: head.Head(channels, outputs, rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> jax.Array:
        """Gives the head's outputs f32[B,K], f32[B,1] or f32[B,K-1]; `run(part, *inputs)` runs a part of the model."""
        return run(f"head/{self.name}", pyramid).astype(jnp.float32)

    def count(self, batch: Batch) -> jax.Array:
        """Counts what the loss averages over: known grades, or the grades that they reach, one decision each."""
        known = self._known(batch)
        if self.criterion != "corn":
            return known.sum().astype(jnp.float32)
        return jnp.where(known[:, None], self._reached(batch)[:, :-1], 0.0).sum()

    def loss(self, outputs: jax.Array, batch: Batch, count: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sums the criterion over the known grades of `batch` and divides by `count`, that of the whole batch.

        Soft labels count as what they say: a grade with some probability.
        """
        labels = self._labels(batch)
        if self.criterion == "cross_entropy":
            entries = optax.softmax_cross_entropy(outputs, labels)
        elif self.criterion == "mse":
            entries = (outputs[:, 0] - labels @ jnp.arange(len(self.classes), dtype=jnp.float32)) ** 2
        else:
            reached = self._reached(batch)
            passed, stayed = reached[:, 1:], reached[:, :-1] - reached[:, 1:]
            entries = (passed * jax.nn.softplus(-outputs) + stayed * jax.nn.softplus(outputs)).sum(-1)
        loss = jnp.where(self._known(batch), entries, 0.0).sum() / jnp.maximum(count, 1.0)
        return loss, {"loss": loss}

    def predict(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Gives the expected `grade` f32[B] and, unless the criterion is "mse", the probabilities `scores` f32[B,K]."""
        if self.criterion == "mse":
            return {"grade": outputs[:, 0]}
        if self.criterion == "cross_entropy":
            scores = jax.nn.softmax(outputs)
        else:
            passed = jnp.cumprod(jax.nn.sigmoid(outputs), axis=-1)
            reached = jnp.pad(passed, ((0, 0), (1, 0)), constant_values=1.0)
            scores = reached - jnp.pad(passed, ((0, 0), (0, 1)))
        return {"grade": scores @ jnp.arange(len(self.classes), dtype=jnp.float32), "scores": scores}

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks from the batch what `metrics` compares the predictions with."""
        return {"labels": batch["labels"]}

    def calibrate(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        groups: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Chooses on validation data whatever `metrics` must not choose on test data.

        `blend` is (own, fellow, constant), the weights by least squares of an image's expected grade and of the mean of
        the patient's other images; `thresholds` are K - 1 ascending grades; `shares` is how often each grade is. With
        `pairs`, `thresholds_alone` are those of images whose patient's other images are not known.
        Where no grade is known thresholds lie halfway between the grades. Raises InputError for `pairs` without
        `groups`, the patient of each row.
        """
        known = ~np.isnan(targets["labels"]).any(axis=1)
        true = targets["labels"][known].argmax(axis=1)
        shares = np.bincount(true, minlength=len(self.classes)) / max(len(true), 1)
        calibration: dict[str, Any] = {"shares": shares.tolist()}
        if self.pairs:
            calibration["blend"] = self._fit_blend(predictions["grade"], known, true, groups)
        if self.decision != "most_likely":
            calibration["thresholds"] = [k + 0.5 for k in range(len(self.classes) - 1)]
        if self.decision == "kappa":
            grade = self._blended(predictions, calibration, groups)
            calibration["thresholds"] = kappa_thresholds(grade[known], true, len(self.classes))
        if self.pairs:
            alone = self._alone().calibrate(predictions, targets)
            calibration["thresholds_alone"] = alone["thresholds"]
        return calibration

    def trivial(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Predicts the most frequent grade of the calibrating split for every image; its kappa is 0 or undefined."""
        shares = np.asarray(calibration["shares"])
        most = int(shares.argmax())
        # Halfway between the thresholds around it: decided as that grade, wherever they are.
        thresholds = calibration.get("thresholds", [k + 0.5 for k in range(len(shares) - 1)])
        grade = float(np.mean([thresholds[0] - 1, *thresholds, thresholds[-1] + 1][most : most + 2]))
        if self.pairs:  # the blend of a constant is to be that grade
            own, fellow, constant = calibration["blend"]
            grade = (grade - constant) / (own + fellow) if own + fellow else grade
        constant_values = {"grade": grade, "scores": shares}
        return {
            name: np.broadcast_to(np.asarray(constant_values[name], array.dtype), array.shape)
            for name, array in predictions.items()
        }

    def metrics(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        *,
        classes: Sequence[str] = (),
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        resamples: int = 1000,
    ) -> list[metrics.Metric]:
        """Scores the decided grades of a whole split on the host, with intervals from a bootstrap over patients.

        Quadratic weighted kappa, Cohen's kappa, accuracy ("top1_accuracy"), balanced accuracy, and the mean absolute
        error in grades ("mae"). Grades belong together: `classes` must be none or all.
        """
        if tuple(classes) not in ((), tuple(self.classes)):
            raise InputError(f"task {self.name!r} cannot be scored on {list(classes)} alone: grades belong together")
        decided = self.decide(predictions, calibration, groups)
        return grading(decided, targets["labels"], self.classes, groups, resamples=resamples)

    def decide(
        self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any], groups: Sequence | None = None
    ) -> np.ndarray:
        """The grades i[N] that predictions are called."""
        if self.decision == "most_likely":
            return predictions["scores"].argmax(axis=1)
        grade = self._blended(predictions, calibration, groups)
        return np.searchsorted(calibration["thresholds"], grade, side="right")

    def draw(
        self,
        folder: Path,
        name: str,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        *,
        classes: Sequence[str] = (),
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
    ) -> None:
        """Draws the confusion matrix of the grades that `metrics` scores, as `confusion_<name>.png`."""
        decided = self.decide(predictions, calibration, groups)
        figures.confusion(folder / f"confusion_{name}.png", decided, _grades(targets["labels"]), self.classes)

    def errors(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
    ) -> np.ndarray:
        """How many grades each image's is off, f64[N]; NaN where it is unknown. `pairs` needs `groups`."""
        true = _grades(targets["labels"])
        return np.where(true < 0, np.nan, np.abs(self.decide(predictions, calibration, groups) - true))

    def companions(
        self, predictions: Mapping[str, np.ndarray], rows: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """The rows by which the grades of `rows` are decided, too: with `pairs` those of the same patients."""
        if not self.pairs or groups is None:
            return rows
        return np.flatnonzero(np.isin(groups, groups[rows]))

    def draw_samples(self, folder: Path, name: str, samples: Samples, calibration: Mapping[str, Any]) -> None:
        """Draws a sheet of images with the grades that `metrics` scores, the true and the expected ones."""
        predictions, groups = samples.predictions, samples.groups
        decided, true = self.decide(predictions, calibration, groups), _grades(samples.targets["labels"])
        figures.samples(
            folder / f"samples_{name}.png",
            samples.images,
            sections=samples.sections,
            classes=self.classes,
            captions=[
                f"grade {called} ({'unknown' if grade < 0 else f'true {grade}'}), expected {expected:.1f}"
                for called, grade, expected in zip(decided, true, self._blended(predictions, calibration, groups))
            ],
        )

    def findings(
        self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any], row: int, size: tuple[int, int]
    ) -> Findings:
        """Says of image `row` its expected grade and which grade that is called, by itself, without the blend of pairs.

        Raises InputError if `calibration` was made before it held thresholds of single images.
        """
        if self.pairs and "thresholds_alone" not in calibration:
            raise InputError(
                f"task {self.name!r}: the calibration lacks 'thresholds_alone', the thresholds of single images; write "
                "it again with --mode=evaluate"
            )
        if self.pairs:
            calibration = {"thresholds": calibration["thresholds_alone"]}
        one = {name: array[row : row + 1] for name, array in predictions.items()}
        called = np.arange(len(self.classes)) == self._alone().decide(one, calibration)[0]
        return Findings(
            scores={"grade": float(predictions["grade"][row])}, decisions=dict(zip(self.classes, called.tolist()))
        )

    def _alone(self) -> "Task":
        """The task that grades every image by itself."""
        return dataclasses.replace(self, pairs=False)

    def _head(self) -> tuple[ModuleType, dict[str, Any]]:
        return catalog.head(self.name, self.head, "pooled")

    def _known(self, batch: Batch) -> jax.Array:
        if "labels" not in batch or batch["labels"].shape[-1] != len(self.classes):
            found = f"{batch['labels'].shape[-1]} labels" if "labels" in batch else "no labels"
            raise InputError(
                f"task {self.name!r} predicts one of {list(self.classes)}, the batch has {found}: choose a dataset "
                "whose labels are grades (its read() gives them)"
            )
        return ~jnp.isnan(batch["labels"]).any(-1) & batch["valid"]

    def _labels(self, batch: Batch) -> jax.Array:
        return jnp.where(self._known(batch)[:, None], batch["labels"], 0.0)

    def _reached(self, batch: Batch) -> jax.Array:
        """How likely the true grade is at least k, f32[B,K]: 0 or 1 unless labels are soft."""
        return jnp.cumsum(self._labels(batch)[:, ::-1], axis=-1)[:, ::-1]

    def _blended(
        self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any], groups: Sequence | None
    ) -> np.ndarray:
        """The expected grades f64[N], by the patient's other images too if `pairs`; alone where there are none."""
        grade = predictions["grade"].astype(np.float64)
        if not self.pairs:
            return grade
        own, fellow, constant = calibration["blend"]
        return own * grade + fellow * fellow_mean(grade, groups) + constant

    def _fit_blend(
        self, grade: np.ndarray, known: np.ndarray, true: np.ndarray, groups: Sequence | None
    ) -> list[float]:
        if groups is None:
            raise InputError(f"task {self.name!r}: pairs needs the patient of each image, and they are not known")
        grade = grade.astype(np.float64)
        columns = np.stack([grade, fellow_mean(grade, groups), np.ones(len(grade))], axis=1)[known]
        if len(true) < columns.shape[1]:
            return [1.0, 0.0, 0.0]
        return np.linalg.lstsq(columns, true, rcond=None)[0].tolist()


def _grades(labels: np.ndarray) -> np.ndarray:
    """Labels f[N,K] -> grades i[N], -1 where unknown."""
    return np.where(np.isnan(labels).any(axis=1), -1, np.nan_to_num(labels).argmax(axis=1))


def fellow_mean(values: np.ndarray, groups: Sequence | None) -> np.ndarray:
    """The mean of the values f64[N] of a group's other rows; the row's own where it is alone, or without groups."""
    if groups is None:
        return values
    _, group, count = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    others = count[group] - 1
    sums = np.bincount(group, values)
    return np.where(others > 0, (sums[group] - values) / np.maximum(others, 1), values)


def kappa_thresholds(grade: np.ndarray, true: np.ndarray, count: int) -> list[float]:
    """Finds the `count` - 1 ascending thresholds of the highest quadratic weighted kappa, one after the other.

    Coordinate ascent from halfway between the grades, over multiples of `STEP` from `STEP` to count - 1: each
    threshold in turn takes the best place between its neighbours, the one nearest to where it is of equals, until
    none moves. A grade that reaches a threshold is above it.

    Args:
      grade: f[N] expected grades.
      true: i[N] from 0 to count - 1.
    """
    places = np.round(np.arange(1, round((count - 1) / STEP) + 1) * STEP, 6)
    # below[t, k]: how many rows of the true grade k lie under place t, so that a table of counts is a difference.
    below = np.zeros((len(places) + 2, count))
    np.add.at(below, (1 + np.searchsorted(places, grade, side="right"), true), 1)
    below = np.cumsum(below, axis=0)
    chosen = [int(np.searchsorted(places, k + 0.5)) for k in range(count - 1)]
    moved = True
    while moved:
        moved = False
        for k in range(count - 1):
            low = chosen[k - 1] + 1 if k else 0
            high = chosen[k + 1] if k < count - 2 else len(places)
            tried = np.arange(low, high)
            kappa = np.array([_kappa(below, [*chosen[:k], place, *chosen[k + 1 :]]) for place in tried]).round(9)
            current = kappa[chosen[k] - low]
            best = np.flatnonzero(kappa == np.nanmax(kappa)) if not np.isnan(kappa).all() else []
            if len(best) and not kappa[best[0]] <= current:
                chosen[k] = int(tried[best[np.abs(tried[best] - chosen[k]).argmin()]])
                moved = True
    return places[chosen].tolist()


def _kappa(below: np.ndarray, places: Sequence[int]) -> float:
    """Quadratic weighted kappa if the thresholds stand at `places`; NaN where all is one and the same grade."""
    count = below.shape[1]
    # Row t + 1 of `below` counts what lies under place t.
    edges = np.concatenate([np.zeros((1, count)), below[[place + 1 for place in places]], below[-1:]])
    table = np.diff(edges, axis=0)  # [called, true]
    distance = (np.arange(count)[:, None] - np.arange(count)) ** 2
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / max(table.sum(), 1)
    chance = (distance * expected).sum()
    return 1 - (distance * table).sum() / chance if chance > 0 else np.nan


def grading(
    decided: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    groups: Sequence | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[metrics.Metric]:
    """The metrics of decided grades i[N] against labels f[N,K], one-hot or NaN; see `Task.metrics`."""
    labels = np.where(np.isnan(labels).any(axis=1, keepdims=True), np.nan, labels)  # known in part is unknown
    calls = np.eye(len(classes))[decided]
    split = metrics.checked_split(calls, labels, classes, groups, None, "decided grades")
    true, known = _grades(split.labels), ~np.isnan(split.labels).any(axis=1)
    sums = np.zeros((split.patients.max(initial=-1) + 1, 2))
    error = np.abs(np.asarray(decided) - true)
    np.add.at(sums, split.patients[known], np.stack([error, np.ones(len(error))], axis=1)[known])
    overall = metrics.overall_evaluator(split)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        total, n = (weights @ sums).T
        with np.errstate(invalid="ignore"):
            return np.concatenate([overall(weights), (total / n)[:, None]], axis=1)

    names = (*metrics.OVERALL, "mae")
    values, draws = metrics.bootstrap(evaluate, split.patients, resamples, seed)
    order = ("quadratic_weighted_kappa", "top1_accuracy", "mae", "balanced_accuracy", "cohen_kappa")
    return [
        metrics.with_interval(
            name,
            values[names.index(name)],
            draws[:, names.index(name)],
            split.patients[known],
            _undefined(values[names.index(name)], known),
        )
        for name in order
    ]


def _undefined(value: float, known: np.ndarray) -> str:
    if not np.isnan(value):
        return ""
    if not known.any():
        return "no known grade in this split: undefined"
    return "truth and prediction are one and the same grade: undefined"

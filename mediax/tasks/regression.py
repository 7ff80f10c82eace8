"""Regression: numbers that belong to an image, such as an age, each in its own unit; unknown ones are left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mediax import catalog, figures, laterality, metrics
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.findings import Findings
from mediax.model import Build
from mediax.samples import Samples

CRITERIA = ("l1", "l2", "huber")
PER_TARGET = ("mae", "rmse", "r2", "pearson", "bias")
WITHOUT_UNIT = ("r2", "pearson")  # a mean over targets of different units makes sense for these alone
CONSTANT = 1e-12  # share of the mean square below which a variance is rounding


@dataclass(frozen=True)
class Task:
    """Predicts the numbers `target_names`, the columns of the dataset's `target` (its TARGETS).

    `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` with its options. `criterion` is "l1", "l2" (half the
    square) or "huber" (l2 up to `huber_delta` and l1 beyond, Huber 1964). `mean` and `std`, one number for each target
    in its unit, as in the training split, standardise what the network gives, so that targets of any unit weigh
    the same and `huber_delta` counts standard deviations; without them the network gives the targets as they are.
    Raises InputError for options that do not fit.
    """

    name: str
    target_names: tuple[str, ...]
    head: Mapping[str, Any] = field(default_factory=lambda: {"name": "pooled"})
    criterion: str = "huber"
    huber_delta: float = 1.0
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    image_axes: ClassVar[tuple[int, ...]] = ()  # of the outputs: none belongs to the image's rows or columns

    def __post_init__(self):
        if not self.target_names or isinstance(self.target_names, str):
            raise InputError(
                f"config field target_names of task {self.name!r} is {self.target_names!r}: expected the names of the "
                "targets, the dataset's TARGETS"
            )
        if self.criterion not in CRITERIA:
            hint = catalog.suggestion(self.criterion, CRITERIA)
            raise InputError(f"config field criterion of task {self.name!r}: no loss {self.criterion!r}; {hint}")
        if self.huber_delta <= 0:
            raise InputError(
                f"config field huber_delta of task {self.name!r} is {self.huber_delta}: expected a number above 0"
            )
        for option in ("mean", "std"):
            values = getattr(self, option)
            if not isinstance(values, Sequence) or len(values) not in (0, len(self.target_names)):
                raise InputError(
                    f"config field {option} of task {self.name!r} is {values!r}: expected {len(self.target_names)} "
                    "numbers, one for each target as in (58.0,), or none"
                )
        if any(value <= 0 for value in self.std):
            raise InputError(f"config field std of task {self.name!r} is {self.std!r}: expected numbers above 0")
        self._head()  # checks the name and the options

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the last axis of the outputs is called, R names."""
        return tuple(self.target_names)

    def mirrored(self, outputs: jax.Array, turn: jax.Array) -> jax.Array:
        """Lets targets that differ by left and right trade places, in their unit, where `turn` bool[2] says so."""
        mean, std = self._standard()
        return (laterality.exchanged(outputs * std + mean, turn, self.output_names, -1) - mean) / std

    def parts(self, channels: Mapping[int, int]) -> dict[str, Build]:
        """Names the parts that this task adds to the backbone's `channels` (stride -> width), with their builds."""
        head, options = self._head()
        return {f"head/{self.name}": lambda rngs: head.Head(channels, len(self.target_names), rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> jax.Array:
        """Gives the standardised targets f32[B,R]; `run(part, *inputs)` runs a part of the model."""
        return run(f"head/{self.name}", pyramid).astype(jnp.float32)

    def count(self, batch: Batch) -> jax.Array:
        """Counts what the loss averages over: the known targets."""
        return self._known(batch).sum().astype(jnp.float32)

    def loss(self, outputs: jax.Array, batch: Batch, count: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sums the criterion over the known targets of `batch` and divides by `count`, that of the whole batch."""
        known = self._known(batch)
        mean, std = self._standard()
        # The unknown are replaced before they are computed with: a gradient through NaN is NaN even where it is masked.
        truth = (jnp.where(known, batch["target"], mean) - mean) / std
        error = jnp.abs(outputs - truth)
        if self.criterion == "l1":
            entries = error
        elif self.criterion == "l2":
            entries = error**2 / 2
        else:
            delta = self.huber_delta
            entries = jnp.where(error <= delta, error**2 / 2, delta * (error - delta / 2))
        loss = jnp.where(known, entries, 0.0).sum() / jnp.maximum(count, 1.0)
        return loss, {"loss": loss}

    def predict(self, outputs: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Gives the `target` f32[B,R] in the targets' units."""
        mean, std = self._standard()
        return {"target": outputs * std + mean}

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks from the batch what `metrics` compares the predictions with."""
        self._known(batch)
        return {"target": batch["target"]}

    def calibrate(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        groups: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Notes the median of each target's known values, None if there are none: what `trivial` predicts."""
        columns = (column[~np.isnan(column)] for column in targets["target"].T)
        return {"median": [float(np.median(column)) if column.size else None for column in columns]}

    def trivial(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Predicts the median of the calibrating split for every image, which has the least mean absolute error."""
        shape = predictions["target"].shape
        return {"target": np.broadcast_to(np.asarray(calibration["median"], np.float32), shape)}

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
        """Scores a whole split on the host, in the targets' units; `classes` restricts it to those targets.

        The mean absolute error ("mae"), the root of the mean squared one ("rmse"), the coefficient of determination
        ("r2"), Pearson's correlation ("pearson") and the mean error ("bias", above 0 where predictions are too large).
        With several targets each metric is `<metric>/<target>`, and those without a unit are averaged ("macro").
        """
        index = metrics.positions(self.target_names, classes)
        names = [self.target_names[i] for i in index]
        predicted, true = predictions["target"][:, index], targets["target"][:, index]
        return agreement(predicted, true, names, groups, resamples=resamples)

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
        """Draws predicted against true values, and their difference against their mean, as `scatter_<name>.png`."""
        index = metrics.positions(self.target_names, classes)
        figures.agreement(
            folder / f"scatter_{name}.png",
            predictions["target"][:, index],
            targets["target"][:, index],
            [self.target_names[i] for i in index],
        )

    def errors(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
    ) -> np.ndarray:
        """The mean absolute error of each image's known targets, f64[N], in units of `std`; NaN where none is known."""
        index = metrics.positions(self.target_names, classes)
        deviation = np.abs(predictions["target"] - targets["target"]) / np.asarray(self._standard()[1])
        return metrics.mean_of_defined(deviation[:, index])

    def draw_samples(self, folder: Path, name: str, samples: Samples, calibration: Mapping[str, Any]) -> None:
        """Draws a sheet of images with the true and the predicted values."""
        values = zip(samples.predictions["target"], samples.targets["target"])
        figures.samples(
            folder / f"samples_{name}.png",
            samples.images,
            sections=samples.sections,
            classes=self.target_names,
            captions=[", ".join(map(_caption, *row)) for row in values],
        )

    def findings(
        self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any], row: int, size: tuple[int, int]
    ) -> Findings:
        """Says of image `row` what its targets are, in their units."""
        return Findings(scores=dict(zip(self.target_names, predictions["target"][row].tolist())))

    def _head(self) -> tuple[ModuleType, dict[str, Any]]:
        return catalog.head(self.name, self.head, "pooled")

    def _standard(self) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation f32[R] by which the network's numbers become the targets."""
        count = len(self.target_names)
        mean, std = tuple(self.mean) or (0.0,) * count, tuple(self.std) or (1.0,) * count
        return jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)

    def _known(self, batch: Batch) -> jax.Array:
        if "target" not in batch or batch["target"].shape[-1] != len(self.target_names):
            found = f"{batch['target'].shape[-1]} targets" if "target" in batch else "no targets"
            raise InputError(
                f"task {self.name!r} predicts {list(self.target_names)}, the batch has {found}: give the dataset's "
                "TARGETS as the task's target_names, or choose a dataset with targets"
            )
        return ~jnp.isnan(batch["target"]) & batch["valid"][:, None]


def _caption(predicted: float, true: float) -> str:
    return f"{predicted:.1f} (unknown)" if np.isnan(true) else f"{predicted:.1f} (true {true:.1f})"


def agreement(
    predicted: np.ndarray,
    true: np.ndarray,
    names: Sequence[str],
    groups: Sequence | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[metrics.Metric]:
    """The metrics of `PER_TARGET` with 95 % intervals from a bootstrap over patients, as `Task.metrics` names them.

    r2 is NaN where all true values are equal, pearson also where all predicted ones are.

    Args:
      predicted: f[N,R].
      true: f[N,R], NaN where unknown: the row is left out of that target.
      names: of the R targets.
      groups: [N] the patient of each row; None makes every row a patient of its own.
    """
    known = ~np.isnan(true)
    patients = np.arange(len(true)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    evaluators = [_evaluator(predicted[:, k], true[:, k], patients) for k in range(len(names))]
    values, draws = metrics.bootstrap(
        lambda weights: np.stack([evaluate(weights) for evaluate in evaluators], axis=1), patients, resamples, seed
    )
    results = []
    for m, metric in enumerate(PER_TARGET):
        for k, name in enumerate(names):
            title = metric if len(names) == 1 else f"{metric}/{name}"
            of_target = patients[known[:, k]]
            note = _undefined(metric, values[k, m], known[:, k])
            results.append(metrics.with_interval(title, values[k, m], draws[:, k, m], of_target, note))
        if len(names) > 1 and metric in WITHOUT_UNIT:
            left_out = [name for name, value in zip(names, values[:, m]) if np.isnan(value)]
            note = f"left out: {', '.join(left_out)}" if left_out else ""
            mean, mean_draws = metrics.mean_of_defined(values[:, m]), metrics.mean_of_defined(draws[:, :, m])
            results.append(
                metrics.with_interval(f"{metric}/macro", mean, mean_draws, patients[known.any(axis=1)], note)
            )
    return results


def _undefined(metric: str, value: float, known: np.ndarray) -> str:
    if not np.isnan(value):
        return ""
    if not known.any():
        return "no known value in this split: undefined"
    return "all true values are equal" + (", or all predicted ones" if metric == "pearson" else "") + ": undefined"


def _evaluator(predicted: np.ndarray, true: np.ndarray, patients: np.ndarray) -> metrics.Evaluate:
    """The function from patient weights f64[W,P] to the metrics of one target, f64[W,5], by sums over patients."""
    known = np.flatnonzero(~np.isnan(true))
    p, y = predicted[known].astype(np.float64), true[known].astype(np.float64)
    error = p - y
    if len(known):  # sums of squares lose digits unless they are taken near the values
        p, y = p - p[0], y - y[0]
    columns = np.stack([np.ones(len(known)), np.abs(error), error**2, error, y, y**2, p, p**2, p * y], axis=1)
    sums = np.zeros((patients.max(initial=-1) + 1, columns.shape[1]))
    np.add.at(sums, patients[known], columns)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        n, absolute, square, total, sum_y, sum_yy, sum_p, sum_pp, sum_py = (weights @ sums).T
        with np.errstate(invalid="ignore", divide="ignore"):
            spread_y, spread_p = _spread(n, sum_y, sum_yy), _spread(n, sum_p, sum_pp)
            together = sum_py - sum_p * sum_y / n
            figures = {
                "mae": absolute / n,
                "rmse": np.sqrt(square / n),
                "r2": 1 - square / spread_y,
                "pearson": np.clip(together / np.sqrt(spread_y * spread_p), -1, 1),
                "bias": total / n,
            }
        return np.stack([figures[metric] for metric in PER_TARGET], axis=1)

    return evaluate


def _spread(n: np.ndarray, total: np.ndarray, square: np.ndarray) -> np.ndarray:
    """The sum of squared deviations from the mean; NaN where the values are all equal."""
    spread = square - total**2 / n
    return np.where(spread > CONSTANT * square, spread, np.nan)

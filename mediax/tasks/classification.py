"""Classification: multi-label (a sigmoid per class) or exclusive (one softmax), with unknown labels left out."""

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
from mediax.samples import Samples, deviations, worst

STUDIES = True  # the maximum of its scores over the images of a study is a score of the study
THRESHOLDS = {
    "youden": metrics.youden_thresholds,
    "f1": metrics.f1_thresholds,
    "accuracy": metrics.accuracy_thresholds,
}
# Of one score for all images every threshold has the same index: the majority decides.
BLIND_THRESHOLDS = THRESHOLDS | {"youden": metrics.accuracy_thresholds}


@dataclass(frozen=True)
class Task:
    """Predicts which of `classes` an image shows.

    `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` with its options. `class_weights` is f[K,2], the
    weight of an absent and of a present label, empty for none. `threshold` is a number, or the name of the rule that
    chooses the threshold of each class on the validation split.
    """

    name: str
    classes: tuple[str, ...]
    head: Mapping[str, Any] = field(default_factory=lambda: {"name": "pooled"})
    exclusive: bool = False
    class_weights: Sequence[Sequence[float]] = ()
    label_smoothing: float = 0.0
    threshold: float | str = 0.5
    image_axes: ClassVar[tuple[int, ...]] = ()  # of the outputs: none belongs to the image's rows or columns

    def __post_init__(self):
        if isinstance(self.threshold, str) and self.threshold not in THRESHOLDS:
            hint = catalog.suggestion(self.threshold, THRESHOLDS)
            raise InputError(f"config field threshold of task {self.name!r}: no rule {self.threshold!r}; {hint}")
        if self.exclusive and isinstance(self.threshold, str):
            raise InputError(
                f"config field threshold of task {self.name!r} is {self.threshold!r}: exclusive classes have no "
                "thresholds, the highest score is called; leave it out"
            )
        if not isinstance(self.threshold, str) and not 0 <= self.threshold <= 1:
            raise InputError(f"config field threshold of task {self.name!r} is {self.threshold}: expected 0 to 1")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                f"config field label_smoothing of task {self.name!r} is {self.label_smoothing}: expected 0 to below 1"
            )
        if self.exclusive and len(self.classes) < 2:
            raise InputError(f"task {self.name!r}: exclusive classification needs at least 2 classes")
        if len(self.class_weights) and np.shape(self.class_weights) != (len(self.classes), 2):
            raise InputError(
                f"config field class_weights of task {self.name!r} is {self.class_weights!r}: expected 'balanced' or "
                f"{len(self.classes)} pairs (absent, present)"
            )
        self._head()  # checks the name and the options

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the last axis of the outputs is called, K names."""
        return tuple(self.classes)

    def parts(self, channels: Mapping[int, int]) -> dict[str, Build]:
        """Names the parts that this task adds to the backbone's `channels` (stride -> width), with their builds."""
        head, options = self._head()
        return {f"head/{self.name}": lambda rngs: head.Head(channels, len(self.classes), rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> jax.Array:
        """Gives the logits f32[B,K]; `run(part, *inputs)` runs a part of the model."""
        return run(f"head/{self.name}", pyramid).astype(jnp.float32)

    def count(self, batch: Batch) -> jax.Array:
        """Counts the entries that the loss averages over: known labels, or rows with all labels known."""
        return self._known(batch).sum().astype(jnp.float32)

    def loss(self, logits: jax.Array, batch: Batch, count: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sums the cross-entropy over the known entries of `batch` and divides by `count`.

        `count` is that of the whole batch even if this is a slice of it, so that gradients of slices add up.
        """
        known = self._known(batch)
        labels = jnp.where(jnp.isnan(batch["labels"]), 0.0, batch["labels"])
        smoothing = self.label_smoothing
        weights = jnp.asarray(self.class_weights if len(self.class_weights) else [[1.0, 1.0]])
        if self.exclusive:
            targets = labels * (1 - smoothing) + smoothing / len(self.classes)
            weight = (labels * weights[:, 1]).sum(-1)
            entries = weight * optax.softmax_cross_entropy(logits, targets)
        else:
            # The weight belongs to the true state: smoothing must not lend a rare state's weight to the common one.
            present, absent = weights[:, 1] * labels, weights[:, 0] * (1 - labels)
            for_present = present * (1 - smoothing / 2) + absent * smoothing / 2
            for_absent = present * smoothing / 2 + absent * (1 - smoothing / 2)
            entries = for_present * jax.nn.softplus(-logits) + for_absent * jax.nn.softplus(logits)
        loss = jnp.where(known, entries, 0.0).sum() / jnp.maximum(count, 1.0)
        return loss, {"loss": loss}

    def predict(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Gives the probabilities `scores` f32[B,K]."""
        return {"scores": jax.nn.softmax(logits) if self.exclusive else jax.nn.sigmoid(logits)}

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks from the batch what `metrics` compares the predictions with."""
        return {"labels": batch["labels"]}

    def calibrate(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        groups: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Chooses on validation data whatever `metrics` must not choose on test data: the thresholds.

        `prevalence` is what `trivial` answers, `trivial_thresholds` what the same rule chooses for that.
        """
        labels = targets["labels"]
        if self.exclusive:
            labels = labels[~np.isnan(labels).any(1)]
        shares = (
            metrics.mean_of_defined(np.asarray(labels, np.float64).T) if len(labels) else np.zeros(len(self.classes))
        )
        prevalence = np.nan_to_num(shares)
        if self.exclusive:
            return {"prevalence": prevalence.tolist()}
        if isinstance(self.threshold, str):
            thresholds = THRESHOLDS[self.threshold](predictions["scores"], labels)
            blind = BLIND_THRESHOLDS[self.threshold](np.broadcast_to(prevalence, labels.shape), labels)
            blind = np.where(np.isnan(thresholds), np.nan, blind)
        else:
            thresholds = blind = np.full(len(self.classes), float(self.threshold))
        return {
            "prevalence": prevalence.tolist(),
            "thresholds": thresholds.tolist(),
            "trivial_thresholds": blind.tolist(),
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
        """Scores a whole split on the host; `classes` restricts it to those (none = all)."""
        index = metrics.positions(self.classes, classes)
        thresholds = predictions.get("thresholds", calibration.get("thresholds"))  # those of `trivial` are its own
        return metrics.classification(
            predictions["scores"][:, index],
            targets["labels"][:, index],
            [self.classes[i] for i in index],
            groups,
            exclusive=self.exclusive and len(index) == len(self.classes),
            thresholds=None if thresholds is None else np.asarray(thresholds)[index],
            resamples=resamples,
        )

    def trivial(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Answers every image with the prevalence of each class when calibrating, which has thresholds of its own."""
        constant = {"scores": np.broadcast_to(np.asarray(calibration["prevalence"]), predictions["scores"].shape)}
        return constant if self.exclusive else constant | {"thresholds": np.asarray(calibration["trivial_thresholds"])}

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
        """Draws the curves of what `metrics` scored into `folder`, as `<kind>_<name>.png`."""
        index = metrics.positions(self.classes, classes)
        scores, labels = predictions["scores"][:, index], targets["labels"][:, index]
        figures.roc(folder / f"roc_{name}.png", scores, labels, [self.classes[i] for i in index])
        figures.reliability(folder / f"reliability_{name}.png", scores, labels, [self.classes[i] for i in index])
        if self.exclusive:
            truth = np.where(np.isnan(labels).any(1), -1, np.nan_to_num(labels).argmax(1))
            figures.confusion(folder / f"confusion_{name}.png", scores.argmax(1), truth, self.classes)

    def errors(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
    ) -> np.ndarray:
        """The worst deviation of each image, f64[N], see `samples.deviations`; NaN where no label is known."""
        options = {"thresholds": calibration.get("thresholds"), "exclusive": self.exclusive}
        index = metrics.positions(self.classes, classes)
        return worst(deviations(predictions["scores"], targets["labels"], **options)[:, index])

    def draw_samples(self, folder: Path, name: str, samples: Samples, calibration: Mapping[str, Any]) -> None:
        """Draws a sheet of images with what is true and what was predicted."""
        whole = self.exclusive or not samples.classes
        index = [self.classes.index(name) for name in (self.classes if whole else samples.classes)]
        thresholds = calibration.get("thresholds")
        figures.samples(
            folder / f"samples_{name}.png",
            samples.images,
            sections=samples.sections,
            classes=[self.classes[i] for i in index],
            labels=samples.targets["labels"][:, index],
            scores=samples.predictions["scores"][:, index],
            exclusive=self.exclusive,
            thresholds=None if thresholds is None else np.asarray(thresholds)[index],
        )

    def findings(
        self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any], row: int, size: tuple[int, int]
    ) -> Findings:
        """Says of image `row` how probable each class is, and which of them to call: None without a threshold."""
        scores = predictions["scores"][row]
        if self.exclusive:
            called = (np.arange(len(scores)) == scores.argmax()).tolist()
        else:
            thresholds = np.asarray(calibration["thresholds"], float)
            called = [None if np.isnan(t) else bool(score >= t) for score, t in zip(scores, thresholds)]
        return Findings(scores=dict(zip(self.classes, scores.tolist())), decisions=dict(zip(self.classes, called)))

    def _head(self) -> tuple[ModuleType, dict[str, Any]]:
        return catalog.head(self.name, self.head, "pooled")

    def _known(self, batch: Batch) -> jax.Array:
        known = ~jnp.isnan(batch["labels"])
        return known.all(-1) & batch["valid"] if self.exclusive else known & batch["valid"][:, None]

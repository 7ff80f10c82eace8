"""Box regression: the one box of each class of a fixed set, such as organs, from an image-level head.

No anchors and no scores: every class is there once, so its box is four numbers. Classes whose box is not known in an
image are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mediax import catalog, figures, laterality, metrics
from mediax.annotations import box_iou
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.findings import Box, Findings
from mediax.model import Build
from mediax.operators import boxes, mirror
from mediax.samples import Samples

LOSSES = ("smooth_l1", "giou")
PER_CLASS = ("iou", "iou_at_least_50")


@dataclass(frozen=True)
class Task:
    """Predicts one box of each of `box_classes`, or of each of `structures` where a dataset has masks and no boxes.

    The box of a class is that of the dataset's boxes which has its label; of a structure, the smallest one around its
    mask. `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` with its options. `losses` are the weights of
    the terms that are added up: "smooth_l1" (Fast R-CNN, arXiv:1504.08083) of the four sides, in fractions of the
    image, quadratic below `beta`, and "giou", one minus generalised IoU (arXiv:1902.09630).
    Raises InputError for options that do not fit.
    """

    name: str
    box_classes: tuple[str, ...] = ()
    structures: tuple[str, ...] = ()
    head: Mapping[str, Any] = field(default_factory=lambda: {"name": "pooled"})
    losses: Mapping[str, float] = field(default_factory=lambda: {"smooth_l1": 1.0, "giou": 1.0})
    beta: float = 0.1

    def __post_init__(self):
        if not self.names or isinstance(self.names, str):
            raise InputError(
                f"config fields box_classes and structures of task {self.name!r}: expected the names of the boxes' "
                "classes, the dataset's BOX_CLASSES or MASK_CLASSES"
            )
        if not isinstance(self.losses, Mapping) or not any(self.losses.values()):
            raise InputError(f"config field losses of task {self.name!r} is {self.losses!r}: expected name -> weight")
        for name, weight in self.losses.items():
            if name not in LOSSES:
                hint = catalog.suggestion(name, LOSSES)
                raise InputError(f"config field losses of task {self.name!r}: no loss {name!r}; {hint}")
            if weight < 0:
                raise InputError(f"config field losses.{name} of task {self.name!r} is {weight}: expected 0 or more")
        if self.beta <= 0:
            raise InputError(f"config field beta of task {self.name!r} is {self.beta}: expected a number above 0")
        self._head()  # checks the name and the options

    @property
    def names(self) -> tuple[str, ...]:
        """Whose boxes are predicted, K names."""
        return self.box_classes or self.structures

    def parts(self, channels: Mapping[int, int]) -> dict[str, Build]:
        """Names the parts that this task adds to the backbone's `channels` (stride -> width), with their builds."""
        head, options = self._head()
        return {f"head/{self.name}": lambda rngs: head.Head(channels, 4 * len(self.names), rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> jax.Array:
        """Gives boxes f32[B,K,4] (ymin, xmin, ymax, xmax) in fractions of the image.

        A sigmoid gives centre and extent, so that no box is inside out; `run(part, *inputs)` runs a part of the model.
        """
        outputs = run(f"head/{self.name}", pyramid).astype(jnp.float32)
        return boxes.corners(jax.nn.sigmoid(outputs.reshape(len(outputs), len(self.names), 4)))

    def mirrored(self, predicted: jax.Array, turn: jax.Array) -> jax.Array:
        """Turns the boxes f32[B,K,4] of images back whose (rows, columns) are mirrored where `turn` bool[2] says so.

        Boxes of classes that differ by left and right trade places; see `mediax.inference`.
        """
        return laterality.exchanged(mirror.boxes(predicted, turn), turn, self.names, 1)

    def count(self, batch: Batch) -> jax.Array:
        """Counts what the loss averages over: the known boxes."""
        return self._known(batch).sum().astype(jnp.float32)

    def loss(self, predicted: jax.Array, batch: Batch, count: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sums the weighted losses of the known boxes and divides by `count`, that of the whole batch."""
        known = self._known(batch)
        # The unknown are replaced before they are computed with: a gradient through NaN is NaN even where it is masked.
        truth = jnp.where(known[..., None], self._truth(batch)[0], jnp.asarray([0.0, 0.0, 1.0, 1.0]))
        error = jnp.abs(predicted - truth)
        smooth = jnp.where(error < self.beta, error**2 / (2 * self.beta), error - self.beta / 2)
        entries = {"smooth_l1": smooth.sum(-1), "giou": 1 - boxes.overlap(predicted, truth)[1]}
        terms = {name: jnp.where(known, entries[name], 0.0).sum() / jnp.maximum(count, 1.0) for name in self.losses}
        loss = sum(weight * terms[name] for name, weight in self.losses.items())
        return loss, {"loss": loss} | terms

    def predict(self, predicted: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Gives the `boxes` f32[B,K,4] (ymin, xmin, ymax, xmax), cut at the border of the image."""
        return {"boxes": boxes.clip(predicted, 1.0, 1.0)}

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks what `metrics` compares with: `boxes` f32[B,K,4], NaN where unknown, and `found` i32[B,K], how many."""
        truth, found = self._truth(batch)
        return {"boxes": truth, "found": found}

    def calibrate(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        groups: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Notes the mean of each class's known boxes, None if there are none: what `trivial` predicts."""
        self._check_single(targets)
        of_class = (rows[~np.isnan(rows).any(axis=1)] for rows in targets["boxes"].swapaxes(0, 1))
        return {"mean_boxes": [rows.mean(axis=0).tolist() if len(rows) else [None] * 4 for rows in of_class]}

    def trivial(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Predicts the mean box of the calibrating split for every image."""
        shape = predictions["boxes"].shape
        return {"boxes": np.broadcast_to(np.asarray(calibration["mean_boxes"], np.float32), shape)}

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
        """Scores a whole split on the host, by class and as their mean ("macro"); `classes` restricts it to those.

        "iou" is the mean IoU of the predicted and the known boxes, "iou_at_least_50" the share that has 0.5 or more.
        Intervals are from a bootstrap over patients. Raises InputError if an image has several boxes of one class.
        """
        self._check_single(targets)
        index = metrics.positions(self.names, classes)
        overlap = box_iou(predictions["boxes"], targets["boxes"])[:, index]
        right = np.where(np.isnan(overlap), np.nan, overlap >= 0.5)
        values = np.stack([overlap, right], axis=2)
        return metrics.case_means(values, [self.names[i] for i in index], PER_CLASS, groups, resamples=resamples)

    def errors(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
    ) -> np.ndarray:
        """One minus the mean IoU of each image's known boxes, f64[N]; NaN where none is known."""
        index = metrics.positions(self.names, classes)
        return 1 - metrics.mean_of_defined(box_iou(predictions["boxes"], targets["boxes"])[:, index])

    def draw_samples(self, folder: Path, name: str, samples: Samples, calibration: Mapping[str, Any]) -> None:
        """Draws a sheet of images with the true and the predicted boxes of the protocol's classes."""
        index = metrics.positions(self.names, samples.classes)
        predicted, true = samples.predictions["boxes"][:, index], samples.targets["boxes"][:, index]
        overlap = 1 - samples.errors
        labels = np.broadcast_to(np.arange(len(index)), predicted.shape[:2])
        figures.samples(
            folder / f"samples_{name}.png",
            samples.images,
            sections=samples.sections,
            classes=[self.names[k] for k in index],
            captions=["no known box" if np.isnan(value) else f"mean IoU {value:.2f}" for value in overlap],
            truth=figures.Overlay(boxes=true, box_labels=labels),
            prediction=figures.Overlay(boxes=predicted, box_labels=labels),
        )

    def findings(
        self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any], row: int, size: tuple[int, int]
    ) -> Findings:
        """Gives the box of each class in image `row`; every class is there, so each is called with a score of 1."""
        corners = map(tuple, predictions["boxes"][row].tolist())
        found = tuple(Box(name, 1.0, box, True) for name, box in zip(self.names, corners))
        return Findings(boxes=found, box_labels=self.names)

    def _head(self) -> tuple[ModuleType, dict[str, Any]]:
        return catalog.head(self.name, self.head, "pooled")

    def _known(self, batch: Batch) -> jax.Array:
        return ~jnp.isnan(self._truth(batch)[0][..., 0]) & batch["valid"][:, None]

    def _truth(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """The known boxes f32[B,K,4], NaN where there is not exactly one, and how many there are, i32[B,K]."""
        if "boxes" in batch and self.box_classes:
            truth, found = _of_label(batch, len(self.names))
        elif "masks" in batch and batch["masks"].shape[-1] == len(self.structures):
            truth, found = _around_masks(batch)
        else:
            raise InputError(
                f"task {self.name!r} needs boxes, or a mask for each of {list(self.structures)}: choose a dataset with "
                "boxes or masks (its read() gives them)"
            )
        return jnp.where(found[..., None] == 1, truth, jnp.nan), found

    def _check_single(self, targets: Mapping[str, np.ndarray]) -> None:
        """A class with two boxes in an image is nothing that one box can answer; the loss left such images out."""
        several = (targets["found"] > 1).any(axis=0)
        if several.any():
            k = int(several.argmax())
            raise InputError(
                f"task {self.name!r}: {(targets['found'][:, k] > 1).sum()} images have several boxes of the class "
                f"{self.names[k]!r}, expected at most one: choose the task detection, or a dataset of single organs"
            )


def _of_label(batch: Batch, classes: int) -> tuple[jax.Array, jax.Array]:
    """The sum of the boxes of each label f32[B,K,4], and how many there are, i32[B,K]."""
    of_class = (batch["box_labels"][..., None] == jnp.arange(classes)) & batch["box_valid"][..., None]
    if "boxes_known" in batch:
        of_class &= batch["boxes_known"][:, None, None]
    boxes_of_class = jnp.where(of_class[..., None], batch["boxes"][:, :, None], 0.0)
    return boxes_of_class.sum(1), of_class.sum(1, dtype=jnp.int32)


def _around_masks(batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The smallest box around each mask f32[B,K,4], and whether there is one, i32[B,K]."""
    masks = batch["masks"] > 0
    sides = []
    for other_axis in (2, 1):  # over columns, which leaves the rows, then over rows
        lit = masks.any(other_axis)
        length = lit.shape[1]
        sides.append((lit.argmax(1) / length, 1 - lit[:, ::-1].argmax(1) / length))
    (top, bottom), (left, right) = sides
    found = masks.any((1, 2))
    if "mask_valid" in batch:
        found &= batch["mask_valid"]
    return jnp.stack([top, left, bottom, right], -1).astype(jnp.float32), found.astype(jnp.int32)

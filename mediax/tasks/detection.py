"""Detection: boxes with a class and a score, by any head that finds boxes; images without known boxes are left out."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mediax import catalog, figures, metrics
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.model import Build

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's
RECALLS = np.linspace(0, 1, 101)
PER_CLASS = ("ap", "ap50", "ap75")
TARGETS = ("boxes", "box_labels", "box_valid")


@dataclass(frozen=True)
class Task:
    """Predicts boxes of `box_classes`, the classes that the dataset's `box_labels` count.

    `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` that finds boxes, with its options. Such a head is
    called as (pyramid, (H, W), targets) and gives {losses: {name: f32[B]}, boxes f32[B,D,4], scores f32[B,D], labels
    i32[B,D]}; the file's NORMALIZED_BY says whether the losses are averaged over "images" or over true "boxes", its
    LOSS_WEIGHTS how they add up, which `loss_weights` overrides, its MASKS whether it also learns the masks of the
    boxes' classes. `shown` is the score from which a box is drawn.
    """

    name: str
    box_classes: tuple[str, ...]
    head: Mapping[str, Any] = field(default_factory=lambda: {"name": "mask_rcnn", "masks": False})
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    shown: float = 0.3
    dtype: Any = jnp.float32  # that the head computes in

    def __post_init__(self):
        if not self.box_classes or isinstance(self.box_classes, str):
            raise InputError(
                f"config field box_classes of task {self.name!r} is {self.box_classes!r}: expected the names of the "
                "boxes' classes, the dataset's BOX_CLASSES"
            )
        if not 0 <= self.shown <= 1:
            raise InputError(f"config field shown of task {self.name!r} is {self.shown}: expected 0 to 1")
        head, _ = self._head()
        if not hasattr(head, "NORMALIZED_BY"):
            raise InputError(f"config field head of task {self.name!r}: {self.head.get('name')!r} finds no boxes")
        weights = head.LOSS_WEIGHTS
        for name in self.loss_weights:
            if name not in weights:
                hint = catalog.suggestion(name, weights)
                raise InputError(f"config field loss_weights of task {self.name!r}: no loss {name!r}; {hint}")

    def parts(self, channels: Mapping[int, int]) -> dict[str, Build]:
        """Names the parts that this task adds to the backbone's `channels` (stride -> width), with their builds."""
        head, options = self._head()
        options |= {"dtype": self.dtype}
        return {f"head/{self.name}": lambda rngs: head.Head(channels, len(self.box_classes), rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> dict[str, Any]:
        """Gives the losses of each image, and outside training the boxes that were found; see the head."""
        targets = {name: batch[name] for name in TARGETS} if "boxes" in batch else None
        head, options = self._head()
        if targets is not None and getattr(head, "MASKS", False) and options.get("masks", True):
            targets |= self._masks(batch)
        return run(f"head/{self.name}", pyramid, batch["image"].shape[1:3], targets)

    def count(self, batch: Batch) -> jax.Array:
        """Counts what the loss averages over: images with known boxes, or their boxes, as the head's reference does."""
        self._check(batch)
        known = self._known(batch)
        if self._head()[0].NORMALIZED_BY == "boxes":
            return (batch["box_valid"] & known[:, None]).sum().astype(jnp.float32)
        return known.sum().astype(jnp.float32)

    def loss(
        self, outputs: Mapping[str, Any], batch: Batch, count: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sums the weighted losses of the images with known boxes and divides by `count`, that of the whole batch."""
        known = self._known(batch)
        weights = self._head()[0].LOSS_WEIGHTS | dict(self.loss_weights)
        logs = {
            name: jnp.where(known, loss, 0).sum() / jnp.maximum(count, 1) for name, loss in outputs["losses"].items()
        }
        total = sum(weights[name] * loss for name, loss in logs.items())
        return total, {"loss": total} | logs

    def predict(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """Gives a fixed number of boxes f32[B,D,4] in fractions, scores f32[B,D] (0: no box) and labels i32[B,D]."""
        return {name: outputs[name] for name in ("boxes", "scores", "labels", "masks") if name in outputs}

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks from the batch what `metrics` compares the predictions with."""
        self._check(batch)
        return {name: batch[name] for name in TARGETS} | {"boxes_known": self._known(batch)}

    def calibrate(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Has nothing to choose on validation data: average precision needs no threshold."""
        return {}

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
        """Gives COCO's AP, AP50 and AP75 of each class and their mean, on the images whose boxes are known."""
        index = [self.box_classes.index(name) for name in classes or self.box_classes]
        return average_precision(predictions, targets, index, self.box_classes, groups, resamples=resamples)

    def draw(
        self,
        folder: Path,
        name: str,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        *,
        classes: Sequence[str] = (),
    ) -> None:
        """Draws no curves."""

    def draw_samples(
        self,
        folder: Path,
        name: str,
        images: np.ndarray,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
    ) -> None:
        """Draws a sheet of the first `images` f32[N,H,W,C] of a split with the true boxes and those that were found."""
        count = len(images)
        scores = predictions["scores"][:count]
        known = targets["box_valid"][:count] & targets["boxes_known"][:count, None]
        shown = scores >= max(self.shown, np.finfo(np.float32).tiny)
        figures.samples(
            folder / f"samples_{name}.png",
            images,
            classes=self.box_classes,
            captions=None if targets["boxes_known"][:count].all() else _captions(targets["boxes_known"][:count]),
            truth=figures.Overlay(boxes=targets["boxes"][:count], box_labels=_or_padding(targets["box_labels"], known)),
            prediction=figures.Overlay(
                boxes=predictions["boxes"][:count],
                box_labels=_or_padding(predictions["labels"], shown),
                box_scores=scores,
            ),
        )

    def _head(self) -> tuple[ModuleType, dict[str, Any]]:
        return catalog.head(self.name, self.head, "mask_rcnn")

    def _check(self, batch: Batch) -> None:
        if missing := [name for name in TARGETS if name not in batch]:
            raise InputError(
                f"task {self.name!r} learns and is scored on boxes, the batch lacks {', '.join(missing)}: choose a "
                "dataset with boxes (its read() gives them)"
            )

    def _known(self, batch: Batch) -> jax.Array:
        return batch["valid"] & batch["boxes_known"] if "boxes_known" in batch else batch["valid"]

    def _masks(self, batch: Batch) -> dict[str, jax.Array]:
        found = batch["masks"].shape[-1] if "masks" in batch else 0
        if found != len(self.box_classes):
            raise InputError(
                f"task {self.name!r}: its head learns a mask in each box, from one mask for each of "
                f"{len(self.box_classes)} box classes; the batch has {found}. Set the head's option masks to False"
            )
        known = batch.get("mask_valid", jnp.ones((len(batch["masks"]), found), bool))
        return {"masks": batch["masks"], "mask_valid": known}


def _captions(known: np.ndarray) -> list[str]:
    return ["" if one else "boxes unknown" for one in known]


def _or_padding(labels: np.ndarray, shown: np.ndarray) -> np.ndarray:
    return np.where(shown, labels[: len(shown)], -1)


class Found(NamedTuple):
    """The detections of one class in all images, best first."""

    hits: np.ndarray  # bool[T,M] whether a detection is right at each of IOU_THRESHOLDS
    patients: np.ndarray  # i[M]
    true: np.ndarray  # f[P] true boxes of each patient


def average_precision(
    predictions: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray],
    index: Sequence[int],
    classes: Sequence[str],
    groups: np.ndarray | None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[metrics.Metric]:
    """COCO's average precision of the classes in `index` and their mean, with 95 % bootstrap intervals over patients.

    "ap" is the mean over the IoU thresholds 0.50 to 0.95 by 0.05, "ap50" and "ap75" are those of one threshold; at most
    100 detections of a class in an image count, boxes of any size. pycocotools matches detections to boxes, once; a
    resample weighs the images of its patients. A class without a true box is NaN and not in the mean.

    Args:
      predictions: boxes f[N,D,4] (ymin, xmin, ymax, xmax as fractions), scores f[N,D] (0 is padding), labels i[N,D].
      targets: boxes f[N,B,4], box_labels i[N,B], box_valid bool[N,B], boxes_known bool[N].
      index: of the classes that are scored.
      classes: names of all classes.
      groups: [N] the patient of each image; None makes every image a patient of its own.
    """
    known = np.flatnonzero(targets["boxes_known"])
    rows = np.arange(len(targets["boxes_known"])) if groups is None else np.asarray(groups)
    patients = np.unique(rows[known], return_inverse=True)[1]
    found = [_matched(predictions, targets, known, k, patients) for k in index]

    def evaluate(weights: np.ndarray) -> np.ndarray:
        by_threshold = np.array([[_precision(one, row) for one in found] for row in weights])  # [R,K,T]
        return np.stack([by_threshold.mean(-1), by_threshold[..., 0], by_threshold[..., 5]], -1)

    values, draws = metrics.bootstrap(evaluate, patients, resamples, seed)
    names = [classes[k] for k in index]
    left_out = [name for name, value in zip(names, values[:, 0]) if np.isnan(value)]
    results = []
    for m, metric in enumerate(PER_CLASS):
        for k, name in enumerate(names):
            note = "no box of this class in this split: undefined, left out of the mean" if name in left_out else ""
            results.append(metrics.with_interval(f"{metric}/{name}", values[k, m], draws[:, k, m], patients, note))
        note = f"left out, without a box: {', '.join(left_out)}" if left_out else ""
        mean, mean_draws = metrics.mean_of_defined(values[:, m]), metrics.mean_of_defined(draws[:, :, m])
        results.append(metrics.with_interval(f"{metric}/macro", mean, mean_draws, patients, note))
    return results


def _matched(
    predictions: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray],
    known: np.ndarray,
    label: int,
    patients: np.ndarray,
) -> Found:
    """Lets pycocotools match the detections of one class to its true boxes in the images `known`."""
    from pycocotools.cocoeval import COCOeval

    true, called = [], []
    for image, row in enumerate(known):
        for box in targets["boxes"][row][targets["box_valid"][row] & (targets["box_labels"][row] == label)]:
            true.append(_annotation(len(true), image, box))
        chosen = (predictions["labels"][row] == label) & (predictions["scores"][row] > 0)
        for box, score in zip(predictions["boxes"][row][chosen], predictions["scores"][row][chosen]):
            called.append(_annotation(len(called), image, box) | {"score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = COCOeval(_coco(true, len(known)), _coco(called, len(known)), "bbox")
        evaluation.params.iouThrs = IOU_THRESHOLDS
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        evaluation.evaluate()
    images = [(image, one) for image, one in enumerate(evaluation.evalImgs) if one is not None]
    scores = np.concatenate([np.empty(0), *(one["dtScores"] for _, one in images)])
    hits = np.concatenate([np.empty((len(IOU_THRESHOLDS), 0)), *(one["dtMatches"] for _, one in images)], 1) > 0
    owner = np.concatenate([np.empty(0, int), *(np.full(len(one["dtScores"]), image) for image, one in images)])
    order = np.argsort(-scores, kind="stable")
    counts = np.bincount(patients[[one["image_id"] for one in true]], minlength=patients.max(initial=-1) + 1)
    return Found(hits[:, order], patients[owner[order]], counts)


def _annotation(number: int, image: int, box: np.ndarray) -> dict[str, Any]:
    ymin, xmin, ymax, xmax = map(float, box)
    width, height = xmax - xmin, ymax - ymin
    # pycocotools marks "no match" by the id 0.
    identity = {"id": number + 1, "image_id": image, "category_id": 0, "iscrowd": 0}
    return identity | {"bbox": [xmin, ymin, width, height], "area": width * height}


def _coco(annotations: list[dict[str, Any]], images: int):
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": 0}],
    }
    coco.createIndex()
    return coco


def _precision(found: Found, weights: np.ndarray) -> np.ndarray:
    """Precision averaged over 101 recalls under patient weights f[P], for each threshold: f[T]; NaN without a box."""
    total = weights @ found.true
    if total == 0:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    weight = weights[found.patients]
    right = np.cumsum(found.hits * weight, axis=1)
    precision = right / (np.cumsum(weight) + np.spacing(1))
    best_from_here = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best_from_here = np.pad(best_from_here, ((0, 0), (0, 1)))  # recalls that are never reached
    places = [np.searchsorted(recall, RECALLS, side="left") for recall in right / total]
    return np.array([best[place].mean() for best, place in zip(best_from_here, places)])

"""Detection: boxes with a class and a score, by any head that finds boxes; images without known boxes are left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mediax import box_metrics, catalog, figures, laterality, metrics
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.findings import Box, Findings, mask_of_box
from mediax.model import Build
from mediax.operators import mirror, paste
from mediax.operators.nms import nms
from mediax.samples import Samples

TARGETS = ("boxes", "box_labels", "box_valid")
FOUND = ("boxes", "scores", "labels", "masks")  # what a head says of each box; masks, if it learns them
TIE = 1e-6  # weight of what orders images of equal F1
DUPLICATE_IOU = 0.5  # above it two boxes of one class, found in views of one image, are one: MMDetection's default


@dataclass(frozen=True)
class Task:
    """Predicts boxes of `box_classes`, the classes that the dataset's `box_labels` count.

    `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` that finds boxes, with its options. Such a head is
    called as (pyramid, (H, W), targets) and gives {losses: {name: f32[B]}, boxes f32[B,D,4], scores f32[B,D], labels
    i32[B,D]}; the file's NORMALIZED_BY says whether the losses are averaged over "images" or over true "boxes", its
    LOSS_WEIGHTS how they add up, which `loss_weights` overrides, its MASKS whether it also learns the boxes' masks:
    those of their own instances where the batch has `box_masks`; else, as an approximation that does not part
    neighbours of one class, the mask of a box's class inside it. `shown` is the score from which a box is drawn.
    """

    name: str
    box_classes: tuple[str, ...]
    head: Mapping[str, Any] = field(default_factory=lambda: {"name": "mask_rcnn", "masks": False})
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    shown: float = 0.3
    dtype: Any = jnp.float32  # that the head computes in
    remat: bool = False  # whether the head recomputes in the backward pass what it need not store
    dense: ClassVar[bool] = True  # each level of the pyramid shall cover the whole image

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
        options |= {"dtype": self.dtype, "remat": self.remat}
        return {f"head/{self.name}": lambda rngs: head.Head(channels, len(self.box_classes), rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> dict[str, Any]:
        """Gives the losses of each image, and outside training the boxes that were found; see the head."""
        targets = {name: batch[name] for name in TARGETS} if "boxes" in batch else None
        if targets is not None and self._learns_masks():
            targets |= self._masks(batch)
        return run(f"head/{self.name}", pyramid, batch["image"].shape[1:3], targets)

    def mirrored(self, outputs: Mapping[str, Any], turn: jax.Array) -> dict[str, Any]:
        """Turns what was found in images back whose (rows, columns) are mirrored where `turn` bool[2] says so.

        Classes that differ by left and right trade places; see `mediax.inference`. The losses stay: they are those of
        the image itself alone, see `merged`.
        """
        names = laterality.exchanged(jnp.arange(len(self.box_classes)), turn, self.box_classes, 0)
        back = {"boxes": mirror.boxes(outputs["boxes"], turn), "labels": names[outputs["labels"]]}
        if "masks" in outputs:
            back["masks"] = mirror.pixels(outputs["masks"], turn, (2, 3))
        return dict(outputs) | back

    def merged(self, views: Mapping[str, Any]) -> dict[str, Any]:
        """Makes one of what was found in V views of images, boxes f32[V,B,D,4]: the best D boxes, best first.

        By suppression within each class, as MMDetection's DetTTAModel and detectron2's GeneralizedRCNNWithTTA do it:
        of boxes that overlap by more than `DUPLICATE_IOU` the best stays as it is, with its score and its mask (where
        detectron2 finds the masks of all views for it, and averages them). Losses are those of the first view.
        """
        together = {name: jnp.concatenate(array, 1) for name, array in _found(views).items()}
        best = jax.vmap(partial(_without_duplicates, most=views["boxes"].shape[2]))(together)
        return {"losses": jax.tree.map(lambda loss: loss[0], views["losses"])} | best

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
        """Gives a fixed number of boxes f32[B,D,4] in fractions, scores f32[B,D] (0: no box) and labels i32[B,D].

        Of a head that finds masks also those, f32[B,D,h,w], the probability inside the box; and if the batch has boxes
        and masks `mask_iou` f32[B,D,N], the overlap with the mask of each true box, and the `structures` u8[B,H,W,K]
        of the boxes with a score of `shown` or more.
        """
        found = _found(outputs)
        if "masks" in found and "boxes" in batch:
            shown = found["scores"] >= self._least_shown()
            compare = partial(paste.compare, size=batch["image"].shape[1:3], classes=len(self.box_classes))
            arguments = [found[name] for name in ("masks", "boxes", "labels")]
            iou, structures = jax.vmap(compare)(*arguments, shown, self._masks(batch)["box_masks"])
            found |= {"mask_iou": iou, "structures": structures.astype(jnp.uint8)}
        return found

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks from the batch what `metrics` compares the predictions with; `masks_known` where it learns masks."""
        self._check(batch)
        targets = {name: batch[name] for name in TARGETS} | {"boxes_known": self._known(batch)}
        if self._learns_masks():
            known = targets["boxes_known"] & self._masks(batch)["mask_valid"].all(-1)
            targets |= {"masks_known": known, "masks": batch["masks"]}
        return targets

    def calibrate(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        groups: np.ndarray | None = None,
    ) -> dict[str, Any]:
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
        scoring: str = "coco",
        iou: float = 0.5,
        agnostic: bool = False,
        annotated_only: bool = False,
        no_finding: str = "",
        rates: Sequence[float] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        blend: float = 0.0,
        reached: bool = False,
        lower_end: bool = False,
        drop_repeats: bool = False,
        edge_pixel: float = 0.0,
    ) -> list[metrics.Metric]:
        """Scores the boxes on the images whose boxes are known; see `box_metrics` for each scoring.

        "coco" gives AP, AP50 and AP75 of each class and their mean, and where the head finds masks theirs too
        ("mask_ap": COCO's if the batch has `box_masks`, else against the approximation that `Task` names); "voc" the
        average precision at an IoU above `iou`; "froc" the sensitivity at `rates` of false positives per image and the
        AUROC of images, with `blend` both in one; `reached`, `lower_end` and `drop_repeats` choose its rules.
        `agnostic` scores all classes as one, `annotated_only` leaves images without a true box out, `no_finding` names
        a class of such images, `edge_pixel` (a fraction) is the size of the pixel that corners name, if they do.
        """
        gather = partial(box_metrics.gather, agnostic=agnostic, annotated_only=annotated_only, edge_pixel=edge_pixel)
        boxes = gather(predictions, targets, self.box_classes, groups)
        index = [0] if agnostic else metrics.positions(self.box_classes, classes)
        if no_finding:
            index.append(len(boxes.classes))
            boxes = box_metrics.with_no_finding(boxes, no_finding)
        options: dict[str, Any] = {"resamples": resamples}
        if scoring == "voc":
            return box_metrics.voc_average_precision(boxes, index, iou=iou, **options)
        if scoring == "froc":
            options |= {"reached": reached, "lower_end": lower_end, "drop_repeats": drop_repeats}
            return box_metrics.froc(boxes, index, iou=iou, rates=rates, blend=blend, **options)
        results = box_metrics.average_precision(boxes, index, **options)
        if "mask_iou" in predictions:
            known = targets | {"boxes_known": targets["masks_known"]}
            masks = gather(predictions, known, self.box_classes, groups, masks=True)
            results += box_metrics.average_precision(masks, index, prefix="mask_", **options)
        return results

    def trivial(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Finds no box in any image."""
        return dict(predictions) | {"scores": np.zeros_like(predictions["scores"])}

    def errors(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
        iou: float = 0.5,
        agnostic: bool = False,
        annotated_only: bool = False,
        edge_pixel: float = 0.0,
        drop_repeats: bool = False,
        **_: Any,
    ) -> np.ndarray:
        """One minus F1 of the boxes that are shown of each image, f64[N], at an IoU of `iou`; NaN where unknown.

        Images of one F1 follow each other by the soft F1, in which each box found counts as much as its score says. The
        other options are those of `metrics`.
        """
        scored = np.asarray(targets["boxes_known"], bool)
        if annotated_only:
            scored = scored & targets["box_valid"].any(1)
        options = {"agnostic": agnostic, "annotated_only": annotated_only, "edge_pixel": edge_pixel}
        boxes = box_metrics.gather(predictions, targets, self.box_classes, None, **options)
        boxes = box_metrics.of_classes(boxes, classes)
        f1, soft = box_metrics.f1_of_images(boxes, iou, self._least_shown(), drop_repeats)
        errors = np.full(len(scored), np.nan)
        errors[scored] = 1 - f1 - TIE * soft
        return errors

    def annotated(self, targets: Mapping[str, np.ndarray], classes: Sequence[str] = ()) -> np.ndarray:
        """Which images have a true box of the classes, bool[N]."""
        index = metrics.positions(self.box_classes, classes)
        return (targets["box_valid"] & targets["boxes_known"][:, None] & np.isin(targets["box_labels"], index)).any(1)

    def draw_samples(self, folder: Path, name: str, samples: Samples, calibration: Mapping[str, Any]) -> None:
        """Draws a sheet of images with the true boxes and those that were found, of the protocol's classes."""
        predictions, targets = samples.predictions, samples.targets
        index = metrics.positions(self.box_classes, samples.classes)
        known = targets["box_valid"] & targets["boxes_known"][:, None] & np.isin(targets["box_labels"], index)
        shown = (predictions["scores"] >= self._least_shown()) & np.isin(predictions["labels"], index)
        scored = np.isin(np.arange(len(self.box_classes)), index)
        has_masks = "structures" in predictions
        figures.samples(
            folder / f"samples_{name}.png",
            samples.images,
            sections=samples.sections,
            classes=self.box_classes,
            captions=["not scored" if np.isnan(value) else f"F1 {value:.2f}" for value in 1 - samples.errors],
            truth=figures.Overlay(
                masks=(targets["masks"] > 0) & scored if has_masks else None,
                boxes=targets["boxes"],
                box_labels=np.where(known, targets["box_labels"], -1),
            ),
            prediction=figures.Overlay(
                masks=(predictions["structures"] > 0) & scored if has_masks else None,
                boxes=predictions["boxes"],
                box_labels=np.where(shown, predictions["labels"], -1),
                box_scores=predictions["scores"],
            ),
        )

    def findings(
        self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any], row: int, size: tuple[int, int]
    ) -> Findings:
        """Gives the boxes that were found in image `row`, best first; those of a score from `shown` on are called."""
        boxes, scores, labels = (predictions[name][row] for name in ("boxes", "scores", "labels"))
        found = []
        for place in np.argsort(-scores, kind="stable")[: np.count_nonzero(scores > 0)]:
            corners, called = boxes[place].tolist(), bool(scores[place] >= self.shown)
            has_mask = called and "masks" in predictions
            mask = mask_of_box(predictions["masks"][row, place], corners, size) if has_mask else None
            found.append(Box(self.box_classes[labels[place]], float(scores[place]), tuple(corners), called, mask))
        return Findings.of_boxes(found, self.box_classes)

    def _least_shown(self) -> float:
        return max(self.shown, float(np.finfo(np.float32).tiny))

    def _learns_masks(self) -> bool:
        head, options = self._head()
        return getattr(head, "MASKS", False) and options.get("masks", True)

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
        masks = batch.get("box_masks")
        if masks is None:
            masks = jax.vmap(paste.class_inside)(batch["masks"], batch["boxes"], batch["box_labels"])
        return {"box_masks": masks, "mask_valid": known}


def _found(outputs: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {name: outputs[name] for name in FOUND if name in outputs}


def _without_duplicates(found: Mapping[str, jax.Array], most: int) -> dict[str, jax.Array]:
    """Keeps of the boxes f32[N,4] that were found in one image the best `most` that duplicate no better one."""
    boxes, scores, labels = (found[name] for name in ("boxes", "scores", "labels"))
    index, kept = nms(boxes, scores, iou_threshold=DUPLICATE_IOU, labels=labels, valid=scores > 0, max_boxes=most)
    best = {name: array[index] for name, array in found.items()}
    return best | {"boxes": jnp.where(kept[:, None], best["boxes"], 0), "scores": jnp.where(kept, best["scores"], 0)}

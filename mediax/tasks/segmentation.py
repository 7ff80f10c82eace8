"""Segmentation: each structure a mask of its own (a sigmoid each), or exclusive (one softmax with the background).

A structure that nobody annotated in an image (`mask_valid` False) is left out there, and so are pixels outside of
`field_of_view`, in the loss and in the metrics.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mediax import catalog, figures, metrics, rle
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.findings import Findings
from mediax.model import Build
from mediax.operators.padding import extent
from mediax.samples import Samples

LOSSES = ("cross_entropy", "dice", "focal")
PER_STRUCTURE = ("dice", "iou", "dice_present")
PER_PIXEL = ("pixel_f1", "pixel_iou", "pixel_sensitivity", "pixel_specificity", "pixel_accuracy", "pixel_auroc")
RULES = ("dice", "f1")
# Thresholds among which a rule chooses, evenly spread in the logit: those of thin structures lie near 0, and a network
# that is sure of itself is beyond 6 nearly everywhere.
CANDIDATES = tuple((1 / (1 + np.exp(-np.linspace(-12, 12, 97)))).round(9).tolist())
MOST_OVERLAP = 0.01  # of what exclusive structures cover together
CELLS = 32  # along a side of the mean mask, which is smooth; of 30,000 images a quarter of a gigabyte is kept so
SMOOTHING = 1.0  # pixels: the Dice loss of an empty mask that is predicted empty is then 0


@dataclass(frozen=True)
class Task:
    """Predicts which pixels of an image belong to each of `structures`, the channels of the dataset's masks.

    `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` with its options. `losses` are the weights of the
    terms that are added up: "cross_entropy", "dice" (one minus soft Dice of each image, V-Net, arXiv:1606.04797),
    "focal" (cross-entropy times (1 - p)^`focal_gamma`, arXiv:1708.02002). `exclusive` structures do not overlap.
    `threshold` is a number, or a rule: for each structure the one of the highest mean Dice of images ("dice"), or of
    the highest F1 of all pixels together ("f1"), on the split that calibrates.
    Raises InputError for options that do not fit.
    """

    name: str
    structures: tuple[str, ...]
    head: Mapping[str, Any] = field(default_factory=lambda: {"name": "unet"})
    exclusive: bool = False
    losses: Mapping[str, float] = field(default_factory=lambda: {"cross_entropy": 1.0, "dice": 1.0})
    focal_gamma: float = 2.0
    threshold: float | str = 0.5
    dtype: Any = jnp.float32  # that the head computes in
    remat: bool = False  # whether the head recomputes in the backward pass what it need not store
    image_axes: ClassVar[tuple[int, ...]] = (2, 3)  # of the outputs: rows and columns of the image
    dense: ClassVar[bool] = True  # each level of the pyramid shall cover the whole image

    def __post_init__(self):
        if not self.structures or isinstance(self.structures, str):
            raise InputError(
                f"config field structures of task {self.name!r}: expected the names of the masks' channels"
            )
        if not isinstance(self.losses, Mapping) or not any(self.losses.values()):
            raise InputError(f"config field losses of task {self.name!r} is {self.losses!r}: expected name -> weight")
        for name, weight in self.losses.items():
            if name not in LOSSES:
                hint = catalog.suggestion(name, LOSSES)
                raise InputError(f"config field losses of task {self.name!r}: no loss {name!r}; {hint}")
            if weight < 0:
                raise InputError(f"config field losses.{name} of task {self.name!r} is {weight}: expected 0 or more")
        if self.threshold not in RULES and (isinstance(self.threshold, str) or not 0 <= self.threshold <= 1):
            raise InputError(
                f"config field threshold of task {self.name!r} is {self.threshold!r}: expected 0 to 1, or one of the "
                f"rules {', '.join(RULES)}"
            )
        if self.exclusive and self.threshold != 0.5:
            raise InputError(
                f"config field threshold of task {self.name!r} is {self.threshold!r}: exclusive structures have no "
                "thresholds, the largest probability is called; leave it out"
            )
        if not 0 <= self.focal_gamma < math.inf:
            raise InputError(
                f"config field focal_gamma of task {self.name!r} is {self.focal_gamma}: expected 0 or more"
            )
        self._head()  # checks the name and the options

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the last axis of the outputs is called: S names, after that of the background if `exclusive`."""
        return (*("background",) * self.exclusive, *self.structures)

    def check_example(self, example: Mapping[str, Any]) -> None:
        """Raises InputError if structures that are to be exclusive overlap, beyond what rounding at borders does."""
        if not self.exclusive or "masks" not in example:
            return
        covering = (np.asarray(example["masks"]) > 0).sum(-1)
        if (covering > 1).sum() > MOST_OVERLAP * (covering > 0).sum():
            raise InputError(
                f"config field exclusive of task {self.name!r}: of the image {example['id']!r} "
                f"{(covering > 1).sum()} pixels belong to several of {list(self.structures)}; set it to False"
            )

    def parts(self, channels: Mapping[int, int]) -> dict[str, Build]:
        """Names the parts that this task adds to the backbone's `channels` (stride -> width), with their builds."""
        head, options = self._head()
        options |= {"dtype": self.dtype, "remat": self.remat}
        outputs = len(self.structures) + self.exclusive
        return {f"head/{self.name}": lambda rngs: head.Head(channels, outputs, rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> jax.Array:
        """Gives the logits f32[D,B,H,W,S] of D branches: one, or as many as the head supervises deeply.

        With `exclusive` the last axis is S + 1, and the background is the first.
        """
        height, width = size = batch["image"].shape[1:3]
        logits = run(f"head/{self.name}", pyramid, extent(pyramid, size)).astype(jnp.float32)
        logits = logits[..., :height, :width, :]
        return logits if logits.ndim == 5 else logits[None]

    def count(self, batch: Batch) -> jax.Array:
        """Counts what the loss averages over: known structures of images, or images with all structures known."""
        return self._known(batch).sum().astype(jnp.float32)

    def loss(self, logits: jax.Array, batch: Batch, count: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sums the losses over the known structures of each image, averages the branches, and divides by `count`.

        A cross-entropy is a mean over the image's pixels, so that every image counts the same whatever its field of
        view. `count` is that of the whole batch even if this is a slice of it, so that gradients of slices add up.
        """
        self._check(batch)
        masks, seen, known = batch["masks"].astype(jnp.float32), _seen(batch), self._known(batch)

        def total(entries: Callable[[jax.Array], jax.Array]) -> jax.Array:
            branches = jnp.stack([entries(branch) for branch in logits]).mean(0)
            return jnp.where(known, branches, 0.0).sum() / jnp.maximum(count, 1.0)

        terms = {name: total(lambda x, name=name: self._entries(name, x, masks, seen)) for name in self.losses}
        loss = sum(weight * terms[name] for name, weight in self.losses.items())
        return loss, {"loss": loss} | terms

    def predict(self, logits: jax.Array, batch: Batch) -> dict[str, jax.Array]:
        """Gives the `probabilities` f32[B,H,W,S], averaged over the branches, and what metrics need of them.

        If the batch has masks, for each of T thresholds (one, unless it is still to be chosen): `called` and `overlap`,
        i32[B,S,T], count the pixels that are called the structure and those of them that are; `height`, i32[B,S,T], is
        the number of rows from the first to the last of them. `cells` u16[B,C,S+1] count, in each cell of a grid of
        CELLS rows and columns, the true pixels of each structure, and last all pixels of the field of view.
        """
        probabilities = jnp.stack([self._probabilities(branch) for branch in logits]).mean(0)
        if "masks" not in batch:
            return {"probabilities": probabilities}
        self._check(batch)
        masks, seen = batch["masks"] > 0, _seen(batch) > 0

        def counts(threshold: jax.Array) -> dict[str, jax.Array]:
            return _counts(self._called(probabilities, threshold, jnp) & seen, masks)

        of_thresholds = jax.lax.map(counts, jnp.asarray(self._thresholds(), jnp.float32))
        return {"probabilities": probabilities, "cells": _cells(masks, seen)} | {
            name: values.transpose(1, 2, 0) for name, values in of_thresholds.items()
        }

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks from the batch what `metrics` compares with.

        `area` f32[B,S] in pixels, NaN if unknown; `seen` f32[B], the pixels inside the field of view; `true_height`
        i32[B,S] in rows; the `masks`, and a `field_of_view` f32[B,H,W,1] where there is one; and of a second reader's
        masks `reader_called`, `reader_overlap` and `reader_height` i32[B,S].
        """
        self._check(batch)
        seen = _seen(batch)
        masks = (batch["masks"] > 0) & (seen > 0)
        area = jnp.where(_mask_valid(batch), masks.sum((1, 2)).astype(jnp.float32), jnp.nan)
        targets = {
            "area": area,
            "seen": seen.sum((1, 2, 3)),
            "true_height": _height(masks),
            "masks": batch["masks"],
        }
        if "field_of_view" in batch:
            targets["field_of_view"] = seen
        if "second_masks" in batch:
            second = _counts((batch["second_masks"] > 0) & (seen > 0), masks)
            targets |= {f"reader_{name}": values for name, values in second.items()}
        return targets

    def calibrate(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        groups: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Chooses on validation data whatever `metrics` must not choose on test data: the thresholds.

        Of equally good ones the nearest to 0.5 is taken; it is 0.5 where no mask of a structure is known. Beside them
        stands what `trivial` answers: `mean_mask`, run lengths of where a structure is as often as the task's
        threshold says or its rule finds best, and `median_ratio` [S,S] of the heights of any two structures.
        """
        frequency = mean_mask(predictions["cells"], targets["area"])
        masks = np.stack([self._called(frequency, threshold, np) for threshold in self._thresholds()], -1)
        places = self._best_places(_counts_of_cells(predictions["cells"], masks), targets)
        chosen = (masks[:, k, place].reshape(CELLS, CELLS) for k, place in enumerate(places))
        blind = {"mean_mask": [*map(rle.chexmask_encode, chosen)], "median_ratio": median_ratio(targets)}
        if self.exclusive:
            return blind
        return {"thresholds": np.asarray(self._thresholds())[self._best_places(predictions, targets)].tolist()} | blind

    def metrics(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        *,
        classes: Sequence[str] = (),
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        resamples: int = 1000,
        pooled: bool = False,
        ratio: Sequence[str] = (),
    ) -> list[metrics.Metric]:
        """Scores a whole split on the host, by structure and as their mean ("macro"); `classes` restricts it to those.

        Dice and IoU are computed for each image and averaged. An image without the structure has Dice and IoU 1 if
        none of it is predicted, else 0; `dice_present` is the mean Dice over the images that show the structure.
        Images whose mask is unknown are left out. Intervals are from a bootstrap over patients.
        `pooled` adds F1, IoU, sensitivity, specificity, accuracy and AUROC of all pixels of all images together,
        inside the field of view. `ratio` names two structures, of which the error of the ratio of their heights is
        averaged over images (the vertical cup-to-disc ratio).
        """
        index = metrics.positions(self.structures, classes)
        names = [self.structures[i] for i in index]
        places = self._places(calibration)
        rows = overlaps(predictions, targets, places)
        values = np.stack([rows[metric][:, index] for metric in PER_STRUCTURE], axis=2)
        results = metrics.case_means(values, names, PER_STRUCTURE, groups, resamples=resamples)
        if pooled:
            results += pooled_metrics(predictions, targets, index, names, places, groups, resamples)
        if ratio:
            first, second = (self.structures.index(name) for name in ratio)
            if "ratio" in predictions:
                called = predictions["ratio"][:, first, second]
            else:
                called = _ratio(_picked(predictions["height"], places), first, second)
            error = np.abs(called - _ratio(targets["true_height"], first, second))
            error[np.isnan(targets["area"][:, [first, second]]).any(1)] = np.nan
            kind = [f"{ratio[0]} to {ratio[1]}"]
            results += metrics.case_means(error[:, None, None], kind, ["ratio_error"], groups, resamples=resamples)
        return results

    def trivial(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Calls in every image the mean mask of the calibrating split, and says its median ratio of two heights.

        That mask is empty where a structure is rare, or where the task's rule finds nothing better than to call none.
        """
        masks = [rle.chexmask_decode(runs, CELLS, CELLS).ravel() for runs in calibration["mean_mask"]]
        counts = _counts_of_cells(predictions["cells"], np.stack(masks, -1)[..., None])
        ratio = np.asarray(calibration["median_ratio"], float)
        return {name: np.broadcast_to(values, predictions["called"].shape) for name, values in counts.items()} | {
            "ratio": np.broadcast_to(ratio, (len(predictions["cells"]), *ratio.shape))
        }

    def second_reader(self, targets: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
        """What another reader of the same images called, as predictions that no threshold changes."""
        if "reader_called" not in targets:
            return None
        count = len(self._thresholds())
        return {
            name: np.repeat(targets[f"reader_{name}"][..., None], count, -1) for name in ("called", "overlap", "height")
        }

    def errors(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
        **_: Any,
    ) -> np.ndarray:
        """One minus the mean Dice of each image's known structures, f64[N]; NaN where none is known."""
        dice = overlaps(predictions, targets, self._places(calibration))["dice"]
        return 1 - metrics.mean_of_defined(dice[:, metrics.positions(self.structures, classes)])

    def annotated(self, targets: Mapping[str, np.ndarray], classes: Sequence[str] = ()) -> np.ndarray:
        """Which images show one of the structures, bool[N]."""
        return (targets["area"][:, metrics.positions(self.structures, classes)] > 0).any(1)

    def draw_samples(self, folder: Path, name: str, samples: Samples, calibration: Mapping[str, Any]) -> None:
        """Draws a sheet of images with the true and the predicted outlines of the protocol's structures."""
        predictions, targets = samples.predictions, samples.targets
        index = metrics.positions(self.structures, samples.classes)
        thresholds = np.asarray(calibration.get("thresholds", 0.5), np.float32)
        called = self._called(predictions["probabilities"], thresholds, np)
        if "field_of_view" in targets:  # nothing outside of it counts
            called = called & (targets["field_of_view"] > 0)
        known = ~np.isnan(targets["area"])[:, None, None]
        figures.samples(
            folder / f"samples_{name}.png",
            samples.images,
            sections=samples.sections,
            classes=[self.structures[k] for k in index],
            captions=["no known mask" if np.isnan(value) else f"mean Dice {value:.2f}" for value in 1 - samples.errors],
            truth=figures.Overlay(masks=((targets["masks"] > 0) & known)[..., index]),
            prediction=figures.Overlay(masks=called[..., index]),
        )

    def findings(
        self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any], row: int, size: tuple[int, int]
    ) -> Findings:
        """Gives the mask of each structure in image `row`, of `size` pixels."""
        thresholds = np.asarray(calibration.get("thresholds", 0.5), np.float32)
        called = self._called(predictions["probabilities"][row], thresholds, np)
        return Findings(masks={name: called[..., k] for k, name in enumerate(self.structures)})

    def _head(self) -> tuple[ModuleType, dict[str, Any]]:
        return catalog.head(self.name, self.head, "unet")

    def _check(self, batch: Batch) -> None:
        if "masks" not in batch or batch["masks"].shape[-1] != len(self.structures):
            found = f"{batch['masks'].shape[-1]} masks" if "masks" in batch else "no masks"
            raise InputError(
                f"task {self.name!r} predicts {len(self.structures)} structures, {list(self.structures)}, the batch "
                f"has {found}: give the dataset's MASK_CLASSES as the task's structures"
            )

    def _known(self, batch: Batch) -> jax.Array:
        """What enters the loss, bool[B,S], or bool[B,1] for exclusive structures: one decision needs all of them."""
        known = _mask_valid(batch) & batch["valid"][:, None]
        return known.all(1, keepdims=True) if self.exclusive else known

    def _probabilities(self, logits: jax.Array) -> jax.Array:
        return jax.nn.softmax(logits)[..., 1:] if self.exclusive else jax.nn.sigmoid(logits)

    def _called(self, probabilities, thresholds, xp):
        """Pixels bool[B,H,W,S] that are called a structure: by their thresholds, or by the largest probability."""
        if not self.exclusive:
            return probabilities >= thresholds
        background = 1 - probabilities.sum(-1, keepdims=True)
        winner = xp.concatenate([background, probabilities], -1).argmax(-1)
        return winner[..., None] == 1 + xp.arange(len(self.structures))

    def _entries(self, name: str, logits: jax.Array, masks: jax.Array, seen: jax.Array) -> jax.Array:
        """One loss of each structure of each image, f32[B,S], or of each image, f32[B,1], if they are exclusive."""
        if name == "dice":
            entries = 1 - soft_dice(self._probabilities(logits), masks, seen)
            return entries.mean(1, keepdims=True) if self.exclusive else entries
        if self.exclusive:
            background = 1 - masks.max(-1, keepdims=True)
            entropy = -(jnp.concatenate([background, masks], -1) * jax.nn.log_softmax(logits)).sum(-1, keepdims=True)
        else:
            entropy = jax.nn.softplus(jnp.where(masks > 0, -logits, logits))
        if name == "focal":
            # -expm1(-entropy) is 1 - p of the true state, without the rounding of 1 - exp near 0.
            # No root has a slope at 0, where a pixel is certain.
            missed = jnp.maximum(-jnp.expm1(-entropy), jnp.finfo(jnp.float32).tiny)
            entropy = missed**self.focal_gamma * entropy
        return (entropy * seen).sum((1, 2)) / jnp.maximum(seen.sum((1, 2)), 1.0)

    def _thresholds(self) -> tuple[float, ...]:
        if self.exclusive:
            return (0.5,)
        return CANDIDATES if self.threshold in RULES else (self.threshold,)

    def _best_places(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> np.ndarray:
        """Where among the thresholds each structure's best by the rule stands, i[S]; the nearest to 0.5 of equals."""
        grid = np.asarray(self._thresholds())
        if self.threshold == "f1":
            called, overlap, area, _ = pixel_counts(predictions, targets, np.zeros(len(targets["area"]), int))[:, 0]
            with np.errstate(invalid="ignore"):
                mean = (2 * overlap / (called + area)).T
        else:
            dice = [overlaps(predictions, targets, np.full(len(self.structures), t))["dice"] for t in range(len(grid))]
            mean = np.stack([metrics.mean_of_defined(values.T) for values in dice])  # [T,S]
        order = np.argsort(np.abs(grid - 0.5), kind="stable")
        return order[np.nan_to_num(mean[order], nan=-1.0).round(9).argmax(0)]

    def _places(self, calibration: Mapping[str, Any]) -> np.ndarray:
        """Where in the counts' last axis the threshold of each structure stands, i[S]."""
        chosen = np.asarray(calibration.get("thresholds", [self._thresholds()[0]] * len(self.structures)))
        return np.abs(np.asarray(self._thresholds()) - chosen[:, None]).argmin(1)


def soft_dice(probabilities: jax.Array, masks: jax.Array, seen: jax.Array) -> jax.Array:
    """Soft Dice of each structure of each image: f[B,H,W,S], f[B,H,W,S], f[B,H,W,1] -> f[B,S] in [0,1]."""
    overlap = (probabilities * masks * seen).sum((1, 2))
    sizes = ((probabilities + masks) * seen).sum((1, 2))
    return (2 * overlap + SMOOTHING) / (sizes + SMOOTHING)


def mean_mask(cells: np.ndarray, area: np.ndarray) -> np.ndarray:
    """How often each cell is each structure, f64[C,S], in the images where `area` f[N,S] is known; 0 if unseen."""
    known = ~np.isnan(area)
    sums = [cells[..., [k, -1]][known[:, k]].sum(0, dtype=np.int64) for k in range(known.shape[1])]
    true, seen = np.stack(sums, -1).swapaxes(0, 1)
    return np.divide(true, seen, out=np.zeros(true.shape), where=seen > 0)


def median_ratio(targets: Mapping[str, np.ndarray]) -> list[list[float | None]]:
    """The median over images of the ratio of the heights of two structures [S,S], None where none knows both."""
    known, heights = ~np.isnan(targets["area"]), targets["true_height"]

    def median(first: int, second: int) -> float | None:
        ratios = _ratio(heights[known[:, first] & known[:, second]], first, second)
        return float(np.median(ratios)) if len(ratios) else None

    return [[median(first, second) for second in range(known.shape[1])] for first in range(known.shape[1])]


def overlaps(
    predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], places: np.ndarray
) -> dict[str, np.ndarray]:
    """Dice and IoU of every image f64[N,S], NaN where unknown; `places` i[S] picks a threshold for each structure."""
    area = np.asarray(targets["area"], np.float64)
    called, overlap = (_picked(predictions[name], places).astype(np.float64) for name in ("called", "overlap"))
    union = called + area - overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        dice = np.where(union == 0, 1.0, 2 * overlap / (called + area))
        iou = np.where(union == 0, 1.0, overlap / union)
    return {"dice": dice, "iou": iou, "dice_present": np.where(area > 0, dice, np.nan)}


def pooled_metrics(
    predictions: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray],
    index: Sequence[int],
    names: Sequence[str],
    places: np.ndarray,
    groups: np.ndarray | None,
    resamples: int,
) -> list[metrics.Metric]:
    """The figures of PER_PIXEL of the structures in `index`, all pixels of a split together, with their intervals."""
    area = np.asarray(targets["area"])[:, index]
    patients = np.arange(len(area)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    counts = pixel_counts(predictions, targets, patients)[:, :, index]
    shown = PER_PIXEL if counts.shape[-1] > 1 else PER_PIXEL[:-1]  # a curve needs thresholds

    def evaluate(weights: np.ndarray) -> np.ndarray:
        figures = pixel_figures(np.einsum("rp,kpst->krst", weights, counts), places[index])
        return figures[..., : len(shown)]

    values, draws = metrics.bootstrap(evaluate, patients, resamples, 0)
    known = np.repeat(~np.isnan(area)[..., None], len(shown), -1)
    return metrics.by_class(values, draws, names, shown, patients, known, reason="no pixel counts")


def pixel_counts(
    predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], patients: np.ndarray
) -> np.ndarray:
    """Pixels f64[4,P,S,T] of each patient's images whose mask is known: called, called rightly, true, and all seen."""
    area = np.asarray(targets["area"], np.float64)[..., None]
    seen = np.asarray(targets["seen"], np.float64)[:, None, None]
    counts = np.stack(np.broadcast_arrays(predictions["called"], predictions["overlap"], area, seen))
    sums = np.zeros((4, patients.max(initial=-1) + 1, *counts.shape[2:]))
    np.add.at(sums, (slice(None), patients), np.where(np.isnan(area), 0, counts))
    return sums


def pixel_figures(counts: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The figures f64[R,S,M] of PER_PIXEL from counts f64[4,R,S,T] of `pixel_counts`; undefined ones are NaN.

    The AUROC is that of the straight lines between the operating points of the T thresholds.
    """
    called, overlap, area, seen = counts
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = np.pad(overlap / area, ((0, 0), (0, 0), (1, 1)))
        false = np.pad((called - overlap) / (seen - area), ((0, 0), (0, 0), (1, 1)))
        sensitivity[..., 0] = false[..., 0] = 1  # thresholds rise: first all pixels are called, in the end none is
        auroc = -np.trapezoid(sensitivity, false, axis=-1)
        called, overlap, area, seen = (_picked(values, places) for values in counts)
        figures = {
            "pixel_f1": 2 * overlap / (called + area),
            "pixel_iou": overlap / (called + area - overlap),
            "pixel_sensitivity": overlap / area,
            "pixel_specificity": (seen - area - called + overlap) / (seen - area),
            "pixel_accuracy": (seen - area - called + 2 * overlap) / seen,
            "pixel_auroc": auroc,
        }
    return np.stack([figures[metric] for metric in PER_PIXEL], -1)


def _picked(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[N,S,T] -> [N,S], of each structure the value at its threshold."""
    return np.take_along_axis(np.asarray(values), np.asarray(places)[None, :, None], axis=2)[..., 0]


def _ratio(heights: np.ndarray, first: int, second: int) -> np.ndarray:
    """The ratio of two heights f64[N]; 0 where the first structure has none, 1 at most."""
    heights = np.asarray(heights, np.float64)
    return np.clip(heights[:, first] / np.maximum(heights[:, second], 1), 0, 1)


def _counts(called: jax.Array, masks: jax.Array) -> dict[str, jax.Array]:
    """Pixels called and rightly called, and the height called: bool[B,H,W,S] twice -> i32[B,S] each."""
    pixels, right = called.sum((1, 2), dtype=jnp.int32), (called & masks).sum((1, 2), dtype=jnp.int32)
    return {"called": pixels, "overlap": right, "height": _height(called)}


def _cells(masks: jax.Array, seen: jax.Array) -> jax.Array:
    """Pixels of masks bool[B,H,W,S], and of all that is seen bool[B,H,W,1], in each cell of a grid: u16[B,C,S+1]."""
    pixels = jnp.concatenate([masks & seen, seen], -1).astype(jnp.float32)
    rows, columns = (jax.nn.one_hot(jnp.arange(side) * CELLS // side, CELLS) for side in pixels.shape[1:3])
    counts = jnp.einsum("bhws,hr,wc->brcs", pixels, rows, columns, precision="highest")  # whole numbers stay exact
    return counts.reshape(len(counts), CELLS * CELLS, -1).astype(jnp.uint16)


def _counts_of_cells(cells: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """Pixels called and rightly called f32[N,S,T] where masks bool[C,S,T] of cells are called in all images."""
    masks = masks.astype(np.float32)  # sums of pixels are exact up to 2**24 of them

    def counted(columns: Sequence[int]) -> np.ndarray:
        return np.stack([cells[..., column].astype(np.float32) @ masks[:, k] for k, column in enumerate(columns)], 1)

    structures = masks.shape[1]
    return {"called": counted([-1] * structures), "overlap": counted(range(structures))}


def _height(masks: jax.Array) -> jax.Array:
    """The number of rows from a mask's first to its last: bool[B,H,W,S] -> i32[B,S]."""
    rows = masks.any(2)
    length, any_row = rows.shape[1], rows.any(1)
    extent = length - rows.argmax(1) - rows[:, ::-1].argmax(1)
    return jnp.where(any_row, extent, 0).astype(jnp.int32)


def _mask_valid(batch: Batch) -> jax.Array:
    return (
        batch["mask_valid"]
        if "mask_valid" in batch
        else jnp.ones((len(batch["masks"]), batch["masks"].shape[-1]), bool)
    )


def _seen(batch: Batch) -> jax.Array:
    """The field of view f32[B,H,W,1], the whole image where a dataset has none."""
    if "field_of_view" in batch:
        return (batch["field_of_view"] > 0).astype(jnp.float32)[..., None]
    return jnp.ones((*batch["image"].shape[:3], 1), jnp.float32)

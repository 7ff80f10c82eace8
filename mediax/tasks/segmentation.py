"""Segmentation: each structure a mask of its own (a sigmoid each), or exclusive (one softmax with the background).

A structure that nobody annotated in an image (`mask_valid` False) is left out there, and so are pixels outside of
`field_of_view`, in the loss and in the metrics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mediax import catalog, figures, metrics
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.model import Build

LOSSES = ("cross_entropy", "dice", "focal")
PER_STRUCTURE = ("dice", "iou", "dice_present")
CANDIDATES = tuple(round(0.05 * step, 2) for step in range(1, 20))  # thresholds among which the rule "dice" chooses
SMOOTHING = 1.0  # pixels: the Dice loss of an empty mask that is predicted empty is then 0


@dataclass(frozen=True)
class Task:
    """Predicts which pixels of an image belong to each of `structures`, the channels of the dataset's masks.

    `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` with its options. `losses` are the weights of the
    terms that are added up: "cross_entropy", "dice" (one minus soft Dice of each image, V-Net, arXiv:1606.04797),
    "focal" (cross-entropy times (1 - p)^`focal_gamma`, arXiv:1708.02002). `exclusive` structures do not overlap.
    `threshold` is a number, or "dice": for each structure the one of the highest mean Dice on the validation split.
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
        if self.threshold != "dice" and (isinstance(self.threshold, str) or not 0 <= self.threshold <= 1):
            raise InputError(
                f"config field threshold of task {self.name!r} is {self.threshold!r}: expected 0 to 1, or 'dice'"
            )
        self._head()  # checks the name and the options

    def parts(self, channels: Mapping[int, int]) -> dict[str, Build]:
        """Names the parts that this task adds to the backbone's `channels` (stride -> width), with their builds."""
        head, options = self._head()
        outputs = len(self.structures) + self.exclusive
        return {f"head/{self.name}": lambda rngs: head.Head(channels, outputs, dtype=self.dtype, rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> jax.Array:
        """Gives the logits f32[D,B,H,W,S] of D branches: one, or as many as the head supervises deeply.

        With `exclusive` the last axis is S + 1, and the background is the first.
        """
        logits = run(f"head/{self.name}", pyramid, batch["image"].shape[1:3]).astype(jnp.float32)
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

        If the batch has masks: `called` and `overlap`, i32[B,S,T], count the pixels that are called the structure and
        those of them that are, for each of the T thresholds (one, unless it is still to be chosen).
        """
        probabilities = jnp.stack([self._probabilities(branch) for branch in logits]).mean(0)
        if "masks" not in batch:
            return {"probabilities": probabilities}
        self._check(batch)
        masks, seen = batch["masks"] > 0, _seen(batch) > 0

        def counts(threshold: jax.Array) -> tuple[jax.Array, jax.Array]:
            called = self._called(probabilities, threshold, jnp) & seen
            return called.sum((1, 2), dtype=jnp.int32), (called & masks).sum((1, 2), dtype=jnp.int32)

        called, overlap = jax.lax.map(counts, jnp.asarray(self._thresholds(), jnp.float32))
        return {
            "probabilities": probabilities,
            "called": called.transpose(1, 2, 0),
            "overlap": overlap.transpose(1, 2, 0),
        }

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks from the batch what `metrics` compares with: `area` f32[B,S] in pixels, NaN if unknown; the masks."""
        self._check(batch)
        seen = (batch["masks"] > 0) & (_seen(batch) > 0)
        area = jnp.where(_mask_valid(batch), seen.sum((1, 2)).astype(jnp.float32), jnp.nan)
        return {"area": area, "masks": batch["masks"]}

    def calibrate(self, predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Chooses on validation data whatever `metrics` must not choose on test data: the thresholds.

        Of equally good ones the nearest to 0.5 is taken; it is 0.5 where no mask of a structure is known.
        """
        if self.exclusive:
            return {}
        grid = np.asarray(self._thresholds())
        dice = [overlaps(predictions, targets, np.full(len(self.structures), t))["dice"] for t in range(len(grid))]
        mean = np.stack([metrics.mean_of_defined(values.T) for values in dice])  # [T,S]
        order = np.argsort(np.abs(grid - 0.5), kind="stable")
        best = order[np.nan_to_num(mean[order], nan=-1.0).round(9).argmax(0)]
        return {"thresholds": grid[best].tolist()}

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
        """Scores a whole split on the host, by structure and as their mean ("macro"); `classes` restricts it to those.

        Dice and IoU are computed for each image and averaged. An image without the structure has Dice and IoU 1 if
        none of it is predicted, else 0; `dice_present` is the mean Dice over the images that show the structure.
        Images whose mask is unknown are left out. Intervals are from a bootstrap over patients.
        """
        index = [self.structures.index(name) for name in classes or self.structures]
        rows = overlaps(predictions, targets, self._places(calibration))
        values = np.stack([rows[metric][:, index] for metric in PER_STRUCTURE], axis=2)
        names = [self.structures[i] for i in index]
        return metrics.case_means(values, names, PER_STRUCTURE, groups, resamples=resamples)

    def draw(
        self,
        folder: Path,
        name: str,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        *,
        classes: Sequence[str] = (),
    ) -> None:
        """Draws no curves: the overlays of `draw_samples` are the pictures of this task."""

    def draw_samples(
        self,
        folder: Path,
        name: str,
        images: np.ndarray,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
    ) -> None:
        """Draws a sheet of the first `images` f32[N,H,W,C] of a split with the true and the predicted outlines."""
        count = len(images)
        dice = metrics.mean_of_defined(overlaps(predictions, targets, self._places(calibration))["dice"][:count])
        called = self._called(
            predictions["probabilities"][:count], np.asarray(calibration.get("thresholds", 0.5), np.float32), np
        )
        known = ~np.isnan(targets["area"][:count])[:, None, None]
        figures.samples(
            folder / f"samples_{name}.png",
            images,
            classes=self.structures,
            errors=1 - dice,
            captions=["no known mask" if np.isnan(value) else f"mean Dice {value:.2f}" for value in dice],
            truth=figures.Overlay(masks=(targets["masks"][:count] > 0) & known),
            prediction=figures.Overlay(masks=called),
        )

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
            entropy = (-jnp.expm1(-entropy)) ** self.focal_gamma * entropy
        return (entropy * seen).sum((1, 2)) / jnp.maximum(seen.sum((1, 2)), 1.0)

    def _thresholds(self) -> tuple[float, ...]:
        return (
            CANDIDATES
            if self.threshold == "dice" and not self.exclusive
            else (0.5 if self.exclusive else self.threshold,)
        )

    def _places(self, calibration: Mapping[str, Any]) -> np.ndarray:
        """Where in the counts' last axis the threshold of each structure stands, i[S]."""
        chosen = np.asarray(calibration.get("thresholds", [self._thresholds()[0]] * len(self.structures)))
        return np.abs(np.asarray(self._thresholds()) - chosen[:, None]).argmin(1)


def soft_dice(probabilities: jax.Array, masks: jax.Array, seen: jax.Array) -> jax.Array:
    """Soft Dice of each structure of each image: f[B,H,W,S], f[B,H,W,S], f[B,H,W,1] -> f[B,S] in [0,1]."""
    overlap = (probabilities * masks * seen).sum((1, 2))
    sizes = ((probabilities + masks) * seen).sum((1, 2))
    return (2 * overlap + SMOOTHING) / (sizes + SMOOTHING)


def overlaps(
    predictions: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray], places: np.ndarray
) -> dict[str, np.ndarray]:
    """Dice and IoU of every image f64[N,S], NaN where unknown; `places` i[S] picks a threshold for each structure."""
    area = np.asarray(targets["area"], np.float64)
    called, overlap = (
        np.take_along_axis(predictions[name], np.asarray(places)[None, :, None], axis=2)[..., 0].astype(np.float64)
        for name in ("called", "overlap")
    )
    union = called + area - overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        dice = np.where(union == 0, 1.0, 2 * overlap / (called + area))
        iou = np.where(union == 0, 1.0, overlap / union)
    return {"dice": dice, "iou": iou, "dice_present": np.where(area > 0, dice, np.nan)}


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

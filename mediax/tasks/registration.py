"""Registration: the transformation that brings one photograph of a retina onto another one of the same eye.

It is learnt from, and judged by, places that are known in both images: `keypoints` of the image and `moving_keypoints`,
the same places in the moving one. Single photographs give such pairs by the transform `random_pair`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from mediax import catalog, figures, metrics
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.model import Build
from mediax.operators import correlation, quadratic
from mediax.samples import Samples

FIELDS = ("moving", "keypoints", "moving_keypoints")
PER_PAIR = ("auc", "error", "acceptable")
LEAST = 1e-3  # a distance, as a fraction of the image, near which the loss turns from linear to quadratic
# In pixels: the largest tolerance of the area under the success-rate curve; the median and the largest distance of a
# pair that is registered acceptably. As Liu et al. count (SuperRetina, ECCV 2022).
LIMIT, MEDIAN, LARGEST = 25, 20.0, 50.0


@dataclass(frozen=True)
class Task:
    """Predicts the quadratic transformation of `moving` onto `image`, and so where its keypoints lie.

    `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` with its options. The loss of a known point is how
    unlikely its match is among all places of the image, times `match`, and how far each stage of the fit puts it from
    its place, as a fraction of the image, times `distance`. Errors are told in pixels of images whose height and width
    are `size`: FIRE's, unless a protocol says otherwise.
    Raises InputError for options that do not fit.
    """

    name: str
    head: Mapping[str, Any] = field(default_factory=lambda: {"name": "matcher"})
    match: float = 1.0
    distance: float = 20.0
    size: tuple[int, int] = (2912, 2912)

    def __post_init__(self):
        for option in ("match", "distance"):
            if getattr(self, option) < 0:
                raise InputError(
                    f"config field {option} of task {self.name!r} is {getattr(self, option)}: expected 0 or more"
                )
        if self.match == self.distance == 0:
            raise InputError(f"config fields match and distance of task {self.name!r} are both 0: nothing to learn")
        if len(self.size) != 2:
            raise InputError(f"config field size of task {self.name!r} is {self.size}: expected (height, width)")
        self._head()  # checks the name and the options

    def parts(self, channels: Mapping[int, int]) -> dict[str, Build]:
        """Names the parts that this task adds to the backbone's `channels` (stride -> width), with their builds."""
        head, options = self._head()
        return {f"head/{self.name}": lambda rngs: head.Head(channels, rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """Runs the backbone on the moving image too, and the head on both; gives the head's outputs."""
        self._check(batch)
        return run(f"head/{self.name}", pyramid, run("backbone", batch["moving"]))

    def count(self, batch: Batch) -> jax.Array:
        """Counts what the loss averages over: the known points."""
        return self._known(batch).sum().astype(jnp.float32)

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Batch, count: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sums both terms over the known points and the stages, and divides by `count`, that of the whole batch."""
        known = self._known(batch)
        # The unknown are replaced before they are computed with: a gradient through NaN is NaN even where it is masked.
        points, moving_points = (jnp.where(known[..., None], batch[name], 0.5) for name in FIELDS[1:])
        descriptors = outputs["moving_descriptors"], outputs["descriptors"]
        unlikely = -correlation.log_likelihood(*descriptors, outputs["sharpness"], moving_points, points)
        off = jnp.square(quadratic.transform(outputs["stages"], moving_points) - points).sum(-1)
        distance = (jnp.sqrt(off + LEAST**2) - LEAST).sum(0)
        terms = {
            name: jnp.where(known, entries, 0.0).sum() / jnp.maximum(count, 1.0)
            for name, entries in (("match", unlikely), ("distance", distance))
        }
        loss = self.match * terms["match"] + self.distance * terms["distance"]
        return loss, {"loss": loss} | terms

    def predict(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """Gives the transformation, `coefficients` f32[B,6,2] of `operators.quadratic`, and what it does.

        `keypoints` f32[B,P,2] are the moving image's after it, `moving_keypoints` before; `moving` is the image itself.
        """
        coefficients = outputs["stages"][-1]
        return {
            "coefficients": coefficients,
            "keypoints": quadratic.transform(coefficients, batch["moving_keypoints"]),
            "moving_keypoints": batch["moving_keypoints"],
            "moving": batch["moving"],
        }

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks what `metrics` compares with: `keypoints`, and `category` where the dataset sorts its pairs."""
        self._check(batch)
        return {name: batch[name] for name in ("keypoints", "category") if name in batch}

    def calibrate(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        groups: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Has nothing to choose on validation data."""
        return {}

    def trivial(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Leaves the moving image where it is."""
        return dict(predictions) | {
            "keypoints": predictions["moving_keypoints"],
            "coefficients": np.zeros_like(predictions["coefficients"]),
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
        categories: Sequence[str] = (),
        size: tuple[int, int] | None = None,
    ) -> list[metrics.Metric]:
        """Scores a whole split on the host, in pixels of images of `size`; pairs without a known point are left out.

        Of a pair, "error" is the mean distance of its points from their places, "auc" the share of the tolerances 1, 2,
        ..., 25 pixels that this error is below, whose mean over pairs is the area under the success-rate curve, and
        "acceptable" whether the median distance is at most 20 and the largest at most 50 pixels. Each is the mean of
        all pairs, and with `categories`, the names of the numbers in `category`, of each one, and of these ("macro").
        Intervals are from a bootstrap over patients.
        """
        values = pair_scores(predictions["keypoints"], targets["keypoints"], size or self.size)
        overall = metrics.case_means(values[:, None], ("all",), PER_PAIR, groups, resamples=resamples)
        results = [replace(figure, name=name) for name, figure in zip(PER_PAIR, overall[::2])]
        if categories:
            belongs = targets["category"][:, None] == np.arange(len(categories))
            by_category = np.where(belongs[..., None], values[:, None], np.nan)
            results += metrics.case_means(by_category, categories, PER_PAIR, groups, resamples=resamples)
        return results

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
        """Draws the share of pairs whose error is below a tolerance, against it, as `success_<name>.png`."""
        before, after = (
            pair_scores(predictions[points], targets["keypoints"], self.size)[:, PER_PAIR.index("error")]
            for points in ("moving_keypoints", "keypoints")
        )
        figures.success_rates(
            folder / f"success_{name}.png", {"registered": after, "as they are": before}, LIMIT, "pixels"
        )

    def errors(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
        size: tuple[int, int] | None = None,
        **_: Any,
    ) -> np.ndarray:
        """The mean distance of each pair's points from their places, f64[N], in pixels; NaN where none is known."""
        return pair_scores(predictions["keypoints"], targets["keypoints"], size or self.size)[
            :, PER_PAIR.index("error")
        ]

    def draw_samples(self, folder: Path, name: str, samples: Samples, calibration: Mapping[str, Any]) -> None:
        """Draws a sheet of pairs: above as they are, below with the moving image brought over.

        The image is red and the moving one green, so that what fits is yellow; the known points are drawn, too.
        """
        predictions, true = samples.predictions, samples.targets["keypoints"]
        warped = [warp(*pair) for pair in zip(predictions["moving"], predictions["coefficients"])]
        sheets = [
            np.concatenate([_overlay(image, other) for other in others])
            for image, *others in zip(samples.images, predictions["moving"], warped)
        ]
        moved = _stacked(predictions["moving_keypoints"], predictions["keypoints"])
        figures.samples(
            folder / f"samples_{name}.png",
            np.stack(sheets),
            sections=samples.sections,
            classes=(),
            captions=["no known point" if np.isnan(value) else f"error {value:.1f} pixels" for value in samples.errors],
            truth=figures.Overlay(points=_stacked(true, true)),
            prediction=figures.Overlay(points=moved),
        )

    def _head(self) -> tuple[ModuleType, dict[str, Any]]:
        return catalog.head(self.name, self.head, "matcher")

    def _check(self, batch: Batch) -> None:
        if missing := [name for name in FIELDS if name not in batch]:
            raise InputError(
                f"task {self.name!r} registers pairs of images with known points, the batch lacks {missing}: choose a "
                "dataset of pairs, or make some by the transform random_pair, in the stream and in its evaluations; "
                "files cannot be predicted on one by one"
            )

    def _known(self, batch: Batch) -> jax.Array:
        self._check(batch)
        unknown = jnp.isnan(batch["keypoints"]) | jnp.isnan(batch["moving_keypoints"])
        return ~unknown.any(-1) & batch["valid"][:, None]


def pair_scores(predicted: np.ndarray, true: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The figures of `PER_PAIR` of each pair, f64[N,3]; NaN where no point is known.

    A known point that is not predicted (NaN) is infinitely far off.

    Args:
      predicted, true: f[N,P,2] (y, x) as fractions of the image, NaN where unknown.
      size: (height, width) of the image in pixels.
    """
    known = ~np.isnan(true).any(-1)
    distance = np.hypot(*np.moveaxis((np.float64(predicted) - true) * size, -1, 0))
    distance[known & np.isnan(distance)] = np.inf
    scores = np.full((len(true), len(PER_PAIR)), np.nan)
    for row in np.flatnonzero(known.any(-1)):
        of_pair = distance[row, known[row]]
        success = of_pair.mean() < np.arange(1, LIMIT + 1)
        acceptable = np.median(of_pair) <= MEDIAN and of_pair.max() <= LARGEST
        scores[row] = success.mean(), of_pair.mean(), acceptable
    return scores


def warp(moving: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Brings a moving image f32[H,W,C] onto the other one by `coefficients` f32[6,2]; black where it shows nothing."""
    height, width, channels = moving.shape
    places = np.asarray(quadratic.invert(coefficients, correlation.cells(height, width)))
    # cv2 puts the centre of the first pixel at 0 instead of 0.5.
    places = (places.reshape(height, width, 2) * (height, width) - 0.5).astype(np.float32)
    return cv2.remap(moving, places[..., ::-1], None, cv2.INTER_LINEAR).reshape(height, width, channels)


def _overlay(image: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Two images f32[H,W,C] in one f32[H,W,3]: the first red, the second green."""
    return np.stack([image.mean(-1), moving.mean(-1), np.zeros(image.shape[:2])], axis=-1)


def _stacked(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Points f[N,P,2] of images that are put one below the other."""
    return np.concatenate([above * (0.5, 1), below * (0.5, 1) + (0.5, 0)], axis=1)

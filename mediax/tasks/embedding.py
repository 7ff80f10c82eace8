"""Embedding: contrastive pretraining. Two random views of an image come to lie near each other, other images apart.

What it leaves is a backbone: `--config.backbone.pretrained=RUN` starts another run from it. Streams of different
modalities share the backbone anyway, and with `shared` also the projection, and so one space.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mediax import catalog, figures, metrics, retrieval
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.findings import Findings
from mediax.model import Build
from mediax.samples import Samples

COUPLES_ROWS = True  # the loss compares the rows of a batch: slices of it (accumulate) would not add up to the whole
POSITIVES = ("view", "patient", "labels")
PER_IMAGE = ("view_recall@1", "view_map", "patient_recall@1", "patient_map", "alignment", "uniformity")
SHOWN = 3  # neighbours beside a query, on a sheet
NOWHERE = -1e9  # the logit of what an anchor is not compared with; a finite one has a gradient


@dataclass(frozen=True)
class Task:
    """Learns an embedding in which the views of an image are alike, and unlike those of other images.

    `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` that gives features, an embedding of length one and a
    temperature, with its options. The stream gives the other view (`second_view`, as its evaluations do). `positives`
    are what an anchor should lie near: the other "view" of the image (NT-Xent, arXiv:2002.05709), or also both views of
    all rows that show the same "patient", or that have the same known "labels", all of them (supervised contrastive
    loss, arXiv:2004.11362, L_out). `neighbours` vote where the backbone is judged by labels, the dataset's `classes`.
    Tasks that name the same `shared` have one head, and one space; otherwise each has its own.
    Raises InputError for options that do not fit.
    """

    name: str
    classes: tuple[str, ...] = ()
    head: Mapping[str, Any] = field(default_factory=lambda: {"name": "projection"})
    positives: str = "view"
    neighbours: int = 20
    shared: str = ""

    def __post_init__(self):
        if self.positives not in POSITIVES:
            hint = catalog.suggestion(self.positives, POSITIVES)
            raise InputError(f"config field positives of task {self.name!r}: no positives {self.positives!r}; {hint}")
        if not isinstance(self.neighbours, int) or self.neighbours < 1:
            raise InputError(
                f"config field neighbours of task {self.name!r} is {self.neighbours}: expected a whole number, say 20"
            )
        self._head()  # checks the name and the options

    def parts(self, channels: Mapping[int, int]) -> dict[str, Build]:
        """Names the parts that this task adds to the backbone's `channels` (stride -> width), with their builds."""
        head, options = self._head()
        return {self._part: lambda rngs: head.Head(channels, rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """Gives `features` f32[B,C] and `embedding` f32[B,D] of the images, and the `temperature` f32[].

        Where the batch has other views, theirs go the same way and give the embedding `second_view` f32[B,D].
        """
        outputs = run(self._part, pyramid)
        if "second_view" in batch:
            outputs["second_view"] = run(self._part, run("backbone", batch["second_view"]))["embedding"]
        return outputs

    def count(self, batch: Batch) -> jax.Array:
        """Counts what the loss averages over: the views, two of each image."""
        return 2 * batch["valid"].sum().astype(jnp.float32)

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Batch, count: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sums the contrastive loss over both views of the images of `batch` and divides by `count`.

        An anchor is compared with all other views in the batch, those on other devices too. So `batch` has to be a
        whole one: a slice would have fewer comparisons.
        """
        if "second_view" not in outputs:
            raise InputError(
                f"task {self.name!r} compares two views of an image, the batch has one: give the stream the transforms "
                "of the other one, second_view"
            )
        # The two views of a row stay neighbours, and so on their device.
        views = jnp.stack([outputs["embedding"], outputs["second_view"]], axis=1)
        views = views.reshape(-1, views.shape[-1])
        positive, valid = (jnp.repeat(array, 2, axis=0) for array in (self._positive(batch), batch["valid"]))
        losses = contrastive_losses(views, jnp.repeat(positive, 2, axis=1), valid, outputs["temperature"])
        loss = losses.sum() / jnp.maximum(count, 1.0)
        return loss, {"loss": loss, "temperature": outputs["temperature"]}

    def predict(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """Gives `features` f32[B,C], `embedding` f32[B,D] and, if there is another view, its embedding `second_view`.

        The embedding is what was learned; features are what a head that is trained on the backbone will see.
        """
        return {name: outputs[name] for name in ("features", "embedding", "second_view") if name in outputs}

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks from the batch what `metrics` compares the predictions with: `labels`, if there are any."""
        return {"labels": batch["labels"]} if "labels" in batch else {}

    def calibrate(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        groups: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Chooses nothing: neighbours come from the split that is scored, from its other patients."""
        return {}

    def trivial(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Gives every image, and its other view, random vectors: chance."""
        rng = np.random.default_rng(0)
        return {name: retrieval.unit(rng.standard_normal(array.shape)) for name, array in predictions.items()}

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
        """Scores a whole split on the host; `classes` restricts what neighbours vote on (none = all).

        In the embedding: how often an image finds its other view first among those of all images ("view_recall@1"), and
        the mean average precision of that search ("view_map"); the same for another image of the patient among all
        other images ("patient_recall@1", "patient_map"); the mean squared distance of two views ("alignment") and the
        logarithm of the mean of exp(-2 |x - y|^2) over pairs of images ("uniformity", arXiv:2005.10242), both the lower
        the better. In the features: the AUROC of the vote of the nearest images of other patients ("knn_auroc").
        Intervals are from a bootstrap over the patients who ask; what is searched stays the whole split.
        """
        patients = (
            np.arange(len(predictions["embedding"])) if groups is None else np.unique(groups, return_inverse=True)[1]
        )
        results = _space(predictions, patients, resamples)
        if not self.classes or "labels" not in targets:
            return results
        index = metrics.positions(self.classes, classes)
        labels = targets["labels"][:, index]
        scores = retrieval.votes(retrieval.unit(predictions["features"]), labels, patients, self.neighbours)
        names = [self.classes[i] for i in index]
        voted = metrics.classification(scores, labels, names, patients, resamples=resamples)
        return results + [
            dataclasses.replace(metric, name=f"knn_{metric.name}")
            for metric in voted
            if metric.name.startswith("auroc/")
        ]

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
        """Draws the first two principal components of the features, coloured by class, as `projection_<name>.png`."""
        points, shares = retrieval.principal_components(retrieval.unit(predictions["features"]))
        index = metrics.positions(self.classes, classes) if "labels" in targets else []
        labels = targets["labels"][:, index] if index else np.empty((len(points), 0))
        figures.projection(folder / f"projection_{name}.png", points, shares, labels, [self.classes[i] for i in index])

    def errors(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
    ) -> np.ndarray:
        """How unlike an image's labels those of its nearest of other patients are, f64[N]; NaN where unknown."""
        count = len(predictions["embedding"])
        if "labels" not in targets:
            return np.full(count, np.nan)
        labels = targets["labels"][:, metrics.positions(self.classes, classes)]
        nearest = retrieval.nearest(predictions["embedding"], np.arange(count), SHOWN, groups)
        unlike = np.where(nearest[..., None] < 0, np.nan, np.abs(labels[nearest] - labels[:, None]))
        return metrics.mean_of_defined(metrics.mean_of_defined(unlike))

    def companions(
        self, predictions: Mapping[str, np.ndarray], rows: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """The nearest of other patients to each of `rows`, which are drawn beside them."""
        nearest = retrieval.nearest(predictions["embedding"], rows, SHOWN, groups)
        return nearest[nearest >= 0]

    def draw_samples(self, folder: Path, name: str, samples: Samples, calibration: Mapping[str, Any]) -> None:
        """Draws a sheet of images, each with the nearest of other patients in the split.

        In each square the query is at the top left; its neighbours follow in the order of reading, with their cosines.
        """
        vectors, images = samples.predictions["embedding"], samples.images
        nearest = retrieval.nearest(vectors, np.arange(len(vectors)), SHOWN, samples.groups)
        others = [found[found >= 0] for found in nearest]
        captions = [
            ("query" if np.isnan(error) else f"unlike {error:.2f}")
            + "".join(f", {cosine:.2f}" for cosine in vectors[found] @ vectors[row])
            for row, (found, error) in enumerate(zip(others, samples.errors))
        ]
        figures.samples(
            folder / f"samples_{name}.png",
            np.stack([_square(images[[row, *found]]) for row, found in enumerate(others)]),
            sections=samples.sections,
            classes=self.classes,
            captions=captions,
        )

    def findings(
        self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any], row: int, size: tuple[int, int]
    ) -> Findings:
        """Says of image `row` where it lies: the coordinates of its embedding, which mean something together alone."""
        vector = predictions["embedding"][row].tolist()
        digits = len(str(len(vector) - 1))
        return Findings(scores={f"embedding_{i:0{digits}}": value for i, value in enumerate(vector)})

    @property
    def _part(self) -> str:
        return f"head/{self.shared or self.name}"

    def _head(self) -> tuple[ModuleType, dict[str, Any]]:
        return catalog.head(self.name, self.head, "projection")

    def _positive(self, batch: Batch) -> jax.Array:
        """Which rows are positives of which, bool[B,B]; each is its own, by its other view."""
        itself = jnp.eye(len(batch["valid"]), dtype=bool)
        if self.positives == "view":
            return itself
        if self.positives == "patient":
            return itself | (batch["patient"][:, None] == batch["patient"])
        if "labels" not in batch:
            raise InputError(
                f"task {self.name!r}: positives are rows of the same labels, the batch has none: choose a dataset with "
                "labels, or positives 'view' or 'patient'"
            )
        # An unknown label is NaN, which equals nothing.
        return itself | (batch["labels"][:, None] == batch["labels"]).all(-1)


def contrastive_losses(views: jax.Array, positive: jax.Array, valid: jax.Array, temperature: jax.Array) -> jax.Array:
    """The supervised contrastive loss of each view as the anchor, f32[M] (arXiv:2004.11362, L_out).

    The mean over its positives of -log softmax, the softmax being over all other valid views. With one positive each it
    is NT-Xent (arXiv:2002.05709). 0 for a view that is not valid, or has no positive.

    Args:
      views: f32[M,D], of length one.
      positive: bool[M,M]; the diagonal does not count.
      valid: bool[M], False on padding.
      temperature: f32[].
    """
    similarity = jnp.matmul(views, views.T, precision=jax.lax.Precision.HIGHEST) / temperature
    others = valid & ~jnp.eye(len(views), dtype=bool)
    log_shares = similarity - jax.nn.logsumexp(jnp.where(others, similarity, NOWHERE), axis=1, keepdims=True)
    positive = positive & others & valid[:, None]
    return -jnp.where(positive, log_shares, 0.0).sum(1) / jnp.maximum(positive.sum(1), 1)


def _space(predictions: Mapping[str, np.ndarray], patients: np.ndarray, resamples: int) -> list[metrics.Metric]:
    """The metrics of `PER_IMAGE`: means over images, of the last the logarithm."""
    own, other = predictions["embedding"], predictions["second_view"]
    images = np.arange(len(own))
    values = np.column_stack(
        [
            retrieval.search(own, other, images, images),
            retrieval.search(own, own, patients, patients, same=True),
            ((own.astype(np.float64) - other) ** 2).sum(axis=1),
            retrieval.closeness(own),
        ]
    )
    known = ~np.isnan(values)
    sums, counts = np.zeros((2, patients.max(initial=-1) + 1, len(PER_IMAGE)))
    np.add.at(sums, patients, np.where(known, values, 0.0))
    np.add.at(counts, patients, known)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            means = weights @ sums / (weights @ counts)
            return np.concatenate([means[:, :-1], np.log(means[:, -1:])], axis=1)

    figure, draws = metrics.bootstrap(evaluate, patients, resamples, seed=0)
    none = "no patient has two images in this split: undefined"
    return [
        metrics.with_interval(name, figure[m], draws[:, m], patients[known[:, m]], "" if known[:, m].any() else none)
        for m, name in enumerate(PER_IMAGE)
    ]


def _square(images: np.ndarray) -> np.ndarray:
    """Lays up to four images f32[4,H,W,C] out in a square with white lines between them."""
    height, width, channels = images.shape[1:]
    line = max(1, width // 64)
    square = np.ones((2 * height + line, 2 * width + line, channels), np.float32)
    for place, image in enumerate(images):
        y, x = (place // 2) * (height + line), (place % 2) * (width + line)
        square[y : y + height, x : x + width] = image
    return square

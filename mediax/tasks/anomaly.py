"""Anomaly detection and clustering by an autoencoder, with a mixture of Gaussians on what it makes of an image.

The network learns to reconstruct images; labels take no part but that anomalous images are left out. The mixture is
fitted to the calibrating split, which is to be the training split (`calibrate_on` of the evaluations).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mediax import catalog, figures, metrics
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.findings import Findings
from mediax.layers import average_cells
from mediax.model import Build
from mediax.operators import structural_similarity
from mediax.samples import Samples

CRITERIA = ("mse", "cross_entropy")
SCORES = ("likelihood", "reconstruction")
FEATURES = ("code", "dissimilarity")
COVARIANCES = ("full", "diag")
PER_CLASS = ("auroc", "average_precision", "accuracy", "sensitivity", "specificity")
FOLDS = 10
RESTARTS = 10  # of the mixture's EM, whose end depends on its start


@dataclass(frozen=True)
class Task:
    """Scores how unlike the training images an image is, or with `clusters` finds the groups that images fall into.

    The dataset's only class is the anomaly; with `clusters`, its exclusive `classes` are what the groups are compared
    with. `name` is `<stream>/<task>`, `head` a file of `mediax/heads/` that gives a code and an image, with its
    options, `size` of the images among them. `criterion` of the reconstruction is "mse", or "cross_entropy" with pixels
    as probabilities. `score` is the negative log-likelihood ("likelihood") or the mean squared error of the image
    ("reconstruction"). The mixture models the `features`: the "code", or the "dissimilarity" of image and
    reconstruction, one minus their structural similarity (Bergmann et al. 2018) in each cell of a `grid` x `grid`, by
    windows of standard deviation `sigma` pixels. That sees shapes where small changes of exposure hardly count; it
    takes an autoencoder that rebuilds unseen images as well as those it learnt from. The mixture has `components` with
    "full" or "diag" `covariance`, on the first `dimensions` principal components of the features, whitened (0: on the
    features themselves). `quantile` of the training images is scored as normal. `seed` is that of the mixture.
    Raises InputError for options that do not fit.
    """

    name: str
    classes: tuple[str, ...]
    head: Mapping[str, Any]
    criterion: str = "mse"
    score: str = "likelihood"
    features: str = "code"
    grid: int = 5
    sigma: float = 1.5
    components: int = 1
    covariance: str = "full"
    dimensions: int = 0
    quantile: float = 0.95
    clusters: bool = False
    seed: int = 0
    remat: bool = False  # whether the head recomputes in the backward pass what it need not store

    def __post_init__(self):
        for option, valid in (
            ("criterion", CRITERIA),
            ("score", SCORES),
            ("features", FEATURES),
            ("covariance", COVARIANCES),
        ):
            value = getattr(self, option)
            if value not in valid:
                hint = catalog.suggestion(value, valid)
                raise InputError(f"config field {option} of task {self.name!r}: no {option} {value!r}; {hint}")
        if not _is_count(self.components, 1) or not _is_count(self.dimensions, 0):
            raise InputError(
                f"config fields components and dimensions of task {self.name!r} are {self.components} and "
                f"{self.dimensions}: expected whole numbers, at least 1 and 0"
            )
        if not _is_count(self.grid, 1) or not 0.5 <= self.sigma < math.inf:
            raise InputError(
                f"config fields grid and sigma of task {self.name!r} are {self.grid} and {self.sigma}: expected a "
                "whole number of cells, at least 1, and at least 0.5 pixels"
            )
        if not 0 < self.quantile <= 1:
            raise InputError(f"config field quantile of task {self.name!r} is {self.quantile}: expected above 0 to 1")
        if self.clusters != (len(self.classes) > 1):
            expected = "two or more classes with clusters" if self.clusters else "one class, or the option clusters"
            raise InputError(
                f"task {self.name!r}: the dataset has the classes {list(self.classes)}, expected {expected}"
            )
        _, options = self._head()  # checks the name and the options
        if "size" not in options:
            raise InputError(
                f"config field head of task {self.name!r} lacks size: expected (height, width) of the images, as in "
                "{'name': 'autoencoder', 'size': (64, 64)}"
            )
        if self.features == "dissimilarity":
            self._check_grid(*options["size"])

    def parts(self, channels: Mapping[int, int]) -> dict[str, Build]:
        """Names the parts that this task adds to the backbone's `channels` (stride -> width), with their builds."""
        head, options = self._head()
        options |= {"remat": self.remat}
        return {f"head/{self.name}": lambda rngs: head.Head(channels, rngs=rngs, **options)}

    def apply(self, run, pyramid: Mapping[int, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """Gives the `code` f32[B,D] and the reconstructed `image` f32[B,H,W,C] in [0,1]."""
        outputs = run(f"head/{self.name}", pyramid)
        if self.features == "code":  # before the first step: its shape is known while the step is compiled
            self._check_dimensions(outputs["code"].shape[1], "numbers of the code")
        return outputs

    def count(self, batch: Batch) -> jax.Array:
        """Counts the images that the loss averages over: those that are not anomalous."""
        return self._learned(batch).sum().astype(jnp.float32)

    def loss(
        self, outputs: Mapping[str, jax.Array], batch: Batch, count: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sums the criterion, a mean over pixels, over the images of `batch` and divides by `count`."""
        image, rebuilt = batch["image"], outputs["image"]
        if self.criterion == "mse":
            entries = (rebuilt - image) ** 2
        else:
            near = jnp.finfo(jnp.float32).eps  # no pixel is certain: a logarithm of 0 has no gradient
            rebuilt = jnp.clip(rebuilt, near, 1 - near)
            entries = -(image * jnp.log(rebuilt) + (1 - image) * jnp.log1p(-rebuilt))
        loss = jnp.where(self._learned(batch), entries.mean((1, 2, 3)), 0.0).sum() / jnp.maximum(count, 1.0)
        return loss, {"loss": loss}

    def predict(self, outputs: Mapping[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        """Gives the `code` f32[B,D], the mean squared `error` f32[B] of the reconstruction, and that `image`.

        With the features "dissimilarity" these are there as well, f32[B,grid*grid], 0 (equal) to 2.
        """
        image, rebuilt = batch["image"], outputs["image"]
        error = ((rebuilt - image) ** 2).mean((1, 2, 3))
        predictions = {"code": outputs["code"], "error": error, "image": rebuilt}
        if self.features == "dissimilarity":
            similarity = structural_similarity.similarity(image, rebuilt, sigma=self.sigma)
            cells = average_cells(1 - similarity, self.grid).mean(3)
            predictions["dissimilarity"] = cells.reshape(len(cells), -1)
        return predictions

    def targets(self, batch: Batch) -> dict[str, jax.Array]:
        """Picks from the batch what `metrics` compares the predictions with."""
        self._learned(batch)
        return {"labels": batch["labels"]}

    def calibrate(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        groups: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Fits the mixture, and the threshold to scores of images by mixtures that did not see their patients.

        Images labelled as anomalous are left out; clusters know no labels, and scores of the reconstruction no mixture.
        """
        features, error = predictions[self.features].astype(np.float64), predictions["error"].astype(np.float64)
        groups = np.arange(len(features)) if groups is None else np.asarray(groups)
        if not self.clusters:
            normal = targets["labels"][:, 0] != 1
            features, error, groups = features[normal], error[normal], groups[normal]
        if not len(features):
            raise InputError(f"task {self.name!r}: no normal image to find the threshold on; see calibrate_on")
        calibration = {"mean_features": features.mean(axis=0).tolist(), "mean_error": float(error.mean())}
        if not self.clusters and self.score == "reconstruction":
            return calibration | {"threshold": float(np.quantile(error, self.quantile))}
        patients = _numbered(groups)
        # A spread in each direction takes two images more than directions, and each fold leaves some out.
        directions = self.dimensions or (features.shape[1] if self.covariance == "full" else 0)
        fewest = max(FOLDS, 2 * self.components, math.ceil((directions + 2) * FOLDS / (FOLDS - 1)))
        if len(features) < fewest or patients.max() + 1 < FOLDS:
            raise InputError(
                f"task {self.name!r}: {len(features)} images of {patients.max() + 1} patients to fit the mixture to, "
                f"expected at least {fewest} of {FOLDS}: choose the training split for calibrate_on, or fewer "
                "components and dimensions (0: all there are)"
            )
        calibration |= self._fit(features)
        if not self.clusters:
            unseen = self._unseen_scores(features, patients)
            calibration["threshold"] = float(np.quantile(unseen, self.quantile))
        return calibration

    def trivial(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Gives every image the mean features and the mean error of the calibrating split: one score, one cluster."""
        constants = {self.features: calibration["mean_features"], "error": calibration["mean_error"]}
        return {
            name: np.broadcast_to(np.asarray(value, np.float32), predictions[name].shape)
            for name, value in constants.items()
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
        """Scores a whole split on the host, with intervals from a bootstrap over patients.

        Anomalies: the metrics of `PER_CLASS` on the images whose label is known. Clusters: "accuracy" of the best
        matching of clusters with classes, on these very images (one class for a cluster), and normalised mutual
        information, "nmi". `classes` must be none or all.
        """
        if tuple(classes) not in ((), tuple(self.classes)):
            raise InputError(f"task {self.name!r} cannot be scored on {list(classes)} alone: it finds all in one")
        patients = np.arange(len(targets["labels"])) if groups is None else np.unique(groups, return_inverse=True)[1]
        if self.clusters:
            assigned = self.assign(predictions, calibration)
            return clustering(assigned, targets["labels"], self.components, patients, resamples=resamples)
        scores = self.scores(predictions, calibration)
        return detection(scores, targets["labels"][:, 0], calibration["threshold"], patients, resamples=resamples)

    def scores(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> np.ndarray:
        """How unlike the training images each image is, f64[N]; from `calibration["threshold"]` on an anomaly."""
        if self.score == "likelihood":
            return -np.logaddexp.reduce(component_log_densities(predictions[self.features], calibration), axis=1)
        return predictions["error"].astype(np.float64)

    def assign(self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any]) -> np.ndarray:
        """The most likely component of the mixture for each image, i[N]."""
        return component_log_densities(predictions[self.features], calibration).argmax(axis=1)

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
        """Draws ROC and scores as `roc_<name>.png` and `scores_<name>.png`, or clusters as `confusion_<name>.png`."""
        if self.clusters:
            called, true = self._matched(predictions, targets, calibration)
            # A cluster without a class is called none of them.
            figures.confusion(folder / f"confusion_{name}.png", called, np.where(called < 0, -1, true), self.classes)
            return
        scores, labels = self.scores(predictions, calibration), targets["labels"]
        figures.roc(folder / f"roc_{name}.png", scores[:, None], labels, self.classes)
        of_class = labels[:, 0], calibration["threshold"], self.classes[0]
        figures.scores(folder / f"scores_{name}.png", scores, *of_class)

    def errors(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
        groups: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
    ) -> np.ndarray:
        """How far each score is on the wrong side of the threshold, f64[N], or 1 for each image in a wrong cluster.

        NaN where it is unknown.
        """
        if self.clusters:
            called, true = self._matched(predictions, targets, calibration)
            return np.where(true < 0, np.nan, called != true)
        beyond = self.scores(predictions, calibration) - calibration["threshold"]
        label = targets["labels"][:, 0]
        return np.where(np.isnan(label), np.nan, np.where(label == 1, -beyond, beyond))

    def draw_samples(self, folder: Path, name: str, samples: Samples, calibration: Mapping[str, Any]) -> None:
        """Draws a sheet of images, each beside its reconstruction."""
        predictions, labels = samples.predictions, samples.targets["labels"]
        if self.clusters:
            captions = [
                f"cluster {cluster + 1}, {'unknown' if k < 0 else self.classes[k]}"
                for cluster, k in zip(self.assign(predictions, calibration), _classes(labels))
            ]
        else:
            words = {0.0: "normal", 1.0: "anomalous"}
            captions = [
                f"score {score:.4g} of {calibration['threshold']:.4g}, {words.get(float(label), 'unknown')}"
                for score, label in zip(self.scores(predictions, calibration), labels[:, 0])
            ]
        figures.samples(
            folder / f"samples_{name}.png",
            np.concatenate([samples.images, predictions["image"]], axis=2),
            sections=samples.sections,
            classes=self.classes,
            captions=captions,
        )

    def _matched(
        self,
        predictions: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        calibration: Mapping[str, Any],
    ) -> tuple[np.ndarray, np.ndarray]:
        """The class i[N] that each image's cluster is called in the best matching, and the true one; -1 is none."""
        assigned, true = self.assign(predictions, calibration), _classes(targets["labels"])
        return best_matching(_table(assigned, true, self.components, len(self.classes)))[assigned], true

    def findings(
        self, predictions: Mapping[str, np.ndarray], calibration: Mapping[str, Any], row: int, size: tuple[int, int]
    ) -> Findings:
        """Says of image `row` how unlike the training images it is and whether to call that; or its cluster, from 1."""
        one = {name: predictions[name][row : row + 1] for name in (self.features, "error")}
        if self.clusters:
            return Findings(scores={"cluster": float(self.assign(one, calibration)[0] + 1)})
        score = float(self.scores(one, calibration)[0])
        return Findings(scores={self.classes[0]: score}, decisions={self.classes[0]: score >= calibration["threshold"]})

    def _head(self) -> tuple[ModuleType, dict[str, Any]]:
        return catalog.head(self.name, self.head, "autoencoder")

    def _check_grid(self, height: int, width: int) -> None:
        field = f"of task {self.name!r}"
        try:
            structural_similarity.check_window(self.sigma, height, width, self.grid)
        except InputError as error:
            raise InputError(f"config fields grid and sigma {field}: {error}") from None
        self._check_dimensions(self.grid**2, "cells of the grid")

    def _check_dimensions(self, highest: int, of_what: str) -> None:
        if self.dimensions > highest:
            raise InputError(
                f"config field dimensions of task {self.name!r} is {self.dimensions}: expected at most the {highest} "
                f"{of_what}"
            )

    def _learned(self, batch: Batch) -> jax.Array:
        if "labels" not in batch or batch["labels"].shape[-1] != len(self.classes):
            found = f"{batch['labels'].shape[-1]} labels" if "labels" in batch else "no labels"
            raise InputError(
                f"task {self.name!r} is scored on {list(self.classes)}, the batch has {found}: choose a dataset with "
                "these labels (unknown ones are NaN)"
            )
        return batch["valid"] if self.clusters else batch["valid"] & (batch["labels"][:, 0] != 1)

    def _fit(self, features: np.ndarray) -> dict[str, Any]:
        """Fits the projection and the mixture to features f64[N,D]: lists, which `component_log_densities` reads."""
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture

        fitted: dict[str, Any] = {}
        if self.dimensions:
            pca = PCA(self.dimensions, svd_solver="full").fit(features)
            directions = pca.components_ / np.sqrt(np.maximum(pca.explained_variance_, 1e-12))[:, None]
            fitted["projection"] = {"mean": pca.mean_.tolist(), "directions": directions.tolist()}
            features = (features - pca.mean_) @ directions.T
        mixture = GaussianMixture(
            self.components, covariance_type=self.covariance, n_init=RESTARTS, random_state=self.seed
        ).fit(features)
        return fitted | {
            "weights": mixture.weights_.tolist(),
            "means": mixture.means_.tolist(),
            "covariances": mixture.covariances_.tolist(),
        }

    def _unseen_scores(self, features: np.ndarray, patients: np.ndarray) -> np.ndarray:
        """The score of each image under a mixture of other patients': those that it was fitted to look too likely."""
        from sklearn.model_selection import KFold

        scores = np.empty(len(features))
        folds = KFold(FOLDS, shuffle=True, random_state=self.seed)
        for _, chosen in folds.split(np.arange(patients.max() + 1)):
            unseen = np.isin(patients, chosen)
            scores[unseen] = self.scores({self.features: features[unseen]}, self._fit(features[~unseen]))
        return scores


def _numbered(groups: np.ndarray) -> np.ndarray:
    """Numbers groups from 0 in the order in which they come first: i[N]."""
    _, first, index = np.unique(groups, return_index=True, return_inverse=True)
    return first.argsort().argsort()[index]


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def component_log_densities(features: np.ndarray, mixture: Mapping[str, Any]) -> np.ndarray:
    """The logarithms of weight times density of each component at features f[N,D] -> f64[N,M]."""
    from scipy.stats import multivariate_normal

    features = np.asarray(features, np.float64)
    if "projection" in mixture:
        projection = mixture["projection"]
        features = (features - np.asarray(projection["mean"])) @ np.asarray(projection["directions"]).T
    parameters = zip(mixture["weights"], mixture["means"], mixture["covariances"])
    # A vector of variances is scipy's word for a diagonal covariance as well.
    densities = [
        np.log(weight) + np.atleast_1d(multivariate_normal.logpdf(features, mean, covariance, allow_singular=True))
        for weight, mean, covariance in parameters
    ]
    return np.stack(densities, axis=1)


def detection(
    scores: np.ndarray,
    labels: np.ndarray,
    threshold: float,
    patients: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[metrics.Metric]:
    """The metrics of `PER_CLASS` of scores f[N], which may be any number, against labels f[N], NaN where unknown."""
    split = metrics.Split(scores[:, None], labels[:, None].astype(np.float64), patients, np.arange(len(scores)), ("",))
    evaluate = metrics.per_class_evaluator(split, np.array([threshold]))
    places = [metrics.PER_CLASS.index(metric) for metric in PER_CLASS]
    values, draws = metrics.bootstrap(lambda weights: evaluate(weights)[:, 0, places], patients, resamples, seed)
    known = ~np.isnan(labels)
    results = []
    for m, metric in enumerate(PER_CLASS):
        reason = "no known label" if not known.any() else ""
        if not reason and metric in metrics.NEEDS_POSITIVES and not (labels == 1).any():
            reason = "no anomaly"
        if not reason and metric in metrics.NEEDS_NEGATIVES and not (labels == 0).any():
            reason = "nothing normal"
        note = f"{reason} in this split: undefined" if reason else ""
        results.append(metrics.with_interval(metric, values[m], draws[:, m], patients[known], note))
    return results


def clustering(
    assigned: np.ndarray,
    labels: np.ndarray,
    clusters: int,
    patients: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[metrics.Metric]:
    """Accuracy of the best matching, and normalised mutual information, of clusters i[N] and labels f[N,K] one-hot.

    A resample is matched anew. The mutual information is divided by the mean of the two entropies; it is 1 where
    neither has any. Rows with an unknown label are left out.
    """
    true = _classes(labels)
    known = true >= 0
    tables = np.zeros((patients.max(initial=-1) + 1, clusters, labels.shape[1]))
    np.add.at(tables, (patients[known], assigned[known], true[known]), 1)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        return np.array([[_accuracy(table), mutual_information(table)] for table in np.tensordot(weights, tables, 1)])

    values, draws = metrics.bootstrap(evaluate, patients, resamples, seed)
    note = "" if known.any() else "no known label in this split: undefined"
    return [
        metrics.with_interval(name, values[m], draws[:, m], patients[known], note)
        for m, name in enumerate(("accuracy", "nmi"))
    ]


def best_matching(table: np.ndarray) -> np.ndarray:
    """The class of each cluster i[M] that explains most rows of a table of counts f[M,K]; -1 where classes run out."""
    from scipy.optimize import linear_sum_assignment

    matched = np.full(len(table), -1)
    clusters, classes = linear_sum_assignment(table, maximize=True)
    matched[clusters] = classes
    return matched


def mutual_information(table: np.ndarray) -> float:
    """Normalised mutual information of a table of counts f[M,K] (Strehl and Ghosh 2002), by the mean entropy."""
    total = table.sum()
    if total == 0:
        return np.nan
    joint = table / total
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    entropies = _entropy(rows) + _entropy(columns)
    return 1.0 if entropies == 0 else max(0.0, 2 * (1 - _entropy(joint.ravel()) / entropies))


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum()) + 0.0  # no negative zero


def _accuracy(table: np.ndarray) -> float:
    matched = best_matching(table)
    right = sum(table[cluster, label] for cluster, label in enumerate(matched) if label >= 0)
    return right / table.sum() if table.sum() else np.nan


def _table(assigned: np.ndarray, true: np.ndarray, clusters: int, classes: int) -> np.ndarray:
    table = np.zeros((clusters, classes))
    np.add.at(table, (assigned[true >= 0], true[true >= 0]), 1)
    return table


def _classes(labels: np.ndarray) -> np.ndarray:
    """Labels f[N,K] -> classes i[N], -1 where unknown."""
    return np.where(np.isnan(labels).any(axis=1), -1, np.nan_to_num(labels).argmax(axis=1))

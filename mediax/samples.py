"""Rows of a split to look at: the best, the worst, and some of the others at random; host code on numpy."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

PLACES = 24  # rows that are chosen of a split


class Samples(NamedTuple):
    """Some rows of a split with their pictures, and which of them to show: `sections` are titles with their rows.

    Rows that are in no section are there because the others depend on them. `errors` f[M] are what the task judged them
    by, on the protocol's `classes` (none = all), `groups` [M] the patients.
    """

    sections: Mapping[str, Sequence[int]]
    images: np.ndarray
    predictions: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    errors: np.ndarray
    classes: Sequence[str] = ()
    groups: np.ndarray | None = None


def choose(
    errors: np.ndarray, count: int = PLACES, seed: int = 0, annotated: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Chooses `count` rows of a split: a quarter of them the best, half of them the worst, others at random.

    Args:
      errors: f[N], larger is worse, 0 or less is right, NaN unknown. What is right is not among the worst, what is
        unknown is chosen at random alone.
      count: of rows, if there are as many.
      seed: of the random ones, and of the order of equal ones.
      annotated: bool[N], the images that show something to find: if there are several, the best are of these.

    Returns the rows by the title of their section; one without rows is left out.
    """
    rng, number = np.random.default_rng(seed), f"{len(errors):,}"
    shuffled = rng.permutation(len(errors))
    rated = shuffled[np.argsort(errors[shuffled], kind="stable")][: np.count_nonzero(~np.isnan(errors))]
    telling, kind = rated, ""
    if annotated is not None and annotated[rated].sum() > 1:
        telling, kind = rated[annotated[rated]], "annotated "
    best = telling[: min(count // 4, len(telling) // 2)]
    wrong = rated[(errors[rated] > 0) & ~np.isin(rated, best)]
    worst = wrong[::-1][: math.ceil(count / 2)]
    rest = np.setdiff1d(shuffled, [*best, *worst])
    random = rng.permutation(rest)[: count - len(best) - len(worst)]
    chosen = {
        f"best, of {len(telling) if kind else len(errors):,} {kind}images": best,
        f"worst, of {number} images": worst,
        f"others at random, of {number} images": random,
    }
    return {title: rows for title, rows in chosen.items() if len(rows)}


def calls(scores: np.ndarray, thresholds: np.ndarray | None = None, *, exclusive: bool = False) -> np.ndarray:
    """Which classes are called, bool[N,K]: those of the highest score, or that reach their thresholds f[K] (0.5)."""
    if exclusive:
        return scores == scores.max(1, keepdims=True)
    return scores >= (0.5 if thresholds is None else np.asarray(thresholds, float))


def deviations(
    scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray | None = None, *, exclusive: bool = False
) -> np.ndarray:
    """How wrong each score f[N,K] is: f[N,K] above 0 to 1, from 0 down to -1 where it is right, NaN where unknown.

    It is the distance from the threshold as a share of what is possible on that side, so that a rare class of a low
    threshold counts as any other; of exclusive classes that from the label. A class without a threshold is unknown.
    """
    wrong = calls(scores, thresholds, exclusive=exclusive) != (labels >= 0.5)
    if exclusive:
        distance = np.abs(scores - labels)
        return np.where(wrong, distance, distance - 1)
    thresholds = np.full(scores.shape[1], 0.5) if thresholds is None else np.asarray(thresholds, float)
    beyond = scores - thresholds
    distance = np.abs(beyond) / np.maximum(np.where(beyond < 0, thresholds, 1 - thresholds), np.finfo(float).tiny)
    # A score just at its threshold may be wrong by nothing; it is still to be listed.
    signed = np.where(wrong, np.maximum(distance, 1e-6), -distance)
    return np.where(np.isnan(labels), np.nan, signed)


def worst(deviations: np.ndarray) -> np.ndarray:
    """The largest of each image's deviations f[N,K], f[N]; NaN where none is known."""
    known = ~np.isnan(deviations)
    return np.where(known.any(1), np.where(known, deviations, -np.inf).max(1), np.nan)

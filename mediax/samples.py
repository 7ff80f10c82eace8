"""Rows of a split to look at: the best, the worst, and some at random; host code on numpy."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

PLACES = 24  # rows that are chosen of a split


class Samples(NamedTuple):
    """Some rows of a split with their pictures, and which of them to show: `sections` are titles with their rows.

    Rows that are in no section are there because the others depend on them. `groups` [M] are the patients.
    """

    sections: Mapping[str, Sequence[int]]
    images: np.ndarray
    predictions: Mapping[str, np.ndarray]
    targets: Mapping[str, np.ndarray]
    groups: np.ndarray | None = None


def choose(errors: np.ndarray, count: int = PLACES, seed: int = 0) -> dict[str, np.ndarray]:
    """Chooses `count` rows of a split: a quarter of them the best, half of them the worst, the others at random.

    Args:
      errors: f[N], larger is worse, 0 or less is right, NaN unknown. What is right is not among the worst, what is
        unknown is chosen at random alone.
      count: of rows, if there are as many.
      seed: of the random ones.

    Returns the rows by the title of their section; one without rows is left out.
    """
    rated = np.argsort(errors, kind="stable")[: np.count_nonzero(~np.isnan(errors))]
    best = rated[: min(count // 4, len(rated) // 2)]
    wrong = [row for row in rated[len(best) :] if errors[row] > 0]
    worst = np.array(wrong[::-1][: math.ceil(count / 2)], int)
    rest = np.setdiff1d(np.arange(len(errors)), [*best, *worst])
    random = np.random.default_rng(seed).permutation(rest)[: count - len(best) - len(worst)]
    chosen = {"best": best, "worst": worst, "at random": random}
    return {f"{title}, of {len(errors):,} images": rows for title, rows in chosen.items() if len(rows)}


def calls(scores: np.ndarray, thresholds: np.ndarray | None = None, *, exclusive: bool = False) -> np.ndarray:
    """Which classes are called, bool[N,K]: those of the highest score, or that reach their thresholds f[K] (0.5)."""
    if exclusive:
        return scores == scores.max(1, keepdims=True)
    return scores >= (0.5 if thresholds is None else np.asarray(thresholds, float))


def wrongness(scores: np.ndarray, labels: np.ndarray, called: np.ndarray) -> np.ndarray:
    """How far each wrong score is from the truth, f[N,K]; 0 where right or unknown."""
    wrong = ~np.isnan(labels) & (called != (labels >= 0.5))
    # A score just at an unusual threshold may be wrong by nothing; it is still to be listed.
    return np.where(wrong, np.maximum(np.abs(scores - labels), 1e-6), 0)


def errors_of_scores(scores: np.ndarray, labels: np.ndarray, called: np.ndarray) -> np.ndarray:
    """The worst wrong score of an image, f[N]; of one that is right below 0, least if it is most confident."""
    wrong = wrongness(scores, labels, called).max(1)
    distance = np.where(np.isnan(labels), -np.inf, np.abs(scores - labels)).max(1)
    return np.where(np.isnan(labels).all(1), np.nan, np.where(wrong > 0, wrong, distance - 1))

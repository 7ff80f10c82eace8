"""Neighbours in a space of vectors: what is found first, how precisely, and how neighbours vote; host code on numpy."""

import math
from collections.abc import Iterator

import numpy as np

ROWS = 512  # queries that are compared with the gallery at once
RESOLUTION = 1e-6  # similarities of f32 vectors that differ by less are equal


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales vectors f[N,D] to length one, f32[N,D]; one without length stays zero."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def search(
    queries: np.ndarray, gallery: np.ndarray, wanted: np.ndarray, owners: np.ndarray, *, same: bool = False
) -> np.ndarray:
    """Searches a gallery, the most similar first: f64[N,2], whether the first is right (recall@1), average precision.

    An item that is as similar as a right one and wrong comes before it, so a network that maps all images to one point
    finds nothing. Both figures are NaN where the gallery holds nothing right.

    Args:
      queries: f[N,D], of length one.
      gallery: f[M,D], of length one.
      wanted: [N], whom each query looks for.
      owners: [M], whose each item of the gallery is.
      same: queries and gallery are the same items: none finds itself.
    """
    found = np.full((len(queries), 2), np.nan)
    for rows, similarity in _similarities(queries, gallery):
        right = wanted[rows, None] == owners
        if same:
            right[np.arange(len(right)), np.arange(len(gallery))[rows]] = False
            similarity[np.arange(len(right)), np.arange(len(gallery))[rows]] = -np.inf
        for row, of_query, of_right in zip(np.arange(len(queries))[rows], similarity, right):
            if of_right.any():
                found[row] = _recall_and_precision(of_query[of_right], of_query[~of_right])
    return found


def _recall_and_precision(right: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    right = np.sort(right)[::-1]
    place = np.arange(1, len(right) + 1)
    rank = place + (wrong >= right[:, None] - RESOLUTION).sum(axis=1)
    return float(rank[0] == 1), float((place / rank).mean())


def nearest(vectors: np.ndarray, rows: np.ndarray, count: int, groups: np.ndarray | None = None) -> np.ndarray:
    """The images of other patients that are most similar to each of `rows` i[M], the nearest first: i[M,count].

    Args:
      vectors: f[N,D], of length one.
      count: of neighbours, fewer if there are fewer images; -1 stands where no image of another patient is left.
      groups: [N] the patient of each image; None makes every image a patient of its own.
    """
    patients = np.arange(len(vectors)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count, found = min(count, len(vectors) - 1), []
    for block, similarity in _similarities(vectors[rows], vectors):
        similarity[patients[rows[block], None] == patients] = -np.inf
        first = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
        order = np.argsort(-np.take_along_axis(similarity, first, axis=1), axis=1, kind="stable")
        first = np.take_along_axis(first, order, axis=1)
        found.append(np.where(np.take_along_axis(similarity, first, axis=1) > -np.inf, first, -1))
    return np.concatenate(found)


def votes(vectors: np.ndarray, labels: np.ndarray, patients: np.ndarray, count: int) -> np.ndarray:
    """Lets the `count` nearest images of other patients vote on each image: the share f64[N,K] that shows a class.

    At most as many as the square root of the number of images vote: where nearly all do, each image's score says what
    the others are, and so what it is not. Those whose label is unknown have no vote; where none has one, the share of
    the whole split stands.

    Args:
      vectors: f[N,D], of length one.
      labels: f[N,K], NaN where unknown.
      patients: [N].
      count: of neighbours.
    """
    labels = np.asarray(labels, np.float64)
    voters = nearest(vectors, np.arange(len(vectors)), min(count, math.isqrt(len(vectors))), patients)
    shares = _mean(np.where(voters[..., None] < 0, np.nan, labels[voters]), axis=1)
    return np.where(np.isnan(shares), np.nan_to_num(_mean(labels, axis=0)), shares)


def closeness(vectors: np.ndarray) -> np.ndarray:
    """The mean over all others of exp(-2 |x - y|^2), f64[N], of vectors f[N,D] of length one; NaN for a single one.

    The logarithm of its mean is the uniformity of Wang and Isola (arXiv:2005.10242).
    """
    sums = [np.exp(4 * (similarity.astype(np.float64) - 1)).sum(axis=1) for _, similarity in _similarities(vectors)]
    itself = np.exp(4 * ((vectors.astype(np.float64) ** 2).sum(axis=1) - 1))
    with np.errstate(invalid="ignore"):
        return (np.concatenate(sums) - itself) / (len(vectors) - 1)


def principal_components(vectors: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Projects vectors f[N,D] onto the first principal components: f64[N,count], and their shares of the variance."""
    centred = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0, dtype=np.float64)
    values, directions = np.linalg.eigh(centred.T @ centred)
    values, directions = values[::-1], directions[:, ::-1][:, :count]
    # A direction has no sign of its own: its largest entry is positive, so that equal data give equal pictures.
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
    return centred @ directions, values[:count] / max(values.sum(), 1e-12)


def _similarities(queries: np.ndarray, gallery: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the cosines of some rows of queries with the whole gallery (the queries, if none is given)."""
    gallery = queries if gallery is None else gallery
    for start in range(0, len(queries), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, queries[rows] @ gallery.T


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis)

"""Classification metrics, each with a patient-level bootstrap interval; host code on numpy arrays.

Every figure is a function of patient weights: weight one for each patient gives the value, multinomial multiplicities
give one resample. A class is sorted once; a resample then costs a gather and three cumulative sums of its weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from mediax.errors import InputError

PER_CLASS = ("auroc", "average_precision", "accuracy", "f1", "precision", "sensitivity", "specificity", "brier", "ece")
OVERALL = ("top1_accuracy", "balanced_accuracy", "cohen_kappa", "quadratic_weighted_kappa")
NEEDS_POSITIVES = {"auroc", "average_precision", "f1", "precision", "sensitivity"}
NEEDS_NEGATIVES = {"auroc", "specificity"}
NEEDS_THRESHOLD = {"accuracy", "f1", "precision", "sensitivity", "specificity"}
# Words of names of figures that are better the smaller they are.
ERRORS = {"mae", "mse", "rmse", "brier", "ece", "loss", "error", "distance", "alignment", "uniformity"}

CALIBRATION_BINS = 15
# A threshold that no probability reaches; it stays above one when a caller stores it as float32.
NEVER = float(np.nextafter(np.float32(1), np.float32(2)))
# An average of probabilities may leave [0,1] by rounding; what leaves it by more is a logit or a percentage.
ROUNDING = 1e-6
# Weights in one chunk of resamples: half a megabyte as float64; two to three times slower where arrays leave the cache.
CHUNK_ELEMENTS = 1 << 16

# f64[R,P] patient weights -> f64[R,...], the figures under each row of weights.
Evaluate = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """One figure with its 95 % bootstrap interval; whatever is undefined is NaN, and `note` says why."""

    name: str  # "auroc/Edema", "auroc/macro", "cohen_kappa"
    value: float
    low: float
    high: float
    n: int  # known rows that entered
    note: str = ""
    trivial: float | None = None  # the same figure of a predictor that never looks at an image
    reader: float | None = None  # the same figure of another reader of the same images
    draws: np.ndarray | None = field(default=None, repr=False, compare=False)  # f64[R] its value in each resample


def classification(
    scores: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str],
    groups: Sequence | None = None,
    *,
    exclusive: bool = False,
    thresholds: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    valid: ArrayLike | None = None,
) -> list[Metric]:
    """Returns each metric of `PER_CLASS` by class and as macro mean, then those of `OVERALL` if classes are exclusive.

    AUROC counts ties as one half; average precision is scikit-learn's step-wise sum; a class is called present if its
    score reaches the threshold, one of exclusive classes if it is the predicted one. Precision is 0 where nothing is
    called. The expected calibration error compares the probability of presence with the observed frequency in 15
    equal-width bins, closed above (Naeini et al. 2015, Guo et al. 2017). AUROC, average precision, F1, precision and
    sensitivity need a positive row, AUROC and specificity a negative one: without it a class is NaN and not in the
    macro mean.

    The bootstrap draws patients with replacement, the same draw for all classes and metrics, and takes percentiles
    (Efron and Tibshirani 1993). Where a draw leaves a class undefined, the interval of that class skips the draw and
    the macro mean of the draw skips the class; notes count such draws.

    Args:
      scores: f[N,K] probabilities in [0,1].
      labels: f[N,K] 1 present, 0 absent, NaN unknown (the row is left out of that class).
      classes: K names.
      groups: [N] the patient of each row, hashable; None makes every row a patient of its own.
      exclusive: rows of `labels` are one-hot, or all NaN, and K >= 2; quadratic weighted kappa takes the order of
        `classes` as the grade; the predicted class is the first of the highest scores.
      thresholds: f[K], chosen on other data; None means 0.5; NaN leaves that class's threshold metrics undefined.
        Exclusive classes need none.
      resamples: bootstrap draws; 0 computes no interval.
      seed: of the draws.
      valid: bool[N] False on padding rows, which are ignored.

    Raises:
      InputError: shapes disagree, scores are not probabilities, labels are soft, or a row has no patient.
    """
    split = checked_split(scores, labels, classes, groups, valid)
    if exclusive:
        _check_one_hot(split)
    thresholds = _thresholds(None if exclusive else thresholds, split)
    values, draws = bootstrap(per_class_evaluator(split, thresholds, exclusive), split.patients, resamples, seed)
    results = []
    for m, metric in enumerate(PER_CLASS):
        reasons = [_undefined(metric, split.labels[:, k], thresholds[k]) for k in range(len(split.classes))]
        for k, (name, reason) in enumerate(zip(split.classes, reasons)):
            note = f"{reason}: undefined, left out of the macro mean" if reason else ""
            known = ~np.isnan(split.labels[:, k])
            results.append(with_interval(f"{metric}/{name}", values[k, m], draws[:, k, m], split.patients[known], note))
        results.append(_macro(f"{metric}/macro", values[:, m], draws[:, :, m], split, reasons))
    if exclusive:
        results += _overall(split, resamples, seed)
    return results


def sign(name: str) -> int:
    """1 if more of the figure ("auroc/macro", "loss") is better, -1 if less is."""
    return -1 if ERRORS & set(name.partition("/")[0].split("_")) else 1


def case_means(
    values: ArrayLike,
    classes: Sequence[str],
    names: Sequence[str],
    groups: Sequence | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> list[Metric]:
    """Averages values f[N,K,M] of M metrics over the cases where they are not NaN, then over the K classes ("macro").

    The interval is from the bootstrap over patients that `classification` uses. A class without any value is NaN and
    not in the macro mean; `note` says so.

    Args:
      classes: K names.
      names: of the M metrics.
      groups: [N] the patient of each case; None makes every case a patient of its own.
    """
    values = np.asarray(values, np.float64)
    patients = np.arange(len(values)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    known = ~np.isnan(values)
    # Sums by patient: a resample is then a product with the multiplicities of its patients.
    sums, counts = np.zeros((2, patients.max(initial=-1) + 1, *values.shape[1:]))
    np.add.at(sums, patients, np.where(known, values, 0.0))
    np.add.at(counts, patients, known)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.tensordot(weights, sums, 1) / np.tensordot(weights, counts, 1)

    means, draws = bootstrap(evaluate, patients, resamples, seed)
    return by_class(means, draws, classes, names, patients, known, reason="no case counts")


def by_class(
    values: np.ndarray,
    draws: np.ndarray,
    classes: Sequence[str],
    names: Sequence[str],
    patients: np.ndarray,
    known: np.ndarray | None = None,
    *,
    reason: str,
) -> list[Metric]:
    """Gives each of M figures f[K,M], resampled f[R,K,M], by class and as mean over the classes where it is defined.

    `patients` i[N] are those of the cases, `known` bool[N,K,M] says which case enters which figure (none: all enter
    all), `reason` why a figure is undefined.
    """
    if known is None:
        known = np.ones((len(patients), *values.shape), bool)
    results = []
    for m, metric in enumerate(names):
        left_out = [name for k, name in enumerate(classes) if np.isnan(values[k, m])]
        for k, name in enumerate(classes):
            note = f"{reason}: undefined, left out of the macro mean" if name in left_out else ""
            results.append(
                with_interval(f"{metric}/{name}", values[k, m], draws[:, k, m], patients[known[:, k, m]], note)
            )
        notes = [f"left out: {', '.join(left_out)}"] if left_out else []
        notes += _fewer_classes(draws[:, ~np.isnan(values[:, m]), m])
        macro, macro_draws = mean_of_defined(values[:, m]), mean_of_defined(draws[:, :, m])
        of_any = patients[known[:, :, m].any(1)]
        results.append(with_interval(f"{metric}/macro", macro, macro_draws, of_any, "; ".join(notes)))
    return results


def youden_thresholds(scores: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Returns f64[K], for each class the threshold of the highest sensitivity + specificity - 1 (Youden 1950).

    Every cut point is tried: each distinct score of a known row ("present if the score reaches it"), and `NEVER`, just
    above one, which calls nothing present. Equal cut points go to the highest threshold, compared in exact arithmetic.
    NaN where the class has no positive or no negative row.

    Args: scores f[N,K] in [0,1]; labels f[N,K] 1 present, 0 absent, NaN unknown. Raises InputError as `classification`.
    """
    return _best_thresholds(scores, labels, lambda tp, fp, positives, negatives: tp * negatives - fp * positives, 1, 1)


def f1_thresholds(scores: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Returns f64[K], for each class the threshold of the highest F1; cut points, ties and errors as for Youden.

    NaN where the class has no positive row.
    """
    return _best_thresholds(scores, labels, lambda tp, fp, positives, negatives: 2 * tp / (tp + fp + positives), 1, 0)


def accuracy_thresholds(scores: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Returns f64[K], for each class the threshold of the highest accuracy; cut points, ties and errors as for Youden.

    NaN where the class has no known row.
    """
    return _best_thresholds(scores, labels, lambda tp, fp, positives, negatives: tp - fp, 0, 0)


def positions(names: Sequence[str], chosen: Sequence[str]) -> list[int]:
    """The places of the `chosen` ones in `names`; of all where none is chosen."""
    return [names.index(name) for name in chosen or names]


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """f64[...,K] -> f64[...], the mean over entries that are not NaN; NaN if none is."""
    defined = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(defined, values, 0).sum(axis=-1) / defined.sum(axis=-1)


def with_interval(name: str, value: float, draws: np.ndarray, patients: np.ndarray, note: str) -> Metric:
    """Adds the percentile interval of the defined draws; `patients` are those of the known rows."""
    notes = [note] if note else []
    low = high = math.nan
    defined = draws[~np.isnan(draws)]
    if not math.isnan(value) and len(np.unique(patients)) < 2:
        notes.append("a single patient: no interval")
    elif not math.isnan(value):
        if defined.size:
            low, high = np.percentile(defined, [2.5, 97.5])
        if defined.size < draws.size:
            notes.append(f"{draws.size - defined.size} of {draws.size} resamples undefined, left out of the interval")
    return Metric(name, float(value), float(low), float(high), len(patients), "; ".join(notes), draws=draws)


def two_sided_p_value(draws: np.ndarray) -> float:
    """Returns twice the share of draws f[R] on the rarer side of zero, those at zero on both sides; NaN is left out.

    One is added to count and total, so that it is never zero (Davison and Hinkley 1997).
    """
    draws = draws[~np.isnan(draws)]
    rarer = min((draws <= 0).sum(), (draws >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(draws) + 1)))


# Figures under patient weights.


@dataclass(frozen=True)
class Split:
    """The checked rows of one split, padding left out."""

    scores: np.ndarray  # f64[N,K]
    labels: np.ndarray  # f64[N,K] 1, 0 or NaN
    patients: np.ndarray  # i64[N] index of the row's patient in 0..P-1
    rows: np.ndarray  # i64[N] index of the row in the caller's arrays
    classes: tuple[str, ...]


def bootstrap(evaluate: Evaluate, patients: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the figures of the split f64[...] and of each resample f64[R,...]; R is 0 for fewer than two patients."""
    count = patients.max(initial=-1) + 1
    values = evaluate(np.ones((1, count)))[0]
    if count < 2:
        resamples = 0
    chunk = max(1, CHUNK_ELEMENTS // max(1, len(patients)))
    draws = np.empty((resamples, *values.shape))
    done = 0
    for weights in multiplicities(count, resamples, seed, chunk):
        draws[done : done + len(weights)] = evaluate(weights)
        done += len(weights)
    return values, draws


def multiplicities(patients: int, resamples: int, seed: int, chunk: int) -> Iterator[np.ndarray]:
    """Yields f64[R,P], how often each draw of P patients with replacement has each patient, at most `chunk` draws each.

    The draws depend on the seed alone, not on the chunk.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, chunk):
        size = min(chunk, resamples - start)
        weights = np.empty((size, patients))
        for row in weights:
            row[:] = np.bincount(generator.integers(patients, size=patients), minlength=patients)
        yield weights


def per_class_evaluator(split: Split, thresholds: np.ndarray, exclusive: bool = False) -> Evaluate:
    """Returns the function from patient weights f64[R,P] to the metrics of `PER_CLASS`, f64[R,K,9].

    What is called is decided by `thresholds` f64[K], NaN for no decision; of `exclusive` classes by the highest score.
    """
    called = np.where(np.isnan(thresholds), np.nan, split.scores >= thresholds)
    if exclusive:
        called = np.eye(len(split.classes))[split.scores.argmax(axis=1)]
    evaluators = [
        _class_evaluator(split.scores[:, k], split.labels[:, k], called[:, k], split.patients)
        for k in range(len(split.classes))
    ]
    return lambda weights: np.stack([evaluate(weights) for evaluate in evaluators], axis=1)


def _class_evaluator(scores: np.ndarray, labels: np.ndarray, called: np.ndarray, patients: np.ndarray) -> Evaluate:
    rows, cuts = _rank(scores, labels)
    score, label, patient = scores[rows], labels[rows], patients[rows]
    residual = label - score
    edges = np.arange(CALIBRATION_BINS - 1, 0, -1) / CALIBRATION_BINS
    bins = np.array([0, *_count_from(score, edges), len(rows)])
    decisions = np.stack([called[rows] * label, called[rows]], axis=1)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        # The rows stand in falling order of score, so any cut or bin is a range of a cumulative sum.
        weights = weights.take(patient, axis=1)
        present, everything = _cumulative(weights * label), _cumulative(weights)
        positives, total = present[:, -1], everything[:, -1]
        negatives = total - positives
        tp, at = present.take(cuts, axis=1), everything.take(cuts, axis=1)
        gained, fp = np.diff(tp), at - tp
        precision = np.divide(tp, at, out=np.zeros_like(tp), where=at > 0)[:, 1:]
        hits, calls = (weights @ decisions).T
        misfit = np.abs(np.diff(_cumulative(weights * residual)[:, bins]))
        with np.errstate(invalid="ignore"):
            figures = {
                "auroc": np.trapezoid(tp, fp, axis=1) / (positives * negatives),
                "average_precision": (gained * precision).sum(axis=1) / positives,
                "accuracy": (hits + negatives - (calls - hits)) / total,
                "f1": np.where(positives > 0, 2 * hits, np.nan) / (calls + positives),
                "precision": np.where(positives > 0, hits, np.nan) / np.where(calls > 0, calls, 1),
                "sensitivity": hits / positives,
                "specificity": (negatives - (calls - hits)) / negatives,
                "brier": (weights * residual**2).sum(axis=1) / total,
                "ece": misfit.sum(axis=1) / total,
            }
        return np.stack([figures[metric] for metric in PER_CLASS], axis=1)

    return evaluate


def overall_evaluator(split: Split) -> Evaluate:
    """Returns the function from patient weights f64[R,P] to the metrics of `OVERALL`, f64[R,4], of one-hot labels.

    Balanced accuracy is the mean sensitivity of the classes that are present. Both kappas (Cohen 1960, 1968) follow
    from the marginals, the agreement and the mean squared distance of the grades; no K x K table is needed.
    """
    known = ~np.isnan(split.labels[:, 0])
    patient = split.patients[known]
    truth, predicted = split.labels[known].argmax(axis=1), split.scores[known].argmax(axis=1)
    count, k = split.patients.max(initial=-1) + 1, len(split.classes)
    table = np.zeros((count, 3 * k + 1))
    np.add.at(table, (patient, truth), 1)
    np.add.at(table, (patient, k + predicted), 1)
    np.add.at(table, (patient, 2 * k + truth), truth == predicted)
    np.add.at(table, (patient, 3 * k), (truth - predicted) ** 2)
    grade = np.arange(k)

    def evaluate(weights: np.ndarray) -> np.ndarray:
        true, called, correct, distance = np.split(weights @ table, [k, 2 * k, 3 * k], axis=1)
        total, agreed = true.sum(axis=1), correct.sum(axis=1)
        with np.errstate(invalid="ignore"):
            chance = (true * called).sum(axis=1) / total
            chance_distance = (true + called) @ grade**2 - 2 * (true @ grade) * (called @ grade) / total
            figures = {
                "top1_accuracy": agreed / total,
                "balanced_accuracy": mean_of_defined(correct / true),
                "cohen_kappa": (agreed - chance) / (total - chance),
                "quadratic_weighted_kappa": 1 - distance[:, 0] / chance_distance,
            }
        return np.stack([figures[metric] for metric in OVERALL], axis=1)

    return evaluate


def _rank(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the known rows in falling order of score, and the lengths of the heads that do not split equal scores."""
    known = np.flatnonzero(~np.isnan(labels))
    rows = known[np.argsort(-scores[known], kind="stable")]
    changes = np.flatnonzero(np.diff(scores[rows])) + 1
    return rows, np.array([0, *changes, len(rows)]) if len(rows) else np.array([0])


def _count_from(falling: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Returns how many of the falling scores are above each bound."""
    return len(falling) - np.searchsorted(falling[::-1], bounds, side="right")


def _cumulative(weights: np.ndarray) -> np.ndarray:
    """f64[R,N] -> f64[R,N+1], entry i the sum of the first i; exact for integers below 2**53."""
    result = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=result[:, 1:])
    return result


def _best_thresholds(
    scores: ArrayLike, labels: ArrayLike, objective: Callable, least_positives: int, least_negatives: int
) -> np.ndarray:
    split = checked_split(scores, labels, None, None, None)
    best = np.full(len(split.classes), np.nan)
    for k in range(len(best)):
        rows, cuts = _rank(split.scores[:, k], split.labels[:, k])
        tp = np.concatenate([[0], np.cumsum(split.labels[rows, k])]).astype(np.int64)[cuts]
        positives, negatives = tp[-1], len(rows) - tp[-1]
        if len(rows) and positives >= least_positives and negatives >= least_negatives:
            cut = cuts[np.argmax(objective(tp, cuts - tp, positives, negatives))]
            best[k] = split.scores[rows[cut - 1], k] if cut else NEVER
    return best


# From figures to metrics.


def _macro(name: str, values: np.ndarray, draws: np.ndarray, split: Split, reasons: Sequence[str]) -> Metric:
    """Returns the mean over defined classes of values f64[K] and draws f64[R,K]; `reasons` say why a class is not."""
    left_out = [f"{label} ({reason})" for label, reason in zip(split.classes, reasons) if reason]
    entered = np.array([not reason for reason in reasons], bool)
    notes = [f"left out: {', '.join(left_out)}"] if left_out else []
    notes += _fewer_classes(draws[:, entered])
    known = (~np.isnan(split.labels[:, entered])).any(axis=1)
    return with_interval(name, mean_of_defined(values), mean_of_defined(draws), split.patients[known], "; ".join(notes))


def _fewer_classes(draws: np.ndarray) -> list[str]:
    """Says how many of the draws f[R,K] of classes that are defined in the split lack some of them, if any do."""
    partial = int(np.isnan(draws).any(axis=1).sum())
    words = f"{partial} of {len(draws)} resamples average fewer classes, the others being undefined in them"
    return [words] if partial else []


def _overall(split: Split, resamples: int, seed: int) -> list[Metric]:
    values, draws = bootstrap(overall_evaluator(split), split.patients, resamples, seed)
    known = split.patients[~np.isnan(split.labels[:, 0])]
    return [
        with_interval(metric, values[m], draws[:, m], known, _overall_note(metric, values[m], split))
        for m, metric in enumerate(OVERALL)
    ]


def _overall_note(metric: str, value: float, split: Split) -> str:
    if np.isnan(split.labels).all():
        return "no known label in this split: undefined"
    if math.isnan(value):
        return "truth and prediction are one and the same class: undefined"
    absent = [label for label, column in zip(split.classes, split.labels.T) if not (column == 1).any()]
    if metric == "balanced_accuracy" and absent:
        return f"left out: {', '.join(absent)} (no rows in this split)"
    return ""


def _undefined(metric: str, labels: np.ndarray, threshold: float) -> str:
    """Returns why the metric is undefined for a class, or "" if it is defined."""
    if np.isnan(labels).all():
        return "no known label in this split"
    if metric in NEEDS_POSITIVES and not (labels == 1).any():
        return "no positives in this split"
    if metric in NEEDS_NEGATIVES and not (labels == 0).any():
        return "no negatives in this split"
    if metric in NEEDS_THRESHOLD and math.isnan(threshold):
        return "no threshold for this class"
    return ""


# Checks.


def checked_split(
    scores: ArrayLike,
    labels: ArrayLike,
    classes: Sequence[str] | None,
    groups: Sequence | None,
    valid: ArrayLike | None,
    field: str = "scores",
) -> Split:
    """Returns the rows of `classification`'s arguments without padding; `field` is what errors call the scores.

    Raises:
      InputError: as `classification`.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise InputError(
            f"{field}: found shape {scores.shape} with labels {labels.shape}, expected one [rows, classes]"
        )
    n, k = scores.shape
    classes = tuple(map(str, range(k) if classes is None else classes))
    if len(classes) != k or len(set(classes)) != k or "macro" in classes:
        raise InputError(f"classes: found {classes}, expected {k} different names, none of them 'macro'")
    rows = np.arange(n) if valid is None else _valid_rows(np.asarray(valid), n)
    split = Split(scores[rows], labels[rows], _patients(groups, rows, n), rows, classes)
    _check_entries(
        split,
        ~((split.scores >= -ROUNDING) & (split.scores <= 1 + ROUNDING)),
        split.scores,
        field,
        "a finite probability in [0,1]; look for divergence, or for logits in place of probabilities",
    )
    _check_entries(
        split,
        ~(np.isnan(split.labels) | np.isin(split.labels, (0, 1))),
        split.labels,
        "labels",
        "1 (present), 0 (absent) or NaN (unknown); soft and smoothed labels are for training, evaluate on hard ones",
    )
    return split


def _check_entries(split: Split, wrong: np.ndarray, values: np.ndarray, field: str, expected: str) -> None:
    if wrong.any():
        row, k = np.argwhere(wrong)[0]
        place = f"{field}, class {split.classes[k]!r}, row {split.rows[row]}"
        raise InputError(f"{place}: found {values[row, k]:g}, expected {expected} ({wrong.sum()} such entries)")


def _check_one_hot(split: Split) -> None:
    if len(split.classes) < 2:
        raise InputError(f"classes: found {len(split.classes)}, expected two or more where classes are exclusive")
    one_hot = (split.labels.sum(axis=1) == 1) | np.isnan(split.labels).all(axis=1)
    if not one_hot.all():
        row = np.argmin(one_hot)
        raise InputError(
            f"labels, row {split.rows[row]}: found {split.labels[row]}, expected one 1 among 0 (exclusive classes), "
            "or NaN throughout if the class is unknown; use exclusive=False for findings that occur together"
        )


def _valid_rows(valid: np.ndarray, n: int) -> np.ndarray:
    if valid.shape != (n,) or valid.dtype != bool:
        raise InputError(f"valid: found {valid.dtype}{list(valid.shape)}, expected bool[{n}], False on padding rows")
    return np.flatnonzero(valid)


def _patients(groups: Sequence | None, rows: np.ndarray, n: int) -> np.ndarray:
    """Numbers the patients of the rows in order of appearance."""
    if groups is None:
        return np.arange(len(rows))
    groups = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if len(groups) != n:
        raise InputError(f"groups: found {len(groups)} patient ids, expected one for each of {n} rows")
    numbers: dict = {}
    patients = np.empty(len(rows), np.int64)
    for i, row in enumerate(rows):
        group = groups[row]
        # Rows without an id would become one large patient, or (NaN) a patient each.
        if group is None or group == "" or group != group:
            raise InputError(f"groups, row {row}: found no patient id, expected one; drop the row or give it an id")
        patients[i] = numbers.setdefault(group, len(numbers))
    return patients


def _thresholds(thresholds: ArrayLike | None, split: Split) -> np.ndarray:
    k = len(split.classes)
    thresholds = np.full(k, 0.5) if thresholds is None else np.asarray(thresholds, np.float64)
    if thresholds.shape != (k,):
        raise InputError(f"thresholds: found shape {thresholds.shape}, expected one for each of {k} classes")
    return thresholds

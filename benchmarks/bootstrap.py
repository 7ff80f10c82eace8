"""Times the patient-level bootstrap of all classification metrics beside a plain loop over scikit-learn.

    python -m benchmarks.bootstrap [--rows 25000] [--classes 14] [--resamples 1000] [--loop_resamples 2]

The loop is timed on a few resamples only, and its time for all of them is extrapolated.
"""

import argparse
import resource
import sys
import time

import numpy as np
import sklearn.metrics

from mediax import metrics


def synthetic_split(rows: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns scores f32[N,K], labels f64[N,K] of prevalence 2 to 40 % with a tenth unknown, patients i64[N]."""
    generator = np.random.default_rng(seed)
    labels = (generator.random((rows, classes)) < generator.uniform(0.02, 0.4, classes)).astype(float)
    scores = 1 / (1 + np.exp(1 - labels - generator.normal(size=(rows, classes))))
    labels[generator.random((rows, classes)) < 0.1] = np.nan
    return scores.astype(np.float32), labels, generator.integers(max(1, rows // 3), size=rows)


def scikit_learn_figures(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the metrics of `PER_CLASS` but the calibration error, f64[K,8], for row weights f64[N]."""
    figures = []
    for score, label in zip(scores.T, labels.T):
        known = ~np.isnan(label)
        score, label, weight = score[known].astype(np.float64), label[known], {"sample_weight": weights[known]}
        call = score >= 0.5
        figures.append(
            [
                sklearn.metrics.roc_auc_score(label, score, **weight),
                sklearn.metrics.average_precision_score(label, score, **weight),
                sklearn.metrics.accuracy_score(label, call, **weight),
                sklearn.metrics.f1_score(label, call, **weight),
                sklearn.metrics.precision_score(label, call, zero_division=0, **weight),
                sklearn.metrics.recall_score(label, call, **weight),
                sklearn.metrics.recall_score(label, call, pos_label=0, **weight),
                sklearn.metrics.brier_score_loss(label, score, **weight),
            ]
        )
    return np.array(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=25_000)
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--loop_resamples", type=int, default=2)
    arguments = parser.parse_args()
    scores, labels, groups = synthetic_split(arguments.rows, arguments.classes)
    names = [f"class {k}" for k in range(arguments.classes)]

    start = time.perf_counter()
    results = metrics.classification(scores, labels, names, groups, resamples=arguments.resamples)
    ours = time.perf_counter() - start
    # The peak since the process began, in KiB on Linux and bytes on macOS.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)

    split = metrics.checked_split(scores, labels, names, groups, None)
    patients = split.patients.max() + 1
    draws = next(metrics.multiplicities(patients, arguments.loop_resamples, seed=0, chunk=arguments.loop_resamples))
    evaluate = metrics.per_class_evaluator(split, np.full(arguments.classes, 0.5))
    start = time.perf_counter()
    expected = np.stack([scikit_learn_figures(scores, labels, draw[split.patients]) for draw in draws])
    loop = (time.perf_counter() - start) / arguments.loop_resamples
    disagreement = np.nanmax(np.abs(evaluate(draws)[:, :, :-1] - expected))

    print(f"{arguments.rows} rows, {arguments.classes} classes, {patients} patients")
    print(
        f"mediax: {ours:.1f} s for {arguments.resamples} resamples of {len(metrics.PER_CLASS)} metrics "
        f"({len(results)} intervals), process peak {peak:.2f} GiB"
    )
    print(
        f"scikit-learn loop: {loop:.3f} s a resample, measured on {arguments.loop_resamples}, without the calibration "
        f"error; extrapolated to {arguments.resamples}: {loop * arguments.resamples:.0f} s"
    )
    print(f"largest difference between the two on those {arguments.loop_resamples} resamples: {disagreement:.1e}")


if __name__ == "__main__":
    main()

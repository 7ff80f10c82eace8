"""Runs MedMNIST's evaluator on random scores and writes tests/references/goldens/medmnist.npz.

    python tests/references/medmnist_evaluator.py CHECKOUT

CHECKOUT is a checkout of https://github.com/MedMNIST/MedMNIST (written with commit 805b742, scikit-learn 1.9.1).
"""

import argparse
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np

KINDS = {"binary-class": 2, "multi-class": 4, "ordinal-regression": 5, "multi-label, binary-class": 3}


def cases() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Kind of task, scores f[N,K] with ties, and labels f[N,K]: one-hot, but of several labels."""
    rng = np.random.default_rng(0)
    for kind, classes in KINDS.items():
        for rows in (12, 200):
            labels = np.eye(classes)[rng.permutation(np.arange(rows) % classes)]
            scores = rng.dirichlet(np.ones(classes), rows)
            if kind.startswith("multi-label"):
                labels = np.maximum(labels, rng.random((rows, classes)) < 0.2)
                scores = rng.random((rows, classes))
            scores = (scores + 0.5 * labels) / 1.5
            # Thirds tie, and none is exactly 0.5, which the evaluator does not call and mediax does.
            yield kind, np.where(rng.random((rows, 1)) < 0.5, scores, np.round(scores * 3) / 3), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    source = parser.parse_args().checkout / "medmnist" / "evaluator.py"
    # The package itself would ask for PyTorch.
    sys.modules["medmnist.info"] = types.SimpleNamespace(INFO={}, DEFAULT_ROOT="")
    evaluator = types.ModuleType("evaluator")
    exec(compile(source.read_text(), str(source), "exec"), evaluator.__dict__)
    golden = []
    for kind, scores, labels in cases():
        truth = labels if kind.startswith("multi-label") else labels.argmax(1)[:, None]
        golden.append([evaluator.getAUC(truth, scores, kind), evaluator.getACC(truth, scores, kind)])
    np.savez(Path(__file__).parent / "goldens" / "medmnist.npz", figures=golden)


if __name__ == "__main__":
    main()

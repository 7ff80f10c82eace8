"""Runs the scorer of ChestX-Det10 on random boxes and writes tests/references/goldens/froc.npz.

    python tests/references/froc.py CHECKOUT

CHECKOUT is a checkout of https://github.com/Deepwise-AILab/ChestX-Det10-Dataset (written with commit c535e9a, numpy
2.4.6 and scipy 1.17.1). Its IoU counts the pixels of both edges: the first boxes are scaled until one pixel is nothing,
the others ("official/...") are those of its JSON files: whole pixels of 1024.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parent.parent
PIXELS = 1e6
RATES = (0.05, 0.1, 0.2, 0.505, 0.99)  # between operating points: at one, scipy takes the lower end of a step
OFFICIAL_RATES = [0.05, 0.1, 0.2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    sys.path[:0] = [str(parser.parse_args().checkout), str(TESTS)]
    from boxes import on_pixels, split
    from eval import sens_at_FP

    golden = {"rates": RATES}
    for seed in range(3):
        predictions, targets = split(images=60, seed=seed)
        for label in range(2):
            found, true = of_class(predictions, targets, label, PIXELS)
            for iou in (0.2, 0.5):
                golden[f"{seed}/{label}/{iou}"] = sens_at_FP(found, true, list(RATES), iou)[0][: len(RATES)]
    for seed in range(2):
        for label in range(5):
            found, true = of_class(*on_pixels(seed=seed), label, 1024)
            recalls = sens_at_FP(found, true, OFFICIAL_RATES, 0.5)[0]
            # What the scorer's mean over classes takes of a curve that ends before a rate.
            golden[f"official/{seed}/{label}"] = [recalls[min(i, len(recalls) - 1)] for i in range(len(OFFICIAL_RATES))]
    np.savez(Path(__file__).parent / "goldens" / "froc.npz", **golden)


def of_class(predictions: dict, targets: dict, label: int, size: float) -> tuple[list, list]:
    """The boxes of one class in each image as the scorer takes them: f32[D,5] with scores, and f32[N,4]."""
    found, true = [], []
    for row in np.flatnonzero(targets["boxes_known"]):
        kept = (predictions["scores"][row] > 0) & (predictions["labels"][row] == label)
        corners = predictions["boxes"][row][kept] * size
        found.append(np.column_stack([corners, predictions["scores"][row][kept]]))
        valid = targets["box_valid"][row] & (targets["box_labels"][row] == label)
        true.append(targets["boxes"][row][valid] * size)
    return found, true


if __name__ == "__main__":
    main()

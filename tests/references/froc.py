"""Runs the scorer of ChestX-Det10 on random boxes and writes tests/references/goldens/froc.npz.

    python tests/references/froc.py CHECKOUT

CHECKOUT is a checkout of https://github.com/Deepwise-AILab/ChestX-Det10-Dataset (written with commit c535e9a, numpy
2.4.6 and scipy 1.17.1). Its IoU counts the pixels of both edges: boxes are scaled until one pixel is nothing.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parent.parent
PIXELS = 1e6
RATES = (0.05, 0.1, 0.2, 0.505, 0.99)  # between operating points: at one, scipy takes the lower end of a step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    sys.path[:0] = [str(parser.parse_args().checkout), str(TESTS)]
    from boxes import split
    from eval import sens_at_FP

    golden = {"rates": RATES}
    for seed in range(3):
        predictions, targets = split(images=60, seed=seed)
        for label in range(2):
            found, true = [], []
            for row in np.flatnonzero(targets["boxes_known"]):
                kept = (predictions["scores"][row] > 0) & (predictions["labels"][row] == label)
                corners = predictions["boxes"][row][kept] * PIXELS
                found.append(np.column_stack([corners, predictions["scores"][row][kept]]))
                valid = targets["box_valid"][row] & (targets["box_labels"][row] == label)
                true.append(targets["boxes"][row][valid] * PIXELS)
            for iou in (0.2, 0.5):
                golden[f"{seed}/{label}/{iou}"] = sens_at_FP(found, true, list(RATES), iou)[0][: len(RATES)]
    np.savez(Path(__file__).parent / "goldens" / "froc.npz", **golden)


if __name__ == "__main__":
    main()

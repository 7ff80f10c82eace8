"""Runs pytorch-metric-learning's losses on seeded embeddings and writes tests/references/goldens/embedding.npz.

    python tests/references/embedding.py

Needs torch and pytorch-metric-learning (written with torch 2.14.1 and pytorch-metric-learning 2.9.0). `SupConLoss` is
the supervised contrastive loss of arXiv:2004.11362 (L_out); with labels that only the two views of an image share,
`NTXentLoss` is that of arXiv:2002.05709. Both normalise their input, so gradients are of vectors of any length.
"""

from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning import losses, reducers

CASES = {  # images, dimensions, temperature, the group of each image
    "views": (6, 5, 0.1, [0, 1, 2, 3, 4, 5]),
    "groups": (8, 4, 0.5, [0, 0, 1, 2, 2, 2, 3, 4]),
    "two_groups": (5, 3, 0.07, [0, 0, 0, 1, 1]),
}


def main() -> None:
    golden = {}
    for seed, (name, (images, size, temperature, groups)) in enumerate(CASES.items()):
        views = np.random.default_rng(seed).normal(size=(2 * images, size))
        rows = torch.tensor(views, requires_grad=True)
        labels = torch.tensor(np.repeat(groups, 2))
        every = losses.SupConLoss(temperature=temperature, reducer=reducers.MeanReducer())(rows, labels)
        every.backward()
        golden |= {
            f"{name}/views": views,
            f"{name}/groups": groups,
            f"{name}/temperature": temperature,
            f"{name}/loss": every.item(),
            f"{name}/gradient": rows.grad.numpy(),
        }
        if len(set(groups)) == images:
            pairs = losses.NTXentLoss(temperature=temperature)(torch.tensor(views), labels)
            golden[f"{name}/nt_xent"] = pairs.item()
    np.savez(Path(__file__).parent / "goldens" / "embedding.npz", **golden)


if __name__ == "__main__":
    main()

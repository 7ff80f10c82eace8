"""Runs torchvision's paste_masks_in_image and writes tests/references/goldens/paste.npz.

    python tests/references/paste.py

Needs torch and torchvision (written with 2.13.0 and 0.28.0).
"""

import numpy as np
import torch
from backbones import GOLDENS, torchvision  # declares torchvision's operators before torchvision is imported

SIZE = (37, 53)


def main() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((12, 14, 14))
    corner, extent = rng.uniform(-3, 30, (12, 2)), rng.uniform(0.2, 30, (12, 2))
    extent[0] = 0.0
    boxes = np.concatenate([corner, corner + extent], 1).clip(0, [*SIZE, *SIZE])  # as detections are
    paste = torchvision.models.detection.roi_heads.paste_masks_in_image
    pasted = paste(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes[:, [1, 0, 3, 2]]), SIZE)
    np.savez(GOLDENS / "paste.npz", masks=masks, boxes=boxes, pasted=pasted[:, 0].numpy().astype(np.float32))


if __name__ == "__main__":
    main()

"""Random boxes, and detections near them, for the tests of detection and of its metrics."""

import numpy as np

CLASSES = ("Mass", "Nodule", "Fracture")


def split(images=12, seed=0):
    """Random true boxes and detections near them, some of them wrong; the last class has no true box."""
    rng = np.random.default_rng(seed)

    def near(corner, extent):
        return np.concatenate([corner, corner + extent], -1).astype(np.float32)

    corner, extent = rng.uniform(0, 0.6, (images, 4, 2)), rng.uniform(0.1, 0.4, (images, 4, 2))
    targets = {
        "boxes": near(corner, extent),
        "box_labels": rng.integers(0, 2, (images, 4)),
        "box_valid": rng.random((images, 4)) < 0.7,
        "boxes_known": np.arange(images) != 3,
    }
    twice, around = np.concatenate([corner, corner], 1), rng.normal(0, 0.04, (images, 8, 2))
    predictions = {
        "boxes": near(twice + around, np.concatenate([extent, extent], 1) * rng.uniform(0.8, 1.2, (images, 8, 2))),
        "scores": np.where(rng.random((images, 8)) < 0.2, 0, rng.random((images, 8))).astype(np.float32),
        "labels": np.where(rng.random((images, 8)) < 0.8, np.tile(targets["box_labels"], 2), 1),
    }
    return predictions, targets

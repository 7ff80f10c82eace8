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


def on_pixels(images=60, seed=0, frame=1024):
    """Boxes whose corners are whole pixels of a `frame`, as fractions of it, and detections of five classes.

    The first two are found often, with many false alarms, the third is called rarely, the fourth found without fault,
    the fifth never called. A detection of the second covers half of a true box.
    """
    predictions, targets = split(images, seed)
    rng = np.random.default_rng(seed)
    targets["box_labels"] = rng.integers(0, 5, (images, 4))
    targets["boxes_known"][:] = True
    labels = predictions["labels"] = np.tile(targets["box_labels"], 2)
    for arrays in (predictions, targets):
        arrays["boxes"] = np.round(arrays["boxes"] * (frame - 1) * 0.9)
    never = np.concatenate([~targets["box_valid"], np.ones((images, 4), bool)], 1)
    scores = np.where(predictions["scores"] > 0, predictions["scores"], rng.random((images, 8)))
    scores[((labels == 2) & (scores < 0.93)) | ((labels == 3) & never) | (labels == 4)] = 0
    predictions["boxes"][:, :4][labels[:, :4] == 3] = targets["boxes"][labels[:, :4] == 3]
    targets["boxes"][0, 0], predictions["boxes"][0, 0] = [20, 10, 29, 29], [20, 10, 29, 19]
    targets["box_valid"][0, 0], scores[0, 0] = True, 0.999
    targets["box_labels"][0, 0] = labels[0, 0] = 1
    predictions["scores"] = scores.astype(np.float32)
    for arrays in (predictions, targets):
        arrays["boxes"] = (arrays["boxes"] / frame).astype(np.float32)
    return predictions, targets

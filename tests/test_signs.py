"""Of every figure that a task gives, whether more or less of it is better: by that the best checkpoint is kept."""

import boxes
import numpy as np
import pytest

from mediax import catalog, metrics
from mediax.tasks import segmentation

ROWS = 24
LABELS = {"labels": np.eye(2)[np.arange(ROWS) % 2]}
POINTS = np.full((ROWS, 3, 2), 0.5)
BOXES = {"boxes": np.tile([0.0, 0.0, 1.0, 1.0], (ROWS, 2, 1)), "found": np.ones((ROWS, 2), int)}
PIXELS = {name: np.ones((ROWS, 2, len(segmentation.CANDIDATES)), int) for name in ("called", "overlap", "height")}
CELLS = {"cells": np.ones((ROWS, segmentation.CELLS**2, 3), np.uint16)}
# Of each task small splits, for all that it is scored by: options of the task, of its metrics, predictions, targets.
SCORED = {
    "anomaly": [
        (
            {"classes": ("a", "b")[: 1 + clusters], "head": {"name": "autoencoder", "size": (8, 8), "code": 2}}
            | {"clusters": clusters, "components": 1 + clusters},
            {},
            {"code": np.random.default_rng(0).normal(size=(ROWS, 2)), "error": np.zeros(ROWS)},
            {"labels": LABELS["labels"][:, : 1 + clusters]},
        )
        for clusters in (False, True)
    ],
    "box_regression": [({"structures": ("a", "b")}, {}, BOXES, BOXES)],
    "classification": [
        ({"classes": ("a", "b"), "exclusive": exclusive}, {}, {"scores": LABELS["labels"]}, LABELS)
        for exclusive in (False, True)
    ],
    "detection": [
        ({"box_classes": boxes.CLASSES}, options, *boxes.split())
        for options in ({}, {"scoring": "voc"}, {"scoring": "froc", "blend": 0.25})
    ],
    "embedding": [
        ({"classes": ("a", "b")}, {}, dict.fromkeys(("features", "embedding", "second_view"), LABELS["labels"]), LABELS)
    ],
    "ordinal": [({"classes": ("a", "b"), "criterion": "mse"}, {}, {"grade": np.arange(ROWS) % 2}, LABELS)],
    "registration": [
        ({}, {"categories": ("S",)}, {"keypoints": POINTS}, {"keypoints": POINTS, "category": np.zeros(ROWS, int)})
    ],
    "regression": [({"target_names": ("a", "b")}, {}, {"target": LABELS["labels"]}, {"target": LABELS["labels"]})],
    "segmentation": [
        (
            {"structures": ("a", "b"), "threshold": "f1"},
            {"pooled": True, "ratio": ("a", "b")},
            PIXELS | CELLS,
            {"area": np.ones((ROWS, 2)), "seen": np.full(ROWS, 4), "true_height": np.ones((ROWS, 2), int)},
        )
    ],
}
# A mean error ("bias") is best at 0, which no sign tells.
LESS_IS_BETTER = {
    "anomaly": set(),
    "box_regression": set(),
    "classification": {"brier", "ece"},
    "detection": set(),
    "embedding": {"alignment", "uniformity"},
    "ordinal": {"mae"},
    "registration": {"error"},
    "regression": {"mae", "rmse"},
    "segmentation": {"ratio_error"},
}


@pytest.mark.parametrize("name", catalog.names("tasks"))
def test_the_sign_of_every_figure_says_what_is_better(name):
    figures = set()
    for options, scoring, predictions, targets in SCORED[name]:
        task = catalog.load("tasks", name).Task(**{"name": "stream/task"} | options)
        calibration = task.calibrate(predictions, targets)
        found = task.metrics(predictions, targets, calibration=calibration, resamples=0, **scoring)
        figures |= {metric.name for metric in found}
    less = {figure.partition("/")[0] for figure in figures if metrics.sign(figure) < 0}
    assert figures and less == LESS_IS_BETTER[name]

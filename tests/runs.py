"""Runs of two steps on phantoms, for tests of what is done with a finished one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mediax import experiment, run


def train(
    root: Path,
    backbone: Mapping[str, Any],
    dataset: str,
    phantom: Mapping[str, Any],
    tasks: Mapping[str, Any],
    *,
    build: Mapping[str, Any] | None = None,
    transform: tuple = (),
    evaluation: Mapping[str, Any] | None = None,
    mode: str = "train",
) -> tuple[Path, Path]:
    """Trains for two steps below `root` and evaluates "test"; returns the run's folder and that of the phantom.

    With the mode "evaluate", the run that was trained before is evaluated alone.
    """
    stream = {
        "dataset": dataset,
        "build": {"size": 48} if build is None else build,
        "batch_size": 4,
        "max_boxes": 8,
        "transform": transform,
        "tasks": tasks,
    }
    config = {
        "steps": 2,
        "evaluate_every": 2,
        "checkpoint_every": 2,
        "backbone": backbone,
        "streams": {dataset: stream},
        "evaluations": {"test": {"split": "test", "during_training": True, **(evaluation or {})}},
        "best": {"metric": "test/loss", "mode": "min"},
        "resamples": 0,
        "phantom": {dataset: phantom},
    }
    folders = experiment.Folders(None, root / "data", root / "run")
    run.run(experiment.complete(config), folders, mode=mode, arguments=[])
    (raw,) = (root / "data" / "mediax_phantoms").glob(f"{dataset}-*")
    return root / "run", raw

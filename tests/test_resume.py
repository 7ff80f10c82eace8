"""A run that is killed or told to stop ends, once it is started again, in the same bytes as one left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest

from mediax.preemption import EXIT_CODE

ROOT = Path(__file__).parent.parent
STEPS = 24
CONFIG = f"""
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({{
        "steps": {STEPS}, "log_every": 2, "evaluate_every": 8, "checkpoint_every": 3, "ema_decay": 0.9, "resamples": 20,
        "phantom": {{"medmnist": {{"train": 64, "validation": 16, "test": 16}}}},
        "backbone": {{
            "name": "resnet", "options": {{"variant": "18", "depths": (1, 1), "width": 0.1, "drop_path": 0.2}},
        }},
        "streams": {{"pneumonia": {{
            "dataset": "medmnist", "build": {{"flag": "pneumoniamnist"}}, "batch_size": 16,
            "transform": ({{"name": "random_affine", "rotate": 10}}, {{"name": "random_noise", "std": 0.02}}),
            "batch_transform": ({{"name": "mixup", "alpha": 0.2}},),
            "tasks": {{"classification": {{"head": {{"name": "pooled", "dropout": 0.1}}}}}},
        }}}},
        "evaluations": {{
            "validation": {{"split": "validation", "during_training": True, "batch_size": 16}},
            "test": {{"split": "test", "batch_size": 16}},
        }},
        "optimizer": {{"peak": 1e-3, "warmup_steps": 4}},
    }})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "config.py").write_text(CONFIG)
    return folder


def _command(folder: Path, workdir: str, workers: int = 0) -> list[str]:
    command = [sys.executable, "-m", "mediax.main", f"--config={folder / 'config.py'}"]
    return [*command, f"--workdir={folder / workdir}", f"--data_dir={folder / 'data'}", f"--config.workers={workers}"]


def _run(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(_command(*arguments, **options), cwd=ROOT, capture_output=True, text=True)


def _stop_at(step: int, number: signal.Signals, *arguments, **options) -> int:
    """Starts a run, sends it a signal once its log has reached `step`, and returns its exit code."""
    log = arguments[0] / arguments[1] / "metrics.jsonl"
    # A process group of its own, so that the signal of a kill reaches the workers too, as that of a scheduler does.
    process = subprocess.Popen(
        _command(*arguments, **options), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    while process.poll() is None and not (log.exists() and f'"step": {step},' in log.read_text()):
        time.sleep(0.01)
    os.killpg(process.pid, number)
    return process.wait()


def _ending(workdir: Path):
    """Reads all that a run ends with: the arrays of its last checkpoint, its places in the data, its log."""
    last = workdir / "checkpoints" / "latest" / str(STEPS)
    restored = ocp.CheckpointManager(last.parent).restore(
        STEPS, args=ocp.args.Composite(state=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore())
    )
    arrays = {
        str(path): np.asarray(leaf).tobytes()
        for path, leaf in ocp.tree.to_flat_dict(restored.state, sep="/").items()
        if leaf is not None
    }
    return arrays, restored.progress, (workdir / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def left_alone(folder):
    run = _run(folder, "alone")
    assert run.returncode == 0, run.stderr
    return _ending(folder / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [4, 12, 20])
def test_killed_at_any_step_and_started_again(folder, left_alone, step, workers):
    name = f"killed-{step}-{workers}"
    assert _stop_at(step, signal.SIGKILL, folder, name, workers=workers) == -signal.SIGKILL
    assert not (folder / name / "results.json").exists()
    resumed = _run(folder, name, workers=workers)
    assert resumed.returncode == 0, resumed.stderr
    arrays, progress, log = _ending(folder / name)
    expected_arrays, expected_progress, expected_log = left_alone
    assert arrays.keys() == expected_arrays.keys() and len(arrays) > 20
    assert [path for path in arrays if arrays[path] != expected_arrays[path]] == []
    assert progress == expected_progress and progress["positions"] == {"pneumonia": STEPS}
    assert log == expected_log
    results = json.loads((folder / name / "results.json").read_text())["results"]
    assert results == json.loads((folder / "alone" / "results.json").read_text())["results"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_saves_and_asks_for_another_start(folder, left_alone, workers):
    name = f"stopped-{workers}"
    assert _stop_at(6, signal.SIGTERM, folder, name, workers=workers) == EXIT_CODE
    saved = ocp.CheckpointManager(folder / name / "checkpoints" / "latest").latest_step()
    assert 6 <= saved < STEPS
    assert _run(folder, name, workers=workers).returncode == 0
    assert _ending(folder / name) == left_alone


@pytest.mark.slow
def test_another_config_does_not_continue_a_run(folder, left_alone):
    run = subprocess.run(
        [*_command(folder, "alone"), "--config.optimizer.peak=0.5"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2 and "optimizer.peak: 0.001 -> 0.5" in run.stderr and "Traceback" not in run.stderr

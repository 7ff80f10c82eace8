"""Two processes of one job, as `srun` starts them, train one model, stop together and go on together."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_resume import CONFIG, ROOT

from mediax.preemption import EXIT_CODE

pytestmark = pytest.mark.slow

# Nothing that is drawn for the rows of one process or for a place in the batch: both hold other rows.
RANDOM = ('"drop_path": 0.2', '"dropout": 0.1', '{"name": "mixup", "alpha": 0.2},')
ALIKE = functools.reduce(lambda config, words: config.replace(words, ""), RANDOM, CONFIG)


def _start(folder: Path, workdir: str, *, job: int, count: int = 2, devices: int = 1) -> list[subprocess.Popen]:
    """Starts a run in `count` processes, with the variables that SLURM gives to each."""
    (folder / "config.py").write_text(ALIKE)
    command = [sys.executable, "-m", "mediax.main", f"--config={folder / 'config.py'}"]
    command += [f"--workdir={folder / workdir}", f"--data_dir={folder / 'data'}", f"--config.cpu_devices={devices}"]
    processes = []
    for rank in range(count):
        slurm = {
            "JOB_ID": job,
            "STEP_NODELIST": "localhost",
            "STEP_NUM_TASKS": count,
            "NTASKS": count,
            "PROCID": rank,
            "LOCALID": rank,
        }
        environment = os.environ | {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        log = (folder / f"{workdir}-{rank}.log").open("a")
        processes.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
        )
    return processes


def _codes(processes: list[subprocess.Popen]) -> list[int]:
    return [process.wait(timeout=600) for process in processes]


def _losses(folder: Path, workdir: str) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / workdir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["train/pneumonia/loss"] for row in rows if "train/pneumonia/loss" in row}


def test_two_processes_train_as_one_with_two_devices(tmp_path):
    assert _codes(_start(tmp_path, "one", job=1, count=1, devices=2)) == [0]
    assert _codes(_start(tmp_path, "two", job=2)) == [0, 0]
    one, two = (_losses(tmp_path, workdir) for workdir in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 3
    np.testing.assert_allclose([*two.values()], [*one.values()], rtol=1e-3)
    results = json.loads((tmp_path / "two" / "results.json").read_text())["results"]
    assert {result["evaluation"] for result in results} == {"validation", "test"}
    assert (tmp_path / "two" / "samples_test.png").is_file()  # of rows that both processes ran once more
    assert [metric["n"] for metric in results[0]["metrics"] if metric["name"] == "auroc/macro"] == [16]
    for workdir in ("one", "two"):
        out = tmp_path / f"{workdir}_predicted"
        command = [sys.executable, "-m", "mediax.predict", f"--workdir={tmp_path / workdir}", f"--out={out}"]
        subprocess.run([*command, str(ROOT / "docs" / "phantom_chest.png")], cwd=ROOT, check=True)
        assert (out / "predictions.csv").read_text().count("phantom_chest.png") == 1


def test_two_processes_stop_together_and_resume(tmp_path):
    processes, log = _start(tmp_path, "run", job=3), tmp_path / "run" / "metrics.jsonl"
    while all(process.poll() is None for process in processes) and not (
        log.exists() and '"step": 4,' in log.read_text()
    ):
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert _codes(processes) == [EXIT_CODE] * 2
    assert not (tmp_path / "run" / "results.json").exists()
    assert _codes(_start(tmp_path, "run", job=4)) == [0, 0]
    assert [*_losses(tmp_path, "run")] == list(range(2, 25, 2))

"""Bad input, given as a user would: one clear message, exit status 2, no traceback, nothing half-written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mediax.datasets import chexpert

ROOT = Path(__file__).parent.parent
CONFIG = """
from ml_collections import ConfigDict

def get_config(variant=""):
    if variant:
        raise ValueError(f"no variant {variant!r}")
    return ConfigDict({
        "steps": 2, "log_every": 1, "evaluate_every": 2, "checkpoint_every": 2, "resamples": 0,
        "backbone": {"name": "resnet", "options": {"variant": "18", "depths": (1, 1), "width": 0.1}},
        "streams": {"chexpert": {
            "dataset": "chexpert", "build": {"size": 32, "views": "frontal"}, "batch_size": 8,
            "tasks": {"classification": {}},
        }},
        "evaluations": {"validation": {"split": "valid", "during_training": True}},
    })
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors")
    (folder / "config.py").write_text(CONFIG)
    chexpert.phantom(folder / "raw" / "chexpert", patients=10, valid_patients=3, release="small", size=40)
    return folder


@pytest.fixture
def raw(tree, tmp_path):
    """Gives a copy of the raw tree to break."""
    subprocess.run(["cp", "-r", tree / "raw", tmp_path / "raw"], check=True)
    return tmp_path / "raw"


def _fails(tree, tmp_path, *words, arguments=(), config="", environment=None):
    """Runs the program and asserts that it stops with one message holding all `words`."""
    command = [sys.executable, "-m", "mediax.main", f"--config={config or tree / 'config.py'}"]
    command += [f"--workdir={tmp_path / 'work'}", f"--data_dir={tmp_path / 'built'}", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | (environment or {}))
    message = run.stderr.partition("mediax: ")[2]
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    for word in words:
        assert word in message, run.stderr
    leftovers = [path for path in (tmp_path / "built").glob("chexpert/*/*") if path.name[0].isdigit()]
    assert not leftovers, "a failed build left a folder that looks built"


def _table(raw):
    return raw / "chexpert" / "CheXpert-v1.0-small" / "train.csv"


def _images(raw):
    return sorted((raw / "chexpert" / "CheXpert-v1.0-small" / "train").rglob("*frontal.jpg"))


@pytest.mark.slow
def test_missing_data(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ("raw data of CheXpert", str(tmp_path / "empty"), "licence", "expected", "train.csv", ":phantom")
    _fails(tree, tmp_path, *words, arguments=[f"--manual_dir={tmp_path / 'empty'}"])


@pytest.mark.slow
def test_corrupt_image(tree, raw, tmp_path):
    broken = _images(raw)[3]
    broken.write_bytes(broken.read_bytes()[:300])
    _fails(tree, tmp_path, str(broken), "train.csv, line", "skip", arguments=[f"--manual_dir={raw}"])


@pytest.mark.slow
def test_absent_image(tree, raw, tmp_path):
    absent = _images(raw)[3]
    absent.unlink()
    _fails(tree, tmp_path, absent.name, "train.csv, line", arguments=[f"--manual_dir={raw}"])


@pytest.mark.slow
def test_unknown_column(tree, raw, tmp_path):
    table = _table(raw)
    table.write_text(table.read_text().replace("Edema", "Oedema", 1))
    _fails(tree, tmp_path, str(table), "Edema", arguments=[f"--manual_dir={raw}"])


@pytest.mark.slow
def test_unknown_label(tree, raw, tmp_path):
    table = _table(raw)
    lines = table.read_text().splitlines()
    lines[4] = lines[4].rpartition(",")[0] + ",maybe"
    table.write_text("\n".join(lines))
    _fails(tree, tmp_path, "train.csv, line 5", "maybe", arguments=[f"--manual_dir={raw}"])


@pytest.mark.slow
def test_patient_in_two_splits(tree, raw, tmp_path):
    release = raw / "chexpert" / "CheXpert-v1.0-small"
    patient = next((release / "valid").iterdir())
    subprocess.run(["cp", "-r", patient, release / "train" / patient.name], check=True)
    row = next(line for line in (release / "valid.csv").read_text().splitlines() if patient.name in line)
    table = _table(raw)
    table.write_text(table.read_text().rstrip("\n") + "\n" + row.replace("/valid/", "/train/") + "\n")
    _fails(tree, tmp_path, "train.csv", "valid", "one split only", arguments=[f"--manual_dir={raw}"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.optimiser.peak=1", ("optimiser", "optimizer")),
        ("--config.steps=many", ("steps", "many")),
        ("--config.backbone.name=resnett", ("did you mean 'resnet'",)),
        ("--config.backbone.options={'variannt': '18'}", ("no option 'variannt'", "did you mean 'variant'")),
        ("--config.best.metric=validation/classification/auc", ("no figure", "auroc/macro")),
        ("--config.sharding=fspd", ("did you mean 'fsdp'",)),
        ("--config.precision=bf16", ("no 'bf16'", "bfloat16")),
    ],
)
def test_config_typo(tree, tmp_path, argument, words):
    run = subprocess.run(
        [sys.executable, "-m", "mediax.main", f"--config={tree / 'config.py'}", argument]
        + [f"--workdir={tmp_path}", f"--manual_dir={tree / 'raw'}", f"--data_dir={tree / 'built'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    for word in words:
        assert word in run.stderr.partition("mediax: ")[2], run.stderr


@pytest.mark.slow
def test_config_file_typos(tree, tmp_path):
    _fails(tree, tmp_path, "no file", "configs/chexpert_convnext.py", config="configs/chexpert_convnxt.py")
    _fails(tree, tmp_path, "no variant 'fantom'", config=f"{tree / 'config.py'}:fantom")
    misspelt = tmp_path / "misspelt.py"
    misspelt.write_text(CONFIG.replace('"batch_size"', '"batchsize"'))
    _fails(tree, tmp_path, "streams.chexpert.batchsize", "did you mean 'batch_size'", config=misspelt)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_step(tree, tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "mediax.main", f"--config={tree / 'config.py'}", "--config.optimizer.peak=1e30"]
        + ["--config.steps=20", "--config.clip_norm=0.0", "--config.evaluate_every=20", f"--workdir={tmp_path}"]
        + [f"--manual_dir={tree / 'raw'}", f"--data_dir={tree / 'built'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    assert "at step" in run.stderr and "--config.optimizer.peak" in run.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the kernel's always-full device")
def test_full_disk_while_training(tree, tmp_path):
    """The log is the first thing that a run writes; here it lands on a device that is always full."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "metrics.jsonl").symlink_to("/dev/full")
    words = ("metrics.jsonl", "No space left")
    run = subprocess.run(
        [sys.executable, "-m", "mediax.main", f"--config={tree / 'config.py'}", f"--workdir={tmp_path / 'work'}"]
        + [f"--manual_dir={tree / 'raw'}", f"--data_dir={tree / 'built'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    for word in words:
        assert word in run.stderr


def test_full_disk_while_saving(tmp_path, monkeypatch):
    from mediax.checkpoint import Checkpoints
    from mediax.errors import InputError

    checkpoints = Checkpoints(tmp_path, "latest")
    monkeypatch.setattr(
        checkpoints._manager, "save", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(InputError, match="the disk is full"):
        checkpoints.save(1, {"x": np.zeros(2)}, {}, {})


def test_a_damaged_checkpoint_is_named(tmp_path):
    import jax

    from mediax.checkpoint import Checkpoints, abstract
    from mediax.errors import InputError

    state = {"x": jax.numpy.arange(1000.0)}
    checkpoints = Checkpoints(tmp_path, "latest")
    checkpoints.save(1, state, {"positions": {}}, {})
    checkpoints.close()
    for path in (tmp_path / "checkpoints" / "latest" / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    sharding = jax.tree.map(lambda array: array.sharding, state)
    with pytest.raises(InputError, match="checkpoints/latest/1: the checkpoint cannot be read"):
        Checkpoints(tmp_path, "latest").restore(abstract(state, sharding))

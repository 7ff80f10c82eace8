"""Bad input, given as a user would: one clear message, exit status 2, no traceback, nothing half-written."""

import errno
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mediax.checkpoint import Checkpoints, abstract
from mediax.datasets import chexpert
from mediax.errors import InputError

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


def _message(tree, folder, *arguments, config="", built="built"):
    """Runs the program, asserts that it stops on bad input without a traceback, and returns its message."""
    command = [sys.executable, "-m", "mediax.main", f"--config={config or tree / 'config.py'}"]
    command += [f"--workdir={folder / 'work'}", f"--data_dir={folder / built}", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    return run.stderr.partition("mediax: ")[2]


def _fails(tree, folder, *words, arguments=(), config=""):
    """Asserts that the message holds all `words`, and that no half-built set is left behind."""
    message = _message(tree, folder, *arguments, config=config)
    for word in words:
        assert word in message, message
    leftovers = [path for path in (folder / "built").glob("chexpert/*/*") if path.name[0].isdigit()]
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
    lines = (release / "valid.csv").read_text().splitlines()
    row = next(line for line in lines if patient.name in line and "frontal" in line)
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
    message = _message(tree, tmp_path, argument, f"--manual_dir={tree / 'raw'}", built=tree / "built")
    for word in words:
        assert word in message, message


@pytest.mark.slow
def test_config_file_typos(tree, tmp_path):
    _fails(tree, tmp_path, "no file", "configs/chexpert_convnext.py", config="configs/chexpert_convnxt.py")
    _fails(tree, tmp_path, "no variant 'fantom'", config=f"{tree / 'config.py'}:fantom")
    misspelt = tmp_path / "misspelt.py"
    misspelt.write_text(CONFIG.replace('"batch_size"', '"batchsize"'))
    _fails(tree, tmp_path, "streams.chexpert.batchsize", "did you mean 'batch_size'", config=misspelt)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_names_its_step(tree, tmp_path):
    arguments = ["--config.optimizer.peak=1e30", "--config.clip_norm=0.0", "--config.steps=20"]
    arguments += ["--config.evaluate_every=20", f"--manual_dir={tree / 'raw'}"]
    message = _message(tree, tmp_path, *arguments, built=tree / "built")
    assert "at step" in message and "--config.optimizer.peak" in message


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the kernel's always-full device")
def test_full_disk_while_training(tree, tmp_path):
    """The log is the first thing that a run writes; here it lands on a device that is always full."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "metrics.jsonl").symlink_to("/dev/full")
    message = _message(tree, tmp_path, f"--manual_dir={tree / 'raw'}", built=tree / "built")
    assert "metrics.jsonl" in message and "No space left" in message


def test_full_disk_while_saving(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, "latest")

    def save(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", save)
    with pytest.raises(InputError, match="the disk is full"):
        checkpoints.save(1, {"x": np.zeros(2)}, {}, {})


def test_a_damaged_checkpoint_is_named(tmp_path):
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

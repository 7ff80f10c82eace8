"""The exercises of miniJSRT: every variant of the config, two of them for a few steps, all of them to their bars."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mediax import catalog, experiment, protocols, run
from mediax.errors import InputError

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "minijsrt.py"
# Of each exercise the figure of the test split, and what it is to reach on the phantom.
BARS = {
    "directions": ("top1_accuracy", 1.0),
    "gender": ("top1_accuracy", 0.95),
    "age": ("mae", 6.0),
    "lung": ("iou/macro", 0.95),
    "organs": ("iou/macro", 0.80),
    "boxes": ("iou/macro", 0.90),
    "anomaly": ("accuracy", 1.0),
    "clusters": ("accuracy", 0.956),
}
AT_MOST = {"mae"}


@pytest.mark.parametrize("words", ["", ",phantom"])
@pytest.mark.parametrize("exercise", BARS)
def test_every_exercise_is_a_variant(exercise, words):
    config = experiment.load_config(f"{CONFIG}:{exercise}{words}").to_dict()
    assert experiment.complete(config) == config and bool(config["phantom"]) == bool(words)
    (stream,) = config["streams"].values()
    assert list(stream["tasks"]) == [exercise]
    module = catalog.load("datasets", stream["dataset"])
    assert module.Builder(config=stream["build"]).builder_config.size == stream["build"]["size"]
    # Nothing is chosen by the test split: not the step, for there is one evaluation, and not a threshold.
    assert config["evaluate_every"] > config["steps"]
    during = {name: spec["split"] for name, spec in config["evaluations"].items() if spec["during_training"]}
    assert during == {"training": "train"} and config["best"]["metric"] == "training/loss"
    assert config["evaluations"]["test"]["split"] == "test" and not config["evaluations"]["test"]["calibrate_on"]
    # What heads the table is what the exercise asks for, and both splits are scored alike.
    (protocol,) = {spec["protocol"] for spec in config["evaluations"].values()}
    assert protocols.get(protocol).headline[0] == BARS[exercise][0] and "miniJSRT" in protocols.get(protocol).source


def test_another_exercise_is_refused():
    for variant in ("hearts", "age,gender"):
        with pytest.raises(InputError, match=rf"no variant '{variant}'; .*Valid: age, anomaly, boxes"):
            experiment.load_config(f"{CONFIG}:{variant}")


def results_of(folder):
    results = json.loads((folder / "results.json").read_text())["results"]
    return {one["evaluation"]: {metric["name"]: metric for metric in one["metrics"]} for one in results}


@pytest.mark.parametrize(
    ("exercise", "backbone", "figures"),
    [
        ("boxes", {"variant": "18", "depths": (1, 1), "width": 0.1}, {"samples_test.png"}),
        ("anomaly", {"widths": (4, 8)}, {"samples_test.png", "roc_test.png", "scores_test.png"}),
    ],
)
def test_a_run_of_two_steps(exercise, backbone, figures, tmp_path):
    config = experiment.load_config(f"{CONFIG}:{exercise},phantom")
    config.update({"steps": 2, "resamples": 20})
    config.backbone.options = backbone
    stream = config.streams.minijsrt
    stream.batch_size, stream.build.size = 4, 32
    config.phantom = {stream.dataset: {"train": 12, "test": 6, "size": 32}}
    if exercise == "anomaly":
        stream.tasks.anomaly.update({"dimensions": 2, "head": {"size": (32, 32), "code": 4}})
    folders = experiment.Folders(manual=None, data=tmp_path / "data", work=tmp_path / "run")
    run.run(config, folders, mode="train", arguments=[])
    name = BARS[exercise][0]
    found = results_of(tmp_path / "run")
    assert 0 <= found["test"][name]["low"] <= found["test"][name]["value"] <= found["test"][name]["high"] <= 1
    assert found["test"][name]["n"] == 6 and found["training"][name]["n"] == 12
    assert 0 <= found["test"][name]["trivial"] <= 1
    for figure in figures:
        assert min(Image.open(tmp_path / "run" / figure).size) > 150
    calibration = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert calibration["test"] == calibration["training"] and calibration["test"][exercise]


@pytest.mark.slow
@pytest.mark.parametrize("exercise", BARS)
def test_the_bars_on_the_phantom(exercise, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "exercises"
    command = [sys.executable, "-m", "mediax.main", f"--config={CONFIG}:{exercise},phantom"]
    done = subprocess.run(
        [*command, f"--workdir={folder / exercise}", f"--data_dir={folder / 'data'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    metric, bar = BARS[exercise]
    value = results_of(folder / exercise)["test"][metric]["value"]
    assert value <= bar if metric in AT_MOST else value >= bar

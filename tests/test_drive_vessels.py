"""The vessel segmenter: small enough, nothing chosen by the test images, and a phantom that is as hard as DRIVE."""

import json

import cv2
import jax
import numpy as np
import pytest
from flax import nnx

from mediax import catalog, experiment, photographs, run
from mediax.datasets import drive
from mediax.phantoms import fundus

CONFIG = experiment.ROOT / "configs" / "drive_vessels.py"
VARIANTS = [f"{name}{end}" for name in ("drive", "stare", "hrf", "chase_db1") for end in ("", ",phantom")]


def _config(variant):
    return experiment.load_config(f"{CONFIG}:{variant}").to_dict()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_network_has_at_most_100_000_parameters(variant):
    config = _config(variant)
    backbone = config["backbone"]
    options = backbone["options"] | {"in_channels": backbone["channels"]}
    (task,) = config["streams"]["vessels"]["tasks"].values()
    head = dict(task["head"])
    source = catalog.load("heads", head.pop("name"))

    def network():
        encoder = catalog.load("backbones", backbone["name"]).Backbone(**options, rngs=nnx.Rngs(0))
        return encoder, source.Head(encoder.channels, 1, **head, rngs=nnx.Rngs(0))

    params = [nnx.state(part, nnx.Param) for part in nnx.eval_shape(network)]
    assert 50_000 < sum(array.size for array in jax.tree.leaves(params)) <= 100_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_chosen_by_the_test_images(variant):
    config = _config(variant)
    (stream,) = config["streams"].values()
    training, test = config["evaluations"]["training"], config["evaluations"]["test"]
    assert stream["split"] == training["split"] == "train+tuning" and test["split"] == "test"
    assert test["calibrate_on"] == "training" and config["best"] == {"metric": "training/loss", "mode": "min"} | {
        "patience": 0
    }
    assert config["evaluate_every"] > config["steps"]
    # Thresholds hold for what is seen the same way.
    for field in ("flips", "window", "overlap", "transform", "protocol"):
        assert training[field] == test[field]
    assert not any(step["name"].startswith("random") for step in test["transform"])
    assert test["protocol"] == "vessels"
    module = catalog.load("datasets", stream["dataset"])
    options = {"size": None, "aspect": "stretch"} | stream["build"]
    assert vars(module.Builder(config=stream["build"] or None).builder_config).items() >= options.items()


def vesselness(image, seen):
    """Frangi et al. (MICCAI 1998) on the green channel without its local mean, f64[H,W]; 0 at the rim of the field."""
    view = seen.astype(np.float64)
    mean = cv2.GaussianBlur(image[..., 1] * view, (0, 0), 20) / np.maximum(cv2.GaussianBlur(view, (0, 0), 20), 1e-3)
    flat, highest = np.where(seen, image[..., 1] - mean, 0), np.zeros(seen.shape)
    for sigma in (1, 1.5, 2, 2.5, 3):
        down, right = np.gradient(cv2.GaussianBlur(flat, (0, 0), sigma))
        (down_down, down_right), right_right = np.gradient(down), np.gradient(right, axis=1)
        middle = (down_down + right_right) / 2
        spread = np.hypot((down_down - right_right) / 2, down_right)
        small, large = np.abs(middle) - spread, middle + np.sign(middle) * spread  # curvatures along and across
        strength = np.hypot(small, large)
        lines = np.exp(-2 * (small / np.where(large, large, 1)) ** 2)
        lines *= 1 - np.exp(-2 * (strength / np.percentile(strength, 99)) ** 2)
        highest = np.maximum(highest, np.where(large > 0, lines, 0))  # dark lines
    return np.where(cv2.erode(seen.astype(np.uint8), np.ones((11, 11))), highest, 0)


def _f1(called, truth):
    return 2 * (called & truth).sum() / (called.sum() + truth.sum())


def test_the_phantom_is_as_hard_as_drive():
    """On DRIVE the second reader has an F1 of 0.79 in view, and a thresholded vesselness filter about 0.7."""
    options = _config("drive,phantom")["phantom"]["drive"]
    readings, truths, filtered = [], [], []
    for key in ("01", "08", "15", "20"):
        photo = drive.phantom_photograph(0, key, 584, options["difficulty"])
        seen, seed = photo.masks["Field of View"], photographs.seed_of(0, key)
        truths.append(fundus.first_reader(photo.masks, seed, options["first_reader_error"])["Vessels"][seen])
        readings.append(fundus.second_reader(photo.masks, seed)["Vessels"][seen])
        filtered.append(vesselness(photo.image, seen)[seen])
    reading, truth, filtered = map(np.concatenate, (readings, truths, filtered))
    assert 0.10 < truth.mean() < 0.14
    assert _f1(reading, truth) == pytest.approx(0.79, abs=0.02)
    thresholds = np.quantile(filtered, np.linspace(0.7, 0.99, 60))
    assert max(_f1(filtered > threshold, truth) for threshold in thresholds) == pytest.approx(0.70, abs=0.02)


@pytest.mark.slow
def test_it_learns_vessels_on_the_phantom(tmp_path):
    """On photographs of a quarter of the size it comes far above calling everything a vessel, in half a minute."""
    config = _config("drive,phantom")
    config["phantom"]["drive"] = {"images": 8, "size": 146}
    (stream,) = config["streams"].values()
    stream["transform"] = [step | ({"size": 96} if "size" in step else {}) for step in stream["transform"]]
    config |= {"steps": 150, "resamples": 0}
    folders = experiment.Folders(None, tmp_path / "data", tmp_path / "run")
    run.run(experiment.complete(config), folders, mode="train", arguments=[])
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    (test,) = (one for one in results if one["evaluation"] == "test")
    figures = {metric["name"]: metric for metric in test["metrics"]}
    assert figures["pixel_f1/macro"]["value"] > 0.6
    assert figures["pixel_auroc/macro"]["value"] > 0.9
    assert 0.5 < figures["pixel_f1/macro"]["reader"] < 1

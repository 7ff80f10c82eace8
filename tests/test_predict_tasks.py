"""Predicting on files with every kind of task: what a run's evaluation gave of its images, files give too."""

import csv
import json

import numpy as np
import pydicom
import pytest
import runs
from PIL import Image

from mediax import annotations, dicom, images, predict, rle
from mediax.tasks import anomaly

RESNET = {"name": "resnet", "options": {"variant": "18", "depths": (1, 1), "width": 0.125}}
GREY, COLOUR = ({**RESNET, "channels": channels} for channels in (1, 3))


def _predicted(workdir, files, out):
    """Predicts on files, of which none may fail, and gives the rows of predictions.csv and the evaluation's arrays."""
    network = predict.Network(workdir)
    assert predict.predict(network, files, out) == 0
    (path,) = (workdir / "predictions").glob("test_*.npz")
    with np.load(path) as arrays:
        return _rows(out), dict(arrays)


def _rows(out):
    with open(out / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def _assert_among(evaluated, predicted):
    """Every row [N,...] that was evaluated is one of those predicted on more files."""
    differences = np.abs(np.asarray(evaluated)[:, None] - np.asarray(predicted)).reshape(
        *map(len, (evaluated, predicted)), -1
    )
    assert len(evaluated) and differences.max(-1).min(1).max() < 1e-3


def test_a_grader_of_pairs(tmp_path, capsys):
    tasks = {"ordinal": {"pairs": True, "criterion": "mse"}}
    phantom = {"patients": 3, "test_patients": 3, "size": 48}
    workdir, raw = runs.train(tmp_path, COLOUR, "eyepacs", phantom, tasks)
    rows, arrays = _predicted(workdir, sorted(raw.rglob("test/*.jpeg")), tmp_path / "out")
    _assert_among(arrays["prediction/grade"], [float(row["grade"]) for row in rows])
    thresholds = json.loads((workdir / "calibration.json").read_text())["test"]["ordinal"]["thresholds_alone"]
    for row in rows:
        called = [name for name, value in row.items() if name.endswith(" called") and value == "1"]
        grade = np.searchsorted(thresholds, float(row["grade"]), side="right")
        assert called == [f"{('No', 'Mild', 'Moderate', 'Severe', 'Proliferative')[grade]} Diabetic Retinopathy called"]
    notes = [line for line in capsys.readouterr().err.splitlines() if "`pairs` is not used" in line]
    assert len(notes) == 1 and "task 'eyepacs/ordinal'" in notes[0]


def test_a_regressor(tmp_path):
    tasks = {"regression": {"target_names": ("age in years",), "mean": (58.0,), "std": (14.0,)}}
    workdir, raw = runs.train(tmp_path, GREY, "minijsrt_age", {"train": 4, "test": 4, "size": 48}, tasks)
    rows, arrays = _predicted(workdir, sorted(raw.rglob("*.jpg")), tmp_path / "out")
    _assert_among(arrays["prediction/target"][:, 0], [float(row["age in years"]) for row in rows])


def test_regressed_boxes_of_mirrored_copies_too(tmp_path):
    evaluation = {"flips": ("horizontal", "vertical")}
    phantom = {"train": 4, "test": 3, "size": 60}
    workdir, raw = runs.train(tmp_path, GREY, "minijsrt_organs", phantom, {"box_regression": {}}, evaluation=evaluation)
    rows, arrays = _predicted(workdir, sorted(raw.rglob("org_test/*")), tmp_path / "out")
    coco = json.loads((tmp_path / "out" / "boxes.json").read_text())
    assert [category["name"] for category in coco["categories"]] == ["Lungs", "Heart", "Body"]
    boxes = np.array([box["bbox"] for box in coco["annotations"]]).reshape(len(rows), 3, 4)
    corners = np.concatenate([boxes[..., 1::-1], (boxes[..., :2] + boxes[..., 2:])[..., ::-1]], -1)
    sizes = np.array([[one["height"], one["width"]] * 2 for one in coco["images"]])[:, None]
    _assert_among(arrays["prediction/boxes"], corners / sizes)
    assert all(row[f"{name} boxes"] == "1" for row in rows for name in ("Lungs", "Heart", "Body"))


def test_files_are_seen_as_the_images_were_that_thresholds_are_from(tmp_path):
    """Where a run was evaluated again, with other evaluations than in training, those of the thresholds hold."""
    arguments = (tmp_path, GREY, "siim_acr", {"count": 12, "test_count": 4, "size": 48}, {"classification": {}})
    scores = []
    for mode, flips in (("train", ()), ("evaluate", ("horizontal", "vertical"))):
        workdir, raw = runs.train(*arguments, evaluation={"flips": flips}, mode=mode)
        rows, arrays = _predicted(workdir, sorted(raw.rglob("*.dcm")), tmp_path / f"out_{mode}")
        scores.append([float(row["Pneumothorax"]) for row in rows])
        _assert_among(arrays["prediction/scores"][:, 0], scores[-1])
    assert np.abs(np.subtract(*scores)).max() > 0


@pytest.mark.parametrize(
    ("options", "scored"),
    [
        ({"score": "reconstruction"}, "error"),
        ({"features": "dissimilarity", "grid": 2, "sigma": 1.5}, "dissimilarity"),
    ],
)
def test_an_autoencoder(options, scored, tmp_path):
    backbone = {"name": "autoencoder", "channels": 1, "mean": (0.0,), "std": (1.0,), "options": {"widths": (4, 4)}}
    tasks = {"anomaly": {"head": {"name": "autoencoder", "size": (48, 48), "code": 4}} | options}
    workdir, raw = runs.train(tmp_path, backbone, "minijsrt_anomaly", {"train": 4, "test": 24, "size": 48}, tasks)
    files = sorted(path for path in raw.rglob("*.*") if path.name.lower().endswith(images.SUFFIXES))
    rows, arrays = _predicted(workdir, files, tmp_path / "out")
    scores = [float(row["Anomaly"]) for row in rows]
    calibration = json.loads((workdir / "calibration.json").read_text())["test"]["anomaly"]
    expected = arrays["prediction/error"]
    if scored == "dissimilarity":
        expected = -np.logaddexp.reduce(anomaly.component_log_densities(arrays[f"prediction/{scored}"], calibration), 1)
    _assert_among(expected, scores)
    threshold = calibration["threshold"]
    assert [row["Anomaly called"] for row in rows] == [str(int(score >= threshold)) for score in scores]


def test_a_segmenter_of_a_fundus_calls_nothing_outside_of_the_field_of_view(tmp_path):
    """With windows and mirrored copies; where a network calls all pixels, those of the field of view are left."""
    backbone = {"name": "unet_encoder", "channels": 3, "options": {"variant": "eighth", "levels": 2}}
    tasks = {"segmentation": {"head": {"name": "unet", "widths": (8,), "output_size": 1}, "threshold": "f1"}}
    crop = ({"name": "random_crop", "size": 32},)
    evaluation = {"window": (48, 48), "flips": ("horizontal", "vertical", "both")}
    options = {"build": {}, "transform": crop, "evaluation": evaluation}
    workdir, raw = runs.train(tmp_path, backbone, "drive", {"images": 4, "size": 73}, tasks, **options)
    files = sorted(raw.rglob("test/images/*"))[:2]
    pixels = images.read(files[0])
    dicom.write(tmp_path / "photograph.dcm", pixels)
    network = predict.Network(workdir)
    called = {}
    for name, change in (("as calibrated", {}), ("all", {"thresholds": [0.0]})):
        network._calibration["drive"]["segmentation"] |= change
        assert predict.predict(network, [*files, tmp_path / "photograph.dcm"], tmp_path / name) == 0
        for row in _rows(tmp_path / name):
            mask = np.asarray(Image.open(tmp_path / name / "masks" / row["name"] / "Vessels.png")) > 0
            assert int(row["Vessels pixels"]) == mask.sum()
            called[name, row["name"]] = mask
    for (name, file), mask in called.items():
        photograph = pixels if file == "photograph" else images.read(next(one for one in files if one.stem == file))
        seen = annotations.field_of_view(photograph) > 0
        assert seen.any() and not seen.all() and not mask[~seen].any()
        assert name != "all" or mask[seen].all()
    segmentation = pydicom.dcmread(tmp_path / "all" / "masks" / "photograph_seg.dcm").pixel_array
    np.testing.assert_array_equal(np.atleast_3d(segmentation).reshape(-1, *pixels.shape[:2]).max(0) > 0, seen)
    np.testing.assert_array_equal(called["as calibrated", "photograph"], called["as calibrated", files[0].stem])


def _assert_same_boxes(arrays, coco):
    """The scores of an evaluated image are those of a file; no box is a double of a better one of its class."""
    count = arrays["prediction/scores"].shape[1]
    scores = np.zeros((len(coco["images"]), count))
    for box in coco["annotations"]:
        scores[box["image_id"] - 1, np.argmin(scores[box["image_id"] - 1])] = box["score"]
    _assert_among(np.sort(arrays["prediction/scores"]), np.sort(scores))
    for boxes, labels, found in zip(*(arrays[f"prediction/{name}"] for name in ("boxes", "labels", "scores"))):
        doubles = (annotations.box_iou(boxes[:, None], boxes) > 0.5) & (labels[:, None] == labels)
        assert not np.triu(doubles, 1)[np.ix_(found > 0, found > 0)].any()


@pytest.mark.slow
def test_boxes_of_mirrored_copies_too(tmp_path):
    head = {"name": "dino", "strides": (8,), "levels": 1, "width": 32, "hidden": 8, "queries": 6, "denoising": 2}
    head |= {"encoder_layers": 1, "decoder_layers": 1, "detections": 6}
    tasks = {"detection": {"head": head, "shown": 0.0}}
    evaluation = {"flips": ("horizontal", "vertical")}
    workdir, raw = runs.train(tmp_path, GREY, "node21", {"count": 12, "size": 64}, tasks, evaluation=evaluation)
    _, arrays = _predicted(workdir, sorted(raw.rglob("*.mha")), tmp_path / "out")
    _assert_same_boxes(arrays, json.loads((tmp_path / "out" / "boxes.json").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("flips", [(), ("horizontal",)])
def test_masks_of_detected_boxes(flips, tmp_path):
    head = {"name": "mask_rcnn", "width": 8, "hidden": 8, "anchor_sizes": (8, 16, 32), "aspects": (1.0,)}
    head |= {"candidates": 10, "proposals": 8, "sampled": 8, "scored": 8, "detections": 4}
    tasks = {"detection": {"head": head, "shown": 0.0}}
    phantom = {"train": 6, "test": 3, "size": 64}
    workdir, raw = runs.train(tmp_path, GREY, "chestxdet", phantom, tasks, evaluation={"flips": flips})
    files = sorted(raw.rglob("test_data/*.png"))
    rows, arrays = _predicted(workdir, files, tmp_path / "out")
    coco = json.loads((tmp_path / "out" / "boxes.json").read_text())
    assert len(rows) == len(files) and coco["annotations"]
    _assert_same_boxes(arrays, coco)
    for box in coco["annotations"]:
        height, width = box["segmentation"]["size"]
        assert (height, width) == images.read(files[box["image_id"] - 1]).shape[:2]
        x, y, w, h = box["bbox"]
        mask = rle.coco_decode(box["segmentation"]["counts"], height, width)
        assert mask.sum() == box["area"]
        rows_lit, columns_lit = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if mask.any():
            assert y - 2 <= rows_lit[0] and rows_lit[-1] <= y + h + 2
            assert x - 2 <= columns_lit[0] and columns_lit[-1] <= x + w + 2

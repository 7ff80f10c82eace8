"""Predicting on files: the same images as in training, results in the files' own pixels, bad files among good ones."""

import csv
import json
import os
import shutil

import numpy as np
import pydicom
import pytest
import runs
from PIL import Image

from mediax import catalog, dicom, images, outlines, predict, rle, transforms
from mediax.builder import Records
from mediax.errors import InputError
from mediax.findings import Box, Findings, mask_of_box
from mediax.predict import File

ENCODER = {"name": "unet_encoder", "channels": 1, "options": {"variant": "eighth", "normalize": True}}
RESNET = {"name": "resnet", "channels": 1, "options": {"variant": "18", "depths": (1, 1), "width": 0.125}}
DETECTOR = {
    "name": "mask_rcnn",
    "masks": False,
    "width": 8,
    "hidden": 8,
    "anchor_sizes": (8, 16, 32),
    "aspects": (1.0,),
    "candidates": 10,
    "proposals": 8,
    "training_candidates": 10,
    "training_proposals": 8,
    "sampled": 8,
    "scored": 8,
    "detections": 4,
}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A run that classifies and segments SIIM-ACR's phantom, whose radiographs are DICOM; then its data is taken away.

    Gives (its network, DICOM files of its test split, the images of the built records of these files, the folder).
    """
    root = tmp_path_factory.mktemp("segmenter")
    tasks = {"classification": {}, "segmentation": {"head": {"name": "unet", "widths": (8, 8, 8, 8)}}}
    phantom = {"count": 12, "test_count": 4, "size": 64}
    workdir, raw = runs.train(root, ENCODER, "siim_acr", phantom, tasks)
    module = catalog.load("datasets", "siim_acr")
    (info,) = raw.glob("siim_acr/*/*/dataset_info.json")
    records = Records(info.parent, "test")
    built = {record["id"]: module.read(record)["image"] for record in records}
    files = {path.stem: path for path in raw.rglob("*.dcm")}
    (root / "files").mkdir()
    kept = [shutil.copy(files[name], root / "files" / f"{name}.dcm") for name in built]
    shutil.rmtree(root / "data")
    return predict.Network(workdir, device_batch=3), kept, list(built.values()), workdir


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A run that detects nodules on NODE21's phantom, and its MetaImage files; its data is gone."""
    root = tmp_path_factory.mktemp("detector")
    tasks = {"detection": {"head": DETECTOR, "shown": 0.0}}
    workdir, raw = runs.train(root, RESNET, "node21", {"count": 12, "size": 64}, tasks)
    files = [shutil.copy(path, root) for path in sorted(raw.rglob("*.mha"))[:3]]
    shutil.rmtree(root / "data")
    return workdir, files


def _rows(out, table="predictions.csv"):
    with open(out / table, newline="") as file:
        return list(csv.DictReader(file))


def _mask(out, name, structure="Pneumothorax"):
    return np.asarray(Image.open(out / "masks" / name / f"segmentation_{structure}.png"))


# Images.


def test_a_file_becomes_the_image_that_was_built_from_it(segmenter):
    network, files, built, _ = segmenter
    reading = network._readings["siim_acr"]
    for path, image in zip(files, built):
        example = predict.example(reading.builder, path, predict.displayed(path).pixels)
        np.testing.assert_array_equal(example["image"], image)


def test_stored_polarity_does_not_matter(segmenter, tmp_path):
    network, files, _, _ = segmenter
    pixels = images.read(files[0])
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        dicom.write(tmp_path / f"{photometric}.dcm", pixels, photometric=photometric)
    images.write(tmp_path / "picture.png", pixels)
    assert predict.predict(network, [tmp_path], tmp_path / "out") == 0
    rows = _rows(tmp_path / "out")
    assert [row.pop("name") for row in rows] == ["MONOCHROME1", "MONOCHROME2", "picture"]
    assert [row.pop("file") for row in rows] == [
        str(tmp_path / f) for f in ("MONOCHROME1.dcm", "MONOCHROME2.dcm", "picture.png")
    ]
    assert rows[0] == rows[1] == rows[2]


def test_deep_images_are_taken_as_a_viewer_shows_them(tmp_path):
    ramp = np.linspace(500, 3500, 64 * 64).round().astype(np.uint16).reshape(64, 64, 1)
    images.write(tmp_path / "deep.png", ramp)
    dicom.write(tmp_path / "deep.dcm", ramp, bits=12, tags={"WindowCenter": 2000, "WindowWidth": 3000})
    of = catalog.load("datasets", "siim_acr").Builder(data_dir=tmp_path)
    for name in ("deep.png", "deep.dcm"):
        image = predict.example(of, tmp_path / name, predict.displayed(tmp_path / name).pixels)["image"]
        assert image.dtype == np.uint8 and image.min() == 0 and image.max() == 255
        assert abs(int(np.median(image)) - 127) <= 2


@pytest.mark.parametrize("dataset", ["siim_acr", "node21", "chestxdet"])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_the_network_sees_a_windowed_dicom_file_as_it_is_shown(dataset, bits, tmp_path):
    path = tmp_path / "a.dcm"
    stored = np.linspace(100, 163, 64).astype(np.uint8 if bits == 8 else np.uint16).reshape(8, 8, 1)
    stored = stored << max(0, bits - 8)
    dicom.write(path, stored, bits=bits, tags={"WindowCenter": 132 << (bits - 8), "WindowWidth": 64 << (bits - 8)})
    shown = predict.displayed(path).pixels
    assert shown.min() <= 2 and shown.max() >= 250
    of = catalog.load("datasets", dataset).Builder(data_dir=tmp_path)
    np.testing.assert_array_equal(predict.example(of, path, shown)["image"], of.fit(shown).image(shown))


def test_what_a_dicom_file_does_not_say_is_said(segmenter, tmp_path, capsys):
    network, files, _, _ = segmenter
    header = pydicom.dcmread(files[0])
    values = np.linspace(-1024, 1000, header.Rows * header.Columns).astype(np.int16)
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.PixelData, header.PixelSpacing = values.tobytes(), [0.1, 0.3]
    header.save_as(tmp_path / "flat.dcm")
    shown = predict.displayed(tmp_path / "flat.dcm").pixels
    assert (shown.min(), shown.max()) == (0, 255)
    seen = network.open(File(tmp_path / "flat.dcm", "flat")).examples["siim_acr"]["image"]
    assert np.ptp(seen) > 0.9 * 255 / (255 if seen.dtype == np.float32 else 1)
    assert predict.predict(network, [tmp_path / "flat.dcm", files[1]], tmp_path / "out") == 0
    narrow, spacing = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mediax: ")]
    assert f"{tmp_path / 'flat.dcm'}: has no window" in narrow and "-1024" in narrow and "1000" in narrow
    assert f"{tmp_path / 'flat.dcm'}: its pixels are 0.1 mm high and 0.3 mm wide" in spacing


@pytest.mark.parametrize("dataset", ["vinbigdata", "chexmask", "minijsrt_practice"])
def test_a_dataset_of_dicom_files_reads_them_as_its_own(dataset, tmp_path):
    module = catalog.load("datasets", dataset)
    config = {"chexmask": {"tables": "original", "source": "vinbigdata"}, "minijsrt_practice": {"format": "dicom"}}
    of = module.Builder(config=config.get(dataset), data_dir=tmp_path)
    pixels = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8, 1)
    dicom.write(tmp_path / "IM0001", pixels, bits=12, tags={"WindowCenter": 2000, "WindowWidth": 1000})
    shown = predict.displayed(tmp_path / "IM0001").pixels
    seen = predict.example(of, tmp_path / "IM0001", shown)["image"]
    if dataset == "minijsrt_practice":
        np.testing.assert_allclose(seen, pixels / 4095, atol=1e-4)
    else:
        np.testing.assert_array_equal(seen, of.fit(shown).image(shown))


def test_a_dataset_of_dicom_files_takes_pictures_too(tmp_path):
    of = catalog.load("datasets", "vinbigdata").Builder(data_dir=tmp_path)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    images.write(tmp_path / "a.png", pixels)
    example = predict.example(of, tmp_path / "a.png", pixels)
    fit = of.fit(pixels)
    np.testing.assert_array_equal(example["image"], fit.image(pixels))


@pytest.mark.parametrize(("dataset", "channels", "words"), [("siim_acr", 3, "in colour"), ("eyepacs", 1, "grey")])
def test_a_wrong_kind_of_image_is_refused(dataset, channels, words, tmp_path):
    of = catalog.load("datasets", dataset).Builder(data_dir=tmp_path)
    pixels = np.zeros((8, 8, channels), np.uint8)
    pixels[..., 0] = 200
    images.write(tmp_path / "a.png", pixels)
    with pytest.raises(InputError, match=words):
        predict.example(of, tmp_path / "a.png", pixels)


def test_grey_stored_three_times_is_grey(tmp_path):
    of = catalog.load("datasets", "siim_acr").Builder(data_dir=tmp_path)
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1).repeat(3, axis=2)
    images.write(tmp_path / "a.png", pixels)
    assert predict.example(of, tmp_path / "a.png", pixels)["image"].shape[2] == 1


# Geometry.


@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize("transform", [(), ({"name": "resize", "size": 96}, {"name": "center_crop", "size": 88})])
def test_what_is_found_goes_back_to_the_pixels_of_the_file(aspect, transform, tmp_path):
    """A bright rectangle in a file that is no square is found again where it is, by its brightness in what is built."""
    pixels = np.zeros((120, 200, 1), np.uint8)
    pixels[40:80, 90:130] = 255
    images.write(tmp_path / "a.png", pixels)
    module = catalog.load("datasets", "siim_acr")
    of = module.Builder(config=module.builder.Config(size=64, aspect=aspect), data_dir=tmp_path)
    example = predict.example(of, tmp_path / "a.png", pixels)
    example = transforms.build(transform, keep_geometry=True)(example, np.random.default_rng(0))
    bright = example["image"][..., 0] >= 0.5
    size = bright.shape
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    corners = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / np.tile(size, 2)
    box = Box("Nodule", 0.9, tuple(corners), True, mask_of_box(np.ones((7, 7)), corners, size))
    findings = Findings(masks={"Heart": bright}, boxes=(box,), box_labels=("Nodule",))
    back = findings.moved_back(example["geometry"], size, (120, 200))
    truth = pixels[..., 0] > 0
    pixel = 200 / 64  # of the built image, in pixels of the file
    for mask in (back.masks["Heart"], back.boxes[0].mask):
        assert mask.shape == truth.shape and (mask & truth).sum() / (mask | truth).sum() > 0.8
    np.testing.assert_allclose(np.array(back.boxes[0].corners) * (120, 200, 120, 200), (40, 90, 80, 130), atol=pixel)


def test_a_box_in_the_filling_of_a_letterbox_is_left_out_and_one_across_it_cut():
    fit = images.Fit(50, 100, 64, "letterbox")
    (height, width), (top, left) = fit.scaled(), fit.offset()
    geometry = np.array([[width / 100, 0, left], [0, height / 50, top], [0, 0, 1]])
    inside, across = Box("Mass", 0.5, (0.0, 0.1, 0.2, 0.3), True), Box("Mass", 0.4, (0.0, 0.0, 0.5, 0.5), True)
    unsure = Box("Nodule", 0.3, (0.0, 0.0, 0.1, 0.1), True)
    findings = Findings.of_boxes((inside, across, unsure), ("Mass", "Nodule"))
    assert findings.scores == {"Mass": 0.5, "Nodule": 0.3} and findings.decisions == {"Mass": True, "Nodule": True}
    back = findings.moved_back(geometry, (64, 64), (50, 100))
    assert [box.score for box in back.boxes] == [0.4]
    assert back.scores == {"Mass": 0.4, "Nodule": 0.0} and back.decisions == {"Mass": True, "Nodule": False}
    np.testing.assert_allclose(back.boxes[0].corners, (0, 0, 0.5, 0.5), atol=1e-6)


def test_the_mask_of_a_box_is_stretched_over_it():
    half = np.zeros((4, 4), np.float32)
    half[:, 2:] = 1
    mask = mask_of_box(half, (0.25, 0.5, 0.75, 1.0), (40, 80))
    assert mask[10:30, 60:80].mean() > 0.97 and not mask[:, :60].any() and not mask[:9].any() and not mask[31:].any()


# Results.


def _opened(path, pixels, name="a"):
    images.write(path, pixels)
    return predict.Opened(File(path, name), predict.displayed(path).pixels, {})


def test_every_result_is_in_the_pixels_of_the_file(tmp_path):
    mask = np.zeros((30, 50), bool)
    mask[5:10, 20:40] = True
    box = Box("Nodule", 0.75, (0.1, 0.2, 0.5, 0.6), True, mask)
    unsure = Box("Mass", 0.125, (0.0, 0.0, 1.0, 1.0), False)
    findings = Findings(
        scores={"Edema": 0.25},
        decisions={"Edema": True},
        masks={"Left Lung": mask},
        boxes=(box, unsure),
        box_labels=("Nodule", "Mass", "Fracture"),
    )
    out = tmp_path / "out"
    result = predict.Writer(out, "a run")((_opened(tmp_path / "a.png", np.zeros((30, 50, 1), np.uint8)), findings))
    predict.write_tables(out, [result], [])
    (row,) = _rows(out)
    assert row == {
        "file": str(tmp_path / "a.png"),
        "name": "a",
        "Edema": "0.25",
        "Edema called": "1",
        "Left Lung pixels": "100",
        "Nodule boxes": "1",
        "Mass boxes": "0",
        "Fracture boxes": "0",
    }
    saved = np.asarray(Image.open(out / "masks" / "a" / "Left_Lung.png"))
    np.testing.assert_array_equal(saved, mask * np.uint8(255))
    coco = json.loads((out / "boxes.json").read_text())
    assert coco["images"] == [{"id": 1, "file_name": str(tmp_path / "a.png"), "height": 30, "width": 50}]
    assert [category["name"] for category in coco["categories"]] == ["Nodule", "Mass", "Fracture"]
    first, second = coco["annotations"]
    assert (first["image_id"], first["category_id"], first["score"], first["area"]) == (1, 1, 0.75, 100)
    np.testing.assert_allclose(first["bbox"], (10, 3, 20, 12))
    np.testing.assert_array_equal(rle.coco_decode(first["segmentation"]["counts"], 30, 50), mask)
    assert second["category_id"] == 2 and second["bbox"] == [0, 0, 50, 30] and "segmentation" not in second
    assert not (out / "failed.csv").exists()


def test_overlays_mark_what_was_found_and_leave_the_rest_of_the_image_as_it_is():
    image = np.full((400, 500, 1), 90, np.uint8)
    mask = np.zeros((400, 500), bool)
    mask[100:200, 100:300] = True
    box = Box("Nodule", 0.75, (0.6, 0.6, 0.8, 0.9), True)
    drawn = outlines.draw(image, Findings(masks={"Heart": mask}, boxes=(box,), box_labels=("Nodule",)))
    assert drawn.shape[0] == 400 and drawn.shape[1] > 500
    changed = (drawn[:, :500] != 90).any(2)
    assert changed[100, 150] and changed[150, 100] and changed[240, 310] and changed[300, 300]
    assert not changed[150, 200] and not changed[280, 400] and not changed[350:].any() and not changed[:95].any()
    plain = outlines.draw(image, Findings())
    np.testing.assert_array_equal(plain, image.repeat(3, axis=2))
    small = outlines.draw(np.zeros((28, 28, 3), np.uint8), Findings(scores={"Edema": 0.5}))
    assert small.shape[0] % 28 == 0 and small.shape[0] >= outlines.SMALLEST


def test_names_are_safe_and_never_shared(tmp_path):
    places = ["a/x.png", "b/x.png", "a_x.jpg", "A_X.dcm", "../../etc/passwd.png", "1.2.840.10008", "...", "Ä b.nii.PNG"]
    found = [(tmp_path / place, predict.Path(place)) for place in places]
    files = predict.name_files([*found, found[0]])
    names = [file.name for file in files]
    assert names == ["a_x", "b_x", "a_x-2", "A_X-3", "_.._etc_passwd", "1.2.840.10008", "image", "Ä_b.nii"]
    out = (tmp_path / "out").resolve()
    for name in names:
        assert (out / name).resolve().parent == out


# The command.


def test_a_segmenter_and_a_classifier_on_dicom_files(segmenter, tmp_path):
    _, files, _, workdir = segmenter
    before = sorted(workdir.rglob("*"))
    header = pydicom.dcmread(files[0])
    header.PatientName, header.PatientID, header.PatientBirthDate = "NOBODYSNAME^JANE", "ID4711", "19601231"
    header.StudyDate, header.AccessionNumber = "20200131", "ACC99"
    header.save_as(tmp_path / "secret.dcm")
    out = tmp_path / "out"
    arguments = [f"--workdir={workdir}", str(tmp_path / "secret.dcm"), *map(str, files), f"--out={out}"]
    assert predict.main([*arguments, "--device-batch=3"]) == 0
    rows = _rows(out)
    assert len(rows) == 1 + len(files)
    pixels = dicom.read(files[0]).pixels.shape[:2]
    for row in rows:
        mask = _mask(out, row["name"])
        assert mask.shape == pixels and set(np.unique(mask)) <= {0, 255}
        assert int(row["segmentation/Pneumothorax pixels"]) == (mask > 0).sum()
        assert 0 <= float(row["classification/Pneumothorax"]) <= 1
        called = float(row["classification/Pneumothorax"]) >= 0.5
        assert row["classification/Pneumothorax called"] == str(int(called))
        assert (out / "overlays" / f"{row['name']}.png").is_file()
        segmentation = pydicom.dcmread(out / "masks" / f"{row['name']}_seg.dcm")
        source = pydicom.dcmread(row["file"])
        assert segmentation.Modality == "SEG" and segmentation.StudyInstanceUID == source.StudyInstanceUID
        referenced = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0]
        assert referenced.ReferencedSOPInstanceUID == source.SOPInstanceUID
        frames = segmentation.pixel_array.reshape(-1, *pixels)
        np.testing.assert_array_equal(frames.max(0) > 0, mask > 0)
    assert rows[0]["classification/Pneumothorax"] == rows[1]["classification/Pneumothorax"]
    secrets = (b"NOBODYSNAME", b"ID4711", b"19601231", b"20200131", b"ACC99")  # too long to be found by chance
    for path in out.rglob("*"):
        assert not path.is_file() or not any(secret in path.read_bytes() for secret in secrets), path
    assert sorted(workdir.rglob("*")) == before


def test_one_task_alone_needs_no_prefix(segmenter, tmp_path):
    _, files, _, workdir = segmenter
    (tmp_path / "bad.png").write_text("no image")
    arguments = [f"--workdir={workdir}", str(files[0]), str(tmp_path / "bad.png"), f"--out={tmp_path}"]
    assert predict.main([*arguments, "--task=classification"]) == 2  # one file is bad
    (row,) = _rows(tmp_path)
    assert set(row) == {"file", "name", "Pneumothorax", "Pneumothorax called"}
    assert not (tmp_path / "masks").exists()
    with pytest.raises(InputError, match="siim_acr/classification, siim_acr/segmentation"):
        predict.Network(workdir, task="detection")


def test_bad_files_among_good_ones(segmenter, tmp_path, capsys):
    network, files, _, _ = segmenter
    folder = tmp_path / "in"
    for place in ("a", "b"):
        (folder / place).mkdir(parents=True)
        shutil.copy(files[0], folder / place / "x.dcm")
    (folder / "b" / "cut.dcm").write_bytes((folder / "b" / "x.dcm").read_bytes()[:3000])
    (folder / "text.png").write_text("no image")
    images.write(folder / "red.png", np.uint8([[[200, 0, 0]] * 8] * 8))
    images.write(folder / "z.png", images.read(files[1]))
    out = folder / "out"
    assert predict.predict(network, [folder], out) == 3
    assert [row["name"] for row in _rows(out)] == ["a_x", "b_x", "z"]
    failed = _rows(out, "failed.csv")
    assert [row["file"].rpartition("/")[2] for row in failed] == ["cut.dcm", "red.png", "text.png"]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mediax: ")]
    assert len(lines) == 3 and all(row["reason"] in line and row["file"] in line for row, line in zip(failed, lines))
    before = {path: path.read_bytes() for path in out.rglob("*.png")}
    assert predict.predict(network, [folder], out) == 3  # what lies in the folder of results is no source
    assert {path: path.read_bytes() for path in out.rglob("*.png")} == before


def test_earlier_results_of_the_files_of_a_call_are_removed_and_no_others(segmenter, tmp_path):
    network, files, _, _ = segmenter
    for name in ("cut", "gone", "other", "good"):
        shutil.copy(files[0], tmp_path / f"{name}.dcm")
    out = tmp_path / "out"
    assert predict.predict(network, sorted(tmp_path.glob("*.dcm")), out) == 0
    (out / "masks" / "cut" / "note.txt").write_text("mine")
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "cut.dcm").read_bytes()[:3000])
    (tmp_path / "gone.dcm").unlink()
    assert predict.predict(network, [tmp_path / f"{name}.dcm" for name in ("cut", "gone", "good")], out) == 2
    results = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and path.suffix != ".csv"}
    kept = ("overlays/{}.png", "masks/{}/segmentation_Pneumothorax.png", "masks/{}_seg.dcm")
    assert results == {place.format(name) for name in ("good", "other") for place in kept} | {"masks/cut/note.txt"}
    with pytest.raises(InputError, match=r"overlays/good\.png: would be overwritten"):
        predict.predict(network, [out / "overlays" / "good.png"], out)
    assert (out / "overlays" / "good.png").is_file()


def test_absent_and_empty_sources_fail_and_the_rest_is_predicted_on(segmenter, tmp_path, capsys):
    network, files, _, _ = segmenter
    (tmp_path / "empty").mkdir()
    (tmp_path / "export").mkdir()
    shutil.copy(files[0], tmp_path / "export" / "IM0001")
    sources = [files[1], tmp_path / "absent.png", tmp_path / "empty", tmp_path / "export"]
    out = tmp_path / "out"
    assert predict.predict(network, sources, out) == 2
    assert [row["file"] for row in _rows(out)] == [str(files[1]), str(tmp_path / "export" / "IM0001")]
    absent, empty = _rows(out, "failed.csv")
    assert absent["file"] == str(tmp_path / "absent.png") and "no such file" in absent["reason"]
    assert empty["file"] == str(tmp_path / "empty") and "holds no image" in empty["reason"]
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mediax: ")]
    assert lines == [f"mediax: {row['reason']}" for row in (absent, empty)]
    with pytest.raises(InputError, match=r"absent.png: no such file or folder; .*empty: holds no image"):
        predict.predict(network, sources[1:3], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_command_that_is_killed_leaves_no_table_and_nothing_half_written(segmenter, tmp_path, monkeypatch):
    network, files, _, _ = segmenter
    out = tmp_path / "out"
    assert predict.predict(network, files, out) == 0
    whole = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.png")}
    draw, drawn = outlines.draw, []

    def killed(image, findings):
        drawn.append(image)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(image, findings)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(outlines, "draw", killed)
        predict.predict(network, files, out)
    assert not (out / "predictions.csv").exists()
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*.png")}.items() < whole.items()
    assert not list(out.rglob("*.partial"))
    assert predict.predict(network, files, out) == 0
    assert len(_rows(out)) == len(files)


def test_a_run_without_calibration_or_checkpoint_says_what_to_do(segmenter, tmp_path, capsys):
    _, files, _, workdir = segmenter
    assert predict.main([f"--workdir={tmp_path}", str(files[0]), f"--out={tmp_path / 'out'}"]) == 2
    assert "checkpoints/best" in capsys.readouterr().err
    shutil.copytree(workdir, tmp_path / "run")
    calibration = tmp_path / "run" / "calibration.json"
    content = json.loads(calibration.read_text())
    del content["config.evaluations"]
    for change, words in (
        (lambda: calibration.write_text(json.dumps(content)), "older"),
        (calibration.unlink, "absent"),
    ):
        change()
        assert predict.main([f"--workdir={tmp_path / 'run'}", str(files[0]), f"--out={tmp_path / 'out'}"]) == 2
        error = capsys.readouterr().err
        assert words in error and "--mode=evaluate" in error
    assert predict.main([f"--workdir={workdir}", str(tmp_path / "absent.png"), f"--out={tmp_path / 'out'}"]) == 2
    assert "absent.png: no such file" in capsys.readouterr().err


def test_a_run_that_trained_on_several_devices_of_a_cpu_is_predicted_with_on_one(segmenter, tmp_path):
    network, files, _, workdir = segmenter
    run_folder, expected, found = (tmp_path / name for name in ("run", "expected", "found"))
    shutil.copytree(workdir, run_folder)
    (saved,) = run_folder.glob("checkpoints/best/*/config/metadata")
    config = json.loads(saved.read_text())
    assert config["cpu_devices"] == 1
    saved.write_text(json.dumps(config | {"cpu_devices": 2}))
    predict.predict(network, files[:1], expected)
    assert predict.main([f"--workdir={run_folder}", str(files[0]), f"--out={found}"]) == 0
    assert _rows(found)[0] == pytest.approx(_rows(expected)[0])


def test_without_highdicom_all_but_the_segmentation_is_written(segmenter, tmp_path, monkeypatch, capsys):
    network, files, _, _ = segmenter
    monkeypatch.setitem(__import__("sys").modules, "highdicom", None)
    assert predict.predict(network, files[:1], tmp_path) == 1
    assert "pip install highdicom" in capsys.readouterr().err
    (row,) = _rows(tmp_path)
    assert (tmp_path / "masks" / row["name"] / "segmentation_Pneumothorax.png").is_file()
    assert not list(tmp_path.rglob("*_seg.dcm"))


@pytest.mark.slow
def test_a_detector_on_metaimage_files(detector, tmp_path):
    workdir, files = detector
    assert predict.predict(predict.Network(workdir), files, tmp_path) == 0
    rows, coco = _rows(tmp_path), json.loads((tmp_path / "boxes.json").read_text())
    assert [category["name"] for category in coco["categories"]] == ["Nodule"]
    height, width = images.read(files[0]).shape[:2]
    for image, row in enumerate(rows, start=1):
        boxes = [one for one in coco["annotations"] if one["image_id"] == image]
        assert len(boxes) == int(row["Nodule boxes"])  # every box is called
        assert float(row["Nodule"]) == pytest.approx(max((one["score"] for one in boxes), default=0), rel=1e-5)
        for x, y, w, h in (one["bbox"] for one in boxes):
            assert 0 <= x < x + w <= width + 1e-3 and 0 <= y < y + h <= height + 1e-3


def test_names_of_files_that_are_no_text_or_long_come_out(tmp_path):
    name = os.fsdecode(b"M\xfcller.dcm")
    predict.write_table(tmp_path / "t.csv", [{"file": name, "score": "1"}])
    assert (tmp_path / "t.csv").read_bytes() == b"file,score\nM\xfcller.dcm,1\n"
    assert predict.safe_name(name) == "M_ller.dcm"
    assert len(predict.safe_name("胸" * 200).encode()) <= 150

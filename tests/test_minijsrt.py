"""The miniJSRT sets: each layout builds to what the phantom drew, and each way to spoil a tree ends in one message."""

import csv
import functools
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from mediax import builder, catalog, dicom, images, minijsrt
from mediax.errors import InputError

SMALL = {"train": 3, "test": 2, "size": 48}
SIZES = {
    "minijsrt_gender": SMALL,
    "minijsrt_directions": {"train": 2, "test": 1, "size": 48},
    "minijsrt_age": SMALL,
    "minijsrt_lung": SMALL,
    "minijsrt_organs": SMALL,
    "minijsrt_anomaly": {"train": 3, "test": 4, "size": 48},
    "minijsrt_practice": {"count": 3, "size": 48},
}


@pytest.fixture(scope="module", autouse=True)
def draw_once():
    """Most tests need the same few radiographs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minijsrt, "draw", functools.cache(minijsrt.draw))
        yield


@pytest.fixture
def raw(tmp_path):
    """Draws a phantom: raw(name, **options) gives its module and folder, which the test may damage."""

    def make(name, **options):
        module, folder = catalog.load("datasets", name), tmp_path / "raw" / name
        module.phantom(folder, **{**SIZES[name], **options})
        return module, folder

    return make


def build(module, folder, **config):
    """Builds from the folder above and gives {split: {id: record}}."""
    directory = builder.prepare(
        module, data_dir=folder.parent.parent / "built", manual_dir=folder.parent, builder_config=config or None
    )
    splits = builder.tfds.builder_from_directory(str(directory)).info.splits
    return {split: {record["id"]: record for record in builder.Records(directory, split)} for split in splits}


def pixels(record):
    return images.decode(record["image"])[..., 0]


def truth(number, size=48, **options):
    """What the phantom drew as its image of that number."""
    return minijsrt.draw(0, number, size=size, **options)


# Layouts.


@pytest.mark.parametrize("release", minijsrt.RELEASES)
@pytest.mark.parametrize("name", SIZES)
def test_every_release_builds(raw, name, release):
    module, folder = raw(name, release=release)
    records = {key: record for split in build(module, folder).values() for key, record in split.items()}
    drawn = {images.to_uint8(truth(number, sex=sex).image).tobytes() for number in range(7) for sex in (None, *SEXES)}
    if name == "minijsrt_age":
        assert len(records) == 5  # as JPEG, whose pixels are not the drawn ones
    else:
        assert any(pixels(record).tobytes() in drawn for record in records.values())
    for record in records.values():
        example = module.read(record)
        assert example["image"].shape == (48, 48, 1)
        assert example["image"].dtype == np.uint8


SEXES = ("Female", "Male")


def test_unknown_release(raw):
    with pytest.raises(InputError, match="release='gray': did you mean 'grey'"):
        raw("minijsrt_lung", release="gray")


@pytest.mark.parametrize("name", SIZES)
def test_archives_may_lie_beside_each_other_in_any_case(raw, tmp_path, name):
    module, folder = raw(name)
    for other in SIZES.keys() - {name}:
        raw(other)
    together = tmp_path / "together"
    for archive in (path for of_set in sorted(folder.parent.iterdir()) for path in sorted(of_set.iterdir())):
        shutil.copytree(archive, together / archive.name.upper())
    (together / "train" / "patient00001").mkdir(parents=True)
    found = builder.prepare(module, data_dir=tmp_path / "one", manual_dir=together)
    alone = builder.prepare(module, data_dir=tmp_path / "two", manual_dir=folder.parent)
    for split in builder.tfds.builder_from_directory(str(alone)).info.splits:
        assert builder.Records(found, split).columns()["id"] == builder.Records(alone, split).columns()["id"]


def test_grey_and_rgb_together_are_ambiguous(raw):
    module, folder = raw("minijsrt_gender")
    raw("minijsrt_gender", release="rgb")
    with pytest.raises(InputError, match=r"lies in .*Gender01 and in .*Gender01_RGB: keep one"):
        build(module, folder)


def test_resource_forks_are_passed_over(raw):
    module, folder = raw("minijsrt_lung")
    shutil.copytree(folder / "Segmentation01", folder / "__MACOSX" / "Segmentation01")
    (folder / "Segmentation01" / "train" / "org" / "._case001.png").write_bytes(b"x")
    (folder / "Segmentation01" / "train" / "org" / "Thumbs.db").write_bytes(b"x")
    assert len(build(module, folder)["train"]) == 3


# Classes from folders.


def test_gender_is_the_folder(raw):
    module, folder = raw("minijsrt_gender")
    splits = build(module, folder)
    assert [len(splits[split]) for split in ("train", "test")] == [3, 2]
    for split in splits.values():
        for name, record in split.items():
            number = int(name.removeprefix("JPCLN")) - 1
            example = module.read(record)
            assert example["labels"].tolist() == [number % 2 == 0, number % 2 == 1]
            assert record["patient_id"] == name
            expected = truth(number, sex=module.CLASSES[number % 2])
            np.testing.assert_array_equal(pixels(record), images.to_uint8(expected.image))


def test_names_without_a_code_are_told_apart_by_their_folders(raw):
    module, folder = raw("minijsrt_gender")
    for place in (folder / "Gender01").glob("*/*"):
        for number, path in enumerate(sorted(place.iterdir())):
            path.rename(place / f"{number}.PNG")
    assert set(build(module, folder)["test"]) == {"test_female_0", "test_male_0"}


def test_directions_are_one_radiograph_turned(raw):
    module, folder = raw("minijsrt_directions")
    splits = build(module, folder)
    assert [len(splits[split]) for split in ("train", "test")] == [8, 4]
    up = images.to_uint8(truth(2).image)
    views = {name: pixels(record) for name, record in splits["test"].items()}
    np.testing.assert_array_equal(views["test_up_1"], up)
    np.testing.assert_array_equal(views["test_down_1"], up[::-1, ::-1])
    np.testing.assert_array_equal(views["test_left_1"], up.T[::-1])  # the top row is the left column, from below
    np.testing.assert_array_equal(views["test_right_1"], up.T[:, ::-1])
    for name, record in splits["test"].items():
        assert record["patient_id"] == "test_1"
        assert module.CLASSES[int(record["labels"].argmax())] == f"Orientation {name.split('_')[1].title()}"
        assert record["labels"].sum() == 1


def test_unknown_class_folder(raw):
    module, folder = raw("minijsrt_directions")
    (folder / "Directions01" / "train" / "upside").mkdir()
    with pytest.raises(InputError, match="train/upside: no known class; expected the folders up, down, left, right"):
        build(module, folder)


def test_empty_class_folder(raw):
    module, folder = raw("minijsrt_gender")
    shutil.rmtree(folder / "Gender01" / "test" / "male")
    (folder / "Gender01" / "test" / "male").mkdir()
    with pytest.raises(InputError, match=r"test/male: no image file \(.png"):
        build(module, folder)


def test_missing_class_folder_is_missing_data(raw):
    module, folder = raw("minijsrt_gender")
    shutil.rmtree(folder / "Gender01" / "test" / "male")
    with pytest.raises(InputError, match=r"raw data of miniJSRT: Gender01 is missing(.|\n)*Gender01_RGB"):
        build(module, folder)


def test_a_patient_in_both_splits(raw):
    module, folder = raw("minijsrt_gender")
    place = folder / "Gender01"
    shutil.copy(place / "train" / "female" / "JPCLN001.png", place / "test" / "female" / "JPCLN001.png")
    with pytest.raises(InputError, match=r"JPCLN001.png: its patient is in the split 'test' and, by .*'train' too"):
        build(module, folder)


# Age.


def test_ages_are_the_tables(raw):
    module, folder = raw("minijsrt_age")
    splits = build(module, folder)
    for split, table in module.TABLES.items():
        with (folder / "XPAge01_RGB" / "XP" / table).open() as file:
            lines = {line["filenames"].removesuffix(".jpg"): float(line["age"]) for line in csv.DictReader(file)}
        targets = {name: module.read(record)["target"] for name, record in splits[split].items()}
        assert {name: target.tolist() for name, target in targets.items()} == {k: [v] for k, v in lines.items()}
    drawn = module.phantom_radiograph(0, 0, 48)
    assert splits["train"]["JPCLN001"]["age"] == drawn.age
    shown = pixels(splits["train"]["JPCLN001"]).astype(float)
    assert np.abs(shown - images.to_uint8(drawn.image)).mean() < 3


def test_the_phantom_s_ages_are_spread_as_jsrt_s(monkeypatch):
    module = catalog.load("datasets", "minijsrt_age")
    monkeypatch.setattr(minijsrt, "draw", lambda seed, number, *, size, age: age)
    ages = [module.phantom_radiograph(0, number, 48) for number in range(1000)]
    assert min(ages) >= 20 and max(ages) <= 88 and all(age == round(age) for age in ages)
    assert np.mean(ages) == pytest.approx(58, abs=1.5) and np.std(ages) == pytest.approx(14, abs=1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("JPCLN001.jpg,-5", r"trainingdata.csv, line 2: the age is '-5', expected years from 0 to 120"),
        ("JPCLN001.jpg,", "line 2: the age is '', expected years"),
        ("JPCLN001.jpg,old", "line 2: age is 'old', expected a number"),
        (",60", "line 2: the column filenames is empty"),
        ("JPCLN999.jpg,60", "line 2: the image .*JPGs/JPCLN999.jpg is absent, as are 1 of 3 annotated"),
        ("JPCLN001.jpg,60\nJPCLN001.jpg,60", "line 3: image 'JPCLN001' was listed before"),
        ("JPCLN004.jpg,60", "its patient is in the split 'test' and"),
    ],
)
def test_wrong_lines_of_a_table(raw, line, message):
    module, folder = raw("minijsrt_age")
    (folder / "XPAge01_RGB" / "XP" / "trainingdata.csv").write_text(f"filenames,age\n{line}\n")
    with pytest.raises(InputError, match=message):
        build(module, folder)


def test_missing_column(raw):
    module, folder = raw("minijsrt_age")
    (folder / "XPAge01_RGB" / "XP" / "testdata.csv").write_text("file,age\nJPCLN001.jpg,60\n")
    with pytest.raises(InputError, match=r"testdata.csv: columns \['filenames'\] are missing; found \['file', 'age'\]"):
        build(module, folder)


def test_images_in_no_table_are_left_out(raw):
    module, folder = raw("minijsrt_age")
    (folder / "XPAge01_RGB" / "XP" / "testdata.csv").write_text(" filenames , age \nJPCLN004.JPG, 60 \n")
    splits = build(module, folder)
    assert set(splits["test"]) == {"JPCLN004"}
    assert splits["test"]["JPCLN004"]["age"] == 60


# Masks.


def lungs(radiograph):
    return radiograph.masks["Left Lung"] | radiograph.masks["Right Lung"]


def test_lung_masks_are_the_drawn_ones(raw):
    module, folder = raw("minijsrt_lung")
    splits = build(module, folder)
    assert [sorted(splits[split]) for split in ("train", "test")] == [
        ["train_case001", "train_case002", "train_case003"],
        ["test_case004", "test_case005"],
    ]
    for split in splits.values():
        for name, record in split.items():
            drawn = truth(int(name[-3:]) - 1)
            example = module.read(record)
            np.testing.assert_array_equal(example["masks"][..., 0], lungs(drawn))
            np.testing.assert_array_equal(example["image"][..., 0], images.to_uint8(drawn.image))
            assert example["mask_valid"].tolist() == [True]


@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize("name", ["minijsrt_lung", "minijsrt_organs"])
def test_masks_follow_the_image(raw, name, aspect):
    """The mask of an image that is itself the mask keeps its border, to half a pixel of the file."""
    module, folder = raw(name)
    wide = np.zeros((40, 60), np.uint8)
    cv2.ellipse(wide, (27, 21), (19, 12), 20, 0, 360, 255, -1)
    label = next(path for path in sorted(folder.rglob("*")) if path.is_file() and "label" in str(path.parent.name))
    pattern = "train/{}/case001.png" if name == "minijsrt_lung" else "{}_train/case001{}"
    if name == "minijsrt_lung":
        image, label = (folder / "Segmentation01" / pattern.format(kind) for kind in ("org", "label"))
    else:
        place = folder / "segmentation02" / "segmentation"
        image, label = place / "org_train" / "case001.bmp", place / "label_train" / "case001_label.png"
    minijsrt.write(image, wide)
    minijsrt.write(label, wide)
    record = next(r for key, r in build(module, folder, size=120, aspect=aspect)["train"].items() if "case001" in key)
    example = module.read(record)
    shown, mask = example["image"][..., 0] / 255.0, example["masks"][..., 0]
    scale = {"stretch": 120 * 120, "crop": 180 * 120, "letterbox": 120 * 80}[aspect] / (40 * 60)
    assert abs(mask.sum() / scale - (wide > 0).sum()) < 10
    border = cv2.morphologyEx((wide > 0).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))).sum()
    # Nearest and linear resizing differ by half a pixel of the file along the border at most.
    assert np.abs(shown - mask).sum() / scale < 0.5 * border


def test_organs_are_the_grey_levels(raw):
    module, folder = raw("minijsrt_organs")
    splits = build(module, folder)
    assert [sorted(splits[split]) for split in ("train", "test")] == [
        ["case001", "case002", "case003"],
        ["case004", "case005"],
    ]
    for split in splits.values():
        for name, record in split.items():
            drawn = truth(int(name[-3:]) - 1)
            heart, body = drawn.masks["Heart"], drawn.masks["Body"] | lungs(drawn) | drawn.masks["Heart"]
            expected = [lungs(drawn) & ~heart, heart, body & ~lungs(drawn) & ~heart]
            example = module.read(record)
            np.testing.assert_array_equal(example["masks"], np.stack(expected, axis=-1))
            assert heart.any()
            assert example["masks"].sum(axis=-1).max() == 1


@pytest.mark.parametrize("name", ["minijsrt_lung", "minijsrt_organs"])
def test_labels_of_another_size_are_resized_by_nearest(raw, name):
    module, folder = raw(name, label_size=96)
    record = build(module, folder)["test"]
    for key, found in record.items():
        fine = truth(int(key[-3:]) - 1)
        assert (module.read(found)["masks"][..., 0] != (lungs(fine) & ~lungs_hidden(name, fine))).mean() < 0.02


def lungs_hidden(name, radiograph):
    return radiograph.masks["Heart"] & (name == "minijsrt_organs")


def test_unknown_grey_level(raw):
    module, folder = raw("minijsrt_organs")
    label = folder / "segmentation02" / "segmentation" / "label_test" / "case004_label.png"
    changed = images.read(label)[..., 0].copy()
    changed[:2] = (84, 171) * 24
    minijsrt.write(label, changed)
    with pytest.raises(InputError, match=r"case004_label.png: the grey values \[84, 171\] stand for no structure"):
        build(module, folder)


def test_palette_labels(raw):
    module, folder = raw("minijsrt_organs")
    label = folder / "segmentation02" / "segmentation" / "label_test" / "case004_label.png"
    before = module.read(build(module, folder)["test"]["case004"])["masks"]
    palette = Image.open(label).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    palette.save(label)
    shutil.rmtree(folder.parent.parent / "built")
    np.testing.assert_array_equal(module.read(build(module, folder)["test"]["case004"])["masks"], before)


def test_image_without_label(raw):
    module, folder = raw("minijsrt_organs")
    (folder / "segmentation02" / "segmentation" / "label_train" / "case002_label.png").unlink()
    with pytest.raises(InputError, match=r"org_train/case002.bmp: .*label_train holds no label of it"):
        build(module, folder)


def test_label_without_image(raw):
    module, folder = raw("minijsrt_lung")
    (folder / "Segmentation01" / "test" / "org" / "case004.png").unlink()
    with pytest.raises(InputError, match=r"label/case004.png: the image .*org/case004.png is absent, as are 1 of 5"):
        build(module, folder)


def test_two_files_of_one_name(raw):
    module, folder = raw("minijsrt_lung")
    place = folder / "Segmentation01" / "train" / "org"
    shutil.copy(place / "case001.png", place / "case001.bmp")
    with pytest.raises(InputError, match=r"case001.png: case001.bmp has the same name; keep one of them"):
        build(module, folder)


def test_truncated_label(raw):
    module, folder = raw("minijsrt_lung")
    label = folder / "Segmentation01" / "test" / "label" / "case004.png"
    label.write_bytes(label.read_bytes()[:40])
    with pytest.raises(InputError, match=r"case004.png: cannot decode(.|\n)*asked for by"):
        build(module, folder)


# Anomalies.


@pytest.mark.parametrize("layout", ["folders", "names", "flat"])
def test_anomalies_are_named(raw, layout):
    module, folder = raw("minijsrt_anomaly", layout=layout)
    splits = build(module, folder)
    records = [record for split in splits.values() for record in split.values()]
    assert {split: len(found) for split, found in splits.items()} == (
        {"unsplit": 7} if layout == "flat" else {"train": 3, "test": 4}
    )
    for record in records:
        number = int(record["id"].partition("JPCLN")[2][:3]) - 1
        drawn = images.to_uint8(truth(number).image)
        mirrored = number >= 3 and number % 2 == 1
        np.testing.assert_array_equal(pixels(record), drawn[:, ::-1] if mirrored else drawn)
        unknown, normal = (module.read(record, unnamed=choice)["labels"] for choice in ("unknown", "normal"))
        assert normal.tolist() == [mirrored]
        np.testing.assert_array_equal(unknown, [1.0 if mirrored else 0.0 if layout == "folders" else np.nan])
        assert record["folder"] == record["id"].rpartition("/")[0]
        assert record["patient_id"] == f"JPCLN{number + 1:03d}"


@pytest.mark.parametrize(
    ("names", "label", "split"),
    [
        (("test", "abnormal", "1.png"), 1, "test"),
        (("normal_test", "1.png"), 0, "test"),
        (("training", "good", "1.png"), -1, "train"),
        (("img_training", "normal", "1_flip.png"), 1, "train"),
        (("latest", "1.png"), -1, "unsplit"),
        (("1.png",), -1, "unsplit"),
    ],
)
def test_names_of_anomalies(names, label, split):
    module = catalog.load("datasets", "minijsrt_anomaly")
    assert (module.label_of(names), module.split_of(names[:-1])) == (label, split)


def test_patients_may_be_in_both_splits_of_an_unknown_tree(raw, caplog):
    module, folder = raw("minijsrt_anomaly")
    place = folder / "autoencoder_img"
    shutil.copy(place / "train" / "normal" / "JPCLN001.png", place / "test" / "flip" / "JPCLN001.png")
    assert len(build(module, folder)["test"]) == 5
    assert "1 patients of test are in train too" in caplog.text


def test_unknown_option(raw):
    module, folder = raw("minijsrt_anomaly")
    record = next(iter(build(module, folder)["test"].values()))
    with pytest.raises(InputError, match="unnamed='norml': did you mean 'normal'"):
        module.read(record, unnamed="norml")


# Formats.


def test_practice_formats_hold_the_same_radiographs(raw):
    module, folder = raw("minijsrt_practice")
    png, jpg, deep = (build(module, folder, format=name)["unsplit"] for name in ("png", "jpg", "dicom"))
    assert set(png) == set(jpg) == set(deep) == {"JPCLN001", "JPCLN002", "JPCLN003"}
    for number, name in enumerate(sorted(png)):
        drawn = truth(number)
        np.testing.assert_array_equal(pixels(png[name]), images.to_uint8(drawn.image))
        assert np.abs(pixels(jpg[name]).astype(float) - pixels(png[name])).mean() < 3
        example = module.read(deep[name])
        assert example["image"].dtype == np.float32
        np.testing.assert_array_equal(np.rint(example["image"][..., 0] * 4095), np.rint(drawn.image * 4095))
        np.testing.assert_allclose(example["spacing_mm"], drawn.spacing_mm, rtol=1e-5)
        assert np.isnan(module.read(png[name])["spacing_mm"]).all()


def test_practice_dicom_is_12_bit(raw):
    _, folder = raw("minijsrt_practice")
    file = dicom.read(folder / "Practice_DICOM" / "chestimages_DICOM" / "JPCLN001.dcm")
    assert file.bits == 12
    assert 255 < file.pixels.max() <= 4095


def test_practice_ignores_files_of_another_format(raw):
    module, folder = raw("minijsrt_practice")
    place = folder / "Practice_PNGandJPG" / "chestimage_PNG"
    shutil.copy(folder / "Practice_PNGandJPG" / "chestimage_JPG" / "JPCLN001.jpg", place / "JPCLN009.jpg")
    assert len(build(module, folder)["unsplit"]) == 3

"""EyePACS: layouts, splits, both eyes of a patient, and what may be wrong with a download."""

import csv
import functools
import shutil

import numpy as np
import pytest

from mediax import builder, images
from mediax.datasets import eyepacs
from mediax.errors import InputError

SMALL = {"patients": 4, "test_patients": 4, "size": 32}


@pytest.fixture(scope="module", autouse=True)
def draw_once():
    """Most tests need the same few photographs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eyepacs, "phantom_eye", functools.cache(eyepacs.phantom_eye))
        yield


@pytest.fixture
def raw(tmp_path):
    """Draws a phantom, which the test may damage."""

    def make(**options):
        folder = tmp_path / "raw" / "eyepacs"
        eyepacs.phantom(folder, **{**SMALL, **options})
        return folder

    return make


def build(folder, data="built", on_corrupt="error", **config):
    """Builds from the folder above and gives {split: {id: record}}."""
    directory = builder.prepare(
        eyepacs,
        data_dir=folder.parent.parent / data,
        manual_dir=folder.parent,
        builder_config={"size": 32, "aspect": "letterbox", **config},
        on_corrupt=on_corrupt,
    )
    splits = builder.tfds.builder_from_directory(str(directory)).info.splits
    return {split: {record["id"]: record for record in builder.Records(directory, split)} for split in splits}


def lines(table):
    with table.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("layout", eyepacs.PHANTOM_LAYOUTS)
def test_every_layout_builds(raw, layout):
    folder = raw(layout=layout)
    splits = build(folder)
    top, *_ = eyepacs.PHANTOM_LAYOUTS[layout]
    for table, kept in (("trainLabels.csv", ("train",)), ("retinopathy_solution.csv", ("validation", "test"))):
        records = {name: record for split in kept for name, record in splits[split].items()}
        listed = lines(folder / top / table)
        assert {line["image"]: int(line["level"]) for line in listed} == {k: r["grade"] for k, r in records.items()}
        for name, record in records.items():
            assert f"{record['patient_id']}_{record['eye']}" == name


def test_images_are_the_drawn_ones(raw):
    record = build(raw(), size=None, encoding="png", aspect="stretch")["train"]["12_right"]
    drawn = eyepacs.phantom_eye(0, 12, "right", size=32)
    shown = images.decode(record["image"])
    assert shown.shape == drawn.image.shape
    assert np.abs(shown.astype(float) - drawn.image).mean() < 6
    assert record["grade"] == drawn.grade
    assert record["original_size"].tolist() == list(drawn.image.shape[:2])


def test_splits(raw):
    folder = raw()
    usage = {line["image"]: line["Usage"] for line in lines(folder / "retinopathy_solution.csv")}
    kaggle, held_out = build(folder), build(folder, split="held_out")
    assert {name for name in usage if usage[name] == "Public"} == set(kaggle["validation"])
    assert {name for name in usage if usage[name] == "Private"} == set(kaggle["test"])
    assert set(held_out["test"]) == set(usage)
    official = set(kaggle["train"])
    validation = {name for name in official if builder.held_out(name.split("_")[0], 0.1, salt="eyepacs/validation")}
    assert set(held_out.get("validation", ())) == validation
    assert set(held_out["train"]) == official - validation


def test_held_out_share(tmp_path):
    instance = eyepacs.Builder(data_dir=tmp_path, config={"split": "held_out"})
    patients = [str(number) for number in range(10, 4010)]
    held = [patient for patient in patients if instance.split_of("train", patient, {}) == "validation"]
    assert 340 < len(held) < 460
    assert {instance.split_of("test", patient, {"Usage": "Public"}) for patient in patients} == {"test"}


def test_read(raw):
    for record in build(raw())["test"].values():
        grade = record["grade"]
        example = eyepacs.read(record)
        assert example["labels"].tolist() == [float(index == grade) for index in range(5)]
        assert example["target"].tolist() == [grade]
        assert eyepacs.read(record, classes="referable")["labels"].tolist() == [float(grade >= 2)]
    assert len(eyepacs.classes(classes="referable")) == 1
    with pytest.raises(InputError, match="classes='referible': did you mean 'referable'"):
        eyepacs.read(record, classes="referible")
    with pytest.raises(InputError, match="classes='grade': did you mean 'grades'"):
        eyepacs.classes(classes="grade")


def test_without_the_test_labels_only_train_is_built(raw, caplog):
    with caplog.at_level("INFO"):
        assert set(build(raw(solution=False))) == {"train"}
    assert "no test images" in caplog.text


def test_without_the_test_images_only_train_is_built(raw):
    folder = raw()
    shutil.rmtree(folder / "test")
    assert set(build(folder)) == {"train"}


def test_without_images_the_data_is_missing(raw):
    folder = raw()
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "test")
    with pytest.raises(InputError, match=r"raw data of EyePACS (.|\n)*7z x train.zip.001(.|\n)*:phantom"):
        build(folder)


def test_sample_and_other_competitions_are_not_read(raw):
    folder = raw()
    (folder / "sample").mkdir()
    shutil.copy(folder / "train" / "10_left.jpeg", folder / "sample" / "10_left.jpeg")
    (folder / "train_malware").mkdir()
    (folder / "train_malware" / "trainLabels.csv").write_text("Id,Class\n1,2\n")
    assert len(build(folder)["train"]) == 8


def test_a_file_in_two_folders(raw):
    folder = raw()
    shutil.copytree(folder / "train", folder / "resized_train")
    with pytest.raises(InputError, match=r"10_left.jpeg lies in .*resized_train/10_left.jpeg and in .*train/10_left"):
        build(folder)


def test_two_tables(raw):
    folder = raw()
    shutil.copytree(folder / "train", folder / "train" / "train")
    shutil.copy(folder / "trainLabels.csv", folder / "train" / "train" / "trainLabels.csv")
    with pytest.raises(
        InputError, match=r"the table lies in .*trainLabels.csv and in .*trainLabels.csv: keep one release"
    ):
        build(folder)


def test_endings_in_any_case(raw):
    folder = raw()
    (folder / "train" / "10_left.jpeg").rename(folder / "train" / "10_left.JPG")
    assert "10_left" in build(folder)["train"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("10_left,", "10_left,7", r"trainLabels.csv, line 2: the level is '7\d', expected a grade from 0 to 4"),
        ("10_left,", "10,", "line 2: the image is '10', expected a name such as 10_left"),
        ("10_left,", "99_left,", r"train/10_left.jpeg: .*trainLabels.csv does not list this image"),
        ("level", "grade", r"trainLabels.csv: columns \['level'\] are missing; found \['image', 'grade'\]"),
        ("image,level\n", "image,level\n10_left,0\n", "line 3: image '10_left' was listed before"),
    ],
)
def test_wrong_lines(raw, old, new, message):
    folder = raw(solution=False)
    table = folder / "trainLabels.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        build(folder)


def test_wrong_usage(raw):
    folder = raw()
    table = folder / "retinopathy_solution.csv"
    table.write_text(table.read_text().replace("Private", "Secret", 1))
    with pytest.raises(InputError, match="line 2: the Usage is 'Secret', expected Public or Private"):
        build(folder)


def test_test_labels_without_usage(raw):
    folder = raw()
    table = folder / "retinopathy_solution.csv"
    table.write_text("".join(f"{line.rpartition(',')[0]}\n" for line in table.read_text().splitlines()))
    with pytest.raises(InputError, match=r"retinopathy_solution.csv: columns \['Usage'\] are missing"):
        build(folder)


def test_absent_image(raw):
    folder = raw()
    (folder / "train" / "12_left.jpeg").unlink()
    with pytest.raises(InputError, match=r"line 4: the image .*12_left.jpeg is absent, as are 1 of 16"):
        build(folder)


def test_image_without_a_grade(raw):
    folder = raw()
    shutil.copy(folder / "train" / "12_left.jpeg", folder / "train" / "13_left.jpeg")
    with pytest.raises(InputError, match=r"13_left.jpeg: .*trainLabels.csv does not list this image, nor 0 others"):
        build(folder)


def test_eyes_of_a_patient_in_two_splits(raw):
    folder = raw()
    table = folder / "retinopathy_solution.csv"
    text = table.read_text()
    line = next(line for line in text.splitlines() if line.startswith("3_left"))
    table.write_text(text.replace(line, line.replace("Public", "Private")))
    with pytest.raises(InputError, match=r"its patient is in the split '\w+' and, by .*'(test|validation)' too"):
        build(folder)
    assert len(build(folder, split="held_out")["test"]) == 8


def test_corrupt_images(raw):
    folder = raw(corrupt=2)
    with pytest.raises(InputError, match=r"10_\w+.jpeg: cannot decode(.|\n)*asked for by: .*trainLabels.csv, line"):
        build(folder)
    assert len(build(folder, "skipped", on_corrupt="skip")["train"]) == 6


def test_black_images_are_images(raw):
    black = images.decode(build(raw())["train"]["16_right"]["image"])
    assert black.max() == 0

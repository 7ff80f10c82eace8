import importlib.util
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mediax import builder, images
from mediax.datasets import chestxray14
from mediax.errors import InputError

SIZE = 64
SIZES = {"patients": 9, "test_patients": 5, "size": SIZE}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """Two copies with the same images: the release of 2020 in one folder, the first one as Kaggle has it."""
    folder = tmp_path_factory.mktemp("chestxray14")
    chestxray14.phantom(folder / "new" / "chestxray14", **SIZES)
    chestxray14.phantom(folder / "old" / "chestxray14", release="v2017", layout="kaggle", **SIZES)
    return folder


@pytest.fixture
def raw(phantoms, tmp_path):
    """A copy of the release of 2020 that a test may damage."""
    shutil.copytree(phantoms / "new", tmp_path / "raw")
    return tmp_path / "raw" / "chestxray14"


@pytest.fixture(scope="session")
def drawn():
    """The truth: image name -> what was drawn."""
    named = chestxray14.phantom_images(0, SIZES["patients"], SIZES["test_patients"], SIZE)
    return {image.name.removesuffix(".png"): (image, image.draw()) for image in named}


def build(tmp_path, manual, data="data", **config):
    return builder.prepare(chestxray14, data_dir=tmp_path / data, manual_dir=manual, builder_config=config)


def rows(folder, tmp_path):
    """The rows of all splits, without building."""
    made = chestxray14.Builder(data_dir=tmp_path / "unused")
    return made.rows(made.find(folder))


def records(directory):
    return {
        split: {record["id"]: record for record in builder.Records(directory, split)}
        for split in ("train", "validation", "test")
    }


def edit(path: Path, old: str, new: str, count: int = 1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def test_both_releases_and_layouts_build_to_the_same_records(phantoms, tmp_path, drawn):
    new = records(build(tmp_path, phantoms / "new", "new", size=32))
    old = records(build(tmp_path, phantoms / "old", "old", size=32))
    assert (phantoms / "old" / "chestxray14" / "images_002" / "images").is_dir()
    names = set()
    for split, split_records in new.items():
        assert split_records.keys() == old[split].keys()
        for name, record in split_records.items():
            child = drawn[name][0].patient.age < 1
            np.testing.assert_equal(old[split][name] | {"age": 0}, record | {"age": 0})
            assert old[split][name]["age"] == pytest.approx(0.5 if child else record["age"])
            names.add(name)
    assert names == drawn.keys()
    assert any(drawn[name][0].patient.age < 1 for name in names)


def test_records_tell_the_truth(phantoms, tmp_path, drawn):
    for name, record in records(build(tmp_path, phantoms / "new", size=32))["test"].items():
        image, radiograph = drawn[name]
        labels = {chestxray14.FINDINGS[index] for index in np.flatnonzero(record["labels"])}
        assert labels == {label for finding in image.findings for label in chestxray14.PHANTOM_LABELS[finding]}
        assert record["sex"] == radiograph.sex
        assert record["view"] == radiograph.view
        assert record["age"] == int(radiograph.age)
        assert record["patient_id"] == name[:8]
        shape = np.array(radiograph.image.shape)
        np.testing.assert_allclose(record["spacing_mm"], radiograph.spacing_mm * shape / 32, rtol=1e-5)
        example = chestxray14.read(record)
        np.testing.assert_array_equal(example["labels"], record["labels"])
        assert example["labels"].dtype == np.float32
        np.testing.assert_array_equal(example["target"], np.float32([record["age"]]))
        assert example["image"].shape == (32, 32, 1)


@pytest.mark.parametrize(
    "config", [{}, {"size": 40}, {"size": 40, "aspect": "crop"}, {"size": 40, "aspect": "letterbox"}]
)
def test_boxes_come_back_within_half_a_pixel(phantoms, tmp_path, drawn, config):
    fit = images.Fit(SIZE, SIZE, config.get("size"), config.get("aspect", "stretch"))
    boxed = 0
    for split, split_records in records(build(tmp_path, phantoms / "new", **config)).items():
        for name, record in split_records.items():
            radiograph = drawn[name][1]
            down, right = SIZE / np.array(radiograph.image.shape)
            truth = [
                (chestxray14.PHANTOM_BOXES[finding], np.array(corners) * (down, right, down, right))
                for finding, *corners in radiograph.boxes
                if split == "test" and finding in chestxray14.PHANTOM_BOXES
            ]
            assert record["boxes_known"] == bool(truth)
            assert len(record["boxes"]) == len(truth)
            found = fit.boxes_back(record["boxes"])
            for (finding, corners), box, label in zip(truth, found, record["box_labels"]):
                assert chestxray14.BOX_FINDINGS[label] == finding
                np.testing.assert_allclose(box, corners, atol=0.5)
                boxed += 1
    assert boxed > 5


def test_files_with_four_channels_become_grey(phantoms, tmp_path):
    paths = sorted((phantoms / "new").rglob("*.png"))
    modes = {path.stem: Image.open(path).mode for path in paths}
    assert Counter(modes.values())["RGBA"] >= 1
    native = records(build(tmp_path, phantoms / "new"))
    for path in paths:
        record = next(split[path.stem] for split in native.values() if path.stem in split)
        expected = np.asarray(Image.open(path).convert("RGB"))[..., :1]
        np.testing.assert_array_equal(images.decode(record["image"]), expected)


def test_splits_follow_the_lists_and_the_rule(phantoms, tmp_path):
    splits = rows(phantoms / "new" / "chestxray14", tmp_path)
    listed = {
        name: (phantoms / "new" / "chestxray14" / f"{name}_list.txt").read_text().split("\n")
        for name in ("train_val", "test")
    }
    assert {f"{row.id}.png" for row in splits["test"]} == set(listed["test"])
    assert {f"{row.id}.png" for row in [*splits["train"], *splits["validation"]]} == set(listed["train_val"])
    for split in ("train", "validation"):
        assert splits[split]
        for row in splits[split]:
            held_out = builder.held_out(row.patient_id, 0.1, salt="chestxray14/validation")
            assert held_out == (split == "validation")


def test_views_are_a_choice(phantoms, tmp_path):
    directory = build(tmp_path, phantoms / "new", size=32, views="AP")
    assert set(builder.Records(directory, "train").columns()["view"]) == {"AP"}


def test_copy_without_boxes_is_built_without_them(raw, tmp_path, caplog):
    (raw / "BBox_List_2017.csv").unlink()
    splits = rows(raw, tmp_path)
    assert not any(row.fields["boxes_known"] for row in splits["test"])
    assert "built without boxes" in caplog.text


def test_extra_images_are_counted(raw, tmp_path, caplog):
    shutil.copy(next((raw / "images").iterdir()), raw / "images" / "00099999_000.png")
    rows(raw, tmp_path)
    assert "left out 1 images" in caplog.text


def test_variants_of_the_table(raw, phantoms, tmp_path):
    expected = rows(phantoms / "new" / "chestxray14", tmp_path)
    table = raw / "Data_Entry_2017_v2020.csv"
    edit(table, "Patient Gender", "Patient Sex")
    for path in list((raw / "images").iterdir()):
        path.rename(path.with_suffix(".PNG"))
    nested = raw.parent / "nested"
    nested.mkdir()
    raw.rename(nested / "NIH")
    found = rows(nested, tmp_path)
    for split, split_rows in expected.items():
        assert [row.id for row in found[split]] == [row.id for row in split_rows]
        for row, other in zip(split_rows, found[split]):
            np.testing.assert_equal(other.fields, row.fields)
            assert other.image.is_file()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("BBox_List_2017.csv", "Infiltrate", "Infiltration", r"CSV, line \d+: the finding is 'Infiltration': did you"),
        ("Data_Entry_2017_v2020.csv", "Cardiomegaly", "Cardiomegaly|No Finding", r"line \d+: Finding Labels is"),
        ("Data_Entry_2017_v2020.csv", "Pneumothorax", "Pneumo", r"line \d+: Finding Labels is 'Pneumo': did you mean"),
        ("Data_Entry_2017_v2020.csv", ",F,", ",W,", r"line \d+: sex 'W', view '.*'; expected M or F"),
        ("Data_Entry_2017_v2020.csv", "Height]", "Hight]", r"columns \['Height\]'\] are missing"),
        ("Data_Entry_2017_v2020.csv", "00000001_000", "00000009_000", r"'00000009_000.png' of patient '1'|neither"),
        ("test_list.txt", ".png\n", ".png\n00099999_000.png\n", r"test_list.txt, line 2: 00099999_000.png is not in"),
    ],
)
def test_damaged_tables_name_file_and_line(raw, tmp_path, name, old, new, message):
    edit(raw / name, old, new)
    with pytest.raises(InputError, match=f"(?i){message}"):
        rows(raw, tmp_path)


def test_lists_must_be_complete_and_disjoint(raw, tmp_path):
    first = (raw / "train_val_list.txt").read_text().split("\n")[0]
    with (raw / "test_list.txt").open("a") as file:
        file.write(f"\n{first}")
    with pytest.raises(InputError, match=rf"test_list.txt, line \d+: {first} was listed before, by .*train_val_list"):
        rows(raw, tmp_path)
    (raw / "test_list.txt").write_text("")
    with pytest.raises(InputError, match=r"is in neither train_val_list\.txt nor test_list\.txt"):
        rows(raw, tmp_path)
    (raw / "test_list.txt").unlink()
    with pytest.raises(InputError, match=r"the list .*test_list\.txt of the official splits is absent"):
        rows(raw, tmp_path)


def test_patient_in_both_lists_is_an_error(raw, tmp_path):
    two = next(path.stem for path in sorted((raw / "images").iterdir()) if path.stem.endswith("_001"))
    edit(raw / "train_val_list.txt", f"{two}.png", "", 1)
    with (raw / "test_list.txt").open("a") as file:
        file.write(f"\n{two}.png")
    with pytest.raises(InputError, match="its patient is in the split"):
        build(tmp_path, raw.parent, size=32)


def test_absent_image_and_box_outside_are_errors(raw, tmp_path):
    boxed = (raw / "BBox_List_2017.csv").read_text().split("\n")[1]
    name, finding, *_ = boxed.split(",")
    edit(raw / "BBox_List_2017.csv", boxed, f"{name},{finding},900,10,200,20")
    with pytest.raises(InputError, match=r"BBox_List_2017.csv, line 2: the box .* leaves the image"):
        build(tmp_path, raw.parent, size=32)
    (raw / "images" / name).unlink()
    with pytest.raises(InputError, match=rf"Data_Entry.*line \d+.*the image .*{name} is absent"):
        build(tmp_path, raw.parent, size=32)


@pytest.mark.parametrize(
    ("text", "years"), [("57", 57), ("058Y", 58), ("006M", 0.5), ("365D", 0.9993), ("0", 0), ("414", np.nan)]
)
def test_ages_of_all_releases(text, years):
    assert chestxray14.parse_age("", text) == pytest.approx(years, abs=1e-4, nan_ok=True)


def test_wrong_age_is_an_error():
    with pytest.raises(InputError, match="line 3: Patient Age is 'old', expected years"):
        chestxray14.parse_age("line 3", "old")


def test_phantom_is_deterministic_and_takes_known_options(phantoms, tmp_path):
    chestxray14.phantom(tmp_path / "again", **SIZES)
    for path in sorted((tmp_path / "again").rglob("*.*")):
        original = phantoms / "new" / "chestxray14" / path.relative_to(tmp_path / "again")
        assert path.read_bytes() == original.read_bytes()
    with pytest.raises(InputError, match="release='2020': did you mean 'v2020'"):
        chestxray14.phantom(tmp_path, release="2020")


# The real tables.

REAL_COUNTS = {
    "Infiltration": 19_894,
    "Effusion": 13_317,
    "Atelectasis": 11_559,
    "Nodule": 6_331,
    "Mass": 5_782,
    "Pneumothorax": 5_302,
    "Consolidation": 4_667,
    "Pleural_Thickening": 3_385,
    "Cardiomegaly": 2_776,
    "Emphysema": 2_516,
    "Edema": 2_303,
    "Fibrosis": 1_686,
    "Pneumonia": 1_431,
    "Hernia": 227,
}
REAL_BOXES = {
    "Atelectasis": 180,
    "Effusion": 153,
    "Cardiomegaly": 146,
    "Infiltrate": 123,
    "Pneumonia": 120,
    "Pneumothorax": 98,
    "Mass": 85,
    "Nodule": 79,
}


@pytest.fixture(scope="module")
def real_tables():
    """The tables that ship with torchxrayvision 1.5.7, found without importing the package."""
    folder = os.environ.get("MEDIAX_TXRV_DATA")
    if not folder:
        package = importlib.util.find_spec("torchxrayvision")
        if package is None:
            pytest.skip("the real tables are in the package torchxrayvision: install it (pip install --no-deps)")
        folder = Path(package.submodule_search_locations[0]) / "data"
    return Path(folder) / "Data_Entry_2017_v2020.csv.gz", Path(folder) / "BBox_List_2017.csv.gz"


def test_real_tables_have_the_known_counts(real_tables):
    table, box_table = real_tables
    boxes = chestxray14.read_boxes(box_table)
    assert len(boxes) == 880
    assert Counter(finding for image in boxes.values() for _, finding, _ in image) == REAL_BOXES
    release = chestxray14.Release(table, {}, box_table, {})
    entries = [
        chestxray14.entry_row(release, where, line, boxes.get(line["Image Index"]))
        for where, line in chestxray14.read_entries(table)
    ]
    labels = np.stack([row.fields["labels"] for row in entries])
    assert labels.shape == (112_120, 14)
    assert dict(zip(chestxray14.FINDINGS, labels.sum(axis=0).tolist())) == REAL_COUNTS
    assert int((labels.sum(axis=1) == 0).sum()) == 60_361
    assert len({row.id for row in entries}) == 112_120
    assert len({row.patient_id for row in entries}) == 30_805
    assert Counter(row.fields["sex"] for row in entries) == {"Male": 63_340, "Female": 48_780}
    assert Counter(row.fields["view"] for row in entries) == {"PA": 67_310, "AP": 44_810}
    assert max(row.fields["age"] for row in entries) == 95
    assert sum(len(row.fields["boxes"]) for row in entries) == 984
    corners = np.concatenate([row.fields["boxes"] for row in entries])
    assert corners.min() > 0
    assert corners.max() < 1024
    validation = sum(chestxray14.is_validation(patient) for patient in {row.patient_id for row in entries})
    assert 0.095 < validation / 30_805 < 0.105

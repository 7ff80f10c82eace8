import csv
import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from mediax import builder, images
from mediax.datasets import chexpert, mimic_cxr
from mediax.errors import InputError

SIZES = {"patients": 6, "validate_patients": 3, "test_patients": 5, "size": 40}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """The same images in both releases and layouts."""
    folder = tmp_path_factory.mktemp("mimic_cxr")
    mimic_cxr.phantom(folder / "bare" / "mimic_cxr", gzipped=False, **SIZES)
    mimic_cxr.phantom(folder / "wget" / "mimic_cxr", layout="wget", **SIZES)
    mimic_cxr.phantom(folder / "old" / "mimic_cxr", release="2.0.0", **SIZES)
    return folder


@pytest.fixture
def raw(phantoms, tmp_path):
    """A copy with plain tables that a test may damage."""
    shutil.copytree(phantoms / "bare", tmp_path / "raw")
    return tmp_path / "raw" / "mimic_cxr"


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"mimic-cxr-{name}.csv").open() as file:
        return list(csv.DictReader(file))


def rows(folder, tmp_path, **config):
    """The rows of all splits, without building."""
    made = mimic_cxr.Builder(data_dir=tmp_path / "unused", config=config or None)
    return made.rows(made.find(folder))


def build(tmp_path, manual, **config):
    return builder.prepare(mimic_cxr, data_dir=tmp_path / "data", manual_dir=manual, builder_config=config)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("labeler", ["chexpert", "negbio"])
def test_every_layout_gives_the_same_rows(phantoms, tmp_path, labeler):
    expected = rows(phantoms / "bare" / "mimic_cxr", tmp_path, labeler=labeler)
    assert (phantoms / "wget" / "mimic_cxr" / "physionet.org/files/mimic-cxr-jpg/2.1.0/files").is_dir()
    for layout in ("wget", "old"):
        found = rows(phantoms / layout / "mimic_cxr", tmp_path, labeler=labeler)
        for split, split_rows in expected.items():
            assert [(row.id, row.patient_id) for row in found[split]] == [
                (row.id, row.patient_id) for row in split_rows
            ]
            for row, other in zip(split_rows, found[split]):
                np.testing.assert_equal(other.fields, row.fields)
                assert other.image.read_bytes() == row.image.read_bytes()


def test_records_repeat_the_tables(phantoms, tmp_path):
    folder = phantoms / "bare" / "mimic_cxr"
    labels = {line["study_id"]: line for line in table(folder, "2.0.0-chexpert")}
    views = {line["dicom_id"]: line["ViewPosition"] for line in table(folder, "2.0.0-metadata")}
    assert next(iter(labels.values())).keys() == {"subject_id", "study_id", *mimic_cxr.CLASSES}
    states = {"1.0": 1, "0.0": 0, "-1.0": -1, "": -2}
    directory = build(tmp_path, phantoms / "bare", size=32)
    built = 0
    for split in ("train", "validate", "test"):
        found = {record["id"]: record for record in builder.Records(directory, split)}
        listed = [line for line in table(folder, "2.0.0-split") if line["split"] == split]
        assert found.keys() == {line["dicom_id"] for line in listed if line["study_id"] in labels}
        for line in listed:
            if record := found.get(line["dicom_id"]):
                built += 1
                assert (record["patient_id"], record["study_id"]) == (line["subject_id"], line["study_id"])
                assert record["projection"] == views[record["id"]]
                texts = [labels[line["study_id"]][name] for name in mimic_cxr.CLASSES]
                assert record["labels"].tolist() == [states[text] for text in texts]
    assert built == len(views) - sum(line["study_id"] not in labels for line in table(folder, "2.0.0-split"))


def test_images_are_jpegs_and_kept_byte_for_byte_at_their_own_size(phantoms, tmp_path):
    paths = list((phantoms / "bare").rglob("*.jpg"))
    assert {images.read(path).shape for path in paths} == {(40, 33, 1), (33, 40, 1)}
    files = {path.stem: path.read_bytes() for path in paths}
    for record in builder.Records(build(tmp_path, phantoms / "bare"), "test"):
        assert record["image"] == files[record["id"]]


def test_studies_without_labels_are_left_out_and_counted(phantoms, tmp_path, caplog):
    folder = phantoms / "bare" / "mimic_cxr"
    labelled = {line["study_id"] for line in table(folder, "2.0.0-chexpert")}
    missing = {line["study_id"] for line in table(folder, "2.0.0-split")} - labelled
    assert len(missing) == 1
    splits = rows(folder, tmp_path)
    assert missing.isdisjoint(row.fields["study_id"] for split in splits.values() for row in split)
    assert "left out 1 studies" in caplog.text


def test_views_come_from_the_table_alone(phantoms, tmp_path):
    folder = phantoms / "bare" / "mimic_cxr"
    views = {row.fields["projection"]: row.fields["view"] for split in rows(folder, tmp_path).values() for row in split}
    assert views == {
        "AP": "frontal",
        "PA": "frontal",
        "LATERAL": "lateral",
        "LL": "lateral",
        "AP AXIAL": "other",
        "": "unknown",
    }
    for view in ("frontal", "lateral"):
        chosen = rows(folder, tmp_path, views=view)
        assert {row.fields["view"] for split in chosen.values() for row in split} == {view}


def test_labels_of_the_radiologist(phantoms, tmp_path):
    folder = phantoms / "bare" / "mimic_cxr"
    lines = {line["study_id"]: line for line in table(folder, "2.1.0-test-set-labeled")}
    assert "Airspace Opacity" in next(iter(lines.values()))
    assert "subject_id" not in next(iter(lines.values()))
    splits = rows(folder, tmp_path, labeler="radiologist")
    assert {row.fields["study_id"] for row in splits["test"]} == set(lines)
    assert not splits["train"]
    for row in splits["test"]:
        line = lines[row.fields["study_id"]]
        texts = [line["Airspace Opacity" if name == "Lung Opacity" else name] for name in mimic_cxr.CLASSES]
        assert row.fields["labels"].tolist() == [float(text) for text in texts]
    with pytest.raises(InputError, match=r"no mimic-cxr-\*-test-set-labeled\.csv\* lies near"):
        rows(phantoms / "old" / "mimic_cxr", tmp_path, labeler="radiologist")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("2.0.0-split", ",validate", ",valid", r"split\.csv, line \d+: split is 'valid': did you mean 'validate'"),
        ("2.0.0-chexpert", ",1.0", ",yes", r"chexpert\.csv, line \d+: .* is 'yes', expected 1\.0"),
        ("2.0.0-chexpert", "Edema", "Oedema", r"chexpert\.csv: columns \['Edema'\] are missing"),
        ("2.0.0-chexpert", "10000032,", "10000033,", r"of patient 10000032, by .*chexpert\.csv, line 2 of patient"),
        ("2.0.0-metadata", "ViewPosition", "View", r"metadata\.csv: columns \['ViewPosition'\] are missing"),
    ],
)
def test_damaged_tables_name_file_and_line(raw, tmp_path, name, old, new, message):
    edit(raw / f"mimic-cxr-{name}.csv", old, new)
    with pytest.raises(InputError, match=message):
        rows(raw, tmp_path)


def test_missing_and_repeated_lines_and_tables(raw, tmp_path):
    labels = raw / "mimic-cxr-2.0.0-chexpert.csv"
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join([*lines, lines[1]]))
    with pytest.raises(InputError, match=rf"line {len(lines) + 1}: study 50414267 was labelled before, by .*line 2"):
        rows(raw, tmp_path)
    metadata = raw / "mimic-cxr-2.0.0-metadata.csv"
    labels.write_text("".join(lines))
    metadata.write_text("".join(metadata.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"split\.csv, line \d+: .* is not in .*metadata\.csv"):
        rows(raw, tmp_path)
    shutil.copy(raw / "mimic-cxr-2.0.0-split.csv", raw / "files")
    with pytest.raises(InputError, match=r"mimic-cxr-\*-split\.csv\* lies in .* and in .*: keep one"):
        rows(raw, tmp_path)


def test_truncated_table_and_absent_image(raw, tmp_path):
    labels = raw / "mimic-cxr-2.0.0-chexpert.csv"
    text = labels.read_bytes()
    labels.with_name(f"{labels.name}.gz").write_bytes(gzip.compress(text)[:-20])
    labels.unlink()
    with pytest.raises(InputError, match=r"chexpert\.csv\.gz: no readable CSV file"):
        rows(raw, tmp_path)
    labels.with_name(f"{labels.name}.gz").unlink()
    labels.write_bytes(text)
    path = next(raw.rglob("*.jpg"))
    path.unlink()
    with pytest.raises(InputError, match=rf"split\.csv, line \d+: the image .*{path.name} is absent"):
        build(tmp_path, raw.parent, size=32)


def record(states):
    image = images.encode(np.full((4, 6, 1), 7, np.uint8))
    texts = {"id": "a-b", "patient_id": "1", "study_id": "5", "view": "frontal", "projection": "AP"}
    return {"labels": np.int8(states), "image": image, **texts}


def test_policies_mean_what_they_mean_for_chexpert():
    states = [1, 0, -1, -2, -1, 1, -1, 0, -1, -2, 1, 0, -2, -1]
    theirs = record(states) | {"sex": "Male", "age": 50.0}
    policies = ("zeros", "ones", "ignore", "smooth_ones", "smooth_zeros", {"Edema": "zeros", "default": "ones"})
    for uncertainty in policies:
        for not_mentioned in ("absent", "unknown"):
            options = {"uncertainty": uncertainty, "not_mentioned": not_mentioned, "seed": 3}
            labels = mimic_cxr.read(record(states), **options)["labels"]
            np.testing.assert_array_equal(labels, chexpert.read(theirs, **options)["labels"])
    assert mimic_cxr.CLASSES == chexpert.CLASSES


def test_read_gives_the_schema_and_chooses_classes():
    example = mimic_cxr.read(record([1] * 14), classes="competition")
    assert example["labels"].tolist() == [1] * 5
    assert example["study_id"] == "5"
    assert example["image"].shape == (4, 6, 1)
    assert mimic_cxr.classes({"classes": "competition"}) == mimic_cxr.classes(classes="competition")
    with pytest.raises(InputError, match="cannot be read from records of 5 classes"):
        mimic_cxr.read(record([1] * 5), classes="all")
    with pytest.raises(InputError, match="classes='five'"):
        mimic_cxr.classes(classes="five")
    with pytest.raises(InputError, match=r"uncertainty of .* is 'one': did you mean 'ones'"):
        mimic_cxr.read(record([1] * 14), uncertainty="one")


def test_phantom_of_an_unknown_release_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"release='2': .*Valid: 2\.0\.0, 2\.1\.0"):
        mimic_cxr.phantom(tmp_path, release="2")

import importlib.util
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mediax import builder, dicom, images, vocabulary
from mediax.datasets import vinbigdata
from mediax.errors import InputError

COUNT, TESTS, SIZE = 10, 4, 64


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vinbigdata")
    for release in ("kaggle", "physionet"):
        root = folder / release / "vinbigdata"
        vinbigdata.phantom(root, release=release, count=COUNT, test_count=TESTS, size=SIZE)
    return folder


@pytest.fixture
def raw(phantoms, tmp_path):
    shutil.copytree(phantoms, tmp_path / "raw")
    return tmp_path / "raw"


def build(tmp_path, manual, data="data", **config):
    return builder.prepare(
        vinbigdata, data_dir=tmp_path / data, manual_dir=manual, builder_config={"size": 48, **config}
    )


def records(directory):
    splits = builder.tfds.builder_from_directory(str(directory)).info.splits
    return {record["id"]: (split, record) for split in splits for record in builder.Records(directory, split)}


def truth(split, number, release):
    """Labels and boxes in pixels of one drawing."""
    radiograph = vinbigdata.phantom_radiograph(0, split, number, size=SIZE)
    names = vinbigdata.PHANTOM_NAMES | ({"Edema": "Lung Opacity"} if release == "kaggle" else {})
    boxes = [(vocabulary.canonical(names[box[0]]), box[1:]) for box in radiograph.boxes if box[0] in names]
    return radiograph, [name for name, _ in boxes], np.float32([box for _, box in boxes]).reshape(-1, 4)


@pytest.mark.parametrize("aspect", ["stretch", "letterbox", "crop"])
def test_one_readers_boxes_are_the_drawn_ones(phantoms, tmp_path, aspect):
    built = records(build(tmp_path, phantoms / "kaggle", aspect=aspect))
    assert len(built) == COUNT
    for number in range(COUNT):
        radiograph, names, boxes = truth("train", number, "kaggle")
        split, record = built[vinbigdata.phantom_id(0, "train", number)]
        example = vinbigdata.read(record, readers="R8")
        fit = images.Fit(*radiograph.image.shape, 48, aspect)
        assert [vinbigdata.BOX_CLASSES[label] for label in example["box_labels"]] == names
        seen = np.ptp(example["boxes"].reshape(-1, 2, 2), axis=1).all(axis=1)  # the crop may cut a lesion off
        assert aspect == "crop" or seen.all()
        edge = fit.boxes_back(np.float32([[0, 0, 1, 1]]))
        expected = boxes.clip(np.tile(edge[0, :2], 2), np.tile(edge[0, 2:], 2)) if aspect == "crop" else boxes
        np.testing.assert_allclose(fit.boxes_back(example["boxes"])[seen], expected[seen], atol=0.5)
        labels = {vinbigdata.classes()[index] for index in np.flatnonzero(example["labels"])}
        assert labels == (set(names) or {"No Finding"})
        assert split in ("train", "validation", "holdout")


def test_images_are_bright_where_the_drawing_is_though_every_third_is_monochrome1(phantoms, tmp_path):
    built = records(build(tmp_path, phantoms / "kaggle"))
    for number in (0, 1, 3):
        path = phantoms / "kaggle" / "vinbigdata" / "train" / f"{vinbigdata.phantom_id(0, 'train', number)}.dicom"
        assert dicom.read(path).inverted == (number % 3 == 0)
        radiograph, *_ = truth("train", number, "kaggle")
        example = vinbigdata.read(built[path.stem][1])
        expected = images.Fit(*radiograph.image.shape, 48).image(images.to_uint8(radiograph.image[..., None]))
        assert np.abs(example["image"].astype(float) - expected).max() <= 2
        spacing = np.array(radiograph.spacing_mm) * radiograph.image.shape / 48
        np.testing.assert_allclose(example["spacing_mm"], spacing, rtol=1e-4)


def test_physionet_has_a_consensus_test_set_and_labels_of_the_whole_image(phantoms, tmp_path):
    built = records(build(tmp_path, phantoms / "physionet", release="physionet"))
    assert Counter(split == "test" for split, _ in built.values()) == {False: COUNT, True: TESTS}
    assert {split for split, _ in built.values()} <= {"train", "validation", "test"}
    names = vinbigdata.classes({"release": "physionet"})
    assert names == vinbigdata.CLASSES and len(names) == 28
    diagnoses = set()
    for split, count in (("train", COUNT), ("test", TESTS)):
        for number in range(count):
            _, found, _ = truth(split, number, "physionet")
            record = built[vinbigdata.phantom_id(0, split, number)][1]
            assert record["readers"].tolist() == ([8, 9, 10] if split == "train" else [0])
            example = vinbigdata.read(record, readers="R8")
            present = {names[index] for index in np.flatnonzero(example["labels"])}
            assert present & set(vinbigdata.BOX_CLASSES) == set(found)
            assert ("No Finding" in present) == (not found)
            diagnoses |= present & set(vinbigdata.GLOBAL_CLASSES)
            assert example["boxes_known"]
            globally = vinbigdata.read(record, readers="R8", classes="global")["labels"]
            assert globally.tolist() == example["labels"][22:].tolist()
    assert {"Pneumonia", "Other Disease", "No Finding"} <= diagnoses
    assert vinbigdata.classes({"release": "physionet"}, classes="global") == vinbigdata.GLOBAL_CLASSES


def record(boxes, labels, readers, votes):
    """A record by hand: three readers R1 to R3, kaggle's 15 classes."""
    reader_labels = np.zeros((3, 15), np.uint8)
    for reader, columns in enumerate(votes):
        reader_labels[reader, columns] = 1
    return {
        "id": "a",
        "patient_id": "a",
        "image": images.encode(np.zeros((8, 8, 1), np.uint8)),
        "boxes": np.float32(boxes).reshape(-1, 4),
        "box_labels": np.int32(labels),
        "box_readers": np.int32(readers),
        "readers": np.int32([1, 2, 3]),
        "reader_labels": reader_labels,
    }


LESIONS = [[0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.3, 0.32], [0.6, 0.6, 0.9, 0.9], [0.1, 0.1, 0.3, 0.3]]


def test_readers_are_kept_united_fused_or_chosen():
    given = record(LESIONS, [3, 3, 3, 5], [1, 2, 3, 3], [[3], [3], [3, 5]])
    assert len(vinbigdata.read(given)["boxes"]) == 4
    union, fused = (vinbigdata.read(given, readers=readers) for readers in ("union", "fused"))
    for example in (union, fused):
        assert sorted(example["box_labels"].tolist()) == [3, 3, 5]
        assert example["box_valid"].tolist() == [True] * 3 and example["box_labels"].dtype == np.int32
    assert union["boxes"][0].tolist() == np.float32([0.1, 0.1, 0.3, 0.32]).tolist()
    np.testing.assert_allclose(fused["boxes"][0], [0.1, 0.1, 0.3, 0.31], atol=1e-6)
    for readers in ("union", "fused"):
        agreed = vinbigdata.read(given, readers=readers, agreement=2)
        assert agreed["box_labels"].tolist() == [3]
        assert len(vinbigdata.read(given, readers=readers, agreement=3)["boxes"]) == 0
    one = vinbigdata.read(given, readers="R3", agreement=3)
    assert one["box_labels"].tolist() == [3, 5] and np.flatnonzero(one["labels"]).tolist() == [3, 5]
    absent = vinbigdata.read(given, readers="R7")
    assert np.isnan(absent["labels"]).all() and not absent["boxes_known"] and not len(absent["boxes"])


def test_labels_by_agreement():
    none = vinbigdata.classes().index("No Finding")
    given = record([], [], [], [[3], [3, 5], [none]])
    found = {agreement: vinbigdata.read(given, agreement=agreement)["labels"] for agreement in (1, 2, 3, "share")}
    assert np.flatnonzero(found[1]).tolist() == [3, 5]
    assert np.flatnonzero(found[2]).tolist() == [3]
    assert np.flatnonzero(found[3]).tolist() == [none]
    np.testing.assert_allclose(found["share"][[3, 5, none]], [2 / 3, 1 / 3, 1 / 3])
    for options in ({"agreement": 0}, {"agreement": "most"}, {"readers": "R"}, {"readers": "mean"}, {"classes": "x"}):
        with pytest.raises(InputError, match="vinbigdata"):
            vinbigdata.read(given, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("No finding,14,R9", "Nodule,14,R9", 1), r"train\.csv, line 3: the class 'Nodule' is none"),
        (lambda t: t.replace("No finding,14,R9", "Nodul/Mas,14,R9", 1), r"train\.csv, line 3: .*not a known finding"),
        (lambda t: t.replace("14,R9", "14,9", 1), r"line 3: rad_id is '9'"),
        (lambda t: t.replace("14,R9,,,,", "14,R9,1,1,2,2", 1), r"line 3: 'No finding' has a box"),
        (lambda t: t.replace("No finding,14,R9,", "Edema,3,R9,", 1), r"line 3: the class 'Edema' is none of this"),
        (lambda t: t.replace("No finding,14,R9,", "Cardiomegaly,3,R9,", 1), r"line 3: .* is no box with an area"),
        (lambda t: t.replace("14,R9", "14,R8", 1).replace("No finding,14,R8,,,,", "ILD,5,R8,1,1,2,2", 1), "opposite"),
        (lambda t: t.replace("14,R9,,,,", "14,R9,,,", 1), r"line 3: 7 cells"),
        (lambda t: t.replace("x_min", "xmin"), "raw data of VinBigData"),
    ],
)
def test_bad_tables_are_named(tmp_path, raw, change, message):
    table = raw / "kaggle" / "vinbigdata" / "train.csv"
    table.write_text(change(table.read_text()))
    with pytest.raises(InputError, match=message):
        build(tmp_path, raw / "kaggle")


def test_images_without_a_line_absent_images_and_wrong_boxes_are_named(tmp_path, raw):
    root = raw / "kaggle" / "vinbigdata"
    first = vinbigdata.phantom_id(0, "train", 0)
    shutil.copy(root / "train" / f"{first}.dicom", root / "train" / "0.dicom")
    with pytest.raises(InputError, match=r"no line names .*0\.dicom, nor 0 other"):
        build(tmp_path, raw / "kaggle")
    (root / "train" / f"{first}.dicom").unlink()
    (root / "train" / "0.dicom").unlink()
    with pytest.raises(InputError, match=rf"train\.csv, line 2: the image .*{first}\.dicom is absent"):
        build(tmp_path, raw / "kaggle")
    text = (root / "train.csv").read_text().splitlines()
    lines = [f"{line.rpartition(',')[0]},999" if line.endswith(".0") else line for line in text if first not in line]
    (root / "train.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"leaves the image of .* pixels\. Is the image a resized copy"):
        build(tmp_path, raw / "kaggle")


def test_the_other_release_and_physionets_errors_are_told(tmp_path, raw):
    with pytest.raises(InputError, match=r"holds the release 'physionet': set build\.release"):
        build(tmp_path, raw / "physionet")
    table = raw / "physionet" / "vinbigdata" / "annotations" / "image_labels_train.csv"
    text = table.read_text()
    for change, message in (
        (lambda t: t.replace("COPD", "Edem"), "Edem"),
        (lambda t: t.replace("COPD", "Edema"), r"columns for \['Chronic Obstructive"),
        (lambda t: t.replace(",R9,0", ",R9,2", 1), "line 3: Aortic enlargement is '2'"),
        (lambda t: t.replace(",R9,0", ",R8,0", 1), "line 3: image .* listed before"),
        (
            lambda t: t.replace(",R9,0", ",R7,0", 1),
            r"annotations_train\.csv, line \d+: image_labels_train\.csv does not",
        ),
    ):
        table.write_text(change(text))
        with pytest.raises(InputError, match=message):
            build(tmp_path, raw / "physionet", release="physionet")


def test_folders_may_be_nested_and_suffixes_differ(tmp_path, raw):
    nested = raw / "new" / "vinbigdata" / "physionet.org" / "files" / "vindr-cxr"
    nested.mkdir(parents=True)
    shutil.move(raw / "physionet" / "vinbigdata", nested / "1.0.0")
    for path in (nested / "1.0.0" / "test").iterdir():
        path.rename(path.with_suffix(".DCM"))
    built = records(build(tmp_path, raw / "new", release="physionet"))
    assert len(built) == COUNT + TESTS


def test_the_real_table():
    package = importlib.util.find_spec("torchxrayvision")
    table = Path(package.origin).parent / "data" / "vinbigdata-train.csv.gz" if package else Path("none")
    if not table.is_file():
        pytest.skip("needs the tables in torchxrayvision 1.5.7 (pip install --no-deps)")
    readings = vinbigdata.read_kaggle(table)
    assert len(readings) == 15000 and all(len(reading.labels) == 3 for reading in readings.values())
    boxes = Counter(label for reading in readings.values() for label in reading.box_labels)
    known = [7162, 279, 960, 5427, 556, 1000, 1247, 2483, 2580, 2203, 2476, 4842, 226, 4655]
    assert [boxes[label] for label in range(14)] == known
    normal = sum(int(votes[14]) for reading in readings.values() for votes in reading.labels.values())
    assert normal == 31818 and normal + sum(known) == 67914
    assert sum(bool(reading.boxes) for reading in readings.values()) == 4394

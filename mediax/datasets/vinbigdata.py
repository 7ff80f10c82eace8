"""VinBigData (Kaggle) and VinDr-CXR (PhysioNet): 18,000 frontal chest radiographs, findings boxed by radiologists.

Nguyen et al., "VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations", Scientific Data 9 (2022);
doi:10.13026/3akn-b287. Two releases of the same images; the builder config `release` says which one is read:
  kaggle     15,000 images; 14 findings in boxes and "No finding", by three readers each
  physionet  the same and the 3,000 test images; 22 findings in boxes, 6 diagnoses of the whole image

Splits
  train       the official training images but those of `validation` (and of `holdout`)
  validation  10 % of the official training images: `builder.held_out` with the salt "vinbigdata/validation"
  holdout     kaggle only: 10 % of what is left, salt "vinbigdata/holdout". It takes the place of the competition's
              test set, which has no public labels and is not built; it is not official
  test        physionet only: the official test set, a consensus of five readers
Patients are not named: each image counts as its own.

Annotated: every class, in every image, by each of its readers; nothing is unknown. In the kaggle release the labels
of a reader are the classes of this reader's lines. Records keep the boxes and labels of readers apart, so the options
of `read` (readers, agreement, iou, classes) need no second build. Images are rendered with their DICOM window.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mediax import annotations, builder, catalog, raw_files, vocabulary
from mediax.errors import InputError
from mediax.phantoms import chest, pool

# In the order of the competition's class_id; the other eight are PhysioNet's alone.
KAGGLE_BOX_CLASSES = (
    "Aortic Enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "Interstitial Lung Disease",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other Lesion",
    "Pleural Effusion",
    "Pleural Thickening",
    "Pneumothorax",
    "Pulmonary Fibrosis",
)
BOX_CLASSES = (
    *KAGGLE_BOX_CLASSES,
    "Clavicle Fracture",
    "Edema",
    "Emphysema",
    "Enlarged Pulmonary Artery",
    "Lung Cavity",
    "Lung Cyst",
    "Mediastinal Shift",
    "Rib Fracture",
)
GLOBAL_CLASSES = (
    "Chronic Obstructive Pulmonary Disease",
    "Lung Tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other Disease",
    "No Finding",
)
CLASSES = (*BOX_CLASSES, *GLOBAL_CLASSES)
CLASS_SETS = {
    "kaggle": (*KAGGLE_BOX_CLASSES, "No Finding"),
    "physionet": CLASSES,
    "global": GLOBAL_CLASSES,
}

SOURCE = builder.Source(
    title="VinBigData Chest X-ray Abnormalities Detection, or VinDr-CXR 1.0.0",
    homepage="https://physionet.org/content/vindr-cxr/1.0.0/ or "
    "https://www.kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection",
    licence="Kaggle competition rules, or PhysioNet Credentialed Health Data Use Agreement",
    access="Kaggle account, or PhysioNet credentialed access",
    download_size="about 190 GB",
    images="15,000 training and 3,000 test images",
    citation="Nguyen et al., Scientific Data 9 (2022), doi:10.13026/3akn-b287",
    tree="""
train.csv                                       release="kaggle"
train/50a418190bc3fb1ef1633bf9678929b3.dicom

annotations/annotations_train.csv               release="physionet"
annotations/image_labels_train.csv
annotations/annotations_test.csv  annotations/image_labels_test.csv
train/*.dicom  test/*.dicom
""",
)

CORNERS = ("y_min", "x_min", "y_max", "x_max")
# Where a release may begin, below the raw folder. Patterns with names, because a raw folder can be huge.
PLACES = ("", "vin*/", "vin*/*/", "physionet.org/files/vin*/*/", "files/vin*/*/")
SUFFIXES = (".dicom", ".dcm")
CONSENSUS = 0  # the reader's number where no single reader is named


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds which release is read."""

    release: Literal["kaggle", "physionet"] = "kaggle"


class Release(NamedTuple):
    """Where the label tables of each official split lie (boxes; labels, None for kaggle), and the images."""

    folder: Path
    tables: dict[str, tuple[Path, Path | None]]


@dataclasses.dataclass
class Reading:
    """What the tables say of one image: each reader's labels u8[K] and boxes [y0, x0, y1, x1] in pixels."""

    where: str
    labels: dict[int, np.ndarray]
    boxes: list[list[float]] = dataclasses.field(default_factory=list)
    box_labels: list[int] = dataclasses.field(default_factory=list)
    box_readers: list[int] = dataclasses.field(default_factory=list)


class Builder(builder.Builder):
    """Builds records with all readers' boxes and labels, told apart by `readers` and `box_readers` (8 is R8)."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.1.0")  # DICOM without a window is stretched
    RENDERS_DICOM = True
    BUILDER_CONFIGS = tuple(
        Config(size=size, release=release)
        for size in (512, 128, 256, 1024, None)
        for release in ("kaggle", "physionet")
    )

    def features(self):
        return {
            **builder.box_features(),
            "box_readers": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "readers": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "reader_labels": tfds.features.Tensor(
                shape=(None, len(CLASS_SETS[self.builder_config.release])), dtype=np.uint8
            ),
            "spacing_mm": builder.spacing_feature(),
        }

    def find(self, folder):
        """Finds the tables of the chosen release; a raw folder that only has the other release is an error."""
        found = {"kaggle": find_kaggle(folder), "physionet": find_physionet(folder)}
        chosen = self.builder_config.release
        for release, other in found.items():
            if other and not found[chosen]:
                raise InputError(f"vinbigdata: {other.folder} holds the release {release!r}: set build.release to it")
        return found[chosen]

    def rows(self, release):
        splits: dict[str, list[builder.Row]] = {"train": [], "validation": [], "holdout": [], "test": []}
        for official, (boxes, labels) in release.tables.items():
            readings = read_physionet(boxes, labels) if labels else read_kaggle(boxes)
            files = image_files(release.folder / official)
            check_listed(boxes, readings, files)
            report_repeated(boxes, readings)
            for name, reading in readings.items():
                path = files.get(name, release.folder / official / f"{name}.dicom")
                split = self.split_of(official, name)
                splits[split].append(builder.Row(name, name, path, reading.where, record_fields(reading)))
        return splits

    def split_of(self, official: str, name: str) -> str:
        """The split of an image; the rules are in the module's docstring."""
        if official == "train" and builder.held_out(name, 0.1, salt="vinbigdata/validation"):
            return "validation"
        kaggle = self.builder_config.release == "kaggle"
        return "holdout" if kaggle and builder.held_out(name, 0.1, salt="vinbigdata/holdout") else official

    def load(self, row):
        from mediax import dicom  # imported where it is needed: pydicom takes a second, which reading can spare

        return dicom.read(row.image).to_uint8("window")

    def annotations(self, row, pixels):
        from mediax import dicom  # see `load`

        return {**row.fields, "spacing_mm": dicom.read_spacing(row.image)}


def find_kaggle(folder: Path) -> Release | None:
    """Finds the competition's train.csv, which other datasets have too, without these columns."""
    for table in (path for place in PLACES[:3] for path in sorted(folder.glob(f"{place}train.csv*"))):
        if {"image_id", "class_name", "rad_id", *CORNERS} <= set(builder.table_columns(table)):
            return Release(table.parent, {"train": (table, None)})
    return None


def find_physionet(folder: Path) -> Release | None:
    """Finds the folder above `annotations/`."""
    for place in PLACES:
        for annotated in sorted(folder.glob(f"{place}annotations")):
            tables = {}
            for split in ("train", "test"):
                names = [f"{kind}_{split}.csv" for kind in ("annotations", "image_labels")]
                pair = [next(annotated.glob(f"{name}*"), None) for name in names]
                if all(pair):
                    tables[split] = tuple(pair)
                elif any(pair) or (annotated.parent / split).is_dir():
                    raise InputError(f"vinbigdata: {annotated} lacks {' or '.join(names)}; complete the download")
            if tables:
                return Release(annotated.parent, tables)
    return None


def image_files(folder: Path) -> dict[str, Path]:
    """The DICOM files of a folder by image id."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return {path.stem: path for path in paths if path.suffix.lower() in SUFFIXES}


def check_listed(table: Path, readings: Mapping[str, Reading], files: Mapping[str, Path]) -> None:
    """Raises InputError for images that the tables do not know: nobody read them, so they are no negatives."""
    if extra := sorted(files.keys() - readings.keys()):
        raise InputError(
            f"{table}: no line names {files[extra[0]]}, nor {len(extra) - 1} other images beside it; is the table "
            f"complete? If it is, remove these images."
        )


def report_repeated(table: Path, readings: Mapping[str, Reading]) -> None:
    """Logs how many boxes a reader drew twice."""
    marks = [
        (name, *mark[:2], *mark[2])
        for name, reading in readings.items()
        for mark in zip(reading.box_readers, reading.box_labels, reading.boxes)
    ]
    raw_files.report_repeated(table, "boxes", marks)


def read_kaggle(table: Path) -> dict[str, Reading]:
    """Reads the competition's train.csv: one line for each box, or one for each reader who found nothing.

    Raises:
      InputError: an unknown class or reader, a box with "No finding", a finding without one, or both by one reader.
    """
    readings: dict[str, Reading] = {}
    columns = {name: index for index, name in enumerate(CLASS_SETS["kaggle"])}
    for where, line in builder.read_table(table, required=("image_id", "class_name", "rad_id", *CORNERS)):
        reading = readings.setdefault(line["image_id"], Reading(where, {}))
        name, reader = finding(where, line["class_name"], columns), reader_number(where, line["rad_id"])
        labels = reading.labels.setdefault(reader, np.zeros(len(columns), np.uint8))
        labels[columns[name]] = 1
        if labels[columns["No Finding"]] and labels.sum() > 1:
            raise InputError(f"{where}: {line['rad_id']} says both {line['class_name']!r} and the opposite")
        add_box(reading, where, line, name, reader)
    return readings


def read_physionet(boxes: Path, labels: Path) -> dict[str, Reading]:
    """Reads VinDr-CXR's two tables of a split: labels of images by reader (test: a consensus), and boxes.

    Raises:
      InputError: an unknown class, a label other than 0 and 1, an image or reader that only one of the tables names.
    """
    readings: dict[str, Reading] = {}
    names = [name for name in builder.table_columns(labels) if name not in ("", "image_id", "rad_id")]
    columns = {name: finding(labels, name, CLASSES) for name in names}
    if missing := set(CLASSES) - set(columns.values()):
        raise InputError(f"{labels}: columns for {sorted(missing)} are missing")
    order = [CLASSES.index(name) for name in columns.values()]
    for where, line in builder.read_table(labels, required=("image_id",)):
        reading = readings.setdefault(line["image_id"], Reading(where, {}))
        reader = reader_number(where, line.get("rad_id", ""))
        if reader in reading.labels:
            raise InputError(f"{where}: image {line['image_id']} and its reader were listed before, by {reading.where}")
        for name in columns:
            if line[name] not in ("0", "1", "0.0", "1.0"):
                raise InputError(f"{where}: {name} is {line[name]!r}, expected 0 or 1")
        reading.labels[reader] = np.zeros(len(CLASSES), np.uint8)
        reading.labels[reader][order] = [float(line[name]) for name in columns]
    for where, line in builder.read_table(boxes, required=("image_id", "class_name", *CORNERS)):
        reading, reader = readings.get(line["image_id"]), reader_number(where, line.get("rad_id", ""))
        if reading is None or reader not in reading.labels:
            raise InputError(f"{where}: {labels.name} does not name image {line['image_id']} with this reader")
        add_box(reading, where, line, finding(where, line["class_name"], CLASSES), reader)
    return readings


def finding(where: object, name: str, known: Iterable[str]) -> str:
    """The canonical name of a class; raises InputError unless it is one of `known`."""
    try:
        canonical = canonical_name(name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if canonical not in known:
        raise InputError(f"{where}: the class {name!r} is none of this release: {', '.join(known)}")
    return canonical


canonical_name = functools.cache(vocabulary.canonical)


def reader_number(where: str, text: str) -> int:
    """8 for "R8", 0 where no reader is named."""
    if text and not (text[0] == "R" and text[1:].isdecimal() and 0 < int(text[1:]) < 1000):
        raise InputError(f"{where}: rad_id is {text!r}, expected R1, R2, ...")
    return int(text[1:]) if text else CONSENSUS


def add_box(reading: Reading, where: str, line: Mapping[str, str], name: str, reader: int) -> None:
    """Adds the box of a line to a reading: those of BOX_CLASSES must have one with an area, the others none."""
    corners = [builder.number(where, line, column) for column in CORNERS]
    blank = all(np.isnan(corners))
    if name not in BOX_CLASSES:
        if not blank:
            raise InputError(f"{where}: {line['class_name']!r} has a box, expected none")
        return
    if not (corners[0] < corners[2] and corners[1] < corners[3]):
        raise InputError(f"{where}: {', '.join(CORNERS)} = {corners} is no box with an area")
    reading.boxes.append(corners)
    reading.box_labels.append(BOX_CLASSES.index(name))
    reading.box_readers.append(reader)


def record_fields(reading: Reading) -> dict[str, np.ndarray]:
    """A reading as a record holds it, readers in the order of their numbers."""
    readers = sorted(reading.labels)
    return {
        "boxes": np.float32(reading.boxes).reshape(-1, 4),
        "box_labels": np.int32(reading.box_labels),
        "box_readers": np.int32(reading.box_readers),
        "readers": np.int32(readers),
        "reader_labels": np.stack([reading.labels[reader] for reader in readers]),
    }


def classes(config=None, *, classes: str | None = None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels: its option `classes` ("global"), else those of the built release."""
    chosen = classes or builder.choose_config(Builder, config).release
    if chosen not in CLASS_SETS:
        raise InputError(f"vinbigdata: classes={chosen!r}: {catalog.suggestion(chosen, CLASS_SETS)}")
    return CLASS_SETS[chosen]


def read(
    record: Mapping[str, Any],
    *,
    readers: str = "all",
    agreement: int | Literal["share"] = 1,
    iou: float = 0.4,
    classes: Literal["kaggle", "physionet", "global"] | None = None,
) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], boxes f32[N,4], box_labels i32[N], labels f32[K].

    Args:
      record: a record of `builder.Records`.
      readers: whose boxes. "all": every box of every reader, so a lesion may have three; "union": one for each group
        of overlapping boxes of a class, the smallest that encloses them; "fused": their mean (weighted box fusion,
        `annotations.fuse_boxes`); "R8": those of one reader, and the labels too (an image that this reader did not
        see has labels NaN and `boxes_known` False). A consensus, as in `test`, stays what it is.
      agreement: how many readers must have seen a finding, of whom an image has three: for its label, and for a united
        or fused box. "No Finding" holds where too few saw anything for that. "share" makes a label the share of
        the readers who gave it, and asks nothing of boxes.
      iou: intersection over union above which "union" and "fused" take two boxes for one lesion.
      classes: None gives the classes that were built; "global" those six of physionet that have no boxes.

    Raises:
      InputError: an unknown option, or classes that were not built.
    """
    if agreement != "share" and not (isinstance(agreement, int) and agreement > 0):
        raise InputError(f'vinbigdata: agreement={agreement!r}: expected 1, 2, ... or "share"')
    built = next(names for names in CLASS_SETS.values() if len(names) == record["reader_labels"].shape[1])
    names = CLASS_SETS.get(classes, ()) if classes else built
    if not names or not set(names) <= set(built):
        raise InputError(f"vinbigdata: classes={classes!r} cannot be read from records of {len(built)} classes")
    record = {**record, "boxes_known": np.bool_(True)}
    if readers not in ("all", "union", "fused"):
        record = of_reader(record, reader_number(f"vinbigdata: the option readers={readers!r}", readers))
    elif readers != "all":
        needed = 1 if agreement == "share" else agreement
        record |= dict(zip(("boxes", "box_labels"), merged_boxes(record, readers, needed, iou)))
    labels = voted(record["reader_labels"], agreement, built.index("No Finding"))
    return {**builder.example_of(record), "labels": labels[[built.index(name) for name in names]]}


def of_reader(record: Mapping[str, Any], reader: int) -> dict[str, Any]:
    """The part of a record that is one reader's; a consensus is everybody's."""
    drew, wrote = (np.isin(record[name], (reader, CONSENSUS)) for name in ("box_readers", "readers"))
    return {
        **record,
        **{name: record[name][drew] for name in ("boxes", "box_labels", "box_readers")},
        **{name: record[name][wrote] for name in ("readers", "reader_labels")},
        "boxes_known": wrote.any(),
    }


def voted(labels: np.ndarray, agreement: int | str, no_finding: int) -> np.ndarray:
    """Each class's vote u8[R,K] -> f32[K]: the readers' share, or whether enough agree; NaN if there is no reader."""
    count = len(labels)
    if not count:
        return np.full(labels.shape[1], np.nan, np.float32)
    if agreement == "share":
        return labels.mean(axis=0, dtype=np.float32)
    needed = np.full(labels.shape[1], min(agreement, count))
    needed[no_finding] = count - needed[no_finding] + 1  # the opposite of a finding: fewer than `agreement` saw one
    return (labels.sum(axis=0) >= needed).astype(np.float32)


def merged_boxes(record: Mapping[str, Any], how: str, agreement: int, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """One box for each lesion that at least `agreement` readers drew: boxes f32[M,4] and labels i32[M]."""
    boxes, labels = record["boxes"], record["box_labels"]
    readers, count = np.searchsorted(record["readers"], record["box_readers"]), len(record["readers"])
    if how == "fused":
        boxes, labels, _, seen = annotations.fuse_boxes(boxes, labels, readers, count, iou=iou)
    else:
        groups = overlapping(boxes, labels, iou)
        boxes = np.float32([[*boxes[g, :2].min(axis=0), *boxes[g, 2:].max(axis=0)] for g in groups]).reshape(-1, 4)
        labels, seen = labels[[g[0] for g in groups]], np.array([len(set(readers[g])) for g in groups])
    kept = seen >= min(agreement, count)
    return boxes[kept], labels[kept].astype(np.int32)


def overlapping(boxes: np.ndarray, labels: np.ndarray, iou: float) -> list[list[int]]:
    """Groups boxes of one class: those that overlap by more than `iou`, directly or through others."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    common = (high - low).clip(0).prod(axis=-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=-1)
    linked = (common > iou * (areas[:, None] + areas - common)) & (labels[:, None] == labels)
    groups: list[list[int]] = []
    for index in range(len(boxes)):
        touched = [group for group in groups if linked[index, group].any()]
        joined = [*itertools.chain.from_iterable(touched), index]
        groups = [*(group for group in groups if group not in touched), joined]
    return groups


# What the chest phantom's findings are called here (in kaggle's release, which has no edema, it is an opacity), and the
# diagnosis of the whole image that the phantom's readers give with them.
PHANTOM_NAMES = {
    "Cardiomegaly": "Cardiomegaly",
    "Pleural Effusion": "Pleural effusion",
    "Consolidation": "Consolidation",
    "Atelectasis": "Atelectasis",
    "Edema": "Edema",
    "Nodule": "Nodule/Mass",
    "Mass": "Nodule/Mass",
    "Pneumothorax": "Pneumothorax",
}
PHANTOM_DIAGNOSES = {"Consolidation": "Pneumonia", "Mass": "Lung tumor", "Edema": "Other disease"}
PHANTOM_READERS = (8, 9, 10)
# As the tables spell and order the classes; the training table has one more letter.
LOCAL_COLUMNS = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation"),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary fibrosis", "Rib fracture", "Other lesion"),
)
GLOBAL_COLUMNS = ("COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other disease", "No finding")
KAGGLE_COLUMNS = ("image_id", "class_name", "class_id", "rad_id", "x_min", "y_min", "x_max", "y_max")


def phantom(
    root: Path,
    *,
    seed: int = 0,
    count: int = 32,
    test_count: int = 8,
    release: Literal["kaggle", "physionet"] = "kaggle",
    size: int = 128,
) -> None:
    """Writes generated radiographs under `root`, laid out as either release is.

    R8 boxes every lesion exactly, R9 and R10 move the borders and miss a few; the consensus of `test` is exact. Every
    third file is MONOCHROME1, and images are higher than wide by different amounts.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/vinbigdata`.
      count, test_count: how many images the training and the test set hold.
      size: width of the images in pixels; about 2,400 in the real set.
    """
    if release not in ("kaggle", "physionet"):
        raise InputError(f"vinbigdata: release={release!r}: {catalog.suggestion(release, ('kaggle', 'physionet'))}")
    for split, images_in_split in (("train", count), ("test", test_count)):
        draw = functools.partial(phantom_radiograph, seed, split, size=size)
        boxes, labels = [], []
        for number, radiograph in enumerate(pool.in_order(draw, range(images_in_split))):
            name = phantom_id(seed, split, number)
            write_dicom(root / split / f"{name}.dicom", radiograph, number)
            readings = phantom_readings(np.random.default_rng([seed, number, 1]), radiograph, release, split)
            boxes += [{"image_id": name, **line} for lines in readings.values() for line in lines]
            labels += [phantom_labels(name, reader, lines, radiograph) for reader, lines in readings.items()]
        if release == "physionet":
            write_physionet(root / "annotations", split, boxes, labels)
        elif split == "train":
            builder.write_table(root / "train.csv", KAGGLE_COLUMNS, boxes)
        else:
            answers = [{"image_id": line["image_id"], "PredictionString": "14 1 0 0 1 1"} for line in labels]
            builder.write_table(root / "sample_submission.csv", ("image_id", "PredictionString"), answers)


def phantom_id(seed: int, split: str, number: int) -> str:
    """The image's id: 32 hexadecimal digits, as of a hash."""
    return np.random.default_rng([seed, split == "test", number, 2]).bytes(16).hex()


def phantom_radiograph(seed: int, split: str, number: int, *, size: int) -> chest.Radiograph:
    """The radiograph of an image's number: each finding once, then random ones; every third has none."""
    rng = np.random.default_rng([seed, split == "test", number])
    findings = {chest.FINDINGS[number % len(chest.FINDINGS)]} | chest.sample_findings(rng)
    height = size + int(rng.integers(size // 3))
    return chest.frontal(int(rng.integers(2**31)), findings=findings if number % 3 else (), size=(height, size))


def write_dicom(path: Path, radiograph: chest.Radiograph, number: int) -> None:
    """Writes a radiograph of 12 bits."""
    from mediax import dicom

    path.parent.mkdir(parents=True, exist_ok=True)
    dicom.write(
        path,
        np.round(radiograph.image[..., None] * 4095).astype(np.uint16),
        bits=12,
        spacing_mm=radiograph.spacing_mm,
        photometric="MONOCHROME2" if number % 3 else "MONOCHROME1",
        tags={"WindowCenter": 2048, "WindowWidth": 4096},
        uid_source=path.stem,
    )


def phantom_readings(
    rng: np.random.Generator, radiograph: chest.Radiograph, release: str, split: str
) -> dict[int, list[dict[str, Any]]]:
    """Reader -> lines of the boxes' table; an image is normal for all readers or for none."""
    names = PHANTOM_NAMES | ({"Edema": "Lung Opacity"} if release == "kaggle" else {})
    truth = [(names[box[0]], np.array(box[1:], float)) for box in radiograph.boxes if box[0] in names]
    height, width = radiograph.image.shape
    readings = {}
    for reader in PHANTOM_READERS if split == "train" else (CONSENSUS,):
        lines = []
        for name, box in truth:
            if reader in PHANTOM_READERS[1:]:
                if lines and rng.random() < 0.25:
                    continue
                box = box + rng.uniform(-0.08, 0.08, 4) * np.tile(box[2:] - box[:2], 2)
                box = box.clip(0, [height, width, height, width])
            lines.append(phantom_line(reader, name, *box))
        readings[reader] = lines or [phantom_line(reader, "No finding", "", "", "", "")]
    return readings


def phantom_line(reader: int, name: str, y_min, x_min, y_max, x_max) -> dict[str, Any]:
    classes = CLASS_SETS["kaggle"]
    class_id = classes.index(canonical_name(name)) if canonical_name(name) in classes else ""
    corners = {"x_min": x_min, "y_min": y_min, "x_max": x_max, "y_max": y_max}
    return {"class_name": name, "class_id": class_id, "rad_id": f"R{reader}", **corners}


def phantom_labels(name: str, reader: int, lines: Sequence[Mapping], radiograph: chest.Radiograph) -> dict[str, Any]:
    """One reader's line of PhysioNet's table of labels."""
    found = {line["class_name"] for line in lines}
    if "No finding" not in found:
        found |= {PHANTOM_DIAGNOSES[each] for each in radiograph.finding_masks if each in PHANTOM_DIAGNOSES}
    labels = {column: int(column in found) for column in (*LOCAL_COLUMNS, *GLOBAL_COLUMNS)}
    return {"image_id": name, "rad_id": f"R{reader}", **labels, "Other diseases": labels["Other disease"]}


def write_physionet(folder: Path, split: str, boxes: Sequence[Mapping], labels: Sequence[Mapping]) -> None:
    """Writes the two tables of a split as PhysioNet has them: in the test set no reader is named."""
    reader = ("rad_id",) if split == "train" else ()
    columns = tuple("Other diseases" if c == "Other disease" and reader else c for c in GLOBAL_COLUMNS)
    corners = ("x_min", "y_min", "x_max", "y_max")
    builder.write_table(folder / f"annotations_{split}.csv", ("image_id", *reader, "class_name", *corners), boxes)
    builder.write_table(folder / f"image_labels_{split}.csv", ("image_id", *reader, *LOCAL_COLUMNS, *columns), labels)

"""NIH ChestX-ray14: 112,120 frontal radiographs of 30,805 patients with 14 findings, mined from the reports.

Wang et al., "ChestX-ray8: Hospital-Scale Chest X-Ray Database and Benchmarks on Weakly-Supervised Classification and
Localization of Common Thorax Diseases", CVPR 2017 (arXiv:1705.02315).

Splits
  train       the patients of the official `train_val_list.txt` but those of `validation`
  validation  10 % of the patients of `train_val_list.txt`: `builder.held_out` with the salt "chestxray14/validation";
              there is no official one. "train+validation" is the official list
  test        the official `test_list.txt`, 25,596 images of 2,797 patients

Labels: an unnamed finding counts as absent, nothing is uncertain or unknown; "No Finding" is all zeros. The classes are
in the order of the published benchmarks.

Boxes: radiologists boxed 8 of the findings in 880 images, all of them in `test`, 984 boxes. `boxes_known` is True for
these images alone: in all others nobody looked for boxes. A copy without `BBox_List_2017.csv` is built without any.

`target` is the age in years. Ages above 120, which the first release of the table has, are unknown.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from mediax import annotations, builder, catalog, images, raw_files, vocabulary
from mediax.errors import InputError
from mediax.phantoms import chest, pool

# As the tables spell them; the first eight have boxes.
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
BOX_FINDINGS = (*FINDINGS[:3], "Infiltrate", *FINDINGS[4:8])
CLASSES = tuple(map(vocabulary.canonical, FINDINGS))
BOX_CLASSES = tuple(map(vocabulary.canonical, BOX_FINDINGS))
TARGETS = ("age in years",)

SOURCE = builder.Source(
    title="NIH ChestX-ray14",
    homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    licence="open; the NIH Clinical Center asks to be acknowledged and the download page to be linked",
    access="open download",
    download_size="about 42 GB in 12 archives",
    images="112,120 images of 30,805 patients",
    citation="Wang et al., CVPR 2017, arXiv:1705.02315",
    tree="""
Data_Entry_2017_v2020.csv       or Data_Entry_2017.csv
train_val_list.txt  test_list.txt
BBox_List_2017.csv              for boxes
images/00000001_000.png         or, as on Kaggle, images_001/images/00000001_000.png
""",
)

LISTS = ("train_val", "test")
IMAGE_NAME = re.compile(r"(\d{8})_\d{3}\.png", re.IGNORECASE)
BOX_COLUMNS = ("image", "finding", "x", "y", "width", "height")
BOX_FRAME = 1024  # the side of the distributed images, whose pixels are the unit of the boxes
AGE = re.compile(r"(\d+)([YMD]?)")
AGE_UNITS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "D": 1 / 365.25}


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds which views are built: all, PA (standing, 60 %) or AP (often in bed)."""

    views: Literal["all", "PA", "AP"] = "all"


class Release(NamedTuple):
    """The files of a copy; images by their names in lower case."""

    table: Path
    lists: dict[str, Path]
    boxes: Path | None
    images: dict[str, Path]


class Builder(builder.Builder):
    """Builds records with `labels` (i8[14], 0 or 1), boxes, pixel spacing, view, sex and age."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        Config(size=size, views=views) for size in (512, 128, 224, 256, 320, None) for views in ("all", "PA", "AP")
    )

    def features(self):
        return {
            "labels": tfds.features.Tensor(shape=(len(CLASSES),), dtype=np.int8),
            **builder.box_features(),
            "boxes_known": np.bool_,
            "spacing_mm": builder.spacing_feature(),
            "view": tfds.features.Text(),  # PA | AP
            "sex": tfds.features.Text(),  # Female | Male
            "age": np.float32,  # years
        }

    def find(self, folder):
        """Finds the tables, the lists and the images, in one folder or in the twelve of Kaggle."""
        files = list(raw_files.walk(folder))
        tables = [path for path in files if raw_files.matches(path, "data_entry_2017*.csv*")]
        if not tables:
            return None
        # Two tables may lie there, for the owners corrected the first one; the name of the newer comes last.
        table = max(tables, key=lambda path: path.name)
        named = {path.name.lower(): path for path in files if not IMAGE_NAME.fullmatch(path.name)}
        pictures: dict[str, Path] = {}
        for path in files:
            if IMAGE_NAME.fullmatch(path.name):
                pictures.setdefault(path.name.lower(), path)
        lists = {name: named.get(f"{name}_list.txt", table.with_name(f"{name}_list.txt")) for name in LISTS}
        boxes = next((path for path in files if raw_files.matches(path, "bbox_list_2017.csv*")), None)
        return Release(table, lists, boxes, pictures)

    def rows(self, release):
        homes, boxes = read_lists(release.lists), {}
        if release.boxes:
            boxes = read_boxes(release.boxes)
        else:
            logging.warning("chestxray14: no BBox_List_2017.csv lies near %s: built without boxes", release.table)
        splits: dict[str, list[builder.Row]] = {"train": [], "validation": [], "test": []}
        listed = set()
        for where, line in read_entries(release.table):
            name = line["Image Index"]
            listed.add(name)
            if name not in homes:
                raise InputError(
                    f"{where}: {name} is in neither {' nor '.join(path.name for path in release.lists.values())}; "
                    f"download the lists of this release"
                )
            if self.builder_config.views in ("all", line["View Position"]):
                row = entry_row(release, where, line, boxes.get(name))
                train = "validation" if is_validation(row.patient_id) else "train"
                splits["test" if homes[name][0] == "test" else train].append(row)
        for name, where in [*((name, where) for name, (_, where) in homes.items()), *first_lines(boxes)]:
            if name not in listed:
                raise InputError(f"{where}: {name} is not in {release.table}; download both of one release")
        if unlisted := len(release.images.keys() - {name.lower() for name in listed}):
            logging.warning("chestxray14: left out %d images that %s does not list", unlisted, release.table)
        return splits

    def annotations(self, row, pixels):
        """Scales boxes and spacing to the file, which is the distributed one of 1024 pixels or a resized copy."""
        height, width = pixels.shape[:2]
        fields = dict(row.fields)
        detector_spacing, detector_size = fields.pop("detector_spacing"), fields.pop("detector_size")
        fields["spacing_mm"] = detector_spacing * detector_size / np.float32([height, width])
        fields["boxes"] = fields["boxes"] * np.float32([height, width, height, width]) / BOX_FRAME
        return fields


def is_validation(patient_id: str) -> bool:
    """Whether a patient of `train_val_list.txt` belongs to the validation split."""
    return builder.held_out(patient_id, 0.1, salt="chestxray14/validation")


Boxes = list[tuple[str, str, list[float]]]  # (where, finding, [x, y, width, height])


def read_lists(lists: Mapping[str, Path]) -> dict[str, tuple[str, str]]:
    """Reads the official lists: image name -> (list, where); raises InputError if a list is absent or two share one."""
    homes: dict[str, tuple[str, str]] = {}
    for split, path in lists.items():
        if not path.is_file():
            raise InputError(f"chestxray14: the list {path} of the official splits is absent; download it too")
        for number, name in enumerate(raw_files.read_lines(path), 1):
            where = f"{path}, line {number}"
            if name and homes.setdefault(name, (split, where))[1] != where:
                raise InputError(f"{where}: {name} was listed before, by {homes[name][1]}; download the lists again")
    return homes


def read_boxes(path: Path) -> dict[str, Boxes]:
    """Reads the boxes by image; the header has more fields than the lines, so it is not used."""
    boxes: dict[str, Boxes] = {}
    for where, line in builder.read_table(path, header=BOX_COLUMNS):
        if line["finding"] not in BOX_FINDINGS:
            hint = catalog.suggestion(line["finding"], BOX_FINDINGS)
            raise InputError(f"{where}: the finding is {line['finding']!r}: {hint}")
        corners = [builder.number(where, line, column) for column in BOX_COLUMNS[2:]]
        boxes.setdefault(line["image"], []).append((where, line["finding"], corners))
    found = [(name, finding, *corners) for name, marked in boxes.items() for _, finding, corners in marked]
    raw_files.report_repeated(path, "boxes", found)
    return boxes


def first_lines(boxes: Mapping[str, Boxes]) -> Iterator[tuple[str, str]]:
    """The line of the first box of each image."""
    return ((name, image_boxes[0][0]) for name, image_boxes in boxes.items())


def read_entries(table: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Reads the table of images in any of its releases: `Patient Sex` is read as `Patient Gender`."""
    columns = ["Patient Gender" if name == "Patient Sex" else name for name in builder.table_columns(table)]
    needed = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")
    # The brackets of OriginalImage[Width,Height] and OriginalImagePixelSpacing[x,y] are not quoted: two columns each.
    sizes = ("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]")
    return builder.read_table(table, header=columns, required=(*needed, *sizes))


def entry_row(release: Release, where: str, line: Mapping[str, str], boxes: Boxes | None) -> builder.Row:
    """The row of one image."""
    name = line["Image Index"]
    matched = IMAGE_NAME.fullmatch(name)
    if not matched or matched[1].lstrip("0") != line["Patient ID"].lstrip("0"):
        raise InputError(
            f"{where}: image {name!r} of patient {line['Patient ID']!r}; expected a name as 00000001_000.png, whose "
            f"first part is the patient"
        )
    if line["Patient Gender"] not in ("F", "M") or line["View Position"] not in ("PA", "AP"):
        found = f"sex {line['Patient Gender']!r}, view {line['View Position']!r}"
        raise InputError(f"{where}: {found}; expected M or F, and PA or AP")
    fields = {
        "labels": parse_findings(where, line["Finding Labels"]),
        "boxes": annotations.xywh_to_boxes([corners for _, _, corners in boxes or ()]),
        "box_labels": np.int32([BOX_FINDINGS.index(finding) for _, finding, _ in boxes or ()]),
        "boxes_known": boxes is not None,
        "detector_size": pair(where, line, "Height]", "OriginalImage[Width"),
        "detector_spacing": pair(where, line, "y]", "OriginalImagePixelSpacing[x"),
        "view": line["View Position"],
        "sex": {"F": "Female", "M": "Male"}[line["Patient Gender"]],
        "age": parse_age(where, line["Patient Age"]),
    }
    path = release.images.get(name.lower(), release.table.parent / "images" / name)
    blame = f"{where}; boxes: {boxes[0][0]}" if boxes else where
    return builder.Row(path.stem, matched[1], path, blame, fields)


def pair(where: str, line: Mapping[str, str], row: str, column: str) -> np.ndarray:
    """Two numbers of a line as f32[2]: of the image's rows, of its columns; InputError unless they are positive."""
    values = np.float32([builder.number(where, line, row), builder.number(where, line, column)])
    if (values <= 0).any() or np.isinf(values).any():
        raise InputError(f"{where}: {row} is {line[row]!r}, {column} is {line[column]!r}; expected positive numbers")
    return values


def parse_findings(where: str, text: str) -> np.ndarray:
    """Labels i8[14] of "Cardiomegaly|Effusion" or "No Finding"; raises InputError for anything else."""
    names = text.split("|")
    if names == ["No Finding"]:
        return np.zeros(len(FINDINGS), np.int8)
    for name in names:
        if name not in FINDINGS:  # No Finding never stands beside another
            raise InputError(f"{where}: Finding Labels is {text!r}: {catalog.suggestion(name, FINDINGS)}")
    return np.int8([name in names for name in FINDINGS])


def parse_age(where: str, text: str) -> float:
    """Years of "58", "058Y", "006M" or "010D"; NaN of an age that nobody has reached."""
    matched = AGE.fullmatch(text)
    if not matched:
        raise InputError(f"{where}: Patient Age is {text!r}, expected years, or a number with Y, M or D")
    years = int(matched[1]) * AGE_UNITS[matched[2]]
    return years if years <= 120 else float("nan")


def classes(config=None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels."""
    del config
    return CLASSES


def read(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: what `builder.example_of` gives, labels f32[14] (1 or 0), target f32[1] (age)."""
    return {
        **builder.example_of(record),
        "labels": record["labels"].astype(np.float32),
        "target": np.float32([record["age"]]),
        **{name: record[name] for name in ("view", "sex", "age")},
    }


# What the chest phantom's findings are called here: the text mining takes a consolidation for an infiltrate too.
PHANTOM_LABELS = {
    "Cardiomegaly": ("Cardiomegaly",),
    "Pleural Effusion": ("Effusion",),
    "Consolidation": ("Infiltration", "Consolidation"),
    "Atelectasis": ("Atelectasis",),
    "Edema": ("Edema",),
    "Nodule": ("Nodule",),
    "Mass": ("Mass",),
    "Pneumothorax": ("Pneumothorax",),
    "Support Devices": (),
}
PHANTOM_BOXES = {
    "Cardiomegaly": "Cardiomegaly",
    "Pleural Effusion": "Effusion",
    "Consolidation": "Infiltrate",
    "Atelectasis": "Atelectasis",
    "Nodule": "Nodule",
    "Mass": "Mass",
    "Pneumothorax": "Pneumothorax",
}
ENTRY_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
PHANTOM_SHAPES = (
    (1.0, 0.82),
    (1.0, 1.0),
    (0.82, 1.0),
)  # height and width of the detectors, relative to the longer side
PHANTOM_PIXELS = 14  # pixels of the detector for one of the drawing


class PhantomImage(NamedTuple):
    """One image to be drawn; `findings` are the phantom's."""

    name: str
    patient: chest.Patient
    findings: frozenset[str]
    split: str
    draw: Callable[[], chest.Radiograph]


def phantom(
    root: Path,
    *,
    seed: int = 0,
    patients: int = 20,
    test_patients: int = 8,
    release: Literal["v2020", "v2017"] = "v2020",
    layout: Literal["images", "kaggle"] = "images",
    size: int = 128,
) -> None:
    """Writes generated radiographs under `root`, laid out as ChestX-ray14 is, oddities included.

    The first patients of each split show each finding of `chest.FINDINGS` once, the next one none.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/chestxray14`.
      patients, test_patients: how many there are in the two lists, about 1.5 images each.
      release: the table of 2020 or the first one, with a comma after each line and ages as `058Y`.
      layout: all images in one folder, or in folders of ten as Kaggle's are of ten thousand.
      size: side of the images in pixels; 1024 in the real set. The table's sizes are those of larger detectors.
    """
    for option, value, valid in (("release", release, ("v2020", "v2017")), ("layout", layout, ("images", "kaggle"))):
        if value not in valid:
            raise InputError(f"chestxray14: {option}={value!r}: {catalog.suggestion(value, valid)}")
    root = Path(root)
    drawn = list(phantom_images(seed, patients, test_patients, size))
    entries, boxes = [], []
    for number, (image, radiograph) in enumerate(zip(drawn, pool.in_order(lambda i: i.draw(), drawn))):
        folder = root / ("images" if layout == "images" else f"images_{number // 10 + 1:03d}/images")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = cv2.resize(images.to_uint8(radiograph.image), (size, size), interpolation=cv2.INTER_LINEAR)
        # A few hundred of the real files have four channels.
        Image.fromarray(pixels).convert("RGBA" if number % 16 == 1 else "L").save(folder / image.name)
        entries.append(phantom_entry(image, radiograph, release))
        if image.split == "test":
            boxes += phantom_boxes(image.name, radiograph)
    table = "Data_Entry_2017_v2020.csv" if release == "v2020" else "Data_Entry_2017.csv"
    comma = "," if release == "v2017" else ""
    (root / table).write_text("".join(f"{line}{comma}\n" for line in (ENTRY_HEADER, *entries)))
    (root / "BBox_List_2017.csv").write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *boxes, ""]))
    for split in LISTS:  # without a last newline
        names = [image.name for image in drawn if image.split == split]
        (root / f"{split}_list.txt").write_text("\n".join(names))


def phantom_images(seed: int, patients: int, test_patients: int, size: int) -> Iterator[PhantomImage]:
    """All images of the phantom; a quarter of the patients, not a tenth, belongs to the validation split."""
    quarter = patients // 4
    parts = (("train_val", False, patients - quarter), ("train_val", True, quarter), ("test", None, test_patients))
    numbers = itertools.count(1)
    for split, validation, count in parts:
        fitting = (number for number in numbers if validation in (None, is_validation(f"{number:08d}")))
        for rank, number in enumerate(itertools.islice(fitting, count)):
            yield from phantom_patient(seed, number, rank, split, size)


def phantom_patient(seed: int, number: int, rank: int, split: str, size: int) -> Iterator[PhantomImage]:
    """The images of one patient, number `rank` of its split."""
    rng = np.random.default_rng([seed, number])
    person = chest.sample_patient(int(rng.integers(2**31)), age=0.5 if rank == 3 else None)
    height, width = (round(size * side) for side in PHANTOM_SHAPES[number % len(PHANTOM_SHAPES)])
    for visit in range(1 + number % 2):
        findings = chest.sample_findings(rng)
        if visit == 0 and rank <= len(chest.FINDINGS):
            findings = frozenset(chest.FINDINGS[rank : rank + 1])
        view = str(rng.choice(["PA", "PA", "PA", "AP", "AP"]))
        options = {"patient": person, "findings": findings, "view": view, "size": (height, width)}
        draw = functools.partial(chest.frontal, int(rng.integers(2**31)), **options)
        yield PhantomImage(f"{number:08d}_{visit:03d}.png", person, findings, split, draw)


def phantom_entry(image: PhantomImage, radiograph: chest.Radiograph, release: str) -> str:
    """A line of the table of images."""
    present = {name for finding in image.findings for name in PHANTOM_LABELS[finding]}
    labels = "|".join(sorted(present)) or "No Finding"
    number, visit = image.name.removesuffix(".png").split("_")
    age = str(int(image.patient.age))
    if release == "v2017":
        age = f"{int(age):03d}Y" if image.patient.age >= 1 else f"{round(12 * image.patient.age):03d}M"
    height, width = (side * PHANTOM_PIXELS for side in radiograph.image.shape)
    down, right = (spacing / PHANTOM_PIXELS for spacing in radiograph.spacing_mm)
    values = (labels, int(visit), int(number), age, image.patient.sex[0], radiograph.view, width, height, right, down)
    return ",".join([image.name, *map(str, values)])


def phantom_boxes(name: str, radiograph: chest.Radiograph) -> Iterator[str]:
    """The lines of an image's boxes."""
    down, right = (BOX_FRAME / side for side in radiograph.image.shape)
    for finding, top, left, bottom, edge in radiograph.boxes:
        if finding in PHANTOM_BOXES:
            corners = (left * right, top * down, (edge - left) * right, (bottom - top) * down)
            yield ",".join([name, PHANTOM_BOXES[finding], *map(str, corners)])

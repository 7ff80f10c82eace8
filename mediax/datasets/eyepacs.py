"""EyePACS: 88,702 fundus photographs of 44,351 patients, both eyes each, with a grade of diabetic retinopathy.

The data of Kaggle's competition "Diabetic Retinopathy Detection" (2015), given by EyePACS and the California Healthcare
Foundation. Each eye has a grade of the international scale: 0 none, 1 mild, 2 moderate, 3 severe, 4 proliferative.

Splits, by the builder config's field `split`; both eyes of a patient are always in the same one:
  kaggle    train: the competition's 35,126 training images; validation: the 10,906 test images of its public
            leaderboard (Usage is Public); test: the 42,670 of its private one. TFDS's own dataset splits so, too
  held_out  validation: 10 % of the training patients, by `builder.held_out` with the salt "eyepacs/validation"; train:
            the others; test: all 53,576 test images
A split whose table or images are not there is left out and logged: test labels are in `retinopathy_solution.csv`, which
came after the competition. The 10 images of `sample.zip` are training images, and never read.

Some images are black or out of focus: their grades count as any other. Files that cannot be decoded stop the build
unless on_corrupt="skip".
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import builder, catalog, images
from mediax.errors import InputError
from mediax.phantoms import fundus, pool

GRADES = (
    "No Diabetic Retinopathy",
    "Mild Diabetic Retinopathy",
    "Moderate Diabetic Retinopathy",
    "Severe Diabetic Retinopathy",
    "Proliferative Diabetic Retinopathy",
)
CLASS_SETS = {"grades": GRADES, "referable": ("Referable Diabetic Retinopathy",)}
CLASSES = (*GRADES, *CLASS_SETS["referable"])
REFERABLE = 2  # the lowest grade that is referred to an ophthalmologist
TARGETS = ("grade of diabetic retinopathy",)

SOURCE = builder.Source(
    title="EyePACS (Kaggle Diabetic Retinopathy Detection)",
    homepage="https://www.kaggle.com/c/diabetic-retinopathy-detection",
    licence="rules of the Kaggle competition: research use, no redistribution",
    access="registration at Kaggle and consent to the competition's rules",
    download_size="about 83 GB",
    images="35,126 training and 53,576 test images",
    citation="EyePACS and California Healthcare Foundation, Diabetic Retinopathy Detection, Kaggle 2015",
    tree="""
trainLabels.csv
retinopathy_solution.csv        with the labels of test/
train/10_left.jpeg ...          joined from train.zip.001 to .005 (7z x train.zip.001)
test/1_left.jpeg ...            joined from test.zip.001 to .007
""",
)

TABLES = {"trainlabels.csv": "train", "retinopathy_solution.csv": "test"}
IMAGE = re.compile(r"(\d+)_(left|right)")
IMAGE_FILE = re.compile(rf"{IMAGE.pattern}\.jpe?g", re.IGNORECASE)
SEARCHED = re.compile(r"(eyepacs|diabetic|kaggle|(resized.?)?(train|test)|retinopathy).*", re.IGNORECASE)


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds where validation comes from: the test images of the public leaderboard, or held-out training patients."""

    split: Literal["kaggle", "held_out"] = "kaggle"


class Files(NamedTuple):
    """What "train" or "test" is made from: the label table, None if there is none, and the folders with images."""

    table: Path | None
    folders: list[Path]


class Builder(builder.Builder):
    """Builds records with `grade` i32, 0 to 4, and `eye`, "left" or "right"."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    CHANNELS = 3
    # Letterboxed, for the round field of view stays round; as JPEG, for PNG would take five times the space.
    BUILDER_CONFIGS = tuple(
        Config(size=size, aspect="letterbox", encoding="jpeg95", split=split)
        for size in (512, 224, 299, 1024)
        for split in ("kaggle", "held_out")
    )

    def features(self):
        return {"grade": np.int32, "eye": tfds.features.Text()}

    def find(self, folder):
        tables: dict[str, list[Path]] = {"train": [], "test": []}
        folders: dict[str, list[Path]] = {"train": [], "test": []}
        search(folder, tables, folders)
        found = {split: Files(choose(tables[split]), folders[split]) for split in tables if folders[split]}
        found = {split: files for split, files in found.items() if files.table}
        for split in sorted(tables.keys() - found.keys()) if found else ():
            counts = len(tables[split]), len(folders[split])
            logging.warning("eyepacs: no %s images: %d tables and %d folders of them in %s", split, *counts, folder)
        return found or None

    def rows(self, found):
        splits: dict[str, list[builder.Row]] = {"train": [], "validation": [], "test": []}
        for split, files in found.items():
            columns = ("image", "level", "Usage") if split == "test" else ("image", "level")
            for line, row in table_rows(*files, columns):
                splits[self.split_of(split, row.patient_id, line)].append(row)
        return splits

    def split_of(self, split: str, patient: str, line: Mapping[str, str]) -> str:
        """The built set's split of one line of the tables."""
        if self.builder_config.split == "kaggle":
            return "validation" if line.get("Usage") == "Public" else split
        validation = split == "train" and builder.held_out(patient, 0.1, salt="eyepacs/validation")
        return "validation" if validation else split


def search(folder: Path, tables: dict[str, list[Path]], folders: dict[str, list[Path]], depth: int = 4) -> None:
    """Collects the tables and the folders with images, looking only into folders with EyePACS's names."""
    for path in sorted(Path(entry.path) for entry in os.scandir(folder) if not IMAGE_FILE.fullmatch(entry.name)):
        if path.name.lower() in TABLES and path.is_file():
            tables[TABLES[path.name.lower()]].append(path)
        elif SEARCHED.fullmatch(path.name) and path.is_dir():
            if any(IMAGE_FILE.fullmatch(entry.name) for entry in os.scandir(path)):
                folders["test" if "test" in path.name.lower() else "train"].append(path)
            if depth:
                search(path, tables, folders, depth - 1)


def choose(tables: list[Path]) -> Path | None:
    """The label table; InputError if there are two. Other competitions have a trainLabels.csv with other columns."""
    fitting = [path for path in tables if {"image", "level"} <= set(builder.table_columns(path))]
    if len(fitting) > 1:
        raise InputError(f"eyepacs: the table lies in {' and in '.join(map(str, fitting))}: keep one release there")
    return next(iter(fitting or tables), None)  # one that does not fit is named when it is read


def table_rows(
    table: Path, folders: list[Path], columns: tuple[str, ...]
) -> Iterator[tuple[dict[str, str], builder.Row]]:
    """Yields (line, row) for each line of a label table.

    Raises:
      InputError: a missing column; a wrong grade, name or Usage; images that the table does not list.
    """
    files = image_files(folders)
    for where, line in builder.read_table(table, required=columns):
        name = line["image"].lower()
        match = IMAGE.fullmatch(name)
        if not match:
            raise InputError(f"{where}: the image is {line['image']!r}, expected a name such as 10_left")
        if line["level"] not in ("0", "1", "2", "3", "4"):
            raise InputError(f"{where}: the level is {line['level']!r}, expected a grade from 0 to 4")
        if line.get("Usage", "Public") not in ("Public", "Private"):
            raise InputError(f"{where}: the Usage is {line['Usage']!r}, expected Public or Private")
        patient, eye = match.groups()
        path = files.pop(name, folders[0] / f"{name}.jpeg")
        yield line, builder.Row(name, patient, path, where, {"grade": np.int32(line["level"]), "eye": eye})
    if files:
        some = next(iter(files.values()))
        raise InputError(
            f"{some}: {table} does not list this image, nor {len(files) - 1} others; expected a grade for each"
        )


def image_files(folders: list[Path]) -> dict[str, Path]:
    """The image files by their names without ending, in lower case."""
    files: dict[str, Path] = {}
    for folder in folders:
        for name in sorted(entry.name for entry in os.scandir(folder) if IMAGE_FILE.fullmatch(entry.name)):
            path = folder / name
            other = files.setdefault(path.stem.lower(), path)
            if other is not path:
                raise InputError(f"eyepacs: {path.name} lies in {other} and in {path}: keep one of them")
    return files


def classes(config=None, *, classes: Literal["grades", "referable"] = "grades", **_) -> tuple[str, ...]:
    """The classes of `read`'s labels: the five grades, or referable retinopathy alone."""
    del config
    if classes not in CLASS_SETS:
        raise InputError(f"eyepacs: classes={classes!r}: {catalog.suggestion(classes, CLASS_SETS)}")
    return CLASS_SETS[classes]


def read(record: Mapping[str, Any], *, classes: Literal["grades", "referable"] = "grades") -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,3], labels f32[K], target f32[1] (the grade), eye.

    Args:
      record: a record of `builder.Records`.
      classes: "grades" gives five labels, of which one is 1; "referable" one, 1 from moderate retinopathy on.

    Raises:
      InputError: other `classes`.
    """
    grade = int(record["grade"])
    if classes not in CLASS_SETS:
        raise InputError(f"eyepacs: classes={classes!r}: {catalog.suggestion(classes, CLASS_SETS)}")
    labels = np.eye(len(GRADES))[grade] if classes == "grades" else [grade >= REFERABLE]
    targets = {"labels": np.asarray(labels, np.float32), "target": np.float32([grade])}
    return {**builder.example_of(record), **targets, "eye": record["eye"]}


# Where files lie below the dataset's folder: tables, training images, test images.
PHANTOM_LAYOUTS = {
    "flat": (".", "train", "test"),
    "nested": ("diabetic-retinopathy-detection", "train/train", "test/test"),  # each zip in a folder of its name
}
PHANTOM_SHAPES = ((3, 4), (2, 3), (1, 1), (5, 6))  # height and width of the cameras' images, to scale
PREVALENCE = (0.30, 0.15, 0.25, 0.15, 0.15)  # of the phantom's grades: flatter than the real 73, 7, 15, 2 and 2 %


def phantom(
    root: Path,
    *,
    seed: int = 0,
    patients: int = 10,
    test_patients: int = 8,
    layout: Literal["flat", "nested"] = "flat",
    size: int = 128,
    solution: bool = True,
    corrupt: int = 0,
) -> None:
    """Writes generated photographs of both eyes under `root`, laid out as the competition's files are.

    Numbers of patients have gaps, image shapes differ by camera, and the last training patient's right eye is black.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/eyepacs`.
      patients, test_patients: how many there are, two images each; every fourth test patient's Usage is Public.
      layout: one of PHANTOM_LAYOUTS.
      size: short side of the images in pixels.
      solution: whether the test labels are there.
      corrupt: how many training files are cut off in the middle, from the first one on.
    """
    if layout not in PHANTOM_LAYOUTS:
        raise InputError(f"eyepacs: layout={layout!r}: {catalog.suggestion(layout, PHANTOM_LAYOUTS)}")
    top, *folders = PHANTOM_LAYOUTS[layout]
    # One numbering for all patients, as in the original, dealt out to the two sets: every second number from 10 trains.
    numbers = {"train": range(10, 10 + 2 * patients, 2), "test": range(1, 1 + 2 * test_patients, 2)}
    for (split, of_split), folder in zip(numbers.items(), folders):
        place = Path(root) / top / folder
        place.mkdir(parents=True, exist_ok=True)
        eyes = [(number, side) for number in of_split for side in ("left", "right")]
        drawn = pool.in_order(lambda eye: phantom_eye(seed, *eye, size=size), eyes)
        lines = []
        for index, ((number, side), photograph) in enumerate(zip(eyes, drawn)):
            black = split == "train" and (number, side) == (numbers["train"][-1], "right")
            pixels = np.zeros_like(photograph.image) if black else photograph.image
            data = images.encode(pixels, "jpeg95")
            cut = split == "train" and index < corrupt
            (place / f"{number}_{side}.jpeg").write_bytes(data[: len(data) // 2] if cut else data)
            usage = "Public" if of_split.index(number) % 4 == 1 else "Private"
            lines.append({"image": f"{number}_{side}", "level": photograph.grade, "Usage": usage})
        if split == "train":
            builder.write_table(Path(root) / top / "trainLabels.csv", ("image", "level"), lines)
        elif solution:
            builder.write_table(Path(root) / top / "retinopathy_solution.csv", ("image", "level", "Usage"), lines)


def phantom_eye(seed: int, number: int, side: str, *, size: int) -> fundus.Fundus:
    """The photograph of one eye: a patient's two eyes have one body, one camera's shape, and grades mostly alike."""
    rng = np.random.default_rng([seed, number])
    person = fundus.sample_person(int(rng.integers(2**31)))
    height, width = PHANTOM_SHAPES[int(rng.integers(len(PHANTOM_SHAPES)))]
    shared, *own = (int(grade) for grade in rng.choice(5, size=3, p=PREVALENCE))
    image_seeds, alike = rng.integers(2**31, size=2), rng.random(2) < 0.7
    which = ("left", "right").index(side)
    return fundus.photograph(
        int(image_seeds[which]),
        person=person,
        side=side,
        grade=shared if alike[which] else own[which],
        size=(size, size * width // height),
    )

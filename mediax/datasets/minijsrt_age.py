"""miniJSRT XPAge01: 247 chest radiographs with the patient's age, for regression.

Made from the JSRT database, Shiraishi et al., AJR 174 (2000), 71-74.

Splits: the official train and test, as `trainingdata.csv` and `testdata.csv` list them; there is no validation set.
Some copies seem to have the two tables the other way round (about 80 lines to train on, 165 to test): compare the
counts in `results.md` with those of the work you compare with.
The target is the age in years as the tables give it. Images that neither table lists are left out and counted.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import builder, images, minijsrt
from mediax.errors import InputError
from mediax.phantoms import chest, pool

CLASSES = ()
TARGETS = ("age in years",)
YEARS = (58, 14)  # the phantom's: mean and standard deviation
AGES = 4711  # makes its ages independent of what else a patient is
TABLES = {"train": "trainingdata.csv", "test": "testdata.csv"}

SOURCE = minijsrt.source(
    "XPAge01",
    files="2019/07/XPAge01_RGB.zip",
    images="247 images",
    tree="""
XPAge01_RGB/XP/
  trainingdata.csv  testdata.csv
  JPGs/JPCLN001.jpg ...
""",
)


class Builder(builder.Builder):
    """Builds records with `age` f32, in years."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (builder.Config(), builder.Config(size=256), builder.Config(size=512))

    def features(self):
        return {"age": np.float32}

    def find(self, folder):
        return minijsrt.find(folder, "(xp)?age", holds_tables)

    def rows(self, folder):
        pictures = minijsrt.inside(folder, "JPGs")
        splits: dict[str, list[builder.Row]] = {}
        for split, table in TABLES.items():
            lines = builder.read_table(minijsrt.inside(folder, table), required=("filenames", "age"))
            splits[split] = [row_of(where, line, pictures) for where, line in lines]
        listed = {row.image.name for rows in splits.values() for row in rows}
        if unlisted := [path for path in minijsrt.list_images(pictures) if path.name not in listed]:
            logging.info("%s: %d images are in no table, %s for one", pictures, len(unlisted), unlisted[0].name)
        return splits


def holds_tables(folder: Path) -> bool:
    """Whether both tables and the images are in a folder."""
    tables = all(minijsrt.inside(folder, table).is_file() for table in TABLES.values())
    return tables and minijsrt.inside(folder, "JPGs").is_dir()


def row_of(where: str, line: Mapping[str, str], pictures: Path) -> builder.Row:
    """The row of one line; raises InputError unless its age is one that a patient can have."""
    age = builder.number(where, line, "age")
    if not 0 <= age <= 120:
        raise InputError(f"{where}: the age is {line['age']!r}, expected years from 0 to 120")
    if not line["filenames"]:
        raise InputError(f"{where}: the column filenames is empty, expected a name such as JPCLN001.jpg")
    path = minijsrt.inside(pictures, line["filenames"])
    identity = minijsrt.identify(path.stem)
    return builder.Row(identity, identity, path, where, {"age": np.float32(age)})


def classes(config=None, **_) -> tuple[str, ...]:
    """There are no labels, so no classes."""
    return CLASSES


def read(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], target f32[1], the age in years."""
    return {**builder.example_of(record), "target": np.float32([record["age"]])}


def phantom(
    root: Path,
    *,
    seed: int = 0,
    train: int = 20,
    test: int = 10,
    release: str = "rgb",
    size: int = 128,
) -> None:
    """Writes generated radiographs under `root`, laid out as XPAge01 is; ages are whole years from 20 to 88.

    They are spread as the JSRT database's are known to be, about 58 years with a standard deviation of about 14.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/minijsrt_age`.
      train, test: how many images there are.
      release: a layout of `minijsrt.RELEASES`; "rgb" is what is distributed.
      size: side of the images in pixels.
    """
    archive, colour = minijsrt.phantom_folder(root, "XPAge01", release)
    folder = archive / "XP"

    def write(number: int) -> dict[str, Any]:
        radiograph = phantom_radiograph(seed, number, size)
        path = folder / "JPGs" / f"{minijsrt.jsrt_code(number)}.jpg"
        minijsrt.write(path, images.to_uint8(radiograph.image), colour=colour)
        return {"filenames": path.name, "age": round(radiograph.age)}

    lines = list(pool.in_order(write, range(train + test)))
    builder.write_table(folder / TABLES["train"], ("filenames", "age"), lines[:train])
    builder.write_table(folder / TABLES["test"], ("filenames", "age"), lines[train:])


def phantom_radiograph(seed: int, number: int, size: int) -> chest.Radiograph:
    """One image of the phantom, at the age that its table says."""
    age = np.random.default_rng([seed, number, AGES]).normal(*YEARS)
    return minijsrt.draw(seed, number, size=size, age=float(np.clip(age, 20, 88).round()))

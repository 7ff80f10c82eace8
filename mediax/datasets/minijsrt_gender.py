"""miniJSRT Gender01: 247 chest radiographs, of women or of men.

Made from the JSRT database, Shiraishi et al., AJR 174 (2000), 71-74.

Splits: the official train (154 images) and test (93: 42 of women, 51 of men); there is no validation set.
The class is the folder's name. Each patient has one image; the archive with `_RGB` in its name is built as grey.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mediax import builder, images, minijsrt
from mediax.phantoms import pool

CLASSES = ("Female", "Male")
FOLDERS = ("female", "male")  # in the order of CLASSES

SOURCE = minijsrt.source(
    "Gender01",
    files="2018/11/Gender01.zip",
    images="247 images of 256 x 256 pixels",
    tree="""
Gender01/                       or Gender01_RGB/
  train/{female,male}/*.png
  test/{female,male}/*.png
""",
)


class Builder(builder.Builder):
    """Builds records with `labels` i8[2], of which one is 1."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (builder.Config(),)

    def features(self):
        return {"labels": tfds.features.Tensor(shape=(2,), dtype=np.int8)}

    def find(self, folder):
        return minijsrt.find(folder, "gender", lambda place: minijsrt.has_classes(place, FOLDERS))

    def rows(self, folder):
        splits: dict[str, list[builder.Row]] = {"train": [], "test": []}
        for split, name, path in minijsrt.class_images(folder, FOLDERS):
            identity = minijsrt.identify(split, name, path.stem)
            labels = np.eye(2, dtype=np.int8)[FOLDERS.index(name)]
            splits[split].append(builder.Row(identity, identity, path, str(path), {"labels": labels}))
        return splits


def classes(config=None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels."""
    return CLASSES


def read(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], labels f32[2], one of them 1."""
    return {**builder.example_of(record), "labels": record["labels"].astype(np.float32)}


def phantom(
    root: Path,
    *,
    seed: int = 0,
    train: int = 20,
    test: int = 10,
    release: str = "grey",
    size: int = 128,
) -> None:
    """Writes generated radiographs under `root`, laid out as Gender01 is; women and men take turns.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/minijsrt_gender`.
      train, test: how many images there are.
      release: a layout of `minijsrt.RELEASES`.
      size: side of the images in pixels; 256 in the archive.
    """
    folder, colour = minijsrt.phantom_folder(root, "Gender01", release)

    def write(number: int) -> None:
        name, sex = (FOLDERS[number % 2], CLASSES[number % 2])
        radiograph = minijsrt.draw(seed, number, size=size, sex=sex)
        path = folder / ("train" if number < train else "test") / name / f"{minijsrt.jsrt_code(number)}.png"
        minijsrt.write(path, images.to_uint8(radiograph.image), colour=colour)

    list(pool.in_order(write, range(train + test)))

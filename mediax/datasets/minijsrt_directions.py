"""miniJSRT Directions01: 247 chest radiographs in four orientations, 988 images of 128 x 128 pixels.

Made from the JSRT database, Shiraishi et al., AJR 174 (2000), 71-74.

Splits: the official train (237 images of each class) and test (10 of each); there is no validation set.
The class is the folder's name: where the patient's head points to. What `list_train.txt` and `list_test.txt` hold is
not needed. The archive with `_RGB` in its name is built as grey.

File names are numbers, the same ones in all four folders of a split: the patient's id is the split and the number, for
one radiograph turned four times. The archive does not say that the numbers correspond; they cannot mix the splits.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mediax import builder, images, minijsrt
from mediax.phantoms import pool

CLASSES = ("Orientation Up", "Orientation Down", "Orientation Left", "Orientation Right")
FOLDERS = ("up", "down", "left", "right")  # in the order of CLASSES

SOURCE = minijsrt.source(
    "Directions01",
    files="2018/11/Directions01.zip",
    images="988 images of 128 x 128 pixels",
    tree="""
Directions01/                   or Directions01_RGB/
  train/{up,down,left,right}/0.png ...
  test/{up,down,left,right}/1.png ...
""",
)


class Builder(builder.Builder):
    """Builds records with `labels` i8[4], of which one is 1."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (builder.Config(),)

    def features(self):
        return {"labels": tfds.features.Tensor(shape=(4,), dtype=np.int8)}

    def find(self, folder):
        return minijsrt.find(folder, "directions", lambda place: minijsrt.has_classes(place, FOLDERS))

    def rows(self, folder):
        splits: dict[str, list[builder.Row]] = {"train": [], "test": []}
        for split, name, path in minijsrt.class_images(folder, FOLDERS):
            labels = np.eye(4, dtype=np.int8)[FOLDERS.index(name)]
            patient = minijsrt.identify(split, path.stem)
            row = builder.Row(f"{split}_{name}_{path.stem}", patient, path, str(path), {"labels": labels})
            splits[split].append(row)
        return splits


def classes(config=None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels."""
    return CLASSES


def read(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], labels f32[4], one of them 1."""
    return {**builder.example_of(record), "labels": record["labels"].astype(np.float32)}


QUARTER_TURNS = {"up": 0, "left": 1, "down": 2, "right": 3}  # counter-clockwise


def phantom(
    root: Path,
    *,
    seed: int = 0,
    train: int = 8,
    test: int = 2,
    release: str = "grey",
    size: int = 128,
) -> None:
    """Writes generated radiographs under `root`, laid out as Directions01 is: each one in four orientations.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/minijsrt_directions`.
      train, test: how many radiographs there are, a quarter of the images.
      release: a layout of `minijsrt.RELEASES`.
      size: side of the images in pixels; 128 in the archive.
    """
    folder, colour = minijsrt.phantom_folder(root, "Directions01", release)

    def write(number: int) -> None:
        # Numbers start at 0 in train and at 1 in test.
        split, name = ("train", number) if number < train else ("test", number - train + 1)
        pixels = images.to_uint8(minijsrt.draw(seed, number, size=size).image)
        for direction, turns in QUARTER_TURNS.items():
            minijsrt.write(folder / split / direction / f"{name}.png", np.rot90(pixels, turns), colour=colour)

    list(pool.in_order(write, range(train + test)))
    for split, first, count in (("train", 0, train), ("test", 1, test)):
        names = [f"{direction}/{first + number}.png" for direction in FOLDERS for number in range(count)]
        (folder / f"list_{split}.txt").write_text("\n".join(names) + "\n")

"""miniJSRT autoencoder_img: chest radiographs, some of them anomalous, for finding these by an autoencoder.

Made from the JSRT database, Shiraishi et al., AJR 174 (2000), 71-74.

The archive has no annotation file, and how its folders are named is not confirmed. So any tree is taken: every image
counts wherever it lies, and all that is known of it is what the names of its folders and its file say.

Splits: "train" or "test" where a folder is named train*, *_train, test* or *_test; the others are in "unsplit".
Labels: anomalous where a name says flip or anom, normal where one says normal, unknown (NaN) elsewhere; the option
`unnamed` of `read` takes the others for normal, as published exercises do. Patients are known where a file name
contains a code of the JSRT database; such a patient may then be in both splits, which is logged. Else every image
counts as a patient of its own.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import builder, catalog, images, minijsrt
from mediax.errors import InputError
from mediax.phantoms import pool

CLASSES = ("Anomaly",)
ANOMALOUS, NORMAL, UNNAMED = 1, 0, -1
ANOMALOUS_NAMES = re.compile(r"flip|anom|abnormal", re.IGNORECASE)
NORMAL_NAMES = re.compile(r"normal", re.IGNORECASE)
SPLIT_NAMES = {split: re.compile(rf"{split}.*|.*_{split}(ing)?", re.IGNORECASE) for split in minijsrt.SPLITS}

SOURCE = minijsrt.source(
    "autoencoder_img",
    files="2019/07/autoencoder_img.zip",
    images="about 250 images",
    tree="""
autoencoder_img/                with any folders of .png, .jpg or .bmp files inside
""",
)


class Builder(builder.Builder):
    """Builds records with `label` i8 (1 anomalous, 0 normal, -1 not said) and `folder`, the names it follows from."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (builder.Config(), builder.Config(size=256), builder.Config(size=128))
    DISJOINT_PATIENTS = False

    def features(self):
        return {"label": np.int8, "folder": tfds.features.Text()}

    def find(self, folder):
        # Without known names inside only the archive's own name tells it from other datasets' images.
        return minijsrt.find(folder, "auto.?encoder", is_archive)

    def rows(self, folder):
        splits: dict[str, list[builder.Row]] = defaultdict(list)
        for path in image_files(folder):
            names = path.relative_to(folder).parts
            identity = "/".join(names)
            fields = {"label": np.int8(label_of(names)), "folder": "/".join(names[:-1])}
            code = minijsrt.CODE.search(path.name)
            patient = code.group().upper() if code else identity
            splits[split_of(names[:-1])].append(builder.Row(identity, patient, path, str(path), fields))
        report(folder, splits)
        return splits


def is_archive(folder: Path) -> bool:
    """Whether a folder, named as the archive or the dataset, holds images anywhere, and no inner folder is so named."""
    named = re.compile(r"auto.?encoder.*", re.IGNORECASE)
    if not named.fullmatch(folder.name) and folder.name != Builder.name:
        return False
    inner = any(named.fullmatch(child.name) for child in minijsrt.subfolders(folder))
    return not inner and bool(image_files(folder))


def image_files(folder: Path) -> list[Path]:
    """All image files below a folder, sorted, without what operating systems put there."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in minijsrt.SUFFIXES and path.is_file()]
    hidden = [path for path in paths if any(name.startswith((".", "__")) for name in path.relative_to(folder).parts)]
    return sorted(set(paths) - set(hidden))


def label_of(names: tuple[str, ...]) -> int:
    """What the names of an image's folders and file say of it."""
    for name in names:
        if ANOMALOUS_NAMES.search(name):
            return ANOMALOUS
    return NORMAL if any(NORMAL_NAMES.search(name) for name in names) else UNNAMED


def split_of(folders: tuple[str, ...]) -> str:
    """The split that an image's folders name, the innermost first."""
    for folder in reversed(folders):
        for split, named in SPLIT_NAMES.items():
            if named.fullmatch(folder):
                return split
    return "unsplit"


def report(folder: Path, splits: Mapping[str, list[builder.Row]]) -> None:
    """Logs what was made of a tree that nobody describes."""
    for split, rows in splits.items():
        states = [int(row.fields["label"]) for row in rows]
        counts = [states.count(state) for state in (ANOMALOUS, NORMAL, UNNAMED)]
        logging.info("%s: %s: %d anomalous, %d normal, %d images whose names do not say", folder, split, *counts)
    train, test = ({row.patient_id for row in splits.get(split, ())} for split in minijsrt.SPLITS)
    if train & test:
        logging.warning("%s: %d patients of test are in train too", folder, len(train & test))


def classes(config=None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels."""
    return CLASSES


def read(record: Mapping[str, Any], *, unnamed: Literal["unknown", "normal"] = "unknown") -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], labels f32[1], 1 anomalous, 0 normal, NaN unknown.

    Args:
      record: a record of `builder.Records`.
      unnamed: what an image is whose names do not say it: "unknown" or "normal".

    Raises:
      InputError: another `unnamed`.
    """
    values = {"unknown": np.nan, "normal": 0.0}
    if unnamed not in values:
        raise InputError(f"minijsrt_anomaly: unnamed={unnamed!r}: {catalog.suggestion(unnamed, values)}")
    label = values[unnamed] if record["label"] == UNNAMED else record["label"]
    return {**builder.example_of(record), "labels": np.float32([label])}


# No description of the archive is published: three trees that a builder must take.
LAYOUTS = {
    "folders": {"train": "train/normal/{}.png", "normal": "test/normal/{}.png", "anomaly": "test/flip/{}.png"},
    "names": {"train": "train/{}.png", "normal": "test/{}.png", "anomaly": "test/{}_flip.png"},
    "flat": {"train": "{}.png", "normal": "{}.png", "anomaly": "anom_{}.png"},
}


def phantom(
    root: Path,
    *,
    seed: int = 0,
    train: int = 16,
    test: int = 14,
    layout: Literal["folders", "names", "flat"] = "folders",
    release: str = "grey",
    size: int = 128,
) -> None:
    """Writes generated radiographs under `root`; every second one of the test images is mirrored, heart on the right.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/minijsrt_anomaly`.
      train, test: how many images there are.
      layout: one of LAYOUTS, for the archive's own is not known.
      release: a layout of `minijsrt.RELEASES`.
      size: side of the images in pixels.
    """
    if layout not in LAYOUTS:
        raise InputError(f"minijsrt_anomaly: layout={layout!r}: {catalog.suggestion(layout, LAYOUTS)}")
    folder, colour = minijsrt.phantom_folder(root, "autoencoder_img", release)

    def write(number: int) -> None:
        kind = "train" if number < train else ("normal", "anomaly")[number % 2]
        pixels = images.to_uint8(minijsrt.draw(seed, number, size=size).image)
        path = folder / LAYOUTS[layout][kind].format(minijsrt.jsrt_code(number))
        minijsrt.write(path, pixels[:, ::-1] if kind == "anomaly" else pixels, colour=colour)

    list(pool.in_order(write, range(train + test)))

"""NODE21 (detection track): 4,882 frontal chest radiographs, 1,134 of them with 1,476 pulmonary nodules in boxes.

Sogancioglu et al., "Nodule detection and generation on chest X-rays: NODE21 Challenge", arXiv:2401.02192. The processed
images are read (1024 x 1024, 12 of 16 bits, lungs cropped and energy normalised by the authors); the boxes belong to
them and not to `original_data`. Each image is scaled from 0..its maximum to 8 bits, as the challenge's baseline does.

Splits (all three are cut from the public training set; the challenge's test sets were never distributed)
  train       the rest, about 70 %
  validation  the next 10 %
  test        the first 20 % of the images with nodules and of those without, each in the order of
              SHA-256("node21/<split_seed>/<image name>")
So the share of images with nodules is the same everywhere. Patients are not named: each image counts as its own. The
images come from JSRT, PadChest, ChestX-ray14 and Open-I, so a model that has seen those may have seen the test images.

Annotated: every nodule of 6 to 30 mm in every image. Nothing else is known.
"""

import dataclasses
import functools
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import builder, catalog, images, raw_files
from mediax.errors import InputError
from mediax.phantoms import chest, pool

CLASSES = ("Nodule",)
BOX_CLASSES = CLASSES

SOURCE = builder.Source(
    title="NODE21, detection track",
    homepage="https://zenodo.org/record/4725881",
    licence="unresolved: see the Zenodo record",
    access="open download",
    download_size="about 9 GB",
    images="4,882 images",
    citation="Sogancioglu et al., arXiv:2401.02192",
    tree="""
cxr_images/
  proccessed_data/          spelt like this in the distribution; other spellings are found too
    metadata.csv
    images/n0001.mha        n: with nodules, c: without
    images/c0001.mha
""",
)

COLUMNS = ("img_name", "label", "x", "y", "width", "height")
# The table lies beside `images/`, at most this deep. Patterns with names, because a raw folder can be huge.
PLACES = ("", "proc*ed_data/", "cxr_images/proc*ed_data/", "*/proc*ed_data/", "*/cxr_images/proc*ed_data/", "*/")
SHARES = (("test", 0.2), ("validation", 0.1))


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds the seed of the splits, which are not official."""

    split_seed: int = 0


class Nodules(NamedTuple):
    """What the table says of one image: its first line, and the boxes [y0, x0, y1, x1] in pixels."""

    where: str
    boxes: list[list[float]]


class Builder(builder.Builder):
    """Builds records with `boxes` (none in two thirds of the images), `box_labels` and `spacing_mm`."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(Config(size=size) for size in (512, 128, 256, 1024, None))

    def features(self):
        return {**builder.box_features(), "spacing_mm": builder.spacing_feature()}

    def find(self, folder):
        """Finds the table: beside `images/`, with the detection track's columns (the generation track has others)."""
        for place in PLACES:
            for table in sorted(folder.glob(f"{place}metadata.csv")):
                if (table.parent / "images").is_dir() and set(COLUMNS) <= set(builder.table_columns(table)):
                    return table
        return None

    def rows(self, table):
        nodules = read_nodules(table)
        files = {path.name.lower(): path for path in (table.parent / "images").iterdir()}
        check_listed(table, nodules, files)
        splits = assign(nodules, self.builder_config.split_seed)
        rows: dict[str, list[builder.Row]] = {"train": [], "validation": [], "test": []}
        for name, (where, boxes) in nodules.items():
            path = files.get(name.lower(), table.parent / "images" / name)
            fields = {"boxes": np.float32(boxes).reshape(-1, 4), "box_labels": np.zeros(len(boxes), np.int32)}
            stem = Path(name).stem
            rows[splits[name]].append(builder.Row(stem, stem, path, where, fields))
        return rows

    def load(self, row):
        pixels = super().load(row)
        return pixels if pixels.dtype == np.uint8 else images.to_uint8(pixels / max(1, pixels.max()))

    def annotations(self, row, pixels):
        return {**row.fields, "spacing_mm": images.read_metaimage(row.image)[1]}


def read_nodules(table: Path) -> dict[str, Nodules]:
    """Reads metadata.csv: image name -> its nodules; one line for each nodule, or one that says there is none.

    Raises:
      InputError: a label other than 0 and 1, a box without area, an image listed both with and without nodules.
    """
    nodules: dict[str, Nodules] = {}
    for where, line in builder.read_table(table, required=COLUMNS):
        name, label = line["img_name"], line["label"]
        if label not in ("0", "1", "0.0", "1.0"):
            raise InputError(f"{where}: label is {label!r}, expected 1 (nodule) or 0 (none)")
        positive, before = float(label) == 1, nodules.get(name)
        if before and not (positive and before.boxes):
            raise InputError(f"{where}: {name} was listed before, by {before.where}, and one of the two has no nodule")
        nodules.setdefault(name, Nodules(where, []))
        if positive:
            x, y, width, height = (builder.number(where, line, column) for column in COLUMNS[2:])
            if not (width > 0 and height > 0):
                raise InputError(f"{where}: a nodule of {line['width']!r} x {line['height']!r} pixels has no area")
            nodules[name].boxes.append([y, x, y + height, x + width])
    return nodules


def check_listed(table: Path, nodules: Mapping[str, Nodules], files: Mapping[str, Path]) -> None:
    """Raises InputError for images that the table does not know: they are not negatives."""
    listed = {name.lower() for name in nodules}
    extra = sorted(path for name, path in files.items() if name.endswith((".mha", ".mhd")) and name not in listed)
    if extra:
        raise InputError(
            f"{table}: no line names {extra[0].name}, nor {len(extra) - 1} other images in {extra[0].parent}; "
            f"is the table complete? If it is, remove these images."
        )
    logging.info("node21: %d images, %d with nodules", len(nodules), sum(bool(row.boxes) for row in nodules.values()))
    raw_files.report_repeated(table, "nodules", [(name, *box) for name, row in nodules.items() for box in row.boxes])


def assign(nodules: Mapping[str, Nodules], seed: int) -> dict[str, str]:
    """Image name -> split, stratified by whether there is a nodule; the rule is in the module's docstring."""
    splits = dict.fromkeys(nodules, "train")
    for positive in (True, False):
        names = [name for name, row in nodules.items() if bool(row.boxes) is positive]
        names.sort(key=lambda name: hashlib.sha256(f"node21/{seed}/{name}".encode()).digest())
        start = 0
        for split, share in SHARES:
            end = start + round(share * len(names))
            splits.update(dict.fromkeys(names[start:end], split))
            start = end
    return splits


def classes(config=None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels."""
    return CLASSES


def read(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], boxes f32[N,4], box_labels, labels f32[1] (any nodule)."""
    return {**builder.example_of(record), "labels": np.float32([len(record["boxes"]) > 0])}


# Release -> where the tree begins, and whether images without nodules belong to it.
PHANTOM_LAYOUTS = {
    "full": ("cxr_images/proccessed_data", True),
    "corrected": ("cxr_images/processed_data", True),  # by users who could not stand the spelling
    "first": ("", False),  # the first Zenodo version
}


def phantom(
    root: Path,
    *,
    seed: int = 0,
    count: int = 30,
    release: Literal["full", "corrected", "first"] = "full",
    index: bool = True,
    size: int = 128,
) -> None:
    """Writes `count` generated radiographs under `root`, laid out as NODE21 is: every other one with nodules.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/node21`.
      release: "full", "corrected" (folder spelt right), or "first" (images with nodules only, no folders above).
      index: whether an unnamed index column leads the table.
      size: side of the images in pixels; 1024 in the real set.
    """
    if release not in PHANTOM_LAYOUTS:
        raise InputError(f"node21: release={release!r}: {catalog.suggestion(release, PHANTOM_LAYOUTS)}")
    place, with_negatives = PHANTOM_LAYOUTS[release]
    draw = functools.partial(phantom_radiograph, seed, size=size)
    lines = []
    for number, radiograph in enumerate(pool.in_order(draw, range(count))):
        boxes = [box[1:] for box in radiograph.boxes if box[0] == "Nodule"]
        name = f"{'n' if boxes else 'c'}{number:04d}.mha"
        if not boxes and not with_negatives:
            continue
        pixels = np.round(radiograph.image * 4095).astype("<u2")
        write_metaimage(root / place / "images" / name, pixels, radiograph.spacing_mm)
        lines += [phantom_line(name, 1, x0, y0, x1 - x0, y1 - y0) for y0, x0, y1, x1 in boxes]
        lines += [] if boxes else [phantom_line(name, 0, 0, 0, 0, 0)]
    numbered = [{"": number, **line} for number, line in enumerate(lines)]
    builder.write_table(root / place / "metadata.csv", ("", *COLUMNS) if index else COLUMNS, numbered)


def phantom_radiograph(seed: int, number: int, *, size: int) -> chest.Radiograph:
    """The radiograph of an image's number; odd numbers have nodules, unless the collimator hides them all."""
    rng = np.random.default_rng([seed, number])
    findings = chest.sample_findings(rng) - {"Nodule"}
    return chest.frontal(int(rng.integers(2**31)), findings=findings | ({"Nodule"} if number % 2 else set()), size=size)


def phantom_line(*values: Any) -> dict[str, Any]:
    return dict(zip(COLUMNS, values))


def write_metaimage(path: Path, pixels: np.ndarray, spacing_mm: Sequence[float]) -> None:
    """Writes u16[H,W] as a compressed MetaImage like NODE21's; `spacing_mm` is (row, column)."""
    data = zlib.compress(pixels.astype("<u2").tobytes())
    header = {
        "ObjectType": "Image",
        "NDims": 2,
        "BinaryData": True,
        "BinaryDataByteOrderMSB": False,
        "CompressedData": True,
        "CompressedDataSize": len(data),
        "TransformMatrix": "1 0 0 1",
        "Offset": "0 0",
        "CenterOfRotation": "0 0",
        "ElementSpacing": f"{spacing_mm[1]} {spacing_mm[0]}",
        "DimSize": f"{pixels.shape[1]} {pixels.shape[0]}",
        "AnatomicalOrientation": "??",
        "ElementType": "MET_USHORT",
        "ElementDataFile": "LOCAL",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in header.items()).encode() + data)

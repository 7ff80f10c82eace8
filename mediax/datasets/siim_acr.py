"""SIIM-ACR Pneumothorax Segmentation (Kaggle 2019): 12,047 frontal chest radiographs, 2,669 of them with pneumothorax.

Society for Imaging Informatics in Medicine and American College of Radiology, Kaggle challenge, 2019. The images are
ChestX-ray14's under other names, so a model that was trained on that set may have seen the test images.

Splits
  train       the images of stage 1's training set but those of `validation`
  validation  10 % of stage 1's training set: `builder.held_out` with the salt "siim_acr/validation"; not official
  test        stage 1's test set (`dicom-images-test`), whose masks came with stage 2's table `stage_2_train.csv`;
              not built from stage 1's own table, which knows only the training set
Stage 2's test set (`stage_2_images`) has no public masks and is not built. If both tables are there, stage 2's counts.
Patients are not named: each image counts as its own.

Annotated: whether there is a pneumothorax, and where, in each image. An image with several regions has several lines,
which are united. A DICOM file without a line is left out and counted: nobody looked at it, so it is no negative.
"""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import builder, catalog, images, rle
from mediax.errors import InputError
from mediax.phantoms import chest, pool

CLASSES = ("Pneumothorax",)
MASK_CLASSES = CLASSES

SOURCE = builder.Source(
    title="SIIM-ACR Pneumothorax Segmentation",
    homepage="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
    licence="Kaggle competition rules",
    access="Kaggle account; the rules must be accepted",
    download_size="about 4 GB",
    images="12,047 images with masks or marked as normal",
    citation="SIIM-ACR Pneumothorax Segmentation, Kaggle, 2019",
    tree="""
stage_2_train.csv               or train-rle.csv of stage 1, which has no test set
dicom-images-train/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm
dicom-images-test/<StudyInstanceUID>/<SeriesInstanceUID>/<SOPInstanceUID>.dcm
""",
)

TABLES = ("stage_2_train.csv", "stage_2_train.csv.gz", "train-rle.csv", "train-rle.csv.gz")  # the preferred one first
IMAGE_FOLDER = re.compile(r"siim.*|pneumothorax.*|dicom.*|.*train.*|.*test.*|images|[0-9.]+", re.IGNORECASE)
TEST_FOLDER = re.compile(r"(?!.*train).*test.*", re.IGNORECASE)
UNLABELLED = "stage_2_images"


class Release(NamedTuple):
    """The folder of it all, the label table in it, and the DICOM files by SOPInstanceUID."""

    folder: Path
    table: Path
    files: dict[str, Path]


class Builder(builder.Builder):
    """Builds records with `labels` i8[1], `masks` (one structure) and `spacing_mm`."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(builder.Config(size=size) for size in (512, 128, 256, 1024, None))

    def features(self):
        return {
            "labels": tfds.features.Tensor(shape=(1,), dtype=np.int8),
            "masks": builder.mask_feature(len(MASK_CLASSES)),
            "spacing_mm": builder.spacing_feature(),
        }

    def find(self, folder):
        """Finds the table, in the folder or one below, and all DICOM files around it."""
        for name in TABLES:
            for table in (folder / name, *sorted(folder.glob(f"*/{name}"))):
                if table.is_file() and {"ImageId", "EncodedPixels"} <= set(builder.table_columns(table)):
                    return Release(folder, table, dicom_files(folder))
        return None

    def rows(self, release):
        splits: dict[str, list[builder.Row]] = {"train": [], "validation": [], "test": []}
        runs = read_runs(release.table)
        for name, lines in runs.items():
            path = release.files.get(name, release.table.parent / f"{name}.dcm")
            fields = {"labels": np.int8([lines[0][1] != "-1"]), "runs": lines}
            splits[split_of(name, path.relative_to(release.folder))].append(
                builder.Row(name, name, path, lines[0][0], fields)
            )
        unlisted = len(release.files.keys() - runs.keys())
        if unlisted:
            logging.info("siim_acr: %d DICOM files have no line in %s and are left out", unlisted, release.table)
        return splits

    def annotations(self, row, pixels):
        from mediax import dicom  # imported where it is needed: pydicom takes a second, which reading can spare

        masks = [decode(where, text, *pixels.shape[:2]) for where, text in row.fields["runs"]]
        return {
            "labels": row.fields["labels"],
            "masks": np.maximum.reduce(masks)[..., None],
            "spacing_mm": dicom.read_spacing(row.image),
        }


def dicom_files(folder: Path) -> dict[str, Path]:
    """All labelled DICOM files below a folder by SOPInstanceUID; raises InputError if one lies in two places."""
    files: dict[str, Path] = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if IMAGE_FOLDER.fullmatch(name) and name != UNLABELLED)
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix.lower() == ".dcm" and files.setdefault(path.stem, path) != path:
                raise InputError(f"siim_acr: {name} lies in {files[path.stem].parent} and in {parent}: keep one copy")
    return files


def read_runs(table: Path) -> dict[str, list[tuple[str, str]]]:
    """Reads a label table: image -> its lines as (where, run lengths); "-1" is an image without pneumothorax.

    Raises:
      InputError: no run lengths, or an image that is listed both with and without pneumothorax.
    """
    runs: dict[str, list[tuple[str, str]]] = {}
    for where, line in builder.read_table(table, required=("ImageId", "EncodedPixels")):
        name, text = line["ImageId"], line["EncodedPixels"]
        if not text:
            raise InputError(f"{where}: EncodedPixels is empty, expected run lengths, or -1 for no pneumothorax")
        lines = runs.setdefault(name, [])
        if lines and "-1" in (text, lines[0][1]):
            raise InputError(f"{where}: {name} was listed before, by {lines[0][0]}, and one of the two says -1")
        lines.append((where, text))
    return runs


def split_of(name: str, path: Path) -> str:
    """The split of an image: folders below the dataset's own tell stage 1's test set, `held_out` divides the rest."""
    if any(TEST_FOLDER.fullmatch(part) for part in path.parent.parts):
        return "test"
    return "validation" if builder.held_out(name, 0.1, salt="siim_acr/validation") else "train"


def decode(where: str, text: str, height: int, width: int) -> np.ndarray:
    """The mask of one line, u8[H,W]."""
    try:
        return rle.siim_decode(text, height, width)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def classes(config=None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels."""
    return CLASSES


def read(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], masks u8[H,W,1], labels f32[1] (1 pneumothorax, 0 none)."""
    example = builder.example_of(record, structures=len(MASK_CLASSES))
    return {**example, "labels": record["labels"].astype(np.float32)}


UID = "1.2.276.0.7230010.3.1"  # how the real identifiers begin; their fourth part tells study, series and image apart
# Release -> header, what the table says of an image without pneumothorax, table, splits in it.
PHANTOM_LAYOUTS = {
    "stage1": ("ImageId, EncodedPixels", " -1", "train-rle.csv", ("train",)),
    "stage2": ("ImageId,EncodedPixels", "-1", "stage_2_train.csv", ("train", "test")),
}


def phantom(
    root: Path,
    *,
    seed: int = 0,
    count: int = 24,
    test_count: int = 8,
    release: Literal["stage1", "stage2"] = "stage2",
    size: int = 128,
) -> None:
    """Writes generated radiographs under `root`, laid out as the challenge's: every other one with pneumothorax.

    The second image has one line for each half of its mask; two DICOM files have no line at all.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/siim_acr`.
      count, test_count: how many images the training and the test folder hold, beside those without a line.
      release: which label table there is: "stage1" (spaced header, training set) or "stage2" (with the test set).
      size: side of the images in pixels; 1024 in the real set.
    """
    from mediax import dicom

    if release not in PHANTOM_LAYOUTS:
        raise InputError(f"siim_acr: release={release!r}: {catalog.suggestion(release, PHANTOM_LAYOUTS)}")
    header, negative, table, labelled = PHANTOM_LAYOUTS[release]
    lines = [header]
    for split, images_in_split in (("train", count + 2), ("test", test_count)):
        draw = functools.partial(phantom_radiograph, seed, split, size=size)
        for number, radiograph in enumerate(pool.in_order(draw, range(images_in_split))):
            path = phantom_path(root, split, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = images.to_uint8(radiograph.image[..., None])
            dicom.write(path, pixels, spacing_mm=radiograph.spacing_mm, uid_source=path.stem)
            if split in labelled and number < (count if split == "train" else test_count):
                comma = ", " if " " in header else ","
                masks = phantom_masks(radiograph, halves=number == 1)
                lines += [path.stem + comma + rle.siim_encode(mask) for mask in masks] or [f"{path.stem},{negative}"]
    (root / table).write_text("\n".join(lines) + "\n")
    unlabelled = root / UNLABELLED / "ID_0011fe81e.dcm"
    unlabelled.parent.mkdir()
    unlabelled.write_bytes(path.read_bytes())


def phantom_radiograph(seed: int, split: str, number: int, *, size: int) -> chest.Radiograph:
    """The radiograph of an image's number; odd numbers have a pneumothorax."""
    rng = np.random.default_rng([seed, split == "test", number])
    findings = chest.sample_findings(rng) - {"Pneumothorax"} | ({"Pneumothorax"} if number % 2 else set())
    return chest.frontal(int(rng.integers(2**31)), findings=findings, size=size)


def phantom_path(root: Path, split: str, number: int) -> Path:
    """Where an image lies; study, series and image have identifiers like the real ones."""
    suffix = f"8323329.{300 + number}.15178751{62 + (split == 'test')}.{258080 + number}"
    study, series, image = (f"{UID}.{kind}.{suffix}" for kind in (2, 3, 4))
    return root / f"dicom-images-{split}" / study / series / f"{image}.dcm"


def phantom_masks(radiograph: chest.Radiograph, *, halves: bool) -> list[np.ndarray]:
    """The masks of an image's lines, none if there is no pneumothorax; `halves` cuts the mask in two that overlap."""
    mask = radiograph.finding_masks.get("Pneumothorax")
    if mask is None:
        return []
    if not halves:
        return [mask]
    rows = np.flatnonzero(mask.any(axis=1))
    middle = rows[len(rows) // 2]
    above, below = mask.copy(), mask.copy()
    above[middle + 1 :], below[:middle] = False, False
    return [above, below]

"""miniJSRT Practice: a few chest radiographs as PNG, JPEG and DICOM, for practising to read and write images.

Made from the JSRT database, Shiraishi et al., AJR 174 (2000), 71-74.

Splits: none, so all images are in "unsplit". Nothing is annotated. The builder config's `format` says which of the
three folders is read; the PNG and JPEG files come in one zip, the DICOM files, of 12 bits, in another one.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import builder, dicom, images, minijsrt
from mediax.phantoms import pool

CLASSES = ()
# Format -> how its folder's name ends, and its files' suffixes.
FORMATS = {"png": ("_png", (".png",)), "jpg": ("_jpg", (".jpg", ".jpeg")), "dicom": ("_dicom", (".dcm",))}
DEEP = 2**16 - 1  # DICOM images are built as 16 bits over the whole range of what their bits can store

SOURCE = minijsrt.source(
    "Practice",
    files="2019/07/Practice_PNGandJPG.zip and .../Practice_DICOM.zip",
    images="about 10 images in each of three formats",
    tree="""
Practice_PNGandJPG/
  chestimage_PNG/JPCLN001.png ...
  chestimage_JPG/JPCLN001.jpg ...
Practice_DICOM/
  chestimages_DICOM/JPCLN001.dcm ...
""",
)


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds which of the three formats is built."""

    format: Literal["png", "jpg", "dicom"] = "png"


class Builder(builder.Builder):
    """Builds records with `spacing_mm` f32[2], which only DICOM files may know."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(Config(format=format, size=size) for size in (None, 512, 256) for format in FORMATS)

    @property
    def DTYPE(self) -> type:  # a value of the base class that depends on the format here
        return np.uint16 if self.builder_config.format == "dicom" else np.uint8

    @property
    def RENDERS_DICOM(self) -> bool:  # too
        return self.builder_config.format == "dicom"

    def features(self):
        return {"spacing_mm": builder.spacing_feature()}

    def find(self, folder):
        return minijsrt.find(folder, "practice|chestimage", self.holds_format)

    def holds_format(self, folder: Path) -> bool:
        """Whether a folder is the one with the images of the config's format."""
        ending, suffixes = FORMATS[self.builder_config.format]
        files = folder.iterdir() if folder.name.lower().endswith(ending) else ()
        return any(path.suffix.lower() in suffixes for path in files)

    def rows(self, folder):
        suffixes = FORMATS[self.builder_config.format][1]
        paths = [path for path in minijsrt.list_images(folder) if path.suffix.lower() in suffixes]
        logging.info("%s: %d images", folder, len(paths))
        names = [(minijsrt.identify(path.stem), path) for path in paths]
        return {"unsplit": [builder.Row(name, name, path, str(path)) for name, path in names]}

    def load(self, row):
        if self.builder_config.format != "dicom":
            return super().load(row)
        # The whole range, not the window: nothing is cut, so that a 12-bit value can be told from every other.
        return np.rint(dicom.read(row.image).to_unit("full") * DEEP).astype(np.uint16)

    def annotations(self, row, pixels):
        known = self.builder_config.format == "dicom"
        return {"spacing_mm": np.float32(dicom.read(row.image).spacing_mm if known else (np.nan, np.nan))}


def classes(config=None, **_) -> tuple[str, ...]:
    """There are no labels, so no classes."""
    return CLASSES


def read(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1] or, from DICOM, f32[H,W,1] in [0,1]; spacing_mm f32[2]."""
    example = builder.example_of(record)
    if example["image"].dtype == np.uint16:
        example["image"] = np.float32(example["image"]) / np.float32(DEEP)
    return example


def phantom(root: Path, *, seed: int = 0, count: int = 10, release: str = "grey", size: int = 192) -> None:
    """Writes generated radiographs under `root` in the three formats, laid out as the two Practice archives are.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/minijsrt_practice`.
      count: how many radiographs there are, each in every format.
      release: a layout of `minijsrt.RELEASES`, of both archives.
      size: side of the images in pixels.
    """
    pictures, colour = minijsrt.phantom_folder(root, "Practice_PNGandJPG", release)
    scans = minijsrt.phantom_folder(root, "Practice_DICOM", release)[0] / "chestimages_DICOM"
    scans.mkdir(parents=True)

    def write(number: int) -> None:
        radiograph, name = minijsrt.draw(seed, number, size=size), minijsrt.jsrt_code(number)
        deep = np.rint(np.clip(radiograph.image, 0, 1) * 4095).astype(np.uint16)[..., None]
        dicom.write(scans / f"{name}.dcm", deep, bits=12, spacing_mm=radiograph.spacing_mm, uid_source=f"{seed}/{name}")
        for folder, suffix in (("chestimage_PNG", "png"), ("chestimage_JPG", "jpg")):
            minijsrt.write(pictures / folder / f"{name}.{suffix}", images.to_uint8(radiograph.image), colour=colour)

    list(pool.in_order(write, range(count)))

"""miniJSRT Segmentation01: chest radiographs with a mask of the lungs.

Made from the JSRT database, Shiraishi et al., AJR 174 (2000), 71-74.

Splits: the official train and test, about 50 and 10 images; there is no validation set.
A mask is a grey picture of the image's name, lung where brighter than 127; one of another size than its image is
resized by nearest neighbour. The archive with `_RGB` in its name is built as grey.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mediax import builder, images, minijsrt
from mediax.phantoms import pool

MASK_CLASSES = ("Lungs",)
CLASSES = MASK_CLASSES

SOURCE = minijsrt.source(
    "Segmentation01",
    files="2018/11/Segmentation01.zip",
    images="about 60 images of 256 x 256 pixels",
    tree="""
Segmentation01/                 or Segmentation01_RGB/
  train/org/*.png   train/label/*.png
  test/org/*.png    test/label/*.png
""",
)


class Builder(builder.Builder):
    """Builds records with `masks` of one structure, the lungs."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (builder.Config(),)

    def features(self):
        return {"masks": builder.mask_feature(1)}

    def find(self, folder):
        return minijsrt.find(folder, "segmentation", lambda place: minijsrt.has_classes(place, ("org", "label")))

    def rows(self, folder):
        splits: dict[str, list[builder.Row]] = {}
        for split in minijsrt.SPLITS:
            folders = [minijsrt.inside(folder, split, kind) for kind in ("org", "label")]
            names = [(minijsrt.identify(split, path.stem), path, label) for path, label in minijsrt.paired(*folders)]
            splits[split] = [builder.Row(name, name, path, str(label), {"label": label}) for name, path, label in names]
        return splits

    def annotations(self, row, pixels):
        label = minijsrt.read_label(row.fields["label"], *pixels.shape[:2])
        return {"masks": images.to_mask(label, str(row.fields["label"]))}


def classes(config=None, **_) -> tuple[str, ...]:
    """There are no labels of whole images, so no classes."""
    return ()


def read(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], masks u8[H,W,1]."""
    return builder.example_of(record, structures=len(MASK_CLASSES))


def phantom(
    root: Path,
    *,
    seed: int = 0,
    train: int = 20,
    test: int = 10,
    release: str = "grey",
    size: int = 128,
    label_size: int | None = None,
) -> None:
    """Writes generated radiographs and their lungs under `root`, laid out as Segmentation01 is.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/minijsrt_lung`.
      train, test: how many images there are.
      release: a layout of `minijsrt.RELEASES`.
      size: side of the images in pixels; 256 in the archive.
      label_size: side of the masks, by default that of the images.
    """
    folder, colour = minijsrt.phantom_folder(root, "Segmentation01", release)

    def write(number: int) -> None:
        radiograph = minijsrt.draw(seed, number, size=size)
        split, name = "train" if number < train else "test", f"case{number + 1:03d}.png"
        minijsrt.write(folder / split / "org" / name, images.to_uint8(radiograph.image), colour=colour)
        lungs = (radiograph.masks["Left Lung"] | radiograph.masks["Right Lung"]).astype(np.uint8)[..., None]
        label = images.Fit(size, size, label_size).image(lungs, nearest=True)[..., 0] * np.uint8(255)
        minijsrt.write(folder / split / "label" / name, label)

    list(pool.in_order(write, range(train + test)))

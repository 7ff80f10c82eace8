"""miniJSRT segmentation02: 247 chest radiographs with masks of lungs, heart and body.

Made from the JSRT database, Shiraishi et al., AJR 174 (2000), 71-74. The publishers state that no physician supervised
the masks.

Splits: the official train (199 images) and test (48), `org_train` and `org_test`; there is no validation set. The
folders `org` and `label` repeat both, `org_train_s` and `label_train_s` are a smaller copy: neither is read.

A label picture has four grey values: 255 lungs, 85 heart, 170 the rest of the body, 0 outside; any other one is an
error. So the structures exclude each other, and "Body" is what of the body is neither lungs nor heart. A label of
another size than its image is resized by nearest neighbour.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mediax import builder, images, minijsrt
from mediax.errors import InputError
from mediax.phantoms import pool

MASK_CLASSES = ("Lungs", "Heart", "Body")
CLASSES = MASK_CLASSES
VALUES = {"Lungs": 255, "Heart": 85, "Body": 170}
OUTSIDE = 0

SOURCE = minijsrt.source(
    "segmentation02",
    files="2019/07/segmentation02.zip",
    images="247 images",
    tree="""
segmentation02/segmentation/
  org_train/case001.bmp ...   label_train/case001_label.png ...
  org_test/case109.bmp ...    label_test/case109_label.png ...
""",
)


class Builder(builder.Builder):
    """Builds records with `masks` of three structures that exclude each other."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (builder.Config(), builder.Config(size=256))

    def features(self):
        return {"masks": builder.mask_feature(len(MASK_CLASSES))}

    def find(self, folder):
        return minijsrt.find(folder, "segmentation", holds_splits)

    def rows(self, folder):
        splits: dict[str, list[builder.Row]] = {}
        for split in minijsrt.SPLITS:
            folders = [minijsrt.inside(folder, f"{kind}_{split}") for kind in ("org", "label")]
            pairs = [(minijsrt.identify(path.stem), path, label) for path, label in minijsrt.paired(*folders)]
            splits[split] = [builder.Row(name, name, path, str(label), {"label": label}) for name, path, label in pairs]
        return splits

    def annotations(self, row, pixels):
        label = minijsrt.read_label(row.fields["label"], *pixels.shape[:2])
        if unknown := sorted(set(np.unique(label).tolist()) - {OUTSIDE, *VALUES.values()}):
            raise InputError(
                f"{row.where}: the grey values {unknown[:8]} stand for no structure; expected 0 (outside), 85 (heart), "
                f"170 (body) and 255 (lungs). Is it a resized or a JPEG copy? Extract the archive again."
            )
        return {"masks": (label == np.uint8([VALUES[name] for name in MASK_CLASSES])).astype(np.uint8)}


def holds_splits(folder: Path) -> bool:
    """Whether a folder holds images and labels of both splits."""
    names = [f"{kind}_{split}" for kind in ("org", "label") for split in minijsrt.SPLITS]
    return all(minijsrt.inside(folder, name).is_dir() for name in names)


def classes(config=None, **_) -> tuple[str, ...]:
    """There are no labels of whole images, so no classes."""
    return ()


def read(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], masks u8[H,W,3] in the order of MASK_CLASSES."""
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
    """Writes generated radiographs and their organs under `root`, laid out as segmentation02 is.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/minijsrt_organs`.
      train, test: how many images there are.
      release: a layout of `minijsrt.RELEASES`.
      size: side of the images in pixels.
      label_size: side of the label pictures, by default that of the images.
    """
    archive, colour = minijsrt.phantom_folder(root, "segmentation02", release)
    folder = archive / "segmentation"

    def write(number: int) -> None:
        radiograph = minijsrt.draw(seed, number, size=size)
        pixels, name = images.to_uint8(radiograph.image), f"case{number + 1:03d}"
        label = images.Fit(size, size, label_size).image(grey_levels(radiograph.masks)[..., None], nearest=True)[..., 0]
        # The folders without a split hold everything again, those with `_s` a part of train.
        copies = ["", "_train" if number < train else "_test", *(["_train_s"] if number < train // 4 else [])]
        for copy in copies:
            minijsrt.write(folder / f"org{copy}" / f"{name}.bmp", pixels, colour=colour)
            minijsrt.write(folder / f"label{copy}" / f"{name}_label.png", label)

    list(pool.in_order(write, range(train + test)))
    (folder / "result").mkdir()


def grey_levels(masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """The label picture u8[H,W] of a phantom's masks; where lung lies behind the heart it counts as heart."""
    lungs = masks["Left Lung"] | masks["Right Lung"]
    order = [masks["Heart"], lungs, masks["Body"]]
    return np.select(order, [VALUES["Heart"], VALUES["Lungs"], VALUES["Body"]], OUTSIDE).astype(np.uint8)

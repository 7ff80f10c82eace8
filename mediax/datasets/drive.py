"""DRIVE: 40 fundus photographs, 565x584, with vessel masks; the test images were read twice.

Staal et al., "Ridge-based vessel segmentation in color images of the retina", IEEE TMI 23(4), 2004.

Splits
  train   the official training images but those of `tuning`: 21 to 36
  tuning  the last four official training images, 37 to 40, for choosing models without touching `test`; "train+tuning"
          is the official training set
  test    the official test images, 01 to 20
Each image shows another patient.

`masks` are the first reader's, `second_masks` those of the second one, who saw the test images alone. The field of view
is the dataset's own. The current release has no masks of the test images: they are built all the same, with
`mask_valid` False. Older copies have them. Reading option: `reader`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tensorflow_datasets as tfds

from mediax import builder, catalog, photographs
from mediax.errors import InputError
from mediax.phantoms import fundus, pool

MASK_CLASSES = ("Vessels",)
CLASSES = MASK_CLASSES

SOURCE = builder.Source(
    title="DRIVE",
    homepage="https://drive.grand-challenge.org",
    licence="research use, no redistribution",
    access="registration",
    download_size="30 MB",
    images="20 training and 20 test images",
    citation="Staal et al., IEEE Transactions on Medical Imaging 23(4), 2004",
    tree="""
training/images/21_training.tif
training/1st_manual/21_manual1.gif
training/mask/21_training_mask.gif
test/images/01_test.tif
test/mask/01_test_mask.gif
test/1st_manual/01_manual1.gif   (older copies only)
test/2nd_manual/01_manual2.gif   (older copies only)
""",
)

TRAIN = tuple(f"{number:02d}" for number in range(21, 41))
TEST = tuple(f"{number:02d}" for number in range(1, 21))
# 01 to 20 are test images, 21 to 40 training images: a file that says otherwise is none of the dataset.
NAME = r"((?:0[1-9]|1\d|20)(?=_test)|(?:2[1-9]|3\d|40)(?=_training))_(?:test|training)"
FILES = {
    "image": NAME + r"\.tiff?",
    "masks": r"(\d\d)_manual1\.(?:gif|png|tiff?)",
    "second_masks": r"(\d\d)_manual2\.(?:gif|png|tiff?)",
    "field_of_view": NAME + r"_mask\.(?:gif|png|tiff?)",
}
OPTIONAL = {"masks": ("test",), "second_masks": ("train", "tuning", "test")}


class Builder(photographs.VesselBuilder):
    """Builds records with vessel masks of both readers and the dataset's field of view."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (builder.Config(), builder.Config(size=512, aspect="letterbox"))
    FILES = FILES
    OPTIONAL = OPTIONAL

    def splits(self):
        return photographs.with_tuning(TRAIN, TEST, tuning=4)


def classes(config=None, **_) -> tuple[str, ...]:
    """The structures of `masks`; the images have no labels."""
    del config
    return CLASSES


def read(record: Mapping[str, Any], *, reader: Literal[1, 2] = 1) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,3], masks u8[H,W,1], mask_valid bool[1], field_of_view u8[H,W], and
    second_masks u8[H,W,1] in the test split; `reader` says whose masks are `masks`, as in `photographs.read_masks`."""
    return photographs.read_masks(record, reader=reader)


PHANTOM_RELEASES = ("current", "old")


def phantom(
    root: Path,
    *,
    seed: int = 0,
    images: int | None = 12,
    release: Literal["current", "old"] = "old",
    size: int = 146,
    difficulty: float = 0.0,
    first_reader_error: float = 0.0,
) -> None:
    """Writes generated photographs under `root`, laid out as DRIVE is.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/drive`.
      images: how many of each official split, evenly spread; None is all 20.
      release: "old" has masks of the test images, "current" has none.
      size: height of the images in pixels; 584 in the dataset.
      difficulty: 0 to 1, of the photographs: thin vessels lose contrast, noise, blur and uneven light are added.
      first_reader_error: 0 to 1, how far the first reader errs as a share of how far the second one does; 0 is exact.
    """
    if release not in PHANTOM_RELEASES:
        raise InputError(f"drive: release={release!r}: {catalog.suggestion(release, PHANTOM_RELEASES)}")
    keys = photographs.spread(TRAIN, images) + photographs.spread(TEST, images)
    drawn = pool.in_order(lambda key: phantom_photograph(seed, key, size, difficulty), keys)
    for key, photograph in zip(keys, drawn):
        split = "training" if key in TRAIN else "test"
        folder, name, number = Path(root) / split, f"{key}_{split}", photographs.seed_of(seed, key)
        photographs.write(folder / "images" / f"{name}.tif", photograph.image)
        photographs.write(folder / "mask" / f"{name}_mask.gif", photographs.white(photograph.masks["Field of View"]))
        if split == "training" or release == "old":
            first = fundus.first_reader(photograph.masks, number, first_reader_error)["Vessels"]
            photographs.write(folder / "1st_manual" / f"{key}_manual1.gif", photographs.white(first))
        if split == "test" and release == "old":
            second = fundus.second_reader(photograph.masks, number)["Vessels"]
            photographs.write(folder / "2nd_manual" / f"{key}_manual2.gif", photographs.white(second))


def phantom_photograph(seed: int, key: str, size: int, difficulty: float = 0.0) -> fundus.Fundus:
    """One photograph with the proportions of the dataset's."""
    shape = (size, round(size * 565 / 584))
    number = photographs.seed_of(seed, key)
    return fundus.photograph(number, size=shape, field_of_view_degrees=45, difficulty=difficulty)

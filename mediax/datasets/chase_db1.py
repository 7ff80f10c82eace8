"""CHASE_DB1: 28 fundus photographs, 999x960, both eyes of 14 children, with vessel masks of two readers.

Fraz et al., "An Ensemble Classification-Based Approach Applied to Retinal Blood Vessel Segmentation", IEEE TBME 59(9),
2012; Owen et al., "Measuring Retinal Vessel Tortuosity in 10-Year-Old Children", IOVS 50(5), 2009.

Splits: none is official, and results under different ones cannot be compared. Config `split` names the images that
train; the others test:
  "first_20"  01L to 10R train, 11L to 14R (8) test: the most common one, mmsegmentation's too
  "last_8"    11L to 14R train, 01L to 10R (20) test: Fraz et al. 2012
  "first_8"   01L to 04R train, 05L to 14R (20) test: Galdran et al., Scientific Reports 12, 2022
In all of them `tuning` is the last child of the training images, for choosing models without touching `test`;
"train+tuning" are all training images. No child is in two splits.

`masks` are the first reader's (`1stHO`, the usual truth), `second_masks` the second one's (`2ndHO`). The dataset has no
masks of the field of view: they are computed by `annotations.field_of_view`. Reading option: `reader`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tensorflow_datasets as tfds

from mediax import builder, photographs
from mediax.phantoms import fundus, pool

MASK_CLASSES = ("Vessels",)
CLASSES = MASK_CLASSES

SOURCE = builder.Source(
    title="CHASE_DB1",
    homepage="https://blogs.kingston.ac.uk/retinal/chasedb1",
    licence="CC BY 4.0 (unconfirmed)",
    access="open",
    download_size="about 3 MB",
    images="28 images of 14 children",
    citation="Fraz et al., IEEE Transactions on Biomedical Engineering 59(9), 2012",
    tree="""
Image_01L.jpg
Image_01L_1stHO.png
Image_01L_2ndHO.png
""",
)

IMAGES = tuple(f"image_{number:02d}{side}" for number in range(1, 15) for side in "lr")
TRAINS = {"first_20": IMAGES[:20], "last_8": IMAGES[20:], "first_8": IMAGES[:8]}
FILES = {
    "image": r"(Image_\d\d[LR])\.jpe?g",
    "masks": r"(Image_\d\d[LR])_1stHO\.png",
    "second_masks": r"(Image_\d\d[LR])_2ndHO\.png",
}
OPTIONAL = {"second_masks": ("train", "tuning", "test")}


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds which images train."""

    split: Literal["first_20", "last_8", "first_8"] = "first_20"


class Builder(photographs.VesselBuilder):
    """Builds records with vessel masks of both readers and a computed field of view."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(Config(split=split) for split in TRAINS)
    FILES = FILES
    OPTIONAL = OPTIONAL

    def splits(self):
        train = TRAINS[self.builder_config.split]
        return photographs.with_tuning(train, [image for image in IMAGES if image not in train], tuning=2)

    def patient(self, key):
        return key.removeprefix("image_")[:2]


def classes(config=None, **_) -> tuple[str, ...]:
    """The structures of `masks`; the images have no labels."""
    del config
    return CLASSES


def read(record: Mapping[str, Any], *, reader: Literal[1, 2] = 1) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,3], masks and second_masks u8[H,W,1], mask_valid bool[1],
    field_of_view u8[H,W]; `reader` says whose masks are `masks`, as in `photographs.read_masks`."""
    return photographs.read_masks(record, reader=reader)


def phantom(
    root: Path,
    *,
    seed: int = 0,
    children: int | None = None,
    size: int = 160,
    difficulty: float = 0.0,
    first_reader_error: float = 0.0,
) -> None:
    """Writes generated photographs of left and right eyes under `root`, laid out as CHASE_DB1 is.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/chase_db1`.
      children: how many, evenly spread; None is all 14.
      size: height of the images in pixels; 960 in the dataset.
      difficulty: 0 to 1, of the photographs: thin vessels lose contrast, noise, blur and uneven light are added.
      first_reader_error: 0 to 1, how far the first reader errs as a share of how far the second one does; 0 is exact.
    """
    keys = [f"{number:02d}{side}" for number in photographs.spread(range(1, 15), children) for side in "LR"]
    drawn = pool.in_order(lambda key: phantom_photograph(seed, key, size, difficulty), keys)
    for key, photograph in zip(keys, drawn):
        number = photographs.seed_of(seed, key)
        first = fundus.first_reader(photograph.masks, number, first_reader_error)
        second = fundus.second_reader(photograph.masks, number)
        photographs.write(Path(root) / f"Image_{key}.jpg", photograph.image)
        photographs.write(Path(root) / f"Image_{key}_1stHO.png", first["Vessels"])
        photographs.write(Path(root) / f"Image_{key}_2ndHO.png", second["Vessels"])


def phantom_photograph(seed: int, key: str, size: int, difficulty: float = 0.0) -> fundus.Fundus:
    """One eye of a child with the proportions of the dataset's images; both eyes are the same child's."""
    person = fundus.sample_person(photographs.seed_of(seed, key[:2]), age=10)
    side = {"L": "left", "R": "right"}[key[2]]
    shape = (size, round(size * 999 / 960))
    eye = {"person": person, "side": side, "aim": "disc", "field_of_view_degrees": 30, "difficulty": difficulty}
    return fundus.photograph(photographs.seed_of(seed, key), size=shape, **eye)

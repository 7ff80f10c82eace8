"""STARE, the vessel subset: 20 fundus photographs, 700x605, half of them with disease; each was read twice.

Hoover et al., "Locating blood vessels in retinal images by piecewise threshold probing of a matched filter response",
IEEE TMI 19(3), 2000.

Splits: none is official. Config `split`
  "halves"   the first ten images train, the last ten test (Maninis et al., MICCAI 2016)
  "im0077"   or another image: leave-one-out, that image is `test` and the other 19 train; 20 such builds make the usual
             cross-validation
In both, `tuning` is the last two of the training images, for choosing models without touching `test`; "train+tuning"
are all training images. The files name no patients: each image counts as a patient of its own.

`masks` are Hoover's (`ah`, the usual truth), `second_masks` Kouznetsova's (`vk`, who marks more of the thin vessels);
without the archive of the latter the set is built with Hoover's alone. The dataset has no masks of the field of view:
they are computed by `annotations.field_of_view`. Reading option: `reader`.
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
    title="STARE, vessel subset",
    homepage="https://cecas.clemson.edu/~ahoover/stare/probing/index.html",
    licence="not stated",
    access="open",
    download_size="about 20 MB",
    images="20 images",
    citation="Hoover et al., IEEE Transactions on Medical Imaging 19(3), 2000",
    tree="""
im0001.ppm.gz       from stare-images.tar; unzipped files serve too
im0001.ah.ppm.gz    from labels-ah.tar
im0001.vk.ppm.gz    from labels-vk.tar
""",
)

NUMBERS = (1, 2, 3, 4, 5, 44, 77, 81, 82, 139, 162, 163, 235, 236, 239, 240, 255, 291, 319, 324)
IMAGES = tuple(f"im{number:04d}" for number in NUMBERS)
FILES = {
    "image": r"(im\d{4})\.ppm(?:\.gz)?",
    "masks": r"(im\d{4})\.ah\.ppm(?:\.gz)?",
    "second_masks": r"(im\d{4})\.vk\.ppm(?:\.gz)?",
}
OPTIONAL = {"second_masks": ("train", "tuning", "test")}


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds how the images are split: halves, or one image to test on."""

    split: Literal[("halves", *IMAGES)] = "halves"


class Builder(photographs.VesselBuilder):
    """Builds records with vessel masks of both readers and a computed field of view."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(Config(split=split) for split in ("halves", *IMAGES))
    FILES = FILES
    OPTIONAL = OPTIONAL

    def splits(self):
        chosen = self.builder_config.split
        test = IMAGES[10:] if chosen == "halves" else (chosen,)
        return photographs.with_tuning([image for image in IMAGES if image not in test], test, tuning=2)


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
    images: int | None = None,
    zipped: bool = True,
    size: int = 151,
    difficulty: float = 0.0,
    first_reader_error: float = 0.0,
) -> None:
    """Writes generated photographs under `root`, laid out as STARE's vessel subset is.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/stare`.
      images: how many, evenly spread; None is all 20.
      zipped: False writes the files as they are after gunzip.
      size: height of the images in pixels; 605 in the dataset.
      difficulty: 0 to 1, of the photographs: thin vessels lose contrast, noise, blur and uneven light are added.
      first_reader_error: 0 to 1, how far the first reader errs as a share of how far the second one does; 0 is exact.
    """
    keys = photographs.spread(IMAGES, images)
    ending = "ppm.gz" if zipped else "ppm"
    drawn = pool.in_order(lambda key: phantom_photograph(seed, key, size, difficulty), keys)
    for key, photograph in zip(keys, drawn):
        number = photographs.seed_of(seed, key)
        first = fundus.first_reader(photograph.masks, number, first_reader_error)
        second = fundus.second_reader(photograph.masks, number)
        photographs.write(Path(root) / f"{key}.{ending}", photograph.image)
        # Grey levels, so PGM inside, whatever the name says.
        photographs.write(Path(root) / f"{key}.ah.{ending}", photographs.white(first["Vessels"]))
        photographs.write(Path(root) / f"{key}.vk.{ending}", photographs.white(second["Vessels"]))


def phantom_photograph(seed: int, key: str, size: int, difficulty: float = 0.0) -> fundus.Fundus:
    """One photograph with the proportions of the dataset's."""
    shape = (size, round(size * 700 / 605))
    number = photographs.seed_of(seed, key)
    return fundus.photograph(number, size=shape, field_of_view_degrees=35, difficulty=difficulty)

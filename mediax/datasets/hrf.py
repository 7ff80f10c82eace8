"""HRF: 45 high-resolution fundus photographs, 3504x2336, with vessel masks: 15 healthy, 15 diabetic, 15 glaucomatous.

Budai et al., "Robust Vessel Segmentation in Fundus Images", International Journal of Biomedical Imaging 2013.

Splits: none is official. By custom the first five images of each group train and the other 30 test.
  train   the images 01 to 04 of each group
  tuning  the image 05 of each group, for choosing models without touching `test`; "train+tuning" is the customary
          training set
  test    the images 06 to 15 of each group
The files name no patients: each image counts as a patient of its own.

The labels are the group in the file's name: `_h` healthy, `_dr` diabetic retinopathy, `_g` glaucoma; of the other
groups' findings an image is taken to be free. One reader drew the vessels. The field of view is the dataset's own;
where its files are absent altogether, as in the archives of single groups, `annotations.field_of_view` computes it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

from mediax import builder, catalog, photographs
from mediax.errors import InputError
from mediax.phantoms import fundus, pool

GROUPS = {"h": "No Finding", "dr": "Diabetic Retinopathy", "g": "Glaucoma"}
CLASSES = tuple(GROUPS.values())
MASK_CLASSES = ("Vessels",)

SOURCE = builder.Source(
    title="High-Resolution Fundus (HRF) image database",
    homepage="https://www5.cs.fau.de/research/data/fundus-images",
    licence="CC BY 4.0 (unconfirmed)",
    access="open",
    download_size="about 75 MB",
    images="45 images",
    citation="Budai et al., International Journal of Biomedical Imaging 2013",
    tree="""
images/01_dr.JPG  images/01_g.jpg  images/01_h.jpg      (all.zip; or the zips of single groups: healthy/01_h.jpg,
manual1/01_dr.tif                                        healthy_manualsegm/01_h.tif, ...)
mask/01_dr_mask.tif
""",
)

NAMES = tuple(f"{number:02d}_{group}" for number in range(1, 16) for group in GROUPS)
NAME = r"((?:0[1-9]|1[0-5])_(?:dr|g|h))"
FILES = {
    "image": NAME + r"\.jpe?g",
    "masks": NAME + r"\.tiff?",
    "field_of_view": NAME + r"_mask\.tiff?",
}
OPTIONAL = {"field_of_view": ("train", "tuning", "test")}


class Builder(photographs.VesselBuilder):
    """Builds records with vessel masks, the field of view and `labels` i8[3], one of them 1: the group."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (builder.Config(), *(builder.Config(size=size, aspect="letterbox") for size in (2048, 1024, 512)))
    FILES = FILES
    OPTIONAL = OPTIONAL

    def features(self):
        return super().features() | {"labels": tfds.features.Tensor(shape=(len(CLASSES),), dtype=np.int8)}

    def splits(self):
        return photographs.with_tuning(NAMES[:15], NAMES[15:], tuning=3)

    def labels(self, key):
        return {"labels": np.array([key.endswith(f"_{group}") for group in GROUPS], np.int8)}


def classes(config=None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels: one of them holds for each image."""
    del config
    return CLASSES


def read(record: Mapping[str, Any]) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,3], labels f32[3], masks u8[H,W,1], mask_valid bool[1],
    field_of_view u8[H,W]."""
    return photographs.read_masks(record) | {"labels": record["labels"].astype(np.float32)}


PHANTOM_FOLDERS = {"h": "healthy", "g": "glaucoma", "dr": "diabetic_retinopathy"}
PHANTOM_LAYOUTS = ("all", "groups")


def phantom(
    root: Path,
    *,
    seed: int = 0,
    images: int | None = 24,
    layout: Literal["all", "groups"] = "all",
    size: int = 128,
    difficulty: float = 0.0,
    first_reader_error: float = 0.0,
) -> None:
    """Writes generated photographs under `root`, laid out as HRF is; the diabetic and glaucomatous ones show it.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/hrf`.
      images: how many in all, evenly spread; None is all 45.
      layout: "all" is that of all.zip, "groups" that of the archives of single groups, without fields of view.
      size: height of the images in pixels; 2336 in the dataset.
      difficulty: 0 to 1, of the photographs: thin vessels lose contrast, noise, blur and uneven light are added.
      first_reader_error: 0 to 1, how far the first reader errs as a share of `fundus.second_reader`; 0 is exact.
    """
    if layout not in PHANTOM_LAYOUTS:
        raise InputError(f"hrf: layout={layout!r}: {catalog.suggestion(layout, PHANTOM_LAYOUTS)}")
    keys = photographs.spread(NAMES, images)
    drawn = pool.in_order(lambda key: phantom_photograph(seed, key, size, difficulty), keys)
    for key, photograph in zip(keys, drawn):
        group = key.split("_")[1]
        pictures, masks = ("images", "manual1")
        if layout == "groups":
            pictures, masks = PHANTOM_FOLDERS[group], f"{PHANTOM_FOLDERS[group]}_manualsegm"
        ending = "JPG" if group == "dr" else "jpg"
        photographs.write(Path(root) / pictures / f"{key}.{ending}", photograph.image)
        first = fundus.first_reader(photograph.masks, photographs.seed_of(seed, key), first_reader_error)
        photographs.write(Path(root) / masks / f"{key}.tif", photographs.white(first["Vessels"]))
        if layout == "all":
            colour = np.repeat(photographs.white(photograph.masks["Field of View"])[..., None], 3, axis=2)
            photographs.write(Path(root) / "mask" / f"{key}_mask.tif", colour)


def phantom_photograph(seed: int, key: str, size: int, difficulty: float = 0.0) -> fundus.Fundus:
    """One photograph with the proportions of the dataset's and the disease of its group."""
    number = photographs.seed_of(seed, key)
    disease = {"h": {}, "dr": {"grade": 2 + number % 3}, "g": {"cup_to_disc": 0.75}}[key.split("_")[1]]
    shape = (size, round(size * 3504 / 2336))
    return fundus.photograph(number, size=shape, field_of_view_degrees=60, difficulty=difficulty, **disease)

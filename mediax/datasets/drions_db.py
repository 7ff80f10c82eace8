"""DRIONS-DB: 110 fundus photographs around the optic disc, 600x400, with the disc's contour by two experts.

Carmona et al., "Identification of the optic nerve head with genetic algorithms", Artificial Intelligence in Medicine
43(3), 2008.

Splits: none is official. By custom (Maninis et al., MICCAI 2016) the images 1 to 60 train and 61 to 110 test.
  train   the images 1 to 50
  tuning  the images 51 to 60, for choosing models without touching `test`; "train+tuning" is the customary training set
  test    the images 61 to 110
The images show 55 patients, most of them with both eyes, but the files do not say which images belong together: whether
the customary split parts the eyes of a patient cannot be checked, each image counts as a patient of its own, and
bootstrap intervals by patient are intervals by image.

Records keep the contours of both experts. `masks` are expert 1's discs, the usual truth, `second_masks` expert 2's; the
reading option `reader` swaps them. The masks are filled in the built image, so that they are sharp at every size. The
field of view is computed by `annotations.field_of_view`. image_101.jpg is 599 pixels wide: built at no fixed size it
fits into no batch of the others. Some images have letters printed at their left edge.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

from mediax import annotations, builder, photographs
from mediax.errors import InputError
from mediax.phantoms import fundus, pool

MASK_CLASSES = ("Optic Disc",)
CLASSES = MASK_CLASSES

SOURCE = builder.Source(
    title="DRIONS-DB",
    homepage="http://www.ia.uned.es/~ejcarmona/DRIONS-DB.html",
    licence="not stated",
    access="open; the certificate of the site has expired, and the archive is a RAR",
    download_size="unresolved; a few MB",
    images="110 images of 55 patients",
    citation="Carmona et al., Artificial Intelligence in Medicine 43(3), 2008",
    tree="""
images/image_001.jpg
experts_anotation/anotExpert1_001.txt
experts_anotation/anotExpert2_001.txt
""",
)

TRAIN = tuple(f"{number:03d}" for number in range(1, 61))
TEST = tuple(f"{number:03d}" for number in range(61, 111))
FILES = {
    "image": r"image_(\d{3})\.jpe?g",
    "contour of expert 1": r"anotExpert1_(\d{3})\.txt",
    "contour of expert 2": r"anotExpert2_(\d{3})\.txt",
}
CONTOURS = tuple(FILES)[1:]


class Builder(builder.Builder):
    """Builds records with `polygons`, the contours of expert 1 and expert 2, and `field_of_view`."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    CHANNELS = 3
    BUILDER_CONFIGS = (
        *(builder.Config(size=size, aspect="letterbox") for size in (512, 256)),
        builder.Config(),
    )

    def features(self):
        return builder.polygon_features() | {"field_of_view": builder.mask_feature(1)}

    def find(self, folder):
        found = photographs.find_files(folder, FILES)
        return found if found["image"] else None

    def rows(self, found):
        pictures = found["image"]
        photographs.check_keys(pictures, TRAIN + TEST, "image_001.jpg to image_110.jpg")
        for kind in CONTOURS:
            photographs.check_pictures(pictures, found[kind])
            photographs.partners(kind, pictures, found[kind])
        return {
            split: [
                self._row(pictures[key], [found[kind][key] for kind in CONTOURS]) for key in keys if key in pictures
            ]
            for split, keys in photographs.with_tuning(TRAIN, TEST, tuning=10).items()
        }

    def _row(self, image: Path, contours: list[Path]) -> builder.Row:
        return builder.Row(image.stem, image.stem, image, str(contours[0]), {"contours": contours})

    def annotations(self, row, pixels):
        contours = [read_contour(path, *pixels.shape[:2]) for path in row.fields["contours"]]
        # The files have x first, records y.
        return {
            "polygons": [points[:, ::-1] for points in contours],
            "field_of_view": annotations.field_of_view(pixels),
        }


def read_contour(path: Path, height: int, width: int) -> np.ndarray:
    """Reads an open contour f64[N,2] (x, y); InputError if it is none, or lies outside of the image."""
    points = photographs.read_numbers(path, 2)
    if len(points) < 3:
        raise InputError(f"{path}: {len(points)} points, a contour has three or more; download it again")
    photographs.check_inside(points, height, width, str(path))
    return points


def classes(config=None, **_) -> tuple[str, ...]:
    """The structures of `masks`; the images have no labels."""
    del config
    return CLASSES


def read(record: Mapping[str, Any], *, reader: Literal[1, 2] = 1) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,3], masks and second_masks u8[H,W,1], mask_valid bool[1],
    field_of_view u8[H,W]; `reader` says which expert's are `masks`. Raises InputError for another reader."""
    example = builder.example_of(record)
    height, width = example["image"].shape[:2]
    for name, points in zip(("masks", "second_masks"), example.pop("polygons")):
        example[name] = annotations.polygon_to_mask(points[:, ::-1] * (width, height), height, width)[..., None]
    return photographs.choose_reader(example | {"mask_valid": np.ones(1, bool)}, reader)


POINTS = 36  # of each contour that the phantom writes


def phantom(root: Path, *, seed: int = 0, images: int | None = 16, size: int = 160) -> None:
    """Writes generated photographs under `root`, laid out as DRIONS-DB is; image_101.jpg is there and one pixel
    narrower.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/drions_db`.
      images: how many of each customary split, evenly spread; None is all, 60 and 50.
      size: height of the images in pixels; 400 in the dataset.
    """
    keys = sorted({*photographs.spread(TRAIN, images), *photographs.spread(TEST, images), "101"})
    drawn = pool.in_order(lambda key: phantom_photograph(seed, key, size), keys)
    for key, photograph in zip(keys, drawn):
        photographs.write(Path(root) / "images" / f"image_{key}.jpg", photograph.image)
        second = fundus.second_reader(photograph.masks, photographs.seed_of(seed, key))
        for expert, masks in ((1, photograph.masks), (2, second)):
            path = Path(root) / "experts_anotation" / f"anotExpert{expert}_{key}.txt"
            photographs.write_numbers(path, outline(masks["Optic Disc"]), separator=" , ", decimals=2)


def phantom_photograph(seed: int, key: str, size: int) -> fundus.Fundus:
    """One photograph around the disc, with the proportions of the dataset's."""
    shape = (size, round(size * 1.5) - (key == "101"))
    return fundus.photograph(photographs.seed_of(seed, key), size=shape, aim="disc", field_of_view_degrees=30)


def outline(mask: np.ndarray) -> np.ndarray:
    """The outline f64[36,2] (x, y) of a mask: where rays from its middle leave it."""
    y, x = np.nonzero(mask)
    centre = np.array([x.mean() + 0.5, y.mean() + 0.5])
    contour = max(annotations.mask_to_polygons(mask.astype(np.uint8)), key=len) - centre
    steps = np.linspace(0, 1, 16, endpoint=False)[None, :, None]
    dense = (contour[:, None] * (1 - steps) + np.roll(contour, -1, axis=0)[:, None] * steps).reshape(-1, 2)
    angles = np.arctan2(dense[:, 1], dense[:, 0])
    rays = np.arange(POINTS) * 2 * np.pi / POINTS - np.pi
    nearest = np.abs(np.angle(np.exp(1j * (angles[None] - rays[:, None])))).argmin(axis=1)
    return dense[nearest] + centre

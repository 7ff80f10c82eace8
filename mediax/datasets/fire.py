"""FIRE: 134 pairs of fundus photographs, 2912x2912, with corresponding points, to register one image onto the other.

Hernandez-Matas et al., "FIRE: Fundus Image Registration dataset", Journal for Modeling in Ophthalmology 1(4), 2017.

Splits: `test` alone, all pairs; the dataset is for evaluation. The first letter of a pair's name is its category: S (71
pairs, much overlap), P (49, little overlap), A (14, anatomical change between the visits). The 134 pairs show 129
photographs of 39 patients, so some pairs share a photograph: pairs with a file of the same bytes count as one
patient's. The files say no more of the patients, so bootstrap intervals by patient are somewhat too narrow.

An example is a pair: `image` is the file _1, the reference, `moving` the file _2, which is warped onto it. The points
of P37 are wrong and are left out by the usual protocol (Liu et al., SuperRetina, ECCV 2022): the reading option
`wrong_points` makes them unknown or keeps them. Errors are usually given in pixels of the original files, whose size
`original_size` records. The field of view is the dataset's own mask, one for all images; without that file
`annotations.field_of_view` computes it from each reference.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import annotations, builder, catalog, images, photographs
from mediax.errors import InputError
from mediax.phantoms import fundus, pool

CLASSES = ()
CATEGORIES = ("S", "P", "A")

SOURCE = builder.Source(
    title="FIRE",
    homepage="https://projects.ics.forth.gr/cvrl/fire",
    licence="research use (unconfirmed)",
    access="open",
    download_size="about 260 MB",
    images="134 pairs of 129 images of 39 patients",
    citation="Hernandez-Matas et al., Journal for Modeling in Ophthalmology 1(4), 2017",
    tree="""
FIRE/Images/A01_1.jpg  A01_2.jpg
FIRE/Ground Truth/control_points_A01_1_2.txt
FIRE/Masks/mask.png
""",
)

FILES = {
    "image": r"([ASP]\d\d)_1\.jpe?g",
    "moving image": r"([ASP]\d\d)_2\.jpe?g",
    "control points": r"control_points_([ASP]\d\d)_1_2\.txt",
}
WRONG = ("P37",)


class Builder(builder.Builder):
    """Builds records of pairs: `image` and `moving`, `keypoints` and `moving_keypoints`, `field_of_view`, `category`
    ("S", "P", "A") and `points_wrong`."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    CHANNELS = 3
    BUILDER_CONFIGS = tuple(builder.Config(size=size) for size in (768, 512, 1024, None))

    def features(self):
        return {
            "moving": tfds.features.Image(shape=(None, None, 3), dtype=np.uint8),
            "keypoints": builder.point_feature(),
            "moving_keypoints": builder.point_feature(),
            "field_of_view": builder.mask_feature(1),
            "category": tfds.features.Text(),
            "points_wrong": np.bool_,
        }

    def find(self, folder):
        found = photographs.find_files(folder, FILES)
        return found if found["image"] else None

    def rows(self, found):
        references, points, moving = found["image"], found["control points"], found["moving image"]
        for kind in ("control points", "moving image"):
            photographs.check_pictures(references, found[kind])
            photographs.partners(kind, references, found[kind])
        if not field_of_view(next(iter(references.values()))):
            logging.info("fire: no Masks/mask.png: the fields of view of %d pairs are computed", len(references))
        patients = shared_photographs({key: (references[key], moving[key]) for key in references})
        return {
            "test": [
                self._row(key.upper(), patients[key].upper(), path, moving[key], points[key])
                for key, path in references.items()
            ]
        }

    def _row(self, pair: str, patient: str, image: Path, moving: Path, points: Path) -> builder.Row:
        files = {"moving": moving, "points": points, "field_of_view": field_of_view(image)}
        fields = files | {"category": pair[0], "points_wrong": pair in WRONG}
        return builder.Row(pair, patient, image, str(points), fields)

    def annotations(self, row, pixels):
        height, width = pixels.shape[:2]
        moving = images.read(row.fields["moving"], channels=3)
        if moving.shape != pixels.shape:
            raise InputError(
                f"{row.fields['moving']}: {moving.shape[1]} x {moving.shape[0]} pixels, but {row.image} has {width} x "
                f"{height}; the images of a pair have one size as they are distributed"
            )
        points = photographs.read_numbers(row.fields["points"], 4)
        for half in (points[:, :2], points[:, 2:]):
            photographs.check_inside(half, height, width, row.where)
        shipped = row.fields["field_of_view"]
        return {
            "moving": self.encoded(row.fields["moving"], moving),
            # The files have x first, records y.
            "keypoints": points[:, 1::-1],
            "moving_keypoints": points[:, :1:-1],
            "field_of_view": photographs.read_mask(shipped) if shipped else annotations.field_of_view(pixels),
            "category": row.fields["category"],
            "points_wrong": row.fields["points_wrong"],
        }


def field_of_view(image: Path) -> Path | None:
    """The one mask that the dataset ships, if it is there."""
    mask = image.parents[1] / "Masks" / "mask.png"
    return mask if mask.is_file() else None


def shared_photographs(pairs: Mapping[str, tuple[Path, Path]]) -> dict[str, str]:
    """Groups pairs that have a file of the same bytes: pair -> the first pair of its group."""
    group = {pair: pair for pair in pairs}
    holder: dict[bytes, str] = {}
    for pair, files in pairs.items():
        for file in files:
            old, new = group[pair], group[holder.setdefault(hashlib.sha256(file.read_bytes()).digest(), pair)]
            group = {key: min(old, new) if first in (old, new) else first for key, first in group.items()}
    return group


def classes(config=None, **_) -> tuple[str, ...]:
    """There are none: the pairs have no labels."""
    del config
    return CLASSES


def read(record: Mapping[str, Any], *, wrong_points: Literal["unknown", "keep"] = "unknown") -> dict[str, Any]:
    """Turns a record into an example: image and moving u8[H,W,3], keypoints and moving_keypoints f32[P,2] (y, x as
    fractions of the images), field_of_view u8[H,W], category i32, a number of CATEGORIES.

    `wrong_points` makes the points of P37 NaN ("unknown") or keeps them. Raises InputError for another value.
    """
    if wrong_points not in ("unknown", "keep"):
        raise InputError(f'fire: wrong_points={wrong_points!r}: expected "unknown" or "keep"')
    example = builder.example_of(record)
    example |= {"moving": images.decode(record["moving"])}
    example["category"] = np.int32(CATEGORIES.index(record["category"]))
    if record["points_wrong"] and wrong_points == "unknown":
        example |= {name: np.full_like(example[name], np.nan) for name in ("keypoints", "moving_keypoints")}
    return example


PHANTOM_PAIRS = ("A01", "A02", "P01", "P02", "P03", "P37", "S01", "S02", "S03", "S04", "S05", "S06")
SHARING = {"S02": "S01"}  # pairs whose reference is that of another pair
SHIFT = 40.0  # pixels by which the points of a wrong pair are off, in an image of 2912


def phantom(root: Path, *, seed: int = 0, pairs: tuple[str, ...] = PHANTOM_PAIRS, size: int = 160) -> None:
    """Writes generated pairs under `root`, laid out as FIRE is: P37 has wrong points, S02 shares a photograph with S01.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/fire`.
      pairs: their names; the first letter is the category.
      size: side of the images in pixels; 2912 in the dataset.
    """
    for name in pairs:
        if name[0] not in fundus.CATEGORIES:
            raise InputError(f"fire: pair {name!r}: {catalog.suggestion(name[0], fundus.CATEGORIES)}")
    folder = Path(root) / "FIRE"
    for name, drawn in zip(pairs, pool.in_order(lambda name: phantom_pair(seed, name, size), pairs)):
        points = np.concatenate([drawn.reference_points, drawn.moving_points], axis=1)
        if name in WRONG:
            points[:, 2:] = np.clip(points[:, 2:] + SHIFT * size / 2912, 0, size)
        photographs.write(folder / "Images" / f"{name}_1.jpg", drawn.reference.image)
        photographs.write(folder / "Images" / f"{name}_2.jpg", drawn.moving.image)
        path = folder / "Ground Truth" / f"control_points_{name}_1_2.txt"
        photographs.write_numbers(path, points, separator=" ", decimals=3)
        field = photographs.white(drawn.reference.masks["Field of View"])
    photographs.write(folder / "Masks" / "mask.png", field)
    photographs.write(folder / "Masks" / "feature_mask.png", field)


def phantom_pair(seed: int, name: str, size: int) -> fundus.Pair:
    """One pair by the dataset's camera. The same seed with another motion gives the same reference."""
    camera = fundus.Camera(field_of_view_degrees=45, fill=0.98)
    motion = {"shift_mm": 0.6, "rotation_degrees": 3.0} if name in SHARING else {}
    number = photographs.seed_of(seed, SHARING.get(name, name))
    return fundus.pair(number, category=name[0], size=size, camera=camera, **motion)

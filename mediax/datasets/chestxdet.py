"""ChestX-Det: 3,578 chest radiographs of ChestX-ray14 with 13 findings, each outlined; and its forerunner ChestX-Det10.

Lian et al., "A Structure-Aware Relation Network for Thoracic Diseases Detection and Segmentation", IEEE TMI 40 (2021)
(arXiv:2104.10326); Liu et al., "ChestX-Det10", 2020 (arXiv:2006.10550).

The builder config `release` chooses:
  chestxdet    3,025 and 553 images; 13 findings; a box and a polygon of each instance
  chestxdet10  3,001 and 542 of these images; 10 findings; boxes only. What both annotate differs a little. The labels
               of Cardiomegaly, Diffuse Nodule and Pleural Thickening are unknown

Splits
  train       the official training images but those of `validation`
  validation  10 % of the official training images, for there is no official one: `builder.held_out` with the salt
              "chestxdet/validation"
  test        the official test images
There are no patient ids, and the images do not have their names of ChestX-ray14: neither whether a patient is in two
splits nor whether an image is in ChestX-ray14's test list can be known. Do not train on the one and test on the other.

Masks hold the union of a finding's polygons, each filled by the even-odd rule; `polygons` keep the instances apart, in
the order of the boxes, and `box_masks` are these polygons filled in the built image. Reading option: `instances`, False
to leave `box_masks` out.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from mediax import annotations, builder, catalog, images, raw_files, vocabulary
from mediax.errors import InputError
from mediax.phantoms import chest, pool

# As the files spell them; the second release of the two added three.
FINDINGS = (
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "Diffuse Nodule",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Fracture",
    "Mass",
    "Nodule",
    "Pleural Thickening",
    "Pneumothorax",
)
ADDED = ("Cardiomegaly", "Diffuse Nodule", "Pleural Thickening")
CLASSES = tuple(map(vocabulary.canonical, FINDINGS))
BOX_CLASSES = MASK_CLASSES = CLASSES

SOURCE = builder.Source(
    title="ChestX-Det and ChestX-Det10",
    homepage="https://github.com/Deepwise-AILab/ChestX-Det-Dataset",
    licence="Apache 2.0 (the repository); the images derive from NIH ChestX-ray14",
    access="open download: train_data.zip and test_data.zip of http://resource.deepwise.com/ChestX-Det/ (ChestX-Det10: "
    "http://resource.deepwise.com/xraychallenge/), the JSON files from the repository",
    download_size="size unresolved: 3,578 images of 1024 x 1024 pixels",
    images="3,025 training and 553 test images (ChestX-Det10: 3,001 and 542)",
    citation="Lian et al., IEEE TMI 40 (2021), arXiv:2104.10326; Liu et al. 2020, arXiv:2006.10550",
    tree="""
ChestX_Det_train.json  ChestX_Det_test.json     (release=chestxdet10: train.json, test.json)
train_data/36200.png  test_data/36199.png       (any folders: the images are found by their names)
""",
)

SPLITS = ("train", "test")
TABLES = {"chestxdet": "ChestX_Det_{}.json", "chestxdet10": "{}.json"}
FRAME = 1024  # the side of the distributed images, whose pixels are the unit of the annotations


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds the release."""

    release: Literal["chestxdet", "chestxdet10"] = "chestxdet"


class Release(NamedTuple):
    """The files of a copy: a JSON file of each split, and the images by their names."""

    tables: dict[str, Path]
    images: dict[str, list[Path]]


class Builder(builder.Builder):
    """Builds records with `labels` (i8[13]: 1, 0, -1 unknown), boxes and, of ChestX-Det, masks and polygons."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(
        Config(size=size, release=release) for size in (512, 128, 224, 256, None) for release in TABLES
    )

    def features(self):
        features = {
            "labels": tfds.features.Tensor(shape=(len(CLASSES),), dtype=np.int8),
            **builder.box_features(),
        }
        if self.builder_config.release == "chestxdet":
            features |= {"masks": builder.mask_feature(len(MASK_CLASSES)), **builder.polygon_features()}
        return features

    def find(self, folder):
        """Finds the JSON files of the release, and images in any folders."""
        files = list(raw_files.walk(folder))
        pattern = TABLES[self.builder_config.release]
        tables = {}
        for split in SPLITS:
            named = [path for path in files if raw_files.matches(path, pattern.format(split))]
            tables[split] = raw_files.only(
                [path for path in named if is_table(path)], f"chestxdet: {pattern.format(split)}"
            )
        if None in tables.values():
            return None
        pictures: dict[str, list[Path]] = {}
        for path in files:
            if path.suffix.lower() == ".png":
                pictures.setdefault(path.name.lower(), []).append(path)
        return Release(tables, pictures)

    def rows(self, release):
        splits: dict[str, list[builder.Row]] = {"train": [], "validation": [], "test": []}
        for split, table in release.tables.items():
            for row in read_table(release, table, self.builder_config.release):
                splits["validation" if split == "train" and is_validation(row.id) else split].append(row)
        return splits

    def annotations(self, row, pixels):
        """Scales the annotations to the file, which is the distributed one of 1024 pixels or a resized copy."""
        height, width = pixels.shape[:2]
        fields = dict(row.fields)
        fields["boxes"] = fields["boxes"] * np.float32([height, width, height, width]) / FRAME
        if "polygons" in fields:
            polygons = [polygon * np.float32([width, height]) / FRAME for polygon in fields["polygons"]]
            masks = np.zeros((height, width, len(MASK_CLASSES)), np.uint8)
            for label, polygon in zip(fields["box_labels"], polygons):
                masks[..., label] |= annotations.polygon_to_mask(polygon, height, width)
            fields |= {"masks": masks, "polygons": [polygon[:, ::-1] for polygon in polygons]}
        return fields


def is_validation(image_id: str) -> bool:
    """Whether a training image belongs to the validation split."""
    return builder.held_out(image_id, 0.1, salt="chestxdet/validation")


def is_table(path: Path) -> bool:
    """Whether a JSON file is one of these: other datasets have a `train.json` too."""
    with path.open("rb") as file:
        return b'"file_name"' in (start := file.read(1000)) and b'"syms"' in start


def read_table(release: Release, path: Path, name: str) -> Iterator[builder.Row]:
    """The rows of a JSON file; raises InputError if an image's lists do not fit each other."""
    try:
        content = json.loads(path.read_text())
        keys = ("syms", "boxes", "polygons") if name == "chestxdet" else ("syms", "boxes")
        marked = [(image["file_name"], mark) for image in content for mark in zip(image["syms"], image["boxes"])]
        raw_files.report_repeated(path, "boxes", map(str, marked))
        for image in content:
            where = f"{path}, image {image['file_name']}"
            counts = {key: len(image[key]) for key in keys}
            if len(set(counts.values())) > 1:
                found = ", ".join(f"{count} {key}" for key, count in counts.items())
                raise InputError(f"{where}: {found}; expected as many of each")
            fields = {
                "labels": image_labels(where, image["syms"], name),
                "boxes": image_boxes(where, image["boxes"]),
                "box_labels": np.int32([FINDINGS.index(finding) for finding in image["syms"]]),
            }
            if name == "chestxdet":
                fields["polygons"] = [outline(where, points) for points in image["polygons"]]
            identifier = Path(image["file_name"]).stem
            yield builder.Row(identifier, identifier, image_path(release, path, image["file_name"]), where, fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: no complete list of annotations ({error!r}); download it again") from error


def image_boxes(where: str, corners: Any) -> np.ndarray:
    """The boxes of an image, f32[N,4]."""
    try:
        return annotations.xyxy_to_boxes(corners)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def outline(where: str, points: Any) -> np.ndarray:
    """The points of a polygon, f32[N,2] x, y; raises InputError unless they are three or more within the image."""
    try:
        found = annotations.numbers(points, np.float32)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    slack = builder.BOX_SLACK
    if found.ndim != 2 or found.shape[1] != 2 or len(found) < 3:
        raise InputError(f"{where}: a polygon of the shape {list(found.shape)}, expected [3 or more, 2]")
    if not ((found >= -slack) & (found <= FRAME + slack)).all():
        raise InputError(f"{where}: a polygon leaves the image of {FRAME} x {FRAME} pixels; download the file again")
    return found


def image_labels(where: str, findings: list[str], release: str) -> np.ndarray:
    """Labels i8[13] of an image's findings: 1, 0, or -1 for what the release does not annotate."""
    annotated = [name for name in FINDINGS if release == "chestxdet" or name not in ADDED]
    for name in findings:
        if name not in annotated:
            raise InputError(f"{where}: the finding {name!r}: {catalog.suggestion(name, annotated)}")
    return np.int8([name in findings if name in annotated else -1 for name in FINDINGS])


def image_path(release: Release, table: Path, name: str) -> Path:
    """Where an image lies; the JSON files name no folder."""
    found = raw_files.only(release.images.get(name.lower(), []), f"chestxdet: {name}")
    return found or table.with_name(name)


def classes(config=None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels: all 13, in either release."""
    del config
    return CLASSES


def read(record: Mapping[str, Any], *, instances: bool = True) -> dict[str, Any]:
    """Turns a record into an example: what `builder.example_of` gives, labels f32[13] (1, 0, NaN not annotated).

    With `instances` also box_masks u8[N,H,W], the filled polygon of each box, where the release has polygons.
    """
    labels = np.where(record["labels"] < 0, np.nan, record["labels"]).astype(np.float32)
    example = {**builder.example_of(record, structures=len(MASK_CLASSES)), "labels": labels}
    if instances and "polygons" in example:
        example["box_masks"] = filled(example["polygons"], *example["image"].shape[:2])
    return example


def filled(polygons: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The masks u8[N,height,width] of polygons f32[P,2] (y, x as fractions of the image)."""
    masks = [annotations.polygon_to_mask(polygon[:, ::-1] * (width, height), height, width) for polygon in polygons]
    return np.stack(masks) if masks else np.zeros((0, height, width), np.uint8)


# What the chest phantom's findings are called here; the others are not annotated.
PHANTOM_LABELS = {
    "Cardiomegaly": "Cardiomegaly",
    "Pleural Effusion": "Effusion",
    "Consolidation": "Consolidation",
    "Atelectasis": "Atelectasis",
    "Nodule": "Nodule",
    "Mass": "Mass",
    "Pneumothorax": "Pneumothorax",
}
PHANTOM_FIRST = 36199  # the first image's number in the real set


class PhantomImage(NamedTuple):
    """One image to be drawn."""

    name: str
    split: str
    draw: Callable[[], chest.Radiograph]


def phantom(
    root: Path,
    *,
    seed: int = 0,
    train: int = 24,
    test: int = 10,
    release: Literal["chestxdet", "chestxdet10"] = "chestxdet",
    folders: tuple[str, str] = ("train_data", "test_data"),
    prevalence: Mapping[str, float] | None = None,
    size: int = 128,
) -> None:
    """Writes generated radiographs under `root`, laid out as ChestX-Det is.

    The first images of each split show each finding of `chest.FINDINGS` once, the next one none.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/chestxdet`.
      train, test: how many images there are in each JSON file.
      release: "chestxdet" or "chestxdet10".
      folders: of the images of train and test.
      prevalence: how often findings occur, where not as in `chest.PREVALENCE`.
      size: side of the images in pixels; 1024 in the real set, whose pixels the annotations speak of in any case.
    """
    if release not in TABLES:
        raise InputError(f"chestxdet: release={release!r}: {catalog.suggestion(release, TABLES)}")
    drawn = list(phantom_images(seed, {"train": train, "test": test}, size, prevalence))
    tables: dict[str, list] = {split: [] for split in SPLITS}
    for image, radiograph in zip(drawn, pool.in_order(lambda image: image.draw(), drawn)):
        path = Path(root) / folders[SPLITS.index(image.split)] / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode(images.to_uint8(radiograph.image[..., None])))
        tables[image.split].append({"file_name": image.name, **phantom_annotations(radiograph, release)})
    for split, table in tables.items():
        (Path(root) / TABLES[release].format(split)).write_text(json.dumps(table))


def phantom_images(
    seed: int, counts: Mapping[str, int], size: int, prevalence: Mapping[str, float] | None = None
) -> Iterator[PhantomImage]:
    """All images of the phantom; a quarter of the training images, not a tenth, belongs to the validation split."""
    quarter = counts["train"] // 4
    parts = (("train", False, counts["train"] - quarter), ("train", True, quarter), ("test", None, counts["test"]))
    numbers = itertools.count(PHANTOM_FIRST)
    for split, validation, count in parts:
        fitting = (number for number in numbers if validation in (None, is_validation(str(number))))
        for rank, number in enumerate(itertools.islice(fitting, count)):
            rng = np.random.default_rng([seed, number])
            findings = chest.sample_findings(rng, prevalence)
            if rank <= len(chest.FINDINGS):
                findings = frozenset(chest.FINDINGS[rank : rank + 1])
            draw = functools.partial(chest.frontal, int(rng.integers(2**31)), findings=findings, size=size)
            yield PhantomImage(f"{number}.png", split, draw)


def phantom_annotations(radiograph: chest.Radiograph, release: str) -> dict[str, list]:
    """The three lists of an image; an instance in several parts becomes several, for a polygon is one ring."""
    lists: dict[str, list] = {"syms": [], "boxes": [], "polygons": []}
    height, width = radiograph.image.shape
    for (finding, *_), instance in zip(radiograph.boxes, radiograph.instances):
        name = PHANTOM_LABELS.get(finding)
        if name is None or (release == "chestxdet10" and name in ADDED):
            continue
        regions = annotations.connected_instances(instance)
        for part in range(1, int(regions.max()) + 1):
            outline = outer_ring(regions == part) * (FRAME / width, FRAME / height)
            lists["syms"].append(name)
            lists["boxes"].append([*map(round, (*outline.min(axis=0), *outline.max(axis=0)))])
            lists["polygons"].append([[round(x), round(y)] for x, y in outline])
    if release == "chestxdet10":
        del lists["polygons"]
    return lists


def outer_ring(mask: np.ndarray) -> np.ndarray:
    """The outline f[N,2] (x, y) of a connected mask, without its holes."""
    return max(annotations.mask_to_polygons(mask), key=lambda ring: np.ptp(ring, axis=0).prod())

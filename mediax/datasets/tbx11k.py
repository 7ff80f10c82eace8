"""TBX11K: 11,200 chest radiographs, healthy, sick or tuberculous, with boxes of active and latent tuberculosis.

Liu et al., "Rethinking Computer-Aided Tuberculosis Diagnosis", CVPR 2020, and "Revisiting Computer-Aided Tuberculosis
Diagnosis", IEEE TPAMI 46 (2023); github.com/yun-liu/Tuberculosis.

Splits
  train, val  the official ones, 6,600 and 1,800 images
The labels of the official test images are withheld (online challenge), so they are not built; many works report `val`.
There are no patient ids: one image is one person, as far as anybody knows.

Labels: healthy ("No Finding"), sick but not with tuberculosis, and tuberculosis exclude each other, and follow from an
image's folder. Active and latent tuberculosis follow from the boxes and may occur together (30 images). They are
unknown where a tuberculous image has no box: tb1199, and the `extra` images. There nobody knows the boxes either
(`boxes_known` is False); in people without tuberculosis there are none to know.

The builder config `sources="all"` adds the `extra` images that the lists `all_*` hold: DA, DB, Montgomery and Shenzhen,
which are datasets of their own. Whoever evaluates on one of those must not train on it here.

Annotations are read from the COCO files. Where these are absent, the lists and the XML files give the same, by the
rules of the authors' converter: boxes scaled to 512 pixels, less one; difficult or thinner than a pixel are left out.
"""

import dataclasses
import functools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from mediax import annotations, builder, catalog, images, raw_files
from mediax.errors import InputError
from mediax.phantoms import chest, pool

CLASSES = (
    "No Finding",
    "Sick Non-Tuberculosis",
    "Tuberculosis",
    "Active Tuberculosis",
    "Latent Tuberculosis",
)
CLASS_SETS = {"all": CLASSES, "image": CLASSES[:3], "activity": CLASSES[3:]}
BOX_CLASSES = CLASSES[3:]

SOURCE = builder.Source(
    title="TBX11K",
    homepage="https://mmcheng.net/tb/",
    licence="CC BY-NC-SA 2.0, as the annotation files say",
    access="open download (Google Drive, Baidu)",
    download_size="size unresolved: 12,808 images of 512 x 512 pixels",
    images="8,400 labelled images, 1,106 extra ones, 3,302 without labels",
    citation="Liu et al., CVPR 2020; Liu et al., IEEE TPAMI 46 (2023)",
    tree="""
TBX11K/
  imgs/health/h0001.png  imgs/sick/s3250.png  imgs/tb/tb0005.png  imgs/extra/...
  annotations/json/TBX11K_train.json  annotations/json/TBX11K_val.json    (all_*.json for sources=all)
      or, without these, annotations/xml/tb0005.xml and lists/TBX11K_train.txt, lists/TBX11K_val.txt
""",
)

SPLITS = ("train", "val")
LISTS = {"tbx11k": "TBX11K", "all": "all"}
CATEGORIES = {"ActiveTuberculosis": 0, "ObsoletePulmonaryTuberculosis": 1}  # to BOX_CLASSES
FRAME = 512  # the side of the distributed images, whose pixels are the unit of the COCO files
HEALTHY, SICK, TUBERCULOUS = 0, 1, 2  # places in CLASSES
FOLDERS = {"health": HEALTHY, "sick": SICK, "tb": TUBERCULOUS}


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds whose images are built: TBX11K's own, or those of four older datasets too."""

    sources: Literal["tbx11k", "all"] = "tbx11k"


class Entry(NamedTuple):
    """An image of a list: its name below `imgs/`, its boxes in fractions of the image, and where both were read."""

    name: str
    where: str
    boxes: np.ndarray  # f32[N,4]
    box_labels: np.ndarray  # i32[N]


class Builder(builder.Builder):
    """Builds records with `labels` (i8[5]: 1, 0, -1 unknown) and boxes."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(Config(size=size, sources=sources) for size in (None, 128, 224, 256) for sources in LISTS)

    def features(self):
        return {
            "labels": tfds.features.Tensor(shape=(len(CLASSES),), dtype=np.int8),
            **builder.box_features(),
            "boxes_known": np.bool_,
        }

    def find(self, folder):
        """Finds the folder that holds `imgs`: the given one, or one up to three folders deeper."""
        files = raw_files.walk(folder, depth=5, closed="imgs|code")
        named = [path for path in files if path.name in {f"{LISTS['tbx11k']}_train{end}" for end in (".json", ".txt")}]
        levels = {".json": 2, ".txt": 1}  # annotations/json/NAME and lists/NAME
        roots = {path.parents[levels[path.suffix]] for path in named}
        return raw_files.only(sorted(root for root in roots if (root / "imgs").is_dir()), "tbx11k: a folder imgs")

    def rows(self, root):
        prefix = LISTS[self.builder_config.sources]
        splits = {split: [entry_row(root, entry) for entry in entries(root, prefix, split)] for split in SPLITS}
        report(root, [row for rows in splits.values() for row in rows])
        return splits

    def annotations(self, row, pixels):
        height, width = pixels.shape[:2]
        return row.fields | {"boxes": row.fields["boxes"] * np.float32([height, width, height, width])}


def report(root: Path, rows: Sequence[builder.Row]) -> None:
    """Logs what else might be missing: images that no list names, and tuberculosis without a box."""
    listed = {row.image for row in rows}
    named = [path for kind in FOLDERS for path in (root / "imgs" / kind).glob("*.png")]
    if unlisted := sum(path not in listed for path in named):
        logging.warning("tbx11k: left out %d of %d images that no list names", unlisted, len(named))
    if unboxed := [row.id for row in rows if not row.fields["boxes_known"]]:
        logging.info("tbx11k: %d images of tuberculosis without boxes, %s for one", len(unboxed), unboxed[0])


def entries(root: Path, prefix: str, split: str) -> Iterable[Entry]:
    """The images of a split from its COCO file, else from its list and the XML files."""
    table, names = root / f"annotations/json/{prefix}_{split}.json", root / f"lists/{prefix}_{split}.txt"
    if table.is_file():
        return read_coco(table)
    if names.is_file() and (root / "annotations/xml").is_dir():
        return read_list(root, names)
    raise InputError(
        f"tbx11k: {table} is absent, and so is {names} or the folder {root / 'annotations/xml'}; download the "
        f"annotations again"
    )


def read_coco(path: Path) -> Iterator[Entry]:
    """Reads a COCO file; raises InputError if it is damaged, or a box has no image or an unknown category."""
    try:
        content = json.loads(path.read_text())
        categories = {category["id"]: category["name"] for category in content["categories"]}
        boxes: dict[int, list] = {image["id"]: [] for image in content["images"]}
        for number, box in enumerate(content["annotations"], 1):
            where = f"{path}, annotation {box.get('id', number)}"
            if box["image_id"] not in boxes:
                raise InputError(f"{where}: no image has the id {box['image_id']}; download the file again")
            category = category_of(where, categories.get(box["category_id"], box["category_id"]))
            boxes[box["image_id"]].append((category, box["bbox"]))
        marks = [(box["image_id"], box["category_id"], *box["bbox"]) for box in content["annotations"]]
        raw_files.report_repeated(path, "boxes", map(str, marks))
        for image in content["images"]:
            found, side = boxes[image["id"]], np.float32([image["height"], image["width"]])
            labels = np.int32([category for category, _ in found])
            where = f"{path}, image {image['file_name']}"
            if not (side > 0).all():
                raise InputError(f"{where}: {image['width']} x {image['height']} pixels; download the file again")
            corners = image_boxes(where, [corners for _, corners in found]) / np.tile(side, 2)
            yield Entry(str(image["file_name"]), where, corners, labels)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: no complete COCO file ({error!r}); download it again") from error


def image_boxes(where: str, corners: Sequence[Sequence[float]]) -> np.ndarray:
    """The boxes of an image, f32[N,4]."""
    try:
        return annotations.xywh_to_boxes(corners)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def read_list(root: Path, names: Path) -> Iterator[Entry]:
    """Reads a list of images and the XML file of each tuberculous one that has any."""
    for number, name in enumerate(raw_files.read_lines(names), 1):
        if name:
            table = root / "annotations/xml" / f"{PurePosixPath(name).stem}.xml"
            boxed = name.startswith("tb/") and table.is_file()
            where = str(table) if boxed else f"{names}, line {number}"
            yield Entry(name, where, *(read_xml(table) if boxed else read_boxes([])))


def read_xml(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the boxes of an XML file, in fractions of the image, and their labels; raises InputError for a bad one."""
    try:
        root = ElementTree.parse(path).getroot()
        scale = np.array([FRAME / int(root.findtext(f"size/{side}")) for side in ("height", "width")] * 2)
        boxes = []
        for number, item in enumerate(root.iterfind("object"), 1):
            corners = [int(item.findtext(f"bndbox/{side}")) for side in ("ymin", "xmin", "ymax", "xmax")] * scale
            thin = (corners[2:] - corners[:2] < 1).any()
            if not thin and not int(item.findtext("difficult")):
                boxes.append((category_of(f"{path}, object {number}", item.findtext("name")), corners - 1))
        return read_boxes(boxes)
    except (OSError, ElementTree.ParseError, ValueError, TypeError, ArithmeticError) as error:
        raise InputError(
            f"{path}: no complete annotation in Pascal VOC's format ({error}); download it again"
        ) from error


def read_boxes(boxes: Sequence[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in fractions and their labels, from (label, ymin xmin ymax xmax in 512 pixels)."""
    corners = np.array([corners for _, corners in boxes], np.float32).reshape(-1, 4)
    return corners / FRAME, np.int32([label for label, _ in boxes])


def category_of(where: str, name: Any) -> int:
    """A category's place in BOX_CLASSES; the third one, tuberculosis of unknown activity, is in the test set only."""
    if name not in CATEGORIES:
        raise InputError(f"{where}: the category is {name!r}: {catalog.suggestion(name, CATEGORIES)}")
    return CATEGORIES[name]


def entry_row(root: Path, entry: Entry) -> builder.Row:
    """The row of an image."""
    kind = kind_of(entry)
    if len(entry.boxes) and kind != TUBERCULOUS:
        raise InputError(f"{entry.where}: a box of tuberculosis in {entry.name}; expected them in tb/ alone")
    known = kind != TUBERCULOUS or len(entry.boxes) > 0
    activity = [label in entry.box_labels if known else -1 for label in range(len(BOX_CLASSES))]
    labels = np.int8([*(kind == other for other in (HEALTHY, SICK, TUBERCULOUS)), *activity])
    fields = {"labels": labels, "boxes": entry.boxes, "box_labels": entry.box_labels, "boxes_known": known}
    name = PurePosixPath(entry.name)
    # The names of `extra` are unique with their folders only.
    identifier = str(name.with_suffix("")) if name.parts[0] == "extra" else name.stem
    return builder.Row(identifier, identifier, root / "imgs" / name, entry.where, fields)


def kind_of(entry: Entry) -> int:
    """Healthy, sick or tuberculous, by the folder, in `extra` by the name: n11, nx11, CHNCXR_0001_0 are healthy."""
    name = PurePosixPath(entry.name)
    if not name.stem:
        raise InputError(f"{entry.where}: {entry.name!r} is no file name; expected one as health/h0001.png")
    if name.parts[0] in FOLDERS:
        return FOLDERS[name.parts[0]]
    if name.parts[0] == "extra" and name.stem.startswith(("CHNCXR_", "MCUCXR_")) and name.stem[-2:] in ("_0", "_1"):
        return TUBERCULOUS if name.stem.endswith("_1") else HEALTHY
    if name.parts[0] == "extra" and name.stem[0] in "np":
        return TUBERCULOUS if name.stem[0] == "p" else HEALTHY
    raise InputError(f"{entry.where}: {entry.name!r} is in none of health/, sick/, tb/ and the known sets of extra/")


def classes(config=None, *, classes: str = "all", **_) -> tuple[str, ...]:
    """The classes of `read`'s labels: "all", "image" (the exclusive three) or "activity" (active and latent)."""
    del config
    if classes not in CLASS_SETS:
        raise InputError(f"tbx11k: classes={classes!r}: {catalog.suggestion(classes, CLASS_SETS)}")
    return CLASS_SETS[classes]


def read(record: Mapping[str, Any], *, classes: Literal["all", "image", "activity"] = "all") -> dict[str, Any]:
    """Turns a record into an example: what `builder.example_of` gives, labels f32[K] (1, 0, NaN unknown).

    Args:
      record: a record of `builder.Records`.
      classes: all five, "image": healthy, sick, tuberculous, which exclude each other, or "activity": active, latent.

    Raises:
      InputError: an unknown option.
    """
    if classes not in CLASS_SETS:
        raise InputError(f"tbx11k: classes={classes!r}: {catalog.suggestion(classes, CLASS_SETS)}")
    labels = np.where(record["labels"] < 0, np.nan, record["labels"]).astype(np.float32)
    chosen = [CLASSES.index(name) for name in CLASS_SETS[classes]]
    return {**builder.example_of(record), "labels": labels[chosen]}


# What the phantom draws for each kind: consolidations stand for active, nodules for latent tuberculosis.
PHANTOM_CATEGORIES = {"Consolidation": "ActiveTuberculosis", "Nodule": "ObsoletePulmonaryTuberculosis"}
PHANTOM_TUBERCULOSIS = ({"Consolidation"}, {"Nodule"}, {"Consolidation"}, {"Consolidation", "Nodule"})
PHANTOM_SICKNESS = ("Cardiomegaly", "Pleural Effusion", "Edema", "Pneumothorax")
PHANTOM_ORIGINAL = 3000  # side in pixels of the radiographs that were shrunk to 512; the XML files speak of these
PHANTOM_EXTRA = {
    "train": ("da+db/train/n1.png", "da+db/train/px1.jpg", "mc+shenzhen/CHNCXR_0001_0.png"),
    "val": ("da+db/val/n1.png", "da+db/val/p1.png", "mc+shenzhen/MCUCXR_0104_1.png"),
}


class PhantomImage(NamedTuple):
    """One image to be drawn; `boxed` says whether its tuberculosis is annotated."""

    name: str
    split: str
    boxed: bool
    draw: Callable[[], chest.Radiograph]


def phantom(
    root: Path,
    *,
    seed: int = 0,
    train: int = 16,
    val: int = 8,
    layout: Literal["json", "xml"] = "json",
    size: int = 128,
) -> None:
    """Writes generated radiographs under `root`, laid out as TBX11K is, oddities included.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/tbx11k`.
      train, val: how many images there are in each split besides tb1199 (in train, without boxes) and `extra`; a half
        healthy, a quarter sick, a quarter tuberculous.
      layout: "json" is the whole distribution; "xml" leaves the COCO files out.
      size: side of the images in pixels; 512 in the real set, which the annotations keep speaking of.
    """
    if layout not in ("json", "xml"):
        raise InputError(f"tbx11k: layout={layout!r}: {catalog.suggestion(layout, ('json', 'xml'))}")
    root = Path(root) / "TBX11K"
    drawn = list(phantom_images(seed, {"train": train, "val": val}, size))
    boxes = {}
    for image, radiograph in zip(drawn, pool.in_order(lambda image: image.draw(), drawn)):
        path = root / "imgs" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images.to_uint8(radiograph.image)).convert("RGB").save(path)
        found = [box for box in radiograph.boxes if image.boxed and box[0] in PHANTOM_CATEGORIES]
        boxes[image.name] = [(name, *(original_pixel(side, size) for side in corners)) for name, *corners in found]
    for name, found in boxes.items():
        if found:
            write_phantom_xml(root / "annotations/xml" / f"{PurePosixPath(name).stem}.xml", found)
    for prefix in LISTS.values():
        own = [image for image in drawn if prefix == "all" or not image.name.startswith("extra/")]
        write_phantom_lists(root, prefix, own, boxes if layout == "json" else None)


def phantom_images(seed: int, counts: Mapping[str, int], size: int) -> Iterator[PhantomImage]:
    """All images of the phantom."""
    number = 0
    for split, count in [*counts.items(), ("test", 2)]:
        names = []
        for rank in range(count):
            number += 1
            if split == "test":
                names.append((f"test/{number:04d}.png", ()))
            elif rank % 4 == 1:
                names.append((f"sick/s{number:04d}.png", {PHANTOM_SICKNESS[rank // 4 % len(PHANTOM_SICKNESS)]}))
            elif rank % 4 == 3:
                names.append((f"tb/tb{number:04d}.png", PHANTOM_TUBERCULOSIS[rank // 4 % len(PHANTOM_TUBERCULOSIS)]))
            else:
                names.append((f"health/h{number:04d}.png", ()))
        if split == "train":
            names.append(("tb/tb1199.png", {"Consolidation"}))
        for name in PHANTOM_EXTRA.get(split, ()):
            ill = PurePosixPath(name).name[0] == "p" or "_1." in name
            names.append((f"extra/{name}", {"Consolidation"} if ill else ()))
        for name, findings in names:
            # The same image whatever else is drawn.
            own = int(np.random.default_rng([seed, *name.encode()]).integers(2**31))
            draw = functools.partial(chest.frontal, own, findings=findings, size=size)
            boxed = name.startswith("tb/") and name != "tb/tb1199.png"
            yield PhantomImage(name, split, boxed, draw)


def original_pixel(side: int, size: int) -> int:
    """What the XML files say for the border of a box, so that the authors' converter gives the border itself."""
    return min(round((side * FRAME / size + 1) * PHANTOM_ORIGINAL / FRAME), PHANTOM_ORIGINAL)


def write_phantom_xml(path: Path, boxes: Sequence[tuple]) -> None:
    """Writes the boxes of one image in Pascal VOC's format."""
    root = ElementTree.Element("annotation")
    size = ElementTree.SubElement(root, "size")
    for side in ("width", "height"):
        ElementTree.SubElement(size, side).text = str(PHANTOM_ORIGINAL)
    for finding, *corners in boxes:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = PHANTOM_CATEGORIES[finding]
        ElementTree.SubElement(item, "difficult").text = "0"
        border = ElementTree.SubElement(item, "bndbox")
        for side, value in zip(("ymin", "xmin", "ymax", "xmax"), corners):
            ElementTree.SubElement(border, side).text = str(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(root).write(path)


def write_phantom_lists(root: Path, prefix: str, drawn: Sequence[PhantomImage], boxes: Mapping | None) -> None:
    """Writes the lists of one prefix and, with boxes, its COCO files."""
    splits = {"train": ("train",), "val": ("val",), "trainval": ("train", "val"), "test": ("test",)}
    for split, parts in splits.items():
        if split == "test" and prefix != "all":
            continue
        names = [image.name for image in drawn if image.split in parts]
        path = root / f"lists/{prefix}_{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in names))
        if boxes is None or split == "test":
            continue
        path = root / f"annotations/json/{prefix}_{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(phantom_coco(names, boxes)))
        boxed = [name for name in names if boxes[name]]
        path.with_name(f"{prefix}_{split}_only_tb.json").write_text(json.dumps(phantom_coco(boxed, boxes)))


def phantom_coco(names: Sequence[str], boxes: Mapping[str, Sequence[tuple]]) -> dict[str, Any]:
    """A COCO file: boxes x, y, width, height in 512 pixels, less one."""
    marks = []
    for number, name in enumerate(names, 1):
        for finding, *corners in boxes[name]:
            top, left, bottom, right = (side * FRAME / PHANTOM_ORIGINAL - 1 for side in corners)
            box = {"category_id": 1 + CATEGORIES[PHANTOM_CATEGORIES[finding]], "iscrowd": 0, "width": FRAME}
            box |= {"height": FRAME, "area": round((right - left) * (bottom - top))}
            marks.append(
                {"id": len(marks) + 1, "image_id": number, "bbox": [left, top, right - left, bottom - top], **box}
            )
    third = {"id": 3, "name": "PulmonaryTuberculosis", "supercategory": "Tuberculosis"}
    known = [{"id": 1 + i, "name": name, "supercategory": "Tuberculosis"} for name, i in CATEGORIES.items()]
    return {
        "categories": [*known, third],
        "images": [
            {"id": number, "file_name": name, "width": FRAME, "height": FRAME} for number, name in enumerate(names, 1)
        ],
        "annotations": marks,
    }

"""DRISHTI-GS1: 101 fundus photographs around the optic disc, with disc and cup as four experts drew them, and glaucoma.

Sivaswamy et al., "Drishti-GS: Retinal image dataset for optic nerve head (ONH) segmentation", ISBI 2014;
Sivaswamy et al., "A Comprehensive Retinal Image Dataset for the Assessment of Glaucoma from the Optic Nerve Head
Analysis", JSM Biomedical Imaging Data Papers 2(1), 2015.

Splits
  train   the official training images but those of `tuning`: 40
  tuning  the last ten official training images (76 to 101), for choosing models without touching `test`; "train+tuning"
          is the official training set
  test    the 51 official test images
The files name no patients: each image counts as a patient of its own.

Records keep for each pixel how many of the four experts marked it (the "soft maps"), so the reading option `agreement`
chooses how many must agree: 3, the majority, is usual. The soft maps of some images are a few pixels smaller or larger
than the image and are resized. The files of boundaries and cup-to-disc ratios are not read. The label says whether the
eye has glaucoma: from `Drishti-GS1_diagnosis.xlsx`, or from the folders GLAUCOMA and NORMAL of the newer release;
without both it is unknown. The field of view is computed by `annotations.field_of_view`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import openpyxl
import tensorflow_datasets as tfds
from absl import logging

from mediax import annotations, builder, catalog, images, photographs
from mediax.errors import InputError
from mediax.phantoms import fundus, pool

CLASSES = ("Glaucoma",)
MASK_CLASSES = ("Optic Disc", "Optic Cup")

SOURCE = builder.Source(
    title="DRISHTI-GS1",
    homepage="https://cvit.iiit.ac.in/projects/mip/drishti-gs/mip-dataset2/Home.php",
    licence="research use",
    access="request form, or the link to Google Drive on the homepage",
    download_size="unresolved; a few hundred MB",
    images="50 training and 51 test images",
    citation="Sivaswamy et al., ISBI 2014",
    tree="""
Drishti-GS1_files/Drishti-GS1_files/                 or the folders of the newer archives, Training-2021.../Training
  Training/Images/drishtiGS_002.png                  and Test-2021.../Test, with Images/GLAUCOMA and Images/NORMAL
  Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_ODsegSoftmap.png  and  drishtiGS_002_cupsegSoftmap.png
  Test/Images/drishtiGS_001.png
  Test/Test_GT/drishtiGS_001/SoftMap/...
  Drishti-GS1_diagnosis.xlsx
""",
)

TRAIN_NUMBERS = (
    *(2, 4, 8, 10, 12, 15, 16, 17, 18, 22, 24, 26, 31, 32, 33, 35, 36, 37, 38, 40, 41, 42, 44, 45, 46),
    *(47, 49, 51, 57, 58, 60, 61, 62, 63, 64, 66, 68, 69, 75, 76, 80, 81, 84, 88, 89, 90, 92, 94, 98, 101),
)
TRAIN = tuple(f"drishtigs_{number:03d}" for number in TRAIN_NUMBERS)
TEST = tuple(f"drishtigs_{number:03d}" for number in range(1, 102) if number not in TRAIN_NUMBERS)
FILES = {
    "image": r"(drishtiGS_\d{3})\.png",
    "Optic Disc": r"(drishtiGS_\d{3})_ODsegSoftmap\.png",
    "Optic Cup": r"(drishtiGS_\d{3})_cupsegSoftmap\.png",
    "diagnosis": r"(Drishti-GS1_diagnosis)\.xlsx",
}
GREY_LEVELS = (64, 128, 191, 255)  # of a soft map, where one, two, three or four experts marked the pixel
SLACK = 16  # pixels by which a soft map's side may differ from its image's
STATES = {"normal": 0, "glaucomatous": 1, "glaucoma": 1}
UNKNOWN = -1


class Release(NamedTuple):
    """The folder that was searched, and the files in it: kind -> {key: path}."""

    folder: Path
    files: dict[str, dict[str, Path]]


class Builder(builder.Builder):
    """Builds records with `agreement_masks`, for each structure the pixels that at least 1, 2, 3 and 4 experts marked,
    `field_of_view` and `labels` i8[1]: 1 glaucoma, 0 normal, -1 unknown."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.0.0")
    CHANNELS = 3
    BUILDER_CONFIGS = tuple(builder.Config(size=size, aspect="letterbox") for size in (512, 256, 1024))

    def features(self):
        return {
            "agreement_masks": builder.mask_feature(len(MASK_CLASSES) * len(GREY_LEVELS)),
            "field_of_view": builder.mask_feature(1),
            "labels": tfds.features.Tensor(shape=(1,), dtype=np.int8),
        }

    def find(self, folder):
        files = photographs.find_files(folder, FILES)
        return Release(folder, files) if files["image"] else None

    def rows(self, release):
        pictures = release.files["image"]
        photographs.check_keys(pictures, TRAIN + TEST, "drishtiGS_001.png to drishtiGS_101.png")
        for kind in MASK_CLASSES:
            photographs.check_pictures(pictures, release.files[kind])
            photographs.partners(f"soft map of the {kind.lower()}", pictures, release.files[kind])
        labels = read_labels(release)
        unknown = [key for key in pictures if labels[key] == UNKNOWN]
        if unknown:
            logging.info("drishti_gs: the diagnosis of %d of %d images is unknown", len(unknown), len(pictures))
        splits = photographs.with_tuning(TRAIN, TEST, tuning=10)
        return {split: list(self._split_rows(split, keys, release, labels)) for split, keys in splits.items()}

    def _split_rows(self, split, keys, release, labels) -> Iterator[builder.Row]:
        for key in keys:
            if key in release.files["image"]:
                path = release.files["image"][key]
                official = "test" if split == "test" else "train"
                if folder_split(path.relative_to(release.folder)) not in (official, None):
                    raise InputError(f"{path}: this is an official {official} image; move it to that folder")
                maps = [release.files[kind][key] for kind in MASK_CLASSES]
                fields = {"maps": maps, "labels": np.array([labels[key]], np.int8)}
                yield builder.Row(path.stem, key, path, str(maps[0]), fields)

    def annotations(self, row, pixels):
        masks = [read_soft_map(path, *pixels.shape[:2]) for path in row.fields["maps"]]
        return {
            "agreement_masks": np.concatenate(masks, axis=2),
            "field_of_view": annotations.field_of_view(pixels),
            "labels": row.fields["labels"],
        }


def folder_split(path: Path) -> str | None:
    """What the folders above a file say: "train", "test" or nothing; the nearest one decides."""
    names = [parent.name.lower() for parent in path.parents]
    return next((split for name in names for split in ("train", "test") if name.startswith(split)), None)


def read_soft_map(path: Path, height: int, width: int) -> np.ndarray:
    """Reads a soft map, u8[H,W,4]: the pixels that at least 1, 2, 3 and 4 experts marked.

    A map that differs from the image by a few pixels is resized without blending. Raises InputError if it differs by
    more.
    """
    grey = images.read(path, channels=1)[..., 0]
    if max(abs(grey.shape[0] - height), abs(grey.shape[1] - width)) > SLACK:
        raise InputError(
            f"{path}: a soft map of {grey.shape[1]} x {grey.shape[0]} pixels for an image of {width} x {height}; "
            f"is one of them a resized copy? Both must be as they are distributed."
        )
    if grey.shape != (height, width):
        grey = photographs.resize_nearest(grey, height, width)
    return (grey[..., None] >= np.array(GREY_LEVELS)).astype(np.uint8)


def read_labels(release: Release) -> dict[str, int]:
    """The diagnosis of each image: 1 glaucoma, 0 normal, -1 unknown; the table and the folders must not disagree."""
    tables = release.files["diagnosis"].values()
    written = read_diagnosis(next(iter(tables))) if tables else {}
    labels = {}
    for key, path in release.files["image"].items():
        folder = STATES.get(path.parent.name.lower(), UNKNOWN)
        labels[key] = written.get(key, folder)
        if UNKNOWN != folder != labels[key]:
            raise InputError(f"{path}: the folder says {path.parent.name}, {next(iter(tables))} the opposite")
    return labels


def read_diagnosis(path: Path) -> dict[str, int]:
    """Reads the table of diagnoses: key of the image -> 1 glaucoma, 0 normal; rows above the header are passed over."""
    try:
        rows = list(openpyxl.load_workbook(path, read_only=True, data_only=True).active.iter_rows(values_only=True))
    except Exception as error:  # whatever a damaged file makes openpyxl and the parsers below it stumble over
        raise InputError(f"{path}: no readable Excel file ({error}); download it again") from error
    texts = [["" if cell is None else str(cell).strip() for cell in row] for row in rows]
    header = next((number for number, row in enumerate(texts) if "Drishti-GS File" in row and "Total" in row), None)
    if header is None:
        raise InputError(f"{path}: no row has the columns 'Drishti-GS File' and 'Total'")
    name_column, total_column = texts[header].index("Drishti-GS File"), texts[header].index("Total")
    labels: dict[str, int] = {}
    for number, row in enumerate(texts[header + 1 :], header + 2):
        row += [""] * (len(texts[header]) - len(row))
        # The names end in a stray character.
        if not (name := re.match(r"drishtiGS_\d{3}", row[name_column], re.IGNORECASE)):
            continue
        state = STATES.get(row[total_column].lower())
        if state is None:
            raise InputError(f"{path}, row {number}: Total is {row[total_column]!r}, expected Normal or Glaucomatous")
        if labels.setdefault(name[0].lower(), state) != state:
            raise InputError(f"{path}, row {number}: {name[0]} has another diagnosis in a row above")
    return labels


def classes(config=None, **_) -> tuple[str, ...]:
    """The classes of `read`'s labels."""
    del config
    return CLASSES


def read(record: Mapping[str, Any], *, agreement: Literal[1, 2, 3, 4] = 3) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,3], masks u8[H,W,2] of disc and cup, mask_valid bool[2],
    field_of_view u8[H,W], labels f32[1], NaN where the diagnosis is unknown.

    `agreement` is how many of the four experts must have marked a pixel. Raises InputError for another number.
    """
    if agreement not in (1, 2, 3, 4):
        raise InputError(f"drishti_gs: agreement={agreement!r}: expected 1, 2, 3 or 4 experts")
    example = builder.example_of(record, structures=len(MASK_CLASSES) * len(GREY_LEVELS))
    masks = example.pop("agreement_masks")[..., agreement - 1 :: len(GREY_LEVELS)]
    labels = np.where(record["labels"] == UNKNOWN, np.nan, record["labels"]).astype(np.float32)
    return example | {"masks": masks, "mask_valid": np.ones(len(MASK_CLASSES), bool), "labels": labels}


ARCHIVE = "Drishti-GS1_files/Drishti-GS1_files"
PHANTOM_FOLDERS = {
    "old": (f"{ARCHIVE}/Training", f"{ARCHIVE}/Test"),
    "current": ("Training-20211018T055246Z-001/Training", "Test-20211018T060000Z-001/Test"),
}


def phantom(
    root: Path,
    *,
    seed: int = 0,
    images: int | None = 16,
    release: Literal["current", "old"] = "old",
    size: int = 160,
) -> None:
    """Writes generated photographs under `root`, laid out as DRISHTI-GS1 is; about two of three eyes have glaucoma.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/drishti_gs`.
      images: how many of each official split, evenly spread; None is all, 50 and 51.
      release: "old" is the archive with the table of diagnoses, "current" the folders GLAUCOMA and NORMAL.
      size: height of the images in pixels, about; 1749 to 1845 in the dataset.
    """
    if release not in PHANTOM_FOLDERS:
        raise InputError(f"drishti_gs: release={release!r}: {catalog.suggestion(release, PHANTOM_FOLDERS)}")
    keys = photographs.spread(TRAIN, images) + photographs.spread(TEST, images)
    drawn = pool.in_order(lambda key: phantom_photograph(seed, key, size), keys)
    for key, photograph in zip(keys, drawn):
        name = f"drishtiGS_{key[-3:]}"
        folder = Path(root) / PHANTOM_FOLDERS[release][key in TEST]
        group = "" if release == "old" else "GLAUCOMA" if has_glaucoma(seed, key) else "NORMAL"
        photographs.write(folder / "Images" / group / f"{name}.png", photograph.image)
        write_truth(folder / ("GT" if key in TRAIN else "Test_GT") / name, name, photograph, seed)
    if release == "old":
        write_diagnosis(Path(root) / ARCHIVE, {key: has_glaucoma(seed, key) for key in keys})


def has_glaucoma(seed: int, key: str) -> bool:
    """Whether the phantom draws glaucoma."""
    return photographs.seed_of(seed, f"glaucoma/{key}") % 3 > 0


def phantom_photograph(seed: int, key: str, size: int) -> fundus.Fundus:
    """One photograph around the disc; like the dataset's, no two need have the same size."""
    number = photographs.seed_of(seed, key)
    shape = (round(size * (1 + number % 50 / 1000)), round(size * 1.17 * (1 + number % 70 / 1000)))
    ratio = fundus.sample_cup_to_disc(np.random.default_rng(number), has_glaucoma(seed, key))
    return fundus.photograph(number, size=shape, cup_to_disc=ratio, aim="disc", field_of_view_degrees=30)


def phantom_maps(photograph: fundus.Fundus, seed: int) -> dict[str, np.ndarray]:
    """The soft maps of disc and cup as grey levels u8[H,W], of the image's size."""
    levels = np.array((0, *GREY_LEVELS), np.uint8)
    shares = {name: fundus.soft_map(photograph.masks[name], name, seed) for name in MASK_CLASSES}
    return {name: levels[np.rint(share * len(GREY_LEVELS)).astype(int)] for name, share in shares.items()}


def write_truth(folder: Path, name: str, photograph: fundus.Fundus, seed: int) -> None:
    """Writes the folder of an image's truth; every third pair of soft maps is a little smaller than the image."""
    height, width = photograph.image.shape[:2]
    number = int(name[-3:])
    shape = (height - 2, width - 1) if number % 3 == 0 else (height, width)
    maps = phantom_maps(photograph, photographs.seed_of(seed, name.lower()))
    for kind, file in (("Optic Disc", "ODsegSoftmap"), ("Optic Cup", "cupsegSoftmap")):
        photographs.write(folder / "SoftMap" / f"{name}_{file}.png", photographs.resize_nearest(maps[kind], *shape))
    for kind, file in (("Optic Disc", "ODAvgBoundary"), ("Optic Cup", "CupAvgBoundary")):
        outline = annotations.mask_to_polygons(photograph.masks[kind].astype(np.uint8))
        points = max(outline, key=len)[:, ::-1] if outline else np.zeros((1, 2))
        photographs.write_numbers(folder / "AvgBoundary" / f"{name}_{file}.txt", points, separator=" ", decimals=0)
    centre = np.array([photograph.landmarks["Optic Disc"]])
    photographs.write_numbers(folder / "AvgBoundary" / f"{name}_diskCenter.txt", centre, separator=" ", decimals=0)
    ratios = np.full((1, 4), photograph.cup_to_disc)
    photographs.write_numbers(folder / f"{name}_cdrValues.txt", ratios, separator=" ", decimals=4)


def write_diagnosis(folder: Path, glaucoma: Mapping[str, bool]) -> None:
    """Writes the table of diagnoses with its title rows, and its names with the stray character."""
    workbook = openpyxl.Workbook()
    for row in (["Drishti-GS1"], [], ["Diagnosis by the experts"], [], ["Sl No", "Drishti-GS File", "Total"]):
        workbook.active.append(row)
    for number, key in enumerate(sorted(glaucoma), 1):
        total = "Glaucomatous" if glaucoma[key] else "Normal"
        workbook.active.append([number, f"drishtiGS_{key[-3:]}'", total])
    folder.mkdir(parents=True, exist_ok=True)
    workbook.save(folder / "Drishti-GS1_diagnosis.xlsx")

"""CheXmask: masks of lungs and heart for 657,566 frontal chest radiographs of five other datasets, drawn by a network.

Gaggion et al., "CheXmask: a large-scale dataset of anatomical segmentation masks for multi-center chest x-ray images",
Scientific Data 11 (2024); preprocessing as in github.com/ngaggion/CheXmask-Database. CheXmask has no images: its rows
are joined to the images of one source, which must lie beside it, as that source is distributed
(`<manual_dir>/chestxray14`, `chexpert`, `mimic_cxr`, `vinbigdata` or `padchest`). The builder config says
  source     whose images and masks are built, by default chestxray14's
  tables     "original": masks on the image as it is; "preprocessed": masks on the image as the network saw it, padded
             to a square and scaled to 1024 (mimic_cxr, padchest: after cutting off the black border)
  min_rca    rows with a lower `Dice RCA (Mean)` are left out, and counted
  absent     what happens to a row whose image is absent: "error", or "skip" (left out and counted: partial downloads)

Splits (CheXmask has none; these follow the source's, so that no patient is trained on here and tested on there)
  train       the source's training images but those of `validation`
  validation  the source's own validation set (mimic_cxr), else a share of the training patients by `builder.held_out`:
              salts and shares are those of SOURCES
  test        the source's test set: chestxray14's test_list.txt, chexpert's valid, mimic_cxr's and vinbigdata's test;
              padchest, which has none, by `builder.held_out` (20 %, salt "padchest/test")

Annotated: both lungs and the heart, and 120 landmarks on their borders, in every row. All of it is machine-made: the
authors estimate each row's Dice (reverse classification accuracy, RCA) and advise to keep a mean of at least 0.7, which
`read` does by default: masks of other rows are marked as unknown. Left and right are the patient's.
"""

import csv
import dataclasses
import functools
import gzip
import io
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import builder, catalog, images, raw_files, rle
from mediax.errors import InputError
from mediax.phantoms import chest, pool

MASK_CLASSES = ("Left Lung", "Right Lung", "Heart")  # as the columns are called
CLASSES = MASK_CLASSES
LANDMARKS = {"Right Lung": 44, "Left Lung": 50, "Heart": 26}  # how many, in the order of `keypoints`
POINTS = sum(LANDMARKS.values())
SIDE = 1024  # pixels, of a preprocessed image

SOURCE = builder.Source(
    title="CheXmask 1.0.0",
    homepage="https://physionet.org/content/chexmask-cxr-segmentation-data/1.0.0/",
    licence="unresolved: see LICENSE.txt in the download; the images have their sources' licences",
    access="open download (the images: see each source)",
    download_size="several GB for each table; the images of the source come on top",
    images="657,566 masks of five datasets",
    citation="Gaggion et al., Scientific Data 11 (2024), s41597-024-03358-1",
    tree="""
OriginalResolution/ChestX-Ray8.csv    CheXpert.csv, MIMIC-CXR-JPG.csv, VinDr-CXR.csv, Padchest.csv; .csv.gz too
Preprocessed/ChestX-Ray8.csv          needed for tables="preprocessed"
../chestxray14/images/*.png  ../chestxray14/*_list.txt          beside it: the images of the source
../chexpert/CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg
../mimic_cxr/files/p10/p10000032/s50414267/*.jpg  ../mimic_cxr/mimic-cxr-2.0.0-split.csv.gz
../vinbigdata/train/*.dicom  ../vinbigdata/test/*.dicom
../padchest/*.png  ../padchest/PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv
""",
)

RCA = ("Dice RCA (Mean)", "Dice RCA (Max)")
FOLDERS = {"original": "OriginalResolution", "preprocessed": "Preprocessed"}
PLACES = ("", "chexmask*/", "chexmask*/*/", "physionet.org/files/chexmask*/*/", "files/chexmask*/*/")


class Image(NamedTuple):
    """An image of a source: where it lies, whose it is, and in which of the source's official splits, if in any."""

    path: Path
    patient_id: str
    split: str | None


class ImageSource(NamedTuple):
    """How one of the five datasets is joined: its table and id column, the rule of `validation`, and where images are.

    `images` takes the source's raw folder and gives, or is None if the images are not there, id -> Image. `shares` are
    (split, salt, share of the patients without an official split); `bordered` images lost their black border.
    """

    table: str
    column: str
    shares: Sequence[tuple[str, str, float]]
    images: Callable[[Path], Callable[[str], Image] | None]
    bordered: bool = False


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(builder.Config):
    """Adds what the module's docstring explains: source, tables, min_rca, absent."""

    source: Literal["chestxray14", "chexpert", "mimic_cxr", "vinbigdata", "padchest"] = "chestxray14"
    tables: Literal["original", "preprocessed"] = "original"
    min_rca: float = 0.0
    absent: Literal["error", "skip"] = "error"


class Found(NamedTuple):
    """The table, and how its ids lead to images."""

    table: Path
    locate: Callable[[str], Image]


class Line(NamedTuple):
    """One row of a table: its place in the file in bytes, and its cells by column."""

    where: str
    start: int
    end: int
    cells: dict[str, str]


class Builder(builder.Builder):
    """Builds records with `masks` (three structures), `keypoints` (120), `rca_mean` and `rca_max`."""

    SOURCE = SOURCE
    VERSION = tfds.core.Version("1.1.0")  # DICOM without a window is stretched
    RENDERS_DICOM = True
    BUILDER_CONFIGS = tuple(
        Config(size=size, source=source)
        for size in (512, 128, 256, 1024, None)
        for source in ("chestxray14", "chexpert", "mimic_cxr", "vinbigdata", "padchest")
    )

    def features(self):
        return {
            "masks": builder.mask_feature(len(MASK_CLASSES)),
            "keypoints": builder.point_feature(),
            "rca_mean": np.float32,
            "rca_max": np.float32,
        }

    def find(self, folder):
        """Finds the table of the chosen source, and beside it (or in it) the images of that source."""
        name, source = self.builder_config.source, SOURCES[self.builder_config.source]
        kind = FOLDERS[self.builder_config.tables]
        patterns = [f"{place}{kind}/{source.table}.csv{suffix}" for place in PLACES for suffix in ("", ".gz")]
        table = next((path for pattern in patterns for path in sorted(folder.glob(pattern))), None)
        if table is None:
            return None
        roots = [root for root in (folder.parent / name, folder / name) if root.is_dir()]
        located = (source.images(root) for root in roots)
        if locate := next((found for found in located if found), None):
            return Found(table, locate)
        raise InputError(
            f"chexmask: {table} is there, the images of {name} are not: looked in {folder.parent / name} and "
            f"{folder / name}. Put them there as they are distributed, or choose another build.source."
        )

    def rows(self, found):
        source, config = SOURCES[self.builder_config.source], self.builder_config
        self._table = plain_file(found.table)
        splits: dict[str, list[builder.Row]] = {"train": [], "validation": [], "test": []}
        poor = absent = 0
        for line in read_lines(found.table, self._table, (source.column, "Landmarks", *RCA, *MASK_CLASSES)):
            rca = [builder.number(line.where, line.cells, column) for column in RCA]
            try:
                image = found.locate(line.cells[source.column])
            except InputError as error:
                raise InputError(f"{line.where}: {error}") from error
            if rca[0] < config.min_rca:
                poor += 1
            elif config.absent == "skip" and not image.path.is_file():
                absent += 1
            else:
                # The texts of all rows would fill the memory: each is read again, from its place in the file.
                place = {"table": found.table, "start": line.start, "end": line.end, "columns": tuple(line.cells)}
                fields = {"rca_mean": np.float32(rca[0]), "rca_max": np.float32(rca[1]), **place}
                name = row_id(line.cells[source.column])
                splits[split_of(image, source)].append(
                    builder.Row(name, image.patient_id, image.path, line.where, fields)
                )
        if poor or absent:
            logging.info("chexmask: left out %d rows below min_rca and %d without an image", poor, absent)
        return splits

    def load(self, row):
        pixels = read_image(row.image)
        if self.builder_config.tables == "original":
            return pixels
        return preprocess(pixels, bordered=SOURCES[self.builder_config.source].bordered)[0]

    def annotations(self, row, pixels):
        fields = row.fields
        data = os.pread(self._table.fileno(), fields["end"] - fields["start"], fields["start"])
        cells = dict(zip(fields["columns"], next(csv.reader(io.StringIO(data.decode(), newline="")))))
        height, width = pixels.shape[:2]
        check_size(row.where, cells, height, width)
        return {
            "masks": np.stack([decode(row.where, cells, name, height, width) for name in MASK_CLASSES], axis=-1),
            "keypoints": parse_landmarks(row.where, cells["Landmarks"])[:, ::-1] + 0.5,  # the middle of a pixel
            "rca_mean": fields["rca_mean"],
            "rca_max": fields["rca_max"],
        }


# The tables. They have up to 250,000 rows of 50,000 characters, with line breaks inside of quotes.


def plain_file(table: Path) -> IO[bytes]:
    """Opens a table for reading at random; a gzipped one is unpacked into a file that vanishes when it is closed."""
    if table.suffix != ".gz":
        return table.open("rb")
    try:
        with gzip.open(table) as packed:
            folder = table.parent if os.access(table.parent, os.W_OK) else None
            unpacked = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (the builder reads it until its end)
            shutil.copyfileobj(packed, unpacked, 2**20)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{table}: cannot be unpacked ({error}); download it again, or unpack it yourself") from error
    unpacked.flush()
    return unpacked


def read_lines(table: Path, file: IO[bytes], required: Sequence[str]) -> Iterator[Line]:
    """Yields the rows of a table, one at a time; raises InputError for a missing column or a broken row."""
    place = 0

    def counted() -> Iterator[str]:
        nonlocal place
        file.seek(0)
        for data in file:
            place += len(data)
            yield data.decode("utf-8-sig" if place == len(data) else "utf-8")

    csv.field_size_limit(2**30)  # the run lengths of a large image may exceed the module's default
    cells = csv.reader(counted())
    try:
        header = [name.strip() for name in next(cells, [])]
        if missing := [name for name in required if name not in header]:
            raise InputError(f"{table}: columns {missing} are missing; found {header}")
        start = place
        for row in cells:
            where = f"{table}, line {cells.line_num}"
            if len(row) not in (0, len(header)):
                raise InputError(f"{where}: {len(row)} cells, the header has {len(header)}; is the file complete?")
            if row:
                yield Line(where, start, place, {name: cell.strip() for name, cell in zip(header, row)})
            start = place
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}, line {cells.line_num}: no readable CSV ({error}); download it again") from error


def check_size(where: str, cells: Mapping[str, str], height: int, width: int) -> None:
    """Raises InputError unless a row's masks have the image's size; old copies of the table do not tell it."""
    told = tuple(builder.number(where, cells, name) for name in ("Height", "Width"))
    if not np.isnan(told).all() and told != (height, width):
        raise InputError(
            f"{where}: masks of {told[0]:g} x {told[1]:g} pixels, the image has {height} x {width}. Is it as its "
            f'source distributes it? If it is, the table is wrong: try build.tables="preprocessed".'
        )


def decode(where: str, cells: Mapping[str, str], name: str, height: int, width: int) -> np.ndarray:
    """One structure's mask of a row, u8[H,W]."""
    try:
        return rle.chexmask_decode(cells[name], height, width)
    except InputError as error:
        raise InputError(f"{where}: {name}: {error}") from error


def parse_landmarks(where: str, text: str) -> np.ndarray:
    """The landmarks of a row, f32[120,2] x, y in pixels: comma-joined numbers, or a printed array over many lines."""
    numbers = re.findall(r"[^\s,\[\]]+", text)
    try:
        points = np.array(numbers, np.float32).reshape(POINTS, 2)
    except ValueError:
        raise InputError(f"{where}: {len(numbers)} words in Landmarks, expected {2 * POINTS} numbers") from None
    if not np.isfinite(points).all():
        raise InputError(f"{where}: Landmarks hold numbers that are not finite; download the table again")
    return points


def row_id(name: str) -> str:
    """The record's id: the image's name, or its path in one word, without a suffix."""
    parts = name.split("/")
    return "_".join([*parts[-3:-1], Path(parts[-1]).stem])


def split_of(image: Image, source: ImageSource) -> str:
    """The split of an image: the official one, or by the source's rules."""
    if image.split not in (None, "train"):
        return image.split
    for split, salt, share in source.shares:
        if builder.held_out(image.patient_id, share, salt=salt):
            return split
    return "train"


# The images.


def read_image(path: Path) -> np.ndarray:
    """Reads an image of any source as u8[H,W,1]: DICOM by its window, 16 bits (PadChest) from darkest to brightest."""
    if images.is_dicom_file(path):
        from mediax import dicom  # imported where it is needed: pydicom takes a second, which reading can spare

        return dicom.read(path).to_uint8("window")
    pixels = images.read(path, channels=1)
    if pixels.dtype == np.uint8:
        return pixels
    low, high = int(pixels.min()), int(pixels.max())
    return images.to_uint8((pixels.astype(np.float32) - low) / max(1, high - low))


def preprocess(pixels: np.ndarray, *, bordered: bool) -> tuple[np.ndarray, np.ndarray]:
    """The image that CheXmask's network saw, u8[1024,1024,1], and where it came from: f64[2,2] scale and shift.

    A point (y, x) of the file lies at `scale * (y, x) + shift` in the result.
    """
    top, left, bottom, right = inner_area(pixels) if bordered else (0, 0, *pixels.shape[:2])
    pixels = pixels[top:bottom, left:right]
    height, width = pixels.shape[:2]
    longest = max(height, width)
    before = (longest - height) // 2, (longest - width) // 2
    after = longest - height - before[0], longest - width - before[1]
    square = np.pad(pixels, ((before[0], after[0]), (before[1], after[1]), (0, 0)))
    scale = SIDE / longest
    shift = np.subtract(before, (top, left)) * scale
    return images.Fit(longest, longest, SIDE).image(square), np.array([[scale, scale], shift])


def inner_area(pixels: np.ndarray) -> tuple[int, int, int, int]:
    """ymin, xmin, ymax, xmax of what is brighter than 1 of 255; the whole image if nothing is."""
    x, y, width, height = cv2.boundingRect((pixels[..., 0] > 1).astype(np.uint8))
    return (y, x, y + height, x + width) if width else (0, 0, *pixels.shape[:2])


# The five sources. A path that does not exist is reported by the builder, with the row that asks for it.


def first_match(root: Path, *patterns: str) -> Path | None:
    """The first path that a pattern finds, in the order of the patterns."""
    return next((path for pattern in patterns for path in sorted(root.glob(pattern))), None)


def files_of(folders: Sequence[Path], *suffixes: str) -> dict[str, Path]:
    """The files of some folders by lower-case name."""
    entries = (path for folder in folders for path in folder.iterdir())
    return {path.name.lower(): path for path in entries if path.suffix.lower() in suffixes}


def chestxray14_images(root: Path) -> Callable[[str], Image] | None:
    """ChestX-ray14: `images/`, or `images_001/images/` and so on; test_list.txt tells the official test set."""
    patterns = ("images", "images_0*/images", "images_0*", "*/images", "*/images_0*/images")
    files = files_of([folder for pattern in patterns for folder in root.glob(pattern) if folder.is_dir()], ".png")
    if not files:
        return None
    tests = first_match(root, "test_list.txt", "*/test_list.txt")
    if tests is None:
        raise InputError(f"chexmask: {root} holds no test_list.txt, which tells ChestX-ray14's official test set")
    homes = dict.fromkeys(filter(None, raw_files.read_lines(tests)), "test")
    trains = tests.with_name("train_val_list.txt")
    if trains.is_file():
        homes |= dict.fromkeys(filter(None, raw_files.read_lines(trains)), "train")
    else:
        logging.warning("chexmask: no %s: images that the %d names of %s lack train", trains, len(homes), tests)
    home = next(iter(files.values())).parent

    def locate(name: str) -> Image:
        if name not in homes and name.lower() in files and trains.is_file():
            raise InputError(f"{name} is in neither {tests} nor {trains}; download these lists again")
        return Image(files.get(name.lower(), home / name), name.partition("_")[0], homes.get(name, "train"))

    return locate


def chexpert_images(root: Path) -> Callable[[str], Image] | None:
    """CheXpert: patients in `train/` and `valid/`, or in the folders of the release in four batches."""
    patterns = ("{}", "CheXpert*/{}", "*/CheXpert*/{}")
    folders = [folder for name in ("train", "valid") for p in patterns for folder in root.glob(p.format(name))]
    folders += [folder for pattern in ("CheXpert*batch*", "*/CheXpert*batch*") for folder in root.glob(pattern)]
    patients = {entry.name: entry for folder in folders for entry in folder.iterdir() if "patient" in entry.name}

    def locate(name: str) -> Image:
        patient, _, rest = name.removeprefix("train/").removeprefix("valid/").partition("/")
        return Image(patients.get(patient, root / patient) / rest, patient, "test" if "valid/" in name else "train")

    return locate if patients else None


def mimic_cxr_images(root: Path) -> Callable[[str], Image] | None:
    """MIMIC-CXR-JPG: the table of its splits tells patient and study of each image, and so the path."""
    name = "mimic-cxr-*-split.csv*"
    table = first_match(root, name, f"*/{name}", f"*/*/{name}", f"physionet.org/files/mimic-cxr-jpg/*/{name}")
    if table is None:
        return None
    official = {"train": "train", "validate": "validation", "test": "test"}
    known: dict[str, Image] = {}
    for where, line in builder.read_table(table, required=("dicom_id", "study_id", "subject_id", "split")):
        patient = f"p{line['subject_id']}"
        path = table.parent / "files" / patient[:3] / patient / f"s{line['study_id']}" / f"{line['dicom_id']}.jpg"
        if line["split"] not in official:
            raise InputError(f"{where}: split is {line['split']!r}, expected one of {', '.join(official)}")
        known[line["dicom_id"]] = Image(path, patient, official[line["split"]])
    return lambda name: known.get(name) or Image(table.parent / "files" / f"{name}.jpg", name, "train")


def vinbigdata_images(root: Path) -> Callable[[str], Image] | None:
    """VinDr-CXR, or VinBigData: `train/` and `test/` with DICOM files."""
    patterns = ("{}", "vin*/{}", "vin*/*/{}", "physionet.org/files/vin*/*/{}")
    known: dict[str, Image] = {}
    for split in ("train", "test"):
        folders = [folder for pattern in patterns for folder in root.glob(pattern.format(split))]
        for path in files_of(folders, ".dicom", ".dcm").values():
            known[path.stem] = Image(path, path.stem, split)
    return (lambda name: known.get(name) or Image(root / f"{name}.dicom", name, "train")) if known else None


def padchest_images(root: Path) -> Callable[[str], Image] | None:
    """PadChest: PNG files in one folder or in numbered ones; its table tells the patients."""
    files = files_of([root, *(path for path in root.glob("*") if path.is_dir())], ".png")
    table = first_match(root, "PADCHEST*.csv*", "*/PADCHEST*.csv*")
    if not files:
        return None
    if table is None:
        raise InputError(f"chexmask: {root} holds no PADCHEST_*.csv, which tells the patient of each image")
    lines = builder.read_table(table, required=("ImageID", "PatientID"))
    patients = {line["ImageID"]: line["PatientID"] for _, line in lines}
    return lambda name: Image(files.get(name.lower(), root / name), patients.get(name, name), None)


SOURCES = {
    "chestxray14": ImageSource(
        "ChestX-Ray8", "Image Index", [("validation", "chestxray14/validation", 0.1)], chestxray14_images
    ),
    "chexpert": ImageSource("CheXpert", "Path", [("validation", "chexpert/tuning", 0.05)], chexpert_images),
    "mimic_cxr": ImageSource("MIMIC-CXR-JPG", "dicom_id", [], mimic_cxr_images, bordered=True),
    "vinbigdata": ImageSource(
        "VinDr-CXR",
        "image_id",
        [("validation", "vinbigdata/validation", 0.1), ("validation", "vinbigdata/holdout", 0.1)],
        vinbigdata_images,
    ),
    "padchest": ImageSource(
        "Padchest",
        "ImageID",
        [("test", "padchest/test", 0.2), ("validation", "padchest/validation", 0.1)],
        padchest_images,
        bordered=True,
    ),
}


# Reading.


def classes(config=None, **_) -> tuple[str, ...]:
    """The structures of `read`'s masks; there are no labels of images."""
    return CLASSES


def read(
    record: Mapping[str, Any], *, min_rca: float = 0.7, statistic: Literal["mean", "max"] = "mean"
) -> dict[str, Any]:
    """Turns a record into an example: image u8[H,W,1], masks u8[H,W,3], mask_valid bool[3], keypoints f32[120,2].

    Args:
      record: a record of `builder.Records`.
      min_rca: the lowest estimated Dice of a row that counts as known; others get mask_valid False and keypoints NaN.
        The authors advise 0.7; 0 trusts all.
      statistic: which of the two estimates that is about: "mean" or "max".

    Raises:
      InputError: an unknown statistic.
    """
    if statistic not in ("mean", "max"):
        raise InputError(f'chexmask: statistic={statistic!r}: expected "mean" or "max"')
    trusted = bool(record[f"rca_{statistic}"] >= min_rca)
    example = builder.example_of(record, structures=len(MASK_CLASSES))
    keypoints = example["keypoints"] if trusted else np.full_like(example["keypoints"], np.nan)
    return {**example, "mask_valid": np.full(len(MASK_CLASSES), trusted), "keypoints": keypoints}


# The phantom.

COLUMNS = (*RCA, "Landmarks", *MASK_CLASSES, "Height", "Width")
PHANTOM_IDS = {
    "chestxray14": "{:08d}_000.png",
    "chexpert": "train/patient{:05d}/study1/view1_frontal.jpg",
    "mimic_cxr": "{:08x}-0e0e0e0e-1f1f1f1f-2a2a2a2a-3b3b3b3b",
    "vinbigdata": "{:032x}",
    "padchest": "2168401113669640132178988669920113321342370{:02d}_01-031-075.png",
}


def phantom(
    root: Path,
    *,
    seed: int = 0,
    count: int = 24,
    sources: str | Sequence[str] = ("chestxray14",),
    packed: bool = False,
    size: int = 128,
    positioning: float = 1.0,
) -> None:
    """Writes CheXmask's tables under `root`, and generated images of the sources beside it, each in its own layout.

    Masks are the drawings' exact ones; landmarks lie on their borders; every fifth row has a low RCA.

    Args:
      root: the dataset's own raw folder, `<manual_dir>/chexmask`.
      count: images of each source; the last fourth is the official test set.
      sources: names of SOURCES.
      packed: writes .csv.gz tables.
      size: short side of the images in pixels; ChestX-ray14's are square.
      positioning: multiplies how far patients are shifted, turned and zoomed.
    """
    for name in (sources,) if isinstance(sources, str) else sources:
        if name not in SOURCES:
            raise InputError(f"chexmask: sources={name!r}: {catalog.suggestion(name, SOURCES)}")
        draw = functools.partial(phantom_radiograph, seed, name, size=size, positioning=positioning)
        drawn = list(pool.in_order(draw, range(count)))
        ids = [phantom_name(name, number, count) for number in range(count)]
        paths = [phantom_path(root.parent / name, name, number, count) for number in range(count)]
        for path, radiograph in zip(paths, drawn):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_image(path, radiograph)
        write_side_tables(root.parent / name, name, ids, count)
        for tables, folder in FOLDERS.items():
            lines = [phantom_line(name, tables, *row) for row in zip(range(count), ids, paths, drawn)]
            path = root / folder / f"{SOURCES[name].table}.csv"
            builder.write_table(path, (SOURCES[name].column, *COLUMNS), lines)
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
                path.unlink()


def phantom_radiograph(seed: int, source: str, number: int, *, size: int, positioning: float = 1.0) -> chest.Radiograph:
    """The radiograph of an image's number."""
    rng = np.random.default_rng([seed, list(SOURCES).index(source), number])
    shape = (size, size) if source == "chestxray14" else (size + int(rng.integers(1, size // 4)), size)
    drawing = {"findings": chest.sample_findings(rng), "size": shape, "positioning": positioning}
    return chest.frontal(int(rng.integers(2**31)), **drawing)


def is_test(number: int, count: int) -> bool:
    """Whether an image belongs to its source's official test set."""
    return number >= count - count // 4


def phantom_name(source: str, number: int, count: int) -> str:
    """The id of an image in CheXmask's table."""
    name = PHANTOM_IDS[source].format(number + 1)
    return name.replace("train/", "valid/") if is_test(number, count) else name


def phantom_path(root: Path, source: str, number: int, count: int) -> Path:
    """Where an image lies in its source's layout."""
    name = phantom_name(source, number, count)
    if source == "chestxray14":
        return root / "images" / name
    if source == "chexpert":
        return root / "CheXpert-v1.0-small" / name
    if source == "mimic_cxr":
        patient = f"p{10000000 + number}"
        return root / "files" / patient[:3] / patient / f"s{50000000 + number}" / f"{name}.jpg"
    if source == "vinbigdata":
        return root / ("test" if is_test(number, count) else "train") / f"{name}.dicom"
    return root / str(number % 3) / name


def write_image(path: Path, radiograph: chest.Radiograph) -> None:
    """Writes a radiograph as its source does: DICOM, JPEG, 16-bit PNG (PadChest) or 8-bit PNG."""
    pixels = radiograph.image[..., None]
    if path.suffix == ".dicom":
        from mediax import dicom

        dicom.write(path, images.to_uint8(pixels), spacing_mm=radiograph.spacing_mm, uid_source=path.stem)
    else:
        deep = "_01-" in path.name
        images.write(path, np.round(pixels * 65535).astype(np.uint16) if deep else images.to_uint8(pixels))


def write_side_tables(root: Path, source: str, ids: Sequence[str], count: int) -> None:
    """Writes the files that tell a source's patients and splits."""
    if source == "chestxray14":
        tests = [name for number, name in enumerate(ids) if is_test(number, count)]
        (root / "test_list.txt").write_text("\n".join(tests))
        (root / "train_val_list.txt").write_text("\n".join(name for name in ids if name not in tests))
    elif source == "mimic_cxr":
        splits = ["test" if is_test(n, count) else "validate" if n < count // 6 else "train" for n in range(count)]
        rows = [
            {"dicom_id": name, "study_id": 50000000 + n, "subject_id": 10000000 + n, "split": splits[n]}
            for n, name in enumerate(ids)
        ]
        builder.write_table(root / "mimic-cxr-2.0.0-split.csv", tuple(rows[0]), rows)
    elif source == "padchest":
        rows = [{"": n, "ImageID": name, "PatientID": f"{90000 + n // 2}"} for n, name in enumerate(ids)]
        builder.write_table(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", tuple(rows[0]), rows)


def phantom_line(
    source: str, tables: str, number: int, name: str, path: Path, radiograph: chest.Radiograph
) -> dict[str, Any]:
    """A row of either table: the drawing's masks, landmarks on their borders, in the table's own notation."""
    masks = {name: radiograph.masks[name].astype(np.uint8) for name in MASK_CLASSES}
    if tables == "preprocessed":
        _, (scale, shift) = preprocess(read_image(path), bordered=SOURCES[source].bordered)
        masks = {name: moved(mask, scale, shift) for name, mask in masks.items()}
    points = np.concatenate([border_points(masks[name], count) for name, count in LANDMARKS.items()])
    height, width = next(iter(masks.values())).shape
    mean = 0.5 if number % 5 == 3 else 0.72 + 0.01 * (number % 20)
    return {
        SOURCES[source].column: name,
        **dict(zip(RCA, (mean, mean + 0.03))),
        "Landmarks": ",".join(map(str, points.ravel())) if tables == "preprocessed" else str(points),
        **{name: rle.chexmask_encode(mask) for name, mask in masks.items()},
        "Height": height,
        "Width": width,
    }


def moved(mask: np.ndarray, scale: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """A mask u8[H,W] in the preprocessed image: each of its pixels takes the nearest one of the file."""
    rows, columns = (np.floor((np.arange(SIDE) + 0.5 - shift[k]) / scale[k]).astype(int) for k in range(2))
    inside = np.ix_((rows >= 0) & (rows < mask.shape[0]), (columns >= 0) & (columns < mask.shape[1]))
    result = np.zeros((SIDE, SIDE), np.uint8)
    result[inside] = mask[np.ix_(rows.clip(0, mask.shape[0] - 1), columns.clip(0, mask.shape[1] - 1))][inside]
    return result


def border_points(mask: np.ndarray, count: int) -> np.ndarray:
    """`count` points (x, y) evenly along the outline of a mask, i64[count,2]."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    outline = max(outlines, key=len)[:, 0]
    return outline[np.arange(count) * len(outline) // count]

"""What the datasets of fundus photographs share: finding files by name, masks of two readers, contours and points.

A dataset with one or two readers' vessel masks is a `VesselBuilder` with other file names; `read_masks` reads its
records. The rest serves the other datasets and the phantoms, which write the same kinds of files.
"""

import abc
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from mediax import annotations, builder, images, raw_files
from mediax.errors import InputError

WORDS = {
    "masks": "first reader's mask",
    "second_masks": "second reader's mask",
    "field_of_view": "mask of the field of view",
}
DEEPEST = 7  # folders below the dataset's own: archives unpack into folders of their own names, and those into others
MANY_FOLDERS = r"p(atient)?\d+"  # of chest radiographs, where all datasets lie in one folder


def find_files(folder: Path, patterns: Mapping[str, str]) -> dict[str, dict[str, Path]]:
    """Finds files by their names anywhere below a folder.

    Args:
      folder: where to look, at most `DEEPEST` folders deep; hidden folders are passed over.
      patterns: kind -> regular expression of a whole file name, case ignored; its first group is the key.

    Returns:
      kind -> {key in lower case: path}, by rising key.

    Raises:
      InputError: two files of one kind have the same key.
    """
    compiled = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in patterns.items()}
    found: dict[str, dict[str, Path]] = {kind: {} for kind in patterns}
    for path in raw_files.walk(folder, depth=DEEPEST, closed=MANY_FOLDERS):
        for kind, pattern in compiled.items():
            if match := pattern.fullmatch(path.name):
                other = found[kind].setdefault(match[1].lower(), path)
                if other != path:
                    raise InputError(f"{path}: {other} is the same file of the dataset; keep one of them")
    return {kind: dict(sorted(files.items())) for kind, files in found.items()}


def check_keys(pictures: Mapping[str, Path], known: Iterable[str], expected: str) -> None:
    """Raises InputError if a picture is none that the dataset has."""
    for key in pictures.keys() - set(known):
        raise InputError(f"{pictures[key]}: the dataset has no such image; expected {expected}")


def partners(
    kind: str, pictures: Mapping[str, Path], files: Mapping[str, Path], *, optional: bool = False
) -> dict[str, Path | None]:
    """The file of one kind that belongs to each picture; all None where it is optional and not one is there.

    Raises:
      InputError: some pictures lack the file, and it is not that all do and may.
    """
    missing = [key for key in pictures if key not in files]
    if missing and not (optional and len(missing) == len(pictures)):
        raise InputError(
            f"{pictures[missing[0]]}: the file of its {WORDS.get(kind, kind)} is absent, as are those of "
            f"{len(missing)} of {len(pictures)} images in all; complete the download"
        )
    if missing:
        logging.info("%d images have no %s: %s to %s", len(missing), WORDS.get(kind, kind), missing[0], missing[-1])
    return {key: files.get(key) for key in pictures}


def check_pictures(pictures: Mapping[str, Path], files: Mapping[str, Path]) -> None:
    """Raises InputError if a file belongs to a picture that is absent."""
    for key in sorted(files.keys() - pictures.keys()):
        raise InputError(f"{files[key]}: the image that it belongs to is absent; complete the download")


def with_tuning(train: Sequence[str], test: Sequence[str], *, tuning: int) -> dict[str, Sequence[str]]:
    """The splits train, tuning and test: the last `tuning` training images are set apart to choose models by."""
    return {"train": train[:-tuning], "tuning": train[-tuning:], "test": test}


def stem(path: Path) -> str:
    """The name of a file without any of its endings: im0001 of im0001.ppm.gz."""
    return path.name.split(".")[0]


def read_mask(path: Path) -> np.ndarray:
    """Reads a mask u8[H,W] of 0 and 1, whatever it is stored as (1 bit, grey, palette, colour; white as 1 or 255)."""
    return images.to_mask(images.read(path, channels=1)[..., 0], str(path))


def check_share(mask: np.ndarray, path: Path, what: str, low: float, high: float) -> None:
    """Raises InputError if a mask covers a smaller or larger share of its image than `what` ever does."""
    if not low <= (share := mask.mean()) <= high:
        raise InputError(
            f"{path}: {share:.0%} of it are white; {what} cover {low:.0%} to {high:.0%} of an image. Is it another "
            f"file under this name?"
        )


def read_numbers(path: Path, columns: int) -> np.ndarray:
    """Reads lines of numbers between commas or blanks, f64[N,columns]; InputError names the line that is another."""
    rows = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no text file ({error}); download it again") from error
    for number, line in enumerate(lines, 1):
        cells = line.replace(",", " ").split()
        try:
            row = [float(cell) for cell in cells]
        except ValueError:
            row = []
        if cells and (len(row) != columns or not np.isfinite(row).all()):
            raise InputError(f"{path}, line {number}: found {line.strip()!r}, expected {columns} numbers")
        if cells:
            rows.append(row)
    if not rows:
        raise InputError(f"{path}: the file is empty, expected lines of {columns} numbers")
    return np.array(rows)


def check_inside(points: np.ndarray, height: int, width: int, where: str) -> None:
    """Raises InputError if one of the points f[N,2] (x, y) lies outside of the image."""
    slack = builder.BOX_SLACK
    outside = ((points < -slack) | (points > (width + slack, height + slack))).any(axis=1)
    if outside.any():
        number = int(outside.argmax())
        raise InputError(
            f"{where}: point {number + 1}, x, y = {points[number, 0]:g}, {points[number, 1]:g}, lies outside of the "
            f"image of {width} x {height} pixels. Is the image a resized copy? It must be as it is distributed."
        )


class VesselBuilder(builder.Builder):
    """Base of the datasets whose images have vessel masks.

    Records hold `masks` and `mask_valid`, `field_of_view` (the dataset's, else computed), and where FILES names a
    second reader `second_masks` and `second_valid`.

    A subclass sets FILES, patterns as in `find_files` of "image", "masks" and maybe "second_masks" and "field_of_view",
    OPTIONAL, the splits in which files of a kind may be absent altogether, and `splits`; it may override `patient`
    and `labels`.
    """

    CHANNELS = 3
    FILES: Mapping[str, str]
    OPTIONAL: Mapping[str, Sequence[str]] = {}

    @abc.abstractmethod
    def splits(self) -> Mapping[str, Sequence[str]]:
        """The keys of each split's images."""

    def patient(self, key: str) -> str:
        """The patient of an image; by default each image shows another one."""
        return key

    def labels(self, key: str) -> dict[str, Any]:
        """More fields of an image's record, those that `features` adds."""
        del key
        return {}

    def features(self):
        known = {"mask_valid": tfds.features.Tensor(shape=(1,), dtype=np.bool_)}
        second = {"second_masks": builder.mask_feature(1), "second_valid": np.bool_}
        fields = {"masks": builder.mask_feature(1), "field_of_view": builder.mask_feature(1), **known}
        return fields | (second if "second_masks" in self.FILES else {})

    def find(self, folder):
        found = find_files(folder, self.FILES)
        return found if found["image"] else None

    def rows(self, found):
        pictures, splits = found["image"], self.splits()
        known = sorted(key for keys in splits.values() for key in keys)
        check_keys(pictures, known, f"the names of {known[0]} to {known[-1]}")
        for kind in found:
            check_pictures(pictures, found[kind])
        return {split: list(self._split_rows(split, keys, found)) for split, keys in splits.items()}

    def _split_rows(self, split, keys, found):
        pictures = {key: found["image"][key] for key in keys if key in found["image"]}
        files = {
            kind: partners(kind, pictures, found[kind], optional=split in self.OPTIONAL.get(kind, ()))
            for kind in self.FILES
            if kind != "image"
        }
        for key, path in pictures.items():
            fields = {kind: of_kind[key] for kind, of_kind in files.items()} | self.labels(key)
            yield builder.Row(stem(path), self.patient(key), path, str(fields["masks"] or path), fields)

    def annotations(self, row, pixels):
        decoded = dict(row.fields)
        unknown = np.zeros(pixels.shape[:2], np.uint8)
        for kind in ("masks", "second_masks"):
            if kind in decoded and row.fields[kind]:
                decoded[kind] = read_mask(row.fields[kind])
                check_share(decoded[kind], row.fields[kind], "vessels", 0, 0.4)
            elif kind in decoded:
                decoded[kind] = unknown
        if "second_masks" in decoded:
            decoded["second_valid"] = row.fields["second_masks"] is not None
        shipped = row.fields.get("field_of_view")
        decoded["field_of_view"] = read_mask(shipped) if shipped else annotations.field_of_view(pixels)
        if shipped:
            check_share(decoded["field_of_view"], shipped, "fields of view", 0.4, 1)
        decoded["mask_valid"] = np.array([row.fields["masks"] is not None])
        return decoded


def read_masks(record: Mapping[str, Any], *, structures: int = 1, reader: Literal[1, 2] = 1) -> dict[str, Any]:
    """Turns a record with two readers' masks into an example: `masks` are the chosen reader's.

    Args:
      record: a record of a `VesselBuilder`.
      structures: K, how many masks a reader drew.
      reader: 1 takes the first reader for the truth, as is usual; 2 swaps the two.

    Returns:
      image u8[H,W,3], masks u8[H,W,K], mask_valid bool[K], field_of_view u8[H,W], id, patient_id, and where the other
      reader saw the image second_masks u8[H,W,K].

    Raises:
      InputError: another `reader`, or one who did not see the image.
    """
    example = builder.example_of(record, structures=structures)
    if not record.get("second_valid", "second_masks" in record):
        example.pop("second_masks", None)
    return choose_reader(example, reader)


def choose_reader(example: dict[str, Any], reader: Literal[1, 2]) -> dict[str, Any]:
    """Swaps `masks` and `second_masks` of an example if `reader` is 2; InputError if there is no such reader."""
    if reader not in (1, 2):
        raise InputError(f"reader={reader!r}: expected 1 or 2")
    if reader == 1:
        return example
    if "second_masks" not in example or not example["mask_valid"].all():
        raise InputError(f"image {example['id']}: reader=2, but only one reader saw it; use reader=1")
    return example | {"masks": example["second_masks"], "second_masks": example["masks"]}


# What the phantoms write.


def seed_of(seed: int, name: str) -> int:
    """The seed of one drawing: the same however many others are drawn."""
    return zlib.crc32(f"{seed}/{name}".encode())


def spread(keys: Sequence[str], count: int | None) -> list[str]:
    """Takes `count` of the keys, evenly spread, the first and the last among them; None takes all."""
    if count is None or count >= len(keys):
        return list(keys)
    return [keys[index] for index in np.linspace(0, len(keys) - 1, count).round().astype(int)]


def write(path: Path, pixels: np.ndarray) -> None:
    """Writes u8 or bool [H,W] or u8[H,W,3] as the ending says: jpg, png (bool as 1 bit), tif, gif, ppm.gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if path.suffix == ".gz":
        data = io.BytesIO()
        image.save(data, "PPM")
        path.write_bytes(gzip.compress(data.getvalue(), mtime=0))
    else:
        image.save(path, **({"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}))


def white(mask: np.ndarray) -> np.ndarray:
    """A mask as grey levels u8[H,W], 0 and 255."""
    return np.where(mask, 255, 0).astype(np.uint8)


def write_numbers(path: Path, rows: np.ndarray, *, separator: str, decimals: int) -> None:
    """Writes a text file with a line for each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [separator.join(f"{value:.{decimals}f}" for value in row) for row in np.atleast_2d(rows)]
    path.write_text("\n".join(lines) + "\n")


def resize_nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a label map u8[H,W] without blending."""
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)

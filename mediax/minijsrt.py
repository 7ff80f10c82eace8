"""What the sets of miniJSRT share: small archives for teaching, of the Japanese Society of Radiological Technology.

They are cut from the JSRT database, one radiograph each of 247 patients: Shiraishi et al., AJR 174 (2000), 71-74. A
radiograph has a code there (JPCLN001 to JPCLN154 with a nodule, JPCNN001 to JPCNN093 without), which stays in the file
names of some archives: that code is then the patient's id, so that leakage between the sets can be checked.

Archives exist in grey and as `<archive>_RGB` with three equal channels; both are built as grey images. Zip files may be
extracted anywhere below the dataset's folder, with or without the zip's own top folder.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import logging

from mediax import builder, catalog, images
from mediax.errors import InputError
from mediax.phantoms import chest

UPLOADS = "http://imgcom.jsrt.or.jp/imgcom/wp-content/uploads"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".dcm")
CODE = re.compile(r"JPC[LN]N\d{3,}", re.IGNORECASE)


def source(title: str, *, files: str, images: str, tree: str) -> builder.Source:
    """The Source of one set; `files` are its zip files below UPLOADS."""
    return builder.Source(
        title=f"miniJSRT: {title}",
        homepage="http://imgcom.jsrt.or.jp/minijsrtdb/",
        licence="terms of the Japanese Society of Radiological Technology: free for research and education",
        access=f"open, {UPLOADS}/{files}",
        download_size="not stated",
        images=images,
        citation="Shiraishi et al., AJR 174 (2000), 71-74; http://imgcom.jsrt.or.jp/minijsrtdb/",
        tree=tree,
    )


def find(folder: Path, archive: str, holds: Callable[[Path], bool], *, depth: int = 4) -> Path | None:
    """Finds the one folder with an archive's content, whatever folders it was extracted into.

    Below a folder named miniJSRT* or as the archive all subfolders are searched. Elsewhere, where other datasets with
    many thousand folders may lie, only those subfolders are entered that have such a name.

    Args:
      folder: where to look.
      archive: how the names of the archive's folders begin, a regular expression; case does not matter.
      holds: whether a folder is the wanted one.
      depth: how many folders may be around it.

    Raises:
      InputError: there are several; which one is meant cannot be known.
    """
    named = re.compile(rf"(mini.?jsrt|{archive}).*", re.IGNORECASE)
    starts = [folder]
    if not named.fullmatch(folder.name) and not holds(folder):
        starts = [child for child in subfolders(folder) if named.fullmatch(child.name)]
    found = [place for start in starts for place in search(start, holds, depth)]
    if len(found) > 1:
        raise InputError(
            f"miniJSRT: the same archive lies in {' and in '.join(map(str, found))}: keep one of them there"
        )
    return found[0] if found else None


def search(folder: Path, holds: Callable[[Path], bool], depth: int) -> list[Path]:
    """The folders that `holds` accepts; it does not look inside of those."""
    if holds(folder):
        return [folder]
    return [place for child in subfolders(folder) for place in search(child, holds, depth - 1)] if depth else []


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without what operating systems put there."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def inside(folder: Path, *names: str) -> Path:
    """The path `folder/name/...` in the case that the file system has; in the given one where there is no such path."""
    for name in names:
        if not (folder / name).exists() and folder.is_dir():
            name = next((path.name for path in folder.iterdir() if path.name.lower() == name.lower()), name)
        folder = folder / name
    return folder


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder, sorted; raises InputError if there are none."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]
    if not paths:
        raise InputError(f"{folder}: no image file ({', '.join(SUFFIXES)}) is here; is the archive complete?")
    return sorted(paths)


SPLITS = ("train", "test")


def has_classes(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder holds `{train,test}/<class>` for all classes."""
    return all(inside(folder, split, name).is_dir() for split in SPLITS for name in names)


def class_images(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """Yields (split, class, file) of a tree `{train,test}/<class>/<file>`; InputError at a folder of no known class."""
    for split in SPLITS:
        for found in subfolders(inside(folder, split)):
            if found.name.lower() not in names:
                raise InputError(f"{found}: no known class; expected the folders {', '.join(names)}")
            paths = list_images(found)
            logging.info("%s: %d images", found, len(paths))
            for path in paths:
                yield split, found.name.lower(), path


def paired(originals: Path, labels: Path) -> Iterator[tuple[Path, Path]]:
    """Yields (image, label) of two folders, whose files go by one name or by `<name>.*` and `<name>_label.*`.

    For a label without an image the image's path is one that does not exist, which the builder reports.

    Raises:
      InputError: an image without a label, or two files of one name in a folder.
    """
    files = by_name(originals)
    masks = by_name(labels)
    for name, path in files.items():
        if name not in masks:
            raise InputError(f"{path}: {labels} holds no label of it; is the archive complete?")
    suffix = next(iter(files.values())).suffix
    for name, label in masks.items():
        yield files.get(name, originals / f"{label.stem.removesuffix('_label')}{suffix}"), label


def by_name(folder: Path) -> dict[str, Path]:
    """The image files of a folder by name, in lower case, without `_label`."""
    paths: dict[str, Path] = {}
    for path in list_images(folder):
        other = paths.setdefault(path.stem.lower().removesuffix("_label"), path)
        if other is not path:
            raise InputError(f"{path}: {other.name} has the same name; keep one of them")
    return paths


def read_label(path: Path, height: int, width: int) -> np.ndarray:
    """The grey values u8[H,W,1] of a label picture, in the size of its image, from which the archives' may differ."""
    label = images.read(path, channels=1)
    resized = cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.reshape(height, width, 1)


def identify(*parts: str) -> str:
    """An id: the JSRT code in the last part if it has one, else all parts, for numbers start anew in each folder."""
    code = CODE.search(parts[-1])
    return code.group().upper() if code else "_".join(parts)


# What the phantoms share.

# How an archive may lie on disk: its folder below the dataset's own, and whether its images have three channels.
RELEASES = {
    "grey": ("{0}", False),
    "rgb": ("{0}_RGB", True),
    "nested": ("{0}/{0}", False),  # extracted into a folder of the archive's name, with the inner folder kept
    "bare": (".", False),  # the content without the archive's folder
}


def phantom_folder(root: Path, archive: str, release: str) -> tuple[Path, bool]:
    """Where the phantom of an archive goes, and whether it has three channels; InputError for an unknown release."""
    if release not in RELEASES:
        raise InputError(f"miniJSRT: release={release!r}: {catalog.suggestion(release, RELEASES)}")
    folder, colour = RELEASES[release]
    return Path(root) / folder.format(archive), colour


def jsrt_code(number: int) -> str:
    """The code of the JSRT database's radiograph `number`, from 0: first those with a nodule."""
    return f"JPCLN{number + 1:03d}" if number < 154 else f"JPCNN{number - 153:03d}"


def draw(seed: int, number: int, *, size: int, sex: str | None = None, age: float | None = None) -> chest.Radiograph:
    """Draws the phantom's radiograph `number`: an adult, with a nodule where the JSRT database has one."""
    patient_seed, image_seed, years = np.random.default_rng([seed, number]).integers((2**31, 2**31, 69))
    patient = chest.sample_patient(int(patient_seed), sex=sex, age=float(years + 20) if age is None else age)
    findings = {"Nodule"} if number < 154 else set()
    return chest.frontal(int(image_seed), patient=patient, findings=findings, size=size)


def write(path: Path, pixels: np.ndarray, *, colour: bool = False) -> None:
    """Writes u8[H,W] as PNG, JPEG or BMP by the path's suffix; `colour` makes it three equal channels."""
    pixels = np.repeat(pixels[..., None], 3 if colour else 1, axis=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".bmp":
        cv2.imwrite(str(path), pixels)
    else:
        path.write_bytes(images.encode(pixels, "jpeg95" if path.suffix == ".jpg" else "png"))

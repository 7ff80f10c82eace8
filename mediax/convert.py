"""Converts image files: `python -m mediax.convert SOURCE... --to FOLDER --format png|jpg|dcm|tif [--bits 8|16]`.

Values are kept as they are wherever the target can hold them; what is lost or changed is said at the end. With
`--verify` every file is read back and compared value for value.
"""

import argparse
import collections
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mediax import dicom, images
from mediax.errors import InputError
from mediax.files import expanded

FORMATS = ("png", "jpg", "dcm", "tif")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    bits: int | None = None,
    rendering: dicom.Rendering | None = None,
    verify: bool = False,
) -> list[str]:
    """Writes one image file in the format of another's suffix.

    Args:
      source: a file that `images.read` reads.
      target: a name with one of FORMATS as its suffix.
      bits: 8 or 16 of each value in the target; None keeps the source's type. Fewer bits scale the source's whole range
        to theirs; more bits hold the same values.
      rendering: of a DICOM source, as `Dicom.to_unit` explains: "window" shows what a viewer shows, on the target's
        whole range; None keeps the values, counted from the lowest that the file can store, bright high.
      verify: reads the target back; of a JPEG file it says by how much values differ.

    Returns:
      What the target does not hold as the source did, in a few words each.

    Raises:
      InputError: the source cannot be read, the target cannot hold it or cannot be written, or it reads back otherwise.
    """
    source, target = Path(source), Path(target)
    jpeg = target.suffix == ".jpg"
    pixels, depth, spacing, changes = _load(source, rendering, bits or (8 if jpeg else None))
    wanted = bits or (8 if jpeg else 8 * pixels.itemsize)
    if wanted < 8 * pixels.itemsize:
        pixels = np.rint(pixels * (255 / (2**depth - 1))).astype(np.uint8)
        changes.append(f"narrowed from {depth} bits to 8")
        depth = 8
    elif wanted > 8 * pixels.itemsize:
        pixels, depth = pixels.astype(np.uint16), 16
    if jpeg:
        changes.append("JPEG is lossy")
    if target.suffix == ".dcm":
        # From the pixels, too: files of one name in several folders are several images.
        uid_source = f"{target.name}/{hashlib.sha256(pixels.tobytes()).hexdigest()}"
        dicom.write(target, pixels, bits=depth, uid_source=uid_source, **spacing)
    else:
        if spacing:
            changes.append(f"{target.suffix} does not hold the pixels' spacing in millimetres")
        images.write(target, pixels)
    if verify:
        changes.append(_compared(target, pixels))
    return changes


def _compared(target: Path, pixels: np.ndarray) -> str:
    """Says how a file that holds `pixels` reads back; raises InputError if other values come out of a lossless one."""
    found, *_ = _load(target, None, None)
    if found.shape == pixels.shape and target.suffix == ".jpg":
        largest = np.abs(found.astype(int) - pixels.astype(int)).max(initial=0)
        return f"read back: values differ by {largest} of 255 at most"
    if found.dtype != pixels.dtype or not np.array_equal(found, pixels):
        raise InputError(f"{target}: reads back with other values than were written; write it again, on another disk")
    return "read back: equal value for value"


def _load(
    source: Path, rendering: dicom.Rendering | None, bits: int | None
) -> tuple[np.ndarray, int, dict[str, Any], list[str]]:
    """Reads [H,W,C], how many bits its values use, its spacing as `dicom.write` takes it, and what reading changed."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from error
    if not images.is_dicom(data, source):
        pixels = images.read_bytes(data, name=str(source))
        return pixels, 8 * pixels.itemsize, {}, images.left_out(data)
    header = dicom.read_bytes(data, name=str(source))
    tag = header.spacing_tag
    spacing = {"spacing_mm": header.spacing_mm, "spacing_tag": tag} if tag else {}
    if rendering:
        bits = bits or (8 if header.bits <= 8 else 16)
        pixels = np.rint(header.to_unit(rendering).astype(np.float64) * (2**bits - 1)).astype(f"u{bits // 8}")
        changes = [f"rendered ({rendering}): values are not those that were stored"]
        if rendering == "window" and header.stretched:
            changes.append("without a window: rendered from the smallest value to the largest")
        return pixels, bits, spacing, changes
    changes = []
    if header.lowest:
        changes.append(f"signed values raised by {-header.lowest}: the result begins at 0")
    if header.rescale != (1, 0) or header.modality_lut:
        changes.append("stored values, without the rescaling that gives them their unit")
    return header.unsigned(), header.bits, spacing, changes


def find(sources: Sequence[str | Path], *, outside: Path) -> Iterator[tuple[Path, Path]]:
    """Yields (file, its place below the folder that was named) of the named files and of the images in named folders.

    Images are known by their suffixes, DICOM files without one by their content. What lies in the folder `outside`,
    where results go, is no source.

    Raises:
      InputError: nothing of that name, or a folder without images.
    """
    for source in map(Path, sources):
        if source.is_dir():
            yield from find_in(source, outside=outside)
        elif source.exists():
            yield source, Path(source.name)
        else:
            raise InputError(f"{source}: no such file or folder")


def find_in(folder: Path, *, outside: Path) -> Iterator[tuple[Path, Path]]:
    """Yields (file, its place below the folder) of the images in a folder, as `find` does."""
    # Results in a folder above the sources, or in another one, are none of them.
    inside = folder.resolve() in (outside, *outside.parents)
    unreadable: list[Path] = []  # folders: reading them will say why, as of files
    walk = os.walk(folder, onerror=lambda error: unreadable.append(Path(error.filename)))
    found = [
        path
        for path in sorted(Path(place) / name for place, _, names in walk for name in names)
        if not (inside and outside in path.resolve().parents) and images.may_be_image(path)
    ]
    if folder in unreadable:
        raise InputError(f"{folder}: cannot be read: make it readable, or choose another folder")
    found += unreadable
    if not found and folder.resolve() == outside:
        raise InputError(f"{folder}: is where the results go, and what lies there is not read; choose another folder")
    if not found:
        raise InputError(
            f"{folder}: holds no image; expected DICOM files, or files that end in {', '.join(images.SUFFIXES)}"
        )
    for path in found:
        yield path, path.relative_to(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts what the command line names; returns the exit code: 0, or 2 if a file or the command was bad."""
    options = _parse(arguments)
    folder = options.to.resolve()
    changes, written, failed = collections.Counter(), {}, 0
    try:
        for source, place in list(find(options.sources, outside=folder)):
            target = folder / place.parent / f"{_stem(place.name)}.{options.format}"
            try:
                if target in written:
                    raise InputError(f"{source}: would overwrite {target}, which {written[target]} became")
                if target == source.resolve():
                    raise InputError(f"{source}: would overwrite itself; choose another folder with --to")
                target.parent.mkdir(parents=True, exist_ok=True)
                changes.update(
                    convert(source, target, bits=options.bits, rendering=options.render, verify=options.verify)
                )
                written[target] = source
            except InputError as error:
                failed += 1
                print(f"mediax: {error}", file=sys.stderr, flush=True)
    except (InputError, OSError) as error:
        print(f"mediax: {error}", file=sys.stderr, flush=True)
        return 2
    for change, count in sorted(changes.items()):
        print(f"{count} of {len(written)} files: {change}")
    print(f"{len(written)} files written to {options.to}, {failed} failed")
    return 2 if failed else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mediax.convert", description=__doc__.partition("\n\n")[2])
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="files, and folders that are searched for images")
    parser.add_argument("--to", type=expanded, required=True, metavar="FOLDER", help="where results go")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--bits", type=int, choices=(8, 16), help="of each value; default: the source's")
    parser.add_argument(
        "--render",
        choices=("window", "full"),
        help="DICOM: as a viewer shows it (window), or the range of the stored bits; default: the stored values",
    )
    parser.add_argument("--verify", action="store_true", help="reads every file back and compares it value for value")
    options = parser.parse_args(arguments)
    if options.format == "jpg" and options.bits == 16:
        parser.error("--bits 16: JPEG holds 8 bits; choose --format png, tif or dcm")
    return options


def _stem(name: str) -> str:
    """A file's name without the suffix of its format; a name without one, often a DICOM identifier, stays whole."""
    suffix = max((suffix for suffix in images.SUFFIXES if name.lower().endswith(suffix)), key=len, default="")
    return name[: len(name) - len(suffix)]


if __name__ == "__main__":
    sys.exit(main())

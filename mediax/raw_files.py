"""Finding the files of a distribution in a folder, whichever way a user unpacked it."""

import fnmatch
import os
import re
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path

from absl import logging

from mediax.errors import InputError


def walk(folder: Path, *, depth: int = 4, closed: str = "") -> Iterator[Path]:
    """Yields the files below a folder, entries in alphabetical order, from at most `depth` folders deep.

    Hidden folders are not entered, nor those whose whole name matches the regular expression `closed`: folders with
    hundreds of thousands of patients, say.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except PermissionError as error:  # `lost+found` of a disk, say
        logging.warning("%s: not searched (%s)", folder, error.strerror)
        return
    for entry in entries:
        if not entry.is_dir():
            yield Path(entry.path)
        elif depth and not entry.name.startswith(".") and not re.fullmatch(closed, entry.name):
            yield from walk(Path(entry.path), depth=depth - 1, closed=closed)


def matches(path: Path, pattern: str) -> bool:
    """Whether a file's name matches a shell pattern, its case ignored."""
    return fnmatch.fnmatchcase(path.name.lower(), pattern.lower())


def only(paths: list[Path], what: str) -> Path | None:
    """The one path of a list, None of an empty list; raises InputError if there are several."""
    if len(paths) > 1:
        raise InputError(f"{what} lies in {' and in '.join(map(str, paths))}: keep one of them there")
    return paths[0] if paths else None


def read_lines(path: Path) -> list[str]:
    """The stripped lines of a text file; raises InputError if it cannot be read."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no readable text file ({error}); download it again") from error


def report_repeated(source: Path, what: str, items: Iterable[Hashable]) -> None:
    """Logs how many items of a file are there twice, which a copying error can make and nothing else may notice."""
    items = list(items)
    if repeated := len(items) - len(set(items)):
        logging.warning("%s: %d of %d %s are repetitions of others", source, repeated, len(items), what)

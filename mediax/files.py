"""Writing files whole or not at all, with errors that name them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mediax.errors import CorruptImageError, InputError


def replace_file(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file whole or not at all: to a temporary name beside it, then renamed. Raises InputError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    with naming_file(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def file_bytes(path: str | os.PathLike, count: int = -1) -> bytes:
    """The bytes of an image file, or its first ones; CorruptImageError, which a build may skip, if it is unreadable."""
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CorruptImageError(f"{path}: cannot be read ({error.strerror})") from error


def expanded(path: str) -> Path:
    """A path of a command line; of `--name=~/folder` shells leave the `~`."""
    return Path(path).expanduser()


@contextlib.contextmanager
def naming_file(path: str | os.PathLike) -> Iterator[None]:
    """Turns an OSError (a full disk, no permission) into an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}). Expected a writable place with free space: make "
            "room there or choose another workdir, then run the same command again; a run resumes at its checkpoint."
        ) from error


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a folder to fill, which becomes `path` once it is whole; what an earlier start left of it is deleted."""
    path = Path(path)
    incomplete = path.with_name(f"{path.name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir(parents=True)
    yield incomplete
    incomplete.rename(path)


def plain(value: Any, where: str = "") -> Any:
    """Returns what strict JSON can hold; non-finite floats as strings, because JSON has no number for them."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_dict"):
        return plain(value.to_dict(), where)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise InputError(
        f"{where}: found {value!r} ({type(value).__name__}), expected plain data: numbers, strings, booleans, None, "
        "lists and dictionaries of them"
    )

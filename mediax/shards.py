"""The files of a built set: ArrayRecord shards, each written whole or not at all, and the list of the finished ones.

Which record lies in which shard is fixed before the first one is written, so a build that was killed keeps its finished
shards, and no second copy of the set ever exists. The manifest holds for each finished shard a fingerprint of all that
its bytes follow from: one whose raw data has changed since is written again.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module

TARGET_BYTES = 2**28  # of a shard: what a killed build loses at most, and few enough files for a set of any size
FEWEST, MOST = 64, 4096  # rows in a shard


def shuffled(items: Iterable[Any], key: Callable[[Any], str]) -> list[Any]:
    """The items in the order of SHA-256(key): as good as random, and the same on every machine."""
    return sorted(items, key=lambda item: hashlib.sha256(key(item).encode()).digest())


def rows_in_shard(bytes_of_record: float) -> int:
    """How many records make a shard of about `TARGET_BYTES`, as a power of two: rough estimates agree on it."""
    rows = 2 ** round(math.log2(TARGET_BYTES / max(bytes_of_record, 1)))
    return min(max(rows, FEWEST), MOST)


def cut(items: Sequence[Any], rows: int) -> list[Sequence[Any]]:
    """Cuts items into the fewest pieces of at most `rows`, all but the last one of the same length."""
    pieces = math.ceil(len(items) / rows)
    length = math.ceil(len(items) / pieces)
    return [items[first : first + length] for first in range(0, len(items), length)]


class Record(NamedTuple):
    """A serialized record, None if it is left out, with the fingerprint of what it was made from."""

    fingerprint: bytes
    data: bytes | None


@dataclasses.dataclass(frozen=True)
class Finished:
    """What the manifest says of a shard: number and bytes of its records, which places were left out."""

    fingerprint: str
    records: int
    bytes: int
    left_out: Sequence[int] = ()


def write(path: Path, records: Iterable[Record]) -> Finished:
    """Writes a shard under a temporary name, and renames it when all of it is on the disk."""
    temporary = path.with_name(f"{path.name}.partial")
    # Groups of one for reading at random; images are compressed already.
    writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    fingerprints, sizes, left_out = [], [], []
    try:
        for place, record in enumerate(records):
            fingerprints.append(record.fingerprint)
            if record.data is None:
                left_out.append(place)
            else:
                writer.write(record.data)
                sizes.append(len(record.data))
        writer.close()
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(Exception):  # a second error of the same full disk
            writer.close()
        temporary.unlink(missing_ok=True)
        raise
    return Finished(combined(fingerprints), len(sizes), sum(sizes), left_out)


class Manifest:
    """The finished shards of a folder, one line of JSON each; a line that a killed build left torn does not count."""

    NAME = "manifest.jsonl"

    def __init__(self, folder: Path):
        """Reads the manifest of a folder, which is made if need be."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.finished = {name: Finished(**shard) for name, shard in self._lines()}

    @property
    def path(self) -> Path:
        return self.folder / self.NAME

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                yield json.loads(line)

    def keep(self, names: Iterable[str]) -> None:
        """Forgets the finished shards besides `names`, and removes all other files from the folder."""
        kept = {name: self.finished[name] for name in names if (self.folder / name).exists()}
        for file in self.folder.iterdir():
            if file.name not in {*kept, self.NAME}:
                file.unlink()
        temporary = self.folder / f"{self.NAME}.partial"
        temporary.write_text("".join(self._line(name, shard) for name, shard in kept.items()))
        temporary.rename(self.path)
        self.finished = kept

    def add(self, name: str, shard: Finished) -> None:
        """Enters a finished shard."""
        with self.path.open("a") as file:
            file.write(self._line(name, shard))
            file.flush()
            os.fsync(file.fileno())
        self.finished[name] = shard

    def _line(self, name: str, shard: Finished) -> str:
        return json.dumps([name, dataclasses.asdict(shard)]) + "\n"


def combined(fingerprints: Iterable[bytes]) -> str:
    """The fingerprint of a shard from those of its records, in their order."""
    return hashlib.blake2b(b"".join(fingerprints), digest_size=16).hexdigest()


def fingerprint(value: Any) -> bytes:
    """16 bytes that differ where values do; a file counts by its name, its size and when it was changed."""
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest.update, value)
    return digest.digest()


def _feed(update: Callable[[bytes], None], value: Any) -> None:
    """Hands `update` the type, the length and the content of a value, so that no two values look the same."""
    if isinstance(value, Path):
        state = value.stat() if value.exists() else None
        value = (value.name, state and (state.st_size, state.st_mtime_ns))
    elif isinstance(value, np.generic):
        value = np.asarray(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        update(f"{value.dtype.str}{value.shape}".encode())
        update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        _feed(update, [*value.items()])
    elif isinstance(value, set | frozenset):
        _feed(update, sorted(map(fingerprint, value)))
    elif isinstance(value, list | tuple | np.ndarray):
        update(f"sequence {len(value)} ".encode())
        for item in value:
            _feed(update, item)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes):
        content = value if isinstance(value, bytes) else repr(value).encode()
        update(f"{type(value).__name__} {len(content)} ".encode() + content)
    else:
        try:
            update(pickle.dumps(value))
        except (pickle.PicklingError, AttributeError, TypeError):
            update(os.urandom(16))  # what cannot be compared counts as changed

"""Images that two splits share: by their original ids, and by pictures that look alike.

Public datasets are cut from each other (several annotate images of ChestX-ray14, for instance), so a model that is
trained on one may have seen the test images of another. Pictures are compared by their difference hash (Krawetz, "Kind
of Like That", hackerfactor.com, 2013), here of 16 x 16 steps instead of 8 x 8: radiographs look too much alike for 64
bits. It survives scaling, compression and monotone changes of brightness, not cropping, turning or letterboxing: build
the sets with the same `aspect`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mediax import builder, images

SIDE = 16
MARGIN = 0.02  # standard deviations: less is noise of compression, on black background above all
# Of 256 bits. Generated radiographs, at 320 pixels against 64 pixels as JPEG of quality 60: median 7, at most 21; of
# different patients at least 25, other images of one patient at least 13. Large sets hold pairs nearer than that.
NEAR = 12
BLOCK = 2**16  # pairs compared at a time: what a processor's cache holds


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """One split of a built set: the original ids, and the hashes u64[N,4] of the images."""

    name: str
    ids: Sequence[str]
    hashes: np.ndarray


class Match(NamedTuple):
    """Two images that may be one; `distance` is in bits of 256."""

    first: str
    second: str
    same_id: bool
    distance: int


def pictures(directory: str | Path, split: str, *, name: str, workers: int) -> Pictures:
    """Reads a split of a built set and hashes its images."""
    records = builder.Records(directory, split)

    def hashed(index: int) -> tuple[str, np.ndarray]:
        record = records[index]
        return record["id"], difference_hash(images.decode(record["image"]))

    found = builder.in_order(hashed, range(len(records)), workers)
    ids, hashes = zip(*builder.watched(found, len(records), name))
    return Pictures(name, ids, np.stack(hashes))


def difference_hash(image: np.ndarray) -> np.ndarray:
    """The hash u64[4] of an image [H,W,C]: where its averaged copy of 16 x 17 pixels gets brighter to the right."""
    grey = image.astype(np.float32).mean(2)
    small = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)
    return np.packbits(np.diff(small, axis=1) > MARGIN * small.std()).view(np.uint64)


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The bits u16[N,M] in which hashes u64[N,4] and u64[M,4] differ."""
    total = np.zeros((len(first), len(second)), np.uint16)
    for word in range(first.shape[1]):
        total += np.bitwise_count(first[:, word, None] ^ second[None, :, word])
    return total


def original(name: str) -> str:
    """What is left of an id that is a file name: datasets differ in suffixes and case."""
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in images.SUFFIXES if name.endswith(suffix)), name)


def matches(first: Pictures, second: Pictures, *, near: int = NEAR) -> list[Match]:
    """The pairs of images with the same original id, or with hashes that differ in at most `near` bits."""
    return [
        Match(first.ids[i], second.ids[j], original(first.ids[i]) == original(second.ids[j]), distance)
        for i, j, distance in _pairs(first, second, near)
    ]


def _pairs(first: Pictures, second: Pictures, near: int) -> Iterator[tuple[int, int, int]]:
    places = {original(name): place for place, name in enumerate(second.ids)}
    rows = max(1, BLOCK // len(second.ids))
    for start in range(0, len(first.ids), rows):
        differing = distances(first.hashes[start : start + rows], second.hashes)
        found = set(zip(*map(np.ndarray.tolist, np.nonzero(differing <= near))))
        same = ((row, places.get(original(name))) for row, name in enumerate(first.ids[start : start + rows]))
        found |= {pair for pair in same if pair[1] is not None}
        yield from ((start + row, column, int(differing[row, column])) for row, column in sorted(found))

"""Run-length encodings of masks, in the three dialects that medical data sets use.

    dialect    pixel order    first number of a pair                        empty mask
    SIIM-ACR   column-major   distance from the end of the previous run     "-1"
    CheXmask   row-major      position in the image, counted from 1         ""
    COCO       column-major   (one list: background, foreground, ... all pixels)

Read in the wrong dialect, a mask is often plausible and always wrong, so every function carries its dialect's name.
Each translates to and from what they have in common: the lengths of alternating runs of background and foreground.

Masks are u8[H,W] of 0 and 1 (when encoding, everything but 0 is foreground). Decoding raises InputError, which says
what is wrong with the runs; the caller knows and adds the file and the line.
"""

import re
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco

from mediax.errors import InputError

# Twelve digits are more than any image has pixels, and sums of them stay exact in 64 bits.
NUMBERS = re.compile(r"\s*(?:-?[0-9]{1,12}(?:\s+|$))*", re.ASCII)


def siim_decode(text: str, height: int, width: int) -> np.ndarray:
    """Decodes "distance length ..." pairs of the SIIM-ACR Pneumothorax Segmentation challenge; u8[H,W].

    Pixels run down the columns. A run begins `distance` pixels after the end of the previous run, the first one after
    the beginning of the image. "-1" is an empty mask.

    Raises InputError for no runs, an odd count, words that are not whole numbers, a negative distance, a length below
    1, and runs that leave the image.
    """
    if text.strip() == "-1":
        return np.zeros((height, width), np.uint8)
    distances, lengths = _pairs(text)
    if not len(lengths):
        raise InputError('run lengths: nothing found, "distance length" pairs or -1 for an empty mask expected.')
    if distances.min() < 0:
        raise InputError(f"run lengths: distance {distances.min()} found, 0 or more expected.")
    return _paint(_interleave(distances, lengths), height * width).reshape(height, width, order="F")


def siim_encode(mask: np.ndarray) -> str:
    """Encodes a mask [H,W] as `siim_decode` reads it."""
    counts = _count(_flat(mask, "F"))
    return " ".join(map(str, counts.tolist())) if len(counts) else "-1"


def chexmask_decode(text: str, height: int, width: int) -> np.ndarray:
    """Decodes "start length ..." pairs of CheXmask (Gaggion et al. 2024); u8[H,W].

    Pixels run along the rows and are counted from 1. No text is an empty mask.

    Raises InputError for an odd count, words that are not whole numbers, a start or a length below 1, runs that overlap
    or are not in ascending order, and runs that leave the image.
    """
    starts, lengths = _pairs(text)
    previous_ends = np.concatenate(([1], (starts + lengths)[:-1]))[: len(starts)]
    wrong = np.flatnonzero(starts < previous_ends)
    if len(wrong):
        run = wrong[0]
        raise InputError(
            f"run lengths: run {run + 1} starts at {starts[run]}, {previous_ends[run]} or later expected: "
            "starts are counted from 1, and runs ascend without overlap."
        )
    return _paint(_interleave(starts - previous_ends, lengths), height * width).reshape(height, width)


def chexmask_encode(mask: np.ndarray) -> str:
    """Encodes a mask [H,W] as `chexmask_decode` reads it."""
    counts = _count(_flat(mask, "C"))
    starts = np.cumsum(counts) - counts + 1
    return " ".join(map(str, _interleave(starts[1::2], counts[1::2]).tolist()))


def coco_decode(counts: str | bytes | Sequence[int], height: int, width: int) -> np.ndarray:
    """Decodes the `counts` of a COCO segmentation, a list of run lengths or a compressed string; u8[H,W].

    Pixels run down the columns; the first run is background and may be 0 long; together the runs fill the image. The
    `size` next to `counts` in a COCO file is (height, width).

    Raises InputError for a string that is not compressed run lengths or is cut off, entries that are not whole numbers,
    negative lengths, and runs that do not add up to height x width.
    """
    if isinstance(counts, str | bytes):
        counts = _decompress(counts)
    else:
        found = np.asarray(counts)
        if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
            raise InputError(f"COCO counts: {found.dtype}{list(found.shape)} found, a flat list of integers expected.")
        counts = found.astype(np.int64)
    pixels = height * width
    if len(counts) and not 0 <= counts.min() <= counts.max() <= pixels:
        raise InputError(f"COCO counts: {counts.min()} to {counts.max()} found, 0 to {pixels} (all pixels) expected.")
    if counts.sum() != pixels:
        raise InputError(f"COCO counts: a sum of {counts.sum()} found, {height} x {width} = {pixels} expected.")
    return _paint(counts, pixels).reshape(height, width, order="F")


def coco_encode(mask: np.ndarray) -> str:
    """Encodes a mask [H,W] as a compressed COCO string, through pycocotools."""
    pixels = _flat(mask, "F").astype(np.uint8).reshape(np.shape(mask), order="F")
    return coco.encode(pixels)["counts"].decode("ascii")


def coco_counts(mask: np.ndarray) -> list[int]:
    """Encodes a mask [H,W] as an uncompressed COCO list."""
    flat = _flat(mask, "F")
    counts = _count(flat).tolist()
    rest = len(flat) - sum(counts)
    return [*counts, rest] if rest else counts


def _pairs(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Splits "a b a b ..." into the first numbers i64[N] and the lengths i64[N] of the pairs."""
    words = text.split()
    if not NUMBERS.fullmatch(text):
        wrong = next(word for word in words if not NUMBERS.fullmatch(word))
        raise InputError(f"run lengths: {wrong!r} found, a whole number of at most 12 digits expected.")
    if len(words) % 2:
        raise InputError(f"run lengths: {len(words)} numbers found, an even count (pairs) expected.")
    numbers = np.array(words, dtype=np.int64)
    lengths = numbers[1::2]
    if len(lengths) and lengths.min() < 1:
        raise InputError(f"run lengths: length {lengths.min()} found, 1 or more expected.")
    return numbers[::2], lengths


def _interleave(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.stack((first, second), axis=1).ravel()


def _paint(counts: np.ndarray, pixels: int) -> np.ndarray:
    """Alternating runs of background and foreground, u8[`pixels`]; the rest is background."""
    total = int(counts.sum())
    if total > pixels:
        raise InputError(f"run lengths: the runs reach pixel {total} of an image of {pixels} pixels.")
    mask = np.zeros(pixels, np.uint8)
    mask[:total] = np.repeat(np.arange(len(counts), dtype=np.uint8) % 2, counts)
    return mask


def _flat(mask: np.ndarray, order: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise InputError(f"mask: shape {mask.shape} found, (height, width) expected.")
    return (mask != 0).ravel(order)


def _count(flat: np.ndarray) -> np.ndarray:
    """Lengths i64[2N] of alternating runs of background and foreground of bool[P], up to the last foreground."""
    padded = np.concatenate(([False], flat, [False]))
    borders = np.flatnonzero(padded[1:] != padded[:-1])
    return np.diff(borders, prepend=0)


def _decompress(text: str | bytes) -> np.ndarray:
    """Run lengths i64[N] of a compressed COCO string.

    Not through pycocotools, whose decoder reads on behind the end of a string that is cut off. A character holds 5 bits
    (lowest first) and the bit that says that more follow, shifted by 48 into printable ASCII; numbers are signed, and
    from the fourth on they are differences to the number two places before.
    """
    if isinstance(text, str):
        text = text.encode()
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(digits):
        return digits
    if digits.min() < 0 or digits.max() > 63:
        wrong = digits[(digits < 0) | (digits > 63)][0] + 48
        raise InputError(f"COCO counts: character {chr(wrong)!r} found, characters from '0' to 'o' expected.")
    last = digits < 32
    if not last[-1]:
        raise InputError(f"COCO counts: the string of {len(text)} characters is cut off within a number.")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    if sizes.max() > 8:
        raise InputError("COCO counts: a number of more than 40 bits found, lengths of runs within an image expected.")
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, sizes))
    numbers = np.add.reduceat((digits & 31) << shifts, starts)
    negative = (digits[ends] & 16) != 0
    numbers -= negative.astype(np.int64) << (5 * sizes)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers

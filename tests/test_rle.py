"""Run lengths: three dialects, each with its own order, origin and word for nothing."""

import csv
import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from pycocotools import mask as coco

from mediax import rle
from mediax.errors import InputError

DIALECTS = {
    "siim": (rle.siim_decode, rle.siim_encode),
    "chexmask": (rle.chexmask_decode, rle.chexmask_encode),
    "coco string": (rle.coco_decode, rle.coco_encode),
    "coco list": (rle.coco_decode, rle.coco_counts),
}
# An L in an image that is not square: no other order, origin or transposition gives it.
L_SHAPE = np.array([[0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0, 1, 1, 1, 0]], np.uint8)
L_ENCODED = {
    "siim": "3 3 2 1 2 1",
    "chexmask": "2 1 7 1 12 3",
    "coco string": "332N001",
    "coco list": [3, 3, 2, 1, 2, 1, 3],
}

masks = numpy_strategies.arrays(
    np.uint8, numpy_strategies.array_shapes(min_dims=2, max_dims=2, max_side=70), elements=st.integers(0, 1)
)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_l_in_every_dialect(dialect):
    decode, encode = DIALECTS[dialect]
    assert encode(L_SHAPE) == L_ENCODED[dialect]
    decoded = decode(L_ENCODED[dialect], 3, 5)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, L_SHAPE)


def test_the_worked_example_of_siim():
    mask = rle.siim_decode("1 2 3 1", height=3, width=4)
    assert sorted(zip(*np.nonzero(mask.T))) == [(0, 1), (0, 2), (2, 0)]  # (x, y)


@pytest.mark.parametrize("dialect", DIALECTS)
@settings(max_examples=60, deadline=None)
@given(mask=masks)
def test_round_trips(dialect, mask):
    decode, encode = DIALECTS[dialect]
    np.testing.assert_array_equal(decode(encode(mask), *mask.shape), mask)
    np.testing.assert_array_equal(decode(encode(mask * np.uint8(255)), *mask.shape), mask)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks(dialect, value):
    decode, encode = DIALECTS[dialect]
    mask = np.full((3, 5), value, np.uint8)
    np.testing.assert_array_equal(decode(encode(mask), 3, 5), mask)


def test_each_dialect_has_its_own_word_for_nothing():
    empty = np.zeros((3, 5), np.uint8)
    assert rle.siim_encode(empty) == "-1"
    assert rle.chexmask_encode(empty) == ""
    assert rle.coco_counts(empty) == [15]
    for text in ("-1", " -1", "-1\n"):
        np.testing.assert_array_equal(rle.siim_decode(text, 3, 5), empty)


@settings(max_examples=60, deadline=None)
@given(masks)
def test_pycocotools_reads_and_writes_the_same(mask):
    height, width = mask.shape
    theirs = coco.encode(np.asfortranarray(mask))["counts"]
    for counts in (theirs, theirs.decode()):
        np.testing.assert_array_equal(rle.coco_decode(counts, height, width), mask)
    assert rle.coco_encode(mask) == theirs.decode()
    uncompressed = {"size": [height, width], "counts": rle.coco_counts(mask)}
    np.testing.assert_array_equal(coco.decode(coco.frPyObjects(uncompressed, height, width)), mask)


def test_coco_strings_of_long_runs():
    mask = np.zeros((700, 900), np.uint8)
    mask[100:650, 300:500] = mask[3, 800] = 1
    np.testing.assert_array_equal(rle.coco_decode(rle.coco_encode(mask), 700, 900), mask)


@pytest.mark.parametrize(
    "decode, runs, message",
    [
        (rle.siim_decode, "1 2 3", "3 numbers found, an even count"),
        (rle.siim_decode, "1 2 3 x", "'x' found, a whole number"),
        (rle.siim_decode, "1 2.5", "'2.5' found, a whole number"),
        (rle.siim_decode, "1 1_0", "'1_0' found, a whole number"),
        (rle.siim_decode, "1 9999999999999", "at most 12 digits"),
        (rle.siim_decode, "", "nothing found"),
        (rle.siim_decode, "1 -2", "length -2 found, 1 or more"),
        (rle.siim_decode, "1 0", "length 0 found, 1 or more"),
        (rle.siim_decode, "3 2 -1 1", "distance -1 found, 0 or more"),
        (rle.siim_decode, "-1 -1", "length -1"),
        (rle.siim_decode, "10 6", "reach pixel 16 of an image of 15 pixels"),
        (rle.siim_decode, "20 1", "reach pixel 21"),
        (rle.chexmask_decode, "-1", "1 numbers found"),
        (rle.chexmask_decode, "1 2 3", "an even count"),
        (rle.chexmask_decode, "a 2", "'a' found"),
        (rle.chexmask_decode, "0 2", "run 1 starts at 0, 1 or later"),
        (rle.chexmask_decode, "1 0", "length 0 found"),
        (rle.chexmask_decode, "1 3 3 2", "run 2 starts at 3, 4 or later"),
        (rle.chexmask_decode, "9 1 2 1", "run 2 starts at 2, 10 or later"),
        (rle.chexmask_decode, "15 2", "reach pixel 16"),
        (rle.coco_decode, [3, 3], "a sum of 6 found, 3 x 5 = 15"),
        (rle.coco_decode, [], "a sum of 0 found"),
        (rle.coco_decode, [3, -3, 15], "-3 to 15 found"),
        (rle.coco_decode, [2**62, 2**62, 2**62, 2**62, 15], "found, 0 to 15"),
        (rle.coco_decode, [1.5, 13.5], "flat list of integers"),
        (rle.coco_decode, ["3", "12"], "flat list of integers"),
        (rle.coco_decode, [[3, 12]], "flat list of integers"),
        (rle.coco_decode, "332", "a sum of 8 found"),
        (rle.coco_decode, "33 1", "character ' ' found"),
        (rle.coco_decode, "33é", "characters from '0' to 'o'"),
        (rle.coco_decode, "33P", "cut off within a number"),
        (rle.coco_decode, "PPPPPPPPPP0", "more than 40 bits"),
        (rle.coco_decode, "O", "-1 to -1 found"),
    ],
)
def test_bad_runs_are_refused(decode, runs, message):
    with pytest.raises(InputError, match=message):
        decode(runs, 3, 5)


@pytest.mark.parametrize("encode", [encode for _, encode in DIALECTS.values()])
def test_only_one_mask_is_encoded_at_a_time(encode):
    with pytest.raises(InputError, match=r"\(3, 4, 2\) found, \(height, width\)"):
        encode(np.zeros((3, 4, 2), np.uint8))


def _siim_table():
    """The challenge's training table, as torchxrayvision distributes it; None where that is not installed."""
    package = importlib.util.find_spec("torchxrayvision")
    if package is None:
        return None
    table = Path(package.origin).parent / "data" / "siim-pneumothorax-train-rle.csv.gz"
    return table if table.is_file() else None


@pytest.mark.slow
def test_every_row_of_the_siim_table_comes_back_as_it_was():
    table = _siim_table()
    if table is None:
        pytest.skip("torchxrayvision, which brings the table, is not installed")
    images, negative = [], 0
    with gzip.open(table, "rt") as file:
        for line in csv.DictReader(file, skipinitialspace=True):
            text = line["EncodedPixels"].strip()
            mask = rle.siim_decode(text, 1024, 1024)
            assert rle.siim_encode(mask) == text
            assert mask.any() == (text != "-1")
            images.append(line["ImageId"])
            negative += text == "-1"
    assert (len(images), len(set(images)), negative) == (12954, 12047, 9378)

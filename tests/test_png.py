"""Unpacked PNG files hold the same pixels, and nothing of a damaged one is hidden."""

import io
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mediax import png

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (300, 301), np.uint8)
KINDS = {
    "L": GREY,
    "RGB": np.dstack([GREY, GREY // 2, 255 - GREY]),
    "RGBA": np.dstack([GREY, GREY // 2, 255 - GREY, GREY]),
    "I;16": GREY.astype(np.uint16) * 257,
    "1": GREY > 128,
}


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray | None:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_stay_and_only_the_compression_goes(kind):
    data = encoded(KINDS[kind])
    found = png.unpacked(data)
    assert found != data
    np.testing.assert_array_equal(decoded(found), decoded(data))
    with Image.open(io.BytesIO(found)) as ours, Image.open(io.BytesIO(data)) as original:
        assert ours.mode == original.mode
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(original))


def test_other_chunks_are_kept_byte_for_byte():
    data = encoded(GREY)
    text = b"tEXtTitle\0a radiograph"
    chunk = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    found = png.unpacked(data[:33] + chunk + data[33:])
    assert found[33:].startswith(chunk) and found.endswith(data[-12:])


def test_damage_is_left_to_the_decoder():
    data = encoded(GREY)
    for position in RNG.integers(33, len(data), 300).tolist():
        damaged = bytearray(data)
        damaged[position] ^= 1 + position % 255
        assert decoded(png.unpacked(bytes(damaged))) is None
    for length in RNG.integers(0, len(data), 100).tolist():
        assert decoded(png.unpacked(data[:length])) is None


@pytest.mark.parametrize("rows", [b"", bytes(299 * 302), bytes(301 * 302)], ids=["none", "one missing", "one too many"])
def test_another_number_of_rows_is_left_to_the_decoder(rows):
    packed = b"IDAT" + zlib.compress(rows)
    chunk = (len(packed) - 4).to_bytes(4, "big") + packed + zlib.crc32(packed).to_bytes(4, "big")
    data = encoded(GREY)[:33] + chunk + encoded(GREY)[-12:]
    assert png.unpacked(data) is data


@pytest.mark.parametrize("data", [b"", b"GIF89a", png.SIGNATURE, bytes(1000)])
def test_what_is_no_png_stays(data):
    assert png.unpacked(data) is data

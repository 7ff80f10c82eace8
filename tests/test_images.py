"""Reading and writing image files, and the geometry of fitting (tests/test_builder.py holds the first ones)."""

import gzip
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mediax import dicom, images
from mediax.errors import CorruptImageError, InputError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5, 1), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (7, 5, 1), dtype=np.uint16)
RGB16 = RNG.integers(0, 65536, (7, 5, 3), dtype=np.uint16)


# Files.


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".bmp", ".dcm"])
@pytest.mark.parametrize("pixels", [GREY, RGB], ids=["grey", "rgb"])
def test_what_is_written_without_loss_is_read_again(tmp_path, suffix, pixels):
    images.write(tmp_path / f"image{suffix}", pixels)
    found = images.read(tmp_path / f"image{suffix}")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".dcm"])
def test_sixteen_bits_of_grey_are_kept(tmp_path, suffix):
    images.write(tmp_path / f"image{suffix}", GREY16)
    found = images.read(tmp_path / f"image{suffix}")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, GREY16)
    np.testing.assert_array_equal(images.read(tmp_path / f"image{suffix}", channels=3), np.repeat(GREY16, 3, 2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_of_colour_are_kept(tmp_path, suffix):
    images.write(tmp_path / f"image{suffix}", RGB16)
    np.testing.assert_array_equal(images.read(tmp_path / f"image{suffix}"), RGB16)
    grey = images.read(tmp_path / f"image{suffix}", channels=1)
    np.testing.assert_allclose(grey[..., 0], RGB16 @ [0.299, 0.587, 0.114], atol=1)
    assert grey.dtype == np.uint16
    assert not images.is_plain((tmp_path / f"image{suffix}").read_bytes(), channels=3)


def test_jpeg_is_close(tmp_path):
    smooth = cv2.GaussianBlur(RNG.integers(0, 256, (64, 48, 3), dtype=np.uint8), (0, 0), 8)
    images.write(tmp_path / "image.JPG", smooth)
    assert np.abs(images.read(tmp_path / "image.JPG").astype(int) - smooth).max() < 8


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("image.jpg", GREY16, r"hold uint16.*expected uint8 \["),
        ("image.bmp", GREY16, r"hold uint16.*expected uint8 \["),
        ("image.png", GREY.astype(np.float32), "hold float32"),
        ("image.png", GREY[..., 0], "1 or 3"),
        ("image.gif", GREY, r"cannot write \.gif"),
        ("image", GREY, "without a suffix"),
        ("image.dcm", RGB16, "cannot hold uint16"),
        ("absent/image.png", GREY, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_said_and_nothing_is_left(tmp_path, name, pixels, message):
    with pytest.raises(InputError, match=message):
        images.write(tmp_path / name, pixels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_gif_gives_its_first_frame_in_real_values(tmp_path, mode):
    mask = np.where(RNG.random((9, 11)) < 0.5, 255, 0).astype(np.uint8)
    frames = [Image.fromarray(frame).convert("RGB" if mode == "P" else mode) for frame in (mask, 255 - mask)]
    frames[0].save(tmp_path / "mask.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(images.read(tmp_path / "mask.gif", channels=1)[..., 0], mask)


def test_grey_content_in_a_gzipped_ppm(tmp_path):
    content = b"P5\n# made up\n5 7\n255\n" + GREY.tobytes()
    (tmp_path / "im0001.ah.PPM.GZ").write_bytes(gzip.compress(content))
    (tmp_path / "im0001.ah.ppm").write_bytes(content)
    for name in ("im0001.ah.PPM.GZ", "im0001.ah.ppm"):
        np.testing.assert_array_equal(images.read(tmp_path / name), GREY)
    (tmp_path / "im0001.ppm.gz").write_bytes(gzip.compress(b"P6\n5 7\n255\n" + RGB.tobytes()))
    np.testing.assert_array_equal(images.read(tmp_path / "im0001.ppm.gz"), RGB)


def test_pgm_values_are_fractions_of_the_stated_maximum():
    deep = np.array([0, 1000, 4095], ">u2")
    pixels = images.read_bytes(b"P5\n3 1\n4095\n" + deep.tobytes(), name="deep.pgm")
    assert pixels.dtype == np.uint16
    np.testing.assert_allclose(pixels[0, :, 0], deep / 4095 * 65535, atol=1)
    with pytest.raises(images.CorruptImageError, match="more than 8 bits"):
        images.read_bytes(b"P6\n1 1\n65535\n" + bytes(6), name="deep.ppm")


def test_mask_with_three_equal_channels(tmp_path):
    mask = np.where(GREY > 127, 255, 0).astype(np.uint8)
    images.write(tmp_path / "mask.tif", np.repeat(mask, 3, 2))
    np.testing.assert_array_equal(images.read(tmp_path / "mask.tif", channels=1), mask)


def test_grey_of_colour_is_that_of_pillow():
    for mode in ("RGB", "RGBA"):
        image = Image.fromarray(RGB).convert(mode)
        file = io.BytesIO()
        image.save(file, "PNG")
        found = images.read_bytes(file.getvalue(), name="image.png", channels=1)
        np.testing.assert_array_equal(found[..., 0], np.asarray(image.convert("L")))


def test_negative_and_wide_numbers_are_not_wrapped(tmp_path):
    for values in (np.array([[-1, 5]], np.int32), np.array([[5, 70000]], np.int32)):
        Image.fromarray(values).save(tmp_path / "image.tif")
        with pytest.raises(images.CorruptImageError, match="expected 0 to 65535"):
            images.read(tmp_path / "image.tif")


@pytest.mark.parametrize("encoding", ["png", "png16", "jpeg", "tif", "tif16", "ppm.gz", "dcm", "mha"])
def test_truncated_files_are_corrupt(tmp_path, encoding):
    if encoding == "ppm.gz":
        data = gzip.compress(b"P6\n5 7\n255\n" + RGB.tobytes())
    elif encoding == "mha":
        data = _metaimage(GREY, "MET_UCHAR")
    elif encoding == "jpeg":
        data = images.encode(cv2.resize(RGB, (50, 70)), "jpeg90")
    else:
        path = tmp_path / f"whole.{encoding.removesuffix('16')}"
        images.write(path, RGB16 if encoding.endswith("16") else RGB)
        data = path.read_bytes()
    path = tmp_path / f"cut.{encoding.removesuffix('16')}"
    for length in (0, 1, 20, len(data) // 2, len(data) * 3 // 4):
        path.write_bytes(data[:length])
        with pytest.raises(images.CorruptImageError, match=r"cut\."):
            images.read(path)


def _png(image, **options):
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def test_png_of_every_kind_has_the_values_of_pillow():
    colours = Image.fromarray(np.repeat(np.repeat(RGB, 6, 0), 6, 1))
    grey = colours.convert("L")
    cases = {
        "grey": (_png(grey), "L"),
        "grey, transparent value": (_png(grey, transparency=int(GREY[0, 0, 0])), "L"),
        "grey and alpha": (_png(colours.convert("LA")), "L"),
        "colour": (_png(colours), "RGB"),
        "colour, transparent value": (_png(colours, transparency=(1, 2, 3)), "RGB"),
        "colour and alpha": (_png(colours.convert("RGBA")), "RGB"),
        "palette": (_png(colours.quantize(16)), "RGB"),
        "palette, transparent value": (_png(colours.quantize(16), transparency=3), "RGB"),
        "black and white": (_png(colours.convert("1")), "L"),
        "gamma and profile": (_png(colours, icc_profile=bytes(200)), "RGB"),
        "animation": (_png(colours, save_all=True, append_images=[Image.new("RGB", colours.size)]), "RGB"),
        "16 bits": (_png(Image.fromarray(GREY16[..., 0])), None),
    }
    for case, (data, mode) in cases.items():
        image = Image.open(io.BytesIO(data))
        expected = np.asarray(image.convert(mode) if mode else image)
        found = images.read_bytes(data, name="image.png")
        np.testing.assert_array_equal(found, expected.reshape(found.shape), err_msg=case)
        assert found.flags.c_contiguous and found.shape[2] == (3 if mode == "RGB" else 1), case


def test_png_with_any_damage_is_corrupt():
    data = images.encode(cv2.GaussianBlur(RNG.integers(0, 256, (90, 80, 1), dtype=np.uint8), (0, 0), 3)[..., None])
    for length in (*range(1, len(data), 97), len(data) - 12, len(data) - 1):
        with pytest.raises(images.CorruptImageError, match="cannot decode"):
            images.read_bytes(data[:length], name="cut.png")
    for place in range(40, len(data) - 12, 211):  # behind the header
        damaged = bytearray(data)
        damaged[place] ^= 4
        with pytest.raises(images.CorruptImageError, match="cannot decode"):
            images.read_bytes(bytes(damaged), name="damaged.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("shape", "size", "aspect"), [((96, 64), 20, "stretch"), ((128, 96), 60, "letterbox")])
def test_means_over_blocks_are_those_of_opencv(monkeypatch, dtype, shape, size, aspect):
    pixels = RNG.integers(0, np.iinfo(dtype).max + 1, (*shape, 1), dtype=dtype)
    fit = images.Fit(*shape, size, aspect)
    found = fit.image(pixels)
    monkeypatch.setattr(images, "_is_blockwise", lambda *_: False)
    difference = found.astype(int) - fit.image(pixels)
    assert found.dtype == dtype
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 0.01  # exact halves may be rounded either way


def test_is_plain_of_files_that_are_not_pictures():
    assert not images.is_plain(b"nothing", channels=1)
    assert images.is_plain(images.encode(GREY), channels=1)
    assert not images.is_plain(images.encode(RGB16), channels=3)


# MetaImage.


def _metaimage(values, type_, *, data=None, **fields):
    height, width, channels = values.shape
    lines = {"ObjectType": "Image", "NDims": 2, "DimSize": f"{width} {height}", "ElementType": type_}
    lines |= {"ElementNumberOfChannels": channels, **fields, "ElementDataFile": fields.get("ElementDataFile", "LOCAL")}
    header = "".join(f"{key} = {value}\n" for key, value in lines.items() if key != "ElementDataFile")
    body = values.tobytes() if data is None else data
    return f"{header}ElementDataFile = {lines['ElementDataFile']}\n".encode() + body


@pytest.mark.parametrize(
    ("type_", "dtype"), [("MET_UCHAR", "u1"), ("MET_SHORT", "i2"), ("MET_USHORT", "u2"), ("MET_FLOAT", "f4")]
)
def test_metaimage_in_its_own_numbers(tmp_path, type_, dtype):
    values = RNG.integers(0, 100, (4, 6, 1)).astype(dtype)
    (tmp_path / "image.mha").write_bytes(_metaimage(values, type_, ElementSpacing="0.5 0.25"))
    found, spacing = images.read_metaimage(tmp_path / "image.mha")
    assert found.dtype == values.dtype
    assert spacing == (0.25, 0.5)  # the file gives x first
    np.testing.assert_array_equal(found, values)
    if dtype == "f4":
        with pytest.raises(images.CorruptImageError, match=r"floating-point.*read_metaimage"):
            images.read(tmp_path / "image.mha")
    else:
        pixels = images.read(tmp_path / "image.mha")
        assert pixels.dtype == (np.uint8 if dtype == "u1" else np.uint16)
        np.testing.assert_array_equal(pixels, values)


def test_metaimage_compressed_big_endian_and_beside(tmp_path):
    data = zlib.compress(GREY16.astype(">u2").tobytes())
    options = {"CompressedData": "True", "BinaryDataByteOrderMSB": "True"}
    (tmp_path / "image.MHA").write_bytes(_metaimage(GREY16, "MET_USHORT", data=data, **options))
    np.testing.assert_array_equal(images.read(tmp_path / "image.MHA"), GREY16)
    header = _metaimage(GREY16, "MET_USHORT", data=b"", ElementDataFile="image.raw")
    (tmp_path / "image.mhd").write_bytes(header)
    with pytest.raises(images.CorruptImageError, match=r"image\.mhd.*image\.raw"):
        images.read(tmp_path / "image.mhd")
    (tmp_path / "image.raw").write_bytes(GREY16.tobytes())
    np.testing.assert_array_equal(images.read(tmp_path / "image.mhd"), GREY16)
    assert np.isnan(images.read_metaimage(tmp_path / "image.mhd")[1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b"DimSize = 5 7", b"DimSize = 5 7 2"), "two dimensions"),
        ((b"DimSize = 5 7", b"DimSize = 5 8"), "its header says 40"),
        ((b"MET_UCHAR", b"MET_OTHER"), "MET_OTHER"),
        ((b"ElementDataFile", b"Other"), "no line ElementDataFile"),
        ((b"ObjectType = Image\n", b"ObjectType = Image\nCompressedData = True\n"), "incorrect header check"),
    ],
)
def test_damaged_metaimage(tmp_path, change, message):
    (tmp_path / "image.mha").write_bytes(_metaimage(GREY, "MET_UCHAR").replace(*change))
    with pytest.raises(images.CorruptImageError, match=message):
        images.read(tmp_path / "image.mha")


def test_dicom_values_are_stored_ones_with_bright_high(tmp_path):
    pixels = (GREY16 >> 4).astype(np.uint16)
    dicom.write(tmp_path / "image", pixels, bits=12, photometric="MONOCHROME1")
    np.testing.assert_array_equal(images.read(tmp_path / "image"), pixels)  # known by its content, without a suffix


# Geometry.

SHAPES = ((40, 21), (21, 33), (17, 17), (1955, 1841))


@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize("size", [16, 51, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_points_and_boxes_return_to_the_source(aspect, size, shape):
    fit = images.Fit(*shape, size, aspect)
    points = (RNG.random((50, 2)) * 1.4 - 0.2) * shape  # beyond the border too
    np.testing.assert_allclose(fit.points_back(fit.points(points)), points, atol=1e-3)
    top, left = (max(0, -offset) for offset in fit.offset())  # what is left of the source after cutting
    ends = fit.points_back([[0, 0], [1, 1]]).clip(0, shape)
    corners = RNG.uniform(ends[0], ends[1], (50, 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    np.testing.assert_allclose(fit.boxes_back(fit.boxes(boxes)), boxes, atol=1e-3)
    assert (top > 0 or left > 0) == (aspect == "crop" and size is not None and shape[0] != shape[1])
    assert fit.boxes_back([[-0.5, -0.5, 1.5, 1.5]]).tolist()[0][2:] <= list(shape)


@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_points_follow_the_image(aspect, shape):
    fit = images.Fit(*shape, 4 * max(shape), aspect)
    y, x = shape[0] // 2 + 1, shape[1] // 2 - 2
    image = np.zeros((*shape, 1), np.uint8)
    image[y, x] = 255
    centre = np.argwhere(fit.image(image, nearest=True)[..., 0]).mean(0) + 0.5
    np.testing.assert_allclose(fit.points([[y + 0.5, x + 0.5]])[0] * fit.size, centre, atol=1)
    assert (fit.points([[-5, -5]]) < 0).any()  # not clipped


@pytest.mark.parametrize("aspect", images.ASPECTS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_masks_return_to_the_source(aspect, shape):
    mask = cv2.GaussianBlur(RNG.random(shape), (0, 0), 3)
    mask = (mask > np.median(mask)).astype(np.uint8)[..., None] * 7
    for size in (max(shape) + 2, 2 * max(shape)):
        fit = images.Fit(*shape, size, aspect)
        returned = fit.mask_back(fit.image(mask, nearest=True))
        assert returned.shape == mask.shape and returned.dtype == mask.dtype
        ends = fit.points_back([[0, 0], [1, 1]]).clip(0, shape)
        (top, left), (bottom, right) = np.ceil(ends[0]).astype(int), np.floor(ends[1]).astype(int)
        # A pixel next to an edge may fall to either side of it by rounding, none further in: half a pixel at most.
        inside = np.zeros(shape, bool)
        inside[top:bottom, left:right] = True
        edge = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        np.testing.assert_array_equal(returned[..., 0][inside & ~edge], mask[..., 0][inside & ~edge])
        if size == 2 * max(shape) and aspect != "stretch":
            np.testing.assert_array_equal(returned[..., 0][inside], mask[..., 0][inside])
        top, left = np.ceil(ends[0] - 0.5).astype(int)  # pixels whose centre was cut away are unknown
        assert not returned[:top].any() and not returned[:, :left].any()


def test_mask_back_takes_many_structures_and_checks_its_size():
    fit = images.Fit(5, 9, 18, "letterbox")
    mask = np.ones((18, 18, 3), bool)
    np.testing.assert_array_equal(fit.mask_back(mask), np.ones((5, 9, 3), bool))
    assert fit.mask_back(mask[..., 0]).shape == (5, 9)
    assert images.Fit(5, 9, None).mask_back(np.ones((5, 9, 1))).all()
    with pytest.raises(ValueError, match="expected 18 x 18"):
        fit.mask_back(mask[:-1])


def test_spacing_follows_the_size():
    np.testing.assert_allclose(images.Fit(200, 100, 50).spacing((0.1, 0.2)), [0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(images.Fit(200, 100, 50, "letterbox").spacing((0.1, 0.2)), [0.4, 0.8], rtol=1e-6)
    np.testing.assert_allclose(images.Fit(200, 100, 50, "crop").spacing((0.1, 0.2)), [0.2, 0.4], rtol=1e-6)
    assert np.isnan(images.Fit(200, 100, 50).spacing((np.nan, np.nan))).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_where_zero_is_white(tmp_path, bits):
    values = np.array([[0, 10, 200]], f"<u{bits // 8}")
    tags = {256: 3, 257: 1, 258: bits, 259: 1, 262: 0, 273: 8, 277: 1, 278: 1, 279: values.nbytes}
    body = values.tobytes().ljust(8, b"\0")
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = b"II*\0" + struct.pack("<I", 16) + body + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(data)
    found = images.read(tmp_path / "a.tif")
    assert found[0, :, 0].tolist() == (2**bits - 1 - values[0].astype(int)).tolist()


def test_metaimage_reads_no_file_elsewhere(tmp_path):
    (tmp_path / "secret.txt").write_bytes(b"12345678")
    (tmp_path / "in").mkdir()
    header = "ObjectType = Image\nDimSize = 8 1\nElementType = MET_UCHAR\nElementDataFile = ../secret.txt\n"
    (tmp_path / "in/a.mhd").write_text(header)
    with pytest.raises(CorruptImageError, match=r"'\.\./secret\.txt'; expected LOCAL or the name"):
        images.read(tmp_path / "in/a.mhd")


def test_a_file_that_cannot_be_read_is_corrupt(tmp_path):
    (tmp_path / "a.png").mkdir()  # reading it is an OSError, whoever runs the test
    with pytest.raises(CorruptImageError, match=r"a\.png: cannot be read \(Is a directory\)"):
        images.read(tmp_path / "a.png")


def test_a_side_too_long_for_jpeg_is_said(tmp_path):
    with pytest.raises(InputError, match="JPEG holds 65500 pixels a side at most, not 65501"):
        images.write(tmp_path / "a.jpg", np.zeros((1, 65_501, 1), np.uint8))

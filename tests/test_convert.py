"""The converter of image files."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from mediax import convert, dicom, images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (7, 5, 1), dtype=np.uint8)
RGB = RNG.integers(0, 256, (7, 5, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (7, 5, 1), dtype=np.uint16)


def _convert(*arguments):
    return convert.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("pixels", [GREY, RGB, GREY16], ids=["grey", "rgb", "grey16"])
@pytest.mark.parametrize("middle", ["dcm", "tif"])
def test_there_and_back_without_loss(tmp_path, capsys, pixels, middle):
    images.write(tmp_path / "a.png", pixels)
    assert _convert(tmp_path / "a.png", "--to", tmp_path / "there", "--format", middle) == 0
    assert _convert(tmp_path / f"there/a.{middle}", "--to", tmp_path / "back", "--format", "png") == 0
    found = images.read(tmp_path / "back/a.png")
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)
    output = capsys.readouterr()
    assert "1 files written" in output.out and "of 1 files" not in output.out and not output.err


def test_files_are_read_back_value_for_value(tmp_path, capsys, monkeypatch):
    images.write(tmp_path / "a.png", GREY16)
    for suffix, said in (
        ("dcm", "equal value for value"),
        ("png", "equal value for value"),
        ("jpg", "values differ by"),
    ):
        assert _convert(tmp_path / "a.png", "--to", tmp_path / "b", "--format", suffix, "--verify") == 0
        assert f"1 of 1 files: read back: {said}" in capsys.readouterr().out
    write = images.write
    monkeypatch.setattr(images, "write", lambda path, pixels: write(path, pixels ^ 1))
    assert _convert(tmp_path / "a.png", "--to", tmp_path / "c", "--format", "png", "--verify") == 2
    assert "a.png: reads back with other values than were written" in capsys.readouterr().err


def test_dicom_keeps_its_bits_and_spacing_and_says_what_a_picture_loses(tmp_path, capsys):
    deep = GREY16 >> 4
    dicom.write(tmp_path / "a.dcm", deep, bits=12, spacing_mm=(0.2, 0.1), photometric="MONOCHROME1")
    assert _convert(tmp_path / "a.dcm", "--to", tmp_path / "b", "--format", "dcm") == 0
    found = dicom.read(tmp_path / "b/a.dcm")
    assert (found.bits, found.spacing_mm) == (12, (0.2, 0.1))
    np.testing.assert_array_equal(found.unsigned(), deep)
    assert "of 1 files" not in capsys.readouterr().out
    assert _convert(tmp_path / "a.dcm", "--to", tmp_path / "b", "--format", "png", "--bits", "8") == 0
    output = capsys.readouterr().out
    assert "spacing" in output and "narrowed from 12 bits to 8" in output
    np.testing.assert_array_equal(images.read(tmp_path / "b/a.png"), np.rint(deep / 4095 * 255))


def test_bits(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    images.write(source / "deep.png", GREY16)
    images.write(source / "flat.png", GREY)
    for bits, deep, flat in ((8, np.rint(GREY16 / 257), GREY), (16, GREY16, GREY)):
        for suffix in ("tif", "dcm"):
            assert _convert(source, "--to", tmp_path / f"{bits}", "--format", suffix, "--bits", bits) == 0
            for name, expected in (("deep", deep), ("flat", flat)):
                found = images.read(tmp_path / f"{bits}/{name}.{suffix}")
                assert found.dtype == f"uint{bits}"
                np.testing.assert_array_equal(found, expected)


def test_jpeg_says_that_it_is_lossy(tmp_path, capsys):
    images.write(tmp_path / "a.png", np.full((16, 16, 1), 30000, np.uint16))
    assert _convert(tmp_path / "a.png", "--to", tmp_path, "--format", "jpg") == 0
    output = capsys.readouterr().out
    assert "JPEG is lossy" in output and "narrowed from 16 bits to 8" in output
    assert np.abs(images.read(tmp_path / "a.jpg").astype(int) - round(30000 / 257)).max() <= 1


def test_rendering_applies_the_window(tmp_path, capsys):
    tags = {"WindowCenter": 100, "WindowWidth": 2}
    dicom.write(tmp_path / "a.dcm", np.array([[[50], [150]]], np.uint16), bits=12, tags=tags)
    assert _convert(tmp_path / "a.dcm", "--to", tmp_path, "--format", "png", "--render", "window") == 0
    np.testing.assert_array_equal(images.read(tmp_path / "a.png")[0, :, 0], [0, 65535])
    assert _convert(tmp_path / "a.dcm", "--to", tmp_path, "--format", "jpg", "--render", "window") == 0
    output = capsys.readouterr().out
    assert "rendered (window)" in output and "narrowed" not in output and "smallest" not in output
    dicom.write(tmp_path / "a.dcm", np.array([[[50], [150]]], np.uint16))
    assert _convert(tmp_path / "a.dcm", "--to", tmp_path, "--format", "png", "--render", "window") == 0
    np.testing.assert_array_equal(images.read(tmp_path / "a.png")[0, :, 0], [0, 65535])
    assert "1 of 1 files: without a window: rendered from the smallest value to the largest" in capsys.readouterr().out


def test_folders_keep_their_shape_and_bad_files_stop_nothing(tmp_path, capsys):
    source, target = tmp_path / "source", tmp_path / "source/converted"
    (source / "deep/er").mkdir(parents=True)
    images.write(source / "deep/er/b.TIF", GREY)
    images.write(source / "c.png", RGB)
    (source / "a.png").write_bytes(images.encode(GREY)[:40])
    (source / "labels.csv").write_text("no image")
    assert _convert(source, "--to", target, "--format", "png") == 2
    output = capsys.readouterr()
    assert "a.png: cannot decode" in output.err and "labels.csv" not in output.err
    assert "2 files written" in output.out and "1 failed" in output.out
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*.*")) == ["c.png", "deep/er/b.png"]
    assert _convert(source, "--to", target, "--format", "png") == 2  # its own results are no sources
    assert "2 files written" in capsys.readouterr().out


def test_what_cannot_be_read_in_a_folder_is_named(tmp_path, monkeypatch, capsys):
    source, scandir = tmp_path / "source", os.scandir
    (source / "locked").mkdir(parents=True)
    images.write(source / "a.png", GREY)
    (source / "nowhere.png").symlink_to(tmp_path / "absent.png")

    def refusing(folder):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)
    assert _convert(source, "--to", tmp_path / "to", "--format", "png") == 2
    output = capsys.readouterr()
    assert "nowhere.png: cannot be read" in output.err and "locked: cannot be read" in output.err
    assert "1 files written" in output.out and "2 failed" in output.out
    assert _convert(source / "locked", "--to", tmp_path / "to", "--format", "png") == 2
    assert "locked: cannot be read" in capsys.readouterr().err


def test_pages_and_transparency_that_are_left_out_are_named(tmp_path, capsys):
    pages = [Image.fromarray(GREY[..., 0] // part) for part in (1, 2, 3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    glass = np.dstack([RGB, np.arange(RGB[..., 0].size, dtype=np.uint8).reshape(RGB.shape[:2])])
    Image.fromarray(glass).save(tmp_path / "glass.png")
    Image.fromarray(np.dstack([RGB, np.full_like(RGB[..., 0], 255)])).save(tmp_path / "opaque.png")
    assert _convert(tmp_path, "--to", tmp_path / "to", "--format", "png") == 0
    said = capsys.readouterr().out
    assert "1 of 3 files: the first of 3 pages or frames alone is read" in said
    assert "1 of 3 files: transparency is left out" in said


def test_the_folder_of_the_results_cannot_be_the_source(tmp_path, capsys):
    images.write(tmp_path / "a.png", GREY)
    assert _convert(tmp_path, "--to", tmp_path, "--format", "dcm") == 2
    assert "is where the results go, and what lies there is not read" in capsys.readouterr().err


def test_nothing_is_overwritten_by_accident(tmp_path, capsys):
    images.write(tmp_path / "a.png", GREY)
    images.write(tmp_path / "a.tif", RGB)
    assert _convert(tmp_path / "a.png", "--to", tmp_path, "--format", "png") == 2
    assert "would overwrite itself" in capsys.readouterr().err
    assert _convert(tmp_path, "--to", tmp_path / "b", "--format", "dcm") == 2
    assert "would overwrite" in capsys.readouterr().err
    np.testing.assert_array_equal(images.read(tmp_path / "b/a.dcm"), GREY)


@pytest.mark.parametrize("missing", ["absent", "empty"])
def test_nothing_to_convert(tmp_path, capsys, missing):
    (tmp_path / "empty").mkdir()
    assert _convert(tmp_path / missing, "--to", tmp_path / "b", "--format", "png") == 2
    assert missing in capsys.readouterr().err


def test_sixteen_bits_of_jpeg_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        _convert(tmp_path, "--to", tmp_path / "b", "--format", "jpg", "--bits", "16")
    assert caught.value.code == 2
    assert "JPEG holds 8 bits" in capsys.readouterr().err


def test_signed_values_are_raised_and_that_is_said(tmp_path, capsys):
    from pydicom.data import get_testdata_file

    path = get_testdata_file("CT_small.dcm", download=False)
    assert _convert(path, "--to", tmp_path, "--format", "png") == 0
    output = capsys.readouterr().out
    assert "raised by 32768" in output and "without the rescaling" in output
    stored = dicom.read(path).pixels.astype(int)
    np.testing.assert_array_equal(images.read(tmp_path / "CT_small.png"), stored + 32768)


def test_images_of_one_name_are_several_and_equal_ones_the_same(tmp_path):
    for folder, pixels in (("a", GREY), ("b", GREY ^ 1), ("c", GREY)):
        (tmp_path / folder).mkdir()
        images.write(tmp_path / folder / "view1.png", pixels)
        assert _convert(tmp_path / folder, "--to", tmp_path / "to" / folder, "--format", "dcm") == 0
    files = [pydicom.dcmread(tmp_path / "to" / folder / "view1.dcm") for folder in "abc"]
    assert files[0].SOPInstanceUID != files[1].SOPInstanceUID
    assert files[0].SOPInstanceUID == files[2].SOPInstanceUID


def test_the_spacing_of_the_detector_stays_that(tmp_path):
    dicom.write(tmp_path / "a.dcm", GREY, spacing_mm=(0.2, 0.1), spacing_tag="ImagerPixelSpacing")
    assert _convert(tmp_path / "a.dcm", "--to", tmp_path / "to", "--format", "dcm") == 0
    found = pydicom.dcmread(tmp_path / "to/a.dcm")
    assert "PixelSpacing" not in found and [*found.ImagerPixelSpacing] == [0.2, 0.1]


def test_results_above_the_sources_hide_none(tmp_path):
    (tmp_path / "study").mkdir()
    images.write(tmp_path / "study/a.png", GREY)
    assert _convert(tmp_path / "study", "--to", tmp_path, "--format", "tif") == 0
    assert (tmp_path / "a.tif").is_file()
    assert [path.name for path, _ in convert.find([tmp_path], outside=tmp_path / "study")] == ["a.tif"]


def test_dicom_files_without_a_suffix_are_found_by_their_content(tmp_path):
    source = tmp_path / "export"
    (source / "ST000001").mkdir(parents=True)
    for name in ("IM0001", "1.2.840.10008.5", "ST000001/IM0002", "b.dcm"):
        dicom.write(tmp_path / "a.dcm", GREY)
        (tmp_path / "a.dcm").rename(source / name)
    dicom.write(source / "series.txt", GREY)  # another ending is no image's, whatever the content
    dicom.write(source / "DICOMDIR", GREY)  # lists files, and is no image itself
    (source / "empty").touch()
    (source / "README").write_text("no image " * 40)
    assert _convert(source, "--to", tmp_path / "to", "--format", "png", "--verify") == 0
    found = [str(path.relative_to(tmp_path / "to")) for path in sorted((tmp_path / "to").rglob("*.png"))]
    assert found == ["1.2.840.10008.5.png", "IM0001.png", "ST000001/IM0002.png", "b.png"]
    np.testing.assert_array_equal(images.read(tmp_path / "to/IM0001.png"), GREY)
    assert images.may_be_image(source / "unreadable")  # so that it is tried, and what is wrong is said

"""DICOM: made-up files with every quirk, and a real chest radiograph of the package pydicom-data."""

import importlib.util
import io
import types
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut, apply_voi, pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGLosslessSV1, RLELossless

from mediax import dicom, images
from mediax.errors import CorruptImageError, InputError

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 4096, (6, 5, 1), dtype=np.uint16)


def _file(stored, *, bits, high_bit=None, **tags):
    """The bytes of a grey DICOM file with any stored values and any tags."""
    stored = np.asarray(stored)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored = 8 * stored.itemsize, bits
    dataset.HighBit = bits - 1 if high_bit is None else high_bit
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes() + bytes(stored.nbytes % 2)
    dataset["PixelData"].VR = "OW" if stored.itemsize > 1 else "OB"
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _read(*args, **kwargs):
    return dicom.read_bytes(_file(*args, **kwargs), name="made-up")


def _lut(entries, first, bits):
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return pydicom.Sequence([item])


# Stored values.


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize(("dtype", "bits"), [(np.uint8, 8), (np.uint8, 5), (np.uint16, 12), (np.uint16, 16)])
def test_what_is_written_is_read_again(tmp_path, photometric, dtype, bits):
    pixels = RNG.integers(0, 2**bits, (7, 5, 1)).astype(dtype)
    dicom.write(tmp_path / "a.dcm", pixels, bits=bits, spacing_mm=(0.143, 0.1 / 3), photometric=photometric)
    found = dicom.read(tmp_path / "a.dcm")
    np.testing.assert_array_equal(found.unsigned(), pixels)
    assert (found.bits, found.inverted, found.unsigned().dtype) == (bits, photometric == "MONOCHROME1", dtype)
    assert found.spacing_tag == "PixelSpacing"
    np.testing.assert_allclose(found.spacing_mm, (0.143, 0.1 / 3), rtol=1e-9)
    np.testing.assert_allclose(found.to_unit("full"), pixels / (2**bits - 1), atol=1e-6)
    np.testing.assert_allclose(found.to_unit(), found.to_unit("full"), atol=1e-6)  # a file without a window


def test_bits_beside_the_stored_ones_are_ignored():
    garbage = RNG.integers(0, 16, (6, 5), dtype=np.uint16)
    values = DEEP[..., 0]
    np.testing.assert_array_equal(_read(values | garbage << 12, bits=12).pixels[..., 0], values)
    np.testing.assert_array_equal(_read(values << 4 | garbage, bits=12, high_bit=15).pixels[..., 0], values)


def test_signed_values_of_twelve_bits():
    values = np.array([[-2048, -1, 0, 2047]], np.int16)
    found = _read(values & 0x0FFF, bits=12)  # the container's high bits do not repeat the sign
    np.testing.assert_array_equal(found.pixels[..., 0], values)
    np.testing.assert_array_equal(found.unsigned()[..., 0], [[0, 2047, 2048, 4095]])
    np.testing.assert_allclose(found.to_unit("full")[0, :, 0], np.array([0, 2047, 2048, 4095]) / 4095, rtol=1e-6)


def test_polarity():
    values = np.array([[0, 100, 255]], np.uint8)
    for tags in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    ):
        found = _read(values, bits=8, **tags)
        np.testing.assert_array_equal(found.unsigned()[0, :, 0], [255, 155, 0])
        np.testing.assert_array_equal(found.to_uint8("window")[0, :, 0], [255, 155, 0])
    assert not _read(values, bits=8, PresentationLUTShape="IDENTITY").inverted


def test_thirty_two_bits_are_rendered_but_not_narrowed():
    found = _read(np.array([[0, 2**31, 2**32 - 1]], np.uint32), bits=32)
    np.testing.assert_allclose(found.to_unit()[0, :, 0], [0, 0.5, 1], atol=1e-6)
    with pytest.raises(InputError, match="made-up: 32 bits"):
        found.unsigned()


# Spacing.


@pytest.mark.parametrize(
    ("tags", "spacing", "tag"),
    [
        ({}, (np.nan, np.nan), None),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "ImagerPixelSpacing"),
        ({"PixelSpacing": [0.3, 0.4], "ImagerPixelSpacing": [0.2, 0.1]}, (0.3, 0.4), "PixelSpacing"),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "ImagerPixelSpacing"),
        ({"NominalScannedPixelSpacing": [0.175, 0.175]}, (0.175, 0.175), "NominalScannedPixelSpacing"),
    ],
)
def test_spacing(tags, spacing, tag):
    found = _read(DEEP[..., 0], bits=12, **tags)
    np.testing.assert_array_equal(found.spacing_mm, spacing)
    assert found.spacing_tag == tag


# Rendering.


def test_linear_window_is_that_of_the_standard():
    found = _read(np.arange(8, dtype=np.uint8)[None], bits=8, WindowCenter=[4, 100], WindowWidth=[4, 1])
    # PS3.3 C.11.2.1.2.1: a window of centre 4 and width 4 begins at 2 (black) and ends at 5 (white).
    np.testing.assert_allclose(found.to_unit()[0, :, 0], [0, 0, 0, 1 / 3, 2 / 3, 1, 1, 1], atol=1e-6)
    narrow = _read(np.arange(4, dtype=np.uint8)[None], bits=8, WindowCenter=2, WindowWidth=1)
    np.testing.assert_array_equal(narrow.to_unit()[0, :, 0], [0, 0, 1, 1])


def test_other_window_functions():
    values = np.arange(9, dtype=np.uint8)[None]
    tags = {"WindowCenter": 4, "WindowWidth": 4}
    exact = _read(values, bits=8, VOILUTFunction="LINEAR_EXACT", **tags).to_unit()[0, :, 0]
    np.testing.assert_allclose(exact, [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1], atol=1e-6)
    sigmoid = _read(values, bits=8, VOILUTFunction="SIGMOID", **tags).to_unit()[0, :, 0]
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-(np.arange(9.0) - 4))), atol=1e-6)


def test_window_is_in_rescaled_units():
    stored = np.array([[0, 1024, 1064, 4095]], np.uint16)
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 81}
    shown = _read(stored, bits=12, **tags).to_unit()[0, :, 0]
    np.testing.assert_allclose(shown, [0, 0.00625, 0.50625, 1], atol=1e-6)
    assert not np.allclose(shown, _read(stored, bits=12, **tags).to_unit("full")[0, :, 0], atol=0.1)


def test_negative_slope_turns_the_range_round():
    found = _read(np.array([[0, 255]], np.uint8), bits=8, RescaleSlope=-2, RescaleIntercept=7)
    np.testing.assert_array_equal(found.to_unit()[0, :, 0], [1, 0])
    np.testing.assert_array_equal(found.to_unit("full")[0, :, 0], [0, 1])


def test_voi_lut_goes_before_the_window_and_extends_its_ends():
    tags = {"VOILUTSequence": _lut([0, 50, 255], first=10, bits=8), "WindowCenter": 1, "WindowWidth": 1}
    shown = _read(np.array([[0, 10, 11, 12, 200]], np.uint8), bits=8, **tags).to_uint8()
    np.testing.assert_array_equal(shown[0, :, 0], [0, 0, 50, 255, 255])


def test_deep_values_without_a_window_are_stretched_where_they_would_be_flat():
    signed = np.linspace(-1024, 1000, 64).astype(np.int16).reshape(8, 8, 1)
    flat = dicom.Dicom(pixels=signed, bits=16, rescale=(-2.0, 5.0), inverted=True)
    assert flat.stretched
    np.testing.assert_allclose(flat.to_unit(), (signed + 1024) / 2024, atol=1e-6)
    assert np.ptp(flat.to_unit("full")) < 0.04
    for other in (
        dicom.Dicom(pixels=signed, bits=16, window=dicom.Window(0, 65536)),
        dicom.Dicom(pixels=signed, bits=12),
        dicom.Dicom(pixels=np.full_like(signed, 7), bits=16),
        dicom.Dicom(pixels=np.arange(64, dtype=np.uint8).reshape(8, 8, 1), bits=8),
        dicom.Dicom(pixels=signed.repeat(3, axis=2), bits=16),
    ):
        assert not other.stretched


@pytest.mark.parametrize(("spacing", "square"), [((0.1, 0.3), False), ((0.2, 0.2001), True), ((np.nan, np.nan), True)])
def test_pixels_are_square_as_far_as_is_known(spacing, square):
    assert dicom.Dicom(pixels=np.zeros((2, 2, 1), np.uint8), bits=8, spacing_mm=spacing).square == square


def test_modality_lut():
    tags = {"ModalityLUTSequence": _lut([0, 100, 1000, 4095], first=0, bits=12)}
    shown = _read(np.array([[0, 1, 2, 3, 9]], np.uint8), bits=8, **tags).to_unit()
    np.testing.assert_allclose(shown[0, :, 0], np.array([0, 100, 1000, 4095, 4095]) / 4095, atol=1e-6)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"WindowCenter": 5, "WindowWidth": 0}, "width 0"),
        ({"WindowCenter": 5, "WindowWidth": 3, "VOILUTFunction": "CUBIC"}, "CUBIC"),
    ],
)
def test_impossible_windows(tags, message):
    with pytest.raises(InputError, match=f"made-up.*{message}"):
        _read(DEEP[..., 0], bits=12, **tags)


def test_unknown_rendering():
    with pytest.raises(InputError, match='expected "window" or "full"'):
        _read(DEEP[..., 0], bits=12).to_unit("lung")


# Damaged, compressed and other files.


def test_damaged_files_are_corrupt(tmp_path):
    data = _file(DEEP[..., 0], bits=12)
    cut = len(data) // 2
    for number, content in enumerate([b"", b"nothing", data[:200], data[:cut], data[:-2]]):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content)
        with pytest.raises(CorruptImageError, match=rf"{number}\.dcm: cannot decode"):
            images.read(path)
    with pytest.raises(CorruptImageError, match="RescaleSlope"):
        _read(DEEP[..., 0], bits=12, RescaleSlope=0, RescaleIntercept=1)
    with pytest.raises(CorruptImageError, match="HighBit"):
        _read(DEEP[..., 0], bits=12, high_bit=3)


@pytest.mark.parametrize("implicit", [True, False])
def test_file_without_preamble_and_meta_information(implicit):
    dataset = pydicom.dcmread(io.BytesIO(_file(DEEP[..., 0], bits=12)))
    del dataset.file_meta, dataset.preamble
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=True)
    assert b"DICM" not in buffer.getvalue()[:200]
    np.testing.assert_array_equal(images.read_bytes(buffer.getvalue(), name="old.DCM"), DEEP)


def test_run_length_encoding_is_read_without_plugins():
    dataset = pydicom.dcmread(io.BytesIO(_file(DEEP[..., 0], bits=12)))
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    np.testing.assert_array_equal(dicom.read_bytes(buffer.getvalue(), name="rle").pixels, DEEP)
    with pytest.raises(CorruptImageError):
        dicom.read_bytes(buffer.getvalue()[:-30], name="rle")


def test_missing_decoder_names_the_package(monkeypatch):
    data = _file(DEEP[..., 0], bits=12)
    absent = types.SimpleNamespace(is_available=False)
    monkeypatch.setattr(dicom, "get_decoder", lambda _: absent)
    with pytest.raises(InputError, match=r"made-up: no installed decoder .*pip install python-gdcm") as caught:
        dicom.read_bytes(data, name="made-up")
    assert not isinstance(caught.value, CorruptImageError)  # a dataset must not skip all its images for that
    with pytest.raises(InputError, match="pip install pylibjpeg pylibjpeg-openjpeg"):
        dicom._check_decoder(UID("1.2.840.10008.1.2.4.201"))


def test_transfer_syntax_that_nothing_decodes():
    with pytest.raises(InputError, match="MPEG2"):
        dicom._check_decoder(UID("1.2.840.10008.1.2.4.100"))
    dicom._check_decoder(ExplicitVRLittleEndian)
    assert JPEGLosslessSV1.is_compressed


def test_frames_are_chosen_and_never_dropped_silently():
    path = get_testdata_file("SC_rgb_rle_2frame.dcm", download=False)
    with pytest.raises(InputError, match=r"2 frames.*frame=0"):
        images.read(path)
    both = pixel_array(path)
    for frame in (0, 1):
        np.testing.assert_array_equal(dicom.read(path, frame=frame).pixels, both[frame])
    with pytest.raises(CorruptImageError):
        dicom.read(path, frame=2)


@pytest.mark.parametrize(
    "name", ["examples_palette.dcm", "SC_rgb_small_odd.dcm", "SC_ybr_full_422_uncompressed.dcm", "ExplVR_BigEnd.dcm"]
)
def test_colour(name):
    found = dicom.read(get_testdata_file(name, download=False))
    assert found.pixels.shape[2] == 3 and found.pixels.dtype.isnative
    assert found.unsigned().dtype == found.pixels.dtype
    np.testing.assert_array_equal(found.to_unit(), found.to_unit("full"))


@pytest.mark.parametrize(
    "name",
    ["MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_padded.dcm"],
)
def test_encodings_of_one_image_are_equal(name):
    read = dicom.read(get_testdata_file(name, download=False))
    reference = pixel_array(get_testdata_file("MR_small.dcm", download=False))
    np.testing.assert_array_equal(read.pixels[..., 0], reference)


# Writing.


def test_written_files_say_nothing_of_anybody(tmp_path):
    dicom.write(tmp_path / "a.dcm", DEEP, bits=12, uid_source="phantom/1")
    tags = dicom.read_tags(
        tmp_path / "a.dcm", ("PatientName", "PatientID", "StudyDate", "Modality", "Rows", "ImagerPixelSpacing")
    )
    assert not any((tags["PatientName"], tags["PatientID"], tags["StudyDate"], tags["ImagerPixelSpacing"]))
    assert (tags["Modality"], tags["Rows"]) == ("OT", 6)


def test_bytes_follow_the_source_of_the_identifiers(tmp_path):
    for name, source in (("a", "1"), ("b", "1"), ("c", "2"), ("d", None), ("e", None)):
        dicom.write(tmp_path / name, DEEP, uid_source=source)
    a, b, c, d, e = ((tmp_path / name).read_bytes() for name in "abcde")
    assert a == b and len({a, c, d, e}) == 4
    uids = dicom.read_tags(tmp_path / "a", ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    assert len(set(uids.values())) == 3


def test_tags_of_ones_own(tmp_path):
    tags = {"Modality": "CR", "ViewPosition": "PA", "WindowCenter": 2048, "WindowWidth": 1024, "PatientID": "p1"}
    dicom.write(tmp_path / "a.dcm", DEEP, bits=12, tags=tags)
    assert dicom.read_tags(tmp_path / "a.dcm", tuple(tags)) == tags
    assert dicom.read(tmp_path / "a.dcm").window == dicom.Window(2048, 1024)
    for function in (
        lambda: dicom.write(tmp_path / "b.dcm", DEEP, tags={"Modallity": "CR"}),
        lambda: dicom.read_tags(tmp_path / "a.dcm", ("Modallity",)),
    ):
        with pytest.raises(InputError, match="'Modallity' is no DICOM keyword"):
            function()


def test_what_does_not_fit_is_not_written(tmp_path):
    for pixels, options, message in (
        (DEEP, {"bits": 8}, "do not fit in 8 bits"),
        (DEEP, {"bits": 17}, "do not fit"),
        (DEEP.astype(np.float32), {}, "cannot hold float32"),
        (np.repeat(DEEP, 3, 2), {}, "cannot hold uint16"),
        (DEEP, {"photometric": "RGB"}, "expected MONOCHROME2"),
    ):
        with pytest.raises(InputError, match=message):
            dicom.write(tmp_path / "a.dcm", pixels, **options)
    assert not list(tmp_path.iterdir())


def test_errors_do_not_show_the_patient(tmp_path):
    tags = {"PatientName": "Doe^Secret", "PatientID": "secret-1", "OtherPatientIDs": "secret-2"}
    data = _file(DEEP[..., 0], bits=12, **tags)
    found = dicom.read_bytes(data, name="made-up")
    assert "ecret" not in repr(found)
    with pytest.raises(CorruptImageError) as caught:
        dicom.read_bytes(data[:-20], name="made-up")
    assert "ecret" not in str(caught.value)


# Real files.


def _real(name):
    package = importlib.util.find_spec("data_store")
    if package is None:
        pytest.skip("needs the package pydicom-data==1.0.0 (real files, 32 MB)")
    return Path(next(iter(package.submodule_search_locations))) / "data" / name


def test_real_radiograph_has_dark_lungs_and_no_spacing():
    found = dicom.read(_real("RG1_UNCR.dcm"))
    assert found.pixels.shape == (1955, 1841, 1)
    assert (found.bits, found.inverted, found.window) == (15, True, dicom.Window(15000, 30000))
    assert np.isnan(found.spacing_mm).all()  # the file says 0.000
    for rendering in ("window", "full"):
        shown = found.to_uint8(rendering)[..., 0].astype(float)
        # The mean of 81 x 81 pixels around points that a look at the picture gives.
        air, right, left, heart, spine = (
            shown[y - 40 : y + 41, x - 40 : x + 41].mean()
            for y, x in ((100, 60), (700, 480), (700, 1350), (1100, 950), (1700, 930))
        )
        assert air < min(right, left) - 50
        assert max(right, left) < min(heart, spine) - 50


def test_real_lossless_encodings_are_equal_and_lossy_ones_close():
    plain, lossy = dicom.read(_real("RG1_UNCR.dcm")).pixels, dicom.read(_real("RG1_UNCI.dcm")).pixels
    np.testing.assert_array_equal(dicom.read(_real("RG1_J2KR.dcm")).pixels, plain)
    np.testing.assert_array_equal(dicom.read(_real("RG1_J2KI.dcm")).pixels, lossy)
    error = np.abs(plain.astype(int) - lossy)
    assert 0 < error.mean() < 0.002 * 2**15 and error.max() < 0.02 * 2**15


def test_real_radiograph_survives_writing(tmp_path):
    found = dicom.read(_real("RG3_UNCR.dcm"))
    dicom.write(tmp_path / "a.dcm", found.unsigned(), bits=found.bits, photometric="MONOCHROME1")
    again = dicom.read(tmp_path / "a.dcm")
    np.testing.assert_array_equal(again.pixels, found.pixels)
    np.testing.assert_array_equal(again.to_unit("full"), found.to_unit("full"))


@pytest.mark.parametrize("name", ["mlut_18.dcm", "vlut_04.dcm"])
def test_real_lookup_tables_equal_pydicoms(name):
    path = _real(name)
    dataset = pydicom.dcmread(path)
    expected = apply_voi(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    found = dicom.read(path)
    bits = (found.voi_lut or found.modality_lut).bits
    np.testing.assert_allclose(found.to_unit()[..., 0], expected / (2**bits - 1), atol=1e-6)

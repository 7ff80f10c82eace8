"""DICOM segmentations, read back by highdicom: overlapping structures, their names, the image they refer to."""

import io

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.examples import get_path

from mediax import dicom_segmentation
from mediax.errors import InputError

LONG = "a finding whose name is longer than the sixty-four characters that a label may have"


def test_overlapping_structures_are_read_back_as_they_were(tmp_path):
    source = pydicom.dcmread(get_path("ct"))
    source.PatientName, source.PatientID = "NOBODYSNAME^JANE", "ID4711"
    source.save_as(tmp_path / "ct.dcm")
    size = (source.Rows, source.Columns)
    rows, columns = np.indices(size)
    masks = {"Heart": rows > 60, "Left Lung": columns + rows < 90, LONG: np.zeros(size, bool)}
    encoded = dicom_segmentation.encode(tmp_path / "ct.dcm", masks, version="run, step 10")
    assert b"NOBODYSNAME" not in encoded and b"ID4711" not in encoded
    found = highdicom.seg.segread(io.BytesIO(encoded))
    assert found.StudyInstanceUID == source.StudyInstanceUID and found.SeriesInstanceUID != source.SeriesInstanceUID
    labels = [found.get_segment_description(number).segment_label for number in (1, 2, 3)]
    assert labels == ["Heart", "Left Lung", LONG[:64]]
    pixels = found.get_pixels_by_source_instance([source.SOPInstanceUID], assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(pixels[0] > 0, np.stack([*masks.values()], -1))
    assert (masks["Heart"] & masks["Left Lung"]).any()


def test_a_file_that_nothing_can_refer_to_is_named(tmp_path):
    source = pydicom.dcmread(get_path("ct"))
    del source.StudyInstanceUID
    source.save_as(tmp_path / "bare.dcm")
    with pytest.raises(
        InputError, match=r"bare\.dcm: no DICOM Segmentation can refer to this file: .*StudyInstanceUID"
    ):
        dicom_segmentation.encode(tmp_path / "bare.dcm", {"Heart": np.ones((128, 128), bool)}, version="1")

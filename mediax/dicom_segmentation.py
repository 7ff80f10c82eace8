"""Masks of a DICOM image as a DICOM Segmentation object (PS3.3 A.51), written by highdicom (Bridge et al. 2022)."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pydicom
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from mediax.errors import InputError

CREATOR = "mediax"
# All that is taken over from the source: what it is and where its pixels lie, and nothing about its patient.
REFERENCE = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns"),
    *("PixelSpacing", "ImagerPixelSpacing", "LossyImageCompression"),
)
PLACE = ("FrameOfReferenceUID", "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness")
# The standard wants these present; they may be empty.
BLANK = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
LONGEST_LABEL, LONGEST_CODE = 64, 16  # characters of the types LO and SH


def encode(source: Path, masks: Mapping[str, np.ndarray], *, version: str) -> bytes:
    """Encodes masks as a DICOM file that refers to the image they were found in; they may overlap.

    It belongs to the source's study by its UID and names no patient: whoever stores it beside the source fills that in.
    Structures are coded by their names in a scheme of our own, because no standard code is known for all of them.

    Args:
      source: the DICOM image.
      masks: bool[H,W] by structure, in the source's pixels.
      version: of the network that made them, in a few words.

    Raises:
      InputError: highdicom is not installed, or the source lacks what a segmentation must refer to.
    """
    try:
        import highdicom  # an extra: few need it, and it takes a second
    except ImportError as error:
        raise InputError(
            f"{source}: no DICOM Segmentation can be written without the package highdicom: pip install highdicom"
        ) from error
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=CREATOR, family=codes.DCM.ArtificialIntelligence, version=version[:LONGEST_LABEL]
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:LONGEST_LABEL],
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,  # of an organ and a finding alike
            segmented_property_type=highdicom.sr.CodedConcept(
                value=_code(name), scheme_designator=f"99{CREATOR.upper()}", meaning=name[:LONGEST_LABEL]
            ),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(masks, start=1)
    ]
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=[_reference(source)],
            pixel_array=np.stack([*masks.values()], axis=-1)[None].astype(np.uint8),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=generate_uid(),
            series_number=1,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=CREATOR,
            manufacturer_model_name=CREATOR,
            software_versions=version[:LONGEST_LABEL],
            device_serial_number="0",
            content_label="SEGMENTATION",
        )
        file = io.BytesIO()
        segmentation.save_as(file)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{source}: no DICOM Segmentation can refer to this file: {error}") from error
    return file.getvalue()


def _code(name: str) -> str:
    """A code value, which has room for few characters: the name, or what stands for one that is too long."""
    return name if len(name) <= LONGEST_CODE else hashlib.sha256(name.encode()).hexdigest()[:LONGEST_CODE]


def _reference(source: Path) -> pydicom.Dataset:
    """The tags of the source that a segmentation repeats, with an empty patient."""
    header = pydicom.dcmread(source, stop_before_pixels=True, force=True, specific_tags=[*REFERENCE, *PLACE])
    if "ImageOrientationPatient" not in header and "FrameOfReferenceUID" in header:
        # A radiograph's frame of reference is none: without an orientation it places nothing.
        del header.FrameOfReferenceUID
    for keyword in BLANK:
        setattr(header, keyword, "")
    return header

"""DICOM images: reading, rendering for display, writing (pydicom; the DICOM standard, PS3.3)."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat

from mediax.errors import CorruptImageError, InputError
from mediax.files import file_bytes, replace_file

# The first that is given and positive counts: in the patient (calibrated), at the detector, of a film's scanner.
SPACING_TAGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
# Nothing else is parsed when an image is read, so neither an error nor a log can show what a file says of its patient.
IMAGE_TAGS = (
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData", "ExtendedOffsetTable"),
    *("ExtendedOffsetTableLengths", "FloatPixelData", "DoubleFloatPixelData", *SPACING_TAGS),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept", "PresentationLUTShape"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *(f"{color}PaletteColorLookupTable{what}" for color in ("Red", "Green", "Blue") for what in ("Descriptor", "Data")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
)
Rendering = Literal["window", "full"]
NARROW = 0.25  # of the range of the stored bits: what uses less of it is nearly flat on the whole
UNEQUAL = 0.01  # by how much the spacing of rows and columns differs from which on pixels are not square


@dataclasses.dataclass(frozen=True)
class LookupTable:
    """A Modality or VOI LUT: `entries` u16[N] of `bits` bits for the values `first`, `first` + 1, ..."""

    first: int
    entries: np.ndarray
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Looks up numbers of any shape; what lies outside takes the first or the last entry."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[index.astype(np.int64)]


@dataclasses.dataclass(frozen=True)
class Window:
    """A window of `width` around `centre`, in the units that rescaling or the Modality LUT gives (PS3.3 C.11.2)."""

    centre: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"

    def __post_init__(self):
        if self.function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            raise InputError(f"VOILUTFunction is {self.function!r}; expected LINEAR, LINEAR_EXACT or SIGMOID")
        if not (self.width >= 1 if self.function == "LINEAR" else self.width > 0) or not math.isfinite(self.centre):
            raise InputError(
                f"a {self.function} window of centre {self.centre} and width {self.width}; expected a width of "
                "at least 1, or above 0 for LINEAR_EXACT and SIGMOID"
            )

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Maps numbers of any shape to [0,1]."""
        if self.function == "SIGMOID":
            # Beyond 50 widths the sigmoid is 0 or 1 in any precision, and its exponential overflows.
            return 1 / (1 + np.exp(-4 * np.clip((values - self.centre) / self.width, -50, 50)))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.centre) / self.width + 0.5, 0, 1)
        # LINEAR is defined on whole numbers: a width of w covers w values, whose first is 0 and whose last is 1.
        if self.width == 1:
            return (values > self.centre - 0.5).astype(np.float64)
        return np.clip((values - (self.centre - 0.5)) / (self.width - 1) + 0.5, 0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dicom:
    """One frame of a DICOM file: what is stored, and how to show it.

    `pixels` u8|i8|u16|i16|u32|i32[H,W,C] are the stored values, C 1 or 3 (RGB), `bits` of each in use. `inverted` says
    that high values are dark (MONOCHROME1). `spacing_mm` is (row, column) in millimetres, NaN where unknown, and
    `spacing_tag` the one of SPACING_TAGS that it is from: only PixelSpacing is calibrated to the patient; the
    detector's spacing is larger by the projection's magnification.
    """

    pixels: np.ndarray
    bits: int
    inverted: bool = False
    spacing_mm: tuple[float, float] = (math.nan, math.nan)
    spacing_tag: str | None = None
    rescale: tuple[float, float] = (1.0, 0.0)  # slope, intercept
    modality_lut: LookupTable | None = None
    voi_lut: LookupTable | None = None
    window: Window | None = None
    name: str = "DICOM image"  # what an error calls it

    @property
    def lowest(self) -> int:
        """The smallest value that `bits` bits can store: negative where pixels are signed."""
        return -(2 ** (self.bits - 1)) if self.pixels.dtype.kind == "i" else 0

    @property
    def stretched(self) -> bool:
        """Whether a window is missing so much that "window" shows the image from its smallest value to its largest."""
        if self.bits <= 8 or self.pixels.shape[2] == 3 or self.modality_lut or self.voi_lut or self.window:
            return False
        return 0 < np.ptp(self._extremes()) < NARROW * (2**self.bits - 1)

    @property
    def square(self) -> bool:
        """Whether pixels are as high as wide, as far as the file says."""
        row, column = self.spacing_mm
        return not abs(row - column) > UNEQUAL * max(row, column)

    def unsigned(self) -> np.ndarray:
        """The stored values counted from the lowest possible one, bright high: u8[H,W,C] up to 8 bits, u16 up to 16."""
        if self.bits > 16:
            raise InputError(
                f"{self.name}: {self.bits} bits a value; expected at most 16: render it with to_unit instead"
            )
        values = self.pixels.astype(np.int32) - self.lowest
        if self.inverted:
            values = 2**self.bits - 1 - values
        return values.astype(np.uint8 if self.bits <= 8 else np.uint16)

    def to_unit(self, rendering: Rendering = "window") -> np.ndarray:
        """Renders for display: f32[H,W,C] in [0,1], bright high.

        Args:
          rendering: "window" applies the Modality LUT or rescaling, then the first VOI LUT or else the first window;
            with neither, and for colour, it shows the whole range, as the standard says; but an image of more than 8
            bits that would be nearly flat then, as `stretched` says, from its smallest value to its largest. "full"
            always shows the whole range that the stored bits can hold: nothing is cut, and equal values look equal in
            all files.
        """
        if rendering not in ("window", "full"):
            raise InputError(f'rendering={rendering!r}: expected "window" or "full"')
        if self.bits > 16:
            return self._render(self.pixels.astype(np.float64), rendering)
        # Every step is a function of the value alone: computed for each possible value, then looked up.
        table = self._render(np.arange(2.0**self.bits) + self.lowest, rendering)
        return table[self.pixels.astype(np.int32) - self.lowest]

    def to_uint8(self, rendering: Rendering = "window") -> np.ndarray:
        """As `to_unit`, rounded to u8[H,W,C] in 0..255."""
        return np.rint(self.to_unit(rendering) * 255).astype(np.uint8)

    def _render(self, stored: np.ndarray, rendering: Rendering) -> np.ndarray:
        ends = np.array([self.lowest, self.lowest + 2**self.bits - 1], np.float64)
        if rendering == "full" or self.pixels.shape[2] == 3:
            shown = (stored - ends[0]) / (ends[1] - ends[0])
        else:
            shown = self._voi(self._modality(stored), self._modality(self._extremes() if self.stretched else ends))
        return (1 - shown if self.inverted else shown).astype(np.float32)

    def _modality(self, stored: np.ndarray) -> np.ndarray:
        if self.modality_lut:
            return self.modality_lut(stored)
        slope, intercept = self.rescale
        return stored * slope + intercept

    def _extremes(self) -> np.ndarray:
        return np.array([self.pixels.min(), self.pixels.max()], np.float64)

    def _voi(self, values: np.ndarray, ends: np.ndarray) -> np.ndarray:
        if self.voi_lut:
            return self.voi_lut(values) / (2**self.voi_lut.bits - 1)
        if self.window:
            return self.window(values)
        low, high = (0, 2**self.modality_lut.bits - 1) if self.modality_lut else (ends.min(), ends.max())
        return (values - low) / (high - low)


def read(path: str | Path, *, frame: int | None = None) -> Dicom:
    """Reads one frame of a DICOM file of any transfer syntax that an installed decoder of pydicom reads.

    Args:
      path: the file; its name and suffix do not matter.
      frame: which frame of a multi-frame file, from 0; None expects the file to hold one only.

    Raises:
      CorruptImageError: the file is truncated, damaged, without pixels or no DICOM file.
      InputError: it needs a decoder that is not installed (the message names the package), or holds several frames.
    """
    return read_bytes(file_bytes(path), name=str(path), frame=frame)


def read_bytes(data: bytes, *, name: str, frame: int | None = None) -> Dicom:
    """As `read`, from the bytes of a file; `name` is what an error calls it."""
    try:
        # Old files lack the preamble that marks DICOM: `force` reads them, and nonsense fails below.
        header = pydicom.dcmread(io.BytesIO(data), force=True, specific_tags=list(IMAGE_TAGS))
        if "PixelData" not in header:
            raise ValueError("it holds no pixels of whole numbers: truncated, no image, or no DICOM file")
        uncompressed = {(True, True): ImplicitVRLittleEndian, (False, False): ExplicitVRBigEndian}
        encoding = uncompressed.get(header.original_encoding, ExplicitVRLittleEndian)
        header.file_meta.TransferSyntaxUID = header.file_meta.get("TransferSyntaxUID") or encoding
        _check_decoder(header.file_meta.TransferSyntaxUID)
        return dataclasses.replace(_decode(header, frame), name=name)
    except CorruptImageError:
        raise
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    except Exception as error:  # pydicom and its decoders raise whatever a damaged file makes them stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorruptImageError(f"{name}: cannot decode this DICOM file ({len(data)} bytes): {reason}") from error


def read_tags(path: str | Path, keywords: Sequence[str]) -> dict[str, Any]:
    """Reads the named tags alone, without pixels: {keyword: str, int, float, list of these, or None if absent}.

    Args:
      path: a DICOM file.
      keywords: DICOM keywords, for instance ("SOPInstanceUID", "ViewPosition"). What identifies a patient must not be
        logged.

    Raises:
      CorruptImageError: no DICOM file, or a tag that does not parse.
      InputError: no such keyword.
    """
    _check_keywords(keywords)
    with _naming_tags(path):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(keywords))
        return {keyword: _plain(header.get(keyword)) for keyword in keywords}


def read_spacing(path: str | Path) -> tuple[float, float]:
    """Reads the pixel spacing alone, (row, column) in millimetres, NaN where unknown; errors as of `read_tags`."""
    with _naming_tags(path):
        return _spacing(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(SPACING_TAGS)))[0]


@contextlib.contextmanager
def _naming_tags(path: str | Path) -> Iterator[None]:
    """Turns what pydicom raises on a damaged file into a CorruptImageError that names it."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        # The error's own words could hold the value of a patient's tag.
        raise CorruptImageError(f"{path}: cannot read its DICOM tags ({type(error).__name__})") from None


def write(
    path: str | Path,
    pixels: np.ndarray,
    *,
    bits: int | None = None,
    spacing_mm: tuple[float, float] | None = None,
    photometric: Literal["MONOCHROME2", "MONOCHROME1"] = "MONOCHROME2",
    tags: Mapping[str, Any] | None = None,
    uid_source: str | None = None,
    spacing_tag: str = "PixelSpacing",
) -> None:
    """Writes an uncompressed Secondary Capture image without patient data, whole or not at all.

    Args:
      path: the file.
      pixels: u8[H,W,1], u16[H,W,1] or u8[H,W,3] (RGB), bright high; `Dicom.unsigned` reads them back.
      bits: of each value in use (BitsStored); all of its type's unless given.
      spacing_mm: (row, column) in millimetres, written as `spacing_tag`, which is one of SPACING_TAGS.
      photometric: "MONOCHROME1" stores grey values inverted, as many radiography units do.
      tags: further DICOM keywords and their values, for instance {"Modality": "CR", "ViewPosition": "PA"}.
      uid_source: a text that the study's, series' and image's UIDs are derived from, so that they, and the file's
        bytes, are the same each time; None draws random ones.

    Raises:
      InputError: pixels that such a file cannot hold, an unknown keyword, or a path that cannot be written.
    """
    tags = dict(tags or {})
    if spacing_mm is not None:
        tags[spacing_tag] = [DSfloat(float(value), auto_format=True) for value in spacing_mm]
    replace_file(path, _encode(pixels, bits, photometric, tags, uid_source))


def _check_decoder(transfer_syntax: pydicom.uid.UID) -> None:
    """Raises InputError if nothing that is installed can decode this transfer syntax."""
    try:
        decoder = get_decoder(transfer_syntax)
    except NotImplementedError:
        raise InputError(
            f"the transfer syntax {transfer_syntax.name} is none that pydicom {pydicom.__version__} decodes; "
            "convert the file with another tool first, for instance dcmtk"
        ) from None
    if not decoder.is_available:
        high_throughput = transfer_syntax.startswith("1.2.840.10008.1.2.4.20")
        package = "pylibjpeg pylibjpeg-openjpeg" if high_throughput else "python-gdcm"
        raise InputError(f"no installed decoder reads {transfer_syntax.name}: pip install {package}")


def _decode(header: pydicom.Dataset, frame: int | None) -> Dicom:
    frames = int(header.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise InputError(
            f"it holds {frames} frames, expected one: save one of them as a file of its own first, for instance with "
            f"DCMTK (dcmj2pnm --write-png --frame 1 FILE FRAME.png) or in Python, mediax.dicom.read(FILE, frame=0)"
        )
    stored = pixel_array(header, index=frame or 0, correct_unused_bits=False)
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    photometric = header.PhotometricInterpretation
    spacing_mm, spacing_tag = _spacing(header)
    common = {"spacing_mm": spacing_mm, "spacing_tag": spacing_tag}
    if photometric == "PALETTE COLOR":
        pixels = _apply_palette(stored, header)
        return Dicom(pixels=pixels, bits=8 * pixels.itemsize, **common)
    stored = _used_bits(stored, header)
    if stored.ndim == 3:
        return Dicom(pixels=stored, bits=header.BitsStored, **common)
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"one sample per pixel and PhotometricInterpretation {photometric!r}")
    slope = (*_numbers(header, "RescaleSlope"), 1.0)[0]
    intercept = (*_numbers(header, "RescaleIntercept"), 0.0)[0]
    if not (math.isfinite(slope) and slope and math.isfinite(intercept)):
        raise ValueError(f"RescaleSlope is {slope} and RescaleIntercept {intercept}")
    return Dicom(
        pixels=stored[..., None],
        bits=header.BitsStored,
        # A file that says both is inverted once: they describe the same thing (PS3.3 C.8.11.3).
        inverted=photometric == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE",
        rescale=(slope, intercept),
        modality_lut=_lookup_table(header, "ModalityLUTSequence"),
        voi_lut=_lookup_table(header, "VOILUTSequence"),
        window=_window(header),
        **common,
    )


def _apply_palette(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    if not header.original_encoding[1]:
        raise InputError("a palette in big-endian order, which pydicom misreads: convert the file with another tool")
    return apply_color_lut(stored, header)


def _used_bits(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """Clears the bits beside the stored ones, which may hold overlays or anything, and extends the sign over them."""
    container, bits = 8 * stored.itemsize, header.BitsStored
    transfer_syntax = header.file_meta.TransferSyntaxUID
    # The decoders of the JPEG family deliver each value in the lowest bits, wherever HighBit says that it was.
    moved = transfer_syntax.is_encapsulated and transfer_syntax != RLELossless
    top = bits - 1 if moved else header.get("HighBit", bits - 1)
    if not bits - 1 <= top < container:
        raise ValueError(f"BitsStored is {bits}, HighBit {top} and BitsAllocated {header.BitsAllocated}")
    return (stored << (container - 1 - top)) >> (container - bits)


def _numbers(header: pydicom.Dataset, keyword: str) -> list[float]:
    """The numbers of a tag; none if it is absent or empty."""
    value = header.get(keyword)
    return [] if value is None or value == "" else np.atleast_1d(value).astype(np.float64).tolist()


def _spacing(header: pydicom.Dataset) -> tuple[tuple[float, float], str | None]:
    for tag in SPACING_TAGS:
        values = _numbers(header, tag)
        if len(values) == 2 and all(math.isfinite(value) and value > 0 for value in values):
            return (values[0], values[1]), tag
    return (math.nan, math.nan), None


def _lookup_table(header: pydicom.Dataset, keyword: str) -> LookupTable | None:
    """The first table of a sequence."""
    if not header.get(keyword):
        return None
    item = header.get(keyword)[0]
    count, first, bits = item.LUTDescriptor
    count = count or 2**16  # which does not fit its field
    entries = item.LUTData
    if isinstance(entries, bytes):
        entries = np.frombuffer(entries, "<u2" if header.original_encoding[1] else ">u2")
    entries = np.asarray(entries, np.uint16)[:count]
    if not 8 <= bits <= 16 or len(entries) != count:
        raise ValueError(f"{keyword}: {len(entries)} entries; its descriptor says {count} of {bits} bits")
    return LookupTable(int(first), entries, int(bits))


def _window(header: pydicom.Dataset) -> Window | None:
    """The first window."""
    centre, width = _numbers(header, "WindowCenter"), _numbers(header, "WindowWidth")
    if not (centre and width):
        return None
    return Window(centre[0], width[0], header.get("VOILUTFunction") or "LINEAR")


def _check_keywords(keywords: Sequence[str]) -> None:
    for keyword in keywords:
        if tag_for_keyword(keyword) is None:
            raise InputError(f"{keyword!r} is no DICOM keyword; expected one like PixelSpacing or ViewPosition")


def _plain(value: Any) -> Any:
    """A tag's value in Python's own types."""
    if value is None or isinstance(value, pydicom.Sequence | bytes):
        return value
    if isinstance(value, pydicom.multival.MultiValue):
        return [_plain(each) for each in value]
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    return str(value)


def _encode(pixels, bits, photometric, tags, uid_source) -> bytes:
    bits = bits or 8 * pixels.itemsize
    if (pixels.dtype, pixels.shape[2:]) not in ((np.uint8, (1,)), (np.uint16, (1,)), (np.uint8, (3,))):
        raise InputError(
            f"a DICOM file cannot hold {pixels.dtype}{list(pixels.shape)}: expected uint8 or uint16 of one channel, "
            "or uint8 of three"
        )
    if not 1 <= bits <= 8 * pixels.itemsize or pixels.max(initial=0) >= 2**bits:
        raise InputError(f"{pixels.dtype} values up to {pixels.max(initial=0)} do not fit in {bits} bits")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"photometric={photometric!r}: expected MONOCHROME2 or MONOCHROME1")
    _check_keywords(tags)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        setattr(dataset, keyword, generate_uid(entropy_srcs=[uid_source, keyword] if uid_source is not None else None))
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    # Attributes that the standard wants present, with or without a value.
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientOrientation", "AccessionNumber"),
        *("StudyDate", "StudyTime", "StudyID", "ReferringPhysicianName", "Laterality"),
    ):
        setattr(dataset, keyword, "")
    if pixels.shape[2] == 3:
        dataset.set_pixel_data(pixels, "RGB", bits, generate_instance_uid=False)
    else:
        stored = 2**bits - 1 - pixels[..., 0] if photometric == "MONOCHROME1" else pixels[..., 0]
        dataset.set_pixel_data(stored.astype(pixels.dtype), photometric, bits, generate_instance_uid=False)
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()

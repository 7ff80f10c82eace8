"""Image files and encoded images: reading, writing, fitting to a size, encoding, decoding (Pillow, OpenCV, NumPy)."""

import dataclasses
import functools
import gzip
import io
import math
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mediax import png
from mediax.errors import CorruptImageError, InputError
from mediax.files import file_bytes, replace_file

ASPECTS = ("stretch", "crop", "letterbox")
# What `read` reads; upper and lower case alike.
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".gif", ".bmp", ".ppm", ".pgm", ".ppm.gz", ".pgm.gz"),
    *(".mha", ".mhd", ".dcm", ".dicom"),
)
TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC = 258, 262
JPEG_SIDE = 65_500  # pixels, at most
CACHED = 2**17  # f32 numbers that the second cache of a core holds
METAIMAGE_TYPES = {
    "MET_UCHAR": "u1",
    "MET_CHAR": "i1",
    "MET_USHORT": "u2",
    "MET_SHORT": "i2",
    "MET_UINT": "u4",
    "MET_INT": "i4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}

# What Pillow, OpenCV, zlib and the readers below raise on files that are damaged.
DECODING_ERRORS = (
    *(MemoryError, NotImplementedError),
    Image.DecompressionBombError,
    *(OSError, SyntaxError, ValueError, ArithmeticError, EOFError, LookupError),
    *(struct.error, zlib.error, cv2.error),
)

# Images are handled in parallel by threads and worker processes: OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)
# Four times the largest radiograph: a damaged header may claim any size, and memory would be asked for it.
Image.MAX_IMAGE_PIXELS = 2**26


def read(path: str | Path, *, channels: int | None = None) -> np.ndarray:
    """Decodes a whole image file; its content says of what format it is, or a suffix of DICOM or MetaImage.

    Values are the file's own: nothing is scaled, and 16 bits stay 16 bits, in colour too. Of an animation or a
    multi-page file the first frame is taken. 1-bit images and palettes become the 0..255 that they stand for; PGM and
    PPM are scaled so that their stated maximum is 255 (65535 if it is above 255), as the format says. DICOM gives
    `dicom.Dicom.unsigned` (stored values, bright high, no window); MetaImage must hold integers of 0..65535.

    Args:
      path: PNG, JPEG, TIFF, GIF, BMP, PGM, PPM (also gzipped), MetaImage (.mha, .mhd), DICOM, and whatever else Pillow
        reads.
      channels: 1 (grey, ITU-R 601 luma) or 3 (RGB) converts; None keeps grey as 1 and everything else as 3.

    Returns:
      u8[H,W,C], or u16[H,W,C] for a file of 9 to 16 bits.

    Raises:
      CorruptImageError: the file is truncated, no image, or holds numbers that are no 8- or 16-bit intensities.
      InputError: a DICOM file that needs a decoder which is not installed, or holds several frames.
    """
    return read_bytes(file_bytes(path), name=str(path), channels=channels)


def read_bytes(data: bytes, *, name: str, channels: int | None = None) -> np.ndarray:
    """As `read`, from the bytes of a file; `name` is its path, for its suffix and for errors."""
    try:
        return with_channels(_read(data, Path(name)), channels)
    except DECODING_ERRORS as error:
        raise CorruptImageError(f"{name}: cannot decode this image ({len(data)} bytes): {error}") from error


def left_out(data: bytes) -> list[str]:
    """What `read` leaves out of a picture that it reads, in a few words each: later frames, and its transparency."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            frames = getattr(image, "n_frames", 1)
            opaque = "A" not in image.getbands() or image.getchannel("A").getextrema() == (255, 255)
    except DECODING_ERRORS:  # MetaImage, and what OpenCV alone reads: one frame without transparency
        return []
    notes = []
    if frames > 1:
        notes.append(f"the first of {frames} pages or frames alone is read")
    if not opaque:
        notes.append("transparency is left out: the colours are taken as they are")
    return notes


def write(path: str | Path, pixels: np.ndarray, *, quality: int = 95) -> None:
    """Writes an image file whole or not at all; its suffix decides about the format.

    Args:
      path: .png, .tif (lossless, 8 or 16 bits), .bmp (lossless, 8 bits), .jpg (lossy, 8 bits) or .dcm (`dicom.write`,
        which has more options).
      pixels: u8[H,W,C] or u16[H,W,C], C 1 or 3 (RGB).
      quality: of a JPEG, 1 to 100.

    Raises:
      InputError: a suffix that is none of these, pixels that the format cannot hold, or no place to write to.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".dcm", ".dicom"):
        from mediax import dicom  # importing pydicom and its decoders takes seconds, which few programs need to spend

        return dicom.write(path, pixels)
    depths = {".png": (8, 16), ".tif": (8, 16), ".tiff": (8, 16), ".bmp": (8,), ".jpg": (8,), ".jpeg": (8,)}
    if suffix not in depths:
        raise InputError(
            f"{path}: cannot write {suffix or 'without a suffix'}: expected one of {', '.join(depths)}, .dcm"
        )
    if suffix in (".jpg", ".jpeg") and max(pixels.shape[:2]) > JPEG_SIDE:
        raise InputError(f"{path}: JPEG holds {JPEG_SIDE} pixels a side at most, not {max(pixels.shape[:2])}")
    types = [f"uint{bits}" for bits in depths[suffix]]
    if str(pixels.dtype) not in types or pixels.shape[2:] not in ((1,), (3,)):
        raise InputError(
            f"{path}: cannot hold {pixels.dtype}{list(pixels.shape)}: "
            f"expected {' or '.join(types)} [height, width, 1 or 3]"
        )
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if suffix in (".jpg", ".jpeg") else []
    return replace_file(path, _compress(pixels, suffix, options))


def is_dicom(data: bytes, path: Path) -> bool:
    """Whether a file is DICOM by its content, or by its name if it lacks the preamble as old files do."""
    return data[128:132] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")


def is_dicom_file(path: Path) -> bool:
    """As `is_dicom`, of a file that is not read yet."""
    return is_dicom(file_bytes(path, 132), path)


def may_be_image(path: Path) -> bool:
    """Whether a file's name ends as images do, or has no ending and DICOM's preamble before it, as archives export.

    A number is no ending: such files are often called by a DICOM identifier. A DICOMDIR lists images and is none. Of a
    file that cannot be opened, reading it will say why.
    """
    if path.name.lower().endswith(SUFFIXES):
        return True
    if path.suffix.strip(".0123456789") or path.name.upper() == "DICOMDIR":
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return True


def is_plain(data: bytes, channels: int) -> bool:
    """Whether a file is an 8-bit PNG or JPEG of that many channels, which `decode` reads as it is."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kept = image.format in ("PNG", "JPEG") and image.mode == {1: "L", 3: "RGB"}[channels]
            if not kept or _is_deep(image):
                return False
    except OSError:
        return False
    # Of a slightly damaged file Pillow may make a picture where OpenCV, by which records are decoded, makes none.
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is not None


def read_metaimage(path: str | Path) -> tuple[np.ndarray, tuple[float, float]]:
    """Reads a two-dimensional MetaImage file (.mha; .mhd with its data beside it) in the file's own numbers.

    Follows https://itk.org/Wiki/ITK/MetaIO/Documentation: integers of up to 32 bits and floats, raw or zlib-compressed.

    Returns:
      [H,W,C] of the file's type, and its spacing (row, column) in millimetres, NaN where the file does not say.

    Raises:
      CorruptImageError: the file is truncated, no MetaImage, or more than one slice.
    """
    data = Path(path).read_bytes()
    try:
        return _metaimage(data, Path(path))
    except DECODING_ERRORS as error:
        raise CorruptImageError(f"{path}: cannot decode this MetaImage: {error}") from error


def decode(data: bytes) -> np.ndarray:
    """Decodes the PNG or JPEG bytes of a record into u8 or u16 [H,W,C], C 1 or 3 (RGB)."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise CorruptImageError(f"record with {len(data)} bytes of image: not a PNG or JPEG; build the dataset again")
    return pixels[..., None] if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def encode(pixels: np.ndarray, encoding: str = "png") -> bytes:
    """Encodes u8[H,W,C] or u16[H,W,C] as "png" (lossless) or "jpeg<quality>", for instance "jpeg95" (u8 only)."""
    if encoding == "png":
        return _compress(pixels, ".png", _png_options(pixels))
    return _compress(pixels, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality(encoding)])


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Rounds intensities in [0, 1] to u8."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def to_mask(grey: np.ndarray, name: str) -> np.ndarray:
    """What is brighter than half of the brightest pixel, u8[H,W] of 0 and 1, of grey levels u8|u16[H,W].

    Raises InputError, with `name`, if more than a tenth is neither dark nor bright: a picture in the place of a mask.
    """
    share = grey / max(1, int(grey.max(initial=0)))
    between = ((share > 0.25) & (share < 0.75)).mean()
    if between > 0.1:
        raise InputError(f"{name}: {between:.0%} of it are neither black nor white; expected a mask, not a picture")
    return (share > 0.5).astype(np.uint8)


def jpeg_quality(encoding: str) -> int:
    """The quality that "jpeg<quality>" asks for; InputError for anything else."""
    digits = encoding.removeprefix("jpeg")
    if encoding == digits or not digits.isdecimal() or not 1 <= int(digits) <= 100:
        raise InputError(f'encoding {encoding!r}: expected "png" or "jpeg1" to "jpeg100", for instance "jpeg95"')
    return int(digits)


@dataclasses.dataclass(frozen=True)
class Fit:
    """How an image of some height and width is fitted into a square, so that its masks and boxes can follow.

    `size` is the side of the square, None keeps the image as it is. `aspect` is one of
      "stretch"    both sides become `size`; nothing is lost, proportions change;
      "crop"       the short side becomes `size`, the long side is cut centrally;
      "letterbox"  the long side becomes `size`, the rest is filled with zeros, centrally.
    """

    height: int
    width: int
    size: int | None
    aspect: str = "stretch"

    def scaled(self) -> tuple[int, int]:
        """Height and width after scaling, before cutting or filling."""
        if self.size is None:
            return self.height, self.width
        if self.aspect == "stretch":
            return self.size, self.size
        side = (min if self.aspect == "crop" else max)(self.height, self.width)
        return max(1, round(self.height * self.size / side)), max(1, round(self.width * self.size / side))

    def offset(self) -> tuple[int, int]:
        """Row and column of the scaled image's corner in the square: negative where it is cut."""
        if self.size is None:
            return 0, 0
        height, width = self.scaled()
        return (self.size - height) // 2, (self.size - width) // 2

    def image(self, pixels: np.ndarray, *, nearest: bool = False) -> np.ndarray:
        """Fits [H,W,C] of any numeric type; `nearest` is for label maps, which must not be blended."""
        if self.size is None:
            return pixels
        height, width = self.scaled()
        if pixels.shape[:2] != (height, width):
            pixels = _resized(pixels, height, width, nearest=nearest)
        top, left = self.offset()
        pixels = pixels[max(0, -top) : max(0, -top) + self.size, max(0, -left) : max(0, -left) + self.size]
        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        square = np.zeros((self.size, self.size, pixels.shape[2]), pixels.dtype)
        square[max(0, top) :, max(0, left) :][: pixels.shape[0], : pixels.shape[1]] = pixels
        return square

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Maps f32[N,4] ymin,xmin,ymax,xmax in pixels of the source to the result's [0,1], cut at its border."""
        return np.clip(self.points(np.reshape(boxes, (-1, 2))), 0, 1).reshape(-1, 4)

    def points(self, points: np.ndarray) -> np.ndarray:
        """Maps f32[N,2] y,x in pixels of the source to fractions of the result; outside [0,1] where it was cut away.

        As for boxes, pixel i reaches from i to i + 1: its centre is i + 0.5.
        """
        points = np.asarray(points, np.float64).reshape(-1, 2)
        return ((points * self._scale() + self.offset()) / self._extent()).astype(np.float32)

    def spacing(self, spacing_mm: tuple[float, float]) -> np.ndarray:
        """Maps millimetres per pixel (row, column) of the source to those of the result, f32[2]; NaN stays unknown."""
        return (np.asarray(spacing_mm, np.float64) / self._scale()).astype(np.float32)

    def boxes_back(self, boxes: np.ndarray) -> np.ndarray:
        """Inverse of `boxes`: f32[N,4] in [0,1] of the result to pixels of the source, cut at its border."""
        corners = self.points_back(np.reshape(boxes, (-1, 2)))
        return np.clip(corners, 0, (self.height, self.width)).astype(np.float32).reshape(-1, 4)

    def points_back(self, points: np.ndarray) -> np.ndarray:
        """Inverse of `points`: f32[N,2] y,x as fractions of the result to pixels of the source."""
        points = np.asarray(points, np.float64).reshape(-1, 2)
        return ((points * self._extent() - self.offset()) / self._scale()).astype(np.float32)

    def mask_back(self, mask: np.ndarray) -> np.ndarray:
        """Inverse of `image` for label maps: [size,size,...] of any type to [height,width,...], zero where it was cut.

        Each pixel of the source takes the value that lies at its centre: nothing is blended.
        """
        if mask.shape[:2] != (extent := self._extent()):
            raise ValueError(f"a mask of {mask.shape[0]} x {mask.shape[1]} pixels; expected {extent[0]} x {extent[1]}")
        indices = []
        for side, scale, offset in zip((self.height, self.width), self._scale(), self.offset()):
            indices.append(np.floor((np.arange(side) + 0.5) * scale + offset).astype(int))
        rows, columns = (np.clip(index, 0, side - 1) for index, side in zip(indices, extent))
        source = mask[rows][:, columns]
        source[rows != indices[0]] = 0
        source[:, columns != indices[1]] = 0
        return source

    def _scale(self) -> np.ndarray:
        """Pixels of the result in one of the source: row, column."""
        return np.asarray(self.scaled(), np.float64) / (self.height, self.width)

    def _extent(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.height, self.width) if self.size is None else (self.size, self.size)


def _resized(pixels: np.ndarray, height: int, width: int, *, nearest: bool) -> np.ndarray:
    """Resizes [H,W,C]: means over the area of the new pixels where they are larger, linear interpolation elsewhere."""
    blocks = math.gcd(pixels.shape[0], height), math.gcd(pixels.shape[1], width)
    shrinks = height * width < pixels.shape[0] * pixels.shape[1]
    if nearest:
        interpolation = cv2.INTER_NEAREST_EXACT
    elif not shrinks:
        interpolation = cv2.INTER_LINEAR
    elif _is_blockwise(pixels, height, width, blocks):
        return _block_means(pixels, height, width, blocks)
    else:
        interpolation = cv2.INTER_AREA
    resized = cv2.resize(pixels, (width, height), interpolation=interpolation)
    return resized.reshape(height, width, pixels.shape[2])


def _is_blockwise(pixels: np.ndarray, height: int, width: int, blocks: tuple[int, int]) -> bool:
    """Whether a few rows and columns of a grey image always become a few, but not one: OpenCV is slow at these."""
    whole = pixels.shape[0] % height == 0 and pixels.shape[1] % width == 0
    largest = max(pixels.shape[0] // blocks[0], pixels.shape[1] // blocks[1])
    shrinks = height <= pixels.shape[0] and width <= pixels.shape[1]
    return pixels.dtype in (np.uint8, np.uint16) and pixels.shape[2] == 1 and shrinks and not whole and largest <= 32


def _block_means(pixels: np.ndarray, height: int, width: int, blocks: tuple[int, int]) -> np.ndarray:
    """What cv2.INTER_AREA gives, in half its time: 1024 pixels become 320 as 64 blocks of 16 that become 5 each."""
    rows = _area_weights(pixels.shape[0] // blocks[0], height // blocks[0])
    columns = _area_weights(pixels.shape[1] // blocks[1], width // blocks[1])
    values = pixels.reshape(blocks[0], rows.shape[1], pixels.shape[1])
    means = np.empty((blocks[0], rows.shape[0] * blocks[1], columns.shape[0]), np.float32)
    at_once = max(1, CACHED // values[0].size)
    for first in range(0, blocks[0], at_once):
        few = slice(first, first + at_once)
        narrow = (rows @ values[few].astype(np.float32)).reshape(-1, rows.shape[0] * blocks[1], columns.shape[1])
        np.matmul(narrow, columns.T, out=means[few])
    return np.rint(means, out=means).astype(pixels.dtype).reshape(height, width, 1)


@functools.lru_cache(maxsize=64)
def _area_weights(old: int, new: int) -> np.ndarray:
    """The share f32[new,old] that each of `old` pixels has in each of `new` larger ones."""
    edges, start = np.linspace(0, old, new + 1), np.arange(old)
    overlap = np.minimum(edges[1:, None], start + 1) - np.maximum(edges[:-1, None], start)
    return (np.maximum(overlap, 0) * new / old).astype(np.float32)


def _read(data: bytes, path: Path) -> np.ndarray:
    """Decodes a file's bytes with the reader of its format."""
    if data[:2] == b"\x1f\x8b":
        data, path = gzip.decompress(data), path.with_suffix("")
    if is_dicom(data, path):
        from mediax import dicom  # see `write`

        return dicom.read_bytes(data, name=str(path)).unsigned()
    if path.suffix.lower() in (".mha", ".mhd") or data.startswith(b"ObjectType"):
        return _unsigned(_metaimage(data, path)[0])
    return _read_picture(data)


def _read_picture(data: bytes) -> np.ndarray:
    """Decodes what Pillow reads."""
    with Image.open(io.BytesIO(data)) as image:
        deep = _is_deep(image)
        if image.format == "PNG" and image.mode in ("L", "LA", "RGB", "RGBA") and image.n_frames == 1:
            return _read_png(data, image)
        image.load()  # also where OpenCV decodes below: it would fill in silently what a truncated file lacks
        if image.mode in ("I;16", "I;16B", "I", "F"):
            values = _unsigned(np.asarray(image)[..., None])
            # Pillow inverts 8 bits where zero is white (PhotometricInterpretation 0), and not 16.
            deep_tiff = image.format == "TIFF" and image.mode.startswith("I;16")
            if deep_tiff and image.tag_v2.get(TIFF_PHOTOMETRIC) == 0:
                return 2 ** int(image.tag_v2[TIFF_BITS_PER_SAMPLE][0]) - 1 - values
            return values
        grey = image.mode in ("1", "L", "LA")
        if not deep:
            mode = "L" if grey else "RGB"
            pixels = np.asarray(image if image.mode == mode else image.convert(mode))
            return pixels.reshape(*pixels.shape[:2], len(mode))
    if (pixels := cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)) is None:
        raise ValueError("its pixels have more than 8 bits, in a form that OpenCV does not read")
    return pixels[..., 2::-1] if not grey else pixels.reshape(*pixels.shape[:2], -1)[..., :1]


def _read_png(data: bytes, image: Image.Image) -> np.ndarray:
    """Decodes a PNG file in grey or colour with OpenCV, which is faster than Pillow and refuses any damage."""
    pixels = cv2.imdecode(np.frombuffer(png.unpacked(data), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        image.load()  # Pillow says what is wrong
        raise ValueError("a checksum is wrong, or its last chunk (IEND) is missing: it is damaged or truncated")
    if image.mode in ("L", "LA"):
        return pixels.reshape(*pixels.shape[:2], -1)[..., :1]
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGB)


def _is_deep(image: Image.Image) -> bool:
    """Whether an opened file in colour, or grey with alpha, has more than 8 bits, which Pillow narrows silently."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    if image.format == "TIFF":
        return max(image.tag_v2.get(TIFF_BITS_PER_SAMPLE, (8,))) > 8
    arguments = image.tile[0].args if image.tile else ""
    if (
        image.format == "PPM"
        and not isinstance(arguments, str)
        and isinstance(arguments[-1], int)
        and arguments[-1] > 255
    ):
        raise ValueError("a colour PPM file of more than 8 bits; convert it to PNG or TIFF")
    return image.format == "PNG" and ";16" in str(arguments)


def _unsigned(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to 65535 of any type as u8 or, if the type is wider than 8 bits, u16. Raises ValueError."""
    if values.dtype.kind == "f":
        raise ValueError(
            "its pixels are floating-point numbers, whose range no rule here knows (read_metaimage reads those of a "
            "MetaImage file as they are)"
        )
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError(f"its pixels reach from {values.min()} to {values.max()}; expected 0 to 65535")
    return values.astype(np.uint8 if values.itemsize == 1 else np.uint16)


def with_channels(pixels: np.ndarray, channels: int | None) -> np.ndarray:
    """Makes u8|u16[H,W,1 or 3] grey (1, ITU-R 601 luma) or RGB (3); None keeps it."""
    if channels in (None, pixels.shape[2]):
        return np.ascontiguousarray(pixels)
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    # The luma of ITU-R 601 in Pillow's own fixed-point arithmetic; 16 bits of weights leave room for 16 of intensity.
    luma = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((luma + 0x8000) >> 16).astype(pixels.dtype)[..., None]


def _metaimage(data: bytes, path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """Parses a header of "Key = Value" lines, the last of which says where the data is."""
    fields, start = {}, 0
    while "ElementDataFile" not in fields:
        end = data.find(b"\n", start)
        key, equals, value = data[start:end].decode("latin-1").partition("=")
        if end < 0 or not equals:
            raise ValueError("its header has no line ElementDataFile: it is truncated or no MetaImage")
        fields[key.strip()], start = value.strip(), end + 1
    sides = [int(side) for side in fields["DimSize"].split()]
    if len(sides) < 2 or any(side != 1 for side in sides[2:]):
        raise ValueError(f"DimSize is {fields['DimSize']}; expected an image of two dimensions")
    if fields["ElementType"] not in METAIMAGE_TYPES or fields.get("BinaryData", "True") != "True":
        raise ValueError(
            f"ElementType {fields['ElementType']} that is not one of {', '.join(METAIMAGE_TYPES)} in binary"
        )
    big = "True" in (fields.get("BinaryDataByteOrderMSB"), fields.get("ElementByteOrderMSB"))
    stored = np.dtype(METAIMAGE_TYPES[fields["ElementType"]]).newbyteorder(">" if big else "<")
    beside = fields["ElementDataFile"]
    if Path(beside).name != beside:
        raise ValueError(f"ElementDataFile is {beside!r}; expected LOCAL or the name of a file in the same folder")
    body = data[start:] if beside == "LOCAL" else (path.parent / beside).read_bytes()
    if fields.get("CompressedData") == "True":
        body = zlib.decompress(body)
    shape = (sides[1], sides[0], int(fields.get("ElementNumberOfChannels", 1)))
    if len(body) != (expected := int(np.prod(shape)) * stored.itemsize):
        raise ValueError(f"its data has {len(body)} bytes; its header says {expected}")
    spacing = [float(each) for each in fields.get("ElementSpacing", "nan nan").split()]
    values = np.frombuffer(body, stored).reshape(shape)
    return values.astype(stored.newbyteorder("=")), (spacing[1], spacing[0])


def _png_options(pixels: np.ndarray) -> list[int]:
    """How a record's PNG is packed: differences to the row above, which are faster to decode than cv2's own choice.

    Looking for runs takes time, and pays where many pixels equal the one above: in masks, on black borders.
    """
    alike = np.count_nonzero(pixels[1:] == pixels[:-1])
    packing = cv2.IMWRITE_PNG_STRATEGY_RLE if alike > 0.25 * pixels.size else cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY
    return [cv2.IMWRITE_PNG_STRATEGY, packing, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]


def _compress(pixels: np.ndarray, suffix: str, options: list[int]) -> bytes:
    """Encodes [H,W,1 or 3] in OpenCV's order of channels."""
    if pixels.shape[-1] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, pixels, options)
    if not done:
        raise ValueError(f"cannot encode {pixels.dtype}{list(pixels.shape)} as {suffix}")
    return data.tobytes()

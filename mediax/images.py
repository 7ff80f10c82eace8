"""Image files and encoded images: reading, fitting to a size, encoding, decoding (Pillow, OpenCV, NumPy)."""

import dataclasses
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from mediax.errors import InputError

ASPECTS = ("stretch", "crop", "letterbox")

# Images are handled in parallel by threads and worker processes: OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)
# Radiographs and fundus photographs of some sets exceed Pillow's limit against decompression bombs.
Image.MAX_IMAGE_PIXELS = None


class CorruptImageError(InputError):
    """An image file that exists and cannot be decoded completely."""


def read(path: str | Path, *, channels: int | None = None) -> np.ndarray:
    """Decodes a whole image file.

    Args:
      path: any format that Pillow reads; of an animation or a multi-page file the first frame is taken.
      channels: 1 (grey) or 3 (RGB) converts; None keeps grey as 1 and everything else as 3.

    Returns:
      u8[H,W,C], or u16[H,W,1] for a 16-bit grey file.

    Raises:
      CorruptImageError: the file is truncated or no image.
    """
    return read_bytes(Path(path).read_bytes(), name=str(path), channels=channels)


def read_bytes(data: bytes, *, name: str, channels: int | None = None) -> np.ndarray:
    """As `read`, from the bytes of a file; `name` is what an error calls it."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode in ("I;16", "I;16B", "I"):
                return np.asarray(image).astype(np.uint16)[..., None]
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers, whose range no rule here knows")
            if channels is None:
                channels = 1 if image.mode in ("1", "L", "LA") else 3
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise CorruptImageError(f"{name}: cannot decode this image ({len(data)} bytes): {error}") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def is_plain(data: bytes, channels: int) -> bool:
    """Whether a file is an 8-bit PNG or JPEG of that many channels, which `decode` reads as it is."""
    with Image.open(io.BytesIO(data)) as image:
        return image.format in ("PNG", "JPEG") and image.mode == {1: "L", 3: "RGB"}[channels]


def decode(data: bytes) -> np.ndarray:
    """Decodes the PNG or JPEG bytes of a record into u8 or u16 [H,W,C], C 1 or 3 (RGB)."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise CorruptImageError(f"record with {len(data)} bytes of image: not a PNG or JPEG; build the dataset again")
    return pixels[..., None] if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def encode(pixels: np.ndarray, encoding: str = "png") -> bytes:
    """Encodes u8[H,W,C] or u16[H,W,1] as "png" (lossless) or "jpeg<quality>", for instance "jpeg95" (u8 only)."""
    if encoding == "png":
        suffix, options = ".png", []
    else:
        suffix, options = ".jpg", [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality(encoding)]
    if pixels.shape[-1] == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(suffix, pixels, options)
    if not done:
        raise ValueError(f"cannot encode {pixels.dtype}{list(pixels.shape)} as {encoding}")
    return data.tobytes()


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Rounds intensities in [0, 1] to u8."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


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
            shrinks = height * width < pixels.shape[0] * pixels.shape[1]
            smooth = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT if nearest else smooth)
            pixels = resized.reshape(height, width, pixels.shape[2])
        top, left = self.offset()
        pixels = pixels[max(0, -top) : max(0, -top) + self.size, max(0, -left) : max(0, -left) + self.size]
        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        square = np.zeros((self.size, self.size, pixels.shape[2]), pixels.dtype)
        square[max(0, top) :, max(0, left) :][: pixels.shape[0], : pixels.shape[1]] = pixels
        return square

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Maps f32[N,4] ymin,xmin,ymax,xmax in pixels of the source to the result's [0,1], cut at its border."""
        scaled = np.asarray(self.scaled(), np.float64)
        corners = np.asarray(boxes, np.float64).reshape(-1, 2, 2) * scaled / (self.height, self.width) + self.offset()
        extent = (self.height, self.width) if self.size is None else (self.size, self.size)
        return np.clip(corners / extent, 0.0, 1.0).reshape(-1, 4).astype(np.float32)

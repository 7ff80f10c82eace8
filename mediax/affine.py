"""Affine maps of the plane, and images, boxes and points that they move.

Points are (x, y) in pixels, and pixel i covers [i, i + 1): its centre is i + 0.5 and an image of width W spans [0, W].
So resizing is a pure scale and a flip is x -> W - x. An `Affine` (a, b, c, d, e, f) is the first two rows of a 3x3
matrix: x' = a x + b y + c, y' = d x + e y + f.

Images are sampled bilinearly, and averaged over areas first along every axis that shrinks below `SHRINK`, or at the
nearest pixel. A move along the axes that ends between pixels is a crop, a resize and a padding: faster, and exact.
"""

import math
from typing import NamedTuple

import cv2
import numpy as np

Affine = tuple[float, float, float, float, float, float]
IDENTITY: Affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SHRINK = 0.75  # Below this scale bilinear sampling skips input pixels and aliases.
WHOLE = 1e-3  # Pixels: a border this close to a pixel's is on it (f32 geometry is good to 3e-4 at 4000 pixels).


def compose(second: Affine, first: Affine) -> Affine:
    """The matrix product second @ first: `first` is applied first."""
    a, b, c, d, e, f = second
    p, q, r, s, t, u = first
    return a * p + b * s, a * q + b * t, a * r + b * u + c, d * p + e * s, d * q + e * t, d * r + e * u + f


def invert(matrix: Affine) -> Affine:
    """The inverse of an affine matrix that is not singular (no pipeline makes a singular one)."""
    a, b, c, d, e, f = matrix
    determinant = a * e - b * d
    a, b, d, e = e / determinant, -b / determinant, -d / determinant, a / determinant
    return a, b, -(a * c + b * f), d, e, -(d * c + e * f)


def translation(x: float, y: float) -> Affine:
    """Moves by so many pixels."""
    return 1.0, 0.0, float(x), 0.0, 1.0, float(y)


def scaling(x: float, y: float) -> Affine:
    """Scales about the corner at (0, 0)."""
    return x, 0.0, 0.0, 0.0, y, 0.0


def as_affine(geometry: np.ndarray) -> Affine:
    """The map of a matrix f[3,3]."""
    return tuple(np.asarray(geometry, np.float64)[:2].ravel().tolist())


# ------------------------------------------------------------------------------------- moving points, boxes and spacing


def move_points(points: np.ndarray, matrix: Affine) -> np.ndarray:
    """Moves f64[N,2] (y, x) in pixels."""
    a, b, c, d, e, f = matrix
    y, x = points[..., 0], points[..., 1]
    return np.stack((d * x + e * y + f, a * x + b * y + c), axis=-1)


def move_hull(boxes: np.ndarray, matrix: Affine) -> np.ndarray:
    """Axis-aligned hulls of the moved f64[N,4] boxes in pixels."""
    a, b, _, d, e, _ = matrix
    center = move_points((boxes[..., :2] + boxes[..., 2:]) / 2, matrix)
    half = (boxes[..., 2:] - boxes[..., :2]) / 2
    half = move_points(half, (abs(a), abs(b), 0.0, abs(d), abs(e), 0.0))
    return np.concatenate((center - half, center + half), axis=-1)


def move_keypoints(keypoints: np.ndarray, matrix: Affine, old_size, size) -> np.ndarray:
    """Moves f[N,2] (y, x), fractions of an image of `old_size`, to f32[N,2], fractions of one of `size`."""
    pixels = np.asarray(keypoints, np.float64) * np.array(old_size, np.float64)
    return (move_points(pixels, matrix) / np.array(size, np.float64)).astype(np.float32)


def move_spacing(spacing_mm: np.ndarray, matrix: Affine) -> np.ndarray:
    """The length in mm of one step down and of one step right on the new grid."""
    row, column = (float(value) for value in spacing_mm)
    a, b, _, d, e, _ = invert(matrix)
    return np.array((math.hypot(b * column, e * row), math.hypot(a * column, d * row)), np.float32)


# ----------------------------------------------------------------------------------------------------------- resampling


def resample(
    image: np.ndarray, matrix: Affine, size: tuple[int, int], padding: float | str = 0.0, nearest: bool = False
):
    """Moves the pixels of u8 or f32[H,W,C] by `matrix` onto a grid of `size`; floats stay in [0,1]."""
    channels = image.shape[2]
    if channels == 0:
        return np.zeros((*size, 0), image.dtype)
    if channels > 4:  # More than cv2 takes.
        parts = (image[..., i : i + 4] for i in range(0, channels, 4))
        return np.concatenate([resample(part, matrix, size, padding, nearest) for part in parts], axis=2)
    moved = _resample_along_axes(image, matrix, size, padding, nearest)
    if moved is None:
        moved = _warp(*((image, matrix) if nearest else _shrink(image, matrix)), size, padding, nearest)
    return moved.reshape(*size, channels)


def _warp(image: np.ndarray, matrix: Affine, size: tuple[int, int], padding: float | str, nearest: bool):
    a, b, c, d, e, f = matrix
    # cv2 puts the centre of the first pixel at 0 instead of 0.5.
    matrix = np.array(((a, b, c + (a + b - 1.0) / 2), (d, e, f + (d + e - 1.0) / 2)))
    border, value = _border(padding, image.dtype)
    flags = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return at_most_one(cv2.warpAffine(image, matrix, size[::-1], flags=flags, borderMode=border, borderValue=value))


def at_most_one(fresh: np.ndarray) -> np.ndarray:
    """Clips floats in place, because the weights of an interpolation sum to one only up to rounding."""
    return np.minimum(fresh, 1.0, out=fresh) if fresh.dtype == np.float32 else fresh


def _border(padding: float | str, dtype) -> tuple[int, tuple[float, ...]]:
    if padding == "edge":
        return cv2.BORDER_REPLICATE, (0.0,) * 4
    return cv2.BORDER_CONSTANT, (round(padding * 255) if dtype == np.uint8 else padding,) * 4


def _shrink(image: np.ndarray, matrix: Affine):
    """Averages over areas along axes that `matrix` shrinks, and returns what is left to do from there."""
    height, width = image.shape[:2]
    a, b, _, d, e, _ = matrix
    scale_x, scale_y = math.hypot(a, d), math.hypot(b, e)
    new_width = max(1, round(width * scale_x)) if scale_x < SHRINK else width
    new_height = max(1, round(height * scale_y)) if scale_y < SHRINK else height
    if (new_height, new_width) == (height, width):
        return image, matrix
    image = resize(image, new_height, new_width)
    return image, compose(matrix, scaling(width / new_width, height / new_height))


def resize(image: np.ndarray, height: int, width: int, nearest: bool = False):
    """Stretches u8 or f32[H,W,C] to another size; floats stay in [0,1]."""
    if nearest:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    old_height, old_width = image.shape[:2]
    new_height = height if height < SHRINK * old_height else old_height
    new_width = width if width < SHRINK * old_width else old_width
    channels = image.shape[2]
    if (new_height, new_width) != (old_height, old_width):
        image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_AREA)
    if (new_height, new_width) != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return at_most_one(image).reshape(height, width, channels)


class _AxisPlan(NamedTuple):
    """Along one axis: pixels start..stop of the image, resized to `length` pixels, begin at `offset` of the result."""

    start: int
    stop: int
    length: int
    offset: int


def _plan_axis(length: int, scale: float, offset: float, out_length: int) -> _AxisPlan | None:
    """The plan for x' = scale x + offset, if the result's borders or the image's borders fall between pixels."""
    start, stop = -offset / scale, (out_length - offset) / scale
    if start > -WHOLE and stop < length + WHOLE and _is_whole(start) and _is_whole(stop) and stop - start > 0.5:
        return _AxisPlan(round(start), round(stop), out_length, 0)
    first, last = offset, offset + scale * length
    if _is_whole(first) and _is_whole(last) and last - first > 0.5 and last > 0.5 and first < out_length - 0.5:
        return _AxisPlan(0, length, round(last) - round(first), round(first))
    return None


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) < WHOLE


def _resample_along_axes(image: np.ndarray, matrix: Affine, size: tuple[int, int], padding: float | str, nearest: bool):
    """Flips, crops, resizes and pads without a warp: faster, and exact at borders. None if `matrix` asks for more."""
    scale_x, b, x, d, scale_y, y = matrix
    if b or d:
        return None
    height, width = size
    flip_x, flip_y = scale_x < 0, scale_y < 0
    if flip_x:
        scale_x, x = -scale_x, width - x
    if flip_y:
        scale_y, y = -scale_y, height - y
    rows = _plan_axis(image.shape[0], scale_y, y, height)
    columns = _plan_axis(image.shape[1], scale_x, x, width)
    if rows is None or columns is None:
        return None
    image = image[rows.start : rows.stop, columns.start : columns.stop]
    if image.shape[:2] != (rows.length, columns.length):
        image = resize(image, rows.length, columns.length, nearest)
    if (rows.length, columns.length) != size or rows.offset or columns.offset:
        image = _place(image, rows.offset, columns.offset, size, padding)
    if flip_x or flip_y:
        image = cv2.flip(image, -1 if flip_x and flip_y else int(flip_x))
    return image


def _place(image: np.ndarray, y: int, x: int, size: tuple[int, int], padding: float | str):
    """Puts the image's corner at (y, x) of a canvas of `size`: crops what is outside, pads what is empty."""
    image = image[max(0, -y) : size[0] - y, max(0, -x) : size[1] - x]
    top, left = max(0, y), max(0, x)
    bottom, right = size[0] - top - image.shape[0], size[1] - left - image.shape[1]
    border, value = _border(padding, image.dtype)
    return cv2.copyMakeBorder(image, top, bottom, left, right, border, value=value)

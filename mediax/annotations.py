"""Conversions between the forms that annotations come in: masks, boxes, polygons, contours, instances, readers.

Coordinates are pixels of the image, and pixel i covers [i, i + 1): its centre is i + 0.5. Boxes are f32[N,4] ymin,
xmin, ymax, xmax; points are f[N,2] x, y; masks are u8 of 0 and 1. A shape covers the pixels whose centres lie in it, so
that shapes which share a border share no pixel; what lies outside the image is left out.
"""

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from mediax.errors import InputError

# ---------------------------------------------------------------------------------------------------------------- boxes


def numbers(values: Any, dtype: type) -> np.ndarray:
    """Turns lists of numbers into an array; raises InputError for a truth value, which numpy would take for 1 or 0."""
    if not isinstance(values, np.ndarray):
        for value in np.asarray(values, object).ravel():
            if isinstance(value, bool):
                raise InputError(f"the value {value} where a number belongs; download the file again")
    return np.asarray(values, dtype)


def xyxy_to_boxes(corners: np.ndarray) -> np.ndarray:
    """Reorders f[N,4] xmin, ymin, xmax, ymax to boxes f32[N,4] ymin, xmin, ymax, xmax."""
    return numbers(corners, np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]


def xywh_to_boxes(corners: np.ndarray) -> np.ndarray:
    """Turns f[N,4] xmin, ymin, width, height (COCO) into boxes f32[N,4] ymin, xmin, ymax, xmax."""
    x, y, width, height = numbers(corners, np.float64).reshape(-1, 4).T
    return np.stack((y, x, y + height, x + width), axis=1).astype(np.float32)


def clip_boxes(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips boxes to the image; gives f32[M,4] with an area and bool[N], which of the boxes these are.

    Raises InputError for coordinates that are not finite.
    """
    boxes = _finite(boxes, 4, "boxes")
    clipped = boxes.clip(0, (height, width, height, width)).astype(np.float32)
    kept = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    return clipped[kept], kept


def boxes_to_fractions(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Divides boxes f32[N,4] in pixels by the size of the image: the unit of a batch."""
    return (np.asarray(boxes, np.float64).reshape(-1, 4) / (height, width, height, width)).astype(np.float32)


def boxes_to_masks(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fills boxes f32[N,4]: weak masks u8[H,W,N].

    A box without an area, without the centre of a pixel, or outside the image gives an empty mask. Raises InputError
    for coordinates that are not finite.
    """
    top, left, bottom, right = _finite(boxes, 4, "boxes").T
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[:, None] + 0.5
    rows, columns = (top <= y) & (y < bottom), (left <= x) & (x < right)
    return (rows[:, None] & columns[None]).astype(np.uint8)


def masks_to_boxes(masks: np.ndarray) -> np.ndarray:
    """Finds the bounding boxes f32[K,4] of masks u8[H,W,K]; an empty mask has none: its row is NaN."""
    masks = np.asarray(masks)
    rows, columns = masks.any(axis=1), masks.any(axis=0)  # [H,K], [W,K]
    boxes = np.full((masks.shape[2], 4), np.nan, np.float32)
    for k in np.flatnonzero(rows.any(axis=0)):
        y, x = np.flatnonzero(rows[:, k]), np.flatnonzero(columns[:, k])
        boxes[k] = y[0], x[0], y[-1] + 1, x[-1] + 1
    return boxes


# ------------------------------------------------------------------------------------------------------------ instances


def connected_instances(mask: np.ndarray, *, min_pixels: int = 1) -> np.ndarray:
    """Numbers the connected regions of a mask u8[H,W] from 1 to N, 0 is background; i32[H,W].

    They are in the order of their topmost row, then of their leftmost column. Pixels that touch at a corner are
    connected. Regions of fewer than `min_pixels` become background.
    """
    count, regions, statistics, _ = cv2.connectedComponentsWithStats(_binary(mask), connectivity=8)
    order = np.lexsort((statistics[:, cv2.CC_STAT_LEFT], statistics[:, cv2.CC_STAT_TOP]))
    order = order[(order > 0) & (statistics[order, cv2.CC_STAT_AREA] >= min_pixels)]
    numbers = np.zeros(count, np.int32)
    numbers[order] = np.arange(1, len(order) + 1)
    return numbers[regions]


def instances_to_boxes(instances: np.ndarray) -> np.ndarray:
    """Finds the bounding boxes f32[N,4] of instances i[H,W] numbered 1 to N; the row of an absent number is NaN."""
    y, x = np.nonzero(instances)
    index = np.asarray(instances)[y, x] - 1
    count = int(index.max()) + 1 if len(index) else 0
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    np.minimum.at(low, index, np.stack((y, x), axis=1))
    np.maximum.at(high, index, np.stack((y, x), axis=1) + 1)
    boxes = np.concatenate((low, high), axis=1)
    return np.where(np.isfinite(boxes), boxes, np.nan).astype(np.float32)


# --------------------------------------------------------------------------------------------------- polygons, contours


def polygon_to_mask(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fills the closed polygon through points f[N,2] (x, y) by the even-odd rule; u8[H,W].

    Fewer than three points enclose nothing. Raises InputError for coordinates that are not finite.
    """
    return polygons_to_mask([points], height, width)


def polygons_to_mask(polygons: Iterable[np.ndarray], height: int, width: int) -> np.ndarray:
    """Fills closed polygons f[N,2] (x, y) by one even-odd rule, so that a polygon in another is a hole; u8[H,W].

    For the union of polygons that may overlap, take the maximum of their masks. Raises InputError for coordinates that
    are not finite.
    """
    # A pixel is inside if its row crosses an odd number of edges left of its centre. Each crossing counts at the first
    # centre to its right, and the running sum along the row adds them up (modulo 256: odd stays odd).
    crossings = np.zeros((height, width + 1), np.uint8)
    for points in polygons:
        start = _finite(points, 2, "polygon")
        end = np.roll(start, -1, axis=0)
        upper, lower = _sort_edges(start, end)
        first = np.ceil(upper[:, 1] - 0.5).clip(0, height).astype(np.int64)
        stop = np.ceil(lower[:, 1] - 0.5).clip(0, height).astype(np.int64)
        rows_of_edge = stop - first
        edge = np.repeat(np.arange(len(start)), rows_of_edge)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(rows_of_edge) - rows_of_edge, rows_of_edge) + first[edge]
        fraction = (row + 0.5 - upper[edge, 1]) / (lower[edge, 1] - upper[edge, 1])
        x = upper[edge, 0] + fraction * (lower[edge, 0] - upper[edge, 0])
        column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
        np.add.at(crossings, (row, column), 1)
    return np.cumsum(crossings[:, :width], axis=1, dtype=np.uint8) % 2


def mask_to_polygons(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines a mask u8[H,W] along the borders of its pixels: polygons f32[N,2] (x, y), one for each hole too.

    `polygons_to_mask` gives exactly the mask back. An empty mask has none.
    """
    # cv2 follows the centres of border pixels. In an image of twice the size, the centres of 2i and 2i + 1 lie on
    # either side of the middle of pixel i, and round to its two borders.
    doubled = _binary(mask).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [_corners((contour[:, 0] + 1) // 2).astype(np.float32) for contour in contours]


def contour_to_mask(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fills a contour of pixel indices i[N,2] (x, y), the outermost pixels of a structure and part of it; u8[H,W].

    Unlike the corners of a polygon, the points are pixels: one point is a mask of one pixel. Fractions are rounded to
    the nearest pixel. Raises InputError for coordinates that are not finite.
    """
    mask = np.zeros((height, width), np.uint8)
    pixels = np.rint(_finite(points, 2, "contour")).astype(np.int32)
    if len(pixels):
        cv2.fillPoly(mask, [pixels], 1)
    return mask


def _sort_edges(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper and the lower ends of edges."""
    down = (start[:, 1] <= end[:, 1])[:, None]
    return np.where(down, start, end), np.where(down, end, start)


def _corners(points: np.ndarray) -> np.ndarray:
    """Drops the points of a closed outline that repeat the last one or lie on a straight line."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


# --------------------------------------------------------------------------------------------------------- packed masks


def pack_masks(masks: np.ndarray) -> np.ndarray:
    """Packs masks u8[H,W,K] into one channel, bit k = structure k: u8[H,W,1] for K up to 8, u16[H,W,1] up to 16.

    One greyscale PNG holds all structures of an image then. Raises InputError for another K or values other than 0, 1.
    """
    masks = np.asarray(masks)
    if masks.ndim != 3 or not 1 <= masks.shape[2] <= 16:
        raise InputError(f"masks: shape {masks.shape} found, (height, width, 1 to 16 structures) expected.")
    if masks.dtype not in (np.uint8, bool) or masks.max(initial=0) > 1:
        raise InputError(f"masks: {masks.dtype} up to {masks.max(initial=0)} found, uint8 of 0 and 1 expected.")
    height, width, structures = masks.shape
    pixels = np.zeros((height, width), np.uint8 if structures <= 8 else np.uint16)
    for k in range(structures):
        pixels |= masks[..., k].astype(pixels.dtype) << k
    return pixels[..., None]


def unpack_masks(pixels: np.ndarray, structures: int) -> np.ndarray:
    """Unpacks the `structures` masks u8[H,W,K] of u8 or u16[H,W,1], as `pack_masks` packed them.

    Raises InputError if the pixels do not hold that many structures.
    """
    pixels = np.asarray(pixels)
    expected = np.uint8 if structures <= 8 else np.uint16
    if not 1 <= structures <= 16 or pixels.ndim != 3 or pixels.shape[2] != 1 or pixels.dtype != expected:
        raise InputError(
            f"packed masks: {pixels.dtype}{list(pixels.shape)} found for {structures} structures, "
            "uint8[H,W,1] for 1 to 8 and uint16[H,W,1] for 9 to 16 expected."
        )
    if int(pixels.max(initial=0)) >> structures:
        raise InputError(f"packed masks: a pixel of {pixels.max()} found, more than {structures} structures can make.")
    octets = pixels if expected == np.uint8 else np.ascontiguousarray(pixels, "<u2").view(np.uint8)
    return np.unpackbits(octets, axis=2, count=structures, bitorder="little")


# -------------------------------------------------------------------------------------------------------- field of view


def field_of_view(image: np.ndarray) -> np.ndarray:
    """Finds the lit part u8[H,W] of a fundus photograph u8[H,W,C], for data sets that ship without a mask of it.

    The border is black, the retina is not, however dark it is: the threshold is Otsu's on the logarithm of the
    brightest channel. The largest region is kept and its holes are filled. A photograph without a black border is all
    in view; a black one is not at all.
    """
    brightest = cv2.medianBlur(image, 5).reshape(image.shape).max(axis=2)
    logarithm = np.log2(1.0 + np.arange(256)) * (255 / 8)
    levels = np.rint(logarithm).astype(np.uint8)[brightest]
    _, lit = cv2.threshold(levels, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    if not _is_border(brightest[lit == 0], brightest[lit == 1]):
        return np.full(brightest.shape, brightest.max() > 0, np.uint8)
    return _fill_holes(_largest_region(lit))


def _is_border(dark: np.ndarray, lit: np.ndarray) -> bool:
    """Whether the dark pixels are the border of a photograph rather than a part of the retina."""
    return bool(len(dark) and len(lit)) and np.median(dark) < 0.3 * np.median(lit)


def _largest_region(mask: np.ndarray) -> np.ndarray:
    _, regions, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    return (regions == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(mask), contours, -1, 1, cv2.FILLED)


# -------------------------------------------------------------------------------------------------------------- readers


def fuse_boxes(
    boxes: np.ndarray,
    labels: np.ndarray,
    readers: np.ndarray,
    num_readers: int,
    *,
    scores: np.ndarray | None = None,
    iou: float = 0.55,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fuses the boxes of several readers of one image (weighted box fusion, Solovyev et al. 2021).

    Boxes of one label, taken by falling score, join the fused box that they overlap most, if by more than `iou`, or
    start one; a fused box is the mean of its members, weighted by their scores.

    Args:
      boxes: f32[N,4] with an area; any unit.
      labels: i[N].
      readers: i[N], which reader drew the box, 0 to num_readers - 1.
      num_readers: how many read the image, with those who drew nothing.
      scores: f32[N] in (0,1]; 1 unless given, as of a reader who is sure.
      iou: intersection over union above which two boxes mean the same thing.

    Returns boxes f32[M,4], labels i64[M], scores f32[M], by falling score, and i64[M] how many readers drew each. The
    score is the paper's: the mean score of the members times their number over the number of readers (at most 1); a
    reader who drew one thing twice counts twice in it.

    Raises InputError for boxes without an area or not finite, and for a reader or score out of range.
    """
    boxes, labels, readers = _finite(boxes, 4, "boxes"), np.asarray(labels), np.asarray(readers)
    scores = np.ones(len(boxes)) if scores is None else np.asarray(scores, np.float64)
    _check_readers(boxes, labels, readers, num_readers, scores)
    fused: list[tuple[np.ndarray, int, float, int]] = []
    for label in np.unique(labels):
        for members in _cluster(boxes, scores, np.flatnonzero(labels == label), iou):
            share = min(num_readers, len(members)) / num_readers
            score, agreeing = scores[members].mean() * share, len(set(readers[members].tolist()))
            fused.append((_mean_box(boxes, scores, members), label, score, agreeing))
    fused.sort(key=lambda box: -box[2])
    found_boxes, found_labels, found_scores, agreed = zip(*fused) if fused else ((), (), (), ())
    return (
        np.array(found_boxes, np.float32).reshape(-1, 4),
        np.array(found_labels, np.int64),
        np.array(found_scores, np.float32),
        np.array(agreed, np.int64),
    )


def _check_readers(boxes, labels, readers, num_readers: int, scores) -> None:
    if not len(boxes) == len(labels) == len(readers) == len(scores):
        raise InputError(
            f"readings: {len(boxes)} boxes, {len(labels)} labels, {len(readers)} readers, {len(scores)} scores found, "
            "one of each for every box expected."
        )
    if not (boxes[:, 2:] > boxes[:, :2]).all():
        raise InputError("boxes: one without an area found; ymin < ymax and xmin < xmax expected.")
    if len(readers) and not (readers.min() >= 0 and readers.max() < num_readers):
        raise InputError(f"readers: {readers.min()} to {readers.max()} found, 0 to {num_readers - 1} expected.")
    if not ((scores > 0) & (scores <= 1)).all():
        raise InputError(f"scores: {scores.min()} to {scores.max()} found, more than 0 and at most 1 expected.")


def _cluster(boxes: np.ndarray, scores: np.ndarray, candidates: np.ndarray, iou: float) -> list[list[int]]:
    """Groups the indices of boxes that mean the same thing."""
    clusters: list[list[int]] = []
    means: list[np.ndarray] = []
    for candidate in candidates[np.argsort(-scores[candidates], kind="stable")]:
        overlaps = [box_iou(mean, boxes[candidate]) for mean in means]
        best = int(np.argmax(overlaps)) if overlaps else -1
        if best >= 0 and overlaps[best] > iou:
            clusters[best].append(candidate)
            means[best] = _mean_box(boxes, scores, clusters[best])
        else:
            clusters.append([candidate])
            means.append(boxes[candidate])
    return clusters


def _mean_box(boxes: np.ndarray, scores: np.ndarray, members: list[int]) -> np.ndarray:
    return np.average(boxes[members], axis=0, weights=scores[members])


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU f64[...] in [0,1] of boxes f[...,4] that are broadcast; 0 where both lack extent, NaN where one is NaN."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = sides.clip(0).prod(axis=-1)
    union = sum((box[..., 2:] - box[..., :2]).clip(0).prod(axis=-1) for box in (first, second)) - shared
    return np.divide(shared, union, out=np.where(np.isnan(union), np.nan, 0.0), where=union > 0)


# ---------------------------------------------------------------------------------------------------------- small parts


def _finite(values: np.ndarray, columns: int, name: str) -> np.ndarray:
    """Checks f[N,columns]; an empty list has none."""
    values = np.asarray(values, np.float64)
    if values.size == 0:
        return np.zeros((0, columns))
    if values.ndim != 2 or values.shape[1] != columns:
        raise InputError(f"{name}: shape {values.shape} found, (number, {columns}) expected.")
    if not np.isfinite(values).all():
        raise InputError(f"{name}: coordinates that are not finite found; numbers in pixels expected.")
    return values


def _binary(mask: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(mask) != 0).astype(np.uint8)

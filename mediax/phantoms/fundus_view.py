"""From the retina to the picture: a sphere seen by a camera, so that two views differ by its true curvature.

The retina's map is in millimetres along the sphere from the fovea: x grows to the NASAL side, y grows downwards. A
right eye is photographed with its nasal side on the image's right; a left eye is its mirror image.
"""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

EYE_RADIUS = 11.5  # mm, of the retina's sphere
MM_PER_DEGREE = 0.29  # on the retina, per degree of the field of view
SHIFT_BITS = 4  # cv2 takes vertices in 1/16 pixel
FINE = 768  # pixels on the shorter side at which outlines are drawn, at least, before they are averaged down
SHARP = 1600  # pixels on the shorter side that need no averaging


def gaze(right: float, down: float, roll: float) -> np.ndarray:
    """The rotation f64[3,3] that brings the map's point (right, down) in mm to the middle, rolled by radians."""
    length = float(np.hypot(right, down))
    angle = length / EYE_RADIUS
    axis = np.array([down, -right, 0]) / max(length, 1e-12)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    cosine, sine = np.cos(roll), np.sin(roll)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) @ turn


def plane_radius(field_of_view_degrees: float) -> float:
    """Half the field of view on the camera's plane, in mm."""
    angle = field_of_view_degrees / 2 * MM_PER_DEGREE / EYE_RADIUS
    return float(2 * EYE_RADIUS * np.tan(angle / 2))


@dataclass(frozen=True)
class View:
    """A camera's pixel grid over the retina: stereographic, so that small shapes keep their angles.

    `turn` f64[3,3] rotates the eye before the camera, `scale` is in pixels per mm in the middle, `centre` is the
    middle (x, y) in pixel edges: the pixel in column j spans [j, j + 1). `mirror` is -1 for a left eye.
    """

    shape: tuple[int, int]
    turn: np.ndarray
    scale: float
    centre: tuple[float, float]
    mirror: int = 1

    def pixels(self, points) -> np.ndarray:
        """Retina (x, y) f[...,2] in mm -> (x, y) in pixel edges."""
        points = np.asarray(points, float) * (self.mirror, 1)
        length = np.hypot(points[..., 0], points[..., 1])
        angle = length / EYE_RADIUS
        flat = points * (np.sinc(angle / np.pi) / EYE_RADIUS)[..., None]
        seen = flat @ self.turn[:, :2].T + np.cos(angle)[..., None] * self.turn[:, 2]
        return seen[..., :2] * (2 * EYE_RADIUS * self.scale / (1 + seen[..., 2:])) + self.centre

    def retina(self, points) -> np.ndarray:
        """The inverse of `pixels`: (x, y) f[...,2] in pixel edges -> retina (x, y) in mm."""
        plane = (np.asarray(points) - np.asarray(self.centre, points.dtype)) / (2 * EYE_RADIUS * self.scale)
        x, y = plane[..., 0], plane[..., 1]
        square = x**2 + y**2
        turn = self.turn.astype(points.dtype)
        # The rotation's inverse of (2x, 2y, 1 - square) / (1 + square).
        flat = [(2 * (turn[0, i] * x + turn[1, i] * y) + turn[2, i] * (1 - square)) / (1 + square) for i in range(3)]
        length = np.sqrt(flat[0] ** 2 + flat[1] ** 2)
        stretch = EYE_RADIUS * np.arctan2(length, flat[2]) / np.maximum(length, 1e-7)
        return np.stack([flat[0] * stretch * self.mirror, flat[1] * stretch], axis=-1)

    @cached_property
    def grid(self) -> np.ndarray:
        """Retina (x, y) f32[H,W,2] in mm of every pixel's middle."""
        rows, columns = np.indices(self.shape, dtype=np.float32)
        return self.retina(np.stack([columns, rows], axis=-1) + np.float32(0.5))

    @cached_property
    def finer(self) -> int:
        """How many times finer than the pixels outlines are drawn."""
        shorter = min(self.shape)
        return 1 if shorter > SHARP else int(np.clip(np.ceil(FINE / shorter), 2, 4))

    def local_scale(self, points) -> np.ndarray:
        """Pixels per mm f64[...] around retina points f[...,2]."""
        away = ((self.pixels(points) - self.centre) / (2 * EYE_RADIUS * self.scale)) ** 2
        return self.scale * (1 + away.sum(axis=-1))

    def project(self, polygons) -> list[np.ndarray]:
        """Polygons f[N,2] in mm, any N, -> f64[N,2] in pixel edges."""
        if not polygons:
            return []
        return np.split(self.pixels(np.concatenate(polygons)), np.cumsum([len(polygon) for polygon in polygons[:-1]]))

    def cover(self, outlines, margin: float = 0.0) -> tuple[tuple[slice, slice], np.ndarray]:
        """Coverage of the union of closed polygons f[N,2] in PIXEL edges, on the part of the image that they touch.

        Returns its (rows, columns), `margin` mm wider on every side, and f32[h,w].
        """
        corners = np.concatenate(outlines)
        border, limit = 1 + margin * self.scale, (self.shape[1], self.shape[0])
        low = np.clip(np.floor(corners.min(axis=0) - border), 0, limit).astype(int)
        high = np.clip(np.ceil(corners.max(axis=0) + border), 0, limit).astype(int)
        window = slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))
        width, height = (high - low).tolist()
        if not width or not height:
            return window, np.zeros((height, width), np.float32)
        fine = np.zeros((height * self.finer, width * self.finer), np.uint8)
        for outline in outlines:
            _fill(fine, _vertices(outline - low, self.finer), 255)
        return window, _averaged(fine, (width, height))

    def blur(self, image: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur f32[H,W] or f32[H,W,C] with `sigma` in mm."""
        pixels = sigma * self.scale
        if pixels < 0.2:
            return image
        width = 2 * int(np.ceil(2.5 * pixels)) + 1
        return cv2.GaussianBlur(image, (width, width), pixels, borderType=cv2.BORDER_REPLICATE)


class Lines:
    """Lines of varying width in a view, ready to be drawn several times.

    `lines` are f[N,2] in mm, `widths` f[N] in mm for each of them.
    """

    def __init__(self, view: View, lines, widths):
        self.view = view
        self.bounds = np.cumsum([0, *map(len, lines)])
        points = np.concatenate(lines)
        self.points, self.widths = view.pixels(points), np.concatenate(widths) * view.local_scale(points)
        self.mean_widths = np.add.reduceat(np.concatenate(widths), self.bounds[:-1]) / np.diff(self.bounds)  # mm
        following, preceding = np.arange(1, len(points) + 1), np.arange(-1, len(points) - 1)
        following[self.bounds[1:] - 1] -= 1
        preceding[self.bounds[:-1]] += 1
        along = self.points[following] - self.points[preceding]
        self.across = along[:, ::-1] * (-1, 1) / (np.hypot(*along.T)[:, None] + 1e-9)

    def draw(self, values, layers=((1.0, 1.0),), least: float = 0.0) -> np.ndarray:
        """Coverage f32[H,W] by lines with `values` in [0, 1], one for each (0: none); earlier ones lie over later.

        Each of the `layers` (share of the width, share of the value) lies over the ones before; lines are at least
        `least` pixels wide.
        """
        finer = self.view.finer
        levels = np.rint(np.broadcast_to(values, len(self.bounds) - 1) * 255)
        spans = list(zip(self.bounds[:-1].tolist(), self.bounds[1:].tolist()))[::-1]
        fine = np.zeros((self.view.shape[0] * finer, self.view.shape[1] * finer), np.uint8)
        for share, strength in layers:
            # cv2 fills the pixels under an outline too: half a fine pixel on either side.
            reach = np.maximum(np.maximum(self.widths * share, least) - 1 / finer, 0) / 2
            offset = self.across * reach[:, None]
            one, other = (_vertices(self.points + sign * offset, finer) for sign in (1, -1))
            for (start, end), level in zip(spans, (levels[::-1] * strength).tolist()):
                if level:
                    _fill(fine, np.concatenate([one[start:end], other[start:end][::-1]]), level)
        return _averaged(fine, self.view.shape[::-1])


def tinted(layer: np.ndarray, colour=(1, 1, 1)) -> np.ndarray:
    """f32[H,W,3]: f32[H,W] times a colour f[3]; numpy itself is slow where the last axis is as short as this."""
    return cv2.merge([layer * np.float32(share) for share in colour])


def _fill(fine: np.ndarray, vertices: np.ndarray, value: int) -> None:
    cv2.fillPoly(fine, [vertices], value, cv2.LINE_8, SHIFT_BITS)


def _vertices(outline: np.ndarray, finer: int) -> np.ndarray:
    """Pixel edges f[N,2] -> what cv2 takes, which counts from pixel centres."""
    return np.rint((outline * finer - 0.5) * (1 << SHIFT_BITS)).astype(np.int32)


def _averaged(fine: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    coarse = fine if fine.shape[::-1] == size else cv2.resize(fine, size, interpolation=cv2.INTER_AREA)
    return coarse * np.float32(1 / 255)

"""Draws shapes given in millimetres of the patient on a grid of pixels."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import cv2
import numpy as np
from scipy.interpolate import CubicSpline

FRACTION_BITS = 4  # cv2 takes vertices in 1/16 pixel
CV2_MARGIN = 0.6  # pixels by which cv2's smooth-edged polygons are too large on every side


@dataclass(frozen=True)
class Canvas:
    """A pixel grid over the patient.

    `matrix` f64[2,3] maps (x, y) in mm to pixel edges: the pixel in column j spans [j, j + 1). `spacing` is in mm per
    pixel.
    """

    shape: tuple[int, int]
    matrix: np.ndarray
    spacing: float

    def pixels(self, points) -> np.ndarray:
        """Patient (x, y) f[...,2] in mm -> (x, y) in pixel edges."""
        return np.asarray(points) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def fill(self, *polygons) -> np.ndarray:
        """Coverage f32[H,W] of the union of closed polygons f[N,2] in mm."""
        canvas = np.zeros(self.shape, np.uint8)
        # One call per polygon: within a call cv2 leaves overlaps empty.
        for vertices in self._vertices(polygons, inset=CV2_MARGIN):
            cv2.fillPoly(canvas, [vertices], 255, cv2.LINE_AA, FRACTION_BITS)
        return canvas * np.float32(1 / 255)

    def stroke(self, lines, width: float) -> np.ndarray:
        """Coverage f32[H,W] of open lines f[N,2] drawn `width` mm wide."""
        canvas = np.zeros(self.shape, np.uint8)
        self.stroke_into(canvas, lines, width)
        return canvas * np.float32(1 / 255)

    def stroke_into(self, canvas: np.ndarray, lines, width: float, strength: float = 1.0) -> None:
        """Draws lines into u8[H,W]; a line thinner than a pixel is one pixel wide and fainter in proportion."""
        exact = width / self.spacing
        thickness = max(1, round(exact))
        value = round(255 * strength * min(1.0, exact / thickness))
        cv2.polylines(canvas, self._vertices(lines), False, value, thickness, cv2.LINE_AA, FRACTION_BITS)

    def blur(self, image: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur with `sigma` in mm."""
        pixels = sigma / self.spacing
        if pixels < 0.2:
            return image
        width = 2 * int(np.ceil(2.5 * pixels)) + 1  # cv2's own choice for f32 is much wider and no better here
        return cv2.GaussianBlur(image, (width, width), pixels, borderType=cv2.BORDER_REPLICATE)

    def distance(self, mask: np.ndarray) -> np.ndarray:
        """Distance f32[H,W] in mm to the nearest pixel outside of a bool mask."""
        return cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3) * np.float32(self.spacing)

    def map_to(self, other: "Canvas") -> np.ndarray:
        """f64[2,3] from this canvas's (x, y) to another's, counted from pixel centres as cv2 does."""
        to_other = _square(other.matrix) @ np.linalg.inv(_square(self.matrix))
        to_other[:2, 2] += to_other[:2, :2] @ (0.5, 0.5) - 0.5
        return to_other[:2]

    def resample(self, image: np.ndarray, to_source: np.ndarray) -> np.ndarray:
        """An image f32 on the canvas that `map_to` leads to, interpolated linearly; its edge value outside of it."""
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, to_source, self.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)

    def _vertices(self, shapes, inset: float = 0.0) -> list[np.ndarray]:
        """Shapes f[N,2] in mm, any N, -> i32[N,2] as cv2 takes them; closed ones can shrink by `inset` pixels."""
        if not len(shapes):
            return []
        lengths = tuple(map(len, shapes))
        # A row of x and a row of y: numpy is slow on axes as short as a point.
        points = self.matrix[:, :2] @ np.concatenate(shapes).T + self.matrix[:, 2:]
        if inset:
            points -= inset * _outward(points, lengths)
        vertices = np.empty((points.shape[1], 2), np.int32)
        vertices[:] = np.rint((points - 0.5) * (1 << FRACTION_BITS)).T
        return [vertices[start:end] for start, end in pairwise(accumulate(lengths, initial=0))]


def _outward(points: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """Unit normals f64[2,N] of closed polygons of `lengths` points f64[2,N] that lie one after another."""
    starts, preceding, following = _neighbours(lengths)
    (x, y), ahead = points, points[:, following]
    area = np.add.reduceat(x * ahead[1] - ahead[0] * y, starts)
    across = (ahead - points[:, preceding])[::-1]
    across[1] *= -1
    return across * (np.repeat(np.sign(area), lengths) / (np.sqrt((across**2).sum(axis=0)) + 1e-9))


@lru_cache(maxsize=1024)
def _neighbours(lengths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where closed polygons start that lie one after another, and each point's neighbours before and behind it."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    following, preceding = np.arange(1, ends[-1] + 1), np.arange(-1, ends[-1] - 1)
    following[ends - 1], preceding[starts] = starts, ends - 1
    return starts, preceding, following


def _square(matrix: np.ndarray) -> np.ndarray:
    return np.vstack([matrix, [0, 0, 1]])


def upright_canvas(x: tuple[float, float], y: tuple[float, float], spacing: float) -> Canvas:
    """The canvas over the patient's rectangle x, y (mm), not rotated."""
    shape = (int(np.ceil((y[1] - y[0]) / spacing)), int(np.ceil((x[1] - x[0]) / spacing)))
    return Canvas(shape, np.array([[1, 0, -x[0]], [0, 1, -y[0]]]) / spacing, spacing)


def posed_canvas(shape: tuple[int, int], field: float, centre: tuple[float, float], rotation: float) -> Canvas:
    """The detector's canvas: its shorter side covers `field` mm around `centre`, the patient turned by radians."""
    spacing = field / min(shape)
    turn = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]]) / spacing
    middle = np.array([shape[1], shape[0]]) / 2
    return Canvas(shape, np.column_stack([turn, middle - turn @ centre]), spacing)


@lru_cache(maxsize=256)
def _spline_weights(knots: int, samples: int, closed: bool) -> np.ndarray:
    values = np.eye(knots)
    if closed:
        values = np.vstack([values, values[:1]])
    spline = CubicSpline(np.arange(len(values)), values, bc_type="periodic" if closed else "natural")
    return spline(np.linspace(0, len(values) - 1, samples))


def smooth(points, closed: bool = False, samples: int | None = None) -> np.ndarray:
    """The cubic spline through points f[K,2], sampled as f64[N,2]."""
    points = np.asarray(points, float)
    return _spline_weights(len(points), samples or 8 * len(points), closed) @ points


def ribbon(centre: np.ndarray, half_width) -> np.ndarray:
    """The closed polygon f64[...,2N,2] around a line f[...,N,2]; `half_width` in mm broadcasts to f[...,N]."""
    along = np.empty_like(centre)
    along[..., 1:-1, :] = centre[..., 2:, :] - centre[..., :-2, :]
    along[..., 0, :] = centre[..., 1, :] - centre[..., 0, :]
    along[..., -1, :] = centre[..., -1, :] - centre[..., -2, :]
    reach = half_width / np.sqrt((along**2).sum(axis=-1))
    across = np.stack([-along[..., 1] * reach, along[..., 0] * reach], axis=-1)
    return np.concatenate([centre + across, (centre - across)[..., ::-1, :]], axis=-2)


def edges(ribbons: np.ndarray) -> np.ndarray:
    """The two long sides f64[2M,N,2] of ribbons f64[M,2N,2], without their ends."""
    return ribbons.reshape(-1, ribbons.shape[-2] // 2, 2)


def ellipse(centre, radii, angle: float = 0.0, samples: int = 40) -> np.ndarray:
    """Closed ellipses f64[...,N,2]: centres (x, y) f[...,2], radii along and across the angle in radians."""
    cosine, sine = _turn(samples)
    x, y = radii[0] * cosine, radii[1] * sine
    outline = np.column_stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)])
    return np.asarray(centre, float)[..., None, :] + outline


@lru_cache(maxsize=16)
def _turn(samples: int) -> tuple[np.ndarray, np.ndarray]:
    angle = np.linspace(0, 2 * np.pi, samples, endpoint=False)
    return np.cos(angle), np.sin(angle)

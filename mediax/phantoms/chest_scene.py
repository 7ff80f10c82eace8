"""What every view of the chest is drawn with: a fine and a coarse canvas, and lesions."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from mediax.phantoms.canvas import Canvas, upright_canvas

VISIBLE = 0.3  # share of a lesion's strongest opacity that still counts as its extent


@dataclass(frozen=True)
class Lesion:
    """One instance of a finding: `opacity` f32[H,W] is added to the chest's; `mask` bool[H,W] is its visible extent.

    `vessels` f32[H,W] or a number scales the lung's own markings: 0 without lung tissue, above 1 in congestion.
    """

    finding: str
    mask: np.ndarray
    opacity: np.ndarray | float = 0.0
    vessels: np.ndarray | float = 1.0


def visible_extent(ramp: np.ndarray) -> np.ndarray:
    """Where a fuzzy lesion f32[H,W] ends: at a share of its strongest opacity."""
    return ramp > VISIBLE * ramp.max()


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a bool mask."""
    count, parts = cv2.connectedComponents(mask.view(np.uint8))
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax() if count > 2 else mask


def rounded(canvas: Canvas, cover: np.ndarray, depth: float) -> np.ndarray:
    """Thickness 0..1 of a round body with outline `cover` f32[H,W]: it grows from the edge over about `depth` mm."""
    return (2 * canvas.blur(cover, depth) - 1).clip(0) ** 0.6


class Scene:
    """Smooth maps are drawn on `frame`, a coarse canvas that moves with the patient, so they are the same at every
    resolution; sharp outlines are drawn on `canvas`, the detector.

    `size` and `scale` (across, along) compare the patient with the adult that the template describes.
    """

    def __init__(self, size: float, scale: np.ndarray, canvas: Canvas):
        # Python numbers: numpy's own float64 would make every image f64.
        self.size, self.scale, self.canvas = float(size), tuple(scale.tolist()), canvas
        self.frame = upright_canvas((-250 * size, 250 * size), (-150 * size, 400 * size), 3.2 * size)

    def project(self, image: np.ndarray) -> np.ndarray:
        """A map on the frame -> on the canvas."""
        return self.canvas.resample(image, self._to_frame)

    @cached_property
    def _to_frame(self) -> np.ndarray:
        return self.canvas.map_to(self.frame)

    @cached_property
    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Patient x and y in mm of the frame's pixels, f32 that broadcast to its shape."""
        height, width = self.frame.shape
        offset = self.frame.pixels((0, 0))
        x = (np.arange(width) + 0.5 - offset[0]) * self.frame.spacing
        y = (np.arange(height) + 0.5 - offset[1]) * self.frame.spacing
        return x.astype(np.float32)[None, :], y.astype(np.float32)[:, None]

    def noise(self, rng: np.random.Generator, cell: float) -> np.ndarray:
        """Smooth noise on the frame, about one standard deviation strong; `cell` is its grain in template mm."""
        cells = (int(550 / cell) + 2, int(500 / cell) + 2)
        coarse = rng.standard_normal(cells, dtype=np.float32)
        return 1.3 * cv2.resize(coarse, self.frame.shape[::-1], interpolation=cv2.INTER_CUBIC)

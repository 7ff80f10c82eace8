"""Other annotators of the same photograph: they move borders, and miss what is thin."""

from collections.abc import Mapping
from statistics import NormalDist

import cv2
import numpy as np

from mediax.errors import InputError

VESSELS = ("Vessels", "Arteries", "Veins")
# Structure -> how far a reader's outline strays, in radii of the structure.
STRAY = {"Optic Disc": 0.035, "Optic Cup": 0.09}
MISSED = 1 - NormalDist().cdf(0.4)  # share of the thin vessels, by the second reader


def second_reader(masks: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Another reader's masks bool[H,W] of the same structures.

    Thin vessels are missed in part and vessels' borders move by about a pixel, the same way for arteries and veins;
    the contours of disc and cup move by some per cent of their radius, the cup's more, and the cup stays in the disc.
    The field of view and the fovea stay as they are.
    """
    read = dict(masks)
    if "Vessels" in masks:
        seen = _read_vessels(masks["Vessels"], 1.0, np.random.default_rng([seed, 1]))
        read |= _shared_out(seen, {name: masks[name] for name in VESSELS if name in masks})
    for number, name in enumerate(STRAY):
        if name in masks:
            radius = np.sqrt(masks[name].sum() / np.pi)
            rng = np.random.default_rng([seed, 2 + number])
            read[name] = _redrawn(masks[name], STRAY[name] * radius, max(0.8 * radius, 2), rng)
    if "Optic Cup" in read and "Optic Disc" in read:
        read["Optic Cup"] = read["Optic Cup"] & read["Optic Disc"]
    field = masks.get("Field of View", True)  # nobody draws outside of it
    return {name: mask & field for name, mask in read.items()}


def first_reader(masks: Mapping[str, np.ndarray], seed: int, error: float) -> dict[str, np.ndarray]:
    """The masks bool[H,W] of the reader whose vessels a dataset takes for the truth: the exact ones at `error` 0.

    `error` from 0 to 1 is how far this reader errs, as a share of how far the second one does, and apart from it: how
    much of the thin vessels is missed, and how far borders move. Raises InputError for another number.
    """
    if not 0 <= error <= 1:
        raise InputError(f"first_reader_error: found {error!r}, expected a number from 0 to 1.")
    if error == 0:
        return dict(masks)
    seen = _read_vessels(masks["Vessels"], error, np.random.default_rng([seed, 0]))
    seen &= masks.get("Field of View", True)
    return dict(masks) | _shared_out(seen, {name: masks[name] for name in VESSELS if name in masks})


def soft_map(mask: np.ndarray, name: str, seed: int, experts: int = 4) -> np.ndarray:
    """The share f32[H,W] of `experts` readers who mark a pixel of the structure `name`; `mask` is the truth."""
    readings = [second_reader({name: mask}, seed * experts + number)[name] for number in range(experts)]
    return np.mean(readings, axis=0, dtype=np.float32)


def _read_vessels(mask: np.ndarray, error: float, rng: np.random.Generator) -> np.ndarray:
    """Misses thin vessels in part, finds no others, and moves the borders by a pixel; less so by a smaller `error`."""
    scale = min(mask.shape) / 565
    solid = mask.astype(np.uint8)
    width = max(3, round(3.4 * scale))
    wide = cv2.morphologyEx(solid, cv2.MORPH_OPEN, np.ones((width, width), np.uint8))
    thin = mask & (cv2.dilate(wide, np.ones((3, 3), np.uint8)) == 0)
    inattention = _smooth_noise(mask.shape, 48 * scale, rng)
    seen = mask & ~(thin & (inattention > NormalDist().inv_cdf(1 - error * MISSED)))
    _, pieces, sizes, _ = cv2.connectedComponentsWithStats(seen.astype(np.uint8))
    seen &= sizes[pieces, cv2.CC_STAT_AREA] > 50 * scale  # nobody draws a speck
    return _redrawn(seen, 0.42 * error * max(scale, 1), 25 * scale, rng)


def _redrawn(mask: np.ndarray, stray: float, grain: float, rng: np.random.Generator) -> np.ndarray:
    """The outline moved by a smooth distance of `stray` pixels, one standard deviation; `grain` is its scale."""
    solid = mask.astype(np.uint8)
    inside, outside = (cv2.distanceTransform(part, cv2.DIST_L2, 5) for part in (solid, 1 - solid))
    distance = np.where(mask, inside - 0.5, 0.5 - outside)  # to the border, which lies between pixels
    return distance + stray * _smooth_noise(mask.shape, grain, rng) > 0


def _smooth_noise(shape: tuple[int, int], grain: float, rng: np.random.Generator) -> np.ndarray:
    """f32[H,W], about one standard deviation strong."""
    coarse = rng.standard_normal([int(length / max(grain, 2)) + 3 for length in shape], dtype=np.float32)
    return 1.3 * cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _shared_out(seen: np.ndarray, masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What was seen, as arteries and as veins: each pixel belongs to the kind that is nearest."""
    kinds = [name for name in masks if name != "Vessels"]
    distance = [cv2.distanceTransform((~masks[name]).astype(np.uint8), cv2.DIST_L2, 3) for name in kinds]
    # Where they cross, both have distance 0.
    return {"Vessels": seen} | {name: seen & (far <= np.min(distance, axis=0)) for name, far in zip(kinds, distance)}

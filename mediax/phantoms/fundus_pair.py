"""Two photographs of one eye under a known transform, as registration needs them."""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from mediax.errors import InputError
from mediax.phantoms.fundus_anatomy import Eye, Person
from mediax.phantoms.fundus_camera import Camera, Exposure
from mediax.phantoms.fundus_photograph import (
    Fundus,
    checked_difficulty,
    chosen_camera,
    chosen_eye,
    lesions_in_sight,
    sample_exposure,
    shape_of,
    take,
)
from mediax.phantoms.fundus_view import MM_PER_DEGREE, View

CONTROL_POINTS = 10


@dataclass(frozen=True)
class Transform:
    """Maps places in one photograph to the same places of the retina in another: exact, and smooth everywhere."""

    source: View
    target: View

    def __call__(self, points) -> np.ndarray:
        """(x, y) f[...,2] in pixel edges of the source -> (x, y) f64[...,2] in those of the target."""
        return self.target.pixels(self.source.retina(np.asarray(points, float)))

    @property
    def inverse(self) -> "Transform":
        return Transform(self.target, self.source)

    def resample(self, image: np.ndarray) -> np.ndarray:
        """An image of the TARGET, resampled on the source's pixels; 0 where the target shows nothing."""
        place = self.target.pixels(self.source.grid).astype(np.float32) - np.float32(0.5)
        return cv2.remap(image, place, None, cv2.INTER_LINEAR)


@dataclass(frozen=True)
class Pair:
    """Two photographs of one eye, and where each place of one lies in the other."""

    reference: Fundus
    moving: Fundus
    category: str
    reference_points: np.ndarray  # f64[10,2], (x, y) on vessels that both show, mostly forks
    moving_points: np.ndarray  # f64[10,2], the same places in the moving photograph
    transform: Transform  # from the moving photograph to the reference
    overlap: float  # share of the reference's field that the moving one shows


@dataclass(frozen=True)
class _Motion:
    shift: tuple[float, float]  # least and most, in diameters of the field
    rotation: float  # degrees, one standard deviation
    zoom: float  # one standard deviation
    changed: bool


# As FIRE sorts its pairs (Hernandez-Matas et al., 2017): much overlap, little overlap, anatomical change.
CATEGORIES = {
    "S": _Motion((0.025, 0.13), 2.5, 0.012, False),
    "P": _Motion((0.28, 0.4), 4.0, 0.02, False),
    "A": _Motion((0.025, 0.13), 3.0, 0.015, True),
}


def pair(
    seed: int,
    *,
    category: str = "S",
    person: Person | None = None,
    side: str | None = None,
    grade: int | None = None,
    size: int | tuple[int, int] = 256,
    camera: Camera | None = None,
    field_of_view_degrees: float | None = None,
    difficulty: float = 0.0,
    shift_mm: float | None = None,
    rotation_degrees: float | None = None,
    zoom: float | None = None,
) -> Pair:
    """Two photographs of one eye by one camera, the gaze turned, rolled and zoomed in between.

    `category` is "S" (overlap above 75 %), "P" (below) or "A" (above, and lesions have come between the visits; `grade`
    is that of the second). `shift_mm` on the retina, `rotation_degrees` and `zoom` prescribe the motion; the reference
    stays the same. The rest is as in `photograph`. Raises InputError on an unknown category, or if the two views show
    hardly a vessel in common.
    """
    if category not in CATEGORIES:
        raise InputError(f"category: found {category!r}, expected one of {list(CATEGORIES)}.")
    motion, rng, shape = CATEGORIES[category], np.random.default_rng([seed, 5]), shape_of(size)
    camera = chosen_camera(camera, field_of_view_degrees, "macula", shape, np.random.default_rng([seed, 1]))
    eye = chosen_eye(seed, person, side, None)
    first = sample_exposure(eye, camera, rng)
    second = _moved(first, sample_exposure(eye, camera, rng), camera, motion, rng)
    drawn_zoom, direction = float(np.exp(np.clip(rng.normal(0, motion.zoom), -0.06, 0.06))), rng.uniform(0, 2 * np.pi)
    if shift_mm is not None:
        second = replace(second, middle=_shifted(first.middle, shift_mm, direction))
    if rotation_degrees is not None:
        second = replace(second, roll=first.roll + float(np.radians(rotation_degrees)))
    if grade is None:
        grade = int(rng.integers(2, 4)) if motion.changed else 0
    late = lesions_in_sight(seed, grade, camera, first)
    early = tuple(lesion for lesion in late if rng.random() < 0.4) if motion.changed else late
    noise = [np.random.default_rng([seed, stream]) for stream in (6, 7)]
    difficulty = checked_difficulty(difficulty)
    reference = take(eye, early, camera, first, shape, difficulty, noise[0])
    moving = take(eye, late, camera, second, shape, difficulty, noise[1], zoom=drawn_zoom if zoom is None else zoom)
    return _paired(reference, moving, category, eye)


def _paired(reference: Fundus, moving: Fundus, category: str, eye: Eye) -> Pair:
    transform = Transform(moving.view, reference.view)
    places = _spread(_landmarks_of_both(reference, moving, eye), CONTROL_POINTS)
    field = reference.masks["Field of View"]
    seen = transform.inverse.resample(moving.masks["Field of View"].astype(np.float32)) > 0.5
    overlap = float((seen & field).sum() / field.sum())
    points = reference.view.pixels(places), moving.view.pixels(places)
    return Pair(reference, moving, category, *points, transform, overlap)


def _landmarks_of_both(reference: Fundus, moving: Fundus, eye: Eye) -> np.ndarray:
    """Forks of vessels that both photographs show, f64[N,2] in mm; where they are too few, other places on vessels."""
    branches = [vessel for vessel in eye.vessels if vessel.order > 0]
    forks = np.array([vessel.points[0] for vessel in branches if vessel.widths[0] > 0.03])
    forks = forks[np.hypot(*(forks - eye.disc_centre).T) > 1.0]  # what leaves the disc forks from nothing in sight
    forks = forks[_is_shown(reference, forks) & _is_shown(moving, forks)]
    if len(forks) >= CONTROL_POINTS:
        return forks
    others = np.concatenate([vessel.points for vessel in eye.vessels])
    return np.concatenate([forks, others[_is_shown(reference, others) & _is_shown(moving, others)]])


def _is_shown(photo: Fundus, places: np.ndarray) -> np.ndarray:
    """bool[N]: which places (x, y) of the retina, in mm, lie in a photograph's field."""
    field = photo.masks["Field of View"]
    x, y = np.floor(photo.view.pixels(places)).astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < field.shape[1]) & (y < field.shape[0])
    return inside & field[np.where(inside, y, 0), np.where(inside, x, 0)]


def _spread(points: np.ndarray, count: int) -> np.ndarray:
    """`count` of the points f[N,2], each the farthest from those before it."""
    if len(points) < count:
        raise InputError(
            f"pair: found {len(points)} places on vessels in both views, expected {count}; shift the gaze by less."
        )
    chosen = [int(np.argmin(points[:, 0]))]
    distance = np.full(len(points), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.hypot(*(points - points[chosen[-1]]).T))
        chosen.append(int(np.argmax(distance)))
    return points[chosen]


def _moved(first: Exposure, second: Exposure, camera: Camera, motion: _Motion, rng: np.random.Generator) -> Exposure:
    """The second exposure, its gaze turned from the first one's."""
    diameter = camera.field_of_view_degrees * MM_PER_DEGREE
    middle = _shifted(first.middle, diameter * rng.uniform(*motion.shift), rng.uniform(0, 2 * np.pi))
    turn = np.clip(rng.normal(0, motion.rotation), -12, 12)
    return replace(second, middle=middle, roll=first.roll + float(np.radians(turn)))


def _shifted(middle: tuple[float, float], shift_mm: float, direction: float) -> tuple[float, float]:
    return float(middle[0] + shift_mm * np.cos(direction)), float(middle[1] + shift_mm * np.sin(direction))

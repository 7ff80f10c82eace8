"""One photograph of one eye, and everything that is true about it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from mediax.errors import InputError
from mediax.phantoms.fundus_anatomy import SIDES, Eye, Person, sample_person
from mediax.phantoms.fundus_camera import Camera, Exposure, develop, field_scale, sample_camera
from mediax.phantoms.fundus_lesions import Lesion, grade_of, sample_lesions
from mediax.phantoms.fundus_scene import Scene
from mediax.phantoms.fundus_view import MM_PER_DEGREE, View, gaze


@dataclass(frozen=True)
class Fundus:
    """One photograph and everything that is true about it.

    Positions are in pixel edges: pixel (row, column) spans [row, row + 1) x [column, column + 1). A right eye has its
    optic disc on the image's right.
    """

    image: np.ndarray  # u8[H,W,3]
    masks: dict[str, np.ndarray]  # "Vessels", "Arteries", "Veins", "Optic Disc", "Optic Cup", "Fovea", "Field of View"
    lesion_masks: dict[str, np.ndarray]  # kind in sight -> bool[H,W]
    boxes: tuple[tuple[str, int, int, int, int], ...]  # (kind, ymin, xmin, ymax, xmax), half-open, one per lesion
    landmarks: dict[str, tuple[float, float]]  # "Fovea", "Optic Disc" -> (y, x), out of the image if they are
    grade: int  # of diabetic retinopathy, 0 to 4: what `grade_of` makes of the lesions
    lesions: tuple[Lesion, ...]
    cup_to_disc: float  # vertical ratio of the diameters
    person: Person
    side: str  # "left" or "right"
    camera: Camera
    view: View
    spacing_mm: tuple[float, float]  # (row, column) on the retina, in the middle of the field


def photograph(
    seed: int,
    *,
    person: Person | None = None,
    side: str | None = None,
    grade: int | None = None,
    lesions: Iterable[Lesion] | None = None,
    cup_to_disc: float | None = None,
    size: int | tuple[int, int] = 256,
    camera: Camera | None = None,
    field_of_view_degrees: float | None = None,
    aim: str | None = None,
    difficulty: float = 0.0,
) -> Fundus:
    """A photograph of one eye.

    The seed fixes how the image is taken and where the lesions of `grade` (0 to 4; default 0) lie; `person` (default:
    the seed's) and `side` ("left" or "right") fix the eye. `lesions` prescribes them one by one instead. `cup_to_disc`
    is the vertical ratio (0.1 to 0.95), `size` the side or (height, width) in pixels, `camera` the camera (default: the
    seed's), `field_of_view_degrees` and `aim` ("macula" or "disc") override the camera's own. `difficulty` from 0 to 1
    takes contrast from thin vessels and adds noise, blur and uneven light. Raises InputError on values out of range.
    """
    rng = np.random.default_rng([seed, 1])
    shape = shape_of(size)
    camera = chosen_camera(camera, field_of_view_degrees, aim, shape, rng)
    eye = chosen_eye(seed, person, side, cup_to_disc)
    exposure = sample_exposure(eye, camera, rng)
    if lesions is None:
        lesions = lesions_in_sight(seed, grade, camera, exposure)
    elif grade is not None and grade != grade_of(lesions := tuple(lesions)):
        raise InputError(f"grade: found {grade} beside lesions of grade {grade_of(lesions)}; leave `grade` out.")
    return take(
        eye, tuple(lesions), camera, exposure, shape, checked_difficulty(difficulty), np.random.default_rng([seed, 2])
    )


def shape_of(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a side or of itself."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def checked_difficulty(difficulty: float) -> float:
    if not 0 <= difficulty <= 1:
        raise InputError(f"difficulty: found {difficulty!r}, expected a number from 0 to 1.")
    return float(difficulty)


def chosen_camera(camera: Camera | None, degrees: float | None, aim: str | None, shape, rng) -> Camera:
    """The camera, or else a sampled one, with what overrides its own setting."""
    camera = camera or sample_camera(rng, shape)
    camera = camera if degrees is None else replace(camera, field_of_view_degrees=degrees)
    return camera if aim is None else replace(camera, aim=aim)


def chosen_eye(seed: int, person: Person | None, side: str | None, cup_to_disc: float | None) -> Eye:
    """The eye that the arguments prescribe; the seed draws what they leave open."""
    if side is None:
        side = SIDES[int(np.random.default_rng([seed, 3]).integers(2))]
    if side not in SIDES:
        raise InputError(f"side: found {side!r}, expected one of {list(SIDES)}.")
    if cup_to_disc is not None and not 0.1 <= cup_to_disc <= 0.95:
        raise InputError(f"cup_to_disc: found {cup_to_disc!r}, expected a ratio from 0.1 to 0.95.")
    return Eye(person or sample_person(seed), side, cup_to_disc)


def sample_exposure(eye: Eye, camera: Camera, rng: np.random.Generator) -> Exposure:
    """Where the camera points, and in what light, on one occasion."""
    target = eye.disc_centre if camera.aim == "disc" else np.array([1.1, 0.0])
    middle = target + np.clip(rng.normal(0, 0.3, 2), -0.7, 0.7)
    spot = rng.normal(0, 0.6, 2)
    return Exposure(
        middle=tuple(middle.tolist()),
        roll=float(np.radians(np.clip(rng.normal(0, 2.5), -7, 7))),
        bright_spot=tuple(spot.tolist()),
        haze=float(rng.uniform(0, 0.05)),
    )


def lesions_in_sight(seed: int, grade: int | None, camera: Camera, exposure: Exposure) -> tuple[Lesion, ...]:
    """Lesions of a grade that the photograph shows, so that the image bears out its grade."""
    reach = 0.5 * camera.field_of_view_degrees * MM_PER_DEGREE * camera.cut
    rng = np.random.default_rng([seed, 4])
    return sample_lesions(rng, 0 if grade is None else grade, centre=exposure.middle, radius=0.88 * reach)


def take(
    eye: Eye,
    lesions: tuple[Lesion, ...],
    camera: Camera,
    exposure: Exposure,
    shape: tuple[int, int],
    difficulty: float,
    rng: np.random.Generator,
    zoom: float = 1.0,
) -> Fundus:
    """The photograph itself; `rng` draws its noise."""
    mirror = 1 if eye.side == "right" else -1
    turn = gaze(mirror * exposure.middle[0], exposure.middle[1], exposure.roll)
    middle = (shape[1] / 2, shape[0] / 2)
    view = View(shape, turn, zoom * field_scale(camera, shape), middle, mirror)
    scene = Scene(eye, lesions, view, difficulty)
    image, field = develop(scene.light(), view, camera, exposure, difficulty, rng)
    boxes, lesion_masks = _marked(scene, field)
    places = {"Fovea": np.zeros(2), "Optic Disc": eye.disc_centre}
    return Fundus(
        image=image,
        masks={name: mask & field for name, mask in scene.masks().items()} | {"Field of View": field},
        lesion_masks=lesion_masks,
        boxes=boxes,
        landmarks={name: tuple(view.pixels(place)[::-1].tolist()) for name, place in places.items()},
        grade=grade_of(lesions),
        lesions=lesions,
        cup_to_disc=eye.cup_to_disc,
        person=eye.person,
        side=eye.side,
        camera=camera,
        view=view,
        spacing_mm=(1 / view.scale, 1 / view.scale),
    )


def _marked(scene: Scene, field: np.ndarray) -> tuple[tuple[tuple[str, int, int, int, int], ...], dict]:
    """The boxes of the lesions, one each, and their masks by kind, as far as the field shows them."""
    boxes, masks = [], {}
    for lesion in scene.lesions:
        (rows, columns), mask = scene.lesion_mask(lesion)
        mask = mask & field[rows, columns]
        if not mask.any():
            continue
        top, left = rows.start or 0, columns.start or 0
        y, x = top + np.flatnonzero(mask.any(axis=1)), left + np.flatnonzero(mask.any(axis=0))
        boxes.append((lesion.kind, int(y[0]), int(x[0]), int(y[-1]) + 1, int(x[-1]) + 1))
        masks.setdefault(lesion.kind, np.zeros(field.shape, bool))[rows, columns] |= mask
    return tuple(boxes), masks

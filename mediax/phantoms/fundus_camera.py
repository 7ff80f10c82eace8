"""How the photograph is taken: field, light, colour, sharpness, noise, compression."""

from dataclasses import dataclass

import cv2
import numpy as np

from mediax.errors import InputError
from mediax.phantoms.fundus_view import View, plane_radius, tinted

AIMS = ("macula", "disc")


@dataclass(frozen=True)
class Camera:
    """A fundus camera and its setting.

    `fill` is the field's diameter over the image's shorter side, `cut` the height of the field over its diameter (1 is
    round), `notch` the angle in degrees of the small mark on the rim (0 is right, 90 is up; None is none); `gains` f[3]
    scale red, green and blue; `falloff` is the share of light lost at the rim; `blur` is in mm on the retina; `noise`
    is in grey levels of 255; `quality` is JPEG's, None for none. Raises InputError on an impossible field.
    """

    field_of_view_degrees: float = 45.0
    aim: str = "macula"
    fill: float = 0.96
    cut: float = 1.0
    notch: float | None = None
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    contrast: float = 1.0
    falloff: float = 0.25
    blur: float = 0.012
    noise: float = 2.0
    quality: int | None = 92

    def __post_init__(self):
        if not 10 <= self.field_of_view_degrees <= 75:
            raise InputError(f"field_of_view_degrees: found {self.field_of_view_degrees!r}, expected 10 to 75.")
        if self.aim not in AIMS:
            raise InputError(f"aim: found {self.aim!r}, expected one of {list(AIMS)}.")
        if not 0.3 <= self.cut <= 1 or not 0.3 <= self.fill <= 3:
            raise InputError(f"fill {self.fill!r} and cut {self.cut!r}: expected 0.3 to 3 and 0.3 to 1.")


def sample_camera(rng: np.random.Generator, shape: tuple[int, int]) -> Camera:
    """A camera out of a screening programme's mixture; wide images cut the field's top and bottom more often."""
    warmth = rng.normal(0, 1)
    wide = shape[1] > 1.12 * shape[0]
    is_cut = rng.random() < (0.6 if wide else 0.15)
    cut = float(rng.uniform(0.8, 0.92)) if is_cut else 1.0
    return Camera(
        field_of_view_degrees=45.0,
        fill=float(rng.uniform(0.94, 0.985) / (cut if wide else 1.0)),
        cut=cut,
        notch=float(rng.choice([40, 45, 0, 135])) if rng.random() < 0.4 else None,
        gains=(
            float(1 + 0.03 * warmth),
            float(1 + rng.normal(0, 0.09)),
            float(1 + rng.normal(0, 0.15) - 0.06 * warmth),
        ),
        contrast=float(rng.uniform(0.9, 1.12)),
        falloff=float(rng.uniform(0.12, 0.4)),
        blur=float(rng.uniform(0.008, 0.018)),
        noise=float(rng.uniform(1, 3)),
        quality=int(rng.integers(82, 97)),
    )


@dataclass(frozen=True)
class Exposure:
    """One photograph's own chance: where the field's middle (x, y) in mm is, the roll, and uneven light."""

    middle: tuple[float, float]
    roll: float  # radians
    bright_spot: tuple[float, float]  # in radii of the field
    haze: float


def field_radius(camera: Camera, shape: tuple[int, int]) -> float:
    """The field's radius in pixels."""
    return 0.5 * camera.fill * min(shape)


def field_scale(camera: Camera, shape: tuple[int, int]) -> float:
    """Pixels per mm in the middle of the field."""
    return field_radius(camera, shape) / plane_radius(camera.field_of_view_degrees)


def field_of_view(camera: Camera, shape: tuple[int, int]) -> np.ndarray:
    """bool[H,W]: the circle, cut at its top and bottom, with the notch on its rim."""
    radius = field_radius(camera, shape)
    x, y = _offsets(shape)
    mask = (x**2 + y**2 < radius**2) & (np.abs(y) < camera.cut * radius)
    if camera.notch is not None:
        turn = np.radians(camera.notch)
        along, across = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
        mask |= (along > 0) & (along < 1.045 * radius) & (np.abs(across) < 0.042 * radius)
    return mask


def develop(
    light: np.ndarray,
    view: View,
    camera: Camera,
    exposure: Exposure,
    difficulty: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Reflected light f32[H,W,3] -> photograph u8[H,W,3] and the field bool[H,W].

    `difficulty` adds noise, blur and uneven light.
    """
    field = field_of_view(camera, view.shape)
    light = view.blur(light, camera.blur + 0.022 * difficulty)
    light = light * tinted(_illumination(view.shape, camera, exposure, difficulty))
    haze = np.array([0.75, 0.5, 0.32], np.float32) * (exposure.haze + 0.12 * difficulty)
    light = cv2.transform(light, np.column_stack([np.diag(1 - haze), haze * 0.75]))
    light = cv2.transform((light / 0.5) ** np.float32(camera.contrast), 0.5 * np.diag(camera.gains))
    light[~field] = 0.008
    grain = rng.standard_normal(light.shape, dtype=np.float32)
    if min(view.shape) > 400:  # the mosaic filter of the sensor makes neighbours alike
        grain = 1.5 * cv2.GaussianBlur(grain, (3, 3), 0.7)
    strength = np.float32((camera.noise + 7 * difficulty) / 255)
    light += grain * tinted(strength * (0.35 + 0.65 * field.astype(np.float32)))
    image = np.rint(np.clip(light, 0, 1) * 255).astype(np.uint8)
    return (image if camera.quality is None else _compressed(image, camera.quality)), field


def _illumination(shape, camera: Camera, exposure: Exposure, difficulty: float) -> np.ndarray:
    """f32[H,W]: brightest near the bright spot, darker towards the rim."""
    x, y = (axis / field_radius(camera, shape) for axis in _offsets(shape))
    reach = x**2 + y**2
    spot_x, spot_y = exposure.bright_spot
    slope = (0.06 + 0.3 * difficulty) * (x * spot_x + y * spot_y)
    rim = np.float32(camera.falloff) * reach * (0.55 + 0.45 * reach)
    return np.maximum(1.04 + slope - rim, 0.12).astype(np.float32)


def _offsets(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x and y from the image's middle in pixels, f32 that broadcast to the shape."""
    x = np.arange(shape[1], dtype=np.float32) + 0.5 - shape[1] / 2
    y = np.arange(shape[0], dtype=np.float32) + 0.5 - shape[0] / 2
    return x[None, :], y[:, None]


def _compressed(image: np.ndarray, quality: int) -> np.ndarray:
    """What JPEG leaves of it."""
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])

"""Findings on a frontal radiograph, each drawn the way a radiologist describes it, with its exact extent.

Every function takes the scene, its own random generator and a severity (0 barely visible, 1 obvious) and returns one
`Lesion` per instance.
"""

from collections.abc import Callable

import numpy as np

from mediax.phantoms.canvas import ribbon, smooth
from mediax.phantoms.chest_anatomy import SIDES
from mediax.phantoms.chest_devices import support_devices
from mediax.phantoms.chest_frontal import FrontalScene
from mediax.phantoms.chest_scene import Lesion, Scene, largest_part, visible_extent


def cardiomegaly(scene: FrontalScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """The enlarged heart itself: the anatomy was already drawn with it."""
    return [Lesion("Cardiomegaly", scene.heart_cover > 0.5)]


def enlarged_heart_ratio(normal: float, rng: np.random.Generator, severity: float) -> float:
    """The cardiothoracic ratio of a heart that was `normal` before it grew; above 0.5 in any case."""
    return max(0.54 + 0.11 * severity + rng.uniform(0, 0.02), normal + 0.09 + 0.04 * severity)


def pleural_effusion(scene: FrontalScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """Fluid behind a meniscus that climbs along the wall; in a lying patient sometimes a veil over the hemithorax."""
    sides = _choose_sides(rng, both=0.35)
    veil = scene.anatomy.portable and rng.random() < 0.35
    lesions = []
    for side in sides:
        amount = np.clip(severity + rng.normal(0, 0.1), 0.05, 1)
        ramp = _veil(scene, side, amount) if veil else _meniscus(scene, side, amount)
        ramp = scene.project(ramp)
        hidden = 1 - 0.6 * scene.silhouette
        field = scene.field[side]
        lesions.append(
            Lesion(
                "Pleural Effusion",
                # The heart can cut off a corner of the lung: no reader would stretch the box to there.
                largest_part(visible_extent(ramp * (field > 0.5))),
                opacity=ramp * scene.air * hidden,
                vessels=1 - 0.7 * ramp,
            )
        )
    return lesions


def _meniscus(scene: FrontalScene, side: str, amount: float) -> np.ndarray:
    """Share of the lung's air that fluid replaces, on the frame."""
    anatomy, (x, y) = scene.anatomy, scene.grid
    wall, bottom = anatomy.costophrenic_angle(side)
    across = np.clip(x / wall, 0, 1.1)
    height = (30 + 110 * amount) * anatomy.scale[1]
    surface = bottom - height * (0.55 + 0.45 * across**2.5)
    fluid = 1 - np.exp(-(y - surface).clip(0) / (13 * scene.size))
    return (fluid * (x * SIDES[side] > 0)).astype(np.float32)


def _veil(scene: FrontalScene, side: str, amount: float) -> np.ndarray:
    x, y = scene.grid
    level = y / scene.scale[1]
    ramp = (0.28 + 0.35 * amount) * np.clip((level - 70 + 50 * amount) / 130, 0, 1)
    return (ramp * (x * SIDES[side] > 0)).astype(np.float32)


def consolidation(scene: Scene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """One or two fluffy opacities the size of a segment or a lobe, some cut off sharply by a fissure."""
    lesions = []
    taken = np.zeros(scene.frame.shape, bool)
    for _ in range(1 + (rng.random() < 0.3)):
        radius = (25 + 26 * severity + rng.uniform(0, 10)) * scene.size
        side, centre = _place(scene, rng, margin=0.35 * radius, avoid=taken)
        density = _fluffy(scene, rng, centre, radius, side)
        taken |= density > 0.05
        ramp = scene.project(density) * scene.field[side]
        strength = 0.5 + 0.3 * severity
        lesions.append(
            Lesion("Consolidation", visible_extent(ramp), opacity=strength * ramp * scene.air, vessels=1 - 0.8 * ramp)
        )
    return lesions


def _fluffy(scene: Scene, rng: np.random.Generator, centre, radius: float, side: str) -> np.ndarray:
    """A cloud 0..1 on the frame."""
    (x, y), size = scene.grid, scene.size
    flat, turn, fissure = rng.uniform(0.7, 1.25), rng.uniform(0, np.pi), rng.random()
    right, down = x - centre[0], y - centre[1]
    along, across = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
    reach = np.hypot(along / flat, across * flat) / radius
    ragged = 0.22 * scene.noise(rng, 15) + 0.12 * scene.noise(rng, 6)
    cloud = 1.0 - reach + ragged * (1.7 - reach).clip(0, 1)
    density = np.clip(cloud / 0.6, 0, 1)
    # The minor fissure lies level in the right lung: a lobe's consolidation stops there.
    level = 128 * scene.scale[1]
    if side == "Right" and fissure < 0.5 and abs(centre[1] - level) < radius:
        above = 1 if centre[1] < level else -1
        density = density * np.clip(above * (level - y) / (2 * size) + 0.5, 0, 1)
    return scene.frame.blur(density.astype(np.float32), 2 * size)


def volume_loss(rng: np.random.Generator, severity: float) -> tuple[float, float]:
    """How far a collapsed lower lobe lifts the (left, right) dome in mm; (0, 0) when the atelectasis is plate-like.

    It decides which of the two `atelectasis` will draw, so it is called before the anatomy is drawn.
    """
    lift = 5 + 9 * severity
    return ((0.0, 0.0), (0.0, 0.0), (lift, 0.0), (0.0, lift))[int(rng.integers(4))]


def atelectasis(scene: FrontalScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """A collapsed lower lobe (a wedge from the hilum to the dome), or one to three plates at the bases."""
    collapsed = [side for side, lift in zip(SIDES, scene.anatomy.raised) if lift]
    if collapsed:
        return [_wedge(scene, side, severity) for side in collapsed]
    size, lesions = scene.size, []
    for _ in range(int(rng.integers(1, 4))):
        side, centre = _place(scene, rng, margin=7 * size, band=(0.55, 0.95))
        half = (20 + 22 * severity + rng.uniform(0, 10)) * size
        lean, bow = SIDES[side] * rng.normal(0.12, 0.2), rng.normal(0, 3) * size
        knots = [(-half, -half * lean), (0, bow), (half, half * lean)]
        line = smooth(np.array(knots) + centre, samples=24)
        width = (2.4 + 2.0 * severity + rng.uniform(0, 1)) * size
        taper = np.sqrt(np.sin(np.linspace(0.08, np.pi - 0.08, 24)))
        plate = scene.canvas.fill(ribbon(line, width * taper)) * scene.field[side]
        soft = scene.canvas.blur(plate, 0.6 * size)
        lesions.append(Lesion("Atelectasis", plate > 0.5 * plate.max(), opacity=(0.85 + 0.5 * severity) * soft))
    return lesions


def _wedge(scene: FrontalScene, side: str, severity: float) -> Lesion:
    anatomy, sign = scene.anatomy, SIDES[side]
    reach = 62 + 45 * severity
    knots = np.array([(26, 128), (40, 140), (0.6 * reach + 22, 200), (reach + 6, 268), (20, 275)]) * (sign, 1)
    wedge = scene.frame.fill(anatomy.fit(knots))
    wedge = scene.project(scene.frame.blur(wedge, 3 * anatomy.size)) * scene.lung_cover[side]
    mask = visible_extent(wedge)
    opacity = (0.6 + 0.3 * severity) * wedge * scene.air
    return Lesion("Atelectasis", mask, opacity=opacity, vessels=1 - 0.7 * wedge)


def edema(scene: FrontalScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """Haze around both hila like the wings of a bat, wide and blurred vessels, septal lines at the bases."""
    anatomy, (x, y), size = scene.anatomy, scene.grid, scene.size
    cloud = 0.13 * (scene.noise(rng, 14) + scene.noise(rng, 7))
    lesions = []
    for side, sign in SIDES.items():
        centre = anatomy.fit((sign * 58, 132))
        squared_reach = (((x - centre[0]) / 52) ** 2 + ((y - centre[1]) / 78) ** 2) / (0.75 * size) ** 2
        haze = np.exp(-0.5 * squared_reach**2) * (1 + cloud)
        ramp = scene.project(haze.clip(0).astype(np.float32)) * scene.field[side]
        lines = _septal_lines(scene, rng, sign) * scene.field[side]
        opacity = (0.14 + 0.3 * severity) * ramp * scene.air + (0.2 + 0.3 * severity) * lines
        lesions.append(
            Lesion(
                "Edema", visible_extent(ramp), opacity=opacity, vessels=1 + (0.35 + 0.55 * severity) * scene.field[side]
            )
        )
    return lesions


def _septal_lines(scene: FrontalScene, rng: np.random.Generator, sign: int) -> np.ndarray:
    """Kerley B lines: short, level, touching the wall above the costophrenic angle."""
    level = np.sort(rng.uniform(178, 252, 9))
    wall, length = scene.anatomy.wall(level) - 2, rng.uniform(10, 18, 9)
    ends = np.stack([np.column_stack([wall, level]), np.column_stack([wall - length, level + rng.normal(0, 2, 9)])], 1)
    return scene.canvas.stroke(scene.anatomy.fit(ends * (sign, 1)), 1.1 * scene.size)


def nodule(scene: Scene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """One to three round opacities of 6 to 30 mm (in an adult), as dense as granulomas."""
    lesions, taken = [], np.zeros(scene.frame.shape, bool)
    for _ in range(int(rng.choice([1, 1, 2, 2, 3, 3]))):
        diameter = np.clip((14 + 17 * severity) * rng.uniform(0.75, 1.15), 6, 30) * scene.size
        radius = diameter / 2
        side, centre = _place(scene, rng, margin=radius + 2, avoid=taken)
        turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        lobes = 1 + sum(rng.normal(0, 0.05) * np.cos(n * turn + rng.uniform(0, 6)) for n in (2, 3, 5))
        outline = centre + radius * lobes[:, None] * np.column_stack([np.cos(turn), np.sin(turn)])
        cover = scene.canvas.fill(outline)
        x, y = scene.grid
        taken |= np.hypot(x - centre[0], y - centre[1]) < 2 * radius + 6
        ball = np.sqrt((1 - ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (1.15 * radius) ** 2).clip(0.2))
        cover *= scene.field[side]
        mask = cover > 0.5 * cover.max()  # a nodule smaller than a pixel still has one
        depth = scene.project(ball.astype(np.float32)) * cover
        strength = 1.8 + 0.5 * severity
        lesions.append(Lesion("Nodule", mask, opacity=strength * scene.canvas.blur(depth, 0.4 * scene.size)))
    return lesions


def mass(scene: Scene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """One lobulated opacity of 31 to 62 mm (in an adult), with spicules that reach into the lung around it."""
    radius = (31 + 24 * severity + rng.uniform(0, 7)) / 2 * scene.size
    side, centre = _place(scene, rng, margin=0.8 * radius, band=(0.1, 0.8))
    turn = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    lobes = 1 + sum(rng.normal(0, 0.07) * np.cos(n * turn + rng.uniform(0, 6)) for n in (2, 3, 4, 5))
    direction = np.column_stack([np.cos(turn), np.sin(turn)])
    cover = scene.canvas.fill(centre + radius * lobes[:, None] * direction) * scene.field[side]
    for angle in rng.uniform(0, 2 * np.pi, 14):
        out = np.array([np.cos(angle), np.sin(angle)])
        spicule = centre + radius * np.linspace(0.8, rng.uniform(1.15, 1.4), 8)[:, None] * out
        cover = np.maximum(cover, 0.6 * scene.canvas.fill(ribbon(spicule, np.linspace(1.6, 0.3, 8) * scene.size)))
    cover = cover * scene.field[side]
    x, y = scene.grid
    ball = np.sqrt((1 - ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (1.3 * radius) ** 2).clip(0.2))
    depth = scene.project(ball.astype(np.float32)) * cover
    body = largest_part(cover > 0.8 * cover.max())
    opacity = (1.2 + 0.5 * severity) * scene.canvas.blur(depth, 0.6 * scene.size)
    return [Lesion("Mass", body, opacity=opacity, vessels=1 - 0.7 * cover)]


def pneumothorax(scene: FrontalScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """Air beside the collapsed lung: a lucent crescent without vessels, over the apex, behind a thin white line."""
    anatomy, size = scene.anatomy, scene.size
    side = str(rng.choice(["Left", "Right"]))
    sign = SIDES[side]
    wall = anatomy.fit(anatomy.lung_curves(side)[0])
    height = wall[:, 1] / anatomy.scale[1]
    lateral = np.arange(len(wall)) > np.argmin(height)
    lowest = 120 + 140 * severity + rng.uniform(-10, 10)
    span = (lateral & (height < lowest)) | (~lateral & (height < 28 + 22 * severity))
    outer = wall[span]
    progress = np.linspace(0, 1, len(outer))
    deepest = (24 + 42 * severity) * size
    depth = deepest * np.sin(np.pi * progress**0.75) ** 0.7 + 0.5
    hilum = anatomy.fit((sign * 38, 135))
    towards = hilum - outer
    inner = outer + depth[:, None] * towards / np.linalg.norm(towards, axis=1, keepdims=True)
    inner = smooth(inner[np.linspace(0, len(inner) - 1, 9).astype(int)], samples=60)
    region = scene.canvas.fill(np.concatenate([wall[span] - 0.2 * towards, inner[::-1]])) * scene.field[side]
    line = scene.canvas.stroke([inner], 1.5 * size) * scene.field[side]
    opacity = scene.canvas.blur((0.7 + 0.4 * line) * line - (0.45 + 0.25 * severity) * region, 0.3 * size)
    return [Lesion("Pneumothorax", region > 0.5, opacity=opacity, vessels=1 - region)]


def _choose_sides(rng: np.random.Generator, both: float) -> tuple[str, ...]:
    chance, left = rng.random(), rng.random() < 0.47
    if chance < both:
        return ("Left", "Right")
    return ("Left",) if left else ("Right",)


def _place(scene: Scene, rng: np.random.Generator, margin: float, band=(0.0, 1.0), avoid=None):
    """A side and a point f64[2] in mm inside a lung field, `margin` mm from its edge, in a band of its height."""
    u, jitter = rng.random(), rng.uniform(-0.5, 0.5, 2)
    left, right = scene.frame_lungs["Left"], scene.frame_lungs["Right"]
    x, y = scene.grid
    level = y / (scene.scale[1] * 275)
    allowed = (left | right) & (level >= band[0]) & (level <= band[1])
    depth = scene.frame.distance(left | right)
    free = allowed & (depth > margin)
    if avoid is not None and (free & ~avoid).any():
        free &= ~avoid
    if not free.any():  # a small lung: its deepest point
        free = allowed & (depth >= 0.9 * depth[allowed].max())
    rows, columns = np.nonzero(free)
    pick = min(int(u * len(rows)), len(rows) - 1)
    point = np.array([x[0, columns[pick]], y[rows[pick], 0]]) + jitter * scene.frame.spacing
    return ("Left" if left[rows[pick], columns[pick]] else "Right"), point


DRAW: dict[str, Callable[[FrontalScene, np.random.Generator, float], list[Lesion]]] = {
    "Cardiomegaly": cardiomegaly,
    "Pleural Effusion": pleural_effusion,
    "Consolidation": consolidation,
    "Atelectasis": atelectasis,
    "Edema": edema,
    "Nodule": nodule,
    "Pneumothorax": pneumothorax,
    "Support Devices": support_devices,
    "Mass": mass,
}

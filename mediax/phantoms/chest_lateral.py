"""The lateral chest: the patient faces the image's left, so the spine stands on its right.

The origin is the middle of the chest at the height of the lungs' apices; x grows towards the back, y downwards. Points
are written for an adult male thorax of 200 x 275 mm and fitted to the patient.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mediax.phantoms.canvas import Canvas, edges, ellipse, ribbon, smooth
from mediax.phantoms.chest_anatomy import TEMPLATE_HEIGHT, TEMPLATE_WIDTH
from mediax.phantoms.chest_devices import draw_device
from mediax.phantoms.chest_findings import consolidation, mass, nodule
from mediax.phantoms.chest_patient import Build, Patient
from mediax.phantoms.chest_scene import Lesion, Scene, rounded, visible_extent

TRUNK, AIR, HEART = 4.0, 2.1, 0.55

FRONT = [(18, -2), (-12, 14), (-38, 40), (-62, 78), (-82, 122), (-94, 168), (-99, 208)]
BACK = [(92, 284), (98, 245), (101, 190), (97, 130), (84, 78), (62, 36), (40, 8), (18, -2)]
DOME = [(-99, 208), (-75, 205), (-40, 200), (0, 206), (40, 226), (70, 252), (92, 284)]


@dataclass(frozen=True)
class LateralAnatomy:
    """Outlines of one patient from the side, f64[N,2] in mm."""

    patient: Patient
    body: Build
    heart_ratio: float

    @cached_property
    def scale(self) -> np.ndarray:
        """Size against the template: f64[2] across and along; old chests are deeper."""
        depth = self.body.thorax_width / TEMPLATE_WIDTH * (1 + 0.1 * self.body.ageing + 0.12 * self.body.childhood)
        return np.array([depth, self.body.thorax_height / TEMPLATE_HEIGHT])

    @cached_property
    def size(self) -> float:
        return float(np.sqrt(self.scale.prod()))

    def fit(self, points) -> np.ndarray:
        return np.asarray(points, float) * self.scale

    def rng(self, organ: int) -> np.random.Generator:
        return np.random.default_rng([self.patient.seed, 7200 + organ])

    @cached_property
    def lungs(self) -> dict[str, np.ndarray]:
        """Both lungs lie on each other; the left dome is lower."""
        outlines = {}
        for name, step in (("Left Lung", self.body.diaphragm_step), ("Right Lung", 0.0)):
            dome = np.array(DOME, float) + np.array([0.6, 0.9, 1, 1, 1, 0.6, 0])[:, None] * (0, step)
            front, back = np.array([*FRONT[:-1], dome[0]]), np.array(BACK, float)
            back[:, 0] += 7 * self.body.ageing * np.sin(np.linspace(0, np.pi, len(back)))
            outlines[name] = self.fit(np.concatenate([smooth(front), smooth(dome), smooth(back)]))
        return outlines

    @cached_property
    def heart(self) -> np.ndarray:
        """Behind the lower sternum, above the diaphragm; it grows backwards when enlarged."""
        growth = np.clip((self.heart_ratio - 0.45) / 0.12, -0.3, 1.5)
        back = 14 + 26 * growth
        knots = [(-88, 205), (-88, 170), (-70, 132), (-38, 108), (-8, 104), (back * 0.75, 128), (back, 165)]
        knots += [(back * 0.95, 196), (back * 0.5, 220), (-45, 222)]
        return self.fit(smooth(knots, closed=True))

    @cached_property
    def mediastinum(self) -> np.ndarray:
        """Great vessels between the heart and the neck, with the aortic arch."""
        wide = 8 * self.body.aorta
        knots = [(-48, 112), (-45 - wide, 84), (-30 - wide, 58), (-8, 44), (22, 40), (46 + wide, 58), (50 + wide, 80)]
        return self.fit(smooth([*knots, (36, 84), (26, 72), (8, 78), (-2, 112)], closed=True))

    @cached_property
    def spine_line(self) -> np.ndarray:
        bend = 1 + 0.5 * self.body.ageing
        knots = [(20, -140), (22, -60), (40, 0), (60 + 6 * bend, 60), (66 + 9 * bend, 130), (66 + 6 * bend, 200)]
        return self.fit(smooth([*knots, (58, 270), (46, 340), (40, 430)], samples=90))

    @cached_property
    def spine(self) -> np.ndarray:
        return ribbon(self.spine_line, np.linspace(10, 19, 90) * self.size)

    @cached_property
    def vertebrae(self) -> list[np.ndarray]:
        """Vertebral bodies f64[4,2]."""
        line, size = self.spine_line, self.size
        length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
        bodies, start, height = [], 10.0 * size, 16.0 * size
        while start + height < length[-1]:
            ends = np.array([start, start + 0.82 * height])
            middle = np.column_stack([np.interp(ends, length, line[:, i]) for i in (0, 1)])
            half = np.interp(start / length[-1], [0, 1], [9, 17]) * size
            bodies.append(ribbon(middle, half))
            start, height = start + height, height + 0.75 * size
        return bodies

    @cached_property
    def sternum(self) -> np.ndarray:
        line = smooth([(-30, 28), (-58, 62), (-84, 108), (-100, 156), (-107, 196)], samples=30)
        return ribbon(self.fit(line), 5.5 * self.size)

    @cached_property
    def ribs(self) -> np.ndarray:
        """Outlines f64[M,2N,2] of both sides' arcs from the spine, forwards and downwards."""
        along, (front_x, front_y), (back_x, back_y) = (
            np.linspace(0, 1, 20),
            np.transpose(FRONT),
            np.transpose(BACK[::-1]),
        )
        y = np.linspace(6, 218, 10)[:, None]
        back = np.interp(y, back_y, back_x) - 2
        front = np.interp(y + 60, front_y, front_x) + np.where(y < 165, 10, 45)
        drop = (58 + 40 * y / 218) * self.body.rib_tilt
        x, y = back + (front - back) * along, y + drop * along**1.25
        arcs = self.fit(np.concatenate([np.stack([x, y + shift], axis=-1) for shift in (0, 5)]))
        return ribbon(arcs, np.linspace(4, 5.5, 20) * self.size)

    @cached_property
    def torso(self) -> np.ndarray:
        fat = 10 * (1 + self.body.habitus)
        breast = 26 * self.body.breast
        front = [(-60, -150), (-54, -70), (-58, -20), (-78, 40), (-104 - fat, 96), (-118 - fat - breast, 160)]
        front += [(-114 - fat - 0.5 * breast, 206), (-112 - 1.6 * fat, 280), (-114 - 2 * fat, 420)]
        back = [
            (112 + fat, 420),
            (116 + fat, 280),
            (128 + fat, 190),
            (128 + fat, 100),
            (108 + fat, 30),
            (84, -30),
            (74, -150),
        ]
        return self.fit(np.concatenate([smooth(front), smooth(back)]))

    @cached_property
    def raised_arms(self) -> np.ndarray:
        """The arms are held up, out of the way: their soft tissue covers the top of the image."""
        return ribbon(self.fit(smooth([(45, 62), (10, 5), (-30, -70), (-55, -150)])), 44 * self.size)

    @cached_property
    def airway(self) -> np.ndarray:
        line = smooth([(-4, -130), (-2, -60), (8, 0), (22, 55), (28, 98)])
        return ribbon(self.fit(line), 8 * self.size * (1 - 0.25 * self.body.childhood))

    def landmarks(self) -> dict[str, np.ndarray]:
        """Named points (x, y) in patient mm."""
        domes = {name: lung[np.argmin(np.hypot(*(lung - self.fit((-40, 205))).T))] for name, lung in self.lungs.items()}
        return {
            "Carina": self.fit((28, 98)),
            "Posterior Costophrenic Angle": self.fit(BACK[0]),
            "Left Hemidiaphragm": domes["Left Lung"],
            "Right Hemidiaphragm": domes["Right Lung"],
        }


class LateralScene(Scene):
    """The layers of a lateral radiograph."""

    def __init__(self, anatomy: LateralAnatomy, canvas: Canvas):
        super().__init__(anatomy.size, anatomy.scale, canvas)
        self.anatomy = anatomy

    @cached_property
    def heart_cover(self) -> np.ndarray:
        return self.canvas.fill(self.anatomy.heart)

    @cached_property
    def lung_cover(self) -> dict[str, np.ndarray]:
        return {side: self.canvas.fill(self.anatomy.lungs[f"{side} Lung"]) for side in ("Left", "Right")}

    @cached_property
    def field(self) -> dict[str, np.ndarray]:
        """From the side the lungs are seen through the heart: the field is the whole cavity."""
        return self.lung_cover

    @cached_property
    def frame_lungs(self) -> dict[str, np.ndarray]:
        return {side: self.frame.fill(self.anatomy.lungs[f"{side} Lung"]) > 0.5 for side in ("Left", "Right")}

    @cached_property
    def air(self) -> np.ndarray:
        """Opacity f32[H,W] that the air takes away: half by each lung."""
        both = self.canvas.blur(0.5 * (self.lung_cover["Left"] + self.lung_cover["Right"]), 0.8 * self.size)
        lungs = self.frame_lungs["Left"] | self.frame_lungs["Right"]
        depth = 0.5 + 0.5 * (1 - np.exp(-self.frame.distance(lungs) / (26 * self.size)))
        blocked = self.frame.fill(self.anatomy.mediastinum) * 0.4
        blocked = self.project(self.frame.blur(depth * (1 - blocked), 3.5 * self.size))
        return (
            AIR
            * self.anatomy.body.aeration
            * both
            * blocked
            * (1 - HEART * self.canvas.blur(self.heart_cover, 1.5 * self.size))
        )

    def masks(self) -> dict[str, np.ndarray]:
        """Anatomy bool[H,W] by name."""
        anatomy, canvas = self.anatomy, self.canvas
        masks = {f"{side} Lung": cover > 0.5 for side, cover in self.lung_cover.items()}
        masks["Heart"] = self.heart_cover > 0.5
        masks["Mediastinum"] = canvas.fill(anatomy.mediastinum, anatomy.heart) > 0.5
        masks["Spine"] = canvas.fill(anatomy.spine) > 0.5
        masks["Sternum"] = canvas.fill(anatomy.sternum) > 0.5
        masks["Ribs"] = canvas.fill(*anatomy.ribs) > 0.5
        masks["Body"] = canvas.fill(anatomy.torso, anatomy.raised_arms) > 0.5
        below = anatomy.fit(smooth(DOME))
        floor = below[::-1] + np.array([0, 60 * self.size])
        masks["Diaphragm"] = (canvas.fill(np.concatenate([below, floor])) > 0.5) & ~masks["Left Lung"] & masks["Body"]
        return masks

    def _markings(self) -> np.ndarray:
        rng, size, lines = self.anatomy.rng(1), self.size, []
        for angle in rng.uniform(0, 2 * np.pi, 46):
            bend = angle + rng.normal(0, 0.3)
            reach = rng.uniform(28, 75)
            start = np.array([16.0, 104.0]) + 6 * np.array([np.cos(angle), np.sin(angle)])
            middle = start + 0.5 * reach * np.array([np.cos(angle), np.sin(angle)])
            lines.append(np.stack([start, middle, middle + 0.5 * reach * np.array([np.cos(bend), np.sin(bend)])]))
        tree = self.canvas.stroke([self.anatomy.fit(line) for line in lines], 1.8 * size)
        hilum = self.frame.fill(*(self.anatomy.fit(ellipse(c, (15, 20))) for c in ((12, 100), (26, 92))))
        hilum = self.project(self.frame.blur(hilum, 5 * size))
        texture = self.project(self.noise(self.anatomy.rng(2), 3.6) + self.noise(self.anatomy.rng(3), 8))
        cover = np.maximum(self.lung_cover["Left"], self.lung_cover["Right"])
        return cover * (0.22 * self.canvas.blur(tree, 0.8 * size) + 0.3 * hilum + 0.035 * texture)

    def opacity(self, lesions: list[Lesion]) -> np.ndarray:
        """The whole chest with lesions, opacity f32[H,W]."""
        anatomy, canvas, frame, size = self.anatomy, self.canvas, self.frame, self.size
        rounding = rounded(frame, frame.fill(anatomy.torso), 17 * size)
        level = self.grid[1] / self.scale[1]
        thickness = 0.74 + 0.26 / (1 + np.exp(-(level - 10) / 16)) + 0.1 / (1 + np.exp(-(level - 225) / 14))
        arms = 1.3 * rounded(frame, frame.fill(anatomy.raised_arms), 14 * size)
        total = self.project(frame.blur(TRUNK * rounding * thickness + arms, 2 * size)) - self.air
        bones = 0.32 * canvas.fill(anatomy.spine) + 0.3 * canvas.fill(*anatomy.vertebrae)
        bones += 0.24 * canvas.stroke([np.concatenate([b, b[:1]]) for b in anatomy.vertebrae], 1.5 * size)
        bones += 0.07 * canvas.fill(*anatomy.ribs) + 0.08 * canvas.stroke(edges(anatomy.ribs), 1.4 * size)
        bones += 0.45 * canvas.fill(anatomy.sternum) + 0.2 * canvas.stroke([anatomy.sternum], 1.6 * size)
        total += anatomy.body.bone * canvas.blur(bones, 0.7 * size)
        total -= 0.45 * canvas.blur(canvas.fill(anatomy.airway), 1.2 * size)
        markings = self._markings()
        for lesion in lesions:
            markings *= lesion.vessels
            total += lesion.opacity
        return np.maximum(total + markings, 0)


def cardiomegaly(scene: LateralScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """The heart reaches back towards the spine."""
    return [Lesion("Cardiomegaly", scene.heart_cover > 0.5)]


def pleural_effusion(scene: LateralScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """Fluid fills the posterior costophrenic angle first."""
    anatomy, (x, y) = scene.anatomy, scene.grid
    bottom = anatomy.fit(BACK[0])
    height = (40 + 100 * severity) * scene.scale[1]
    surface = bottom[1] - height * (0.55 + 0.45 * (x / bottom[0]).clip(0, 1.1) ** 2.5)
    ramp = 0.9 * (x > 0) * (1 - np.exp(-(y - surface).clip(0) / (13 * scene.size)))
    cover = np.maximum(scene.field["Left"], scene.field["Right"])
    ramp = scene.project(ramp.astype(np.float32))
    return [Lesion("Pleural Effusion", visible_extent(ramp * cover), opacity=ramp * scene.air, vessels=1 - 0.7 * ramp)]


def atelectasis(scene: LateralScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """A plate above the dome."""
    centre = scene.anatomy.fit((rng.uniform(-10, 55), rng.uniform(165, 195)))
    half, lean = (26 + 18 * severity) * scene.size, rng.normal(0.3, 0.15)
    plate = ribbon(smooth(centre + np.array([(-half, -half * lean), (0, 2), (half, half * lean)])), 2.5 * scene.size)
    cover = scene.canvas.fill(plate) * scene.field["Right"]
    opacity = (0.5 + 0.4 * severity) * scene.canvas.blur(cover, 0.6 * scene.size)
    return [Lesion("Atelectasis", cover > 0.5, opacity=opacity)]


def edema(scene: LateralScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """Haze around the hila."""
    x, y = scene.grid
    centre = scene.anatomy.fit((15, 120))
    reach = np.hypot((x - centre[0]) / 55, (y - centre[1]) / 62) / scene.size
    haze = np.exp(-0.5 * reach**4) * (1 + 0.2 * scene.noise(rng, 12))
    ramp = scene.project(haze.clip(0).astype(np.float32)) * scene.field["Right"]
    opacity = (0.2 + 0.3 * severity) * ramp * scene.air
    return [Lesion("Edema", visible_extent(ramp), opacity=opacity, vessels=1.5 + severity)]


def pneumothorax(scene: LateralScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """Lucency under the sternum and at the apex, in front of the collapsed lung's line."""
    wall = smooth(FRONT[: 4 + round(3 * severity)], samples=40)
    depth = (8 + 22 * severity) * np.sin(np.pi * np.linspace(0.02, 0.98, 40)) ** 0.7
    inner = scene.anatomy.fit(wall + depth[:, None] * (0.85, 0.5))
    region = scene.canvas.fill(np.concatenate([scene.anatomy.fit(wall), inner[::-1]])) * scene.field["Right"]
    line = scene.canvas.stroke([inner], 1.4 * scene.size) * scene.field["Right"]
    return [
        Lesion("Pneumothorax", region > 0.5, opacity=0.4 * line - (0.2 + 0.1 * severity) * region, vessels=1 - region)
    ]


def support_devices(scene: LateralScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """A pacemaker, a venous catheter or a gastric tube, seen from the side."""
    anatomy, size = scene.anatomy, scene.size
    kind = int(rng.integers(3))
    if kind == 0:
        case = ellipse(anatomy.fit((-88 + rng.normal(0, 3), 66)), (6 * size, 21 * size), angle=0.5)
        lead = anatomy.fit(smooth([(-86, 50), (-58, 24), (-22, 34), (-14, 80), (-16, 140), (-55, 200), (-76, 204)]))
        parts = [([case], 0, 2.2), ([lead], 1.9, 1.0)]
    elif kind == 1:
        line = anatomy.fit(smooth([(-40, -120), (-28, -40), (-18, 20), (-12, rng.uniform(80, 115))]))
        parts = [([line], 2.0, 1.0)]
    else:
        line = anatomy.fit(smooth([(14, -130), (18, -40), (34, 40), (44, 120), (38, 190), (10, 235), (-30, 268)]))
        parts = [([line], 4.0, 0.35), ([line], 1.6, 0.9)]
    return [draw_device(scene, parts, 0.8 + 0.4 * severity)]


DRAW = {
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

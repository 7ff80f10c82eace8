"""The frontal chest: outlines of the organs in millimetres of the patient.

The origin is the midline at the height of the lungs' apices; x grows to the image's right, which is the patient's LEFT;
y grows downwards. Points are written for an adult male thorax of 284 x 275 mm and fitted to the patient.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mediax.phantoms.canvas import ellipse, ribbon, smooth
from mediax.phantoms.chest_patient import Build, Patient

TEMPLATE_WIDTH, TEMPLATE_HEIGHT = 284.0, 275.0
SIDES = {"Left": 1, "Right": -1}  # the sign of x

LATERAL_WALL = np.array(
    [(52, -3), (80, 8), (101, 30), (116, 62), (127, 102), (135, 150), (140, 196), (142, 236), (139, 272)], float
)
MEDIAL_WALL = np.array([(22, 246), (24, 215), (23, 160), (22, 110), (20, 70), (23, 36), (33, 10)], float)
DIAPHRAGM = np.array([(139, 272), (127, 253), (107, 238), (80, 231), (52, 234), (22, 246)], float)


@dataclass(frozen=True)
class FrontalAnatomy:
    """Outlines of one patient on one occasion.

    `heart_ratio` is the heart's width over the thorax's on the image; `yaw` shifts what lies in front against what lies
    behind, in mm; `raised` lifts the (left, right) dome of the diaphragm, in mm; `portable` is the AP position in bed.
    """

    patient: Patient
    body: Build
    heart_ratio: float
    portable: bool
    inspiration: float = 1.0
    yaw: float = 0.0
    raised: tuple[float, float] = (0.0, 0.0)

    @cached_property
    def scale(self) -> np.ndarray:
        """Size against the template: f64[2] across and along."""
        height = self.body.thorax_height * self.inspiration
        return np.array([self.body.thorax_width / TEMPLATE_WIDTH, height / TEMPLATE_HEIGHT])

    @cached_property
    def size(self) -> float:
        """Size against the template, one number for tubes and thicknesses."""
        return float(np.sqrt(self.scale.prod()))

    def fit(self, points, depth: float = 0.0) -> np.ndarray:
        """Template points -> patient mm; `depth` from -1 (back) to 1 (front) takes the yaw."""
        return np.asarray(points, float) * self.scale + (self.yaw * depth, 0)

    def rng(self, organ: int) -> np.random.Generator:
        """The patient's own chance: the same on every image."""
        return np.random.default_rng([self.patient.seed, 7100 + organ])

    def wall(self, y):
        """Template half-width of the thorax at template height y."""
        return np.interp(y, LATERAL_WALL[:, 1], LATERAL_WALL[:, 0])

    @cached_property
    def lungs(self) -> dict[str, np.ndarray]:
        """The pleural cavities, behind the heart too: {"Left Lung": f64[N,2], "Right Lung": ...}."""
        return {f"{side} Lung": self.fit(np.concatenate(self.lung_curves(side))) for side in SIDES}

    def lung_curves(self, side: str) -> tuple[np.ndarray, np.ndarray]:
        """A lung's wall (from the heart over the apex to the costophrenic angle) and its dome, in template points."""
        step = self.body.diaphragm_step if side == "Left" else 0.0
        lift = self.raised[0 if side == "Left" else 1]
        medial, lateral, diaphragm = MEDIAL_WALL.copy(), LATERAL_WALL.copy(), DIAPHRAGM.copy()
        diaphragm[1:, 1] += np.array([0.5, 0.8, 1, 1, 1]) * step - np.array([0.6, 0.9, 1, 1, 1]) * lift
        medial[0] = diaphragm[-1]
        mirror = (SIDES[side], 1)
        return smooth(np.concatenate([medial, lateral]), samples=110) * mirror, smooth(diaphragm, samples=40) * mirror

    def costophrenic_angle(self, side: str) -> np.ndarray:
        return self.fit((SIDES[side] * LATERAL_WALL[-1, 0], LATERAL_WALL[-1, 1]))

    def apex(self, side: str) -> np.ndarray:
        lung = self.lungs[f"{side} Lung"]
        return lung[np.argmin(lung[:, 1])]

    def dome(self, side: str) -> np.ndarray:
        curve = self.fit(self.lung_curves(side)[1])
        return curve[np.argmin(curve[:, 1])]

    @cached_property
    def heart(self) -> np.ndarray:
        """The heart's silhouette f64[N,2], exactly `heart_ratio` times as wide as the thorax."""
        width = 2 * LATERAL_WALL[:, 0].max() * self.heart_ratio
        enlargement = np.clip((self.heart_ratio - 0.45) / 0.15, 0, 1.3) * (1 - self.body.childhood)
        axis = self.body.heart_axis + 0.02 * enlargement
        right, left = width * (1 - axis), width * axis
        top, bottom = 86 - 6 * enlargement, 247 + 3 * enlargement + 4 * self.body.childhood
        outline = [
            (-0.60 * right, 0.06), (-0.88 * right, 0.30), (-1.0 * right, 0.58), (-0.92 * right, 0.84),
            (-0.6 * right, 1.02), (0.1 * left, 1.05), (0.55 * left, 1.06), (0.88 * left, 1.01),
            (0.995 * left, 0.86), (0.95 * left, 0.68), (0.79 * left, 0.45), (0.60 * left, 0.24),
            (0.45 * left, 0.08), (0.1 * left, -0.04),
        ]  # fmt: skip
        points = smooth(outline, closed=True)
        points[:, 0] *= width / np.ptp(points[:, 0])
        points[:, 1] = top + (bottom - top) * points[:, 1]
        return self.fit(points, depth=0.4)

    @cached_property
    def mediastinum(self) -> np.ndarray:
        """The upper mediastinum f64[N,2]: superior vena cava, aortic arch, pulmonary trunk, down to the diaphragm."""
        aorta, thymus = self.body.aorta, 16 * np.clip(1 - self.patient.age / 3, 0, 1)
        wide = 4 * self.portable + 3 * max(self.body.habitus, 0)
        right = [(-25, -16), (-23, 18), (-25 - 3 * aorta - thymus, 50), (-28 - 5 * aorta - thymus, 80)]
        right += [(-29, 110), (-24, 160), (-22, 215), (-21, 262)]
        left = [(21, 262), (22, 215), (26 + 6 * aorta, 160), (35, 112), (36 + thymus, 95)]
        left += [
            (31 + 5 * aorta + thymus, 82),
            (35 + 10 * aorta, 68),
            (33 + 11 * aorta, 53),
            (25 + 3 * aorta, 36),
            (21, 14),
            (23, -16),
        ]
        points = np.array(right + left, float)
        upper = (points[:, 1] < 100) & (points[:, 1] > 0)
        points[upper, 0] += np.sign(points[upper, 0]) * wide
        return self.fit(smooth(points, closed=True), depth=0.1)

    @cached_property
    def aortic_knob(self) -> np.ndarray:
        """The arch's calcifying rim f64[N,2], an open line."""
        angle = np.linspace(-1.5, 0.9, 20)
        reach = 31 + 11 * self.body.aorta + 4 * self.portable
        return self.fit(np.column_stack([reach - 14 + 13 * np.cos(angle), 60 + 13 * np.sin(angle)]), depth=0.1)

    @cached_property
    def carina(self) -> np.ndarray:
        return self.fit((2, 82), depth=0.1)

    @cached_property
    def airways(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Trachea and main bronchi: (line f64[N,2], half-width f64[N] in mm)."""
        trachea = smooth([(0, -120), (0, -60), (0, 0), (2 + 3 * self.body.aorta, 45), (2, 82)])
        right = smooth([(2, 78), (-10, 95), (-22, 113), (-30, 130)])
        left = smooth([(2, 78), (16, 92), (32, 104), (46, 116)])
        caliber = (8.5 if self.patient.sex == "Male" else 7.2) * (1 - 0.25 * self.body.childhood) * self.size
        return [
            (self.fit(trachea, 0.1), np.full(len(trachea), caliber)),
            (self.fit(right, 0.1), np.linspace(0.8, 0.5, len(right)) * caliber),
            (self.fit(left, 0.1), np.linspace(0.7, 0.4, len(left)) * caliber),
        ]

    @cached_property
    def hila(self) -> dict[str, np.ndarray]:
        """The pulmonary arteries at the hilum, left above right: {side: f64[N,2]}."""
        right = smooth([(-30, 88), (-40, 96), (-47, 112), (-48, 134), (-42, 136), (-38, 118), (-28, 108)], closed=True)
        left = smooth([(30, 82), (44, 84), (52, 94), (52, 118), (46, 122), (40, 108), (30, 104)], closed=True)
        return {"Right": self.fit(right, 0.1), "Left": self.fit(left, 0.1)}

    @cached_property
    def vessels(self) -> list[tuple[float, np.ndarray]]:
        """Branching pulmonary vessels: (width in mm, lines f64[M,3,2]), thin ones first."""
        rng, all_lines, all_widths = self.rng(1), [], []
        for side, sign in SIDES.items():
            start = np.array([(36.0, 104.0 if side == "Right" else 96.0)]).repeat(8, axis=0)
            angle = np.radians([-84, -62, -38, -8, 18, 42, 62, 80]) + rng.normal(0, 0.08, 8)
            width = np.array([2.4, 2.6, 2.2, 2.0, 2.8, 3.6, 4.0, 3.6]) * rng.uniform(0.85, 1.1, 8)
            # Vessels to the bases have the longer way to go.
            reach = np.interp(np.degrees(angle), [-90, 0, 50, 90], [25, 22, 32, 34])
            for _ in range(5):
                bend = angle + rng.normal(0, 0.12, angle.size)
                middle = start + 0.5 * reach[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
                end = middle + 0.5 * reach[:, None] * np.column_stack([np.cos(bend), np.sin(bend)])
                lines = np.stack([start, middle, end], axis=1) * (sign, 1)
                all_lines.append(self.fit(lines))
                all_widths.append(width)
                spread = rng.uniform(0.2, 0.55, angle.size)
                start = np.concatenate([end, end])
                angle = np.concatenate([bend + spread, bend - rng.uniform(0.15, 0.5, angle.size)])
                width = np.concatenate([width * 0.72, width * 0.66])
                reach = np.concatenate([reach, reach]) * rng.uniform(0.62, 0.9, angle.size)
        widths = np.maximum(np.round(np.concatenate(all_widths) * 2) / 2, 0.5)
        lines = np.concatenate(all_lines)
        return [(float(width) * self.size, lines[widths == width]) for width in np.unique(widths)]

    @cached_property
    def ribs(self) -> tuple[np.ndarray, np.ndarray]:
        """Outlines f64[M,2N,2] of the posterior and of the anterior arcs of ten pairs.

        A rib is half of a tilted ellipse: level at the spine, steep along the wall, level again towards the sternum.
        """
        number = np.arange(10)
        height = np.linspace(-4, 208, 10) + self.rng(2).normal(0, 1.0, 10)
        drop = np.interp(number, [0, 1, 3, 6, 9], [44, 72, 104, 118, 112]) * self.body.rib_tilt
        reach = np.minimum(self.wall(height + drop / 2) + 4, 66 + 22 * number)
        costal_end = np.interp(number, [0, 3, 5, 9], [30, 52, 66, 112])
        back = np.linspace(np.arcsin(20 / reach), np.pi / 2 + 0.05, 20, axis=1)
        front = np.linspace(np.pi / 2, np.pi - np.arcsin(np.minimum(costal_end / reach, 0.95)), 20, axis=1)[:8]
        arcs = []
        for theta, half_width in ((back, np.linspace(4.6, 4.4, 20)), (front, np.linspace(4.4, 6.6, 20))):
            rows = slice(len(theta))
            x = reach[rows, None] * np.sin(theta) ** 0.85
            rise = 9 * self.body.rib_tilt * np.cos(theta).clip(0) * np.sin(theta)
            y = height[rows, None] + drop[rows, None] * (1 - np.cos(theta)) / 2 - rise
            lines = np.concatenate([np.stack([sign * x, y], axis=-1) for sign in SIDES.values()]) * self.scale
            lines[..., 0] -= self.yaw * np.tile(np.cos(theta), (2, 1))
            arcs.append(ribbon(lines, half_width * self.size))
        return arcs[0], arcs[1]

    @cached_property
    def clavicles(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{"Left Clavicle": (line f64[N,2], half-width f64[N]), "Right Clavicle": ...}."""
        lines = {}
        tilt = self.rng(3).normal(0, 3, 2)
        lift = 24 if self.portable else 0
        for (side, sign), lean in zip(SIDES.items(), tilt):
            knots = [(15, 34 - 0.6 * lift), (38, 31 - 0.7 * lift), (70, 20 - 0.9 * lift + lean / 2)]
            knots += [(105, 0 - lift * 0.8 + lean), (138, -8 - lift * 0.5 + lean), (162, -8 - lift * 0.3 + lean)]
            line = smooth(np.array(knots) * (sign, 1), samples=40)
            width = np.interp(np.linspace(0, 1, 40), [0, 0.15, 0.5, 1], [8.0, 6.0, 5.0, 6.2]) * self.size
            lines[f"{side} Clavicle"] = (self.fit(line, 0.8), width * (0.94 if self.patient.sex == "Female" else 1.03))
        return lines

    @cached_property
    def spine_line(self) -> np.ndarray:
        y = np.linspace(-130, 400, 60)
        x = self.body.scoliosis * np.sin((y - 40) / 75)
        return self.fit(np.column_stack([x, y]), -0.8)

    @cached_property
    def spine(self) -> np.ndarray:
        """The vertebral column f64[N,2]."""
        width = np.interp(np.linspace(0, 1, 60), [0, 0.3, 1], [13, 15, 22]) * self.size
        return ribbon(self.spine_line, width)

    @cached_property
    def vertebrae(self) -> np.ndarray:
        """The middles f64[M,2] of the vertebral bodies."""
        y = -150 + np.cumsum(np.concatenate([np.full(6, 15), np.linspace(15, 26.5, 18), np.full(5, 27)]))
        x = self.body.scoliosis * np.sin((y - 40) / 75)
        return self.fit(np.column_stack([x, y]), -0.8)

    @cached_property
    def scapulae(self) -> list[np.ndarray]:
        inward = 16 if self.portable else 0
        blade = [(132, 22), (128, 60), (126, 100), (133, 142), (143, 140), (158, 100), (172, 60), (178, 30), (165, 12)]
        blade = smooth(np.array(blade, float) - (inward, 0), closed=True)
        return [self.fit(blade * (sign, 1), -0.9) for sign in SIDES.values()]

    @cached_property
    def humeri(self) -> list[np.ndarray]:
        parts = []
        for sign in SIDES.values():
            parts.append(self.fit(ellipse((190, 12), (21, 23)) * (sign, 1)))
            shaft = np.array([(192, 20), (206, 70), (214, 130), (218, 220)], float)
            parts.append(ribbon(self.fit(shaft * (sign, 1)), 12 * self.size))
        return parts

    @cached_property
    def torso(self) -> np.ndarray:
        """Neck, shoulders and trunk f64[N,2]."""
        fat = 12 * (1 + self.body.habitus)
        neck = (50 if self.patient.sex == "Female" else 58) + 0.4 * fat
        side = [(neck, -160), (neck, -95), (neck + 8, -62), (100, -44), (150, -34), (196, -22), (214, 10), (196, 62)]
        side += [(164 + fat, 92), (160 + fat, 150), (158 + fat, 220), (158 + fat, 300), (162 + 1.2 * fat, 420)]
        right = smooth(np.array(side, float) * (-1, 1))
        left = smooth(np.array(side, float))
        return self.fit(np.concatenate([right, left[::-1]]))

    @cached_property
    def arms(self) -> list[np.ndarray]:
        lines = np.array([(186, -6), (206, 60), (216, 130), (222, 240), (226, 420)], float)
        width = (32 + 6 * self.body.habitus) * self.size
        return [ribbon(self.fit(smooth(lines * (sign, 1))), width) for sign in SIDES.values()]

    @cached_property
    def breasts(self) -> list[np.ndarray]:
        if not self.body.breast:
            return []
        size, sag = 56 * self.body.breast**0.35, 20 * self.body.ageing + (0 if not self.portable else 10)
        centre = 176 + sag
        return [self.fit(ellipse((sign * 84, centre), (size, size * 0.95)), 0.5) for sign in SIDES.values()]

    @cached_property
    def gastric_bubble(self) -> np.ndarray:
        rng = self.rng(4)
        x, y = self.dome("Left")
        width, height = np.array([rng.uniform(18, 30), rng.uniform(9, 17)]) * self.size
        dome = ellipse((x - 6 * self.size, y + height + 9 * self.size), (width, height), samples=32)
        # Air rises: the bubble's floor is a level of fluid.
        dome[:, 1] = np.minimum(dome[:, 1], y + 9 * self.size + 1.45 * height)
        return dome

    def landmarks(self) -> dict[str, np.ndarray]:
        """Named points (x, y) in patient mm."""
        heart = self.heart
        points = {"Carina": self.carina, "Cardiac Apex": heart[np.argmax(heart[:, 0])]}
        points["Aortic Knob"] = self.aortic_knob[len(self.aortic_knob) // 2]
        for side in SIDES:
            points[f"{side} Lung Apex"] = self.apex(side)
            points[f"{side} Costophrenic Angle"] = self.costophrenic_angle(side)
            points[f"{side} Hemidiaphragm"] = self.dome(side)
            points[f"{side} Clavicle Medial End"] = self.clavicles[f"{side} Clavicle"][0][0]
        return points

"""From the frontal anatomy to opacity: how much each ray is weakened on its way through the chest."""

from functools import cached_property

import numpy as np

from mediax.phantoms.canvas import Canvas, edges, ellipse, ribbon
from mediax.phantoms.chest_anatomy import SIDES, FrontalAnatomy
from mediax.phantoms.chest_scene import Lesion, Scene, largest_part, rounded

# Opacity (the natural logarithm of the weakening) of the whole trunk, and what each part adds or takes.
TRUNK, AIR = 3.7, 2.25
HEART = 0.66  # share of the air that the heart displaces


class FrontalScene(Scene):
    """The layers of a frontal radiograph."""

    def __init__(self, anatomy: FrontalAnatomy, canvas: Canvas):
        super().__init__(anatomy.size, anatomy.scale, canvas)
        self.anatomy = anatomy

    @cached_property
    def lung_cover(self) -> dict[str, np.ndarray]:
        """Coverage f32[H,W] of each pleural cavity on the canvas, behind the heart too."""
        return {side: self.canvas.fill(self.anatomy.lungs[f"{side} Lung"]) for side in SIDES}

    @cached_property
    def heart_cover(self) -> np.ndarray:
        return self.canvas.fill(self.anatomy.heart)

    @cached_property
    def mediastinum_cover(self) -> np.ndarray:
        return self.canvas.fill(self.anatomy.mediastinum)

    @cached_property
    def rib_covers(self) -> tuple[np.ndarray, np.ndarray]:
        """Posterior and anterior ribs, f32[H,W] each."""
        posterior, anterior = self.anatomy.ribs
        return self.canvas.fill(*posterior), self.canvas.fill(*anterior)

    @cached_property
    def clavicle_covers(self) -> dict[str, np.ndarray]:
        return {name: self.canvas.fill(ribbon(*clavicle)) for name, clavicle in self.anatomy.clavicles.items()}

    @cached_property
    def spine_cover(self) -> np.ndarray:
        return self.canvas.fill(self.anatomy.spine)

    @cached_property
    def silhouette(self) -> np.ndarray:
        """Heart and mediastinum together, f32[H,W]."""
        return np.maximum(self.heart_cover, self.mediastinum_cover)

    @cached_property
    def field(self) -> dict[str, np.ndarray]:
        """Coverage f32[H,W] of each lung field: what the heart and the mediastinum leave free."""
        free = 1 - self.silhouette
        return {side: cover * free for side, cover in self.lung_cover.items()}

    @cached_property
    def frame_lungs(self) -> dict[str, np.ndarray]:
        """The lung fields as bool masks on the frame."""
        blocked = self.frame.fill(self.anatomy.heart, self.anatomy.mediastinum) > 0.5
        return {side: (self.frame.fill(self.anatomy.lungs[f"{side} Lung"]) > 0.5) & ~blocked for side in SIDES}

    @cached_property
    def _air_depth(self) -> np.ndarray:
        """Depth of the lungs on the frame, 0..1: rays near the wall cross less air."""
        outlines = (*self.anatomy.lungs.values(), self.anatomy.mediastinum)
        depth = 1 - np.exp(-self.frame.distance(self.frame.fill(*outlines) > 0.5) / (20 * self.size))
        return self.frame.blur(0.6 + 0.4 * depth, 5 * self.size)

    @cached_property
    def air(self) -> np.ndarray:
        """Opacity f32[H,W] that the air in the lungs takes away, in front of and behind the heart too."""
        canvas, size, (_, y) = self.canvas, self.size, self.grid
        between = self.anatomy.fit([(-27, 30), (27, 30), (27, 246), (-27, 246)])  # no gap along the spine
        cover = canvas.fill(*self.anatomy.lungs.values(), self.anatomy.mediastinum, between)
        level = y / self.scale[1]
        # Above the heart the mediastinum fills the chest from front to back; beside it there is lung behind the heart.
        filled = HEART + (0.92 - HEART) / (1 + np.exp((level - 105) / 9)) + 0.08 / (1 + np.exp((level - 12) / 8))
        filled = np.broadcast_to(filled, self.frame.shape)
        blocked = np.maximum(
            HEART * self.heart_cover, self.project(np.ascontiguousarray(filled)) * self.mediastinum_cover
        )
        depth = AIR * self.anatomy.body.aeration * (1 - 0.08 * self.anatomy.portable) * self.project(self._air_depth)
        return depth * canvas.blur(cover * (1 - blocked), 0.8 * size)

    def masks(self) -> dict[str, np.ndarray]:
        """Anatomy bool[H,W] by name."""
        anatomy, canvas = self.anatomy, self.canvas
        heart = self.heart_cover > 0.5
        # Heart and dome enclose a few pixels that no reader calls lung.
        masks = {f"{side} Lung": largest_part(self.field[side] > 0.5) for side in SIDES}
        masks["Heart"] = heart
        masks["Mediastinum"] = (self.mediastinum_cover > 0.5) | heart
        masks |= {name: cover > 0.5 for name, cover in self.clavicle_covers.items()}
        masks["Spine"] = self.spine_cover > 0.5
        masks["Ribs"] = np.maximum(*self.rib_covers) > 0.5
        body = canvas.fill(anatomy.torso, *anatomy.arms) > 0.5
        masks["Body"] = body
        masks["Diaphragm"] = (canvas.fill(*self._below_domes()) > 0.5) & body & ~heart
        return masks

    def _below_domes(self) -> list[np.ndarray]:
        """The abdomen f64[N,2], one polygon per side: from the dome down to 60 template mm below it."""
        parts = []
        for side in SIDES:
            dome = self.anatomy.fit(self.anatomy.lung_curves(side)[1])
            floor = dome[::-1] + np.array([0, 60 * self.size])
            middle = np.array([[0, dome[-1, 1]], [0, floor[0, 1]]])
            parts.append(np.concatenate([dome, middle, floor]))
        return parts

    def _trunk(self) -> np.ndarray:
        """Soft tissue of trunk, arms, breasts and abdomen on the frame."""
        anatomy, frame, size = self.anatomy, self.frame, self.size
        habitus, y = anatomy.body.habitus, self.grid[1]
        torso = frame.fill(anatomy.torso)
        rounding = rounded(frame, torso, 17 * size)
        level = y / self.scale[1]
        thickness = 0.80 + 0.2 / (1 + np.exp(-(level - 60) / 30)) + 0.07 / (1 + np.exp(-(level - 235) / 12))
        thickness = thickness - 0.1 / (1 + np.exp((level + 45) / 14))  # the neck is thin
        trunk = TRUNK * (1 + 0.08 * habitus) * rounding * thickness
        arms = 2.3 * rounded(frame, frame.fill(*anatomy.arms), 11 * size)
        trunk = frame.blur(np.maximum(trunk, arms), 2 * size)
        if anatomy.breasts:
            trunk += 0.75 * anatomy.body.breast * rounded(frame, frame.fill(*anatomy.breasts), 13 * size)
        else:
            pectoral = [ellipse((sign * 92, 75), (52, 48)) for sign in SIDES.values()]
            muscle = frame.fill(*(anatomy.fit(shape, 0.5) for shape in pectoral))
            trunk += 0.16 * (1 - anatomy.body.childhood) * frame.blur(muscle, 9 * size)
        mottle = self.noise(anatomy.rng(10), 24) + 0.7 * self.noise(anatomy.rng(13), 9)
        return trunk + 0.05 * frame.blur(mottle, 3 * size) * torso

    def _bones(self) -> np.ndarray:
        anatomy, canvas, size = self.anatomy, self.canvas, self.size
        density = anatomy.body.bone
        posterior, anterior = anatomy.ribs
        bones = 0.26 * self.rib_covers[0] + 0.24 * canvas.stroke(edges(posterior), 1.5 * size)
        bones += 0.19 * self.rib_covers[1] + 0.16 * canvas.stroke(edges(anterior), 1.5 * size)
        bones *= 1 - 0.4 * self.silhouette  # ribs fade where there is no air around them
        clavicles = np.stack([ribbon(line, width) for line, width in anatomy.clavicles.values()])
        bones += 0.34 * sum(self.clavicle_covers.values()) + 0.2 * canvas.stroke(edges(clavicles), 1.8 * size)
        bones += 0.16 * canvas.fill(*anatomy.scapulae) + 0.12 * canvas.stroke(anatomy.scapulae, 1.6 * size)
        bones += 0.75 * canvas.fill(*anatomy.humeri)
        return density * canvas.blur(bones + self._spine(), 0.7 * size)

    def _spine(self) -> np.ndarray:
        anatomy, canvas, size = self.anatomy, self.canvas, self.size
        middles = anatomy.vertebrae
        level = np.interp(middles[:, 1] / self.scale[1], [-60, 0, 280], [0, 0.3, 1])
        half = np.column_stack([(12.5 + 7.5 * level) * size, (6 + 6 * level) * self.scale[1]])
        corners = np.array([(-1, -1), (0, -0.9), (1, -1), (0.9, 0), (1, 1), (0, 0.9), (-1, 1), (-0.9, 0), (-1, -1)])
        bodies = middles[:, None] + corners * half[:, None]
        pedicles = np.concatenate([middles + half * (sign * 0.62, -0.3) for sign in (-1, 1)])
        pedicles = ellipse(pedicles, (2.6 * size, 4 * size), samples=16)
        processes = ellipse(middles + half * (0, 0.7), (2.4 * size, 6.5 * size), samples=16)
        column = 0.17 * self.spine_cover + 0.16 * canvas.fill(*bodies)
        column += 0.16 * canvas.stroke(bodies, 1.4 * size) + 0.18 * canvas.stroke(pedicles, 1.6 * size)
        return column + 0.2 * canvas.fill(*processes)

    def _hila(self) -> np.ndarray:
        """Pulmonary arteries at the hila, and the aortic knob's calcium in old age."""
        anatomy, canvas, size = self.anatomy, self.canvas, self.size
        opacity = 0.5 * self.project(self.frame.blur(self.frame.fill(*anatomy.hila.values()), 3.5 * size))
        calcification = 0.5 * np.clip((anatomy.patient.age - 62) / 25, 0, 1)
        if calcification:
            opacity += calcification * canvas.blur(canvas.stroke([anatomy.aortic_knob], 2.2 * size), 0.5 * size)
        return opacity

    def _airways(self) -> np.ndarray:
        air = self.canvas.fill(*(ribbon(*branch) for branch in self.anatomy.airways))
        return self.canvas.blur(air, 1.2 * self.size)

    @cached_property
    def markings(self) -> np.ndarray:
        """Vessels and the fine texture of the lungs, opacity f32[H,W]."""
        anatomy, canvas, size = self.anatomy, self.canvas, self.size
        tree = np.zeros(canvas.shape, np.uint8)
        for width, lines in anatomy.vessels:
            canvas.stroke_into(tree, lines, width, strength=min(1.0, 0.35 + 0.13 * width / size))
        vessels = canvas.blur(tree * np.float32(1 / 255), 0.8 * size)
        texture = self.project(self.noise(anatomy.rng(11), 3.6) + self.noise(anatomy.rng(12), 8))
        lungs = self.lung_cover["Left"] + self.lung_cover["Right"]
        return lungs * (1 - 0.6 * self.silhouette) * (0.55 * vessels + 0.04 * texture)

    def opacity(self, lesions: list[Lesion]) -> np.ndarray:
        """The whole chest with lesions, opacity f32[H,W]."""
        markings = self.markings.copy()
        for lesion in lesions:
            markings *= lesion.vessels
        total = self.project(self._trunk()) - self.air + self._hila() + self._bones() + markings
        total -= 0.42 * self._airways()
        bubble = self.canvas.blur(self.canvas.fill(self.anatomy.gastric_bubble), 1.5 * self.size)
        total -= 1.1 * bubble
        for lesion in lesions:
            total += lesion.opacity
        return np.maximum(total, 0, out=total)

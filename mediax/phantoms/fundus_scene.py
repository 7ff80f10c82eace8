"""The light that a retina reflects, layer on layer, and the exact masks of what lies in it."""

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from mediax.phantoms import fundus_lesions as lesions_of
from mediax.phantoms.canvas import smooth
from mediax.phantoms.fundus_anatomy import Eye, round_outline, unit_circle
from mediax.phantoms.fundus_lesions import MIDDLE, Lesion
from mediax.phantoms.fundus_view import Lines, View, tinted

FRAME_CORNER, FRAME_SIZE, FRAME_SPACING = (-12.0, -12.0), (27.0, 24.0), 0.1  # mm of the map that smooth layers cover
KINDS = {"Arteries": "artery", "Veins": "vein"}
ANNOTATED = 1.5  # pixels: how wide an annotator draws a vessel that is thinner

# Share of red, green and blue light that a full layer takes away, as -log.
MACULAR_PIGMENT = np.array([0.10, 0.36, 0.62], np.float32)
MELANIN = np.array([0.5, 0.8, 0.9], np.float32)
BLOOD = {
    "artery": np.array([0.18, 0.70, 0.70], np.float32),
    "vein": np.array([0.36, 0.98, 0.95], np.float32),
}


def _colour(red: float, green: float, blue: float) -> np.ndarray:
    return np.array([red, green, blue], np.float32)


@dataclass(frozen=True)
class Look:
    """How a lesion appears: `absorbs` darkens as -log, `colour` covers; `soft` mm of blur."""

    soft: float
    absorbs: np.ndarray | None = None
    colour: np.ndarray | None = None
    strength: float = 1.0


LOOKS = {
    lesions_of.MICROANEURYSM: Look(0.012, absorbs=_colour(0.22, 0.85, 0.5)),
    lesions_of.HAEMORRHAGE: Look(0.025, absorbs=_colour(0.38, 1.0, 0.8)),
    lesions_of.HARD_EXUDATE: Look(0.012, colour=_colour(1.0, 0.86, 0.46), strength=0.85),
    lesions_of.SOFT_EXUDATE: Look(0.075, colour=_colour(0.97, 0.8, 0.6), strength=0.72),
    lesions_of.ABNORMALITY: Look(0.01, absorbs=_colour(0.25, 0.75, 0.45)),
    lesions_of.NEW_VESSELS: Look(0.01, absorbs=_colour(0.22, 0.85, 0.5)),
    lesions_of.VITREOUS: Look(0.06, absorbs=_colour(0.6, 1.7, 1.1)),
}


class Scene:
    """One eye with its lesions in one view; `faintness` 0 to 1 takes contrast from thin vessels."""

    def __init__(self, eye: Eye, lesions: tuple[Lesion, ...], view: View, faintness: float):
        self.eye, self.lesions, self.view, self.faintness = eye, lesions, view, faintness
        drawn = [lesion for lesion in lesions if lesion.kind in LOOKS]
        shapes = [outlines(lesion, 1 / view.scale) for lesion in drawn]
        projected = iter(view.project([outline for shape in shapes for outline in shape]))
        # Each lesion's part of the image and how much of each pixel it covers.
        self.covers = {
            lesion: view.cover([next(projected) for _ in shape], margin=3 * LOOKS[lesion.kind].soft)
            for lesion, shape in zip(drawn, shapes)
        }

    def light(self) -> np.ndarray:
        """Reflected light f32[H,W,3], evenly lit; 1 is white."""
        light = self._projected(self._background())
        over = (lesions_of.SOFT_EXUDATE, lesions_of.NEW_VESSELS, lesions_of.VITREOUS)
        self._draw_disc(light)
        for lesion in self.covers:
            if lesion.kind not in over:
                self._draw_lesion(light, lesion)
        self._draw_vessels(light)
        for kind in over:  # in this order from the retina to the vitreous
            for lesion in self.covers:
                if lesion.kind == kind:
                    self._draw_lesion(light, lesion)
        return light

    def masks(self) -> dict[str, np.ndarray]:
        """Anatomy -> bool[H,W]."""
        fovea = 0.75 * unit_circle(40)  # mm
        outlines = {"Optic Disc": self.eye.disc, "Optic Cup": self.eye.cup, "Fovea": fovea}
        masks = {
            name: self._placed(*self.view.cover(self.view.project([outline]))) for name, outline in outlines.items()
        }
        masks["Optic Cup"] &= masks["Optic Disc"]
        masks |= {name: self.lines[kind].draw(1.0, least=ANNOTATED) >= 0.5 for name, kind in KINDS.items()}
        masks["Vessels"] = masks["Arteries"] | masks["Veins"]
        return masks

    def lesion_mask(self, lesion: Lesion) -> tuple[tuple[slice, slice], np.ndarray]:
        """The (rows, columns) that a lesion touches and bool[h,w] in them; the smallest one has a pixel."""
        if lesion.kind == lesions_of.BEADING:
            side = np.sign(self.view.grid - MIDDLE.astype(np.float32))
            here = (side == np.array(lesion.quadrant, np.float32)).all(axis=-1)
            return (slice(None), slice(None)), self._beaded & here
        window, cover = self.covers[lesion]
        mask = cover >= 0.5
        return window, mask if mask.any() or not cover.any() else cover == cover.max()

    @cached_property
    def lines(self) -> dict[str, Lines]:
        """Arteries and veins as lines of this view."""
        return {kind: self._lines(kind) for kind in BLOOD}

    def _lines(self, kind: str) -> Lines:
        vessels = [vessel for vessel in self.eye.vessels if vessel.kind == kind]
        widths = [vessel.widths * self._beading(vessel) for vessel in vessels]
        return Lines(self.view, [vessel.points for vessel in vessels], widths)

    @cached_property
    def _beaded_quadrants(self) -> set[tuple[int, int]]:
        return {lesion.quadrant for lesion in self.lesions if lesion.kind == lesions_of.BEADING}

    def _beading(self, vessel) -> np.ndarray | float:
        """The factor on a vein's width: a string of beads in the quadrants that have them."""
        if vessel.kind != "vein" or vessel.order > 1 or not self._beaded_quadrants:
            return 1.0
        side = np.where(vessel.points >= MIDDLE, 1, -1)
        here = np.any([(side == quadrant).all(axis=1) for quadrant in self._beaded_quadrants], axis=0)
        along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(vessel.points, axis=0).T))])
        return 1 + here * (0.12 + 0.4 * np.sin(2 * np.pi * along / 0.42))

    @cached_property
    def _beaded(self) -> np.ndarray:
        """bool[H,W]: the veins that beading widens and narrows."""
        veins = [vessel for vessel in self.eye.vessels if vessel.kind == "vein"]
        return self.lines["vein"].draw([vessel.order <= 1 for vessel in veins], least=ANNOTATED) >= 0.5

    def _draw_vessels(self, light: np.ndarray) -> None:
        """Round columns of blood: darker in the middle where they are thicker; a light reflex along the wide ones."""
        for kind in ("vein", "artery"):
            lines = self.lines[kind]
            width = lines.mean_widths
            depth = 1 - np.exp(-width / 0.035)
            depth *= 1 - 0.72 * self.faintness * np.exp(-((width / 0.07) ** 2))
            column = self.view.blur(lines.draw(depth, layers=((1.0, 0.65), (0.6, 1.0))), 0.012)
            light *= np.exp(tinted(-column, BLOOD[kind]))
            reflex = lines.draw(np.clip((width - 0.04) / 0.06, 0, 1), layers=((0.26, 1.0),))
            reflex = self.view.blur(reflex, 0.01) * (1 - self._disc_cover)
            light += tinted(reflex) * light * (0.5 if kind == "artery" else 0.22)

    @cached_property
    def _disc_cover(self) -> np.ndarray:
        cover = np.zeros(self.view.shape, np.float32)
        window, part = self.view.cover(self.view.project([self.eye.disc]))
        cover[window] = part
        return cover

    def _draw_disc(self, light: np.ndarray) -> None:
        eye, rng = self.eye, self.eye.rng(4)
        pallor = 0.35 * max(eye.cup_to_disc - 0.5, 0) + rng.uniform(0, 0.15)
        rim = _colour(0.97, 0.66 + 0.2 * pallor, 0.42 + 0.3 * pallor)
        crescent = eye.disc_centre + (eye.disc - eye.disc_centre) * rng.uniform(1.02, 1.16) - (rng.uniform(0, 0.16), 0)
        layers = (
            (crescent, 0.07, _colour(0.9, 0.5, 0.32), 0.5),
            (eye.disc, 0.035, rim, 0.95),
            (eye.cup, 0.07, _colour(1.0, 0.9, 0.66), 0.9),
        )
        for outline, soft, colour, strength in layers:
            window, cover = self.view.cover(self.view.project([outline]), margin=3 * soft)
            if not cover.size:
                continue
            alpha = strength * self.view.blur(cover, soft)[..., None]
            # The temporal side is paler, the nasal side lies under more nerve fibres.
            nasal = (self.view.grid[window][..., :1] - eye.disc_centre[0].astype(np.float32)) / 0.9
            shaded = colour * np.exp(-nasal.clip(-1, 1) * _colour(0.015, 0.09, 0.11))
            light[window] += alpha * (shaded - light[window])

    def _draw_lesion(self, light: np.ndarray, lesion: Lesion) -> None:
        look = LOOKS[lesion.kind]
        window, cover = self.covers[lesion]
        if not cover.size:
            return
        strength = look.strength * (0.75 + 0.25 * (lesion.seed % 997) / 997)
        if lesion.form == "diffuse":
            strength *= 0.75
        alpha = (strength * self.view.blur(cover, look.soft))[..., None]
        part = light[window]
        light[window] = (
            part + alpha * (look.colour - part) if look.absorbs is None else part * np.exp(-alpha * look.absorbs)
        )

    def _background(self) -> np.ndarray:
        """The retina without disc and vessels, f32[h,w,3] on the frame: the same eye at every resolution."""
        eye, (x, y) = self.eye, _frame_grid()
        person, rng = eye.person, eye.rng(5)
        fair = 1 - person.pigmentation
        base = _colour(0.64, 0.25, 0.125) + fair * _colour(0.22, 0.15, 0.1)
        mottle = sum(
            strength * _noise(rng, cell) for cell, strength in ((0.25, 0.012), (0.7, 0.02), (2.0, 0.04), (6, 0.07))
        )
        reach = np.sqrt(x**2 + (y * 1.08) ** 2)
        periphery = 1 - np.exp(-((reach / 3.2) ** 2))
        choroid = (0.35 - np.abs(_noise(rng, 0.55) + 0.6 * _noise(rng, 1.1))).clip(-0.5) * periphery
        melanin = mottle - 0.16 * (fair**1.5 + 0.15) * choroid
        macula = (
            0.75 * np.exp(-((reach / 1.05) ** 2))
            + 0.5 * np.exp(-((reach / 0.38) ** 2))
            + 0.22 * np.exp(-((reach / 2.4) ** 2))
        )
        light = np.exp(tinted(-melanin, MELANIN) - tinted(macula, MACULAR_PIGMENT))
        light = cv2.transform(light, np.diag(base))
        light += tinted(self._nerve_fibres(x, y, rng), _colour(0.10, 0.16, 0.13))
        youth = float(np.clip(1 - person.age / 70, 0, 1))
        light += tinted((0.02 + 0.08 * youth) * np.exp(-((reach / 0.06) ** 2)))  # the pit's reflex
        return light

    def _nerve_fibres(self, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The sheen of the nerve fibres f32[h,w]: striped bundles above and below the disc."""
        centre_x, centre_y = self.eye.disc_centre.tolist()
        right, down = x - centre_x, y - centre_y
        reach, turn = np.sqrt(right**2 + down**2), np.arctan2(down, right + 0.25 * np.abs(down))
        height = np.abs(np.sin(turn))
        bundles = height * np.sqrt(height) * np.exp(-(((reach - 1.3) / 1.5) ** 2))
        stripes = np.interp(turn, np.linspace(-np.pi, np.pi, 200), 1 + 0.35 * rng.standard_normal(200))
        stripes = stripes.astype(np.float32)
        youth = float(np.clip(1.25 - self.eye.person.age / 80, 0.2, 1))
        return youth * 0.75 * bundles * stripes

    def _projected(self, frame: np.ndarray) -> np.ndarray:
        place = (self.view.grid - np.array(FRAME_CORNER, np.float32)) / np.float32(FRAME_SPACING) - np.float32(0.5)
        return cv2.remap(frame, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _placed(self, window: tuple[slice, slice], cover: np.ndarray) -> np.ndarray:
        mask = np.zeros(self.view.shape, bool)
        mask[window] = cover >= 0.5
        return mask


def _frame_grid() -> tuple[np.ndarray, np.ndarray]:
    """x and y in mm, f32 that broadcast to the frame's shape."""
    width, height = (round(length / FRAME_SPACING) for length in FRAME_SIZE)
    x = FRAME_CORNER[0] + (np.arange(width, dtype=np.float32) + 0.5) * FRAME_SPACING
    y = FRAME_CORNER[1] + (np.arange(height, dtype=np.float32) + 0.5) * FRAME_SPACING
    return x[None, :], y[:, None]


def _noise(rng: np.random.Generator, cell: float) -> np.ndarray:
    """Smooth noise f32 on the frame, about one standard deviation strong; `cell` is its grain in mm."""
    width, height = (round(length / FRAME_SPACING) for length in FRAME_SIZE)
    coarse = rng.standard_normal([int(length / cell) + 3 for length in FRAME_SIZE[::-1]], dtype=np.float32)
    return 1.3 * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def outlines(lesion: Lesion, pixel: float) -> list[np.ndarray]:
    """A lesion's closed polygons f64[N,2] in mm; `pixel` (mm) is the least width of its fine vessels."""
    rng = np.random.default_rng(lesion.seed)
    if lesion.kind in (lesions_of.ABNORMALITY, lesions_of.NEW_VESSELS):
        shapes = _tangle(lesion, rng, max(0.022, pixel))
    elif lesion.form == "flame":
        shapes = _flame(rng)
    elif lesion.form == "preretinal":
        shapes = [_boat(rng)]
    elif lesion.kind == lesions_of.SOFT_EXUDATE or lesion.form == "diffuse":
        shapes = [0.55 * rng.normal(0, 0.8, 2) + round_outline(rng, 0.09) * rng.uniform(0.45, 0.8) for _ in range(4)]
    else:
        uneven = 0.03 if lesion.kind == lesions_of.MICROANEURYSM else 0.06
        shapes = [round_outline(rng, uneven, samples=24) * (1.12, 0.9)]
    turn = 0.0 if lesion.form == "preretinal" else lesion.angle
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return [np.array(lesion.centre) + lesion.radius * shape @ rotation for shape in shapes]


def _flame(rng: np.random.Generator) -> list[np.ndarray]:
    """Spindles side by side, of length 2 along x."""
    shapes = []
    for across in np.linspace(-0.28, 0.28, 5):
        length = rng.uniform(0.55, 1.0) * (1 - abs(across))
        shapes.append(unit_circle(20) * (length, 0.14) + (rng.normal(0, 0.16), across))
    return shapes


def _boat(rng: np.random.Generator) -> np.ndarray:
    """Blood that has sunk before the retina: level on top, round below."""
    turn = np.linspace(0, np.pi, 30)
    deep = rng.uniform(0.55, 0.95)
    return np.column_stack([np.cos(turn), deep * np.sin(turn) ** 0.8])


def _tangle(lesion: Lesion, rng: np.random.Generator, width: float) -> list[np.ndarray]:
    """Fine vessels that wind and loop, in radii of the lesion."""
    looped = lesion.kind == lesions_of.NEW_VESSELS
    shapes = []
    for _ in range(9 if looped else 4):
        turn = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0.35 if looped else 0, 0.75, 7))
        path = np.cumsum(0.24 * np.column_stack([np.cos(turn), np.sin(turn)]), axis=0)
        line = smooth(np.vstack([[0, 0], path]) + rng.normal(0, 0.15, 2), samples=26)
        shapes.append(_ribbon(line, 0.5 * width / lesion.radius))
    return shapes


def _ribbon(line: np.ndarray, half_width: float) -> np.ndarray:
    along = np.gradient(line, axis=0)
    across = along[:, ::-1] * (-1, 1) / (np.hypot(*along.T)[:, None] + 1e-9) * half_width
    return np.concatenate([line + across, (line - across)[::-1]])

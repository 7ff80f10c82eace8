"""Tubes, lines, pacemakers and wires on a frontal radiograph."""

from collections.abc import Callable

import numpy as np

from mediax.phantoms.canvas import ellipse, smooth
from mediax.phantoms.chest_anatomy import FrontalAnatomy
from mediax.phantoms.chest_frontal import FrontalScene
from mediax.phantoms.chest_scene import Lesion, Scene

# A part of a device: closed polygons that are filled, or lines with a width in mm; both with an opacity.
Part = tuple[list[np.ndarray], float, float]


def endotracheal_tube(anatomy: FrontalAnatomy, rng: np.random.Generator) -> list[Part]:
    """A tube in the trachea; its tip lies 2 to 6 cm above the carina."""
    tip, lean = 82 - rng.uniform(20, 60), rng.normal(0, 1.5)
    line = anatomy.fit(smooth([(lean, -140), (-lean, -70), (lean / 2, 0), (1, tip)]), 0.1)
    return [([line], 9.0, 0.22), ([line + np.array([3 * anatomy.size, 0])], 1.8, 1.0)]


def nasogastric_tube(anatomy: FrontalAnatomy, rng: np.random.Generator) -> list[Part]:
    """A tube down the oesophagus into the stomach, under the left dome."""
    end = rng.uniform(35, 80)
    knots = [(6, -140), (5, -60), (6, 40), (10, 130), (14, 215), (26, 256), (end, 285), (end + 18, 305)]
    line = anatomy.fit(smooth(knots), -0.1)
    return [([line], 4.0, 0.35), ([line], 1.6, 0.8)]


def central_line(anatomy: FrontalAnatomy, rng: np.random.Generator) -> list[Part]:
    """A venous catheter with its tip in the superior vena cava: jugular, subclavian or from the arm."""
    tip = rng.uniform(72, 112)
    end = [(-22, 52), (-24, tip)]
    routes = (
        [(-48, -130), (-44, -60), (-34, 0), *end],
        [(-150, 38), (-112, 14), (-66, 18), (-32, 26), *end],
        [(-226, 160), (-206, 62), (-160, 20), (-90, 10), (-40, 20), *end],
        [(150, 38), (105, 12), (56, 20), (10, 30), (-14, 40), *end],
    )
    line = anatomy.fit(smooth(routes[int(rng.integers(len(routes)))]), 0.2)
    return [([line], 2.0, 0.95)]


def pacemaker(anatomy: FrontalAnatomy, rng: np.random.Generator) -> list[Part]:
    """A generator under the left clavicle with one or two leads to the right heart."""
    x, y, turn = 118 + rng.normal(0, 4), 58 + rng.normal(0, 6), rng.normal(0, 0.25)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    rounded = np.column_stack([np.cos(angle), np.sin(angle)])
    rounded = np.sign(rounded) * np.abs(rounded) ** 0.55 * (23, 19)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    case = anatomy.fit(rounded @ rotation + (x, y), 0.9)
    start = [(x - 10, y - 19), (92, 22), (58, 22), (10, 34), (-20, 54), (-26, 110)]
    heart = anatomy.heart / anatomy.scale
    apex = np.array([0.62 * heart[:, 0].max(), 236])
    leads = [smooth([*start, (-22, 170), (5, 222), (apex - np.array([0, 6])).tolist()], samples=90)]
    if rng.random() < 0.6:
        leads.append(smooth([*start, (-34, 165), (-40, 172), (-44, 150)], samples=90))
    leads = [anatomy.fit(lead, 0.5) for lead in leads]
    tips = [ellipse(lead[-1], (1.8 * anatomy.size, 1.8 * anatomy.size)) for lead in leads]
    return [([case], 0, 2.2), (leads, 1.9, 1.0), (tips, 0, 1.2)]


def monitor_wires(anatomy: FrontalAnatomy, rng: np.random.Generator) -> list[Part]:
    """Electrodes of an electrocardiograph on the skin with their wires."""
    places = np.array([(-105, 60), (108, 62), (95, 215)], float) + rng.normal(0, 12, (3, 2))
    discs, rings, wires = [], [], []
    for place in places:
        bend = rng.normal(0, 22, 2)
        side = np.sign(place[0])
        steps = np.array([(0, 0), (side * 18 + bend[0], 50), (-side * 20 + bend[1], 130)])
        wires.append(anatomy.fit(smooth([*(place + steps), (side * 60, 420)], samples=50), 1))
        discs.append(ellipse(anatomy.fit(place, 1), (4.2 * anatomy.size, 4.2 * anatomy.size)))
        rings.append(ellipse(anatomy.fit(place, 1), (9.5 * anatomy.size, 9.5 * anatomy.size)))
    return [(wires, 1.6, 0.8), (discs, 0, 1.5), (rings, 0, 0.18)]


DEVICES: tuple[Callable[[FrontalAnatomy, np.random.Generator], list[Part]], ...] = (
    endotracheal_tube,
    nasogastric_tube,
    central_line,
    pacemaker,
    monitor_wires,
)
# How often each is seen: on a portable image of a bedridden patient, and on an upright one.
PORTABLE = (0.45, 0.45, 0.55, 0.12, 0.4)
UPRIGHT = (0.03, 0.12, 0.42, 0.5, 0.15)


def support_devices(scene: FrontalScene, rng: np.random.Generator, severity: float) -> list[Lesion]:
    """At least one device, one instance each; severity makes them more opaque."""
    chance = np.array(PORTABLE if scene.anatomy.portable else UPRIGHT)
    draw = rng.random(len(DEVICES))
    chosen = draw < chance
    chosen[np.argmin(draw / chance)] = True
    strength = 0.75 + 0.45 * severity
    return [draw_device(scene, device(scene.anatomy, rng), strength) for device, use in zip(DEVICES, chosen) if use]


def draw_device(scene: Scene, parts: list[Part], strength: float) -> Lesion:
    canvas, size = scene.canvas, scene.size
    opacity = np.zeros(canvas.shape, np.float32)
    drawn = np.zeros(canvas.shape, bool)
    for shapes, width, density in parts:
        if width:
            stripes = np.zeros(canvas.shape, np.uint8)
            canvas.stroke_into(stripes, shapes, width * size)
            opacity += np.float32(density / 255) * stripes
            drawn |= stripes > 0.4 * stripes.max()
        else:
            cover = canvas.fill(*shapes)
            opacity += density * cover
            drawn |= cover > 0.5
    return Lesion("Support Devices", drawn, opacity=strength * canvas.blur(opacity, 0.3 * size))

"""From opacity to a displayed radiograph: exposure, scatter, noise, tone curve, collimation, side marker."""

from dataclasses import dataclass

import cv2
import numpy as np

from mediax.phantoms.canvas import Canvas


@dataclass(frozen=True)
class Acquisition:
    """How one image was taken; drawn apart from the findings, so that it can tell nothing about them."""

    rotation: float  # radians
    shift: tuple[float, float]  # mm, of an adult
    zoom: float
    yaw: float  # mm, of an adult
    inspiration: float
    centre: float  # opacity that is shown as middle grey
    width: float  # opacity per unit of the tone curve
    dose: float
    collimation: tuple[float, float, float, float]  # hidden share of the image: top, left, bottom, right
    shutter: float  # grey level of the collimated border
    marker: str  # "L", "R" or none


def sample_acquisition(rng: np.random.Generator, portable: bool, positioning: float = 1.0) -> Acquisition:
    """How one image is taken; `positioning` multiplies the spread of the patient's rotation, shift and zoom."""
    spread = 1.7 if portable else 1.0
    collimated = rng.random() < 0.45
    collimation = rng.uniform(-0.03, 0.03, 4).clip(0) * collimated
    return Acquisition(
        rotation=positioning * float(np.radians(np.clip(rng.normal(0, 1.2 * spread), -5, 5))),
        shift=tuple((positioning * np.clip(rng.normal(0, 4 * spread, 2), -10, 10)).tolist()),
        zoom=float(rng.uniform(0.98, 1.06)) ** positioning,
        yaw=float(np.clip(rng.normal(0, 2.5 * spread), -8, 8)),
        inspiration=float(rng.uniform(0.84, 0.95) if portable else rng.uniform(0.96, 1.02)),
        centre=float(np.clip(rng.normal(2.45, 0.18), 2, 2.9)),
        width=float(rng.uniform(0.6, 0.9)),
        dose=float(rng.uniform(0.6, 1.6) * (0.7 if portable else 1)),
        collimation=tuple(collimation.tolist()),
        shutter=float(rng.choice([0.0, 0.0, 0.0, 0.02, 0.97])),
        marker=str(rng.choice(["", "", "L", "L", "R"])),
    )


def exposed_area(shape: tuple[int, int], acquisition: Acquisition) -> tuple[slice, slice]:
    """Rows and columns that the collimator leaves free."""
    top, left, bottom, right = acquisition.collimation
    height, width = shape
    rows = slice(round(top * height), height - round(bottom * height))
    return rows, slice(round(left * width), width - round(right * width))


def develop(opacity: np.ndarray, canvas: Canvas, acquisition: Acquisition, rng: np.random.Generator) -> np.ndarray:
    """Opacity f32[H,W] -> image f32[H,W] in [0, 1], dense parts bright."""
    # Noise of a quantum-limited detector after the logarithm: relative noise grows as the signal falls.
    noise = rng.standard_normal(opacity.shape, dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (3, 3), 0.6)
    photons = 2.2e4 * acquisition.dose * canvas.spacing**2
    signal = np.exp(-opacity) + np.float32(0.004)  # scatter veils the densest parts
    measured = -np.log(signal) + noise / np.sqrt(photons * signal)
    image = 1 / (1 + np.exp((acquisition.centre - measured) / acquisition.width))
    image = (image - 0.02) / 0.96
    _stamp(image, acquisition)
    rows, columns = exposed_area(image.shape, acquisition)
    framed = np.full_like(image, acquisition.shutter)
    framed[rows, columns] = image[rows, columns]
    return np.clip(framed, 0, 1, out=framed)


def _stamp(image: np.ndarray, acquisition: Acquisition) -> None:
    """The lead letter beside the shoulder: L on the patient's left."""
    if not acquisition.marker:
        return
    height, width = image.shape
    scale = min(height, width) / 512
    column = 0.885 if acquisition.marker == "L" else 0.055
    corner = (int(column * width), int(0.12 * height))
    letter = np.zeros(image.shape, np.uint8)
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(1, round(3 * scale))
    cv2.putText(letter, acquisition.marker, corner, font, 1.3 * scale, 255, thickness, cv2.LINE_AA)
    np.maximum(image, letter * np.float32(1 / 255), out=image)

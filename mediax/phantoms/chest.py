"""A procedural chest radiograph with exact truth: who it is, what is wrong, and where.

`frontal` and `lateral` draw one image from a seed; the same arguments give the same bytes in any process. Geometry is
in millimetres, so that another `size` samples the same patient more finely or coarsely.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np

from mediax.errors import InputError
from mediax.phantoms import chest_findings, chest_lateral
from mediax.phantoms.canvas import Canvas, posed_canvas
from mediax.phantoms.chest_anatomy import FrontalAnatomy
from mediax.phantoms.chest_detector import Acquisition, develop, exposed_area, sample_acquisition
from mediax.phantoms.chest_frontal import FrontalScene
from mediax.phantoms.chest_lateral import LateralAnatomy, LateralScene
from mediax.phantoms.chest_patient import Patient, build, sample_patient
from mediax.phantoms.chest_scene import Lesion

__all__ = ["FINDINGS", "PREVALENCE", "Patient", "Radiograph", "frontal", "lateral", "sample_findings", "sample_patient"]

FINDINGS = tuple(chest_findings.DRAW)
ADULT_WIDTH, ADULT_FIELD = 288.0, 400.0  # mm: a man's thorax from rib to rib, and what his radiograph covers

PREVALENCE = {
    "Cardiomegaly": 0.22,
    "Pleural Effusion": 0.24,
    "Consolidation": 0.17,
    "Atelectasis": 0.20,
    "Edema": 0.17,
    "Nodule": 0.19,
    "Pneumothorax": 0.14,
    "Support Devices": 0.28,
    "Mass": 0.09,
}

# What findings share: congestion of the heart, infection, intensive care. Loadings of a Gaussian copula.
COMMON_CAUSES = {
    "Cardiomegaly": (0.75, 0.0, 0.1),
    "Pleural Effusion": (0.6, 0.35, 0.35),
    "Consolidation": (0.0, 0.75, 0.2),
    "Atelectasis": (0.2, 0.3, 0.5),
    "Edema": (0.8, 0.0, 0.3),
    "Nodule": (0.0, 0.1, -0.1),
    "Pneumothorax": (-0.1, 0.0, 0.5),
    "Support Devices": (0.25, 0.1, 0.8),
    "Mass": (0.0, 0.2, 0.0),
}


@dataclass(frozen=True)
class Radiograph:
    """One image and everything that is true about it.

    Positions are in pixel edges: pixel (row, column) spans [row, row + 1) x [column, column + 1). "Left" is the
    patient's left, on the image's right side in a frontal view.
    """

    image: np.ndarray  # f32[H,W] in [0, 1], dense parts bright (MONOCHROME2)
    masks: dict[str, np.ndarray]  # anatomy -> bool[H,W]
    finding_masks: dict[str, np.ndarray]  # finding that is present -> bool[H,W], the union of its instances
    boxes: tuple[tuple[str, int, int, int, int], ...]  # (finding, ymin, xmin, ymax, xmax), half-open, one per instance
    instances: tuple[np.ndarray, ...]  # bool[H,W], in the order of boxes; a lesion outside of the collimator has none
    landmarks: dict[str, tuple[float, float]]  # name -> (y, x)
    sex: str
    age: float  # years
    view: str  # "PA", "AP" or "Lateral"
    spacing_mm: tuple[float, float]  # (row, column) in the patient's plane


def sample_findings(rng: np.random.Generator, prevalence: Mapping[str, float] | None = None) -> frozenset[str]:
    """Findings that occur together as in a hospital: about a quarter of the patients have none.

    `prevalence` overrides how often single findings occur (`PREVALENCE`); they stay correlated through common causes.
    """
    rates = PREVALENCE | dict(prevalence or {})
    _check_findings(rates)
    causes, own = rng.standard_normal(3), rng.standard_normal(len(FINDINGS))
    present = set()
    for finding, chance in zip(FINDINGS, own):
        loading = np.array(COMMON_CAUSES[finding])
        latent = loading @ causes + chance * sqrt(1 - loading @ loading)
        if 0.5 * (1 + erf(latent / sqrt(2))) > 1 - rates[finding]:
            present.add(finding)
    return frozenset(present)


def frontal(
    seed: int,
    *,
    patient: Patient | None = None,
    findings: Iterable[str] = (),
    size: int | tuple[int, int] = 256,
    view: str = "PA",
    severity: float | None = None,
    positioning: float = 1.0,
) -> Radiograph:
    """A frontal radiograph of a patient with findings.

    The seed fixes how the image is taken and where the findings lie; `patient` (default: the seed's) fixes the body.
    `size` is the side or (height, width) in pixels, `view` "PA" or "AP" (in bed: larger heart, less inspiration),
    `severity` 0 (subtle) to 1 (obvious), drawn for each finding by default; `positioning` multiplies how far the
    patient is shifted, turned and zoomed. Raises InputError on an unknown finding or view.
    """
    findings = _check_findings(findings)
    if view not in ("PA", "AP"):
        raise InputError(f'view: found {view!r}, expected "PA" or "AP"; call `lateral` for a lateral view.')
    patient = patient or sample_patient(seed)
    portable = view == "AP"
    acquisition = sample_acquisition(np.random.default_rng([seed, 1]), portable, positioning)
    body = build(patient)
    plan = _plan(seed, findings, severity)
    raised = chest_findings.volume_loss(*plan["Atelectasis"]) if "Atelectasis" in plan else (0.0, 0.0)
    yaw = acquisition.yaw * body.thorax_width / ADULT_WIDTH
    heart_ratio = _heart_ratio(body.heart_ratio + 0.025 * portable, plan)
    anatomy = FrontalAnatomy(patient, body, heart_ratio, portable, acquisition.inspiration, yaw, raised)
    scene = FrontalScene(anatomy, _canvas(size, anatomy, acquisition))
    lesions = [lesion for finding in plan for lesion in chest_findings.DRAW[finding](scene, *plan[finding])]
    return _radiograph(scene, lesions, acquisition, np.random.default_rng([seed, 2]), view)


def lateral(
    seed: int,
    *,
    patient: Patient | None = None,
    findings: Iterable[str] = (),
    size: int | tuple[int, int] = 256,
    severity: float | None = None,
) -> Radiograph:
    """A lateral radiograph, the patient facing the image's left; both lungs lie on each other. See `frontal`."""
    findings = _check_findings(findings)
    acquisition = sample_acquisition(np.random.default_rng([seed, 3]), portable=False)
    patient = patient or sample_patient(seed)
    body = build(patient)
    plan = _plan(seed, findings, severity)
    anatomy = LateralAnatomy(patient, body, _heart_ratio(body.heart_ratio, plan))
    scene = LateralScene(anatomy, _canvas(size, anatomy, acquisition))
    lesions = [lesion for finding in plan for lesion in chest_lateral.DRAW[finding](scene, *plan[finding])]
    return _radiograph(scene, lesions, acquisition, np.random.default_rng([seed, 4]), "Lateral")


def _plan(seed: int, findings: tuple[str, ...], severity: float | None) -> dict[str, tuple[np.random.Generator, float]]:
    """Finding -> its own chance and its severity: one finding's presence cannot move another."""
    plan = {}
    for finding in findings:
        rng = np.random.default_rng([seed, 100 + FINDINGS.index(finding)])
        drawn = float(rng.beta(1.8, 1.1))
        plan[finding] = rng, drawn if severity is None else float(np.clip(severity, 0, 1))
    return plan


def _heart_ratio(normal: float, plan) -> float:
    """The heart's size on this day: an enlarged heart is part of the anatomy."""
    return chest_findings.enlarged_heart_ratio(normal, *plan["Cardiomegaly"]) if "Cardiomegaly" in plan else normal


def _check_findings(findings: Iterable[str]) -> tuple[str, ...]:
    """Findings in the order of FINDINGS, so that a set's order cannot matter."""
    wanted = {findings} if isinstance(findings, str) else set(findings)
    unknown = sorted(wanted - set(FINDINGS))
    if unknown:
        raise InputError(f"findings: found {unknown}, expected names out of {list(FINDINGS)}.")
    return tuple(finding for finding in FINDINGS if finding in wanted)


def _canvas(size: int | tuple[int, int], anatomy: FrontalAnatomy | LateralAnatomy, acquisition: Acquisition) -> Canvas:
    shape = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    # A radiographer opens the collimator to the patient's size.
    scale = anatomy.body.thorax_width / ADULT_WIDTH
    field = ADULT_FIELD * (0.06 + 0.94 * scale) * acquisition.zoom
    right, down = scale * acquisition.shift[0], scale * acquisition.shift[1]
    return posed_canvas(shape, field, (right, 128 * anatomy.scale[1] + down), acquisition.rotation)


def _radiograph(
    scene: FrontalScene | LateralScene,
    lesions: list[Lesion],
    acquisition: Acquisition,
    noise: np.random.Generator,
    view: str,
) -> Radiograph:
    """The image, and the truth as far as the collimator shows it."""
    canvas, anatomy = scene.canvas, scene.anatomy
    shown = np.zeros(canvas.shape, bool)
    shown[exposed_area(canvas.shape, acquisition)] = True
    boxes, instances, finding_masks = [], [], {}
    for lesion in lesions:
        mask = lesion.mask & shown
        if not mask.any():
            continue
        boxes.append((lesion.finding, *_box(mask)))
        instances.append(mask)
        finding_masks[lesion.finding] = finding_masks.get(lesion.finding, False) | mask
    return Radiograph(
        image=develop(scene.opacity(lesions), canvas, acquisition, noise),
        masks={name: mask & shown for name, mask in scene.masks().items()},
        finding_masks=finding_masks,
        boxes=tuple(boxes),
        instances=tuple(instances),
        landmarks={name: tuple(canvas.pixels(xy)[::-1].tolist()) for name, xy in anatomy.landmarks().items()},
        sex=anatomy.patient.sex,
        age=anatomy.patient.age,
        view=view,
        spacing_mm=(canvas.spacing, canvas.spacing),
    )


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(ymin, xmin, ymax, xmax), half-open, tight around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1

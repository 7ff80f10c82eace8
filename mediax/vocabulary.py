"""Canonical names of findings and structures, with the spellings that datasets use and what each one implies.

This is the only file with label strings, apart from each dataset's own column names. To add a name, add a `Term`.
"""

import dataclasses
import difflib
import functools
import re

from mediax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Term:
    """One canonical name. `parents` are the terms that hold wherever this one does (a mass is a lung lesion)."""

    name: str
    parents: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()


CHEST_FINDINGS = (
    Term("No Finding", synonyms=("Normal", "Healthy")),
    # Heart, mediastinum, vessels. CheXpert's hierarchy of labels follows Irvin et al., AAAI 2019 (arXiv:1901.07031).
    Term("Enlarged Cardiomediastinum"),
    Term("Cardiomegaly", ("Enlarged Cardiomediastinum",)),
    Term("Aortic Enlargement", ("Enlarged Cardiomediastinum",)),
    Term("Enlarged Pulmonary Artery", ("Enlarged Cardiomediastinum",), ("Enlarged PA",)),
    Term("Mediastinal Shift"),
    Term("Mediastinal Widening", ("Enlarged Cardiomediastinum",), ("Widened Mediastinum",)),
    Term("Pneumomediastinum"),
    Term("Aortic Calcification", ("Calcification",), ("Aortic Atherosclerosis",)),
    Term("Hilar Enlargement", (), ("Enlarged Hilum",)),
    # Lung.
    Term("Lung Opacity", synonyms=("Airspace Opacity", "Opacity")),
    Term("Lung Lesion", ("Lung Opacity",)),
    Term("Nodule/Mass", ("Lung Lesion",), ("Nodule or Mass",)),
    Term("Nodule", ("Nodule/Mass",), ("Pulmonary Nodule", "Lung Nodule")),
    Term("Diffuse Nodule", ("Nodule",), ("Diffuse Nodules",)),
    Term("Mass", ("Nodule/Mass",), ("Lung Mass",)),
    Term("Lung Tumor", (), ("Lung Tumour",)),
    Term("Lung Cavity"),
    Term("Lung Cyst"),
    Term("Edema", ("Lung Opacity",), ("Oedema", "Pulmonary Edema")),
    Term("Consolidation", ("Lung Opacity",)),
    Term("Pneumonia", ("Consolidation",)),
    Term("Infiltration", ("Lung Opacity",), ("Infiltrate",)),
    Term("Atelectasis", ("Lung Opacity",)),
    Term("Interstitial Lung Disease", (), ("ILD",)),
    Term("Pulmonary Fibrosis", (), ("Fibrosis",)),
    Term("Emphysema"),
    Term("Chronic Obstructive Pulmonary Disease", (), ("COPD",)),
    Term("Bronchiectasis"),
    Term("Calcification"),
    Term("Granuloma", ("Calcification",), ("Calcified Granuloma",)),
    Term("Miliary Pattern", ("Lung Opacity",), ("Miliary",)),
    Term("Tuberculosis", (), ("TB", "Pulmonary Tuberculosis", "PulmonaryTuberculosis")),
    Term("Active Tuberculosis", ("Tuberculosis",), ("ActiveTuberculosis",)),
    Term("Latent Tuberculosis", ("Tuberculosis",), ("ObsoletePulmonaryTuberculosis", "Obsolete Tuberculosis")),
    # Pleura, chest wall, the rest.
    Term("Pneumothorax"),
    Term("Pleural Effusion", (), ("Effusion",)),
    Term("Pleural Thickening", ("Pleural Other",)),
    Term("Pleural Other"),
    Term("Hernia", (), ("Hiatal Hernia",)),
    Term("Fracture"),
    Term("Clavicle Fracture", ("Fracture",)),
    Term("Rib Fracture", ("Fracture",)),
    Term("Scoliosis"),
    Term("Subcutaneous Emphysema"),
    Term("Pneumoperitoneum"),
    Term("Elevated Diaphragm", (), ("Elevated Hemidiaphragm",)),
    Term("Support Devices", (), ("Support Device",)),
    Term("Endotracheal Tube", ("Support Devices",), ("ETT",)),
    Term("Nasogastric Tube", ("Support Devices",), ("NGT",)),
    Term("Central Venous Catheter", ("Support Devices",), ("CVC", "Central Line")),
    Term("Chest Tube", ("Support Devices",), ("Chest Drain",)),
    Term("Pacemaker", ("Support Devices",)),
    Term("Other Lesion"),
    Term("Other Disease", (), ("Other Diseases",)),
    Term("Sick Non-Tuberculosis", (), ("Sick",)),
)

CHEST_STRUCTURES = (
    Term("Lungs", (), ("Lung", "Lung Field", "Lung Fields")),
    Term("Left Lung", ("Lungs",)),
    Term("Right Lung", ("Lungs",)),
    Term("Heart"),
    Term("Body"),
    Term("Clavicles", (), ("Clavicle",)),
    Term("Left Clavicle", ("Clavicles",)),
    Term("Right Clavicle", ("Clavicles",)),
    Term("Ribs", (), ("Rib",)),
    Term("Spine", (), ("Vertebrae",)),
    Term("Diaphragm"),
    Term("Mediastinum"),
    Term("Aorta"),
    Term("Trachea"),
)

# What is true of a whole radiograph without being a finding: teaching sets ask for it.
IMAGE_PROPERTIES = (
    Term("Orientation Up", (), ("Up",)),
    Term("Orientation Down", (), ("Down",)),
    Term("Orientation Left", (), ("Left",)),
    Term("Orientation Right", (), ("Right",)),
    Term("Female", (), ("F", "Woman")),
    Term("Male", (), ("M", "Man")),
    Term("Anomaly", (), ("Anom", "Abnormal")),
)

FUNDUS_FINDINGS = (
    Term("Diabetic Retinopathy"),
    Term("No Diabetic Retinopathy", (), ("No DR",)),
    Term("Mild Diabetic Retinopathy", ("Diabetic Retinopathy",), ("Mild DR", "Mild NPDR")),
    Term("Moderate Diabetic Retinopathy", ("Referable Diabetic Retinopathy",), ("Moderate DR", "Moderate NPDR")),
    Term("Severe Diabetic Retinopathy", ("Referable Diabetic Retinopathy",), ("Severe DR", "Severe NPDR")),
    Term("Proliferative Diabetic Retinopathy", ("Referable Diabetic Retinopathy",), ("Proliferative DR", "PDR")),
    Term("Referable Diabetic Retinopathy", ("Diabetic Retinopathy",), ("Referable DR",)),
    Term("Glaucoma", (), ("Glaucomatous",)),
    Term("Microaneurysm", (), ("Microaneurysms",)),
    Term("Haemorrhage", (), ("Hemorrhage", "Haemorrhages", "Hemorrhages")),
    Term("Hard Exudate", (), ("Hard Exudates",)),
    Term("Soft Exudate", (), ("Soft Exudates", "Cotton Wool Spot", "Cotton Wool Spots")),
    Term("Neovascularisation", ("Proliferative Diabetic Retinopathy",), ("Neovascularization",)),
    Term("Vitreous Haemorrhage", (), ("Vitreous Hemorrhage",)),
    Term("Venous Beading"),
    Term("Intraretinal Microvascular Abnormality", (), ("IRMA",)),
    Term("Hypertension", (), ("Ocular Hypertension",)),
)

FUNDUS_STRUCTURES = (
    Term("Vessels", (), ("Vessel", "Blood Vessel", "Blood Vessels", "Retinal Vessels")),
    Term("Arteries", ("Vessels",), ("Artery", "Arterioles")),
    Term("Veins", ("Vessels",), ("Vein", "Venules")),
    Term("Optic Disc", (), ("Optic Disk", "Disc", "Disk")),
    Term("Optic Cup", ("Optic Disc",), ("Cup",)),
    Term("Macula"),
    Term("Fovea", ("Macula",)),
    Term("Field of View", (), ("FOV",)),
)

GROUPS = (CHEST_FINDINGS, CHEST_STRUCTURES, IMAGE_PROPERTIES, FUNDUS_FINDINGS, FUNDUS_STRUCTURES)
TERMS = {term.name: term for group in GROUPS for term in group}


def canonical(name: str) -> str:
    """The canonical name of a spelling: case, `_`, `-`, `/` and repeated spaces do not matter.

    Raises:
      InputError: no such name; the message lists the closest ones.
    """
    spellings = _spellings()
    spelling = key(name)
    if spelling not in spellings:
        close = list(dict.fromkeys(spellings[match] for match in difflib.get_close_matches(spelling, spellings, 5)))
        hint = f"did you mean {', '.join(map(repr, close))}?" if close else "nothing in mediax/vocabulary.py is close."
        raise InputError(
            f"{name!r} is not a known finding or structure: {hint} A new name is added to vocabulary.TERMS."
        )
    return spellings[spelling]


def parents(name: str) -> tuple[str, ...]:
    """The canonical names that `name` directly implies."""
    return TERMS[canonical(name)].parents


def ancestors(name: str) -> tuple[str, ...]:
    """All canonical names that `name` implies, nearest first, each once."""
    found: list[str] = []
    level = list(parents(name))
    while level:
        found += [term for term in level if term not in found]
        level = [parent for term in level for parent in TERMS[term].parents]
    return tuple(found)


def key(name: str) -> str:
    """What two spellings of one name have in common."""
    return " ".join(re.split(r"[\s_/\-]+", name.strip().lower()))


@functools.cache
def _spellings() -> dict[str, str]:
    return {key(spelling): term.name for term in TERMS.values() for spelling in (term.name, *term.synonyms)}

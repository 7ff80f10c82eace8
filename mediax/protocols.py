"""Evaluation protocols: which rows count, what is one case, which classes and which figure head the table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mediax.catalog import suggestion
from mediax.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """A named way to score a split, with its source.

    `case` is what is scored: `image`, or `study`, whose score is the maximum over its images. `classes` restricts the
    score to those (none = all of the task's). `options` are for the `metrics` of its task. `headline` names the figures
    that head the table, the first of which is the one to compare runs by (none = the task's overall ones).
    """

    name: str
    description: str
    source: str
    case: str = "image"
    classes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    headline: tuple[str, ...] = ()


CHEXPERT_COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")

VINDR_DIAGNOSES = (
    "Chronic Obstructive Pulmonary Disease",
    "Lung Tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other Disease",
    "No Finding",
)
VINBIGDATA_FINDINGS = (
    "Aortic Enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "Interstitial Lung Disease",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other Lesion",
    "Pleural Effusion",
    "Pleural Thickening",
    "Pneumothorax",
    "Pulmonary Fibrosis",
)

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("image", "every image is a case, all classes", "mediax"),
        Protocol("study", "a study is a case: the maximum over its images, all classes", "mediax", case="study"),
        Protocol(
            "chexpert/competition",
            "mean AUROC over five findings, a study is a case: the maximum over its views",
            "Irvin et al., AAAI 2019 (arXiv:1901.07031), section 3",
            case="study",
            classes=CHEXPERT_COMPETITION,
        ),
        Protocol(
            "chexpert/images",
            "mean AUROC over five findings, every image is a case",
            "common in the literature that reports on the 234 validation images",
            classes=CHEXPERT_COMPETITION,
        ),
        Protocol(
            "medmnist",
            "AUROC (mean over classes) and accuracy, every image is a case",
            "Yang et al., Scientific Data 10, 41 (2023), evaluator of MedMNIST v2",
        ),
        Protocol(
            "chestxray14/official",
            "mean AUROC over the 14 findings, every image is a case; on the official test list",
            "Wang et al., CVPR 2017 (arXiv:1705.02315); the lists of the NIH release",
            headline=("auroc/macro",),
        ),
        Protocol(
            "mimic_cxr/official",
            "mean AUROC over all annotated findings, every image is a case; on the official test split",
            "Johnson et al., MIMIC-CXR-JPG (arXiv:1901.07042)",
            headline=("auroc/macro",),
        ),
        Protocol(
            "vindr/global",
            "mean AUROC over the six diagnoses of whole images",
            "Nguyen et al., Scientific Data 9, 429 (2022); Ark's label list",
            classes=VINDR_DIAGNOSES,
            headline=("auroc/macro",),
        ),
        Protocol(
            "tbx11k/classification",
            "accuracy and AUROC of healthy, sick without tuberculosis, tuberculosis",
            "Liu et al., CVPR 2020; the figures of its table 4",
            headline=("top1_accuracy", "auroc/Tuberculosis", "sensitivity/Tuberculosis", "specificity/Tuberculosis"),
        ),
        Protocol(
            "eyepacs/kappa",
            "quadratic weighted kappa of the five grades, every eye is a case",
            "Kaggle, Diabetic Retinopathy Detection (2015)",
            headline=("quadratic_weighted_kappa",),
        ),
        Protocol(
            "coco",
            "COCO's average precision, IoU 0.50 to 0.95",
            "Lin et al., ECCV 2014 (arXiv:1405.0312); pycocotools",
            options={"scoring": "coco"},
            headline=("ap/macro", "ap50/macro"),
        ),
        Protocol(
            "tbx11k/all",
            "COCO's AP and AP50 of each kind of tuberculosis, on all images",
            "Liu et al., CVPR 2020",
            options={"scoring": "coco"},
            headline=("ap50/macro", "ap/macro"),
        ),
        Protocol(
            "tbx11k/all_agnostic",
            "COCO's AP and AP50 of tuberculosis of any kind, on all images",
            "Liu et al., CVPR 2020",
            options={"scoring": "coco", "agnostic": True},
            headline=("ap50/macro", "ap/macro"),
        ),
        Protocol(
            "tbx11k/tuberculosis",
            "COCO's AP and AP50 of each kind of tuberculosis, on the images that have a box",
            "Liu et al., CVPR 2020",
            options={"scoring": "coco", "annotated_only": True},
            headline=("ap50/macro", "ap/macro"),
        ),
        Protocol(
            "tbx11k/tuberculosis_agnostic",
            "COCO's AP and AP50 of tuberculosis of any kind, on the images that have a box",
            "Liu et al., CVPR 2020",
            options={"scoring": "coco", "annotated_only": True, "agnostic": True},
            headline=("ap50/macro", "ap/macro"),
        ),
        Protocol(
            "node21/detection",
            "0.75 x AUROC of images + 0.25 x sensitivity at 0.25 false positives per image; a hit has an IoU above 0.2",
            "Sogancioglu et al., arXiv:2401.02192, and public re-implementations of the challenge's score",
            options={"scoring": "froc", "iou": 0.2, "rates": (0.25, 0.125, 0.5, 1.0, 2.0, 4.0, 8.0), "blend": 0.25},
            headline=("score", "image_auroc", "sensitivity@0.25/macro"),
        ),
        Protocol(
            "vinbigdata/kaggle",
            "mean average precision of PASCAL VOC 2010 at an IoU above 0.4, over 14 findings and No Finding",
            "Kaggle, VinBigData Chest X-ray Abnormalities Detection (2021)",
            classes=VINBIGDATA_FINDINGS,
            options={"scoring": "voc", "iou": 0.4, "no_finding": "No Finding"},
            headline=("ap@0.4/macro",),
        ),
        Protocol(
            "chestxdet/froc",
            "sensitivity at 0.05, 0.1 and 0.2 false positives per image; a hit has an IoU above 0.5",
            "Liu et al., ChestX-Det10 (arXiv:2006.10550), its eval.py",
            options={"scoring": "froc", "iou": 0.5, "rates": (0.05, 0.1, 0.2)},
            headline=("froc/macro", "sensitivity@0.1/macro"),
        ),
        Protocol(
            "chestxdet/segmentation",
            "IoU and Dice of each finding, the mean over images",
            "Lian et al., IEEE TMI 40 (2021) (arXiv:2104.10326)",
            headline=("iou/macro", "dice/macro", "dice_present/macro"),
        ),
        Protocol(
            "siim_acr/dice",
            "mean Dice of images; where there is no pneumothorax an empty mask has 1, any other 0",
            "Kaggle, SIIM-ACR Pneumothorax Segmentation (2019): to predict nothing scores the share of healthy images, "
            "about 0.777 in its training set",
            headline=("dice/macro", "dice_present/macro"),
        ),
        Protocol(
            "chexmask/dice",
            "mean Dice and IoU of each organ; which masks count is the dataset's option rca",
            "Gaggion et al., Scientific Data 11, 511 (2024)",
            headline=("dice/macro", "iou/macro"),
        ),
        Protocol(
            "organs",
            "mean IoU and Dice of each organ",
            "JSRT's miniJSRT exercises",
            headline=("iou/macro", "dice/macro"),
        ),
        Protocol(
            "vessels",
            "all pixels inside the field of view together: F1, AUROC, sensitivity, specificity, accuracy; the first "
            "reader is the truth, the second is shown beside",
            "Staal et al., IEEE TMI 23 (2004)",
            options={"pooled": True},
            headline=("pixel_f1/macro", "pixel_auroc/macro", "pixel_sensitivity/macro", "pixel_specificity/macro"),
        ),
        Protocol(
            "drishti_gs",
            "Dice of disc and cup at the agreement of three of four experts, error of the vertical cup-to-disc ratio",
            "Sivaswamy et al., ISBI 2014",
            options={"ratio": ("Optic Cup", "Optic Disc")},
            headline=("dice/Optic Disc", "dice/Optic Cup", "ratio_error/macro"),
        ),
        Protocol(
            "drions_db",
            "Dice and IoU of the disc against the first expert, the second is shown beside",
            "Carmona et al., Artificial Intelligence in Medicine 43 (2008)",
            headline=("dice/macro", "iou/macro"),
        ),
    )
}


def get(name: str) -> Protocol:
    """Finds a protocol by name; raises InputError with the valid names."""
    if name not in PROTOCOLS:
        raise InputError(f"config field protocol: no protocol {name!r}; {suggestion(name, PROTOCOLS)}")
    return PROTOCOLS[name]


def cases(
    protocol: Protocol,
    predictions: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray],
    host: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray | None]:
    """Reduces the rows of a split to the protocol's cases: (predictions, targets, patient of each case).

    Over a study, scores and known labels take their maximum: a study is positive if any of its images is. That is a
    rule for scores: only a task whose STUDIES is True is scored so.
    """
    groups = host.get("patient_id")
    if protocol.case == "image":
        return dict(predictions), dict(targets), groups
    if "study_id" not in host:
        raise InputError(f"protocol {protocol.name!r} scores studies, but this dataset has no study_id")
    _, first, study = np.unique(host["study_id"], return_index=True, return_inverse=True)
    reduced = [
        {name: _maximum(values, study, len(first)) for name, values in arrays.items()}
        for arrays in (predictions, targets)
    ]
    return reduced[0], reduced[1], None if groups is None else groups[first]


def _maximum(values: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    reduced = np.full((count, *values.shape[1:]), np.nan, np.float64)
    np.fmax.at(reduced, index, values)
    return reduced

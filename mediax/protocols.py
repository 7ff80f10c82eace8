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

    `task` is the file of `mediax/tasks/` that it scores (none = any). `case` is what is scored: `image`, or `study`,
    whose score is the maximum over its images. `fields` are what an example must have to be scored. `classes` restricts
    the score to those (none = all of the task's). `options` are for the `metrics` and the `errors` of its task.
    `headline` names the figures that head the table, the first of which is the one to compare runs by (none = the
    task's overall ones). `description` stands over the table; where the official scorer is not public, `source` says
    so, and a class whose figure is undefined (no positive to rank, no true box) is left out of a mean.
    """

    name: str
    description: str
    source: str
    task: str = ""
    case: str = "image"
    fields: tuple[str, ...] = ()
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

TBX11K_DETECTION = (
    "Liu et al., CVPR 2020 and IEEE TPAMI 2023; pycocotools, the scorer of their challenge not being public"
)
MEDMNIST = "Yang et al., Scientific Data 10, 41 (2023), evaluator of MedMNIST v2"
MINIJSRT = "JSRT's miniJSRT exercises, which come without a scorer"

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("image", "every image is a case, all classes", "mediax"),
        Protocol("study", "a study is a case: the maximum over its images, all classes", "mediax", case="study"),
        Protocol(
            "chexpert/competition",
            "mean AUROC over five findings, a study is a case: the maximum over its views",
            "Irvin et al., AAAI 2019 (arXiv:1901.07031), and its competition, whose scorer is not public",
            task="classification",
            case="study",
            classes=CHEXPERT_COMPETITION,
        ),
        Protocol(
            "chexpert/images",
            "mean AUROC over five findings, every image is a case",
            "common in the literature that reports on the 234 validation images",
            task="classification",
            classes=CHEXPERT_COMPETITION,
        ),
        Protocol(
            "medmnist",
            "AUROC and accuracy at a threshold of 0.5, the task's default, every image is a case; of several labels "
            "both are the mean",
            MEDMNIST,
            task="classification",
            headline=("auroc/macro", "accuracy/macro"),
        ),
        Protocol(
            "medmnist/multi_class",
            "AUROC (mean over classes) and accuracy of one class of each image, every image is a case",
            MEDMNIST,
            task="classification",
            headline=("auroc/macro", "top1_accuracy"),
        ),
        Protocol(
            "chestxray14/official",
            "mean AUROC over the 14 findings, every image is a case; official on the split `test`",
            "Wang et al., CVPR 2017 (arXiv:1705.02315); the lists of the NIH release; the mean is the custom of later "
            "work",
            task="classification",
            headline=("auroc/macro",),
        ),
        Protocol(
            "mimic_cxr/official",
            "mean AUROC over all annotated findings, every image is a case; official on the split `test`; which views "
            "and which uncertain labels count are options of the dataset",
            "the split of MIMIC-CXR-JPG, Johnson et al. (arXiv:1901.07042); the score is the custom of later work",
            task="classification",
            headline=("auroc/macro",),
        ),
        Protocol(
            "vindr/global",
            "mean AUROC over the six diagnoses of whole images, every image is a case",
            "Nguyen et al., Scientific Data 9, 429 (2022); the six labels as in Ark (github.com/jlianglab/Ark)",
            task="classification",
            classes=VINDR_DIAGNOSES,
            headline=("auroc/macro",),
        ),
        Protocol(
            "tbx11k/classification",
            "accuracy over healthy, sick without tuberculosis, tuberculosis; AUROC, sensitivity and specificity of "
            "tuberculosis; mean precision and sensitivity of the three; an image is called what scores highest",
            "Liu et al., CVPR 2020 and IEEE TPAMI 2023, the columns of their tables (accuracy, AUC, sensitivity, "
            "specificity, AP, AR); the scorer of their challenge is not public",
            task="classification",
            headline=(
                *("top1_accuracy", "auroc/Tuberculosis", "sensitivity/Tuberculosis", "specificity/Tuberculosis"),
                *("precision/macro", "sensitivity/macro"),
            ),
        ),
        Protocol(
            "eyepacs/kappa",
            "quadratic weighted kappa of the five grades, every image of an eye is a case",
            "Kaggle, Diabetic Retinopathy Detection (2015)",
            task="ordinal",
            headline=("quadratic_weighted_kappa",),
        ),
        Protocol(
            "coco",
            "COCO's average precision, IoU 0.50 to 0.95",
            "Lin et al., ECCV 2014 (arXiv:1405.0312); pycocotools",
            task="detection",
            options={"scoring": "coco"},
            headline=("ap/macro", "ap50/macro"),
        ),
        Protocol(
            "tbx11k/all",
            "COCO's AP and AP50 of each kind of tuberculosis, on all images",
            TBX11K_DETECTION,
            task="detection",
            options={"scoring": "coco"},
            headline=("ap50/macro", "ap/macro"),
        ),
        Protocol(
            "tbx11k/all_agnostic",
            "COCO's AP and AP50 of tuberculosis of any kind, on all images",
            TBX11K_DETECTION,
            task="detection",
            options={"scoring": "coco", "agnostic": True},
            headline=("ap50/macro", "ap/macro"),
        ),
        Protocol(
            "tbx11k/tuberculosis",
            "COCO's AP and AP50 of each kind of tuberculosis, on the images that have a box",
            TBX11K_DETECTION,
            task="detection",
            options={"scoring": "coco", "annotated_only": True},
            headline=("ap50/macro", "ap/macro"),
        ),
        Protocol(
            "tbx11k/tuberculosis_agnostic",
            "COCO's AP and AP50 of tuberculosis of any kind, on the images that have a box",
            TBX11K_DETECTION,
            task="detection",
            options={"scoring": "coco", "annotated_only": True, "agnostic": True},
            headline=("ap50/macro", "ap/macro"),
        ),
        Protocol(
            "node21/detection",
            "0.75 x AUROC of images + 0.25 x sensitivity at 0.25 false positives per image; a hit has an IoU above "
            "0.2, further boxes on a nodule that was found count neither way, the curve is straight between its points",
            "Sogancioglu et al., IEEE TMI 43(8), 2024 (arXiv:2401.02192); weights, rate, IoU and further boxes as in "
            "the public code of participants, which reads the curve in several ways; the challenge's own scorer is "
            "not public",
            task="detection",
            options={
                "scoring": "froc",
                "iou": 0.2,
                "rates": (0.25, 0.125, 0.5, 1.0, 2.0, 4.0, 8.0),
                "blend": 0.25,
                "drop_repeats": True,
            },
            headline=("score", "image_auroc", "sensitivity@0.25/macro"),
        ),
        Protocol(
            "vinbigdata/kaggle",
            "mean average precision of PASCAL VOC 2010 at an IoU above 0.4, over 14 findings and No Finding, which is "
            "one box over an image without any other, found with 1 - the best score of the image, boxes of findings "
            "beyond the 14 included",
            "Kaggle, VinBigData Chest X-ray Abnormalities Detection (2021), by the words of its evaluation page: its "
            "scorer is not public",
            task="detection",
            classes=VINBIGDATA_FINDINGS,
            options={"scoring": "voc", "iou": 0.4, "no_finding": "No Finding"},
            headline=("ap@0.4/macro",),
        ),
        Protocol(
            "chestxdet/froc",
            "sensitivity at 0.05, 0.1 and 0.2 false positives per image, the mean over findings; a hit has an IoU of "
            "0.5 or more, of boxes whose corners name pixels of 1024 that are inside",
            "Liu et al., ChestX-Det10 (arXiv:2006.10550), its eval.py, also for ChestX-Det, which has no scorer",
            task="detection",
            options={
                "scoring": "froc",
                "iou": 0.5,
                "rates": (0.05, 0.1, 0.2),
                "reached": True,
                "lower_end": True,
                "edge_pixel": 1 / 1024,
            },
            headline=("froc/macro", "sensitivity@0.1/macro"),
        ),
        Protocol(
            "chestxdet/segmentation",
            "IoU of each finding over all pixels of all images together, and the mean over findings that are true or "
            "called anywhere (mIoU); Dice of each finding, the mean over images, of which one without the finding has "
            "1 if none is called, else 0",
            "mediax, on the masks of Lian et al., IEEE TMI 40 (2021) (arXiv:2104.10326), who publish no scorer",
            task="segmentation",
            options={"pooled": True},
            headline=("pixel_iou/macro", "dice/macro", "dice_present/macro"),
        ),
        Protocol(
            "siim_acr/dice",
            "mean Dice of images; where there is no pneumothorax an empty mask has 1, any other 0, so that to predict "
            "nothing scores the share of healthy images, about 0.777 in the training set; masks are compared in the "
            "size of the built images, in the challenge they have 1024 x 1024 pixels",
            "Kaggle, SIIM-ACR Pneumothorax Segmentation (2019), by the words of its evaluation page",
            task="segmentation",
            headline=("dice/macro", "dice_present/macro"),
        ),
        Protocol(
            "chexmask/dice",
            "mean Dice and IoU of each organ over images; which masks count is the dataset's option min_rca, 0.7",
            "mediax, on the masks of Gaggion et al., Scientific Data 11, 511 (2024), who advise a mean Dice RCA of 0.7",
            task="segmentation",
            headline=("dice/macro", "iou/macro"),
        ),
        Protocol(
            "organs",
            "mean IoU and Dice of each organ over images",
            f"mediax, on the masks of {MINIJSRT}",
            task="segmentation",
            headline=("iou/macro", "dice/macro"),
        ),
        Protocol(
            "minijsrt/classes",
            "accuracy, every image is a case and is called the one class that scores highest",
            f"mediax, on the labels of {MINIJSRT}",
            task="classification",
            headline=("top1_accuracy",),
        ),
        Protocol(
            "minijsrt/age",
            "mean absolute error in years, every image is a case",
            f"mediax, on the ages of {MINIJSRT}",
            task="regression",
            headline=("mae",),
        ),
        Protocol(
            "minijsrt/boxes",
            "mean IoU of each organ's box over images, and the share of images in which it is 0.5 or more",
            f"mediax, on the boxes around the masks of {MINIJSRT}",
            task="box_regression",
            headline=("iou/macro", "iou_at_least_50/macro"),
        ),
        Protocol(
            "minijsrt/anomaly",
            "accuracy at a threshold from training images, and AUROC, every image is a case",
            f"mediax, on the labels of {MINIJSRT}",
            task="anomaly",
            headline=("accuracy", "auroc"),
        ),
        Protocol(
            "minijsrt/clusters",
            "accuracy of the best matching of clusters with classes, and normalised mutual information",
            f"mediax, on the labels of {MINIJSRT}",
            task="anomaly",
            headline=("accuracy", "nmi"),
        ),
        Protocol(
            "vessels",
            "all pixels inside the field of view together: F1, AUROC, sensitivity, specificity, accuracy; the first "
            "reader is the truth, the second, if there is one, is shown beside; the AUROC joins the points of the "
            "97 thresholds, logits of -12 to 12, that a rule chooses from",
            "Staal et al., IEEE TMI 23 (2004); F1 as in later work",
            task="segmentation",
            options={"pooled": True},
            headline=("pixel_f1/macro", "pixel_auroc/macro", "pixel_sensitivity/macro", "pixel_specificity/macro"),
        ),
        Protocol(
            "drishti_gs",
            "Dice (their F-score) of disc and cup at the agreement of three of four experts, error of the vertical "
            "cup-to-disc ratio; masks are compared inside the field of view, in the size of the built images",
            "Sivaswamy et al., ISBI 2014, but for their distance of boundaries",
            task="segmentation",
            classes=("Optic Disc", "Optic Cup"),
            options={"ratio": ("Optic Cup", "Optic Disc")},
            headline=("dice/Optic Disc", "dice/Optic Cup", "ratio_error/macro"),
        ),
        Protocol(
            "drions_db",
            "Dice and IoU of the disc against the first expert, the second is shown beside; masks are compared inside "
            "the field of view, in the size of the built images",
            "mediax, on the outlines of Carmona et al., Artificial Intelligence in Medicine 43 (2008); Dice as in "
            "later work (Maninis et al., MICCAI 2016)",
            task="segmentation",
            headline=("dice/macro", "iou/macro"),
        ),
        Protocol(
            "fire",
            "area under the success-rate curve, 0 to 25 pixels of the images' 2912: the share of pairs whose points "
            "are off by less on average; of much overlap (S), little overlap (P), anatomical change (A), the mean of "
            "the three, and of all pairs; P37, whose points are wrong, is left out",
            "Hernandez-Matas et al., Journal for Modeling in Ophthalmology 1(4), 2017; the mean of three and the pair "
            "that is left out: Liu et al., SuperRetina, ECCV 2022 (arXiv:2207.07932), and their public scorer",
            task="registration",
            fields=("category",),
            options={"categories": ("S", "P", "A"), "size": (2912, 2912)},
            headline=("auc/macro", "auc/S", "auc/P", "auc/A", "auc", "error"),
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

"""Evaluation protocols: which rows count, what is one case, which classes and which figure head the table."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mediax.catalog import suggestion
from mediax.errors import InputError


@dataclass(frozen=True)
class Protocol:
    """A named way to score a split, with its source.

    `case` is what is scored: `image`, or `study`, whose score is the maximum over its images. `classes` restricts the
    score to those (none = all of the task's).
    """

    name: str
    description: str
    source: str
    case: str = "image"
    classes: tuple[str, ...] = ()


CHEXPERT_COMPETITION = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")

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

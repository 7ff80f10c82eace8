"""What a task says of one image, in plain terms: scores, decisions, masks, boxes."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mediax import transforms


@dataclass(frozen=True)
class Box:
    """A box that was found: its label, how sure the network is, and whether that is enough to call it.

    `corners` are ymin, xmin, ymax, xmax as fractions of the image; `mask` bool[H,W] is what belongs to it, if it is
    called and the network finds masks.
    """

    label: str
    score: float
    corners: tuple[float, float, float, float]
    called: bool
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Findings:
    """What was found in one image of H x W pixels; a task fills in what it knows.

    `scores` are numbers (probabilities, or whatever a task predicts, in its unit), `decisions` say which of them reach
    their thresholds (None: there is no threshold), `masks` are bool[H,W] by structure, `box_labels` all labels that
    `boxes` may have (none: the task finds no boxes).
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    decisions: Mapping[str, bool | None] = field(default_factory=dict)
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    boxes: Sequence[Box] = ()
    box_labels: Sequence[str] = ()

    @classmethod
    def of_boxes(cls, boxes: Sequence[Box], labels: Sequence[str]) -> "Findings":
        """What boxes say: of each label the best score, 0 without a box, and whether any is called."""
        return cls(
            scores={name: max((box.score for box in boxes if box.label == name), default=0.0) for name in labels},
            decisions={name: any(box.called and box.label == name for box in boxes) for name in labels},
            boxes=tuple(boxes),
            box_labels=labels,
        )

    def moved_back(self, geometry: np.ndarray, size: tuple[int, int], original_size: tuple[int, int]) -> "Findings":
        """Moves what was found in a transformed image into the original: its masks and boxes.

        A box of which nothing lies in the original (it was found in the filling of a letterbox) is left out, and of
        scores that are those of boxes so is its own.

        Args:
          geometry: f[3,3] original to transformed pixels, as a pipeline of `mediax.transforms` keeps it.
          size: (height, width) of the transformed image.
          original_size: (height, width) of the original.
        """

        def mask_back(mask: np.ndarray) -> np.ndarray:
            return transforms.invert_mask(mask[..., None].astype(np.uint8), geometry, original_size)[..., 0] > 0

        def box_back(box: Box) -> Box:
            corners = transforms.invert_boxes(np.array([box.corners]), geometry, size, original_size)[0]
            mask = None if box.mask is None else mask_back(box.mask)
            return dataclasses.replace(box, corners=tuple((corners / np.tile(original_size, 2)).tolist()), mask=mask)

        masks = {name: mask_back(mask) for name, mask in self.masks.items()}
        inside = Findings.of_boxes([box for box in map(box_back, self.boxes) if _has_area(box)], self.box_labels)
        return dataclasses.replace(
            self,
            scores={name: inside.scores.get(name, score) for name, score in self.scores.items()},
            decisions={name: inside.decisions.get(name, called) for name, called in self.decisions.items()},
            masks=masks,
            boxes=inside.boxes,
        )

    def inside(self, field_of_view: np.ndarray | None) -> "Findings":
        """Leaves out of the masks what lies outside of a field of view u8[H,W]; None is the whole image."""
        if field_of_view is None:
            return self
        return dataclasses.replace(self, masks={name: mask & (field_of_view > 0) for name, mask in self.masks.items()})

    def named(self, prefix: str) -> "Findings":
        """Puts a prefix before every name, to tell the findings of several tasks apart."""

        def renamed(values: Mapping) -> dict:
            return {prefix + name: value for name, value in values.items()}

        return Findings(
            renamed(self.scores),
            renamed(self.decisions),
            renamed(self.masks),
            tuple(dataclasses.replace(box, label=prefix + box.label) for box in self.boxes),
            tuple(prefix + label for label in self.box_labels),
        )


def joined(findings: Sequence[Findings]) -> Findings:
    """All that several tasks found in one image."""
    return Findings(
        scores={name: score for one in findings for name, score in one.scores.items()},
        decisions={name: called for one in findings for name, called in one.decisions.items()},
        masks={name: mask for one in findings for name, mask in one.masks.items()},
        boxes=tuple(box for one in findings for box in one.boxes),
        box_labels=tuple(label for one in findings for label in one.box_labels),
    )


def mask_of_box(probabilities: np.ndarray, corners: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """What belongs to a box, bool[H,W], from probabilities f[h,w] that are stretched over it.

    Args:
      probabilities: in [0,1].
      corners: ymin, xmin, ymax, xmax as fractions of the image.
      size: (H, W) of the image.
    """
    ymin, xmin, ymax, xmax = np.asarray(corners, np.float64) * np.tile(size, 2)
    height, width = np.array(probabilities.shape) / (ymax - ymin, xmax - xmin)
    geometry = np.array([[width, 0, -xmin * width], [0, height, -ymin * height], [0, 0, 1]])
    whole = transforms.invert_mask(np.asarray(probabilities, np.float32)[..., None], geometry, size)[..., 0]
    return whole >= 0.5


def _has_area(box: Box) -> bool:
    ymin, xmin, ymax, xmax = box.corners
    return ymin < ymax and xmin < xmax

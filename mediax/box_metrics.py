"""Metrics of boxes with scores, each with a patient-level bootstrap interval: COCO's and VOC's average precision, FROC.

Detections are matched to true boxes once; every figure is then a function of patient weights, as in `metrics`.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mediax import annotations, metrics

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)  # COCO's
RECALLS = np.linspace(0, 1, 101)
PER_CLASS = ("ap", "ap50", "ap75")
NO_BOX = "no box of this class in this split"


SELECTING = ("agnostic", "annotated_only", "edge_pixel")  # options of a protocol that `gather` takes


class Boxes(NamedTuple):
    """The boxes of a split, known images alone: found ones with scores, true ones, and whose image it is."""

    found: list[dict[str, np.ndarray]]  # of each image: boxes f[D,4], scores f[D], labels i[D], [iou f[D,N]]
    true: list[dict[str, np.ndarray]]  # of each image: boxes f[N,4], labels i[N]
    patients: np.ndarray  # i[images]
    classes: tuple[str, ...]


class Matched(NamedTuple):
    """The detections of one class in all images, best first."""

    hits: np.ndarray  # bool[T,M] whether a detection is right at each of T thresholds
    scores: np.ndarray  # f[M]
    patients: np.ndarray  # i[M]
    true: np.ndarray  # f[P] true boxes of each patient


def gather(
    predictions: Mapping[str, np.ndarray],
    targets: Mapping[str, np.ndarray],
    classes: Sequence[str],
    groups: Sequence | None,
    *,
    agnostic: bool = False,
    annotated_only: bool = False,
    edge_pixel: float = 0.0,
    masks: bool = False,
) -> Boxes:
    """Takes the boxes of the images whose boxes are known out of the padded arrays of a split.

    Args:
      predictions: boxes f[N,D,4] (ymin, xmin, ymax, xmax as fractions), scores f[N,D] (0 is padding), labels i[N,D],
        and with `masks` mask_iou f[N,D,B], the IoU of the masks of found and true boxes.
      targets: boxes f[N,B,4], box_labels i[N,B], box_valid bool[N,B], boxes_known bool[N].
      classes: names of the labels.
      groups: [N] the patient of each image; None makes every image a patient of its own.
      agnostic: makes all boxes one class, "any".
      annotated_only: leaves images without a true box out.
      edge_pixel: see `with_edge_pixels`; 0 leaves the boxes as they are.
    """
    known = np.asarray(targets["boxes_known"], bool)
    if annotated_only:
        known = known & np.asarray(targets["box_valid"]).any(1)
    rows = np.flatnonzero(known)
    owners = np.arange(len(known)) if groups is None else np.asarray(groups)
    found, true = [], []
    for row in rows:
        kept, valid = predictions["scores"][row] > 0, np.asarray(targets["box_valid"][row], bool)
        found.append({name: predictions[name][row][kept] for name in ("boxes", "scores", "labels")})
        if masks:
            found[-1]["iou"] = predictions["mask_iou"][row][kept][:, valid]
        true.append({"boxes": targets["boxes"][row][valid], "labels": targets["box_labels"][row][valid]})
    boxes = Boxes(found, true, np.unique(owners[rows], return_inverse=True)[1], tuple(classes))
    if edge_pixel:
        boxes = with_edge_pixels(boxes, edge_pixel)
    return without_classes(boxes, "any") if agnostic else boxes


def of_classes(boxes: Boxes, names: Sequence[str]) -> Boxes:
    """The boxes of the classes that are named alone, of all if none is; labels stay as they are."""
    wanted = [label for label, name in enumerate(boxes.classes) if name in names]
    if not wanted:
        return boxes

    def kept(one: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = np.isin(one["labels"], wanted)
        return {name: array[rows] for name, array in one.items()}

    return Boxes(*([kept(one) for one in images] for images in boxes[:2]), boxes.patients, boxes.classes)


def without_classes(boxes: Boxes, name: str) -> Boxes:
    """The same boxes, all of one class called `name`: category-agnostic scoring."""
    merged = [[{**one, "labels": np.zeros_like(one["labels"])} for one in images] for images in boxes[:2]]
    return Boxes(*merged, boxes.patients, (name,))


def with_edge_pixels(boxes: Boxes, pixel: float) -> Boxes:
    """The same boxes, `pixel` (a fraction of the image) longer and wider: their corners name pixels that are inside."""
    added = np.array([0, 0, pixel, pixel])
    longer = [[{**one, "boxes": one["boxes"] + added} for one in images] for images in boxes[:2]]
    return Boxes(*longer, boxes.patients, boxes.classes)


def with_no_finding(boxes: Boxes, name: str) -> Boxes:
    """Adds the class `name` of images without any box, as one box over the whole image, found with 1 - the best score.

    It is how a detector of findings answers where "no finding" is a class of its own (VinBigData on Kaggle).
    """
    label, whole = len(boxes.classes), np.float32([[0, 0, 1, 1]])
    found, true = [], []
    for called, actual in zip(boxes.found, boxes.true):
        score = 1 - called["scores"].max(initial=0.0)
        found.append(
            {
                "boxes": np.concatenate([called["boxes"], whole]),
                "scores": np.append(called["scores"], score),
                "labels": np.append(called["labels"], label),
            }
        )
        empty = not len(actual["boxes"])
        true.append({"boxes": whole, "labels": np.array([label])} if empty else actual)
    return Boxes(found, true, boxes.patients, (*boxes.classes, name))


def average_precision(
    boxes: Boxes, index: Sequence[int], *, prefix: str = "", resamples: int = 1000, seed: int = 0
) -> list[metrics.Metric]:
    """COCO's average precision of the classes in `index` and their mean, with 95 % bootstrap intervals over patients.

    "ap" is the mean over the IoU thresholds 0.50 to 0.95 by 0.05, "ap50" and "ap75" are those of one threshold; at most
    100 detections of a class in an image count, boxes of any size. pycocotools matches detections to boxes, once; a
    resample weighs the images of its patients. Where found boxes carry an `iou` with the true ones (of masks), that
    takes the place of the boxes' own. A class without a true box is NaN and not in the mean.
    """
    matched = [match_coco(boxes, label) for label in index]

    def evaluate(weights: np.ndarray) -> np.ndarray:
        by_threshold = np.array([[_coco_precision(one, row) for one in matched] for row in weights])  # [R,K,T]
        return np.stack([by_threshold.mean(-1), by_threshold[..., 0], by_threshold[..., 5]], -1)

    names = [f"{prefix}{name}" for name in PER_CLASS]
    return _per_class(evaluate, names, boxes, index, resamples, seed)


def voc_average_precision(
    boxes: Boxes, index: Sequence[int], *, iou: float, resamples: int = 1000, seed: int = 0
) -> list[metrics.Metric]:
    """PASCAL VOC's average precision (since 2010: the whole area under the envelope) at an IoU above `iou`.

    Detections of equal scores are one point of the curve: no threshold parts them.
    """
    matched = [match_best(boxes, label, iou) for label in index]

    def evaluate(weights: np.ndarray) -> np.ndarray:
        return np.array([[[_area(one, row)] for one in matched] for row in weights])

    return _per_class(evaluate, [f"ap@{iou:g}"], boxes, index, resamples, seed)


def froc(
    boxes: Boxes,
    index: Sequence[int],
    *,
    iou: float,
    rates: Sequence[float],
    blend: float = 0.0,
    reached: bool = False,
    lower_end: bool = False,
    drop_repeats: bool = False,
    resamples: int = 1000,
    seed: int = 0,
) -> list[metrics.Metric]:
    """Sensitivity at mean false positives per image (`rates`), the image-level AUROC, and with `blend` their mean.

    A detection is a hit if the true box that it overlaps most does so with an IoU above `iou`, with `reached` of `iou`
    or more, and was not hit before: a repeated one is a false positive, with `drop_repeats` neither. Every score is an
    operating point: no threshold parts equal ones. Between two points the curve is a straight line, past the last it is
    level. Where it rises at a rate the upper end counts; with `lower_end` the lower one, and past the last false
    positive what had been found before it.
    The score of an image is that of its best box; it is positive if it has a true box. "froc" is the mean over `rates`;
    "score", if `blend` is above 0, is (1 - blend) * AUROC + blend * the sensitivity at the first rate (NODE21's with
    0.25).
    """
    matched = [match_best(boxes, label, iou, reached, drop_repeats) for label in index]
    images = np.bincount(boxes.patients)
    every = list(index)
    best = [one["scores"][np.isin(one["labels"], every)].max(initial=0.0) for one in boxes.found]
    positive = [np.isin(one["labels"], every).any() for one in boxes.true]
    split = metrics.Split(
        np.asarray(best, np.float64)[:, None],
        np.asarray(positive, np.float64)[:, None],
        boxes.patients,
        np.arange(len(best)),
        ("image",),
    )
    of_images = metrics.per_class_evaluator(split, np.array([np.nan]))
    auroc = metrics.PER_CLASS.index("auroc")

    def sensitivities(weights: np.ndarray) -> np.ndarray:
        values = np.array(
            [[sensitivity(one, row, row @ images, rates, lower_end) for one in matched] for row in weights]
        )
        return np.concatenate([values, values.mean(-1, keepdims=True)], -1)  # [R,K,rates + 1]

    results = _per_class(
        sensitivities, [*(f"sensitivity@{rate:g}" for rate in rates), "froc"], boxes, index, resamples, seed
    )

    def overall(weights: np.ndarray) -> np.ndarray:
        area = of_images(weights)[:, 0, auroc]
        first = metrics.mean_of_defined(sensitivities(weights)[:, :, 0])
        return np.stack([area, (1 - blend) * area + blend * first], -1)

    values, draws = metrics.bootstrap(overall, boxes.patients, resamples, seed)
    note = "" if 0 < sum(positive) < len(positive) else "needs images with and without a box: undefined"
    for place, name in enumerate(["image_auroc"] + ["score"] * (blend > 0)):
        results.append(metrics.with_interval(name, values[place], draws[:, place], boxes.patients, note))
    return results


def sensitivity(
    one: Matched, weights: np.ndarray, images: float, rates: Sequence[float], lower_end: bool = False
) -> np.ndarray:
    """Sensitivity f[R] at `rates` of false positives per image under patient weights f[P]; NaN without a true box.

    See `froc`; where there is no false positive at all, everything found counts.
    """
    total = weights @ one.true
    if total == 0:
        return np.full(len(rates), np.nan)
    weight, points = weights[one.patients], operating_points(one.scores)
    hit = np.cumsum(one.hits[0] * weight)[points] / total
    false = np.cumsum(~one.hits[0] * weight)[points] / images
    return sensitivity_at(rates, false, hit, lower_end)


def sensitivity_at(
    rates: Sequence[float], false_positives: np.ndarray, sensitivity: np.ndarray, lower_end: bool = False
) -> np.ndarray:
    """Reads the curve that the points f[M] and the origin make, both rising, at `rates`: f[R]; see `froc`."""
    false, hit = np.append(0, false_positives), np.append(0, sensitivity)
    if lower_end and false[-1] > 0:
        # Of points at one rate np.interp takes the last: in reverse that is the lower one.
        return np.interp(-np.minimum(rates, false[-1]), -false[::-1], hit[::-1])
    return np.interp(rates, false, hit)


def operating_points(scores: np.ndarray) -> np.ndarray:
    """The last detection of each score, i[points], of falling scores f[M]: no threshold parts equal ones."""
    return np.flatnonzero(np.append(np.diff(scores), 1)[: len(scores)])


def f1_of_images(
    boxes: Boxes, iou: float = 0.5, shown: float = 0.0, drop_repeats: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """F1 of the boxes of each image from the score `shown` on, f64[images], and the soft F1 of all; a hit has `iou`.

    F1 is 1 where there is no box and none was found. In the soft one each box found counts as much as its score, and
    one hit is added, so that false alarms also tell where there is no box. `drop_repeats` as in `froc`.
    """
    of_images = boxes._replace(patients=np.arange(len(boxes.true)))
    matched = [match_best(of_images, label, iou, True, drop_repeats) for label in range(len(boxes.classes))]
    hits, scores, owner = (
        np.concatenate([getattr(one, name) for one in matched], -1) for name in ("hits", "scores", "patients")
    )

    def of_each(values: np.ndarray) -> np.ndarray:
        return np.bincount(owner, values, minlength=len(boxes.true))

    true = np.array([len(one["boxes"]) for one in boxes.true])
    both = of_each(scores >= shown) + true
    f1 = np.where(both > 0, 2 * of_each(hits[0] & (scores >= shown)) / np.maximum(both, 1), 1.0)
    return f1, (2 * of_each(hits[0] * scores) + 1) / (of_each(scores) + true + 1)


def match_coco(boxes: Boxes, label: int) -> Matched:
    """Lets pycocotools match the detections of one class to its true boxes."""
    from pycocotools.cocoeval import COCOeval

    true, called, overlaps = [], [], {}
    for image, (found, actual) in enumerate(zip(boxes.found, boxes.true)):
        mine, theirs = found["labels"] == label, actual["labels"] == label
        chosen = np.flatnonzero(mine)[np.argsort(-found["scores"][mine], kind="stable")]
        true += [_annotation(len(true) + i, image, box) for i, box in enumerate(actual["boxes"][theirs])]
        called += [
            _annotation(len(called) + i, image, found["boxes"][place]) | {"score": float(found["scores"][place])}
            for i, place in enumerate(chosen)
        ]
        if "iou" in found:
            overlaps[image] = found["iou"][chosen][:, theirs].astype(np.float64)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = COCOeval(_coco(true, len(boxes.true)), _coco(called, len(boxes.true)), "bbox")
        evaluation.params.iouThrs = IOU_THRESHOLDS
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [100]
        if overlaps:  # rows in falling order of score, as it sorts them itself
            evaluation.computeIoU = lambda image, _: overlaps[image][:100] if overlaps[image].size else []
        evaluation.evaluate()
    images = [(image, one) for image, one in enumerate(evaluation.evalImgs) if one is not None]
    scores = np.concatenate([np.empty(0), *(one["dtScores"] for _, one in images)])
    hits = np.concatenate([np.empty((len(IOU_THRESHOLDS), 0)), *(one["dtMatches"] for _, one in images)], 1) > 0
    owner = np.concatenate([np.empty(0, int), *(np.full(len(one["dtScores"]), image) for image, one in images)])
    order = np.argsort(-scores, kind="stable")
    return Matched(hits[:, order], scores[order], boxes.patients[owner[order]], _true_of_each(boxes, label))


def match_best(boxes: Boxes, label: int, iou: float, reached: bool = False, drop_repeats: bool = False) -> Matched:
    """Matches as VOC does: to the true box of the largest IoU, which the first to come takes; later ones miss.

    That IoU must be above `iou`, with `reached` at least `iou`. With `drop_repeats` later ones are left out, as lung
    nodules are scored (LUNA16, arXiv:1612.08012).
    """
    hits, scores, owner = [], [], []
    for image, (found, actual) in enumerate(zip(boxes.found, boxes.true)):
        mine, theirs = found["labels"] == label, actual["boxes"][actual["labels"] == label]
        order = np.argsort(-found["scores"][mine], kind="stable")
        overlap = annotations.box_iou(found["boxes"][mine][order][:, None], theirs[None])
        taken = np.zeros(len(theirs), bool)
        for row, score in zip(overlap, found["scores"][mine][order]):
            best = row.argmax() if len(row) else -1
            near = best >= 0 and (row[best] >= iou if reached else row[best] > iou)
            repeated = near and taken[best]
            if repeated and drop_repeats:
                continue
            if near:
                taken[best] = True
            hits.append(near and not repeated)
            scores.append(score)
            owner.append(image)
    scores = np.array(scores, np.float64)
    order = np.argsort(-scores, kind="stable")
    hits, owner = np.array(hits, bool)[order], np.array(owner, int)[order]
    return Matched(hits[None], scores[order], boxes.patients[owner], _true_of_each(boxes, label))


def _true_of_each(boxes: Boxes, label: int) -> np.ndarray:
    counts = [(one["labels"] == label).sum() for one in boxes.true]
    return np.bincount(boxes.patients, counts, minlength=boxes.patients.max(initial=-1) + 1)


def _per_class(
    evaluate: metrics.Evaluate, names: Sequence[str], boxes: Boxes, index: Sequence[int], resamples: int, seed: int
) -> list[metrics.Metric]:
    """The figures f[R,K,M] of `evaluate` by class and as their mean over the classes that have a true box."""
    values, draws = metrics.bootstrap(evaluate, boxes.patients, resamples, seed)
    classes = [boxes.classes[k] for k in index]
    return metrics.by_class(values, draws, classes, names, boxes.patients, reason=NO_BOX)


def _annotation(number: int, image: int, box: np.ndarray) -> dict[str, Any]:
    ymin, xmin, ymax, xmax = map(float, box)
    width, height = xmax - xmin, ymax - ymin
    # pycocotools marks "no match" by the id 0.
    identity = {"id": number + 1, "image_id": image, "category_id": 0, "iscrowd": 0}
    return identity | {"bbox": [xmin, ymin, width, height], "area": width * height}


def _coco(annotations: list[dict[str, Any]], images: int):
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": 0}],
    }
    coco.createIndex()
    return coco


def _coco_precision(one: Matched, weights: np.ndarray) -> np.ndarray:
    """Precision averaged over 101 recalls under patient weights f[P], for each threshold: f[T]; NaN without a box."""
    total = weights @ one.true
    if total == 0:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    recall, precision = _curve(one, weights, total, slice(None))
    best_from_here = np.pad(precision, ((0, 0), (0, 1)))  # recalls that are never reached
    places = [np.searchsorted(row, RECALLS, side="left") for row in recall]
    return np.array([best[place].mean() for best, place in zip(best_from_here, places)])


def _area(one: Matched, weights: np.ndarray) -> float:
    """The area under the envelope of precision over recall under patient weights f[P]; NaN without a true box."""
    total = weights @ one.true
    if total == 0:
        return np.nan
    recall, precision = _curve(one, weights, total, operating_points(one.scores))
    return float((np.diff(recall[0], prepend=0) * precision[0]).sum())


def _curve(
    one: Matched, weights: np.ndarray, total: float, points: np.ndarray | slice
) -> tuple[np.ndarray, np.ndarray]:
    """Recall f[T,M] at each of the `points`, detections, and the best precision f[T,M] from there on."""
    weight = weights[one.patients]
    right = np.cumsum(one.hits * weight, axis=1)
    precision = (right / (np.cumsum(weight) + np.spacing(1)))[:, points]
    return right[:, points] / total, np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]

"""Metrics of boxes: masks in them against pycocotools, FROC against ChestX-Det10's scorer, VOC's and the rest by hand.

What the protocols make of them is in test_protocols.py.
"""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from boxes import CLASSES, split
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import roc_auc_score

from mediax import box_metrics

GOLDEN = Path(__file__).parent / "references" / "goldens" / "froc.npz"


def values(metrics):
    return {metric.name: metric.value for metric in metrics}


def summary(annotations, images, kind):
    with contextlib.redirect_stdout(io.StringIO()):
        sets = [box_metrics._coco(each, images) for each in annotations.values()]
        for coco in sets:
            coco.dataset["categories"] = [{"id": 0}, {"id": 1}, {"id": 2}]
            coco.dataset["images"] = [image | {"height": 64, "width": 64} for image in coco.dataset["images"]]
            coco.createIndex()
        evaluation = COCOeval(*sets, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


def pixels(box, size=64):
    """A mask whose shape differs from its box: the lower left triangle."""
    ymin, xmin, ymax, xmax = np.round(np.asarray(box) * size).astype(int)
    mask = np.zeros((size, size), np.uint8)
    mask[ymin:ymax, xmin:xmax] = np.tri(ymax - ymin, xmax - xmin)
    return mask


def test_average_precision_of_masks_equals_pycocotools():
    predictions, targets = split()
    targets["boxes_known"][:] = True
    annotations, overlap = {"true": [], "called": []}, np.zeros((12, 8, 4))
    for row in range(12):
        true = [coco_mask.encode(np.asfortranarray(pixels(box))) for box in targets["boxes"][row]]
        called = [coco_mask.encode(np.asfortranarray(pixels(box))) for box in predictions["boxes"][row].clip(0, 1)]
        overlap[row] = coco_mask.iou(called, true, [0] * 4)
        for kind, encoded, labels, kept in (
            ("true", true, targets["box_labels"][row], targets["box_valid"][row]),
            ("called", called, predictions["labels"][row], predictions["scores"][row] > 0),
        ):
            for place in np.flatnonzero(kept):
                one = {"id": len(annotations[kind]) + 1, "image_id": row, "category_id": int(labels[place])}
                one |= {"segmentation": encoded[place], "area": float(coco_mask.area(encoded[place])), "iscrowd": 0}
                annotations[kind].append(one | {"score": float(predictions["scores"][row][place])})
    boxes = box_metrics.gather(predictions | {"mask_iou": overlap}, targets, CLASSES, None, masks=True)
    found = values(box_metrics.average_precision(boxes, range(3), prefix="mask_", resamples=0))
    expected = summary(annotations, 12, "segm")
    names = [f"mask_{name}/macro" for name in ("ap", "ap50", "ap75")]
    np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-9)
    assert 0.05 < found["mask_ap/macro"] < 1


def test_weights_count_an_image_as_often_as_it_is_drawn():
    predictions, targets = split()
    targets["boxes_known"][:] = True
    drawn = np.array([0, 0, 1, 4, 4, 4, 7, 8, 9, 10, 11, 11])
    weights = np.bincount(drawn, minlength=12).astype(float)
    once = box_metrics.gather(predictions, targets, CLASSES, None)
    again = [{name: array[drawn] for name, array in arrays.items()} for arrays in (predictions, targets)]
    copies = box_metrics.gather(*again, CLASSES, None)
    for label in range(2):
        one, other = (box_metrics.match_coco(boxes, label) for boxes in (once, copies))
        expected = box_metrics._coco_precision(other, np.ones(12))
        np.testing.assert_allclose(box_metrics._coco_precision(one, weights), expected, rtol=1e-9)
        one, other = (box_metrics.match_best(boxes, label, 0.5) for boxes in (once, copies))
        assert box_metrics._area(one, weights) == pytest.approx(box_metrics._area(other, np.ones(12)), rel=1e-9)
        rates = (0.1, 1.0)
        expected = box_metrics.sensitivity(other, np.ones(12), 12, rates)
        np.testing.assert_allclose(box_metrics.sensitivity(one, weights, 12, rates), expected, rtol=1e-9)


def test_froc_equals_the_scorer_of_chestx_det10():
    golden = np.load(GOLDEN)
    for seed in range(3):
        boxes = box_metrics.gather(*split(images=60, seed=seed), CLASSES, None)
        for iou in (0.2, 0.5):
            found = values(box_metrics.froc(boxes, [0, 1], iou=iou, rates=golden["rates"], resamples=0))
            for label in range(2):
                expected = golden[f"{seed}/{label}/{iou}"]
                names = [f"sensitivity@{rate:g}/{CLASSES[label]}" for rate in golden["rates"]]
                # Past its last operating point the official curve is cut: it has fewer entries.
                got = [found[name] for name in names][: len(expected)]
                np.testing.assert_allclose(got, expected, atol=1e-5)


def one_image(found, scores, true):
    count = len(found)
    predictions = {"boxes": np.float32([found]), "scores": np.float32([scores]), "labels": np.zeros((1, count), int)}
    valid = np.ones((1, len(true)), bool)
    targets = {"boxes": np.float32([true]), "box_labels": np.zeros((1, len(true)), int), "box_valid": valid}
    return predictions, targets | {"boxes_known": np.array([True])}


def test_voc_average_precision_by_hand():
    """Right, then a second time on the same box, then right: precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1."""
    first, second = [0, 0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]
    boxes = box_metrics.gather(*one_image([first, first, second], [0.9, 0.8, 0.7], [first, second]), ("Nodule",), None)
    found = values(box_metrics.voc_average_precision(boxes, [0], iou=0.4, resamples=0))
    assert found == {"ap@0.4/Nodule": pytest.approx(0.5 * 1 + 0.5 * 2 / 3), "ap@0.4/macro": pytest.approx(5 / 6)}
    # An IoU of exactly the threshold is not above it: half a box and the whole.
    half = box_metrics.gather(*one_image([[0, 0, 0.5, 0.25]], [0.9], [[0, 0, 0.5, 0.5]]), ("Nodule",), None)
    assert values(box_metrics.voc_average_precision(half, [0], iou=0.5, resamples=0))["ap@0.5/Nodule"] == 0
    assert values(box_metrics.voc_average_precision(half, [0], iou=0.49, resamples=0))[
        "ap@0.49/Nodule"
    ] == pytest.approx(1)


def test_froc_blends_the_auroc_of_images_and_the_first_sensitivity():
    predictions, targets = split(images=40)
    targets["boxes_known"][:] = True
    targets["box_valid"][::3] = False
    boxes = box_metrics.gather(predictions, targets, CLASSES, None)
    found = values(box_metrics.froc(boxes, [0, 1], iou=0.2, rates=(0.25, 1.0), blend=0.25, resamples=0))
    image = np.where(np.isin(predictions["labels"], [0, 1]), predictions["scores"], 0).max(1)
    auroc = roc_auc_score(targets["box_valid"].any(1), image)
    assert found["image_auroc"] == pytest.approx(auroc)
    assert found["score"] == pytest.approx(0.75 * auroc + 0.25 * found["sensitivity@0.25/macro"])
    assert found["froc/macro"] == pytest.approx((found["sensitivity@0.25/macro"] + found["sensitivity@1/macro"]) / 2)


@pytest.mark.parametrize("boxes", [0, 1])
def test_a_split_without_detections_scores_zero_and_without_boxes_is_undefined(boxes):
    predictions, targets = one_image([[0, 0, 0.5, 0.5]], [0.0], [[0, 0, 0.5, 0.5]])
    targets["box_valid"][:] = bool(boxes)
    gathered = box_metrics.gather(predictions, targets, ("Nodule",), None)
    scored = [
        *box_metrics.average_precision(gathered, [0], resamples=5),
        *box_metrics.voc_average_precision(gathered, [0], iou=0.4, resamples=5),
        *box_metrics.froc(gathered, [0], iou=0.2, rates=(0.25,), resamples=5),
    ]
    for metric in scored:
        expected = 0.0 if boxes and metric.name != "image_auroc" else np.nan
        np.testing.assert_equal(metric.value, expected)
        assert boxes or "undefined" in metric.note or "left out: Nodule" in metric.note

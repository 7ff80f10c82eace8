"""Protocols: what a case is and whose, and that each scores as its official scorer or its definition does."""

import contextlib
import io
from pathlib import Path

import boxes
import jax
import numpy as np
import pytest
import sklearn.metrics
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from references import medmnist_evaluator

from mediax import catalog, evaluate, protocols, vocabulary
from mediax.datasets import (
    chestxdet,
    chestxray14,
    chexmask,
    chexpert,
    drions_db,
    drishti_gs,
    mimic_cxr,
    minijsrt_organs,
    siim_acr,
    tbx11k,
    vinbigdata,
)
from mediax.errors import InputError
from mediax.tasks import anomaly, box_regression, classification, detection, ordinal, regression, segmentation

NAN = np.nan
GOLDENS = Path(__file__).parent / "references" / "goldens"
PREDICTIONS = {"scores": np.float32([[0.1, 0.9], [0.4, 0.2], [0.3, 0.6], [0.8, 0.5]])}
TARGETS = {"labels": np.float32([[0, NAN], [1, 0], [0, NAN], [NAN, NAN]])}
HOST = {
    "id": np.array(["a", "b", "c", "d"]),
    "patient_id": np.array(["second", "first", "second", "third"]),
    "study_id": np.array(["s9", "s1", "s9", "s5"]),
}


def test_every_image_is_a_case():
    predictions, targets, groups = protocols.cases(protocols.get("image"), PREDICTIONS, TARGETS, HOST)
    np.testing.assert_array_equal(predictions["scores"], PREDICTIONS["scores"])
    np.testing.assert_array_equal(targets["labels"], TARGETS["labels"])
    assert groups.tolist() == HOST["patient_id"].tolist()


@pytest.mark.parametrize("name", ["study", "chexpert/competition"])
def test_a_study_takes_the_maximum_of_its_images(name):
    predictions, targets, groups = protocols.cases(protocols.get(name), PREDICTIONS, TARGETS, HOST)
    assert groups.tolist() == ["first", "third", "second"]  # of the studies s1, s5, s9
    np.testing.assert_array_equal(predictions["scores"], np.float32([[0.4, 0.2], [0.8, 0.5], [0.3, 0.9]]))
    np.testing.assert_array_equal(targets["labels"], [[1, 0], [NAN, NAN], [0, NAN]])


def test_a_known_label_of_any_view_is_the_study_s():
    targets = {"labels": np.float32([[NAN, 0, NAN], [1, NAN, NAN], [NAN, NAN, NAN]])}
    predictions = {"scores": np.zeros((3, 3), np.float32)}
    host = {"study_id": np.array(["s", "s", "s"])}
    _, reduced, groups = protocols.cases(protocols.get("study"), predictions, targets, host)
    np.testing.assert_array_equal(reduced["labels"], [[1, 0, NAN]])
    assert groups is None


def test_the_order_of_the_images_does_not_matter():
    order = np.array([2, 3, 1, 0])
    shuffled = [{name: values[order] for name, values in arrays.items()} for arrays in (PREDICTIONS, TARGETS, HOST)]
    expected = protocols.cases(protocols.get("study"), PREDICTIONS, TARGETS, HOST)
    found = protocols.cases(protocols.get("study"), *shuffled)
    np.testing.assert_array_equal(found[0]["scores"], expected[0]["scores"])
    np.testing.assert_array_equal(found[1]["labels"], expected[1]["labels"])
    assert found[2].tolist() == expected[2].tolist()


def test_a_dataset_without_studies_cannot_be_scored_by_study():
    with pytest.raises(InputError, match="'study' scores studies, but this dataset has no study_id"):
        protocols.cases(protocols.get("study"), PREDICTIONS, TARGETS, {"patient_id": HOST["patient_id"]})


def test_a_protocol_is_for_a_task_that_is_there():
    for protocol in protocols.PROTOCOLS.values():
        if protocol.name not in ("image", "study"):
            assert catalog.load("tasks", protocol.task).Task


def test_a_typo_lists_the_protocols():
    with pytest.raises(InputError, match="field protocol: no protocol 'chexpert/competion'; did you mean 'chexpert/c"):
        protocols.get("chexpert/competion")


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS.values(), ids=protocols.PROTOCOLS)
def test_every_protocol_is_described(protocol):
    assert protocols.get(protocol.name) is protocol
    assert protocol.description and protocol.source and protocol.case in ("image", "study")
    assert [vocabulary.canonical(name) for name in protocol.classes] == list(protocol.classes)


# Each protocol, from the protocol's options through the task's metrics, against another way to its score.


def scored(name, task, predictions, targets, *, patients=None, studies=None, calibration=None, resamples=0):
    """{figure: Metric} of a split under a protocol, as a run scores it."""
    rows = len(next(iter(targets.values())))
    host = {"id": np.arange(rows).astype(str), "patient_id": patients, "study_id": studies}
    evaluation = evaluate.Evaluation(
        name="test",
        dataset="",
        split="test",
        protocol=protocols.get(name),
        tasks={"task": task},
        batches=None,
        size=rows,
        calibrate_on="test",
        during_training=False,
        rows="",
    )
    host = {name: values for name, values in host.items() if values is not None}
    collected = evaluate.Collected({"task": predictions}, {"task": targets}, host, 0.0)
    if calibration is None:
        calibration = evaluate.calibrate(evaluation, collected)
    (score,) = evaluate.score(evaluation, collected, calibration, resamples=resamples)
    return {metric.name: metric for metric in score.metrics}


def auroc(scores, labels):
    """The share of pairs of a present and an absent one that are in order, ties being a half; NaN without a pair."""
    present, absent = scores[labels == 1], scores[labels == 0]
    pairs = [(a > b) + (a == b) / 2 for a in present for b in absent]
    return np.mean(pairs) if pairs else NAN


def findings(classes, rows=60, seed=0):
    """Scores with ties and labels with unknown ones; the first class is never present, the third never known."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 9, (rows, len(classes))) / 8
    labels = (rng.random(scores.shape) < 0.1 + 0.6 * scores).astype(np.float32)
    labels[rng.random(labels.shape) < 0.2] = NAN
    labels[:, 0][labels[:, 0] == 1] = 0
    labels[:, 2] = NAN
    return {"scores": scores.astype(np.float32)}, {"labels": labels}


OF_IMAGES = {
    "image": chestxray14.CLASSES,
    "chestxray14/official": chestxray14.CLASSES,
    "mimic_cxr/official": mimic_cxr.CLASSES,
    "chexpert/images": chexpert.CLASSES,
    "vindr/global": vinbigdata.CLASSES,
}


@pytest.mark.parametrize("name", OF_IMAGES)
def test_of_findings_the_mean_auroc_of_images(name):
    classes = protocols.get(name).classes or OF_IMAGES[name]
    # Those that are scored come first, so that they have the degenerate ones.
    ordered = (*classes, *(one for one in OF_IMAGES[name] if one not in classes))
    predictions, targets = findings(ordered)
    found = scored(name, classification.Task("chest/findings", ordered), predictions, targets)
    expected = [auroc(predictions["scores"][:, k], targets["labels"][:, k]) for k in range(len(classes))]
    assert np.isnan(expected).sum() == 2
    np.testing.assert_allclose([found[f"auroc/{one}"].value for one in classes], expected)
    assert found["auroc/macro"].value == pytest.approx(np.nanmean(expected))
    assert {key.partition("/")[2] for key in found} == {*classes, "macro"}
    assert found["auroc/macro"].trivial == 0.5


def test_the_official_classes_are_fourteen_findings():
    assert len(chestxray14.CLASSES) == len(mimic_cxr.CLASSES) == 14 and "No Finding" not in chestxray14.CLASSES


@pytest.mark.parametrize("name", ["study", "chexpert/competition"])
def test_of_studies_the_mean_auroc_of_the_best_views(name):
    classes = protocols.get(name).classes or chexpert.CLASSES
    predictions, targets = findings(classes, rows=80)
    studies = np.random.default_rng(1).integers(0, 30, 80).astype(str)
    expected = []
    for k in range(len(classes)):
        scores, labels = {}, {}
        for row, study in enumerate(studies):
            score, label = predictions["scores"][row, k], targets["labels"][row, k]
            scores[study] = max(score, scores.get(study, 0))
            if not np.isnan(label):
                labels[study] = max(label, labels.get(study, 0))
        known = sorted(labels)
        expected.append(auroc(np.array([scores[one] for one in known]), np.array([labels[one] for one in known])))
    task = classification.Task("chest/findings", tuple(classes))
    found = scored(name, task, predictions, targets, studies=studies)
    np.testing.assert_allclose([found[f"auroc/{one}"].value for one in classes], expected)
    assert found["auroc/macro"].value == pytest.approx(np.nanmean(expected))


def test_medmnist_equals_its_evaluator():
    golden = np.load(GOLDENS / "medmnist.npz")["figures"]
    for (kind, scores, labels), (area, accuracy) in zip(medmnist_evaluator.cases(), golden, strict=True):
        several = kind.startswith("multi-label")
        task = classification.Task("m/labels", tuple("abcde")[: labels.shape[1]], exclusive=not several)
        name = "medmnist" if several else "medmnist/multi_class"
        found = scored(name, task, {"scores": scores}, {"labels": labels})
        values = [found[figure].value for figure in protocols.get(name).headline]
        assert values == pytest.approx([area, accuracy], abs=1e-12)


@pytest.mark.parametrize("ill", [True, False])
def test_tbx11k_calls_an_image_by_its_highest_score(ill):
    classes = tbx11k.CLASS_SETS["image"]
    rng = np.random.default_rng(2)
    true = rng.integers(0, 3 if ill else 2, 90)
    scores = rng.dirichlet(np.ones(3), 90) + 0.4 * np.eye(3)[true]
    scores /= scores.sum(1, keepdims=True)
    labels = np.eye(3)[true]
    labels[::9] = NAN
    found = scored(
        "tbx11k/classification",
        classification.Task("tb/image", classes, exclusive=True),
        {"scores": scores},
        {"labels": labels},
    )
    known = ~np.isnan(labels[:, 0])
    true, scores = true[known], scores[known]
    called = scores.argmax(1)
    assert (scores.max(1) < 0.5).any()
    recall = [(called[true == k] == k).mean() if (true == k).any() else NAN for k in range(3)]
    precision = [(true[called == k] == k).mean() if (true == k).any() else NAN for k in range(3)]
    expected = {
        "top1_accuracy": (called == true).mean(),
        "auroc/Tuberculosis": auroc(scores[:, 2], true == 2),
        "sensitivity/Tuberculosis": recall[2],
        "specificity/Tuberculosis": (called[true != 2] != 2).mean(),
        "precision/macro": np.nanmean(precision),
        "sensitivity/macro": np.nanmean(recall),
    }
    assert tuple(expected) == protocols.get("tbx11k/classification").headline
    for name, value in expected.items():
        np.testing.assert_allclose(found[name].value, value, err_msg=name)
    assert found["top1_accuracy"].trivial == pytest.approx(np.bincount(true).max() / len(true))


def test_minijsrt_scores_one_class_of_each_image_by_accuracy():
    rng = np.random.default_rng(3)
    true, scores = rng.integers(0, 4, 40), rng.dirichlet(np.ones(4), 40)
    task = classification.Task("chest/directions", tuple("udlr"), exclusive=True)
    found = scored("minijsrt/classes", task, {"scores": scores}, {"labels": np.eye(4)[true]})
    assert found["top1_accuracy"].value == pytest.approx(np.mean([row.max() == row[k] for row, k in zip(scores, true)]))
    assert found["top1_accuracy"].trivial == pytest.approx(np.bincount(true).max() / 40)


def test_minijsrt_scores_ages_by_the_mean_absolute_error():
    true, predicted = np.float32([[40], [61], [NAN], [70]]), np.float32([[42], [58], [5], [70]])
    task = regression.Task("chest/age", ("age in years",))
    found = scored("minijsrt/age", task, {"target": predicted}, {"target": true})
    assert found["mae"].value == pytest.approx((2 + 3 + 0) / 3) and found["mae"].n == 3
    assert found["mae"].trivial == pytest.approx((21 + 0 + 9) / 3)


def test_minijsrt_scores_boxes_by_their_iou():
    """Halves of a box, a quarter of one, and one that is not known."""
    task = box_regression.Task("chest/boxes", structures=("Heart", "Left Lung"))
    true = np.float32([[[0, 0, 0.5, 1], [0, 0, 1, 1]], [[0, 0, 1, 1], [NAN] * 4]])
    predicted = np.float32([[[0, 0, 0.5, 0.5], [0, 0, 1, 0.5]], [[0, 0, 0.5, 0.5], [0, 0, 1, 1]]])
    targets = {"boxes": true, "found": (~np.isnan(true[..., 0])).astype(np.int32)}
    found = scored("minijsrt/boxes", task, {"boxes": predicted}, targets)
    assert found["iou/Heart"].value == pytest.approx((0.5 + 0.25) / 2) and found["iou/Left Lung"].value == 0.5
    assert found["iou/macro"].value == pytest.approx((0.375 + 0.5) / 2)
    assert found["iou_at_least_50/macro"].value == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize("name", ["minijsrt/anomaly", "minijsrt/clusters"])
def test_minijsrt_scores_anomalies_and_clusters_by_accuracy(name):
    """Codes of two groups, the second of which is what the training images are not."""
    rng = np.random.default_rng(0)
    group, clusters = np.arange(40) % 2, name == "minijsrt/clusters"
    code = (rng.normal(0, 1, (40, 2)) + 3 * group[:, None]).astype(np.float32)
    labels = np.eye(2)[group] if clusters else group[:, None].astype(float)
    classes, head = ("a", "b") if clusters else ("Anomaly",), {"name": "autoencoder", "size": (8, 8), "code": 2}
    task = anomaly.Task("chest/anomaly", classes, head, clusters=clusters, components=1 + clusters)
    predictions, targets = {"code": code, "error": np.zeros(40, np.float32)}, {"labels": labels}
    calibration = task.calibrate(predictions, targets)
    found = scored(name, task, predictions, targets, calibration={"task": calibration})
    if clusters:
        called = task.assign(predictions, calibration)
        expected = max(np.mean(called == group), np.mean(called != group))
        information = sklearn.metrics.normalized_mutual_info_score(group, called)
        assert found["nmi"].value == pytest.approx(information)
    else:
        scores = task.scores(predictions, calibration)
        expected = np.mean((scores >= calibration["threshold"]) == group)
        assert found["auroc"].value == pytest.approx(auroc(scores, group))
    assert found["accuracy"].value == pytest.approx(expected) and 0.7 < expected <= 1
    assert set(protocols.get(name).headline) <= found.keys()


def kappa(called, true):
    """1 - (squared distances) / (those of all pairs of a call and a truth)."""
    return 1 - np.mean((called - true) ** 2) / np.mean([(a - b) ** 2 for a in called for b in true])


@pytest.mark.parametrize("kind", ["random", "reversed", "one call"])
def test_eyepacs_kappa_is_by_its_definition(kind):
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 50)
    grade = {"random": true + rng.normal(0, 1, 50), "reversed": 4.0 - true, "one call": np.full(50, 2.0)}[kind]
    labels = np.eye(5)[true]
    labels[:5] = NAN
    task = ordinal.Task("eye/grade", tuple("01234"), criterion="mse", decision="nearest")
    found = scored("eyepacs/kappa", task, {"grade": grade}, {"labels": labels})
    called = np.clip(np.floor(grade + 0.5), 0, 4)
    assert found["quadratic_weighted_kappa"].value == pytest.approx(kappa(called[5:], true[5:]), abs=1e-12)
    assert found["quadratic_weighted_kappa"].trivial == pytest.approx(0, abs=1e-12)
    everywhere = scored("eyepacs/kappa", task, {"grade": np.full(3, 1.0)}, {"labels": np.eye(5)[[1, 1, 1]]})
    assert np.isnan(everywhere["quadratic_weighted_kappa"].value)


def detector(classes=boxes.CLASSES):
    return detection.Task("chest/boxes", tuple(classes))


def listed(predictions, targets):
    """The images with known boxes, each as what was found, [(label, box, score)], and what is true, [(label, box)]."""
    images = []
    for row in np.flatnonzero(targets["boxes_known"]):
        found = zip(*(predictions[name][row].tolist() for name in ("labels", "boxes", "scores")))
        true = zip(*(targets[name][row].tolist() for name in ("box_labels", "boxes", "box_valid")))
        found, true = [one for one in found if one[2] > 0], [(label, box) for label, box, valid in true if valid]
        images.append((found, true))
    return images


def coco(images, classes):
    """AP, AP50 and AP75 of each class f[K,3], all of it by pycocotools; NaN for a class without a box."""
    true, called = [], []
    for image, (found, actual) in enumerate(images):
        for annotations, label, box, score in (
            *((true, label, box, None) for label, box in actual),
            *((called, label, box, score) for label, box, score in found),
        ):
            (top, left, bottom, right), number = box, len(annotations) + 1
            height, width = bottom - top, right - left
            one = {"id": number, "image_id": image, "category_id": label, "bbox": [left, top, width, height]}
            annotations.append(one | {"iscrowd": 0, "area": height * width, "score": score})
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (true, called):
            one = COCO()
            one.dataset = {
                "images": [{"id": image} for image in range(len(images))],
                "categories": [{"id": label} for label in range(classes)],
                "annotations": annotations,
            }
            one.createIndex()
            sets.append(one)
        evaluation = COCOeval(*sets, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # [thresholds, recalls, classes], any size, 100 boxes
    precision = np.where(precision < 0, NAN, precision).mean(1)
    return np.stack([precision.mean(0), precision[0], precision[5]], 1)


def ties_and_empty_images(seed):
    """Random boxes, rounded scores, images without boxes, one with unknown boxes, one where nothing is found."""
    predictions, targets = boxes.split(images=20, seed=seed)
    targets["box_valid"][4:9] = False
    predictions["scores"] = predictions["scores"].round(1)
    predictions["scores"][6] = predictions["scores"][10] = 0
    return predictions, targets


COCO_SCORED = ("coco", "tbx11k/all", "tbx11k/all_agnostic", "tbx11k/tuberculosis", "tbx11k/tuberculosis_agnostic")


@pytest.mark.parametrize("kind", ["random", "nothing found", "nothing there"])
@pytest.mark.parametrize("name", COCO_SCORED)
def test_average_precision_is_that_of_pycocotools(name, kind):
    predictions, targets = ties_and_empty_images(seed=1)
    if kind == "nothing found":
        predictions["scores"][:] = 0
    if kind == "nothing there":
        targets["box_valid"][:] = False
    found = scored(name, detector(), predictions, targets)
    images, classes = listed(predictions, targets), boxes.CLASSES
    if "tuberculosis" in name:
        images = [one for one in images if one[1]]
    if "agnostic" in name:
        classes = ("any",)
        images = [([(0, *rest) for _, *rest in called], [(0, box) for _, box in true]) for called, true in images]
    expected = coco(images, len(classes)) if images else np.full((1, 3), NAN)
    for m, metric in enumerate(("ap", "ap50", "ap75")):
        if images:
            np.testing.assert_allclose([found[f"{metric}/{one}"].value for one in classes], expected[:, m], rtol=1e-9)
        defined = expected[:, m][~np.isnan(expected[:, m])]
        np.testing.assert_allclose(found[f"{metric}/macro"].value, defined.mean() if len(defined) else NAN, rtol=1e-9)
    np.testing.assert_equal(found["ap50/macro"].trivial, NAN if kind == "nothing there" else 0.0)


def overlap(first, second):
    height = min(first[2], second[2]) - max(first[0], second[0])
    width = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(height, 0) * max(width, 0)
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared)


def right_and_wrong(images, label, iou):
    """The detections of a class, best first: (score, whether it is the first to overlap its best box by over `iou`)."""
    ranked = sorted(
        ((score, image, box) for image, (found, _) in enumerate(images) for one, box, score in found if one == label),
        key=lambda one: -one[0],
    )
    taken, right = set(), []
    for score, image, box in ranked:
        true = [actual for one, actual in images[image][1] if one == label]
        overlaps = [overlap(box, actual) for actual in true]
        best = (image, int(np.argmax(overlaps))) if true else None
        hit = best is not None and max(overlaps) > iou and best not in taken
        right.append((score, hit))
        if hit:
            taken.add(best)
    return right


def counts(right):
    """(right, wrong) detections of each score or a higher one, the highest first."""
    scores = sorted({score for score, _ in right}, reverse=True)
    return [[sum(hit == kind for score, hit in right if score >= least) for kind in (True, False)] for least in scores]


def sensitivity(right, total, images, rate):
    """Of the curve through (false positives per image, share found) at each score, the height at `rate`."""
    points = [(0.0, 0.0), *((wrong / images, hits / total) for hits, wrong in counts(right))]
    (x, y), beyond = [p for p in points if p[0] <= rate][-1], [p for p in points if p[0] > rate]
    return y + (rate - x) * (beyond[0][1] - y) / (beyond[0][0] - x) if beyond else y


@pytest.mark.parametrize("kind", ["random", "nothing found"])
def test_node21_is_three_quarters_auroc_and_one_quarter_sensitivity(kind):
    predictions, targets = ties_and_empty_images(seed=2)
    predictions["labels"][:] = targets["box_labels"][:] = 0
    if kind == "nothing found":
        predictions["scores"][:] = 0
    found = scored("node21/detection", detector(("Nodule",)), predictions, targets)
    images = listed(predictions, targets)
    best = np.array([max((score for *_, score in called), default=0) for called, _ in images])
    area = auroc(best, np.array([bool(true) for _, true in images]))
    right, total = right_and_wrong(images, 0, 0.2), sum(len(true) for _, true in images)
    rates = (0.125, 0.25, 0.5, 1, 2, 4, 8)
    expected = [sensitivity(right, total, len(images), rate) for rate in rates]
    np.testing.assert_allclose([found[f"sensitivity@{rate}/Nodule"].value for rate in rates], expected)
    assert found["froc/macro"].value == pytest.approx(np.mean(expected))
    assert found["image_auroc"].value == pytest.approx(area)
    assert found["score"].value == pytest.approx(0.75 * area + 0.25 * expected[1])
    assert found["score"].trivial == pytest.approx(0.75 * 0.5)
    assert kind != "random" or 0 < expected[0] < expected[-1] < 1


def area_of_envelope(right, total):
    """The mean over true boxes of the best precision where as many are found, or more."""
    points = counts(right)
    best = [max((hits / (hits + wrong) for hits, wrong in points if hits >= k), default=0) for k in range(1, total + 1)]
    return np.mean(best) if total else NAN


def test_vinbigdata_is_the_area_of_voc_with_no_finding_as_a_class():
    classes = vinbigdata.KAGGLE_BOX_CLASSES
    assert set(classes) == set(protocols.get("vinbigdata/kaggle").classes) and len(classes) == 14
    predictions, targets = ties_and_empty_images(seed=3)
    rng = np.random.default_rng(0)
    targets["box_labels"] = rng.integers(0, 6, (20, 4))
    predictions["labels"] = np.where(rng.random((20, 8)) < 0.8, np.tile(targets["box_labels"], 2), 7)
    # An overlap of exactly 0.4 is none.
    targets["boxes"][0, 0], predictions["boxes"][0, 0] = [0, 0, 0.3125, 0.5], [0, 0, 0.125, 0.5]
    targets["box_valid"][0] = [True, False, False, False]
    predictions["scores"][0] = [1, *[0] * 7]
    found = scored("vinbigdata/kaggle", detector(classes), predictions, targets)
    whole, images = [0, 0, 1, 1], []
    for called, true in listed(predictions, targets):
        none = 1 - max((score for *_, score in called), default=0)
        images.append(([*called, (14, whole, none)], true or [(14, whole)]))
    expected = []
    for label in range(15):
        total = sum(one == label for _, true in images for one, _ in true)
        expected.append(area_of_envelope(right_and_wrong(images, label, 0.4), total))
    names = [f"ap@0.4/{one}" for one in (*classes, "No Finding")]
    np.testing.assert_allclose([found[name].value for name in names], expected, rtol=1e-9)
    assert found["ap@0.4/macro"].value == pytest.approx(np.nanmean(expected))
    assert np.isnan(expected).sum() == 8 and np.nanmin(expected[:6]) > 0
    assert right_and_wrong(images[:1], targets["box_labels"][0, 0], 0.4) == [(1, False)]
    healthy = np.mean([true == [(14, whole)] for _, true in images])
    assert found["ap@0.4/No Finding"].trivial == pytest.approx(healthy)
    assert found["ap@0.4/macro"].trivial == pytest.approx(healthy / 7)  # of the classes that have a box


def test_chestxdet_equals_the_scorer_of_chestx_det10():
    golden = np.load(GOLDENS / "froc.npz")
    classes = chestxdet.CLASSES[:5]
    for seed in range(2):
        expected = np.array([golden[f"official/{seed}/{label}"] for label in range(5)])
        found = scored("chestxdet/froc", detector(classes), *boxes.on_pixels(seed=seed))
        for place, rate in enumerate(("0.05", "0.1", "0.2")):
            got = [found[f"sensitivity@{rate}/{one}"].value for one in classes]
            np.testing.assert_allclose(got, expected[:, place], atol=1e-6)
            assert found[f"sensitivity@{rate}/macro"].value == pytest.approx(expected[:, place].mean(), abs=1e-6)
        assert found["froc/macro"].value == pytest.approx(expected.mean(), abs=1e-6)
        assert found["froc/macro"].trivial == 0


MASK_SCORED = {
    "siim_acr/dice": siim_acr.MASK_CLASSES,
    "chestxdet/segmentation": chestxdet.MASK_CLASSES,
    "chexmask/dice": chexmask.MASK_CLASSES,
    "organs": minijsrt_organs.MASK_CLASSES,
    "drions_db": drions_db.MASK_CLASSES,
}


def segmented(structures, rows=9, size=(6, 5), seed=0, threshold=0.5):
    """A task, a batch of it, and its masks, called and true, bool[B,H,W,S].

    Image 0 has nothing and nothing is called, in image 1 there is a false alarm, in image 2 all is missed; a structure
    of image 3 is unknown.
    """
    rng = np.random.default_rng(seed)
    called, true = rng.random((2, rows, *size, len(structures))) < 0.4
    true[:2] = called[0] = called[2] = False
    task = segmentation.Task("image/masks", structures, threshold=threshold)
    batch = {
        "image": np.zeros((rows, *size, 1), np.float32),
        "valid": np.ones(rows, bool),
        "masks": true.astype(np.uint8),
        "mask_valid": np.ones((rows, len(structures)), bool),
    }
    batch["mask_valid"][3, -1] = False
    return task, batch, called, true


def evaluated(task, logits, batch):
    """The predictions and targets of logits f[B,H,W,S], as arrays."""
    logits = np.asarray(logits, np.float32)[None]
    return jax.device_get(jax.jit(lambda x: (task.predict(x, batch), task.targets(batch)))(logits))


@pytest.mark.parametrize("name", MASK_SCORED)
def test_dice_and_iou_are_means_of_images(name):
    structures = MASK_SCORED[name]
    task, batch, called, true = segmented(structures)
    found = scored(name, task, *evaluated(task, np.where(called, 3.0, -3.0), batch))
    means = {"dice": [], "iou": [], "dice_present": []}
    for k, structure in enumerate(structures):
        rows = {metric: [] for metric in means}
        for row in np.flatnonzero(batch["mask_valid"][:, k]):
            first, second = (set(map(tuple, np.argwhere(each[row, ..., k]))) for each in (called, true))
            either = len(first | second)
            rows["dice"].append(2 * len(first & second) / (len(first) + len(second)) if either else 1)
            rows["iou"].append(len(first & second) / either if either else 1)
            if second:
                rows["dice_present"].append(rows["dice"][-1])
        for metric, values in rows.items():
            assert found[f"{metric}/{structure}"].value == pytest.approx(np.mean(values))
            means[metric].append(np.mean(values))
    for metric, values in means.items():
        assert found[f"{metric}/macro"].value == pytest.approx(np.mean(values))
    blind = []
    for k in range(len(structures)):
        masks = true[batch["mask_valid"][:, k], ..., k]
        often = masks.mean(0) >= 0.5  # the mean mask
        assert often.any()
        blind.append(np.mean(2 * (masks & often).sum((1, 2)) / (masks.sum((1, 2)) + often.sum())))
    assert found["dice/macro"].trivial == pytest.approx(np.mean(blind))


@pytest.mark.parametrize("threshold", [0.5, "dice"])
def test_to_predict_nothing_scores_the_share_of_the_healthy_in_siim_acr(threshold):
    """The 12,047 training images of which 9,378 show no pneumothorax; the table's heading says what that gives."""
    assert round(9378 / 12047, 2) == 0.78 and "about 0.777" in protocols.get("siim_acr/dice").description
    task, batch, called, _ = segmented(("Pneumothorax",), rows=40, threshold=threshold)
    batch["masks"][9:] = 0
    batch["mask_valid"][:] = True
    found = scored("siim_acr/dice", task, *evaluated(task, np.where(called, 3.0, -3.0), batch))
    assert found["dice/macro"].trivial == pytest.approx(33 / 40) and found["dice_present/macro"].trivial == 0


def pooled_f1(call, answer):
    return 2 * (call & answer).sum() / max(call.sum() + answer.sum(), 1)


@pytest.mark.parametrize("empty", [False, True])
def test_vessels_are_pixels_of_all_images_inside_the_field_of_view(empty):
    task, batch, called, true = segmented(("Vessels",), size=(16, 12), threshold="f1")
    rng = np.random.default_rng(4)
    batch["masks"] = true = (true & ~empty).astype(np.uint8)
    batch["mask_valid"][3] = False
    batch["second_masks"] = (true ^ (rng.random(true.shape) < 0.1)).astype(np.uint8)
    batch["field_of_view"] = (rng.random(true.shape[:3]) < 0.8).astype(np.uint8)
    logits = rng.normal(1.5 * called - 1.5, 1)
    predictions, targets = evaluated(task, logits, batch)
    # The threshold comes from other images.
    calibration = task.calibrate(*evaluated(task, logits + 0.3, batch))
    (threshold,) = calibration["thresholds"]
    found = scored("vessels", task, predictions, targets, calibration={"task": calibration})
    seen = (batch["field_of_view"] > 0) & batch["mask_valid"][..., None]  # of one structure, so bool[B,H,W]
    often = (true * seen[..., None]).sum(0) / np.maximum(seen.sum(0), 1)[..., None]
    answer, p, second, mean = (
        each[seen][:, 0]
        for each in (
            *(true > 0, predictions["probabilities"], batch["second_masks"] > 0),
            np.broadcast_to(often, true.shape),
        )
    )
    blind = max(sorted(segmentation.CANDIDATES, key=lambda t: abs(t - 0.5)), key=lambda t: pooled_f1(mean >= t, answer))
    for field, call in (("value", p >= np.float32(threshold)), ("reader", second), ("trivial", mean >= blind)):
        hits, false = (call & answer).sum(), (call & ~answer).sum()
        expected = {
            "f1": pooled_f1(call, answer) if call.any() or answer.any() else NAN,
            "sensitivity": hits / answer.sum() if answer.any() else NAN,
            "specificity": 1 - false / (~answer).sum(),
            "accuracy": (call == answer).mean(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(found[f"pixel_{name}/macro"], field), value, err_msg=f"{field} {name}")
    np.testing.assert_allclose(found["pixel_auroc/macro"].value, auroc(p, answer), atol=2e-3)
    # One mask is one point of the curve.
    point = (found["pixel_sensitivity/macro"].trivial + found["pixel_specificity/macro"].trivial) / 2
    np.testing.assert_allclose(found["pixel_auroc/macro"].trivial, point)
    assert empty or found["pixel_f1/macro"].trivial > 0.4


def test_drishti_gs_compares_heights_of_cup_and_disc():
    """Discs of 10 rows; cups of 5 (called 8), of 4 (called none) and of 3 in an unknown disc: errors 0.3 and 0.4."""
    task, batch, called, true = segmented(drishti_gs.MASK_CLASSES, rows=4, size=(16, 4))
    called[:], true[:] = False, False
    true[:, 2:12, :, 0] = called[:, 2:12, :, 0] = True
    for row, height in enumerate((5, 4, 3, 2)):
        true[row, 3 : 3 + height, 1:3, 1] = True
    called[0, 3:11, 1, 1] = True
    batch["masks"], batch["mask_valid"] = true.astype(np.uint8), np.arange(4)[:, None] < [2, 3]
    found = scored("drishti_gs", task, *evaluated(task, np.where(called, 3.0, -3.0), batch))
    assert found["ratio_error/macro"].value == pytest.approx((0.3 + 0.4) / 2)
    assert found["ratio_error/macro"].trivial == pytest.approx(0.05)  # of the median, 0.45
    assert found["dice/Optic Disc"].value == 1 and found["dice/Optic Disc"].n == 2
    assert found["dice/Optic Cup"].value == pytest.approx((2 * 5 / (10 + 8) + 0 + 0) / 3)


def test_drions_db_shows_the_second_expert_beside():
    task, batch, called, true = segmented(drions_db.MASK_CLASSES)
    batch["second_masks"] = called.astype(np.uint8)
    right = scored("drions_db", task, *evaluated(task, np.where(true, 3.0, -3.0), batch))["dice/macro"]
    second = scored("drions_db", task, *evaluated(task, np.where(called, 3.0, -3.0), batch))["dice/macro"]
    assert right.value == 1 and right.reader == pytest.approx(second.value) and 0.3 < second.value < 0.9


def split_of(name):
    """A task and a small split of it under a protocol."""
    rng = np.random.default_rng(5)
    if name in MASK_SCORED or name == "vessels":
        task, batch, called, _ = segmented(MASK_SCORED.get(name, ("Vessels",)), rows=24)
        return task, *evaluated(task, rng.normal(3.0 * called - 1.5, 1), batch)
    if name == "eyepacs/kappa":
        true = rng.integers(0, 5, 24)
        return (
            ordinal.Task("eye/grade", tuple("01234"), criterion="mse"),
            {"grade": true + rng.normal(0, 1, 24)},
            {"labels": np.eye(5)[true]},
        )
    if name == "tbx11k/classification":
        true = rng.permutation(np.arange(24) % 3)
        task = classification.Task("tb/image", tbx11k.CLASS_SETS["image"], exclusive=True)
        return task, {"scores": rng.dirichlet(np.ones(3), 24)}, {"labels": np.eye(3)[true]}
    if name in OF_IMAGES:
        task = classification.Task("chest/findings", ("Edema", "Fracture"))
        scores = rng.integers(0, 5, (24, 2)) / 4
        return task, {"scores": scores}, {"labels": np.round(scores + rng.uniform(-0.6, 0.6, (24, 2))).clip(0, 1)}
    predictions, targets = boxes.split(images=24, seed=5)
    targets["box_valid"][::3] = False
    classes = (*vinbigdata.KAGGLE_BOX_CLASSES,) if name == "vinbigdata/kaggle" else ("Mass", "Nodule")
    return detector(classes), predictions, targets


SPLITS = ("image", "tbx11k/classification", "eyepacs/kappa", "coco", "tbx11k/tuberculosis_agnostic", "node21/detection")
SPLITS += ("vinbigdata/kaggle", "chestxdet/froc", "siim_acr/dice", "chestxdet/segmentation", "vessels")


@pytest.mark.parametrize("name", SPLITS)
def test_an_interval_is_that_of_splits_put_together_from_drawn_patients(name):
    task, predictions, targets = split_of(name)
    patients = np.arange(24) // 3
    calibration = {"task": task.calibrate(predictions, targets)}
    metric = protocols.get(name).headline[0] if protocols.get(name).headline else "auroc/macro"
    found = scored(name, task, predictions, targets, patients=patients, calibration=calibration, resamples=12)[metric]
    rng, draws = np.random.default_rng(0), []
    for _ in range(12):
        rows = np.concatenate([np.flatnonzero(patients == one) for one in rng.integers(8, size=8)])
        again = [{key: array[rows] for key, array in arrays.items()} for arrays in (predictions, targets)]
        draws.append(scored(name, task, *again, calibration=calibration)[metric].value)
    assert found.low < found.value < found.high
    np.testing.assert_allclose([found.low, found.high], np.percentile(draws, [2.5, 97.5]), rtol=1e-9)


def test_every_protocol_has_a_test_of_its_score():
    elsewhere = {"fire"}  # tests/test_registration.py
    own = {"study", "chexpert/competition", "tbx11k/classification", "eyepacs/kappa", "node21/detection"}
    own |= {"medmnist", "medmnist/multi_class", "vinbigdata/kaggle", "chestxdet/froc", "vessels", "drishti_gs"}
    own |= {f"minijsrt/{kind}" for kind in ("classes", "age", "boxes", "anomaly", "clusters")}
    assert {*OF_IMAGES, *COCO_SCORED, *MASK_SCORED, *own, *elsewhere} == set(protocols.PROTOCOLS)

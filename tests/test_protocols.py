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
    fire,
    mimic_cxr,
    minijsrt_organs,
    siim_acr,
    tbx11k,
    vinbigdata,
)
from mediax.errors import InputError
from mediax.tasks import (
    anomaly,
    box_regression,
    classification,
    detection,
    ordinal,
    registration,
    regression,
    segmentation,
)

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
    assert found["auroc/macro"].trivial == 0.5


def test_medmnist_equals_its_evaluator():
    golden = np.load(GOLDENS / "medmnist.npz")["figures"]
    for (kind, scores, labels), (area, accuracy) in zip(medmnist_evaluator.cases(), golden, strict=True):
        several = kind.startswith("multi-label")
        task = classification.Task("m/labels", tuple("abcde")[: labels.shape[1]], exclusive=not several)
        name = "medmnist" if several else "medmnist/multi_class"
        found = scored(name, task, {"scores": scores}, {"labels": labels})
        values = [found[figure].value for figure in protocols.get(name).headline]
        assert values == pytest.approx([area, accuracy], abs=1e-12)
        assert found[protocols.get(name).headline[0]].trivial == 0.5


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
    # The trivial answer is the most frequent class, always.
    most = np.bincount(true, minlength=3).argmax()
    trivial = {
        "top1_accuracy": (true == most).mean(),
        "auroc/Tuberculosis": 0.5 if ill else NAN,
        "sensitivity/Tuberculosis": float(most == 2) if ill else NAN,
        "specificity/Tuberculosis": float(most != 2),
        "precision/macro": (true == most).mean() / (3 if ill else 2),  # 0 of a class that is never called
        "sensitivity/macro": 1 / (3 if ill else 2),
    }
    for name, value in trivial.items():
        np.testing.assert_allclose(found[name].trivial, value, err_msg=name)


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
    # The trivial box is the mean one, of the heart three quarters of the image.
    assert found["iou/Heart"].trivial == pytest.approx((2 / 3 + 3 / 4) / 2) and found["iou/Left Lung"].trivial == 1
    assert found["iou_at_least_50/macro"].trivial == 1


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


def changed(kind, predictions, targets):
    """A split where nothing is found, nothing is there, every box lies elsewhere, or more is found than counts."""
    if kind == "nothing found":
        predictions["scores"][:] = 0
    if kind == "nothing there":
        targets["box_valid"][:] = False
    if kind == "all elsewhere":
        targets["boxes"], predictions["boxes"] = targets["boxes"] * 0.4, 0.5 + predictions["boxes"] * 0.4
    if kind == "over a hundred":  # false alarms of each class before the others, in every second image
        alarms = {
            "boxes": np.tile([0.97, 0.97, 0.99, 0.99], (300, 1)),
            "scores": np.linspace(0.5, 1, 300),
            "labels": np.arange(300) % 3,
        }
        predictions["scores"] *= 0.4
        for name, values in predictions.items():
            added = np.repeat(alarms[name][None], len(values), 0).astype(values.dtype)
            predictions[name] = np.concatenate([values, added], 1)
        predictions["scores"][::2, -300:] = 0


def coco(images, classes, most=100):
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
        evaluation.params.maxDets = [1, 10, most]
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


@pytest.mark.parametrize("kind", ["random", "nothing found", "nothing there", "all elsewhere", "over a hundred"])
@pytest.mark.parametrize("name", COCO_SCORED)
def test_average_precision_is_that_of_pycocotools(name, kind):
    predictions, targets = ties_and_empty_images(seed=1)
    changed(kind, predictions, targets)
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
    assert kind != "all elsewhere" or found["ap50/macro"].value == 0
    assert kind != "over a hundred" or np.nanmean(coco(images, len(classes), most=999)) > np.nanmean(expected) + 1e-3
    for metric in protocols.get(name).headline or ("ap/macro", "ap50/macro"):
        np.testing.assert_equal(found[metric].trivial, NAN if kind == "nothing there" else 0.0)


def overlap(first, second):
    height = min(first[2], second[2]) - max(first[0], second[0])
    width = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(height, 0) * max(width, 0)
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared)


def right_and_wrong(images, label, iou, repeats=True):
    """The detections of a class, best first: (score, whether it is the first to overlap its best box by over `iou`).

    Without `repeats` those that are not the first are left out.
    """
    ranked = sorted(
        ((score, image, box) for image, (found, _) in enumerate(images) for one, box, score in found if one == label),
        key=lambda one: -one[0],
    )
    taken, right = set(), []
    for score, image, box in ranked:
        true = [actual for one, actual in images[image][1] if one == label]
        overlaps = [overlap(box, actual) for actual in true]
        best = (image, int(np.argmax(overlaps))) if true else None
        near = best is not None and max(overlaps) > iou
        if repeats or not near or best not in taken:
            right.append((score, near and best not in taken))
        if near:
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


@pytest.mark.parametrize("kind", ["random", "nothing found", "nothing there", "all elsewhere"])
def test_node21_is_three_quarters_auroc_and_one_quarter_sensitivity(kind):
    predictions, targets = ties_and_empty_images(seed=2)
    predictions["labels"][:] = targets["box_labels"][:] = 0
    changed(kind, predictions, targets)
    found = scored("node21/detection", detector(("Nodule",)), predictions, targets)
    images = listed(predictions, targets)
    best = np.array([max((score for *_, score in called), default=0) for called, _ in images])
    area = auroc(best, np.array([bool(true) for _, true in images]))
    right, total = right_and_wrong(images, 0, 0.2, repeats=False), sum(len(true) for _, true in images)
    assert kind != "random" or len(right) < len(right_and_wrong(images, 0, 0.2))
    rates = (0.125, 0.25, 0.5, 1, 2, 4, 8)
    expected = [sensitivity(right, total, len(images), rate) if total else NAN for rate in rates]
    np.testing.assert_allclose([found[f"sensitivity@{rate}/Nodule"].value for rate in rates], expected)
    assert found["froc/macro"].value == pytest.approx(np.mean(expected), nan_ok=True)
    assert found["image_auroc"].value == pytest.approx(area, nan_ok=True)
    assert found["score"].value == pytest.approx(0.75 * area + 0.25 * expected[1], nan_ok=True)
    trivial = {"score": 0.75 * 0.5, "image_auroc": 0.5, "sensitivity@0.25/macro": 0}
    assert tuple(trivial) == protocols.get("node21/detection").headline
    for name, value in trivial.items():
        np.testing.assert_allclose(found[name].trivial, value if total else NAN)
    assert kind != "random" or 0 < expected[0] < expected[-1] < 1


def test_node21_counts_a_second_box_on_a_nodule_neither_way():
    """Nodules in images 0 and 1; found at 0.9, again at 0.8, a false alarm in image 2 at 0.7, the other at 0.6."""
    nodule, elsewhere = [0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.8, 0.8]
    targets = {
        "boxes": np.float32([[nodule]] * 4),
        "box_labels": np.zeros((4, 1), int),
        "box_valid": np.array([[True], [True], [False], [False]]),
        "boxes_known": np.ones(4, bool),
    }
    predictions = {
        "boxes": np.float32([[nodule, nodule], [nodule, nodule], [elsewhere] * 2, [elsewhere] * 2]),
        "scores": np.float32([[0.9, 0.8], [0.6, 0], [0.7, 0], [0, 0]]),
        "labels": np.zeros((4, 2), int),
    }
    found = scored("node21/detection", detector(("Nodule",)), predictions, targets)
    assert found["sensitivity@0.25/Nodule"].value == 1 and found["sensitivity@0.125/Nodule"].value == 0.5
    assert found["image_auroc"].value == 0.75 and found["score"].value == 0.75 * 0.75 + 0.25
    options = protocols.get("node21/detection").options
    errors = detector(("Nodule",)).errors(predictions, targets, {}, **options)
    counted = detector(("Nodule",)).errors(predictions, targets, {}, **options | {"drop_repeats": False})
    assert errors[:2] == pytest.approx([0, 0], abs=1e-3) and counted[0] == pytest.approx(1 / 3, abs=1e-3)


def area_of_envelope(right, total):
    """The mean over true boxes of the best precision where as many are found, or more."""
    points = counts(right)
    best = [max((hits / (hits + wrong) for hits, wrong in points if hits >= k), default=0) for k in range(1, total + 1)]
    return np.mean(best) if total else NAN


@pytest.mark.parametrize("kind", ["random", "nothing found", "nothing there"])
def test_vinbigdata_is_the_area_of_voc_with_no_finding_as_a_class(kind):
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
    changed(kind, predictions, targets)
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
    there = (~np.isnan(expected)).sum()
    assert there == (1 if kind == "nothing there" else 7)
    if kind == "random":
        assert np.nanmin(expected[:6]) > 0
        assert right_and_wrong(images[:1], targets["box_labels"][0, 0], 0.4) == [(1, False)]
    healthy = np.mean([true == [(14, whole)] for _, true in images])
    assert found["ap@0.4/No Finding"].trivial == pytest.approx(healthy)
    assert found["ap@0.4/macro"].trivial == pytest.approx(healthy / there)  # of the classes that have a box


def test_vinbigdata_s_no_finding_is_an_image_without_a_box_of_all_22_findings():
    """Of three images one has a box of a 15th finding alone, one a nodule that is found, one nothing."""
    classes = vinbigdata.BOX_CLASSES
    edema, nodule = classes.index("Edema"), classes.index("Nodule/Mass")
    assert len(classes) == 22 and "Edema" not in protocols.get("vinbigdata/kaggle").classes
    box = [0.1, 0.1, 0.3, 0.3]
    targets = {
        "boxes": np.float32([[box]] * 3),
        "box_labels": np.array([[edema], [nodule], [0]]),
        "box_valid": np.array([[True], [True], [False]]),
        "boxes_known": np.ones(3, bool),
    }
    predictions = {
        "boxes": np.float32([[box]] * 3),
        "scores": np.float32([[0.2], [0.9], [0.4]]),
        "labels": np.array([[edema], [nodule], [nodule]]),
    }
    found = scored("vinbigdata/kaggle", detector(classes), predictions, targets)
    # No Finding is called with 0.8, 0.1 and 0.6: wrong in the first image, right in the last.
    assert found["ap@0.4/No Finding"].value == 0.5 and found["ap@0.4/Nodule/Mass"].value == pytest.approx(1)
    assert found["ap@0.4/macro"].value == pytest.approx(0.75) and "ap@0.4/Edema" not in found


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
        assert found["froc/macro"].trivial == found["sensitivity@0.1/macro"].trivial == 0
    for kind, value in (("nothing found", 0), ("all elsewhere", 0), ("nothing there", NAN)):
        predictions, targets = boxes.on_pixels(seed=0)
        changed(kind, predictions, targets)
        figure = scored("chestxdet/froc", detector(classes), predictions, targets)["froc/macro"]
        np.testing.assert_equal([figure.value, figure.trivial], [value, value], err_msg=kind)


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
    pooled, blind = [], {"dice": [], "iou": [], "dice_present": [], "pixel_iou": []}
    for k in range(len(structures)):
        masks, calls = (each[batch["mask_valid"][:, k], ..., k] for each in (true, called))
        pooled.append((masks & calls).sum() / (masks | calls).sum())
        often = masks.mean(0) >= 0.5  # the mean mask
        assert often.any()
        dice = 2 * (masks & often).sum((1, 2)) / (masks.sum((1, 2)) + often.sum())
        blind["dice"].append(dice.mean())
        blind["dice_present"].append(dice[masks.any((1, 2))].mean())
        blind["iou"].append(np.mean((masks & often).sum((1, 2)) / (masks | often).sum((1, 2))))
        blind["pixel_iou"].append((masks & often).sum() / (masks | often).sum())
    for figure in protocols.get(name).headline:
        assert found[figure].trivial == pytest.approx(np.mean(blind[figure.removesuffix("/macro")])), figure
    if name == "chestxdet/segmentation":
        assert found["pixel_iou/macro"].value == pytest.approx(np.mean(pooled))


def test_a_rare_finding_that_is_missed_has_no_pooled_iou_but_a_high_mean_dice():
    task, batch, called, _ = segmented(chestxdet.MASK_CLASSES, rows=10)
    batch["masks"][:] = 0
    batch["masks"][0, 0, 0] = 1
    batch["mask_valid"][:] = True
    found = scored("chestxdet/segmentation", task, *evaluated(task, np.full(called.shape, -3.0), batch))
    assert found["pixel_iou/macro"].value == 0 and found["dice/macro"].value == pytest.approx(0.9)
    batch["masks"][:] = 0
    found = scored("chestxdet/segmentation", task, *evaluated(task, np.full(called.shape, -3.0), batch))
    assert np.isnan(found["pixel_iou/macro"].value) and found["dice/macro"].value == 1


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


@pytest.mark.parametrize("sign", [1, -1])
def test_the_auroc_of_vessels_sees_the_ranks_of_a_network_that_is_sure_of_itself(sign):
    """Logits of 6 to 11 alone, or of -11 to -6, which a curve of thresholds between -6 and 6 would call one point."""
    task, batch, _, true = segmented(("Vessels",), size=(40, 30), threshold="f1")
    batch["mask_valid"][:] = True
    rng = np.random.default_rng(6)
    logits = sign * 8.5 + np.clip(rng.normal(np.where(true, 0.7, -0.7), 1), -2.5, 2.5)
    found = scored("vessels", task, *evaluated(task, logits, batch))["pixel_auroc/macro"]
    expected = sklearn.metrics.roc_auc_score(true.ravel(), logits.ravel())
    assert found.value == pytest.approx(expected, abs=2e-3) and 0.75 < expected < 0.9


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
    called[0, ..., 0] = False  # a cup without a disc fills it
    found = scored("drishti_gs", task, *evaluated(task, np.where(called, 3.0, -3.0), batch))
    assert found["ratio_error/macro"].value == pytest.approx((0.5 + 0.4) / 2)


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
        threshold = "f1" if name == "vessels" else 0.5
        task, batch, called, _ = segmented(MASK_SCORED.get(name, ("Vessels",)), rows=24, threshold=threshold)
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
    if name in ("study", "chexpert/competition"):
        classes = protocols.get(name).classes or ("Edema", "Fracture")
        scores = rng.integers(0, 5, (24, len(classes))) / 4
        labels = np.round(scores + rng.uniform(-0.6, 0.6, scores.shape)).clip(0, 1)
        return classification.Task("chest/findings", tuple(classes)), {"scores": scores}, {"labels": labels}
    if name == "minijsrt/age":
        ages = rng.uniform(20, 90, (24, 1)).astype(np.float32)
        task = regression.Task("chest/age", ("age in years",))
        return task, {"target": ages + rng.normal(0, 9, (24, 1))}, {"target": ages}
    if name == "fire":
        true, category = rng.random((24, 10, 2)), rng.permutation(np.arange(24) % 3)
        predicted = true + rng.normal(0, rng.choice([1, 5, 12, 40], (24, 1, 1)) / 2912, true.shape)
        task = registration.Task("fundus/registration")
        moving = {"moving_keypoints": true + 0.1, "coefficients": np.zeros((24, 6, 2))}
        predictions = {"keypoints": predicted} | moving
        return task, predictions, {"keypoints": true, "category": category}
    if name == "drishti_gs":
        task, batch, called, true = segmented(drishti_gs.MASK_CLASSES, rows=24)
        return task, *evaluated(task, rng.normal(3.0 * called - 1.5, 1), batch)
    predictions, targets = boxes.split(images=24, seed=5)
    targets["box_valid"][::3] = False
    classes = (*vinbigdata.KAGGLE_BOX_CLASSES,) if name == "vinbigdata/kaggle" else ("Mass", "Nodule")
    return detector(classes), predictions, targets


SPLITS = ("image", "tbx11k/classification", "eyepacs/kappa", "coco", "tbx11k/tuberculosis_agnostic", "node21/detection")
SPLITS += ("vinbigdata/kaggle", "chestxdet/froc", "siim_acr/dice", "chestxdet/segmentation", "vessels", "study", "fire")
SPLITS += ("chexpert/competition", "chexmask/dice", "organs", "drions_db", "drishti_gs", "minijsrt/age")


@pytest.mark.parametrize("name", SPLITS)
def test_an_interval_is_that_of_splits_put_together_from_drawn_patients(name):
    """Patients have two to five images, in studies of up to two, so that draws differ in their number of images."""
    task, predictions, targets = split_of(name)
    patients = np.repeat(np.arange(8), [2, 4, 2, 5, 3, 2, 4, 2])
    studies = np.array([f"{patient}-{row // 2}" for row, patient in enumerate(patients)])
    calibration = {"task": task.calibrate(predictions, targets)}
    options = {"patients": patients, "studies": studies, "calibration": calibration, "resamples": 12}
    found = scored(name, task, predictions, targets, **options)
    rng, draws = np.random.default_rng(0), []
    for _ in range(12):
        drawn = [np.flatnonzero(patients == one) for one in rng.integers(8, size=8)]
        rows = np.concatenate(drawn)
        copies = np.repeat(np.arange(8), [len(one) for one in drawn])
        again = [{key: array[rows] for key, array in arrays.items()} for arrays in (predictions, targets)]
        names = np.array([f"{copy}-{studies[row]}" for copy, row in zip(copies, rows)])
        draws.append(scored(name, task, *again, studies=names, calibration=calibration))
    for figure in protocols.get(name).headline or ("auroc/macro",):
        low, high = np.nanpercentile([draw[figure].value for draw in draws], [2.5, 97.5])
        np.testing.assert_allclose([found[figure].low, found[figure].high], [low, high], rtol=1e-9, err_msg=figure)
        assert low <= found[figure].value <= high, figure
    first = found[(protocols.get(name).headline or ("auroc/macro",))[0]]
    assert first.low < first.value < first.high


def test_fire_s_figures_of_a_run_leave_out_p37():
    """Pairs of S off by 0 and 5.5 pixels, of P by 30; one of A that has no points, as P37."""
    task, predictions, targets = split_of("fire")
    predictions, targets = (
        {name: values[:4].copy() for name, values in arrays.items()} for arrays in (predictions, targets)
    )
    targets["category"] = np.array([fire.CATEGORIES.index(name) for name in "SSPA"])
    assert protocols.get("fire").options["categories"] == fire.CATEGORIES
    off = np.array([0, 5.5, 30, 0])[:, None] / 2912
    predictions["keypoints"] = targets["keypoints"] + np.stack([off, 0 * off], -1)
    targets["keypoints"][3] = NAN
    predictions["moving_keypoints"] = targets["keypoints"] + [0, 400 / 2912]
    found = scored("fire", task, predictions, targets)
    assert found["auc/S"].value == pytest.approx((25 / 25 + 20 / 25) / 2) and found["auc/P"].value == 0
    assert found["auc/macro"].value == pytest.approx(0.45) and np.isnan(found["auc/A"].value)
    assert found["error"].value == pytest.approx((0 + 5.5 + 30) / 3) and found["error"].n == 3
    assert found["auc/macro"].trivial == 0 and found["error"].trivial == pytest.approx(400)


def test_every_protocol_has_a_test_of_its_score():
    own = {"fire", "study", "chexpert/competition", "tbx11k/classification", "eyepacs/kappa", "node21/detection"}
    own |= {"medmnist", "medmnist/multi_class", "vinbigdata/kaggle", "chestxdet/froc", "vessels", "drishti_gs"}
    own |= {f"minijsrt/{kind}" for kind in ("classes", "age", "boxes", "anomaly", "clusters")}
    assert {*OF_IMAGES, *COCO_SCORED, *MASK_SCORED, *own} == set(protocols.PROTOCOLS)

"""Detection: average precision against pycocotools, what enters the loss, and the way through a small detector."""

import contextlib
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from mediax.errors import InputError
from mediax.model import named_key, part
from mediax.tasks import detection
from mediax.tasks.detection import Task

CLASSES = ("Mass", "Nodule", "Fracture")
SMALL = {"width": 4, "hidden": 4, "candidates": 10, "proposals": 8, "sampled": 8, "detections": 5, "aspects": (1.0,)}
HEAD = {"name": "mask_rcnn", "masks": False, "anchor_sizes": (8, 16), **SMALL}


def _split(images=12, seed=0):
    """Random true boxes and detections near them, some of them wrong; the last class has no true box."""
    rng = np.random.default_rng(seed)

    def near(corner, extent):
        return np.concatenate([corner, corner + extent], -1).astype(np.float32)

    corner, extent = rng.uniform(0, 0.6, (images, 4, 2)), rng.uniform(0.1, 0.4, (images, 4, 2))
    targets = {
        "boxes": near(corner, extent),
        "box_labels": rng.integers(0, 2, (images, 4)),
        "box_valid": rng.random((images, 4)) < 0.7,
        "boxes_known": np.arange(images) != 3,
    }
    twice, around = np.concatenate([corner, corner], 1), rng.normal(0, 0.04, (images, 8, 2))
    predictions = {
        "boxes": near(twice + around, np.concatenate([extent, extent], 1) * rng.uniform(0.8, 1.2, (images, 8, 2))),
        "scores": np.where(rng.random((images, 8)) < 0.2, 0, rng.random((images, 8))).astype(np.float32),
        "labels": np.where(rng.random((images, 8)) < 0.8, np.tile(targets["box_labels"], 2), 1),
    }
    return predictions, targets


def _values(metrics):
    return {metric.name: metric.value for metric in metrics}


def _by_pycocotools(predictions, targets, rows):
    """AP, AP50 and AP75 of all classes together, by pycocotools from its matching to its summary."""
    annotations = {"true": [], "called": []}
    for image, row in enumerate(rows):
        for box, label, valid in zip(*(targets[name][row] for name in ("boxes", "box_labels", "box_valid"))):
            if valid:
                one = detection._annotation(len(annotations["true"]), image, box)
                annotations["true"].append(one | {"category_id": int(label)})
        for box, label, score in zip(*(predictions[name][row] for name in ("boxes", "labels", "scores"))):
            if score > 0:
                one = detection._annotation(len(annotations["called"]), image, box)
                annotations["called"].append(one | {"category_id": int(label), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        sets = [detection._coco(each, len(rows)) for each in annotations.values()]
        for coco in sets:
            coco.dataset["categories"] = [{"id": 0}, {"id": 1}, {"id": 2}]
            coco.createIndex()
        evaluation = COCOeval(*sets, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


def test_average_precision_equals_pycocotools():
    predictions, targets = _split()
    found = _values(Task("chest/boxes", CLASSES).metrics(predictions, targets, calibration={}, resamples=0))
    expected = _by_pycocotools(predictions, targets, np.flatnonzero(targets["boxes_known"]))
    np.testing.assert_allclose([found[f"{name}/macro"] for name in ("ap", "ap50", "ap75")], expected, rtol=1e-9)
    assert 0.05 < found["ap/macro"] < found["ap50/macro"] < 1 and np.isnan(found["ap/Fracture"])


def test_weights_count_an_image_as_often_as_it_is_drawn():
    predictions, targets = _split()
    targets["boxes_known"][:] = True
    drawn = np.array([0, 0, 1, 4, 4, 4, 7, 8, 9, 10, 11, 11])
    again = [{name: array[drawn] for name, array in arrays.items()} for arrays in (predictions, targets)]
    index, patients = [0, 1], np.arange(12)
    for k in index:
        once = detection._matched(predictions, targets, patients, k, patients)
        copies = detection._matched(*again, patients, k, patients)
        weights = np.bincount(drawn, minlength=12).astype(float)
        np.testing.assert_allclose(
            detection._precision(once, weights), detection._precision(copies, np.ones(12)), rtol=1e-9
        )


def test_intervals_draw_patients():
    predictions, targets = _split(images=24)
    metrics = Task("chest/boxes", CLASSES).metrics(
        predictions, targets, calibration={}, groups=np.arange(24) // 2, resamples=50
    )
    overall = {metric.name: metric for metric in metrics}["ap50/macro"]
    assert overall.low < overall.value < overall.high and overall.n == 23
    assert "Fracture" in overall.note


def _batch(rows=3):
    boxes = np.zeros((rows, 2, 4), np.float32)
    boxes[:, 0] = [0.2, 0.2, 0.7, 0.6]
    return {
        "image": jnp.zeros((rows, 32, 32, 1)),
        "valid": jnp.ones(rows, bool),
        "boxes": jnp.asarray(boxes),
        "box_labels": jnp.ones((rows, 2), jnp.int32),
        "box_valid": jnp.asarray([[True, False]] * rows),
        "boxes_known": jnp.asarray([True] * (rows - 1) + [False]),
    }


def test_unknown_and_padding_rows_enter_neither_loss_nor_count():
    task = Task("chest/boxes", CLASSES, loss_weights={"box": 2.0})
    outputs = {"losses": {"class": jnp.asarray([1.0, 2.0, 50.0]), "box": jnp.asarray([0.5, 1.0, 70.0])}}
    batch = _batch()
    assert task.count(batch) == 2
    loss, logs = task.loss(outputs, batch, task.count(batch))
    assert loss == pytest.approx((1 + 2 + 2 * (0.5 + 1)) / 2) and logs["class"] == pytest.approx(1.5)
    batch["valid"] = jnp.asarray([True, False, True])
    assert task.count(batch) == 1
    assert task.loss(outputs, batch, 1.0)[0] == pytest.approx(1 + 2 * 0.5)


def test_a_small_detector_trains_and_predicts():
    task, batch = Task("chest/boxes", CLASSES, head=HEAD), _batch()
    channels = {8: 3}
    [build] = task.parts(channels).values()
    head = part(build)
    key = jax.random.key(0)
    params, batch_stats = head.init(key)
    pyramid = {8: jax.random.normal(key, (3, 4, 4, 3))}

    def outputs(params, train):
        def run(name, *inputs):
            return head.apply(params, batch_stats, *inputs, train=train, key=named_key(key, name))[0]

        return task.apply(run, pyramid, batch)

    slopes = jax.jit(jax.grad(lambda params: task.loss(outputs(params, True), batch, task.count(batch))[0]))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slopes["rpn"]))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(slopes["box_branch"]))
    found = jax.eval_shape(lambda params: task.predict(outputs(params, False), batch), params)
    assert {name: array.shape for name, array in found.items()} == {
        "boxes": (3, 5, 4),
        "scores": (3, 5),
        "labels": (3, 5),
    }


@pytest.mark.parametrize("head", [HEAD | {"masks": True}, {**HEAD, "masks": None}])
def test_masks_are_learned_unless_the_config_says_no(head):
    head = {name: value for name, value in head.items() if value is not None}  # without a word, Mask R-CNN has masks
    task = Task("chest/boxes", CLASSES, head=head)
    batch = _batch() | {"masks": jnp.zeros((3, 32, 32, 3), jnp.uint8)}
    [build] = task.parts({8: 3}).values()
    module = part(build)

    def outputs(key):
        params, batch_stats = module.init(key)
        run = lambda _, *inputs: module.apply(params, batch_stats, *inputs, train=False, key=key)[0]  # noqa: E731
        return task.apply(run, {8: jnp.zeros((3, 4, 4, 3))}, batch)

    found = jax.eval_shape(outputs, jax.random.key(0))
    assert found["losses"]["mask"].shape == (3,)
    assert task.predict(found, batch)["masks"].shape == (3, 5, 28, 28)


def test_samples_are_drawn(tmp_path):
    predictions, targets = _split(images=3)
    Task("chest/boxes", CLASSES).draw_samples(tmp_path, "chest", np.zeros((3, 8, 8, 1)), predictions, targets, {})
    assert (tmp_path / "samples_chest.png").stat().st_size > 1000


def test_messages_name_what_is_wrong():
    with pytest.raises(InputError, match="finds no boxes"):
        Task("chest/boxes", CLASSES, head={"name": "pooled"})
    with pytest.raises(InputError, match="no loss 'boxx'; did you mean 'box'"):
        Task("chest/boxes", CLASSES, loss_weights={"boxx": 1.0})
    with pytest.raises(InputError, match="box_classes"):
        Task("chest/boxes", ())
    with pytest.raises(InputError, match="lacks boxes, box_labels, box_valid"):
        Task("chest/boxes", CLASSES).count({"valid": jnp.ones(2, bool)})
    with pytest.raises(InputError, match="Set the head's option masks to False"):
        Task("chest/boxes", CLASSES, head={"name": "mask_rcnn"})._masks({"image": jnp.zeros((1, 8, 8, 1))})

"""Detection: how it is scored, what enters the loss, and the way through a small detector."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from boxes import CLASSES, split
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sheets import samples_of

from mediax import figures
from mediax.annotations import box_iou
from mediax.batch import check, pad_boxes
from mediax.errors import InputError
from mediax.model import named_key, part
from mediax.operators.paste import paste
from mediax.tasks.detection import Task

COUNTS = {"candidates": 10, "proposals": 8, "training_candidates": 10, "training_proposals": 8, "sampled": 8}
SMALL = {"width": 4, "hidden": 4, "detections": 5, "aspects": (1.0,), **COUNTS}
HEAD = {"name": "mask_rcnn", "masks": False, "anchor_sizes": (8, 16), **SMALL}


def test_intervals_draw_patients():
    predictions, targets = split(images=24)
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
    predicted = jax.eval_shape(task.predict, found, batch)
    assert predicted["masks"].shape == (3, 5, 28, 28) and predicted["mask_iou"].shape == (3, 5, 2)
    assert predicted["structures"].shape == (3, 32, 32, 3) and "masks_known" in task.targets(batch)


def test_masks_are_scored_where_they_are_known(tmp_path):
    """Perfect boxes, of which the first image's masks are right, the second's wrong and the third's unknown."""
    task = Task("chest/boxes", ("Nodule",), head=HEAD | {"masks": True})
    box = np.float32([0.25, 0.25, 0.75, 0.75])
    masks = np.zeros((3, 32, 32, 1), np.uint8)
    masks[:, 8:24, 8:24] = 1
    batch = {
        "image": np.zeros((3, 32, 32, 1), np.float32),
        "valid": np.ones(3, bool),
        "boxes": np.tile(box, (3, 1, 1)),
        "box_labels": np.zeros((3, 1), np.int32),
        "box_valid": np.ones((3, 1), bool),
        "masks": masks,
        "mask_valid": np.array([[True], [True], [False]]),
    }
    inside = np.stack([np.ones((28, 28)), np.tri(28) * np.tri(28)[::-1], np.zeros((28, 28))]).astype(np.float32)
    outputs = {
        "boxes": jnp.asarray(batch["boxes"]),
        "scores": jnp.asarray([[0.9], [0.8], [0.7]]),
        "labels": jnp.asarray(batch["box_labels"]),
        "masks": jnp.asarray(inside[:, None]),
    }
    predictions, targets = jax.device_get(jax.jit(lambda o, b: (task.predict(o, b), task.targets(b)))(outputs, batch))
    found = {m.name: m for m in task.metrics(predictions, targets, calibration={}, resamples=0)}
    assert found["ap50/Nodule"].value == pytest.approx(1) and found["ap50/Nodule"].n == 3
    # Of the two known masks the first to come is right: precision 1 up to a recall of one half.
    assert found["mask_ap50/Nodule"].value == pytest.approx(51 / 101) and found["mask_ap50/Nodule"].n == 2
    np.testing.assert_array_equal(predictions["structures"][0], masks[0])
    assert not predictions["structures"][2].any()
    task.draw_samples(tmp_path, "chest", samples_of(task, batch["image"], predictions, targets, {}), {})
    assert (tmp_path / "samples_chest.png").stat().st_size > 1000


@pytest.mark.parametrize("own", [True, False])
def test_overlapping_instances_of_one_class_are_told_apart(own):
    """A perfect mask has an IoU of 1 with its own instance, and pycocotools agrees; not with its class in the box."""
    task, size = Task("chest/boxes", ("Nodule",), head=HEAD | {"masks": True}), (60, 52)
    boxes = np.float32([[[0.1, 0.1, 0.7, 0.6], [0.3, 0.3, 0.9, 0.9]]])
    inside = np.stack([np.tri(28), np.tri(28)[::-1]]).astype(np.float32)
    pasted = [paste(mask, box * np.float32([*size, *size]), size) for mask, box in zip(inside, boxes[0])]
    instances = (np.stack(pasted) >= 0.5).astype(np.uint8)
    assert (instances.sum(0) == 2).any()
    batch = {
        "image": np.zeros((1, *size, 1), np.float32),
        "valid": np.ones(1, bool),
        "masks": instances.max(0)[None, ..., None],
    }
    fields = {"boxes": boxes[0], "box_labels": np.zeros(2, np.int32), "box_valid": np.ones(2, bool)}
    padded = pad_boxes(fields | ({"box_masks": instances} if own else {}), 3)
    batch |= {name: value[None] for name, value in padded.items()}
    check(batch)
    outputs = {
        "boxes": jnp.asarray(boxes),
        "scores": jnp.asarray([[0.9, 0.8]]),
        "labels": jnp.zeros((1, 2), jnp.int32),
        "masks": jnp.asarray(inside[None]),
    }
    predictions, targets = jax.device_get((task.predict(outputs, batch), task.targets(batch)))
    found = {m.name: m.value for m in task.metrics(predictions, targets, calibration={}, resamples=0)}
    encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in instances]
    expected = coco_mask.iou(encoded, encoded, [0, 0])
    overlap = predictions["mask_iou"][0, :, :2]
    assert not predictions["mask_iou"][0, :, 2].any()  # of the box that only pads
    if own:
        np.testing.assert_allclose(overlap, expected, rtol=1e-6)
        assert found["mask_ap/Nodule"] == pytest.approx(1) and found["mask_ap/Nodule"] == coco_mask_ap(encoded)
    else:
        assert np.diag(overlap).max() < 0.9 and found["mask_ap/Nodule"] < 0.9
    np.testing.assert_array_equal(predictions["structures"], batch["masks"])


def coco_mask_ap(encoded):
    """pycocotools' average precision of masks that are both the truth and what was found, in one image."""
    sets = []
    for scores in ({}, {"score": 0.5}):
        each = COCO()
        each.dataset = {
            "images": [{"id": 0, "height": encoded[0]["size"][0], "width": encoded[0]["size"][1]}],
            "categories": [{"id": 0}],
            "annotations": [
                {"id": 1 + n, "image_id": 0, "category_id": 0, "iscrowd": 0, "segmentation": one, **scores}
                | {"area": float(coco_mask.area(one))}
                for n, one in enumerate(encoded)
            ],
        }
        each.createIndex()
        sets.append(each)
    evaluation = COCOeval(*sets, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return pytest.approx(evaluation.stats[0])


def test_boxes_of_views_are_merged_as_by_hand():
    """Three views of two images, three boxes each, IoU 0.6 and 1/3 for boxes that are off by 1/4 and by 1/2."""
    near, far = [0.0, 0.25, 1.0, 1.25], [0.0, 0.5, 1.0, 1.5]
    one, other, none = [0.0, 0.0, 1.0, 1.0], [2.0, 2.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]
    views = [  # (box, score, label)
        [[(one, 0.5, 0), (other, 0.2, 1), (none, 0.0, 0)], [(none, 0.0, 0)] * 3],
        [[(near, 0.8, 0), (one, 0.4, 1), (none, 0.0, 0)], [(one, 0.0, 0)] * 3],
        [[(far, 0.3, 0), (other, 0.2, 1), (near, 0.8, 0)], [(none, 0.0, 0), (other, 0.1, 2), (none, 0.0, 0)]],
    ]
    array = lambda part: np.array([[[box[part] for box in row] for row in view] for view in views])  # noqa: E731
    outputs = {
        "boxes": array(0).astype(np.float32),
        "scores": array(1).astype(np.float32),
        "labels": array(2),
        "masks": np.arange(18.0).reshape(3, 2, 3, 1, 1),  # a number for each box, to know it again
        "losses": {"class": np.arange(6.0).reshape(3, 2)},
    }
    found = jax.jit(Task("chest/boxes", CLASSES).merged)(outputs)
    # First image: `near` drops its double, `one` of class 0 (0.6) and `far` (0.6); of class 1, `one` stays, and of the
    # two that are alike the first. Second image: one box that has a score.
    expected = [[(near, 0.8, 0), (one, 0.4, 1), (other, 0.2, 1)], [(other, 0.1, 2), (none, 0.0, 0), (none, 0.0, 0)]]
    for name, part_of in (("boxes", 0), ("scores", 1)):
        np.testing.assert_allclose(found[name], [[box[part_of] for box in row] for row in expected], rtol=1e-6)
    assert found["labels"][0].tolist() == [0, 1, 1] and found["labels"][1, 0] == 2
    assert found["masks"][0].ravel().tolist() == [6, 7, 1] and found["masks"][1, 0] == 16
    assert found["losses"]["class"].tolist() == [0, 1]


def test_of_merged_boxes_the_best_are_kept_within_each_class():
    """Against the definition, one box after the other, on random boxes of four images that a second view finds too."""
    found, _ = split(images=4)
    rng = np.random.default_rng(1)
    views = {name: np.stack([array, array]) for name, array in found.items()} | {"losses": {}}
    views["boxes"][1] += rng.normal(0, 0.03, found["boxes"].shape)
    views["scores"] *= rng.random(views["scores"].shape, np.float32)
    found = Task("chest/boxes", CLASSES).merged(views)
    assert found["boxes"].shape == (4, 8, 4)
    for row in range(4):
        boxes, scores, labels = (np.concatenate(views[name][:, row]) for name in ("boxes", "scores", "labels"))
        overlap, kept = box_iou(boxes[:, None], boxes), []
        for index in np.argsort(-scores, kind="stable")[: (scores > 0).sum()]:
            if all(overlap[index, better] <= 0.5 or labels[index] != labels[better] for better in kept):
                kept.append(index)
        assert len(kept) < (scores > 0).sum()
        count = min(len(kept), 8)
        assert (found["scores"][row] > 0).sum() == count
        for name, values in (("boxes", boxes), ("scores", scores), ("labels", labels)):
            np.testing.assert_array_equal(found[name][row][:count], values[kept[:8]])


def test_what_was_found_in_a_mirrored_image_is_turned_back():
    task = Task("chest/boxes", ("Left Nodule", "Mass", "Right Nodule"))
    outputs = {
        "boxes": jnp.array([[[0.1, 0.2, 0.3, 0.6]] * 2]),
        "scores": jnp.array([[0.9, 0.8]]),
        "labels": jnp.array([[0, 1]]),
        "masks": jnp.arange(8.0).reshape(1, 2, 2, 2),
        "losses": {"class": jnp.array([3.0])},
    }
    back = task.mirrored(outputs, jnp.array([False, True]))
    np.testing.assert_allclose(back["boxes"][0, 0], [0.1, 0.4, 0.3, 0.8], rtol=1e-6)
    assert back["labels"].tolist() == [[2, 1]] and back["masks"][0, 0].tolist() == [[1, 0], [3, 2]]
    assert back["scores"] is outputs["scores"] and back["losses"] is outputs["losses"]
    back = task.mirrored(outputs, jnp.array([True, False]))
    np.testing.assert_allclose(back["boxes"][0, 0], [0.7, 0.2, 0.9, 0.6], rtol=1e-6)
    assert back["labels"].tolist() == [[0, 1]] and back["masks"][0, 0].tolist() == [[2, 3], [0, 1]]


def test_samples_are_drawn(tmp_path, sheets):
    task, (predictions, targets) = Task("chest/boxes", CLASSES), split(images=3)
    samples = samples_of(task, np.zeros((3, 8, 8, 1)), predictions, targets, {})
    task.draw_samples(tmp_path, "chest", samples, {})
    assert sorted(row for rows in sheets[0].values() for row in rows) == [0, 1, 2]
    assert (tmp_path / "samples_chest.png").stat().st_size > 1000


def test_samples_show_the_protocols_classes_alone(tmp_path, monkeypatch):
    task, (predictions, targets) = Task("chest/boxes", CLASSES), split(images=3)
    everything = np.ones((3, 8, 8, len(CLASSES)), np.uint8)
    predictions, targets = predictions | {"structures": everything}, targets | {"masks": everything}
    samples, shown = samples_of(task, np.zeros((3, 8, 8, 1)), predictions, targets, {}), []
    monkeypatch.setattr(figures, "samples", lambda path, images, **options: shown.append(options))
    for classes in ((), CLASSES[:1]):
        task.draw_samples(tmp_path, "chest", samples._replace(classes=classes), {})
    for of_all, of_one in ((shown[0][kind].box_labels, shown[1][kind].box_labels) for kind in ("truth", "prediction")):
        assert (of_all > 0).any() and (of_one == 0).any()
        np.testing.assert_array_equal(of_one, np.where(of_all == 0, 0, -1))
    for masks in (shown[1][kind].masks for kind in ("truth", "prediction")):
        assert masks[..., 0].all() and not masks[..., 1:].any()


def test_the_error_of_an_image_is_one_minus_f1():
    """Of five images: found, found and another one besides, missed, rightly empty, unknown."""
    box, far = [0.2, 0.2, 0.6, 0.6], [0.7, 0.7, 0.9, 0.9]
    predictions = {
        "boxes": np.float32([[box, far]] * 5),
        "scores": np.float32([[0.9, 0.01], [0.9, 0.8], [0.01, 0.01], [0.01, 0], [0.9, 0.9]]),
        "labels": np.zeros((5, 2), np.int32),
    }
    targets = {
        "boxes": np.float32([[box]] * 5),
        "box_labels": np.zeros((5, 1), np.int32),
        "box_valid": np.array([[True], [True], [True], [False], [True]]),
        "boxes_known": np.array([True, True, True, True, False]),
    }
    task = Task("chest/boxes", CLASSES)
    np.testing.assert_allclose(task.errors(predictions, targets, {}), [0, 1 / 3, 1, 0, np.nan], atol=1e-5)
    assert task.annotated(targets).tolist() == [True, True, True, False, False]
    predictions["labels"][0] = 1  # the place is right, the class is not
    assert task.errors(predictions, targets, {})[0] == pytest.approx(1)
    assert task.errors(predictions, targets, {}, agnostic=True)[0] == pytest.approx(0, abs=1e-5)
    of_first = task.errors(predictions, targets, {}, annotated_only=True, classes=CLASSES[:1])
    np.testing.assert_allclose(of_first, [1, 1 / 3, 1, np.nan, np.nan], atol=1e-5)
    assert task.annotated(targets, CLASSES[1:2]).tolist() == [False] * 5


def test_the_iou_of_a_hit_is_the_protocols_and_equal_images_are_ordered_by_scores():
    """Boxes that are right half of the way, at scores that are not shown, best first; then false alarms on nothing."""
    box, near = [0.2, 0.2, 0.6, 0.6], [0.2, 0.2, 0.6, 0.35]  # an IoU of 0.375
    predictions = {
        "boxes": np.float32([[near]] * 5),
        "scores": np.float32([[0.25], [0.2], [0], [0.6], [0.9]]),
        "labels": np.zeros((5, 1), np.int32),
    }
    targets = {
        "boxes": np.float32([[box]] * 5),
        "box_labels": np.zeros((5, 1), np.int32),
        "box_valid": np.array([[True], [True], [True], [False], [False]]),
        "boxes_known": np.ones(5, bool),
    }
    task = Task("chest/boxes", CLASSES)
    loose, strict = (task.errors(predictions, targets, {}, iou=iou, scoring="froc") for iou in (0.2, 0.5))
    np.testing.assert_allclose(loose, 1, atol=1e-5)
    assert (np.diff(loose[:3]) > 0).all() and loose[3] < loose[4]
    assert (np.diff(strict[:3]) < 0).all()  # there they are false alarms
    lower = replace(task, shown=0.1)
    np.testing.assert_allclose(lower.errors(predictions, targets, {}, iou=0.2), [0, 0, 1, 1, 1], atol=1e-5)


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


DETECTORS = {
    "mask_rcnn": HEAD,
    "deformable_detr": {"strides": (8,), "levels": 1, "width": 32, "hidden": 8, "queries": 4, "dropout": 0.0},
    "dino": {"strides": (8,), "levels": 1, "width": 32, "hidden": 8, "queries": 4, "denoising": 2},
}


@pytest.mark.parametrize("name", DETECTORS)
def test_a_batch_without_room_for_boxes_trains_as_one_without_boxes(name):
    layers = {} if name == "mask_rcnn" else {"encoder_layers": 1, "decoder_layers": 1}
    task = Task("chest/boxes", CLASSES, head=DETECTORS[name] | {"name": name} | layers)
    [build] = task.parts({8: 3}).values()
    head = part(build)
    params, batch_stats = head.init(jax.random.key(0))
    pyramid = {8: jax.random.normal(jax.random.key(1), (3, 4, 4, 3))}

    @jax.jit
    def losses(batch):
        def run(_, *inputs):
            return head.apply(params, batch_stats, *inputs, train=True, key=jax.random.key(2))[0]

        return task.apply(run, pyramid, batch)["losses"]

    batch = _batch() | {"box_valid": jnp.zeros((3, 2), bool)}
    none = {key: batch[key][:, :0] for key in ("boxes", "box_labels", "box_valid")}
    one = {key: batch[key][:, :1] for key in none}
    expected, found = losses(batch | one), losses(batch | none)
    assert set(found) == set(expected)
    for loss, value in found.items():
        assert np.isfinite(value).all()
        np.testing.assert_allclose(value, expected[loss], rtol=1e-5, atol=1e-6)

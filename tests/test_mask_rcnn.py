"""Mask R-CNN equals torchvision's (tests/references/detection.py wrote the golden) in detections, losses, gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, detectors, multiply_adds, seeded
from references.detectors import CHANNELS, CLASSES, SIZE

from mediax.backbones import resnet
from mediax.errors import InputError
from mediax.heads import mask_rcnn
from mediax.operators import paste
from mediax.operators.roi_align import roi_align

EVERYTHING = 10**6
ODD_SIZE = (97, 130)
SMALL = {
    "width": 8,
    "hidden": 16,
    "anchor_sizes": (8, 16, 32, 64, 128),
    "candidates": 40,
    "proposals": 30,
    "training_candidates": 40,
    "training_proposals": 30,
    "detections": 12,
}
LOSSES = {  # torchvision's names and ours
    "loss_objectness": "objectness",
    "loss_rpn_box_reg": "proposal_box",
    "loss_classifier": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
}


def targets():
    known = detectors.targets()
    masks = jnp.asarray((seeded.normal("masks", (2, *SIZE, CLASSES)) > -0.3).astype(np.uint8))
    return known | {
        "box_masks": jax.vmap(paste.class_inside)(masks, known["boxes"], known["box_labels"]),
        "mask_valid": jnp.ones((2, CLASSES), bool),
    }


def run(dtype):
    """(golden, outputs, gradients of the weights, gradients of the pyramid), all samples taken."""
    golden = compare.load("mask_rcnn")
    options = SMALL | {"anchors_sampled": EVERYTHING, "sampled": EVERYTHING, "lowest_score": 0.2, "dtype": dtype}
    return golden, *detectors.run(
        mask_rcnn, golden, lambda losses: sum(losses.values()).mean(), targets=targets(), **options
    )


@pytest.fixture(scope="module")
def against_torchvision():
    return run(jnp.float64)


def test_losses_equal_torchvision(against_torchvision):
    golden, outputs, _, _ = against_torchvision
    for row in range(2):
        for theirs, ours in LOSSES.items():
            expected = float(golden[f"losses/{row}/{theirs}"])
            compare.assert_loss(outputs["losses"][ours][row], expected, 1e-6, f"{ours} of image {row}")
    assert outputs["losses"]["mask"][0] > 0 and outputs["losses"]["mask"][1] == 0


def test_gradients_equal_torchvision(against_torchvision):
    golden, _, slopes, level_slopes = against_torchvision
    shapes = json.loads(str(golden["shapes"]))
    compare.assert_summary(mask_rcnn, {"backbone": {}, "head": slopes}, golden, "gradient", shapes, 1e-5)
    for stride, slope in level_slopes.items():
        compare.assert_close(slope, golden[f"gradient/level/{stride}"], 1e-5, f"level {stride}")


def test_detections_equal_torchvision(against_torchvision):
    golden, outputs, _, _ = against_torchvision
    assert_detections_equal(golden, outputs, 1e-5)


@pytest.mark.slow
def test_equals_torchvision_in_float32():
    golden, outputs, slopes, _ = run(jnp.float32)
    for row in range(2):
        for theirs, ours in LOSSES.items():
            expected = float(golden[f"losses/{row}/{theirs}"])
            compare.assert_loss(outputs["losses"][ours][row], expected, 1e-4, f"{ours} of image {row}")
    assert_detections_equal(golden, outputs, 1e-4)
    shapes = json.loads(str(golden["shapes"]))
    compare.assert_summary(mask_rcnn, {"backbone": {}, "head": slopes}, golden, "gradient", shapes, 1e-3)


def assert_detections_equal(golden, outputs, tolerance):
    for row in range(2):
        expected = {name: golden[f"found/{row}/{name}"] for name in ("boxes", "scores", "labels", "masks")}
        count = len(expected["scores"])
        assert count > 0 and (outputs["scores"][row, count:] == 0).all()
        boxes = np.asarray(outputs["boxes"][row, :count] * np.array([*SIZE, *SIZE]))[:, [1, 0, 3, 2]]
        compare.assert_close(boxes, expected["boxes"], tolerance, "boxes")
        compare.assert_close(outputs["scores"][row, :count], expected["scores"], tolerance, "scores")
        np.testing.assert_array_equal(outputs["labels"][row, :count] + 1, expected["labels"])
        compare.assert_close(outputs["masks"][row, :count], expected["masks"][:, 0], tolerance, "masks")


def test_each_region_learns_the_instance_of_its_box():
    """Two overlapping boxes of one class: neither target has pixels of the neighbour, whatever the region shows."""
    masks = np.zeros((2, 48, 61), np.uint8)  # a row is no whole number of octets
    masks[0, 8:40, 10:45], masks[1, 8:40, 26:] = np.tri(32, 35), np.tri(32, 35)
    regions = jnp.float32([[8, 10, 40, 45], [8, 26, 40, 61], [8, 10, 40, 61], [8, 10, 40, 61]])
    matched = jnp.array([0, 1, 0, 1])
    packed = jnp.asarray(np.packbits(masks, axis=-1))
    wanted = mask_rcnn._mask_in_region(packed[None], 61, matched[None], regions[None], 28)[0]
    for found, index, region in zip(wanted, matched, regions):
        alone = {1: jnp.asarray(masks[index], jnp.float32)[None, :, :, None]}
        expected = roi_align(alone, region[None, None], 28, sampling_ratio=-1, aligned=False)[0, 0, :, :, 0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(wanted[0][:, :26], wanted[1][:, :26], atol=1e-5)  # alike, each in its own box
    assert not wanted[3][:, :8].any() and wanted[2][20:27, :8].min() > 0.9
    assert not wanted[2][:, 20:].any() and wanted[3][20:27, 10:12].min() > 0.9


@pytest.fixture(scope="module")
def on_a_padded_image():
    """(golden, losses in training, detections) of an image of an odd size, in float64."""
    golden = compare.load("faster_rcnn_padded")
    weights = mask_rcnn.translate(seeded.tensors(json.loads(str(golden["shapes"]))))["head"]
    options = {"masks": False, "training_candidates": 70, "training_proposals": 45, "lowest_score": 0.2}
    options |= {"anchors_sampled": EVERYTHING, "sampled": EVERYTHING, "dtype": jnp.float64}
    with jax.enable_x64(True):
        head = nnx.eval_shape(lambda: mask_rcnn.Head(CHANNELS, CLASSES, **SMALL | options, rngs=nnx.Rngs(0)))
        compare.set_weights(head, weights, "head")
        levels = {stride: jnp.asarray(level[:1], jnp.float64) for stride, level in detectors.pyramid(ODD_SIZE).items()}
        pixels = detectors.targets()["boxes"][:1] * np.float64([*SIZE, *SIZE])
        truth = {name: array[:1] for name, array in detectors.targets().items()}
        truth |= {"boxes": pixels / np.float64([*ODD_SIZE, *ODD_SIZE])}

        @nnx.jit(static_argnames="train")
        def run(head, levels, train):
            return head(levels, ODD_SIZE, truth if train else None, train=train, rngs=nnx.Rngs(0))

        outputs = [jax.tree.map(np.asarray, run(head, levels, train=train)) for train in (True, False)]
    return golden, outputs[0]["losses"], outputs[1]


def test_losses_on_a_padded_image_equal_torchvision(on_a_padded_image):
    golden, losses, _ = on_a_padded_image
    assert golden["proposals/training"] > golden["proposals/inference"] == SMALL["proposals"]
    for theirs, ours in LOSSES.items():
        if ours != "mask":
            assert float(losses[ours][0]) == pytest.approx(float(golden[f"losses/{theirs}"]), rel=1e-6), ours


def test_detections_on_a_padded_image_equal_torchvision(on_a_padded_image):
    golden, _, found = on_a_padded_image
    count = len(golden["found/scores"])
    assert count > 0 and (found["scores"][0, count:] == 0).all()
    boxes = np.asarray(found["boxes"][0, :count] * np.array([*ODD_SIZE, *ODD_SIZE]))[:, [1, 0, 3, 2]]
    compare.assert_close(boxes, golden["found/boxes"], 1e-5, "boxes")
    compare.assert_close(found["scores"][0, :count], golden["found/scores"], 1e-5, "scores")
    np.testing.assert_array_equal(found["labels"][0, :count] + 1, golden["found/labels"])


def test_every_published_tensor_has_its_place():
    shapes = json.loads(str(compare.load("mask_rcnn")["published"]))
    parts = mask_rcnn.translate({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})

    def build():
        backbone = resnet.Backbone(variant="50", rngs=nnx.Rngs(0))
        return backbone, mask_rcnn.Head(backbone.channels, 90, rngs=nnx.Rngs(0))

    backbone, head = map(compare.variables_of, nnx.eval_shape(build))
    places = compare.flat(head["params"])
    assert {path: leaf.shape for path, leaf in places.items()} == {path: a.shape for path, a in parts["head"].items()}
    body = resnet.translate(parts["backbone"])["backbone"]
    assert set(body) == set(compare.flat(backbone["params"])) | set(compare.flat(backbone["batch_stats"]))
    # torchvision's BatchNorm is frozen here, so its table counts no scale and no bias of the backbone.
    counted = {path: leaf for path, leaf in compare.flat(backbone["params"]).items() if path[-1] == "kernel"} | places
    assert sum(leaf.size for leaf in counted.values()) == 44_401_393


def test_costs_what_torchvision_says():
    """Torchvision counts Mask R-CNN on an image without detections, where no mask is computed: Faster R-CNN's cost."""
    backbone, head = detectors.on_resnet_50(mask_rcnn, masks=False)
    size = (800, 800)
    cost = multiply_adds.of_backbone(backbone, size) + multiply_adds.of_head(head, backbone.channels, size)
    assert round(cost / 1e9, 2) == 134.38


def test_the_names_of_older_files_are_known():
    weights = {
        "backbone.fpn.inner_blocks.0.weight": np.zeros((8, 6, 1, 1)),
        "rpn.head.conv.bias": np.zeros(8),
        "roi_heads.mask_head.mask_fcn4.bias": np.zeros(8),
    }
    assert set(mask_rcnn.translate(weights)["head"]) == {
        ("fpn", "lateral", 0, "kernel"),
        ("rpn", "conv", "bias"),
        ("mask_branch", "convs", 3, "bias"),
    }


def test_sampling_keeps_its_numbers_and_its_share():
    state = jnp.asarray(np.random.default_rng(0).choice([1, 0, -1], 200, p=[0.3, 0.5, 0.2]))
    for seed in range(3):
        chosen = mask_rcnn._sample(state, 40, 0.25, jax.random.key(seed))
        assert (chosen & (state == 1)).sum() == 10 and (chosen & (state == 0)).sum() == 30
        assert not (chosen & (state == -1)).any()
    few = jnp.where(jnp.arange(200) < 3, 1, 0)
    chosen = mask_rcnn._sample(few, 40, 0.25, jax.random.key(0))
    assert chosen[:3].all() and chosen.sum() == 40


def test_unequal_numbers_of_anchor_sizes_and_strides_are_named():
    with pytest.raises(InputError, match="expected 3, one for each stride"):
        mask_rcnn.Head({8: 4, 16: 4}, 2, rngs=nnx.Rngs(0))

"""Images of any size: of dense tasks they are padded to the backbone's strides, and what is found is of the image."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mediax import catalog, deformable_transformer, experiment
from mediax.heads import mask_rcnn
from mediax.model import Model, part
from mediax.operators.padding import extent, pad_to_multiple
from mediax.tasks import classification, detection, segmentation

SIZE, CLASSES = (97, 130), ("Nodule", "Mass")
KEY = jax.random.key(0)
BACKBONES = {  # small ones, of each that dense heads take
    "convnext": {"depths": (1, 1, 1, 1), "widths": (4, 8, 8, 8)},
    "densenet": {"growth": 8, "depths": (1, 1, 1, 1), "stem": 16},
    "efficientnet_lite": {"width": 0.25, "depth": 0.3},
    "internimage": {"width": 16, "depths": (1, 1, 1, 1), "groups": 2},
    "resnet": {"variant": "18", "width": 0.125, "depths": (1, 1, 1, 1)},
    "swin": {"width": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "windows": (4, 4, 4, 4)},
    "unet_encoder": {"width": 0.125},
    "vit": {"width": 16, "heads": 2, "depth": 1, "grid": 4, "output": "pyramid"},
}
SEGMENTERS = {"unet": {}, "unet_plus_plus": {}, "upernet": {"width": 4}}
DETECTORS = {
    "mask_rcnn": {"width": 8, "hidden": 8, "masks": False, "candidates": 10, "proposals": 8, "detections": 5},
    "deformable_detr": {"width": 32, "hidden": 8, "encoder_layers": 1, "decoder_layers": 1, "queries": 6},
    "dino": {"width": 32, "hidden": 8, "encoder_layers": 1, "decoder_layers": 1, "queries": 6, "detections": 5},
}


def build(backbone, options, task):
    """The model of one task, as a config composes it."""
    config = {
        "backbone": {"name": backbone, "channels": 1, "options": options, "mean": (), "std": (), "pretrained": ""},
        "precision": "float32",
        "remat": False,
        "streams": {},
    }
    return experiment._model(config, experiment._backbone(config), {"stream": {"task": task}})


def tasks_of(strides):
    for head, options in SEGMENTERS.items():
        yield segmentation.Task("stream/task", CLASSES, head={"name": head, **options})
    for head, options in DETECTORS.items():
        fitting = {"anchor_sizes": (8,) * (len(strides) + 1)} if head == "mask_rcnn" else {"strides": strides[-3:]}
        yield detection.Task("stream/task", CLASSES, head={"name": head, **options, **fitting})


@pytest.mark.parametrize("name", BACKBONES)
def test_every_dense_head_on_every_backbone_finds_the_size_of_the_image(name):
    make = catalog.load("backbones", name).Backbone
    backbone = nnx.eval_shape(lambda: make(in_channels=1, **BACKBONES[name], rngs=nnx.Rngs(0)))
    channels, batch = backbone.channels, {"image": jnp.zeros((1, *SIZE, 1))}
    padded = pad_to_multiple(batch["image"], max(channels))
    pyramid = nnx.eval_shape(lambda backbone: backbone(padded, train=False, rngs=None), backbone)
    for task in tasks_of(tuple(channels)):
        [head] = task.parts(channels).values()

        def run(_, *inputs, head=head):
            return head(nnx.Rngs(0))(*inputs, train=False, rngs=None)

        found = jax.eval_shape(lambda pyramid: task.apply(run, pyramid, batch), pyramid)  # noqa: B023
        if isinstance(task, segmentation.Task):
            assert found.shape == (1, 1, *SIZE, 2), task.head
        else:
            assert found["boxes"].shape == (1, found["scores"].shape[1], 4), task.head


def test_all_backbones_are_here():
    assert {*BACKBONES, "autoencoder"} == set(catalog.names("backbones"))


@pytest.fixture(scope="module")
def segmenter():
    """Gives (model, task, variables) of a ConvNeXt, which rounds down, with UPerNet."""
    task = segmentation.Task("stream/task", CLASSES, head={"name": "upernet", "width": 4})
    model = build("convnext", BACKBONES["convnext"], task)
    return model, task, model.init(KEY)


def logits_of(segmenter, image, model=None):
    own, task, variables = segmenter
    return (model or own).forward({"task": task}, *variables, {"image": image}, key=KEY)[0]["task"]


def test_logits_are_those_of_the_padded_image_cut_to_the_image(segmenter):
    image = jax.random.uniform(KEY, (1, *SIZE, 1))
    # The mean's grey is what zero is after normalisation.
    padded = jnp.pad(image, ((0, 0), (0, 31), (0, 30), (0, 0)), constant_values=segmenter[0].mean[0])
    logits, whole = logits_of(segmenter, image), logits_of(segmenter, padded)
    assert whole.shape[2:4] == (128, 160)
    np.testing.assert_array_equal(logits, whole[:, :, : SIZE[0], : SIZE[1]])


def test_images_of_a_multiple_of_the_strides_compile_to_what_they_were(segmenter):
    model, _, _ = segmenter
    image = jnp.zeros((1, 64, 96, 1))
    texts = [
        jax.jit(lambda image, model=model: logits_of(segmenter, image, model)).lower(image).as_text()
        for model in (model, model._replace(multiple=1))
    ]
    assert texts[0] == texts[1]


def test_other_tasks_see_images_as_they_are(segmenter):
    seen = []

    class Backbone(nnx.Module):
        def __init__(self, *, rngs):
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, image, *, train, rngs):
            seen.append(image.shape[1:3])
            return {32: image[:, ::32, ::32]}

    label = classification.Task("stream/label", CLASSES)
    dense = segmentation.Task("stream/mask", CLASSES, head={"name": "unet", "widths": (2,) * 5})
    for tasks, size in (({"label": label}, SIZE), ({"label": label, "mask": dense}, (128, 160))):
        parts = {"backbone": part(lambda rngs: Backbone(rngs=rngs))}
        parts |= {name: part(make) for task in tasks.values() for name, make in task.parts({32: 1}).items()}
        model = Model(parts, (0.5,), (0.25,), 32)
        variables = jax.eval_shape(model.init, KEY)
        batch = {"image": jnp.zeros((1, *SIZE, 1))}
        jax.eval_shape(lambda variables: model.forward(tasks, *variables, batch, key=KEY)[0], variables)  # noqa: B023
        assert seen[-1] == size


def test_the_paper_s_unet_is_mirrored_instead():
    head = {"name": "unet", "padding": "valid", "upsampling": "transposed", "normalize": False, "widths": (8, 4, 2)}
    task = segmentation.Task("stream/task", CLASSES, head=head)
    options = {"width": 0.03125, "levels": 4, "padding": "valid", "normalize": False}
    model = build("unet_encoder", options, task)
    assert model.multiple == 1 and build("unet_encoder", options | {"padding": "same"}, task).multiple == 8
    batch = {"image": jnp.zeros((1, *SIZE, 1))}
    variables = jax.eval_shape(model.init, KEY)
    found = jax.eval_shape(lambda variables: model.forward({"task": task}, *variables, batch, key=KEY)[0], variables)
    assert found["task"].shape == (1, 1, *SIZE, 2)


def test_padding_is_zeros_below_and_on_the_right():
    x = jnp.ones((1, 5, 8, 2))
    padded = np.asarray(pad_to_multiple(x, 4))
    assert padded.shape == (1, 8, 8, 2) and padded[:, :5].all() and not padded[:, 5:].any()
    assert pad_to_multiple(x[:, :4], 4).shape == (1, 4, 8, 2)


def test_a_pyramid_covers_the_padded_image_or_the_image():
    pyramid = {4: jnp.zeros((1, 8, 16, 1)), 32: jnp.zeros((1, 1, 2, 1))}
    assert extent(pyramid, (32, 64)) == extent(pyramid, (30, 33)) == (32, 64)
    rounded_down = {4: jnp.zeros((1, 7, 8, 1)), 32: jnp.zeros((1, 1, 1, 1))}
    assert extent(rounded_down, (30, 33)) == (30, 33)


def test_anchors_stand_a_stride_apart_to_the_end_of_the_image():
    levels = {4: jnp.zeros((1, 251, 256, 1)), 8: jnp.zeros((1, 126, 128, 1)), 16: jnp.zeros((1, 63, 64, 1))}
    steps = mask_rcnn._steps(levels)
    assert steps == [(4, 4), (8, 8), (16, 16)]
    points = mask_rcnn._anchors((251, 256), steps[0], 2, (1.0,)).reshape(251, 256, 2, 2).mean(2)
    np.testing.assert_array_equal(points[-1, -1], (1000, 1020))


@pytest.mark.parametrize("name", ["deformable_detr", "dino"])
def test_boxes_are_fractions_of_the_image_though_the_pyramid_reaches_beyond(name):
    """The same pyramid of an image that it covers and of one that was padded: the same boxes in pixels."""
    module = catalog.load("heads", name)
    options = DETECTORS[name] | {"strides": (8, 16), "levels": 2, "heads": 2, "points": 2}
    detector = part(lambda rngs: module.Head({8: 3, 16: 4}, 2, **options, rngs=rngs))
    variables = jax.jit(detector.init)(KEY)
    pyramid = {8: jax.random.normal(KEY, (1, 8, 12, 3)), 16: jax.random.normal(KEY, (1, 4, 6, 4))}

    @partial(jax.jit, static_argnums=0)
    def run(size):
        lengths = jnp.asarray([*size, *size])
        boxes = jnp.asarray([[[8.0, 16.0, 40.0, 48.0]]]) / lengths
        targets = {"boxes": boxes, "box_labels": jnp.ones((1, 1), int), "box_valid": jnp.ones((1, 1), bool)}
        found = detector.apply(*variables, pyramid, size, targets, train=False, key=KEY)[0]
        return found["losses"], found["boxes"] * lengths

    (losses, boxes), (cut_losses, cut_boxes) = run((64, 96)), run((60, 81))
    for loss, value in losses.items():
        np.testing.assert_allclose(cut_losses[loss], value, rtol=1e-4)
    np.testing.assert_allclose(cut_boxes, np.minimum(boxes, [60, 81, 60, 81]), atol=1e-3)


def test_boxes_that_reach_beyond_the_image_are_cut_at_its_border():
    boxes = jnp.asarray([[[0.9, 0.9, 0.2, 0.2]]])  # (x, y, width, height) of 64 rows and 96 columns
    found = deformable_transformer.best_pairs(jnp.zeros((1, 1, 1)), boxes, 1, (64, 96), (60, 81))
    np.testing.assert_allclose(found["boxes"], [[[0.8 * 64 / 60, 0.8 * 96 / 81, 1, 1]]], rtol=1e-5)

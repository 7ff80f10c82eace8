"""Views at inference: flips equal the mean made by hand, windows equal the whole image where a network is local."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx

from mediax import evaluate, experiment, inference, laterality
from mediax.errors import InputError
from mediax.inference import Views
from mediax.model import Model, part
from mediax.predict import make_predict_step
from mediax.tasks.box_regression import Task as BoxRegression
from mediax.tasks.classification import Task as Classification
from mediax.tasks.detection import Task as Detection
from mediax.tasks.regression import Task as Regression
from mediax.tasks.segmentation import Task as Segmentation

CHANNELS = {1: 4, 2: 4}


class Backbone(nnx.Module):
    """A convolution that sees `side` x `side` pixels: f32[B,H,W,2] -> {1: f32[B,H,W,4], 2: half as large}."""

    def __init__(self, *, side: int, rngs):
        self.conv = nnx.Conv(2, 4, (side, side), rngs=rngs)

    def __call__(self, image, *, train, rngs):
        fine = jnp.tanh(self.conv(image))
        return {1: fine, 2: nnx.avg_pool(fine, (2, 2), (2, 2))}


@dataclass(frozen=True)
class Pixels:
    """Two branches of what a pixel and the image's rows and columns say: outputs f32[2,B,H,W,4]."""

    image_axes: ClassVar[tuple[int, ...]] = (2, 3)

    def parts(self, channels):
        return {}

    def apply(self, run, pyramid, batch):
        return jnp.stack([pyramid[1], 2 * pyramid[1]])


@dataclass(frozen=True)
class Place(Pixels):
    """Says where a pixel lies in what the network sees: f32[1,B,H,W,2]."""

    def apply(self, run, pyramid, batch):
        rows, columns = jnp.indices(batch["image"].shape[1:3]).astype(jnp.float32)
        return jnp.broadcast_to(jnp.stack([rows, columns], -1), (1, len(batch["image"]), *rows.shape, 2))


def _network(tasks, side=1):
    parts = {"backbone": part(lambda rngs: Backbone(side=side, rngs=rngs))}
    for task in tasks.values():
        parts |= {name: part(build) for name, build in task.parts(CHANNELS).items()}
    model = Model(parts, (0.5, 0.5), (0.25, 0.25))
    return model, model.init(jax.random.key(1))


def _images(height, width, rows=2):
    return np.random.default_rng(0).random((rows, height, width, 2), np.float32)


def _see(tasks, image, views=inference.WHOLE, *, side=1, **fields):
    model, variables = _network(tasks, side)
    return jax.jit(lambda batch: inference.forward(model, tasks, *variables, batch, views))({"image": image} | fields)


SIZES = [(16, 12), (23, 41), (9, 30), (30, 5), (3, 4)]


@pytest.mark.parametrize("overlap", [0.0, 0.7])
@pytest.mark.parametrize("size", SIZES)
def test_windows_equal_the_whole_image_where_a_pixel_is_all_that_counts(size, overlap):
    tasks, image = {"pixels": Pixels()}, _images(*size)
    seen = _see(tasks, image, Views(window=(16, 12), overlap=overlap))["pixels"]
    np.testing.assert_allclose(seen, _see(tasks, image)["pixels"], rtol=1e-4, atol=1e-6)


def test_windows_differ_from_the_whole_image_by_their_borders_alone():
    tasks, image = {"pixels": Pixels()}, _images(64, 64)
    whole = np.asarray(_see(tasks, image, side=3)["pixels"])
    off = np.abs(np.asarray(_see(tasks, image, Views(window=(32, 32)), side=3)["pixels"]) - whole)
    # Borders of windows lie at 16, 32 and 48; there the weight is 1e-4 of that of the window whose middle it is.
    assert 1e-6 < off.max() < 2e-3 * np.abs(whole).max()
    assert off[:, :, 1:15, 1:15].max() < 1e-5


@pytest.mark.parametrize(
    ("length", "side", "overlap", "expected"),
    [
        (40, 16, 0.5, [0, 8, 16, 24]),
        (41, 16, 0.5, [0, 6, 12, 19, 25]),
        (16, 16, 0.5, [0]),
        (40, 16, 0.0, [0, 12, 24]),
        (17, 16, 0.0, [0, 1]),
    ],
)
def test_windows_are_as_few_as_overlap_enough_and_end_at_the_border(length, side, overlap, expected):
    assert [row for row, _ in inference.corners((length, 7), (side, 7), overlap)] == expected


@pytest.mark.parametrize("size", SIZES)
def test_outputs_of_windows_are_weighted_by_a_gaussian_about_their_middles(size):
    """Windows that say where a pixel lies in them, put together as the definition has it."""
    window, image = (16, 12), _images(*size)
    padded = np.maximum(size, window)
    total, weights = np.zeros((*padded, 2)), np.zeros((*padded, 1))
    rows, columns = np.indices(window)
    weight = np.exp(-(((rows - 7.5) / 2) ** 2) / 2 - ((columns - 5.5) / 1.5) ** 2 / 2)[..., None]
    for row, column in inference.corners(padded, window, 0.5):
        here = np.s_[row : row + 16, column : column + 12]
        total[here] += weight * np.stack([rows, columns], -1)
        weights[here] += weight
    seen = _see({"place": Place()}, image, Views(window=window))["place"]
    expected = (total / weights)[: size[0], : size[1]]
    np.testing.assert_allclose(seen, np.broadcast_to(expected, seen.shape), rtol=1e-4, atol=1e-4)


def _by_hand(tasks, image, flips, side):
    """The mean over mirrored copies, each mirrored and mirrored back with numpy."""
    image_axes = {"horizontal": (2,), "vertical": (1,), "both": (1, 2)}
    sums = _see(tasks, image, side=side)
    for flip in flips:
        outputs = _see(tasks, np.flip(image, image_axes[flip]), side=side)
        for name, output in outputs.items():
            axes = [axis + 1 for axis in image_axes[flip]] if tasks[name].image_axes else []
            sums[name] = sums[name] + np.flip(output, axes)
    return {name: output / (1 + len(flips)) for name, output in sums.items()}


HEAD = {"name": "pooled"}
TASKS = {
    "pixels": Pixels(),
    "vessels": Segmentation(name="a/vessels", structures=("Vessels",), head={"name": "unet", "normalize": False}),
    "sex": Classification(name="a/sex", classes=("Female",), head=HEAD),
    "age": Regression(name="a/age", target_names=("age",), head=HEAD),
}


@pytest.mark.parametrize("flips", [("horizontal",), ("vertical", "both"), ("horizontal", "vertical", "both")])
def test_flips_are_the_mean_of_mirrored_copies(flips):
    image = _images(10, 14)
    seen, expected = _see(TASKS, image, Views(flips=flips), side=3), _by_hand(TASKS, image, flips, side=3)
    whole = _see(TASKS, image, side=3)
    for name in TASKS:
        np.testing.assert_allclose(seen[name], expected[name], rtol=1e-4, atol=1e-6)
    assert np.abs(seen["pixels"] - whole["pixels"]).max() > 0.01  # the kernels are not symmetric


def test_flips_of_windows_are_the_mean_of_windows_of_mirrored_copies():
    image, tasks, views = _images(20, 20), {"pixels": Pixels()}, Views(window=(12, 12))
    seen = _see(tasks, image, Views(flips=("horizontal",), window=(12, 12)), side=3)["pixels"]
    straight = _see(tasks, image, views, side=3)["pixels"]
    mirrored = _see(tasks, image[:, :, ::-1], views, side=3)["pixels"][:, :, :, ::-1]
    np.testing.assert_allclose(seen, (straight + mirrored) / 2, rtol=1e-4, atol=1e-6)


def _sees_sides(names):
    """A network that calls what is bright left in the image by the first of `names`, right by the second."""

    def apply(run, pyramid, batch):
        bright = 100.0 * batch["image"][..., :1]
        left = jnp.arange(bright.shape[2])[:, None] < bright.shape[2] // 2
        background = [jnp.ones_like(bright)] if len(names) == 3 else []
        return jnp.concatenate([*background, bright * left, bright * ~left], -1)[None]

    return apply


FLIPS = [("horizontal",), ("vertical",), ("both",), ("horizontal", "vertical", "both")]


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("names", [("Left Lung", "Right Lung"), ("lung_right", "lung_left")])
def test_flips_of_an_ideal_network_change_nothing_left_or_right(flips, exclusive, names, monkeypatch):
    task = Segmentation(name="a/lungs", structures=names, exclusive=exclusive)
    monkeypatch.setattr(Segmentation, "parts", lambda self, channels: {})
    monkeypatch.setattr(Segmentation, "apply", lambda self, *arguments: _sees_sides(self.output_names)(*arguments))
    image = (_images(12, 20) > 0.7).astype(np.float32)
    seen, whole = _see({"lungs": task}, image, Views(flips=flips)), _see({"lungs": task}, image)
    np.testing.assert_allclose(seen["lungs"], whole["lungs"], atol=1e-5)
    assert seen["lungs"].shape[-1] == 2 + exclusive


def test_what_has_no_opposite_stays():
    up, left = laterality.OPPOSITES
    names = ("Left Lung", "Heart", "Right Lung", "Left Clavicle", "Leftover", "Rightover")
    assert laterality.partners(names, left) == [2, 1, 0, 3, 4, 5]
    ways = ("Orientation Up", "Orientation Down", "Orientation Left", "Orientation Right")
    assert laterality.partners(ways, left) == [0, 1, 3, 2] and laterality.partners(ways, up) == [1, 0, 2, 3]


def _bright_box(image):
    """The smallest box around what is bright in the first channel of an image f32[H,W,C]."""
    bright = image[..., 0] > 0.5
    rows, columns = jnp.indices(bright.shape)
    low = [jnp.where(bright, place, 99).min() for place in (rows, columns)]
    high = [jnp.where(bright, place, -1).max() + 1 for place in (rows, columns)]
    return jnp.stack([*low, *high]) / jnp.tile(jnp.array(bright.shape), 2)


def _halves(image):
    """The left and the right half of images f32[B,H,W,C], the other half being dark."""
    columns, half = jnp.arange(image.shape[2])[:, None], image.shape[2] // 2
    return [image * (columns < half), image * (columns >= half)]


@pytest.mark.parametrize("flips", FLIPS)
def test_flips_of_boxes_are_turned_back_and_averaged(flips, monkeypatch):
    """Boxes of the two sides of an image, which lie by what is brightest there: an ideal network gives them always."""
    task = BoxRegression(name="a/boxes", structures=("Left Lung", "Right Lung", "Heart"))

    def apply(self, run, pyramid, batch):
        sides = [*_halves(batch["image"]), batch["image"]]
        return jnp.stack([jax.vmap(_bright_box)(side) for side in sides], 1)

    monkeypatch.setattr(BoxRegression, "parts", lambda self, channels: {})
    monkeypatch.setattr(BoxRegression, "apply", apply)
    image = np.zeros((2, 16, 20, 2), np.float32)
    image[0, 3:6, 1:7] = image[0, 4:12, 13:18] = image[1, 1:15, 2:4] = image[1, 9:10, 11:20] = 1
    whole, seen = _see({"boxes": task}, image)["boxes"], _see({"boxes": task}, image, Views(flips=flips))["boxes"]
    np.testing.assert_allclose(whole[0], np.array([[3, 1, 6, 7], [4, 13, 12, 18], [3, 1, 12, 18]]) / [16, 20, 16, 20])
    np.testing.assert_allclose(seen, whole, atol=1e-6)
    inference.check(Views(flips=flips), {"boxes": task}, "evaluations.test")
    with pytest.raises(InputError, match="shift: the outputs of the task 'boxes' are of places"):
        inference.check(Views(shift=1), {"boxes": task}, "evaluations.test")
    with pytest.raises(InputError, match="window: the outputs of the task 'boxes' have no pixels"):
        inference.check(Views(window=(8, 8)), {"boxes": task}, "evaluations.test")


NODULES = ("Left Nodule", "Right Nodule")
FINDER = Detection("a/boxes", NODULES, head={"name": "mask_rcnn"})
MOST = 3  # detections of an image


def _finds_nodules(halves):
    """A detector of one nodule of 4 x 4 pixels in each of the `halves` of what it sees, 0 left and 1 right."""

    def apply(self, run, pyramid, batch):
        def find(image):
            box, there = _bright_box(image), (image[..., 0] > 0.5).any()
            corner = jnp.round(box[:2] * jnp.array(image.shape[:2])).astype(jnp.int32)
            mask = jax.lax.dynamic_slice(image[..., 1], corner, (4, 4))
            return jnp.where(there, box, 0), jnp.where(there, image[..., 0].max(), 0), mask

        seen = jnp.stack([_halves(batch["image"])[half] for half in halves], 1)
        found = zip(("boxes", "scores", "masks"), jax.vmap(jax.vmap(find))(seen), strict=True)
        padding = MOST - len(halves)
        outputs = {name: jnp.pad(x, [(0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)]) for name, x in found}
        labels = jnp.array([*halves, *[0] * padding])
        loss = batch["image"].mean((1, 3)) @ jnp.arange(batch["image"].shape[2], dtype=jnp.float32)
        return outputs | {"labels": jnp.tile(labels, (len(loss), 1)), "losses": {"class": loss}}

    return apply


def _nodules():
    """A batch of three images: two nodules, one on the right, none; half of each nodule is its mask."""
    image = np.zeros((3, 16, 24, 2), np.float32)
    mask = np.float32(np.arange(4)[:, None] >= np.arange(4))
    batch = {"boxes": np.zeros((3, 2, 4), np.float32), "box_labels": np.zeros((3, 2), np.int32)}
    batch |= {"box_valid": np.zeros((3, 2), bool), "masks": np.zeros((3, 16, 24, 2), np.uint8)}
    for row, place, label, top, left, score in ((0, 0, 0, 3, 2, 0.9), (0, 1, 1, 9, 17, 0.7), (1, 0, 1, 1, 13, 0.8)):
        here = np.s_[row, top : top + 4, left : left + 4]
        image[here] = np.stack([np.full((4, 4), score), mask], -1)
        batch["masks"][(*here, label)] = mask
        batch["boxes"][row, place] = np.array([top, left, top + 4, left + 4]) / [16, 24, 16, 24]
        batch["box_labels"][row, place], batch["box_valid"][row, place] = label, True
    return batch | {"image": image, "valid": np.ones(3, bool)}


def _detected(halves, flips, monkeypatch):
    """What the step that evaluates gives of a detector of nodules in some halves of images."""
    monkeypatch.setattr(Detection, "parts", lambda self, channels: {})
    monkeypatch.setattr(Detection, "apply", _finds_nodules(halves))
    tasks, batch, views = {"boxes": FINDER}, _nodules(), Views(flips=flips)
    inference.check(views, tasks, "evaluations.test")
    model, variables = _network(tasks)
    evaluated = evaluate.make_predict_step(model, tasks, toy.training().mesh, views)(*variables, batch)["boxes"]
    return batch, jax.device_get(evaluated)


@pytest.mark.parametrize("flips", FLIPS)
def test_flips_of_an_ideal_detector_change_nothing(flips, monkeypatch):
    """Boxes, classes, scores, masks, loss and average precision are those of the image alone, none is there twice."""
    _, whole = _detected((0, 1), (), monkeypatch)
    _, seen = _detected((0, 1), flips, monkeypatch)
    assert (seen["predictions"]["scores"] > 0).sum(1).tolist() == [2, 1, 0]
    assert seen["loss"] == whole["loss"] and seen["count"] == 3
    for row in range(3):
        kept, found = (np.argsort(-each["predictions"]["scores"][row])[: 2 - row] for each in (whole, seen))
        for name in ("boxes", "scores", "labels", "masks", "mask_iou"):
            expected = whole["predictions"][name][row, kept]
            np.testing.assert_allclose(seen["predictions"][name][row, found], expected, atol=1e-6)
    np.testing.assert_array_equal(seen["predictions"]["structures"], whole["predictions"]["structures"])
    expected, found = (
        {
            figure.name: figure.value
            for figure in FINDER.metrics(each["predictions"], each["targets"], calibration={}, resamples=0)
        }
        for each in (whole, seen)
    )
    assert found == pytest.approx(expected) and found["ap/macro"] == pytest.approx(1) and found["mask_ap50/macro"] > 0


def test_a_mirrored_copy_shows_a_detector_what_it_missed(monkeypatch):
    """One that finds the left nodule alone finds the right one in the mirrored image, and it is called right."""
    batch, seen = _detected((0,), ("horizontal",), monkeypatch)
    found = seen["predictions"]
    np.testing.assert_allclose(found["scores"], [[0.9, 0.7, 0], [0.8, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(found["boxes"][:, :2], batch["boxes"], atol=1e-6)
    assert found["labels"][0, :2].tolist() == [0, 1] and found["labels"][1, 0] == 1
    assert (found["structures"].any((1, 2)) == batch["masks"].any((1, 2))).all()


def test_a_detector_sees_neither_shifted_copies_nor_windows():
    tasks = {"boxes": FINDER}
    with pytest.raises(InputError, match="shift: the outputs of the task 'boxes' are of places"):
        inference.check(Views(shift=1), tasks, "evaluations.test")
    with pytest.raises(InputError, match="window: the outputs of the task 'boxes' have no pixels"):
        inference.check(Views(window=(8, 8)), tasks, "evaluations.test")


@pytest.mark.parametrize("shift", [1, 3])
def test_shifts_are_the_mean_of_nine_moved_copies(shift):
    tasks, image = {name: TASKS[name] for name in ("sex", "age")}, _images(10, 14)
    padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    copies = [
        padded[:, row : row + 10, column : column + 14]
        for row in (0, shift, 2 * shift)
        for column in (0, shift, 2 * shift)
    ]
    outputs = [_see(tasks, copy, side=3) for copy in copies]
    seen = _see(tasks, image, Views(shift=shift), side=3)
    for name in tasks:
        np.testing.assert_allclose(seen[name], np.mean([each[name] for each in outputs], 0), rtol=1e-4, atol=1e-6)
        assert np.abs(seen[name] - outputs[4][name]).max() > 1e-4
    both = _see(tasks, image, Views(shift=shift, flips=("horizontal",)), side=3)
    mirrored = _see(tasks, image[:, :, ::-1], Views(shift=shift), side=3)
    for name in tasks:
        np.testing.assert_allclose(both[name], (seen[name] + mirrored[name]) / 2, rtol=1e-4, atol=1e-6)


def test_the_rest_of_the_batch_stays_as_it_is():
    """Counts of the steps that evaluate and predict: the field of view is not mirrored, the loss is of the mean."""
    tasks = {"vessels": TASKS["vessels"]}
    model, variables = _network(tasks, side=3)
    rng = np.random.default_rng(3)
    batch = {
        "image": _images(16, 16),
        "valid": np.array([True, False]),
        "masks": (rng.random((2, 16, 16, 1)) < 0.3).astype(np.uint8),
        "field_of_view": (np.arange(16)[:, None] + np.arange(16) < 20).astype(np.uint8)[None].repeat(2, 0),
    }
    mesh = toy.training().mesh
    views = Views(flips=("horizontal", "vertical"), window=(8, 8))
    found = evaluate.make_predict_step(model, tasks, mesh, views)(*variables, batch)["vessels"]
    logits = inference.forward(model, tasks, *variables, batch, views)["vessels"]
    task = tasks["vessels"]
    expected = task.predict(logits, batch)
    for name, values in expected.items():
        np.testing.assert_allclose(found["predictions"][name], values, rtol=1e-5)
    assert found["targets"]["seen"].tolist() == batch["field_of_view"].sum((1, 2)).tolist()
    assert found["count"] == 1
    np.testing.assert_allclose(found["loss"], task.loss(logits, batch, 1.0)[0], rtol=1e-5)

    reading = experiment.Reading(builder=None, transform=(), tasks=tasks, evaluation="test", views=views)
    training = toy.replace(toy.training(), model=model)
    alone = make_predict_step(training, reading)(*variables, {name: batch[name] for name in ("image", "valid")})
    np.testing.assert_allclose(alone["vessels"]["probabilities"], expected["probabilities"], rtol=1e-5)


@dataclass(frozen=True)
class Boxes:
    """A task that says nothing of its outputs' axes."""


@pytest.mark.parametrize(
    ("views", "tasks", "message"),
    [
        (Views(flips=("sideways",)), {}, r"evaluations\.test\.flips: no flip 'sideways'; .*horizontal"),
        (Views(window=(64,)), {}, r"evaluations\.test\.window is \(64,\): expected \(height, width\)"),
        (Views(window=(64, 0)), {}, r"evaluations\.test\.window is \(64, 0\)"),
        (Views(window=(64, 64), overlap=1.0), {}, r"evaluations\.test\.overlap is 1\.0: expected 0 to below 1"),
        (Views(shift=-1), {}, r"evaluations\.test\.shift is -1: expected a number of pixels, 0 or more"),
        (Views(shift=2), {"vessels": TASKS["vessels"]}, r"shift: the outputs of the task 'vessels' are of places"),
        (Views(shift=2), {"boxes": Boxes()}, r"shift: the outputs of the task 'boxes' are of places"),
        (Views(flips=("both",)), {"boxes": Boxes()}, r"evaluations\.test\.flips: the outputs of the task 'boxes'"),
        (Views(window=(8, 8)), {"boxes": Boxes()}, r"evaluations\.test\.window: the outputs of the task 'boxes'"),
        (Views(window=(8, 8)), {"sex": TASKS["sex"]}, r"window: the outputs of the task 'sex' have no pixels"),
    ],
)
def test_what_cannot_be_put_together_is_said(views, tasks, message):
    with pytest.raises(InputError, match=message):
        inference.check(views, tasks, "evaluations.test")


def test_tasks_that_can_be_put_together_pass():
    inference.check(Views(flips=("horizontal", "both")), TASKS, "evaluations.test")
    inference.check(Views(shift=1), {"sex": TASKS["sex"], "age": TASKS["age"]}, "evaluations.test")
    inference.check(Views(window=(8, 8)), {"vessels": TASKS["vessels"]}, "evaluations.test")

"""DINO equals the authors' (golden: tests/references/dino.py) in boxes, losses and gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, detectors, seeded
from references.detectors import CHANNELS, CLASSES

from mediax.errors import InputError
from mediax.heads import dino

SMALL = {
    "hidden": 24,
    "heads": 4,
    "points": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 12,
    "denoising": 50,
    "detections": 10,
}
TERMS = {"loss_ce": "class", "loss_bbox": "l1", "loss_giou": "giou"}  # the authors' names and ours
KINDS = {("", "_0"): "", ("_interm",): "proposal_", ("_dn", "_dn_0"): "denoising_"}
NOISE = {"relabelled": (), "amount": (4,)}


def given_noise(key, shape, classes, dtype):
    """The noise that tests/references/dino.py gives the authors' code, the same in each image."""

    def same(array):
        return jnp.broadcast_to(array, (shape[0], *array.shape))

    uniform = [0.5 + 0.5 * np.tanh(seeded.normal(name, (100, *axis))) for name, axis in NOISE.items()]
    other = np.floor(np.abs(seeded.normal("other", (100,))) * 10) % classes
    sign = np.where(seeded.normal("sign", (100, 4)) > 0, 1.0, -1.0)
    return same(uniform[0]), same(other.astype(int)), same(sign), same(uniform[1])


@pytest.fixture(scope="module")
def against_the_authors():
    """(golden, outputs, gradients of the weights, gradients of the pyramid), the noise given, in float64."""
    golden = compare.load("dino")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dino, "_draw", given_noise)
        weighted = lambda losses: sum(dino.LOSS_WEIGHTS[name] * loss.sum() for name, loss in losses.items())  # noqa: E731
        return golden, *detectors.run(dino, golden, weighted, targets=detectors.targets(), train=True, **SMALL)


def test_losses_equal_the_authors(against_the_authors):
    golden, outputs, _, _ = against_the_authors
    for row in range(2):
        for endings, prefix in KINDS.items():
            for theirs, ours in TERMS.items():
                expected = sum(float(golden.get(f"losses/{row}/{theirs}{ending}", 0)) for ending in endings)
                found = float(outputs["losses"][prefix + ours][row])
                compare.assert_loss(found, expected, 1e-5, f"{prefix + ours} of image {row}")
                assert found > 0 or row == 1


def test_gradients_equal_the_authors(against_the_authors):
    golden, _, slopes, level_slopes = against_the_authors
    detectors.assert_gradients(dino, slopes, golden, 1e-4)
    for stride in (8, 16, 32):
        compare.assert_close(level_slopes[stride], golden[f"gradient/level/{stride}"], 1e-4, f"level {stride}")


def test_detections_equal_the_authors():
    """Without denoising the queries see what they saw with it."""
    golden = compare.load("dino")
    head = nnx.eval_shape(lambda: dino.Head(CHANNELS, CLASSES, **SMALL, rngs=nnx.Rngs(0)))
    shapes = json.loads(str(golden["shapes"]))
    compare.set_weights(head, dino.translate(seeded.tensors(shapes))["head"], "head")
    outputs = nnx.jit(lambda head, levels: head(levels, detectors.SIZE, train=False, rngs=None))(
        head, detectors.pyramid()
    )
    logits, boxes = (np.stack([golden[f"{name}/{row}"] for row in range(2)]) for name in ("pred_logits", "pred_boxes"))
    found = detectors.best_pairs(logits, boxes, SMALL["detections"])
    np.testing.assert_array_equal(outputs["labels"], found["labels"])
    for name in ("scores", "boxes"):
        compare.assert_close(outputs[name], found[name], 1e-4, name)


def noisy(valid, denoising=10):
    head = nnx.eval_shape(lambda: dino.Head(CHANNELS, CLASSES, **SMALL | {"denoising": denoising}, rngs=nnx.Rngs(0)))
    corner = np.random.default_rng(0).uniform(0.1, 0.4, (len(valid), len(valid[0]), 2))
    boxes = np.concatenate([corner, corner + 0.2], -1)
    targets = {"boxes": boxes, "box_labels": np.full(boxes.shape[:2], 2), "box_valid": np.array(valid)}
    targets = {name: jnp.asarray(array) for name, array in targets.items()}
    return targets, jax.jit(lambda targets: dino.Head._add_noise(head, targets, jax.random.key(0)))(targets)


def test_noise_keeps_its_bounds_and_its_groups():
    targets, boxes = noisy([[True, False, True, True], [False] * 4])
    np.testing.assert_array_equal(boxes.groups, [3, 0])
    np.testing.assert_array_equal(boxes.group[0], [0] * 6 + [1] * 6 + [2] * 6 + [dino.UNUSED] * 2)
    np.testing.assert_array_equal(boxes.true[0, :6], [0, 2, 3] * 2)
    np.testing.assert_array_equal(
        boxes.positive[0], [True] * 3 + [False] * 3 + ([True] * 3 + [False] * 3) * 2 + [False] * 2
    )
    assert not boxes.positive[1].any() and (boxes.group[1] == dino.UNUSED).all()
    sides = np.asarray(dino.box.corners(boxes.boxes[0]))
    shift = np.abs(sides - np.asarray(targets["boxes"])[0, boxes.true[0]]) / 0.1  # in halves of the extent
    used, positive = np.asarray(boxes.group[0] >= 0), np.asarray(boxes.positive[0])
    assert (shift[positive] <= 0.4 + 1e-5).all() and shift[positive].max() > 0.2
    rejected = shift[used & ~positive]
    assert (rejected <= 0.8 + 1e-5).all() and (rejected >= 0.4 - 1e-5).all()


def test_more_boxes_than_room_still_make_a_group():
    _, boxes = noisy([[True] * 12], denoising=10)
    assert boxes.group.shape == (1, 24) and boxes.groups[0] == 1 and boxes.positive.sum() == 12


def test_groups_see_themselves_and_the_queries():
    sees = dino._visible(jnp.asarray([[0, 0, 1, dino.UNUSED]]), 2)[0]
    expected = [[1, 1, 0, 0, 1, 1]] * 2 + [[0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 1, 1]] + [[0, 0, 0, 0, 1, 1]] * 2
    np.testing.assert_array_equal(sees, np.array(expected, bool))


def test_every_published_tensor_has_its_place():
    shapes = json.loads(str(compare.load("dino")["published"]))
    parts = dino.translate({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
    head = nnx.eval_shape(lambda: dino.Head({8: 512, 16: 1024, 32: 2048}, 91, rngs=nnx.Rngs(0)))
    places = compare.flat(compare.variables_of(head)["params"])
    assert not parts["backbone"]
    assert {path: leaf.shape for path, leaf in places.items()} == {path: a.shape for path, a in parts["head"].items()}


def test_parameters_and_cost_are_the_published():
    backbone, head = detectors.on_resnet_50(dino)
    assert round(detectors.learned(backbone, head) / 1e6) == 47  # table 1 of the paper, 4 scales
    detectors.assert_cost(backbone, head, 279e9)


def test_the_authors_names_are_known():
    weights = {
        "backbone.0.body.conv1.weight": np.zeros((64, 3, 7, 7)),
        "transformer.decoder.layers.1.self_attn.in_proj_bias": np.zeros(768),
        "transformer.decoder.bbox_embed.0.layers.0.weight": np.zeros((256, 256)),
        "bbox_embed.5.layers.2.bias": np.zeros(4),
        "transformer.enc_out_class_embed.weight": np.zeros((91, 256)),
        "label_enc.weight": np.zeros((92, 256)),
        "transformer.tgt_embed.weight": np.zeros((900, 256)),
    }
    parts = dino.translate(weights)
    assert set(parts["backbone"]) == {"conv1.weight"}
    assert {path: array.shape for path, array in parts["head"].items()} == {
        ("decoder", 1, "self_attention", "query", "bias"): (256,),
        ("decoder", 1, "self_attention", "key", "bias"): (256,),
        ("decoder", 1, "self_attention", "value", "bias"): (256,),
        ("boxes", "layers", 2, "bias"): (4,),
        ("proposal_classes", "kernel"): (256, 91),
        ("labels",): (91, 256),
        ("query",): (900, 256),
    }


def test_messages_name_the_choices():
    def call():
        head = dino.Head({8: 4}, 2, strides=(8,), levels=1, width=32, encoder_layers=0, rngs=nnx.Rngs(0))
        return head({8: jnp.zeros((1, 8, 16, 4))}, (64, 128), train=False, rngs=None)

    with pytest.raises(InputError, match="queries=900 of 128 pixels"):
        nnx.eval_shape(call)

"""Deformable DETR equals transformers' (goldens: tests/references/detection.py) in boxes, losses and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, detectors, seeded
from references.detectors import CHANNELS, CLASSES
from scipy.optimize import linear_sum_assignment

from mediax import deformable_transformer
from mediax.errors import InputError
from mediax.heads import deformable_detr

SMALL = {
    "width": 32,
    "hidden": 24,
    "heads": 4,
    "points": 2,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "queries": 12,
    "detections": 10,
}
LOSSES = {"loss_ce": "class", "loss_bbox": "l1", "loss_giou": "giou"}  # transformers' names and ours
WEIGHTS = {"class": 1.0, "l1": 5.0, "giou": 2.0}  # transformers' own


@pytest.mark.parametrize(
    ("variant", "dtype", "tolerance"),
    [
        ("two_stage", jnp.float64, 1e-5),
        pytest.param("two_stage", jnp.float32, 1e-4, marks=pytest.mark.slow),
        pytest.param("plain", jnp.float64, 1e-5, marks=pytest.mark.slow),
        pytest.param("refined", jnp.float64, 1e-5, marks=pytest.mark.slow),
    ],
)
def test_equals_transformers(variant, dtype, tolerance):
    """In float32 and in float64; gradients within ten times the tolerance."""
    golden = compare.load(f"deformable_detr_{variant}")
    outputs, slopes, level_slopes = detectors.run(
        deformable_detr,
        golden,
        lambda losses: sum(WEIGHTS[name] * losses[name].sum() for name in WEIGHTS) / 3,
        targets=detectors.targets(),
        dtype=dtype,
        **SMALL | {"variant": variant},
    )
    for theirs, ours in LOSSES.items():
        expected = float(golden[f"losses/{theirs}"]) + float(golden[f"losses/{theirs}_0"])
        compare.assert_loss(float(outputs["losses"][ours].sum()) / 3, expected, tolerance, ours)
    found = detectors.best_pairs(golden["logits"], golden["boxes"], SMALL["detections"])
    np.testing.assert_array_equal(outputs["labels"], found["labels"])
    for name in ("scores", "boxes"):
        compare.assert_close(outputs[name], found[name], tolerance, name)
    for stride in (8, 16, 32):
        compare.assert_close(
            level_slopes[stride], golden[f"gradient/level/{stride}"], 10 * tolerance, f"level {stride}"
        )
    detectors.assert_gradients(deformable_detr, slopes, golden, 10 * tolerance)


# transformers' of "refined" shares what predicts the class among the layers, the authors' and ours do not.
@pytest.mark.parametrize(("variant", "total"), [("plain", 40_069_665), ("two_stage", 41_181_529)])
def test_parameters_are_those_of_transformers(variant, total):
    assert detectors.learned(*detectors.on_resnet_50(deformable_detr, variant=variant)) == total


def test_costs_what_the_authors_say():
    detectors.assert_cost(*detectors.on_resnet_50(deformable_detr, variant="plain"), 173e9)  # table 1 of the paper


def test_the_authors_names_are_known():
    weights = {
        "backbone.0.body.conv1.weight": np.zeros((64, 3, 7, 7)),
        "transformer.level_embed": np.zeros((4, 32)),
        "transformer.decoder.layers.1.self_attn.in_proj_weight": np.zeros((96, 32)),
        "transformer.decoder.layers.1.cross_attn.value_proj.bias": np.zeros(32),
        "transformer.decoder.bbox_embed.0.layers.0.weight": np.zeros((32, 32)),
        "query_embed.weight": np.zeros((12, 64)),
        "bbox_embed.0.layers.2.bias": np.zeros(4),
    }
    parts = deformable_detr.translate(weights)
    assert set(parts["backbone"]) == {"conv1.weight"}
    assert {path: array.shape for path, array in parts["head"].items()} == {
        ("levels", "level"): (4, 32),
        ("decoder", 1, "self_attention", "query", "kernel"): (32, 32),
        ("decoder", 1, "self_attention", "key", "kernel"): (32, 32),
        ("decoder", 1, "self_attention", "value", "kernel"): (32, 32),
        ("decoder", 1, "attention", "values", "bias"): (32,),
        ("query",): (12, 64),
        ("boxes", 0, "layers", 2, "bias"): (4,),
    }


def test_the_matching_is_the_cheapest():
    logits, boxes = seeded.normal("logits", (1, 6, CLASSES)), jax.nn.sigmoid(seeded.normal("boxes", (1, 6, 4)))
    true, labels = jax.nn.sigmoid(seeded.normal("true", (1, 3, 4))), jnp.asarray([[1, 3, 0]])
    cost = np.asarray(deformable_transformer._cost(jnp.asarray(logits), boxes, true, labels))[0]
    rows, columns = linear_sum_assignment(cost)
    found = jax.jit(deformable_transformer.set_losses)(
        [(jnp.asarray(logits), boxes)], true, labels, jnp.ones((1, 3), bool)
    )
    distance = np.abs(np.asarray(boxes)[0, rows] - np.asarray(true)[0, columns]).sum()
    assert float(found["l1"][0]) == pytest.approx(distance, rel=1e-5)


def test_messages_name_the_choices():
    with pytest.raises(InputError, match="no variant 'three'; choose one of plain, refined, two_stage"):
        deformable_detr.Head(CHANNELS, 2, variant="three", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"strides \[8, 16, 32\] are not among the backbone's, \[2, 4\]"):
        deformable_detr.Head({2: 4, 4: 4}, 2, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"width=40: expected .* a width that 32 divides"):
        deformable_detr.Head(CHANNELS, 2, width=40, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="a width that its heads divide"):
        deformable_detr.Head(CHANNELS, 2, width=32, heads=3, rngs=nnx.Rngs(0))

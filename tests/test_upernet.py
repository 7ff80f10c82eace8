"""UPerNet equals its reference (tests/references/segmentation.py wrote the goldens), under both published spellings."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, dense, multiply_adds, seeded

from mediax.backbones import swin
from mediax.errors import InputError
from mediax.heads import upernet

CHANNELS = {4: 6, 8: 10, 16: 12, 32: 20}


def pyramid_of(size):
    return {s: seeded.normal(f"level {s}", (2, -(-size[0] // s), -(-size[1] // s), c)) for s, c in CHANNELS.items()}


@pytest.mark.parametrize(
    ("golden", "size", "mode"),
    [("upernet", (64, 96), "inference"), ("upernet", (64, 96), "training"), ("upernet_odd", (71, 101), "inference")],
)
def test_equals_transformers(golden, size, mode):
    dense.assert_equals(
        golden,
        dense.family(upernet),
        lambda dtype: upernet.Head(CHANNELS, 3, width=16, dtype=dtype, rngs=nnx.Rngs(0)),
        inputs=pyramid_of(size),
        size=size,
        mode=mode,
    )


def test_equals_transformers_in_float32():
    dense.assert_equals(
        "upernet",
        dense.family(upernet),
        lambda dtype: upernet.Head(CHANNELS, 3, width=16, dtype=dtype, rngs=nnx.Rngs(0)),
        inputs=pyramid_of((64, 96)),
        size=(64, 96),
        gradients=False,
        dtype=jnp.float32,
        tolerance=1e-4,
    )


def test_equals_transformers_with_its_swin():
    settings = {"width": 8, "depths": (1, 2, 1, 1), "heads": (1, 2, 4, 8), "windows": (3,) * 4, "level_norms": True}
    dense.assert_equals(
        "upernet_swin",
        dense.family(upernet, swin),
        lambda dtype: upernet.Head({4: 8, 8: 16, 16: 32, 32: 64}, 3, width=16, dtype=dtype, rngs=nnx.Rngs(0)),
        backbone=lambda dtype: swin.Backbone(**settings, dtype=dtype, rngs=nnx.Rngs(0)),
        inputs=seeded.normal("image", (2, 128, 160, 3)),
        size=(128, 160),
    )


def test_parameters_and_multiply_adds_are_those_of_transformers():
    """Those of transformers' head for Swin-T and 150 classes, as torch's FlopCounterMode counts it at 512 x 512.

    That counts no pooling and no interpolation, which are matrix products here: four percent of the head.
    """
    channels = {4: 96, 8: 192, 16: 384, 32: 768}
    head = nnx.eval_shape(lambda: upernet.Head(channels, 150, rngs=nnx.Rngs(0)))
    assert compare.parameters(head) == 31_497_366
    assert 1 < multiply_adds.of_head(head, channels, (512, 512)) / 211_362_250_752 < 1.05


def test_mmsegmentation_calls_the_same_tensors_by_other_names():
    shapes = json.loads(str(compare.load("upernet")["shapes"]))
    weights = seeded.tensors(shapes)
    spelled = {name.replace("batch_norm", "bn").replace("classifier", "conv_seg"): a for name, a in weights.items()}
    spelled |= {"auxiliary_head.conv_seg.bias": np.zeros(3), "backbone.stem.weight": np.ones(1)}
    ours, theirs = upernet.translate(weights), upernet.translate(spelled)
    assert list(theirs["backbone"]) == ["stem.weight"] and set(ours["head"]) == set(theirs["head"])
    assert all((theirs["head"][path] == array).all() for path, array in ours["head"].items())


def test_the_four_coarsest_levels_are_used():
    channels = {2: 4} | CHANNELS
    head = nnx.eval_shape(lambda: upernet.Head(channels, 3, width=8, rngs=nnx.Rngs(0)))
    assert head.strides == (4, 8, 16, 32)
    with pytest.raises(InputError, match="1 level of the backbone"):
        upernet.Head({32: 8}, 1, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="unknown names"):
        upernet.translate({"head.weight": np.zeros(1)})


def test_dropout_acts_in_training_alone():
    head = upernet.Head(CHANNELS, 3, width=8, dropout=0.5, rngs=nnx.Rngs(0))
    run = nnx.jit(lambda h, p, rngs, train: h(p, (64, 96), train=train, rngs=rngs), static_argnames="train")
    outputs = [[run(head, pyramid_of((64, 96)), nnx.Rngs(seed), train=train) for seed in (1, 2)] for train in (0, 1)]
    np.testing.assert_array_equal(*outputs[0])
    assert (outputs[1][0] != outputs[1][1]).any()

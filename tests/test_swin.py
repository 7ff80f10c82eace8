"""Swin and Swin V2 equal the published networks (tests/references/swin.py wrote the goldens); their options work."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, multiply_adds, seeded

from mediax.backbones import swin
from mediax.errors import InputError
from mediax.heads.pooled import Head

SMALL = {"width": 8, "depths": (2, 2), "heads": (2, 4), "windows": (4, 4)}
GREY = {**SMALL, "depths": (2,), "heads": (2,), "windows": (3,), "in_channels": 1}
PUBLISHED = json.loads(str(compare.load("swin_names")["names"]))
# Millions of parameters with the classifier and billions of multiply-adds, at the size: the authors' table.
COST = {
    "tiny": (28, 4.5, 224),
    "small": (50, 8.7, 224),
    "base": (88, 15.4, 224),
    "large": (197, 34.5, 224),
    "base_window12": (88, 47.1, 384),
    "large_window12": (197, 103.9, 384),
    "v2_tiny": (28, 5.9, 256),
    "v2_small": (50, 11.5, 256),
    "v2_base": (88, 20.3, 256),
    "v2_tiny_window16": (28, 6.6, 256),
    "v2_small_window16": (50, 12.6, 256),
    "v2_base_window16": (88, 21.8, 256),
    "v2_base_window12to24": (88, 54.7, 384),
    "v2_large_window12to16": (197, 47.5, 256),
}


@functools.cache
def abstract(**settings):
    return nnx.eval_shape(lambda: swin.Backbone(**settings, rngs=nnx.Rngs(0)))


def slow_if_large(keys):
    # A variant takes seconds to build: all small ones and one of the large ones are looked at each time.
    fast = [key for key in keys if not {"base", "large"} & set(re.split("[/_]", key)) or "large_window12to16" in key]
    return [pytest.param(key, marks=[] if key in fast else [pytest.mark.slow]) for key in keys]


@pytest.mark.parametrize("key", slow_if_large(PUBLISHED))
def test_every_published_tensor_has_its_place(key):
    _, variant, _ = key.split("/")
    parts = swin.translate({n: np.broadcast_to(np.float32(0), shape) for n, shape in PUBLISHED[key].items()})
    places = compare.flat(compare.variables_of(abstract(variant=variant))["params"])
    assert {path: leaf.shape for path, leaf in places.items()} == {p: a.shape for p, a in parts["backbone"].items()}
    assert {path: array.shape[-1] for path, array in parts["head"].items()} == {
        ("linear", "kernel"): 1000,
        ("linear", "bias"): 1000,
    }


@pytest.mark.parametrize(
    ("golden", "settings"),
    [
        ("swin_v1", SMALL),
        ("swin_v2", {**SMALL, "variant": "v2_tiny", "pretrained_windows": (3, 2)}),
        ("swin_v1_odd", SMALL),
        ("swin_v2_odd", {**SMALL, "variant": "v2_tiny"}),
    ],
)
def test_equals_the_published_network(golden, settings):
    # torchvision joins the biases that version 2 keeps apart, so one of its gradients is none of ours.
    gradients = golden != "swin_v2_odd"
    compare.assert_equals_reference(swin, golden, normalize=False, mode="training", gradients=gradients, **settings)


def test_levels_have_the_norms_of_a_detector_s_backbone():
    settings = {"width": 8, "depths": (2, 1, 2), "heads": (2, 4, 8), "windows": (3, 3, 3), "level_norms": True}
    compare.assert_pyramid_equals_reference(swin, "pyramid_swin", **settings)


def respelled(weights, spelling):
    """The authors' tensors under the names of another library, which has some of them in another order or apart."""
    result = {}
    for name, array in weights.items():
        for published, other in spelling.items():
            name = re.sub(published, other, name)
        if "w_msa" in "".join(spelling.values()) and "downsample" in name:
            squares = array.reshape(*array.shape[:-1], 2, 2, -1)  # column, row, channel
            array = squares.swapaxes(-1, -3).reshape(array.shape)
        if "{}" in name:
            result |= {name.format(part): third for part, third in zip(("query", "key", "value"), np.split(array, 3))}
        else:
            result[name] = array
    return result


OLDER_TRANSFORMERS = {
    r"^patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"^patch_embed": "embeddings",
    r"^layers": "encoder.layers",
    r"norm1\.(\w+)$": r"layernorm_before.\1",
    r"norm2\.(\w+)$": r"layernorm_after.\1",
    r"^layernorm_before": "hidden_states_norms.stage2",
    r"^layernorm_after": "hidden_states_norms.stage3",
    r"^norm0": "hidden_states_norms.stage1",
    r"attn\.relative": "attention.self.relative",
    r"attn\.qkv": "attention.self.{}",
    r"attn\.proj": "attention.output.dense",
    r"mlp\.fc1": "intermediate.dense",
    r"mlp\.fc2": "output.dense",
}
MMSEGMENTATION = {
    r"^patch_embed\.proj": "patch_embed.projection",
    r"^layers": "stages",
    r"attn": "attn.w_msa",
    r"mlp\.fc1": "ffn.layers.0.0",
    r"mlp\.fc2": "ffn.layers.1",
}


@pytest.mark.parametrize("spelling", [OLDER_TRANSFORMERS, MMSEGMENTATION])
def test_other_libraries_call_the_same_tensors_by_other_names(spelling):
    weights = seeded.tensors(json.loads(str(compare.load("pyramid_swin")["shapes"])))
    renamed = respelled(weights, spelling)
    expected, actual = swin.translate(weights)["backbone"], swin.translate(renamed)["backbone"]
    assert renamed.keys() != weights.keys()
    assert set(actual) == set(expected) and ("level_norms", 2, "scale") in actual
    assert all((actual[path] == array).all() for path, array in expected.items())


def test_mmsegmentation_merges_pixels_channel_by_channel():
    square, reduction = seeded.normal("square", (2, 2, 3)), seeded.normal("reduction", (6, 12))
    theirs = reduction @ square.transpose(2, 0, 1).reshape(-1)
    ours = np.concatenate([square[row, column] for column in range(2) for row in range(2)])
    [(path, kernel)] = swin.translate({"stages.0.downsample.reduction.weight": reduction})["backbone"].items()
    assert path == ("stages", 1, "merge", "reduce", "kernel")
    np.testing.assert_allclose(ours @ kernel, theirs, rtol=1e-5)


@pytest.mark.parametrize("variant", slow_if_large(COST))
def test_parameters_and_multiply_adds_are_the_published(variant):
    backbone = abstract(variant=variant)
    head = nnx.eval_shape(lambda: Head(backbone.channels, 1000, rngs=nnx.Rngs(0)))
    millions, billions, side = COST[variant]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state((backbone, head))))
    assert round(parameters / 1e6) == millions
    definition, state = nnx.split(backbone)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    cost = multiply_adds.count(lambda s, x: nnx.merge(definition, s)(x, train=False, rngs=None), state, image)
    assert abs(cost / 1e9 / billions - 1) < 0.03


@pytest.mark.slow
def test_remat_changes_neither_outputs_nor_gradients():
    build = functools.partial(swin.Backbone, **GREY, drop_path=0.5)
    compare.assert_remat_changes_nothing(build, seeded.normal("image", (2, 16, 20, 1)), level=4, power=3)


def test_computes_in_bfloat16_with_f32_parameters():
    build = functools.partial(swin.Backbone, **GREY)
    compare.assert_bfloat16_is_near(build, seeded.normal("image", (2, 16, 20, 1)), level=4, tolerance=0.05)


def test_one_grey_channel_equals_grey_in_rgb():
    settings = {**SMALL, "depths": (1,), "heads": (2,), "windows": (3,)}
    rgb, grey = (swin.Backbone(**settings, in_channels=channels, rngs=nnx.Rngs(0)) for channels in (3, 1))
    weights = compare.flat(compare.variables_of(rgb)["params"])
    weights = {path: np.asarray(array) for path, array in weights.items()}
    compare.set_weights(grey, swin.adapt_input(weights, mean=(0.53,), std=(0.21,)), "backbone")
    image = np.random.default_rng(0).random((2, 17, 22, 1), np.float32)
    expected = compare.forward(rgb, (image - np.array(swin.MEAN)) / np.array(swin.STD))
    actual = compare.forward(grey, (image - 0.53) / 0.21)
    compare.assert_close(actual[4], expected[4], 1e-4, "level 4")


def test_blocks_shift_in_turn_drop_more_and_more_and_are_layers():
    backbone = abstract(**{**SMALL, "depths": (2, 3)}, drop_path=0.8)
    blocks = [block for stage in backbone.stages for block in stage.blocks]
    np.testing.assert_allclose([block.attention.drop_path for block in blocks], [0, 0.2, 0.4, 0.6, 0.8])
    assert [block.attention.layer.shift for block in blocks] == [(0, 0), (2, 2), (0, 0), (2, 2), (0, 0)]
    assert backbone.num_layers == 6
    for path, layer in (
        (("stem", "norm", "bias"), 0),
        (("stages", 0, "blocks", 1, "attention"), 2),
        (("stages", 1, "merge", "norm", "scale"), 3),
        (("stages", 1, "blocks", 0, "attention"), 3),
        (("norm", "scale"), 5),
        (("level_norms", 0, "scale"), 6),
    ):
        assert backbone.layer_of(path) == layer


def test_version_2_starts_as_the_identity():
    windows = {"window": 4, "pretrained_window": 4, "shift": 0}
    options = {"post_norm": True, "drop_path": 0.0, "dtype": jnp.float32}
    x = jnp.asarray(seeded.normal("features", (1, 4, 4, 8)))
    y = jax.jit(lambda x: swin.Block(8, 2, **windows, **options, rngs=nnx.Rngs(0))(x, False, None))(x)
    np.testing.assert_array_equal(y, x)


def test_messages_name_the_choices():
    for settings, message in (
        ({"variant": "huge"}, r"no variant 'huge'; choose one of tiny, .*v2_large_window12to24"),
        ({"depths": (1, 2)}, "must have the same length"),
        ({**SMALL, "heads": (3, 4)}, "stage 0 has 8 channels, no multiple of 3 heads"),
    ):
        with pytest.raises(InputError, match=message):
            swin.Backbone(**settings, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="patches of 4 pixels"):
        nnx.eval_shape(lambda b: b(jnp.zeros((1, 3, 28, 3)), train=False, rngs=None), abstract(**SMALL))

"""DenseNet equals torchvision's (tests/references/convolutional.py wrote the goldens), and its options work."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, multiply_adds, seeded

from mediax.backbones import densenet
from mediax.errors import InputError

MILLIONS = {"121": 7.98, "161": 28.68, "169": 14.15, "201": 20.01}  # torchvision's tables of parameters ...
GIGA_MULTIPLY_ADDS = {"121": 2.83, "161": 7.73, "169": 3.36, "201": 4.29}  # ... and of the cost at 224 x 224
PUBLISHED = {
    key: shapes
    for key, shapes in json.loads(str(compare.load("published_convolutional")["names"])).items()
    if key.startswith("densenet/")
}
RADIOGRAPHS = PUBLISHED.pop("densenet/121/torchxrayvision")  # one grey channel, 18 findings
# The same code builds the others: they are looked at before a release.
SLOW = {"161", "169", "201"}
SMALL = {"growth": 8, "depths": (2, 1, 2, 1), "stem": 16}


def slow_if_large(keys):
    return [pytest.param(key, marks=[pytest.mark.slow] if SLOW & set(key.split("/")) else []) for key in keys]


@pytest.mark.parametrize("key", slow_if_large(PUBLISHED))
def test_every_published_tensor_has_its_place(key):
    _, variant, _ = key.split("/")
    count = compare.assert_checkpoint_fits(densenet, variant, PUBLISHED[key], normalize=False)
    assert round(count / 1e6, 2) == MILLIONS[variant]


def test_published_names_cover_the_variants():
    assert {tuple(key.split("/")[1:]) for key in PUBLISHED} == {
        (variant, spelling) for variant in densenet.VARIANTS for spelling in ("torchvision", "timm")
    }


def test_every_tensor_of_torchxrayvision_has_its_place():
    parts = densenet.translate({name: np.broadcast_to(np.float32(0), shape) for name, shape in RADIOGRAPHS.items()})
    backbone = nnx.eval_shape(lambda: densenet.Backbone(variant="121", in_channels=1, rngs=nnx.Rngs(0)))
    places = {
        path: leaf for tree in compare.variables_of(backbone).values() for path, leaf in compare.flat(tree).items()
    }
    assert {path: leaf.shape for path, leaf in places.items()} == {p: a.shape for p, a in parts["backbone"].items()}
    assert {path: array.shape for path, array in parts["head"].items()} == {
        ("linear", "kernel"): (1024, 18),
        ("linear", "bias"): (18,),
    }


def test_the_file_torchvision_serves_spells_two_names_with_a_point():
    shapes = PUBLISHED["densenet/121/torchvision"]
    old = {name: name.replace("norm1", "norm.1").replace("conv2", "conv.2") for name in shapes}
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    new, again = densenet.translate(arrays), densenet.translate({old[name]: array for name, array in arrays.items()})
    assert set(new["backbone"]) == set(again["backbone"])


@pytest.mark.parametrize("variant", slow_if_large(densenet.VARIANTS))
def test_costs_what_torchvision_says(variant):
    backbone = nnx.eval_shape(lambda: densenet.Backbone(variant=variant, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(backbone)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    count = multiply_adds.count(lambda s, x: nnx.merge(graph, s)(x, train=False, rngs=None), state, image)
    assert abs(count / 1e9 - GIGA_MULTIPLY_ADDS[variant]) < 0.01


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_small_network_equals_torchvision_at_an_odd_size(mode):
    check = {"normalize": False, "mode": mode, "gradients": mode == "training", **SMALL}
    compare.assert_equals_reference(densenet, "densenet_small", dtype=jnp.float64, tolerance=1e-6, **check)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_121_equals_torchvision(mode):
    check = {"normalize": False, "mode": mode, "variant": "121"}
    compare.assert_equals_reference(densenet, "densenet_121", dtype=jnp.float64, tolerance=1e-6, **check)
    compare.assert_equals_reference(densenet, "densenet_121", gradients=False, tolerance=1e-3, **check)


@pytest.mark.slow
def test_remat_changes_neither_outputs_gradients_nor_statistics():
    build = functools.partial(densenet.Backbone, depths=(2,), growth=4, stem=8, dropout=0.5)
    compare.assert_remat_changes_nothing(build, seeded.normal("image", (4, 16, 16, 3)))


def test_pyramid_in_bfloat16_with_f32_parameters():
    settings = {"dtype": jnp.bfloat16, "in_channels": 1}
    backbone = nnx.eval_shape(lambda: densenet.Backbone(**settings, rngs=nnx.Rngs(0)))
    pyramid = nnx.eval_shape(lambda b, x: b(x, train=False, rngs=None), backbone, jnp.zeros((2, 72, 64, 1)))
    assert backbone.channels == {4: 256, 8: 512, 16: 1024, 32: 1024}
    assert {s: x.shape for s, x in pyramid.items()} == {
        s: (2, 72 // s, 64 // s, c) for s, c in backbone.channels.items()
    }
    assert {x.dtype for x in pyramid.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(backbone))} == {jnp.dtype(jnp.float32)}


def test_each_dense_layer_is_a_layer():
    backbone = nnx.eval_shape(lambda: densenet.Backbone(rngs=nnx.Rngs(0)))
    assert backbone.num_layers == 59
    assert backbone.layer_of(("stem", "conv", "kernel")) == 0
    assert backbone.layer_of(("stages", 1, "transition", "norm", "scale")) == 7
    assert backbone.layer_of(("stages", 1, "layers", 11, "convs", 1, "kernel")) == 18
    assert backbone.layer_of(("norm", "bias")) == 58


def stem_of(weights, x):
    settings = {"in_channels": x.shape[-1], "depths": (1,), "growth": 1, "stem": 16}
    backbone = nnx.eval_shape(lambda: densenet.Backbone(**settings, rngs=nnx.Rngs(0)))
    below = {path[1:]: array for path, array in weights.items() if path[0] == "stem"}
    compare.set_weights(backbone.stem, below, "stem")
    return backbone.stem.norm(backbone.stem.conv(jnp.asarray(x, jnp.float32)), False)[:, 2:-2, 2:-2]


def test_weights_of_radiographs_read_one_grey_channel_in_their_own_range():
    """TorchXRayVision maps [0,1] to [-1024,1024]; the adapted network computes the same from other normalisations."""
    shapes = json.loads(str(compare.load("densenet_small")["shapes"]))
    shapes = {n: s for n, s in shapes.items() if n.startswith(("features.conv0", "features.norm0"))}
    weights = seeded.tensors(shapes | {"features.conv0.weight": (16, 1, 7, 7), "op_threshs": (18,)})
    weights["features.conv0.weight"] /= 1024
    weights = densenet.translate(weights)["backbone"]
    image = np.random.default_rng(0).random((2, 40, 44, 1), np.float32)
    expected = stem_of(weights, (2 * image - 1) * 1024)
    grey = densenet.adapt_input(weights, mean=(0.53,), std=(0.21,))
    compare.assert_close(stem_of(grey, (image - 0.53) / 0.21), expected, 1e-5, "grey")
    own = densenet.adapt_input(weights, mean=densenet.GREY_MEAN, std=densenet.GREY_STD)
    compare.assert_close(stem_of(own, (image - 0.5) * 2048), expected, 1e-5, "its own normalisation")
    colour = densenet.adapt_input(weights, mean=densenet.MEAN, std=densenet.STD)
    in_colour = (image - np.array(densenet.MEAN)) / np.array(densenet.STD)
    compare.assert_close(stem_of(colour, in_colour), expected, 1e-5, "colour")


def test_one_grey_channel_equals_grey_in_rgb_inside_the_border():
    shapes = json.loads(str(compare.load("densenet_small")["shapes"]))
    shapes = {n: s for n, s in shapes.items() if n.startswith(("features.conv0", "features.norm0"))}
    weights = densenet.translate(seeded.tensors(shapes))["backbone"]
    image = np.random.default_rng(0).random((2, 40, 44, 1), np.float32)
    expected = stem_of(weights, (image - np.array(densenet.MEAN)) / np.array(densenet.STD))
    adapted = densenet.adapt_input(weights, mean=(0.53,), std=(0.21,))
    compare.assert_close(stem_of(adapted, (image - 0.53) / 0.21), expected, 1e-5, "stem")


def test_messages_name_the_choices():
    with pytest.raises(InputError, match="no variant '120'; choose one of 121, 161, 169, 201"):
        densenet.Backbone(variant="120", rngs=nnx.Rngs(0))

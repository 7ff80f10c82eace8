"""InternImage equals the authors' network (tests/references/internimage.py wrote the goldens), and its options work."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, multiply_adds, seeded, zero_gradients

from mediax.backbones import internimage
from mediax.errors import InputError

MILLIONS = {"tiny": 30, "small": 50, "base": 97, "large": 223, "xlarge": 335}  # the authors' tables of parameters ...
GIGA_MULTIPLY_ADDS = {"tiny": (224, 5), "small": (224, 8), "base": (224, 16), "large": (384, 108), "xlarge": (384, 163)}
PUBLISHED = json.loads(str(compare.load("published_internimage")["names"]))
SMALL = {"width": 16, "depths": (1, 1, 2), "groups": 2, "last_conv": True}
CLASSES = {  # one network for each kind of block
    "pre": {"variant": "tiny"},
    "post": {"variant": "xlarge"},
    "both": {"variant": "huge", "third_stage_norms": (0,)},
}


def slow_but(fast, keys):
    # A variant takes seconds to build, and a gradient seconds to compile.
    return [pytest.param(key, marks=[] if key == fast else [pytest.mark.slow]) for key in keys]


@functools.cache
def abstract(variant):
    return nnx.eval_shape(lambda: internimage.Backbone(variant=variant, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("variant", slow_but("tiny", MILLIONS))
def test_every_published_tensor_has_its_place(variant):
    shapes = PUBLISHED[f"internimage/{variant}/authors"]
    count = compare.assert_checkpoint_fits(internimage, variant, shapes, normalize=False)
    assert round(count / 1e6) == MILLIONS[variant]


@pytest.mark.slow
def test_every_published_tensor_of_the_huge_backbone_has_its_place():
    shapes = PUBLISHED["internimage/huge/authors"]
    weights = internimage.translate({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
    backbone = abstract("huge")
    places = compare.flat(compare.variables_of(backbone)["params"])
    assert {path: leaf.shape for path, leaf in places.items()} == {p: a.shape for p, a in weights["backbone"].items()}
    assert backbone.channels[32] == 2560


@pytest.mark.parametrize("variant", slow_but("tiny", GIGA_MULTIPLY_ADDS))
def test_costs_what_the_authors_say(variant):
    size, expected = GIGA_MULTIPLY_ADDS[variant]
    graph, state = nnx.split(abstract(variant))
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    count = multiply_adds.count(lambda s, x: nnx.merge(graph, s)(x, train=False, rngs=None), state, image)
    # The authors' table has whole numbers and counts the sampling too, which is no convolution or matrix product here.
    assert 0.9 < count / 1e9 / expected < 1.05


@pytest.fixture
def last_bias_has_no_gradient(monkeypatch):
    # The bias of the last LayerNorm before the last 1x1 convolution: a stage's, or the last block's.
    names = ("levels.2.norm.0.bias", "levels.2.blocks.1.norm2.0.bias")
    zero_gradients.expect(monkeypatch, lambda name: name in names)


@pytest.mark.usefixtures("last_bias_has_no_gradient")
@pytest.mark.parametrize("kind", slow_but("both", CLASSES))
def test_equals_the_authors_network(kind):
    # The authors' core computes the undisturbed places of the samples in float32, whatever the network computes in.
    compare.assert_equals_reference(
        internimage,
        f"internimage_{kind}",
        normalize=False,
        mode="training",
        dtype=jnp.float64,
        tolerance=1e-5,
        **SMALL,
        **CLASSES[kind],
    )


@pytest.mark.parametrize("kind", CLASSES)
def test_equals_the_authors_network_in_inference_in_float32(kind):
    settings = SMALL | CLASSES[kind]
    compare.assert_equals_reference(
        internimage, f"internimage_{kind}", normalize=False, mode="inference", gradients=False, **settings
    )


@pytest.mark.slow
def test_remat_changes_neither_outputs_nor_gradients():
    settings = {"width": 8, "depths": (2,), "groups": 2, "drop_path": 0.5, "last_conv": False, "in_channels": 1}
    build = functools.partial(internimage.Backbone, **settings)
    compare.assert_remat_changes_nothing(build, seeded.normal("image", (2, 16, 16, 1)))


@pytest.mark.parametrize(("last_conv", "coarsest"), [(None, 768), (False, 512)])
def test_pyramid_of_odd_sizes_in_bfloat16(last_conv, coarsest):
    settings = {"dtype": jnp.bfloat16, "in_channels": 1, "depths": (1, 1, 1, 1), "last_conv": last_conv}
    backbone = nnx.eval_shape(lambda: internimage.Backbone(**settings, rngs=nnx.Rngs(0)))
    pyramid = nnx.eval_shape(lambda b, x: b(x, train=False, rngs=None), backbone, jnp.zeros((2, 33, 64, 1)))
    assert backbone.channels == {4: 64, 8: 128, 16: 256, 32: coarsest}
    assert {s: x.shape for s, x in pyramid.items()} == {
        s: (2, -(-33 // s), 64 // s, c) for s, c in backbone.channels.items()
    }
    assert {x.dtype for x in pyramid.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(backbone))} == {jnp.dtype(jnp.float32)}


def test_depthwise_filters_start_as_torch_s():
    rngs = nnx.Rngs(0)
    settings = {"groups": 1, "offset_scale": 1.0, "depthwise_size": 5, "center_feature_scale": False}
    layer = internimage.DeformableConv(64, **settings, dtype=jnp.float32, rngs=rngs)
    filters = np.asarray(layer.depthwise.kernel[...])
    assert 0.199 < np.abs(filters).max() < 0.2 and abs(filters.std() * 5 * np.sqrt(3) - 1) < 0.02


def test_layers_are_the_authors():
    settings = {"depths": (2, 2, 3, 1), "third_stage_norms": (1,)}
    backbone = nnx.eval_shape(lambda: internimage.Backbone(**settings, rngs=nnx.Rngs(0)))
    assert backbone.num_layers == 8
    assert backbone.layer_of(("stem", 1, "conv", "kernel")) == 0
    assert backbone.layer_of(("stages", 0, "blocks", 1, "spatial", "norm", "scale")) == 1
    assert backbone.layer_of(("stages", 0, "downsample", "conv", "kernel")) == 2
    assert backbone.layer_of(("stages", 2, "block_norms", 0, "scale")) == 5
    assert backbone.layer_of(("stages", 3, "norm", "scale")) == backbone.layer_of(("last", "kernel")) == 7


def test_messages_name_the_choices():
    with pytest.raises(InputError, match=r"no variant 'giant'; choose one of tiny, .*huge"):
        internimage.Backbone(variant="giant", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match='choose "pre", "post" or "both"'):
        internimage.Backbone(norm="none", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="width 10 is not a multiple of its groups 4"):
        internimage.Backbone(width=10, rngs=nnx.Rngs(0))

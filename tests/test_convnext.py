"""ConvNeXt equals the authors' network (tests/references/backbones.py wrote the goldens), and its options work."""

import functools
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, multiply_adds, seeded

from mediax.backbones import convnext
from mediax.errors import InputError
from mediax.heads.pooled import Head

ODD = {"depths": (1, 2, 3, 1), "widths": (8, 16, 24, 40)}
MILLIONS = {"tiny": 28.6, "small": 50.2, "base": 88.6, "large": 197.8, "xlarge": 350.2}  # the authors' table ...
GIGA_MULTIPLY_ADDS = {"tiny": 4.5, "small": 8.7, "base": 15.4, "large": 34.4, "xlarge": 60.9}  # ... and at 224 x 224
FIRST_STAGE = r"(downsample_layers|stages)\.0\."
PUBLISHED = compare.published("convnext/")


def random_image(*shape):
    return seeded.normal("image", shape)


@pytest.mark.parametrize("key", PUBLISHED)
def test_every_published_tensor_has_its_place(key):
    _, variant, _ = key.split("/")
    count = compare.assert_checkpoint_fits(convnext, variant, PUBLISHED[key], normalize=True)
    assert count == sum(np.prod(shape, dtype=int) for shape in PUBLISHED[key].values())
    if variant in MILLIONS:
        assert round(count / 1e6, 1) == MILLIONS[variant]


def test_mmsegmentation_writes_the_layers_names_out():
    weights = seeded.tensors(json.loads(str(compare.load("convnext_odd")["shapes"])))
    weights |= {"norm3.weight": np.ones(40), "norm3.bias": np.zeros(40)}
    spelled = {n.replace("dw", "depthwise_").replace("pw", "pointwise_"): array for n, array in weights.items()}
    expected, actual = convnext.translate(weights)["backbone"], convnext.translate(spelled)["backbone"]
    assert spelled.keys() != weights.keys() and ("level_norms", 3, "scale") in actual
    assert all((actual.pop(path) == array).all() for path, array in expected.items()) and not actual


def test_a_classifier_of_transformers_names_the_backbone_first():
    weights = seeded.tensors(json.loads(str(compare.load("pyramid_convnext")["shapes"])))
    weights = {name: array for name, array in weights.items() if not name.startswith("hidden_states_norms")}
    last = {"convnext.layernorm.weight": np.ones(40), "classifier.weight": np.ones((10, 40))}
    parts = convnext.translate({f"convnext.{name}": array for name, array in weights.items()} | last)
    assert set(parts["backbone"]) == set(convnext.translate(weights)["backbone"])
    assert set(parts["head"]) == {("norm", "scale"), ("linear", "kernel")}


def test_published_names_cover_the_variants():
    spellings = {tuple(key.split("/")[1:]) for key in PUBLISHED}
    assert {variant for variant, spelling in spellings if spelling == "timm"} == set(convnext.VARIANTS)
    assert {variant for variant, spelling in spellings if spelling == "authors"} == set(MILLIONS)


@pytest.mark.parametrize("variant", MILLIONS)
def test_costs_what_the_authors_say(variant):
    backbone = nnx.eval_shape(lambda: convnext.Backbone(variant=variant, rngs=nnx.Rngs(0)))
    count = multiply_adds.of_backbone(backbone, (224, 224))
    assert round(count / 1e9, 1) == GIGA_MULTIPLY_ADDS[variant]


def test_equals_the_authors_network_at_a_size_its_strides_do_not_divide():
    compare.assert_equals_reference(convnext, "convnext_odd", normalize=True, mode="training", **ODD)


def test_levels_have_the_norms_of_a_segmenter_s_backbone():
    compare.assert_pyramid_equals_reference(convnext, "pyramid_convnext", level_norms=True, **ODD)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_tiny_equals_the_authors_network(mode):
    compare.assert_equals_reference(convnext, "convnext_tiny", normalize=True, mode=mode, variant="tiny")


def test_remat_changes_neither_outputs_nor_gradients():
    settings = {"depths": (2,), "widths": (4,), "drop_path": 0.5, "layer_scale": 1.0, "in_channels": 1}
    build = functools.partial(convnext.Backbone, **settings)
    compare.assert_remat_changes_nothing(build, random_image(2, 16, 16, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_pyramid_follows_the_stem_stride(stride):
    backbone = nnx.eval_shape(lambda: convnext.Backbone(variant="atto", stem_stride=stride, rngs=nnx.Rngs(0)))
    pyramid = nnx.eval_shape(lambda b, x: b(x, train=False, rngs=None), backbone, jnp.zeros((2, 32, 64, 3)))
    assert {level: x.shape for level, x in pyramid.items()} == {
        s: (2, 32 // s, 64 // s, c) for s, c in backbone.channels.items()
    }
    assert list(pyramid) == [stride, 2 * stride, 4 * stride, 8 * stride]


def test_computes_in_bfloat16_with_f32_parameters():
    build = functools.partial(convnext.Backbone, depths=(1,), widths=(8,), layer_scale=1.0)
    compare.assert_bfloat16_is_near(build, random_image(1, 16, 16, 3), level=4, tolerance=0.03)


def test_stochastic_depth_drops_whole_images_and_rises_linearly():
    settings = {"depths": (2, 3), "widths": (4, 8), "drop_path": 0.8}
    backbone = nnx.eval_shape(lambda: convnext.Backbone(**settings, rngs=nnx.Rngs(0)))
    rates = [block.drop_path for stage in backbone.stages for block in stage.blocks]
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, 0.6, 0.8])

    block = convnext.Block(4, layer_scale=1.0, drop_path=0.2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jnp.asarray(random_image(400, 2, 2, 4))
    residual = block(x, False, None) - x
    dropped = block(x, True, nnx.Rngs(1)) - x
    kept = jnp.abs(dropped).max((1, 2, 3)) > 0
    assert 0.72 < kept.mean() < 0.88
    np.testing.assert_allclose(dropped[kept], residual[kept] / 0.8, rtol=1e-4, atol=1e-5)


def test_initial_weights_follow_the_authors():
    backbone = convnext.Backbone(depths=(1,), widths=(64,), rngs=nnx.Rngs(0))
    block = backbone.stages[0].blocks[0]
    for kernel in (block.expand.kernel, block.project.kernel, block.depthwise.kernel, backbone.stem.conv.kernel):
        assert abs(float(kernel[...].std()) / 0.02 - 1) < 0.05
    np.testing.assert_array_equal(block.layer_scale[...], np.full(64, 1e-6, np.float32))


def test_layers_of_small_to_xlarge_are_the_authors():
    backbone = nnx.eval_shape(lambda: convnext.Backbone(variant="small", rngs=nnx.Rngs(0)))
    assert backbone.num_layers == 13
    assert backbone.layer_of(("stem", "norm", "scale")) == 0
    assert backbone.layer_of(("stages", 0, "blocks", 2, "norm", "scale")) == 1
    assert backbone.layer_of(("stages", 1, "downsample", "conv", "kernel")) == 2
    assert [backbone.layer_of(("stages", 2, "blocks", b, "layer_scale")) for b in (0, 2, 3, 26)] == [3, 3, 4, 11]
    assert backbone.layer_of(("stages", 3, "downsample", "norm", "bias")) == 12
    assert backbone.layer_of(("level_norms", 0, "scale")) == 13
    layers = {backbone.layer_of(path) for path in compare.flat(compare.variables_of(backbone)["params"])}
    assert layers == set(range(13))


def test_one_grey_channel_equals_grey_in_rgb():
    shapes = json.loads(str(compare.load("convnext_odd")["shapes"]))
    weights = convnext.translate(seeded.tensors({n: s for n, s in shapes.items() if re.match(FIRST_STAGE, n)}))[
        "backbone"
    ]
    first_stage = {"depths": ODD["depths"][:1], "widths": ODD["widths"][:1]}
    rgb, grey = (convnext.Backbone(**first_stage, in_channels=channels, rngs=nnx.Rngs(0)) for channels in (3, 1))
    compare.set_weights(rgb, weights, "backbone")
    compare.set_weights(grey, convnext.adapt_input(weights, mean=(0.53,), std=(0.21,)), "backbone")

    image = np.random.default_rng(0).random((2, 37, 45, 1), np.float32)
    expected = compare.forward(rgb, (image - np.array(convnext.MEAN)) / np.array(convnext.STD))
    actual = compare.forward(grey, (image - 0.53) / 0.21)
    compare.assert_close(actual[4], expected[4], 1e-5, "level 4")


def test_head_pools_normalises_and_drops():
    head = Head({4: 8, 8: 16}, 3, normalize=True, dropout=0.5, rngs=nnx.Rngs(0))
    pyramid = {4: jnp.zeros((2, 8, 8, 8)), 8: jnp.asarray(random_image(2, 4, 4, 16))}
    pooled = np.asarray(pyramid[8]).mean((1, 2))
    normal = (pooled - pooled.mean(1, keepdims=True)) / np.sqrt(pooled.var(1, keepdims=True) + 1e-6)
    expected = normal @ np.asarray(head.linear.kernel[...])
    np.testing.assert_allclose(head(pyramid, train=False, rngs=None), expected, rtol=1e-4, atol=1e-5)
    first, second = (head(pyramid, train=True, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    assert not np.allclose(first, second)


def test_messages_name_the_choices():
    with pytest.raises(InputError, match=r"no variant 'huge'; choose one of atto, .*xlarge"):
        convnext.Backbone(variant="huge", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="stem_stride is 3"):
        convnext.Backbone(stem_stride=3, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="same length"):
        convnext.Backbone(depths=(1, 2), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="built for 3 input channels"):
        convnext.Backbone(depths=(1,), widths=(4,), rngs=nnx.Rngs(0))(jnp.zeros((1, 8, 8, 1)), train=False, rngs=None)

"""ResNet equals torchvision's (tests/references/backbones.py wrote the goldens), and its options work.

Gradients are compared in float64: see `run` in tests/references/backbones.py for why float32 cannot.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, multiply_adds, seeded

from mediax.backbones import resnet
from mediax.errors import InputError

MILLIONS = {"18": 11.69, "34": 21.80, "50": 25.56, "101": 44.55}  # torchvision's tables of parameters ...
GIGA_MULTIPLY_ADDS = {"18": 1.81, "34": 3.66, "50": 4.09, "101": 7.80}  # ... and of the cost at 224 x 224
PUBLISHED = compare.published("resnet/")
TINY = {"variant": "18", "depths": (1,), "width": 0.125}


@pytest.mark.parametrize("key", PUBLISHED)
def test_every_published_tensor_has_its_place(key):
    _, variant, _ = key.split("/")
    count = compare.assert_checkpoint_fits(resnet, variant, PUBLISHED[key], normalize=False)
    assert round(count / 1e6, 2) == MILLIONS[variant]


def test_published_names_cover_the_variants():
    assert {tuple(key.split("/")[1:]) for key in PUBLISHED} == {
        (variant, spelling) for variant in resnet.VARIANTS for spelling in ("torchvision", "timm")
    }


@pytest.mark.parametrize("variant", resnet.VARIANTS)
def test_costs_what_torchvision_says(variant):
    backbone = nnx.eval_shape(lambda: resnet.Backbone(variant=variant, rngs=nnx.Rngs(0)))
    count = multiply_adds.of_backbone(backbone, (224, 224))
    assert abs(count / 1e9 - GIGA_MULTIPLY_ADDS[variant]) < 0.01


def test_18_trains_as_torchvision():
    compare.assert_equals_reference(
        resnet,
        "resnet_18",
        normalize=False,
        mode="training",
        dtype=jnp.float64,
        tolerance=1e-6,
        variant="18",
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize(
    ("golden", "settings"),
    [
        ("resnet_18", {"variant": "18"}),
        ("resnet_18_odd", {"variant": "18"}),  # a size that the strides do not divide
        ("resnet_18_small", {"variant": "18", "stem_stride": 1}),
        ("resnet_50", {"variant": "50"}),
    ],
)
def test_equals_torchvision(golden, settings, mode):
    check = {"normalize": False, "mode": mode, **settings}
    compare.assert_equals_reference(resnet, golden, dtype=jnp.float64, tolerance=1e-6, **check)
    compare.assert_equals_reference(resnet, golden, gradients=False, **check)


def test_remat_changes_neither_outputs_gradients_nor_statistics():
    build = functools.partial(resnet.Backbone, **TINY, drop_path=0.5)
    compare.assert_remat_changes_nothing(build, seeded.normal("image", (4, 16, 16, 3)))


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_pyramid_follows_the_stem_stride(stride):
    backbone = nnx.eval_shape(lambda: resnet.Backbone(variant="50", width=0.5, stem_stride=stride, rngs=nnx.Rngs(0)))
    pyramid = nnx.eval_shape(lambda b, x: b(x, train=False, rngs=None), backbone, jnp.zeros((2, 33, 64, 3)))
    assert backbone.channels == {stride: 128, 2 * stride: 256, 4 * stride: 512, 8 * stride: 1024}
    assert {level: x.shape for level, x in pyramid.items()} == {
        s: (2, -(-33 // s), 64 // s, c) for s, c in backbone.channels.items()
    }


def test_the_stem_can_be_a_level():
    backbone = resnet.Backbone(**TINY, stem_level=True, rngs=nnx.Rngs(0))
    pyramid = compare.forward(backbone, seeded.normal("image", (2, 33, 64, 3)))
    assert backbone.channels == {2: 8, 4: 8}
    assert {level: x.shape for level, x in pyramid.items()} == {2: (2, 17, 32, 8), 4: (2, 9, 16, 8)}
    pooled = nnx.max_pool(pyramid[2], (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    np.testing.assert_allclose(backbone.stages[0][0](pooled, False, None), pyramid[4], atol=1e-5)


def test_statistics_stay_f32_in_bfloat16():
    backbone = resnet.Backbone(**TINY, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    pyramid = compare.forward(backbone, seeded.normal("image", (4, 16, 16, 3)), train=True)
    assert {level.dtype for level in pyramid.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(backbone))} == {jnp.dtype(jnp.float32)}


def test_inference_leaves_the_statistics_alone():
    backbone = resnet.Backbone(**TINY, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, compare.variables_of(backbone)["batch_stats"])
    compare.forward(backbone, seeded.normal("image", (4, 16, 16, 3)))
    jax.tree.map(np.testing.assert_array_equal, before, compare.variables_of(backbone)["batch_stats"])


def test_zero_init_residual_starts_each_block_as_its_shortcut():
    settings = {"bottleneck": True, "stride": 1, "drop_path": 0.0, "dtype": jnp.float32}
    block = resnet.Block(32, 8, zero_init_residual=True, **settings, rngs=nnx.Rngs(0))
    x = np.abs(seeded.normal("x", (2, 4, 4, 32)))
    np.testing.assert_array_equal(nnx.jit(lambda block, x: block(x, True, None))(block, x), x)


def test_initial_kernels_are_he_normal_by_fan_out():
    backbone = resnet.Backbone(variant="18", depths=(1,), rngs=nnx.Rngs(0))
    for conv, fan_out in ((backbone.stem.conv, 49 * 64), (backbone.stages[0][0].convs[1], 9 * 64)):
        assert abs(float(conv.kernel[...].std()) / np.sqrt(2 / fan_out) - 1) < 0.03


def test_each_block_is_a_layer():
    backbone = nnx.eval_shape(lambda: resnet.Backbone(variant="34", rngs=nnx.Rngs(0)))
    assert backbone.num_layers == 17
    assert backbone.layer_of(("stem", "conv", "kernel")) == 0
    assert backbone.layer_of(("stages", 1, 0, "shortcut", "kernel")) == 4
    layers = {backbone.layer_of(path) for path in compare.flat(compare.variables_of(backbone)["params"])}
    assert layers == set(range(17))


def test_one_grey_channel_equals_grey_in_rgb_inside_the_border():
    shapes = json.loads(str(compare.load("resnet_18")["shapes"]))
    weights = resnet.translate(seeded.tensors({n: s for n, s in shapes.items() if n.startswith(("conv1", "bn1"))}))
    rgb, grey = (resnet.Backbone(variant="18", in_channels=c, depths=(1,), rngs=nnx.Rngs(0)) for c in (3, 1))
    compare.set_weights(rgb.stem, _below("stem", weights["backbone"]), "stem")
    adapted = resnet.adapt_input(weights["backbone"], mean=(0.53,), std=(0.21,))
    compare.set_weights(grey.stem, _below("stem", adapted), "stem")

    image = np.random.default_rng(0).random((2, 40, 44, 1), np.float32)
    in_rgb, in_grey = (
        (image - np.array(resnet.MEAN, np.float32)) / np.array(resnet.STD, np.float32),
        (image - 0.53) / 0.21,
    )
    inside = np.s_[:, 2:-2, 2:-2]
    expected, actual = (
        stem.norm(stem.conv(x), False)[inside] for stem, x in ((rgb.stem, in_rgb), (grey.stem, in_grey))
    )
    compare.assert_close(actual, expected, 1e-5, "stem")


def _below(key, weights):
    return {path[1:]: array for path, array in weights.items() if path[0] == key}


def test_messages_name_the_choices():
    with pytest.raises(InputError, match="no variant '20'; choose one of 18, 34, 50, 101"):
        resnet.Backbone(variant="20", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="stem_stride is 3"):
        resnet.Backbone(stem_stride=3, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="stem_level needs stem_stride 4, found 2"):
        resnet.Backbone(stem_stride=2, stem_level=True, rngs=nnx.Rngs(0))

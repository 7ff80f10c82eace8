"""The vision transformer equals the published networks (tests/references/vit.py wrote the goldens)."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, multiply_adds, seeded

from mediax import pretrained
from mediax.backbones import vit
from mediax.errors import InputError

SMALL = {"width": 24, "depth": 2, "heads": 3, "grid": 5, "layer_scale": 1.0}
GREY = {**SMALL, "in_channels": 1}
PUBLISHED = json.loads(str(compare.load("vit_names")["names"]))
# Millions of parameters and billions of multiply-adds at 518 pixels, as timm lists them.
COST = {"small": (22.1, 46.8), "base": (86.6, 151.7), "large": (304.4, 507.1), "giant": (1136.5, 1784.2)}


@functools.cache
def abstract(**settings):
    return nnx.eval_shape(lambda: vit.Backbone(**settings, rngs=nnx.Rngs(0)))


def slow_if_giant(keys):
    # The giants take seconds to build, and one of them shows SwiGLU's names.
    fast = [key for key in keys if "giant" not in key or key in ("giant_registers", "vit/giant_registers/authors")]
    return [pytest.param(key, marks=[] if key in fast else [pytest.mark.slow]) for key in keys]


@pytest.mark.parametrize("key", slow_if_giant(PUBLISHED))
def test_every_published_tensor_has_its_place(key):
    _, variant, _ = key.split("/")
    shapes = PUBLISHED[key]
    parts = vit.translate({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
    places = compare.flat(compare.variables_of(abstract(variant=variant))["params"])
    assert {path: leaf.shape for path, leaf in places.items()} == {p: a.shape for p, a in parts["backbone"].items()}
    assert set(parts["head"]) <= {("linear", "kernel"), ("linear", "bias")}
    if key.endswith("authors"):
        published = sum(np.prod(shape, dtype=int) for name, shape in shapes.items() if name != "mask_token")
        assert published == sum(leaf.size for leaf in places.values())


def test_names_of_transformers_before_version_5():
    older = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.down_proj": "mlp.weights_out",
    }
    weights = seeded.tensors(json.loads(str(compare.load("vit_transformers")["shapes"])))
    expected = vit.translate(weights)
    gates = [name for name in weights if "gate_proj" in name]
    for name in gates:
        joined = [weights.pop(name), weights.pop(name.replace("gate", "up"))]
        weights[name.replace("gate_proj", "weights_in")] = np.concatenate(joined)
    for new, old in older.items():
        weights = {name.replace(new, old): array for name, array in weights.items()}
    actual = vit.translate(weights)
    assert gates and set(actual["backbone"]) == set(expected["backbone"])
    for path, array in expected["backbone"].items():
        np.testing.assert_array_equal(actual["backbone"][path], array)


@pytest.mark.parametrize(
    ("golden", "settings"),
    [
        ("vit_plain", {"variant": "small", "output": "both", **SMALL}),
        ("vit_registers_swiglu", {"variant": "giant_registers", "output": "class", **SMALL}),
        ("vit_patch16", {"patch": 16, **SMALL, "grid": 4, "layer_scale": 0.0}),
    ],
)
def test_equals_the_published_network(golden, settings):
    compare.assert_equals_reference(vit, golden, normalize=False, mode="training", **settings)


def test_equals_the_classifier_of_transformers():
    settings = {"variant": "giant_registers", "output": "both", **SMALL}
    compare.assert_equals_reference(
        vit, "vit_transformers", normalize=False, mode="inference", gradients=False, **settings
    )


def test_interpolation_equals_torch():
    for key, expected in compare.load("vit_interpolations").items():
        rule, size = key.split("/")
        antialias = rule == "antialias"
        actual = vit._resize(16, int(size), antialias=antialias, offset=0.0 if antialias else 0.1)
        np.testing.assert_allclose(actual, expected, atol=1e-6, err_msg=key)


def test_timm_weights_with_registers_have_the_class_position_in_the_token():
    positions = np.ones((1, 25, 24), np.float32)
    [(path, array)] = vit.translate({"pos_embed": positions})["backbone"].items()
    assert path == ("positions",) and array.shape == (26, 24)
    np.testing.assert_array_equal(array[0], 0)
    np.testing.assert_array_equal(array[1:], positions[0])


def test_published_weights_start_a_pyramid():
    backbone = nnx.eval_shape(lambda: vit.Backbone(variant="small", output="pyramid", **SMALL, rngs=nnx.Rngs(0)))
    weights = vit.translate(seeded.tensors(json.loads(str(compare.load("vit_plain")["shapes"]))))["backbone"]
    variables = compare.variables_of(backbone)
    _, report = pretrained.warm_start(variables, weights, part="backbone", optional=vit.OPTIONAL)
    assert report.missing and all(path.startswith("levels/") for path in report.missing) and not report.left_over


@pytest.mark.parametrize("variant", slow_if_giant(vit.VARIANTS))
def test_parameters_and_multiply_adds_are_the_published(variant):
    backbone = abstract(variant=variant)
    millions, billions = COST[variant.removesuffix("_registers")]
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(backbone)))
    assert abs(size / 1e6 - millions) < 0.06
    definition, state = nnx.split(backbone)
    image = jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.float32)
    cost = multiply_adds.count(lambda s, x: nnx.merge(definition, s)(x, train=False, rngs=None), state, image)
    registers = 1.005 if variant.endswith("registers") else 1.0
    assert abs(cost / 1e9 / registers / billions - 1) < 0.005


def test_the_simple_feature_pyramid_equals_vitdet():
    golden = compare.load("vit_pyramid")
    shapes = json.loads(str(golden["shapes"]))
    weights = seeded.tensors(shapes)

    def build():
        rngs = nnx.Rngs(0)
        return nnx.List(vit.Level(16, 16, times, dtype=jnp.float32, rngs=rngs) for times in (2, 1, 0, -1))

    levels = nnx.eval_shape(build)
    paths = {name: detectron2_path(name) for name in shapes}
    params = {paths[name]: to_level(name, array) for name, array in weights.items()}
    compare.set_weights(levels, params, "levels")
    tokens = seeded.normal("tokens", (2, 4, 6, 16))
    definition, state = nnx.split(levels)

    def loss(state, tokens):
        outputs = [level(tokens, (64, 96)) for level in nnx.merge(definition, state)]
        probes = [seeded.normal(f"probe {index}", output.shape) for index, output in enumerate(outputs)]
        return sum(jnp.sum(output * probe) for output, probe in zip(outputs, probes)), outputs

    (slopes, token_slope), outputs = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(state, tokens)
    for index, (level, output) in enumerate(zip(levels, outputs)):
        assert output.shape == (2, 64 // level.stride, 96 // level.stride, 256)
        sample = np.asarray(output).reshape(-1)[::97]
        compare.assert_close(sample, golden[f"level/{index}/every_97th"], 1e-4, f"level {index}")
    compare.assert_close(token_slope, golden["token_gradient"], 1e-3, "gradient of the tokens")
    slopes = compare.flat(nnx.to_pure_dict(slopes))
    assert set(slopes) == set(paths.values())
    directions = seeded.directions(shapes)
    for name, norm, projection in zip(
        golden["gradient/names"].tolist(), golden["gradient/norms"], golden["gradient/projections"], strict=True
    ):
        slope, direction = np.asarray(slopes[paths[name]], np.float64), to_level(name, directions[name])
        compare.assert_projected(slope, direction, norm, projection, 1e-3, f"gradient {name}")


def detectron2_path(name):
    """simfp_2.0.weight and the like -> the path in the list of levels."""
    stride, number, *norm, word = re.fullmatch(r"simfp_(\d)\.(\d)(\.norm)?\.(\w+)", name).groups()
    level, number = int(stride) - 2, int(number)
    convolutions = {0: 4, 1: 1, 2: 0, 3: 1}[level]  # where the 1x1 convolution comes in the sequence
    if number >= convolutions:
        layer = ("narrow", "smooth")[number - convolutions] + ("_norm" if norm[0] else "")
        return (level, layer, {"bias": "bias", "weight": "scale" if norm[0] else "kernel"}[word])
    if number == 1:
        return (level, "norms", 0, {"bias": "bias", "weight": "scale"}[word])
    return (level, "doubles", number // 2, {"bias": "bias", "weight": "kernel"}[word])


def to_level(name, array):
    if array.ndim != 4:
        return array
    # A transposed convolution keeps its kernel as [in,out,2,2], a convolution as [out,in,h,w].
    return array.transpose((0, 2, 3, 1) if array.shape[2] == 2 else (2, 3, 1, 0))


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (5, 7)])
def test_an_odd_side_is_halved_upwards(size):
    x = jnp.asarray(seeded.normal("tokens", (2, *size, 3)))
    expected, back = jax.vjp(lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2), padding="SAME"), x)
    actual, own_back = jax.vjp(vit._halved, x)
    np.testing.assert_array_equal(actual, expected)
    slope = jnp.asarray(seeded.normal("slope", expected.shape))
    np.testing.assert_array_equal(own_back(slope)[0], back(slope)[0])


@pytest.mark.parametrize("size", [(518, 518), (224, 224), (64, 96), (75, 40)])
@pytest.mark.parametrize(("patch", "strides"), [(14, (4, 8, 16, 32)), (16, (4, 8, 16, 32)), (8, (2, 4, 8, 16))])
def test_the_pyramid_has_its_strides_at_any_size(size, patch, strides):
    backbone = abstract(**SMALL, output="pyramid", patch=patch)
    pyramid = nnx.eval_shape(lambda b, x: b(x, train=False, rngs=None), backbone, jnp.zeros((1, *size, 3)))
    assert tuple(backbone.channels) == strides
    assert {s: x.shape for s, x in pyramid.items()} == {s: (1, size[0] // s, size[1] // s, 256) for s in strides}


@pytest.mark.parametrize("step", [3.5, 7, 14, 28])
def test_levels_keep_the_places_of_patches(step):
    stride = round(step * 8 / 7)
    length = 518
    count = int(-(-length // step)) if step == 28 else int(length // step)
    places = (np.arange(count) + 0.5) * step  # the centre of each pixel, in pixels of the image
    x = jnp.broadcast_to(jnp.asarray(places, jnp.float32)[None, :, None, None], (1, count, count, 1))
    aligned = vit._align(x, step, stride, (length, length))[0, :, 0, 0]
    expected = (np.arange(length // stride) + 0.5) * stride
    # The last places lie between the last centre and the border, where the last features are repeated.
    inside = expected < places[-1] - step
    np.testing.assert_allclose(aligned[inside][2:], expected[inside][2:], rtol=1e-4)
    assert inside.sum() > 0.85 * len(expected) and np.isfinite(aligned).all() and (aligned > 0).all()


def test_features_are_repeated_where_no_patch_lies():
    tokens = jnp.ones((1, 8, 20, 1))  # two and five patches of 14 pixels at a quarter of the step
    aligned = vit._align(tokens, 3.5, 4, (40, 75))
    np.testing.assert_allclose(aligned, np.ones((1, 10, 18, 1)), rtol=1e-6)


def test_class_token_reaches_a_pooled_head():
    outputs = {}
    image = seeded.normal("image", (2, 28, 42, 3))
    backbone = vit.Backbone(**SMALL, rngs=nnx.Rngs(0))
    for output in ("patches", "class", "both"):
        backbone.output = output
        outputs[output] = np.asarray(compare.forward(backbone, image)[14])
        assert outputs[output].shape == (2, 2, 3, backbone.channels[14])
    np.testing.assert_array_equal(outputs["class"], np.broadcast_to(outputs["class"][:, :1, :1], (2, 2, 3, 24)))
    both = np.concatenate([outputs["class"], outputs["patches"]], -1)
    np.testing.assert_allclose(outputs["both"], both, atol=1e-6)
    assert outputs["patches"].std((1, 2)).min() > 0


@pytest.mark.slow
def test_remat_changes_neither_outputs_nor_gradients():
    build = functools.partial(vit.Backbone, **GREY, drop_path=0.5)
    compare.assert_remat_changes_nothing(build, seeded.normal("image", (2, 28, 28, 1)), level=14, power=3)


def test_computes_in_bfloat16_with_f32_parameters():
    build = functools.partial(vit.Backbone, **GREY)
    compare.assert_bfloat16_is_near(build, seeded.normal("image", (2, 28, 28, 1)), level=14, tolerance=0.05)


def test_one_grey_channel_equals_grey_in_rgb():
    settings = {**SMALL, "depth": 1}
    rgb, grey = (vit.Backbone(**settings, in_channels=channels, rngs=nnx.Rngs(0)) for channels in (3, 1))
    weights = compare.flat(compare.variables_of(rgb)["params"])
    weights = {path: np.asarray(array) for path, array in weights.items()}
    compare.set_weights(grey, vit.adapt_input(weights, mean=(0.53,), std=(0.21,)), "backbone")
    image = np.random.default_rng(0).random((2, 28, 42, 1), np.float32)
    expected = compare.forward(rgb, (image - np.array(vit.MEAN)) / np.array(vit.STD))
    actual = compare.forward(grey, (image - 0.53) / 0.21)
    compare.assert_close(actual[14], expected[14], 1e-4, "level 14")


def test_layers_and_stochastic_depth_rise_with_the_blocks():
    backbone = abstract(**{**SMALL, "depth": 5}, drop_path=0.8, output="pyramid", registers=2)
    np.testing.assert_allclose([block.attention.drop_path for block in backbone.blocks], [0, 0.2, 0.4, 0.6, 0.8])
    assert backbone.num_layers == 6
    for path, layer in (
        (("registers",), 0),
        (("blocks", 0, "attention"), 1),
        (("norm", "bias"), 5),
        (("levels", 0), 5),
    ):
        assert backbone.layer_of(path) == layer


def test_messages_name_the_choices():
    for settings, message in (
        ({"variant": "huge"}, r"no variant 'huge'; choose one of small, .*giant_registers"),
        ({"output": "tokens"}, "no output 'tokens'; choose one of patches, class, both, pyramid"),
        ({"width": 25, "heads": 3}, "25 is not a multiple of its 3 heads"),
    ):
        with pytest.raises(InputError, match=message):
            vit.Backbone(**settings, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="patches of 14 pixels"):
        nnx.eval_shape(lambda b: b(jnp.zeros((1, 13, 28, 3)), train=False, rngs=None), abstract(**SMALL))

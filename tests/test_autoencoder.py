"""The autoencoder equals Keras' (tests/references/autoencoder.py wrote the goldens) and reads its file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, seeded

from mediax import pretrained
from mediax.backbones import autoencoder
from mediax.errors import InputError
from mediax.heads.autoencoder import Head
from mediax.layers import CPU_REMAT_OPTIONS

SIZE, WIDTHS, CODE = (16, 24), (4, 6), 5


def build(variant, dtype=jnp.float32, remat=False):
    options = {"dtype": dtype, "remat": remat}
    backbone = autoencoder.Backbone(variant=variant, in_channels=1, widths=WIDTHS, **options, rngs=nnx.Rngs(0))
    upsample = variant == "pooled"
    return backbone, Head(backbone.channels, size=SIZE, code=CODE, upsample=upsample, **options, rngs=nnx.Rngs(1))


@pytest.mark.parametrize("variant", autoencoder.VARIANTS)
def test_equals_keras_with_the_weights_of_its_file(variant):
    expected = compare.load(f"autoencoder_{variant}")
    tensors = pretrained.read(compare.GOLDENS / f"autoencoder_{variant}.h5")
    weights = autoencoder.translate(tensors)
    with jax.enable_x64(True):
        parts = build(variant, jnp.float64)
        for module, part in zip(parts, ("backbone", "head")):
            compare.set_weights(module, weights[part], part)
        definition, params = nnx.split(parts)
        image = jnp.asarray(seeded.normal("image", (2, *SIZE, 1)), jnp.float64)

        def loss(params):
            backbone, head = nnx.merge(definition, params)
            pyramid = backbone(image, train=True, rngs=None)
            outputs = head(pyramid, train=True, rngs=None)
            return jnp.sum(outputs["image"] * seeded.normal("probe", outputs["image"].shape)), (pyramid, outputs)

        slopes, (pyramid, outputs) = jax.jit(jax.grad(loss, has_aux=True))(params)
    # Keras ran in float32, with which torch can differentiate these convolutions.
    for index, level in enumerate(pyramid.values()):
        compare.assert_close(level, expected[f"pyramid/{index}"], 1e-4, f"level {index}")
    for name in ("code", "image"):
        compare.assert_close(outputs[name], expected[name], 1e-4, name)
    # The gradient in Keras' order of tensors, brought to our places by the map of the weights itself.
    reference = {name: expected[f"gradient/{index}"] for index, name in enumerate(tensors)}
    places = autoencoder.translate(reference)
    backbone_slopes, head_slopes = map(compare.flat, nnx.to_pure_dict(slopes).values())
    for ours, part in ((backbone_slopes, "backbone"), (head_slopes, "head")):
        assert set(ours) == set(places[part])
        for path, array in places[part].items():
            compare.assert_close(ours[path], array, 1e-3, f"gradient {path}")


@pytest.mark.parametrize("variant", autoencoder.VARIANTS)
def test_remat_changes_neither_the_image_nor_gradients(variant):
    def train_once(remat):
        definition, params = nnx.split(build(variant, remat=remat))

        def loss(params):
            backbone, head = nnx.merge(definition, params)
            pyramid = backbone(jnp.asarray(seeded.normal("image", (2, *SIZE, 1))), train=True, rngs=None)
            image = head(pyramid, train=True, rngs=None)["image"]
            return jnp.square(image).sum(), image

        options = CPU_REMAT_OPTIONS if remat else {}
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=options)(params))

    for plain, again in zip(train_once(False), train_once(True), strict=True):
        np.testing.assert_allclose(plain, again, rtol=1e-4, atol=1e-5)


def test_default_code_has_128_numbers():
    def run(image):
        backbone = autoencoder.Backbone(in_channels=1, rngs=nnx.Rngs(0))
        head = Head(backbone.channels, size=(64, 96), rngs=nnx.Rngs(1))
        return head(backbone(image, train=False, rngs=None), train=False, rngs=None)

    outputs = jax.eval_shape(run, jnp.zeros((2, 64, 96, 1)))
    assert {name: array.shape for name, array in outputs.items()} == {"code": (2, 128), "image": (2, 64, 96, 1)}


def test_computes_in_bfloat16_with_f32_parameters():
    def run(image):
        backbone, head = build("strided", jnp.bfloat16)
        pyramid = backbone(image, train=False, rngs=None)
        return pyramid, head(pyramid, train=False, rngs=None), nnx.state((backbone, head))

    pyramid, outputs, state = jax.eval_shape(run, jnp.ones((1, *SIZE, 1)))
    assert {level.dtype for level in pyramid.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {array.dtype for array in outputs.values()} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


def test_another_normalisation_changes_nothing_inside_the_border():
    backbone, _ = build("strided")
    weights = compare.flat(compare.variables_of(backbone)["params"])
    colour = autoencoder.Backbone(in_channels=3, widths=WIDTHS, rngs=nnx.Rngs(0))
    adapted = autoencoder.adapt_input(jax.tree.map(np.asarray, weights), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    compare.set_weights(colour, adapted, "backbone")
    image = np.random.default_rng(0).random((1, *SIZE, 1), np.float32)
    expected = backbone(jnp.asarray(image), train=False, rngs=None)[2]
    normalised = jnp.asarray((image - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.3, 0.4]))
    actual = colour(normalised, train=False, rngs=None)[2]
    compare.assert_close(actual[:, :-1, :-1], expected[:, :-1, :-1], 1e-5, "level 2")


def test_messages_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match="no variant 'deep'; choose one of strided, pooled"):
        autoencoder.Backbone(variant="deep", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"size \(16, 23\) is not a multiple of its stride 4"):
        Head({2: 4, 4: 6}, size=(16, 23), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"built for features of \(4, 6, 6\) and given \(4, 4, 6\)"):
        Head({2: 4, 4: 6}, size=SIZE, rngs=nnx.Rngs(0))({4: jnp.zeros((1, 4, 4, 6))}, train=False, rngs=None)
    with pytest.raises(InputError, match="no such file"):
        pretrained.read(tmp_path / "missing.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        pretrained.read(tmp_path / "text.h5")
    with pytest.raises(InputError, match="no convolutional autoencoder"):
        autoencoder.translate({"conv2d/kernel": np.zeros((3, 3, 1, 4)), "batch_normalization/gamma": np.zeros(4)})

"""U-Net equals its references (tests/references/segmentation.py wrote the goldens), at any size and for any pyramid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, dense, multiply_adds, seeded

from mediax.backbones import resnet, unet_encoder
from mediax.errors import InputError
from mediax.heads import unet

PAPER = {"upsampling": "transposed", "normalize": False, "output_size": 1}


def assert_equals_smp(variant, size, golden=None, **check):
    channels = {2: 64} | {4: 64, 8: 128, 16: 256, 32: 512}
    if variant == "50":
        channels = {2: 64} | {4: 256, 8: 512, 16: 1024, 32: 2048}
    dense.assert_equals(
        golden or f"unet_resnet_{variant}",
        dense.family(unet, resnet),
        lambda dtype: unet.Head(channels, 2, dtype=dtype, rngs=nnx.Rngs(0)),
        backbone=lambda dtype: resnet.Backbone(variant=variant, stem_level=True, dtype=dtype, rngs=nnx.Rngs(0)),
        inputs=seeded.normal("image", (2, *size, 3)),
        size=size,
        **check,
    )


def test_decoder_of_resnet_18_equals_smp():
    assert_equals_smp("18", (64, 96))


def test_decoder_of_an_odd_size_equals_smp():
    assert_equals_smp("18", (71, 101), "unet_resnet_18_odd", gradients=False, dtype=jnp.float32, tolerance=1e-4)


@pytest.mark.slow
def test_training_and_resnet_50_equal_smp():
    assert_equals_smp("18", (64, 96), mode="training")
    assert_equals_smp("18", (71, 101), "unet_resnet_18_odd")
    assert_equals_smp("50", (64, 96))
    assert_equals_smp("50", (64, 96), gradients=False, dtype=jnp.float32, tolerance=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_the_network_of_2015_equals_its_reference(dtype):
    channels = {1: 4, 2: 8, 4: 16, 8: 32, 16: 64}
    options = {"width": 1 / 16, "padding": "valid", "in_channels": 1}
    dense.assert_equals(
        "unet_2015",
        dense.family(unet, unet_encoder),
        lambda dtype: unet.Head(
            channels, 2, widths=(32, 16, 8, 4), padding="valid", **PAPER, dtype=dtype, rngs=nnx.Rngs(0)
        ),
        backbone=lambda dtype: unet_encoder.Backbone(**options, dtype=dtype, rngs=nnx.Rngs(0)),
        inputs=seeded.normal("image", (2, 61, 90, 1)),
        size=(61, 90),
        gradients=dtype == jnp.float64,
        dtype=dtype,
        tolerance=1e-6 if dtype == jnp.float64 else 1e-4,
    )


def shapes(backbone, head, size, channels=1):
    image = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
    return nnx.eval_shape(
        lambda b, h, x: h(b(x, train=False, rngs=None), size, train=False, rngs=None), *(backbone, head, image)
    )


def paper_network(padding="valid"):
    def build():
        backbone = unet_encoder.Backbone(in_channels=1, padding=padding, rngs=nnx.Rngs(0))
        options = PAPER | {"widths": (512, 256, 128, 64), "padding": padding}
        return backbone, unet.Head(backbone.channels, 2, **options, rngs=nnx.Rngs(0))

    return nnx.eval_shape(build)


def test_the_network_of_2015_has_its_sizes():
    backbone, head = paper_network()
    # 23 convolutions of figure 1, each with its bias.
    pairs = [(1, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 1024)]
    pairs += [(1024, 1024), *((2 * c, c) for c in (512, 256, 128, 64)), *((c, c) for c in (512, 256, 128, 64))]
    expected = sum(9 * i * o + o for i, o in pairs) + sum(4 * 2 * c * c + c for c in (512, 256, 128, 64)) + 2 * 65
    assert compare.parameters(backbone, head) == expected == 31_030_658
    # The paper's input of 572 pixels is what this network sees of an image of 388 pixels.
    pyramid = nnx.eval_shape(lambda b, x: b(x, train=False, rngs=None), backbone, jnp.zeros((1, 388, 388, 1)))
    assert [features.shape[1] for features in pyramid.values()] == [568, 280, 136, 64, 28]
    assert shapes(backbone, head, (388, 388)).shape == (2, 388, 388, 2)


@pytest.mark.parametrize(
    ("variant", "total", "cost"), [("18", 14_328_354, 4_140_122_112), ("50", 32_521_250, 8_147_779_584)]
)
def test_parameters_and_multiply_adds_are_those_of_smp(variant, total, cost):
    """Those of smp.Unet with 2 classes, as torch's FlopCounterMode counts them at 224 x 224; the paper has no count."""

    def build():
        backbone = resnet.Backbone(variant=variant, stem_level=True, rngs=nnx.Rngs(0))
        return backbone, unet.Head(backbone.channels, 2, rngs=nnx.Rngs(0))

    backbone, head = nnx.eval_shape(build)
    assert compare.parameters(backbone, head) == total
    size = (224, 224)
    assert multiply_adds.of_backbone(backbone, size) + multiply_adds.of_head(head, backbone.channels, size) == cost


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(64, 96), (75, 93)])
def test_logits_have_the_size_of_the_image(padding, size):
    logits = shapes(*paper_network(padding), size)
    assert logits.shape == (2, *size, 2) and logits.dtype == jnp.float32


@pytest.mark.parametrize("channels", [{4: 8, 8: 16, 16: 32, 32: 64}, {1: 8, 2: 16, 4: 32}, {16: 8}])
def test_levels_that_a_backbone_lacks_are_gone_over(channels):
    head = nnx.eval_shape(lambda: unet.Head(channels, 3, rngs=nnx.Rngs(0)))
    pyramid = {stride: jnp.zeros((2, 70 // stride, 99 // stride, width)) for stride, width in channels.items()}
    assert nnx.eval_shape(lambda h, p: h(p, (70, 99), train=True, rngs=None), head, pyramid).shape == (2, 70, 99, 3)


def test_dropout_acts_in_training_alone():
    backbone = unet_encoder.Backbone(width=1 / 16, in_channels=1, dropout=0.5, rngs=nnx.Rngs(0))
    image = seeded.normal("image", (1, 32, 32, 1))
    still, moved = (backbone(image, train=train, rngs=nnx.Rngs(0))[16] for train in (False, True))
    assert (moved == 0).mean() > (still == 0).mean() + 0.1


def test_messages_name_the_choices():
    for options, words in (
        ({"widths": (8,)}, "expected 5, one for each of the strides"),
        ({"upsampling": "bilinear"}, 'choose "nearest" or "transposed"'),
        ({"padding": "full"}, 'choose "same" or "valid"'),
    ):
        with pytest.raises(InputError, match=words):
            unet.Head({4: 8, 32: 8}, 1, **options, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="expected powers of two"):
        unet.Head({3: 8, 6: 8}, 1, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match='choose "same" or "valid"'):
        unet_encoder.Backbone(padding="full", rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="unknown names"):
        unet.translate({"decoder.blocks.0.attention1.weight": np.zeros(1)})

"""U-Net++ equals its reference (tests/references/segmentation.py wrote the goldens); deep supervision, any size."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, dense, multiply_adds, seeded

from mediax.backbones import resnet
from mediax.errors import InputError
from mediax.heads import unet_plus_plus


def assert_equals_smp(**check):
    channels = {2: 64, 4: 64, 8: 128, 16: 256, 32: 512}
    dense.assert_equals(
        "unet_plus_plus_resnet_18",
        dense.family(unet_plus_plus, resnet),
        lambda dtype: unet_plus_plus.Head(channels, 2, dtype=dtype, rngs=nnx.Rngs(0)),
        backbone=lambda dtype: resnet.Backbone(variant="18", stem_level=True, dtype=dtype, rngs=nnx.Rngs(0)),
        inputs=seeded.normal("image", (2, 64, 96, 3)),
        size=(64, 96),
        **check,
    )


def test_equals_smp():
    assert_equals_smp(gradients=False, dtype=jnp.float32, tolerance=1e-4)


@pytest.mark.parametrize("mode", ["inference", pytest.param("training", marks=pytest.mark.slow)])
def test_gradients_equal_smp(mode):
    assert_equals_smp(mode=mode)


@pytest.mark.parametrize(
    ("variant", "total", "cost"), [("18", 15_970_594, 12_232_507_392), ("50", 48_985_890, 43_985_485_824)]
)
def test_parameters_and_multiply_adds_are_those_of_smp(variant, total, cost):
    """Those of smp.UnetPlusPlus with 2 classes, as torch's FlopCounterMode counts them at 224 x 224."""

    def build():
        backbone = resnet.Backbone(variant=variant, stem_level=True, rngs=nnx.Rngs(0))
        return backbone, unet_plus_plus.Head(backbone.channels, 2, rngs=nnx.Rngs(0))

    backbone, head = nnx.eval_shape(build)
    assert compare.parameters(backbone, head) == total
    size = (224, 224)
    assert multiply_adds.of_backbone(backbone, size) + multiply_adds.of_head(head, backbone.channels, size) == cost


def small(**options):
    channels = {1: 4, 2: 6, 4: 8, 8: 10}
    pyramid = {s: seeded.normal(f"level {s}", (2, 20 // s, 27 // s, width)) for s, width in channels.items()}
    return unet_plus_plus.Head(channels, 2, widths=(10, 8, 4), **options, rngs=nnx.Rngs(0)), pyramid


def test_each_branch_sees_more_of_the_pyramid():
    head, pyramid = small(deep_supervision=True)
    run = nnx.jit(lambda head, pyramid: head(pyramid, (20, 27), train=False, rngs=None))
    logits = run(head, pyramid)
    assert logits.shape == (3, 2, 20, 27, 2) and logits.dtype == jnp.float32
    for index, stride in enumerate((2, 4, 8)):  # branch i is a U-Net of i + 2 levels
        changed = run(head, pyramid | {stride: -pyramid[stride]})
        assert [bool((a != b).any()) for a, b in zip(logits, changed)] == [branch >= index for branch in range(3)]
    plain, _ = small()
    assert len(compare.flat(compare.variables_of(head)["params"])) == 4 + len(
        compare.flat(compare.variables_of(plain)["params"])
    )


def test_branches_above_the_finest_level_are_resized():
    channels = {4: 4, 8: 6, 16: 8}
    head = nnx.eval_shape(
        lambda: unet_plus_plus.Head(channels, 2, widths=(8, 8, 8, 8), deep_supervision=True, rngs=nnx.Rngs(0))
    )
    pyramid = {s: jnp.zeros((1, -(-70 // s), -(-99 // s), width)) for s, width in channels.items()}
    logits = nnx.eval_shape(lambda h, p: h(p, (70, 99), train=True, rngs=None), head, pyramid)
    assert logits.shape == (2, 1, 70, 99, 2)


def test_messages_name_what_fits():
    with pytest.raises(InputError, match="each half the one before"):
        unet_plus_plus.Head({4: 8, 16: 8}, 1, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="expected 4, one for each of the strides"):
        unet_plus_plus.Head({8: 8, 16: 8}, 1, widths=(1, 2), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="unknown names"):
        unet_plus_plus.translate({"decoder.center.0.weight": np.zeros(1)})

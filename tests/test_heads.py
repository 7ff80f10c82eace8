"""What all dense and detection heads share: rematerialisation changes no number, and bfloat16 stays inside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import compare, detectors, seeded
from references.detectors import CHANNELS, CLASSES, SIZE

from mediax import catalog
from mediax.layers import CPU_REMAT_OPTIONS

SET = {"width": 32, "hidden": 24, "heads": 4, "points": 2, "encoder_layers": 1, "decoder_layers": 2, "queries": 12}
DENSE = {
    "unet": {"widths": (8, 6, 4, 4)},
    "unet_plus_plus": {"widths": (8, 6, 4, 4)},
    "upernet": {"width": 8},
}
DETECTION = {
    "deformable_detr": SET,
    "dino": SET | {"denoising": 10},
    "mask_rcnn": {"width": 8, "hidden": 16, "anchor_sizes": (8, 16, 32, 64, 128), "candidates": 40, "proposals": 30},
}
HEADS = DENSE | DETECTION


def slow_but(fast):
    return [pytest.param(name, marks=[] if name in fast else [pytest.mark.slow]) for name in HEADS]


def pyramid_of(name):
    """All levels for a detector; for a dense head as few as show all of its kinds of blocks."""
    return {stride: level for stride, level in detectors.pyramid().items() if name in DETECTION or stride < 32}


def build(name, **options):
    channels = {stride: CHANNELS[stride] for stride in pyramid_of(name)}
    return catalog.load("heads", name).Head(channels, CLASSES, **HEADS[name], **options, rngs=nnx.Rngs(0))


def losses_of(name, head, pyramid):
    """What the head gives in training: its losses, or its logits."""
    rngs = nnx.Rngs(sampling=1, denoising=2, dropout=3)
    if name in DENSE:
        return head(pyramid, SIZE, train=True, rngs=rngs)
    masks = {
        "masks": jnp.asarray((seeded.normal("masks", (2, *SIZE, CLASSES)) > -0.3).astype(np.uint8)),
        "mask_valid": jnp.ones((2, CLASSES), bool),
    }
    return head(pyramid, SIZE, detectors.targets() | masks, train=True, rngs=rngs)["losses"]


def step(name, definition, remat):
    """Parameters, pyramid and running statistics -> the losses, the new statistics, the gradients."""

    def total(params, pyramid, batch_stats):
        head = nnx.merge(definition, params, batch_stats, copy=True)
        losses = losses_of(name, head, pyramid)
        loss = sum(jnp.square(leaf).mean() for leaf in jax.tree.leaves(losses))
        return loss, (losses, compare.variables_of(head)["batch_stats"])

    options = CPU_REMAT_OPTIONS if remat else {}
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True), compiler_options=options)


@functools.cache
def trained(name, dtype, remat):
    """The losses, and losses, running statistics and gradients together, of a training step."""
    definition, params, batch_stats = nnx.split(build(name, dtype=dtype, remat=remat), nnx.Param, nnx.BatchStat)
    pyramid = {stride: jnp.asarray(level, dtype) for stride, level in pyramid_of(name).items()}
    (_, (losses, running)), slopes = step(name, definition, remat)(params, pyramid, batch_stats)
    return losses, (losses, running, slopes)


@pytest.mark.parametrize("name", slow_but(("unet", "upernet")))
def test_remat_changes_neither_losses_gradients_nor_statistics(name):
    plain, again = (jax.tree.leaves(trained(name, jnp.float32, remat)[1]) for remat in (False, True))
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", slow_but(("unet", "upernet")))
def test_losses_of_bfloat16_are_f32_and_finite(name):
    losses, everything = trained(name, jnp.bfloat16, True)
    assert {leaf.dtype for leaf in jax.tree.leaves(losses)} == {jnp.dtype("float32")}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(everything))


def temporary_bytes(name, remat):
    """What a training step takes beside its arguments and results, at 256 x 256 pixels."""
    head = nnx.eval_shape(lambda: build(name, remat=remat))
    definition, params, batch_stats = nnx.split(head, nnx.Param, nnx.BatchStat)
    pyramid = {s: jax.ShapeDtypeStruct((2, 256 // s, 256 // s, CHANNELS[s]), jnp.float32) for s in pyramid_of(name)}
    compiled = step(name, definition, remat).lower(params, pyramid, batch_stats).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("name", "fraction"), [("unet", 0.6), pytest.param("dino", 0.9, marks=pytest.mark.slow)])
def test_remat_needs_less_memory(name, fraction):
    plain, again = (temporary_bytes(name, remat) for remat in (False, True))
    assert again < fraction * plain, (plain, again)

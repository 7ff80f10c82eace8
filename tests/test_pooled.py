"""The pooled head: what it pools, from which level, in which precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mediax.errors import InputError
from mediax.heads.pooled import Head

PYRAMID = {
    2: jnp.zeros((3, 8, 8, 4)),
    4: jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 5)), jnp.bfloat16),
}


@pytest.mark.parametrize("pooling", ["average", "average_max"])
def test_pools_the_coarsest_level(pooling):
    head = Head({2: 4, 4: 5}, 2, pooling=pooling, rngs=nnx.Rngs(0))
    features = np.asarray(PYRAMID[4], np.float32)
    pooled = [features.mean((1, 2))] + ([features.max((1, 2))] if pooling == "average_max" else [])
    expected = np.concatenate(pooled, -1) @ np.asarray(head.linear.kernel[...]) + np.asarray(head.linear.bias[...])
    logits = head(PYRAMID, train=False, rngs=None)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_dropout_acts_in_training_alone():
    head = Head({4: 5}, 2, dropout=0.5, rngs=nnx.Rngs(0))
    still = head(PYRAMID, train=False, rngs=nnx.Rngs(1))
    np.testing.assert_array_equal(still, head(PYRAMID, train=False, rngs=nnx.Rngs(2)))
    assert (head(PYRAMID, train=True, rngs=nnx.Rngs(1)) != still).any()


def test_an_unknown_pooling_is_named():
    with pytest.raises(InputError, match="average_max"):
        Head({4: 5}, 2, pooling="maximum", rngs=nnx.Rngs(0))


def test_the_gradient_of_a_maximum_goes_to_one_pixel():
    features = jnp.zeros((2, 3, 3, 4)).at[0, 1, 2].set(1.0)  # of the second image all pixels are equal
    head = Head({4: 4}, 1, pooling="average_max", rngs=nnx.Rngs(0))
    head.linear.kernel[...] = jnp.concatenate([jnp.zeros((4, 1)), jnp.ones((4, 1))])
    gradient = jax.grad(lambda x: head({4: x}, train=False, rngs=None).sum())(features)
    assert gradient[0, 1, 2].tolist() == [1.0] * 4 and gradient[1, 0, 0].tolist() == [1.0] * 4
    assert gradient.sum() == 8 and (gradient >= 0).all()

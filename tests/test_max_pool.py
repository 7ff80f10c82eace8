"""Max-pooling equals XLA's in value and gradient, ties and borders included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mediax.layers import max_pool


@pytest.mark.parametrize(
    ("shape", "size", "stride", "padding"),
    [((2, 13, 17, 3), 3, 2, 1), ((2, 12, 12, 3), 2, 2, 0), ((1, 9, 8, 2), 3, 1, 1), ((2, 13, 16, 3), 3, 2, 0)],
)
def test_equals_xla_with_ties(shape, size, stride, padding):
    x = jnp.round(2 * jax.random.normal(jax.random.key(0), shape)) / 2  # many equal values
    settings = {"strides": (stride, stride), "padding": ((padding, padding), (padding, padding))}
    expected, back = jax.vjp(lambda x: nnx.max_pool(x, (size, size), **settings), x)
    actual, own_back = jax.vjp(lambda x: max_pool(x, size, stride, padding), x)
    slope = jax.random.normal(jax.random.key(1), expected.shape)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_allclose(own_back(slope)[0], back(slope)[0], atol=1e-6)


def test_the_computation_stays_in_bfloat16():
    x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
    pooled, back = jax.vjp(lambda x: max_pool(x, 3, 2, 1), x)
    assert pooled.dtype == back(pooled)[0].dtype == jnp.bfloat16

"""GELU and the linear layer equal JAX's and flax's in value and gradient, for arrays of any rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import norm

from mediax.layers import Linear, gelu


def test_gelu_equals_its_definition_in_the_tails_too():
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(gelu(jnp.asarray(x)), exact * norm.cdf(exact), atol=1e-6)
    slope = jax.vmap(jax.grad(gelu))(jnp.asarray(x))
    np.testing.assert_allclose(slope, norm.cdf(exact) + exact * norm.pdf(exact), atol=1e-6)
    assert np.isfinite(jax.vmap(jax.grad(gelu))(jnp.asarray([-1e30, -100.0, 0.0, 100.0, 1e30]))).all()


def test_gelu_equals_that_of_jax():
    x, slope = jax.random.normal(jax.random.key(0), (2, 4, 5, 6))
    expected, back = jax.vjp(lambda x: jax.nn.gelu(x, approximate=False), x)
    actual, own_back = jax.vjp(gelu, x)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    np.testing.assert_allclose(own_back(slope)[0], back(slope)[0], atol=1e-6)


def test_gelu_of_bfloat16_is_rounded_once():
    x = jnp.linspace(-4, 4, 257, dtype=jnp.bfloat16)
    y, back = jax.vjp(gelu, x)
    assert y.dtype == back(y)[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (2, 3, 4, 6), (0, 3, 6)])
def test_linear_takes_any_rank(shape):
    own, flax = (layer(6, 5, rngs=nnx.Rngs(0)) for layer in (Linear, nnx.Linear))
    x = jax.random.normal(jax.random.key(1), shape)
    expected, back = jax.vjp(lambda kernel, x: nnx.merge(*_with(flax, kernel))(x), flax.kernel[...], x)
    actual, own_back = jax.vjp(lambda kernel, x: nnx.merge(*_with(own, kernel))(x), own.kernel[...], x)
    assert actual.shape == (*shape[:-1], 5)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    slope = jax.random.normal(jax.random.key(2), expected.shape)
    for mine, theirs in zip(own_back(slope), back(slope)):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def _with(layer, kernel):
    definition, state = nnx.split(layer)
    state["kernel"] = state["kernel"].replace(kernel)
    return definition, state

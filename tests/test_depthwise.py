"""The depthwise convolution equals XLA's grouped convolution, in value and in both gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mediax.operators.depthwise import depthwise_conv


def value_and_gradients(x, kernel, weight, method):
    def loss(x, kernel):
        y = depthwise_conv(x, kernel, method=method)
        return jnp.sum(y.astype(jnp.float32) * weight), y

    (_, y), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, kernel)
    return y, *gradients


def normal(seed, shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape).astype(dtype)


def assert_close(actual, expected, tolerance):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize(
    ("image", "kernel"),
    [
        ((2, 9, 14, 5), (7, 7)),
        ((3, 6, 7, 4), (3, 3)),
        ((2, 2, 3, 4), (7, 7)),
        ((2, 1, 1, 4), (5, 5)),
        ((2, 10, 9, 3), (3, 7)),
        ((4, 28, 21, 28), (7, 7)),  # the last two are large enough to be unrolled
        ((8, 23, 19, 20), (5, 3)),
    ],
)
def test_equals_lax_in_f32(image, kernel):
    x, k, weight = normal(0, image), normal(1, (*kernel, 1, image[-1])), normal(2, image)
    expected = value_and_gradients(x, k, weight, "lax")
    for ours, reference in zip(value_and_gradients(x, k, weight, None), expected, strict=True):
        assert ours.dtype == jnp.float32
        assert_close(ours, reference, 1e-5)


def test_bfloat16_accumulates_in_f32():
    x, k = normal(0, (8, 23, 19, 20), jnp.bfloat16), normal(1, (5, 5, 1, 20), jnp.bfloat16)
    weight = normal(2, x.shape, jnp.bfloat16).astype(jnp.float32)
    exact = value_and_gradients(x.astype(jnp.float32), k.astype(jnp.float32), weight, "lax")
    for ours, reference in zip(value_and_gradients(x, k, weight, "shift"), exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        assert_close(ours, reference, 2**-8)  # one rounding to bfloat16


def test_method_follows_the_platform_it_is_lowered_for():
    x, k = jnp.zeros((1, 8, 8, 2)), jnp.zeros((3, 3, 1, 2))
    gradient = jax.jit(jax.grad(lambda x, k: depthwise_conv(x, k).sum(), argnums=(0, 1)))
    traced = gradient.trace(x, k)
    assert "convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "convolution" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "convolution" in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_works_under_vmap_and_remat():
    x, k = normal(0, (2, 3, 8, 8, 2)), normal(1, (3, 3, 1, 2))
    conv = jax.checkpoint(lambda x: jnp.sum(depthwise_conv(x, k) ** 2))
    ours = jax.vmap(jax.grad(conv))(x)
    reference = jax.vmap(jax.grad(lambda x: jnp.sum(depthwise_conv(x, k, method="lax") ** 2)))(x)
    assert_close(ours, reference, 1e-5)


def test_agrees_with_an_independent_definition():
    x, k = normal(0, (1, 5, 6, 2)), normal(1, (3, 5, 1, 2))
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (2, 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 5), (1, 2))  # [B,H,W,C,kh,kw]
    assert_close(depthwise_conv(x, k), np.einsum("bhwcij,ijc->bhwc", windows, np.asarray(k)[:, :, 0]), 1e-5)


def test_refuses_even_kernels_and_unknown_methods():
    x = jnp.zeros((1, 4, 4, 2))
    with pytest.raises(ValueError, match="odd kernels"):
        depthwise_conv(x, jnp.zeros((4, 3, 1, 2)))
    with pytest.raises(ValueError, match="'fft'"):
        depthwise_conv(x, jnp.zeros((3, 3, 1, 2)), method="fft")

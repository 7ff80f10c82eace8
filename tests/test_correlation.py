"""Correlation: matches of descriptors that are known to match, near and far, and how likely they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mediax.operators import correlation

H, W, D = 8, 12, 24
SHARP = jnp.float32(60.0)


@pytest.fixture(scope="module")
def image():
    descriptors = np.random.default_rng(0).normal(size=(2, H, W, D)).astype(np.float32)
    return descriptors / np.linalg.norm(descriptors, axis=-1, keepdims=True)


def shifted(image, rows, columns):
    """The moving image: what lies at (y, x) in `image` lies at (y - rows, x - columns) in it; noise comes in."""
    noise = np.random.default_rng(1).normal(size=image.shape).astype(np.float32)
    moving = noise / np.linalg.norm(noise, axis=-1, keepdims=True)
    moving[:, : H - rows, : W - columns] = image[:, rows:, columns:]
    return moving


def test_cells_and_samples_are_of_the_same_grid(image):
    cells = correlation.cells(H, W)
    np.testing.assert_allclose(
        np.asarray(cells)[[0, 1, W]], [[0.5 / H, 0.5 / W], [0.5 / H, 1.5 / W], [1.5 / H, 0.5 / W]]
    )
    points = jnp.broadcast_to(cells, (2, H * W, 2))
    np.testing.assert_allclose(correlation.sample(image, points), image.reshape(2, -1, D), atol=1e-5)
    between = correlation.sample(image, points[:, :1] + jnp.array([0.5 / H, 0]))
    np.testing.assert_allclose(between[:, 0], (image[:, 0, 0] + image[:, 1, 0]) / 2, atol=1e-5)


def test_matches_are_found_however_far(image):
    places, confidence = jax.jit(correlation.match_everywhere)(shifted(image, 3, 5), image, SHARP)
    places, confidence = places.reshape(2, H, W, 2), confidence.reshape(2, H, W)
    expected = correlation.cells(H, W).reshape(H, W, 2)[3:, 5:]
    np.testing.assert_allclose(places[:, : H - 3, : W - 5], jnp.stack([expected] * 2), atol=0.02)
    assert confidence[:, : H - 3, : W - 5].min() > 0.5 > np.median(confidence[:, H - 3 :])
    assert (confidence >= 0).all() and (confidence <= 1).all()


def test_matches_nearby_are_offsets_in_cells(image):
    offsets, confidence = jax.jit(correlation.match_nearby, static_argnames="radius")(
        shifted(image, 1, 2), image, jnp.float32(20.0), radius=2
    )
    assert offsets.shape == (2, H, W, 2) and confidence.shape == (2, H, W)
    np.testing.assert_allclose(offsets[:, : H - 1, : W - 2], np.broadcast_to([1, 2], (2, H - 1, W - 2, 2)), atol=0.05)
    assert confidence[:, : H - 1, : W - 2].min() > 0.9 > np.median(confidence[:, H - 1 :])
    flat = jnp.ones((1, 4, 4, D)) / D**0.5
    offsets, confidence = correlation.match_nearby(flat, flat, jnp.float32(0), radius=1)
    np.testing.assert_allclose(offsets, 0, atol=1e-6)
    np.testing.assert_allclose(confidence, 1 / 9, rtol=1e-6)


def test_the_likelihood_is_a_softmax_over_the_image(image):
    moving = shifted(image, 0, 0)
    cells = jnp.broadcast_to(correlation.cells(H, W), (2, H * W, 2))
    found = correlation.log_likelihood(moving, image, SHARP, cells, cells)
    logits = 60 * np.einsum("bmd,bnd->bmn", moving.reshape(2, -1, D), image.reshape(2, -1, D)).astype(np.float64)
    expected = np.diagonal(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), axis1=1, axis2=2)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.exp(found).min() > 0.5


def test_the_likelihood_between_cells_is_the_mean_of_those_around(image):
    cells = jnp.broadcast_to(correlation.cells(H, W), (2, H * W, 2))

    def at(y, x):
        point = jnp.broadcast_to(jnp.array([y / H, x / W]), (2, 1, 2))
        return correlation.log_likelihood(image, image, SHARP, cells[:, :1], point)

    around = (3 * at(2.5, 4.5) + at(3.5, 4.5)) / 4 * 0.5 + (3 * at(2.5, 5.5) + at(3.5, 5.5)) / 4 * 0.5
    np.testing.assert_allclose(at(2.75, 5.0), around, rtol=1e-4)
    np.testing.assert_allclose(at(-5.0, 99.0), at(0.5, W - 0.5), rtol=1e-5)  # outside: the nearest cell


def test_gradients_are_finite_where_nothing_can_be_seen():
    flat = jnp.zeros((1, H, W, D))

    def total(moving, image):
        places, confidence = correlation.match_everywhere(moving, image, SHARP)
        offsets, nearby = correlation.match_nearby(moving, image, SHARP, radius=2)
        points = jnp.full((1, 3, 2), 0.3)
        likelihood = correlation.log_likelihood(moving, image, SHARP, points, points)
        return sum((array**2).sum() for array in (places, confidence, offsets, nearby, likelihood))

    for gradient in jax.grad(total, (0, 1))(flat, flat):
        assert np.isfinite(gradient).all()

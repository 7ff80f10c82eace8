"""Structural similarity against scikit-image: equal, unlike, constant, black and colour images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from mediax.errors import InputError
from mediax.operators.structural_similarity import similarity

RNG = np.random.default_rng(0)
FIRST = RNG.random((2, 30, 41, 3)).astype(np.float32)
PAIRS = {
    "random": (FIRST, RNG.random(FIRST.shape).astype(np.float32)),
    "near": (FIRST, np.clip(FIRST + RNG.normal(0, 0.05, FIRST.shape), 0, 1).astype(np.float32)),
    "inverted": (FIRST, 1 - FIRST),
    "constant": (np.full_like(FIRST, 0.3), np.full_like(FIRST, 0.7)),
    "black": (np.zeros_like(FIRST), FIRST),
    "both black": (np.zeros_like(FIRST), np.zeros_like(FIRST)),
}


@pytest.mark.parametrize("sigma", [0.5, 1.5, 4.0])
@pytest.mark.parametrize("pair", PAIRS)
def test_it_is_scikit_images(pair, sigma):
    first, second = PAIRS[pair]
    options = {"gaussian_weights": True, "sigma": sigma, "use_sample_covariance": False, "data_range": 1.0}
    expected = [
        structural_similarity(x.astype(float), y.astype(float), channel_axis=2, **options)
        for x, y in zip(first, second)
    ]
    np.testing.assert_allclose(
        jax.jit(similarity, static_argnames="sigma")(first, second, sigma=sigma), expected, atol=1e-4
    )


def test_equal_images_have_one_and_the_gradient_is_that_of_differences():
    first, second = (jnp.asarray(array[:1, :12, :12, :1]) for array in PAIRS["random"])
    assert similarity(first, first) == pytest.approx(1, abs=1e-5)
    gradient, step = jax.grad(lambda y: similarity(first, y)[0])(second), 1e-2
    for place in ((0, 3, 4, 0), (0, 6, 6, 0), (0, 0, 0, 0)):
        moved = jnp.zeros_like(second).at[place].set(step)
        numeric = float(similarity(first, second + moved)[0] - similarity(first, second - moved)[0]) / (2 * step)
        assert float(gradient[place]) == pytest.approx(numeric, abs=2e-4)


def test_images_smaller_than_a_window_are_refused():
    with pytest.raises(InputError, match=r"windows of 43 pixels, the images have 30x41: choose a sigma of about 4.3"):
        similarity(*PAIRS["random"], sigma=6.0)
    similarity(*PAIRS["random"], sigma=4.0)

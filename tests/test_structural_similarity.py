"""Structural similarity against scikit-image: equal, unlike, constant, black and colour images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from mediax.errors import InputError
from mediax.operators.structural_similarity import check_window, similarity

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
    found = jax.jit(similarity, static_argnames="sigma")(first, second, sigma=sigma)
    np.testing.assert_allclose(found.mean((1, 2, 3)), expected, atol=1e-4)


def test_equal_images_have_one_and_the_gradient_is_that_of_differences():
    first, second = (jnp.asarray(array[:1, :12, :12, :1]) for array in PAIRS["random"])
    np.testing.assert_allclose(similarity(first, first), 1, atol=1e-5)
    gradient, step = jax.grad(lambda y: similarity(first, y).mean())(second), 1e-2
    for place in ((0, 3, 4, 0), (0, 6, 6, 0), (0, 0, 0, 0)):
        moved = jnp.zeros_like(second).at[place].set(step)
        numeric = float((similarity(first, second + moved) - similarity(first, second - moved)).mean()) / (2 * step)
        assert float(gradient[place]) == pytest.approx(numeric, abs=2e-4)


def test_images_smaller_than_a_window_are_refused():
    with pytest.raises(InputError, match=r"sigma 6 has windows of 43 pixels .* images of 30x41 pixels are too small"):
        similarity(*PAIRS["random"], sigma=6.0)
    assert similarity(*PAIRS["random"], sigma=4.0).shape == (2, 2, 13, 3)
    check_window(4.0, 30, 41, cells=2)
    with pytest.raises(InputError, match="a grid of 3x3"):
        check_window(4.0, 30, 41, cells=3)


def test_convolutions_are_of_full_precision_and_shapes_equal():
    equations = jax.make_jaxpr(similarity)(*PAIRS["random"]).eqns
    precisions = [one.params["precision"] for one in equations if one.primitive.name == "conv_general_dilated"]
    assert precisions == [(jax.lax.Precision.HIGHEST,) * 2] * 10
    with pytest.raises(InputError, match=r"shapes .* expected equal"):
        similarity(FIRST, FIRST[..., :1])


def test_small_changes_of_exposure_count_little_where_an_image_is_not_black():
    y, x = np.mgrid[:40, :40]
    image = (0.5 + 0.3 * np.sin(x / 5) * np.cos(y / 7))[None, ..., None].astype(np.float32)
    brighter, shifted = 0.9 * image + 0.05, np.roll(image, 5, axis=2)
    assert (
        1 - similarity(image, brighter, sigma=2.5).mean()
        < 0.03
        < 0.2
        < 1 - similarity(image, shifted, sigma=2.5).mean()
    )
    black = np.zeros_like(image)
    assert similarity(black, black + 0.01).mean() == pytest.approx(0.5, abs=1e-3)

"""Quadratic transformations: known ones are found again, from perfect, from bad and from no matches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mediax.operators import quadratic

RNG = np.random.default_rng(0)
POINTS = RNG.random((2, 60, 2)).astype(np.float32)
QUADRATIC = (RNG.normal(0, 0.1, (2, 6, 2)) * [[1], [1], [1], [0.3], [0.3], [0.3]]).astype(np.float32)
AFFINE = QUADRATIC * (np.arange(6) < 3)[:, None].astype(np.float32)


def test_coefficients_are_of_the_written_out_polynomial():
    y, x = (2 * POINTS[..., axis] - 1 for axis in range(2))
    expected = POINTS.astype(np.float64)
    for term, value in enumerate((1, y, x, y * y, y * x, x * x)):
        expected = expected + np.multiply(value, np.ones_like(y))[..., None] * QUADRATIC[:, None, term]
    np.testing.assert_allclose(quadratic.transform(QUADRATIC, POINTS), expected, atol=1e-6)
    np.testing.assert_array_equal(quadratic.transform(np.zeros_like(QUADRATIC), POINTS), POINTS)


def test_the_inverse_leads_back():
    places = quadratic.transform(QUADRATIC, POINTS)
    assert np.abs(places - POINTS).max() > 0.1
    np.testing.assert_allclose(quadratic.invert(QUADRATIC, places), POINTS, atol=1e-5)


@pytest.mark.parametrize("fit", [quadratic.fit, lambda *matches: quadratic.robust_fit(*matches, tolerance=0.01)])
@pytest.mark.parametrize(
    "coefficients", [AFFINE, QUADRATIC, np.zeros_like(AFFINE)], ids=["affine", "quadratic", "none"]
)
def test_perfect_matches_give_the_transformation(fit, coefficients):
    places = quadratic.transform(coefficients, POINTS)
    np.testing.assert_allclose(fit(POINTS, places, jnp.ones((2, 60))), coefficients, atol=1e-4)


def test_the_affine_fit_is_numpys_least_squares():
    places, weights = POINTS + RNG.normal(0, 0.02, POINTS.shape), RNG.random((2, 60))
    found = quadratic.fit(POINTS, places, weights, terms=quadratic.AFFINE, ridge=0)
    for row in range(2):
        basis = np.concatenate([np.ones((60, 1)), 2 * POINTS[row] - 1], axis=1) * np.sqrt(weights[row])[:, None]
        expected = np.linalg.lstsq(basis, (places - POINTS)[row] * np.sqrt(weights[row])[:, None], rcond=None)[0]
        np.testing.assert_allclose(found[row, :3], expected, atol=1e-5)
    assert not found[:, 3:].any()


def test_matches_without_weight_have_no_part_and_none_is_the_identity():
    places = np.array(quadratic.transform(QUADRATIC, POINTS))
    weights = np.ones((2, 60), np.float32)
    places[:, :20], weights[:, :20] = 100.0, 0
    np.testing.assert_allclose(quadratic.fit(POINTS, places, weights), QUADRATIC, atol=1e-3)
    for fit in (quadratic.fit, quadratic.robust_fit):
        options = {"tolerance": 0.01} if fit is quadratic.robust_fit else {}
        assert not fit(POINTS, places, np.zeros_like(weights), **options).any()


def test_wrong_matches_are_trusted_less_and_less():
    places = np.array(quadratic.transform(QUADRATIC, POINTS))
    places[:, :18] = RNG.random((2, 18, 2))  # three in ten
    weights = np.ones((2, 60), np.float32)
    plain, robust = (
        quadratic.fit(POINTS, places, weights),
        quadratic.robust_fit(POINTS, places, weights, tolerance=0.01),
    )
    off = [
        np.abs(quadratic.transform(found, POINTS) - quadratic.transform(QUADRATIC, POINTS)).max()
        for found in (plain, robust)
    ]
    assert off[0] > 0.1 and off[1] < 2e-3


@pytest.mark.parametrize("weights", [np.ones((2, 60)), np.zeros((2, 60)), np.eye(60)[:2]], ids=["all", "none", "one"])
def test_gradients_are_finite(weights):
    places = quadratic.transform(QUADRATIC, POINTS)

    def total(points, places, weights):
        found = quadratic.robust_fit(points, places, weights, tolerance=0.01)
        return (quadratic.transform(found, points) ** 2).sum()

    gradients = jax.grad(total, (0, 1, 2))(jnp.asarray(POINTS), places, jnp.asarray(weights, jnp.float32))
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert gradients[1].any() == weights.any()


def test_the_gradient_is_that_of_finite_differences():
    places, weights = np.array(quadratic.transform(QUADRATIC, POINTS)) + 0.01, np.ones((2, 60), np.float32)

    def total(places):
        return (quadratic.fit(POINTS, places, weights) * QUADRATIC).sum()

    direction = RNG.normal(size=places.shape).astype(np.float32)
    slope = (jax.grad(total)(jnp.asarray(places)) * direction).sum()
    difference = (total(places + 0.05 * direction) - total(places - 0.05 * direction)) / 0.1
    assert float(slope) == pytest.approx(float(difference), rel=1e-2)

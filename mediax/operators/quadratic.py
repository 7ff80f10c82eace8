"""Quadratic transformations of the plane, and their fit to weighted matches.

Two photographs of one retina differ by a quadratic transformation, for its surface is nearly one of second order and
the camera nearly an affine one (Can, Stewart, Roysam and Tanenbaum, IEEE TPAMI 24(3), 2002). Points are (y, x) as
fractions of the image. The twelve `coefficients` f32[...,6,2] give how far a point moves, in the monomials 1, y, x,
y y, y x, x x of the coordinates from -1 to 1: zeros are the identity, zeros in the last three an affine transformation.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

TERMS = 6  # monomials
AFFINE = 3  # of them that an affine transformation has


def transform(coefficients: jax.Array, points: jax.Array) -> jax.Array:
    """Moves points: f32[...,6,2], f32[...,P,2] -> f32[...,P,2]."""
    return points + monomials(points) @ coefficients


def invert(coefficients: jax.Array, points: jax.Array, *, iterations: int = 8) -> jax.Array:
    """Finds the points that `transform` moves to `points`: f32[...,6,2], f32[...,P,2] -> f32[...,P,2].

    Newton's method with the affine part's slope: it converges where the quadratic part is the smaller one.
    """
    # Coordinates from -1 to 1 change twice as fast as fractions.
    slope = jnp.linalg.inv(jnp.eye(2) + 2 * coefficients[..., 1:AFFINE, :])
    found = points
    for _ in range(iterations):
        found = found + (points - transform(coefficients, found)) @ slope
    return found


def fit(
    points: jax.Array, places: jax.Array, weights: jax.Array, *, terms: int = TERMS, ridge: float = 1e-3
) -> jax.Array:
    """Fits the transformation that moves `points` nearest to `places`, by weighted least squares; differentiable.

    Args:
      points, places: f32[...,P,2].
      weights: f32[...,P], not negative; a match of weight 0 has no part, whatever finite place it has.
      terms: how many monomials may be other than zero: AFFINE or TERMS.
      ridge: pull towards the identity, as of so many matches; it makes any matches, or none, a solvable problem.

    Returns:
      coefficients f32[...,6,2].
    """
    basis = monomials(points)[..., :terms]
    weighted = jnp.swapaxes(basis * weights[..., None], -1, -2)
    normal = weighted @ basis + ridge * jnp.eye(terms)
    coefficients = jnp.linalg.solve(normal, weighted @ (places - points))
    return jnp.pad(coefficients, [(0, 0)] * (coefficients.ndim - 2) + [(0, TERMS - terms), (0, 0)])


def robust_fit(
    points: jax.Array, places: jax.Array, weights: jax.Array, *, tolerance: float, iterations: int = 5
) -> jax.Array:
    """Fits as `fit`, an affine transformation first, and gives matches that lie far from the fit less and less weight.

    Iterated least squares with the weights of Geman and McClure's error, which are a quarter at a distance of
    `tolerance` (a fraction of the image): it starts at eight times that and halves. Gradients flow through the last
    fit alone, and not through these weights.
    """
    coefficients = jax.lax.stop_gradient(fit(points, places, weights, terms=AFFINE))
    for iteration in range(iterations):
        error = jnp.square(places - transform(coefficients, points)).sum(-1)
        width = tolerance * max(1.0, 2.0 ** (3 - iteration))
        trust = jax.lax.stop_gradient(1 / jnp.square(1 + error / width**2))
        terms = AFFINE if iteration < iterations // 2 else TERMS
        coefficients = fit(points, places, weights * trust, terms=terms)
    return coefficients


def monomials(points: jax.Array) -> jax.Array:
    """The monomials f32[...,P,6] of points f32[...,P,2]."""
    y, x = 2 * points[..., 0] - 1, 2 * points[..., 1] - 1
    return jnp.stack([jnp.ones_like(y), y, x, y * y, y * x, x * x], axis=-1)

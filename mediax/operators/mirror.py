"""What lies in an image, turned round with it: pixels and boxes."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def pixels(array: jax.Array, turn: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Turns the `axes` (rows, columns) of an array round where `turn` bool[2] says so; one without axes stays."""
    for axis, turned in zip(axes, turn):
        array = jnp.where(turned, jnp.flip(array, axis), array)
    return array


def boxes(array: jax.Array, turn: jax.Array) -> jax.Array:
    """Mirrors boxes f[...,4] (ymin, xmin, ymax, xmax in fractions) where `turn` bool[2], (rows, columns), says so."""
    return jnp.where(jnp.tile(turn, 2), 1 - array[..., jnp.array([2, 3, 0, 1])], array)

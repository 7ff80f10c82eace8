"""Names that tell left from right, or up from down: in a mirrored image they trade places."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

OPPOSITES = ({"up": "down", "down": "up"}, {"left": "right", "right": "left"})  # words, if (rows, columns) turn


def exchanged(output: jax.Array, turn: jax.Array, names: Sequence[str], axis: int) -> jax.Array:
    """Lets opposite names of an output's `axis` trade places where `turn` bool[2], (rows, columns), says so."""
    for turned, opposites in zip(turn, OPPOSITES):
        order = partners(names, opposites)
        if order != [*range(len(names))]:
            output = jnp.where(turned, jnp.take(output, jnp.array(order), axis), output)
    return output


def partners(names: Sequence[str], opposites: Mapping[str, str]) -> list[int]:
    """For each name the index of the one with `opposites` exchanged; its own where there is no such name."""
    lower = [name.lower() for name in names]
    opposite = [re.sub("[a-z]+", lambda word: opposites.get(word[0], word[0]), name) for name in lower]
    return [lower.index(name) if name in lower else index for index, name in enumerate(opposite)]


def exchanged_names(names: Sequence[str], opposites: Mapping[str, str]) -> list[str]:
    """Those of the names that trade places with another one."""
    return [name for index, (name, partner) in enumerate(zip(names, partners(names, opposites))) if partner != index]

"""Zero padding: by TensorFlow's rule "SAME", and until a pyramid's strides divide the sides of its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp


def pad_same(x: jax.Array, size: int, stride: int) -> jax.Array:
    """Pads H and W with zeros so that a window of `size` moved by `stride` gives ceil(H/stride), ceil(W/stride).

    f[B,H,W,C] -> f[B,H',W',C]. An odd total is one row or column more below and on the right.
    """
    widths = [(0, 0)]
    for length in x.shape[1:3]:
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        widths.append((total // 2, total - total // 2))
    return jnp.pad(x, [*widths, (0, 0)])


def pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Zeros below and on the right until `multiple` divides both sides: f[B,H,W,C] -> f[B,H',W',C]."""
    missing = [(0, -side % multiple) for side in x.shape[1:3]]
    return jnp.pad(x, [(0, 0), *missing, (0, 0)]) if any(after for _, after in missing) else x


def extent(pyramid: Mapping[int, jax.Array], size: Sequence[int]) -> tuple[int, int]:
    """The size (H', W') of what a pyramid {stride: f[B,h,w,C]} shows of an image of `size` (H, W).

    That of the image, or where each level is as large as `pad_to_multiple` makes it, of the padded image.
    """
    coarsest = max(pyramid)
    height, width = (side + -side % coarsest for side in size)
    padded = all(x.shape[1:3] == (height // stride, width // stride) for stride, x in pyramid.items())
    return (height, width) if padded else tuple(size)

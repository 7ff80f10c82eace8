"""Zero padding by TensorFlow's rule "SAME", which for even sizes and stride 2 is not symmetric."""

from __future__ import annotations

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

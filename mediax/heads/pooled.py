"""Global average pooling and one linear layer: image-level classification and regression."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mediax.errors import InputError


class Head(nnx.Module):
    """Pyramid {stride: f[B,H/s,W/s,C_s]} -> coarsest level -> mean over H and W -> [LayerNorm] -> dropout -> f32[B,K].

    `channels` is the backbone's {stride: C_s}. `normalize` adds the LayerNorm (epsilon 1e-6) of ConvNeXt's published
    head; the published ResNets have none. `pooling` is "average", or "average_max": the maximum over H and W joins the
    mean, which finds small lesions sooner where a network is trained from scratch. The pooled features and the logits
    are f32, whatever `dtype` is. Raises InputError for an unknown pooling.
    """

    def __init__(
        self,
        channels: dict[int, int],
        classes: int,
        *,
        pooling: Literal["average", "average_max"] = "average",
        normalize: bool = False,
        dropout: float = 0.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.level = max(channels)
        if pooling not in ("average", "average_max"):
            raise InputError(f'pooled head: pooling={pooling!r}; choose "average" or "average_max"')
        self.pooling = pooling
        features = channels[self.level] * (2 if pooling == "average_max" else 1)
        self.norm = nnx.LayerNorm(features, epsilon=1e-6, dtype=jnp.float32, rngs=rngs) if normalize else nnx.data(None)
        self.dropout = dropout
        self.linear = nnx.Linear(features, classes, kernel_init=nnx.initializers.normal(0.02), dtype=dtype, rngs=rngs)

    def __call__(self, pyramid: dict[int, jax.Array], *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
        features = pyramid[self.level].astype(jnp.float32)
        x = features.mean((1, 2))
        if self.pooling == "average_max":
            x = jnp.concatenate([x, _maximum(features)], axis=-1)
        if self.norm is not None:
            x = self.norm(x)
        if train and self.dropout > 0:
            x = nnx.Dropout(self.dropout, deterministic=False)(x, rngs=rngs)
        return self.linear(x).astype(jnp.float32)


def _maximum(features: jax.Array) -> jax.Array:
    """The maximum over H and W, f32[B,H,W,C] -> f32[B,C].

    Its gradient goes to the place of the maximum, found once. jnp.max looks for it again in the backward pass, where a
    compiler may round otherwise and find it nowhere: the gradient is then NaN (measured on a CPU).
    """
    pixels = features.reshape(len(features), -1, features.shape[-1])
    return jnp.take_along_axis(pixels, pixels.argmax(1, keepdims=True), axis=1)[:, 0]

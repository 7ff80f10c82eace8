"""A projection into an embedding space: pooled features, a small perceptron, vectors of length one, a temperature."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mediax.errors import InputError
from mediax.layers import BatchNorm

LEAST_TEMPERATURE = 0.01  # of a learned one, as in CLIP: below it a step may blow up


class Head(nnx.Module):
    """Pyramid {stride: f[B,H/s,W/s,C_s]} -> {"features": f32[B,C], "embedding": f32[B,size], "temperature": f32[]}.

    `features` are the mean over H and W of the coarsest level, `embedding` is their projection, scaled to length one:
    linear layers of the widths `hidden`, each followed by a BatchNorm (unless `normalize` is off) and a ReLU, and a
    last linear layer to `size` (SimCLR, arXiv:2002.05709). Similarities are divided by `temperature`; with
    `learn_temperature` that is where it starts, and its logarithm is a parameter (CLIP, arXiv:2103.00020). Features,
    embedding and temperature are f32, whatever `dtype` is. Raises InputError for options out of range.
    """

    def __init__(
        self,
        channels: dict[int, int],
        *,
        size: int = 128,
        hidden: Sequence[int] = (512,),
        normalize: bool = True,
        temperature: float = 0.1,
        learn_temperature: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if temperature < LEAST_TEMPERATURE or min(size, *hidden, 1) < 1:
            raise InputError(
                f"projection head: size={size}, hidden={tuple(hidden)}, temperature={temperature}: expected widths of "
                f"at least 1 and a temperature of at least {LEAST_TEMPERATURE}"
            )
        self.level = max(channels)
        widths = (channels[self.level], *hidden, size)
        self.linear = nnx.List([nnx.Linear(a, b, dtype=dtype, rngs=rngs) for a, b in pairwise(widths)])
        self.norm = nnx.List([BatchNorm(width, rngs=rngs) for width in hidden] if normalize else [])
        self.temperature = temperature
        self.log_temperature = nnx.Param(jnp.log(jnp.float32(temperature))) if learn_temperature else nnx.data(None)

    def __call__(self, pyramid: dict[int, jax.Array], *, train: bool, rngs: nnx.Rngs | None) -> dict[str, jax.Array]:
        features = pyramid[self.level].astype(jnp.float32).mean((1, 2))
        x = features
        for i, linear in enumerate(self.linear):
            x = linear(x)
            if i < len(self.norm):
                x = self.norm[i](x[:, None, None], train)[:, 0, 0]
            if i < len(self.linear) - 1:
                x = jax.nn.relu(x)
        x = x.astype(jnp.float32)
        temperature = jnp.float32(self.temperature)
        if self.log_temperature is not None:
            temperature = jnp.maximum(jnp.exp(self.log_temperature[...]), LEAST_TEMPERATURE)
        # The root of a sum that is never zero: at zero its gradient is infinite.
        length = jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))
        return {"features": features, "embedding": x / length, "temperature": temperature}

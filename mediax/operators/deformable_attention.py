"""Multi-scale deformable attention: each query attends to a few points of every level."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mediax.operators.sampling import weighted_samples


def deformable_attention(values: Sequence[jax.Array], locations: jax.Array, weights: jax.Array) -> jax.Array:
    """The core of multi-scale deformable attention (arXiv:2010.04159), without its projections.

    values: f[B,H_l,W_l,M,D] for each of L levels, M heads of D channels; locations: f32[B,Q,M,L,K,2], (x, y) as
    fractions of the level, so (0, 0) is its upper left edge; weights: f32[B,Q,M,L,K], normalised by the caller over L
    and K -> f[B,Q,M*D]. Outside a level lie zeros. Equals fundamentalvision/Deformable-DETR's
    ms_deform_attn_core_pytorch.

    Memory: O(B*Q*M*(D + L*K)) beside the values and their gradient; the sampled values are not stored.
    Raises ValueError if the number of levels differs from L.
    """
    batch, queries, heads, count, points = weights.shape
    if len(values) != count or locations.shape != (*weights.shape, 2):
        raise ValueError(
            f"deformable_attention was given {len(values)} levels, locations {locations.shape} and weights "
            f"{weights.shape}; expected one level for each entry of the weights' axis 3, and locations [B,Q,M,L,K,2]."
        )
    heights, widths = (jnp.array([value.shape[axis] for value in values]) for axis in (1, 2))
    x = locations[..., 0] * widths[:, None] - 0.5
    y = locations[..., 1] * heights[:, None] - 0.5
    samples = [array.reshape(batch, queries, heads, count * points) for array in (y, x, weights)]
    attended = weighted_samples(values, *samples, level=jnp.repeat(jnp.arange(count), points))
    return attended.reshape(batch, queries, -1)

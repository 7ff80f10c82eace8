"""Matching of predictions to targets at the least total cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def match(cost: jax.Array, target_valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Assigns to each target another query, so that the sum of costs is the least: the Hungarian algorithm.

    f32[B,Q,T], bool[B,T] (False on padding) -> i32[B,T], the query of each target, and bool[B,T], False where a target
    has none (its query is 0): padding, and with more targets than queries those whose omission costs the least. The
    sum equals that of scipy.optimize.linear_sum_assignment on the columns that are valid.

    A cost that is not finite forbids the pair, NaN as well as infinity: as many targets as possible are matched
    without one, and the others have no query. (scipy refuses NaN, minus infinity, and costs that leave none.)
    No gradient. Memory: O(B*max(Q,T)*T). Time grows with the cube, all of it on the device; where the batch is split
    over devices, they agree on every step of the loops, so match each shard by itself (jax.shard_map) if that is slow.
    """
    if cost.shape[1] == 0 or cost.shape[2] == 0:
        return jnp.zeros(target_valid.shape, jnp.int32), jnp.zeros(target_valid.shape, bool)
    return jax.vmap(_match)(jax.lax.stop_gradient(cost), target_valid)


def _match(cost: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    queries, targets = cost.shape
    allowed = jnp.isfinite(cost) & valid
    low = jnp.min(cost, where=allowed, initial=jnp.inf)
    span = jnp.maximum(jnp.max(cost, where=allowed, initial=-jnp.inf) - low, 0)
    # Padding costs nothing with any query. A target without a query costs more than any pair, so that a query is not
    # wasted on padding; where pairs are forbidden, more than all pairs together, so that one is never worth two.
    # No more than needed: beside a large number the small ones would lose their last digits.
    forbidden = valid & ~jnp.isfinite(cost)
    missing = jnp.where(span > 0, span, 1) * jnp.where(jnp.any(forbidden), 2 + min(queries, targets), 2)
    cost = jnp.where(allowed, cost - low, jnp.where(forbidden, missing, 0))
    # With more targets than queries, further rows stand for having no query.
    nobody = jnp.broadcast_to(jnp.where(valid, missing, 0), (max(targets - queries, 0), targets))
    rows, columns = optax.assignment.hungarian_algorithm(jnp.concatenate([cost, nobody]))
    query = jnp.zeros(targets, jnp.int32).at[columns].set(rows.astype(jnp.int32))
    matched = (query < queries) & allowed[jnp.minimum(query, queries - 1), jnp.arange(targets)]
    return jnp.where(matched, query, 0), matched

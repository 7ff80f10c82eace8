"""Matching costs what scipy's assignment costs, with padding, surplus targets and forbidden pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from mediax.operators.matching import match

run = jax.jit(match)


def assert_matching(cost, valid, query, matched):
    """Different queries for different targets, none for padding, and scipy's total."""
    assert len(set(query[matched].tolist())) == matched.sum() == min(valid.sum(), len(cost))
    assert not matched[~valid].any() and not query[~matched].any()
    columns = np.flatnonzero(valid)
    rows, chosen = linear_sum_assignment(cost[:, columns])
    expected = cost[rows, columns[chosen]].sum()
    np.testing.assert_allclose(cost[query, np.arange(len(valid))][matched].sum(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("queries", "targets"), [(12, 5), (6, 6), (4, 9)])
def test_costs_what_scipys_does(queries, targets):
    rng = np.random.default_rng(queries)
    cost = (10 * rng.standard_normal((16, queries, targets)) - 5).astype(np.float32)
    cost[3] = np.round(cost[3])  # ties
    cost[4] = 7.0
    valid = rng.random((16, targets)) < 0.6
    valid[0], valid[1] = True, False
    query, matched = map(np.asarray, run(cost, valid))
    for row in range(16):
        assert_matching(cost[row], valid[row], query[row], matched[row])


def test_a_pair_whose_cost_is_not_finite_is_forbidden():
    cost = np.random.default_rng(0).random((40, 6, 4)).astype(np.float32)
    cost[np.random.default_rng(1).random(cost.shape) < 0.3] = np.inf
    valid = np.ones((40, 4), bool)
    query, matched = map(np.asarray, run(cost, valid))
    same = run(np.where(np.isinf(cost), np.nan, cost), valid)
    np.testing.assert_array_equal(query, same[0])
    np.testing.assert_array_equal(matched, same[1])
    checked = 0
    for row in range(40):
        assert np.isfinite(cost[row][query[row], range(4)][matched[row]]).all()
        # As many pairs as possible: count them with an assignment that looks at nothing else.
        blocked = np.isinf(cost[row]).astype(float)
        assert matched[row].sum() == 4 - blocked[linear_sum_assignment(blocked)].sum()
        if matched[row].all():
            checked += 1
            assert_matching(cost[row], valid[row], query[row], matched[row])
    assert checked > 20


def test_nothing_to_match():
    for queries, targets in ((0, 3), (3, 0)):
        query, matched = run(jnp.zeros((2, queries, targets)), jnp.ones((2, targets), bool))
        assert query.shape == matched.shape == (2, targets) and not matched.any()
    query, matched = run(jnp.full((1, 3, 2), jnp.nan), jnp.ones((1, 2), bool))
    assert not matched.any() and not query.any()


def test_gives_no_gradient():
    def total(cost):
        query, matched = match(cost, jnp.ones((1, 2), bool))
        return jnp.sum(jnp.where(matched, cost[0, query[0], jnp.arange(2)], 0))

    cost = jnp.array([[[1.0, 5.0], [2.0, 1.0], [9.0, 9.0]]])
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(cost), [[[1, 0], [0, 1], [0, 0]]])

"""The optimizer: each chain equals its formula; rates and decays reach the right parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mediax import optimizer
from mediax.errors import InputError

PARTS = ("backbone", "head/a/x")


def _params():
    return {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32), "bias": jnp.ones(4)}


def test_adamw_equals_optax_adamw_step_by_step():
    params = theirs = _params()
    ours = optimizer.build(PARTS, steps=10, peak=1e-2, schedule="cosine", warmup_steps=2, weight_decay=0.1)["backbone"]
    rate = optimizer.learning_rate("cosine", peak=1e-2, steps=10, warmup_steps=2)
    reference = optax.adamw(rate, weight_decay=0.1, mask=optimizer.decayed)
    state, their_state = ours.init(params), reference.init(theirs)
    for step in range(8):
        grads = {name: jnp.sin(param * (step + 1)) for name, param in params.items()}
        updates, state = ours.update(grads, state, params, step=jnp.asarray(step))
        expected, their_state = reference.update(grads, their_state, theirs)
        params, theirs = optax.apply_updates(params, updates), optax.apply_updates(theirs, expected)
        for name in params:
            np.testing.assert_allclose(params[name], theirs[name], rtol=1e-6)


def test_the_rate_follows_the_global_step_even_if_the_part_was_locked():
    chain = optimizer.build(PARTS, steps=100, name="sgd", peak=1.0, schedule="linear", weight_decay=0.0)["backbone"]
    params = _params()
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = chain.update(grads, chain.init(params), params, step=jnp.asarray(50))
    np.testing.assert_allclose(updates["bias"], -0.5 * np.ones(4), rtol=1e-6)


def test_weight_decay_spares_vectors():
    chain = optimizer.build(PARTS, steps=1, name="sgd", peak=1.0, schedule="constant", weight_decay=0.5)["backbone"]
    params = _params()
    updates, _ = chain.update(jax.tree.map(jnp.zeros_like, params), chain.init(params), params, step=jnp.asarray(0))
    np.testing.assert_allclose(updates["kernel"], -0.5 * params["kernel"], rtol=1e-6)
    assert not updates["bias"].any()


def test_weight_decay_spares_tables_of_positions_and_tokens():
    table, kernel = np.ones((49, 3)), np.ones((3, 3))
    marked = optimizer.decayed({"attention": {"table": table, "project": {"kernel": kernel}}, "class_token": table})
    assert marked == {"attention": {"table": False, "project": {"kernel": True}}, "class_token": False}


def test_layer_decay_and_per_part_values():
    chains = optimizer.build(
        PARTS,
        steps=1,
        name="sgd",
        peak=1.0,
        schedule="constant",
        layer_decay=0.5,
        per_part={"head/*": {"peak": 0.1}},
        depth=lambda part, path: 2.0 if part == "backbone" and path[0] == "stem" else 0.0,
    )
    params = {"stem": jnp.ones((1,)), "top": jnp.ones((1,))}
    updates, _ = chains["backbone"].update(params, chains["backbone"].init(params), params, step=jnp.asarray(0))
    assert (float(updates["stem"][0]), float(updates["top"][0])) == (-0.25, -1.0)
    updates, _ = chains["head/a/x"].update(params, chains["head/a/x"].init(params), params, step=jnp.asarray(0))
    np.testing.assert_allclose(updates["top"], -0.1, rtol=1e-6)


@pytest.mark.parametrize("shape", ["cosine", "linear", "one_cycle", "constant"])
def test_rates_warm_up_to_the_peak_and_come_down(shape):
    rate = optimizer.learning_rate(
        shape,
        peak=2.0,
        steps=100,
        warmup_steps=10,
        start_fraction=0.1,
        final_fraction=0.0 if shape != "constant" else 1,
    )
    values = np.asarray([float(rate(step)) for step in range(101)])
    assert values[0] == pytest.approx(0.2) and values[10] == pytest.approx(2.0) and values.max() == pytest.approx(2.0)
    assert (np.diff(values[:11]) > 0).all() and (np.diff(values[10:]) <= 1e-6).all()
    assert values[100] == pytest.approx(2.0 if shape == "constant" else 0.0, abs=1e-6)


def test_clipping_scales_to_the_norm_and_reports_the_one_before():
    grads = {"a": jnp.asarray([3.0, 4.0])}
    clipped, norm = optimizer.clip(grads, 1.0)
    assert float(norm) == pytest.approx(5.0)
    np.testing.assert_allclose(clipped["a"], [0.6, 0.8], rtol=1e-6)
    same, _ = optimizer.clip(grads, 0.0)
    np.testing.assert_array_equal(same["a"], grads["a"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "adam"}, "did you mean 'adamw'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"momentums": 0.9}, "momentums"),
        ({"per_part": {"heads/*": {}}}, "heads/"),
        ({"per_part": {"head/*": {"lr": 1.0}}}, "no field 'lr'"),
    ],
)
def test_errors_name_the_field(options, words):
    with pytest.raises(InputError, match=words):
        optimizer.build(PARTS, steps=1, **options)

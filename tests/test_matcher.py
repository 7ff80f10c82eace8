"""The matching head: the strides that it takes, and that training it on known motions finds unknown ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mediax.errors import InputError
from mediax.heads import matcher
from mediax.operators import correlation, quadratic

CHANNELS = {2: 4, 4: 6, 8: 8, 16: 10}


def pyramid(seed, size=(48, 64)):
    rng = np.random.default_rng(seed)
    return {
        stride: jnp.asarray(rng.normal(size=(2, size[0] // stride, size[1] // stride, width)), jnp.float32)
        for stride, width in CHANNELS.items()
    }


def run(head, *pyramids):
    graph, params = nnx.split(head)
    return jax.jit(lambda params, *pyramids: nnx.merge(graph, params)(*pyramids, train=True, rngs=None))(
        params, *pyramids
    )


def test_shapes_and_unit_descriptors():
    head = matcher.Head(CHANNELS, coarse=8, fine=2, width=12, refinements=3, radius=1, rngs=nnx.Rngs(0))
    found = run(head, pyramid(0), pyramid(1))
    assert found["stages"].shape == (4, 2, 6, 2) and np.isfinite(found["stages"]).all()
    for name in ("descriptors", "moving_descriptors"):
        assert found[name].shape == (2, 6, 8, 12)
        np.testing.assert_allclose(jnp.linalg.norm(found[name], axis=-1), 1, atol=1e-4)


def test_an_image_fits_onto_itself():
    head = matcher.Head(CHANNELS, coarse=8, fine=4, width=12, refinements=1, rngs=nnx.Rngs(0))
    head.sharpness.set_value(jnp.log(jnp.full(2, 100.0)))
    found = run(head, pyramid(0), pyramid(0))
    points = correlation.cells(5, 5)
    for stage in found["stages"]:
        np.testing.assert_allclose(quadratic.transform(stage, points[None]), jnp.stack([points] * 2), atol=0.02)


def test_nothing_in_view_is_finite():
    head = matcher.Head(CHANNELS, coarse=8, fine=4, width=12, refinements=1, radius=1, rngs=nnx.Rngs(0))
    graph, params = nnx.split(head)
    flat = {stride: jnp.zeros_like(level) for stride, level in pyramid(0).items()}

    def total(params):
        found = nnx.merge(graph, params)(flat, flat, train=True, rngs=None)
        return (found["stages"] ** 2).sum() + (found["descriptors"] ** 2).sum()

    assert all(np.isfinite(gradient).all() for gradient in jax.tree.leaves(jax.jit(jax.grad(total))(params)))


@pytest.mark.slow
def test_it_learns_to_match_through_the_fit():
    """A third of the channels say what a place is: the distance of the fit alone teaches to use them."""
    rng = np.random.default_rng(0)
    cells = correlation.cells(12, 12)
    truth = jnp.asarray([[0.06, -0.04], [0.02, 0.03], [-0.03, 0.01], [0.01, 0], [0, 0.01], [0.01, -0.01]], jnp.float32)

    def scene(seed):
        """Two pyramids of one random scene; the moving one shows at p what the image shows at its transformed place."""
        draw = np.random.default_rng(seed)
        waves, phases = draw.normal(0, 9, (2, 8)), draw.random(8) * 6
        image = jnp.sin(cells @ waves + phases)
        moving = jnp.sin(quadratic.transform(truth, cells) @ waves + phases)
        noise = draw.normal(0, 1.5, (2, 144, 16))
        return [
            {8: jnp.asarray(np.concatenate([view, some], axis=1), jnp.float32).reshape(1, 12, 12, 24)}
            for view, some in zip((image, moving), noise)
        ]

    head = matcher.Head({8: 24}, coarse=8, fine=8, width=16, refinements=1, radius=2, rngs=nnx.Rngs(0))
    graph, params = nnx.split(head)
    chain = optax.adam(1e-2)

    def error(params, scene):
        stages = nnx.merge(graph, params)(*scene, train=True, rngs=None)["stages"]
        off = jnp.square(quadratic.transform(stages, cells) - quadratic.transform(truth, cells)).sum(-1)
        return jnp.sqrt(off + 1e-6).mean()

    @jax.jit
    def step(params, state, scene):
        gradient = jax.grad(error)(params, scene)
        updates, state = chain.update(gradient, state)
        return optax.apply_updates(params, updates), state

    errors = jax.jit(error)
    held_out = [scene(seed) for seed in range(1000, 1005)]
    before = np.mean([errors(params, one) for one in held_out])
    state = chain.init(params)
    for seed in rng.integers(0, 999, 300):
        params, state = step(params, state, scene(seed))
    after = np.mean([errors(params, one) for one in held_out])
    assert after < 0.5 * before and after < 0.03


def test_strides_that_are_not_there_are_refused():
    with pytest.raises(InputError, match=r"fine=1; choose one of the backbone's strides, \[2, 4, 8, 16\]"):
        matcher.Head(CHANNELS, fine=1, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="fine=8, coarse=4; expected fine to be the smaller"):
        matcher.Head(CHANNELS, coarse=4, fine=8, rngs=nnx.Rngs(0))

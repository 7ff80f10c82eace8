"""The model: a module as two pure functions, one key per name, and parts that rest in inference mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx

from mediax.errors import InputError
from mediax.model import Model, named_key, part

KEY = jax.random.key(3)
IMAGE = jax.random.uniform(jax.random.key(4), (3, toy.SIZE, toy.SIZE, 1))


def _build(batch_norm=True, dropout=0.0):
    return lambda rngs: toy.Backbone(batch_norm=batch_norm, dropout=dropout, rngs=rngs)


class Head(nnx.Module):
    """A linear layer on the mean of the features, with a dropout."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, pyramid, *, train, rngs):
        return nnx.Dropout(0.5, deterministic=not train)(self.linear(pyramid[2].mean((1, 2))), rngs=rngs)


class Task:
    """A task that passes on what its head gives."""

    def apply(self, run, pyramid, batch):
        return run("head", pyramid)


@pytest.mark.parametrize("train", [False, True])
def test_a_part_computes_what_its_module_does(train):
    build = _build(dropout=0.3)
    module, adapted = build(nnx.Rngs(KEY)), part(build)
    params, batch_stats = adapted.init(KEY)
    assert toy.digest(params) == toy.digest(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    assert toy.digest(batch_stats) == toy.digest(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))
    before = toy.digest((params, batch_stats))
    outputs, moved = adapted.apply(params, batch_stats, IMAGE, train=train, key=jax.random.key(5))
    assert toy.digest(outputs) == toy.digest(module(IMAGE, train=train, rngs=nnx.Rngs(jax.random.key(5))))
    assert toy.digest(moved) == toy.digest(nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))
    assert toy.digest((params, batch_stats)) == before
    assert (toy.digest(moved) != toy.digest(batch_stats)) == train


def test_a_part_without_statistics_has_none():
    adapted = part(_build(batch_norm=False))
    params, batch_stats = adapted.init(KEY)
    assert set(params) == {"conv", "norm", "scale"} and batch_stats == {}
    assert adapted.apply(params, batch_stats, IMAGE, train=True, key=KEY)[1] == {}


def test_a_module_with_its_own_randomness_is_refused():
    class Stateful(nnx.Module):
        def __init__(self, *, rngs):
            self.linear = nnx.Linear(2, 2, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    with pytest.raises(TypeError, match=r"nnx.Param and nnx.BatchStat only, found .*dropout"):
        part(lambda rngs: Stateful(rngs=rngs))


def test_a_module_with_a_variable_of_another_kind_is_refused():
    class Counting(nnx.Module):
        def __init__(self, *, rngs):
            self.calls = nnx.Variable(jnp.zeros(()))

    with pytest.raises(TypeError, match="calls"):
        part(lambda rngs: Counting(rngs=rngs))


def test_the_key_of_a_name_depends_on_the_name_alone():
    names = ["backbone", "head/a/classification", "head/b/classification", ""]
    keys = {name: jax.random.key_data(named_key(KEY, name)).tolist() for name in names}
    again = {name: jax.random.key_data(named_key(KEY, name)).tolist() for name in reversed(names)}
    assert keys == again and len(set(map(tuple, keys.values()))) == len(names)
    other = jax.random.key_data(named_key(jax.random.key(0), "backbone")).tolist()
    assert other != keys["backbone"]


def test_another_part_leaves_the_weights_of_the_others_as_they_were():
    backbone, head = part(_build()), part(lambda rngs: Head(rngs=rngs))
    few, _ = Model({"backbone": backbone, "head/b": head}, (0.0,), (1.0,)).init(KEY)
    many, _ = Model({"head/a": head, "head/b": head, "backbone": backbone}, (0.0,), (1.0,)).init(KEY)
    for name in few:
        assert toy.digest(few[name]) == toy.digest(many[name])
    assert toy.digest(many["head/a"]) != toy.digest(many["head/b"])


@pytest.fixture(scope="module")
def forward():
    """Gives `run(live, train, key)` of a network with BatchNorm and dropout in both parts, and its statistics."""
    parts = {"backbone": part(_build(dropout=0.3)), "head": part(lambda rngs: Head(rngs=rngs))}
    model = Model(parts, (0.5,), (0.25,))
    params, batch_stats = model.init(KEY)

    def run(live, train=True, seed=0):
        given = dict(batch_stats)
        outputs, moved = model.forward(
            {"task": Task()}, params, given, {"image": IMAGE}, live=live, train=train, key=jax.random.key(seed)
        )
        assert given == batch_stats, "the caller's dict was changed"
        return outputs["task"], moved

    return run, batch_stats


def test_a_part_that_is_not_live_runs_in_inference_mode(forward):
    run, batch_stats = forward
    inference, untouched = run(("backbone", "head"), train=False)
    resting, stats = run(())
    assert toy.digest(resting) == toy.digest(inference)
    assert toy.digest(stats) == toy.digest(untouched) == toy.digest(batch_stats)
    head_only, stats = run(("head",))
    assert toy.digest(stats) == toy.digest(batch_stats)
    # Only the head's dropout is at work: it leaves an output at twice its value or at zero.
    kept = np.asarray(head_only) != 0
    np.testing.assert_allclose(np.asarray(head_only)[kept], 2 * np.asarray(inference)[kept], rtol=1e-5)
    backbone_only, stats = run(("backbone",))
    assert toy.digest(stats) != toy.digest(batch_stats)
    assert toy.digest(backbone_only) != toy.digest(inference) and backbone_only.all()


def test_randomness_comes_with_the_key(forward):
    run, _ = forward
    live = ("backbone", "head")
    assert toy.digest(run(live, seed=1)) == toy.digest(run(live, seed=1)) != toy.digest(run(live, seed=2))
    assert toy.digest(run(live, train=False, seed=1)) == toy.digest(run(live, train=False, seed=2))


def test_images_are_normalised_per_channel():
    model = Model({}, (0.5, 0.0), (0.25, 2.0))
    image = jnp.asarray([0.0, 1.0, 0.5, 0.25]).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(model.normalise(image), np.reshape([-2, 0.5, 0, 0.125], (1, 1, 2, 2)))
    with pytest.raises(InputError, match=r"backbone.channels is 2, the images have 1 channels"):
        model.normalise(image[..., :1])

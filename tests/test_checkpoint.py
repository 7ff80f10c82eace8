"""Checkpoints: what is read back is what was saved, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from mediax.checkpoint import Checkpoints, abstract
from mediax.errors import InputError

PROGRESS = {"positions": {"chest": 7}, "history": [{"step": 3, "loss": 0.1}], "meter": {}, "finished": False}
CONFIG = {"steps": 10, "optimizer": {"peak": 1e-3, "per_part": {}}, "schedule": {"frozen": ["head/*"]}}


def _state(seed=0):
    numbers = jax.random.normal(jax.random.key(seed), (3, 5))
    return {
        "params": {
            "backbone": {"kernel": numbers, "half": numbers.astype(jnp.bfloat16)},
            "head/a/classification": {"bias": jnp.asarray([jnp.nan, -0.0, jnp.inf, 1e-44])},
        },
        "batch_stats": {"backbone": {"mean": numbers[0]}, "head/a/classification": {}},
        "step": jnp.asarray(seed + 2**30, jnp.int32),
        "flags": jnp.asarray([True, False]),
        "ema": None,
    }


def _abstract(state):
    return abstract(state, jax.tree.map(lambda array: array.sharding, state))


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path, "latest")
    yield opened
    opened.close()


def test_state_progress_and_config_come_back_to_the_bit(tmp_path, checkpoints):
    state = _state()
    checkpoints.save(3, state, PROGRESS, CONFIG)
    checkpoints.wait()
    reopened = Checkpoints(tmp_path, "latest")
    restored, progress = reopened.restore(_abstract(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert [leaf.dtype for leaf in jax.tree.leaves(restored)] == [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert toy.digest(restored) == toy.digest(state)
    assert progress == PROGRESS and reopened.config() == CONFIG
    reopened.close()


def test_one_part_is_read_alone_as_evaluations_see_it(tmp_path, checkpoints):
    state = _state()
    state["params"]["backbone"] |= {"blocks": {0: {"kernel": jnp.arange(3.0)}}}
    checkpoints.save(3, state, PROGRESS, CONFIG)
    checkpoints.wait()
    part = checkpoints.part("backbone")
    assert set(part) == {("kernel",), ("half",), ("blocks", 0, "kernel"), ("mean",)}
    assert all(type(array) is np.ndarray for array in part.values())
    assert np.array_equal(part["kernel",], state["params"]["backbone"]["kernel"])
    assert part["half",].dtype == jnp.bfloat16 and np.array_equal(
        part["mean",], state["batch_stats"]["backbone"]["mean"]
    )
    assert set(checkpoints.part("head/a/classification")) == {("bias",)}
    with pytest.raises(InputError, match="has no part 'backbon'; did you mean 'backbone'"):
        checkpoints.part("backbon")
    averages = {"backbone": {"params": {"kernel": jnp.ones(2)}, "batch_stats": {"mean": jnp.zeros(1)}}}
    checkpoints.save(4, state | {"ema": averages}, PROGRESS, CONFIG)
    checkpoints.wait()
    part = checkpoints.part("backbone")
    assert set(part) == {("kernel",), ("mean",)} and part["kernel",].tolist() == [1, 1]
    with pytest.raises(InputError, match="best: no checkpoint"):
        Checkpoints(tmp_path / "nothing", "best").part("backbone")


def test_the_caller_may_change_his_dicts_right_after_saving(checkpoints):
    progress = {"positions": {"chest": 7}, "history": [{"step": 3}]}
    config = {"optimizer": {"peak": 1.0}}
    checkpoints.save(3, _state(), progress, config)
    progress["positions"]["chest"] = 8
    progress["history"].append({"step": 4})
    config["optimizer"]["peak"] = 2.0
    checkpoints.wait()
    _, saved = checkpoints.restore(_abstract(_state()))
    assert saved == {"positions": {"chest": 7}, "history": [{"step": 3}]}
    assert checkpoints.config() == {"optimizer": {"peak": 1.0}}


@pytest.mark.parametrize("waits", [True, False])
def test_a_step_that_is_there_is_kept(checkpoints, waits):
    checkpoints.save(3, _state(0), PROGRESS, CONFIG)
    if waits:
        checkpoints.wait()
    checkpoints.save(3, _state(1), PROGRESS | {"finished": True}, CONFIG)
    checkpoints.wait()
    restored, progress = checkpoints.restore(_abstract(_state()))
    assert toy.digest(restored) == toy.digest(_state(0)) and progress == PROGRESS


def test_the_newest_is_kept_alone(checkpoints):
    assert checkpoints.latest_step() is None
    for step in (3, 6):
        checkpoints.save(step, _state(step), PROGRESS, CONFIG)
    checkpoints.wait()
    assert checkpoints.latest_step() == 6
    assert toy.digest(checkpoints.restore(_abstract(_state()))[0]) == toy.digest(_state(6))
    with pytest.raises(InputError, match="latest/3: the checkpoint cannot be read"):
        checkpoints.restore(_abstract(_state()), 3)


def test_an_earlier_step_is_not_lost_silently(checkpoints):
    checkpoints.save(6, _state(6), PROGRESS, CONFIG)
    checkpoints.wait()
    with pytest.raises(InputError, match="latest: holds step 6, later than step 3 of this run"):
        checkpoints.save(3, _state(3), PROGRESS, CONFIG)


def test_more_can_be_kept_and_asked_for(tmp_path):
    checkpoints = Checkpoints(tmp_path, "latest", keep=2)
    for step in (3, 6):
        checkpoints.save(step, _state(step), PROGRESS, CONFIG)
    checkpoints.wait()
    for step in (3, 6):
        assert toy.digest(checkpoints.restore(_abstract(_state()), step)[0]) == toy.digest(_state(step))
    checkpoints.close()


def test_latest_and_best_lie_side_by_side(tmp_path, checkpoints):
    best = Checkpoints(tmp_path, "best")
    checkpoints.save(6, _state(6), PROGRESS, CONFIG)
    best.save(3, _state(3), PROGRESS, CONFIG)
    best.close()
    checkpoints.wait()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*/[0-9]*")) == [
        "checkpoints/best/3",
        "checkpoints/latest/6",
    ]
    assert (checkpoints.latest_step(), Checkpoints(tmp_path, "best").latest_step()) == (6, 3)


@pytest.mark.parametrize(
    "other", [{"x": jnp.zeros((3, 6))}, {"x": jnp.zeros((3, 5)), "y": jnp.zeros(1)}, {}], ids=["wider", "more", "less"]
)
def test_another_model_does_not_fit(checkpoints, other):
    checkpoints.save(3, {"x": jnp.zeros((3, 5))}, PROGRESS, CONFIG)
    checkpoints.wait()
    with pytest.raises(InputError, match=r"latest/3: the checkpoint cannot be read .*another model"):
        checkpoints.restore(_abstract(other))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/checkpoints/latest: cannot write"):
        Checkpoints(tmp_path / "file", "latest")


def test_abstract_keeps_shape_type_and_place():
    state = _state()
    kernel = _abstract(state)["params"]["backbone"]["half"]
    assert (kernel.shape, kernel.dtype) == ((3, 5), np.dtype(jnp.bfloat16))
    assert kernel.sharding == state["params"]["backbone"]["half"].sharding

"""Schedules: which stream and which parts a step trains."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediax import schedule
from mediax.errors import InputError
from mediax.schedule import Turn

PARTS = {"a": ["backbone", "head/a/x"], "b": ["backbone", "neck/y", "head/b/y"]}
WEIGHTS = {"a": 1.0, "b": 1.0}


def test_cyclic_takes_the_streams_in_turn():
    turns = [schedule.cyclic(PARTS, WEIGHTS)(step) for step in range(4)]
    assert [turn.stream for turn in turns] == ["a", "b", "a", "b"]
    assert turns[1] == Turn("b", ("backbone", "neck/y", "head/b/y"))


def test_frozen_parts_are_not_live():
    assert schedule.cyclic(PARTS, WEIGHTS, ["backbone"])(0).live == ("head/a/x",)
    assert schedule.cyclic(PARTS, WEIGHTS, ["head/b/*"])(1).live == ("backbone", "neck/y")


def test_lock_release_locks_then_releases_each_stream():
    plan = schedule.lock_release(PARTS, WEIGHTS, steps=2, lock=["backbone"])
    assert [plan(step).stream for step in range(9)] == ["a"] * 4 + ["b"] * 4 + ["a"]
    assert ["backbone" in plan(step).live for step in range(8)] == [False, False, True, True] * 2


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_proportional_never_strays_from_the_proportion(weights):
    weights = {f"s{index}": float(weight) for index, weight in enumerate(weights)}
    plan = schedule.proportional({name: ["backbone"] for name in weights}, weights)
    taken = dict.fromkeys(weights, 0)
    for step in range(200):
        taken[plan(step).stream] += 1
        for name, weight in weights.items():
            exact = (step + 1) * weight / sum(weights.values())
            assert abs(taken[name] - exact) < 1 + len(weights) / 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: schedule.build("cycle", PARTS, WEIGHTS, ()), "did you mean 'cyclic'"),
        (lambda: schedule.build("cyclic", PARTS, WEIGHTS, ("backbon",)), "did you mean 'backbone'"),
        (lambda: schedule.build("cyclic", PARTS, WEIGHTS, ("*",)), "nothing would learn"),
        (lambda: schedule.build("lock_release", PARTS, WEIGHTS, ()), "steps"),
        (lambda: schedule.build("proportional", PARTS, {"a": 0.0, "b": 0.0}, ()), "not all zero"),
        (lambda: schedule.build("proportional", PARTS, {"a": 5000.0, "b": 1.0}, ()), "streams.b.weight is 1 of 5001"),
    ],
)
def test_errors_name_the_field(call, words):
    with pytest.raises(InputError, match=words):
        call()

"""Preemption: SIGTERM stops a run, at once or between two steps."""

import signal

import jax
import pytest
from jax.experimental import multihost_utils

from mediax.preemption import Preempted, Preemption


@pytest.fixture(autouse=True)
def handler():
    """Gives the handler of before and restores it, so that the tests' own process can be stopped again."""
    before = signal.getsignal(signal.SIGTERM)
    yield before
    signal.signal(signal.SIGTERM, before)


def test_sigterm_while_training_waits_to_be_asked_for():
    preemption = Preemption()
    with pytest.raises(Preempted), preemption.deferred():
        assert not preemption.reached(1)
        signal.raise_signal(signal.SIGTERM)
        assert preemption.reached(2) and preemption.reached(3)


def test_sigterm_after_it_was_last_asked_for_is_answered_at_the_end():
    preemption, done = Preemption(), []
    with pytest.raises(Preempted, match="same command resumes"), preemption.deferred():
        signal.raise_signal(signal.SIGTERM)
        done.append("the last evaluation")
    assert done


def test_sigterm_before_and_after_training_stops_at_once():
    preemption = Preemption()
    with pytest.raises(Preempted, match="same command resumes"):
        signal.raise_signal(signal.SIGTERM)
    preemption = Preemption()
    with pytest.raises(ValueError), preemption.deferred():
        raise ValueError
    with pytest.raises(Preempted):
        signal.raise_signal(signal.SIGTERM)


def test_each_run_starts_unsignalled():
    first = Preemption()
    with pytest.raises(Preempted), first.deferred():
        signal.raise_signal(signal.SIGTERM)
    second = Preemption()
    assert first.reached(1) and not second.reached(1)


def test_several_processes_leave_the_signal_to_jax(monkeypatch, handler):
    asked = []

    def reached(step):
        asked.append(step)
        return step == 3

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", reached)
    preemption = Preemption()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [preemption.reached(step) for step in (1, 2, 3)] == [False, False, True]
    assert asked == [1, 2, 3]

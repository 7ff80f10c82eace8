"""Preemption: the scheduler's SIGTERM, answered by a checkpoint and an exit code that asks for another start."""

import contextlib
import os
import signal
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

EXIT_CODE = os.EX_TEMPFAIL  # 75: unfinished; the same command resumes


class Preempted(Exception):
    """The run was told to stop; the same command resumes it from its last checkpoint."""


class Preemption:
    """Catches SIGTERM: at once where nothing is at stake, between two steps while training.

    With several processes jax's own handler agrees on a step that all of them stop after.
    """

    def __init__(self):
        self._signalled = self._deferred = False
        self._several = jax.process_count() > 1
        if not self._several:
            signal.signal(signal.SIGTERM, self._notice)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Keeps a SIGTERM back within the block, for `reached` to report; raises Preempted at its end otherwise."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._signalled:
            raise Preempted("stopped by SIGTERM; the same command resumes")

    def reached(self, step: int) -> bool:
        """Says whether to save and stop after `step`."""
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._signalled

    def _notice(self, number, frame) -> None:
        self._signalled = True
        if not self._deferred:
            raise Preempted("stopped by SIGTERM; the same command resumes")

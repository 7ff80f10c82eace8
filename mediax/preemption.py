"""Preemption: the scheduler's SIGTERM, noticed between two steps on all processes at once."""

import os
import signal

import jax
from jax.experimental import multihost_utils

EXIT_CODE = os.EX_TEMPFAIL  # 75: saved and unfinished; the same command resumes


class Preempted(Exception):
    """The run was told to stop and has saved its checkpoint."""


class Preemption:
    """Catches SIGTERM. `reached(step)` is asked after each step.

    With several processes jax's own handler agrees on a step that all of them stop after.
    """

    def __init__(self):
        self._signalled = False
        self._several = jax.process_count() > 1
        if not self._several:
            signal.signal(signal.SIGTERM, self._notice)

    def reached(self, step: int) -> bool:
        """Says whether to save and stop after `step`."""
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._signalled

    def _notice(self, number, frame) -> None:
        self._signalled = True

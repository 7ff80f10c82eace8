"""Drawing many phantom images: on all cores where there are many, without the start of other processes for a few."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

ALONE_SECONDS = 3.0  # about what it takes until other processes have imported what they need


def in_order(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Maps, and yields the results in the order of the items; which process drew an image makes no difference to it.

    What is not done after a few seconds is done by a process on each core that this one may use: drawing holds the lock
    of Python's interpreter, so threads would wait for each other.
    """
    items, started, workers = iter(items), time.monotonic(), cores()
    for item in items:
        yield function(item)
        if workers > 1 and time.monotonic() - started > ALONE_SECONDS:
            break
    left = list(items)
    if left:
        import joblib  # late: it takes a moment

        yield from joblib.Parallel(workers, return_as="generator")(joblib.delayed(function)(item) for item in left)


def cores() -> int:
    """Counts the cores that this process may use, 32 at most: beyond that a disk is what drawing waits for."""
    return min(32, len(os.sched_getaffinity(0)))

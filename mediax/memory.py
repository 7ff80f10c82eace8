"""How the C library hands memory out: the one setting that a training step on a CPU feels."""

import ctypes
import sys

# Numbers of glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8
LARGEST = 2**31 - 1


def keep_freed() -> bool:
    """Lets this process keep the memory that it frees, for its next allocation; returns whether the C library can.

    XLA allocates its buffers anew for each step on a CPU. By default glibc returns blocks of that size to the system at
    once, and the system zeroes every page of them again in the next step, with all threads waiting for each other:
    measured, two thirds of a small network's step, and a seventh of decoding a radiograph. To be called before the
    threads start; only glibc is affected.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    # One heap that only grows, in large pieces: what lies outside of it is given back when it is freed.
    settings = {MMAP_MAX: 0, ARENA_MAX: 1, TRIM_THRESHOLD: LARGEST, TOP_PAD: 2**28}
    accepted = [libc.mallopt(setting, value) for setting, value in settings.items()]
    return all(accepted)

"""Schedules: pure functions from a step to the Turn that it trains, so that resuming one costs nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from mediax.catalog import suggestion
from mediax.errors import InputError


class Turn(NamedTuple):
    """What one step does: the stream it reads and the parts that it updates; hashable, a static argument of jit."""

    stream: str
    live: tuple[str, ...]


Schedule = Callable[[int], Turn]
Parts = Mapping[str, Sequence[str]]  # stream -> the parts that its tasks run through


def cyclic(parts: Parts, weights: Mapping[str, float], frozen: Sequence[str] = ()) -> Schedule:
    """Takes the streams in turn, one step each, with all but the frozen parts live.

    The order is that of `parts`: alphabetical, because a config keeps its keys sorted.
    """
    turns = _turns(parts, frozen)
    order = list(parts)
    return lambda step: turns[order[step % len(order)]]


def proportional(parts: Parts, weights: Mapping[str, float], frozen: Sequence[str] = ()) -> Schedule:
    """Takes each stream as often as its weight says, spread as evenly as whole steps allow.

    Step t goes to the stream whose share lags most behind weight * t, so every prefix is within one step of the exact
    proportion for each stream (the Sainte-Lague rule; Balinski and Young, 1982).
    """
    turns = _turns(parts, frozen)
    order = _even_order({name: float(weights[name]) for name in parts})
    return lambda step: turns[order[step % len(order)]]


def lock_release(
    parts: Parts, weights: Mapping[str, float], frozen: Sequence[str] = (), *, steps: int, lock: Sequence[str]
) -> Schedule:
    """Takes `steps` steps of a stream with the parts that match `lock` held still, then as many with them released.

    Follows the training of Foundation X (Islam et al., WACV 2025): each stream first fits its heads to the shared
    backbone, then moves both; then comes the next stream.
    """
    if steps < 1:
        raise InputError(
            f"config field schedule.options.steps is {steps}: expected at least 1 step in each half of a turn"
        )
    locked, released = _turns(parts, [*frozen, *lock]), _turns(parts, frozen)
    order = list(parts)

    def turn(step: int) -> Turn:
        half, stream = (step // steps) % 2, order[(step // (2 * steps)) % len(order)]
        return (released if half else locked)[stream]

    return turn


def _turns(parts: Parts, frozen: Sequence[str]) -> dict[str, Turn]:
    every = {part for names in parts.values() for part in names}
    for pattern in frozen:
        if not any(fnmatchcase(part, pattern) for part in every):
            raise InputError(f"config: no part matches the pattern {pattern!r}; {suggestion(pattern, every)}")
    turns = {}
    for stream, names in parts.items():
        live = tuple(part for part in names if not any(fnmatchcase(part, pattern) for pattern in frozen))
        if not live:
            raise InputError(f"config: every part of stream {stream!r} is frozen, nothing would learn")
        turns[stream] = Turn(stream, live)
    return turns


def _even_order(weights: Mapping[str, float], resolution: int = 1000) -> list[str]:
    """One period of the even interleaving, with weights rounded to 1/resolution of their sum."""
    total = sum(weights.values())
    if total <= 0 or min(weights.values()) < 0 or not math.isfinite(total):
        raise InputError(f"config: stream weights {dict(weights)} must be finite, not negative, and not all zero")
    shares = {name: round(resolution * weight / total) for name, weight in weights.items() if weight > 0}
    if rare := [name for name, share in shares.items() if share == 0]:
        raise InputError(
            f"config field streams.{rare[0]}.weight is {weights[rare[0]]:g} of {total:g}: expected 0, which leaves the "
            f"stream out, or at least 1/{resolution} of the sum of the weights"
        )
    divisor = math.gcd(*shares.values())
    shares = {name: share // divisor for name, share in shares.items()}
    taken = dict.fromkeys(shares, 0)
    order = []
    for _ in range(sum(shares.values())):
        name = min(shares, key=lambda name: (taken[name] + 0.5) / shares[name])
        taken[name] += 1
        order.append(name)
    return order


SCHEDULES = {"cyclic": cyclic, "proportional": proportional, "lock_release": lock_release}


def build(name: str, parts: Parts, weights: Mapping[str, float], frozen: Sequence[str], **options) -> Schedule:
    """Builds the schedule called `name`; raises InputError for an unknown name or option."""
    if name not in SCHEDULES:
        raise InputError(f"config field schedule.name: no schedule {name!r}; {suggestion(name, SCHEDULES)}")
    try:
        return SCHEDULES[name](parts, weights, frozen, **options)
    except TypeError as error:
        raise InputError(f"config field schedule: {error}") from None

"""How far a run is: one live line on a terminal, a line now and then in a log file."""

from __future__ import annotations

import collections
import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

WINDOW_SECONDS = 30.0
TERMINAL_INTERVAL = 0.1
FILE_INTERVAL = 10.0


class Progress:
    """Shows step, values, recent images/s and the time left on stderr; nothing of it enters the metric log.

    On a terminal one line is drawn over and over; otherwise at most one line is printed every ten seconds, so that a
    log file stays readable. Speed and time left come from the last half minute and leave out the first step, which
    compiles. Use as a context manager, or call `close`, for the summary line.

    Args:
      total_steps: steps of the whole run.
      start_step: the step that training resumed from.
      batch_rows: images a step, over all processes, where `update` is not told.
      stream: standard error if None.
      host: False on processes other than the first, which show nothing.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        batch_rows: int = 0,
        *,
        stream: TextIO | None = None,
        host: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._start, self._step, self._batch_rows = total_steps, start_step, start_step, batch_rows
        self._stream = stream or sys.stderr
        self._host, self._clock = host, clock
        self._terminal = self._stream.isatty()
        self._interval = TERMINAL_INTERVAL if self._terminal else FILE_INTERVAL
        self._images = 0
        self._began = clock()
        self._paused = 0.0
        self._shown_at = -float("inf")
        self._recent: collections.deque[tuple[float, int, int]] = collections.deque()  # working seconds, step, images

    def update(self, step: int, images: int | None = None, **shown: Any) -> None:
        """Says that `step` is done, with `images` more images than at the last update.

        The `shown` numbers may still be on a device: they are fetched only when a line is due.
        """
        self._images += self._batch_rows * (step - self._step) if images is None else images
        self._step = step
        now = self._clock()
        self._recent.append((now - self._paused, step, self._images))
        while len(self._recent) > 2 and self._recent[-1][0] - self._recent[1][0] >= WINDOW_SECONDS:
            self._recent.popleft()
        if self._host and now - self._shown_at >= self._interval:
            self._shown_at = now
            self._show(self._line(shown))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves out of speed and time left what happens inside: an evaluation, a checkpoint."""
        self._clear()
        began = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - began

    def close(self) -> None:
        """Prints the summary line: steps and images of this run, the time, the mean speed."""
        if not self._host:
            return
        seconds = self._clock() - self._began
        working = max(seconds - self._paused, 1e-9)
        line = f"step {self._step:,}/{self._total:,}: {self._step - self._start:,} steps"
        if self._images:
            line += f", {self._images:,} images"
        line += f" in {duration(seconds)}"
        if self._images:
            line += f" ({_speed(self._images / working)} with compilation)"
        self._clear()
        print(line, file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _line(self, shown: dict[str, Any]) -> str:
        parts = [f"step {self._step:,}/{self._total:,} ({self._step / max(self._total, 1):.0%})"]
        parts += [f"{name.replace('_', ' ')} {_number(value)}" for name, value in shown.items()]
        seconds, steps, images = (last - first for first, last in zip(self._recent[0], self._recent[-1]))
        if seconds > 0 and steps > 0:
            if images:
                parts.append(_speed(images / seconds))
            parts.append(f"{duration(max(self._total - self._step, 0) * seconds / steps)} left")
        return "  ".join(parts)

    def _show(self, line: str) -> None:
        if not self._terminal:
            print(line, file=self._stream, flush=True)
            return
        # The cursor goes back to the start of the line, so that a log message overwrites it instead of continuing it.
        width = shutil.get_terminal_size().columns
        self._stream.write(f"\r\x1b[K{line[: width - 1]}\r")
        self._stream.flush()

    def _clear(self) -> None:
        if self._host and self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def duration(seconds: float) -> str:
    """Returns seconds as a person would say them: 42 s, 3 min 20 s, 5 h 07 min, 2 d 4 h."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def _number(value: Any) -> str:
    return value if isinstance(value, str) else f"{float(value):.4g}"


def _speed(images_per_second: float) -> str:
    return f"{images_per_second:,.0f} images/s" if images_per_second >= 10 else f"{images_per_second:.2g} images/s"

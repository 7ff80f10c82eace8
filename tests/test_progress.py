"""Progress: few lines in a log file, one line on a terminal, figures fetched only when shown."""

import io

import pytest

from mediax.progress import Progress, duration


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


class OnDevice:
    """A number whose fetch is counted."""

    fetched = 0

    def __float__(self):
        OnDevice.fetched += 1
        return 0.51234


def run(stream, steps=1000, seconds=0.05, **options):
    clock = Clock()
    progress = Progress(steps, stream=stream, clock=clock, **options)
    clock.now += 20  # compilation
    for step in range(1, steps + 1):
        progress.update(step, 8, loss=OnDevice())
        clock.now += seconds
    progress.close()
    return stream.getvalue()


def test_a_log_file_gets_a_line_every_ten_seconds():
    OnDevice.fetched = 0
    lines = run(io.StringIO()).splitlines()
    assert len(lines) == 6  # 50 s of steps: at 0, 10, 20, 30, 40, and the summary
    assert OnDevice.fetched == 5
    assert lines[0] == "step 1/1,000 (0%)  loss 0.5123"
    assert lines[2] == "step 401/1,000 (40%)  loss 0.5123  160 images/s  30 s left"
    assert lines[-1] == ("step 1,000/1,000: 1,000 steps, 8,000 images in 1 min 10 s (114 images/s with compilation)")


def test_a_terminal_gets_one_line_that_is_overwritten():
    written = run(Terminal(), steps=100)
    assert written.count("\n") == 1 and written.endswith(")\n")
    assert "\r\x1b[Kstep 4/100 (4%)  loss 0.5123  160 images/s  5 s left\r" in written


def test_a_long_line_stays_within_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Progress(10, stream=stream).update(1, 8, a_very_long_name_of_a_loss=1.0)
    assert stream.getvalue() == "\r\x1b[Kstep 1/10 (10%)  a \r"


def test_pauses_count_neither_for_the_speed_nor_for_the_time_left():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100, 10, 4, stream=stream, clock=clock)
    progress.update(11)
    clock.now += 1
    with progress.pause():
        clock.now += 500
    clock.now += 1
    progress.update(13)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[1] == "step 13/100 (13%)  4 images/s  1 min 27 s left"
    assert lines[2] == "step 13/100: 3 steps, 12 images in 8 min 22 s (6 images/s with compilation)"


def test_the_speed_is_the_recent_one():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1000, stream=stream, clock=clock)
    for step in range(1, 101):
        progress.update(step, 10)
        clock.now += 1 if step < 50 else 2
    assert "5 images/s" in stream.getvalue().splitlines()[-1]


def test_other_processes_show_nothing():
    assert run(io.StringIO(), steps=20, host=False) == ""


def test_the_context_manager_prints_the_summary_on_an_error_too():
    stream = io.StringIO()
    with pytest.raises(KeyError), Progress(10, stream=stream):
        raise KeyError
    assert stream.getvalue().startswith("step 0/10: 0 steps in 0 s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3600 * 5 + 420, "5 h 07 min"), (187200, "2 d 4 h")],
)
def test_durations_are_said_as_a_person_would(seconds, text):
    assert duration(seconds) == text

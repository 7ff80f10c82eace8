"""The metric log of a run: a JSON-lines file, the console and TensorBoard events, through CLU's metric writers."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import sys
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mediax.errors import InputError
from mediax.files import naming_file, plain, replace_file

# clu.metric_writers imports TensorFlow through this one module, without declaring it. Where TensorFlow is absent an
# empty module takes its place, and `SummaryWriter` below takes the place of the class that it would have brought.
_NEEDS_TENSORFLOW = "clu.metric_writers.summary_writer"
_STAND_IN = importlib.util.find_spec("tensorflow") is None and _NEEDS_TENSORFLOW not in sys.modules
if _STAND_IN:
    sys.modules[_NEEDS_TENSORFLOW] = types.ModuleType(_NEEDS_TENSORFLOW)
    sys.modules[_NEEDS_TENSORFLOW].SummaryWriter = None

from clu import metric_writers  # noqa: E402  (the stand-in has to be there first)


class SummaryWriter(metric_writers.MetricWriter):
    """TensorBoard events without TensorFlow: scalars, images, texts and histograms.

    Events with a step >= `purge_step`, left by a run that was killed, disappear from TensorBoard. Writing is
    synchronous: tensorboardX's own writer hands events to a thread, which blocks the run for ever once it has died of
    a full disk. Raises OSError.
    """

    def __init__(self, logdir: str, purge_step: int = 0):
        os.makedirs(logdir, exist_ok=True)
        # The name tells runs apart by the second; without the suffix a quick restart would overwrite its predecessor.
        self._events = EventsWriter(os.path.join(logdir, "events"), filename_suffix=f".{time.time_ns()}")
        self._add(purge_step, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
        self._add(step, summary=Summary(value=values))

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        for name, image in images.items():
            image = np.asarray(image)
            for i, one in enumerate(image.reshape(-1, *image.shape[-3:])):
                self._add(step, summary=summary.image(f"{name}/{i}", one, dataformats="HWC"))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            self._add(step, summary=summary.text(name, text))

    def write_histograms(self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping | None = None) -> None:
        for name, values in arrays.items():
            buckets = (num_buckets or {}).get(name) or 30
            self._add(step, summary=summary.histogram(name, np.asarray(values).ravel(), bins=buckets))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self.write_texts(0, {"hparams": "\n".join(f"    {name}: {value}" for name, value in hparams.items())})

    def _not_without_tensorflow(self, step: int, *arguments: Any, **options: Any) -> None:
        raise NotImplementedError("without TensorFlow: scalars, images, texts and histograms only")

    write_summaries = write_videos = write_audios = _not_without_tensorflow

    def flush(self) -> None:
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _add(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))


if _STAND_IN:
    for _module in (sys.modules[_NEEDS_TENSORFLOW], metric_writers, metric_writers.utils):
        _module.SummaryWriter = SummaryWriter


class MetricLog:
    """The scalars of a run, by step: `metrics.jsonl`, the console, and TensorBoard events in `tensorboard/`.

    `metrics.jsonl` holds one JSON object a line, {"step": 20, "loss": 0.5, ...}, names sorted, neither time nor speed;
    non-finite values are the strings "NaN", "Infinity" and "-Infinity". A run that is killed at any moment and resumed
    from a checkpoint ends with the same bytes as one that was not, provided that everything up to the checkpoint's
    step is written, then `flush` is called, then the checkpoint is saved.

    Args:
      workdir: created if absent.
      resume_step: the step of the checkpoint that training continues from: later rows are dropped. 0 is a start from
        scratch: a log that is already there is renamed to metrics.1.jsonl (the first free number), not lost.
      host: False on processes other than the first, which write nothing.

    Raises:
      InputError: from every method, when a file cannot be written (a full disk) or the log is not a log.
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int, host: bool = True):
        self._host = host
        if not host:
            return
        self._path = Path(workdir) / "metrics.jsonl"
        self._events = Path(workdir) / "tensorboard"
        with naming_file(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _rewind(self._path, resume_step)
            # Unbuffered, so that no half line stays behind in memory to be written after an error.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 (closed by close)
        with naming_file(self._events):
            purge_step = resume_step + 1 if resume_step else 0
            events = SummaryWriter(str(self._events), purge_step)
            self._writer = metric_writers.MultiWriter([metric_writers.LoggingWriter(), events])

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one row; `scalars` are numbers or arrays of size one, and reach the file before this returns."""
        if not self._host:
            return
        if "step" in scalars:
            raise ValueError('a scalar may not be named "step": each row has that already')
        values = {name: float(np.asarray(scalars[name]).item()) for name in sorted(scalars)}
        row = json.dumps(plain({"step": int(step), **values}), allow_nan=False).encode() + b"\n"
        with naming_file(self._path):
            self._append(row)
        with naming_file(self._events):
            self._writer.write_scalars(int(step), values)

    def _append(self, row: bytes) -> None:
        end = self._file.tell()
        try:
            while row:
                row = row[self._file.write(row) :]
        except OSError:
            # Taking the half row back is a courtesy to readers; a resume drops it anyway.
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures to TensorBoard: u8[N,H,W,C] in 0..255 or f32[N,H,W,C] in [0,1], C is 1 or 3."""
        if not self._host:
            return
        with naming_file(self._events):
            self._writer.write_images(int(step), {name: _eight_bit(images[name]) for name in sorted(images)})

    def flush(self) -> None:
        """Returns once everything written is on the disk; call it before every checkpoint."""
        if not self._host:
            return
        with naming_file(self._path):
            os.fsync(self._file.fileno())
        with naming_file(self._events):
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes; nothing can be written afterwards."""
        if not self._host:
            return
        self.flush()
        self._file.close()
        self._writer.close()


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, float]]:
    """Returns the rows of `metrics.jsonl`, non-finite values as floats; [] without a log.

    A last line that was cut off while being written is left out. Raises InputError if another line is not a row.
    """
    path = Path(workdir) / "metrics.jsonl"
    return [{"step": row.pop("step"), **{k: float(v) for k, v in row.items()}} for _, row in _rows(path)]


def _rows(path: Path) -> Iterator[tuple[bytes, dict]]:
    """Yields each line with its newline, and its row."""
    if not path.exists():
        return
    lines = path.read_bytes().rstrip(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            int(row["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                return
            raise InputError(
                f'{path}, line {number}: found {line[:80]!r}, expected a JSON object with "step". Remove that line, or '
                "start in another workdir."
            ) from error
        yield line + b"\n", row


def _rewind(path: Path, resume_step: int) -> None:
    if not path.exists() or not path.stat().st_size:
        return
    if resume_step == 0:
        backups = (path.with_name(f"{path.stem}.{i}{path.suffix}") for i in itertools.count(1))
        backup = next(backup for backup in backups if not backup.exists())
        os.replace(path, backup)
        logging.warning("Training starts at step 0: the metric log of an earlier start is now %s", backup)
        return
    kept = b"".join(line for line, row in _rows(path) if row["step"] <= resume_step)
    if kept != path.read_bytes():
        replace_file(path, kept)


def _eight_bit(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images have shape {images.shape}, expected [N,H,W,1] or [N,H,W,3]")
    if images.dtype == np.uint8:
        return images
    return np.round(np.clip(np.nan_to_num(images), 0, 1) * 255).astype(np.uint8)

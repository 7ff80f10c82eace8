"""What a run leaves behind: the metric log of its training, and the results of its evaluations."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
import types
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from mediax.errors import InputError
from mediax.metrics import Metric

# clu.metric_writers imports TensorFlow through this one module, without declaring it. Where TensorFlow is absent an
# empty module takes its place, and `SummaryWriter` below takes the place of the class that it would have brought.
_NEEDS_TENSORFLOW = "clu.metric_writers.summary_writer"
_STAND_IN = importlib.util.find_spec("tensorflow") is None and _NEEDS_TENSORFLOW not in sys.modules
if _STAND_IN:
    sys.modules[_NEEDS_TENSORFLOW] = types.ModuleType(_NEEDS_TENSORFLOW)
    sys.modules[_NEEDS_TENSORFLOW].SummaryWriter = None

from clu import metric_writers  # noqa: E402  (the stand-in has to be there first)

PHANTOM_WARNING = "Phantom data: these figures say nothing about the real dataset"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "clu", "numpy")
FIGURES = ("curves", "samples", "roc", "reliability", "confusion")


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
        row = json.dumps(_plain({"step": int(step), **values}), allow_nan=False).encode() + b"\n"
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


@dataclass(frozen=True)
class Result:
    """The metrics of one evaluation: one task on one split of one dataset, under one named protocol."""

    evaluation: str  # its name in the config: "test"
    dataset: str
    split: str
    task: str
    protocol: str
    metrics: tuple[Metric, ...]
    phantom: bool


def write_results(workdir: str | os.PathLike, *, run: Mapping[str, Any], results: Sequence[Result]) -> None:
    """Writes `results.json` for programs and `results.md` for people, each whole or not at all.

    Figures that lie in `workdir` (curves.png, samples_*.png, roc_*.png, reliability_*.png, confusion_*.png) are
    embedded by relative path, so draw them first.

    Args:
      workdir: created if absent.
      run: plain data; what makes the run repeatable: command (string or list of arguments), config, config_hash
        (see `config_hash`), seed, step, checkpoint, versions, devices, git_revision (or None), started, finished.
        Every further key is kept.
      results: undefined (NaN) figures become null in JSON, and a dash in the table beside their note.

    Raises:
      InputError: a file cannot be written (the earlier one stays as it was), or `run` is not plain data.
    """
    workdir = Path(workdir)
    with naming_file(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    content = {"run": _plain(run, "run"), "results": [_plain_result(result) for result in results]}
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    replace_file(workdir / "results.json", text.encode())
    replace_file(workdir / "results.md", _markdown(workdir, run, results).encode())


def _plain_result(result: Result) -> dict:
    plain = dataclasses.asdict(result)
    for metric in plain["metrics"]:
        for name, value in metric.items():
            if isinstance(value, float | np.floating) and not math.isfinite(value):
                metric[name] = None
    return _plain(plain, "results")


def _markdown(workdir: Path, run: Mapping[str, Any], results: Sequence[Result]) -> str:
    lines = [f"# Results: {workdir.resolve().name}", ""]
    if any(result.phantom for result in results):
        lines += [f"**{PHANTOM_WARNING}**", ""]
    command = run.get("command", "")
    if command:
        command = command if isinstance(command, str) else shlex.join(command)
        lines += ["Reproduce with", "", "```", command, "```", ""]
    for result in results:
        lines += [*_section(result), ""]
    lines += _embedded_figures(workdir)
    lines += ["## Run", "", "| | |", "|---|---|", *_run_rows(run)]
    return "\n".join(lines) + "\n"


def _section(result: Result) -> list[str]:
    lines = [
        f"## {result.evaluation}: {result.dataset}, {result.split}",
        "",
        f"Task {result.task}, protocol {result.protocol}" + (", phantom data." if result.phantom else "."),
        "",
    ]
    if not result.metrics:
        return [*lines, "No metrics."]
    lines += ["| metric | value | 95 % interval | n | note |", "|---|---:|---:|---:|---|"]
    return lines + [_row(metric, bold=not _of_one_class(metric)) for metric in _ordered(result.metrics)]


def _of_one_class(metric: Metric) -> bool:
    return "/" in metric.name and not metric.name.endswith("/macro")


def _ordered(metrics: Sequence[Metric]) -> list[Metric]:
    """Overall figures first, then those of single classes, one metric after the other; otherwise as given."""
    groups: dict[str, list[Metric]] = {}
    for metric in metrics:
        groups.setdefault(metric.name.partition("/")[0], []).append(metric)
    grouped = [metric for group in groups.values() for metric in group]
    return sorted(grouped, key=_of_one_class)


def _row(metric: Metric, bold: bool) -> str:
    interval = "" if math.isnan(metric.low) or math.isnan(metric.high) else f"{metric.low:.4f} to {metric.high:.4f}"
    p_value = "" if metric.p_value is None else f"p = {metric.p_value:.3g}"
    note = "; ".join(part for part in (p_value, metric.note) if part)
    name, value = _cell(metric.name), "–" if math.isnan(metric.value) else f"{metric.value:.4f}"
    if bold:
        name, value = f"**{name}**", f"**{value}**"
    return f"| {name} | {value} | {interval} | {metric.n} | {_cell(note)} |"


def _run_rows(run: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, value in run.items():
        if name in ("command", "config") or value is None:
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        rows.append(f"| {_cell(name.replace('_', ' '))} | {_cell(str(value))} |")
    return rows


def _embedded_figures(workdir: Path) -> list[str]:
    names = [path.name for kind in FIGURES for path in sorted(workdir.glob(f"{kind}*.png"))]
    if not names:
        return []
    return ["## Figures", "", *(f"![{Path(name).stem}]({urllib.parse.quote(name)})\n" for name in names)]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def config_hash(config: Mapping[str, Any]) -> str:
    """Returns the sha256, in hex, of the canonical JSON of a config: keys sorted, no spaces, non-ASCII escaped.

    The `config` in results.json has the same hash. Raises InputError if the config is not plain data.
    """
    canonical = json.dumps(_plain(config, "config"), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("mediax", *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def devices() -> dict[str, Any]:
    """Returns the kind and number of the devices that JAX computes on, over all processes."""
    import jax

    return {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }


def git_revision() -> str | None:
    """Returns the commit of the source tree that mediax runs from, "-modified" if it was edited; None without git."""
    source = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(source), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository, whose revision says nothing.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != source:
            return None
        modified = git("status", "--porcelain", "--", "mediax", "configs")
        return git("rev-parse", "HEAD") + ("-modified" if modified else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def replace_file(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file whole or not at all: to a temporary name beside it, then renamed. Raises InputError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.partial")
    with naming_file(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming_file(path: str | os.PathLike) -> Iterator[None]:
    """Turns an OSError (a full disk, no permission) into an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}). Expected a writable place with free space: make "
            "room there or choose another workdir, then run the same command again; a run resumes at its checkpoint."
        ) from error


def _plain(value: Any, where: str = "") -> Any:
    """Returns what strict JSON can hold; non-finite floats as strings, because JSON has no number for them."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), where)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict(), where)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise InputError(
        f"{where}: found {value!r} ({type(value).__name__}), expected plain data: numbers, strings, booleans, None, "
        "lists and dictionaries of them"
    )

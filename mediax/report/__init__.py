"""The results of a run: results.json for programs, results.md for people, and what makes them repeatable."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import shlex
import subprocess
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mediax.files import naming_file, plain, replace_file
from mediax.metrics import Metric

PHANTOM_WARNING = "Phantom data: these figures say nothing about the real dataset"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "clu", "numpy")
FIGURES = ("curves", "samples", "roc", "scatter", "success", "scores", "reliability", "confusion", "projection")

# What may stand beside a figure, and how it is called.
BESIDE = {"trivial": "trivial predictor", "reader": "second reader"}


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
    headline: tuple[str, ...] = ()  # the protocol's own figures, the first of all


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
    content = {"run": plain(run, "run"), "results": [_plain_result(result) for result in results]}
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    replace_file(workdir / "results.json", text.encode())
    replace_file(workdir / "results.md", _markdown(workdir, run, results).encode())


def headlines(results: Sequence[Result]) -> list[str]:
    """One line of each result for the console; it names the task where an evaluation has several."""
    evaluations = [result.evaluation for result in results]
    return [
        _headline(result, f"{name}/{result.task}" if evaluations.count(name) > 1 else name)
        for name, result in zip(evaluations, results)
    ]


def _headline(result: Result, name: str) -> str:
    """The first overall figures with their intervals."""
    overall = [metric for metric in _ordered(result) if _heads(metric, result)][:3]
    shown = ", ".join(f"{m.name} {m.value:.4f} [{m.low:.4f}, {m.high:.4f}]" for m in overall)
    return f"{name} ({result.dataset} {result.split}, n={overall[0].n if overall else 0}): {shown}"


def headline_name(names: Sequence[str]) -> str | None:
    """Picks the figure that stands for all: the first overall one, or the first if all are of single classes."""
    return next(iter([name for name in names if not _names_one_class(name)] or names), None)


def _plain_result(result: Result) -> dict:
    content = dataclasses.asdict(result)
    for metric in content["metrics"]:
        del metric["draws"]  # they lie in predictions/
        for name, value in metric.items():
            if isinstance(value, float | np.floating) and not math.isfinite(value):
                metric[name] = None
    return plain(content, "results")


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
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in run_rows(run)]
    lines += ["## Run", "", "| | |", "|---|---|", *rows]
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
    beside = [field for field in BESIDE if any(getattr(metric, field) is not None for metric in result.metrics)]
    titles = ["metric", "value", "95 % interval", *(BESIDE[field] for field in beside), "n", "note"]
    lines += [f"| {' | '.join(titles)} |", f"|---|---:|---:|{'---:|' * len(beside)}---:|---|"]
    return lines + [_row(metric, beside, bold=_heads(metric, result)) for metric in _ordered(result)]


def _heads(metric: Metric, result: Result) -> bool:
    """Whether a figure is the protocol's own, or of all classes where the protocol names none."""
    return metric.name in result.headline if result.headline else not _names_one_class(metric.name)


def _names_one_class(name: str) -> bool:
    return "/" in name and not name.endswith("/macro")


def _ordered(result: Result) -> list[Metric]:
    """The protocol's figures, overall ones, those of single classes; one metric after the other, otherwise as given."""
    groups: dict[str, list[Metric]] = {}
    for metric in result.metrics:
        groups.setdefault(metric.name.partition("/")[0], []).append(metric)
    grouped = [metric for group in groups.values() for metric in group]
    ranks = {name: rank for rank, name in enumerate(result.headline)}
    return sorted(grouped, key=lambda metric: (ranks.get(metric.name, len(ranks)), _names_one_class(metric.name)))


def _row(metric: Metric, beside: Sequence[str], bold: bool) -> str:
    interval = "" if math.isnan(metric.low) or math.isnan(metric.high) else f"{metric.low:.4f} to {metric.high:.4f}"
    name, value = _cell(metric.name), _shown(metric.value)
    if bold:
        name, value = f"**{name}**", f"**{value}**"
    cells = [name, value, interval, *(_shown(getattr(metric, field)) for field in beside), metric.n, _cell(metric.note)]
    return f"| {' | '.join(map(str, cells))} |"


def _shown(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


def run_rows(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Words what `write_results` was told of a run, but for its command and config: (name, value) of each."""
    rows = []
    for name, value in run.items():
        if name in ("command", "config") or value is None:
            continue
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        rows.append((name.replace("_", " "), str(value)))
    return rows


def figure_files(workdir: Path) -> list[Path]:
    """Finds the figures of a run, in the order in which they are shown."""
    return [path for kind in FIGURES for path in sorted(workdir.glob(f"{kind}*.png"))]


def _embedded_figures(workdir: Path) -> list[str]:
    names = [path.name for path in figure_files(workdir)]
    if not names:
        return []
    return ["## Figures", "", *(f"![{Path(name).stem}]({urllib.parse.quote(name)})\n" for name in names)]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def config_hash(config: Mapping[str, Any]) -> str:
    """Returns the sha256, in hex, of the canonical JSON of a config: keys sorted, no spaces, non-ASCII escaped.

    The `config` in results.json has the same hash. Raises InputError if the config is not plain data.
    """
    canonical = json.dumps(plain(config, "config"), sort_keys=True, separators=(",", ":"), allow_nan=False)
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
    source = Path(__file__).resolve().parents[2]

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

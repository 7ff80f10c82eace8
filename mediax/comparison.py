"""Runs beside each other: which model scored what on which dataset, and which differences are more than chance."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mediax import box_metrics, figures, metrics, protocols, report
from mediax.document import Block, Cell, Code, Figure, Heading, Items, Paragraph, Table, markdown, page
from mediax.errors import InputError
from mediax.files import naming_file, replace_file
from mediax.metric_log import read_metrics

TRACES = ("results.json", "metrics.jsonl", "checkpoints")  # any of them makes a folder a run
FIELDS = {"evaluation": str, "dataset": str, "split": str, "task": str, "protocol": str, "phantom": bool}
MOST_CURVES = 7  # models in one figure of curves: as many as there are colours
MOST_DIFFERENCES, LONGEST_VARIANT = 2, 60  # settings that name a variant of a model, and their characters
LEGEND = (
    "A cell is a headline figure on the whole split with its 95 % interval (bootstrap over patients), or the mean "
    "± standard deviation of the runs that differ in nothing but the seed, with their number.",
    "Bold: the best of its row. Unmarked: worse than the best by more than chance.",
    "≈ cannot be told apart from the best: the 95 % interval of the difference, from a bootstrap that draws the same "
    "patients for both, contains zero. Of several seeds the mean is compared.",
    "(≈) the same by a weaker rule, since the predictions of both on the same cases are not there: the two intervals "
    "overlap.",
    "? nothing to tell it by: no interval.",
    "p, where a bootstrap draws the same patients for both, is two-sided: twice the share on the rarer side of zero, "
    "draws at zero counted on both sides, with one added to count and total so that it is never zero.",
    "✗ not shown to be better than the trivial predictor, which never looks at an image.",
    "Each model is compared with the best one only, and no correction is made for comparing several.",
)


@dataclass(frozen=True)
class Run:
    """A finished run, as its results.json tells of it."""

    name: str
    folder: Path
    about: Mapping[str, Any]
    results: tuple[Mapping[str, Any], ...]

    @property
    def phantom(self) -> bool:
        return any(result["phantom"] for result in self.results)


@dataclass(frozen=True)
class Scored:
    """A headline figure of one run on one split, and the arrays that it was computed from, if they were kept."""

    run: Run
    result: Mapping[str, Any]
    metric: Mapping[str, Any]
    headline: tuple[Mapping[str, Any], ...]  # all headline figures; runs are compared by the first
    kind: str  # of task: a file of mediax/tasks/
    model: str
    data: str
    arrays: Mapping[str, np.ndarray] | None

    @property
    def value(self) -> float:
        return _number(self.metric["value"])


@dataclass(frozen=True)
class Entry:
    """One model on one dataset: the runs of one config, one for each seed."""

    label: str
    scored: tuple[Scored, ...]

    def of(self, name: str) -> Entry:
        """The same runs by another of their headline figures; those that lack it are left out."""
        found = [
            replace(one, metric=metric) for one in self.scored for metric in one.headline if metric["name"] == name
        ]
        return replace(self, scored=tuple(found))

    @property
    def value(self) -> float:
        return float(np.mean([one.value for one in self.scored]))

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval; of several seeds the means of both ends."""
        low, high = ([_number(one.metric[end]) for one in self.scored] for end in ("low", "high"))
        return float(np.mean(low)), float(np.mean(high))


@dataclass(frozen=True)
class Row:
    """The entries of one dataset; all are of the phantom, or none is."""

    label: str
    phantom: bool
    entries: tuple[Entry, ...]

    def of(self, name: str) -> Row:
        """The same entries by another of their headline figures; those that lack it are left out."""
        found = [entry.of(name) for entry in self.entries]
        return replace(self, entries=tuple(entry for entry in found if entry.scored))


@dataclass(frozen=True)
class Group:
    """What may stand in one table: one kind of task, protocol, split and figure to compare by."""

    kind: str
    protocol: str
    split: str
    metric: str
    rows: tuple[Row, ...]

    @property
    def figures(self) -> list[str]:
        """The names of all headline figures of its runs, that to compare by first."""
        every = [one for row in self.rows for entry in row.entries for one in entry.scored]
        return _headline(self.protocol, {metric["name"] for one in every for metric in one.headline})


class Difference(NamedTuple):
    """One entry minus another, with what it was judged by and the mark that a cell of the table gets."""

    value: float
    low: float
    high: float
    p_value: float  # two-sided; NaN without a paired interval
    basis: str
    mark: str


def write(paths: Sequence[str | os.PathLike], out: str | os.PathLike) -> list[str]:
    """Writes `report.md`, with `figures/`, and `report.html`, which needs no other file, into the folder `out`.

    Args:
      paths: folders of runs, or folders that hold some.
      out: created if absent.

    Returns what could not be read, one message each; the report lists it too.

    Raises:
      InputError: there is no run at all, or a file cannot be written.
    """
    runs, problems = find_runs(paths)
    if not runs:
        raise InputError(
            "\n".join(["no finished run to report on; expected folders that hold a results.json of mediax", *problems])
        )
    out = Path(out)
    with naming_file(out):
        (out / "figures").mkdir(parents=True, exist_ok=True)
    groups = arrange(scored_of(runs, problems), problems)
    blocks = [*_summary(runs), *_tables(groups, out, problems), *_runs(runs, out)]
    if problems:
        blocks += [Heading("Left out"), Items(problems)]
    replace_file(out / "report.md", markdown(blocks).encode())
    replace_file(out / "report.html", page(blocks).encode())
    return problems


# Reading runs.


def find_runs(paths: Sequence[str | os.PathLike]) -> tuple[list[Run], list[str]]:
    """Finds the runs in `paths` and below them; returns them by name, and what was wrong with the others."""
    problems: list[str] = []
    contents: dict[Path, dict[str, Any]] = {}
    for path in map(Path, paths):
        folders = list(_run_folders(path, problems))
        if not folders:
            problems.append(f"{path}: found no run here or below, expected a folder with a results.json")
        for folder in folders:
            try:
                contents[folder] = _read_results(folder)
            except InputError as error:
                problems.append(str(error))
    common = Path(os.path.commonpath([folder.parent for folder in contents])) if contents else None
    runs = [
        Run(folder.relative_to(common).as_posix(), folder, content["run"], tuple(content["results"]))
        for folder, content in contents.items()
    ]
    return sorted(runs, key=lambda run: _natural(run.name)), problems


def _run_folders(path: Path, problems: list[str]) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        problems.append(f"{error.filename}: cannot be read ({error.strerror})")

    for folder, below, files in os.walk(path, onerror=unreadable if path.is_dir() else None):
        if set(TRACES) & {*below, *files}:
            below.clear()
            yield Path(folder).resolve()


def _read_results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: found no results.json, the run is not finished; start it again with its own command, or with "
            "--mode=evaluate as well"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}), expected the results of a run of mediax") from error

    def expect(value: Any, kind: type | tuple, field: str) -> Any:
        if not isinstance(value, kind):
            raise InputError(f"{path}, {field}: found {str(value)[:80]!r}, expected what a run of mediax writes there")
        return value

    expect(content, dict, "top level")
    expect(expect(content.get("run"), dict, "run").get("config"), dict, "run.config")
    for i, result in enumerate(expect(content.get("results"), list, "results")):
        for name, kind in FIELDS.items():
            expect(expect(result, dict, f"results[{i}]").get(name), kind, f"results[{i}].{name}")
        for j, metric in enumerate(expect(result.get("metrics"), list, f"results[{i}].metrics")):
            where = f"results[{i}].metrics[{j}]"
            expect(expect(metric, dict, where).get("name"), str, f"{where}.name")
            expect(metric.get("n"), int, f"{where}.n")
            for name in ("value", "low", "high", "trivial", "reader"):
                metric[name] = expect(metric.get(name), (float, int, type(None)), f"{where}.{name}")
    return content


def scored_of(runs: Iterable[Run], problems: list[str]) -> list[Scored]:
    """Picks the headline figures of each result; adds damaged files of predictions to `problems`."""
    found = []
    for run, result in [(each, result) for each in runs for result in each.results]:
        by_name = {metric["name"]: metric for metric in result["metrics"]}
        headline = tuple(by_name[name] for name in _headline(result["protocol"], by_name))
        if not headline:
            continue
        path = run.folder / "predictions" / f"{result['evaluation']}_{result['task']}.npz"
        arrays = None
        if path.is_file():
            try:
                with np.load(path) as file:
                    arrays = dict(file)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                problems.append(f"{path}: cannot be read ({error}); --mode=evaluate writes it anew")
        kind, model, data = _described(run.about["config"], result)
        found.append(Scored(run, result, headline[0], headline, kind, model, data, arrays))
    return found


def _headline(protocol: str, names: Iterable[str]) -> list[str]:
    """Picks the protocol's figures of those that a run has, each also as that of masks; the one for all without any."""
    names = list(names)
    asked = [each for name in _protocol(protocol).headline for each in (name, f"mask_{name}")]
    fallback = report.headline_name(names)
    return [name for name in asked if name in names] or [fallback] * (fallback is not None)


def _protocol(text: str) -> protocols.Protocol:
    """Finds the protocol whose name a result's text starts with; one that mediax no longer has asks for nothing."""
    name = text.partition(" (")[0]
    return protocols.PROTOCOLS.get(name, protocols.Protocol(name, "", ""))


def _described(config: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, str, str]:
    """Words a result by the config of its run: the kind of task, the model, the dataset as it was built.

    This reads a file of an earlier run, maybe of an earlier mediax, so that whatever it lacks is left out.
    """

    def at(*path: str) -> Any:
        here: Any = config
        for name in path:
            here = _mapping(here).get(name)
        return here

    streams = list(_mapping(at("streams")))
    only = streams[0] if len(streams) == 1 else ""
    stream = at("evaluations", result["evaluation"], "stream") or only
    task = ("streams", stream, "tasks", result["task"])
    backbone = [at("backbone", "name"), at("backbone", "options", "variant")]
    words = [" ".join(str(word) for word in backbone if word), at(*task, "head", "name")]
    build = at("evaluations", result["evaluation"], "build") or at("streams", stream, "build")
    made_up = at("phantom", result["dataset"]) if result["phantom"] else None
    options = [*sorted(_mapping(build).items()), *sorted(_mapping(made_up).items())]
    # The size of the stored images is the model's choice, and does not make it another dataset.
    chosen = [_option(name, value) for name, value in options if name != "size"]
    return (
        str(at(*task, "name") or result["task"]),
        " + ".join(str(word) for word in words if word) or "unknown model",
        ", ".join([result["dataset"], *chosen]),
    )


def _option(name: str, value: Any) -> str:
    """Words an option; of a list or of a dict only how long it is."""
    return f"{len(value)} {name}" if isinstance(value, list | tuple | Mapping) else f"{name} {value}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# Arranging them.


def arrange(scored: Iterable[Scored], problems: list[str]) -> list[Group]:
    """Puts results into tables by kind of task, protocol, split and figure to compare by, and into rows by dataset.

    A run that repeats another one is left out; if its figures are others, `problems` gets a line.
    """

    def table(one: Scored) -> tuple:
        return one.kind, one.result["protocol"], one.result["split"], one.metric["name"]

    def row(one: Scored) -> tuple:
        return one.result["phantom"], one.data, len(_classes(one))

    groups = []
    for key, members in _grouped(scored, table):
        rows = [
            Row(f"{data}, {classes} classes" if classes > 1 else data, phantom, _entries(of_row, problems))
            for (phantom, data, classes), of_row in _grouped(members, row)
        ]
        groups.append(Group(*key, tuple(rows)))
    return groups


def _grouped(items: Iterable[Scored], key: Callable[[Scored], tuple]) -> Iterator[tuple[tuple, list[Scored]]]:
    for found, members in itertools.groupby(sorted(items, key=key), key):
        yield found, list(members)


def _classes(scored: Scored) -> list[str]:
    """The classes that have figures of their own, in their order."""
    names = [metric["name"].partition("/")[2] for metric in scored.result["metrics"]]
    return [name for name in dict.fromkeys(names) if name not in ("", "macro")]


def _entries(scored: Sequence[Scored], problems: list[str]) -> tuple[Entry, ...]:
    """Gathers the seeds of each config, and names the configs of one model by what tells them apart."""

    def config(one: Scored) -> tuple[str, str, str]:
        settings = {name: value for name, value in one.run.about["config"].items() if name != "seed"}
        return one.model, report.config_hash(settings), one.result["evaluation"]

    found = list(_grouped(scored, config))
    entries = []
    for model in dict.fromkeys(model for (model, *_), _ in found):
        of_model = [members for (name, *_), members in found if name == model]
        for members, variant in zip(of_model, _variants(of_model)):
            ordered = sorted(
                _one_of_each_seed(members, problems), key=lambda one: _natural(json.dumps(one.run.about.get("seed")))
            )
            entries.append(Entry(f"{model}, {variant}" if variant else model, tuple(ordered)))
    return tuple(sorted(entries, key=lambda entry: _natural(entry.label)))


def _one_of_each_seed(members: Sequence[Scored], problems: list[str]) -> list[Scored]:
    """The first run of each seed: a repeated run is one."""
    kept: dict[str, Scored] = {}
    for one in members:
        first = kept.setdefault(json.dumps(one.run.about.get("seed")), one)
        figures = [{metric["name"]: metric["value"] for metric in each.headline} for each in (one, first)]
        if figures[0] != figures[1]:
            names = [f"{each.run.folder} ({each.result['evaluation']}, {each.result['task']})" for each in (one, first)]
            values = [_shown(each.value) for each in (one, first)]
            problems.append(
                f"{names[0]}: left out as a repetition of {names[1]}, of the same config and seed, though its figures "
                f"are others ({one.metric['name']} {values[0]}, there {values[1]}); give one of them another seed, or "
                "make a report of each"
            )
    return [*kept.values()]


def _variants(configs: Sequence[Sequence[Scored]]) -> list[str]:
    """Names each of several configs of a model by the settings that differ, by its first run if those are many."""
    if len(configs) == 1:
        return [""]
    flat = [dict(_flat(members[0].run.about["config"])) for members in configs]
    names = sorted(set().union(*flat) - {"seed"})
    names = [name for name in names if len({one.get(name) for one in flat}) > 1]
    last = [name.rpartition(".")[2] for name in names]
    shown = last if len(set(last)) == len(last) else names
    settings = [", ".join(f"{word} {one.get(name, '–')}" for name, word in zip(names, shown)) for one in flat]
    runs = [members[0].run.name for members in configs]
    with_evaluation = [f"{members[0].run.name}, {members[0].result['evaluation']}" for members in configs]
    few = len(names) <= MOST_DIFFERENCES and max(map(len, settings)) <= LONGEST_VARIANT
    candidates = [settings, runs] if few else [runs]
    return next((texts for texts in candidates if len(set(texts)) == len(texts)), with_evaluation)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def _natural(text: str) -> list:
    """A key that sorts seed 10 after seed 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


# Comparing them.


def best(entries: Iterable[Entry]) -> Entry | None:
    """Finds the entry of the best value; None if none is defined."""
    return next(iter(ranked(entries)), None)


def ranked(entries: Iterable[Entry]) -> list[Entry]:
    """Sorts the entries whose value is defined, the best first."""
    defined = [entry for entry in entries if not math.isnan(entry.value)]
    return sorted(defined, key=lambda entry: metrics.sign(entry.scored[0].metric["name"]) * -entry.value)


def difference(entry: Entry, other: Entry) -> Difference:
    """Compares two entries by a paired bootstrap over patients, by the overlap of their intervals where it lacks."""
    value = entry.value - other.value
    draws = _paired_draws([*entry.scored, *other.scored])
    if draws is not None:
        count = len(entry.scored)
        group = entry.scored[0].arrays["group"]
        drawn = draws[:count].mean(0) - draws[count:].mean(0)
        found = metrics.with_interval("", value, drawn, group, "")
        basis = f"paired bootstrap, {len(np.unique(group)):,} patients"
        if not _same_targets([*entry.scored, *other.scored]):
            basis += "; the truths differ (image size, label policy)"
        if math.isnan(found.low):
            return Difference(value, math.nan, math.nan, math.nan, basis, "?")
        mark = "≈" if found.low <= 0 <= found.high else ""
        return Difference(value, found.low, found.high, metrics.two_sided_p_value(drawn), basis, mark)
    (low, high), (other_low, other_high) = entry.interval, other.interval
    if any(map(math.isnan, (low, high, other_low, other_high))):
        return Difference(value, math.nan, math.nan, math.nan, "no interval", "?")
    mark = "(≈)" if low <= other_high and other_low <= high else ""
    return Difference(value, math.nan, math.nan, math.nan, "overlap of intervals", mark)


def _paired_draws(scored: Sequence[Scored]) -> np.ndarray | None:
    """Returns the bootstrap draws f64[S,R] of the headline figure if all are of the same cases, else None.

    The draws of patients depend on their number alone (`metrics.multiplicities`), so they are the same patients.
    """
    found = []
    for one in scored:
        if one.arrays is None or not {"case", "group", "metric", "draws"} <= set(one.arrays):
            return None
        first = scored[0]
        same = all(np.array_equal(one.arrays[name], first.arrays[name]) for name in ("case", "group"))
        place = np.flatnonzero(one.arrays["metric"] == one.metric["name"])
        if not same or len(place) != 1 or one.metric["n"] != first.metric["n"]:
            return None
        found.append(one.arrays["draws"][place[0]].astype(np.float64))
    return np.stack(found) if len({len(draws) for draws in found}) == 1 else None


def _same_targets(scored: Sequence[Scored]) -> bool:
    """Whether what all runs keep of the truth is equal; some keep more of it than others."""
    first, *others = (one.arrays for one in scored)
    shared = [name for name in first if name.startswith("target/") and all(name in other for other in others)]
    return all(
        np.array_equal(other[name], first[name], equal_nan=first[name].dtype.kind == "f")
        for other in others
        for name in shared
    )


def beats_trivial(entry: Entry) -> bool | None:
    """Whether the interval (the value, without one) lies on the better side of the trivial score; None without one."""
    trivial = [_number(one.metric["trivial"]) for one in entry.scored]
    if np.isnan(trivial).any() or math.isnan(entry.value):
        return None
    sign = metrics.sign(entry.scored[0].metric["name"])
    ends = [end for end in entry.interval if not math.isnan(end)] or [entry.value]
    return min(sign * end for end in ends) > sign * float(np.mean(trivial))


# The parts of the report.


def _summary(runs: Sequence[Run]) -> Iterator[Block]:
    yield Heading("Comparison of runs", 1)
    phantoms = sum(run.phantom for run in runs)
    yield Paragraph(f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}, {phantoms} of them on phantoms.")
    if phantoms:
        yield Paragraph(
            f"{report.PHANTOM_WARNING}. They are marked PHANTOM and never share a row with real data.", True
        )
    yield Heading("How to read the tables")
    yield Items(LEGEND)


def _tables(groups: Sequence[Group], out: Path, problems: list[str]) -> Iterator[Block]:
    titles = [(group.kind, group.split, group.protocol) for group in groups]
    learned = set()  # training curves are shown once, however many splits the same runs are scored on
    for number, group in enumerate(groups, start=1):
        kind, protocol = group.kind.replace("_", " ").capitalize(), _protocol(group.protocol).name
        title = f"{kind}: split {group.split}, protocol {protocol}"
        several = titles.count((group.kind, group.split, group.protocol)) > 1
        yield Heading(f"{title}, {group.metric}" if several else title)
        yield Paragraph(f"Protocol {group.protocol}.")
        yield Paragraph(_worded(group.figures))
        yield _table(group)
        for place, row in enumerate(group.rows, start=1):
            below = [_differences(row)] if len(ranked(row.entries)) > 1 else []
            below += _curves(group, row, out, f"{number}_{place}")
            runs = tuple(entry.scored[0].run.folder for entry in row.entries)
            if (runs, group.metric) not in learned:
                learned.add((runs, group.metric))
                below += _learning(group, row, out, f"{number}_{place}", problems)
            if below:
                yield Heading(_marked(row.label, row.phantom), 3)
                yield from below


def _worded(names: Sequence[str]) -> str:
    worded = [f"{name} ({'higher' if metrics.sign(name) > 0 else 'lower'} is better)" for name in names]
    if len(names) == 1:
        return f"Headline figure: {worded[0]}."
    return f"Headline figures: {', '.join(worded)}. Below the table the models are compared by the first."


def _table(group: Group) -> Table:
    """A row for each headline figure of each dataset, which its first row names."""
    names = group.figures
    labels = sorted({entry.label for row in group.rows for entry in row.entries}, key=_natural)
    everything = [one for row in group.rows for entry in row.entries for one in entry.scored]
    has_reader = any(metric["reader"] is not None for one in everything for metric in one.headline)
    beside = ["trivial"] + ["reader"] * has_reader
    rows = []
    for row in group.rows:
        of_figures = {name: of_figure for name in names if (of_figure := row.of(name)).entries}
        for place, (name, of_figure) in enumerate(of_figures.items()):
            dataset = Cell("" if place else _marked(row.label, row.phantom))
            rows.append([dataset, *[name] * (len(names) > 1), *_cells(of_figure, beside, labels)])
    figure = ["figure"] * (len(names) > 1)
    return Table(["dataset", *figure, "n", *(report.BESIDE[name] for name in beside), *labels], rows)


def _cells(row: Row, beside: Sequence[str], labels: Sequence[str]) -> list[Cell | str]:
    """Number of cases, scores beside the models', and the models'."""
    scored = [one for entry in row.entries for one in entry.scored]
    counts = "; ".join(f"{n:,}" for n in sorted({one.metric["n"] for one in scored}))
    others = ["; ".join(sorted({_shown(_number(one.metric[name])) for one in scored})) for name in beside]
    winner, entries = best(row.entries), {entry.label: entry for entry in row.entries}
    return [counts, *others, *(_cell(entries.get(label), winner) for label in labels)]


def _cell(entry: Entry | None, winner: Entry | None) -> Cell:
    if entry is None:
        return Cell("")
    if winner is None or math.isnan(entry.value):
        return Cell("–")
    low, high = entry.interval
    if len(entry.scored) > 1:
        spread = np.std([one.value for one in entry.scored], ddof=1)
        text = f"{_shown(entry.value)} ± {_shown(spread)} (n = {len(entry.scored)})"
    else:
        text = _shown(entry.value) if math.isnan(low) else f"{_shown(entry.value)} ({_shown(low)} to {_shown(high)})"
    marks = ["" if entry is winner else difference(entry, winner).mark, "✗" if beats_trivial(entry) is False else ""]
    return Cell(" ".join([text, *filter(None, marks)]), strong=entry is winner)


def _differences(row: Row) -> Table:
    winner, *others = ranked(row.entries)
    first = [Cell(winner.label, True), Cell(_shown(winner.value), True), "the best", "", "", ""]
    rows: list[list[Cell | str]] = [first]
    for entry in others:
        found = difference(entry, winner)
        interval = "" if math.isnan(found.low) else f"{found.low:+.3f} to {found.high:+.3f}"
        value = f"{found.value:+.3f} {found.mark}".strip()
        p_value = "" if math.isnan(found.p_value) else f"{found.p_value:.3g}"
        rows.append([entry.label, _shown(entry.value), value, interval, p_value, found.basis])
    header = ["model", "value", "difference from the best", "95 % interval", "p", "judged by"]
    return Table(header, rows, left=True)


def _curves(group: Group, row: Row, out: Path, name: str) -> Iterator[Block]:
    """Draws the models of a row over each other, as far as their arrays were kept."""
    firsts, subject = _first_runs(group, row)
    if rocs := _roc_arrays(firsts):
        path = out / "figures" / f"{name}_roc.png"
        figures.compare_roc(path, *rocs)
        yield _figure(path, out, f"ROC and precision-recall: {subject}")
    protocol = _protocol(group.protocol)
    if detections := _detections(firsts, protocol):
        path = out / "figures" / f"{name}_froc.png"
        options = protocol.options
        hits = {"iou": float(options.get("iou", 0.5)), "reached": bool(options.get("reached", False))}
        reading = {"rates": options.get("rates", figures.FROC_RATES), "lower_end": options.get("lower_end", False)}
        drop_repeats = bool(options.get("drop_repeats", False))
        lines = {label: _froc(boxes, **hits, drop_repeats=drop_repeats) for label, boxes in detections.items()}
        figures.froc(path, lines, **hits, **reading)
        yield _figure(path, out, f"FROC, all classes together: {subject}")


def _learning(group: Group, row: Row, out: Path, name: str, problems: list[str]) -> Iterator[Block]:
    firsts, subject = _first_runs(group, row)
    logs = {}
    for label, one in firsts.items():
        try:
            logs[label] = read_metrics(one.run.folder)
        except InputError as error:
            problems.append(str(error))
    path = out / "figures" / f"{name}_learning.png"
    tasks = {one.result["task"] for one in firsts.values()}
    if figures.learning_curves(path, logs, f"{tasks.pop()}/{group.metric}" if len(tasks) == 1 else group.metric):
        yield _figure(path, out, f"Training: {subject}")


def _first_runs(group: Group, row: Row) -> tuple[dict[str, Scored], str]:
    """Picks the first seed of each model, no more models than colours, and words what a figure of them shows."""
    shown = ranked(row.entries)[:MOST_CURVES]
    subject = _marked(f"{row.label}, split {group.split}", row.phantom)
    if len(row.entries) > len(shown):
        subject += f", the {len(shown)} best of {len(row.entries)} models"
    return {_with_seed(entry): entry.scored[0] for entry in shown}, subject


def _with_seed(entry: Entry) -> str:
    several = len(entry.scored) > 1
    return f"{entry.label}, seed {entry.scored[0].run.about.get('seed')}" if several else entry.label


def _roc_arrays(scored: Mapping[str, Scored]) -> tuple[dict, list[str]] | None:
    """Returns name -> (scores, labels) of the classes that the protocol scores, and those; None if none were kept."""
    models: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    classes = next((_classes(one) for one in scored.values()), [])
    for label, one in scored.items():
        arrays = one.arrays or {}
        if not {"prediction/scores", "target/labels", "classes"} <= set(arrays) or _classes(one) != classes:
            continue
        scores, labels, names = arrays["prediction/scores"], arrays["target/labels"], arrays["classes"].tolist()
        fits = scores.shape == labels.shape == (len(scores), len(names)) and np.isfinite(scores).all()
        if fits and classes and set(classes) <= set(names):
            columns = [names.index(name) for name in classes]
            models[label] = scores[:, columns], labels[:, columns]
    return (models, classes) if models else None


def _detections(scored: Mapping[str, Scored], protocol: protocols.Protocol) -> dict[str, box_metrics.Boxes]:
    """Returns name -> the boxes that the protocol scores, of the runs that kept boxes, if there is one to find."""
    options = {name: value for name, value in protocol.options.items() if name in box_metrics.SELECTING}
    needed = {"prediction/boxes", "prediction/scores", "prediction/labels", "target/boxes", "target/boxes_known"}
    kept = {label: one.arrays for label, one in scored.items() if one.arrays and needed <= set(one.arrays)}
    boxes = {}
    for label, arrays in kept.items():
        parts, names = (_part(arrays, kind) for kind in ("prediction", "target")), arrays["classes"].tolist()
        found = box_metrics.gather(*parts, names, arrays["group"], **options)
        boxes[label] = box_metrics.of_classes(found, protocol.classes)
    return {label: found for label, found in boxes.items() if any(len(one["boxes"]) for one in found.true)}


def _part(arrays: Mapping[str, np.ndarray], kind: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{kind}/"): array for name, array in arrays.items() if name.startswith(f"{kind}/")}


def _froc(
    boxes: box_metrics.Boxes, iou: float, reached: bool = False, drop_repeats: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """False positives per image and sensitivity at each score, falling, a hit being of the right class."""
    labels = np.unique(np.concatenate([one["labels"] for one in (*boxes.found, *boxes.true)]))
    matched = [box_metrics.match_best(boxes, label, iou, reached, drop_repeats) for label in labels]
    scores = np.concatenate([one.scores for one in matched])
    order = np.argsort(-scores, kind="stable")
    hits, points = np.concatenate([one.hits[0] for one in matched])[order], box_metrics.operating_points(scores[order])
    true = sum(len(one["boxes"]) for one in boxes.true)
    return np.cumsum(~hits)[points] / len(boxes.true), np.cumsum(hits)[points] / true


def _runs(runs: Sequence[Run], out: Path) -> Iterator[Block]:
    yield Heading("Runs")
    for number, run in enumerate(runs, start=1):
        yield Heading(_marked(run.name, run.phantom), 3)
        command = run.about.get("command", "")
        if command:
            yield Code(command if isinstance(command, str) else shlex.join(map(str, command)))
        rows = [[name, value] for name, value in report.run_rows(run.about)]
        if rows:
            yield Table(["run", ""], rows, left=True)
        for path in report.figure_files(run.folder):
            copy = out / "figures" / f"run{number}_{re.sub(r'[^A-Za-z0-9._-]', '_', path.name)}"
            replace_file(copy, path.read_bytes())
            yield _figure(copy, out, _marked(f"{run.name}: {path.stem.replace('_', ' ')}", run.phantom))


def _figure(path: Path, out: Path, caption: str) -> Figure:
    return Figure(path.relative_to(out).as_posix(), path.read_bytes(), caption)


def _marked(text: str, phantom: bool) -> str:
    return f"PHANTOM {text}" if phantom else text


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _shown(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"

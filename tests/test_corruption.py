"""Damaged raw data: every dataset says what is wrong, or counts what it lacks; it never builds on in silence."""

import contextlib
import csv
import gzip
import io
import json
import logging
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from mediax import builder, catalog
from mediax.errors import InputError

# Phantoms as small as they get with all splits; a dataset that is not named here has the phantom of its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "chase_db1": {"children": 4, "size": 64},
    "chestxdet": {"train": 6, "test": 3, "size": 64},
    "chestxray14": {"patients": 5, "test_patients": 5, "size": 64},
    "chexmask": {"count": 8, "size": 64},
    "chexpert": {"patients": 5, "valid_patients": 2, "test_patients": 2, "size": 64},
    "drions_db": {"images": 3, "size": 64},
    "drishti_gs": {"images": 3, "size": 64},
    "drive": {"images": 3, "size": 64},
    "eyepacs": {"patients": 3, "test_patients": 2, "size": 64},
    "fire": {"pairs": ("A01", "P37", "S01", "S02"), "size": 64},
    "hrf": {"images": 6, "size": 64},
    "medmnist": {"train": 4, "validation": 2, "test": 2},
    "mimic_cxr": {"patients": 3, "validate_patients": 2, "test_patients": 3, "size": 64},
    "minijsrt_age": {"train": 4, "test": 2, "size": 64},
    "minijsrt_anomaly": {"train": 3, "test": 4, "size": 64},
    "minijsrt_directions": {"train": 2, "test": 1, "size": 64},
    "minijsrt_gender": {"train": 4, "test": 4, "size": 64},
    "minijsrt_lung": {"train": 4, "test": 2, "size": 64},
    "minijsrt_organs": {"train": 4, "test": 2, "size": 64},
    "minijsrt_practice": {"count": 4, "size": 64},
    "node21": {"count": 8, "size": 64},
    "siim_acr": {"count": 6, "test_count": 3, "size": 64},
    "stare": {"images": 6, "size": 64},
    "tbx11k": {"train": 4, "val": 4, "size": 64},
    "vinbigdata": {"count": 8, "test_count": 2, "size": 64},
}
# Releases and layouts whose annotations are read by other code than the first one's.
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None]] = {
    "tbx11k-xml": ("tbx11k", {"layout": "xml"}, None),
    "vinbigdata-physionet": ("vinbigdata", {"release": "physionet"}, {"size": 512, "release": "physionet"}),
    "drishti_gs-current": ("drishti_gs", {"release": "current"}, None),
    "minijsrt_practice-dicom": ("minijsrt_practice", {}, {"format": "dicom"}),
}
CASES = {name: (name, {}, None) for name in catalog.names("datasets")} | VARIANTS
SECONDS = 60  # in which a build of so few images ends

OF_TABLES = ("remove", "repeat", "garble", "add_column")
DAMAGES = ("delete", "truncate", "overwrite", "empty", "swap", "rename_folder", *OF_TABLES)
GARBAGE = ("rubbish", "", "-7", "1e9", "nan", "0.5", "9" * 30)


class Damage(NamedTuple):
    """What is done to a tree; `places` in [0,1) say where: in the list of files, and inside of one."""

    kind: str
    places: tuple[float, float, float]
    garbage: str
    data: bytes


class Tree(NamedTuple):
    """A dataset's raw tree, whole, and what is built from it: records by (split, id), and what is logged."""

    module: ModuleType
    config: dict[str, Any] | None
    raw: Path
    records: dict[tuple[str, str], dict[str, Any]]
    logged: set[str]


@st.composite
def damages(draw: Callable) -> Damage:
    kind = draw(st.sampled_from(DAMAGES))
    places = draw(st.tuples(*[st.floats(0, 1, exclude_max=True, allow_subnormal=False)] * 3))
    return Damage(kind, places, draw(st.sampled_from(GARBAGE)), draw(st.binary(min_size=1, max_size=40)))


@pytest.fixture(scope="module", params=CASES)
def tree(request, tmp_path_factory) -> Tree:
    return make_tree(request.param, tmp_path_factory.mktemp(request.param))


def make_tree(case: str, folder: Path) -> Tree:
    name, options, config = CASES[case]
    module = catalog.load("datasets", name)
    module.phantom(folder / "raw" / name, seed=1, **SMALL.get(name, {}), **options)
    with logs() as logged, time_limit():
        built = builder.prepare(
            module, data_dir=folder / "built", manual_dir=folder / "raw", builder_config=config, workers=1
        )
    return Tree(module, config, folder / "raw", read_records(module, built), plain_logs(logged, folder))


@pytest.mark.parametrize("rounds", [2, pytest.param(18, marks=pytest.mark.slow)])
def test_damage_is_told(tree, tmp_path_factory, rounds):
    @settings(max_examples=rounds, derandomize=True, deadline=None, database=None, suppress_health_check=HealthCheck)
    @given(damages())
    def damaged(damage):
        folder = tmp_path_factory.mktemp("damaged")
        try:
            check_damage(tree, damage, folder)
        finally:
            shutil.rmtree(folder)

    # Each dataset and each number of rounds has damages of its own.
    seed(f"{tree.module.__name__}/{tree.config}/{rounds}")(damaged)()


def check_damage(tree: Tree, damage: Damage, folder: Path) -> str:
    """Builds a damaged copy of a tree in both modes and judges what comes of it; returns a word for the outcome."""
    shutil.copytree(tree.raw, folder / "raw")
    damage, touched = inflict(damage, folder / "raw")
    outcomes = set()
    for on_corrupt in ("error", "skip"):
        with logs() as logged, time_limit():
            try:
                built = builder.prepare(
                    tree.module,
                    data_dir=folder / on_corrupt,
                    manual_dir=folder / "raw",
                    builder_config=tree.config,
                    on_corrupt=on_corrupt,
                    workers=1,
                )
            except InputError as error:
                check_message(str(error), touched, folder)
                outcomes.add("refused")
                continue
        records, news = read_records(tree.module, built), plain_logs(logged, folder) - tree.logged
        outcomes.add(judge(tree, damage, touched, records, news, skipped_ids(built)))
    return "+".join(sorted(outcomes))


# The damages.


def inflict(damage: Damage, raw: Path) -> tuple[Damage, list[Path]]:
    """Damages a tree; returns the damage as it was done, and what was touched: a file, or two, or a folder's files."""
    files = sorted(path for path in raw.rglob("*") if path.is_file())
    if damage.kind in OF_TABLES:
        tables = [path for path in files if is_table(path)]
        damage = damage if tables else damage._replace(kind="overwrite")
        files = tables or files
    kind = damage.kind
    path, other = (files[int(place * len(files))] for place in damage.places[:2])
    data = path.read_bytes()
    start = int(damage.places[2] * len(data))
    if kind == "delete":
        path.unlink()
    elif kind == "truncate":
        path.write_bytes(data[:start])
    elif kind == "overwrite":
        path.write_bytes(data[:start] + damage.data + data[start + len(damage.data) :])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "swap":
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
        return damage, [path, other]
    elif kind == "rename_folder":
        folders = sorted(folder for folder in raw.glob("*/**/") if folder.parent != raw and folder != raw)
        if folders:
            path = folders[int(damage.places[0] * len(folders))]
            inside = [file for file in path.rglob("*") if file.is_file()]
            path.rename(path.with_name(f"old-{path.name}"))
            return damage, [path, *inside]
    else:
        damage_table(path, kind, damage)
    return damage, [path]


def is_table(path: Path) -> bool:
    return bool(re.search(r"\.(csv|csv\.gz|txt|json|xml)$", path.name))


def damage_table(path: Path, kind: str, damage: Damage) -> None:
    """Removes, repeats or garbles an entry of a table, or adds a column to it."""
    packed = path.suffix == ".gz"
    text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
    if path.suffix == ".json":
        text = json.dumps(damage_json(json.loads(text), kind, damage))
    elif path.suffix == ".xml":
        text = damage_words(text, r">[^<>]+<", kind, damage)
    elif path.suffix == ".txt":
        text = damage_words(text, r"[^\n]+\n?" if kind != "garble" else r"[^\s,]+", kind, damage)
    else:
        text = damage_csv(text, kind, damage)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())


def damage_words(text: str, pattern: str, kind: str, damage: Damage) -> str:
    """Damages the part of a text that a pattern finds."""
    found = list(re.finditer(pattern, text))
    part = found[int(damage.places[1] * len(found))]
    changed = {"remove": "", "repeat": part[0] * 2, "add_column": f"{part[0].rstrip()} 7\n"}
    changed |= {"garble": f">{damage.garbage}<" if part[0].startswith(">") else damage.garbage}
    if part[0].startswith(">"):
        changed |= {"remove": "><", "repeat": f">{part[0][1:-1] * 2}<", "add_column": f"{part[0]}extra>7</extra><"}
    return text[: part.start()] + changed[kind] + text[part.end() :]


def damage_csv(text: str, kind: str, damage: Damage) -> str:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    number = 1 + int(damage.places[1] * (len(rows) - 1))
    if kind == "remove":
        del rows[number]
    elif kind == "repeat":
        rows.insert(number, rows[number])
    elif kind == "garble":
        rows[number][int(damage.places[2] * len(rows[number]))] = damage.garbage
    else:
        rows = [[*row, "extra" if index == 0 else "7"] for index, row in enumerate(rows)]
    changed = io.StringIO()
    csv.writer(changed, lineterminator="\n").writerows(rows)
    return changed.getvalue()


def damage_json(content: Any, kind: str, damage: Damage) -> Any:
    """Damages an entry at any depth: keys and items are entries, so that whole images and single numbers are hit."""
    places = [(holder, key) for holder in containers(content) for key in keys(holder)]
    # First a holder, so that the many numbers of polygons do not hide the rest.
    holder, key = places[int(damage.places[1] * len(places))]
    if damage.places[2] < 0.5:
        items = [place for place in places if not isinstance(place[0][place[1]], int | float)]
        holder, key = items[int(damage.places[1] * len(items))]
    if kind == "remove":
        del holder[key]
    elif kind == "repeat":
        holder.append(holder[key]) if isinstance(holder, list) else holder.update({f"{key}2": holder[key]})
    elif kind == "add_column":
        holder.append("extra") if isinstance(holder, list) else holder.update(extra=7)
    else:
        values = (damage.garbage, -7, 1e9, None, [], {}, True)
        holder[key] = values[int(damage.places[0] * 7919) % len(values)]
    return content


def containers(content: Any) -> Iterator[list | dict]:
    if isinstance(content, list | dict):
        yield content
        for key in keys(content):
            yield from containers(content[key])


def keys(holder: list | dict) -> list:
    return list(holder) if isinstance(holder, dict) else list(range(len(holder)))


# The judgement.


def check_message(message: str, touched: list[Path], folder: Path) -> None:
    """An error must name what was touched: the file, its image, or the raw data as a whole where a table is missing."""
    words = {word for path in touched for word in names_of(path)}
    if re.search(r"all \d+ images of the split '\w+' are corrupt", message):
        return  # where so many are left out that nothing remains, their number and the split say more
    named = any(word.lower() in message.lower() for word in words)
    assert named, f"touched {touched}; the message names none: {message}"
    assert "Traceback" not in message and len(message) < 3000, message


def names_of(path: Path) -> set[str]:
    """What a message may call a file: its name, or the numbered part of it, by which its partners are called too."""
    stem = path.name.split(".")[0]
    return {path.name, path.stem, stem, *re.findall(r"[A-Za-z]*\d{2,}[a-zA-Z]*", stem), *re.findall(r"\d{2,}", stem)}


def judge(
    tree: Tree, damage: Damage, touched: list[Path], records: Mapping, logged: set[str], skipped: list[str]
) -> Literal["counted", "same", "changed", "told"]:
    """Compares a set that was built with the undamaged one."""
    lost, gained = tree.records.keys() - records.keys(), records.keys() - tree.records.keys()
    changed = {
        f"{key}: {field}"
        for key in records.keys() & tree.records.keys()
        for field in {*records[key], *tree.records[key]}
        if not same(records[key].get(field), tree.records[key].get(field))
    }
    texts = {word for word in changed if isinstance(next(iter_field(tree.records, word)), str)}
    told = {line for line in logged if re.search(r"\d", line)}
    difference = f"{damage}, touched {[path.name for path in touched]}: lost {lost}, gained {gained}, changed {changed}"
    if damage.kind == "rename_folder" and len(lost) == len(gained):
        return "changed"  # the names of folders are a part of the ids
    assert {name for _, name in lost} >= set(skipped) and (not lost or told), f"{difference}; logged {logged}"
    assert not gained or told, f"{difference}; logged {logged}"
    if lost:
        return "counted"
    if changed - texts and not told:
        assert may_change(damage, touched, changed), f"{difference}; logged {logged}"
    return "told" if changed and told else "changed" if changed else "same"


def iter_field(records: Mapping, word: str) -> Iterator[Any]:
    key, field = word.rsplit(": ", 1)
    return (record.get(field) for name, record in records.items() if str(name) == key)


def may_change(damage: Damage, touched: list[Path], changed: set[str]) -> bool:
    """Whether a change can be without a word: where the damaged file is as valid as the whole one was."""
    fields = {word.rsplit(": ", 1)[1] for word in changed}
    if damage.kind == "swap":
        return len({role(path) for path in touched}) == 1
    if damage.kind in ("remove", "truncate"):  # whole lines that no other file counts: a box, a point of a contour
        return is_table(touched[0])
    if damage.kind == "repeat":  # a point twice, or in XML a number whose digits stand twice
        return touched[0].suffix == ".xml" or fields <= {
            "polygons",
            "masks",
            "box_masks",
            "second_masks",
            "keypoints",
            "moving_keypoints",
        }
    # Another value of the same kind.
    return damage.kind == "overwrite" or (damage.kind == "garble" and damage.garbage in ("-7", "0.5", "", "1e9"))


def role(path: Path) -> str:
    """What a file is by its name: that of another patient or in another format is as good."""
    name = re.sub(r"\.(png|jpg|dcm)$|frontal|lateral|_(h|g|dr)(?=[_.])", "", path.name)
    return re.sub(r"[A-Za-z]*\d+[a-z]?", "0", re.sub(r"[\da-f-]{8,}", "0", name))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return one is other or one == other or (one != one and other != other)


def read_records(module: ModuleType, built: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """All examples of a built set, by split and id; reading must succeed, and give what the schema allows."""
    examples = {}
    for split in builder.tfds.builder_from_directory(str(built)).info.splits:
        for record in builder.Records(built, split):
            example = module.read(record)
            labels = example.get("labels", np.zeros(0))
            assert np.isnan(labels).all() or (np.nanmin(labels, initial=0) >= 0 and np.nanmax(labels, initial=0) <= 1)
            boxes = example.get("boxes", np.zeros((0, 4)))
            assert ((boxes >= 0) & (boxes <= 1)).all()
            assert not np.isinf(example.get("target", np.zeros(0))).any()
            assert (split, example["id"]) not in examples
            examples[split, example["id"]] = example
    return examples


def skipped_ids(built: Path) -> list[str]:
    return (builder.tfds.builder_from_directory(str(built)).info.metadata or {}).get("skipped", [])


@contextlib.contextmanager
def logs() -> Iterator[list[str]]:
    """Collects what mediax logs, from information on."""
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("absl")
    level = logger.level  # absl's own verbosity has no word for "as the tests' log wants it"
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def plain_logs(lines: list[str], folder: Path) -> set[str]:
    """The lines that report of the data, without the folder that they were read from."""
    progress = re.compile(r": (built \d+ images|building) ")
    return {line.replace(str(folder), "") for line in lines if not progress.search(line) and line.isprintable()}


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Ends a build that hangs."""

    def end(*_):
        raise TimeoutError(f"no end after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)

"""What can be done with datasets from the command line: `python -m mediax.datasets [COMMAND] --help`."""

import argparse
import ast
import csv
import inspect
import io
import itertools
import json
import os
import shutil
import sys
import textwrap
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from mediax import builder, catalog, memory, overlap, verification
from mediax.errors import InputError
from mediax.files import expanded, replace_file

HERE = f"{os.sep}mediax{os.sep}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 after bad input."""
    arguments, options = parse(argv)
    speak()
    try:
        if options and arguments.run is not write_phantom:
            raise InputError(f"unexpected argument {options[0]!r}; `python -m mediax.datasets --help` lists them")
        return arguments.run(arguments, options) or 0
    except InputError as error:
        print(f"mediax: {error}", file=sys.stderr, flush=True)
        return 2


def parse(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Reads the command line; returns the flags, and what is left: the options of a phantom."""
    data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return parser(data_dir).parse_known_args(argv, argparse.Namespace(data_dir=data_dir))


def parser(data_dir: str) -> argparse.ArgumentParser:
    """The commands and their flags; `data_dir` is where built sets lie if no flag says so."""
    data = argparse.ArgumentParser(add_help=False)
    # Without a default of its own: it would replace what stands before the command.
    data.add_argument("--data_dir", default=argparse.SUPPRESS, help=f"built data (default: {data_dir})")
    build = argparse.ArgumentParser(add_help=False)
    build.add_argument("name", help="a dataset")
    build.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="builder config, or its name")
    raw = argparse.ArgumentParser(add_help=False)
    raw.add_argument("--manual_dir", help="raw data: one folder per dataset, named as its module")
    raw.add_argument("--workers", type=positive, default=len(os.sched_getaffinity(0)), help="threads")

    program, summary = "python -m mediax.datasets", "What can be done with datasets; without a command: a table of all."
    top = argparse.ArgumentParser(prog=program, description=summary, parents=[data], allow_abbrev=False)
    top.set_defaults(run=list_all)
    commands = top.add_subparsers(title="commands", metavar="")

    def command(name: str, run, *parents) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=run.__doc__.splitlines()[0], parents=parents, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    command("show", show).add_argument("name", help="a dataset")
    prepare_ = command("prepare", prepare, build, data, raw)
    prepare_.add_argument("--on_corrupt", choices=("error", "skip"), default="error")
    command("verify", verify, build, data, raw)
    preview_ = command("preview", preview, build, data)
    preview_.add_argument("--out", required=True, type=expanded, help="the PNG file to write")
    preview_.add_argument("--split", help="default: the first one")
    preview_.add_argument("--count", type=positive, default=24, help="images on the sheet")
    preview_.add_argument("--seed", type=int, default=0, help="of the choice of images")
    overlap_ = command("overlap", find_overlap, data)
    overlap_.add_argument(
        "names", nargs="+", metavar="NAME", help="built datasets: NAME, NAME/CONFIG or NAME/KEY=VALUE,..."
    )
    overlap_.add_argument("--near", type=int, default=overlap.NEAR, help="bits of 256 (default: %(default)s)")
    overlap_.add_argument("--csv", type=expanded, help="writes all pairs of images there")
    overlap_.add_argument("--workers", type=positive, default=len(os.sched_getaffinity(0)), help="threads")
    phantom_ = command("phantom", write_phantom)
    phantom_.add_argument("name", help="a dataset")
    phantom_.add_argument("folder", type=Path, help="the tree is written to FOLDER/NAME: FOLDER is a --manual_dir")
    phantom_.epilog = "Further --key=value are the options of the dataset's phantom; `show NAME` lists them."
    return top


def positive(text: str) -> int:
    """Reads a positive number of a flag."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)


def speak() -> None:
    """Lets the console show what mediax says, and warnings alone of the libraries below it."""
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(
        lambda record: record.levelno >= logging.converter.STANDARD_WARNING or HERE in record.pathname
    )


def list_all(arguments, options) -> None:
    """Lists all datasets."""
    rows = []
    for name in catalog.names("datasets"):
        module = catalog.load("datasets", name)
        source = module.SOURCE
        built = "; ".join(built_sets(Path(arguments.data_dir).expanduser() / name)) or "no"
        kinds = ", ".join(tasks(module))
        rows.append((name, kinds, source.images, source.download_size, source.licence, source.access, built))
    header = ("dataset", "tasks", "images", "download", "licence", "access", "built")
    print(table(header, rows))


def tasks(module: ModuleType) -> list[str]:
    """What the annotations of a dataset's default build are good for."""
    made = module.Builder(data_dir=os.devnull)
    features = made.features()
    outlined = {*getattr(module, "BOX_CLASSES", ()), *getattr(module, "MASK_CLASSES", ())}
    labelled = {"labels", "label", "grade"} & set(features) or set(module.CLASSES) - outlined
    kinds = {
        "classification": bool(labelled) and bool(module.CLASSES),
        "ordinal": "grade" in features,
        "detection": hasattr(module, "BOX_CLASSES"),
        "segmentation": hasattr(module, "MASK_CLASSES"),
        "regression": hasattr(module, "TARGETS"),
        "keypoints": any(name.endswith("keypoints") for name in features),
    }
    return [kind for kind, holds in kinds.items() if holds]


def built_sets(folder: Path) -> list[str]:
    """The builder configs that were built below a folder, with their numbers of images."""
    found = []
    for version in sorted(folder.glob("*/*")):
        info = version / "dataset_info.json"
        if version.name.startswith("incomplete."):
            found.append(f"{version.parent.name} (not complete)")
        elif info.is_file():
            splits = json.loads(info.read_text()).get("splits", [])
            count = sum(int(length) for split in splits for length in split.get("shardLengths", []))
            found.append(f"{version.parent.name} ({count:,} images)")
    return found


def show(arguments, options) -> None:
    """Says what a dataset is, what to download, and where to put it."""
    module = catalog.load("datasets", arguments.name)
    source = module.SOURCE
    tree = textwrap.indent(source.tree.strip("\n"), "    ")
    print(f"{arguments.name}: {module.__doc__.strip()}\n")
    for word in ("title", "homepage", "access", "licence", "download_size", "images", "citation"):
        print(f"{word.replace('_', ' ') + ':':15}{getattr(source, word)}")
    print(f"{'tasks:':15}{', '.join(tasks(module)) or 'none'}")
    for word in ("CLASSES", "BOX_CLASSES", "MASK_CLASSES", "TARGETS"):
        if names := getattr(module, word, ()):
            label = f"{word.lower().replace('_', ' ')}:"
            print(textwrap.fill(f"{label:15}{', '.join(names)}", 110, subsequent_indent=" " * 15))
    print(f"\nexpected in MANUAL_DIR/{arguments.name}:\n{tree}\n")
    config = builder.choose_config(module.Builder)
    print(f"python -m mediax.datasets prepare {arguments.name} --manual_dir MANUAL_DIR [--config KEY=VALUE ...]")
    for field in builder.own_fields(config):
        literal_ = typing.get_origin(field.type) is typing.Literal
        choices = " | ".join(map(str, typing.get_args(field.type))) if literal_ else ""
        if field.name != "name":
            print(f"    {field.name}={getattr(config, field.name)}{f'    {choices}' if choices else ''}")
    print(f"python -m mediax.datasets phantom {arguments.name} FOLDER [--KEY=VALUE ...]")
    for parameter in list(inspect.signature(module.phantom).parameters.values())[1:]:
        print(f"    --{parameter.name}={parameter.default}")


def prepare(arguments, options) -> None:
    """Builds a dataset, or goes on with a build that was stopped."""
    directory = builder.prepare(
        arguments.name,
        data_dir=arguments.data_dir,
        manual_dir=arguments.manual_dir,
        builder_config=config_of(arguments.config),
        on_corrupt=arguments.on_corrupt,
        workers=arguments.workers,
    )
    info = tfds.builder_from_directory(str(directory)).info
    print(directory)
    rows = [(split, f"{known.num_examples:,}", f"{known.num_bytes / 1e6:,.1f}") for split, known in info.splits.items()]
    print(table(("split", "images", "MB"), rows))


def verify(arguments, options) -> int:
    """Decodes all raw files of a dataset and reports every problem, without building."""
    module, config = catalog.load("datasets", arguments.name), config_of(arguments.config)
    found = verification.verify(
        module,
        data_dir=Path(arguments.data_dir).expanduser(),
        manual_dir=arguments.manual_dir,
        builder_config=config,
        workers=arguments.workers,
    )
    splits, total = found.counts, sum(found.counts.values(), start=type(next(iter(found.counts.values())))())
    words = {"images": "images", "patients": "patients", "unreadable": "unreadable images"}
    rows = [(said, *(f"{counts[kind, '']:,}" for counts in splits.values())) for kind, said in words.items()]
    for name in module.classes(config):
        if any(total[kind, name] for kind in ("present", "absent", "unknown")):
            rows.append(
                (f"{name}: present, absent, unknown", *(label_counts(counts, name) for counts in splits.values()))
            )
    for kind, said in {"boxes": "boxes", "masks": "images with a mask"}.items():
        names = dict.fromkeys(name for counted, name in sorted(total) if counted == kind)
        rows += [(f"{name}: {said}", *(f"{counts[kind, name]:,}" for counts in splits.values())) for name in names]
    print(table(("", *splits), rows))
    for problem in found.problems:
        print(f"mediax: {problem}", file=sys.stderr)
    print(f"{len(found.problems)} problems" if found.problems else "no problems")
    return 2 if found.problems else 0


def label_counts(counts: Mapping[tuple[str, str], int], name: str) -> str:
    """Words the labels of a class in a split."""
    return ", ".join(f"{counts[kind, name]:,}" for kind in ("present", "absent", "unknown"))


def preview(arguments, options) -> None:
    """Draws a sheet of a built dataset's images with their annotations."""
    from mediax import contact_sheet  # imports jax, which takes longer than most of the other commands

    module, config = catalog.load("datasets", arguments.name), config_of(arguments.config)
    directory = builder.prepare(module, data_dir=arguments.data_dir, builder_config=config, build=False)
    split = arguments.split or next(iter(tfds.builder_from_directory(str(directory)).info.splits))
    records = builder.Records(directory, split)
    chosen = np.random.default_rng(arguments.seed).permutation(len(records))[: arguments.count]
    contact_sheet.draw(
        arguments.out,
        [module.read(records[int(index)]) for index in chosen],
        classes=module.classes(config),
        box_classes=getattr(module, "BOX_CLASSES", ()),
        mask_classes=getattr(module, "MASK_CLASSES", ()),
        targets=getattr(module, "TARGETS", ()),
    )
    print(f"{arguments.out}: {len(chosen)} of {len(records):,} images of {arguments.name}, split {split}")


def find_overlap(arguments, options) -> None:
    """Counts the images that splits of built datasets share, by id and by picture."""
    splits = []
    for name in dict.fromkeys(arguments.names):
        dataset, _, config = name.partition("/")
        config = config_of(config.split(",") if config else ())
        directory = builder.prepare(dataset, data_dir=arguments.data_dir, builder_config=config, build=False)
        for split in tfds.builder_from_directory(str(directory)).info.splits:
            splits.append(overlap.pictures(directory, split, name=f"{name} {split}", workers=arguments.workers))
    rows, lines = [], []
    for first, second in itertools.combinations(splits, 2):
        found = overlap.matches(first, second, near=arguments.near)
        kinds = [(match.same_id, match.distance <= arguments.near) for match in found]
        counts = (f"{kinds.count(kind):,}" for kind in ((True, True), (True, False), (False, True)))
        rows.append((first.name, f"{len(first.ids):,}", second.name, f"{len(second.ids):,}", *counts))
        lines += [
            (first.name, match.first, second.name, match.second, int(match.same_id), match.distance) for match in found
        ]
    header = ("split", "images", "split", "images", "same id and picture", "same id alone", "same picture alone")
    print(table(header, rows))
    if arguments.csv:
        text = io.StringIO()
        columns = ("split_a", "id_a", "split_b", "id_b", "same_id", "differing_bits")
        csv.writer(text, lineterminator="\n").writerows([columns, *lines])
        replace_file(arguments.csv, text.getvalue().encode())


def write_phantom(arguments, options) -> None:
    """Writes generated raw data in the layout of a dataset."""
    module = catalog.load("datasets", arguments.name)
    valid = dict(list(inspect.signature(module.phantom).parameters.items())[1:])
    values = {}
    for option in options:
        name, assigned, value = option.removeprefix("--").partition("=")
        if not option.startswith("--") or not assigned:
            raise InputError(f"unexpected argument {option!r}: options are written --key=value")
        if name not in valid:
            raise InputError(
                f"the phantom of {arguments.name} has no option {name!r}: {catalog.suggestion(name, valid)}"
            )
        values[name] = literal(value)
        _check_number(f"the phantom of {arguments.name}: {option}", values[name], valid[name].default)
    root = arguments.folder.expanduser() / arguments.name
    if root.exists() and any(root.iterdir()):
        raise InputError(f"{root} exists and is not empty; remove it or choose another folder")
    module.phantom(root, **values)
    print(f"{root}: build it with `prepare {arguments.name} --manual_dir {arguments.folder}`")


def _check_number(where: str, value: Any, default: Any) -> None:
    """Raises InputError where the default is a number, or True or False, and the value is another kind of thing."""
    kinds = {bool: (bool,), int: (int,), float: (int, float)}.get(type(default))
    if kinds and value is not None and type(value) not in kinds:
        raise InputError(f"{where}: expected a value like the default, {default!r}")


def config_of(values: Sequence[str]) -> str | dict[str, Any] | None:
    """Reads --config: nothing, the name of a builder config, or its fields as key=value."""
    if len(values) == 1 and "=" not in values[0]:
        return values[0]
    if wrong := [value for value in values if "=" not in value]:
        raise InputError(f"--config: {wrong[0]!r}: expected key=value, as in --config size=320 aspect=crop")
    return {key: literal(value) for key, _, value in (value.partition("=") for value in values)} or None


def literal(text: str) -> Any:
    """A value as Python writes it (320, None, ("small", "test")), or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out texts in columns that fit the terminal: the widest ones are wrapped."""
    rows = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    room = max(shutil.get_terminal_size((150, 0)).columns, 60) - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell, width in zip(row, widths)]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            lines.append("  ".join(f"{part:{width}}" for part, width in zip(parts, widths)).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    memory.keep_freed()
    sys.exit(main())

"""The nine exercises of miniJSRT, one after another, and a report on them.

    python -m launch.minijsrt --workdir=runs/minijsrt --data_dir=data --phantom
    python -m launch.minijsrt --workdir=runs/minijsrt --data_dir=data --manual_dir=RAW

The first one converts radiographs from PNG to DICOM and JPEG and back and compares them value for value; the others are
the variants of configs/minijsrt.py. With `--phantom` all of them run on made-up radiographs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch import local
from mediax import catalog
from mediax.files import whole_folder

EXERCISES = ("directions", "gender", "age", "lung", "organs", "boxes", "anomaly", "clusters")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all exercises; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.minijsrt", description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=local.expanded, required=True, help="holds one folder for each exercise")
    parser.add_argument("--data_dir", type=local.expanded, help="where built data go")
    parser.add_argument(
        "--manual_dir", type=local.expanded, help="the raw data: minijsrt_practice/, minijsrt_gender/, ..."
    )
    parser.add_argument("--phantom", action="store_true", help="made-up radiographs in place of raw data")
    options = parser.parse_args(arguments)
    if options.phantom == bool(options.manual_dir):
        parser.error("expected one of --manual_dir and --phantom")
    workdir = options.workdir.resolve()
    folders = {"data_dir": options.data_dir, "manual_dir": options.manual_dir}
    flags = [f"--{name}={folder.resolve()}" for name, folder in folders.items() if folder]
    ending = ",phantom" if options.phantom else ""
    configs = [f"configs/minijsrt.py:{exercise}{ending}" for exercise in EXERCISES]
    commands = practice(workdir, options.manual_dir)
    commands |= {local.name_of(config): local.run_command(config, workdir, flags) for config in configs}
    return local.run_all(commands, workdir)


def practice(workdir: Path, manual_dir: Path | None) -> dict[str, list[str]]:
    """The commands of the first exercise: all files to DICOM, to JPEG, and from DICOM to PNG, each read back."""
    here = workdir / "practice"
    raw = (here / "raw" if manual_dir is None else manual_dir.resolve()) / "minijsrt_practice"
    commands = {}
    if manual_dir is None and not raw.exists():
        code = f"from launch import minijsrt; minijsrt.draw_practice({str(raw)!r})"
        commands["practice_phantom"] = [sys.executable, "-c", code]
    for suffix, source in (("dcm", raw), ("jpg", raw), ("png", here / "dcm")):
        options = [f"--to={here / suffix}", f"--format={suffix}", "--verify"]
        commands[f"practice_{suffix}"] = [sys.executable, "-m", "mediax.convert", str(source), *options]
    return commands


def draw_practice(raw: str | Path) -> None:
    """Writes the phantom of the first exercise to the folder `raw`, which is there only once it is whole."""
    with whole_folder(raw) as incomplete:
        catalog.load("datasets", "minijsrt_practice").phantom(incomplete)


if __name__ == "__main__":
    sys.exit(main())

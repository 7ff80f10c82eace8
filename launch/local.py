"""Runs configs one after another on this machine, then puts their results beside each other.

    python -m launch.local configs/minijsrt.py:{age,gender},phantom --workdir=runs/minijsrt --data_dir=data

Each config gets a folder of its own below --workdir; every other flag goes to each run as it is. The same command goes
on where it was stopped. A run that fails does not stop the others: it is named at the end, and the exit code is 1.
"""

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all configs of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.local", description=__doc__.partition("\n")[0])
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="FILE.py[:VARIANT], as for mediax.main")
    parser.add_argument("--workdir", type=Path, required=True, help="holds one folder for each config")
    options, flags = parser.parse_known_args(arguments)
    commands = {name_of(config): run_command(config, options.workdir, flags) for config in options.configs}
    if len(commands) < len(options.configs):
        parser.error("two configs have the same name, and so the same folder")
    return run_all(commands, options.workdir)


def name_of(config: str) -> str:
    """Names the folder of a config: `configs/minijsrt.py:age,phantom` is `minijsrt_age_phantom`."""
    file, _, variant = config.partition(":")
    return re.sub(r"\W+", "_", f"{Path(file).stem}_{variant}").strip("_")


def run_command(config: str, workdir: Path, flags: Sequence[str]) -> list[str]:
    """The command line of one run."""
    folder = workdir / name_of(config)
    return [sys.executable, "-m", "mediax.main", f"--config={config}", f"--workdir={folder}", *flags]


def run_all(commands: dict[str, list[str]], workdir: Path) -> int:
    """Runs commands by name, reports on the runs below `workdir`, and returns 1 if any command failed, else 0."""
    failed = []
    for number, (name, command) in enumerate(commands.items(), 1):
        print(f"[{number}/{len(commands)}] {name}", flush=True)
        start = time.monotonic()
        code = subprocess.run(command, cwd=ROOT).returncode
        print(f"[{number}/{len(commands)}] {name}: exit code {code}, {time.monotonic() - start:.0f} s", flush=True)
        if code:
            failed.append(f"{name} (exit code {code})")
    report = [sys.executable, "-m", "mediax.report", str(workdir), f"--out={workdir / 'report'}"]
    if subprocess.run(report, cwd=ROOT).returncode:
        failed.append("report")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

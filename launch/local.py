"""Runs configs one after another on this machine, then puts their results beside each other.

    python -m launch.local configs/minijsrt.py:{age,gender},phantom --workdir=runs/both --data_dir=data --seeds 0 1 2

Each config gets a folder of its own below --workdir, with --seeds one for each seed; every other flag, written
--name=value, goes to each run as it is. The same command goes on where it was stopped. A run that fails does not stop
the others: it is named at the end, and the exit code is 1. A run that was stopped (exit code 75) ends the launcher with
this code at once. SIGTERM is passed on to the command that runs; then the launcher ends with its exit code, or with 75.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STOPPED = os.EX_TEMPFAIL  # 75, of a run that SIGTERM stopped: the same command resumes it


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs all configs of the command line; returns the exit code. Raises SystemExit(2) for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.local", description=__doc__.partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="FILE.py[:VARIANT], as for mediax.main")
    parser.add_argument("--workdir", type=expanded, required=True, help="holds one folder for each config and seed")
    parser.add_argument("--seeds", type=int, nargs="+", default=[None], metavar="N", help="default: the config's own")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # Taken out first: argparse takes what has a space in it for no flag.
    flags = [argument for argument in arguments if re.match(r"--(?!workdir=|seeds=)[^=\s]+=", argument)]
    options, bad = parser.parse_known_args([argument for argument in arguments if argument not in flags])
    if bad:
        parser.error(f"unexpected argument {bad[0]!r}: flags are written --name=value")
    runs = [(config, seed) for config in options.configs for seed in options.seeds]
    commands = {name_of(*run): run_command(run[0], options.workdir, flags, run[1]) for run in runs}
    if len(commands) < len(runs):
        parser.error("two runs have the same name, and so the same folder")
    return run_all(commands, options.workdir)


def expanded(path: str) -> Path:
    """A folder of the command line; of `--name=~/folder` shells leave the `~`."""
    return Path(path).expanduser()


def name_of(config: str, seed: int | None = None) -> str:
    """Names the folder of a run: `configs/minijsrt.py:age,phantom` is `minijsrt_age_phantom`, then `_seed1`."""
    file, _, variant = config.partition(":")
    words = (Path(file).stem, variant, "" if seed is None else f"seed{seed}")
    return re.sub(r"\W+", "_", "_".join(filter(None, words))).strip("_")


def run_command(config: str, workdir: Path, flags: Sequence[str], seed: int | None = None) -> list[str]:
    """The command line of one run."""
    folder = workdir / name_of(config, seed)
    command = [sys.executable, "-m", "mediax.main", f"--config={config}", f"--workdir={folder}", *flags]
    return command if seed is None else [*command, f"--config.seed={seed}"]


def run_all(commands: dict[str, list[str]], workdir: Path) -> int:
    """Runs commands by name, reports on the runs below `workdir`, and returns 1 if any command failed, else 0.

    After SIGTERM, or where a command says that it was stopped, it returns that command's exit code at once: 75 for 0,
    since not all was run.
    """
    report = [sys.executable, "-m", "mediax.report", str(workdir), f"--out={workdir / 'report'}"]
    steps = [*commands.items(), ("report", report)]
    failed = []
    with Runner() as runner:
        for number, (name, command) in enumerate(steps, 1):
            place = f"[{number}/{len(steps)}] {name}"
            print(place, flush=True)
            start = time.monotonic()
            code = runner.run(command)
            print(f"{place}: exit code {code}, {time.monotonic() - start:.0f} s", flush=True)
            if runner.stopped or code == STOPPED:
                return code or STOPPED
            if code:
                failed.append(f"{name} (exit code {code})")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


class Runner:
    """Runs one command after another. Within its block SIGTERM goes to the one that runs, and sets `stopped`."""

    def __init__(self):
        self.stopped = False
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Runner":
        self._before = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def run(self, command: Sequence[str]) -> int:
        """Returns the exit code of a command: 128 + N, as in a shell, where signal N ended it."""
        with subprocess.Popen(command, cwd=ROOT) as self._process:
            if self.stopped:  # before there was a process to tell
                self._process.terminate()
            code = self._process.wait()
        return code if code >= 0 else 128 - code

    def _stop(self, number, frame) -> None:
        self.stopped = True
        if self._process:
            self._process.terminate()


if __name__ == "__main__":
    sys.exit(main())

"""Runs beside each other from the command line: `python -m mediax.report RUNS... --out=DIR`."""

import argparse
import sys
from collections.abc import Sequence

from mediax import comparison
from mediax.errors import InputError
from mediax.files import expanded


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report; returns the exit code: 0, or 2 after bad input, even if a report of the rest was written."""
    arguments = parser().parse_args(argv)
    try:
        problems = comparison.write(arguments.runs, arguments.out)
    except InputError as error:
        print(f"mediax: {error}", file=sys.stderr, flush=True)
        return 2
    for problem in problems:
        print(f"mediax: {problem}", file=sys.stderr, flush=True)
    print(f"report: {arguments.out / 'report.html'}, {arguments.out / 'report.md'}")
    return 2 if problems else 0


def parser() -> argparse.ArgumentParser:
    """The flags."""
    top = argparse.ArgumentParser(prog="python -m mediax.report", description=__doc__, allow_abbrev=False)
    top.add_argument(
        "runs", nargs="+", type=expanded, metavar="RUNS", help="folders of runs, or folders that hold some"
    )
    top.add_argument("--out", required=True, type=expanded, metavar="DIR", help="where report.html and report.md go")
    return top


if __name__ == "__main__":
    sys.exit(main())

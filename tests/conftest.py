"""What all tests share: one CPU, eight simulated devices on demand, parsed flags for grain's workers."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import re
from pathlib import Path

import pytest
from absl import flags


@pytest.fixture(autouse=True, scope="session")
def parsed_flags():
    flags.FLAGS.mark_as_parsed()


@pytest.fixture
def sheets(monkeypatch):
    """Collects the rows of the sheets of samples that are drawn, by section: "best", "worst", "others at random"."""
    from mediax import figures

    found, draw = [], figures.samples

    def spy(path, images, **options):
        found.append({title.split(",")[0]: [*map(int, rows)] for title, rows in options["sections"].items()})
        draw(path, images, **options)

    monkeypatch.setattr(figures, "samples", spy)
    return found


def pytest_addoption(parser):
    parser.addoption("--parity", metavar="FILE", help="write the differences from the references, for docs/tables.py")


def pytest_sessionfinish(session):
    """Adds the largest differences that each test file measured to the file that docs/models.md is made from."""
    from references import compare

    path = session.config.getoption("--parity")
    if not path:
        return
    found = json.loads(Path(path).read_text()) if os.path.exists(path) else {}
    models = {re.search(r"test_(\w+)\.py", one["test"])[1] for one in compare.MEASURED}
    for model in sorted(models):
        ours = [one for one in compare.MEASURED if f"test_{model}.py" in one["test"]]
        worst = {
            kind: max((one["difference"] for one in ours if one["kind"] == kind), default=None)
            for kind in ("inference", "training", "gradient")
        }
        found[model] = {"tests": len({one["test"] for one in ours}), "comparisons": len(ours), **worst}
    Path(path).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")

"""Extending mediax as the README shows: each of its examples is one new file, and nothing else changes."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mediax import catalog

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", README, re.DOTALL))


@pytest.mark.slow
def test_the_readmes_examples_run_as_printed(tmp_path):
    assert set(EXAMPLES) == {
        "mediax/datasets/squares.py",
        "mediax/backbones/plain.py",
        "mediax/tasks/size.py",
        "configs/squares.py",
    }
    for folder in ("mediax", "configs", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, text in EXAMPLES.items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "mediax.main",
            "--config=configs/squares.py:phantom",
            "--workdir=run",
            "--data_dir=data",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    figures = {metric["name"]: metric["value"] for result in results for metric in result["metrics"]}
    assert figures["auroc/macro"] > 0.95
    assert figures["mae"] < 12
    tests = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "tests/test_contracts.py",
            "tests/test_layers.py",
            "-k",
            "squares or plain or size",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert tests.returncode == 0, tests.stdout


@pytest.mark.parametrize("folder", catalog.FOLDERS)
def test_the_readme_names_all_that_exists_and_no_more(folder):
    section = README[README.index("## What works") : README.index("## How it is built")]
    for name in catalog.names(folder):
        assert f"`{name}`" in section, f"the README does not name {folder}/{name}.py"
    tables = {"datasets": "| dataset |", "backbones": "| backbone |"}
    if folder in tables:
        rows = section[section.index(tables[folder]) :].split("\n\n")[0].splitlines()[2:]
        assert {row.split("`")[1] for row in rows} == set(catalog.names(folder))

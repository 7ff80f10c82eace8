"""The documentation's tables say what the code says."""

import importlib.util
from pathlib import Path

from mediax import experiment

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_code():
    for path, text in load_tables().contents().items():
        assert path.read_text() == text, f"{path.name} is stale: python docs/tables.py"


def test_every_variant_of_every_config_stands_in_one_row():
    rows = [line.strip("| ").split(" | ") for line in load_tables().config_table().splitlines()[2:]]
    found = [(row[0], variant) for row in rows for variant in row[1].split(", ")]
    expected = [
        (f"`{path.name}`", f"`{variant}`" if variant else "")
        for path in experiment.config_files()
        for variant in experiment.variants(path)
    ]
    assert sorted(found) == sorted(expected)
    assert all(len(row) == 6 and all(row[2:]) for row in rows)
    detection = next(row for row in rows if "`node21,dino`" in row[1])
    assert detection[2:4] == ["node21", "detection"] and "resnet 50 + dino" in detection[4].split(", ")
    assert "node21/detection" in detection[5].split(", ")
    smaller = next(row for row in rows if row[0] == "`pneumoniamnist_resnet.py`")
    assert smaller[4] == "resnet 18 (own size)"


def load_tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    return tables

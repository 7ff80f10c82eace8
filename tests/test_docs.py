"""The documentation's tables say what the code says."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for path, text in tables.contents().items():
        assert path.read_text() == text, f"{path.name} is stale: python docs/tables.py"

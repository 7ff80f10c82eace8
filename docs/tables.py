"""Writes the tables of the documentation from the code: `python docs/tables.py`; a test fails where they are stale.

Between `<!-- datasets -->` and `<!-- end -->` in README.md: what each dataset is. In docs/datasets.md: what each one
annotates, what follows from that by the vocabulary, and what it says of itself.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mediax import catalog, vocabulary  # noqa: E402
from mediax.datasets.__main__ import tasks  # noqa: E402

KINDS = {
    "CLASSES": "classes",
    "BOX_CLASSES": "boxes",
    "MASK_CLASSES": "masks",
    "TARGETS": "targets",
}


def dataset_table() -> str:
    """One row for each dataset."""
    lines = ["| dataset | what it is | tasks | images | access |", "|---|---|---|---|---|"]
    for name in catalog.names("datasets"):
        module = catalog.load("datasets", name)
        cells = (f"`{name}`", module.SOURCE.title, ", ".join(tasks(module)), module.SOURCE.images, module.SOURCE.access)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def implied(names) -> list[str]:
    """What holds wherever one of some findings does, and is not among them."""
    above = [ancestor for name in names for ancestor in vocabulary.ancestors(name)]
    return [name for name in dict.fromkeys(above) if name not in names]


def dataset_pages() -> str:
    """What each dataset annotates and what follows from it, with what its file says of splits and labels."""
    parts = [
        "# Datasets\n\nWritten by `python docs/tables.py` from `mediax/datasets/`. *Implied* names are not "
        "annotated but hold wherever an annotated one does (`mediax/vocabulary.py`). Whatever a dataset neither "
        "annotates nor implies is unknown in it, and no loss counts it.\n"
    ]
    for name in catalog.names("datasets"):
        module = catalog.load("datasets", name)
        source = module.SOURCE
        parts.append(f"## {name}: {source.title}\n")
        parts.append(f"Licence: {source.licence}. Access: {source.access}. Download: {source.download_size}.\n")
        annotated = []
        for constant, words in KINDS.items():
            if values := getattr(module, constant, ()):
                parts.append(f"- {words}: {', '.join(values)}")
                annotated += values if constant != "TARGETS" else ()
        if names := implied(tuple(dict.fromkeys(annotated))):
            parts.append(f"- implied: {', '.join(names)}")
        parts.append("\n```\n" + module.__doc__.strip() + "\n```\n")
    return "\n".join(parts)


def contents() -> dict[Path, str]:
    """The text that each file should have."""
    readme = (ROOT / "README.md").read_text()
    table = f"<!-- datasets -->\n{dataset_table()}\n\n<!-- end -->"
    readme = re.sub(r"<!-- datasets -->.*?<!-- end -->", lambda _: table, readme, flags=re.DOTALL)
    return {ROOT / "README.md": readme, ROOT / "docs" / "datasets.md": dataset_pages()}


if __name__ == "__main__":
    for path, text in contents().items():
        path.write_text(text)
        print(os.path.relpath(path))

"""The architecture's rules: imports go down only, siblings do not know each other, one file reads config keys."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "mediax"
LAYERS = (
    ("main", "predict"),
    ("run",),
    ("experiment",),
    ("train", "report", "comparison"),
    ("evaluate", "checkpoint"),
    ("inference",),
    ("model", "data", "schedule", "preemption", "progress"),
    ("tasks",),
    ("datasets", "backbones", "heads"),
    ("outlines", "dicom_segmentation"),
    ("contact_sheet", "overlap", "verification"),  # what `python -m mediax.datasets` does with any dataset
    ("convert", "figures", "builder", "minijsrt", "photographs", "phantoms", "pretrained", "deformable_transformer"),
    ("box_metrics", "findings", "retrieval", "samples"),
    ("metric_log", "transforms", "optimizer", "sharding", "metrics", "protocols", "layers", "images"),
    ("dicom",),
    (
        "affine",
        "operators",
        "batch",
        "vocabulary",
        "catalog",
        "files",
        "png",
        "document",
        "shards",
        "rle",
        "annotations",
        "label_states",
        "laterality",
        "raw_files",
    ),
    ("errors", "memory"),
)
# `Build` and `Part` are what a task hands to the model; the task knows the word, not the model.
WORDS = {("tasks", "model"): {"Build"}}
SIBLINGS = ("datasets", "backbones", "heads", "tasks")
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def _modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def _imports(path):
    """Yields (layer name, sibling or None, names) of each mediax module that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mediax":
            words = node.module.split(".")
            if len(words) == 1:
                for alias in node.names:
                    yield alias.name, None, set()
            else:
                names = {alias.name for alias in node.names}
                yield words[1], words[2] if len(words) > 2 else None, names
        elif isinstance(node, ast.Import):
            for alias in node.names:
                words = alias.name.split(".")
                if words[0] == "mediax" and len(words) > 1:
                    yield words[1], words[2] if len(words) > 2 else None, set()


def _layer(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(path):
    layer = _layer(path)
    for imported, sibling, names in _imports(path):
        assert imported in LEVEL, f"{path.name} imports {imported}, which no layer holds"
        if imported == layer:
            assert layer not in SIBLINGS, f"{path.name} imports its sibling {sibling}"
            continue
        allowed = names and names <= WORDS.get((layer, imported), set())
        assert allowed or LEVEL[imported] >= LEVEL[layer], f"{path.name} ({layer}) imports {imported} above it"
        assert LEVEL[imported] != LEVEL[layer] or layer not in SIBLINGS or imported not in SIBLINGS


def test_every_module_has_its_layer():
    assert {_layer(path) for path in _modules()} == set(LEVEL)


def test_configs_are_plain_data():
    for path in (PACKAGE.parent / "configs").glob("*.py"):
        modules = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
        }
        assert modules == {"ml_collections"}, path.name


def test_tensorflow_is_never_imported():
    for path in _modules():
        assert "import tensorflow as" not in path.read_text() and "import tensorflow\n" not in path.read_text()


def test_no_word_of_labels_outside_the_vocabulary_and_the_datasets():
    for path in _modules():
        if _layer(path) not in ("datasets", "vocabulary", "phantoms", "protocols"):
            strings = {node.value for node in ast.walk(ast.parse(path.read_text())) if _is_code_string(node)}
            assert not strings & {"Cardiomegaly", "Pleural Effusion", "Edema"}, path.name


def _is_code_string(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)

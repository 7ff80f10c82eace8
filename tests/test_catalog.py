"""The catalog: names are files, and a typo is answered with the nearest of them."""

from pathlib import Path

import pytest

import mediax
from mediax import catalog
from mediax.errors import InputError


@pytest.mark.parametrize("folder", catalog.FOLDERS)
def test_names_are_the_files_of_the_folder(folder):
    files = sorted(path.stem for path in (Path(mediax.__file__).parent / folder).glob("*.py"))
    assert sorted(catalog.names(folder)) == [name for name in files if not name.startswith("__")]
    for name in catalog.names(folder):
        assert catalog.load(folder, name).__name__ == f"mediax.{folder}.{name}"


@pytest.mark.parametrize("name", ["", "__init__", "pooled.Head", "../errors", "Pooled"])
def test_what_is_no_file_is_not_loaded(name):
    with pytest.raises(InputError, match=r"heads has no .*Valid: .*pooled"):
        catalog.load("heads", name)


def test_the_closest_name_comes_first():
    assert catalog.suggestion("resnett", ["convnext", "resnet"]) == "did you mean 'resnet'? Valid: convnext, resnet."
    assert catalog.suggestion("transformer", ["resnet", "convnext"]) == "Valid: convnext, resnet."
    assert catalog.suggestion("anything", []) == "Valid: none."
    assert catalog.suggestion(1, {"b": 0, "a": 0}) == "Valid: a, b."


def test_options_are_checked_against_what_is_called():
    class Head:
        def __init__(self, channels, classes, *, dropout=0.0, dtype=None, rngs):
            pass

    def phantom(root, *, train=1):
        pass

    catalog.check_options("head", Head, {"dropout": 0.1})
    catalog.check_options("phantom", phantom, ["train"])
    with pytest.raises(InputError, match="config field head: no option 'dropot'; did you mean 'dropout'"):
        catalog.check_options("head", Head, ["dropot"])
    # What mediax itself passes is not the user's to give.
    for name in ("self", "channels", "classes", "dtype", "rngs"):
        with pytest.raises(InputError, match=f"no option '{name}'; .*Valid: dropout"):
            catalog.check_options("head", Head, [name])
    with pytest.raises(InputError, match="config field phantom: no option 'root'; Valid: train"):
        catalog.check_options("phantom", phantom, ["root"])
    with pytest.raises(InputError, match="config field phantom: no option 'trian'; did you mean 'train'"):
        catalog.check_options("phantom", phantom, ["trian"])


def test_the_options_of_a_task_are_its_fields():
    Task = catalog.load("tasks", "classification").Task
    catalog.check_options("task", Task, ["classes", "head", "threshold"])
    with pytest.raises(InputError, match="no option 'name'"):
        catalog.check_options("task", Task, ["name"])

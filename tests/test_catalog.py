"""The catalog: names are files, and a typo is answered with the nearest of them."""

from pathlib import Path

import pytest

import mediax
from mediax import catalog
from mediax.errors import InputError


@pytest.mark.parametrize("folder", catalog.FOLDERS)
def test_names_are_the_files_of_the_folder(folder):
    files = sorted(path.stem for path in (Path(mediax.__file__).parent / folder).glob("*.py"))
    assert ["__init__", *catalog.names(folder)] == files
    for name in catalog.names(folder):
        assert catalog.load(folder, name).__name__ == f"mediax.{folder}.{name}"


@pytest.mark.parametrize("name", ["", "__init__", "pooled.Head", "../errors", "Pooled"])
def test_what_is_no_file_is_not_loaded(name):
    with pytest.raises(InputError, match="heads has no .*Valid: .*pooled"):
        catalog.load("heads", name)


def test_the_closest_name_comes_first():
    assert catalog.suggestion("resnett", ["convnext", "resnet"]) == "did you mean 'resnet'? Valid: convnext, resnet."
    assert catalog.suggestion("transformer", ["resnet", "convnext"]) == "Valid: convnext, resnet."
    assert catalog.suggestion("anything", []) == "Valid: none."
    assert catalog.suggestion(1, {"b": 0, "a": 0}) == "Valid: a, b."

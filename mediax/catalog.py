"""The catalog: a name in a config is a file name in one of the four folders."""

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from mediax.errors import InputError

FOLDERS = ("datasets", "backbones", "heads", "tasks")


def names(folder: str) -> tuple[str, ...]:
    """Lists the modules of `mediax/<folder>/` in alphabetical order."""
    package = importlib.import_module(f"mediax.{folder}")
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))  # __main__ is a folder's commands


def load(folder: str, name: str) -> ModuleType:
    """Imports `mediax/<folder>/<name>.py`; raises InputError with the valid names for a typo."""
    valid = names(folder)
    if name not in valid:
        raise InputError(f"{folder} has no {name!r}: {suggestion(name, valid)}")
    return importlib.import_module(f"mediax.{folder}.{name}")


def head(task: str, spec: Any, default: str) -> tuple[ModuleType, dict[str, Any]]:
    """Loads the file of `mediax/heads/` that a task's config field `head` names; returns it with the head's options.

    Raises InputError for what is no dict, an unknown name, and an option that the head does not take.
    """
    if not isinstance(spec, Mapping):
        raise InputError(
            f"config field head of task {task!r} is {spec!r}: expected a dict, as in {{'name': {default!r}}}"
        )
    module = load("heads", spec.get("name", default))
    options = {name: value for name, value in spec.items() if name != "name"}
    check_options(f"head of task {task!r}", module.Head, options)
    return module, options


def check_options(field: str, called: type | Callable, options: Iterable[str]) -> None:
    """Raises InputError if `options` names an argument that `called` does not take from a config, with the valid ones.

    What mediax passes itself is no option: some names, and arguments by position, which have no default. The fields of
    a dataclass (a Task) are passed by name.
    """
    function = called.__init__ if isinstance(called, type) else called
    given_by_mediax = ("self", "rngs", "dtype", "remat", "channels", "in_channels", "name")
    by_name = dataclasses.is_dataclass(called)
    valid = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if (by_name or parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty)
        and parameter.name not in given_by_mediax
    ]
    for name in options:
        if name not in valid:
            raise InputError(f"config field {field}: no option {name!r}; {suggestion(name, valid)}")


def suggestion(name: str, valid: Iterable[str]) -> str:
    """Words a correction: the closest valid name first, then all of them."""
    valid = sorted(map(str, valid))
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}Valid: {', '.join(valid) or 'none'}."

"""Published weights from the command line: `python -m mediax.pretrained list`, `... convert SOURCE --to DIR`."""

import argparse
import hashlib
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save

from mediax import catalog, pretrained
from mediax.errors import InputError
from mediax.files import replace_file

SECONDS = 60  # without an answer after which a download ends


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 after bad input."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except InputError as error:
        print(f"mediax: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    top = argparse.ArgumentParser(prog="python -m mediax.pretrained", description=__doc__, allow_abbrev=False)
    commands = top.add_subparsers(title="commands", required=True)
    list_ = commands.add_parser("list", help=list_files.__doc__.splitlines()[0])
    list_.add_argument("backbone", nargs="?", default="", help="one backbone only")
    list_.set_defaults(run=list_files)
    convert_ = commands.add_parser("convert", help=convert.__doc__.splitlines()[0])
    convert_.add_argument("source", help="a file, a URL, or a file's name in the list, which is then downloaded")
    convert_.add_argument("--to", required=True, type=Path, metavar="DIR", help="where FILE.safetensors is written")
    convert_.add_argument("--backbone", default="", help="default: the one whose names the file has")
    convert_.add_argument("--head", default="", help="default: the one whose names the file has, if any")
    convert_.set_defaults(run=convert)
    return top


# The list.


def published(backbone: str = "") -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yields (backbone, variant, file) of every published file that a backbone reads."""
    if backbone:
        catalog.load("backbones", backbone)  # raises InputError for a typo
    for name in [backbone] if backbone else catalog.names("backbones"):
        for variant, files in catalog.load("backbones", name).PUBLISHED.items():
            for file in files:
                yield name, variant, file


def list_files(arguments: argparse.Namespace) -> None:
    """Lists the published files of each backbone, with source, licence, hash and input normalisation."""
    here = ""
    for backbone, variant, file in published(arguments.backbone):
        if backbone != here:
            print(f"{chr(10) if here else ''}{backbone}: input (image in [0, 1] - mean) / std")
            here = backbone
        classes = f"{file['classes']} classes" if file["classes"] else "no classes"
        digest = f"SHA-256 {file['sha256']}" if "sha256" in file else "hash: none published"
        mean, std = (" ".join(f"{value:.6g}" for value in values) for values in normalisation(backbone, file))
        print(f"  {variant}: {file['file']}, {classes}, {file['size']} px, {file['licence']}, {digest}")
        print(f"    mean {mean}, std {std}")
        print(f"    {file['source']}")


def normalisation(backbone: str, file: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, by channel, that a published file expects: its own, or its backbone's."""
    source = catalog.load("backbones", backbone)
    return file.get("mean", source.MEAN), file.get("std", source.STD)


# Conversion.


def convert(arguments: argparse.Namespace) -> None:
    """Writes weights as .safetensors, which mediax reads without torch, and reports where every tensor goes."""
    path, entry = _local(arguments.source, arguments.to)
    digest = pretrained.sha256(path)
    _check_hash(path, digest, entry)
    weights = pretrained.read(path)
    body, head = _recognise(path, weights, arguments.backbone, arguments.head)
    origin = {"file": path.name, "sha256": digest, "licence": entry.get("licence", "unknown")}
    print(f"{path}: {len(weights)} tensors")
    for line in _report(body, head):
        print(f"  {line}")
    target = arguments.to / f"{path.stem}.safetensors"
    if target.resolve() == path.resolve():
        raise InputError(f"{path}: would be overwritten by its own conversion; choose another folder with --to")
    arrays = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    arguments.to.mkdir(parents=True, exist_ok=True)
    replace_file(target, save(arrays, metadata=origin))
    print(f"written: {target}")


def _local(source: str, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Finds the file, after a download if need be, and its entry in the list."""
    entries = {file["source"]: file for _, _, file in published()}
    named = {file["file"]: file for _, _, file in published() if file["file"] != "model.safetensors"}
    path = Path(source)
    if path.is_file():
        return path, named.get(path.name, {})
    entry = entries.get(source) or named.get(source, {})
    url = entry.get("source", source)
    if "://" not in url:
        raise InputError(f"{source}: no such file, and no published one; {catalog.suggestion(source, named)}")
    if entry and not url.endswith(entry["file"]):
        if "huggingface.co" not in url:
            raise InputError(f"{source}: {url} holds no single file; download it there and give its path")
        url = f"{url}/resolve/main/{entry['file']}"
    name = url.rpartition("/")[2]
    if name == "model.safetensors":  # every repository of the hub calls it so
        name = f"{url.split('/resolve/')[0].rpartition('/')[2]}.safetensors"
    if not entry:  # files of one name, of which no hash is known, may come from anywhere
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    return download(url, folder / "downloads" / name), entry


def download(url: str, target: Path) -> Path:
    """Downloads a file under a temporary name, and renames it once it is whole; a file that lies there is kept."""
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    incomplete = target.with_name(f"{target.name}.{os.getpid()}.incomplete")
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer, incomplete.open("wb") as file:
            expected = int(answer.headers.get("Content-Length") or 0)
            print(f"downloading {url} ({expected / 2**20:.0f} MB)", file=sys.stderr, flush=True)
            shutil.copyfileobj(answer, file)
        if expected and incomplete.stat().st_size != expected:
            raise InputError(f"{url}: the download ended early, {incomplete.stat().st_size} of {expected} bytes; again")
        incomplete.rename(target)
    except (urllib.error.URLError, OSError) as error:
        raise InputError(f"{url}: cannot be downloaded ({error}); download it elsewhere and give its path") from error
    finally:
        incomplete.unlink(missing_ok=True)
    return target


def _check_hash(path: Path, digest: str, entry: Mapping[str, Any]) -> None:
    expected = entry.get("sha256", "")
    if not digest.startswith(expected):
        raise InputError(f"{path}: SHA-256 is {digest}, expected {expected}...: not the published file; download again")


Body = tuple[str, ModuleType, Mapping[Any, np.ndarray]]


def _recognise(
    path: Path, weights: Mapping[str, np.ndarray], backbone: str, head: str
) -> tuple[Body | None, Body | None]:
    """Finds the backbone, and the head if the file has one, that know all names: (name, module, arrays) of each."""
    if backbone and not head:
        return _body(backbone, weights), None
    heads = [head] if head else [name for name in catalog.names("heads") if hasattr(_head(name), "translate")]
    bodies = [backbone] if backbone else list(catalog.names("backbones"))
    for name in heads:
        parts = _tried(_head(name), weights, strict=bool(head))
        if parts and parts["head"]:
            found = [body for body in (_tried_body(other, parts["backbone"]) for other in bodies) if body]
            return (_best(found) if found else None), (name, _head(name), parts["head"])
    found = [body for body in (_tried_body(name, weights) for name in bodies) if body]
    if not found:
        raise InputError(
            f"{path}: no backbone knows all of its {len(weights)} names; say which it is with --backbone, and the "
            "names that are unknown will be listed"
        )
    return _best(found), None


def _head(name: str) -> ModuleType:
    return catalog.load("heads", name)


def _tried(module: ModuleType, weights: Mapping[str, np.ndarray], *, strict: bool = False):
    try:
        return module.translate(dict(weights))
    except (InputError, KeyError, ValueError, IndexError):
        if strict:
            raise
        return None


def _tried_body(name: str, weights: Mapping[str, np.ndarray]) -> Body | None:
    parts = _tried(catalog.load("backbones", name), weights)
    return (name, catalog.load("backbones", name), parts["backbone"]) if parts and parts["backbone"] else None


def _body(name: str, weights: Mapping[str, np.ndarray]) -> Body:
    source = catalog.load("backbones", name)
    return name, source, source.translate(dict(weights))["backbone"]


def _best(found: Sequence[Body]) -> Body:
    """Of the backbones that know the names the one with a variant that has these shapes, else the first."""
    return next((body for body in found if _variant(*body[1:])), found[0])


def _variant(source: ModuleType, arrays: Mapping[Any, np.ndarray]) -> pretrained.Report | None:
    """Finds the variant whose arrays all have the file's shapes, and reports on it."""
    for variant in source.VARIANTS:
        for channels in (3, 1):
            variables = _shapes(source.Backbone, variant=variant, in_channels=channels)
            try:
                _, report = pretrained.warm_start(variables, dict(arrays), part=f"variant {variant}")
            except (InputError, KeyError, TypeError):
                continue
            return report
    return None


def _shapes(build, **options) -> dict[str, Any]:
    module = nnx.eval_shape(lambda: build(**options, rngs=nnx.Rngs(0)))
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    trees = {name: nnx.to_pure_dict(nnx.state(module, kind)) for name, kind in kinds.items()}
    return jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), trees)


def _report(body: Body | None, head: Body | None) -> Iterator[str]:
    """Words what becomes of every tensor."""
    if body is None:
        yield "backbone: none knows the names of this one"
    else:
        name, source, arrays = body
        report = _variant(source, arrays)
        unnamed = f"{len(arrays)} tensors, of no named variant; give its options in the config"
        yield f"backbone {name}, {report}" if report else f"backbone {name}: {unnamed}"
    if head is not None:
        name, _, arrays = head
        yield f"head {name}: {len(arrays)} tensors"


if __name__ == "__main__":
    sys.exit(main())

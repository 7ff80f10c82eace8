"""Published weights from the command line: `python -m mediax.pretrained list`, `... convert SOURCE --to DIR`."""

import argparse
import dataclasses
import hashlib
import inspect
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save

from mediax import catalog, pretrained
from mediax.errors import InputError
from mediax.files import expanded, replace_file

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
    convert_.add_argument("--to", required=True, type=expanded, metavar="DIR", help="where FILE.safetensors is written")
    convert_.add_argument("--backbone", default="", help="default: the one whose names the file has")
    convert_.add_argument("--head", default="", help="default: the one whose names the file has, if any")
    convert_.add_argument("--incomplete", action="store_true", help="write a file that lacks tensors of its backbone")
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
    fit = body and _nearest(body)
    for line in _report(body, fit, head):
        print(f"  {line}")
    if fit and fit.missing and not arguments.incomplete:
        more = " ..." if len(fit.missing) > 8 else ""
        raise InputError(
            f"{path}: not written, it lacks {len(fit.missing)} tensors of {body.name}, variant {fit.variant}: "
            f"{', '.join(fit.missing[:8])}{more}. Download it again; or convert it as it is with --incomplete, if it "
            "is a part of a network or has other options than this variant"
        )
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


@dataclasses.dataclass(frozen=True)
class Body:
    """The tensors of a file under the names of a backbone: `arrays`, and `classifier` what comes after it."""

    name: str
    source: ModuleType
    arrays: Mapping[pretrained.Path, np.ndarray]
    classifier: Mapping[pretrained.Path, np.ndarray]


Head = tuple[str, ModuleType, Mapping[pretrained.Path, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Fit:
    """How the tensors of a file, `a/b/0/kernel`, fit a network; those of another shape come with both shapes."""

    variant: str
    used: tuple[str, ...]
    left_over: tuple[str, ...]
    missing: tuple[str, ...]
    other_shape: tuple[str, ...]

    @property
    def misfits(self) -> int:
        return len(self.left_over) + len(self.missing) + len(self.other_shape)

    @property
    def closeness(self) -> int:
        """Greater for the nearer of two networks."""
        return len(self.used) - self.misfits

    def lines(self) -> Iterator[str]:
        for said in ("left over", "missing", "other shape"):
            for name in getattr(self, said.replace(" ", "_")):
                yield f"{said}: {name}"


def _recognise(
    path: Path, weights: Mapping[str, np.ndarray], backbone: str, head: str
) -> tuple[Body | None, Head | None]:
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
    source = catalog.load("backbones", name)
    parts = _tried(source, weights)
    return Body(name, source, parts["backbone"], parts["head"]) if parts and parts["backbone"] else None


def _body(name: str, weights: Mapping[str, np.ndarray]) -> Body:
    source = catalog.load("backbones", name)
    parts = source.translate(dict(weights))
    return Body(name, source, parts["backbone"], parts["head"])


def _best(found: Sequence[Body]) -> Body:
    """Of the backbones that know the names the one with the variant that is nearest to the file."""
    return max(found, key=lambda body: _nearest(body).closeness) if len(found) > 1 else found[0]


def _nearest(body: Body) -> Fit:
    """Finds the variant that the most tensors of the file fit, in colour or grey."""
    best = None
    for variant in body.source.VARIANTS:
        fit = _fit_variant(body, variant, 3)
        if len(fit.other_shape) == 1:  # the first kernel may be for grey
            fit = max(fit, _fit_variant(body, variant, 1), key=lambda each: each.closeness)
        if not fit.misfits:
            return fit
        best = fit if best is None or fit.closeness > best.closeness else best
    return best


def _fit_variant(body: Body, variant: str, channels: int) -> Fit:
    options = _optional(body)
    build = lambda: body.source.Backbone(variant=variant, in_channels=channels, **options, rngs=nnx.Rngs(0))  # noqa: E731
    return _fit(variant, nnx.eval_shape(build), body.arrays, optional=tuple(options))


def _optional(body: Body) -> dict[str, bool]:
    """The options of a backbone whose parameters a classifier's file lacks, if this file has them."""
    first = {path[0] for path in body.arrays}
    known = inspect.signature(body.source.Backbone.__init__).parameters
    return {name: True for name in getattr(body.source, "OPTIONAL", ()) if name in first and name in known}


def _fit(
    variant: str, module: nnx.Module, arrays: Mapping[pretrained.Path, np.ndarray], optional: Sequence[str] = ()
) -> Fit:
    """How the tensors fit the network, of which those whose path begins with an `optional` name need not be there."""
    state = nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat)))
    expected = {path: leaf.shape for path, leaf in state}
    shared = [path for path in expected if path in arrays]
    return Fit(
        variant,
        used=_joined(path for path in shared if arrays[path].shape == expected[path]),
        left_over=_joined(path for path in arrays if path not in expected),
        missing=_joined(path for path in expected if path not in arrays and path[0] not in optional),
        other_shape=tuple(
            f"{name} ({list(arrays[path].shape)} in the file, {list(expected[path])} in the network)"
            for path, name in zip(shared, _joined(shared))
            if arrays[path].shape != expected[path]
        ),
    )


def _joined(paths: Iterable[pretrained.Path]) -> tuple[str, ...]:
    return tuple("/".join(map(str, path)) for path in paths)


def _report(body: Body | None, fit: Fit | None, head: Head | None) -> Iterator[str]:
    """Words what becomes of every tensor."""
    if body is None:
        yield "backbone: none knows the names of this one"
    else:
        options = "".join(f" with {name}" for name in _optional(body))
        yield f"backbone {body.name}, variant {fit.variant}{options}: {len(fit.used)} tensors used"
        yield from (f"  {line}" for line in fit.lines())
        yield from (f"  left over: head/{name}" for name in _joined(body.classifier))
    if head is not None:
        yield from _head_report(body, fit, head)


def _head_report(body: Body | None, fit: Fit | None, head: Head) -> Iterator[str]:
    name, source, arrays = head
    try:
        found = _default_head(body, fit, source, arrays)
    except InputError as error:
        yield f"head {name}: {len(arrays)} tensors, not compared: {error}"
        return
    yield f"head {name}, {found.variant}: {len(found.used)} tensors used"
    yield from (f"  {line}" for line in found.lines())


def _default_head(
    body: Body | None, fit: Fit | None, source: ModuleType, arrays: Mapping[pretrained.Path, np.ndarray]
) -> Fit:
    """How the tensors fit the head as it is built by default, for one class, on the variant of the backbone."""
    if body is None:
        raise InputError("the backbone that it stands on is unknown")

    def build() -> nnx.Module:
        backbone = body.source.Backbone(variant=fit.variant, rngs=nnx.Rngs(0))
        return source.Head(backbone.channels, 1, rngs=nnx.Rngs(0))

    return _fit("built by default for 1 class", nnx.eval_shape(build), arrays)


if __name__ == "__main__":
    sys.exit(main())

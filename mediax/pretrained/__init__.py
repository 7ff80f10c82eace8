"""Published weights: read a file, rename its tensors, adapt the input channels, warm-start a part of a network.

A backbone file holds what is specific to its network: the table of names (`translate`) and the place of the input's
normalisation (`adapt_input`). In full:

    weights = convnext.translate(pretrained.read("convnext_tiny_1k_224_ema.pth"))
    backbone = convnext.adapt_input(weights["backbone"], mean=(0.5,), std=(0.25,))  # one grey channel
    variables, report = pretrained.warm_start(variables, backbone, part="backbone")
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path as File
from typing import Any

import numpy as np

from mediax.errors import InputError, first_line

Path = tuple[str | int, ...]
Tree = dict[str | int, Any]


def read(path: str | File) -> dict[str, np.ndarray]:
    """Tensors by published name: .safetensors, a PyTorch checkpoint (.pth, .pt, .bin, .ckpt), or Keras' .h5.

    .safetensors needs neither torch nor h5py. A PyTorch checkpoint is loaded with weights_only=True: a file that would
    run code is refused. {"model": ...} and {"state_dict": ...} are unwrapped, and a leading "module." is dropped.
    Keras' tensors come in the order of the layers. Floating-point tensors become f32.
    Raises InputError for a missing, damaged, unsafe or unknown file.
    """
    path = File(path)
    check_exists(path)
    if path.suffix == ".safetensors":
        tensors = _read_safetensors(path)
    elif path.suffix in (".h5", ".hdf5"):
        tensors = _read_keras(path)
    elif path.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        tensors = _read_torch(path)
    else:
        raise InputError(f"{path}: read are .safetensors, .pth, .pt, .bin, .ckpt and .h5, not {path.suffix!r}.")
    return {name.removeprefix("module."): array for name, array in tensors.items()}


def check_exists(path: str | File) -> None:
    """Raises InputError if there is no such file."""
    if not File(path).is_file():
        raise InputError(
            f"{path}: no such file; expected pretrained weights (.safetensors or .pth), or for a backbone the folder "
            "of a run. `python -m mediax.pretrained convert NAME --to DIR` downloads those of `python -m "
            "mediax.pretrained list`."
        )


def _read_safetensors(path: File) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: _as_f32(array) for name, array in load_file(path).items()}
    except SafetensorError as error:
        raise InputError(f"{path}: not a readable .safetensors file ({error}). Download it again.") from error


def _read_torch(path: File) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: reading a PyTorch checkpoint needs torch, which is not installed. Install it with "
            "`pip install torch --index-url https://download.pytorch.org/whl/cpu`, or convert the file to .safetensors."
        ) from error
    import argparse
    import pickle

    try:
        # The command line of a training beside its weights, as DINO's authors save it: attributes, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"{path}: torch cannot load it as plain tensors (damaged, or it contains code, which is never run): "
            f"{first_line(error)} Download it again, or convert it to .safetensors where you trust it."
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{path}: expected tensors by name, at the top or under 'model' or 'state_dict'.")
    tensors = {name: tensor.detach() for name, tensor in content.items()}  # of an nn.Parameter too
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy() for name, tensor in tensors.items()
    }


def _read_keras(path: File) -> dict[str, np.ndarray]:
    """Weights in the order of Keras' layers: {"LAYER/kernel": f32 array, "LAYER/bias": ...}.

    Of what `model.save("x.h5")` and Keras 2's `model.save_weights("x.h5")` write.
    """
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{path}: reading Keras weights needs h5py. Install it with `pip install h5py`.") from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error}). Download it again.") from error
    with file:
        layers = file.get("model_weights", file)
        if "layer_names" not in layers.attrs:
            raise InputError(f'{path}: expected the layer names of a Keras .h5 file; write it with model.save("x.h5").')
        weights = {}
        for layer in map(_text, layers.attrs["layer_names"]):
            for name in map(_text, layers[layer].attrs["weight_names"]):
                word = name.rpartition("/")[2].removesuffix(":0")
                weights[f"{layer}/{word}"] = np.asarray(layers[layer][name], np.float32)
    return weights


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _as_f32(array: np.ndarray) -> np.ndarray:
    # bfloat16 is not a numpy floating type: everything that is not an integer or a bool is a float here.
    return array if array.dtype.kind in "iub" else array.astype(np.float32)


def sha256(path: str | File) -> str:
    """Hexadecimal SHA-256 of a file, to compare with the published one."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def torchvision_file(file: str, *, size: int = 224) -> dict[str, Any]:
    """One of torchvision's ImageNet-1k files, as PUBLISHED of a backbone lists it; `size` is the image's in pixels."""
    source = f"https://download.pytorch.org/models/{file}"
    digest = file.removesuffix(".pth").split("-")[1]  # torchvision names a file by the beginning of its SHA-256
    licence = "BSD-3-Clause"
    return {"file": file, "source": source, "licence": licence, "sha256": digest, "classes": 1000, "size": size}


def rename(weights: dict[str, np.ndarray], table: Iterable[tuple[str, str]]) -> dict[str, dict[Path, np.ndarray]]:
    """Published tensors by name -> {"backbone": {path: array}, "head": {path: array}}.

    A name is a module and its last word, `weight`, `bias`, `running_mean`, `running_var`. `table` pairs a regular
    expression that matches a whole module name with its new one, `part/attribute/...`, whose \\1, \\2 are the groups;
    a parameter without a last word is matched whole. Arrays change from torch's layout to ours: convolutions OIHW ->
    HWIO, linear layers [out,in] -> [in,out]. `num_batches_tracked` is dropped: nothing reads it.
    Raises InputError with the names that the table does not know (the first eight and their number).
    """
    table = [(re.compile(pattern), replacement) for pattern, replacement in table]
    parts: dict[str, dict[Path, np.ndarray]] = {"backbone": {}, "head": {}}
    unknown = []
    for name, array in weights.items():
        module, _, word = name.rpartition(".")
        if word == "num_batches_tracked":
            continue
        if word not in _WORDS:
            module, word = name, ""
        matches = ((pattern.fullmatch(module), replacement) for pattern, replacement in table)
        path = next((match.expand(replacement) for match, replacement in matches if match), None)
        if path is None:
            unknown.append(name)
            continue
        part, *path = path.split("/")
        if word:  # only normalisation layers have a weight of one dimension.
            path.append("scale" if word == "weight" and array.ndim == 1 else _WORDS[word])
        parts[part][tuple(int(key) if key.isdigit() else key for key in path)] = _layout(array)
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(weights)} published tensors have unknown names: {_some(unknown)}. "
            "Is this the checkpoint of another network?"
        )
    return parts


def join(weights: dict[str, np.ndarray], table: Iterable[tuple[tuple[str, ...], str]]) -> dict[str, np.ndarray]:
    """Concatenates tensors that a library keeps apart along their first axis, for `rename`.

    `table` pairs the ends of the modules' names, in order, with the end of the joined one's.
    """
    weights = dict(weights)
    for apart, joined in table:
        first = re.compile(rf"(.*\.){re.escape(apart[0])}(\.\w+)")
        for prefix, word in [match.groups() for match in map(first.fullmatch, weights) if match]:
            names = [prefix + name + word for name in apart]
            if all(name in weights for name in names):
                weights[prefix + joined + word] = np.concatenate([weights.pop(name) for name in names])
    return weights


_WORDS = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def _layout(array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.T if array.ndim == 2 else array


class UnknownNormalisation(InputError):
    """Weights whose input is not red, green and blue: how their images were normalised is written nowhere."""

    def __init__(self, channels: int):
        self.channels = channels
        super().__init__(
            f"The weights have {channels} input channels of unknown normalisation: set backbone.channels to {channels} "
            "and both backbone.mean and backbone.std, one number for each channel, to what their images were "
            "normalised by."
        )


def adapt_input(
    kernel: np.ndarray,
    published_mean: tuple[float, ...],
    published_std: tuple[float, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """First kernel for images with another normalisation or a single grey channel, and the constant it leaves out.

    f32[kh,kw,3,out] -> f32[kh,kw,C,out], f32[out] where C = len(mean) = len(std) is 1 or 3. A channel normalised by
    (m, s) is written in terms of the published (M, S): (v - M) / S = g * s / S + (m - M) / S for g = (v - m) / s. The
    factors go into the kernel (summed over the channels if the image is grey) and the constants into the second
    result, which the caller adds to the bias. Exact where the kernel does not reach over the border: zero padding
    means the colour `published_mean` in the published network and `mean` in the adapted one.
    Raises UnknownNormalisation for a kernel of other than 3 channels, InputError if C is neither 1 nor 3.
    """
    if kernel.shape[2] != 3:
        raise UnknownNormalisation(kernel.shape[2])
    if len(mean) != len(std) or len(mean) not in (1, 3):
        raise InputError(
            "Published weights see red, green and blue: they adapt to 1 (grey) or 3 channels, but the input's mean "
            f"has {len(mean)} and its std {len(std)} values. Train another input from scratch."
        )
    published_mean, published_std, mean, std = map(np.asarray, (published_mean, published_std, mean, std))
    scaled = kernel * (std / published_std)[:, None]
    constant = np.einsum("hwco,c->o", kernel, (mean - published_mean) / published_std)
    if len(mean) == 1:
        scaled = scaled.sum(2, keepdims=True)
    return scaled.astype(np.float32), constant.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a warm start did, as `a/b/0/kernel` paths: set, left over in the file, left at their initial values."""

    part: str
    used: tuple[str, ...]
    left_over: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.part}: {len(self.used)} tensors set from pretrained weights"
        if self.left_over:
            text += f"; {len(self.left_over)} not used: {_some(self.left_over)}"
        if self.missing:
            text += f"; {len(self.missing)} left at their initial values: {_some(self.missing)}"
        return text


def warm_start(
    variables: dict[str, Tree],
    weights: dict[Path, np.ndarray],
    *,
    part: str,
    complete: bool = True,
    optional: tuple[str, ...] = (),
) -> tuple[dict[str, Tree], Report]:
    """Sets the arrays of one part from translated weights; returns new variables and a report.

    `variables` is {collection: nested dict of arrays}, for instance {"params": ..., "batch_stats": ...}; a path of
    `weights` names an array in any one of them. Dtypes are kept. A tensor that is missing or has another shape raises
    InputError with its name if `complete` (a backbone), and stays at its initial value otherwise (a head with another
    number of classes). Those whose path begins with a name in `optional` may be missing all the same. Tensors of
    `weights` that the part does not have are reported, not an error.
    """
    places = {path: (name, path) for name, tree in variables.items() for path in _paths(tree)}
    fits, problems = {}, []
    for path, (name, _) in places.items():
        expected = _get(variables[name], path)
        if path not in weights:
            problems.append((path, "missing"))
        elif weights[path].shape != expected.shape:
            problems.append((path, f"{list(weights[path].shape)} in the file, {list(expected.shape)} in the network"))
        else:
            fits[path] = weights[path]
    errors = [f"{_join(path)} ({why})" for path, why in problems if path[0] not in optional or why != "missing"]
    if errors and complete:
        raise InputError(
            f"The pretrained weights do not fit {part}: {_some(errors)}. "
            "Check the backbone's variant, its overrides and the number of input channels."
        )
    left_over = [path for path in weights if path not in fits]
    result = {name: _replace(tree, fits, ()) for name, tree in variables.items()}
    report = Report(part, *(tuple(map(_join, paths)) for paths in (fits, left_over, [path for path, _ in problems])))
    return result, report


def _paths(tree: Tree, prefix: Path = ()) -> Iterable[Path]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


def _get(tree: Tree, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _replace(tree: Tree, arrays: dict[Path, np.ndarray], prefix: Path) -> Tree:
    def value(key: str | int, old: Any) -> Any:
        path = (*prefix, key)
        if isinstance(old, dict):
            return _replace(old, arrays, path)
        return arrays[path].astype(old.dtype) if path in arrays else old

    return {key: value(key, old) for key, old in tree.items()}


def _join(path: Path) -> str:
    return "/".join(map(str, path))


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")

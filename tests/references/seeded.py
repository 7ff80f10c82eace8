"""Weights, images and test directions that the reference and mediax both generate, so that goldens need not store them.

Imports neither torch nor jax. Every tensor depends on its name and shape alone.
"""

import zlib

import numpy as np


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Plausible weights for published names: activations keep their scale, and no two tensors or entries are alike."""
    return {name: _weights(name, tuple(shape)) for name, shape in shapes.items() if not name.endswith("tracked")}


def directions(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A standard normal tensor for each name: the dot product with it notices a permuted or transposed gradient."""
    return {name: normal("direction of " + name, shape) for name, shape in shapes.items()}


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape), np.float32)


def _weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = normal(name, shape)
    if name.endswith("running_var"):
        return 1 + 0.5 * np.tanh(noise)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * noise
    if name.endswith(("gamma", "layer_scale")):
        return 0.4 + 0.1 * noise
    if len(shape) == 1:  # a normalisation's scale
        return 1 + 0.1 * noise
    return noise / np.sqrt(np.prod(shape[1:], dtype=np.float32))

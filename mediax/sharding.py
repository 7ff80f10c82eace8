"""The mesh, and where batches and the training state lie on it."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mediax.catalog import suggestion
from mediax.errors import InputError

AXIS = "data"
MODES = ("replicated", "fsdp")
MINIMUM_SIZE = 2**12  # elements; splitting less than this costs more in messages than it saves in memory


def mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Lays all devices on one axis, over which batches are split and, with `fsdp`, the state too."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the rows of a batch over the devices."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
    """Puts a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, abstract_state: Any, mode: str) -> Any:
    """Gives each array of the state its sharding: whole copies (`replicated`), or split (`fsdp`, after ZeRO-3).

    A split array is cut along its longest axis that the number of devices divides; small arrays stay whole.
    """
    if mode not in MODES:
        raise InputError(f"config field sharding: no mode {mode!r}; {suggestion(mode, MODES)}")

    def place(array: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = [axis for axis, size in enumerate(array.shape) if size % mesh.size == 0]
        if mode == "replicated" or not axes or np.prod(array.shape) < MINIMUM_SIZE:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[AXIS if axis == longest else None for axis in range(array.ndim)]))

    return jax.tree.map(place, abstract_state)


def to_device(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Assembles the global batch from each process's own rows."""
    rows = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(rows, value) for name, value in batch.items()}

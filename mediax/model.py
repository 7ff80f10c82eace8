"""The model: a flat dict of parts, each an NNX module turned into a pure (init, apply) pair."""

import collections
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from mediax.batch import Batch
from mediax.errors import InputError
from mediax.operators.padding import pad_to_multiple

Tree = dict[str, Any]
Build = Callable[[nnx.Rngs], nnx.Module]


class Part(NamedTuple):
    """A lockable piece of the network as two pure functions.

    `init(key) -> (params, batch_stats)`; `apply(params, batch_stats, *inputs, train, key) -> (outputs, batch_stats)`.
    """

    init: Callable[[jax.Array], tuple[Tree, Tree]]
    apply: Callable[..., tuple[Any, Tree]]


def part(build: Build) -> Part:
    """Turns an NNX module into a Part; the module is called as `module(*inputs, train=bool, rngs=nnx.Rngs)`.

    Its variables are nnx.Param and nnx.BatchStat; whatever else it would keep as state (a dropout's own key, say)
    raises TypeError, because randomness comes with the call and nothing else may change from step to step.
    """
    graph, _, _, rest = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param, nnx.BatchStat, ...)
    if jax.tree.leaves(rest):
        raise TypeError(f"a part may hold nnx.Param and nnx.BatchStat only, found {nnx.to_pure_dict(rest)}")

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        _, params, batch_stats = nnx.split(build(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(batch_stats)

    def apply(params: Tree, batch_stats: Tree, *inputs, train: bool, key: jax.Array) -> tuple[Any, Tree]:
        # The copy keeps BatchNorm's update from reaching into tracers of an outer grad.
        module = nnx.merge(graph, params, batch_stats, copy=True)
        outputs = module(*inputs, train=train, rngs=nnx.Rngs(key))
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    return Part(init, apply)


class Model(NamedTuple):
    """All parts by name, and how an image in [0, 1] is normalised before it enters the backbone.

    `multiple` is what the sides of an image are to be multiples of, so that each level of the pyramid covers all of it.
    """

    parts: Mapping[str, Part]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    multiple: int = 1

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Initialises every part from its own key, so that adding a part leaves the others' weights as they were."""
        variables = {name: part.init(named_key(key, name)) for name, part in self.parts.items()}
        return {name: v[0] for name, v in variables.items()}, {name: v[1] for name, v in variables.items()}

    def forward(
        self,
        tasks: Mapping[str, Any],
        params: Tree,
        batch_stats: Tree,
        batch: Batch,
        *,
        live: Sequence[str] = (),
        train: bool = False,
        key: jax.Array,
    ) -> tuple[dict[str, Any], Tree]:
        """Runs the backbone once and every task of the stream on its pyramid.

        Returns the outputs of each task and the batch statistics, which move in the live parts alone: a part that is
        not live runs in inference mode. A task may run any part again, `run("backbone", image)` on another image in
        [0, 1] for instance, and what is random in the part is then drawn anew.

        Where a task of the stream is `dense`, zeros fill each normalised image below and on the right to a `multiple`,
        as the published networks do. Other tasks see the images as they are: a mean over the image has no use for them.
        """
        multiple = self.multiple if any(getattr(task, "dense", False) for task in tasks.values()) else 1
        batch_stats = dict(batch_stats)
        calls = collections.Counter()

        def run(name: str, *inputs):
            calls[name] += 1
            own_key = named_key(key, name if calls[name] == 1 else f"{name} {calls[name]}")
            if name == "backbone":
                inputs = tuple(pad_to_multiple(self.normalise(image), multiple) for image in inputs)
            outputs, batch_stats[name] = self.parts[name].apply(
                params[name], batch_stats[name], *inputs, train=train and name in live, key=own_key
            )
            return outputs

        pyramid = run("backbone", batch["image"])
        return {name: task.apply(run, pyramid, batch) for name, task in tasks.items()}, batch_stats

    def normalise(self, image: jax.Array) -> jax.Array:
        """Maps intensities f32[B,H,W,C] in [0, 1] to zero mean and unit variance by the given constants.

        Raises InputError if the images have another number of channels than the network.
        """
        if image.shape[-1] != len(self.mean):
            raise InputError(
                f"config field backbone.channels is {len(self.mean)}, the images have {image.shape[-1]} channels: "
                "change the field, or give the stream and its evaluations the transform to_channels"
            )
        return (image - jnp.asarray(self.mean)) / jnp.asarray(self.std)


def named_key(key: jax.Array, name: str) -> jax.Array:
    """Derives a key that depends on the name alone, not on the order in which names are met."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))

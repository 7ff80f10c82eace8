"""A network of a few hundred weights and two streams, for tests of the trunk."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mediax import data, optimizer, schedule, sharding
from mediax.layers import BatchNorm
from mediax.model import Model, part
from mediax.tasks.classification import Task
from mediax.train import Stream, Training

SIZE, CLASSES = 8, ("Edema", "Fracture")


class Backbone(nnx.Module):
    """A convolution, a BatchNorm (on demand) and a dropout (on demand)."""

    def __init__(self, *, batch_norm: bool, dropout: float, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), strides=(2, 2), rngs=rngs)
        self.norm = BatchNorm(4, rngs=rngs) if batch_norm else nnx.LayerNorm(4, rngs=rngs)
        self.scale = nnx.Param(jax.numpy.full(4, 1.0))  # weakly typed, as a Python number makes it
        self.batch_norm, self.dropout = batch_norm, dropout

    def __call__(self, image, *, train, rngs):
        x = self.conv(image) * self.scale[...]
        x = self.norm(x, train) if self.batch_norm else self.norm(x)
        if train and self.dropout:
            x = nnx.Dropout(self.dropout, deterministic=False)(x, rngs=rngs)
        return {2: jax.nn.relu(x)}


class Source:
    """Images whose brightness gives the labels away; every fifth label of the second class is unknown."""

    def __init__(self, size=64):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        bright = index % 2
        noise = np.random.default_rng(index).random((SIZE, SIZE, 1))
        labels = [bright, np.nan if index % 5 == 0 else 1 - bright]
        image = (100 * bright + 100 * noise).astype(np.uint8)
        return {
            "image": image,
            "labels": np.asarray(labels, np.float32),
            "id": str(index),
            "patient_id": str(index // 2),
        }


def read(record):
    return record


def training(*, batch_norm=False, dropout=0.0, streams=("a",), frozen=(), plan="cyclic", options=None, **changes):
    """Composes a Training on the toy network; `changes` replace its fields."""
    tasks = {name: {"classification": Task(name=f"{name}/classification", classes=CLASSES)} for name in streams}
    parts = {"backbone": part(lambda rngs: Backbone(batch_norm=batch_norm, dropout=dropout, rngs=rngs))}
    for of_stream in tasks.values():
        for task in of_stream.values():
            parts |= {name: part(build) for name, build in task.parts({2: 4}).items()}
    used = {name: ["backbone", f"head/{name}/classification"] for name in streams}

    def batches(name):
        return lambda position: data.training_batches(
            Source(), read, batch_size=16, seed=data.seed_of(0, name), position=position
        )

    steps = changes.pop("steps", 8)
    rule = changes.pop("rule", "adamw")
    values = {
        "model": Model(parts, (0.5,), (0.25,)),
        "streams": {name: Stream(name, tasks[name], batches(name), 16) for name in streams},
        "evaluations": {},
        "schedule": schedule.build(plan, used, dict.fromkeys(streams, 1.0), frozen, **(options or {})),
        "optimizer": optimizer.build(tuple(parts), steps=steps, name=rule, peak=1e-2, weight_decay=0.1),
        "learning_rate": optimizer.learning_rate("cosine", peak=1e-2, steps=steps),
        "warm_start": lambda params, batch_stats: (params, batch_stats),
        "mesh": sharding.mesh(),
        "sharding": "replicated",
        "seed": 0,
        "steps": steps,
        "log_every": 2,
        "evaluate_every": 4,
        "checkpoint_every": 3,
        "ema_decay": 0.9,
        "accumulate": 1,
        "clip_norm": 1.0,
        "resamples": 0,
        "best_metric": "validation/classification/auroc/macro",
        "best_mode": "max",
        "patience": 0,
        "config": {},
    }
    return Training(**(values | changes))


def digest(tree):
    """Gives all arrays of a tree as one tuple of bytes, for comparisons to the bit."""
    return tuple(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))


def worst(a, b):
    """Gives the largest absolute difference between two trees."""
    return max(float(jnp.abs(x - y).max()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


__all__ = ["CLASSES", "Source", "digest", "read", "replace", "training", "worst"]

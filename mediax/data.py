"""The data's way: source -> shuffle -> repeat -> read -> transform -> shard -> batch -> device.

Training streams are random-access maps from an index to a batch, so the place in a stream is one number: how many
batches were taken. Element, augmentation and batch of an index depend on the seed alone, neither on the number of
worker processes nor on the number of processes that share the batch: the union of their rows is always the same. Only
batch transforms (mixup) know their process: they mix the rows that it holds.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from mediax import images, transforms
from mediax.batch import HOST_FIELDS, MAX_BOXES, Batch, device_fields, pad_boxes, stack
from mediax.errors import InputError

Read = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Example(grain.transforms.RandomMap):
    """One record, read, transformed and padded to `max_boxes` boxes: record -> fields of the schema."""

    read: Read
    pipeline: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
    max_boxes: int

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return pad_boxes(self.pipeline(self.read(record), rng), self.max_boxes)


@dataclass(frozen=True)
class BatchTransform(grain.transforms.RandomMap):
    """A random transform of a whole batch, such as mixup."""

    pipeline: Callable[[Batch, np.random.Generator], Batch]

    def random_map(self, batch: Batch, rng: np.random.Generator) -> Batch:
        return self.pipeline(batch, rng)


class PermutedLabels:
    """A source whose labels were dealt out anew: what a model learns from it, it learns from a leak.

    Row i keeps its image and takes every label-like field of row permutation[i].
    """

    def __init__(self, source, read: Read, seed: int):
        self.source, self.read = source, read
        self.permutation = np.random.default_rng(seed).permutation(len(source))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        own, other = self.read(self.source[index]), self.read(self.source[int(self.permutation[index])])
        return other | {name: own[name] for name in ("image", *HOST_FIELDS) if name in own}


def seed_of(seed: int, name: str) -> int:
    """Derives the seed of a named stream, equal on every machine."""
    return (seed * 1_000_003 + zlib.crc32(name.encode())) % 2**31


def training_batches(
    source: Sequence[Any],
    read: Read,
    *,
    transform: Sequence[Mapping[str, Any]] = (),
    batch_transform: Sequence[Mapping[str, Any]] = (),
    batch_size: int,
    max_boxes: int = MAX_BOXES,
    seed: int,
    position: int = 0,
    workers: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields training batches without end, from batch number `position` on.

    `process` is (index, count): each process yields its own batch_size / count rows of every global batch.
    """
    index, count = process
    if batch_size % count:
        raise InputError(f"config field batch_size is {batch_size}: not divisible by the {count} processes")
    dataset = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat(None)
        .random_map(Example(read, transforms.build(transform), max_boxes))[index::count]
        .batch(batch_size // count, drop_remainder=True, batch_fn=_training_batch)
    )
    if batch_transform:
        dataset = dataset.random_map(BatchTransform(transforms.build_batch(batch_transform)), seed=seed + index)
    dataset = dataset[position:]
    # Threads read ahead within this process; worker processes each do so on their own.
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    iterator = dataset.to_iter_dataset(options)
    if workers:
        iterator = iterator.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(iterator)


def evaluation_batches(
    source: Sequence[Any],
    read: Read,
    *,
    transform: Sequence[Mapping[str, Any]] = (),
    batch_size: int,
    max_boxes: int = MAX_BOXES,
    process: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields every row of `source` exactly once in order; the last batch is padded with rows that are not valid."""
    index, count = process
    rows = -(-batch_size // count)
    prepare = Example(read, transforms.build(transform), max_boxes)
    total = -(-len(source) // (rows * count)) * rows * count

    def example(row: int) -> dict[str, Any]:
        # Evaluation transforms draw nothing; a fixed generator per row keeps one that does repeatable.
        fields = prepare.random_map(source[min(row, len(source) - 1)], np.random.default_rng(row))
        return fields | {"valid": row < len(source)}

    def batch(first: int) -> Batch:
        return stack([example(row) for row in range(first + index * rows, first + (index + 1) * rows)])

    dataset = grain.MapDataset.range(0, total, rows * count).map(batch)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def scan_labels(source: Sequence[Any], read: Read) -> np.ndarray:
    """Reads the labels f32[N,K] of a whole split, without decoding its images."""
    blank = images.encode(np.zeros((1, 1, 1), np.uint8))
    labels = (read({**source[row], "image": blank})["labels"] for row in range(len(source)))
    return np.stack([np.asarray(label, np.float32) for label in labels])


def _training_batch(examples: Sequence[Mapping[str, Any]]) -> Batch:
    return device_fields(stack([{**example, "valid": True} for example in examples]))

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
    """One record, read, transformed and padded to `max_boxes` boxes: record -> fields of the schema.

    With the pipeline `second` the image goes through that one as well, and becomes `second_view`; `patient` then says
    on the device which rows show the same patient.
    """

    read: Read
    pipeline: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]
    max_boxes: int
    second: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]] | None = None

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        example = self.read(record)
        fields = pad_boxes(self.pipeline(example, rng), self.max_boxes)
        if self.second is None:
            return fields
        seen = {name: example[name] for name in ("image", "field_of_view") if name in example}
        # Equal on every process; that two patients of a batch share a number is next to impossible.
        patient = zlib.crc32(str(example["patient_id"]).encode()) & 0x7FFFFFFF
        return fields | {"second_view": self.second(seen, rng)["image"], "patient": np.int32(patient)}


@dataclass(frozen=True)
class BatchTransform(grain.transforms.RandomMap):
    """A random transform of a whole batch, such as mixup."""

    pipeline: Callable[[Batch, np.random.Generator], Batch]

    def random_map(self, batch: Batch, rng: np.random.Generator) -> Batch:
        return self.pipeline(batch, rng)


# What an image is and how it was taken; the other fields of an example are what somebody says about it.
IMAGE_FIELDS = ("image", "moving", "field_of_view", "spacing_mm", *HOST_FIELDS)


class PermutedLabels:
    """A source whose annotations were dealt out anew: what a model learns from it, it learns from a leak.

    Row i keeps its image and takes all annotations of row permutation[i], as they belong together: labels and targets,
    boxes with their `box_*` fields, masks with what is known of them, keypoints. Boxes and keypoints are fractions of
    the image and fit any; masks do not. Raises InputError where they have another size than the image.
    """

    def __init__(self, source, read: Read, seed: int):
        self.source, self.read = source, read
        self.permutation = np.random.default_rng(seed).permutation(len(source))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        own, other = self.read(self.source[index]), self.read(self.source[int(self.permutation[index])])
        dealt = {name: value for name, value in other.items() if name not in IMAGE_FIELDS}
        sizes = {name: dealt[name].shape[:2] for name in ("masks", "second_masks") if name in dealt}
        sizes |= {"box_masks": dealt["box_masks"].shape[1:]} if "box_masks" in dealt else {}
        for name, (height, width) in sizes.items():
            if (height, width) != own["image"].shape[:2]:
                raise InputError(
                    f"config field permute_labels: {name} of image {other.get('id', '')!r} are "
                    f"{height} x {width} pixels, image {own.get('id', '')!r} that they "
                    f"are dealt to has {own['image'].shape[0]} x {own['image'].shape[1]}: build the dataset at one "
                    "size (build.size)"
                )
        return dealt | {name: own[name] for name in IMAGE_FIELDS if name in own}


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
    second_view: Sequence[Mapping[str, Any]] = (),
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
        .random_map(_example(read, transform, max_boxes, second_view))[index::count]
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
    second_view: Sequence[Mapping[str, Any]] = (),
    process: tuple[int, int] = (0, 1),
    rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yields every row of `source` exactly once in order, or those in `rows` alone, each as it is among all.

    The last batch is padded with rows that are not valid.
    """
    index, count = process
    share = -(-batch_size // count)
    prepare = _example(read, transform, max_boxes, second_view)
    order = range(len(source)) if rows is None else rows
    total = -(-len(order) // (share * count)) * share * count

    def example(place: int) -> dict[str, Any]:
        row = int(order[min(place, len(order) - 1)])
        # Evaluation transforms draw nothing; a fixed generator per row keeps one that does repeatable.
        fields = prepare.random_map(source[row], np.random.default_rng(row))
        return fields | {"valid": place < len(order)}

    def batch(first: int) -> Batch:
        return stack([example(place) for place in range(first + index * share, first + (index + 1) * share)])

    dataset = grain.MapDataset.range(0, total, share * count).map(batch)
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def _example(
    read: Read, transform: Sequence[Mapping[str, Any]], max_boxes: int, second_view: Sequence[Mapping[str, Any]]
) -> Example:
    second = transforms.build(second_view) if second_view else None
    return Example(read, transforms.build(transform), max_boxes, second)


def scan_labels(source: Sequence[Any], read: Read) -> np.ndarray:
    """Reads the labels f32[N,K] of a whole split, without decoding its images."""
    return np.stack([np.asarray(example["labels"], np.float32) for example in _without_images(source, read)])


def scan_boxes(source: Sequence[Any], read: Read) -> np.ndarray:
    """Counts the boxes i[N] of every image of a split, without decoding the images; none where nobody marks boxes."""
    return np.array([len(example.get("boxes", ())) for example in _without_images(source, read)])


def _without_images(source: Sequence[Any], read: Read) -> Iterator[dict[str, Any]]:
    blank = images.encode(np.zeros((1, 1, 1), np.uint8))
    return (read({**source[row], "image": blank}) for row in range(len(source)))


def _training_batch(examples: Sequence[Mapping[str, Any]]) -> Batch:
    return device_fields(stack([{**example, "valid": True} for example in examples]))

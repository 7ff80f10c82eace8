"""Checking raw data without building it: every file is decoded and every annotation read, all problems are told."""

import collections
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mediax import builder, images
from mediax.errors import InputError

BLANK = images.encode(np.zeros((1, 1, 1), np.uint8))


@dataclasses.dataclass
class Verification:
    """What raw data holds, split by split, and all that is wrong with it.

    `counts` are split -> Counter of (kind, name): ("images", ""), ("patients", ""), ("unreadable", ""), and by class
    ("present" | "absent" | "unknown", class), ("boxes", class), ("masks", structure), the last in images.
    """

    counts: dict[str, Counter[tuple[str, str]]]
    problems: list[str]


def verify(
    dataset: ModuleType,
    *,
    data_dir: str | Path,
    manual_dir: str | Path | None = None,
    builder_config: str | Mapping[str, Any] | None = None,
    workers: int | None = None,
) -> Verification:
    """Reads all that a build would read, and goes on where a build would stop.

    Args:
      dataset: a module of `mediax/datasets`.
      data_dir: where downloads go, of datasets that anybody may download.
      manual_dir, builder_config, workers: as for `builder.prepare`.

    Raises:
      InputError: raw data missing, or annotation files of which nothing can be read.
    """
    made = dataset.Builder(data_dir=data_dir, config=builder_config, manual_dir=manual_dir, workers=workers)
    splits = made.annotated()
    problems = list(builder.id_problems(splits, disjoint_patients=made.DISJOINT_PATIENTS))
    absent = builder.absent_images(splits, made.workers)
    problems += [f"{row.where}: the image {row.image} is absent" for row in absent]
    missing = {id(row) for row in absent}
    counts = {split: Counter(summary(rows)) for split, rows in splits.items()}
    present = [(split, row) for split, rows in splits.items() for row in rows if id(row) not in missing]
    classes = dataset.classes(builder_config)
    examined = builder.in_order(lambda item: examine(dataset, made, item[1], classes), present, made.workers)
    for (split, _), found in zip(present, builder.watched(examined, len(present), made.name)):
        if isinstance(found, str):
            problems.append(found)
            counts[split]["unreadable", ""] += 1
        else:
            counts[split].update(found)
    return Verification(counts, problems)


def summary(rows: Sequence[builder.Row]) -> dict[tuple[str, str], int]:
    """Counts images and patients."""
    return {("images", ""): len(rows), ("patients", ""): len({row.patient_id for row in rows})}


def examine(
    dataset: ModuleType, made: builder.Builder, row: builder.Row, classes: Sequence[str]
) -> Counter[tuple[str, str]] | str:
    """Makes the record of a row and reads it as training would; counts its annotations, or says what is wrong."""
    try:
        features = made.info.features
        images_ = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
        undecoded = dict.fromkeys(images_, tfds.decode.SkipDecoding())
        record = features.deserialize_example_np(made.serialize(row, made.example(row)), decoders=undecoded)
        texts = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]
        # The image was decoded once already, for `example`.
        example = dataset.read(record | {name: record[name].decode() for name in texts} | {"image": BLANK})
    except InputError as error:
        return str(error) if row.where in str(error) else f"{error}\n  asked for by: {row.where}"
    counts: Counter[tuple[str, str]] = collections.Counter()
    for name, label in zip(classes, example.get("labels", ())):
        counts["unknown" if np.isnan(label) else "present" if label >= 0.5 else "absent", name] += 1
    for label in example.get("box_labels", ()):
        counts["boxes", dataset.BOX_CLASSES[label]] += 1
    if "masks" in example:
        for structure, mask in zip(dataset.MASK_CLASSES, np.moveaxis(example["masks"], -1, 0)):
            counts["masks", structure] += int(mask.any())
    return counts

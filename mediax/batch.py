"""THE schema of an example and of a batch: fields, dtypes, shapes, units, and what a missing value is."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mediax.errors import InputError

Batch = dict[str, Any]


class Field(NamedTuple):
    """One field of a batch; `shape` names its axes.

    B rows, H and W pixels, C channels, K classes, S structures, N boxes, P points, R targets, O octets of a row of W
    pixels.
    """

    dtype: str
    shape: tuple[str, ...]
    meaning: str
    missing: str


FIELDS: dict[str, Field] = {
    "image": Field("float32", ("B", "H", "W", "C"), "intensities in [0, 1] before normalisation", "never"),
    "valid": Field("bool", ("B",), "False on rows that only pad the batch", "never"),
    "labels": Field("float32", ("B", "K"), "1 present, 0 absent, between them a soft label", "NaN"),
    "target": Field("float32", ("B", "R"), "regression targets in their own unit (years, grade)", "NaN"),
    "boxes": Field("float32", ("B", "N", "4"), "ymin, xmin, ymax, xmax as fractions of the image", "box_valid False"),
    "box_labels": Field("int32", ("B", "N"), "class index of each box", "box_valid False"),
    "box_valid": Field("bool", ("B", "N"), "False on boxes that only pad", "never"),
    "box_masks": Field(
        "uint8",
        ("B", "N", "H", "O"),
        "the mask of each box's own instance, eight pixels of a row in an octet as np.packbits lays them",
        "absent: only `masks` are known, and neighbours of one class are not told apart",
    ),
    "boxes_known": Field("bool", ("B",), "False where nobody annotated boxes", "True"),
    "masks": Field("uint8", ("B", "H", "W", "S"), "0 or 1, one channel per structure", "mask_valid False"),
    "mask_valid": Field("bool", ("B", "S"), "False where a structure was not annotated", "never"),
    "second_masks": Field("uint8", ("B", "H", "W", "S"), "another reader's masks, to compare with", "absent"),
    "keypoints": Field("float32", ("B", "P", "2"), "y, x as fractions of the image", "NaN"),
    "moving": Field("float32", ("B", "H", "W", "C"), "the image to be registered onto `image`", "absent"),
    "moving_keypoints": Field("float32", ("B", "P", "2"), "the same points in `moving`", "NaN"),
    "category": Field(
        "int32", ("B",), "what kind of pair `image` and `moving` are, as the dataset numbers them", "absent"
    ),
    "second_view": Field("float32", ("B", "H", "W", "C"), "another random view of what `image` shows", "absent"),
    "patient": Field("int32", ("B",), "a number of the patient, by which the device tells patients apart", "absent"),
    "field_of_view": Field("uint8", ("B", "H", "W"), "1 where the camera saw the retina", "1 everywhere"),
    "spacing_mm": Field("float32", ("B", "2"), "pixel spacing in mm (row, column)", "NaN"),
}
REQUIRED = ("image", "valid")
MAX_BOXES = 32  # of an image, unless a stream's max_boxes says otherwise
HOST_FIELDS: dict[str, str] = {
    "id": "identifies the image within its dataset",
    "patient_id": "identifies the patient: groups of the bootstrap, unit of the splits",
    "study_id": "identifies the study: groups of study-level protocols",
}


def check(batch: Mapping[str, Any]) -> None:
    """Raises ValueError naming the first field of `batch` that breaks the schema."""
    sizes: dict[str, int] = {}
    for name in REQUIRED:
        if name not in batch:
            raise ValueError(f"batch lacks the required field {name!r}")
    for name, value in batch.items():
        if name in HOST_FIELDS:
            continue
        if name not in FIELDS:
            raise ValueError(f"batch has the unknown field {name!r}; known: {', '.join([*FIELDS, *HOST_FIELDS])}")
        field = FIELDS[name]
        if str(value.dtype) != field.dtype or len(value.shape) != len(field.shape):
            raise ValueError(
                f"batch field {name!r} is {value.dtype}{list(value.shape)}, expected {field.dtype}{list(field.shape)}"
            )
        for axis, size in zip(field.shape, value.shape):
            if sizes.setdefault(axis, int(axis) if axis.isdigit() else size) != size:
                raise ValueError(f"batch field {name!r}: axis {axis} is {size}, elsewhere {sizes[axis]}")
    octets = -(-sizes["W"] // 8)
    if sizes.get("O", octets) != octets:
        raise ValueError(f"batch field 'box_masks': axis O is {sizes['O']}, {octets} hold a row of {sizes['W']} pixels")


def device_fields(batch: Mapping[str, Any]) -> Batch:
    """Keeps what goes to the device: the schema's arrays without the host-only fields."""
    return {name: value for name, value in batch.items() if name in FIELDS}


def pad_boxes(example: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Pads the boxes of an example, f32[N,4] and every `box_*` field, to `count` rows with box_valid False.

    A batch has one shape whatever its images show. `box_masks` u8[N,H,W] of 0 and 1 become u8[count,H,O], one bit a
    pixel: instances of one class overlap, so no map of labels can hold them, and a byte a pixel for every box that an
    image may have would outweigh the image many times. Raises InputError if the example has more boxes.
    """
    if "boxes" not in example:
        return dict(example)
    missing = count - len(example["boxes"])
    if missing < 0:
        raise InputError(
            f"image {example.get('id', '')!r} has {len(example['boxes'])} boxes, the config field max_boxes of its "
            f"stream is {count}: raise it"
        )
    if "box_masks" in example:
        example = {**example, "box_masks": np.packbits(example["box_masks"], axis=-1)}
    padded = {
        name: np.concatenate([value, np.zeros((missing, *np.shape(value)[1:]), np.asarray(value).dtype)])
        for name, value in example.items()
        if name == "boxes" or name.startswith("box_")
    }
    return {**example, **padded}


def stack(examples: Sequence[Mapping[str, Any]]) -> Batch:
    """Stacks examples (same fields, same shapes) to a batch; keeps the fields of the schema alone."""
    batch: Batch = {}
    for name in examples[0]:
        if name in HOST_FIELDS:
            batch[name] = np.asarray([str(example[name]) for example in examples])
        elif name in FIELDS:
            arrays = [np.asarray(example[name], FIELDS[name].dtype) for example in examples]
            if len(shapes := {array.shape for array in arrays}) > 1:
                raise InputError(
                    f"examples of one batch differ in the shape of {name!r}: {sorted(shapes)[:4]}. Build the dataset "
                    "at one size (build.size), or give the stream and its evaluations the transform resize."
                )
            batch[name] = np.stack(arrays)
    return batch

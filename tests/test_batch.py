"""The schema of a batch: what it accepts, what it refuses by name, and how examples become a batch."""

import numpy as np
import pytest

from mediax.batch import FIELDS, HOST_FIELDS, check, device_fields, pad_boxes, stack
from mediax.errors import InputError

SIZES = {"B": 2, "H": 4, "W": 6, "C": 1, "K": 3, "S": 2, "N": 5, "P": 4, "R": 1, "O": 1}


def _field(name, **sizes):
    field = FIELDS[name]
    return np.zeros([int(axis) if axis.isdigit() else (SIZES | sizes)[axis] for axis in field.shape], field.dtype)


def _batch(**changes):
    """A batch of every field; a change to None leaves a field out."""
    batch = {name: _field(name) for name in FIELDS} | {name: np.array(["a", "b"]) for name in HOST_FIELDS} | changes
    return {name: value for name, value in batch.items() if value is not None}


def test_every_field_of_the_schema_is_accepted():
    check(_batch())
    check({"image": _field("image"), "valid": _field("valid")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "lacks the required field 'image'"),
        ({"valid": None}, "lacks the required field 'valid'"),
        ({"label": np.zeros((2, 3), np.float32)}, "unknown field 'label'; known: image, valid, labels"),
        ({"labels": np.zeros((2, 3))}, r"'labels' is float64\[2, 3\], expected float32\['B', 'K'\]"),
        ({"labels": np.zeros(2, np.float32)}, r"'labels' is float32\[2\], expected"),
        ({"image": np.zeros((2, 4, 6, 1), np.uint8)}, r"'image' is uint8\[2, 4, 6, 1\], expected float32"),
        ({"valid": np.ones(2, np.float32)}, "'valid' is float32"),
        ({"labels": _field("labels", B=3)}, "'labels': axis B is 3, elsewhere 2"),
        ({"masks": _field("masks", H=5)}, "'masks': axis H is 5, elsewhere 4"),
        ({"mask_valid": _field("mask_valid", S=3)}, "'mask_valid': axis S is 3, elsewhere 2"),
        ({"boxes": np.zeros((2, 5, 3), np.float32)}, "'boxes': axis 4 is 3, elsewhere 4"),
        ({"box_labels": _field("box_labels", N=4)}, "'box_labels': axis N is 4, elsewhere 5"),
        ({"box_masks": _field("box_masks", O=6)}, "'box_masks': axis O is 6, 1 hold a row of 6 pixels"),
        ({"spacing_mm": np.zeros((2, 3), np.float32)}, "'spacing_mm': axis 2 is 3, elsewhere 2"),
    ],
)
def test_the_field_that_breaks_the_schema_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        check(_batch(**changes))


def test_host_fields_stay_on_the_host():
    batch = _batch(other=np.zeros(2))
    kept = device_fields(batch)
    assert set(kept) == set(FIELDS)
    assert all(kept[name] is batch[name] for name in kept)


def test_examples_are_stacked_into_the_schema_s_types():
    examples = [
        {
            "image": np.full((4, 6, 1), index / 2),  # float64
            "valid": True,
            "labels": [index, np.nan, 1],
            "boxes": np.zeros((0, 4)),
            "box_labels": np.zeros(0, np.int64),
            "box_valid": np.zeros(0, bool),
            "id": "a" * (index + 1),
            "patient_id": index,
            "grade": 3,  # not of the schema
        }
        for index in range(3)
    ]
    batch = stack(examples)
    check(batch)
    assert set(batch) == set(examples[0]) - {"grade"}
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [0, 0.5, 1])
    np.testing.assert_array_equal(batch["labels"], [[0, np.nan, 1], [1, np.nan, 1], [2, np.nan, 1]])
    assert batch["id"].tolist() == ["a", "aa", "aaa"] and batch["patient_id"].tolist() == ["0", "1", "2"]
    assert batch["valid"].dtype == bool and batch["boxes"].shape == (3, 0, 4)


def test_examples_of_several_sizes_are_no_batch():
    examples = [{"image": np.zeros((4, width, 1)), "valid": True} for width in (6, 6, 8)]
    with pytest.raises(InputError, match=r"differ in the shape of 'image': \[\(4, 6, 1\), \(4, 8, 1\)\]"):
        stack(examples)


def test_boxes_are_padded_to_one_number():
    example = {"id": "a", "boxes": np.ones((2, 4), np.float32), "box_labels": np.array([1, 2], np.int32)}
    example["box_valid"] = np.ones(2, bool)
    padded = pad_boxes(example, 3)
    assert padded["box_valid"].tolist() == [True, True, False] and padded["box_labels"].tolist() == [1, 2, 0]
    assert padded["boxes"].shape == (3, 4) and padded["boxes"].dtype == np.float32 and padded["id"] == "a"
    assert pad_boxes({"id": "a"}, 3) == {"id": "a"}
    with pytest.raises(InputError, match=r"image 'a' has 2 boxes, the config field max_boxes of its stream is 1"):
        pad_boxes(example, 1)


@pytest.mark.parametrize("boxes", [0, 2])
def test_masks_of_boxes_are_packed_eight_pixels_in_an_octet(boxes):
    masks = (np.random.default_rng(0).random((boxes, 5, 11)) < 0.5).astype(np.uint8)
    example = {"boxes": np.ones((boxes, 4), np.float32), "box_valid": np.ones(boxes, bool), "box_masks": masks}
    padded = pad_boxes(example, 3)["box_masks"]
    assert padded.shape == (3, 5, 2) and padded.dtype == np.uint8
    np.testing.assert_array_equal(np.unpackbits(padded[:boxes], axis=-1, count=11), masks)
    assert not padded[boxes:].any()
    assert example["box_masks"] is masks

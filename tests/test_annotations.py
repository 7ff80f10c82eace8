"""Annotations: every conversion on shapes whose pixels are known, and on what has none."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies

from mediax import annotations
from mediax.errors import InputError

masks = numpy_strategies.arrays(
    np.uint8, numpy_strategies.array_shapes(min_dims=2, max_dims=2, max_side=24), elements=st.integers(0, 1)
)
whole_boxes = st.tuples(*[st.integers(0, 10)] * 4).map(
    lambda c: (min(c[0], c[1]), min(c[2], c[3]), max(c[0], c[1]) + 1, max(c[2], c[3]) + 1)
)


def disc(height, width, y, x, radius):
    rows, columns = np.mgrid[:height, :width] + 0.5
    return (np.hypot(rows - y, columns - x) < radius).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------- boxes


def test_corners_are_reordered():
    expected = [[2, 1, 6, 4]]
    np.testing.assert_array_equal(annotations.xyxy_to_boxes([[1, 2, 4, 6]]), expected)
    np.testing.assert_array_equal(annotations.xywh_to_boxes([[1, 2, 3, 4]]), expected)
    for convert in (annotations.xyxy_to_boxes, annotations.xywh_to_boxes):
        assert convert([]).shape == (0, 4)
        assert convert([]).dtype == np.float32


def test_boxes_are_clipped_and_those_without_an_area_left_out():
    boxes = [[-2, -3, 4, 5], [3, 3, 3, 8], [20, 0, 30, 5], [0, 8, 10, 99]]
    clipped, kept = annotations.clip_boxes(boxes, height=10, width=20)
    np.testing.assert_array_equal(clipped, [[0, 0, 4, 5], [0, 8, 10, 20]])
    np.testing.assert_array_equal(kept, [True, False, False, True])
    np.testing.assert_allclose(annotations.boxes_to_fractions(clipped, 10, 20)[1], [0, 0.4, 1, 1])
    none, kept = annotations.clip_boxes([], 10, 20)
    assert none.shape == (0, 4)
    assert kept.shape == (0,)
    with pytest.raises(InputError, match="not finite"):
        annotations.clip_boxes([[0, 0, np.nan, 1]], 10, 20)


@settings(max_examples=50, deadline=None)
@given(st.lists(whole_boxes, max_size=4))
def test_boxes_return_from_their_masks(boxes):
    filled = annotations.boxes_to_masks(boxes, 11, 13)
    assert filled.shape == (11, 13, len(boxes))
    assert filled.dtype == np.uint8
    np.testing.assert_array_equal(annotations.masks_to_boxes(filled), np.array(boxes, np.float32).reshape(-1, 4))


def test_degenerate_boxes_fill_nothing():
    boxes = [[2, 2, 2, 5], [2.6, 2.6, 3.4, 3.4], [50, 50, 60, 60], [-9, -9, -1, -1]]
    filled = annotations.boxes_to_masks(boxes, 10, 10)
    assert not filled.any()
    assert np.isnan(annotations.masks_to_boxes(filled)).all()


def test_pixels_whose_centres_lie_in_a_box_are_filled():
    filled = annotations.boxes_to_masks([[0.5, 1.4, 2.5, 2.6]], 4, 4)[..., 0]
    np.testing.assert_array_equal(np.argwhere(filled), [[0, 1], [0, 2], [1, 1], [1, 2]])


# ------------------------------------------------------------------------------------------------------------ instances


def test_instances_are_numbered_from_the_top():
    mask = np.array([[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1]], np.uint8)
    expected = [[0, 0, 0, 1], [2, 0, 0, 0], [0, 2, 0, 3], [0, 0, 0, 3]]
    instances = annotations.connected_instances(mask)
    np.testing.assert_array_equal(instances, expected)
    np.testing.assert_array_equal(annotations.instances_to_boxes(instances), [[0, 3, 1, 4], [1, 0, 3, 2], [2, 3, 4, 4]])
    larger = annotations.connected_instances(mask * np.uint8(255), min_pixels=2)
    np.testing.assert_array_equal(larger, np.maximum(np.array(expected) - 1, 0))


@settings(max_examples=50, deadline=None)
@given(masks)
def test_boxes_of_instances_are_those_of_their_masks(mask):
    instances = annotations.connected_instances(mask)
    np.testing.assert_array_equal(instances > 0, mask > 0)
    separate = (instances[..., None] == np.arange(1, instances.max() + 1)).astype(np.uint8)
    np.testing.assert_array_equal(annotations.instances_to_boxes(instances), annotations.masks_to_boxes(separate))


def test_an_empty_mask_has_no_instances():
    instances = annotations.connected_instances(np.zeros((5, 6), np.uint8))
    assert not instances.any()
    assert annotations.instances_to_boxes(instances).shape == (0, 4)


def test_an_absent_number_has_no_box():
    boxes = annotations.instances_to_boxes(np.array([[0, 3], [1, 3]]))
    np.testing.assert_array_equal(boxes, [[1, 0, 2, 1], [np.nan] * 4, [0, 1, 2, 2]])


# --------------------------------------------------------------------------------------------------- polygons, contours


def test_a_polygon_covers_the_pixels_whose_centres_lie_in_it():
    triangle = [(1.0, 0.0), (5.0, 0.0), (1.0, 4.0)]
    mask = annotations.polygon_to_mask(triangle, 4, 6)
    y, x = np.mgrid[:4, :6] + 0.5
    np.testing.assert_array_equal(mask, (x > 1) & (x + y < 5))
    np.testing.assert_array_equal(annotations.polygon_to_mask(triangle[::-1], 4, 6), mask)


def test_the_area_of_a_large_polygon_is_right():
    angles = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    points = np.stack((100.3 + 80 * np.cos(angles), 90.7 + 80 * np.sin(angles)), axis=1)
    mask = annotations.polygon_to_mask(points, 200, 220)
    assert mask.sum() == pytest.approx(np.pi * 80**2, rel=1e-3)
    assert np.logical_xor(mask, disc(200, 220, 90.7, 100.3, 80)).sum() < 10


def test_neighbours_share_no_pixel_and_leave_none_out():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b, c, d = rng.integers(0, 21, (4, 2)) / 2
        left = annotations.polygon_to_mask([a, b, c], 10, 10)
        right = annotations.polygon_to_mask([a, c, d], 10, 10)
        together = annotations.polygon_to_mask([a, b, c, d], 10, 10)
        np.testing.assert_array_equal(left ^ right, together)


def test_even_odd_holes():
    pentagram = [(np.sin(4 * np.pi * i / 5) * 20 + 25, 25 - np.cos(4 * np.pi * i / 5) * 20) for i in range(5)]
    mask = annotations.polygon_to_mask(pentagram, 50, 50)
    assert mask[25, 25] == 0
    assert mask[10, 25] == 1
    square = np.array([(1, 1), (9, 1), (9, 9), (1, 9)])
    ring = annotations.polygons_to_mask([square, (square - 5) / 2 + 5], 10, 10)
    assert ring.sum() == 64 - 16


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(3, 3)],
        [(1, 1), (8, 8)],
        [(1, 1), (5, 5), (8, 8)],
        [(20, 1), (30, 1), (30, 8)],
        [(-9, 1), (-1, 1), (-1, 8)],
        [(1, -9), (8, -9), (8, -1)],
    ],
)
def test_polygons_without_an_area_or_outside_are_empty(points):
    assert not annotations.polygon_to_mask(points, 10, 10).any()


def test_a_polygon_around_the_image_fills_it():
    assert annotations.polygon_to_mask([(-1e6, -1e6), (1e6, -1e6), (1e6, 1e6), (-1e6, 1e6)], 10, 10).all()


@pytest.mark.parametrize("convert", [annotations.polygon_to_mask, annotations.contour_to_mask])
def test_bad_points_are_refused(convert):
    with pytest.raises(InputError, match="not finite"):
        convert([(1, 1), (np.nan, 2), (3, 3)], 10, 10)
    with pytest.raises(InputError, match=r"\(2, 3\) found, \(number, 2\)"):
        convert([(1, 1, 1), (2, 2, 2)], 10, 10)


@settings(max_examples=150, deadline=None)
@given(masks)
def test_outlines_give_exactly_the_mask_back(mask):
    polygons = annotations.mask_to_polygons(mask)
    np.testing.assert_array_equal(annotations.polygons_to_mask(polygons, *mask.shape), mask)


def test_outlines_hold_corners_only():
    mask = np.zeros((8, 9), np.uint8)
    mask[2:6, 3:8] = 1
    (polygon,) = annotations.mask_to_polygons(mask)
    assert polygon.dtype == np.float32
    assert sorted(map(tuple, polygon.tolist())) == [(3, 2), (3, 6), (8, 2), (8, 6)]
    assert annotations.mask_to_polygons(np.zeros((8, 9), np.uint8)) == []


@pytest.mark.parametrize("make", [lambda: disc(40, 50, 21.2, 24.7, 15), lambda: disc(30, 30, 3, 29, 9)])
def test_the_outermost_pixels_of_a_contour_belong_to_it(make):
    mask = make()
    (contour,), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    np.testing.assert_array_equal(annotations.contour_to_mask(contour[:, 0], *mask.shape), mask)


def test_degenerate_contours():
    assert annotations.contour_to_mask([(3, 4)], 10, 10).sum() == 1
    assert annotations.contour_to_mask([(3, 4)], 10, 10)[4, 3] == 1
    assert annotations.contour_to_mask([(3, 4), (6, 4)], 10, 10).sum() == 4
    assert not annotations.contour_to_mask([], 10, 10).any()
    assert not annotations.contour_to_mask([(30, 4), (40, 4), (40, 9)], 10, 10).any()


# --------------------------------------------------------------------------------------------------------- packed masks


@pytest.mark.parametrize("structures", [1, 2, 7, 8, 9, 15, 16])
def test_masks_return_from_one_channel(structures):
    original = np.random.default_rng(0).integers(0, 2, (13, 17, structures), dtype=np.uint8)
    pixels = annotations.pack_masks(original)
    assert pixels.shape == (13, 17, 1)
    assert pixels.dtype == (np.uint8 if structures <= 8 else np.uint16)
    np.testing.assert_array_equal(pixels[..., 0], (original * 2 ** np.arange(structures)).sum(axis=2))
    unpacked = annotations.unpack_masks(pixels, structures)
    assert unpacked.dtype == np.uint8
    np.testing.assert_array_equal(unpacked, original)
    through_png = cv2.imdecode(cv2.imencode(".png", pixels)[1], cv2.IMREAD_UNCHANGED)[..., None]
    np.testing.assert_array_equal(annotations.unpack_masks(through_png, structures), original)


@pytest.mark.parametrize(
    "bad, message",
    [
        (np.zeros((4, 5, 17), np.uint8), "1 to 16 structures"),
        (np.zeros((4, 5, 0), np.uint8), "1 to 16 structures"),
        (np.zeros((4, 5), np.uint8), r"shape \(4, 5\) found"),
        (np.full((4, 5, 2), 255, np.uint8), "uint8 up to 255 found"),
        (np.zeros((4, 5, 2), np.float32), "float32 up to"),
    ],
)
def test_masks_that_cannot_be_packed_are_refused(bad, message):
    with pytest.raises(InputError, match=message):
        annotations.pack_masks(bad)


@pytest.mark.parametrize(
    "pixels, structures, message",
    [
        (np.zeros((4, 5, 1), np.uint8), 9, r"uint8\[4, 5, 1\] found for 9 structures"),
        (np.zeros((4, 5, 1), np.uint16), 8, "for 8 structures"),
        (np.zeros((4, 5, 3), np.uint8), 3, "for 3 structures"),
        (np.zeros((4, 5, 1), np.uint8), 0, "for 0 structures"),
        (np.full((4, 5, 1), 8, np.uint8), 3, "a pixel of 8 found, more than 3 structures"),
    ],
)
def test_pixels_that_hold_other_structures_are_refused(pixels, structures, message):
    with pytest.raises(InputError, match=message):
        annotations.unpack_masks(pixels, structures)


# -------------------------------------------------------------------------------------------------------- field of view


def fundus(view, *, brightness=1.0, vignetting=0.5, noise=2.0):
    """A retina with an optic disc, a fovea and a camera's text in the corner, in the view u8[H,W]."""
    height, width = view.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    distance = np.hypot(rows - height / 2, columns - width / 2) / np.hypot(height, width) * 2
    image = (1 - vignetting * distance**2)[..., None] * np.array([200, 110, 60])
    image[disc(height, width, height / 2, width * 0.62, height / 16) > 0] = (240, 220, 150)
    image[disc(height, width, height / 2, width / 2, height / 16) > 0] *= 0.1
    image = image * brightness * view[..., None]
    image += np.random.default_rng(0).normal(0, noise, image.shape)
    image[4:10, 4:40] = 200
    return image.clip(0, 255).astype(np.uint8)


def dice(first, second):
    return 2 * (first & second).sum() / (first.sum() + second.sum())


@pytest.mark.parametrize("brightness", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("radius", [90, 115])  # whole, and cut off above and below
def test_the_field_of_view_of_a_disc(brightness, radius):
    view = disc(200, 260, 100, 130, radius)
    found = annotations.field_of_view(fundus(view, brightness=brightness))
    assert (found.dtype, found.shape) == (np.uint8, view.shape)
    assert dice(found, view) > 0.99


def test_fields_of_view_without_a_border_and_without_light():
    everything = np.ones((120, 160), np.uint8)
    assert annotations.field_of_view(fundus(everything, vignetting=0.3)).all()
    assert annotations.field_of_view(np.full((20, 30, 3), 90, np.uint8)).all()
    assert not annotations.field_of_view(np.zeros((20, 30, 3), np.uint8)).any()


@pytest.mark.parametrize("darker", [1, 4, 12])
def test_the_field_of_view_of_a_photograph(darker):
    data = pytest.importorskip("skimage.data")
    found = annotations.field_of_view((data.retina() // darker).astype(np.uint8))
    # A circle fitted by eye; a tab of the camera stands out of it.
    assert dice(found, disc(1411, 1411, 704, 704, 698)) > 0.99


# -------------------------------------------------------------------------------------------------------------- readers


def test_readers_who_agree_make_one_box():
    boxes = [[0, 0, 10, 10], [1, 1, 11, 11], [40, 40, 50, 60]]
    fused, labels, scores, agreeing = annotations.fuse_boxes(boxes, [3, 3, 3], readers=[0, 2, 2], num_readers=3)
    np.testing.assert_allclose(fused, [[0.5, 0.5, 10.5, 10.5], [40, 40, 50, 60]])
    np.testing.assert_array_equal(labels, [3, 3])
    np.testing.assert_array_equal(agreeing, [2, 1])
    np.testing.assert_allclose(scores, [2 / 3, 1 / 3])
    assert (fused.dtype, labels.dtype, scores.dtype) == (np.float32, np.int64, np.float32)


def test_boxes_of_different_findings_stay_apart():
    fused, labels, *_ = annotations.fuse_boxes([[0, 0, 9, 9]] * 2, [1, 2], readers=[0, 1], num_readers=2)
    assert len(fused) == 2
    np.testing.assert_array_equal(np.sort(labels), [1, 2])


def test_no_boxes_fuse_to_none():
    fused, labels, scores, _ = annotations.fuse_boxes([], [], [], num_readers=3)
    assert (fused.shape, labels.shape, scores.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"boxes": [[0, 0, 0, 9]]}, "without an area"),
        ({"boxes": [[0, 0, np.inf, 9]]}, "not finite"),
        ({"readers": [2]}, "2 to 2 found, 0 to 1 expected"),
        ({"scores": [1.5]}, "1.5 to 1.5 found"),
        ({"scores": [0.0]}, "more than 0"),
        ({"labels": [1, 2]}, "1 boxes, 2 labels"),
    ],
)
def test_bad_readings_are_refused(change, message):
    good = {"boxes": [[0, 0, 9, 9]], "labels": [1], "readers": [0], "num_readers": 2}
    with pytest.raises(InputError, match=message):
        annotations.fuse_boxes(**{**good, **change})


@pytest.mark.slow  # numba compiles the package first.
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_fused_boxes_equal_those_of_the_authors_package(seed):
    ensemble_boxes = pytest.importorskip("ensemble_boxes")
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 25))
    corner, size = rng.uniform(0, 0.4, (count, 2)), rng.uniform(0.2, 0.5, (count, 2))
    boxes = np.concatenate((corner, corner + size), axis=1)
    labels, readers, scores = rng.integers(0, 2, count), rng.integers(0, 3, count), rng.uniform(0.2, 1, count)
    per_reader = [[list(values[readers == r]) for r in range(3)] for values in (boxes[:, [1, 0, 3, 2]], scores, labels)]
    expected, expected_scores, expected_labels = ensemble_boxes.weighted_boxes_fusion(*per_reader, iou_thr=0.5)
    fused, fused_labels, fused_scores, _ = annotations.fuse_boxes(boxes, labels, readers, 3, scores=scores, iou=0.5)
    ours, theirs = np.lexsort((fused[:, 0], -fused_scores)), np.lexsort((expected[:, 1], -expected_scores))
    np.testing.assert_allclose(fused[ours], expected[theirs][:, [1, 0, 3, 2]], atol=1e-5)
    np.testing.assert_allclose(fused_scores[ours], expected_scores[theirs], atol=1e-5)
    np.testing.assert_array_equal(fused_labels[ours], expected_labels[theirs])


@pytest.mark.parametrize("convert", [annotations.xyxy_to_boxes, annotations.xywh_to_boxes])
def test_a_truth_value_is_no_number(convert):
    with pytest.raises(InputError, match="the value True where a number belongs"):
        convert([[1, 2, True, 4]])


def test_a_reader_who_draws_a_thing_twice_is_one_reader():
    fused, *_, agreeing = annotations.fuse_boxes([[0, 0, 9, 9], [0, 0, 9, 8]], [1, 1], readers=[0, 0], num_readers=3)
    assert len(fused) == 1 and agreeing.tolist() == [1]

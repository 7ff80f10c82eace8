"""Transforms: everything in an example moves together, can be moved back, and is resampled once."""

import inspect
import math
import multiprocessing
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediax import affine, transforms
from mediax.errors import InputError
from mediax.transforms import build, build_batch

# Options of every transform that change an image for sure, or at least may; a new transform has to be added here.
TYPICAL = {
    "resize": {"size": (20, 31), "aspect": "letterbox"},
    "center_crop": {"size": 24},
    "random_crop": {"size": (24, 16)},
    "random_field_of_view_crop": {"size": (24, 16)},
    "random_resized_crop": {"size": (24, 16)},
    "random_affine": {"rotate": 20, "translate": 0.1, "scale": 0.2, "shear": 10},
    "random_flip": {"horizontal": 1.0, "vertical": 1.0},
    "random_intensity": {"brightness": 0.5, "contrast": 0.5, "gamma": 1.0, "invert": 0.5},
    "random_noise": {"std": 0.5},
    "random_blur": {"sigma": 3.0},
    "random_erase": {"probability": 1.0, "value": 1.0},
    "equalize_histogram": {},
    "clahe": {},
    "field_of_view_crop": {"margin": 0.1},
    "match_histogram": {"reference": (0.1, 0.2, 0.3, 0.9)},
    "reduce_bit_depth": {"bits": 3},
    "linear_window": {"center": 0.4, "width": 0.7},
    "window": {"low": 5, "high": 95},
    "subtract_local_mean": {"sigma": 0.1},
    "to_channels": {"channels": 3},
}
# Options under which a transform has nothing to do.
IDENTITY = {
    "resize": {"size": (40, 56)},
    "center_crop": {"size": (40, 56)},
    "random_crop": {"size": (40, 56)},
    "random_resized_crop": {"size": (40, 56), "scale": (1.0, 1.0), "ratio": (56 / 40, 56 / 40)},
    "random_affine": {},
    "random_flip": {"horizontal": 0.0},
    "random_intensity": {},
    "random_noise": {"std": 0.0},
    "random_blur": {"sigma": 0.0},
    "random_erase": {"probability": 0.0},
    "window": {"low": 0.0, "high": 100.0},
    "reduce_bit_depth": {"bits": 8},
    "linear_window": {"center": 0.5, "width": 1.0},
    "to_channels": {"channels": 1},
}
SHAPES = [(40, 56, 1), (33, 17, 3), (1, 1, 1), (1, 1, 3), (1, 9, 1)]

sizes = st.one_of(st.integers(40, 90), st.tuples(st.integers(40, 90), st.integers(40, 90)))
zero_or_one = st.sampled_from([0, 1])
aspects = st.sampled_from(["stretch", "crop", "letterbox"])
axis_aligned = st.one_of(
    st.builds(lambda size, aspect: spec("resize", size=size, aspect=aspect), sizes, aspects),
    st.builds(lambda size: spec("center_crop", size=size), sizes),
    st.builds(lambda size: spec("random_crop", size=size), sizes),
    st.builds(lambda size: spec("random_resized_crop", size=size, scale=(0.5, 1.0)), sizes),
    st.builds(lambda h, v: spec("random_flip", horizontal=h, vertical=v), zero_or_one, zero_or_one),
    st.just({"name": "random_affine", "translate": 0.1, "scale": 0.2}),
)
rotating = st.builds(
    lambda rotate, shear: spec("random_affine", rotate=rotate, shear=shear, scale=0.2, translate=0.05),
    st.floats(0, 180),
    st.floats(0, 30),
)
seeds = st.integers(0, 2**32 - 1)


def spec(name, **options):
    return {"name": name, **options}


def run(specs, example, seed=0, **options):
    return build(specs, **options)(example, np.random.default_rng(seed))


def smooth_image(height=64, width=80):
    y, x = np.mgrid[:height, :width] + 0.5
    wave = np.sin(2 * np.pi * (x / width + 0.3)) * np.cos(2 * np.pi * y / height)
    return (0.5 + 0.4 * wave).astype(np.float32)[..., None]


def rectangle_example(height, width, top, left, bottom, right):
    """A white rectangle with its mask, its box and its centre as a keypoint: all describe one thing."""
    mask = np.zeros((height, width, 1), np.uint8)
    mask[top:bottom, left:right] = 1
    box = np.array([[top / height, left / width, bottom / height, right / width]], np.float32)
    return {
        "image": mask * np.uint8(255),
        "masks": mask,
        "field_of_view": np.ones((height, width), np.uint8),
        "boxes": box,
        "box_labels": np.array([7], np.int32),
        "keypoints": (box[:, :2] + box[:, 2:]) / 2,
    }


def hull(mask):
    """ymin, xmin, ymax, xmax of a mask [H,W] in pixels."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1], np.float64)


def centroid(weights):
    """y, x of the centre of mass of [H,W] in pixels."""
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(y * weights).sum(), (x * weights).sum()]) / weights.sum()


rectangles = st.tuples(st.integers(40, 90), st.integers(40, 90)).flatmap(
    lambda size: st.tuples(
        st.just(size[0]),
        st.just(size[1]),
        st.integers(0, size[0] // 2 - 8),
        st.integers(0, size[1] // 2 - 8),
        st.integers(size[0] // 2 + 2, size[0]),
        st.integers(size[1] // 2 + 2, size[1]),
    )
)


# ------------------------------------------------------------------------------------------------------------ agreement


@settings(max_examples=150, deadline=None)
@given(rectangles, st.lists(st.one_of(axis_aligned, rotating), min_size=1, max_size=3), seeds)
def test_image_mask_box_and_keypoint_agree(rectangle, specs, seed):
    out = run(specs, rectangle_example(*rectangle), seed, min_visibility=0.0, keep_geometry=True)
    mask, size = out["masks"][..., 0], np.array(out["image"].shape[:2])
    if mask.sum() < 4:
        return
    box = out["boxes"][0] * np.tile(size, 2)
    unclipped = (box[:2] > 0).all() and (box[2:] < size).all()
    turned = bool(out["geometry"][0, 1] or out["geometry"][1, 0])
    if unclipped or not turned:
        # A sampled border is right to half a pixel; the tip of a turned corner may fall between samples.
        np.testing.assert_allclose(hull(mask), box, atol=2.0 if turned else 0.501)
    if unclipped:
        point = out["keypoints"][0] * size
        np.testing.assert_allclose(point, (box[:2] + box[2:]) / 2, atol=2e-3)
        np.testing.assert_allclose(centroid(mask), point, atol=0.75)
        np.testing.assert_allclose(centroid(out["image"][..., 0]), point, atol=0.25)
    assert set(np.unique(mask)) <= {0, 1}
    assert (out["image"].dtype, mask.dtype) == (np.float32, np.uint8)
    assert out["field_of_view"].shape == mask.shape == out["image"].shape[:2]


@settings(max_examples=30, deadline=None)
@given(rotating, seeds)
def test_affine_follows_the_documented_pixel_centre_convention(affine, seed):
    image = np.random.default_rng(1).random((21, 34, 1), dtype=np.float32)
    out = run([{**affine, "scale": 0.0}], {"image": image}, seed, keep_geometry=True)
    inverse = np.linalg.inv(out["geometry"].astype(np.float64))
    for row, column in ((10, 17), (7, 20), (12, 13)):
        x, y, _ = inverse @ (column + 0.5, row + 0.5, 1.0) - 0.5
        if not (0 <= x < 33 and 0 <= y < 20):
            continue
        i, j = math.floor(y), math.floor(x)
        v, u = y - i, x - j
        corners = image[i : i + 2, j : j + 2, 0]
        expected = np.array([1 - v, v]) @ corners @ np.array([1 - u, u])
        # Older cv2 rounds sampling positions to 1/32 pixel.
        assert out["image"][row, column, 0] == pytest.approx(expected, abs=0.05)


def test_masks_of_many_channels_move_like_one():
    masks = (np.random.default_rng(0).random((30, 40, 15)) < 0.5).astype(np.uint8)
    image = np.zeros((30, 40, 1), np.uint8)
    specs = [spec("random_affine", rotate=15, scale=0.1), spec("resize", size=(50, 45))]
    together = run(specs, {"image": image, "masks": masks}, keep_geometry=True)
    for k in range(15):
        alone = run(specs, {"image": image, "masks": masks[..., k : k + 1]})
        np.testing.assert_array_equal(together["masks"][..., k], alone["masks"][..., 0])
    back = transforms.invert_mask(together["masks"].astype(np.float32), together["geometry"], (30, 40))
    assert back.shape == (30, 40, 15)
    assert back.dtype == np.float32


@pytest.mark.parametrize("angle", [0.0, 30.0, 90.0])
def test_spacing_is_the_length_of_a_step_on_the_new_grid(angle):
    radians = math.radians(angle)
    cosine, sine = 2 * math.cos(radians), 2 * math.sin(radians)  # a rotation, twice as large
    down, right = affine.move_spacing(np.array([0.2, 0.4], np.float32), (cosine, -sine, 0, sine, cosine, 0))
    assert right == pytest.approx(math.hypot(0.4 * math.cos(radians), 0.2 * math.sin(radians)) / 2)
    assert down == pytest.approx(math.hypot(0.4 * math.sin(radians), 0.2 * math.cos(radians)) / 2)


def test_spacing_follows_a_resize():
    example = {"image": np.zeros((100, 50, 1), np.uint8), "spacing_mm": np.array([0.1, 0.2], np.float32)}
    out = run([spec("resize", size=(50, 200))], example)
    np.testing.assert_allclose(out["spacing_mm"], [0.2, 0.05], rtol=1e-6)


# -------------------------------------------------------------------------------------------------------------- inverse


@settings(max_examples=100, deadline=None)
@given(rectangles, st.lists(axis_aligned, min_size=1, max_size=3), seeds)
def test_boxes_and_keypoints_return_to_within_half_a_pixel(rectangle, specs, seed):
    height, width, *box = rectangle
    out = run(specs, rectangle_example(*rectangle), seed, min_visibility=0.0, keep_geometry=True)
    size = out["image"].shape[:2]
    np.testing.assert_array_equal(out["original_size"], (height, width))
    point = transforms.invert_keypoints(out["keypoints"], out["geometry"], size)[0]
    np.testing.assert_allclose(point, [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], atol=0.01)
    if len(out["boxes"]) and out["boxes"].min() > 0 and out["boxes"].max() < 1:
        back = transforms.invert_boxes(out["boxes"], out["geometry"], size, out["original_size"])
        np.testing.assert_allclose(back[0], box, atol=0.01)


@settings(max_examples=50, deadline=None)
@given(rectangles, st.lists(rotating, min_size=1, max_size=3), seeds)
def test_keypoints_return_from_rotations_and_boxes_enclose_the_original(rectangle, specs, seed):
    out = run(specs, rectangle_example(*rectangle), seed, min_visibility=0.0, keep_geometry=True)
    size, box = out["image"].shape[:2], np.array(rectangle[2:])
    point = transforms.invert_keypoints(out["keypoints"], out["geometry"], size)[0]
    np.testing.assert_allclose(point, (box[:2] + box[2:]) / 2, atol=0.01)
    if len(out["boxes"]) and out["boxes"].min() > 0 and out["boxes"].max() < 1:
        back = transforms.invert_boxes(out["boxes"], out["geometry"], size, out["original_size"])[0]
        assert (back[:2] <= box[:2] + 0.01).all()
        assert (back[2:] >= box[2:] - 0.01).all()


@pytest.mark.parametrize(
    "specs",
    [
        [spec("resize", size=128, aspect="letterbox")],
        [spec("resize", size=(150, 170))],
        [spec("resize", size=(96, 140)), spec("random_flip", horizontal=1.0, vertical=1.0)],
        [spec("random_affine", rotate=25), spec("resize", size=(130, 120))],
        [spec("center_crop", size=(64, 80))],
        [spec("resize", size=48, aspect="letterbox")],
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_masks_return_to_within_half_a_pixel(specs, dtype):
    y, x = np.mgrid[:70, :90] + 0.5
    disc = ((y - 33) ** 2 + (x - 50) ** 2 < 22**2).astype(np.uint8)[..., None]
    out = run(specs, {"image": disc * np.uint8(255), "masks": disc}, 3, keep_geometry=True)
    back = transforms.invert_mask(out["masks"].astype(dtype), out["geometry"], out["original_size"])
    assert back.shape == disc.shape
    assert back.dtype == dtype
    distance = np.abs(np.hypot(y - 33, x - 50) - 22)
    differs = (back[..., 0] >= 0.5) != disc[..., 0]
    # A pixel may change only if its centre lies near the circle: half an original pixel, or half a current one if
    # larger, on top of the half pixel by which the mask itself stands off the circle.
    current = 1 / min(np.linalg.norm(out["geometry"][:2, :2], axis=0))
    assert distance[differs].max(initial=0) <= 0.5 + max(0.5, 0.5 * current)
    np.testing.assert_allclose(centroid(back[..., 0].astype(float)), centroid(disc[..., 0].astype(float)), atol=0.5)


@pytest.mark.parametrize("aspect", ["stretch", "letterbox"])
@pytest.mark.parametrize("size", [48, 101])
def test_masks_that_touch_the_border_return_whole(aspect, size):
    example = {"image": np.zeros((70, 997, 1), np.uint8), "masks": np.ones((70, 997, 1), np.uint8)}
    out = run([spec("resize", size=size, aspect=aspect)], example, keep_geometry=True)
    for dtype in (np.uint8, np.float32):
        back = transforms.invert_mask(out["masks"].astype(dtype), out["geometry"], out["original_size"])
        np.testing.assert_allclose(back, 1, atol=1e-6)


def test_geometry_continues_through_a_second_pipeline():
    example = rectangle_example(60, 80, 10, 20, 40, 60)
    first = run([spec("resize", size=100, aspect="letterbox")], example, keep_geometry=True)
    second = run([spec("random_affine", rotate=10), spec("resize", size=70)], first)
    np.testing.assert_array_equal(second["original_size"], (60, 80))
    point = transforms.invert_keypoints(second["keypoints"], second["geometry"], (70, 70))
    np.testing.assert_allclose(point, [[25, 40]], atol=0.01)


def test_geometry_spans_pixel_steps():
    specs = [spec("resize", size=100), spec("random_noise", std=0.1), spec("random_flip", horizontal=1.0)]
    out = run(specs, {"image": np.zeros((50, 200, 1), np.uint8)}, keep_geometry=True)
    np.testing.assert_allclose(out["geometry"], [[-0.5, 0, 100], [0, 2, 0], [0, 0, 1]])


# ----------------------------------------------------------------------------------------------------------- resampling


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(axis_aligned, rotating), min_size=2, max_size=3), seeds)
def test_one_composed_resampling_equals_step_by_step(specs, seed):
    def stepwise(image):
        example, rng = {"image": image}, np.random.default_rng(seed)
        for step in specs:
            example = build([step])(example, rng)
        return example["image"]

    image = smooth_image()
    white = {"image": np.ones_like(image)}
    composed, expected = run(specs, {"image": image}, seed)["image"], stepwise(image)
    assert composed.shape == expected.shape
    # Only where neither way has mixed in padding.
    inside = np.minimum(run(specs, white, seed)["image"], stepwise(white["image"])) > 0.999
    np.testing.assert_allclose(composed[inside], expected[inside], atol=0.03)


@pytest.mark.parametrize(
    "specs",
    [
        [spec("resize", size=32)],
        [spec("resize", size=(32, 20), aspect="letterbox")],
        [spec("resize", size=32), spec("random_affine", rotate=30)],
        [spec("random_resized_crop", size=24, scale=(0.9, 1.0))],
    ],
)
def test_shrinking_does_not_alias(specs):
    checkerboard = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    ones = {"image": np.full_like(checkerboard, 255)}
    out, inside = run(specs, {"image": checkerboard})["image"], run(specs, ones)["image"] > 0.999
    assert inside.mean() > 0.4
    np.testing.assert_allclose(out[inside], 0.5, atol=0.03)


@pytest.mark.parametrize("size", [(20, 28), (80, 112), (20, 112), (13, 61)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_stretching_keeps_a_ramp_a_ramp(size, dtype):
    """A linear ramp is reproduced by every correct, centred resampling, away from the border."""
    ramp = np.broadcast_to((np.arange(56) + 0.5) / 56, (40, 56)).astype(np.float32)[..., None]
    image = ramp if dtype == np.float32 else np.rint(ramp * 255).astype(np.uint8)
    out = run([spec("resize", size=size)], {"image": image})["image"]
    expected = (np.arange(size[1]) + 0.5) / size[1]
    np.testing.assert_allclose(out[:, 2:-2, 0], np.broadcast_to(expected, size)[:, 2:-2], atol=0.006)


def test_letterbox_pads_evenly_with_the_value_asked_for():
    image = np.full((20, 40, 1), 51, np.uint8)
    for padding in (0.0, 1.0, "edge"):
        out = run([spec("resize", size=80, aspect="letterbox")], {"image": image}, padding=padding)["image"][..., 0]
        np.testing.assert_allclose(out[20:60], 0.2, atol=1e-6)
        np.testing.assert_allclose(out[[0, 19, 60, 79]], 0.2 if padding == "edge" else padding, atol=1e-6)


def test_warps_pad_with_the_value_asked_for_and_masks_with_zero():
    example = {"image": np.full((40, 40, 1), 255, np.uint8), "masks": np.ones((40, 40, 1), np.uint8)}
    for padding, corner in ((0.0, 0.0), (0.4, 0.4), ("edge", 1.0)):
        out = run([spec("random_affine", rotate=45)], example, 3, padding=padding)
        assert out["image"][0, 0, 0] == pytest.approx(corner)
        assert out["masks"][0, 0, 0] == 0
        assert out["masks"][20, 20, 0] == 1


def test_crop_keeps_the_centre_and_the_aspect_ratio():
    example = rectangle_example(40, 80, 10, 30, 30, 50)
    out = run([spec("resize", size=20, aspect="crop")], example)
    np.testing.assert_allclose(out["boxes"], [[0.25, 0.25, 0.75, 0.75]], atol=1e-6)


def test_a_shift_by_one_pixel_is_not_lost():
    """The crops compose to a move by one pixel at the same size: nothing is resized, only cut and padded."""
    image = smooth_image(64, 64)
    out = run([spec("center_crop", size=41), spec("center_crop", size=64)], {"image": image})["image"]
    np.testing.assert_array_equal(out[:-1, :-1], image[1:, 1:])
    assert not out[-1].any()
    assert not out[:, -1].any()


def test_center_crop_cuts_and_pads():
    image = np.arange(1, 7, dtype=np.uint8).reshape(2, 3, 1)
    out = run([spec("center_crop", size=(4, 1))], {"image": image})["image"]
    np.testing.assert_array_equal(np.rint(out[:, 0, 0] * 255), [0, 2, 5, 0])


def test_random_crop_cuts_everywhere_and_all_fields_follow():
    """Every pixel of the image and of the masks says where it is from."""
    place = np.arange(7 * 9, dtype=np.uint8).reshape(7, 9, 1)
    example = {"image": place, "masks": place, "second_masks": place, "field_of_view": place[..., 0]}
    corners = set()
    for seed in range(400):
        out = run([spec("random_crop", size=(4, 6))], example, seed)
        corner = int(out["masks"][0, 0, 0])
        row, column = divmod(corner, 9)
        cut = place[row : row + 4, column : column + 6]
        for field in ("masks", "second_masks", "field_of_view"):
            np.testing.assert_array_equal(out[field].squeeze(), cut.squeeze())
        np.testing.assert_array_equal(np.rint(out["image"] * 255), cut)
        corners.add((row, column))
    assert corners == {(row, column) for row in range(4) for column in range(4)}


def test_random_crop_pads_a_side_that_is_too_short_about_its_middle():
    image = np.arange(1, 7, dtype=np.uint8).reshape(2, 3, 1)
    out = run([spec("random_crop", size=(5, 3))], {"image": image})["image"]
    np.testing.assert_array_equal(np.rint(out[:, 0, 0] * 255), [0, 1, 4, 0, 0])


# ------------------------------------------------------------------------------------------------------ every transform


def test_the_tables_name_every_transform():
    assert sorted(TYPICAL) == sorted(transforms._transforms("height", "image"))
    assert sorted(transforms._transforms("example")) == ["random_pair"]
    assert sorted(transforms._transforms("batch")) == ["cutmix", "mixup"]


@pytest.mark.parametrize("name", sorted([*TYPICAL, "random_pair", "mixup", "cutmix"]))
def test_every_option_says_what_it_expects(name):
    for parameter in inspect.signature(getattr(transforms, name)).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            (expected,) = parameter.annotation.__metadata__
            assert parameter.default is parameter.empty or expected.test(parameter.default)


@pytest.mark.parametrize("name", sorted(TYPICAL))
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_output_is_a_float_image_in_range_and_input_is_untouched(name, shape, dtype):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if dtype == np.float32:
        image = image.astype(np.float32) / 255
    image.flags.writeable = False
    pipeline = build([spec(name, **TYPICAL[name])])
    for seed in range(5):
        out = pipeline({"image": image, "labels": np.array([np.nan])}, np.random.default_rng(seed))
        assert out["image"].dtype == np.float32
        assert out["image"].flags.c_contiguous
        assert out["image"].ndim == 3
        assert out["image"].shape[2] == (3 if name == "to_channels" else shape[2])
        assert out["image"].min() >= 0
        assert out["image"].max() <= 1
        assert np.isnan(out["labels"]).all()


@pytest.mark.parametrize("name", sorted(IDENTITY))
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_nothing_to_do_leaves_every_bit(name, dtype):
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 1), dtype=np.uint8)
    image[0, :2] = [[0], [255]]
    expected = image / np.float32(255)
    masks = image % 2
    image = image if dtype == np.uint8 else expected
    out = run([spec(name, **IDENTITY[name])], {"image": image, "masks": masks})
    np.testing.assert_array_equal(out["image"], expected)
    np.testing.assert_array_equal(out["masks"], masks)


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_same_generator_same_result(seed):
    specs = [spec(name, **options) for name, options in TYPICAL.items()]
    image = np.random.default_rng(0).integers(0, 256, (60, 70, 1), dtype=np.uint8)
    pipeline = build(specs)
    first = pipeline({"image": image}, np.random.default_rng(seed))["image"]
    second = pickle.loads(pickle.dumps(pipeline))({"image": image}, np.random.default_rng(seed))["image"]
    other = pipeline({"image": image}, np.random.default_rng(seed + 1))["image"]
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


def test_pipelines_reach_spawned_workers():
    pipeline = build([spec("random_affine", rotate=10)])
    example = {"image": np.random.default_rng(0).integers(0, 256, (12, 12, 1), dtype=np.uint8)}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(pipeline, (example, np.random.default_rng(0)))
    np.testing.assert_array_equal(there["image"], pipeline(example, np.random.default_rng(0))["image"])


def test_empty_pipeline_only_scales():
    out = run([], {"image": np.array([[[255]]], np.uint8)}, keep_geometry=True)
    assert out["image"] == 1.0
    np.testing.assert_array_equal(out["geometry"], np.eye(3))


# ---------------------------------------------------------------------------------------------------------------- boxes


def test_a_box_that_is_mostly_cut_off_leaves_with_all_its_fields():
    example = {
        "image": np.zeros((100, 100, 1), np.uint8),
        "boxes": np.array([[0.3, 0.3, 0.6, 0.6], [0.0, 0.0, 0.3, 0.3], [0.0, 0.4, 0.3, 0.6]], np.float32),
        "box_labels": np.array([1, 2, 3], np.int32),
        "box_valid": np.array([True, True, False]),
    }
    crop = [spec("center_crop", size=60)]  # keeps 100 %, 1/9 and 1/3 of the boxes
    for min_visibility, kept in ((0.0, [1, 2, 3]), (0.25, [1, 3]), (0.5, [1]), (1.0, [1])):
        out = run(crop, example, min_visibility=min_visibility)
        np.testing.assert_array_equal(out["box_labels"], kept)
        np.testing.assert_array_equal(out["box_valid"], [label != 3 for label in kept])
        assert out["boxes"].shape == (len(kept), 4)
        assert out["boxes"].dtype == np.float32
    np.testing.assert_allclose(out["boxes"], [[10 / 60, 10 / 60, 40 / 60, 40 / 60]], atol=1e-6)


@pytest.mark.parametrize("boxes", [0, 1, 3, 6])
@pytest.mark.parametrize("name", ["resize", "center_crop", "random_affine", "random_flip", "random_resized_crop"])
def test_masks_of_boxes_move_as_masks_do(name, boxes):
    masks = (np.random.default_rng(0).random((boxes, 40, 56)) < 0.1).astype(np.uint8)
    example = {
        "image": np.zeros((40, 56, 1), np.uint8),
        "masks": masks.any(0, keepdims=True).astype(np.uint8).transpose(1, 2, 0),
        "second_masks": np.ascontiguousarray(masks.transpose(1, 2, 0)),
        "boxes": np.tile(np.float32([0, 0, 1, 1]), (boxes, 1)),
        "box_masks": masks,
    }
    out = run([spec(name, **TYPICAL[name])], example, min_visibility=0.0)
    assert out["box_masks"].shape == (boxes, *out["image"].shape[:2])
    np.testing.assert_array_equal(out["box_masks"].transpose(1, 2, 0), out["second_masks"])
    np.testing.assert_array_equal(out["box_masks"].any(0), out["masks"][..., 0])
    assert out["masks"].any() == (boxes > 0)


def test_the_mask_of_a_box_that_is_dropped_leaves_with_it():
    masks = np.zeros((2, 100, 100), np.uint8)
    masks[0, :30, :30], masks[1, 30:60, 30:70] = 1, 1
    boxes = np.array([[0.0, 0.0, 0.3, 0.3], [0.3, 0.3, 0.6, 0.7]], np.float32)
    out = run(
        [spec("center_crop", size=60)], {"image": np.zeros((100, 100, 1), np.uint8), "boxes": boxes, "box_masks": masks}
    )
    assert out["box_masks"].shape == (1, 60, 60)
    np.testing.assert_allclose(hull(out["box_masks"][0]), out["boxes"][0] * 60, rtol=1e-6)


def test_a_box_at_the_border_stays_there():
    example = rectangle_example(30, 50, 0, 0, 30, 50)
    out = run([spec("random_flip", horizontal=1.0, vertical=1.0), spec("resize", size=77)], example, min_visibility=1.0)
    np.testing.assert_allclose(out["boxes"], [[0, 0, 1, 1]], atol=1e-6)


@pytest.mark.parametrize("name", ["resize", "random_affine", "random_flip", "random_crop", "random_resized_crop"])
def test_degenerate_targets(name):
    example = {
        "image": np.zeros((1, 1, 3), np.uint8),
        "masks": np.zeros((1, 1, 0), np.uint8),
        "boxes": np.zeros((0, 4), np.float32),
        "box_labels": np.zeros((0,), np.int32),
        "keypoints": np.full((1, 2), np.nan, np.float32),
    }
    out = run([spec(name, **TYPICAL[name])], example)
    assert out["masks"].shape == (*out["image"].shape[:2], 0)
    assert out["boxes"].shape == (0, 4)
    assert out["box_labels"].shape == (0,)
    assert np.isnan(out["keypoints"]).all()


def test_an_empty_mask_stays_empty():
    specs = [spec(name, **TYPICAL[name]) for name in ("random_affine", "random_resized_crop", "resize")]
    example = {"image": np.zeros((30, 20, 1), np.uint8), "masks": np.zeros((30, 20, 2), np.uint8)}
    assert not run(specs, example, padding=1.0)["masks"].any()


# --------------------------------------------------------------------------------------------------------------- pixels


def test_erase_fills_one_rectangle_of_the_image_only():
    example = rectangle_example(40, 40, 0, 0, 40, 40)
    out = run([spec("random_erase", probability=1.0, area=(0.1, 0.1), ratio=(1.0, 1.0), value=0.5)], example)
    erased = out["image"][..., 0] == 0.5
    top, left, bottom, right = hull(erased).astype(int)
    assert erased.sum() == (bottom - top) * (right - left) == 13 * 13
    assert out["masks"].all()
    assert len(out["boxes"]) == 1


def test_intensity_inverts_and_brightens():
    image = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4, 1)
    inverted = run([spec("random_intensity", invert=1.0)], {"image": image})["image"]
    np.testing.assert_array_equal(inverted, 1 - image)
    brighten, gray = build([spec("random_intensity", brightness=0.3)]), {"image": np.full_like(image, 0.5)}
    drawn = [brighten(gray, np.random.default_rng(seed))["image"].mean() for seed in range(200)]
    assert 0.2 <= min(drawn) < 0.22
    assert 0.78 < max(drawn) <= 0.8
    contrasted = run([spec("random_intensity", contrast=0.5)], {"image": image * 0.4 + 0.3})["image"]
    assert contrasted.mean() == pytest.approx(0.5, abs=1e-6)
    assert contrasted.std() != pytest.approx((image * 0.4).std(), abs=1e-3)


def test_noise_and_blur_have_the_strength_asked_for():
    gray = np.full((100, 100, 1), 0.5, np.float32)
    strengths = [run([spec("random_noise", std=0.1)], {"image": gray}, seed)["image"].std() for seed in range(50)]
    assert max(strengths) <= 0.102
    assert max(strengths) > 0.08
    assert min(strengths) < 0.02
    point = np.zeros((41, 41, 1), np.float32)
    point[20, 20] = 1
    y = np.arange(41) - 20
    for seed in range(10):
        out = run([spec("random_blur", sigma=2.0)], {"image": point}, seed)["image"][..., 0]
        assert out.sum() == pytest.approx(1, abs=1e-4)
        assert (out.sum(1) * y**2).sum() <= 2.0**2 + 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_equalizing_spreads_a_narrow_histogram(channels):
    rng = np.random.default_rng(0)
    image = np.repeat(rng.uniform(0.4, 0.5, (64, 64, 1)), channels, axis=2).astype(np.float32)
    equalized = run([spec("equalize_histogram")], {"image": image})["image"]
    assert equalized.min() < 0.02
    assert equalized.max() > 0.98
    limited = run([spec("clahe", clip=2.0, tiles=4)], {"image": image})["image"]
    assert image.std() < limited.std() < equalized.std()


def test_window_maps_percentiles_to_the_ends_and_leaves_constants():
    image = np.linspace(0.2, 0.6, 1001, dtype=np.float32).reshape(7, 143, 1)
    out = run([spec("window", low=10, high=90)], {"image": image})["image"].ravel()
    np.testing.assert_allclose(out[[100, 500, 900]], [0, 0.5, 1], atol=1e-5)
    assert (out[:100] == 0).all()
    assert (out[901:] == 1).all()
    with pytest.raises(InputError, match="low < high"):
        run([spec("window", low=90, high=10)], {"image": image})
    constant = np.full((5, 5, 1), 0.3, np.float32)
    np.testing.assert_array_equal(run([spec("window")], {"image": constant})["image"], constant)


def test_clahe_is_opencvs_on_grey_images():
    image = np.random.default_rng(0).integers(60, 200, (64, 96, 1), dtype=np.uint8)
    out = run([spec("clahe", clip=3.0, tiles=4)], {"image": image})["image"]
    expected = cv2.createCLAHE(3.0, (4, 4)).apply(image[..., 0])
    np.testing.assert_array_equal(np.rint(out[..., 0] * 255), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_matched_histograms_equal_those_of_skimage(channels):
    exposure = pytest.importorskip("skimage.exposure")
    rng = np.random.default_rng(0)
    image = (rng.beta(2, 5, (80, 90, channels)) * 255).astype(np.uint8)
    other = (rng.beta(5, 2, (70, 60, channels)) * 255).astype(np.uint8)
    reference = transforms.quantile_curves(other, points=70 * 60 + 1)
    out = run([spec("match_histogram", reference=reference)], {"image": image})["image"]
    expected = exposure.match_histograms(image.astype(np.float64), other.astype(np.float64), channel_axis=2) / 255
    np.testing.assert_allclose(out, expected, atol=0.004)
    assert np.abs(image / 255 - expected).mean() > 0.2


def test_one_reference_curve_serves_every_channel_and_two_fit_none():
    image = np.random.default_rng(0).random((50, 60, 3), dtype=np.float32)
    out = run([spec("match_histogram", reference=[0.2, 0.4])], {"image": image})["image"]
    np.testing.assert_allclose(out, 0.2 + 0.2 * image, atol=0.01)
    with pytest.raises(InputError, match="2 reference curves found for an image of 3 channels"):
        run([spec("match_histogram", reference=[[0.2, 0.4], [0.1, 0.3]])], {"image": image})


def test_bits_and_linear_windows():
    image = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16, 1)
    out = run([spec("reduce_bit_depth", bits=2)], {"image": image})["image"]
    np.testing.assert_allclose(np.unique(out), [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    assert np.abs(out - image).max() <= 1 / 6 + 1e-6
    out = run([spec("linear_window", center=0.5, width=0.2)], {"image": image})["image"]
    np.testing.assert_allclose(out, ((image - 0.4) / 0.2).clip(0, 1), atol=1e-5)


def retina_example(height=120, width=200, y=56.0, x=95.0, radius=50.0):
    """A red disc with a dark vessel on black; its mask of the view and a keypoint at its centre."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    view = (np.hypot(rows - y, columns - x) < radius).astype(np.uint8)
    image = view[..., None] * np.array([180, 90, 40], np.uint8)
    image[(np.abs(rows - y + 7) < 3) & (view > 0)] //= 2
    center = np.array([[y / height, x / width]], np.float32)
    return {"image": image, "masks": view[..., None], "field_of_view": view, "keypoints": center}


@pytest.mark.parametrize("known", [True, False])
def test_the_field_of_view_is_cropped_to_its_square_and_all_fields_follow(known):
    example = retina_example()
    if not known:
        del example["field_of_view"]
    out = run([spec("field_of_view_crop")], example, keep_geometry=True)
    assert out["image"].shape == (100, 100, 3)
    np.testing.assert_array_equal(hull(out["masks"][..., 0]), [0, 0, 100, 100])
    np.testing.assert_allclose(out["keypoints"], [[0.5, 0.5]], atol=1e-6)
    assert ("field_of_view" in out) == known
    back = transforms.invert_mask(out["masks"], out["geometry"], out["original_size"])
    np.testing.assert_array_equal(back, example["masks"])
    wide = run([spec("field_of_view_crop", margin=0.25)], example)
    np.testing.assert_array_equal(hull(wide["masks"][..., 0]), [25, 25, 125, 125])


def test_the_field_of_view_moves_before_it_is_cropped():
    specs = [spec("random_flip", horizontal=1.0), spec("field_of_view_crop"), spec("resize", size=50)]
    out = run(specs, retina_example(), keep_geometry=True)
    np.testing.assert_array_equal(hull(out["masks"][..., 0]), [0, 0, 50, 50])
    np.testing.assert_allclose(out["geometry"][:2], [[-0.5, 0, 72.5], [0, 0.5, -3]], atol=1e-5)
    np.testing.assert_allclose(out["keypoints"], [[0.5, 0.5]], atol=1e-6)


def test_a_disc_that_the_camera_cut_off_is_padded_to_a_square():
    out = run([spec("field_of_view_crop")], retina_example(height=80, y=40.0))
    assert out["image"].shape == (100, 100, 3)
    np.testing.assert_array_equal(hull(out["masks"][..., 0]), [10, 0, 90, 100])


@pytest.mark.parametrize("known", [True, False])
def test_random_crops_in_view_have_their_middle_in_view(known):
    example = retina_example()
    rows, columns, _ = np.indices((*example["image"].shape[:2], 1), np.uint8)
    view = example["field_of_view"] if known else example.pop("field_of_view")
    middles = []
    for seed in range(300):
        out = run(
            [spec("random_field_of_view_crop", size=(20, 30))],
            example | {"masks": np.concatenate([rows, columns], axis=2)},
            seed,
        )
        assert out["image"].shape == (20, 30, 3)
        middles.append(tuple(out["masks"][10, 15].tolist()))
    assert all(view[middle] for middle in middles)
    np.testing.assert_allclose(np.mean(middles, axis=0), np.argwhere(view).mean(axis=0), atol=8)
    nothing = {"image": np.zeros((9, 12, 3), np.uint8), "field_of_view": np.zeros((9, 12), np.uint8)}
    assert run([spec("random_field_of_view_crop", size=4)], nothing)["image"].shape == (4, 4, 3)


def test_nothing_in_view_is_left_alone_or_grey():
    example = {"image": np.zeros((9, 12, 3), np.uint8), "field_of_view": np.zeros((9, 12), np.uint8)}
    assert run([spec("field_of_view_crop")], example)["image"].shape == (9, 12, 3)
    np.testing.assert_array_equal(run([spec("subtract_local_mean")], example)["image"], np.float32(128 / 255))


def test_local_means_are_opencvs_where_all_is_in_view():
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    example = {"image": image, "field_of_view": np.ones((60, 60), np.uint8)}
    out = run([spec("subtract_local_mean", sigma=0.1, strength=2.0)], example)["image"]
    blurred = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 3.0)
    expected = cv2.addWeighted(image.astype(np.float32), 2, blurred, -2, 128) / 255
    np.testing.assert_allclose(out, expected.clip(0, 1), atol=1e-5)


def test_light_and_tint_vanish_from_a_retina_up_to_its_rim():
    example = retina_example()
    example["image"] = example["field_of_view"][..., None] * np.array([200, 80, 30], np.uint8)
    out = run([spec("subtract_local_mean")], example)["image"]
    np.testing.assert_allclose(out, 128 / 255, atol=1e-3)
    vessels = run([spec("subtract_local_mean", sigma=0.2)], retina_example())["image"]
    assert vessels[49, 95].max() < 0.3
    assert (vessels[:5] == np.float32(128 / 255)).all()


def test_channels():
    color = np.random.default_rng(0).random((6, 5, 3), dtype=np.float32)
    gray = run([spec("to_channels", channels=1)], {"image": color})["image"]
    np.testing.assert_allclose(gray[..., 0], color @ [0.299, 0.587, 0.114], atol=1e-6)
    back = run([spec("to_channels", channels=3)], {"image": gray})["image"]
    np.testing.assert_array_equal(back, np.repeat(gray, 3, axis=2))


# -------------------------------------------------------------------------------------------------------------- example


def position_example(height=150, width=200, radius=80.0):
    """A disc whose red is the column and whose green is the row, as fractions of 200; blue tells it from the black."""
    y, x = np.mgrid[:height, :width] + 0.5
    lit = np.hypot(y - height / 2, x - width / 2) <= radius
    image = np.stack([x / 200, y / 200, np.full_like(x, 0.5)], axis=-1) * lit[..., None]
    return {"image": image.astype(np.float32), "field_of_view": lit.astype(np.uint8)}


def sampled(image, points):
    """Samples f32[H,W,C] bilinearly at (y, x) fractions f[N,2]."""
    y, x = (points * image.shape[:2] - 0.5).T.astype(np.float32)
    return cv2.remap(image, x[None], y[None], cv2.INTER_LINEAR)[0]


@pytest.mark.parametrize("size", [48, 200])
@pytest.mark.parametrize("seed", range(6))
def test_points_of_a_pair_show_the_same_place(size, seed):
    out = run([spec("random_pair", size=size)], position_example(), seed)
    assert out["image"].shape == out["moving"].shape == (size, size, 3)
    assert out["field_of_view"].shape == (size, size) and out["keypoints"].shape == out["moving_keypoints"].shape
    known = ~np.isnan(out["keypoints"]).any(-1)
    assert 40 < known.sum() < 256 and (known == ~np.isnan(out["moving_keypoints"]).any(-1)).all()
    points, moving_points = out["keypoints"][known], out["moving_keypoints"][known]
    there, here = sampled(out["moving"], moving_points), sampled(out["image"], points)
    inside = (there[:, 2] > 0.499) & (here[:, 2] > 0.499)  # not on the rim, where black is mixed in
    assert inside.sum() > 30
    np.testing.assert_allclose(there[inside], here[inside], atol=1.5e-2)
    # The views differ, and what is out of view is black.
    assert np.abs(points - moving_points).max() > 0.02
    lit = out["field_of_view"] > 0
    assert not out["image"][~lit].any()
    assert out["image"][lit, 2].min() >= 0.125  # the rim is mixed with black by three quarters at most


def test_a_pair_without_motion_is_one_picture_twice():
    still = {"translate": 0.0, "rotate": 0.0, "scale": 0.0, "shear": 0.0, "curvature": 0.0, "zoom": (1.0, 1.0)}
    example = position_example() | {"labels": np.float32([1]), "id": "a", "boxes": np.zeros((0, 4), np.float32)}
    out = run([spec("random_pair", size=160, points=5, **still)], example)
    np.testing.assert_array_equal(out["image"], out["moving"])
    np.testing.assert_allclose(out["image"][5:155, 80], example["image"][:, 100][:150], atol=1e-4)
    np.testing.assert_array_equal(out["keypoints"], out["moving_keypoints"])
    assert out["labels"] == 1 and out["id"] == "a" and "boxes" not in out


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [
        ("translate", 0.4, 0.05),
        ("rotate", 20, 0.02),
        ("scale", 0.2, 0.02),
        ("shear", 10, 0.02),
        ("curvature", 0.1, 0.01),
    ],
)
def test_every_part_of_the_motion_moves(option, value, least):
    still = {"translate": 0.0, "rotate": 0.0, "scale": 0.0, "shear": 0.0, "curvature": 0.0}
    moved = []
    for seed in range(8):
        out = run([spec("random_pair", size=64, **(still | {option: value}))], position_example(), seed)
        moved.append(np.nanmax(np.abs(out["keypoints"] - out["moving_keypoints"])))
    assert least < max(moved) < 0.5


def test_nothing_in_view_makes_a_black_pair_without_points():
    for example in ({"image": np.zeros((30, 40, 3), np.uint8)}, {"image": np.zeros((1, 1, 1), np.uint8)}):
        out = run([spec("random_pair", size=16)], example)
        assert not out["image"].any() and not out["moving"].any() and np.isnan(out["keypoints"]).all()


def test_a_pair_goes_through_later_steps_together():
    pair = run([spec("random_pair", size=60)], position_example(), 3)
    flipped = run([spec("random_flip", horizontal=1.0), spec("resize", size=90)], pair)
    for picture, points in (("image", "keypoints"), ("moving", "moving_keypoints")):
        alone = run([spec("random_flip", horizontal=1.0), spec("resize", size=90)], {"image": pair[picture]})
        np.testing.assert_array_equal(flipped[picture], alone["image"])
        np.testing.assert_allclose(flipped[points], pair[points] * [1, -1] + [0, 1], atol=1e-6)
    noisy = run([spec("random_noise", std=0.5)], {"image": pair["image"], "moving": pair["image"]})
    assert np.abs(noisy["image"] - noisy["moving"]).max() > 0.01  # drawn anew
    grey = run([spec("to_channels", channels=1)], pair | {"moving": np.uint8(pair["moving"] * 255)})
    assert grey["moving"].shape == (60, 60, 1) and grey["moving"].dtype == np.float32
    with pytest.raises(InputError, match=r"'moving': float32\[50, 60, 3\] found, uint8 or float32\[60, 60, 3\]"):
        run([], pair | {"moving": pair["moving"][:50]})


# ---------------------------------------------------------------------------------------------------------------- batch


def batch_of_constants(rows=16, valid=None):
    """Every image is constant and equal to its one label, so a correct mixture keeps the two equal on average."""
    values = np.linspace(0, 1, rows, dtype=np.float32)
    batch = {
        "image": np.tile(values.reshape(-1, 1, 1, 1), (1, 20, 30, 1)),
        "labels": values[:, None].copy(),
        "id": list("ab"),
    }
    return batch if valid is None else {**batch, "valid": valid}


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("per", ["row", "batch"])
def test_image_and_labels_mix_with_the_same_weight(name, per):
    batch = batch_of_constants()
    before = {key: value.copy() for key, value in batch.items()}
    out = build_batch([spec(name, alpha=1.0, per=per)])(batch, np.random.default_rng(0))
    np.testing.assert_allclose(out["image"].mean((1, 2, 3)), out["labels"][:, 0], atol=1e-5)
    assert (out["labels"] != batch["labels"]).sum() > 8
    assert out["image"].dtype == out["labels"].dtype == np.float32
    assert out["id"] is batch["id"]
    np.testing.assert_array_equal(batch["image"], before["image"])
    np.testing.assert_array_equal(batch["labels"], before["labels"])
    if name == "mixup":
        assert (np.ptp(out["image"], axis=(1, 2, 3)) == 0).all()


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_padding_rows_neither_give_nor_take(name):
    valid = np.arange(16) < 9
    batch = batch_of_constants(valid=valid)
    batch["image"][9:] = batch["labels"][9:] = np.nan
    out = build_batch([spec(name, alpha=1.0)])(batch, np.random.default_rng(0))
    assert not np.isnan(out["labels"][:9]).any()
    assert not np.isnan(out["image"][:9]).any()
    assert np.isnan(out["image"][9:]).all()
    np.testing.assert_array_equal(out["valid"], valid)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_mixture_with_an_unknown_is_unknown(name):
    batch = batch_of_constants(rows=2)
    batch["labels"] = np.array([[1.0, np.nan, 0.0], [0.0, 1.0, np.nan]], np.float32)
    mixed = 0
    for seed in range(20):
        out = build_batch([spec(name, alpha=1.0)])(batch, np.random.default_rng(seed))["labels"]
        unknown = np.isnan(out)
        if np.array_equal(unknown, np.isnan(batch["labels"])):
            np.testing.assert_array_equal(out, batch["labels"])
        else:
            assert unknown[:, 1:].any()
            assert not unknown[:, 0].any()
            mixed += 1
    assert mixed > 2


def test_an_unknown_without_weight_does_not_spread():
    weight, partner = np.array([0.0, 1.0, 0.5], np.float32), np.array([1, 2, 0])
    labels = np.array([[np.nan], [1.0], [np.nan]], np.float32)
    out = transforms._mix_labels({"labels": labels}, weight, partner)["labels"]
    np.testing.assert_array_equal(out, [[1.0], [1.0], [np.nan]])


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_probability_zero_leaves_the_batch(name):
    batch = batch_of_constants()
    batch["labels"][3] = np.nan
    out = build_batch([spec(name, probability=0.0)])(batch, np.random.default_rng(0))
    np.testing.assert_array_equal(out["image"], batch["image"])
    np.testing.assert_array_equal(out["labels"], batch["labels"])


@pytest.mark.parametrize("field", ["boxes", "masks", "keypoints", "field_of_view"])
def test_batches_with_places_cannot_be_mixed(field):
    with pytest.raises(InputError, match=field):
        build_batch([spec("mixup")])({**batch_of_constants(), field: np.zeros((16, 1))}, np.random.default_rng(0))


def test_integer_labels_cannot_be_mixed():
    with pytest.raises(InputError, match="labels"):
        build_batch([spec("cutmix")])(
            {**batch_of_constants(), "labels": np.zeros((16, 1), int)}, np.random.default_rng(0)
        )


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"name": "random_afine"}, r"transforms\[0\].*'random_afine'; valid: random_affine, "),
        ({"name": "mixup"}, "unknown transform 'mixup'"),
        ({"name": "build"}, "unknown transform 'build'"),
        ({"size": 3}, r"\{'size': 3\} found, .* valid names: center_crop, "),
        ("resize", r"transforms\[0\]: 'resize' found"),
        ({"name": "random_affine", "rotation": 5}, "'rotation'; valid: rotate, "),
        ({"name": "equalize_histogram", "clip": 5}, "'clip'; valid: none"),
        ({"name": "resize"}, "missing 'size'"),
        ({"name": "random_flip"}, "missing 'horizontal'"),
        ({"name": "resize", "size": 0}, "size=0 found, a positive integer"),
        ({"name": "resize", "size": 2.5}, "size=2.5 found"),
        ({"name": "resize", "size": (1, 2, 3)}, "size="),
        ({"name": "resize", "size": 8, "aspect": "keep"}, "aspect='keep' found, one of"),
        ({"name": "random_erase", "probability": 1.5}, r"probability=1.5 found, a number in \[0, 1\]"),
        ({"name": "random_erase", "probability": float("nan")}, "probability=nan"),
        ({"name": "random_erase", "area": (0.5, 0.1)}, "area="),
        ({"name": "random_affine", "scale": 1.0}, "scale=1.0"),
        ({"name": "random_affine", "rotate": "ten"}, "rotate='ten'"),
        ({"name": "to_channels", "channels": 2}, "channels=2"),
        ({"name": "clahe", "tiles": True}, "tiles=True"),
        ({"name": "match_histogram", "reference": (0.5, 0.1)}, "reference="),
        ({"name": "match_histogram", "reference": ((0.1, 0.5), (0.1, 0.2, 0.3))}, "reference="),
        ({"name": "match_histogram", "reference": ()}, "reference="),
        ({"name": "reduce_bit_depth", "bits": 0}, "bits=0"),
    ],
)
def test_bad_specs_are_refused_when_built(bad, message):
    with pytest.raises(InputError, match=message):
        build([bad])


def test_bad_batch_specs_and_build_options_are_refused():
    with pytest.raises(InputError, match="valid: mixup, cutmix"):
        build_batch([spec("mixupp")])
    with pytest.raises(InputError, match="padding='reflect'"):
        build([], padding="reflect")
    with pytest.raises(InputError, match="min_visibility=2"):
        build([], min_visibility=2)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("image", np.zeros((4, 4), np.uint8), r"'image': uint8\[4, 4\] found"),
        ("image", np.zeros((4, 4, 2), np.uint8), r"\[H,W,1\] or \[H,W,3\] expected"),
        ("image", np.zeros((4, 0, 1), np.uint8), "'image'"),
        ("image", np.zeros((4, 4, 1), np.float64), "float64"),
        ("image", [[1]], "list found"),
        ("image", np.full((4, 4, 1), 255, np.float32), r"values in \[255"),
        ("image", np.full((4, 4, 1), np.nan, np.float32), r"values in \[nan"),
        ("masks", np.zeros((4, 5, 1), np.uint8), r"'masks': uint8\[4, 5, 1\] found, uint8\[4, 4, any\] expected"),
        ("masks", np.zeros((4, 4, 1), bool), "bool"),
        ("field_of_view", np.zeros((4, 4, 1), np.uint8), "'field_of_view'"),
        ("boxes", np.zeros((0,), np.float32), "'boxes'"),
        ("keypoints", np.zeros((3, 3), np.float32), "'keypoints'"),
        ("box_labels", np.zeros(2, np.int32), "'box_labels': 2 rows found, one for each of 3 boxes expected"),
        ("box_masks", np.zeros((3, 4, 5), np.uint8), r"'box_masks': uint8\[3, 4, 5\] found, uint8\[any, 4, 4\]"),
        ("box_masks", np.zeros((2, 4, 4), np.uint8), "'box_masks': 2 rows found"),
    ],
)
def test_bad_fields_are_refused(field, value, message):
    with pytest.raises(InputError, match=message):
        run([], {"image": np.zeros((4, 4, 1), np.uint8), "boxes": np.zeros((3, 4), np.float32), field: value})


def test_a_missing_image_is_refused():
    with pytest.raises(InputError, match="no field 'image'"):
        run([], {"labels": 0})

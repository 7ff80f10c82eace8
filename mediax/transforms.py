"""Transforms of one example and of one batch: image, masks, boxes and keypoints move together, and can be moved back.

A pipeline is plain data, built once and called per example:

    pipeline = build(({"name": "resize", "size": 224}, {"name": "random_affine", "rotate": 10, "probability": 0.9}))
    example = pipeline(example, np.random.default_rng(0))

A transform is one public function of this file: its name is the name in a config, its keyword-only parameters are the
options there. The first parameters say which of four kinds it is, so adding a transform is adding one function:

    (height, width, rng, *, ...) -> (Affine, (height, width))   geometry: where pixels go, and the size of the result
    (image, rng, *, ...) -> image                               pixels: f32[H,W,C] in [0,1] to the same, never in place
    (example, rng, *, ...) -> example                           example: makes a new one, of one image a pair
    (batch, rng, *, ...) -> batch                               batch: stacked examples, for `build_batch`

The first three kinds may take `field_of_view` before `rng`: u8[H,W], where a fundus photograph shows the retina. It is
the example's field of that name; an example without one has it found in the image as it is at this step, by
`annotations.field_of_view`, so such a step belongs before those that change brightness.

A pair to be registered, `image` and `moving` of one size, goes through together: geometry moves both alike; a pixel
step draws anew for each, and has the field of view of `moving` found in it.

An option annotated with `Annotated[type, Expected(...)]` is checked when the pipeline is built, not in a worker.

Coordinates are those of `affine`, so x in pixels is the fraction x / W of an image of width W.

Sampling. Consecutive geometry steps are composed into one matrix and resampled once, so what an early crop cuts off may
come back into view in a later step of the same run; one that takes the field of view begins a new run, so put it first.
Images are sampled bilinearly or averaged. Masks and the field of view are sampled at the nearest pixel: that keeps the
expected area of structures thinner than an output pixel (vessels, small lesions); cutting averages would erase them.
"""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import cv2
import numpy as np

from mediax import affine, annotations
from mediax.affine import Affine
from mediax.errors import InputError

# One thread per worker process: the loader already runs one process per core.
cv2.setNumThreads(0)

LEVELS = 4096  # Of the histograms that are matched: 12 bits, what a radiograph's detector tells apart.

WHOLE_FIELDS = ("id", "patient_id", "study_id", "labels", "target")  # of an example that are not of places in it

Example = dict[str, Any]
Geometry = tuple[Affine, tuple[int, int]]


class Expected(NamedTuple):
    """What an option of a transform may be, in words and as a test."""

    words: str
    test: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _number(low: float, high: float) -> Expected:
    return Expected(f"a number in [{low}, {high}]", lambda value: _is_number(value) and low <= value <= high)


def _interval(low: float, high: float) -> Expected:
    def test(value):
        is_pair = isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_number, value))
        return is_pair and low <= value[0] <= value[1] <= high

    return Expected(f"(lowest, highest) within [{low}, {high}]", test)


def _choice(*values: Any) -> Expected:
    # `type` too, because True == 1 and 1.0 == 1.
    return Expected(f"one of {values}", lambda value: any(type(value) is type(v) and value == v for v in values))


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value > 0


def _is_size(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_count, value)))


def _is_quantile_curve(value: Any) -> bool:
    is_list = isinstance(value, (tuple, list)) and len(value) >= 2 and all(map(_is_number, value))
    return is_list and value[0] >= 0 and value[-1] <= 1 and all(a <= b for a, b in pairwise(value))


def _are_quantile_curves(value: Any) -> bool:
    if _is_quantile_curve(value):
        return True
    is_list = isinstance(value, (tuple, list)) and len(value) > 0 and all(map(_is_quantile_curve, value))
    return is_list and len({len(curve) for curve in value}) == 1


Fraction = Annotated[float, _number(0, 1)]
Probability = Annotated[float, _number(0, 1)]
Percentile = Annotated[float, _number(0, 100)]
Degrees = Annotated[float, _number(0, 180)]
Pixels = Annotated[float, _number(0, 1000)]
Count = Annotated[int, Expected("a positive integer", _is_count)]
Size = Annotated[int | tuple[int, int], Expected("a positive integer or (height, width)", _is_size)]
AreaInterval = Annotated[tuple[float, float], _interval(1e-6, 1)]
RatioInterval = Annotated[tuple[float, float], _interval(1e-3, 1000)]
QuantileCurves = Annotated[
    tuple,
    Expected("ascending numbers in [0, 1], or as many such lists of one length as channels", _are_quantile_curves),
]


# ------------------------------------------------------------------------------------------------------------- geometry


def resize(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    size: Size,
    aspect: Annotated[str, _choice("stretch", "crop", "letterbox")] = "stretch",
) -> Geometry:
    """Resizes to `size`: stretched, or with its aspect ratio kept and then cropped or padded about the centre."""
    out_height, out_width = _pair(size)
    if aspect == "stretch":
        return affine.scaling(out_width / width, out_height / height), (out_height, out_width)
    choose = max if aspect == "crop" else min
    scale = choose(out_height / height, out_width / width)
    # Whole pixels, so that the image's border falls on pixel borders; the aspect ratio is off by half a pixel at most.
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    x, y = (out_width - new_width) // 2, (out_height - new_height) // 2
    return (new_width / width, 0.0, x, 0.0, new_height / height, y), (out_height, out_width)


def center_crop(height: int, width: int, rng: np.random.Generator, *, size: Size) -> Geometry:
    """Cuts `size` pixels out of the centre; an image that is smaller is padded."""
    out_height, out_width = _pair(size)
    return affine.translation((out_width - width) // 2, (out_height - height) // 2), (out_height, out_width)


def field_of_view_crop(
    height: int, width: int, field_of_view: np.ndarray, rng: np.random.Generator, *, margin: Fraction = 0.0
) -> Geometry:
    """Cuts out the square around the field of view, larger by `margin` of its side all round.

    What the camera cut off of the retina's disc, and what else the square has outside the image, is padded, so that the
    retina is centred and a resize to a square does not distort it. An image with nothing in view stays as it is.
    """
    top, left, bottom, right = annotations.masks_to_boxes(field_of_view[..., None])[0].tolist()
    if math.isnan(top):
        return affine.IDENTITY, (height, width)
    side = round(max(bottom - top, right - left) * (1 + 2 * margin))
    y, x = (side - round(top + bottom)) // 2, (side - round(left + right)) // 2
    return affine.translation(x, y), (side, side)


def random_crop(height: int, width: int, rng: np.random.Generator, *, size: Size) -> Geometry:
    """Cuts `size` pixels out of a random place in the image; a side that is shorter is padded about its middle."""
    out_height, out_width = _pair(size)
    y, x = _random_start(rng, height, out_height), _random_start(rng, width, out_width)
    return affine.translation(-x, -y), (out_height, out_width)


def random_field_of_view_crop(
    height: int, width: int, field_of_view: np.ndarray, rng: np.random.Generator, *, size: Size
) -> Geometry:
    """Cuts `size` pixels out of a place whose middle is a random pixel in view; what is outside the image is padded.

    An image with nothing in view is cropped anywhere.
    """
    out_height, out_width = _pair(size)
    seen = np.flatnonzero(field_of_view)
    chosen = seen[rng.integers(len(seen))] if len(seen) else rng.integers(height * width)
    y, x = divmod(int(chosen), width)
    return affine.translation(out_width // 2 - x, out_height // 2 - y), (out_height, out_width)


def random_resized_crop(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    size: Size,
    scale: AreaInterval = (0.08, 1.0),
    ratio: RatioInterval = (3 / 4, 4 / 3),
) -> Geometry:
    """Resizes a random rectangle to `size`: `scale` of the area, width / height in `ratio` (Szegedy et al. 2015).

    A rectangle that is longer than the image is cut to it.
    """
    out_height, out_width = _pair(size)
    crop_height, crop_width = _random_rectangle(height, width, rng, scale, ratio)
    y, x = _up_to(rng, height - crop_height), _up_to(rng, width - crop_width)
    scale_x, scale_y = out_width / crop_width, out_height / crop_height
    return (scale_x, 0.0, -scale_x * x, 0.0, scale_y, -scale_y * y), (out_height, out_width)


def random_affine(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    rotate: Degrees = 0.0,
    translate: Fraction = 0.0,
    scale: Annotated[float, _number(0, 0.95)] = 0.0,
    shear: Annotated[float, _number(0, 80)] = 0.0,
    probability: Probability = 1.0,
) -> Geometry:
    """Shears along x, scales and rotates about the centre, then translates; the size stays.

    Each is drawn uniformly: rotation in +-`rotate` degrees, shear in +-`shear` degrees, the scale factor in 1 +-
    `scale`, the translation in +-`translate` of the width and of the height.
    """
    if rng.random() >= probability:
        return affine.IDENTITY, (height, width)
    angle, shearing = math.radians(_spread(rng, rotate)), math.tan(math.radians(_spread(rng, shear)))
    factor = 1.0 + _spread(rng, scale)
    cosine, sine = factor * math.cos(angle), factor * math.sin(angle)
    a, b, d, e = cosine, cosine * shearing - sine, sine, sine * shearing + cosine
    x, y = width / 2, height / 2
    shift_x, shift_y = _spread(rng, translate) * width, _spread(rng, translate) * height
    return (a, b, x - (a * x + b * y) + shift_x, d, e, y - (d * x + e * y) + shift_y), (height, width)


def random_flip(
    height: int, width: int, rng: np.random.Generator, *, horizontal: Probability, vertical: Probability = 0.0
) -> Geometry:
    """Mirrors left-right with probability `horizontal` and top-bottom with probability `vertical`.

    `horizontal` has no default on purpose. A chest radiograph is not symmetric: mirrored, the heart is on the wrong
    side (dextrocardia, a finding) and what is named left or right trades places, while the names of labels, mask
    channels and keypoints stay; `experiment.compose` refuses it where a task tells the two apart. A mirrored fundus
    photograph is one of the other eye: harmless unless laterality matters.
    """
    scale_x, x = (-1.0, float(width)) if rng.random() < horizontal else (1.0, 0.0)
    scale_y, y = (-1.0, float(height)) if rng.random() < vertical else (1.0, 0.0)
    return (scale_x, 0.0, x, 0.0, scale_y, y), (height, width)


# --------------------------------------------------------------------------------------------------------------- pixels


def random_intensity(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    brightness: Fraction = 0.0,
    contrast: Fraction = 0.0,
    gamma: Annotated[float, _number(0, 10)] = 0.0,
    invert: Probability = 0.0,
    probability: Probability = 1.0,
) -> np.ndarray:
    """Gamma, then contrast about the mean, then brightness, clipped to [0,1]; inverted with probability `invert`.

    The exponent is drawn log-uniformly in [1 / (1 + gamma), 1 + gamma], the contrast factor uniformly in 1 +-
    `contrast` and the added brightness uniformly in +-`brightness`. The three apply together with `probability`;
    `invert` on its own.
    """
    if rng.random() < probability:
        if gamma:
            exponent = math.exp(_spread(rng, math.log1p(gamma)))
            image = affine.at_most_one(cv2.pow(image, exponent)).reshape(image.shape)
        factor, shift = 1.0 + _spread(rng, contrast), _spread(rng, brightness)
        if contrast:
            shift += (1.0 - factor) * sum(cv2.mean(image)) / image.shape[2]
        if factor != 1.0 or shift:
            image = image * np.float32(factor)
            image += np.float32(shift)
            image.clip(0.0, 1.0, out=image)
    return 1.0 - image if rng.random() < invert else image


def random_noise(
    image: np.ndarray, rng: np.random.Generator, *, std: Fraction, probability: Probability = 1.0
) -> np.ndarray:
    """Adds Gaussian noise whose standard deviation is drawn uniformly in [0, `std`], clipped to [0,1]."""
    if std == 0 or rng.random() >= probability:
        return image
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(std * rng.random())
    noise += image
    return noise.clip(0.0, 1.0, out=noise)


def random_blur(
    image: np.ndarray, rng: np.random.Generator, *, sigma: Pixels, probability: Probability = 1.0
) -> np.ndarray:
    """Blurs with a Gaussian whose sigma is drawn uniformly in [0, `sigma`] pixels."""
    drawn = sigma * rng.random() if rng.random() < probability else 0.0
    if drawn < 0.1:  # The neighbours' weight is then below 1e-20, and cv2 takes sigma 0 as "not given".
        return image
    blurred = cv2.GaussianBlur(image, (0, 0), drawn, borderType=cv2.BORDER_REPLICATE)
    return affine.at_most_one(blurred).reshape(image.shape)


def random_erase(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    probability: Probability = 0.5,
    area: AreaInterval = (0.02, 0.2),
    ratio: RatioInterval = (0.3, 3.3),
    value: Fraction = 0.0,
) -> np.ndarray:
    """Fills one random rectangle of the image with `value` (random erasing, Zhong et al. 2017; cutout, DeVries 2017).

    `area` is a fraction of the image's, `ratio` is width / height. Masks, boxes and keypoints stay as they are.
    """
    if rng.random() >= probability:
        return image
    height, width = image.shape[:2]
    erased_height, erased_width = _random_rectangle(height, width, rng, area, ratio)
    y, x = _up_to(rng, height - erased_height), _up_to(rng, width - erased_width)
    image = image.copy()
    image[y : y + erased_height, x : x + erased_width] = value
    return image


def equalize_histogram(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Equalises the histogram of the grey values, or of the lightness of a colour image, in 256 levels."""
    return _map_lightness(image, cv2.equalizeHist)


def clahe(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    clip: Annotated[float, _number(0, 1000)] = 2.0,
    tiles: Count = 8,
) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation on `tiles` x `tiles` regions in 256 levels (Zuiderveld 1994).

    `clip` limits a bin of a region's histogram to so many times the mean bin. Colour images: on the lightness.
    """
    height, width = image.shape[:2]
    equalizer = cv2.createCLAHE(clip, (min(tiles, width), min(tiles, height)))
    return _map_lightness(image, equalizer.apply)


def match_histogram(image: np.ndarray, rng: np.random.Generator, *, reference: QuantileCurves) -> np.ndarray:
    """Maps the values of each channel so that their distribution becomes the reference's (Gonzalez & Woods).

    `reference` are evenly spaced quantiles, from the lowest value to the highest, of the image or the images to look
    like: one curve for every channel, or one each. `quantile_curves` measures them. Images are read in 4096 levels.
    """
    curves = np.atleast_2d(np.asarray(reference, np.float64))
    channels = image.shape[2]
    if len(curves) not in (1, channels):
        raise InputError(
            f"transform match_histogram: {len(curves)} reference curves found for an image of {channels} channels, "
            f"1 or {channels} expected."
        )
    curves = np.broadcast_to(curves, (channels, curves.shape[1]))
    return np.stack([_match_channel(image[..., i], curves[i]) for i in range(channels)], axis=2)


def quantile_curves(image: np.ndarray, points: int = 256) -> tuple[tuple[float, ...], ...]:
    """Measures what `match_histogram` takes as a reference: `points` quantiles of each channel of u8 or f32[H,W,C]."""
    image = _unit_range(image)
    values, wanted = np.arange(LEVELS) / (LEVELS - 1), np.linspace(0, 1, points)
    curves = []
    for i in range(image.shape[2]):
        fractions = _cumulative(_quantize(image[..., i]))
        present = np.diff(fractions, prepend=0) > 0
        curves.append(tuple(np.interp(wanted, fractions[present], values[present]).tolist()))
    return tuple(curves)


def subtract_local_mean(
    image: np.ndarray,
    field_of_view: np.ndarray,
    rng: np.random.Generator,
    *,
    sigma: Annotated[float, _number(1e-3, 1)] = 1 / 30,
    strength: Annotated[float, _number(0, 100)] = 4.0,
) -> np.ndarray:
    """Evens out colour and light of a fundus photograph: grey + `strength` (image - local mean), clipped to [0,1].

    The local mean is Gaussian, with `sigma` times the radius of the field of view, and over pixels in view alone, so
    that it needs no rim cut off; out of view the image is grey: 128 of 255. After B. Graham, "Kaggle diabetic
    retinopathy detection competition report" (2015).
    """
    view = (field_of_view != 0).astype(np.float32)[..., None]
    radius = max(view.any(axis=0).sum(), view.any(axis=1).sum()) / 2
    deviation = max(sigma * radius, 0.1)  # cv2 takes 0 as "not given".
    mean = _blur(image * view, deviation) / np.maximum(_blur(view, deviation), 1e-6)
    # Not 0.5: a network without published weights would subtract it, and where nothing but zeros is left (a black or
    # white photograph) the gradients of LayerNorms explode.
    grey = np.float32(128 / 255)
    return (grey + np.float32(strength) * (image - mean) * view).clip(0.0, 1.0)


def reduce_bit_depth(
    image: np.ndarray, rng: np.random.Generator, *, bits: Annotated[int, _choice(*range(1, 17))]
) -> np.ndarray:
    """Rounds to the nearest of the 2^`bits` evenly spaced levels from 0 to 1."""
    highest = np.float32(2**bits - 1)
    return np.rint(image * highest) / highest


def linear_window(
    image: np.ndarray, rng: np.random.Generator, *, center: Fraction, width: Annotated[float, _number(1e-6, 2)]
) -> np.ndarray:
    """Stretches the values in `center` +- `width` / 2 to [0,1] and clips: the same for every image, unlike `window`.

    The window of DICOM's LINEAR_EXACT (PS3.3, C.11.2.1.3.2), in fractions of the range.
    """
    image = image - np.float32(center - width / 2)
    image *= np.float32(1.0 / width)
    return image.clip(0.0, 1.0, out=image)


def window(
    image: np.ndarray, rng: np.random.Generator, *, low: Percentile = 1.0, high: Percentile = 99.0
) -> np.ndarray:
    """Stretches the values between two percentiles of the image to [0,1] and clips; a constant image stays as it is."""
    if low >= high:
        raise InputError(f"transform window: low={low} and high={high} found, low < high expected.")
    bottom, top = np.percentile(image, (low, high))
    if not top > bottom:
        return image
    image = image - np.float32(bottom)
    image *= np.float32(1.0 / (top - bottom))
    return image.clip(0.0, 1.0, out=image)


def to_channels(image: np.ndarray, rng: np.random.Generator, *, channels: Annotated[int, _choice(1, 3)]) -> np.ndarray:
    """Makes a grey image of RGB (ITU-R BT.601 luma) or repeats a grey one three times; f32[H,W,`channels`]."""
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return affine.at_most_one(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[..., None]


# -------------------------------------------------------------------------------------------------------------- example


def random_pair(
    example: Example,
    field_of_view: np.ndarray,
    rng: np.random.Generator,
    *,
    size: Count,
    zoom: AreaInterval = (0.6, 0.9),
    translate: Fraction = 0.4,
    rotate: Degrees = 10.0,
    scale: Annotated[float, _number(0, 0.95)] = 0.05,
    shear: Annotated[float, _number(0, 80)] = 2.0,
    curvature: Fraction = 0.05,
    points: Count = 16,
) -> Example:
    """Makes of one fundus photograph a pair to be registered: two views of it under a known random motion.

    Each view is a disc, as a camera's is, whose diameter is `zoom` of the field of view's; what lies outside of it or
    of the photograph is black. From `moving` to `image` places are sheared by +-`shear` degrees, scaled by 1 +-
    `scale`, rotated by +-`rotate` degrees, shifted in any direction by up to `translate` diameters, and bent: each of
    the six quadratic coefficients is up to +-`curvature` radii of the disc, for so the curved retina moves (Can et al.,
    IEEE TPAMI 24(3), 2002). The two views lie to either side of the photograph's middle.

    Comes out with image and moving f32[size,size,C], the image's field_of_view u8[size,size], and keypoints and
    moving_keypoints f32[points^2,2]: a grid on `moving` and where it lies in `image`, NaN where one of them is black.
    Of the other fields those stay that are of the image as a whole or of the patient.
    """
    radius, centre = _disc(field_of_view)
    radius *= zoom[0] + (zoom[1] - zoom[0]) * rng.random()
    angle, length = 2 * math.pi * rng.random(), 2 * translate * rng.random()
    shift = length * np.array([math.cos(angle), math.sin(angle)])
    turn, slant = math.radians(_spread(rng, rotate)), math.tan(math.radians(_spread(rng, shear)))
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    matrix = (1 + _spread(rng, scale)) * rotation @ np.array([[1, slant], [0, 1]])
    bend = curvature * rng.uniform(-1, 1, (3, 2))

    grid, spots = _unit_grid(size), _unit_grid(points).reshape(-1, 2)

    def motion(place: np.ndarray) -> np.ndarray:
        """From `moving` to `image`: (x, y) f64[...,2] in radii of the disc from its middle."""
        x, y = place[..., 0], place[..., 1]
        return shift + place @ matrix.T + np.stack((x * x, x * y, y * y), axis=-1) @ bend

    def view(place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the photograph shows at `place` of `image`, f32[size,size,C], and where it shows anything."""
        place = centre + radius * (place - shift / 2)
        lit = _lookup(field_of_view, place) & (np.hypot(*np.moveaxis(grid, -1, 0)) <= 1)
        return _pick(_unit_range(example["image"]), place, 2 * radius / size) * lit[..., None], lit

    (image, lit), (moving, moving_lit) = view(grid), view(motion(grid))
    moved = motion(spots)
    known = _lookup(moving_lit, (spots + 1) / 2 * size) & _lookup(lit, (moved + 1) / 2 * size)
    keypoints, moving_keypoints = (
        np.where(known[:, None], (place[:, ::-1] + 1) / 2, np.nan).astype(np.float32) for place in (moved, spots)
    )
    return {name: example[name] for name in WHOLE_FIELDS if name in example} | {
        "image": image,
        "moving": moving,
        "field_of_view": lit.astype(np.uint8),
        "keypoints": keypoints,
        "moving_keypoints": moving_keypoints,
    }


# ---------------------------------------------------------------------------------------------------------------- batch


def mixup(
    batch: Example,
    rng: np.random.Generator,
    *,
    alpha: Annotated[float, _number(1e-3, 1000)] = 0.2,
    probability: Probability = 1.0,
    per: Annotated[str, _choice("row", "batch")] = "row",
) -> Example:
    """Mixes rows as lambda x + (1 - lambda) x', lambda ~ Beta(alpha, alpha) (Zhang et al., ICLR 2018).

    lambda is drawn `per` row or batch. Partners are a permutation of the rows, so some rows may stay unmixed. Fields
    and errors: see `BatchPipeline`.
    """
    weight, partner = _draw_mixture(batch, rng, alpha, probability, per)
    image = batch["image"]
    column = weight.reshape(-1, 1, 1, 1)
    mixed = image[partner]
    mixed *= 1.0 - column
    mixed += column * image
    return _mix_labels({**batch, "image": mixed}, weight, partner)


def cutmix(
    batch: Example,
    rng: np.random.Generator,
    *,
    alpha: Annotated[float, _number(1e-3, 1000)] = 1.0,
    probability: Probability = 1.0,
    per: Annotated[str, _choice("row", "batch")] = "row",
) -> Example:
    """Pastes a rectangle of another row into every row and mixes labels by area (Yun et al., ICCV 2019).

    The rectangle has the image's aspect ratio and covers 1 - lambda of it, rounded to whole pixels, with lambda ~
    Beta(alpha, alpha) drawn `per` row or batch. Fields and errors: see `BatchPipeline`.
    """
    weight, partner = _draw_mixture(batch, rng, alpha, probability, per)
    image = batch["image"].copy()
    height, width = image.shape[1:3]
    for row in np.flatnonzero(weight < 1):
        side = math.sqrt(1.0 - weight[row])
        cut_height, cut_width = round(side * height), round(side * width)
        y, x = _up_to(rng, height - cut_height), _up_to(rng, width - cut_width)
        rectangle = np.s_[y : y + cut_height, x : x + cut_width]
        image[row][rectangle] = batch["image"][partner[row]][rectangle]
        weight[row] = 1.0 - cut_height * cut_width / (height * width)
    return _mix_labels({**batch, "image": image}, weight, partner)


# ------------------------------------------------------------------------------------------------------------ pipelines


@dataclass(frozen=True)
class Step:
    """One transform with its options; picklable, because the function is known by its name in this module."""

    function: Callable
    options: Mapping[str, Any]
    kind: str = "batch"  # the name of the function's first parameter, "geometry" for the first kind's height
    takes_field_of_view: bool = False


@dataclass(frozen=True)
class Pipeline:
    """Transforms of one example, made by `build`."""

    steps: tuple[Step, ...]
    padding: float | Literal["edge"]
    min_visibility: float
    keep_geometry: bool

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Returns a transformed copy of `example`; what no step changes may share memory with it.

        Fields that move, if present; all others pass untouched:
          image: u8[H,W,C] or f32[H,W,C] in [0,1], C = 1 or 3; always comes out as f32 in [0,1].
          masks and second_masks: u8[H,W,K], field_of_view: u8[H,W].
          boxes: f32[N,4], ymin, xmin, ymax, xmax in fractions of height and width, and every `box_*` field: one row a
            box. A box becomes the axis-aligned hull of its moved corners, clipped to the image; where clipping leaves
            less than `min_visibility` of the hull's area, it is dropped (each run of geometry steps counts anew).
          box_masks: u8[N,H,W], the mask of each box's own instance, which moves as `masks` do and leaves with its box.
          keypoints: f32[N,2], y, x in fractions. None is dropped: they may leave [0,1], and NaN stays NaN.
          moving: as `image`, and of its size; moving_keypoints: as keypoints.
          spacing_mm: f32[2], mm per pixel along rows and columns (down, right).
        With `keep_geometry` the example gains geometry f32[3,3] (original to current pixels, on (x, y, 1)) and
        original_size i32[2] (height, width). An example that comes with them has them continued.

        Raises InputError for a field of the wrong type, shape or range.
        """
        example = dict(example)
        _check_example(example)
        image = example["image"]
        original_size = size = image.shape[:2]
        moved, total = affine.IDENTITY, affine.IDENTITY
        for step in self.steps:
            if step.takes_field_of_view or step.kind != "geometry":  # These see pixels: what is due is done first.
                image, total = self._move(example, image, moved, size), affine.compose(moved, total)
                moved = affine.IDENTITY
            seen = (_field_of_view(example, image),) if step.takes_field_of_view else ()
            if step.kind == "geometry":
                matrix, size = step.function(*size, *seen, rng, **step.options)
                moved = affine.compose(matrix, moved)
            elif step.kind == "example":
                example = step.function(example | {"image": image}, *seen, rng, **step.options)
                image, total = example["image"], affine.IDENTITY
                original_size = size = image.shape[:2]
            else:
                image = step.function(_unit_range(image), *seen, rng, **step.options)
                if "moving" in example:
                    moving = _unit_range(example["moving"])
                    seen = (_field_of_view({}, moving),) if step.takes_field_of_view else ()
                    example["moving"] = step.function(moving, *seen, rng, **step.options)
        image = self._move(example, image, moved, size)
        for name, picture in (("image", image), ("moving", example.get("moving"))):
            if picture is not None:
                example[name] = np.ascontiguousarray(_unit_range(picture))
        if self.keep_geometry or "geometry" in example:
            _keep_geometry(example, affine.compose(moved, total), original_size)
        return example

    def _move(self, example: Example, image: np.ndarray, matrix: Affine, size: tuple[int, int]) -> np.ndarray:
        """Moves the fields of `example` in place and returns the moved image."""
        old_size = image.shape[:2]
        if matrix == affine.IDENTITY and size == old_size:
            return image
        for name in ("masks", "second_masks"):
            if name in example:
                example[name] = affine.resample(example[name], matrix, size, nearest=True)
        if "field_of_view" in example:
            view = example["field_of_view"][..., None]
            example["field_of_view"] = affine.resample(view, matrix, size, nearest=True)[..., 0]
        if "moving" in example:
            example["moving"] = affine.resample(example["moving"], matrix, size, self.padding)
        for name in ("keypoints", "moving_keypoints"):
            if name in example:
                example[name] = affine.move_keypoints(example[name], matrix, old_size, size)
        if "boxes" in example:
            _move_boxes(example, matrix, old_size, size, self.min_visibility)
        if "box_masks" in example:  # after the boxes, for those that were dropped need not move
            masks = np.moveaxis(example["box_masks"], 0, -1)
            example["box_masks"] = np.moveaxis(affine.resample(masks, matrix, size, nearest=True), -1, 0)
        if "spacing_mm" in example:
            example["spacing_mm"] = affine.move_spacing(example["spacing_mm"], matrix)
        return affine.resample(image, matrix, size, self.padding)


@dataclass(frozen=True)
class BatchPipeline:
    """Transforms of one batch, made by `build_batch`."""

    steps: tuple[Step, ...]

    def __call__(self, batch: Example, rng: np.random.Generator) -> Example:
        """Returns a transformed copy of `batch`.

        mixup and cutmix mix image f32[B,H,W,C], labels f32[B,K] and target f32[B,R], among valid rows only; `valid` and
        all other fields stay. A mixed label is NaN where either of the two is, unless that one's weight is 0.

        Raises InputError for fields that cannot be mixed: boxes, masks, keypoints, field_of_view, second_view,
        integers.
        """
        for step in self.steps:
            batch = step.function(batch, rng, **step.options)
        return dict(batch)


def build(
    specs: Iterable[Mapping[str, Any]],
    *,
    padding: float | Literal["edge"] = 0.0,
    min_visibility: float = 0.25,
    keep_geometry: bool = False,
) -> Pipeline:
    """Builds the pipeline of an example from plain data, `({"name": "resize", "size": 224}, ...)`.

    Args:
      specs: one mapping per step: the name of a transform of this module, and its options.
      padding: value in [0,1] of image pixels from outside, or "edge" to repeat the border; masks are 0 there.
      min_visibility: a box that keeps less than this fraction of its area is dropped.
      keep_geometry: adds `geometry` and `original_size`, which the `invert_*` functions take.

    Raises InputError for an unknown name or option (listing the valid ones, the closest first) and for a bad value.
    """
    if padding != "edge" and not (_is_number(padding) and 0 <= padding <= 1):
        raise InputError(f"transforms: padding={padding!r} found, a number in [0, 1] or 'edge' expected.")
    if not (_is_number(min_visibility) and 0 <= min_visibility <= 1):
        raise InputError(f"transforms: min_visibility={min_visibility!r} found, a number in [0, 1] expected.")
    steps = _build_steps(specs, _transforms("height", "image", "example"))
    return Pipeline(steps, padding, min_visibility, keep_geometry)


def build_batch(specs: Iterable[Mapping[str, Any]]) -> BatchPipeline:
    """Builds the pipeline of a batch from plain data, `({"name": "mixup"},)`; raises InputError as `build` does."""
    return BatchPipeline(_build_steps(specs, _transforms("batch")))


def _transforms(*kinds: str) -> dict[str, Callable]:
    """The transforms of this module whose first parameter has one of these names."""
    public = {name: value for name, value in globals().items() if inspect.isfunction(value) and name[0] != "_"}
    found = {}
    for name, function in public.items():
        parameters = list(inspect.signature(function).parameters)
        if "rng" in parameters and parameters[0] in kinds:
            found[name] = function
    return found


def _build_steps(specs: Iterable[Mapping[str, Any]], transforms: dict[str, Callable]) -> tuple[Step, ...]:
    return tuple(_build_step(f"transforms[{i}]", spec, transforms) for i, spec in enumerate(specs))


def _build_step(where: str, spec: Mapping[str, Any], transforms: dict[str, Callable]) -> Step:
    # Not isinstance(spec, Mapping): a ConfigDict is none.
    options = dict(spec.items()) if hasattr(spec, "items") else {}
    if "name" not in options:
        valid = ", ".join(sorted(transforms))
        raise InputError(f'{where}: {spec!r} found, {{"name": ..., option: value}} expected; valid names: {valid}.')
    name = options.pop("name")
    if name not in transforms:
        raise InputError(f"{where}: unknown transform {name!r}; valid: {_closest_first(name, transforms)}.")
    function = transforms[name]
    parameters = inspect.signature(function).parameters
    accepted = {p.name: p for p in parameters.values() if p.kind is p.KEYWORD_ONLY}
    hints = get_type_hints(function, include_extras=True)
    for option, value in options.items():
        if option not in accepted:
            valid = _closest_first(option, accepted) or "none"
            raise InputError(f"{where} ({name}): unknown option {option!r}; valid: {valid}.")
        for expected in getattr(hints.get(option), "__metadata__", ()):
            if not expected.test(value):
                raise InputError(f"{where} ({name}): {option}={value!r} found, {expected.words} expected.")
    missing = [p.name for p in accepted.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise InputError(f"{where} ({name}): add the missing {', '.join(map(repr, missing))}.")
    first = next(iter(parameters))
    return Step(function, options, "geometry" if first == "height" else first, "field_of_view" in parameters)


def _closest_first(name: Any, valid: Iterable[str]) -> str:
    valid = sorted(valid)
    close = difflib.get_close_matches(str(name), valid, n=3)
    return ", ".join(close + [other for other in valid if other not in close])


# ----------------------------------------------------------------------------------------------------- back to original


def invert_boxes(boxes: np.ndarray, geometry: np.ndarray, size, original_size) -> np.ndarray:
    """Moves boxes back: f32[N,4] fractions of the current image to f32[N,4] original PIXELS (ymin, xmin, ymax, xmax).

    Clipped to the original image. Exact for resizing, cropping and flipping; after a rotation or shear the result is
    the hull of a hull, larger than the original box.

    Args:
      boxes: f32[N,4], ymin, xmin, ymax, xmax in fractions of the current image.
      geometry: f32[3,3], as kept by a pipeline.
      size: (height, width) of the current image.
      original_size: (height, width) of the original, as kept by a pipeline.
    """
    current = np.asarray(boxes, np.float64) * np.tile(np.asarray(size, np.float64), 2)
    hull = affine.move_hull(current, affine.invert(affine.as_affine(geometry)))
    return np.clip(hull, 0.0, np.tile(np.asarray(original_size, np.float64), 2)).astype(np.float32)


def invert_keypoints(keypoints: np.ndarray, geometry: np.ndarray, size) -> np.ndarray:
    """Moves keypoints back: f32[N,2] (y, x) fractions of an image of `size` to f32[N,2] (y, x) original PIXELS."""
    current = np.asarray(keypoints, np.float64) * np.asarray(size, np.float64)
    return affine.move_points(current, affine.invert(affine.as_affine(geometry))).astype(np.float32)


def invert_mask(mask: np.ndarray, geometry: np.ndarray, original_size) -> np.ndarray:
    """Moves masks back: u8[H,W,K] of 0 and 1, or f32[H,W,K] probabilities, to the original size, in the same type.

    Sampled bilinearly (u8: then cut at one half), so borders come out smooth; pixels that the pipeline cut off are 0.
    Moving probabilities back before the threshold is the more exact of the two.
    """
    size = tuple(int(length) for length in original_size)
    matrix = affine.invert(affine.as_affine(geometry))
    if mask.dtype == np.uint8:
        return (affine.resample(mask * np.uint8(255), matrix, size) >= 128).astype(np.uint8)
    return affine.resample(np.asarray(mask, np.float32), matrix, size)


def _move_boxes(example: Example, matrix: Affine, old_size, size, min_visibility: float) -> None:
    boxes = np.asarray(example["boxes"], np.float64) * np.array(old_size * 2, np.float64)
    hull = affine.move_hull(boxes, matrix) / np.array(size * 2, np.float64)
    clipped = hull.clip(0.0, 1.0)
    area = _areas(clipped)
    keep = (area > 0) & (area >= min_visibility * _areas(hull) * (1.0 - 1e-6))
    example["boxes"] = clipped[keep].astype(np.float32)
    for field in [name for name in example if name.startswith("box_")]:
        example[field] = np.asarray(example[field])[keep]


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _keep_geometry(example: Example, matrix: Affine, size: tuple[int, int]) -> None:
    if "geometry" in example:
        matrix = affine.compose(matrix, affine.as_affine(example["geometry"]))
    else:
        example["original_size"] = np.array(size, np.int32)
    example["geometry"] = np.array([matrix[:3], matrix[3:], (0.0, 0.0, 1.0)], np.float32)


# ---------------------------------------------------------------------------------------------------------- small parts


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, Integral) else (int(size[0]), int(size[1]))


def _spread(rng: np.random.Generator, amount: float) -> float:
    """Uniform in [-amount, amount); several times faster than rng.uniform."""
    return amount * (2.0 * rng.random() - 1.0)


def _up_to(rng: np.random.Generator, highest: int) -> int:
    """A whole number in 0..highest; several times faster than rng.integers."""
    return int((highest + 1) * rng.random())


def _random_start(rng: np.random.Generator, length: int, side: int) -> int:
    """Where a cut of `side` pixels begins along a `length`: anywhere inside, or centred around all of it."""
    return _up_to(rng, length - side) if length >= side else -((side - length) // 2)


def _random_rectangle(height: int, width: int, rng, area, ratio) -> tuple[int, int]:
    """Height and width of a rectangle with a random fraction of the area and a random width / height."""
    pixels = height * width * (area[0] + (area[1] - area[0]) * rng.random())
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = math.exp(low + (high - low) * rng.random())
    rows, columns = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
    return min(max(rows, 1), height), min(max(columns, 1), width)


def _unit_range(image: np.ndarray) -> np.ndarray:
    return np.divide(image, np.float32(255)) if image.dtype == np.uint8 else image


def _field_of_view(example: Example, image: np.ndarray) -> np.ndarray:
    """The example's field of view u8[H,W], or the one that is found in the image."""
    if "field_of_view" in example:
        return example["field_of_view"]
    return annotations.field_of_view(image if image.dtype == np.uint8 else np.rint(image * 255).astype(np.uint8))


def _disc(field_of_view: np.ndarray) -> tuple[float, np.ndarray]:
    """The radius of a field of view u8[H,W] and its middle f64[2], (x, y) in pixels; of an empty one, the image's."""
    top, left, bottom, right = annotations.masks_to_boxes(field_of_view[..., None])[0].astype(float)
    if math.isnan(top):
        top, left, bottom, right = 0.0, 0.0, *map(float, field_of_view.shape)
    return max(bottom - top, right - left) / 2, np.array([left + right, top + bottom]) / 2


def _unit_grid(side: int) -> np.ndarray:
    """The middles (x, y) f64[side,side,2] of `side` x `side` cells between -1 and 1."""
    middles = (2 * np.arange(side) + 1) / side - 1
    return np.stack(np.meshgrid(middles, middles), axis=-1)


def _lookup(mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Whether a mask [H,W] is set at places (x, y) f64[...,2] in pixels, bool[...]; outside it is not."""
    height, width = mask.shape
    x, y = np.moveaxis(np.floor(places).astype(int), -1, 0)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return inside & (mask[y.clip(0, height - 1), x.clip(0, width - 1)] > 0)


def _pick(image: np.ndarray, places: np.ndarray, step: float) -> np.ndarray:
    """Samples f32[H,W,C] at places (x, y) f64[h,w,2] in pixels, `step` pixels apart; what is far apart is averaged."""
    height, width, channels = image.shape
    if 1 / step < affine.SHRINK:
        small = affine.resize(image, max(1, round(height / step)), max(1, round(width / step)))
        places = places * (small.shape[1] / width, small.shape[0] / height)
        image = small
    # cv2 puts the centre of the first pixel at 0 instead of 0.5.
    place = (places - 0.5).astype(np.float32)
    return affine.at_most_one(cv2.remap(image, place, None, cv2.INTER_LINEAR)).reshape(*place.shape[:2], channels)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)


def _quantize(channel: np.ndarray) -> np.ndarray:
    return np.rint(channel * (LEVELS - 1)).astype(np.int32)


def _cumulative(levels: np.ndarray) -> np.ndarray:
    """The fraction f64[LEVELS] of the pixels at or below each level."""
    return np.cumsum(np.bincount(levels.ravel(), minlength=LEVELS)) / levels.size


def _match_channel(channel: np.ndarray, curve: np.ndarray) -> np.ndarray:
    levels = _quantize(channel)
    matched = np.interp(_cumulative(levels), np.linspace(0, 1, len(curve)), curve)
    return matched.astype(np.float32)[levels]


def _map_lightness(image: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Applies a function of u8[H,W] to a grey image, or to the CIE L* of a colour image."""
    if image.shape[2] == 1:
        return _unit_range(function(np.rint(image[..., 0] * 255).astype(np.uint8)))[..., None]
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2Lab)  # f32: L* in [0,100]
    lab[..., 0] = function(np.rint(lab[..., 0] * 2.55).astype(np.uint8)) / np.float32(2.55)
    return cv2.cvtColor(lab, cv2.COLOR_Lab2RGB).clip(0.0, 1.0)


def _check_example(example: Example) -> None:
    if "image" not in example:
        raise InputError(f"example: no field 'image' among {sorted(example)}.")
    image = example["image"]
    _check_field(example, "image", (np.uint8, np.float32), (None, None, None))
    height, width, channels = image.shape
    if channels not in (1, 3) or image.size == 0:
        raise InputError(f"example field 'image': shape {image.shape} found, [H,W,1] or [H,W,3] expected.")
    if image.dtype == np.float32:
        low, high = image.min(), image.max()
        if not (low >= 0 and high <= 1):
            raise InputError(f"example field 'image': values in [{low}, {high}] found, floats in [0,1] expected.")
    for field, types, shape in (
        ("masks", (np.uint8,), (height, width, None)),
        ("second_masks", (np.uint8,), (height, width, None)),
        ("field_of_view", (np.uint8,), (height, width)),
        ("boxes", (np.float32, np.float64), (None, 4)),
        ("box_masks", (np.uint8,), (None, height, width)),
        ("keypoints", (np.float32, np.float64), (None, 2)),
        ("moving", (np.uint8, np.float32), image.shape),
        ("moving_keypoints", (np.float32, np.float64), (None, 2)),
        ("spacing_mm", (np.float32, np.float64), (2,)),
    ):
        if field in example:
            _check_field(example, field, types, shape)
    if "boxes" in example:
        boxes = len(example["boxes"])
        for field, value in example.items():
            if field.startswith("box_") and len(value) != boxes:
                raise InputError(
                    f"example field '{field}': {len(value)} rows found, one for each of {boxes} boxes expected."
                )


def _check_field(example: Example, field: str, types: tuple, shape: tuple[int | None, ...]) -> None:
    """Checks the type and shape of an array; None in `shape` is any length."""
    value = example[field]
    is_array = isinstance(value, np.ndarray) and value.dtype in types and value.ndim == len(shape)
    if is_array and all(wanted in (None, length) for wanted, length in zip(shape, value.shape)):
        return
    found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
    expected = " or ".join(t.__name__ for t in types) + str(["any" if n is None else n for n in shape]).replace("'", "")
    raise InputError(f"example field '{field}': {found} found, {expected} expected.")


def _check_mixable(batch: Example) -> None:
    found = [field for field in ("boxes", "masks", "keypoints", "field_of_view", "second_view") if field in batch]
    if found:
        raise InputError(f"batch has {found}, which cannot be mixed; drop these fields or mixup and cutmix.")
    for field in ("image", "labels", "target"):
        if field in batch and not np.issubdtype(batch[field].dtype, np.floating):
            raise InputError(f"batch field '{field}': {batch[field].dtype} found, floats expected to mix.")


def _draw_mixture(batch: Example, rng: np.random.Generator, alpha: float, probability: float, per: str):
    """The weight f32[B] of every row itself, and the row i64[B] it is mixed with: itself for padding rows."""
    _check_mixable(batch)
    rows = np.arange(len(batch["image"]))
    partner = rows.copy()
    valid = np.flatnonzero(batch["valid"]) if "valid" in batch else rows
    partner[valid] = rng.permutation(valid)
    draws = len(rows) if per == "row" else 1
    weight = np.where(rng.random(draws) < probability, rng.beta(alpha, alpha, draws), 1.0)
    return np.where(partner == rows, 1.0, weight).astype(np.float32), partner


def _mix_labels(batch: Example, weight: np.ndarray, partner: np.ndarray) -> Example:
    """Mixes labels and target; 0 x unknown is 0, so only an unknown with a weight makes the mixture unknown."""
    for field in ("labels", "target"):
        if field in batch:
            values = batch[field]
            own = weight.astype(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
            batch[field] = _weighted(own, values) + _weighted(1 - own, values[partner])
    return batch


def _weighted(weight: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(weight == 0, 0, weight * values).astype(values.dtype)

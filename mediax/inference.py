"""Views of an image at inference: mirrored or shifted copies, and windows that overlap; their outputs become its own.

What is averaged are a task's outputs, on which its loss is defined (logits, standardised numbers), not probabilities;
so nnU-Net does too. Windows follow nnU-Net (Isensee et al., Nature Methods 18, 2021): evenly spread, the first and the
last flush with the image's border, each output weighted by a Gaussian whose sigma is an eighth of the window's sides. A
side shorter than the window's is padded with zeros, black, as transforms pad, and cut to size again.

A task says by its `image_axes` which axes of its outputs are the rows and the columns of the image: two, or none where
an output is of the image as a whole. A task without that attribute has outputs that cannot be put together, unless it
turns those of a mirrored image back itself, in a method `mirrored`, for flips alone. Where a mean means nothing, as of
boxes that were found, it has a method `merged`, too: it makes one of the outputs of the views, which lie along a first
axis, those of the image itself first.

In an image whose columns are turned, what is called left is seen where the right is. So of a task that names the last
axis of its outputs, by `output_names`, those of names that are each other's with Left and Right exchanged trade places,
and with Up and Down if rows are turned.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mediax import catalog, laterality
from mediax.batch import Batch
from mediax.errors import InputError
from mediax.model import Model, Tree
from mediax.operators import mirror

FLIPS = {"horizontal": (False, True), "vertical": (True, False), "both": (True, True)}  # whether (rows, columns) turn
ROWS_AND_COLUMNS = (1, 2)  # of images f32[B,H,W,C]
SIGMA = 1 / 8  # of a window's side

Network = Callable[[jax.Array], dict[str, Any]]  # images f32[B,H,W,C] -> the outputs of each task


@dataclass(frozen=True)
class Views:
    """Which views of an image the network sees.

    `flips` names the mirrored copies that are seen beside the image itself: "horizontal" (left-right), "vertical"
    (top-bottom), "both" (turned by 180 degrees). `shift` adds eight copies that are moved by so many pixels, up, down,
    left, right and diagonally, black where they show nothing. `window` (height, width) cuts larger images into windows
    of that size, of which neighbours share at least the fraction `overlap` of their sides; none sees the whole image.
    """

    flips: tuple[str, ...] = ()
    shift: int = 0
    window: tuple[int, ...] = ()
    overlap: float = 0.5


WHOLE = Views()  # the image itself, as a whole


def check(views: Views, tasks: Mapping[str, Any], field: str) -> None:
    """Raises InputError if the views, that the config `field` asks for, are none or none of what the tasks predict."""
    for flip in views.flips:
        if flip not in FLIPS:
            raise InputError(f"config field {field}.flips: no flip {flip!r}; {catalog.suggestion(flip, FLIPS)}")
    if type(views.shift) is not int or views.shift < 0:
        raise InputError(f"config field {field}.shift is {views.shift!r}: expected a number of pixels, 0 or more")
    if views.window and (len(views.window) != 2 or not all(type(side) is int and side > 0 for side in views.window)):
        raise InputError(f"config field {field}.window is {views.window!r}: expected (height, width) in pixels, or ()")
    if not 0 <= views.overlap < 1:
        raise InputError(f"config field {field}.overlap is {views.overlap}: expected 0 to below 1")
    for name, task in tasks.items():
        axes = getattr(task, "image_axes", None)
        advice = f"or name other tasks in {field}.tasks"
        if views.flips and axes is None and not hasattr(task, "mirrored"):
            raise InputError(
                f"config field {field}.flips: the outputs of the task {name!r} cannot be flipped back and put "
                f"together; leave it empty, {advice}"
            )
        if views.shift and axes != ():
            raise InputError(
                f"config field {field}.shift: the outputs of the task {name!r} are of places in the image, so those of "
                f"shifted copies cannot be averaged; leave it 0, {advice}"
            )
        if views.window and not axes:
            raise InputError(
                f"config field {field}.window: the outputs of the task {name!r} have no pixels, so those of windows "
                f"cannot be put together; leave it empty, {advice}"
            )


def forward(
    model: Model, tasks: Mapping[str, Any], params: Tree, batch_stats: Tree, batch: Batch, views: Views
) -> dict[str, Any]:
    """Runs the network in inference mode on all views of the images; gives the outputs of each task, as `apply` does.

    Views are taken one after another, so that memory is that of one window, beside the whole image's outputs. Nothing
    of the batch but its images is moved.
    """

    def network(image: jax.Array) -> dict[str, Any]:
        return model.forward(tasks, params, batch_stats, batch | {"image": image}, key=jax.random.key(0))[0]

    axes = {name: getattr(task, "image_axes", ()) for name, task in tasks.items()}
    if views.shift:
        network = _with_shifts(network, views.shift, tasks)
    if views.flips:
        network = _with_flips(network, views.flips, tasks)
    if views.window:
        network = _in_windows(network, views.window, views.overlap, axes)
    return network(batch["image"])


def _with_shifts(network: Network, shift: int, tasks: Mapping[str, Any]) -> Network:
    """The mean of what a network says of images and of their copies that are moved by `shift` pixels."""
    corners = jnp.array(list(itertools.product((0, shift, 2 * shift), repeat=2)))

    def averaged(image: jax.Array) -> dict[str, Any]:
        padded = jnp.pad(image, ((0, 0), (shift, shift), (shift, shift), (0, 0)))

        def moved(corner: jax.Array) -> dict[str, Any]:
            return network(jax.lax.dynamic_slice(padded, (0, *corner, 0), image.shape))

        return _together(moved, corners, tasks)

    return averaged


def _with_flips(network: Network, flips: Sequence[str], tasks: Mapping[str, Any]) -> Network:
    """What a network says of images and of their mirrored copies, put together."""
    turns = jnp.array([(False, False), *(FLIPS[flip] for flip in flips)])

    def of_all(image: jax.Array) -> dict[str, Any]:
        def turned(turn: jax.Array) -> dict[str, Any]:
            outputs = network(mirror.pixels(image, turn, ROWS_AND_COLUMNS))
            return {name: _turned_back(tasks[name], output, turn) for name, output in outputs.items()}

        return _together(turned, turns, tasks)

    return of_all


def _turned_back(task: Any, output: Any, turn: jax.Array) -> Any:
    """What a task would say of images, from what it says of their mirrored copies."""
    if hasattr(task, "mirrored"):
        return task.mirrored(output, turn)
    output = mirror.pixels(output, turn, getattr(task, "image_axes", ()))
    return laterality.exchanged(output, turn, getattr(task, "output_names", ()), -1)


def names_of(task: Any) -> Sequence[str]:
    """What a task tells apart: the names of its outputs or of its boxes, none if it names nothing."""
    found = (getattr(task, attribute, ()) for attribute in ("output_names", "names", "box_classes"))
    return next(filter(None, found), ())


def _together(
    outputs_of: Callable[[jax.Array], dict[str, Any]], views: jax.Array, tasks: Mapping[str, Any]
) -> dict[str, Any]:
    """The mean of the outputs of the `views`, one along the first axis after another, or what a task merges them to."""
    merging = [name for name, task in tasks.items() if hasattr(task, "merged")]

    def add(total, view):
        outputs = outputs_of(view)
        summed = {name: jax.tree.map(jnp.add, total[name], outputs[name]) for name in total}
        return summed, {name: outputs[name] for name in merging}

    shapes = jax.eval_shape(outputs_of, views[0])
    zeros = {name: jax.tree.map(jnp.zeros_like, one) for name, one in shapes.items() if name not in merging}
    total, stacked = jax.lax.scan(add, zeros, views)
    means = jax.tree.map(lambda one: one / len(views), total)
    return means | {name: tasks[name].merged(outputs) for name, outputs in stacked.items()}


def _in_windows(network: Network, window: Sequence[int], overlap: float, axes: Mapping[str, Sequence[int]]) -> Network:
    """The weighted mean of what a network says of the windows of images."""
    weight = gaussian(window)

    def blended(image: jax.Array) -> dict[str, jax.Array]:
        size = image.shape[1:3]
        image = _padded(image, window)
        places = corners(image.shape[1:3], window, overlap)

        def add(total, corner):
            outputs = network(jax.lax.dynamic_slice(image, (0, *corner, 0), (len(image), *window, image.shape[3])))
            return {
                name: _added(total[name], output * _spread(weight, axes[name], output.ndim), corner, axes[name])
                for name, output in outputs.items()
            }, None

        of_window = jax.eval_shape(network, image[:, : window[0], : window[1]])
        zeros = {
            name: jnp.zeros(_resized(one.shape, image.shape[1:3], axes[name]), one.dtype)
            for name, one in of_window.items()
        }
        total, _ = jax.lax.scan(add, zeros, jnp.array(places))
        weights = _total(weight, places, image.shape[1:3])
        return {
            name: _cut(outputs / _spread(weights, axes[name], outputs.ndim), size, axes[name])
            for name, outputs in total.items()
        }

    return blended


def corners(size: Sequence[int], window: Sequence[int], overlap: float) -> list[tuple[int, int]]:
    """The first (row, column) of each window of an image of that `size`, which is the window's at least."""
    return list(itertools.product(*(_starts(length, side, overlap) for length, side in zip(size, window))))


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """As few as overlap by at least the fraction `overlap`, evenly spread."""
    spare = length - side
    gaps = math.ceil(spare / max(1, math.floor(side * (1 - overlap))))
    return [round(spare * number / max(gaps, 1)) for number in range(gaps + 1)]


def gaussian(window: Sequence[int]) -> np.ndarray:
    """The weights f32[h,w] of a window's outputs: 1 in its middle, 1e-7 in its corners."""
    height, width = (np.exp(-0.5 * ((np.arange(side) + 0.5 - side / 2) / (SIGMA * side)) ** 2) for side in window)
    return np.outer(height, width).astype(np.float32)


def _added(total: jax.Array, output: jax.Array, corner: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Adds a window's output to the whole at the place of its corner (row, column)."""
    place = [0] * total.ndim
    for axis, offset in zip(axes, corner):
        place[axis] = offset
    here = jax.lax.dynamic_slice(total, place, output.shape)
    return jax.lax.dynamic_update_slice(total, here + output, place)


def _spread(image: np.ndarray, axes: Sequence[int], ndim: int) -> np.ndarray:
    """f[H,W] with axes of length 1 around, so that it broadcasts to outputs whose `axes` are rows and columns."""
    return np.expand_dims(image, [axis for axis in range(ndim) if axis not in axes])


def _resized(shape: Sequence[int], size: Sequence[int], axes: Sequence[int]) -> list[int]:
    """The shape of an output of an image of another size."""
    shape = list(shape)
    for axis, side in zip(axes, size):
        shape[axis] = side
    return shape


def _padded(image: jax.Array, window: Sequence[int]) -> jax.Array:
    """Images of the window's size at least, zeros below and on the right."""
    missing = [(0, max(0, side - length)) for side, length in zip(window, image.shape[1:3])]
    return jnp.pad(image, ((0, 0), *missing, (0, 0)))


def _cut(output: jax.Array, size: Sequence[int], axes: Sequence[int]) -> jax.Array:
    return jax.lax.slice(output, [0] * output.ndim, _resized(output.shape, size, axes))


def _total(weight: np.ndarray, places: Sequence[tuple[int, int]], size: Sequence[int]) -> np.ndarray:
    """The sum f32[H,W] of the windows' weights f32[h,w] at each pixel."""
    total = np.zeros(size, np.float32)
    for row, column in places:
        total[row : row + weight.shape[0], column : column + weight.shape[1]] += weight
    return total

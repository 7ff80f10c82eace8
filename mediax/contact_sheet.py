"""A sheet of a dataset's examples with their annotations, to see at a glance whether all of it was read rightly."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mediax.figures import COLOURS, DASHES, DOTS_PER_INCH, STYLE
from mediax.files import replace_file

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.axes import Axes

TILE, GAP, LINE = 2.4, 0.1, 0.14  # inches
LINE_LENGTH = 38  # characters below an image


def draw(
    path: str | Path,
    examples: Sequence[Mapping[str, Any]],
    *,
    classes: Sequence[str] = (),
    box_classes: Sequence[str] = (),
    mask_classes: Sequence[str] = (),
    targets: Sequence[str] = (),
    columns: int = 6,
) -> None:
    """Draws images with the contours of masks, boxes, polygons and points, and their labels and targets as text.

    Contours and boxes have the colour of their class, which a legend names; masks that are unknown are not drawn. Of a
    pair both images are drawn, the moving one to the right; corresponding points have one colour. No ids are drawn.

    Args:
      path: the PNG file to write.
      examples: what a dataset's `read` gives; see mediax/batch.py for the fields.
      classes, box_classes, mask_classes, targets: the names of `labels`, `box_labels`, channels of `masks`, `target`.
      columns: images in a row.

    Raises:
      InputError: the file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    looks = {
        name: {"color": COLOURS[k % len(COLOURS)], "linestyle": DASHES[k // len(COLOURS) % len(DASHES)]}
        for k, name in enumerate(dict.fromkeys([*mask_classes, *box_classes]))
    }
    examples = [part for example in examples for part in parts(example)]
    texts = [describe(example, classes, targets) for example in examples]
    columns = min(columns, len(examples))
    row_height = TILE + GAP + LINE * max(map(len, texts))
    width, body = columns * (TILE + GAP) + GAP, math.ceil(len(examples) / columns) * row_height
    legend = LINE * 1.4 * math.ceil(len(looks) / columns) + GAP if looks else GAP
    height = body + legend
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
        for place, (example, text) in enumerate(zip(examples, texts)):
            left, top = GAP + place % columns * (TILE + GAP), legend + place // columns * row_height
            axes = figure.add_axes((left / width, 1 - (top + TILE) / height, TILE / width, TILE / height))
            show(axes, example, box_classes, mask_classes, looks)
            below = 1 - (top + TILE + 0.03) / height
            figure.text(left / width, below, "\n".join(text), fontsize=6.5, va="top", linespacing=1.25)
        for k, (name, look) in enumerate(looks.items()):
            x, y = GAP + k % columns * (TILE + GAP), LINE * 1.4 * (k // columns + 0.7)
            axes = figure.add_axes((x / width, 1 - y / height, 0.3 / width, 0.01 / height))
            axes.plot([0, 1], [0, 0], linewidth=2, clip_on=False, **look)
            axes.axis("off")
            figure.text((x + 0.38) / width, 1 - y / height, name, fontsize=7.5, va="center")
        png = io.BytesIO()
        figure.savefig(png, format="png")
    replace_file(path, png.getvalue())


def parts(example: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What is drawn of an example, one image each: itself, or the two images of a pair with a `caption`."""
    if "moving" not in example:
        return [example]
    moving = {"image": example["moving"], "keypoints": example["moving_keypoints"], "caption": "moving"}
    return [{**example, "caption": "fixed"}, moving]


def describe(example: Mapping[str, Any], classes: Sequence[str], targets: Sequence[str], most: int = 5) -> list[str]:
    """The lines below an image: the classes that are present, how many are unknown, the targets, a pair's points."""
    labels = np.asarray(example.get("labels", ()), np.float32)
    lines = [name if label == 1 else f"{name} {label:.2f}" for name, label in zip(classes, labels) if label > 0]
    lines = [*lines[: most - 1], f"and {len(lines) - most + 1} more"] if len(lines) > most else lines
    unknown = int(np.isnan(labels).sum())
    if len(labels) and not lines:
        lines = ["no class known" if unknown == len(labels) else "no class present"]
    if unknown and unknown < len(labels):
        lines.append(f"{unknown} of {len(labels)} unknown")
    lines += [f"{name}: {value:g}" for name, value in zip(targets, example.get("target", ()))]
    if not np.all(valid := example.get("mask_valid", ())):
        lines.append(f"{int(np.sum(np.logical_not(valid)))} of {len(valid)} masks unknown")
    if not example.get("boxes_known", True):
        lines.append("boxes unknown")
    if "caption" in example:
        points = example["keypoints"]
        lines.append(
            f"{example['caption']}, " + ("points unknown" if np.isnan(points).any() else f"{len(points)} points")
        )
    return [textwrap.shorten(line, LINE_LENGTH, placeholder="…") for line in lines]


def show(
    axes: Axes,
    example: Mapping[str, Any],
    box_classes: Sequence[str],
    mask_classes: Sequence[str],
    looks: Mapping[str, Mapping[str, str]],
) -> None:
    """Draws one image with its annotations."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    image = example["image"]
    height, width = image.shape[:2]
    highest = 255 if image.dtype == np.uint8 else max(int(image.max()), 1)  # 16-bit files seldom use all of it
    shown = image[..., 0] if image.shape[-1] == 1 else image / highest
    axes.imshow(shown, cmap="gray", vmin=0, vmax=highest, extent=(0, width, height, 0))
    axes.axis("off")
    masks = example.get("masks", np.zeros((1, 1, 0)))
    known = example.get("mask_valid", np.ones(masks.shape[-1], bool))
    # The smallest one last: on a border that two structures share it would be hidden by one that surrounds it.
    for structure in np.argsort(-masks.sum(axis=(0, 1), dtype=np.int64), kind="stable"):
        name, mask = mask_classes[structure], masks[..., structure]
        if known[structure] and mask.any():
            # A border of zeros closes the contours of masks that touch the image's edge.
            x, y = (np.arange(side + 2) - 0.5 for side in mask.shape[::-1])
            look = looks[name]
            axes.contour(
                *(x, y, np.pad(mask, 1), [0.5]), colors=look["color"], linestyles=look["linestyle"], linewidths=0.8
            )
    names = [box_classes[label] for label in example.get("box_labels", ())]
    for name, (ymin, xmin, ymax, xmax) in zip(names, example.get("boxes", ())):
        corner, size = (xmin * width, ymin * height), ((xmax - xmin) * width, (ymax - ymin) * height)
        axes.add_patch(Rectangle(corner, *size, fill=False, linewidth=1.2, **looks[name]))
    for name, polygon in zip(names, example.get("polygons", ())):
        closed = np.concatenate([polygon, polygon[:1]])
        axes.plot(closed[:, 1] * width, closed[:, 0] * height, linewidth=0.8, **looks[name])
    points = np.asarray(example.get("keypoints", np.zeros((0, 2))))
    hues = colormaps["hsv"](np.linspace(0.14, 0.88, len(points)))  # without red, which a retina would hide
    look = {"color": hues if "caption" in example else "yellow"}
    look |= {"s": 22, "linewidths": 1.1} if len(points) < 40 else {"s": 5, "linewidths": 0.6}
    axes.scatter(points[:, 1] * width, points[:, 0] * height, marker="x", zorder=3, **look)
    axes.set(xlim=(0, width), ylim=(height, 0))

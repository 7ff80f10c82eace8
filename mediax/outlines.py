"""Draws what was found in an image onto it: outlines of masks and boxes, and a panel of scores beside it."""

import itertools

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from mediax.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from mediax.findings import Findings

SMALLEST = 384  # pixels: an image with a shorter side is enlarged by a whole factor, so that words fit
WORDS_SHARE = 1 / 36  # of the shorter side: the height of the letters
LINE_SHARE = 1 / 6  # of the letters' height: the thickness of lines
SPACING = 1.4  # of the letters' height: from line to line of text
COLOURS = (ORANGE, SKY, GREEN, RED, PURPLE, BLUE)  # the brightest first: images are dark
TEXT, BACKGROUND = "#FFFFFF", "#000000"


def draw(image: np.ndarray, findings: Findings) -> np.ndarray:
    """Draws findings onto the image that they refer to.

    Structures and box labels have a colour each; of the boxes only those that are called are drawn. Scores stand in a
    panel on the right, where they hide no pixel: those that are called first and in white, the others in grey.

    Args:
      image: u8[H,W,C], C 1 or 3.

    Returns:
      u8[h,w,3], the image and the panel; the image's corner is that of the result.
    """
    scale = max(1, -(-SMALLEST // min(image.shape[:2])))
    image = np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
    canvas = np.ascontiguousarray(image.repeat(scale, axis=0).repeat(scale, axis=1))
    height, width = canvas.shape[:2]
    letters = max(10, round(min(height, width) * WORDS_SHARE))
    thickness = max(1, round(letters * LINE_SHARE))
    colours = dict(zip((*findings.masks, *findings.box_labels), itertools.cycle(COLOURS)))
    called = [box for box in findings.boxes if box.called]
    for name, mask in findings.masks.items():
        _outline(canvas, mask, scale, colours[name], thickness)
    for box in called:
        if box.mask is not None:
            _outline(canvas, box.mask, scale, colours[box.label], thickness)
    picture = Image.fromarray(canvas)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(letters)
    for box in called:
        ymin, xmin, ymax, xmax = np.array(box.corners) * np.tile((height, width), 2)
        pen.rectangle(
            (xmin, ymin, max(xmin, xmax - 1), max(ymin, ymax - 1)), outline=colours[box.label], width=thickness
        )
        _write(pen, font, (xmin, ymin), f"{box.label} {box.score:.2f}", colours[box.label])
    return _with_panel(picture, _lines(findings, colours), font, letters)


def _outline(canvas: np.ndarray, mask: np.ndarray, scale: int, colour: str, thickness: int) -> None:
    mask = mask.astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, ImageColor.getrgb(colour), thickness)


def _write(pen: ImageDraw.ImageDraw, font, place: tuple[float, float], text: str, colour: str) -> None:
    """Writes above a place, or below it where there is no room above, and not beyond the right border."""
    place = max(0, min(place[0], pen.im.size[0] - font.getlength(text))), place[1]
    anchor = "lb" if pen.textbbox(place, text, font=font, anchor="lb")[1] >= 0 else "lt"
    pen.rectangle(pen.textbbox(place, text, font=font, anchor=anchor), fill=BACKGROUND)
    pen.text(place, text, fill=colour, font=font, anchor=anchor)


def _lines(findings: Findings, colours: dict[str, str]) -> list[tuple[str, str]]:
    """(text, colour) of the panel: the structures of masks, then the scores, those that are called first."""
    lines = [(name, colours[name]) for name in findings.masks]
    called = {name: findings.decisions.get(name, True) for name in findings.scores}
    for name in sorted(findings.scores, key=lambda name: (not called[name], -findings.scores[name])):
        lines.append((f"{name} {findings.scores[name]:.3g}", TEXT if called[name] else GREY))
    return lines


def _with_panel(picture: Image.Image, lines: list[tuple[str, str]], font, letters: int) -> np.ndarray:
    room = max(1, int(picture.height / (SPACING * letters)) - 1)
    if len(lines) > room:
        lines = [*lines[: room - 1], (f"and {len(lines) - room + 1} more", GREY)]
    if not lines:
        return np.asarray(picture)
    panel = letters + round(max(font.getlength(text) for text, _ in lines)) + letters
    whole = Image.new("RGB", (picture.width + panel, picture.height), BACKGROUND)
    whole.paste(picture, (0, 0))
    pen = ImageDraw.Draw(whole)
    for number, (text, colour) in enumerate(lines):
        pen.text((picture.width + letters, letters / 2 + SPACING * letters * number), text, fill=colour, font=font)
    return np.asarray(whole)

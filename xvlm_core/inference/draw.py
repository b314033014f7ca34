"""Annotated pictures: the box, the phrase and its probability, with Pillow alone."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from xvlm_core.data.text import sanitize
from xvlm_core.errors import OutputError

if TYPE_CHECKING:
    from xvlm_core.inference.predictor import Grounding

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
RectXYXY = tuple[int, int, int, int]

PROBABLE = 0.5
"""From this probability on a box is drawn solid; below, dashed and with a question mark."""

LEGIBLE_SIDE_PX = 384
"""Pictures whose longer side is below are enlarged by a whole number."""

_MAX_SIDE_PX = 4096
_PALETTE: tuple[Colour, ...] = (
    (230, 25, 75),
    (0, 130, 200),
    (60, 180, 75),
    (245, 130, 48),
    (145, 30, 180),
    (70, 210, 220),
    (240, 50, 230),
    (170, 110, 40),
)
_BLACK, _WHITE, _GREY = (0, 0, 0), (255, 255, 255), (128, 128, 128)
_PADDING = 3
_ELLIPSIS = "..."
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
"""Taken, where installed, for phrases beyond ASCII: Pillow's own font draws boxes for those."""


@dataclass(frozen=True)
class _Label:
    """A text measured for drawing: the size of its plate, and where the text starts in it."""

    text: str
    font: Font
    width: int
    height: int
    text_x: int
    text_y: int


def colour_of(index: int) -> Colour:
    """The colour of phrase number ``index``: fixed ones first, then ever new hues."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    turn = (index - len(_PALETTE)) * 0.618033988749895 % 1.0
    red, green, blue = colorsys.hsv_to_rgb(turn, 0.85, 0.55 + 0.35 * (index % 2))
    return round(red * 255), round(green * 255), round(blue * 255)


def scale_of(width: int, height: int) -> int:
    """The whole number by which a picture of this size is enlarged for legibility."""
    wanted = math.ceil(LEGIBLE_SIDE_PX / max(width, height))
    return max(1, min(wanted, _MAX_SIDE_PX // max(width, height)))


def annotate(image: Image.Image, groundings: Sequence[Grounding]) -> Image.Image:
    """A copy of the picture with each phrase's box and label.

    Phrases have distinct colours. Labels stay inside the picture and keep off each other while
    there is room. A phrase that is probably not there (below ``PROBABLE``) is drawn dashed, greyed
    and with a question mark.

    Args:
        image: the upright picture that the boxes belong to (see ``read_picture``).
        groundings: what was found.

    Returns:
        RGB; small pictures are enlarged by :func:`scale_of`.
    """
    scale = scale_of(*image.size)
    size = (image.width * scale, image.height * scale)
    canvas = image.convert("RGB")
    canvas = canvas.resize(size, Image.Resampling.BICUBIC) if scale > 1 else canvas.copy()
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(max(size) / 300))
    font_size = max(12, round(max(size) / 40))
    rects = [_rect(grounding, scale, size) for grounding in groundings]
    for index, (grounding, rect) in enumerate(zip(groundings, rects, strict=True)):
        _draw_box(draw, rect, line, colour_of(index), dashed=grounding.probability < PROBABLE)
    taken: list[RectXYXY] = []
    for index, (grounding, rect) in enumerate(zip(groundings, rects, strict=True)):
        label = _measure(draw, font_size, grounding, size[0])
        place = _place(label, rect, taken, size)
        taken.append(place)
        _draw_label(draw, label, place, colour_of(index), grounding.probability < PROBABLE)
    return canvas


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file marked ``Software: xvlm``."""
    file = io.BytesIO()
    mark = PngInfo()
    mark.add_text("Software", "xvlm")
    image.save(file, "PNG", pnginfo=mark)
    return file.getvalue()


def save_png(image: Image.Image, path: Path) -> Path:
    """Write the picture as PNG, marked ``Software: xvlm``; its folder is made if missing.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(image))
    except OSError as error:
        raise OutputError(
            f"picture {path} cannot be written: {error.strerror or error}",
            where=str(path),
            try_="name a folder that can be written",
        ) from error
    return path


# ------------------------------------------------------------------ boxes


def _rect(grounding: Grounding, scale: int, size: tuple[int, int]) -> RectXYXY:
    """First and last pixel of the box on the canvas; at least one pixel, inside it."""
    width, height = size
    x1, y1, x2, y2 = (v * scale for v in grounding.box_xyxy_px)
    left = min(max(0, math.floor(x1)), width - 1)
    top = min(max(0, math.floor(y1)), height - 1)
    right = max(left, min(math.ceil(x2), width) - 1)
    bottom = max(top, min(math.ceil(y2), height) - 1)
    return left, top, right, bottom


def _draw_box(
    draw: ImageDraw.ImageDraw, rect: RectXYXY, line: int, colour: Colour, *, dashed: bool
) -> None:
    left, top, right, bottom = rect
    if not dashed:
        # A thin dark line inside keeps the box visible on its own colour.
        thick = line + 1
        if right - left > 2 * thick and bottom - top > 2 * thick:
            draw.rectangle((left, top, right, bottom), outline=_BLACK, width=thick)
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
        return
    dash = 4 * line
    for start in range(left, right + 1, 2 * dash):
        end = min(start + dash - 1, right)
        draw.rectangle((start, top, end, min(top + line - 1, bottom)), fill=colour)
        draw.rectangle((start, max(bottom - line + 1, top), end, bottom), fill=colour)
    for start in range(top, bottom + 1, 2 * dash):
        end = min(start + dash - 1, bottom)
        draw.rectangle((left, start, min(left + line - 1, right), end), fill=colour)
        draw.rectangle((max(right - line + 1, left), start, right, end), fill=colour)


# ------------------------------------------------------------------ labels


def _measure(draw: ImageDraw.ImageDraw, font_size: int, grounding: Grounding, width: int) -> _Label:
    """The label, its phrase shortened until it fits into the width of the picture."""
    phrase = sanitize(grounding.phrase) or _ELLIPSIS
    font = _font(font_size, beyond_ascii=not phrase.isascii())
    mark = "?" if grounding.probability < PROBABLE else ""
    ending = f"{mark}  {_percent(grounding.probability)}"
    text, kept = phrase + ending, len(phrase)
    while True:
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        # Height from letters that every label could have, so that plates are equally high.
        _, low_top, _, low_bottom = draw.textbbox((0, 0), "Ag|", font=font)
        top, bottom = min(top, low_top), max(bottom, low_bottom)
        label = _Label(
            text,
            font,
            math.ceil(right - left) + 2 * _PADDING,
            math.ceil(bottom - top) + 2 * _PADDING,
            _PADDING - math.floor(left),
            _PADDING - math.floor(top),
        )
        if label.width <= width or kept == 0:
            return label
        kept = min(kept - 1, kept * width // label.width + 1)
        text = (phrase[:kept].rstrip() + _ELLIPSIS if kept else "") + ending


@lru_cache(maxsize=16)
def _font(size: int, *, beyond_ascii: bool) -> Font:
    for name in _WIDE_FONTS if beyond_ascii else ():
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _percent(probability: float) -> str:
    """``97%``; never 0 or 100 for what is only close to it."""
    if 0 < probability < 0.01:
        return "<1%"
    if 0.99 < probability < 1:
        return ">99%"
    return f"{probability:.0%}"


def _place(
    label: _Label, rect: RectXYXY, taken: Sequence[RectXYXY], size: tuple[int, int]
) -> RectXYXY:
    """Where the label goes: near its box, inside the picture, off the other labels if possible."""
    best: RectXYXY | None = None
    least = math.inf
    for place in _places(label, rect, size):
        covered = sum(_overlap(place, other) for other in taken)
        if covered < least:
            best, least = place, covered
        if covered == 0:
            break
    assert best is not None, "there is always a place"
    return best


def _places(label: _Label, rect: RectXYXY, size: tuple[int, int]) -> Iterator[RectXYXY]:
    """Places by preference: above, below, inside the box, then anywhere, the nearest first."""
    width, height = size
    left, top, right, bottom = rect
    above, below = top - label.height, bottom + 1
    columns = (left, right + 1 - label.width)
    rows = [row for row in (above, below) if 0 <= row <= height - label.height]
    near: Iterable[tuple[int, int]] = [
        (x, y) for y in (*rows, top, bottom + 1 - label.height) for x in columns
    ]
    last_x, last_y = max(0, width - label.width), max(0, height - label.height)
    grid_x = range(0, last_x + 1, max(1, label.width // 2))
    grid_y = range(0, last_y + 1, max(1, label.height // 2))
    anywhere = sorted(
        ((x, y) for y in (*grid_y, last_y) for x in (*grid_x, last_x)),
        key=lambda at: abs(at[0] - left) + abs(at[1] - top),
    )
    for x, y in (*near, *anywhere):
        x, y = min(max(0, x), last_x), min(max(0, y), last_y)
        yield x, y, min(x + label.width, width), min(y + label.height, height)


def _overlap(a: RectXYXY, b: RectXYXY) -> int:
    across = min(a[2], b[2]) - max(a[0], b[0])
    down = min(a[3], b[3]) - max(a[1], b[1])
    return max(0, across) * max(0, down)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    label: _Label,
    place: RectXYXY,
    colour: Colour,
    improbable: bool,
) -> None:
    x1, y1, x2, y2 = place
    plate = _GREY if improbable else colour
    draw.rectangle((x1, y1, x2 - 1, y2 - 1), fill=plate, outline=colour)
    position = (x1 + label.text_x, y1 + label.text_y)
    draw.text(position, label.text, fill=_ink(plate), font=label.font)


def _ink(plate: Colour) -> Colour:
    """Black or white, whichever has the greater contrast with the plate (WCAG 2)."""

    def linear(value: int) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = map(linear, plate)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return _BLACK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else _WHITE

"""Boxes and labels on pictures, with Pillow alone: colours, fonts, and where a label has room."""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
RectXYXY = tuple[int, int, int, int]

LEGIBLE_SIDE_PX = 384
"""Pictures whose longer side is below are enlarged by a whole number."""

_MAX_SIDE_PX = 4096

PADDING = 3
"""Pixels around the text of a label."""

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
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")
"""Taken, where installed, for phrases beyond ASCII: Pillow's own font draws boxes for those."""


@dataclass(frozen=True)
class Label:
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


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file marked ``Software: xvlm``."""
    file = io.BytesIO()
    mark = PngInfo()
    mark.add_text("Software", "xvlm")
    image.save(file, "PNG", pnginfo=mark)
    return file.getvalue()


def rect_of(
    box_xyxy_px: Sequence[float], across: float, down: float, size: tuple[int, int]
) -> RectXYXY:
    """First and last pixel of a box on a canvas; at least one pixel, inside it.

    Args:
        box_xyxy_px: in the picture.
        across: pixels of the canvas a pixel of the picture, horizontally.
        down: the same, vertically.
        size: width and height of the canvas.
    """
    width, height = size
    x1, y1, x2, y2 = box_xyxy_px
    left = min(max(0, math.floor(x1 * across)), width - 1)
    top = min(max(0, math.floor(y1 * down)), height - 1)
    right = max(left, min(math.ceil(x2 * across), width) - 1)
    bottom = max(top, min(math.ceil(y2 * down), height) - 1)
    return left, top, right, bottom


def draw_box(
    draw: ImageDraw.ImageDraw, rect: RectXYXY, line: int, colour: Colour, *, dashed: bool
) -> None:
    """The outline of a box, ``line`` pixels thick."""
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


def measured(draw: ImageDraw.ImageDraw, text: str, font: Font) -> Label:
    """A text as a label; all labels of a font are equally high."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    # Height from letters that every label could have.
    _, low_top, _, low_bottom = draw.textbbox((0, 0), "Ag|", font=font)
    top, bottom = min(top, low_top), max(bottom, low_bottom)
    return Label(
        text,
        font,
        math.ceil(right - left) + 2 * PADDING,
        math.ceil(bottom - top) + 2 * PADDING,
        PADDING - math.floor(left),
        PADDING - math.floor(top),
    )


@lru_cache(maxsize=16)
def font_of(size: int, *, beyond_ascii: bool) -> Font:
    """Pillow's own font, or for texts beyond ASCII one that is installed and has more letters."""
    for name in _WIDE_FONTS if beyond_ascii else ():
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def place_of(
    label: Label, rect: RectXYXY, taken: Sequence[RectXYXY], size: tuple[int, int]
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


def _places(label: Label, rect: RectXYXY, size: tuple[int, int]) -> Iterator[RectXYXY]:
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


def draw_label(
    draw: ImageDraw.ImageDraw,
    label: Label,
    place: RectXYXY,
    colour: Colour,
    improbable: bool,
) -> None:
    """A label on its plate, which is grey for what is improbable."""
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

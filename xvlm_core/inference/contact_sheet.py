"""A contact sheet: the pictures that answer a text, the best first, on one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from xvlm_core.data.text import sanitize
from xvlm_core.decision import is_probable
from xvlm_core.drawing import colour_of, draw_box, font_of, rect_of
from xvlm_core.inference.draw import percent

CELL_PX = 256
"""Longer side of a picture on the sheet."""

_ACROSS = 5
_GAP = 10
_TITLE, _FONT = 20, 14
_WHITE, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (120, 120, 120)


@dataclass(frozen=True)
class Cell:
    """An answer: the upright picture, its name, how probable it is, and the part of it."""

    image: Image.Image
    name: str
    probability: float
    box_xyxy_px: tuple[float, float, float, float] | None = None


def contact_sheet(text: str, cells: Sequence[Cell]) -> Image.Image:
    """The text, and under it a grid of the pictures with rank, probability, name and box.

    A box of an improbable answer is dashed.

    Args:
        text: what was looked for.
        cells: the answers, the best first; one at least.
    """
    across = min(_ACROSS, len(cells))
    down = math.ceil(len(cells) / across)
    top = _GAP + _TITLE * 3 // 2
    step_x, step_y = CELL_PX + _GAP, CELL_PX + _FONT * 3 // 2 + _GAP
    sheet = Image.new("RGB", (across * step_x + _GAP, top + down * step_y + _GAP), _WHITE)
    draw = ImageDraw.Draw(sheet)
    _write(draw, text, (_GAP, _GAP), _TITLE, sheet.width - 2 * _GAP, _INK)
    for number, cell in enumerate(cells):
        x = _GAP + number % across * step_x
        y = top + number // across * step_y
        small = _small(cell)
        sheet.paste(small, (x + (CELL_PX - small.width) // 2, y + (CELL_PX - small.height) // 2))
        label = f"{number + 1}.  {percent(cell.probability)}  {cell.name}"
        ink = _INK if is_probable(cell.probability) else _FAINT
        _write(draw, label, (x, y + CELL_PX + 2), _FONT, CELL_PX, ink)
    return sheet


def _small(cell: Cell) -> Image.Image:
    """The picture as large as its cell, with its box."""
    image = cell.image.convert("RGB")
    scale = CELL_PX / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    if cell.box_xyxy_px is not None:
        across, down = width / image.width, height / image.height
        rect = rect_of(cell.box_xyxy_px, across, down, small.size)
        dashed = not is_probable(cell.probability)
        draw_box(ImageDraw.Draw(small), rect, 3, colour_of(0), dashed=dashed)
    return small


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    place: tuple[int, int],
    size: int,
    width: int,
    ink: tuple[int, int, int],
) -> None:
    """A line, shortened until it fits."""
    line = sanitize(text) or "..."
    font = font_of(size, beyond_ascii=not line.isascii())
    kept = len(line)
    while kept > 1 and draw.textlength(line, font=font) > width:
        kept -= 1
        line = line[:kept].rstrip() + "..."
    draw.text(place, line, fill=ink, font=font)

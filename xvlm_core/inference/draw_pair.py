"""Two pictures side by side over what is said of them, true or not, with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from xvlm_core.data.text import sanitize
from xvlm_core.drawing import LEGIBLE_SIDE_PX, Colour, draw_label, font_of, measured
from xvlm_core.inference.draw import percent

if TYPE_CHECKING:
    from xvlm_core.inference.pair_judge import Judgement

HEIGHT_PX = LEGIBLE_SIDE_PX
"""Of both pictures."""

MOST_STATEMENTS = 40
"""Statements that are written under the pictures; of more the number is told."""

_WIDEST_PX = 3 * HEIGHT_PX
_GAP, _FONT = 10, 18
_WHITE, _INK = (255, 255, 255), (20, 20, 20)
_TRUE: Colour = (45, 140, 65)
_FALSE: Colour = (190, 40, 40)


def side_by_side(
    left: Image.Image, right: Image.Image, judgements: Sequence[Judgement]
) -> Image.Image:
    """Both pictures, and a line for each statement: true or false, and how probably.

    The pictures are equally high, but for very wide ones.

    Args:
        left: the upright picture that was shown first.
        right: the second one.
        judgements: of the statements.
    """
    pictures = [_scaled(picture) for picture in (left, right)]
    shown = judgements[:MOST_STATEMENTS]
    more = len(judgements) - len(shown)
    line = _FONT * 2
    width = sum(picture.width for picture in pictures) + 3 * _GAP
    height = HEIGHT_PX + 2 * _GAP + (len(shown) + bool(more)) * line
    canvas = Image.new("RGB", (width, height), _WHITE)
    canvas.paste(pictures[0], (_GAP, _GAP))
    canvas.paste(pictures[1], (2 * _GAP + pictures[0].width, _GAP))
    draw = ImageDraw.Draw(canvas)
    for number, judgement in enumerate(shown):
        _write(draw, judgement, HEIGHT_PX + 2 * _GAP + number * line, width)
    if more:
        text = f"and {more} more"
        font = font_of(_FONT, beyond_ascii=False)
        draw.text((_GAP, HEIGHT_PX + 2 * _GAP + len(shown) * line), text, fill=_INK, font=font)
    return canvas


def _scaled(picture: Image.Image) -> Image.Image:
    scale = min(HEIGHT_PX / picture.height, _WIDEST_PX / picture.width)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _write(draw: ImageDraw.ImageDraw, judgement: Judgement, y: int, width: int) -> None:
    """A plate with the answer, and the statement, shortened until it fits."""
    chance = judgement.probability if judgement.is_true else 1 - judgement.probability
    answer = f"{str(judgement.is_true).lower()} {percent(chance)}"
    label = measured(draw, answer, font_of(_FONT, beyond_ascii=False))
    colour = _TRUE if judgement.is_true else _FALSE
    place = (_GAP, y, _GAP + label.width, y + label.height)
    draw_label(draw, label, place, colour, improbable=False)
    text = sanitize(judgement.statement) or "..."
    font = font_of(_FONT, beyond_ascii=not text.isascii())
    x = place[2] + _GAP
    kept = len(text)
    while kept and draw.textlength(text, font=font) > width - x - _GAP:
        kept -= 1
        text = f"{text[:kept].rstrip()}..."
    draw.text((x, y + label.text_y), text, fill=_INK, font=font)

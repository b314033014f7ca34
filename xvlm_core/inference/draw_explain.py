"""Where each word of a phrase looks, as pictures (X-VLM, Figure 5): one panel a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from xvlm_core.data.text import sanitize
from xvlm_core.drawing import Font, colour_of, draw_box, font_of, rect_of
from xvlm_core.metrics.heat_map import resize

if TYPE_CHECKING:
    from xvlm_core.inference.predictor import Grounding

PANEL_SIDE_PX = 256
"""Longer side of a panel; half of it where there are many."""

_MANY_PHRASES = 12
_LEAST_WIDTH = 96
"""Pixels, so that a title can be read over a narrow picture."""

_ACROSS = 6
_GAP = 8
_FONT = 15
_WHITE, _INK = (255, 255, 255), (20, 20, 20)
_STOPS = np.array([(40, 60, 200), (0, 190, 220), (120, 220, 80), (250, 200, 30), (220, 20, 20)])
"""Colours of no heat to the most, at equal steps."""
_COLDEST, _HOTTEST = 0.25, 0.65
"""How much of the picture the colour covers."""


@dataclass(frozen=True)
class _Panel:
    title: str
    image: Image.Image


def explain(image: Image.Image, groundings: Sequence[Grounding]) -> Image.Image:
    """Rows of panels, one or more a phrase: the whole phrase with its box first, then each word.

    The colours of a panel go from no heat to the most in this very panel; the percentage beside a
    word says how much heat that most is, of the hottest word's.

    Args:
        image: the upright picture.
        groundings: what was found, with ``heat``.
    """
    small = _small(image, PANEL_SIDE_PX // (2 if len(groundings) > _MANY_PHRASES else 1))
    width = max(small.width, _LEAST_WIDTH)
    rows: list[list[_Panel]] = []
    for index, grounding in enumerate(groundings):
        panels = _panels(small, image.size, grounding, index)
        rows += [panels[at : at + _ACROSS] for at in range(0, len(panels), _ACROSS)]
    title = _FONT * 3 // 2
    step = (width + _GAP, small.height + title + _GAP)
    across = max(len(row) for row in rows)
    canvas = Image.new("RGB", (across * step[0] + _GAP, len(rows) * step[1] + _GAP), _WHITE)
    draw = ImageDraw.Draw(canvas)
    for down, row in enumerate(rows):
        for right, panel in enumerate(row):
            x, y = _GAP + right * step[0], _GAP + down * step[1]
            _write(draw, panel.title, (x, y), width)
            canvas.paste(panel.image, (x, y + title))
    return canvas


def _small(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    return image.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC)


def _panels(
    small: Image.Image, size: tuple[int, int], grounding: Grounding, index: int
) -> list[_Panel]:
    heat = grounding.heat
    assert heat is not None, "heat maps were not asked for"
    whole = _overlaid(small, heat.map_nn)
    across, down = small.width / size[0], small.height / size[1]
    rect = rect_of(grounding.box_xyxy_px, across, down, small.size)
    draw_box(ImageDraw.Draw(whole), rect, 3, colour_of(index), dashed=False)
    panels = [_Panel(grounding.phrase, whole)]
    most = max((float(word.map_nn.max()) for word in heat.words), default=0.0)
    for word in heat.words:
        share = float(word.map_nn.max()) / most if most > 0 else 0.0
        panels.append(_Panel(f"{word.word} ({share:.0%})", _overlaid(small, word.map_nn)))
    return panels


def _overlaid(small: Image.Image, map_nn: NDArray[np.float64]) -> Image.Image:
    """The picture under the colours of a map; a map without heat is cold all over."""
    heat = resize(map_nn, *small.size)
    top = float(heat.max())
    share = (heat / top if top > 0 else heat).clip(0, 1)[..., None]
    at = share[..., 0] * (len(_STOPS) - 1)
    steps = np.arange(len(_STOPS))
    colours = np.stack([np.interp(at, steps, _STOPS[:, c]) for c in range(3)], axis=-1)
    cover = _COLDEST + (_HOTTEST - _COLDEST) * share
    pixels = np.asarray(small, dtype=np.float64) * (1 - cover) + colours * cover
    return Image.fromarray(pixels.round().astype(np.uint8))


def _write(draw: ImageDraw.ImageDraw, title: str, place: tuple[int, int], width: int) -> None:
    """A title, shortened until it fits over its panel."""
    text = sanitize(title) or "..."
    font: Font = font_of(_FONT, beyond_ascii=not text.isascii())
    kept = len(text)
    while kept > 1 and draw.textlength(text, font=font) > width:
        kept -= 1
        text = text[:kept].rstrip() + "..."
    draw.text(place, text, fill=_INK, font=font)

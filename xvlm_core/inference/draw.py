"""Annotated pictures: the box, the phrase and its probability, with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from xvlm_core.data.text import sanitize
from xvlm_core.decision import is_probable
from xvlm_core.drawing import (
    Label,
    RectXYXY,
    colour_of,
    draw_box,
    draw_label,
    font_of,
    measured,
    place_of,
    png_bytes,
    rect_of,
    scale_of,
)
from xvlm_core.errors import OutputError

if TYPE_CHECKING:
    from xvlm_core.inference.predictor import Grounding

_ELLIPSIS = "..."


def annotate(image: Image.Image, groundings: Sequence[Grounding]) -> Image.Image:
    """A copy of the picture with each phrase's box and label.

    Phrases have distinct colours. Labels stay inside the picture and keep off each other while
    there is room. A phrase that is probably not there (see :mod:`xvlm_core.decision`) is drawn
    dashed, greyed and with a question mark.

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
    rects = [rect_of(grounding.box_xyxy_px, scale, scale, size) for grounding in groundings]
    for index, (grounding, rect) in enumerate(zip(groundings, rects, strict=True)):
        draw_box(draw, rect, line, colour_of(index), dashed=not is_probable(grounding.probability))
    taken: list[RectXYXY] = []
    for index, (grounding, rect) in enumerate(zip(groundings, rects, strict=True)):
        label = _measure(draw, font_size, grounding, size[0])
        place = place_of(label, rect, taken, size)
        taken.append(place)
        draw_label(draw, label, place, colour_of(index), not is_probable(grounding.probability))
    return canvas


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


# ------------------------------------------------------------------ labels


def _measure(draw: ImageDraw.ImageDraw, font_size: int, grounding: Grounding, width: int) -> Label:
    """The label, its phrase shortened until it fits into the width of the picture."""
    phrase = sanitize(grounding.phrase) or _ELLIPSIS
    font = font_of(font_size, beyond_ascii=not phrase.isascii())
    mark = "" if is_probable(grounding.probability) else "?"
    ending = f"{mark}  {percent(grounding.probability)}"
    text, kept = phrase + ending, len(phrase)
    while True:
        label = measured(draw, text, font)
        if label.width <= width or kept == 0:
            return label
        kept = min(kept - 1, kept * width // label.width + 1)
        text = (phrase[:kept].rstrip() + _ELLIPSIS if kept else "") + ending


def percent(probability: float) -> str:
    """``97%``; never 0 or 100 for what is only close to it."""
    if 0 < probability < 0.01:
        return "<1%"
    if 0.99 < probability < 1:
        return ">99%"
    return f"{probability:.0%}"

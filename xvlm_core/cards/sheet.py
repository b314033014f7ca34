"""One picture of several examples: boxes with their texts, and below each what is said of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from xvlm_core.cards.examples import Example, Shown, examples, truth
from xvlm_core.data.records import Record, Region
from xvlm_core.data.store import Store
from xvlm_core.data.text import sanitize
from xvlm_core.drawing import (
    PADDING,
    Colour,
    Font,
    Label,
    RectXYXY,
    colour_of,
    draw_box,
    draw_label,
    font_of,
    measured,
    place_of,
    rect_of,
)

TILE_PX = 440
"""Width of a tile, and the greatest height of its picture."""

_GAP = 16
_TEXT_PX = 15
_LINE_PX = 20
_LABEL_PX = 13
_MOST_LABELS = 12
_MOST_BOXES = 120
_MOST_TEXTS = 5
_MOST_LINES = 3
_LONGEST = 400

_WHITE, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_GREY, _RED = (200, 200, 200), (180, 20, 20)
_PROPOSAL = (255, 255, 0)


@dataclass(frozen=True)
class _Line:
    """One line of text below a picture."""

    text: str
    colour: Colour = _INK
    struck: bool = False


def contact_sheet(store: Store, numbers: Sequence[int], columns: int = 3) -> Image.Image:
    """The examples of these record numbers in one picture, row by row.

    Regions have a colour and a label each, proposals thin lines; absent texts are struck through;
    a picture that cannot be read is a grey field with the reason.

    Args:
        store: an open store.
        numbers: of its records.
        columns: tiles a row.

    Returns:
        RGB.
    """
    tiles = [_tile(example) for example in examples(store, numbers)]
    columns = max(1, min(columns, len(tiles)))
    rows = [tiles[first : first + columns] for first in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = columns * (TILE_PX + _GAP) + _GAP
    top = _GAP + _LINE_PX + _GAP
    sheet = Image.new("RGB", (width, top + sum(heights) + _GAP * len(rows)), _WHITE)
    draw = ImageDraw.Draw(sheet)
    title = f"{sanitize(store.name)}: {len(tiles)} of {len(store):,} records"
    _write(draw, (_GAP, _GAP), _wrapped(title, width - 2 * _GAP, 1)[0], _INK)
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            sheet.paste(tile, (_GAP + column * (TILE_PX + _GAP), top))
        top += height + _GAP
    return sheet


def drawn_regions(record: Record, most: int) -> list[Region]:
    """Up to ``most`` regions, each kind in turn, in the order of the record."""
    kinds: dict[str, list[int]] = {}
    for index, region in enumerate(record.regions):
        kinds.setdefault(region.kind, []).append(index)
    turns = sorted((turn, index) for found in kinds.values() for turn, index in enumerate(found))
    return [record.regions[index] for index in sorted(index for _, index in turns[:most])]


def _tile(example: Example) -> Image.Image:
    record = example.record
    pictures = [
        _picture(record if which == 0 else None, shown, TILE_PX, len(example.pictures))
        for which, shown in enumerate(example.pictures)
    ]
    height = max(picture.height for picture in pictures)
    lines = list(_lines(example))
    tile = Image.new("RGB", (TILE_PX, height + 6 + _LINE_PX * len(lines)), _WHITE)
    for picture in pictures:
        tile.paste(picture, (0 if picture is pictures[0] else TILE_PX - picture.width, 0))
    draw = ImageDraw.Draw(tile)
    for number, line in enumerate(lines):
        at = (0, height + 6 + _LINE_PX * number)
        _write(draw, at, line.text, line.colour, struck=line.struck)
    return tile


# ------------------------------------------------------------------ the picture


def _picture(record: Record | None, shown: Shown, width: int, abreast: int) -> Image.Image:
    """The picture with its boxes; those of a pair (``abreast`` 2) are smaller."""
    room = (width - _GAP * (abreast - 1)) // abreast
    if shown.image is None:
        field = Image.new("RGB", (room, room // 2), _GREY)
        draw = ImageDraw.Draw(field)
        for number, text in enumerate(_wrapped(shown.problem, room - 20, _MOST_LINES)):
            _write(draw, (10, 10 + _LINE_PX * number), text, _INK)
        return field
    scale = min(room / shown.image.width, TILE_PX / shown.image.height)
    size = tuple(max(1, round(side * scale)) for side in shown.image.size)
    canvas = shown.image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    if record is not None:
        _draw_boxes(canvas, record)
    return canvas


def _draw_boxes(canvas: Image.Image, record: Record) -> None:
    draw = ImageDraw.Draw(canvas)
    across, down = canvas.width / record.width, canvas.height / record.height

    def rect(box_xyxy_px: Sequence[float]) -> RectXYXY:
        return rect_of(box_xyxy_px, across, down, canvas.size)

    for box in record.proposals_xyxy_px[:_MOST_BOXES]:
        draw.rectangle(rect(box), outline=_PROPOSAL, width=1)
    labelled = drawn_regions(record, _MOST_LABELS)
    for region in drawn_regions(record, _MOST_BOXES):
        if region not in labelled:
            draw.rectangle(rect(region.box_xyxy_px), outline=_GREY, width=1)
    rects = [rect(region.box_xyxy_px) for region in labelled]
    for index, place in enumerate(rects):
        draw_box(draw, place, 2, colour_of(index), dashed=False)
    taken: list[RectXYXY] = []
    for index, (region, place) in enumerate(zip(labelled, rects, strict=True)):
        label = _label(draw, region.text, canvas.width)
        plate = place_of(label, place, taken, canvas.size)
        taken.append(plate)
        draw_label(draw, label, plate, colour_of(index), False)


def _label(draw: ImageDraw.ImageDraw, text: str, width: int) -> Label:
    text = sanitize(text[:_LONGEST]) or "..."
    font = font_of(_LABEL_PX, beyond_ascii=not text.isascii())
    text = _shortened(text, font, width - 2 * PADDING)
    label = measured(draw, text, font)
    return dataclasses.replace(label, width=min(label.width, width))


# ------------------------------------------------------------------ the texts


def _lines(example: Example) -> Iterator[_Line]:
    """What stands below the picture."""
    record = example.record
    size = f"{record.width} x {record.height}"
    yield from _paragraph(f"{record.id}, {record.split}, {size}", _FAINT, most=1)
    for shown in example.pictures:
        if shown.problem:
            yield from _paragraph(f"{shown.path}: {shown.problem}", _RED)
    yield from _several(record.captions, "captions")
    if record.statement is not None:
        yield from _paragraph(f"{record.statement.text} ({truth(record.statement.label)})")
    questions = []
    for question in record.questions:
        answers = ", ".join(
            answer.answer if answer.weight == 1 else f"{answer.answer} ({answer.weight:.2g})"
            for answer in question.answers
        )
        questions.append(f"{question.question}: {answers or 'no answer'}")
    yield from _several(questions, "questions")
    yield from _several(record.absent, "absent texts", struck=True)
    counts = []
    if len(record.regions) > _MOST_LABELS:
        counts.append(f"{_MOST_LABELS} of {len(record.regions)} boxes with their text")
    if record.proposals_xyxy_px:
        counts.append(f"{len(record.proposals_xyxy_px)} proposals")
    if counts:
        yield from _paragraph(", ".join(counts), _FAINT)


def _several(texts: Sequence[str], what: str, *, struck: bool = False) -> Iterator[_Line]:
    for text in texts[:_MOST_TEXTS]:
        yield from _paragraph(text, struck=struck)
    if len(texts) > _MOST_TEXTS:
        yield _Line(f"and {len(texts) - _MOST_TEXTS} more {what}", _FAINT)


def _paragraph(
    text: str, colour: Colour = _INK, *, struck: bool = False, most: int = _MOST_LINES
) -> Iterator[_Line]:
    for line in _wrapped(text, TILE_PX, most):
        yield _Line(line, colour, struck)


def _wrapped(text: str, width: int, most: int) -> list[str]:
    """A text in at most so many lines of so many pixels, the last one shortened."""
    text = sanitize(text[:_LONGEST]) or "..."
    font = font_of(_TEXT_PX, beyond_ascii=not text.isascii())
    lines: list[str] = []
    while text and len(lines) < most - 1:
        if font.getlength(text) <= width:
            break
        end = _fitting(text, font, width)
        space = text.rfind(" ", 0, end + 1)
        end = space if space > 0 else end
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return [*lines, _shortened(text, font, width)] if text else lines


def _shortened(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    return text[: _fitting(text, font, width - math.ceil(font.getlength("...")))].rstrip() + "..."


def _fitting(text: str, font: Font, width: int) -> int:
    """How many characters fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    colour: Colour,
    *,
    struck: bool = False,
) -> None:
    font = font_of(_TEXT_PX, beyond_ascii=not text.isascii())
    draw.text(at, text, fill=colour, font=font)
    if struck:
        middle = at[1] + _LINE_PX // 2
        draw.line((at[0], middle, at[0] + font.getlength(text), middle), fill=_RED, width=2)

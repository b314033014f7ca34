"""A data card and examples as one page: no scripts, no other files, everything escaped.

Each picture is a re-encoded JPEG in the page; its boxes are drawn over it and named in a list.
Pointing at a box or its text, or reaching either with the keyboard, marks both. Texts from the
data are stripped of control and bidirectional characters, escaped, and isolated in ``<bdi>``; the
page's own policy forbids scripts and requests besides.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator, Sequence
from html import escape

from PIL import Image

from xvlm_core.cards.card import DataCard
from xvlm_core.cards.examples import Example, Shown, examples, truth
from xvlm_core.cards.sheet import drawn_regions
from xvlm_core.cards.style import COLOURS, MARKED_BOXES, style
from xvlm_core.cards.tables import CardTable, card_tables, headline
from xvlm_core.data.records import Record, Region
from xvlm_core.data.store import Store
from xvlm_core.data.text import sanitize
from xvlm_core.drawing import scale_of

PICTURE_PX = 640
"""Longest side of a picture in the page."""

_JPEG_QUALITY = 82
_MOST_PROPOSALS = 200
_LONGEST = 2_000
_MOST_TEXTS = 60


def card_page(store: Store, numbers: Sequence[int], card: DataCard) -> str:
    """The page of a store.

    Args:
        store: an open store.
        numbers: of the records shown.
        card: of the store.

    Returns:
        HTML, whole and self-contained.
    """
    css = style()
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'"
    name = _safe(store.name)
    shown = "".join(_example(e, place) for place, e in enumerate(examples(store, numbers), 1))
    tables = "".join(_table(table) for table in card_tables(card))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{name}: data card</title>\n<style>{css}</style>\n</head>\n<body>\n"
        f"<header><h1>{name}</h1>\n<p>{_bdi(headline(card))}</p>\n"
        f"<p>Made by <code>{_safe(card.command)}</code></p>\n"
        '<nav><a href="#examples">examples</a> <a href="#numbers">numbers</a></nav></header>\n'
        f'<main>\n<section id="examples">\n<h2>Examples</h2>\n'
        f"<p>{len(numbers)} of {len(store):,} records. Point at a box, or at its text.</p>\n"
        f'{shown}</section>\n<section id="numbers">\n<h2>Numbers</h2>\n{tables}</section>\n'
        "</main>\n</body>\n</html>\n"
    )


# ------------------------------------------------------------------ tables


def _table(table: CardTable) -> str:
    numeric = [
        all(_is_number(row[column]) for row in table.rows) for column in range(len(table.header))
    ]
    marks = [' class="number"' if right else "" for right in numeric]
    head = ""
    if any(table.header):
        cells = zip(table.header, marks, strict=True)
        head = "".join(f'<th scope="col"{mark}>{_bdi(name)}</th>' for name, mark in cells)
        head = f"<thead><tr>{head}</tr></thead>"
    rows = []
    for first, *rest in table.rows:
        cells = zip(rest, marks[1:], strict=True)
        data = "".join(f"<td{mark}>{_bdi(cell)}</td>" for cell, mark in cells)
        rows.append(f'<tr><th scope="row">{_bdi(first)}</th>{data}</tr>')
    title = escape(table.title)
    notes = "".join(f'<p class="note">{_bdi(note)}</p>' for note in table.notes)
    return (
        f'<h3>{title}</h3>\n<div class="wide" role="region" tabindex="0" aria-label="{title}">'
        f"<table>{head}<tbody>{''.join(rows)}</tbody></table></div>\n{notes}\n"
    )


def _is_number(cell: str) -> bool:
    return not cell or cell == "-" or cell.replace(",", "").replace(".", "").isdecimal()


# ------------------------------------------------------------------ examples


def _example(example: Example, place: int) -> str:
    record = example.record
    regions = drawn_regions(record, MARKED_BOXES)
    pictures = "".join(
        _picture(shown, record, regions if which == 0 else [], place, which == 0)
        for which, shown in enumerate(example.pictures)
    )
    size = f"{record.width} x {record.height}"
    about = f"{record.id}, {record.split}, {size}"
    kind = " pair" if len(example.pictures) > 1 else ""
    return (
        f'<article id="e{place}"><h3>{_bdi(about)}</h3>\n<div class="pictures{kind}">{pictures}'
        f'</div>\n<div class="texts">{"".join(_texts(record, regions, place))}</div></article>\n'
    )


def _picture(
    shown: Shown, record: Record, regions: Sequence[Region], place: int, first: bool
) -> str:
    problem = f'<p class="problem">{_bdi(f"{shown.path}: {shown.problem}")}</p>'
    if shown.image is None:
        return f'<div class="picture missing">{problem}</div>'
    scale = min(PICTURE_PX / max(shown.image.size), scale_of(*shown.image.size))
    size = [max(1, round(side * scale)) for side in shown.image.size]
    image = shown.image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(file.getvalue()).decode()
    overlay = _overlay(record, regions, place) if first else ""
    return (
        f'<div class="picture"><div class="frame"><img src="data:image/jpeg;base64,{data}" '
        f'width="{image.width}" height="{image.height}" alt="{_safe(_alt(record, shown))}">'
        f"{overlay}</div>{problem if shown.problem else ''}</div>"
    )


def _overlay(record: Record, regions: Sequence[Region], place: int) -> str:
    """Boxes in pixels of the record; the smallest last, so that each can be pointed at."""
    shapes = [
        f'<rect class="proposal" {_rect(box)}/>'
        for box in record.proposals_xyxy_px[:_MOST_PROPOSALS]
    ]
    by_area = sorted(range(len(regions)), key=lambda n: -_area(regions[n].box_xyxy_px))
    for n in by_area:
        text = _safe(regions[n].text)
        shapes.append(
            f'<a href="#t{place}-{n}" id="b{place}-{n}" class="c{n % COLOURS} n{n}" '
            f'aria-label="box of: {text}"><rect {_rect(regions[n].box_xyxy_px)}/>'
            f"<title>{text}</title></a>"
        )
    if not shapes:
        return ""
    return (
        f'<svg viewBox="0 0 {record.width} {record.height}" preserveAspectRatio="none">'
        f"{''.join(shapes)}</svg>"
    )


def _texts(record: Record, regions: Sequence[Region], place: int) -> Iterator[str]:
    """What is said of the picture, each kind a titled list."""
    if record.statement is not None:
        label = truth(record.statement.label)
        yield _list("statement", [f"{_bdi(record.statement.text)} <b>{label}</b>"])
    yield _list("captions", [_bdi(caption) for caption in record.captions])
    more = len(record.regions) - len(regions)
    if regions:
        items = [
            f'<li><a href="#b{place}-{n}" id="t{place}-{n}" class="c{n % COLOURS} n{n}">'
            f"{_bdi(region.text)}</a> <small>{region.kind}</small></li>"
            for n, region in enumerate(regions)
        ]
        yield f'<h4>boxes</h4><ol class="boxes">{"".join(items)}</ol>'
    if more:
        yield f'<p class="note">and {more:,} more boxes</p>'
    questions = []
    for question in record.questions:
        answers = ", ".join(
            _bdi(a.answer) + (f" <small>{a.weight:.2g}</small>" if a.weight != 1 else "")
            for a in question.answers
        )
        questions.append(f"{_bdi(question.question)} <b>{answers or 'no answer'}</b>")
    yield _list("questions", questions)
    yield _list("not in the picture", [f"<s>{_bdi(text)}</s>" for text in record.absent])
    if record.proposals_xyxy_px:
        yield f'<p class="note">{len(record.proposals_xyxy_px):,} proposals (thin lines)</p>'


def _list(title: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    rest = len(items) - _MOST_TEXTS
    more = f'<p class="note">and {rest:,} more</p>' if rest > 0 else ""
    lines = "".join(f"<li>{item}</li>" for item in items[:_MOST_TEXTS])
    return f"<h4>{title}</h4><ul>{lines}</ul>{more}"


def _alt(record: Record, shown: Shown) -> str:
    said = record.captions or tuple(dict.fromkeys(region.text for region in record.regions))
    return "; ".join(said[:3])[:300] if said else f"picture {shown.path}"


def _rect(box_xyxy_px: Sequence[float]) -> str:
    x1, y1, x2, y2 = box_xyxy_px
    return f'x="{x1:.6g}" y="{y1:.6g}" width="{max(x2 - x1, 0):.6g}" height="{max(y2 - y1, 0):.6g}"'


def _area(box_xyxy_px: Sequence[float]) -> float:
    x1, y1, x2, y2 = box_xyxy_px
    return (x2 - x1) * (y2 - y1)


def _safe(text: str) -> str:
    """A text of the data for an attribute or an element."""
    return escape(sanitize(text[:_LONGEST]))


def _bdi(text: str) -> str:
    return f'<bdi dir="auto">{_safe(text)}</bdi>'

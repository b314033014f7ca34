"""A data card as tables of texts, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xvlm_core.cards.card import DataCard
from xvlm_core.cards.paper import beside_paper
from xvlm_core.cards.tallies import Repetition, Spread

PLURALS = {
    "caption": "captions",
    "object": "objects",
    "attribute": "objects with an attribute",
    "region": "regions",
    "relation": "relations",
    "phrase": "phrases",
    "absent": "absent texts",
    "question": "questions",
    "answer": "answers",
    "statement": "statements",
    "proposal": "proposals",
}

LEDGER_TABLES = ("read, kept, dropped and repaired while preparing", "why")
"""Titles of the tables that come from the ledger."""

LONGEST_TABLE = "longest texts"


@dataclass(frozen=True)
class CardTable:
    """A titled table; all cells are texts. ``notes`` stand below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def headline(card: DataCard) -> str:
    """The card in one line."""
    splits = ", ".join(f"{name} {split.records:,}" for name, split in card.splits.items())
    pictures = card.duplicates.pictures.distinct
    return (
        f"{card.name}: {card.source}, {card.records:,} records"
        f"{f' ({splits})' if splits else ''}, {pictures:,} pictures"
    )


def card_tables(card: DataCard) -> list[CardTable]:
    """All tables of a card; those without rows are left out."""
    tables = [
        _kinds(card),
        _splits(card),
        _sizes(card),
        _shares(card),
        _texts(card),
        _scripts(card),
        _common(card),
        _longest(card),
        _duplicates(card),
        _ledger(card),
        _reasons(card),
        *_paper(card),
    ]
    return [table for table in tables if table.rows]


def _kinds(card: DataCard) -> CardTable:
    rows = []
    for kind, amount in card.amounts.items():
        each = amount.per_record
        spread = (each.mean, each.median, each.p95, each.most)
        rows.append((PLURALS[kind], *_cells(amount.total, amount.records, *spread)))
    truths = ", ".join(f"{n:,} {label}" for label, n in card.statements.items())
    return CardTable(
        "what is in it",
        ("", "total", "records with", "mean a record", "median", "95 %", "most"),
        tuple(rows),
        (f"statements: {truths}",) if truths else (),
    )


def _splits(card: DataCard) -> CardTable:
    splits = card.splits.values()
    rows = [
        ("records", *_cells(*(split.records for split in splits))),
        ("pictures", *_cells(*(split.pictures for split in splits))),
    ]
    for kind, plural in PLURALS.items():
        totals = [split.totals.get(kind, 0) for split in splits]
        if any(totals):
            rows.append((plural, *_cells(*totals)))
    return CardTable("splits", ("", *card.splits), tuple(rows) if card.splits else ())


def _sizes(card: DataCard) -> CardTable:
    rows = [
        (name, *_spread(spread))
        for name, spread in (
            ("width, pixels", card.widths_px),
            ("height, pixels", card.heights_px),
            ("box area, % of the picture", card.boxes.area_percent),
        )
        if spread.n
    ]
    header = ("", "mean", "least", "5 %", "25 %", "median", "75 %", "95 %", "most")
    return CardTable("pictures and boxes", header, tuple(rows))


def _shares(card: DataCard) -> CardTable:
    boxes = card.boxes
    if boxes.centre_xy is None:
        return CardTable("box sizes and places", (), ())
    rows = _shared(boxes.shares, boxes.total, "of the picture")
    rows += _shared(boxes.coco_sizes, boxes.total)
    x, y = boxes.centre_xy
    thirds = " | ".join(" ".join(_percent(n, boxes.total) for n in row) for row in boxes.thirds)
    notes = (
        f"mean centre: {x:.2f} of the width, {y:.2f} of the height",
        f"centres in each ninth, % (top | middle | bottom, left to right): {thirds}",
    )
    return CardTable("box sizes and places", ("box area", "boxes", "%"), tuple(rows), notes)


def _texts(card: DataCard) -> CardTable:
    rows = []
    for kind, texts in card.texts.items():
        words, letters = texts.words, texts.characters
        lengths = (words.mean, words.median, words.p95, words.most, letters.mean, letters.most)
        rows.append((PLURALS[kind], *_cells(*lengths)))
    more = "" if card.vocabulary_exact else "more than "
    return CardTable(
        "text lengths",
        ("", "mean words", "median", "95 %", "most", "mean characters", "most"),
        tuple(rows),
        (f"{more}{card.vocabulary:,} different words",),
    )


def _scripts(card: DataCard) -> CardTable:
    rows = _shared(card.scripts, sum(card.scripts.values()))
    return CardTable("scripts (of most letters of a text)", ("", "texts", "%"), tuple(rows))


def _common(card: DataCard) -> CardTable:
    rows = [
        (what, ", ".join(f"{text} {n:,}" for text, n in counts.items()))
        for what, counts in (
            ("words", card.common_words),
            ("texts of boxes", card.common_labels),
            ("answers", card.common_answers),
        )
        if counts
    ]
    return CardTable("most common", ("", ""), tuple(rows))


def _longest(card: DataCard) -> CardTable:
    rows = [(PLURALS[kind], texts.longest) for kind, texts in card.texts.items()]
    return CardTable(LONGEST_TABLE, ("", ""), tuple(rows))


def _duplicates(card: DataCard) -> CardTable:
    found = card.duplicates
    captions = card.amounts["caption"].total if "caption" in card.amounts else 0
    rows = [
        _again("texts that were there before", found.texts),
        _again("captions that another picture has", found.captions),
        _again("pictures that an earlier record names", found.pictures),
        *(
            (what, f"{n:,}", _percent(n, total))
            for what, n, total in (
                ("captions their record has already", found.captions_in_record, captions),
                ("same text, box and kind in a record", found.regions_in_record, card.boxes.total),
                ("same box in a record, any text", found.boxes_in_record, card.boxes.total),
            )
        ),
    ]
    return CardTable("duplicates", ("", "number", "%"), tuple(rows), tuple(card.notes))


def _ledger(card: DataCard) -> CardTable:
    rows = []
    for item, count in card.ledger.items():
        lost, changed = sum(count["dropped"].values()), sum(count["repaired"].values())
        rows.append((item, *_cells(count["read"], count["kept"], lost, changed)))
    header = ("", "read", "kept", "dropped", "repaired")
    return CardTable(LEDGER_TABLES[0], header, tuple(rows))


def _reasons(card: DataCard) -> CardTable:
    rows = [
        (reason, item, what, f"{n:,}", _percent(n, count["read"]))
        for item, count in card.ledger.items()
        for what in ("dropped", "repaired")
        for reason, n in sorted(count[what].items(), key=lambda found: -found[1])
    ]
    notes = ("each is a line of ledger.jsonl",)
    header = ("reason", "of", "was", "number", "% of read")
    return CardTable(LEDGER_TABLES[1], header, tuple(rows), notes)


def _paper(card: DataCard) -> Iterable[CardTable]:
    compared = beside_paper(card)
    if compared is None:
        return
    rows = tuple(
        (row.what, row.ours, row.paper, "" if row.share is None else f"{100 * row.share:.3g}")
        for row in compared.rows
    )
    title = f"beside {compared.name} in the X-VLM paper"
    yield CardTable(title, ("", "this store", "paper", "% of it"), rows, compared.notes)


def _again(what: str, found: Repetition) -> tuple[str, ...]:
    return what, f"{found.again:,}", _percent(found.again, found.total)


def _shared(counts: Mapping[str, int], total: int, of: str = "") -> list[tuple[str, ...]]:
    return [(f"{name} {of}".strip(), f"{n:,}", _percent(n, total)) for name, n in counts.items()]


def _spread(spread: Spread) -> tuple[str, ...]:
    ranks = (spread.p05, spread.p25, spread.median, spread.p75, spread.p95)
    return _cells(spread.mean, spread.least, *ranks, spread.most)


def _percent(n: int, total: int) -> str:
    return f"{100 * n / total:.1f}" if total else "-"


def _cells(*numbers: float | None) -> tuple[str, ...]:
    return tuple(map(_number, numbers))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

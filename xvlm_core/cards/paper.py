"""How a store compares with the data of the X-VLM paper (arXiv 2111.08276, Tables 1 and 5)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from xvlm_core.cards.card import DataCard

_SUBSET = 0.9
"""Below this share of the paper's pictures a store is called a subset."""

_TRAINING = ("train", "restval")

_WEB_PAIRS = "web-pairs"
"""A source of several data sets: the records or the folder say which."""


@dataclass(frozen=True)
class Cleaned:
    """Annotations that the paper used, of those that there were (Table 5)."""

    used: int
    given: int


@dataclass(frozen=True)
class PaperCounts:
    """A data set in the paper. Where ``Cleaned`` is not known, a rounded number (Table 1)."""

    name: str
    pictures: int
    captions: int | None = None
    objects: int | Cleaned | None = None
    regions: int | Cleaned | None = None


COCO = PaperCounts("COCO", 110_000, 550_000, Cleaned(446_873, 859_999))
VISUAL_GENOME = PaperCounts(
    "Visual Genome",
    100_000,
    objects=Cleaned(2_043_927, 3_802_349),
    regions=Cleaned(3_699_598, 5_402_953),
)
SBU = PaperCounts("SBU", 860_000, 860_000)
CC3M = PaperCounts("CC-3M", 2_900_000, 2_900_000)
CC12M = PaperCounts("CC-12M", 11_100_000, 11_100_000)
OBJECTS365 = PaperCounts("Objects365", 580_000, objects=2_000_000)
OPEN_IMAGES = PaperCounts("OpenImages", 1_700_000, objects=4_200_000)

_BY_SOURCE = {
    "coco": COCO,
    "karpathy": PaperCounts("COCO", COCO.pictures, COCO.captions),
    "visual-genome": VISUAL_GENOME,
    "objects365": OBJECTS365,
    "openimages": OPEN_IMAGES,
}
_WEB_NAMES = {"sbu": SBU, "cc3m": CC3M, "cc12m": CC12M}


@dataclass(frozen=True)
class Comparison:
    """One number of a store beside the paper's; ``share`` is ours of theirs, None if not said."""

    what: str
    ours: str
    paper: str
    share: float | None


@dataclass(frozen=True)
class BesidePaper:
    """A store beside the paper, and what must be known to compare."""

    name: str
    rows: tuple[Comparison, ...]
    notes: tuple[str, ...]


def paper_counts_of(card: DataCard) -> PaperCounts | None:
    """The paper's numbers of the data set that a card is of; None if the paper has none."""
    if card.source != _WEB_PAIRS:
        return _BY_SOURCE.get(card.source)
    for name in (*card.sources, card.name):
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        # The longest first: "cc12m" is not "cc3m", but neither may hide in the other either.
        for key in sorted(_WEB_NAMES, key=len, reverse=True):
            if key in plain:
                return _WEB_NAMES[key]
    return None


def beside_paper(card: DataCard) -> BesidePaper | None:
    """The card's training split beside the paper; None if the paper does not have this data."""
    paper = paper_counts_of(card)
    if paper is None:
        return None
    training: list[str] = [name for name in card.splits if name in _TRAINING] or list(card.splits)
    splits = [card.splits[name] for name in training]

    def total(kind: str) -> int:
        return sum(split.totals.get(kind, 0) for split in splits)

    pictures = sum(split.pictures for split in splits)
    rows = [_row("pictures (Table 1)", pictures, paper.pictures)]
    if paper.captions is not None:
        rows.append(_row("captions (Table 1)", total("caption"), paper.captions))
    for what, kind, theirs in (
        ("objects", "object", paper.objects),
        ("regions", "region", paper.regions),
    ):
        if theirs is not None:
            rows.append(_row(f"{what} (Table {_table(theirs)})", total(kind), theirs))
    cleaned = [c for c in (paper.objects, paper.regions) if isinstance(c, Cleaned)]
    read = card.ledger.get("region", {}).get("read", 0)
    if cleaned and read:
        used, given = sum(c.used for c in cleaned), sum(c.given for c in cleaned)
        kept = card.ledger["region"]["kept"]
        rows.append(
            Comparison(
                "boxes with a text kept, of all read",
                f"{kept / read:.1%}",
                f"{used / given:.1%} (Table 5)",
                None,
            )
        )
    return BesidePaper(paper.name, tuple(rows), tuple(_notes(card, paper, pictures, training)))


def _notes(card: DataCard, paper: PaperCounts, pictures: int, training: list[str]) -> list[str]:
    of = f"this store: {' and '.join(training)}"
    others = [name for name in card.splits if name not in training]
    notes = [
        of + (f", without {', '.join(others)}" if others else "") + "; the paper: after removing "
        "pictures of the test sets of its tasks, small boxes and texts that repeat each other"
    ]
    if card.records_read < card.records:
        notes.append("not comparable: only some of the records were read")
    elif pictures < _SUBSET * paper.pictures:
        notes.append(
            f"a subset: {pictures:,} of about {paper.pictures:,} pictures, so totals are not "
            "comparable"
        )
    extra = [
        f"{n:,} {kind}s"
        for kind in ("attribute", "relation")
        if (n := sum(split.totals.get(kind, 0) for split in card.splits.values()))
    ]
    if extra:
        notes.append(f"the paper's tables have no row for {' and '.join(extra)}")
    return notes


def _row(what: str, ours: int, theirs: int | Cleaned) -> Comparison:
    if isinstance(theirs, Cleaned):
        paper, number = f"{theirs.used:,} of {theirs.given:,}", theirs.used
    else:
        paper = f"{theirs / 1e6:.2f}M" if theirs < 1_000_000 else f"{theirs / 1e6:.1f}M"
        number = theirs
    return Comparison(what, f"{ours:,}", paper, ours / number)


def _table(theirs: int | Cleaned) -> int:
    return 5 if isinstance(theirs, Cleaned) else 1

"""The data card: what a store holds, in numbers. ``card_builder`` makes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xvlm_core.cards.scripts import WITHOUT_SPACES
from xvlm_core.cards.tallies import Repetition, Spread
from xvlm_core.data.records import REGION_KINDS

KINDS = ("caption", *REGION_KINDS, "absent", "question", "answer", "statement", "proposal")
"""What is counted for each record; the regions by their kind."""

TEXT_KINDS = tuple(kind for kind in KINDS if kind != "proposal")
TRUTH = ("true", "false", "no label")
COCO_SIZES = ("small (< 32 x 32 px)", "medium", "large (> 96 x 96 px)")
"""COCO's classes of box area."""

SHARE_BOUNDS_PERCENT = (1, 2, 5, 10, 25, 50)
SHARE_CLASSES = ("< 1 %", "1-2 %", "2-5 %", "5-10 %", "10-25 %", "25-50 %", ">= 50 %")
"""Classes of a box's area as a share of its picture."""


@dataclass(frozen=True)
class Amount:
    """How much of one kind there is: in all, in how many records, and in each record."""

    total: int
    records: int
    per_record: Spread


@dataclass(frozen=True)
class SplitAmounts:
    """One split: records, different pictures, and the totals of each kind that it has."""

    records: int
    pictures: int
    totals: dict[str, int]


@dataclass(frozen=True)
class TextSizes:
    """Lengths of the texts of one kind; words are separated by white space."""

    words: Spread
    characters: Spread
    longest: str


@dataclass(frozen=True)
class BoxSizes:
    """Sizes and places of the boxes with a text.

    Attributes:
        total: their number.
        area_percent: of the picture, in steps of 0.01.
        shares: boxes in each of ``SHARE_CLASSES``.
        coco_sizes: boxes in each of ``COCO_SIZES``.
        centre_xy: mean centre as fractions of width and height; None without boxes.
        thirds: boxes whose centre is in each ninth of the picture, three rows of three.
    """

    total: int
    area_percent: Spread
    shares: dict[str, int]
    coco_sizes: dict[str, int]
    centre_xy: tuple[float, float] | None
    thirds: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Duplicates:
    """What is there more than once.

    Attributes:
        texts: all texts of all kinds.
        captions: a caption that a picture has twice counts once, so that what is repeated here
            is repeated over pictures.
        pictures: paths of pictures, one for each time that a record names it.
        captions_in_record: captions that their record has already.
        regions_in_record: regions whose text, box and kind their record has already.
        boxes_in_record: regions whose box their record has already, whatever their text.
    """

    texts: Repetition
    captions: Repetition
    pictures: Repetition
    captions_in_record: int
    regions_in_record: int
    boxes_in_record: int


@dataclass(frozen=True)
class DataCard:
    """A store in numbers; ``to_json`` is plain JSON.

    Attributes:
        records_read: records that the numbers are of; fewer than ``records`` if there was a limit.
        sources: records by the source that they name.
        ledger: read, kept, dropped and repaired of each item, from the manifest: of all records.
    """

    name: str
    source: str
    command: str
    records: int
    records_read: int
    splits: dict[str, SplitAmounts]
    sources: dict[str, int]
    amounts: dict[str, Amount]
    statements: dict[str, int]
    widths_px: Spread
    heights_px: Spread
    boxes: BoxSizes
    texts: dict[str, TextSizes]
    scripts: dict[str, int]
    vocabulary: int
    vocabulary_exact: bool
    common_words: dict[str, int]
    common_labels: dict[str, int]
    common_answers: dict[str, int]
    duplicates: Duplicates
    ledger: Mapping[str, Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON."""
        return dataclasses.asdict(self)

    @property
    def notes(self) -> list[str]:
        """What must be known to read the numbers: samples and estimates."""
        found = []
        if self.records_read < self.records:
            found.append(
                f"from {self.records_read:,} of {self.records:,} records, evenly spread; "
                "what was dropped and repaired is of all"
            )
        repeats = (self.duplicates.texts, self.duplicates.captions, self.duplicates.pictures)
        sampled = min(repetition.sampled for repetition in repeats)
        if sampled < 1:
            found.append(
                f"numbers of different and repeated texts or pictures are estimates from a sample "
                f"(every {round(1 / sampled)}th of them)"
            )
        if not self.vocabulary_exact:
            found.append("rare words were forgotten while counting: there are more than said")
        unspaced = [script for script in WITHOUT_SPACES if self.scripts.get(script)]
        if unspaced:
            found.append(
                f"words are what stands between spaces, which {', '.join(unspaced)} does without"
            )
        return found

"""Makes a data card in one pass over the records of a store.

Memory is bounded: numbers are counted by value, texts by hash (see ``tallies``).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from xvlm_core.cards.card import (
    COCO_SIZES,
    KINDS,
    SHARE_BOUNDS_PERCENT,
    SHARE_CLASSES,
    TEXT_KINDS,
    TRUTH,
    Amount,
    BoxSizes,
    DataCard,
    Duplicates,
    SplitAmounts,
    TextSizes,
)
from xvlm_core.cards.scripts import script_of
from xvlm_core.cards.tallies import Repeats, Tally, Words
from xvlm_core.data.records import REGION_KINDS, Record
from xvlm_core.data.text import sanitize

if TYPE_CHECKING:
    from xvlm_core.data.store import Manifest, Store

COMMON = 20
"""Most common words, labels and answers listed."""

_SHARE_UNIT = 1e-4
_LONGEST_WORD = 60
_LONGEST_SHOWN = 200


def make_card(store: Store, limit: int | None = None) -> DataCard:
    """The card of a store.

    Args:
        store: an open store.
        limit: read at most that many records, evenly spread (None: all).

    Raises:
        DataError: a record is damaged.
    """
    builder = CardBuilder(store.name, store.manifest)
    n = len(store)
    wanted = range(n) if limit is None or limit >= n else np.linspace(0, n - 1, limit, dtype=int)
    for i in wanted:
        builder.add(store[int(i)])
    return builder.card()


class CardBuilder:
    """Makes a card from records that are read for something else too.

    Args:
        name: of the store.
        manifest: of the store.
    """

    def __init__(self, name: str, manifest: Manifest) -> None:
        self._name, self._manifest = name, manifest
        self._records = 0
        self._splits: dict[str, tuple[Counter[str], Repeats]] = {}
        self._sources: Counter[str] = Counter()
        self._per_record = {kind: Tally() for kind in KINDS}
        self._having: Counter[str] = Counter()
        self._statements = dict.fromkeys(TRUTH, 0)
        self._widths, self._heights = Tally(), Tally()
        self._boxes = _BoxTally()
        self._texts: dict[str, _TextTally] = {}
        self._scripts: Counter[str] = Counter()
        self._words, self._labels, self._answers = Words(), Words(), Words()
        self._all_texts, self._captions, self._pictures = Repeats(), Repeats(), Repeats()
        self._within: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        """Count one record."""
        self._records += 1
        self._sources[record.source or self._manifest.source] += 1
        self._widths.add(record.width)
        self._heights.add(record.height)
        said = _texts_of(record)
        amounts = {kind: len(texts) for kind, texts in said.items()}
        amounts["proposal"] = len(record.proposals_xyxy_px)
        totals, pictures = self._splits.setdefault(record.split, (Counter(), Repeats()))
        totals["record"] += 1
        for kind, n in amounts.items():
            if n:
                self._having[kind] += 1
                self._per_record[kind].add(n)
                totals[kind] += n
        for path in record.images:
            self._pictures.add(path)
            pictures.add(path)
        if record.statement is not None:
            label = record.statement.label
            self._statements[TRUTH[2] if label is None else TRUTH[0] if label else TRUTH[1]] += 1
        for kind, texts in said.items():
            for text in texts:
                self._text(kind, text)
        for caption in record.captions:
            self._captions.add(caption, inside=record.image)
        self._regions(record)

    def _text(self, kind: str, text: str) -> None:
        words = [word.strip(".,;:!?\"'()")[:_LONGEST_WORD] for word in text.lower().split()]
        self._texts.setdefault(kind, _TextTally()).add(text, len(words))
        self._scripts[script_of(text)] += 1
        self._all_texts.add(text)
        self._words.add([word for word in words if word])
        if kind in REGION_KINDS:
            self._labels.add([text[:_LONGEST_SHOWN]])
        elif kind == "answer":
            self._answers.add([text[:_LONGEST_SHOWN]])

    def _regions(self, record: Record) -> None:
        boxes = {region.box_xyxy_px for region in record.regions}
        self._within["box"] += len(record.regions) - len(boxes)
        self._within["region"] += len(record.regions) - len(set(record.regions))
        self._within["caption"] += len(record.captions) - len(set(record.captions))
        for region in record.regions:
            self._boxes.add(region.box_xyxy_px, record.width, record.height)

    def card(self) -> DataCard:
        """The card of the records added so far."""
        return DataCard(
            name=self._name,
            source=self._manifest.source,
            command=self._manifest.command,
            records=self._manifest.records,
            records_read=self._records,
            splits={
                split: SplitAmounts(
                    totals["record"],
                    pictures.result().distinct,
                    {kind: totals[kind] for kind in KINDS if totals[kind]},
                )
                for split, (totals, pictures) in self._splits.items()
            },
            sources=dict(self._sources.most_common()),
            amounts={kind: self._amount(kind) for kind in KINDS if self._having[kind]},
            statements={label: n for label, n in self._statements.items() if n},
            widths_px=self._widths.spread(),
            heights_px=self._heights.spread(),
            boxes=self._boxes.result(),
            texts={k: self._texts[k].result() for k in TEXT_KINDS if k in self._texts},
            scripts=dict(self._scripts.most_common()),
            vocabulary=self._words.distinct,
            vocabulary_exact=self._words.exact,
            common_words=_shown(self._words),
            common_labels=_shown(self._labels),
            common_answers=_shown(self._answers),
            duplicates=Duplicates(
                texts=self._all_texts.result(),
                captions=self._captions.result(),
                pictures=self._pictures.result(),
                captions_in_record=self._within["caption"],
                regions_in_record=self._within["region"],
                boxes_in_record=self._within["box"],
            ),
            ledger=self._manifest.counts,
        )

    def _amount(self, kind: str) -> Amount:
        having = self._having[kind]
        spread = self._per_record[kind].spread(also_zeros=self._records - having)
        total = sum(totals[kind] for totals, _ in self._splits.values())
        return Amount(total, having, spread)


class _TextTally:
    def __init__(self) -> None:
        self._words, self._characters = Tally(), Tally()
        self._longest = ""

    def add(self, text: str, words: int) -> None:
        self._words.add(words)
        self._characters.add(len(text))
        if len(text) > len(self._longest):
            self._longest = text

    def result(self) -> TextSizes:
        longest = sanitize(self._longest[:_LONGEST_SHOWN])
        return TextSizes(self._words.spread(), self._characters.spread(), longest)


class _BoxTally:
    def __init__(self) -> None:
        self._shares = Tally(unit=100 * _SHARE_UNIT)
        self._share_classes = dict.fromkeys(SHARE_CLASSES, 0)
        self._coco_sizes = dict.fromkeys(COCO_SIZES, 0)
        self._sum_x = self._sum_y = 0.0
        self._thirds = [[0, 0, 0] for _ in range(3)]

    def add(self, box_xyxy_px: tuple[float, ...], width: int, height: int) -> None:
        x1, y1, x2, y2 = box_xyxy_px
        area = max(0.0, x2 - x1) * max(0.0, y2 - y1)
        share = min(area / (width * height), 1.0)
        self._shares.add(round(share / _SHARE_UNIT))
        above = sum(100 * share >= bound for bound in SHARE_BOUNDS_PERCENT)
        self._share_classes[SHARE_CLASSES[above]] += 1
        self._coco_sizes[COCO_SIZES[0 if area < 32**2 else 1 if area <= 96**2 else 2]] += 1
        x, y = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height
        self._sum_x, self._sum_y = self._sum_x + x, self._sum_y + y
        self._thirds[min(max(int(3 * y), 0), 2)][min(max(int(3 * x), 0), 2)] += 1

    def result(self) -> BoxSizes:
        spread = self._shares.spread()
        n = spread.n
        return BoxSizes(
            total=n,
            area_percent=spread,
            shares=dict(self._share_classes),
            coco_sizes=dict(self._coco_sizes),
            centre_xy=(self._sum_x / n, self._sum_y / n) if n else None,
            thirds=tuple(tuple(row) for row in self._thirds),
        )


def _texts_of(record: Record) -> dict[str, list[str]]:
    """The texts of a record by kind."""
    texts: dict[str, list[str]] = {
        "caption": list(record.captions),
        **{kind: [] for kind in REGION_KINDS},
        "absent": list(record.absent),
        "question": [question.question for question in record.questions],
        "answer": [a.answer for question in record.questions for a in question.answers],
        "statement": [] if record.statement is None else [record.statement.text],
    }
    for region in record.regions:
        texts[region.kind].append(region.text)
    return texts


def _shown(words: Words) -> dict[str, int]:
    return {sanitize(word): n for word, n in words.most_common(COMMON).items()}

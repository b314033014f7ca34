"""NLVR2, evaluated: every statement of a split once; accuracy, and consistency over its pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xvlm_core.data import augment
from xvlm_core.data.batches import PairBatch, PairItem
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.pair_samples import NO_LABEL
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.metrics.bootstrap import interval
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.models.packing import PackedTexts
from xvlm_core.tasks.base import Batch, Prediction, Score, Scores
from xvlm_core.tasks.split_items import SplitItems

SELECTION = "accuracy"


class _Unusable(ValueError):
    """Why a pair cannot be asked about; the message is the reason that is counted."""


class Nlvr2Evaluation(SplitItems):
    """The statements of some stores' split, in order, each once; nothing is padded or repeated.

    A :class:`xvlm_core.tasks.store_evaluation.StoreEvaluation`.
    """

    NO_ANSWER: ClassVar[dict[str, Any]] = {"probability": None}

    selection: str | None = SELECTION
    of_pairs = True

    def references(self) -> Iterator[Prediction]:
        """Of every statement whose truth is known: ``id`` and what ``score`` wants beside."""
        self.forget_dropped()
        for place in self.places:
            record = place.record()
            try:
                item = _item(record, place.prefix)
                self._tokens_of(item)
            except _Unusable as problem:
                self.drop(f"{place.prefix}{record.id}", str(problem))
            else:
                yield _reference(item)

    def validation(self, rank: int = 0, world_size: int = 1) -> Iterator[PairBatch]:
        """Batches of statements. A picture that several of a batch are about is there once.

        The shares of the ranks, one after the other, are all statements in order.
        """
        for places in self.shares(rank, world_size):
            batch = _Made(self.image_size)
            for place in places:
                record = place.record()
                try:
                    item = _item(record, place.prefix)
                    batch.add(item, self._tokens_of(item), place.store, record)
                except _Unusable as problem:
                    self.drop(f"{place.prefix}{record.id}", str(problem))
            yield batch.made(self.newly_dropped())

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The probability of each statement that it is true."""
        assert isinstance(model, NLVR2)
        assert isinstance(batch, PairBatch)
        if not batch.items:
            return []
        states = model.read(batch.pictures_ICHW, batch.texts, batch.first_B, batch.second_B)
        true_B = model.statement_logits(states.first()).softmax(-1)[:, 1]
        return [
            {**_reference(item), "probability": probability}
            for item, probability in zip(batch.items, true_B.cpu().tolist(), strict=True)
        ]

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """See :func:`score`."""
        return score(predictions, self.split)

    def _tokens_of(self, item: PairItem) -> tuple[int, ...]:
        tokens = self.tokens(item.statement)
        if not tokens:
            raise _Unusable("empty text")
        return tokens


class _Made:
    """A batch while it is made."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.pictures: list[NDArray[np.float32]] = []
        self.number_of: dict[tuple[int, str], int | PictureError] = {}
        self.items: list[PairItem] = []
        self.tokens: list[tuple[int, ...]] = []
        self.pairs: list[list[int]] = []

    def add(self, item: PairItem, tokens: tuple[int, ...], store: Store, record: Record) -> None:
        """Read what was not read before.

        Raises:
            _Unusable: one of the pictures cannot be read.
        """
        pair = [self._number(store, record, which) for which in (0, 1)]
        self.items.append(item)
        self.tokens.append(tokens)
        self.pairs.append(pair)

    def _number(self, store: Store, record: Record, which: int) -> int:
        key = id(store), record.images[which]
        if key not in self.number_of:
            try:
                image = read_picture(store.picture(record, which))
            except PictureError as problem:
                self.number_of[key] = problem
            else:
                self.number_of[key] = len(self.pictures)
                shown = augment.test_picture(image, self.image_size)
                self.pictures.append(augment.normalise(shown))
        found = self.number_of[key]
        if isinstance(found, PictureError):
            raise _Unusable(found.reason)
        return found

    def made(self, dropped: dict[str, int]) -> PairBatch:
        pairs = torch.tensor(self.pairs, dtype=torch.int64).reshape(-1, 2)
        return PairBatch(
            pictures_ICHW=torch.from_numpy(np.stack(self.pictures))
            if self.items
            else torch.zeros(0, 3),
            texts=PackedTexts.from_lists(self.tokens),
            first_B=pairs[:, 0],
            second_B=pairs[:, 1],
            label_B=torch.tensor([int(item.label) for item in self.items], dtype=torch.int64),
            items=tuple(self.items),
            record_ids=tuple(item.record for item in self.items),
            dropped=dropped,
        )


def _item(record: Record, prefix: str) -> PairItem:
    statement = record.statement
    assert statement is not None, "records of pairs are looked at alone"
    if statement.label is None:
        raise _Unusable(NO_LABEL)
    group = record.meta.get("same_sentence")
    return PairItem(
        f"{prefix}{record.id}",
        record.id,
        statement.text,
        statement.label,
        f"{prefix}{group}" if isinstance(group, str) else None,
    )


def _reference(item: PairItem) -> Prediction:
    return {
        "id": item.id,
        "record": item.record,
        "statement": item.statement,
        "label": item.label,
        "group": item.group,
    }


def score(predictions: Sequence[Prediction], split: str) -> Scores:
    """Accuracy, consistency (where it is known what belongs together), and a constant answer's.

    Each id counts once; a prediction without a probability is wrong.

    Args:
        predictions: with ``id``, ``label`` (bool), ``group`` (str or None) and ``probability`` (in
            [0, 1], or None).
        split: that they are of.
    """
    unique = {p["id"]: p for p in predictions}
    assert len(unique) == len(predictions), "an id is predicted twice"
    if not predictions:
        return {}
    n = len(predictions)
    right = {p["id"]: _is_right(p) for p in predictions}
    # what is drawn again for the intervals: the pairs of one sentence together
    drawn = [p["group"] or p["id"] for p in predictions]
    spread = interval([right[p["id"]] for p in predictions], drawn)
    scores: Scores = {
        SELECTION: Score(
            sum(right.values()) / n, split, "true from 0.5 on, each pair once", n, interval=spread
        )
    }
    groups: dict[str, bool] = {}
    for p in predictions:
        if p["group"] is not None:
            groups[p["group"]] = groups.get(p["group"], True) and right[p["id"]]
    if groups:
        scores["consistency"] = Score(
            sum(groups.values()) / len(groups),
            split,
            "sentences right about all of their pairs",
            len(groups),
            interval=interval(list(groups.values()), list(groups)),
        )
    true = sum(bool(p["label"]) for p in predictions)
    scores["baseline: majority"] = Score(
        max(true, n - true) / n,
        split,
        f"always {str(2 * true >= n).lower()}, chosen on this very split",
        n,
    )
    return scores


def _is_right(prediction: Prediction) -> bool:
    probability = prediction["probability"]
    return probability is not None and (probability >= 0.5) == bool(prediction["label"])

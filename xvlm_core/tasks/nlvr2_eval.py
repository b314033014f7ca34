"""NLVR2, evaluated: every statement of a split once; accuracy, and consistency over its pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xvlm_core.config.schema import ScoringSection
from xvlm_core.data import augment
from xvlm_core.data.batches import PairBatch, PairItem
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.pair_samples import NO_LABEL
from xvlm_core.data.record_kinds import numbers_of
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.data.text import EmptyTextError, pre_caption
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.metrics.bootstrap import interval
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.models.packing import PackedTexts
from xvlm_core.tasks.base import Batch, Prediction, Score, Scores
from xvlm_core.weights.folder import ModelInfo

SELECTION = "accuracy"

_EXAMPLES = 20


class _Unusable(ValueError):
    """Why a pair cannot be asked about; the message is the reason that is counted."""


class Nlvr2Evaluation:
    """The statements of some stores' split, in order, each once; nothing is padded or repeated.

    A :class:`xvlm_core.tasks.evaluations.StoreEvaluation`.

    Args:
        stores: where the records are.
        split: which records.
        tokenizer: of the model.
        image_size: side of the pictures that the model sees, pixels.
        max_words: words kept of a statement.
        max_tokens: tokens kept of a statement.
        limit: at most this many pairs (the first ones), None: all.
        batch_pairs: statements a batch.
    """

    NO_ANSWER: ClassVar[dict[str, Any]] = {"probability": None}

    selection: str | None = SELECTION

    def __init__(
        self,
        stores: Sequence[Store],
        split: str,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        max_words: int,
        max_tokens: int,
        limit: int | None = None,
        batch_pairs: int = 32,
    ) -> None:
        self.split = split
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.max_words = max_words
        self.max_tokens = max_tokens
        self.batch_pairs = batch_pairs
        stores = list({_identity(store): store for store in stores}.values())
        # records of different stores may have the same id
        prefixes = [""] if len(stores) == 1 else [f"{n}:{s.name}/" for n, s in enumerate(stores)]
        self.places = [
            (store, prefix, int(i))
            for store, prefix in zip(stores, prefixes, strict=True)
            for i in numbers_of(store, split, pairs=True).array()
        ][:limit]
        self.dropped: Counter[str] = Counter()
        self.examples: list[str] = []

    @classmethod
    def of_model(
        cls,
        stores: Sequence[Store],
        split: str,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        scoring: ScoringSection | None = None,
        limit: int | None = None,
    ) -> Nlvr2Evaluation:
        """Pictures and statements as a model wants them."""
        return cls(
            stores,
            split,
            tokenizer,
            image_size=info.config.vision.image_size,
            max_words=info.max_words,
            max_tokens=info.max_tokens,
            limit=limit,
        )

    def references(self) -> Iterator[Prediction]:
        """Of every statement whose truth is known: ``id`` and what ``score`` wants beside."""
        for store, prefix, index in self.places:
            try:
                yield _reference(_item(store[index], prefix))
            except _Unusable:
                continue

    def validation(self, rank: int = 0, world_size: int = 1) -> Iterator[PairBatch]:
        """Batches of statements. A picture that several of a batch are about is there once.

        The shares of the ranks, one after the other, are all statements in order. What was dropped
        after the last one that could be asked comes as a batch without any.
        """
        self.dropped.clear()
        self.examples.clear()
        before: Counter[str] = Counter()
        n = len(self.places)
        places = self.places[rank * n // world_size : (rank + 1) * n // world_size]
        for start in range(0, len(places), self.batch_pairs):
            batch = _Made(self.image_size)
            for store, prefix, index in places[start : start + self.batch_pairs]:
                record = store[index]
                try:
                    item = _item(record, prefix)
                    batch.add(item, self._tokens(item.statement), store, record)
                except _Unusable as problem:
                    self._drop(f"{prefix}{record.id}", str(problem))
            yield batch.made(self.dropped - before)
            before = self.dropped.copy()

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

    def _tokens(self, text: str) -> tuple[int, ...]:
        try:
            words = pre_caption(text, self.max_words)
        except EmptyTextError:
            raise _Unusable("empty text") from None
        ids = self.tokenizer.encode(words, self.max_tokens).ids
        if len(ids) < 2:
            raise _Unusable("empty text")
        return ids

    def _drop(self, name: str, reason: str) -> None:
        self.dropped[reason] += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(f"{name}: {reason}")


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

    def made(self, dropped: Counter[str]) -> PairBatch:
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
            dropped=dict(dropped),
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


def _identity(store: Store) -> Path | str:
    return store.place.resolve() if isinstance(store.place, Path) else store.place


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

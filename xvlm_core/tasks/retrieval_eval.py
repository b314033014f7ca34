"""Retrieval, evaluated: the texts of every picture and the picture of every text of a split.

In three passes (official.md 3.1). All pictures and texts are encoded once. Of the pairs that are
near by similarity, each is scored once by the cross encoder, for both directions. Then each query
is ranked: by the score of its own k nearest, then by similarity.

A batch holds the same items on any number of ranks: the figures are the same to the last digit.

Legend: I pictures, P patches, S width of the picture encoder, T texts, E joint width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from xvlm_core.config.schema import ScoringSection
from xvlm_core.data import augment
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import CheckpointError
from xvlm_core.metrics.bootstrap import interval_of_means, intervals
from xvlm_core.metrics.recall import best_ranks, recall_at
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.text import OnePicture, TextStates
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.base import Batch, Prediction, Score, Scores
from xvlm_core.tasks.retrieval_passes import (
    AllTexts,
    CollectionBatch,
    PairsBatch,
    QueriesBatch,
    TextItem,
    match_scores,
)
from xvlm_core.tasks.retrieval_ranking import KEPT, Candidates, Found
from xvlm_core.tasks.split_items import SplitItems
from xvlm_core.weights.folder import ModelInfo

SELECTION = "r_mean"

RECALL_AT = (1, 5, 10)
assert max(RECALL_AT) <= KEPT

LOST_TEXT = "text: its picture is left out"
"""Why a text that could be read is not asked about."""

TEXTS_A_CALL = 1024
"""Texts of one picture that the cross encoder reads at once: bounds the memory."""


class RetrievalEvaluation(SplitItems):
    """The pictures and captions of some stores' split as one collection.

    A :class:`xvlm_core.tasks.store_evaluation.StoreEvaluation` in passes
    (:class:`xvlm_core.tasks.base.InPasses`), for any model with both heads. The patch tokens of a
    rank's pictures stay in memory (float32, on the CPU) between the passes: 0.6 MB a picture in the
    base model at 384 pixels. The states of all texts are on the model's device in the second one:
    37 kB a text of 12 tokens.

    Args:
        *args: of :class:`SplitItems`.
        candidates: texts a picture, and pictures a text, that the cross encoder scores; clipped
            to those that there are.
        batch_records: pictures that are encoded at once.
        **kwargs: of :class:`SplitItems`.
    """

    NO_ANSWER: ClassVar[dict[str, Any]] = {
        "ranking": [],
        "scores": [],
        "by_similarity": [],
        "similarities": [],
        "candidates": 0,
        "among": 0,
    }

    selection: str | None = SELECTION

    def __init__(
        self, *args: Any, candidates: int | None = None, batch_records: int = 16, **kwargs: Any
    ) -> None:
        super().__init__(*args, batch_records=batch_records, **kwargs)
        self.candidates = ScoringSection().candidates if candidates is None else candidates
        self._forget()

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
    ) -> Self:
        """Pictures and texts as a model wants them.

        Raises:
            CheckpointError: the model cannot compare or match.
        """
        lacking = [h for h in ("contrastive", "matching") if h not in info.config.heads]
        if lacking:
            raise CheckpointError(
                f"retrieval needs the heads contrastive and matching; this model ({info.task}) "
                f"has no {' and no '.join(lacking)} head",
                try_="-c RUN of a pre-trained or a retrieval model  (xvlm ls runs)",
            )
        found = super().of_model(stores, split, tokenizer, info, scoring=scoring, limit=limit)
        if scoring is not None:
            found.candidates = scoring.candidates
        return found

    def _forget(self) -> None:
        """What is known of the collection: an evaluation can be repeated."""
        self._patches: dict[str, Tensor] = {}
        self._encoded: dict[str, TextStates] = {}
        self._found: Found | None = None
        self._pairs: Candidates | None = None
        self._texts: AllTexts | None = None
        self._scores: npt.NDArray[np.float32] | None = None

    # ------------------------------------------------------------------ the items

    def references(self) -> Iterator[Prediction]:
        """Of every picture and every text: ``id`` and the right answers."""
        self.forget_dropped()
        for place in self.places:
            items = self._usable(place.record(), place.prefix)
            if items:
                yield _about_picture(items[0].picture, [item.id for item in items])
            for item in items:
                yield _about_text(item.id, item.picture, item.text)

    def validation(self, rank: int = 0, world_size: int = 1) -> Iterator[CollectionBatch]:
        """The first pass. The shares of the ranks, one after the other, are all batches in order.

        A picture that cannot be read is left out with its texts, a text of which nothing is left
        by itself, and a record without a usable text. Pictures and texts are counted apart.
        """
        self._forget()
        for places in self.shares(rank, world_size):
            pictures, ids, items = [], [], []
            for place in places:
                record = place.record()
                texts = self._usable(record, place.prefix)
                if not texts:
                    continue
                try:
                    image = read_picture(place.store.picture(record))
                except PictureError as problem:
                    self.drop(texts[0].picture, f"picture: {problem.reason}")
                    self.drop(texts[0].id, LOST_TEXT, len(texts))
                    continue
                pictures.append(augment.normalise(augment.test_picture(image, self.image_size)))
                ids.append((texts[0].picture, record.id))
                items += texts
            yield CollectionBatch(
                pictures_ICHW=torch.from_numpy(np.stack(pictures))
                if pictures
                else torch.zeros(0, 3),
                texts=PackedTexts.from_lists([item.tokens for item in items]),
                picture_ids=tuple(one for one, _ in ids),
                items=tuple(items),
                record_ids=tuple(record for _, record in ids),
                dropped=self.newly_dropped(),
            )

    def _items(self, record: Record, prefix: str) -> list[TextItem]:
        """All texts of a record; without tokens where nothing is left of one."""
        name = f"{prefix}{record.id}"
        return [
            TextItem(f"text:{name}#{n}", f"picture:{name}", text, self.tokens(text))
            for n, text in enumerate(record.captions)
        ]

    def _usable(self, record: Record, prefix: str) -> list[TextItem]:
        found = self._items(record, prefix)
        for item in found:
            if not item.tokens:
                self.drop(item.id, "text: empty text")
        usable = [item for item in found if item.tokens]
        if not usable:
            self.drop(f"picture:{prefix}{record.id}", "picture: no caption")
        return usable

    # ------------------------------------------------------------------ the passes

    def next_pass(
        self, predictions: Sequence[Prediction], rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch] | None:
        """Pairs to score after the features, rankings after the scores: see the module."""
        if not predictions or self._scores is not None:
            self._forget()
            return None
        if self._found is None:
            self._found = Found.of(predictions)
            self._pairs = Candidates(self._found, self.candidates)
            return self._pairs_to_score(self._found, self._pairs)
        self._scores = np.concatenate([p["scores"] for p in predictions])
        self._patches.clear()
        self._encoded.clear()
        self._texts = None
        return self._queries(self._found, rank, world_size)

    def _pairs_to_score(self, found: Found, pairs: Candidates) -> Iterator[PairsBatch]:
        """Of the pictures that this rank has encoded."""
        for number, picture in enumerate(found.picture_ids):
            if picture in self._patches:
                yield PairsBatch(picture, self._patches[picture], pairs.texts_of(number))

    def _queries(self, found: Found, rank: int, world_size: int) -> Iterator[QueriesBatch]:
        names = found.picture_ids + found.text_ids
        n = len(names)
        share = range(rank * n // world_size, (rank + 1) * n // world_size)
        if share:
            yield QueriesBatch(share, names[share.start : share.stop])

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Answers to a batch of any pass; those of the last are final."""
        assert isinstance(model, XVLM)
        if isinstance(batch, CollectionBatch):
            return self._encode(model, batch)
        if isinstance(batch, PairsBatch):
            return [self._score(model, batch)]
        assert isinstance(batch, QueriesBatch)
        return [self._rank(query) for query in batch.queries]

    def _encode(self, model: XVLM, batch: CollectionBatch) -> list[Prediction]:
        if not batch.picture_ids:
            return []
        patches_IPS = model.encode_pictures(batch.pictures_ICHW)
        states = model.encode_texts(batch.texts)
        views = model.whole(batch.n_pictures)
        pictures_IE = model.picture_features(patches_IPS, views).cpu().numpy()
        texts_TE = model.text_features(states.first()).cpu().numpy()
        self._patches |= zip(batch.picture_ids, patches_IPS.cpu(), strict=True)
        name = batch.picture_ids[0]
        self._encoded[name] = states
        return [
            *(
                {"id": picture, "text": None, "feature": feature}
                for picture, feature in zip(batch.picture_ids, pictures_IE, strict=True)
            ),
            *(
                {**vars(item), "batch": name, "feature": feature}
                for item, feature in zip(batch.items, texts_TE, strict=True)
            ),
        ]

    def _score(self, model: XVLM, batch: PairsBatch) -> Prediction:
        """The raw logit of "it matches" of a picture with each of its texts."""
        assert self._found is not None
        if self._texts is None:
            self._texts = AllTexts(self._found, model, self._encoded)
            self._encoded.clear()
        picture = OnePicture(batch.patches_PS)
        scores = [
            match_scores(model, self._texts.states(batch.texts[at : at + TEXTS_A_CALL]), picture)
            for at in range(0, len(batch.texts), TEXTS_A_CALL)
        ]
        found = torch.cat(scores).cpu().numpy() if scores else np.zeros(0, np.float32)
        return {"id": batch.picture, "scores": found}

    def _rank(self, query: int) -> Prediction:
        found, pairs = self._found, self._pairs
        assert found is not None
        assert pairs is not None
        assert self._scores is not None
        n_pictures = len(found.picture_ids)
        if query < n_pictures:
            ranking = pairs.picture_ranking(query, self._scores)
            names, direction = found.text_ids, pairs.of_pictures
            right = np.flatnonzero(found.picture_of_text == query)
            about = _about_picture(found.picture_ids[query], [names[t] for t in right])
        else:
            query -= n_pictures
            ranking = pairs.text_ranking(query, self._scores)
            names, direction = found.picture_ids, pairs.of_texts
            picture = found.picture_ids[found.picture_of_text[query]]
            about = _about_text(found.text_ids[query], picture, found.texts[query])
        return {
            **about,
            "ranking": [names[n] for n in ranking.ranked],
            "scores": ranking.scores,
            "by_similarity": [names[n] for n in ranking.by_similarity],
            "similarities": ranking.similarities,
            "candidates": direction.asked,
            "among": len(names),
        }

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """See :func:`score`."""
        return score(predictions, self.split)


def _about_picture(picture: str, texts: Sequence[str]) -> Prediction:
    return {"id": picture, "text": None, "right": list(texts)}


def _about_text(name: str, picture: str, text: str) -> Prediction:
    return {"id": name, "text": text, "right": [picture]}


def score(predictions: Sequence[Prediction], split: str) -> Scores:
    """Recall at 1, 5 and 10 in both directions, and their mean; re-ranked and by similarity alone.

    A query is answered as soon as one of its right answers is among the first k. Each id counts
    once; a query without answers is missed.

    Args:
        predictions: with ``id``, ``text`` (None: the query is a picture), ``right``, ``ranking``
            and ``by_similarity``, and of how many candidates among how many they come.
        split: that they are of.
    """
    unique = {p["id"]: p for p in predictions}
    assert len(unique) == len(predictions), "an id is predicted twice"
    asked = {
        "text": [p for p in predictions if p["text"] is None],
        "image": [p for p in predictions if p["text"] is not None],
    }
    scores: Scores = {}
    # what is drawn again for the intervals: a picture with all its texts
    all_drawn = [_picture_of(q) for queries in asked.values() for q in queries]
    n_pictures = len(asked["text"])
    for field_name, suffix in (("ranking", ""), ("by_similarity", " by similarity")):
        values = []
        six: dict[str, npt.NDArray[np.float64]] = {}
        for direction, queries in asked.items():
            ranks = best_ranks([q[field_name] for q in queries], [q["right"] for q in queries])
            how = _convention(direction, queries, reranked=not suffix)
            spread = intervals(
                {f"{k}": ranks < k for k in RECALL_AT}, list(map(_picture_of, queries))
            )
            own = slice(0, n_pictures) if direction == "text" else slice(n_pictures, None)
            for k in RECALL_AT:
                values.append(recall_at(ranks, k))
                name = f"{direction} R@{k}{suffix}"
                six[name] = np.full(len(all_drawn), np.nan)
                six[name][own] = ranks < k
                scores[name] = Score(values[-1], split, how, len(queries), interval=spread[f"{k}"])
        mean = sum(values) / len(values)
        how = "mean of the six recalls" + (", similarity alone" if suffix else ", re-ranked")
        spread_of_mean = interval_of_means(lambda means: means.mean(axis=1), six, all_drawn)
        scores[SELECTION + suffix] = Score(
            mean, split, how, len(predictions), interval=spread_of_mean
        )
    return scores


def _picture_of(query: Prediction) -> str:
    """The picture that is asked about, or that a text belongs to."""
    name: str = query["id"] if query["text"] is None else query["right"][0]
    return name


def _convention(direction: str, queries: Sequence[Prediction], *, reranked: bool) -> str:
    """How the figures of a direction come about: says so where there were few candidates."""
    what = "texts of a picture" if direction == "text" else "picture of a text"
    among = max((q["among"] for q in queries), default=0)
    if not reranked:
        return f"{what}, by similarity among {among:,}"
    k = max((q["candidates"] for q in queries), default=0)
    return f"{what}, the {k:,} nearest of {among:,} ranked by matching"

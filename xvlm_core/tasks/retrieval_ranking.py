"""What is ranked in retrieval, which pairs are worth a close look, and the rankings. NumPy alone.

Legend: I pictures, T texts, E joint width, k candidates a query, m answers kept a query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from xvlm_core.metrics.recall import Nearest, nearest
from xvlm_core.tasks.base import Prediction

KEPT = 10
"""Answers kept of each ranking: as many as the metrics look at."""


@dataclass(frozen=True)
class Found:
    """One collection with the features of all its pictures and texts.

    Attributes:
        picture_ids, text_ids: in the order of the collection.
        picture_of_text: number of the picture that each text belongs to.
        texts: what the texts say.
        tokens: of each text.
        batch_of_text: number of the batch in which each was encoded.
        pictures_IE: unit vectors, float32.
        texts_TE: the same.
    """

    picture_ids: tuple[str, ...]
    text_ids: tuple[str, ...]
    picture_of_text: npt.NDArray[np.int64]
    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    batch_of_text: npt.NDArray[np.int64]
    pictures_IE: npt.NDArray[np.float32]
    texts_TE: npt.NDArray[np.float32]

    @classmethod
    def of(cls, predictions: Sequence[Prediction]) -> Found:
        """The collection that the predictions of the first pass describe."""
        pictures = [p for p in predictions if p["text"] is None]
        texts = [p for p in predictions if p["text"] is not None]
        number = {p["id"]: n for n, p in enumerate(pictures)}
        # a batch is called by its first picture
        return cls(
            tuple(number),
            tuple(p["id"] for p in texts),
            np.array([number[p["picture"]] for p in texts], dtype=np.int64),
            tuple(p["text"] for p in texts),
            tuple(p["tokens"] for p in texts),
            np.array([number[p["batch"]] for p in texts], dtype=np.int64),
            np.stack([p["feature"] for p in pictures]),
            np.stack([p["feature"] for p in texts]),
        )


@dataclass(frozen=True)
class Direction:
    """Queries of one kind and the candidates of each.

    Attributes:
        near: the m or k nearest by similarity, whichever is more.
        asked: how many of them, the first ones, are looked at closely (k).
    """

    near: Nearest
    asked: int

    @classmethod
    def of(
        cls,
        queries: npt.NDArray[np.float32],
        candidates: npt.NDArray[np.float32],
        k: int,
        chunk: int,
    ) -> Direction:
        """Clipped to the candidates that there are."""
        n = len(candidates)
        return cls(nearest(queries, candidates, min(max(k, KEPT), n), chunk=chunk), min(k, n))

    def close(self) -> npt.NDArray[np.int64]:
        """Candidates to look at closely, ``(Q, k)``."""
        return self.near.candidates_Qk[:, : self.asked]

    def ranking(self, query: int, scores: npt.NDArray[np.float32]) -> Ranking:
        """Of one query: by score, then by similarity, then by number.

        What was not looked at closely comes after all that was.

        Args:
            query: its number.
            scores: of its candidates, in the order of ``close``.
        """
        numbers = self.near.candidates_Qk[query]
        # they stand by similarity, then by number: a stable sort keeps that among equals
        order = np.argsort(-scores, kind="stable")
        ranked = np.concatenate([numbers[: self.asked][order], numbers[self.asked :]])[:KEPT]
        kept: list[float | None] = [float(s) for s in scores[order][:KEPT]]
        kept += [None] * (len(ranked) - len(kept))
        similarity = self.near.similarity_Qk[query][:KEPT]
        return Ranking(
            ranked.tolist(), kept, numbers[:KEPT].tolist(), [float(s) for s in similarity]
        )


@dataclass(frozen=True)
class Ranking:
    """The first answers to one query, by number.

    Attributes:
        ranked: the best first.
        scores: of these; None where one was not looked at closely.
        by_similarity: the nearest first.
        similarities: of those.
    """

    ranked: list[int]
    scores: list[float | None]
    by_similarity: list[int]
    similarities: list[float]


class Candidates:
    """The pairs of pictures and texts that are looked at closely: each once, for both directions.

    Args:
        found: the collection.
        k: texts a picture, and pictures a text; clipped to those that there are.
        chunk: queries whose similarities are in memory at once.

    Attributes:
        of_pictures: the texts of each picture.
        of_texts: the pictures of each text.
    """

    def __init__(self, found: Found, k: int, *, chunk: int = 256) -> None:
        self.of_pictures = Direction.of(found.pictures_IE, found.texts_TE, k, chunk)
        self.of_texts = Direction.of(found.texts_TE, found.pictures_IE, k, chunk)
        self._n_texts = len(found.text_ids)
        first = self._keys(np.arange(len(found.picture_ids))[:, None], self.of_pictures.close())
        second = self._keys(self.of_texts.close(), np.arange(self._n_texts)[:, None])
        self._pairs = np.union1d(first, second)
        """Sorted by picture, then by text."""

    def _keys(
        self, pictures: npt.NDArray[np.int64] | int, texts: npt.NDArray[np.int64] | int
    ) -> npt.NDArray[np.int64]:
        return np.asarray(pictures * self._n_texts + texts)

    def __len__(self) -> int:
        return len(self._pairs)

    def texts_of(self, picture: int) -> npt.NDArray[np.int64]:
        """Texts that a picture is to be scored with, for either direction."""
        first, end = np.searchsorted(
            self._pairs, [picture * self._n_texts, (picture + 1) * self._n_texts]
        )
        return self._pairs[first:end] - picture * self._n_texts

    def picture_ranking(self, picture: int, scores: npt.NDArray[np.float32]) -> Ranking:
        """The texts of a picture.

        Args:
            picture: its number.
            scores: of all pairs, picture by picture, in the order of ``texts_of``.
        """
        keys = self._keys(picture, self.of_pictures.close()[picture])
        return self.of_pictures.ranking(picture, self._scores(keys, scores))

    def text_ranking(self, text: int, scores: npt.NDArray[np.float32]) -> Ranking:
        """The pictures of a text; see :meth:`picture_ranking`."""
        keys = self._keys(self.of_texts.close()[text], text)
        return self.of_texts.ranking(text, self._scores(keys, scores))

    def _scores(
        self, keys: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        return scores[np.searchsorted(self._pairs, keys)]

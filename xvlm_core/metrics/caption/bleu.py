"""BLEU-1 to BLEU-4 of captions. Python and NumPy only; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xvlm_core.metrics.caption.ngrams import ORDER, Floats, Score, Tokens
from xvlm_core.metrics.caption.table import Ints, NgramTable

# pycocoevalcap's: keep a caption without any 4-gram from dividing by zero
_TINY = 1e-15
_SMALL = 1e-9


class Bleu:
    """Geometric mean of clipped n-gram precisions times a penalty for brevity.

    Papineni et al., BLEU (ACL 2002), section 2.3; the reference length is the one closest to the
    candidate's, the shorter of two that are equally close, and the sums run over the whole set
    before they are divided. To precisions and ratio of lengths the small constants of pycocoevalcap
    are added, so that figures agree with it; a caption alone (``each``) is scored in the same way.
    """

    def score(
        self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
    ) -> tuple[Score, ...]:
        """BLEU-1, ..., BLEU-4, in [0, 1].

        Args:
            candidates: N captions.
            references: of each, at least one.
        """
        return self.score_table(NgramTable.of(candidates, references))

    def score_table(self, table: NgramTable) -> tuple[Score, ...]:
        """The same of captions that are counted already."""
        statistics = _statistics(table)
        each = _from_statistics(statistics)
        corpus = _from_statistics(statistics.sum(axis=0, keepdims=True))[0]
        return tuple(Score(float(corpus[n]), each[:, n]) for n in range(ORDER))

    def score_each(
        self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
    ) -> Floats:
        """BLEU-4 of each caption alone, ``(N,)``: a reward."""
        return self.score(candidates, references)[-1].each


def _statistics(table: NgramTable) -> Floats:
    """Length, closest reference length, n-grams that are right and n-grams there are, by order."""
    length = table.length_C[: table.n]
    right, there = [], []
    for size, order in enumerate(table.orders, start=1):
        most = np.zeros(order.n_own, dtype=np.int64)
        hit = order.match >= 0
        np.maximum.at(most, order.match[hit], order.times_E[order.n_own :][hit])
        clipped = np.minimum(most, order.times_E[: order.n_own])
        right.append(np.bincount(order.caption_E[: order.n_own], clipped, minlength=table.n))
        there.append(np.maximum(0, length - size + 1))
    columns = [length, _closest(table), *right, *there]
    return np.stack(columns, axis=1).astype(np.float64)


def _closest(table: NgramTable) -> Ints:
    """Of each candidate, the length of the reference that is nearest to its own."""
    picture, length = table.picture_C[table.n :], table.length_C[table.n :]
    order = np.lexsort((length, np.abs(length - table.length_C[picture]), picture))
    return length[order[np.searchsorted(picture[order], np.arange(table.n))]]


def _from_statistics(table: Floats) -> Floats:
    """``(N, ORDER)``."""
    length, closest = table[:, 0], table[:, 1]
    right, there = table[:, 2 : 2 + ORDER], table[:, 2 + ORDER :]
    precisions = np.cumprod((right + _TINY) / (there + _SMALL), axis=1)
    scores: Floats = precisions ** (1 / np.arange(1, ORDER + 1))
    ratio = (length + _TINY) / (closest + _SMALL)
    penalty = np.array([math.exp(1 - 1 / r) if r < 1 else 1.0 for r in ratio])
    scores *= penalty[:, None]
    return scores

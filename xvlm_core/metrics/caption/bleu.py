"""BLEU-1 to BLEU-4 of captions. Python and NumPy only; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xvlm_core.metrics.caption.ngrams import ORDER, Counted, Floats, Ngram, Score, Tokens, count

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
        self,
        candidates: Sequence[Tokens | Counted],
        references: Sequence[Sequence[Tokens | Counted]],
    ) -> tuple[Score, ...]:
        """BLEU-1, ..., BLEU-4, in [0, 1].

        Args:
            candidates: N captions.
            references: of each, at least one.
        """
        rows = [
            _statistics(count(candidate), [count(reference) for reference in own])
            for candidate, own in zip(candidates, references, strict=True)
        ]
        table = np.array(rows, dtype=np.float64).reshape(-1, 2 + 2 * ORDER)
        each = _from_statistics(table)
        corpus = _from_statistics(table.sum(axis=0, keepdims=True))[0]
        return tuple(Score(float(corpus[n]), each[:, n]) for n in range(ORDER))

    def score_each(
        self,
        candidates: Sequence[Tokens | Counted],
        references: Sequence[Sequence[Tokens | Counted]],
    ) -> Floats:
        """BLEU-4 of each caption alone, ``(N,)``: a reward."""
        return self.score(candidates, references)[-1].each


def _statistics(candidate: Counted, references: Sequence[Counted]) -> list[int]:
    """Length, closest reference length, n-grams that are right and n-grams there are, by order."""
    assert references, "a caption without references cannot be scored"
    at_most: dict[Ngram, int] = {}
    for reference in references:
        for ngram in candidate.ngrams.keys() & reference.ngrams.keys():
            there = reference.ngrams[ngram]
            if there > at_most.get(ngram, 0):
                at_most[ngram] = there
    right = [0] * ORDER
    for ngram, limit in at_most.items():
        right[len(ngram) - 1] += min(limit, candidate.ngrams[ngram])
    length = candidate.length
    closest = min((abs(r.length - length), r.length) for r in references)[1]
    return [length, closest, *right, *(max(0, length - n) for n in range(ORDER))]


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

"""ROUGE-L of captions. Python and NumPy only; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xvlm_core.metrics.caption.ngrams import Floats, Score, Tokens


@dataclass(frozen=True)
class RougeL:
    """F-measure of the longest common subsequence with the references.

    Lin, ROUGE (2004), section 3.1, equations 2 to 4; of several references the best precision and
    the best recall are taken, each by itself, as in pycocoevalcap. There a caption without words
    counts as one empty word, here too.

    Attributes:
        beta: weight of recall against precision; 1.2 in the evaluation of COCO captions.
    """

    beta: float = 1.2

    def score(self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Score:
        """The mean over N captions, and each; in [0, 1]."""
        each = self.score_each(candidates, references)
        return Score(float(each.mean()) if len(each) else 0.0, each)

    def score_each(
        self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]
    ) -> Floats:
        """Of each of N captions, against its references (at least one): ``(N,)``."""
        pairs = zip(candidates, references, strict=True)
        return np.array([self._one(candidate, own) for candidate, own in pairs], dtype=np.float64)

    def _one(self, candidate: Tokens, references: Sequence[Tokens]) -> float:
        assert references, "a caption without references cannot be scored"
        words = candidate or ("",)
        places: dict[str, int] = {}
        for place, word in enumerate(words):
            places[word] = places.get(word, 0) | 1 << place
        precision = recall = 0.0
        for reference in references:
            other = reference or ("",)
            common = _longest_common_subsequence(places, len(words), other)
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(other))
        if not precision or not recall:
            return 0.0
        square = self.beta**2
        return (1 + square) * precision * recall / (recall + square * precision)


def _longest_common_subsequence(places: dict[str, int], length: int, other: Tokens) -> int:
    """Length of the longest common subsequence, a whole row of the table at a time.

    The row is a number of one bit a word of the first caption; a bit is 0 where the table's value
    rises (Hyyrö, Bit-parallel LCS-length computation revisited, 2004).

    Args:
        places: of each word of the first caption, the bits where it stands.
        length: words of the first caption.
        other: the second one.
    """
    full = (1 << length) - 1
    row = full
    for word in other:
        matched = row & places.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return length - row.bit_count()

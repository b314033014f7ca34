"""What the scorers count in a caption: its n-grams. Python and NumPy only.

The scorers take tokens as they are. For figures that compare with published ones these are the
tokens of ``ptb.tokenise``; a reward may take plain words. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = Sequence[str]
Ngram = tuple[str, ...]
Floats = NDArray[np.float64]

ORDER = 4
"""Longest n-gram that is counted."""


@dataclass(frozen=True)
class Counted:
    """A caption as the scorers see it.

    Attributes:
        ngrams: how often each n-gram of 1 to ``ORDER`` words occurs.
        length: words.
    """

    ngrams: dict[Ngram, int]
    length: int


def count(tokens: Tokens | Counted) -> Counted:
    """The n-grams of a caption; what is counted already comes back as it is.

    A token with a space in it (a phone number has one that does not break) counts as several words
    here, as in pycocoevalcap.
    """
    if isinstance(tokens, Counted):
        return tokens
    words = " ".join(tokens).split()
    ngrams: dict[Ngram, int] = {}
    for n in range(1, ORDER + 1):
        for ngram in zip(*(words[start:] for start in range(n)), strict=False):
            ngrams[ngram] = ngrams.get(ngram, 0) + 1
    return Counted(ngrams, len(words))


@dataclass(frozen=True)
class Score:
    """A score of a set of captions.

    Attributes:
        corpus: of them all.
        each: of each alone, ``(N,)``.
    """

    corpus: float
    each: Floats

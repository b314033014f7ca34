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
        ngrams: how often each n-gram occurs, of one word, two, ..., ``ORDER``.
        length: words.
    """

    ngrams: tuple[dict[Ngram, int], ...]
    length: int


def words_of(tokens: Tokens) -> list[str]:
    """Words that n-grams are made of.

    A token with a space in it (a phone number has one that does not break) is several words here,
    as in pycocoevalcap.
    """
    return " ".join(tokens).split()


def count(tokens: Tokens | Counted) -> Counted:
    """The n-grams of a caption; what is counted already comes back as it is."""
    if isinstance(tokens, Counted):
        return tokens
    words = words_of(tokens)
    tails = [words[start:] for start in range(ORDER)]
    return Counted(tuple(_times(tails[:n], len(words)) for n in range(1, ORDER + 1)), len(words))


def _times(tails: list[list[str]], length: int) -> dict[Ngram, int]:
    """How often each row of words that stand side by side occurs."""
    times: dict[Ngram, int] = dict.fromkeys(zip(*tails, strict=False), 1)
    if len(times) <= length - len(tails):  # one comes twice
        times.clear()
        for ngram in zip(*tails, strict=False):
            times[ngram] = times.get(ngram, 0) + 1
    return times


@dataclass(frozen=True)
class Score:
    """A score of a set of captions.

    Attributes:
        corpus: of them all.
        each: of each alone, ``(N,)``.
    """

    corpus: float
    each: Floats

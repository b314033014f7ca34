"""The n-grams of a whole set of captions as arrays: to count a set at once. Imports no torch.

Legend: N candidates; C captions, the candidates first, then all references; G different n-grams of
one order; E times that a caption has one of them (each once).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from xvlm_core.metrics.caption.ngrams import ORDER, Floats, Ngram, Tokens, words_of

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The n-grams of one length.

    Attributes:
        caption_E: whose, rising: those of the candidates come first.
        ngram_E: number of the n-gram, 0 to G - 1.
        times_E: how often the caption has it.
        first_G: where each n-gram stands first, in the words of all captions.
        n_own: of E, those of candidates.
        match: for each entry of a reference, the entry of the picture's candidate that has the
            same n-gram; -1: it has none.
        pictures_with_G: pictures that have it in a reference.
    """

    caption_E: Ints
    ngram_E: Ints
    times_E: Ints
    first_G: Ints
    n_own: int
    match: Ints
    pictures_with_G: Ints


@dataclass(frozen=True)
class NgramTable:
    """The n-grams of candidates and of their references.

    Attributes:
        n: candidates.
        words: of all captions, one after the other.
        length_C: words of each caption.
        picture_C: the candidate that each caption belongs to.
        orders: of one word, two, ..., ``ORDER``.
    """

    n: int
    words: list[str]
    length_C: Ints
    picture_C: Ints
    orders: tuple[Order, ...]

    @classmethod
    def of(cls, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> NgramTable:
        """Count them.

        Args:
            candidates: N captions.
            references: of each, at least one.
        """
        assert len(candidates) == len(references), "references for each caption"
        assert all(references), "a caption without references cannot be scored"
        n = len(candidates)
        captions = [words_of(tokens) for tokens in chain(candidates, *references)]
        words = list(chain.from_iterable(captions))
        numbers: dict[str, int] = {}
        word = np.array([numbers.setdefault(w, len(numbers)) for w in words], dtype=np.int64)
        length_C = np.array([len(caption) for caption in captions], dtype=np.int64)
        counts = np.array([len(own) for own in references], dtype=np.int64)
        picture_C = np.concatenate([np.arange(n), np.repeat(np.arange(n), counts)])
        caption = np.repeat(np.arange(len(captions)), length_C)
        # words from each place to the end of its caption
        rest = np.repeat(np.cumsum(length_C), length_C) - np.arange(len(words))
        orders = []
        ngram = np.zeros_like(word)
        for size in range(1, ORDER + 1):
            place = np.flatnonzero(rest >= size)
            key = ngram[place] * len(numbers) + word[place + size - 1]
            different, ngram[place] = np.unique(key, return_inverse=True)
            first = np.empty_like(different)
            first[ngram[place][::-1]] = place[::-1]  # of several, the last that is written
            orders.append(_order(caption[place], ngram[place], first, n, picture_C))
        return cls(n, words, length_C, picture_C, tuple(orders))

    def pictures_with(self, size: int, known: Mapping[Ngram, int]) -> Ints:
        """How many pictures of another collection have each n-gram of ``size`` words: ``(G,)``."""
        firsts = self.orders[size - 1].first_G.tolist()
        ngrams = (tuple(self.words[first : first + size]) for first in firsts)
        return np.array([known.get(ngram, 0) for ngram in ngrams], dtype=np.int64)

    def sums(self, size: int, values_E: Floats) -> Floats:
        """Sum over the n-grams of ``size`` words of each caption: ``(C,)``."""
        caption_E = self.orders[size - 1].caption_E
        sums: Floats = np.bincount(
            caption_E, weights=values_E, minlength=len(self.length_C)
        ).astype(np.float64, copy=False)
        return sums


def _order(caption: Ints, ngram: Ints, first_G: Ints, n: int, picture_C: Ints) -> Order:
    size = max(1, len(first_G))
    key, times = np.unique(caption * size + ngram, return_counts=True)
    caption_E, ngram_E = key // size, key % size
    n_own = int(np.searchsorted(caption_E, n))
    own = key[:n_own]
    wanted = picture_C[caption_E[n_own:]] * size + ngram_E[n_own:]
    at = np.minimum(np.searchsorted(own, wanted), max(0, n_own - 1))
    match = np.where(own[at] == wanted, at, -1) if n_own else np.full(len(wanted), -1)
    in_order = np.sort(wanted)  # np.unique alone goes by hashing, which is many times as slow
    once = in_order[np.diff(in_order, prepend=-1) > 0]
    pictures_with_G = np.bincount(once % size, minlength=len(first_G))
    return Order(caption_E, ngram_E, times, first_G, n_own, match, pictures_with_G)

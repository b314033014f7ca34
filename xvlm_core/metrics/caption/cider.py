"""CIDEr of captions, also as a reward. Python and NumPy only; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xvlm_core.metrics.caption.frequencies import DocumentFrequencies
from xvlm_core.metrics.caption.ngrams import ORDER, Counted, Floats, Ngram, Score, Tokens, count

Form = Literal["cider-d", "cider"]

_SCALE = 10.0


@dataclass(frozen=True)
class _Vector:
    """A caption with its n-grams weighed.

    Attributes:
        weights: term frequency times inverse document frequency.
        norms: Euclidean norm of those of each order.
        length: pycocoevalcap's: the number of bigrams.
    """

    weights: dict[Ngram, float]
    norms: tuple[float, ...]
    length: int


class _Weights(dict[Ngram, float]):
    """Inverse document frequencies, each worked out when it is first asked for."""

    def __init__(self, frequencies: DocumentFrequencies) -> None:
        super().__init__()
        self._frequencies = frequencies

    def __missing__(self, ngram: Ngram) -> float:
        weight = self._frequencies.weight(ngram)
        if ngram in self._frequencies.pictures_with:  # others are without number
            self[ngram] = weight
        return weight


class Cider:
    """Consensus with the references: similarity of n-grams that are weighed by how rare they are.

    Vedantam, Zitnick and Parikh, CIDEr (CVPR 2015, arXiv 1411.5726): weights of equation 1, mean
    over the references of the cosine of equation 2, mean over n = 1 to 4 of equation 3. The form
    ``cider-d`` is equation 4: clipped, and with a Gaussian penalty for another length; it is what
    pycocoevalcap's ``Cider`` computes and papers call CIDEr. Both are ten times as large, as there;
    words are not stemmed.

    Args:
        frequencies: of n-grams in the references of a whole collection, frozen: for a reward, and
            for figures of a part of a collection. None: of the references that are given.
        form: which.
        sigma: of the penalty, in words.
        cached: pictures whose references are kept weighed between calls, where frequencies are
            frozen and ids of pictures are given.
    """

    def __init__(
        self,
        frequencies: DocumentFrequencies | None = None,
        *,
        form: Form = "cider-d",
        sigma: float = 6.0,
        cached: int = 20_000,
    ) -> None:
        self._weights = None if frequencies is None else _Weights(frequencies)
        self._form = form
        self._sigma = sigma
        self._cached = cached
        self._kept: dict[Hashable, tuple[list[Tokens | Counted], list[_Vector]]] = {}

    def score(
        self,
        candidates: Sequence[Tokens | Counted],
        references: Sequence[Sequence[Tokens | Counted]],
    ) -> Score:
        """The mean over N captions, and each: see ``score_each``."""
        each = self.score_each(candidates, references)
        return Score(float(each.mean()) if len(each) else 0.0, each)

    def score_each(
        self,
        candidates: Sequence[Tokens | Counted],
        references: Sequence[Sequence[Tokens | Counted]],
        image_ids: Sequence[Hashable] | None = None,
    ) -> Floats:
        """Of each caption, against its references; 0 to 10.

        Without frozen frequencies they are counted here, one document a caption: then each picture
        must come once.

        Args:
            candidates: N captions.
            references: of each, at least one.
            image_ids: of each, its picture: the references of one that came before, if they are
                still the same, are not weighed again.

        Returns:
            ``(N,)``.
        """
        assert len(candidates) == len(references), "references for each caption"
        weights = self._weights
        if weights is None:
            counted = [[count(reference) for reference in own] for own in references]
            weights = _Weights(DocumentFrequencies.of(counted))
            vectors = [[_weigh(reference, weights) for reference in own] for own in counted]
        elif image_ids is None:
            vectors = [[_weigh(count(reference), weights) for reference in r] for r in references]
        else:
            pairs = zip(image_ids, references, strict=True)
            vectors = [self._of_picture(image, own, weights) for image, own in pairs]
        scores = [
            self._one(_weigh(count(candidate), weights), own)
            for candidate, own in zip(candidates, vectors, strict=True)
        ]
        return np.array(scores, dtype=np.float64)

    def _of_picture(
        self, image: Hashable, references: Sequence[Tokens | Counted], weights: _Weights
    ) -> list[_Vector]:
        known = self._kept.get(image)
        given = list(references)
        if known is not None and known[0] == given:
            return known[1]
        vectors = [_weigh(count(reference), weights) for reference in given]
        if image not in self._kept and len(self._kept) >= self._cached > 0:
            del self._kept[next(iter(self._kept))]
        if self._cached > 0:
            self._kept[image] = (given, vectors)
        return vectors

    def _one(self, candidate: _Vector, references: Sequence[_Vector]) -> float:
        assert references, "a caption without references cannot be scored"
        clipped = self._form == "cider-d"
        total = 0.0
        for reference in references:
            total += _similarity(candidate, reference, clipped) * (
                math.exp(-((candidate.length - reference.length) ** 2) / (2 * self._sigma**2))
                if clipped
                else 1.0
            )
        return _SCALE * total / ORDER / len(references)


def _weigh(counted: Counted, idf: _Weights) -> _Vector:
    weights: dict[Ngram, float] = {}
    squares = [0.0] * ORDER
    for ngram, n in counted.ngrams.items():
        weights[ngram] = weight = n * idf[ngram]
        squares[len(ngram) - 1] += weight * weight
    norms = tuple(math.sqrt(square) for square in squares)
    return _Vector(weights, norms, max(0, counted.length - 1))


def _similarity(candidate: _Vector, reference: _Vector, clipped: bool) -> float:
    """Sum over the orders of the cosine of the two captions' weights."""
    products = [0.0] * ORDER
    own, theirs = candidate.weights, reference.weights
    for ngram, weight in own.items():  # in the order of the words: sums are the same in each run
        other = theirs.get(ngram)
        if other is not None:
            products[len(ngram) - 1] += (min(weight, other) if clipped else weight) * other
    total = 0.0
    for product, norm, other_norm in zip(products, candidate.norms, reference.norms, strict=True):
        if norm and other_norm:
            total += product / (norm * other_norm)
    return total

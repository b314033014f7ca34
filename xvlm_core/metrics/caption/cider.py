"""CIDEr of captions, also as a reward. Python and NumPy only; imports no torch."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xvlm_core.metrics.caption.frequencies import DocumentFrequencies
from xvlm_core.metrics.caption.ngrams import ORDER, Counted, Floats, Ngram, Score, Tokens, count
from xvlm_core.metrics.caption.table import NgramTable

Form = Literal["cider-d", "cider"]

_SCALE = 10.0


class _Weights:
    """What n-grams weigh."""

    def __init__(self, frequencies: DocumentFrequencies) -> None:
        self._pictures_with = frequencies.pictures_with.get
        self._of = frequencies.weights()

    def weighed(self, ngrams: dict[Ngram, int]) -> list[float]:
        """Term frequency times inverse document frequency of each."""
        known, of = self._pictures_with, self._of
        return [times * of[known(ngram, 0)] for ngram, times in ngrams.items()]


@dataclass(frozen=True)
class _Reference:
    """A reference caption.

    Attributes:
        counted: its n-grams.
        norms: by order, Euclidean norm of their weights.
    """

    counted: Counted
    norms: tuple[float, ...]


def _bigrams(counted: Counted) -> int:
    """What pycocoevalcap takes for the length of a caption."""
    return max(0, counted.length - 1)


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
        self._frequencies = frequencies
        self._weights = None if frequencies is None else _Weights(frequencies)
        self._form = form
        self._sigma = sigma
        self._cached = cached
        self._kept: dict[Hashable, tuple[list[Tokens | Counted], list[_Reference]]] = {}

    def score(self, candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> Score:
        """The mean over N captions, and each, of a whole set: see ``score_each``."""
        return self.score_table(NgramTable.of(candidates, references))

    def score_table(self, table: NgramTable) -> Score:
        """The same of captions that are counted already."""
        similarity_C = np.zeros(len(table.length_C))
        for size, order in enumerate(table.orders, start=1):
            if self._frequencies is None:
                documents, pictures_with_G = table.n, order.pictures_with_G
            else:
                documents = self._frequencies.documents
                pictures_with_G = table.pictures_with(size, self._frequencies.pictures_with)
            idf_G = math.log(max(1, documents)) - np.log(np.maximum(1, pictures_with_G))
            weight_E = order.times_E * idf_G[order.ngram_E]
            norm_C = np.sqrt(table.sums(size, weight_E**2))
            theirs_E = weight_E[order.n_own :]
            own_E = weight_E[order.match]  # of what the candidate lacks: any
            if self._form == "cider-d":
                own_E = np.minimum(own_E, theirs_E)
            product_E = np.zeros_like(weight_E)
            product_E[order.n_own :] = np.where(order.match >= 0, own_E * theirs_E, 0)
            norms_C = norm_C * norm_C[table.picture_C]
            product_C = table.sums(size, product_E)
            similarity_C += np.divide(
                product_C, norms_C, out=np.zeros_like(product_C), where=norms_C > 0
            )
        if self._form == "cider-d":
            bigrams_C = np.maximum(0, table.length_C - 1)
            gap_C = bigrams_C - bigrams_C[table.picture_C]
            similarity_C *= np.exp(-(gap_C**2) / (2 * self._sigma**2))
        picture, similarity = table.picture_C[table.n :], similarity_C[table.n :]
        total = np.bincount(picture, weights=similarity, minlength=table.n)
        each = _SCALE * total / ORDER / np.maximum(1, np.bincount(picture, minlength=table.n))
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
            vectors = [[_reference(reference, weights) for reference in own] for own in counted]
        elif image_ids is None:
            vectors = [
                [_reference(count(reference), weights) for reference in r] for r in references
            ]
        else:
            pairs = zip(image_ids, references, strict=True)
            vectors = [self._of_picture(image, own, weights) for image, own in pairs]
        scores = [
            self._one(count(candidate), own, weights)
            for candidate, own in zip(candidates, vectors, strict=True)
        ]
        return np.array(scores, dtype=np.float64)

    def _of_picture(
        self, image: Hashable, references: Sequence[Tokens | Counted], weights: _Weights
    ) -> list[_Reference]:
        known = self._kept.get(image)
        given = list(references)
        if known is not None and known[0] == given:
            return known[1]
        vectors = [_reference(count(reference), weights) for reference in given]
        if image not in self._kept and len(self._kept) >= self._cached > 0:
            del self._kept[next(iter(self._kept))]
        if self._cached > 0:
            self._kept[image] = (given, vectors)
        return vectors

    def _one(
        self, candidate: Counted, references: Sequence[_Reference], weights: _Weights
    ) -> float:
        assert references, "a caption without references cannot be scored"
        clipped = self._form == "cider-d"
        totals = [0.0] * len(references)
        for n, own in enumerate(candidate.ngrams):
            weighed = weights.weighed(own)
            norm = math.hypot(*weighed)
            if not norm:
                continue
            terms = [
                (ngram, times, weight * weight / times / times)
                for (ngram, times), weight in zip(own.items(), weighed, strict=True)
            ]
            for number, reference in enumerate(references):
                if reference.norms[n]:
                    product = _product(terms, reference.counted.ngrams[n], clipped)
                    totals[number] += product / (norm * reference.norms[n])
        if clipped:
            length = _bigrams(candidate)
            for number, reference in enumerate(references):
                gap = length - _bigrams(reference.counted)
                totals[number] *= math.exp(-(gap**2) / (2 * self._sigma**2))
        return _SCALE * sum(totals) / ORDER / len(references)


def _reference(counted: Counted, weights: _Weights) -> _Reference:
    return _Reference(
        counted, tuple(math.hypot(*weights.weighed(ngrams)) for ngrams in counted.ngrams)
    )


def _product(
    terms: list[tuple[Ngram, int, float]], theirs: dict[Ngram, int], clipped: bool
) -> float:
    """Inner product of the weights of two captions.

    Args:
        terms: of the one, each n-gram, how often it occurs, its inverse document frequency squared.
        theirs: how often those of the other occur.
        clipped: what the one has more of than the other counts as often as there.
    """
    total = 0.0
    for ngram, times, square in terms:
        there = theirs.get(ngram)
        if there is not None:
            total += (min(times, there) if clipped else times) * there * square
    return total

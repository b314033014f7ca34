"""The reward of a caption: CIDEr-D, as released, and BLEU-4 where a recipe gives it a weight.

Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR 2015,
section 5, the variant D; Papineni et al., "BLEU", ACL 2002, of one sentence, the closest reference
length. Tokens are the words of cleaned captions, split at white space, with ``<eos>`` at the end,
so that a caption that stops in the middle of a phrase scores less (official.md 3.6). Document
frequencies are those of the training captions, a document a picture, prepared the same way; the
file that the released code reads holds those of COCO.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from xvlm_core.data.caption_samples import cleaned_captions
from xvlm_core.data.store import Store

END = "<eos>"
ORDER = 4
"""The longest n-grams, of CIDEr-D and of BLEU."""
SIGMA = 6.0
"""Of the penalty for another length, in bigrams."""
SCALE = 10.0

NGram = tuple[str, ...]
_TINY, _SMALL = 1e-15, 1e-9
"""Keep BLEU from dividing by zero; those of the COCO caption tool."""


def n_grams(words: Sequence[str]) -> list[Counter[NGram]]:
    """How often each n-gram occurs, for n from 1 to :data:`ORDER`."""
    return [
        Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
        for n in range(1, ORDER + 1)
    ]


@dataclass(frozen=True)
class Frequencies:
    """In how many documents an n-gram occurs; a document is all references of a picture.

    Attributes:
        documents: how many there are.
        containing: by n-gram; those of one document alone are left out.
    """

    documents: int
    containing: Counter[NGram]

    @classmethod
    def of(cls, documents: Iterable[Sequence[str]]) -> Frequencies:
        """Of the captions of pictures, cleaned."""
        total, containing = 0, Counter[NGram]()
        for captions in documents:
            total += 1
            containing.update(
                {
                    gram
                    for caption in captions
                    for grams in n_grams(tokens(caption))
                    for gram in grams
                }
            )
        # once or never is the same: most n-grams of a large collection need no memory
        return cls(total, Counter({gram: n for gram, n in containing.items() if n > 1}))

    def weight(self, gram: NGram) -> float:
        """Inverse document frequency; an n-gram that was never seen counts as seen once."""
        return math.log(max(1, self.documents)) - math.log(max(1, self.containing[gram]))


def tokens(caption: str) -> list[str]:
    """What is compared: the words of a cleaned caption, and the end."""
    return [*caption.split(), END]


@dataclass(frozen=True)
class _Vector:
    """A caption: weights of its n-grams and their norm, for each n; its length in bigrams."""

    weights: tuple[dict[NGram, float], ...]
    norms: tuple[float, ...]
    length: int


class CaptionReward:
    """Rewards captions; see :data:`xvlm_core.tasks.self_critical.Reward`.

    Args:
        frequencies: of the training captions.
        cider: weight of CIDEr-D.
        bleu: weight of BLEU-4.
    """

    def __init__(self, frequencies: Frequencies, *, cider: float = 1.0, bleu: float = 0.0) -> None:
        self.frequencies = frequencies
        self.cider = cider
        self.bleu = bleu
        # the references of a picture are compared with each of its captions
        self._vector = lru_cache(maxsize=1 << 12)(self._vector_of)

    @classmethod
    def of_stores(
        cls,
        stores: Sequence[Store],
        split: str,
        max_words: int,
        *,
        cider: float = 1.0,
        bleu: float = 0.0,
    ) -> CaptionReward:
        """With the document frequencies of the captions of some stores' split."""
        documents = _documents(stores, split, max_words)
        return cls(Frequencies.of(documents), cider=cider, bleu=bleu)

    def __call__(
        self, captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Sequence[float]:
        """Of cleaned captions, each with the cleaned references of its picture."""
        return [
            (self.cider * self.cider_d(caption, own) if self.cider else 0.0)
            + (self.bleu * bleu_4(caption, own) if self.bleu else 0.0)
            for caption, own in zip(captions, references, strict=True)
        ]

    def cider_d(self, caption: str, references: Sequence[str]) -> float:
        """CIDEr-D, from 0 to 10."""
        if not references:
            return 0.0
        own = self._vector(caption)
        total = sum(_similarity(own, self._vector(reference)) for reference in references)
        return SCALE * total / len(references)

    def _vector_of(self, caption: str) -> _Vector:
        counted = n_grams(tokens(caption))
        weights = tuple(
            {gram: count * self.frequencies.weight(gram) for gram, count in grams.items()}
            for grams in counted
        )
        norms = tuple(math.sqrt(sum(w * w for w in row.values())) for row in weights)
        return _Vector(weights, norms, counted[1].total())


def _similarity(one: _Vector, reference: _Vector) -> float:
    """Mean over n of the clipped cosine, less for another length."""
    total = 0.0
    for mine, theirs, norm, other in zip(
        one.weights, reference.weights, one.norms, reference.norms, strict=True
    ):
        if norm and other:
            shared = sum(
                min(w, theirs[gram]) * theirs[gram] for gram, w in mine.items() if gram in theirs
            )
            total += shared / (norm * other)
    delta = one.length - reference.length
    return total / ORDER * math.exp(-(delta**2) / (2 * SIGMA**2))


def bleu_4(caption: str, references: Sequence[str]) -> float:
    """BLEU-4 of one caption, from 0 to 1."""
    if not references:
        return 0.0
    own, compared = tokens(caption), [tokens(reference) for reference in references]
    counted, theirs = n_grams(own), [n_grams(reference) for reference in compared]
    product = 1.0
    for n in range(ORDER):
        most: Counter[NGram] = Counter()
        for grams in theirs:
            most |= grams[n]
        right = (counted[n] & most).total()
        product *= (right + _TINY) / (max(0, len(own) - n) + _SMALL)
    _, closest = min((abs(len(reference) - len(own)), len(reference)) for reference in compared)
    ratio = (len(own) + _TINY) / (closest + _SMALL)
    bleu: float = product ** (1 / ORDER)
    return bleu * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def _documents(stores: Sequence[Store], split: str, max_words: int) -> Iterator[list[str]]:
    """The cleaned captions of each picture that has any."""
    for store in stores:
        for number in store.numbers(split).array().tolist():
            captions = cleaned_captions(store[number].captions, max_words)
            if captions:
                yield captions

"""The reward of a caption: CIDEr-D, as released, and BLEU-4 where a recipe gives it a weight.

Tokens are the words of cleaned captions, split at white space, with ``<eos>`` at the end, so that a
caption that stops in the middle of a phrase scores less (official.md 3.6). Document frequencies are
those of the training captions, a document a picture, prepared the same way; the file that the
released code reads holds those of COCO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from xvlm_core.data.caption_samples import cleaned_captions
from xvlm_core.data.store import Store
from xvlm_core.errors import DataError
from xvlm_core.metrics.caption.bleu import Bleu
from xvlm_core.metrics.caption.cider import Cider
from xvlm_core.metrics.caption.frequencies import DocumentFrequencies

END = "<eos>"
_KEPT = 1024
"""Pictures whose references are kept weighed: those of an update are compared several times."""


def tokens(caption: str) -> list[str]:
    """What is compared: the words of a cleaned caption, and the end."""
    return [*caption.split(), END]


class CaptionReward:
    """Rewards captions; see :data:`xvlm_core.tasks.self_critical.Reward`.

    Args:
        frequencies: of the training captions.
        cider: weight of CIDEr-D, which is from 0 to 10.
        bleu: weight of BLEU-4, which is from 0 to 1.
    """

    def __init__(
        self, frequencies: DocumentFrequencies, *, cider: float = 1.0, bleu: float = 0.0
    ) -> None:
        self.frequencies = frequencies
        self.cider = cider
        self.bleu = bleu
        self._cider, self._bleu = Cider(frequencies, cached=_KEPT), Bleu()

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
        """With the document frequencies of the captions of some stores' split.

        Raises:
            DataError: there are so few pictures that no caption would be worth anything.
        """
        frequencies = DocumentFrequencies.of(_documents(stores, split, max_words))
        if frequencies.documents < 2 and not bleu:
            names = ", ".join(store.name for store in stores)
            raise DataError(
                f"CIDEr weighs words by how few pictures have them, and {names} has "
                f"{frequencies.documents} with captions in {split!r}: every reward would be 0",
                where=names,
                try_="captioning.self_critical.bleu=1, or two pictures at least",
            )
        return cls(frequencies, cider=cider, bleu=bleu)

    def __call__(
        self, captions: Sequence[str], references: Sequence[Sequence[str]]
    ) -> Sequence[float]:
        """Of cleaned captions, each with the cleaned references of its picture, one at least."""
        own = [tokens(caption) for caption in captions]
        compared = [[tokens(reference) for reference in some] for some in references]
        total = np.zeros(len(own))
        if self.cider:
            pictures = [tuple(some) for some in references]
            total += self.cider * self._cider.score_each(own, compared, pictures)
        if self.bleu:
            total += self.bleu * self._bleu.score_each(own, compared)
        found: list[float] = total.tolist()
        return found


def _documents(stores: Sequence[Store], split: str, max_words: int) -> Iterator[list[list[str]]]:
    """The cleaned captions of each picture that has any, as tokens."""
    for store in stores:
        for number in store.numbers(split).array().tolist():
            captions = cleaned_captions(store[number].captions, max_words)
            if captions:
                yield [tokens(caption) for caption in captions]

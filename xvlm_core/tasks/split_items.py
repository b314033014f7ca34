"""What evaluations of records share: which are asked about, in which batches, what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from xvlm_core.config.schema import ScoringSection
from xvlm_core.data.record_kinds import numbers_of
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.data.text import EmptyTextError, pre_caption
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.weights.folder import ModelInfo

_EXAMPLES = 3
"""Items that are named, of each reason."""


@dataclass(frozen=True)
class Place:
    """A record of a store.

    Attributes:
        store: where it is.
        prefix: of the ids: records of different stores may have the same.
        number: in the store.
    """

    store: Store
    prefix: str
    number: int

    def record(self) -> Record:
        """Read it."""
        return self.store[self.number]


class SplitItems:
    """The records of some stores' split, in an order, each once; nothing is padded or repeated.

    Args:
        stores: where the records are.
        split: which records.
        tokenizer: of the model.
        image_size: side of the pictures that the model sees, pixels.
        max_words: words kept of a text.
        max_tokens: tokens kept of a text.
        limit: at most this many records (the first ones), None: all.
        batch_records: records a batch.

    Attributes:
        dropped: items that could not be asked, by reason.
        examples: a few of each reason, named.
        left_out: ids of all of them.
    """

    of_pairs: ClassVar[bool] = False
    """Whether the records are those of two pictures."""

    def __init__(
        self,
        stores: Sequence[Store],
        split: str,
        tokenizer: Tokenizer,
        *,
        image_size: int,
        max_words: int,
        max_tokens: int,
        limit: int | None = None,
        batch_records: int = 32,
    ) -> None:
        self.split = split
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.max_words = max_words
        self.max_tokens = max_tokens
        self.batch_records = batch_records
        stores = list({_identity(store): store for store in stores}.values())
        prefixes = [""] if len(stores) == 1 else [f"{n}:{s.name}/" for n, s in enumerate(stores)]
        self.places = [
            Place(store, prefix, int(number))
            for store, prefix in zip(stores, prefixes, strict=True)
            for number in numbers_of(store, split, pairs=self.of_pairs).array()
        ][:limit]
        self.dropped: Counter[str] = Counter()
        self.examples: list[str] = []
        self.left_out: set[str] = set()
        self._named: Counter[str] = Counter()
        self._told: Counter[str] = Counter()

    @classmethod
    def of_model(
        cls,
        stores: Sequence[Store],
        split: str,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        scoring: ScoringSection | None = None,
        limit: int | None = None,
    ) -> Self:
        """Items as a model wants them."""
        return cls(
            stores,
            split,
            tokenizer,
            image_size=info.config.vision.image_size,
            max_words=info.max_words,
            max_tokens=info.max_tokens,
            limit=limit,
        )

    def shares(self, rank: int, world_size: int) -> Iterator[list[Place]]:
        """Batches of records of a rank; those of all ranks, one after the other, are all in order.

        A batch holds the same records on any number of ranks, so that every answer is the same to
        the last bit. Forgets what was left out before.
        """
        self.forget_dropped()
        places, size = self.asked_in_order(), self.batch_records
        n = -(-len(places) // size)
        for number in range(rank * n // world_size, (rank + 1) * n // world_size):
            yield places[number * size : (number + 1) * size]

    def asked_in_order(self) -> list[Place]:
        """The records in the order in which they are asked about; the same on every rank."""
        return self.places

    def tokens(self, text: str) -> tuple[int, ...]:
        """Of a text as the model reads it; none where nothing is left of it."""
        try:
            words = pre_caption(text, self.max_words)
        except EmptyTextError:
            return ()
        ids = self.tokenizer.encode(words, self.max_tokens).ids
        return ids if len(ids) > 1 else ()

    def drop(self, name: str, reason: str, n: int = 1) -> None:
        """Some items cannot be asked."""
        self.dropped[reason] += n
        self.left_out.add(name)
        self._named[reason] += 1
        if self._named[reason] <= _EXAMPLES:
            self.examples.append(f"{name}: {reason}")

    def newly_dropped(self) -> dict[str, int]:
        """What was left out since this was asked last: it goes with the next batch."""
        new = self.dropped - self._told
        self._told = self.dropped.copy()
        return dict(new)

    def forget_dropped(self) -> None:
        """Begin anew."""
        self.dropped.clear()
        self.examples.clear()
        self.left_out.clear()
        self._named.clear()
        self._told.clear()


def _identity(store: Store) -> Path | str:
    return store.place.resolve() if isinstance(store.place, Path) else store.place

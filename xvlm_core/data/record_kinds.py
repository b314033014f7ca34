"""Which records of a split are of one picture, and which of a pair."""

from __future__ import annotations

import numpy as np

from xvlm_core.data.numbers import RecordNumbers
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store


def is_pair(record: Record) -> bool:
    """Whether it is a statement about two pictures."""
    return record.statement is not None and len(record.images) == 2


def numbers_of(store: Store, split: str, *, pairs: bool) -> RecordNumbers:
    """Record numbers of a split: of the pairs, or of single pictures.

    The manifest tells where all are of one kind; the records of a store of both are looked at, so
    that an update of N pairs has N.

    Raises:
        DataError: a record is damaged, or a remote place does not answer.
    """
    numbers = store.numbers(split)
    counted = store.manifest.counts.get("pair", {}).get("kept")
    whole = len(store) if pairs else 0
    if counted == whole or (counted is None and not pairs):
        return numbers
    kept = [n for n in numbers.array().tolist() if is_pair(store[n]) == pairs]
    return RecordNumbers.of(np.array(kept, dtype=np.int64))

"""The order of records as a pure function of (data, seed, step): computed, never remembered.

Resume = set the step. The records of step s are the same set for every number of ranks and parts;
each record comes exactly once in a pass. Nothing here depends on a random generator of a library,
so the order is the same on every machine and under every version of NumPy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from xvlm_core.data.numbers import RecordNumbers
from xvlm_core.errors import DataError

WINDOW = 64
"""Blocks that are mixed with one another: a window of 64 blocks of 256 is 16,384 records."""


@dataclass(frozen=True)
class Place:
    """Where a sample comes from.

    Attributes:
        store: number of the store in the stream.
        record: number of the record in that store.
        epoch: which pass over the data (0, 1, ...).
    """

    store: int
    record: int
    epoch: int


@dataclass(frozen=True)
class _Pass:
    """The order of the blocks of one pass.

    Attributes:
        blocks: block numbers in their shuffled order.
        starts: position in the pass of the first record of each window; the last entry is the end.
    """

    blocks: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


class Stream:
    """Endless passes over the records of some stores, each in a new order.

    A pass is block-shuffled: blocks of neighbouring records (of one store) are put in a random
    order, and the records of each ``WINDOW`` successive blocks are mixed. Reading stays nearly
    sequential. Passes follow one another without a gap: a batch may hold the end of one and the
    start of the next.

    Args:
        indices: for each store, the record numbers to use (or their number n, for 0 to n - 1);
            none is looked at before it is asked for.
        batch_size: records a step, over all parts.
        seed: of the run.
        name: of the stream: two streams of a run have different orders.
        parts: equal parts of a step; divides ``batch_size``.
        block: records a block.

    Raises:
        DataError: there are no records.
    """

    def __init__(
        self,
        indices: Sequence[RecordNumbers | npt.NDArray[np.integer[Any]] | int],
        batch_size: int,
        seed: int,
        *,
        name: str,
        parts: int = 1,
        block: int = 256,
    ) -> None:
        assert batch_size > 0, batch_size
        assert block > 0, block
        assert batch_size % parts == 0, (batch_size, parts)
        self.numbers = [RecordNumbers.of(one) for one in indices]
        self.batch_size = batch_size
        self.seed = int(seed)
        self.name = name
        self.parts = parts
        self.block = block
        sizes = [len(numbers) for numbers in self.numbers]
        self.records = sum(sizes)
        if self.records == 0:
            raise DataError(
                f"the stream {name!r} has no records",
                try_="check the stores and the split that the recipe names",
            )
        stores, starts, counts = [], [], []
        for store, size in enumerate(sizes):
            first = np.arange(0, size, block)
            stores.append(np.full(len(first), store))
            starts.append(first)
            counts.append(np.minimum(block, size - first))
        self._block_store: npt.NDArray[np.int64] = np.concatenate(stores)
        self._block_start: npt.NDArray[np.int64] = np.concatenate(starts)
        self._block_count: npt.NDArray[np.int64] = np.concatenate(counts)
        self._forget()

    def _forget(self) -> None:
        """Drop what only saves time: the order of the last pass and window."""
        self._pass: tuple[int, _Pass] | None = None
        self._window: tuple[tuple[int, int], npt.NDArray[np.int64]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pass": None, "_window": None}

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which every record has come at least once."""
        return -(-self.records // self.batch_size)

    def places(self, step: int, part: int = 0) -> tuple[Place, ...]:
        """The records of one part of a step.

        Args:
            step: 1, 2, ...; endless.
            part: 0 to ``parts - 1``.

        Returns:
            ``batch_size / parts`` places. The parts, one after the other, are the places of the
            step in one part.
        """
        assert step >= 1, step
        assert 0 <= part < self.parts, part
        share = self.batch_size // self.parts
        position = (step - 1) * self.batch_size + part * share
        end = position + share
        places: list[Place] = []
        while position < end:
            some = self._places(position, end)
            places += some
            position += len(some)
        return tuple(places)

    def _places(self, position: int, end: int) -> list[Place]:
        """Those from a position on that are in one window."""
        epoch, first = divmod(position, self.records)
        order = self._order(epoch)
        window = int(np.searchsorted(order.starts, first, side="right")) - 1
        last = min(first + end - position, int(order.starts[window + 1]))
        stores, rows = self._mixed(epoch, window)[first - order.starts[window] :][: last - first].T
        numbers = np.empty(len(rows), dtype=np.int64)
        for store in np.unique(stores):
            at = stores == store
            numbers[at] = [self.numbers[store][row] for row in rows[at].tolist()]
        pairs = zip(stores.tolist(), numbers.tolist(), strict=True)
        return [Place(store, number, epoch) for store, number in pairs]

    def _order(self, epoch: int) -> _Pass:
        if self._pass is None or self._pass[0] != epoch:
            blocks = _shuffled(len(self._block_count), self.seed, self.name, epoch)
            ends = np.cumsum(self._block_count[blocks])
            last = np.append(np.arange(WINDOW, len(blocks), WINDOW), len(blocks)) - 1
            self._pass = (epoch, _Pass(blocks, np.append(0, ends[last])))
        return self._pass[1]

    def _mixed(self, epoch: int, window: int) -> npt.NDArray[np.int64]:
        """(store, row of ``numbers[store]``) of each record of a window, in the order of use."""
        if self._window is None or self._window[0] != (epoch, window):
            blocks = self._order(epoch).blocks[window * WINDOW : (window + 1) * WINDOW]
            counts = self._block_count[blocks]
            offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            rows = np.stack(
                [
                    np.repeat(self._block_store[blocks], counts),
                    np.repeat(self._block_start[blocks], counts) + offset,
                ],
                axis=1,
            )
            rows = rows[_shuffled(len(rows), self.seed, self.name, epoch, window)]
            self._window = ((epoch, window), rows)
        return self._window[1]


def coin(seed: int, step: int, name: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments, the same on every rank."""
    return (_key(int(seed), int(step), name) >> 11) / float(1 << 53)


def _key(*parts: int | str) -> int:
    """64 bits from numbers and names."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _shuffled(n: int, *parts: int | str) -> npt.NDArray[np.int64]:
    """A permutation of 0 to n - 1: sorted by the SplitMix64 sequence that starts at the key."""
    gamma = np.uint64(0x9E3779B97F4A7C15)
    z = np.uint64(_key(*parts)) + np.arange(1, n + 1, dtype=np.uint64) * gamma
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(z ^ (z >> np.uint64(31)), kind="stable").astype(np.int64)

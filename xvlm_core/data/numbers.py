"""The record numbers of a split, by runs and bitmaps: ten million of them cost next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]

_CHUNK = 4096  # records whose members are counted together
_PIECE = 1 << 16  # numbers made at a time when all are walked over


@dataclass(frozen=True)
class Span:
    """Neighbouring records, some or all of which are wanted.

    Attributes:
        first: number of the first record.
        size: records.
        count: those of them that are wanted.
        shard: where it is written which ones are; not looked at if all are.
    """

    first: int
    size: int
    count: int
    shard: int = -1


class RecordNumbers(Sequence[int]):
    """Ascending record numbers, as many as there may be, without a list of them.

    Where only some records of a span are wanted, which ones is looked up when they are asked for,
    and kept as one bit a record. Picklable, if ``members`` is; the bits do not travel.

    Args:
        spans: ascending.
        members: gives, for the shard of a span, whether each of its records is wanted: bool, of
            length ``size``, with ``count`` times True.
    """

    def __init__(
        self,
        spans: Iterable[Span],
        members: Callable[[int], npt.NDArray[np.bool_]] | None = None,
    ) -> None:
        joined = _joined(spans)
        table = np.array([(s.first, s.size, s.count, s.shard) for s in joined], dtype=np.int64)
        self._firsts, self._sizes, self._counts, self._shards = table.reshape(-1, 4).T
        self._ends = np.cumsum(self._counts)
        self._partial = self._counts < self._sizes
        assert members is not None or not self._partial.any()
        self._read = members
        self._bitmaps: dict[int, _Bitmap] = {}

    @classmethod
    def up_to(cls, n: int) -> RecordNumbers:
        """0 to ``n - 1``."""
        return cls([Span(0, n, n)])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows: npt.ArrayLike) -> Numbers:
        """The numbers at some places.

        Args:
            rows: int, 0 to ``len - 1``, in any order.

        Raises:
            DataError: from ``members``: an index is damaged.
        """
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise IndexError(f"a row outside 0 to {len(self) - 1}")
        span = np.searchsorted(self._ends, wanted, side="right")
        inside = wanted - (self._ends[span] - self._counts[span])
        numbers: Numbers = self._firsts[span] + inside
        among = np.flatnonzero(self._partial[span])
        for which, places in _groups(span[among]):
            at = among[places]
            numbers[at] = self._firsts[which] + self._bitmap(which).take(inside[at])
        return numbers

    def tolist(self) -> list[int]:
        """All of them, as a list."""
        return [number for piece in self._pieces() for number in piece.tolist()]

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> Numbers: ...

    def __getitem__(self, at: int | slice) -> int | Numbers:
        if isinstance(at, slice):
            return self.take(np.arange(*at.indices(len(self))))
        return int(self.take([at + len(self) if at < 0 else at])[0])

    def __iter__(self) -> Iterator[int]:
        for piece in self._pieces():
            yield from piece.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        whole = np.concatenate([np.empty(0, dtype=np.int64), *self._pieces()])
        return whole if dtype is None else whole.astype(dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bitmaps": {}}

    def _pieces(self) -> Iterator[Numbers]:
        for start in range(0, len(self), _PIECE):
            yield self.take(np.arange(start, min(start + _PIECE, len(self))))

    def _bitmap(self, span: int) -> _Bitmap:
        if span not in self._bitmaps:
            assert self._read is not None
            mask = self._read(int(self._shards[span]))
            assert mask.shape == (self._sizes[span],)
            self._bitmaps[span] = _Bitmap(mask)
        return self._bitmaps[span]


class _Bitmap:
    """Where the n-th True of a mask stands, for any n, at one bit an entry."""

    def __init__(self, mask: npt.NDArray[np.bool_]) -> None:
        padded = np.zeros(-(-len(mask) // _CHUNK) * _CHUNK, dtype=np.bool_)
        padded[: len(mask)] = mask
        chunks = padded.reshape(-1, _CHUNK)
        self._counts = np.count_nonzero(chunks, axis=1)
        self._ends = np.cumsum(self._counts)
        self._bits = np.packbits(chunks, axis=1)

    def take(self, rows: Numbers) -> Numbers:
        chunk = np.searchsorted(self._ends, rows, side="right")
        inside = rows - (self._ends[chunk] - self._counts[chunk])
        places = np.empty(len(rows), dtype=np.int64)
        for which, at in _groups(chunk):
            there = np.flatnonzero(np.unpackbits(self._bits[which]))
            places[at] = which * _CHUNK + there[inside[at]]
        return places


def _groups(keys: Numbers) -> Iterator[tuple[int, Numbers]]:
    """(key, places where it stands) for each key."""
    order = np.argsort(keys, kind="stable")
    borders = np.flatnonzero(np.diff(keys[order])) + 1
    for places in np.split(order, borders):
        if len(places):
            yield int(keys[places[0]]), places


def _joined(spans: Iterable[Span]) -> list[Span]:
    """Whole spans that touch are one; those of which nothing is wanted are none."""
    joined: list[Span] = []
    for span in spans:
        assert 0 <= span.count <= span.size, span
        if not span.count:
            continue
        last = joined[-1] if joined else None
        assert last is None or last.first + last.size <= span.first, "spans ascend"
        if (
            last is not None
            and last.count == last.size
            and span.count == span.size
            and last.first + last.size == span.first
        ):
            size = last.size + span.size
            joined[-1] = Span(last.first, size, size)
        else:
            joined.append(span)
    return joined

"""Record numbers of a split, in little memory: millions of them are runs or small integers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt


class RecordNumbers:
    """Ascending record numbers as a sequence of pieces. Cheap to pickle.

    A piece is a run (first, count) or numbers counted from a first one. Runs that follow one
    another become one: a split that is the whole store is a single pair of numbers.
    """

    def __init__(self, pieces: Iterable[tuple[int, int | npt.NDArray[np.integer[Any]]]]) -> None:
        """Put pieces together.

        Args:
            pieces: (first, count), or (first, what is to be added to it for each number).
        """
        self._pieces: list[tuple[int, int, npt.NDArray[np.uint32] | None]] = []
        for first, piece in pieces:
            if isinstance(piece, int):
                self._add_run(first, piece)
            elif len(piece):
                self._pieces.append((first, len(piece), piece.astype(np.uint32)))
        counts = [count for _, count, _ in self._pieces]
        self._ends: npt.NDArray[np.int64] = np.cumsum(counts, dtype=np.int64)

    def _add_run(self, first: int, count: int) -> None:
        if not count:
            return
        if self._pieces:
            last, n, more = self._pieces[-1]
            if more is None and last + n == first:
                self._pieces[-1] = (last, n + count, None)
                return
        self._pieces.append((first, count, None))

    @classmethod
    def of(cls, numbers: RecordNumbers | npt.NDArray[np.integer[Any]] | int) -> RecordNumbers:
        """Of an array, or of 0 to n - 1 for a number n."""
        if isinstance(numbers, RecordNumbers):
            return numbers
        if isinstance(numbers, int | np.integer):
            return cls([(0, int(numbers))])
        array = np.asarray(numbers)
        if not len(array):
            return cls([])
        first = int(array.min())
        assert int(array.max()) - first < 2**32
        return cls([(first, array - first)])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> int:
        """Number ``row`` of them, from 0."""
        if not 0 <= row < len(self):
            raise IndexError(f"{row} of {len(self)} record numbers")
        piece = int(np.searchsorted(self._ends, row, side="right"))
        first, count, more = self._pieces[piece]
        inside = row - (int(self._ends[piece]) - count)
        return first + (inside if more is None else int(more[inside]))

    def array(self) -> npt.NDArray[np.int64]:
        """All of them."""
        parts = [
            first + (np.arange(count) if more is None else more.astype(np.int64))
            for first, count, more in self._pieces
        ]
        return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)

"""Counting over millions of items in bounded memory. Nothing here depends on the process."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass

_TIMES = (1 << 32) - 1


@dataclass(frozen=True)
class Spread:
    """How numbers are distributed; all None but ``n`` where there are none."""

    n: int
    mean: float | None = None
    least: float | None = None
    p05: float | None = None
    p25: float | None = None
    median: float | None = None
    p75: float | None = None
    p95: float | None = None
    most: float | None = None


class Tally:
    """Integers by value: exact quantiles, memory of the number of distinct values.

    Args:
        unit: what 1 stands for; the spread is in multiples of it.
    """

    def __init__(self, unit: float = 1) -> None:
        self._unit = unit
        self._values: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Count one number."""
        self._values[value] += 1

    def spread(self, *, also_zeros: int = 0) -> Spread:
        """Mean and quantiles (nearest rank) of what was added.

        Args:
            also_zeros: that many zeros count as added.
        """
        values = self._values.copy()
        if also_zeros:
            values[0] += also_zeros
        n = values.total()
        if not n:
            return Spread(0)
        mean = sum(value * times for value, times in values.items()) / n
        ordered = sorted(values.items())

        def quantile(share: float) -> float:
            rank, seen = max(1, math.ceil(share * n)), 0
            for value, times in ordered:
                seen += times
                if seen >= rank:
                    return round(value * self._unit, 9)
            raise AssertionError("a rank is at most n")

        return Spread(
            n,
            mean * self._unit,
            least=quantile(0),
            p05=quantile(0.05),
            p25=quantile(0.25),
            median=quantile(0.5),
            p75=quantile(0.75),
            p95=quantile(0.95),
            most=quantile(1),
        )


@dataclass(frozen=True)
class Repetition:
    """How often the same thing was seen again.

    Attributes:
        total: things added.
        distinct: different ones.
        repeated: different ones that were seen more than once.
        sampled: share of the different things that the last two are counted on; 1: all.
    """

    total: int
    distinct: int
    repeated: int
    sampled: float = 1.0

    @property
    def again(self) -> int:
        """Times that a thing was seen after its first time."""
        return self.total - self.distinct


class Repeats:
    """Counts distinct and repeated texts by a hash of 64 bits.

    Above ``limit`` different texts only every second hash is followed, then every fourth, and so
    on: counts are then estimates from that sample (of texts, with all their repetitions).
    """

    def __init__(self, limit: int = 1_000_000) -> None:
        self._limit = limit
        self._level = 0
        self._total = 0
        # Times seen, and above 32 bits the last place: one integer, for the memory of millions.
        self._seen: dict[int, int] = {}

    def add(self, text: str, *, inside: str | None = None) -> None:
        """Count one text.

        Args:
            text: any text.
            inside: what the text belongs to, a picture say: following the same one at once, it
                is not counted again.
        """
        key = _hash(text)
        place = 0 if inside is None else _hash(inside) >> 32
        seen = self._seen.get(key)
        if seen is not None and inside is not None and seen >> 32 == place:
            return
        self._total += 1
        if seen is not None:
            self._seen[key] = place << 32 | (seen & _TIMES) + 1
            return
        if key & ((1 << self._level) - 1):
            return
        self._seen[key] = place << 32 | 1
        if len(self._seen) > self._limit:
            self._level += 1
            mask = (1 << self._level) - 1
            self._seen = {key: seen for key, seen in self._seen.items() if not key & mask}

    def result(self) -> Repetition:
        """The counts, scaled up where they are of a sample."""
        times = 1 << self._level
        repeated = sum(1 for seen in self._seen.values() if seen & _TIMES > 1)
        distinct = min(self._total, len(self._seen) * times)
        return Repetition(self._total, distinct, min(distinct, repeated * times), 1 / times)


class Words:
    """Frequencies of words; above ``limit`` different ones the rarer half is forgotten."""

    def __init__(self, limit: int = 500_000) -> None:
        self._limit = limit
        self._counts: Counter[str] = Counter()
        self.exact = True
        """False once words were forgotten: there are more than ``distinct``."""

    def add(self, words: list[str]) -> None:
        """Count words."""
        self._counts.update(words)
        if len(self._counts) > self._limit:
            self.exact = False
            self._counts = Counter(dict(self._counts.most_common(self._limit // 2)))

    @property
    def distinct(self) -> int:
        """Different words held."""
        return len(self._counts)

    def most_common(self, n: int) -> dict[str, int]:
        """The ``n`` most frequent words; equally frequent ones in alphabetical order."""
        return dict(sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))[:n])


def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")

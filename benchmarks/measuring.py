"""Two ways to do the same, timed in turns."""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_TICK = 0.01
"""Seconds of processor time that systems count in."""


@dataclass(frozen=True)
class Measure:
    """One ratio.

    Attributes:
        name: what is compared.
        ours: items a second, median.
        theirs: the same of the other side.
        ratios: ours to theirs, turn by turn, by the clock.
        cpu_ratios: the same by processor time, of all processes: where two cores are busy all
            the time this is the ratio that an otherwise idle machine shows.
        goal: what the ratio should reach, if there is a goal.
        notes: other numbers worth knowing.
    """

    name: str
    ours: float
    theirs: float
    ratios: tuple[float, ...]
    cpu_ratios: tuple[float, ...]
    goal: float | None = None
    notes: dict[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Median of the turns."""
        return statistics.median(self.ratios)

    @property
    def cpu_ratio(self) -> float:
        """The same by processor time."""
        return statistics.median(self.cpu_ratios)


@dataclass(frozen=True)
class Spent:
    """Seconds, by the clock and of processor time."""

    clock: float
    cpu: float

    def times(self, factor: float) -> Spent:
        """The same for more or fewer items."""
        return Spent(self.clock * factor, self.cpu * factor)


def compare(
    name: str,
    ours: Callable[[], Spent],
    theirs: Callable[[], Spent],
    items: int,
    turns: int,
    goal: float | None = None,
    **notes: int,
) -> Measure:
    """Time two ways to do the same, in turns.

    Args:
        name: of the measure.
        ours: does it once and returns the seconds that count.
        theirs: the same.
        items: that each turn does.
        turns: of both.
        goal: of the ratio.
        notes: of the measure.
    """
    spent: list[tuple[Spent, Spent]] = []
    for turn in range(turns):
        # now the one is first, now the other: neither always follows the other's garbage
        if turn % 2:
            first = ours()
            spent.append((first, theirs()))
        else:
            first = theirs()
            spent.append((ours(), first))
    measure = Measure(
        name,
        items / statistics.median(a.clock for a, _ in spent),
        items / statistics.median(b.clock for _, b in spent),
        tuple(b.clock / a.clock for a, b in spent),
        tuple(max(b.cpu, _TICK) / max(a.cpu, _TICK) for a, b in spent),
        goal,
        notes,
    )
    say(f"{name}: {measure.ratio:.2f}, by processor time {measure.cpu_ratio:.2f}")
    return measure


def timed(work: Callable[[], object]) -> Spent:
    """What some work takes."""
    gc.collect()
    clock, cpu = time.perf_counter(), cpu_seconds()
    work()
    return Spent(time.perf_counter() - clock, cpu_seconds() - cpu)


def cpu_seconds() -> float:
    """Processor time of this process and its children, those that still run too (on Linux)."""
    total = sum(os.times()[:4])
    for task in Path("/proc/self/task").glob("*/children"):
        for child in task.read_text().split():
            with suppress(OSError):
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)

"""How long a run is, and its learning rate, as plain functions. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from xvlm_core.config.schema import ScheduleSection

Kind = Literal["linear", "cosine", "constant"]


def total_steps(schedule: ScheduleSection, steps_per_epoch: int) -> int | None:
    """Steps of the run; None where only a time budget is given.

    ``max_steps`` wins over ``epochs``. A part of a step counts as one.
    """
    if schedule.max_steps is not None:
        return schedule.max_steps
    if schedule.epochs is None:
        return None
    return max(1, math.ceil(schedule.epochs * steps_per_epoch))


def warmup_steps(schedule: ScheduleSection, total: int) -> int:
    """Steps of warm-up: a number below 1 is a share of the run, cut to an integer."""
    warmup = int(total * schedule.warmup) if schedule.warmup < 1 else int(schedule.warmup)
    return min(warmup, total)


def decay(kind: Kind, share: float, floor: float = 0.0) -> float:
    """Factor when ``share`` of the decay is over: 1 at 0, ``floor`` at 1 (constant: always 1)."""
    share = min(max(share, 0.0), 1.0)
    if kind == "linear":
        return 1.0 - share * (1.0 - floor)
    if kind == "cosine":
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share))
    return 1.0


def rise(share: float, start: float = 0.0) -> float:
    """Factor when ``share`` of the warm-up is over: ``start`` at 0, 1 at 1."""
    return start + (1.0 - start) * share


def factor_at_step(
    kind: Kind, step: int, total: int, warmup: int, *, start: float = 0.0, floor: float = 0.0
) -> float:
    """Factor on the learning rate of step 1, 2, ..., total.

    The first step is a little above ``start``, step ``warmup + 1`` has 1, and the decay would
    reach ``floor`` one step after the last: where both are 0, every step still learns something.
    """
    assert step >= 1, "steps are counted from 1"
    done = step - 1
    if done < warmup:
        return rise(step / (warmup + 1), start)
    return decay(kind, (done - warmup) / max(1, total - warmup), floor)


def official_factor(
    kind: Kind, step: int, total: int, warmup: int, *, start: float = 0.0, floor: float = 0.0
) -> float:
    """The same in the released code, whose first step is AT the start, 0 (official.md 2.9)."""
    assert step >= 1, "steps are counted from 1"
    done = step - 1
    if done < warmup:
        return rise(done / max(1, warmup), start)
    return decay(kind, (done - warmup) / max(1, total - warmup), floor)


def factor_at_share(
    kind: Kind, share: float, warmup: float, *, start: float = 0.0, floor: float = 0.0
) -> float:
    """Factor when ``share`` of the run is over, for runs with a time budget.

    Args:
        kind: shape of the decay.
        share: in [0, 1]; the first step is a little above ``start``.
        warmup: share of the run that is warm-up, below 1.
        start: factor that the warm-up starts from.
        floor: factor that the decay ends at.
    """
    if share < warmup:
        return rise(share / warmup, start)
    return decay(kind, (share - warmup) / (1.0 - warmup), floor)


@dataclass(frozen=True)
class Plan:
    """The length of a run and its learning rate.

    Attributes:
        schedule: of the recipe.
        total: steps, if they are limited.
        official: with the released code's warm-up.
    """

    schedule: ScheduleSection
    total: int | None
    official: bool = False

    def progress(self, step: int, seconds: float) -> float:
        """Share of the run that is over when a step begins, in [0, 1).

        Args:
            step: the step that begins: 1, 2, ...
            seconds: training time so far.
        """
        shares = [0.0]
        if self.total is not None:
            shares.append((step - 1) / self.total)
        if self.schedule.max_seconds is not None:
            shares.append(seconds / self.schedule.max_seconds)
        return min(max(shares), math.nextafter(1.0, 0.0))

    def factor(self, step: int, seconds: float) -> float:
        """Factor on the learning rate of a step that begins after ``seconds`` of training."""
        schedule = self.schedule
        kind, start, floor = schedule.kind, schedule.warmup_from, schedule.floor
        if schedule.max_seconds is None:
            assert self.total is not None, "a recipe has an end"
            function = official_factor if self.official else factor_at_step
            warmup = warmup_steps(schedule, self.total)
            return function(kind, step, self.total, warmup, start=start, floor=floor)
        share = self.progress(step, seconds)
        if schedule.warmup < 1:
            return factor_at_share(kind, share, schedule.warmup, start=start, floor=floor)
        warm = rise(min(1.0, step / (int(schedule.warmup) + 1)), start)
        return warm * factor_at_share(kind, share, 0.0, floor=floor)

    def is_over(self, step: int, seconds: float) -> bool:
        """Whether the run ends after ``step`` steps and ``seconds`` of training."""
        if self.total is not None and step >= self.total:
            return True
        return self.schedule.max_seconds is not None and seconds >= self.schedule.max_seconds

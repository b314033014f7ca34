from __future__ import annotations

import pytest

from xvlm_core.config.schema import ScheduleSection
from xvlm_core.train.schedule import (
    Plan,
    decay,
    factor_at_share,
    factor_at_step,
    official_factor,
    total_steps,
    warmup_steps,
)


@pytest.mark.parametrize("warmup", [0, 1, 3, 10])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_first_step_learns_the_top_is_reached_once_and_the_end_is_0(kind: str, warmup: int) -> None:
    factors = [factor_at_step(kind, step, 10, warmup) for step in range(1, 11)]  # type: ignore[arg-type]
    assert all(factor > 0 for factor in factors)
    assert factors[:warmup] == pytest.approx([(i + 1) / (warmup + 1) for i in range(warmup)])
    if warmup < 10:
        assert factors[warmup] == 1.0
    after = factor_at_step(kind, 11, 10, warmup)  # type: ignore[arg-type]
    assert after == pytest.approx(1.0 if kind == "constant" or warmup == 10 else 0.0)


def test_linear_decay_by_hand() -> None:
    factors = [factor_at_step("linear", step, 6, 2) for step in range(1, 7)]
    assert factors == pytest.approx([1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4])


def test_official_factor_is_the_released_one() -> None:
    """official.md 2.9: t/warmup, then (T-t)/(T-warmup), t from 0."""
    total, warmup = 20, 4
    for step in range(1, total + 1):
        t = step - 1
        expected = t / warmup if t < warmup else (total - t) / (total - warmup)
        assert official_factor("linear", step, total, warmup) == pytest.approx(expected)
    assert official_factor("linear", 1, total, warmup) == 0
    assert official_factor("linear", 1, total, 0) == 1


PAPER = ScheduleSection(max_steps=200_000, warmup=2500, warmup_from=0.1, floor=0.1)


@pytest.mark.parametrize("official", [False, True])
def test_the_paper_rises_from_a_tenth_and_falls_to_a_tenth(official: bool) -> None:
    """1e-5 to 1e-4 in 2,500 steps, then linearly to 1e-5 at step 200,000."""
    plan = Plan(PAPER, total=200_000, official=official)
    lr = {step: 1e-4 * plan.factor(step, 0) for step in (1, 1251, 2501, 101_251, 200_000)}
    assert lr == pytest.approx(
        {1: 1e-5, 1251: 5.5e-5, 2501: 1e-4, 101_251: 5.5e-5, 200_000: 1e-5}, rel=4e-3
    )
    steps = range(1, 200_001, 977)
    assert all(0.1 <= plan.factor(step, 0) <= 1 for step in steps)
    assert (plan.factor(1, 0) == 0.1) == official


@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("floor", [0.0, 0.25, 1.0])
def test_the_decay_ends_at_its_floor(kind: str, floor: float) -> None:
    assert decay(kind, 0.0, floor) == 1.0  # type: ignore[arg-type]
    assert decay(kind, 0.5, floor) == pytest.approx((1 + floor) / 2)  # type: ignore[arg-type]
    assert decay(kind, 1.0, floor) == pytest.approx(floor)  # type: ignore[arg-type]
    assert decay("constant", 1.0, floor) == 1.0


@pytest.mark.parametrize("warmup", [0.2, 4])
def test_start_and_floor_hold_under_a_time_budget(warmup: float) -> None:
    section = ScheduleSection(max_seconds=100, warmup=warmup, warmup_from=0.5, floor=0.25)
    plan = Plan(section, total=None)
    assert plan.factor(1, 0) == pytest.approx(0.5 if warmup < 1 else 0.6)
    assert plan.factor(10_000, 100) == pytest.approx(0.25, rel=1e-6)
    middle = 60 if warmup < 1 else 50
    assert plan.factor(10_000, middle) == pytest.approx((1 + 0.25) / 2)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert decay("cosine", 0.5) == pytest.approx(0.5)
    assert decay("cosine", 0.25) > 0.75


def test_share_of_time() -> None:
    assert factor_at_share("linear", 0.05, 0.1) == pytest.approx(0.5)
    assert factor_at_share("linear", 0.1, 0.1) == pytest.approx(1.0)
    assert factor_at_share("linear", 0.55, 0.1) == pytest.approx(0.5)
    assert factor_at_share("linear", 1.0, 0.1) == pytest.approx(0.0)


def test_length_of_a_run() -> None:
    assert total_steps(ScheduleSection(max_steps=7, epochs=3), 100) == 7
    assert total_steps(ScheduleSection(epochs=1.5), 5) == 8
    assert total_steps(ScheduleSection(max_seconds=9), 5) is None
    assert warmup_steps(ScheduleSection(epochs=1, warmup=0.1), 29) == 2
    assert warmup_steps(ScheduleSection(epochs=1, warmup=12), 29) == 12
    assert warmup_steps(ScheduleSection(epochs=1, warmup=1), 29) == 1
    assert warmup_steps(ScheduleSection(epochs=1, warmup=50), 29) == 29


def test_progress_and_end_follow_whichever_limit_is_nearer() -> None:
    plan = Plan(ScheduleSection(max_steps=10, max_seconds=100), total=10)
    assert plan.progress(1, 0) == 0
    assert plan.progress(6, 10) == 0.5
    assert plan.progress(2, 90) == 0.9
    assert plan.progress(11, 500) < 1
    assert plan.is_over(10, 0)
    assert plan.is_over(1, 100)
    assert not plan.is_over(9, 99)


def test_warm_up_in_steps_under_a_time_budget() -> None:
    plan = Plan(ScheduleSection(max_seconds=100, warmup=4), total=None)
    assert plan.factor(1, 0) == pytest.approx(1 / 5)
    assert plan.factor(5, 50) == pytest.approx(0.5)

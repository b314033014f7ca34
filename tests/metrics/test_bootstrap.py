from __future__ import annotations

import time

import numpy as np
import pytest

from xvlm_core.metrics import bootstrap
from xvlm_core.metrics.bootstrap import (
    interval,
    interval_of_means,
    interval_of_weights,
    intervals,
)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Pictures of one to nine phrases, each picture with a difficulty of its own."""
    rng = np.random.default_rng(0)
    covered = 0
    trials = 300
    for _ in range(trials):
        sizes = rng.integers(1, 10, size=80)
        chance = rng.beta(1.2, 0.8, size=80)  # mean 0.6
        clusters = np.repeat(np.arange(80), sizes)
        hits = rng.random(len(clusters)) < chance[clusters]
        found = interval(hits, clusters.tolist(), resamples=400)
        assert found is not None
        covered += found[0] <= 0.6 <= found[1]
    assert 0.89 <= covered / trials <= 0.985


def test_a_constant_has_no_spread() -> None:
    clusters = [i // 3 for i in range(30)]
    assert interval([1.0] * 30, clusters) == (1, 1)
    assert interval([0.0] * 30, clusters) == (0, 0)


def test_items_of_one_picture_are_drawn_together() -> None:
    """Ten phrases a picture that all go the same way tell no more than one phrase a picture."""
    rng = np.random.default_rng(1)
    picture = rng.random(60) < 0.5
    one = interval(picture, range(60))
    ten = interval(np.repeat(picture, 10), np.repeat(range(60), 10).tolist())
    alone = interval(np.repeat(picture, 10), range(600))
    assert one is not None
    assert ten is not None
    assert alone is not None
    assert ten == pytest.approx(one)
    assert (ten[1] - ten[0]) / (alone[1] - alone[0]) == pytest.approx(10**0.5, rel=0.15)


def test_a_picture_of_many_phrases_weighs_as_many() -> None:
    """The mean is over phrases: the interval lies around it, not around the mean of pictures."""
    clusters = [0] * 50 + list(range(1, 51))
    values = [1.0] * 50 + [0.0] * 50
    found = interval(values, clusters)
    assert found is not None
    assert found[0] == 0  # the large picture may not be drawn at all
    assert found[1] > 0.6


def test_the_same_answers_have_the_same_interval_whatever_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, clusters = np.random.default_rng(2).random(40), [i // 4 for i in range(40)]
    first = interval(values, clusters)
    assert first == interval(values, [f"picture {n}" for n in clusters])
    together = intervals({"a": values, "b": 1 - values}, clusters)
    assert together["a"] == first
    monkeypatch.setattr(bootstrap, "_CELLS", 35)
    assert interval(values, clusters) == pytest.approx(first), "in portions"


def test_items_that_do_not_count_are_as_if_they_were_not_there() -> None:
    nan = float("nan")
    found = intervals({"few": [1, nan, 0, nan], "none": [nan] * 4}, ["a", "b", "c", "d"])
    assert found["few"] == (0, 1)
    assert found["none"] is None


def test_of_a_single_picture_nothing_is_known() -> None:
    assert interval([1, 0, 1], ["a"] * 3) is None
    assert interval([], []) is None
    assert intervals({}, ["a"]) == {}


def test_25_000_items_take_seconds() -> None:
    values = np.random.default_rng(3).random(25_000) < 0.8
    start = time.perf_counter()
    found = interval(values, range(25_000), resamples=1000)
    assert time.perf_counter() - start < 15
    assert found is not None
    spread = 1.96 * (0.8 * 0.2 / 25_000) ** 0.5
    assert found == pytest.approx((values.mean() - spread, values.mean() + spread), abs=5e-4)


def test_a_figure_of_several_means_is_that_of_each_draw() -> None:
    """Of one mean it is that mean's interval; of two that always add up to 1 it has no width."""
    rng = np.random.default_rng(4)
    clusters = np.repeat(range(40), 3).tolist()
    values = rng.random(120)
    columns = {"a": values, "b": 1 - values}
    assert interval_of_means(lambda m: m[:, 0], columns, clusters) == interval(values, clusters)
    both = interval_of_means(lambda m: m.sum(axis=1), columns, clusters)
    assert both == pytest.approx((1, 1))
    half = {"a": values, "b": [np.nan] * 117 + [1.0] * 3}
    assert interval_of_means(lambda m: m[:, 0], half, clusters) is None, "one cluster alone"
    assert interval_of_means(lambda m: m[:, 0], {}, clusters) is None


@pytest.mark.parametrize("cells", [7, 1000, 2_000_000])
def test_a_figure_of_weights_is_that_of_items_drawn_again(
    cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "_CELLS", cells)
    rng = np.random.default_rng(4)
    clusters = np.repeat(range(40), 3).tolist()
    values = rng.random(120)
    found = interval_of_weights(lambda w: w @ values / w.sum(axis=1), clusters, resamples=200)
    assert found == pytest.approx(interval(values, clusters, resamples=200))
    assert interval_of_weights(lambda w: w.sum(axis=1), [1, 1, 1]) is None
    assert interval_of_weights(lambda w: np.full(len(w), np.nan), [1, 2]) is None

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_core.data import stream as stream_module
from xvlm_core.data.stream import Place, Stream, coin
from xvlm_core.errors import DataError

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(lambda s: sum(s) > 0)
seeds = st.integers(0, 2**40)


def first(stream: Stream, n: int) -> list[Place]:
    places: list[Place] = []
    step = 0
    while len(places) < n:
        step += 1
        places.extend(stream.places(step))
    return places[:n]


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(1, 17), seeds, st.integers(1, 9), st.integers(1, 5))
def test_every_record_comes_exactly_once_in_each_pass(
    counts: list[int], batch: int, seed: int, block: int, window: int
) -> None:
    before = stream_module.WINDOW
    stream_module.WINDOW = window
    try:
        indices = [np.arange(n) * 3 + 1 for n in counts]
        stream = Stream(indices, batch, seed, name="s", block=block)
        places = first(stream, 3 * sum(counts))
    finally:
        stream_module.WINDOW = before
    expected = {(s, int(r)) for s, numbers in enumerate(indices) for r in numbers}
    for epoch in range(3):
        taken = places[epoch * sum(counts) : (epoch + 1) * sum(counts)]
        assert {p.epoch for p in taken} == {epoch}
        assert Counter((p.store, p.record) for p in taken) == Counter(expected)


@settings(max_examples=40, deadline=None)
@given(sizes, seeds, st.integers(1, 9), st.integers(1, 50))
def test_a_step_is_the_same_in_every_number_of_parts(
    counts: list[int], seed: int, block: int, step: int
) -> None:
    one = Stream(counts, 12, seed, name="s", block=block).places(step)
    for parts in (2, 3, 4, 6, 12):
        divided = Stream(counts, 12, seed, name="s", block=block, parts=parts)
        shares = [divided.places(step, part) for part in range(parts)]
        assert {len(share) for share in shares} == {12 // parts}
        assert tuple(place for share in shares for place in share) == one


@settings(max_examples=40, deadline=None)
@given(sizes, seeds, st.lists(st.integers(1, 60), min_size=1, max_size=10))
def test_a_step_does_not_depend_on_what_was_asked_before(
    counts: list[int], seed: int, steps: list[int]
) -> None:
    used = Stream(counts, 5, seed, name="s", block=4)
    for step in steps:
        assert used.places(step) == Stream(counts, 5, seed, name="s", block=4).places(step)
    assert pickle.loads(pickle.dumps(used)).places(steps[0]) == used.places(steps[0])


@settings(max_examples=40, deadline=None)
@given(st.integers(30, 500), seeds, st.integers(1, 20))
def test_seeds_names_and_passes_have_different_orders(n: int, seed: int, block: int) -> None:
    def order(seed: int, name: str, epoch: int = 0) -> list[int]:
        stream = Stream([n], n, seed, name=name, block=block)
        return [place.record for place in stream.places(epoch + 1)]

    orders = [
        order(seed, "images"),
        order(seed + 1, "images"),
        order(seed, "regions"),
        order(seed, "images", 1),
    ]
    assert len({tuple(o) for o in orders}) == 4
    assert list(range(n)) not in orders


def test_the_order_is_the_same_on_every_machine_and_in_every_version() -> None:
    # Recorded: a change here changes every run that is resumed.
    stream = Stream([7, np.array([2, 4, 6])], 5, 42, name="images", block=2)
    assert [(p.store, p.record, p.epoch) for p in stream.places(3)] == [
        (0, 6, 1),
        (0, 3, 1),
        (0, 2, 1),
        (0, 1, 1),
        (0, 5, 1),
    ]
    assert coin(42, 7, "regions") == 0.9164901706153527


def digest(stream: Stream, steps: Iterable[int]) -> str:
    found = hashlib.sha256()
    for step in steps:
        for place in stream.places(step):
            found.update(f"{place.store} {place.record} {place.epoch}\n".encode())
    return found.hexdigest()[:16]


def test_large_streams_keep_the_order_that_earlier_runs_had() -> None:
    # Recorded before record numbers were runs: a change here changes every run that is resumed.
    mixed = Stream([100_000, np.arange(0, 300_000, 3), 1234], 128, 42, name="images")
    assert digest(mixed, [1, 2, 777, 1571, 1572, 5000, 10**6]) == "947df067b042f062"
    small = Stream([np.arange(500), 77], 48, 7, name="regions", block=16)
    assert digest(small, range(1, 40)) == "c3e3425cb6027b09"
    huge = Stream([10_000_000], 1024, 1, name="images")
    assert digest(huge, [1, 9765, 9766, 9767, 123456]) == "63a80451c5f0df8c"


def test_the_stores_are_mixed_and_reading_is_nearly_sequential() -> None:
    n = 100_000
    stream = Stream([n, n], 1000, 0, name="s")
    assert 300 < sum(p.store for p in stream.places(1)) < 700
    window = stream_module.WINDOW
    # One window of 64 blocks touches 64 blocks, not all 782.
    blocks = {(p.store, p.record // 256) for step in range(1, 10) for p in stream.places(step)}
    assert len(blocks) <= window


def test_steps_per_epoch_covers_every_record() -> None:
    for n, batch, steps in ((10, 5, 2), (11, 5, 3), (3, 5, 1)):
        stream = Stream([n], batch, 0, name="s")
        assert stream.steps_per_epoch == steps
        seen = {p.record for s in range(1, steps + 1) for p in stream.places(s)}
        assert seen == set(range(n))


def test_no_records_are_an_error() -> None:
    with pytest.raises(DataError, match="'images' has no records"):
        Stream([0, np.array([], dtype=np.int64)], 4, 0, name="images")


def test_a_coin_is_uniform_and_independent() -> None:
    draws = np.array([[coin(seed, step, "x") for step in range(2000)] for seed in (0, 1)])
    assert (draws >= 0).all()
    assert (draws < 1).all()
    assert abs(draws.mean() - 0.5) < 0.02
    assert abs((draws < 0.25).mean() - 0.25) < 0.03
    assert abs(np.corrcoef(draws)[0, 1]) < 0.1
    assert coin(0, 3, "x") != coin(0, 3, "y")
    assert coin(np.int64(0), np.int64(3), "x") == coin(0, 3, "x")  # type: ignore[arg-type]

from __future__ import annotations

import numpy as np
import pytest

from xvlm_core.metrics.recall import NOWHERE, best_ranks, nearest, recall_at, top_k


def by_loop(scores: list[list[float]], k: int) -> list[list[int]]:
    found = []
    for row in scores:
        left = dict(enumerate(row))
        kept: list[int] = []
        while len(kept) < k:
            best = max(left.values())
            number = min(n for n, value in left.items() if value == best)
            kept.append(number)
            del left[number]
        found.append(kept)
    return found


def whole(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Small whole numbers: sums are exact in any order, and many are equal."""
    return rng.integers(-2, 3, shape).astype(np.float32)


@pytest.mark.parametrize("k", [1, 2, 5, 16, 17])
@pytest.mark.parametrize("levels", [1, 2, 4, 1000])
def test_the_greatest_of_each_row_are_those_of_a_loop(k: int, levels: int) -> None:
    scores = np.random.default_rng(levels).integers(0, levels, (9, 17)).astype(np.float32)
    assert top_k(scores, k).tolist() == by_loop(scores.tolist(), k)


def test_what_is_no_number_comes_last() -> None:
    scores = np.array([[np.nan, 1, -np.inf, np.nan, 2]], dtype=np.float32)
    assert top_k(scores, 2).tolist() == [[4, 1]]
    assert top_k(scores, 5).tolist() == [[4, 1, 0, 2, 3]]


@pytest.mark.parametrize("chunk", [1, 7, 23])
@pytest.mark.parametrize("k", [1, 5, 31])
def test_chunks_change_nothing(chunk: int, k: int) -> None:
    rng = np.random.default_rng(0)
    queries, candidates = whole(rng, 23, 6), whole(rng, 31, 6)
    scores = queries @ candidates.T
    assert len(np.unique(scores[0])) < 31, "there are ties"
    found = nearest(queries, candidates, k, chunk=chunk)
    expected = by_loop(scores.tolist(), k)
    assert found.candidates_Qk.tolist() == expected
    assert found.similarity_Qk.tolist() == [
        [scores[q, c] for c in row] for q, row in enumerate(expected)
    ]


@pytest.mark.parametrize("chunk", [1, 7, 64, 256])
def test_equal_vectors_tie_whatever_the_chunk(chunk: int) -> None:
    """A product in float32 tells them apart by their place in a block."""
    rng = np.random.default_rng(5)
    queries, some = (rng.standard_normal((n, 256)).astype(np.float32) for n in (300, 90))
    some[3, :200] = 0.0
    again = some.copy()
    again[3, :200] = -0.0
    candidates = np.concatenate([some, again, some[:41]])
    found = nearest(queries, candidates, len(candidates), chunk=chunk)
    place = np.argsort(found.candidates_Qk, axis=1)
    similarity = np.take_along_axis(found.similarity_Qk, place, axis=1)
    assert (similarity[:, :90] == similarity[:, 90:180]).all()
    assert (place[:, :90] + 1 == place[:, 90:180]).all(), "side by side, by number"
    assert (place[:, :41] + 2 == place[:, 180:]).all()
    exact = queries.astype(np.float64) @ candidates.astype(np.float64).T
    assert np.abs(similarity - exact).max() < 1e-5
    alone = nearest(queries[:7], candidates, 9, chunk=1).candidates_Qk
    assert (alone == found.candidates_Qk[:7, :9]).all()


def test_the_whole_matrix_is_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = top_k

    def watched(scores: np.ndarray, k: int) -> np.ndarray:
        seen.append(scores.shape)
        return real(scores, k)

    monkeypatch.setattr("xvlm_core.metrics.recall.top_k", watched)
    rng = np.random.default_rng(0)
    nearest(whole(rng, 20, 3), whole(rng, 11, 3), 2, chunk=8)
    assert seen == [(8, 11), (8, 11), (4, 11)]


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_recall_is_that_of_a_loop(chunk: int) -> None:
    rng = np.random.default_rng(3)
    queries, candidates = whole(rng, 40, 4), whole(rng, 30, 4)
    right = [set(rng.choice(30, 1 + q % 3, replace=False).tolist()) for q in range(40)]
    rankings = nearest(queries, candidates, 10, chunk=chunk).candidates_Qk.tolist()
    ranks = best_ranks(rankings, right)
    ordered = by_loop((queries @ candidates.T).tolist(), 30)
    values = []
    for k in (1, 5, 10):
        hits = sum(bool(set(row[:k]) & wanted) for row, wanted in zip(ordered, right, strict=True))
        assert recall_at(ranks, k) == hits / 40
        values.append(hits)
    assert 0 < values[0] < values[1] < values[2] < 40


def test_the_first_right_answer_counts() -> None:
    ranks = best_ranks([["a", "b", "c"], ["a"], []], [{"c", "b"}, {"x"}, {"a"}])
    assert ranks.tolist() == [1, NOWHERE, NOWHERE]
    assert [recall_at(ranks, k) for k in (1, 2)] == [0.0, 1 / 3]
    assert recall_at(best_ranks([], []), 1) == 0.0

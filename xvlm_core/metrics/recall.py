"""Recall at k over a collection, without its whole matrix of similarities. NumPy alone.

Ties are broken by number: of candidates that are equally near, the one with the smaller number
comes first. Candidates with equal vectors are equally near to the last bit, whatever the size of
the chunks: a matrix product in float32 rounds a row otherwise in another place of another block.

Legend: Q queries, C candidates, E width, k answers a query.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NOWHERE = np.iinfo(np.int64).max
"""The rank of an answer that is not among those that were kept."""


@dataclass(frozen=True)
class Nearest:
    """The nearest candidates of each query, the nearest first.

    Attributes:
        candidates_Qk: their numbers, int64.
        similarity_Qk: float32.
    """

    candidates_Qk: npt.NDArray[np.int64]
    similarity_Qk: npt.NDArray[np.float32]


def top_k(scores_QC: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Numbers of the k greatest of each row, the greatest first; ties by number.

    Args:
        scores_QC: what is not a number counts as minus infinity.
        k: at most C.

    Returns:
        ``(Q, k)``.
    """
    rows, width = scores_QC.shape
    assert 0 < k <= width, (k, width)
    scores_QC = np.where(np.isnan(scores_QC), np.float32(-np.inf), scores_QC)
    last_Q1 = np.partition(scores_QC, width - k, axis=1)[:, width - k, None]
    above_QC = scores_QC > last_Q1
    equal_QC = scores_QC == last_Q1
    # of those that are equal to the last one that is kept, the first so many
    places_Q1 = k - above_QC.sum(1, keepdims=True)
    kept_QC = above_QC | (equal_QC & (equal_QC.cumsum(1) <= places_Q1))
    numbers_Qk = np.nonzero(kept_QC)[1].reshape(rows, k)
    found_Qk = np.take_along_axis(scores_QC, numbers_Qk, axis=1)
    order_Qk = np.argsort(-found_Qk, axis=1, kind="stable")
    return np.take_along_axis(numbers_Qk, order_Qk, axis=1)


def nearest(
    queries_QE: npt.NDArray[np.float32],
    candidates_CE: npt.NDArray[np.float32],
    k: int,
    *,
    chunk: int = 256,
) -> Nearest:
    """The k candidates with the greatest inner product with each query.

    Inner products are summed in float64 and rounded to float32. Candidates with equal vectors are
    multiplied once: they tie exactly.

    Args:
        queries_QE: float32.
        candidates_CE: float32.
        k: at most C.
        chunk: queries whose similarities to all candidates are in memory at once.
    """
    numbers = np.empty((len(queries_QE), k), dtype=np.int64)
    similarity = np.empty((len(queries_QE), k), dtype=np.float32)
    distinct_DE, place_C = _distinct(candidates_CE)
    # the sums in float64, rounded once: a block of another size sums in another order, which then
    # shows in the last digit of one similarity in some million, not in nine of ten
    distinct_ED = distinct_DE.astype(np.float64).T
    for start in range(0, len(queries_QE), chunk):
        exact = queries_QE[start : start + chunk].astype(np.float64) @ distinct_ED
        scores = exact.astype(np.float32)
        if len(distinct_DE) < len(candidates_CE):
            scores = scores[:, place_C]
        numbers[start : start + chunk] = found = top_k(scores, k)
        similarity[start : start + chunk] = np.take_along_axis(scores, found, axis=1)
    return Nearest(numbers, similarity)


def _distinct(
    rows_CE: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The rows that are not equal to another one, and which of them each row is."""
    rows = np.ascontiguousarray(rows_CE + np.float32(0))  # -0 and 0 are equal, their bytes are not
    as_bytes = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).ravel()
    _, first, place = np.unique(as_bytes, return_index=True, return_inverse=True)
    if len(first) == len(rows):
        return rows, np.arange(len(rows))
    return rows[first], place.ravel()


def best_ranks(
    rankings: Sequence[Sequence[Hashable]], right: Sequence[Collection[Hashable]]
) -> npt.NDArray[np.int64]:
    """Place (0, 1, ...) of the first right answer in each ranking; ``NOWHERE`` without one.

    Args:
        rankings: answers to each query, the best first.
        right: the right ones, any of which will do.
    """
    ranks = np.full(len(rankings), NOWHERE, dtype=np.int64)
    for query, (ranking, wanted) in enumerate(zip(rankings, right, strict=True)):
        for place, answer in enumerate(ranking):
            if answer in wanted:
                ranks[query] = place
                break
    return ranks


def recall_at(ranks: npt.NDArray[np.int64], k: int) -> float:
    """Share of queries with a right answer among the first k; 0 without queries."""
    return float((ranks < k).mean()) if len(ranks) else 0.0

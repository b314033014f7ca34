"""How far a mean could have come out otherwise: 95 % intervals by the bootstrap. NumPy only.

Items of one picture are no independent trials: a picture that is hard is hard for all its phrases.
So whole pictures (clusters) are drawn again, with replacement, as many as there are, and the mean
over their items is taken; the interval holds the middle 95 % of what many such draws give
(percentile method; Davison and Hinkley, Bootstrap Methods, 1997, sections 2.4 and 3.8).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = tuple[float, float]

RESAMPLES = 2000
LEVEL = 0.95
SEED = 20220717
"""Fixed, so that equal answers have equal intervals."""

_CELLS = 2_000_000
"""Draws held at a time: bounds the memory."""


def interval(
    values: ArrayLike, clusters: Sequence[Hashable], *, resamples: int = RESAMPLES
) -> Interval | None:
    """The interval of one mean: see :func:`intervals`."""
    return intervals({"": values}, clusters, resamples=resamples)[""]


def intervals(
    columns: Mapping[str, ArrayLike],
    clusters: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> dict[str, Interval | None]:
    """The intervals of several means over the same items, from the same draws.

    Args:
        columns: by name, a value for each item, ``(N,)``; NaN: the item does not count there.
        clusters: of each item, what it is drawn together with: its picture.
        resamples: draws.
        level: share of the draws that the interval holds.
        seed: of the draws.

    Returns:
        By name, lower and upper end; None where fewer than two clusters have an item that counts:
        nothing is known about the spread.
    """
    names = list(columns)
    if not names or not len(clusters):
        return dict.fromkeys(names)
    sums, counts = _sums_and_counts(columns, clusters)
    means = _means(sums, counts, resamples, seed)
    few = (counts > 0).sum(axis=0) < 2
    return {
        name: None if few[column] else _middle(means[:, column], level)
        for column, name in enumerate(names)
    }


def interval_of_means(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    columns: Mapping[str, ArrayLike],
    clusters: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> Interval | None:
    """The interval of a figure that is made of several means: of their mean, say.

    Args:
        function: of the means of each draw, ``(draws, columns)``: the figures, ``(draws,)``.
        columns: as for :func:`intervals`.
        clusters: as there.
        resamples: draws.
        level: share of the draws that the interval holds.
        seed: of the draws.

    Returns:
        None where fewer than two clusters have an item that counts in one of the columns.
    """
    if not columns or not len(clusters):
        return None
    sums, counts = _sums_and_counts(columns, clusters)
    if ((counts > 0).sum(axis=0) < 2).any():
        return None
    return _middle(function(_means(sums, counts, resamples, seed)), level)


def interval_of_weights(
    figure: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    clusters: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = SEED,
) -> Interval | None:
    """The interval of any figure that can be computed of items that count several times.

    Args:
        figure: of how often each item is drawn, ``(draws, N)``: the figures, ``(draws,)``; NaN: it
            has no value for a draw.
        clusters: of each of the N items, what it is drawn together with.
        resamples: draws.
        level: share of the draws that the interval holds.
        seed: of the draws.

    Returns:
        None where there are fewer than two clusters, or no draw has a figure.
    """
    cluster, n = _numbered(clusters)
    if n < 2:
        return None
    blocks = _draws(n, max(n, len(clusters)), resamples, np.random.default_rng(seed))
    return _middle(np.concatenate([figure(weights[:, cluster]) for weights in blocks]), level)


def _middle(drawn: NDArray[np.float64], level: float) -> Interval | None:
    """The interval that holds the middle of the draws; those without a figure do not count."""
    drawn = drawn[~np.isnan(drawn)]  # a draw may miss all of a few items
    if not len(drawn):
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def _numbered(clusters: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    """The number of each item's cluster, and how many there are."""
    numbers: dict[Hashable, int] = {}
    of_item = [numbers.setdefault(name, len(numbers)) for name in clusters]
    return np.array(of_item, dtype=np.int64), len(numbers)


def _sums_and_counts(
    columns: Mapping[str, ArrayLike], clusters: Sequence[Hashable]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the items of each cluster, ``(clusters, columns)``."""
    values = np.stack([np.asarray(some, dtype=np.float64) for some in columns.values()], axis=1)
    assert values.shape == (len(clusters), len(columns)), "one value an item and column"
    cluster, n = _numbered(clusters)
    sums = _by_cluster(np.nan_to_num(values), cluster, n)
    return sums, _by_cluster(~np.isnan(values), cluster, n)


def _by_cluster(
    values: NDArray[np.generic], cluster: NDArray[np.int64], n: int
) -> NDArray[np.float64]:
    """Sums of the items of each cluster, ``(n, columns)``."""
    columns = [np.bincount(cluster, weights=column, minlength=n) for column in values.T]
    return np.stack(columns, axis=1)


def _draws(
    n: int, width: int, resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """How often each of n clusters is drawn: a multinomial weight, ``(some draws, n)`` at a time.

    Args:
        n: clusters.
        width: numbers that are held for each draw.
        resamples: draws in all.
        rng: draws.
    """
    rows = max(1, _CELLS // width)
    for start in range(0, resamples, rows):
        m = min(rows, resamples - start)
        drawn = rng.integers(0, n, size=(m, n), dtype=np.int32)
        drawn += np.arange(m, dtype=np.int32)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=m * n).reshape(m, n)
        yield weights.astype(np.float64)


def _means(
    sums: NDArray[np.float64], counts: NDArray[np.float64], resamples: int, seed: int
) -> NDArray[np.float64]:
    """The means of each draw, ``(resamples, columns)``; NaN where it has no item.

    The weighted sums and counts are two matrix products.
    """
    both = np.concatenate([sums, counts], axis=1)
    n = len(sums)
    blocks = _draws(n, n, resamples, np.random.default_rng(seed))
    products = np.concatenate([weights @ both for weights in blocks])
    drawn_sums, drawn_counts = np.split(products, 2, axis=1)
    out: NDArray[np.float64] = np.full_like(drawn_sums, np.nan)
    np.divide(drawn_sums, drawn_counts, out=out, where=drawn_counts > 0)
    return out

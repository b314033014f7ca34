"""How far a mean could have come out otherwise: 95 % intervals by the bootstrap. NumPy only.

Items of one picture are no independent trials: a picture that is hard is hard for all its phrases.
So whole pictures (clusters) are drawn again, with replacement, as many as there are, and the mean
over their items is taken; the interval holds the middle 95 % of what many such draws give
(percentile method; Davison and Hinkley, Bootstrap Methods, 1997, sections 2.4 and 3.8).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

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
    values = np.stack([np.asarray(columns[name], dtype=np.float64) for name in names], axis=1)
    assert values.shape == (len(clusters), len(names)), "one value an item and column"
    numbers: dict[Hashable, int] = {}
    cluster = np.array([numbers.setdefault(name, len(numbers)) for name in clusters])
    counts = _by_cluster(~np.isnan(values), cluster, len(numbers))
    sums = _by_cluster(np.nan_to_num(values), cluster, len(numbers))
    means = _means(sums, counts, resamples, np.random.default_rng(seed))
    out: dict[str, Interval | None] = {}
    for column, name in enumerate(names):
        drawn = means[:, column]
        drawn = drawn[~np.isnan(drawn)]  # a draw may miss all of a few items
        if (counts[:, column] > 0).sum() < 2:
            out[name] = None
            continue
        tail = (1 - level) / 2
        low, high = np.quantile(drawn, [tail, 1 - tail])
        out[name] = (float(low), float(high))
    return out


def _by_cluster(
    values: NDArray[np.generic], cluster: NDArray[np.int64], n: int
) -> NDArray[np.float64]:
    """Sums of the items of each cluster, ``(n, columns)``."""
    columns = [np.bincount(cluster, weights=column, minlength=n) for column in values.T]
    return np.stack(columns, axis=1)


def _means(
    sums: NDArray[np.float64],
    counts: NDArray[np.float64],
    resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The means of each draw, ``(resamples, columns)``; NaN where it has no item.

    How often a cluster is drawn is a multinomial weight: the weighted sums and counts are two
    matrix products.
    """
    n = len(sums)
    both = np.concatenate([sums, counts], axis=1)
    rows = max(1, _CELLS // n)
    parts = []
    for start in range(0, resamples, rows):
        m = min(rows, resamples - start)
        drawn = rng.integers(0, n, size=(m, n), dtype=np.int32)
        drawn += np.arange(m, dtype=np.int32)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=m * n).reshape(m, n)
        parts.append(weights.astype(np.float64) @ both)
    drawn_sums, drawn_counts = np.split(np.concatenate(parts), 2, axis=1)
    out: NDArray[np.float64] = np.full_like(drawn_sums, np.nan)
    np.divide(drawn_sums, drawn_counts, out=out, where=drawn_counts > 0)
    return out

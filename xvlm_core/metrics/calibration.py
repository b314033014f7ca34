"""How far a probability can be trusted: ROC AUC, expected calibration error, reliability table.

Used for the probability that a phrase is in the picture at all. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Chance that a true item scores above a false one; a tie counts one half.

    Counted in integers, hence exact up to the final division (Mann-Whitney U / (P * N)).

    Args:
        scores: ``(n,)``, finite; greater means more likely true.
        labels: ``(n,)``, true or false.

    Raises:
        ValueError: the labels are all true or all false: the figure is undefined.
    """
    values, truth = _checked(scores, labels)
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        raise ValueError("ROC AUC needs items that are true and items that are false")
    _, group = np.unique(values, return_inverse=True)
    true_of_group = np.bincount(group, weights=truth).astype(np.int64)
    false_of_group = np.bincount(group).astype(np.int64) - true_of_group
    false_below = np.cumsum(false_of_group) - false_of_group
    twice_u = int((true_of_group * (2 * false_below + false_of_group)).sum())
    return twice_u / (2 * positives * negatives)


@dataclass(frozen=True)
class ReliabilityBin:
    """One row of a reliability table: probabilities in [lower, upper) (the last: [lower, 1]).

    Attributes:
        lower: lower end of the bin.
        upper: upper end of the bin.
        n: items in it.
        mean_probability: their mean probability; None when there are none.
        frequency: share of them that is true; None when there are none.
    """

    lower: float
    upper: float
    n: int
    mean_probability: float | None
    frequency: float | None


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Said and observed frequency in ``bins`` bins of equal width over [0, 1].

    Args:
        probabilities: ``(n,)`` in [0, 1].
        labels: ``(n,)``, true or false.
        bins: number of bins; all are returned, empty ones too.
    """
    values, truth = _checked(probabilities, labels)
    assert ((values >= 0) & (values <= 1)).all(), "probabilities lie in [0, 1]"
    assert bins > 0, "at least one bin"
    edges = np.arange(bins + 1) / bins
    # The edges themselves decide, so that 0.3 falls where the table says it does.
    place = (np.searchsorted(edges, values, side="right") - 1).clip(0, bins - 1)
    rows = []
    for k in range(bins):
        inside = place == k
        n = int(inside.sum())
        rows.append(
            ReliabilityBin(
                lower=float(edges[k]),
                upper=float(edges[k + 1]),
                n=n,
                mean_probability=float(values[inside].mean()) if n else None,
                frequency=float(truth[inside].mean()) if n else None,
            )
        )
    return tuple(rows)


def ece(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: mean gap between said and observed frequency, weighted by n.

    Args:
        probabilities: ``(n,)`` in [0, 1], n > 0: of being true (not of the predicted class).
        labels: ``(n,)``, true or false.
        bins: bins of equal width.
    """
    rows = reliability(probabilities, labels, bins)
    total = sum(row.n for row in rows)
    assert total, "the calibration of no items is undefined"
    gaps = [
        row.n * abs(row.mean_probability - row.frequency)
        for row in rows
        if row.mean_probability is not None and row.frequency is not None
    ]
    return sum(gaps) / total


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    given = np.asarray(labels)
    assert values.ndim == 1, "scores are (n,)"
    assert values.shape == given.shape, "one label for each score"
    assert np.isfinite(values).all(), "scores are finite"
    truth = given.astype(bool)
    assert (truth == given).all(), "labels are true or false"
    return values, truth

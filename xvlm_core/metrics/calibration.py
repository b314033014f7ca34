"""How far a probability can be trusted: ROC AUC, expected calibration error, reliability table;
and one number, fitted on other data, that makes it more to be trusted (temperature).

Used for the probability that a phrase is in the picture at all. NumPy only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xvlm_core.metrics.bootstrap import Interval, interval_of_means, interval_of_weights


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


def roc_auc_interval(
    scores: ArrayLike,
    labels: ArrayLike,
    clusters: Sequence[Hashable],
    groups: Sequence[ArrayLike] | None = None,
) -> Interval | None:
    """95 % of the ROC areas that as many clusters, drawn again, would give.

    Args:
        scores: ``(n,)``, as of :func:`roc_auc`.
        labels: ``(n,)``, true or false.
        clusters: of each item, what it is drawn together with: its picture.
        groups: numbers of the items that are compared with one another, group by group: the area is
            the mean of theirs, weighted by pairs; an item may be in several. None: all with all.

    Returns:
        None where there are fewer than two clusters, or no pair to be compared.
    """
    values, truth = _checked(scores, labels)
    all_items = np.arange(len(values))
    places = [all_items] if groups is None else [np.asarray(g, dtype=np.int64) for g in groups]
    sorted_groups = [_ByScore.of(values, truth, items) for items in places]

    def areas(weights_DN: NDArray[np.float64]) -> NDArray[np.float64]:
        won, pairs = np.zeros(len(weights_DN)), np.zeros(len(weights_DN))
        for group in sorted_groups:
            group_won, group_pairs = group.count(weights_DN)
            won, pairs = won + group_won, pairs + group_pairs
        out: NDArray[np.float64] = np.full_like(won, np.nan)
        return np.divide(won, pairs, out=out, where=pairs > 0)

    return interval_of_weights(areas, clusters)


@dataclass(frozen=True)
class _ByScore:
    """Items in the order of their scores, with the ends of each run of equal ones."""

    items: NDArray[np.int64]
    truth: NDArray[np.bool_]
    starts: NDArray[np.int64]

    @classmethod
    def of(
        cls, values: NDArray[np.float64], truth: NDArray[np.bool_], items: NDArray[np.int64]
    ) -> _ByScore:
        order = items[np.argsort(values[items], kind="stable")]
        starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
        return cls(order, truth[order], starts)

    def count(
        self, weights_DN: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pairs of a true and a false item that the true one wins (a tie: half), and all pairs."""
        none = np.zeros(len(weights_DN))
        if not len(self.items):
            return none, none
        weights = weights_DN[:, self.items]
        # weights of the true and the false ones of each run of equal scores
        true = np.add.reduceat(np.where(self.truth, weights, 0.0), self.starts, axis=1)
        false = np.add.reduceat(np.where(self.truth, 0.0, weights), self.starts, axis=1)
        below = np.cumsum(false, axis=1) - false
        return (true * (below + false / 2)).sum(axis=1), true.sum(axis=1) * false.sum(axis=1)


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
    place = _bin_of(values, bins)
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


def _bin_of(values: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """The bin of each value. The edges decide, so that 0.3 falls where the table says it does."""
    edges = np.arange(bins + 1) / bins
    place: NDArray[np.int64] = np.searchsorted(edges, values, side="right") - 1
    return place.clip(0, bins - 1)


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


def ece_interval(
    probabilities: ArrayLike, labels: ArrayLike, clusters: Sequence[Hashable], bins: int = 10
) -> Interval | None:
    """95 % of the calibration errors that as many clusters, drawn again, would give.

    A calibration error is a sum of distances, to which every noise adds, that of the drawing too:
    the interval of a small one may lie above it.

    Args:
        probabilities: ``(n,)`` in [0, 1], as of :func:`ece`.
        labels: ``(n,)``, true or false.
        clusters: of each item, what it is drawn together with: its picture.
        bins: bins of equal width.

    Returns:
        None where there are fewer than two clusters.
    """
    values, truth = _checked(probabilities, labels)
    place, gaps = _bin_of(values, bins), values - truth
    # n of a bin * |mean gap of the bin| / n of all = |mean over all of the gaps in the bin|
    columns = {str(k): np.where(place == k, gaps, 0.0) for k in range(bins)}
    return interval_of_means(lambda means: np.abs(means).sum(axis=1), columns, clusters)


@dataclass(frozen=True)
class Temperature:
    """What logits are divided by (Guo et al., On Calibration of Modern Neural Networks, 2017).

    Attributes:
        value: above 1: the model was too sure of itself; below: not sure enough.
        n: items it was fitted on.
        loss_before: mean negative log likelihood of them, in nats, as the model said.
        loss_after: with the temperature.
        at_limit: no finite temperature is the best one (every answer is on the right side, or on
            the wrong one): the limit of the search was taken.
    """

    value: float
    n: int
    loss_before: float
    loss_after: float
    at_limit: bool

    def __call__(self, probabilities: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of the same items after it; their order stays."""
        out: NDArray[np.float64] = _sigmoid(_logit(probabilities) / self.value)
        return out


def fit_temperature(probabilities: ArrayLike, labels: ArrayLike) -> Temperature:
    """The temperature with the least negative log likelihood.

    That is a convex function of the inverse temperature: its slope is brought to zero by halving.

    Args:
        probabilities: ``(n,)`` in [0, 1]; those at the ends are taken as float32's nearest to them.
        labels: ``(n,)``, true or false, both of them: of data that is not scored afterwards.

    Raises:
        ValueError: the labels are all true or all false.
    """
    values, truth = _checked(probabilities, labels)
    if truth.all() or not truth.any():
        raise ValueError("a temperature needs items that are true and items that are false")
    logits = _logit(values)

    def slope(inverse: float) -> float:
        return float(((_sigmoid(inverse * logits) - truth) * logits).mean())

    low, high = 1 / _HOTTEST, float(_HOTTEST)
    at_limit = slope(low) >= 0 or slope(high) <= 0
    if at_limit:
        low = high = low if slope(low) >= 0 else high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    inverse = (low + high) / 2
    return Temperature(
        1 / inverse, len(truth), _nll(logits, truth), _nll(inverse * logits, truth), at_limit
    )


_HOTTEST = 100
"""Limit of a temperature; its inverse is the other one."""

_NEAREST = 2.0**-24
"""Softmax in float32 says 0 or 1 of what it only thinks very likely."""


def _logit(probabilities: ArrayLike) -> NDArray[np.float64]:
    p = np.asarray(probabilities, dtype=np.float64).clip(_NEAREST, 1 - _NEAREST)
    out: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return out


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    out: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits))
    return out


def _nll(logits: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    return float(np.logaddexp(0, np.where(truth, -logits, logits)).mean())


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    given = np.asarray(labels)
    assert values.ndim == 1, "scores are (n,)"
    assert values.shape == given.shape, "one label for each score"
    assert np.isfinite(values).all(), "scores are finite"
    truth = given.astype(bool)
    assert (truth == given).all(), "labels are true or false"
    return values, truth

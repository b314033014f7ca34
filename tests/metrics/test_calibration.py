from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvlm_core.metrics.calibration import (
    ece,
    ece_interval,
    fit_temperature,
    reliability,
    roc_auc,
    roc_auc_interval,
)

few_values = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, 2.0])
items = st.lists(st.tuples(few_values, st.booleans()), min_size=2, max_size=30).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


@given(items)
def test_roc_auc_equals_the_count_over_all_pairs(pairs: list[tuple[float, bool]]) -> None:
    positives = [score for score, label in pairs if label]
    negatives = [score for score, label in pairs if not label]
    won = sum(
        1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positives, negatives)
    )
    scores, labels = zip(*pairs, strict=True)
    assert roc_auc(scores, labels) == won / (len(positives) * len(negatives))


def test_roc_auc_of_a_perfect_a_reversed_and_a_constant_score() -> None:
    assert roc_auc([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) == 1
    assert roc_auc([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0]) == 0
    assert roc_auc([0.4] * 5, [1, 0, 1, 0, 0]) == 0.5


def test_roc_auc_of_one_class_only_is_refused() -> None:
    with pytest.raises(ValueError, match="true and items that are false"):
        roc_auc([0.1, 0.2], [1, 1])


def test_reliability_puts_a_probability_on_an_edge_into_the_upper_bin_and_one_into_the_last() -> (
    None
):
    rows = reliability([0.0, 0.3, 0.7, 1.0], [0, 0, 1, 1], bins=10)
    assert {k for k, row in enumerate(rows) if row.n} == {0, 3, 7, 9}
    assert (rows[3].lower, rows[3].upper) == (0.3, 0.4)
    assert (rows[1].n, rows[1].mean_probability, rows[1].frequency) == (0, None, None)


def test_ece_worked_by_hand() -> None:
    # [0, .5): said .2, true 1 of 2 -> gap .3; [.5, 1]: said .9, true 3 of 3 -> gap .1
    probabilities, labels = [0.1, 0.3, 0.8, 0.9, 1.0], [1, 0, 1, 1, 1]
    assert ece(probabilities, labels, bins=2) == pytest.approx((2 * 0.3 + 3 * 0.1) / 5)
    assert ece([0.0, 1.0, 1.0], [0, 1, 1]) == 0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1), st.integers(1, 20))
def test_reliability_counts_every_item_once_in_the_bin_that_holds_it(
    pairs: list[tuple[float, bool]], bins: int
) -> None:
    probabilities, labels = zip(*pairs, strict=True)
    rows = reliability(probabilities, labels, bins)
    assert len(rows) == bins
    assert sum(row.n for row in rows) == len(pairs)
    for row in rows:
        own = [p for p in probabilities if row.lower <= p and (p < row.upper or row.upper == 1)]
        assert row.n == len(own)
    assert 0 <= ece(probabilities, labels, bins) <= 1


# ---------------------------------------------------------------- temperature


def said_and_true(n: int, sharper: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities whose logits are ``sharper`` times those that the labels are drawn with."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.3, 1.5, n)
    truth = rng.random(n) < 1 / (1 + np.exp(-logits))
    return 1 / (1 + np.exp(-sharper * logits)), truth


@pytest.mark.parametrize("sharper", [3.0, 0.4])
def test_the_temperature_is_the_one_the_answers_were_made_with(sharper: float) -> None:
    fitted = fit_temperature(*said_and_true(20_000, sharper, 0))
    assert fitted.value == pytest.approx(sharper, rel=0.05)
    assert (fitted.n, fitted.at_limit) == (20_000, False)
    assert fitted.loss_after < fitted.loss_before
    others, truth = said_and_true(20_000, sharper, 1)
    assert ece(fitted(others), truth) < 0.02 < ece(others, truth) / 2
    assert roc_auc(fitted(others), truth) == roc_auc(others, truth), "the order stays"


def test_no_temperature_of_a_fine_search_is_better() -> None:
    said, truth = said_and_true(300, 2.0, 3)
    fitted = fit_temperature(said, truth)
    logits = np.log(said / (1 - said))
    tried = np.exp(np.linspace(-3, 3, 2001))
    losses = [np.logaddexp(0, np.where(truth, -1, 1) * logits / t).mean() for t in tried]
    assert fitted.loss_after <= min(losses)
    assert fitted.value == pytest.approx(tried[int(np.argmin(losses))], rel=0.01)
    assert fitted.loss_before == pytest.approx(
        np.logaddexp(0, np.where(truth, -1, 1) * logits).mean()
    )


def test_answers_that_are_all_right_or_all_wrong_have_no_best_temperature() -> None:
    right = fit_temperature([0.9, 0.8, 0.1], [1, 1, 0])
    assert (right.value, right.at_limit) == (0.01, True)
    wrong = fit_temperature([0.9, 0.8, 0.1], [0, 0, 1])
    assert (wrong.value, wrong.at_limit) == (100, True)
    assert wrong.loss_after == pytest.approx(np.log(2), abs=0.01)


def test_certain_answers_are_taken_as_very_sure_ones() -> None:
    fitted = fit_temperature([0.0, 1.0, 1.0, 1.0, 0.7], [0, 1, 1, 0, 1])
    assert np.isfinite([fitted.value, fitted.loss_before, fitted.loss_after]).all()
    assert fitted.value > 1
    assert ((fitted([0.0, 1.0]) > 0) & (fitted([0.0, 1.0]) < 1)).all()


def test_a_temperature_needs_both_sorts() -> None:
    with pytest.raises(ValueError, match="true and items that are false"):
        fit_temperature([0.2, 0.4], [1, 1])


# ---------------------------------------------------------------------- intervals


def drawn_again(
    scores: np.ndarray, labels: np.ndarray, clusters: np.ndarray, n: int = 500
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The items of as many clusters, drawn with replacement: a plain loop."""
    rng = np.random.default_rng(9)
    some = []
    for _ in range(n):
        drawn = rng.choice(np.unique(clusters), len(np.unique(clusters)))
        items = np.concatenate([np.flatnonzero(clusters == c) for c in drawn])
        some.append((scores[items], labels[items]))
    return some


def phrases(n_pictures: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with ties, labels and pictures; a picture's phrases go the same way."""
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(n_pictures), rng.integers(1, 7, n_pictures))
    labels = rng.random(len(clusters)) < 0.6
    mood = rng.normal(0, 0.15, n_pictures)[clusters]
    scores = (0.45 + 0.15 * labels + mood + rng.normal(0, 0.15, len(labels))).clip(0, 1).round(2)
    return scores, labels, clusters


def test_the_interval_of_a_roc_area_is_that_of_pictures_drawn_again() -> None:
    scores, labels, clusters = phrases()
    areas = [roc_auc(s, truth) for s, truth in drawn_again(scores, labels, clusters)]
    found = roc_auc_interval(scores, labels, clusters.tolist())
    assert found == pytest.approx(np.quantile(areas, [0.025, 0.975]), abs=0.012)
    assert found is not None
    assert found[0] < roc_auc(scores, labels) < found[1]
    thrice = [np.repeat(column, 3) for column in (scores, labels, clusters)]
    together = roc_auc_interval(thrice[0], thrice[1], thrice[2].tolist())
    assert together == pytest.approx(found), "phrases of a picture are no trials of their own"
    alone = roc_auc_interval(thrice[0], thrice[1], range(3 * len(scores)))
    assert alone is not None
    assert alone[1] - alone[0] < 0.75 * (found[1] - found[0])


def test_groups_of_a_roc_area_are_compared_within_themselves() -> None:
    """What is told apart by its group alone is no merit; an item may be in several groups."""
    scores, labels, clusters = phrases()
    easy = np.concatenate([scores, scores - 5])
    both = np.concatenate([labels, labels])
    pictures = [*clusters.tolist(), *clusters.tolist()]
    n = len(scores)
    one = roc_auc_interval(scores, labels, clusters.tolist())
    groups = [list(range(n)), list(range(n, 2 * n))]
    assert roc_auc_interval(easy, both, pictures, groups) == pytest.approx(one)
    again = [list(range(n)), list(range(n)), []]
    assert roc_auc_interval(easy, both, pictures, again) == pytest.approx(one)
    assert roc_auc_interval(easy, both, pictures) != pytest.approx(one)


def test_where_nothing_is_known_of_the_spread_there_is_no_interval() -> None:
    assert roc_auc_interval([0.1, 0.9], [False, True], ["a", "a"]) is None
    assert roc_auc_interval([0.1, 0.9], [True, True], ["a", "b"]) is None, "nothing to compare"
    assert roc_auc_interval([0.1, 0.9], [False, True], ["a", "b"], [[]]) is None
    assert ece_interval([0.1, 0.9], [False, True], ["a", "a"]) is None
    perfect = [i / 40 + 0.5 * (i >= 10) for i in range(20)]
    wins = roc_auc_interval(perfect, [i >= 10 for i in range(20)], range(20))
    assert wins == (1, 1)
    tied = roc_auc_interval(
        [0.5] * 20, [i % 2 == 0 for i in range(20)], [i // 2 for i in range(20)]
    )
    assert tied == (0.5, 0.5)


def test_the_interval_of_a_calibration_error_is_that_of_pictures_drawn_again() -> None:
    scores, labels, clusters = phrases()
    errors = [ece(s, truth) for s, truth in drawn_again(scores, labels, clusters)]
    found = ece_interval(scores, labels, clusters.tolist())
    assert found == pytest.approx(np.quantile(errors, [0.025, 0.975]), abs=0.015)
    few = ece_interval(scores, labels, clusters.tolist(), bins=3)
    assert few != pytest.approx(found)

"""Which two pictures a text is shown with: how often, in which order, and what is never shown."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from xvlm_core.objectives.pair_assignment import (
    FIRST,
    NEITHER,
    SECOND,
    assignment_loss,
    assignment_weights,
    draw_assignment,
)


def diagonal(n: int) -> torch.Tensor:
    return torch.eye(n, dtype=torch.bool)


def looks(n: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, 4, generator=draw), dim=-1)


def drawn(n: int, rounds: int, excluded: torch.Tensor | None = None) -> list[tuple[int, ...]]:
    """(text, first, second, label) of many draws."""
    excluded = diagonal(n) if excluded is None else excluded
    weights = assignment_weights(looks(n), excluded)
    generator = torch.Generator().manual_seed(7)
    rows: list[tuple[int, ...]] = []
    for _ in range(rounds):
        made = draw_assignment(weights, excluded, generator)
        columns = (made.first_B, made.second_B, made.label_B)
        rows += zip(range(n), *(column.tolist() for column in columns), strict=True)
    return rows


def test_the_label_says_which_of_the_two_is_the_own_picture() -> None:
    for text, first, second, label in drawn(4, 300):
        assert first != second
        assert (first == text) == (label == FIRST)
        assert (second == text) == (label == SECOND)
        assert label in (FIRST, SECOND, NEITHER)


def test_each_class_is_a_third() -> None:
    rows = drawn(5, 1200)
    shares = Counter(label for *_, label in rows)
    for label in (FIRST, SECOND, NEITHER):
        assert shares[label] / len(rows) == pytest.approx(1 / 3, abs=0.02)


def test_others_are_drawn_as_often_as_their_weights_say_in_the_order_drawn() -> None:
    n = 4
    weights = assignment_weights(looks(n), diagonal(n)).double()
    chance = weights / weights.sum(1, keepdim=True)
    rows = [row for row in drawn(n, 12_000) if row[0] == 1]
    alone = Counter(a if label == SECOND else b for _, a, b, label in rows if label != NEITHER)
    pairs = Counter((a, b) for _, a, b, label in rows if label == NEITHER)
    for other in (0, 2, 3):
        share = alone[other] / alone.total()
        assert share == pytest.approx(chance[1, other].item(), abs=0.025)
        for second in {0, 2, 3} - {other}:
            expected = chance[1, other] * chance[1, second] / (1 - chance[1, other])
            share = pairs[other, second] / pairs.total()
            assert share == pytest.approx(expected.item(), abs=0.025)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_the_same_under_autocast(dtype: torch.dtype) -> None:
    vectors, excluded = looks(16).to(dtype), diagonal(16)
    expected = assignment_weights(vectors, excluded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = assignment_weights(vectors, excluded)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, expected)


def test_weights_are_the_softmax_of_similarity_with_zeros_where_excluded() -> None:
    vectors, excluded = looks(3), diagonal(3)
    excluded[0, 2] = True
    weights = assignment_weights(vectors.requires_grad_(), excluded)
    assert not weights.requires_grad
    expected = (vectors @ vectors.T / 0.07).softmax(1).detach()
    assert torch.allclose(weights[~excluded], expected[~excluded])
    assert not weights[excluded].any()


def test_weights_are_finite_whatever_the_model_says() -> None:
    broken = looks(3)
    broken[1] = float("nan")
    weights = assignment_weights(broken, diagonal(3))
    assert weights.isfinite().all()
    draw_assignment(weights, diagonal(3), torch.Generator().manual_seed(0))


def test_what_fits_the_text_as_well_is_never_shown_as_another() -> None:
    excluded = diagonal(4)
    excluded[0, 1] = excluded[1, 0] = True
    for text, first, second, _ in drawn(4, 200, excluded):
        assert {0: 1, 1: 0}.get(text) not in (first, second)


def test_one_other_picture_is_shown_beside_the_own_and_never_as_neither() -> None:
    labels = Counter(label for *_, label in drawn(2, 400))
    assert set(labels) == {FIRST, SECOND}
    assert labels[FIRST] / labels.total() == pytest.approx(0.5, abs=0.08)


def test_a_text_without_another_picture_is_left_out_of_the_loss() -> None:
    ((text, first, second, label),) = drawn(1, 1)
    assert (first, second) == (text, text)
    assert label < 0
    logits = torch.randn(1, 3, requires_grad=True)
    loss = assignment_loss(logits, torch.tensor([label]))
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any()
    both = torch.randn(2, 3)
    kept = assignment_loss(both, torch.tensor([2, label]))
    assert torch.allclose(kept, F.cross_entropy(both[:1], torch.tensor([2])))


def test_draws_follow_the_generator() -> None:
    weights = assignment_weights(looks(6), diagonal(6))
    one, same, other = (
        draw_assignment(weights, diagonal(6), torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one.first_B, same.first_B)
    assert torch.equal(one.label_B, same.label_B)
    assert not torch.equal(one.label_B, other.label_B) or not torch.equal(
        one.first_B, other.first_B
    )

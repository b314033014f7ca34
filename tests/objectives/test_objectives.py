"""The equations of the paper, on numbers worked out in another way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_core.objectives.box import (
    OtherBoxes,
    box_losses,
    cxcywh_to_xyxy,
    generalised_iou,
    nearest_targets,
)
from xvlm_core.objectives.contrastive import contrastive_loss, scale_gradient, similarity
from xvlm_core.objectives.masked_lm import masked_lm_loss
from xvlm_core.objectives.matching import (
    draw_negatives,
    match_rows,
    matching_loss,
    negative_weights,
)


def softmax_by_hand(row: list[float], at: int) -> float:
    return math.exp(row[at]) / sum(math.exp(x) for x in row)


def test_contrastive_is_the_mean_of_both_directions() -> None:
    s = [[2.0, 0.5, -1.0], [0.0, 1.0, 0.3], [0.2, -0.7, 1.5]]
    rows = -sum(math.log(softmax_by_hand(s[i], i)) for i in range(3)) / 3
    columns = -sum(math.log(softmax_by_hand([s[j][i] for j in range(3)], i)) for i in range(3)) / 3
    assert contrastive_loss(torch.tensor(s)).item() == pytest.approx((rows + columns) / 2)


def test_excluded_pairs_are_no_negatives_and_the_diagonal_stays() -> None:
    s = torch.tensor([[2.0, 9.0, -1.0], [9.0, 1.0, 0.3], [0.2, -0.7, 1.5]])
    excluded = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    loss = contrastive_loss(s, excluded)
    rows = -math.log(softmax_by_hand([2.0, -1.0], 0)) - math.log(softmax_by_hand([1.0, 0.3], 0))
    rows -= math.log(softmax_by_hand([0.2, -0.7, 1.5], 2))
    columns = -math.log(softmax_by_hand([2.0, 0.2], 0)) - math.log(softmax_by_hand([1.0, -0.7], 0))
    columns -= math.log(softmax_by_hand([-1.0, 0.3, 1.5], 2))
    assert loss.item() == pytest.approx((rows + columns) / 6, rel=1e-5)


def test_similarity_is_cosine_over_temperature() -> None:
    v = torch.nn.functional.normalize(torch.randn(3, 5), dim=1)
    t = torch.nn.functional.normalize(torch.randn(3, 5), dim=1)
    got = similarity(v, t, torch.tensor(0.1))
    assert got[1, 2].item() == pytest.approx(sum((v[1] * t[2]).tolist()) / 0.1, rel=1e-4)


def test_scaled_gradient_keeps_the_values() -> None:
    x = torch.tensor([1.5, -2.0], requires_grad=True)
    y = scale_gradient(x, 1 / 8)
    assert torch.allclose(y, x)
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.125, 0.125]
    assert scale_gradient(x, 1.0) is x


def test_negative_weights_are_softmax_plus_a_floor_and_zero_where_excluded() -> None:
    s = torch.tensor([[1.0, 2.0], [-300.0, 300.0]])
    weights = negative_weights(s, torch.eye(2, dtype=torch.bool))
    assert weights[0, 0] == 0 == weights[1, 1]
    assert weights[0, 1].item() == pytest.approx(softmax_by_hand([1.0, 2.0], 1) + 1e-5)
    assert weights[1, 0].item() == pytest.approx(1e-5)


def test_hard_negatives_are_drawn_in_proportion_to_their_weights_and_never_where_excluded() -> None:
    s = torch.tensor([[0.0, 1.0, 2.0, 0.0]] * 4)
    excluded = torch.eye(4, dtype=torch.bool)
    excluded[0, 3] = excluded[3, 0] = True
    generator = torch.Generator().manual_seed(0)
    texts, concepts = torch.zeros(4, 4), torch.zeros(4, 4)
    for _ in range(4000):
        (drawn,) = draw_negatives(s, excluded, generator)
        texts[torch.arange(4), drawn.text_of_concept_B] += 1
        concepts[torch.arange(4), drawn.concept_of_text_B] += 1
    assert (texts[excluded] == 0).all()
    assert (concepts[excluded] == 0).all()
    expected = math.exp(2) / (math.exp(1) + math.exp(2))
    assert texts[0, 2].item() / 4000 == pytest.approx(expected, abs=0.03)
    # for a text, every concept scores the same here: uniform over the three others
    assert concepts[1, 0].item() / 4000 == pytest.approx(1 / 3, abs=0.03)


def test_a_row_without_a_candidate_draws_nothing_and_raises_nothing() -> None:
    excluded = torch.ones(3, 3, dtype=torch.bool)
    (drawn,) = draw_negatives(torch.randn(3, 3), excluded, torch.Generator().manual_seed(0))
    assert not drawn.text_has_B.any()
    assert not drawn.concept_has_B.any()
    (alone,) = draw_negatives(torch.zeros(1, 1), excluded[:1, :1], torch.Generator().manual_seed(0))
    assert not alone.text_has_B.any()


def test_several_negatives_of_a_row_all_differ_until_there_is_none_left() -> None:
    excluded = torch.eye(4, dtype=torch.bool)
    excluded[0, 3] = True  # concept 0 and text 3
    drawn = draw_negatives(torch.randn(4, 4), excluded, torch.Generator().manual_seed(0), 4)
    concepts_of_text_3 = [int(d.concept_of_text_B[3]) for d in drawn if d.text_has_B[3]]
    texts_of_concept_0 = [int(d.text_of_concept_B[0]) for d in drawn if d.concept_has_B[0]]
    texts_of_concept_1 = [int(d.text_of_concept_B[1]) for d in drawn if d.concept_has_B[1]]
    assert sorted(concepts_of_text_3) == [1, 2]
    assert sorted(texts_of_concept_0) == [1, 2]
    assert sorted(texts_of_concept_1) == [0, 2, 3]
    rows = sum(int(d.text_has_B.sum() + d.concept_has_B.sum()) for d in drawn)
    assert match_rows(excluded, 4) == 4 + rows == match_rows(excluded, 3)
    assert match_rows(excluded, 1) == 12


def test_the_same_generator_state_draws_the_same_negatives() -> None:
    s, eye = torch.randn(8, 8), torch.eye(8, dtype=torch.bool)
    (one,) = draw_negatives(s, eye, torch.Generator().manual_seed(5))
    (two,) = draw_negatives(s, eye, torch.Generator().manual_seed(5))
    assert torch.equal(one.text_of_concept_B, two.text_of_concept_B)
    assert torch.equal(one.concept_of_text_B, two.concept_of_text_B)


def test_matching_loss_reads_class_one_as_a_match() -> None:
    sure = torch.tensor([[-9.0, 9.0], [9.0, -9.0]])
    assert matching_loss(sure, torch.tensor([1, 0])).item() < 1e-6
    assert matching_loss(sure, torch.tensor([0, 1])).item() > 10


def test_masked_lm_without_a_masked_token_is_zero_and_differentiable() -> None:
    logits = torch.zeros(0, 7, requires_grad=True)
    loss = masked_lm_loss(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    uniform = masked_lm_loss(torch.zeros(2, 7), torch.tensor([3, 5]))
    assert uniform.item() == pytest.approx(math.log(7))


def test_giou_of_known_boxes() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]] * 3)
    b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [4.0, 0.0, 6.0, 2.0]])
    # same; overlap 1 of union 7, hull 9; disjoint, hull 12, union 8
    expected = [1.0, 1 / 7 - 2 / 9, -4 / 12]
    assert generalised_iou(a, b).tolist() == pytest.approx(expected)


fraction = st.floats(0.05, 0.95)
box = st.tuples(fraction, fraction, fraction, fraction)


@settings(max_examples=60, deadline=None)
@given(box, box)
def test_giou_is_symmetric_and_between_minus_one_and_one(
    one: tuple[float, ...], two: tuple[float, ...]
) -> None:
    a, b = (cxcywh_to_xyxy(torch.tensor([x], dtype=torch.float64)) for x in (one, two))
    forward, back = generalised_iou(a, b).item(), generalised_iou(b, a).item()
    assert forward == pytest.approx(back)
    assert -1 <= forward <= 1 + 1e-9


def test_box_losses_are_means_over_boxes_of_sums_over_coordinates() -> None:
    predicted = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.3, 0.3, 0.2, 0.2]])
    target = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.4, 0.3, 0.2, 0.2]])
    losses = box_losses(predicted, target)
    assert losses.l1.item() == pytest.approx(0.05)
    overlap = 0.1 * 0.2
    union = 0.08 - overlap
    hull = 0.3 * 0.2
    giou = overlap / union - (hull - union) / hull
    assert losses.giou.item() == pytest.approx((1 - giou) / 2, rel=1e-5)
    none = box_losses(predicted[:0], target[:0])
    assert none.l1.item() == 0 == none.giou.item()


def test_a_text_that_fits_several_boxes_is_drawn_to_the_nearest_one() -> None:
    predicted = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.2, 0.2]])
    target = torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.7, 0.8, 0.1, 0.1], [0.1, 0.1, 0.2, 0.2]])
    others = OtherBoxes(
        torch.tensor([[0.3, 0.2, 0.1, 0.1], [0.25, 0.2, 0.1, 0.1], [0.2, 0.8, 0.1, 0.1]]),
        torch.tensor([0, 0, 1]),
    )
    nearest = nearest_targets(predicted, target, others)
    assert nearest[0].tolist() == pytest.approx([0.25, 0.2, 0.1, 0.1])
    assert nearest[1].tolist() == pytest.approx([0.7, 0.8, 0.1, 0.1])
    assert nearest[2].tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    none = OtherBoxes(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(nearest_targets(predicted, target, none), target)

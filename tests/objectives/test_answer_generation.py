"""The loss of answers: by hand, against padded texts, and its gradient against differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from xvlm_core.models.packing import PackedTexts
from xvlm_core.objectives.answer_generation import (
    NOTHING,
    answer_generation_loss,
    answer_losses,
)

END = 3
ANSWERS = [[2, 7, 5], [2, 6], [2, 5, 5, 8], [2, 7]]


def logits_of(texts: PackedTexts, vocab: int = 9, dtype: torch.dtype = torch.float32):
    draw = torch.Generator().manual_seed(5)
    return torch.randn(texts.packing.n_tokens, vocab, generator=draw, dtype=dtype)


def losses_of(logits: torch.Tensor, texts: PackedTexts) -> torch.Tensor:
    return answer_losses(
        logits, texts.following(END), texts.packing.text_of_token("cpu"), texts.packing.n_texts
    )


def test_each_token_predicts_the_one_behind_it_and_the_last_one_the_end() -> None:
    texts = PackedTexts.from_lists(ANSWERS)
    following = texts.following(END)
    for b, answer in enumerate(ANSWERS):
        start = texts.packing.starts[b]
        assert following[start : start + len(answer)].tolist() == [*answer[1:], END]
        own = texts.packing.text_of_token("cpu")[start : start + len(answer)]
        assert own.tolist() == [b] * len(answer)
    assert PackedTexts.from_lists([]).following(END).tolist() == []


def test_an_answer_costs_the_sum_over_its_tokens() -> None:
    texts = PackedTexts.from_lists(ANSWERS)
    logits = logits_of(texts)
    expected = []
    for b, answer in enumerate(ANSWERS):
        start = texts.packing.starts[b]
        rows = logits[start : start + len(answer)].log_softmax(-1)
        targets = [*answer[1:], END]
        expected.append(-sum(rows[at, token] for at, token in enumerate(targets)))
    assert torch.allclose(losses_of(logits, texts), torch.stack(expected), atol=1e-6)


def test_uniform_scores_cost_a_logarithm_a_token_and_weights_share_them_out() -> None:
    texts = PackedTexts.from_lists(ANSWERS)
    losses = losses_of(torch.zeros(texts.packing.n_tokens, 9), texts)
    assert losses.tolist() == pytest.approx([n * math.log(9) for n in (3, 2, 4, 2)])
    weights = torch.tensor([0.5, 0.5, 1.0, 0.0])
    loss = answer_generation_loss(losses, weights, 2)
    assert loss.item() == pytest.approx((1.5 + 1 + 4) * math.log(9) / 2), (
        "a question, not an answer"
    )


def test_what_is_not_to_be_predicted_costs_nothing() -> None:
    """As the released code has it: the end is a token of the text, and nothing follows it."""
    with_end = PackedTexts.from_lists([[*answer, END] for answer in ANSWERS])
    logits = logits_of(with_end)
    following = with_end.following(NOTHING)
    losses = answer_losses(logits, following, with_end.packing.text_of_token("cpu"), len(ANSWERS))
    padded = torch.zeros(len(ANSWERS), 5, dtype=torch.int64)
    scores = torch.zeros(len(ANSWERS), 5, 9)
    for b, answer in enumerate(ANSWERS):
        start = with_end.packing.starts[b]
        padded[b, : len(answer) + 1] = torch.tensor([*answer, END])
        scores[b, : len(answer) + 1] = logits[start : start + len(answer) + 1]
    labels = padded[:, 1:].masked_fill(padded[:, 1:] == 0, -100)
    reference = F.cross_entropy(scores[:, :-1].transpose(1, 2), labels, reduction="none").sum(1)
    assert torch.allclose(losses, reference, atol=1e-6)


def test_the_gradient_is_that_of_small_differences() -> None:
    texts = PackedTexts.from_lists(ANSWERS[:2])
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    following, own = texts.following(END), texts.packing.text_of_token("cpu")

    def loss(logits: torch.Tensor) -> torch.Tensor:
        # the loss itself is float32: the same formula in float64
        per = F.cross_entropy(logits, following, reduction="none")
        return (weights.new_zeros(2).index_add(0, own, per) * weights).sum() / 2

    logits = logits_of(texts, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(loss, (logits,))
    (wanted,) = torch.autograd.grad(loss(logits), logits)
    single = logits.detach().float().requires_grad_()
    answer_generation_loss(losses_of(single, texts), weights, 2).backward()
    assert torch.allclose(single.grad.double(), wanted, atol=1e-6)


def test_half_precision_scores_are_summed_in_float32() -> None:
    texts = PackedTexts.from_lists([[2, *([5] * 40)]])
    losses = losses_of(torch.zeros(41, 9, dtype=torch.bfloat16), texts)
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(41 * math.log(9), rel=1e-5)

"""The gradient is that of the expected reward: checked against finite differences."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from xvlm_core.objectives.self_critical import (
    baseline_of_others,
    mean_log_probabilities,
    self_critical_loss,
)

VOCABULARY, LENGTH = 3, 2


def rewards() -> Tensor:
    """Of each text of two tokens."""
    return torch.tensor([0.3, 1.0, 0.0, 2.0, 0.7, 0.1, 0.0, 0.5, 1.5], dtype=torch.float64)


def texts() -> Tensor:
    return torch.tensor(list(itertools.product(range(VOCABULARY), repeat=LENGTH)))


def probabilities(table: Tensor) -> Tensor:
    """Of each text, where the second token depends on the first: a toy that can be summed up."""
    first, second = table[0].log_softmax(-1), table[1:].log_softmax(-1)
    both = texts()
    return (first[both[:, 0]] + second[both[:, 0], both[:, 1]]).exp()


def test_the_gradient_is_that_of_the_expected_reward() -> None:
    """Each text as often as it is probable: what many draws tend to."""
    torch.manual_seed(0)
    table = torch.randn(1 + VOCABULARY, VOCABULARY, dtype=torch.float64, requires_grad=True)
    both = texts()
    logp = torch.stack(
        [table[0].log_softmax(-1)[both[:, 0]], table[1:].log_softmax(-1)[both[:, 0], both[:, 1]]],
        dim=1,
    )
    text = torch.arange(len(both)).repeat_interleave(LENGTH)
    mean_B = mean_log_probabilities(logp.reshape(-1), text, len(both))
    share_B = probabilities(table).detach()
    loss = torch.zeros(())
    for b, share in enumerate(share_B.tolist()):
        one = self_critical_loss(mean_B[b : b + 1], rewards()[b : b + 1], torch.tensor([0.8]))
        loss = loss + share * one
    loss.backward()
    assert table.grad is not None
    # the mean over the tokens, not the sum: the gradient of the reward over the length
    step = 1e-5
    for place in itertools.product(range(1 + VOCABULARY), range(VOCABULARY)):
        moved = torch.zeros_like(table)
        moved[place] = step
        with torch.no_grad():
            up, down = ((probabilities(table + sign * moved) * rewards()).sum() for sign in (1, -1))
        by_hand = (up - down) / (2 * step) / LENGTH
        assert -table.grad[place].item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_a_caption_better_than_the_baseline_becomes_likelier_and_a_worse_one_less_so() -> None:
    logprob = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    reward = torch.tensor([0.9, 0.5, 0.1], requires_grad=True)
    loss = self_critical_loss(logprob, reward, torch.full((3,), 0.5))
    assert loss.item() == pytest.approx((0.4 - 1.2) / 3)
    loss.backward()
    assert logprob.grad is not None
    assert torch.allclose(logprob.grad, torch.tensor([-0.4, 0.0, 0.4]) / 3)
    assert reward.grad is None


def test_the_baseline_of_a_caption_leaves_itself_out() -> None:
    found = baseline_of_others(torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]]))
    assert torch.allclose(found, torch.tensor([[4.0, 3.5, 1.5], [1.5, 1.5, 0.0]]))


def test_means_are_over_the_tokens_of_each_caption() -> None:
    logprob = torch.tensor([-1.0, -5.0, -3.0])
    found = mean_log_probabilities(logprob, torch.tensor([2, 0, 2]), 4)
    assert found.tolist() == [-5.0, 0.0, -2.0, 0.0]


def test_no_caption_is_a_loss_of_zero_with_a_gradient() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    loss = self_critical_loss(nothing, torch.zeros(0), torch.zeros(0))
    assert loss.item() == 0
    loss.backward()

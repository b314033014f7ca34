"""Cross-entropy of the next token: which tokens, from where, and what smoothing weighs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from xvlm_core.models.packing import PackedTexts
from xvlm_core.objectives.language_modeling import (
    language_modeling_loss,
    next_tokens,
    token_log_probabilities,
)

TEXTS = [[2, 11, 12, 13, 3], [2, 21, 3], [2, 31, 32, 33, 3]]


@pytest.mark.parametrize("given", [1, 2, 4, 9])
def test_every_token_after_the_given_ones_is_predicted_from_the_one_before(given: int) -> None:
    texts = PackedTexts.from_lists(TEXTS)
    tokens = next_tokens(texts, given)
    found = {
        (b, before, label)
        for b, before, label in zip(
            tokens.text_M.tolist(),
            texts.ids_N[tokens.place_M].tolist(),
            tokens.label_M.tolist(),
            strict=True,
        )
    }
    expected = {
        (b, text[at - 1], text[at])
        for b, text in enumerate(TEXTS)
        for at in range(given, len(text))
    }
    assert found == expected
    assert len(tokens.label_M) == len(expected)


def test_smoothing_gives_each_other_token_its_share_and_the_right_one_none() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0, 3, 6, 2, 2])
    weights = torch.full((5, 7), 0.1 / 7).scatter(1, label[:, None], 0.9)
    expected = -(weights * logits.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(language_modeling_loss(logits, label, 0.1), expected)
    plain = F.cross_entropy(logits, label)
    assert torch.allclose(language_modeling_loss(logits, label), plain)
    built_in = F.cross_entropy(logits, label, label_smoothing=0.1)
    assert not torch.allclose(language_modeling_loss(logits, label, 0.1), built_in)


def test_the_loss_is_float32_whatever_the_scores_are() -> None:
    logits = torch.randn(4, 6).bfloat16()
    label = torch.tensor([0, 1, 2, 3])
    assert language_modeling_loss(logits, label, 0.1).dtype == torch.float32
    assert token_log_probabilities(logits, label).dtype == torch.float32


def test_nothing_to_predict_is_a_loss_of_zero_with_a_gradient() -> None:
    logits = torch.zeros(0, 6, requires_grad=True)
    loss = language_modeling_loss(logits, torch.zeros(0, dtype=torch.int64), 0.1)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None

"""Matching loss with hard negatives from the batch (X-VLM, Eq. 4).

Legend: B texts with their visual concepts, R scored rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Negatives:
    """One drawn negative a row, and which rows have one.

    Attributes:
        concept_of_text_B: for text b the concept it is wrongly paired with, int64.
        text_of_concept_B: for concept b the wrong text, int64.
        text_has_B: False where no concept may be drawn for text b.
        concept_has_B: False where no text may be drawn for concept b.
    """

    concept_of_text_B: Tensor
    text_of_concept_B: Tensor
    text_has_B: Tensor
    concept_has_B: Tensor


def negative_weights(similarity_BB: Tensor, excluded_BB: Tensor) -> Tensor:
    """Sampling weights of each row: softmax + 1e-5, zero where excluded. No gradient.

    Args:
        similarity_BB: row b scores the candidates of b. Where it is not finite every candidate
            weighs the same: the loss then is not finite either, and says so on all ranks.
        excluded_BB: bool, True where the candidate is no negative (the diagonal at least).

    Returns:
        ``(B, B)`` float32, finite; a row of zeros has no candidate.
    """
    with torch.no_grad():
        weights_BB = similarity_BB.float().softmax(dim=1).nan_to_num(0.0) + 1e-5
        return weights_BB.masked_fill(excluded_BB, 0.0)


def draw_negatives(
    similarity_BB: Tensor, excluded_BB: Tensor, generator: torch.Generator
) -> Negatives:
    """Draw a hard negative for each text and each concept: similar pairs are drawn more often.

    One batched draw over both directions. A row without any candidate draws nothing: it is to be
    left out of the loss (``*_has_B``).

    Args:
        similarity_BB: ``(concepts, texts)``.
        excluded_BB: bool, symmetric in meaning: concept b and text c fit each other.
        generator: on the CPU or on the device of the similarity.
    """
    weights_2BB = torch.cat(
        [
            negative_weights(similarity_BB.T, excluded_BB.T),
            negative_weights(similarity_BB, excluded_BB),
        ]
    )
    has = weights_2BB.sum(1) > 0
    # a row of zeros cannot be drawn from: give it a uniform row, its draw is not used
    safe = weights_2BB + (~has)[:, None].float()
    if safe.device != generator.device:
        safe = safe.to(generator.device)
    drawn = torch.multinomial(safe, 1, generator=generator)[:, 0].to(similarity_BB.device)
    n = len(similarity_BB)
    return Negatives(drawn[:n], drawn[n:], has[:n], has[n:])


def matching_loss(logits_R2: Tensor, label_R: Tensor) -> Tensor:
    """Cross-entropy of "the text fits the concept" (Eq. 4), a float32 scalar.

    Args:
        logits_R2: class 1 = match.
        label_R: int64, 1 for true pairs, 0 for negatives.
    """
    return F.cross_entropy(logits_R2.float(), label_R)

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
    similarity_BB: Tensor, excluded_BB: Tensor, generator: torch.Generator, count: int = 1
) -> list[Negatives]:
    """Draw hard negatives for each text and each concept: similar pairs are drawn more often.

    One batched draw over both directions, for each of the ``count`` negatives of a row, which all
    differ. A row without a candidate that is left draws nothing: it is to be left out of the loss
    (``*_has_B``).

    Args:
        similarity_BB: ``(concepts, texts)``.
        excluded_BB: bool, symmetric in meaning: concept b and text c fit each other.
        generator: on the CPU or on the device of the similarity.
        count: negatives a row; the paper draws one.
    """
    weights_2BB = torch.cat(
        [
            negative_weights(similarity_BB.T, excluded_BB.T),
            negative_weights(similarity_BB, excluded_BB),
        ]
    )
    if weights_2BB.device != generator.device:
        weights_2BB = weights_2BB.to(generator.device)
    n = len(similarity_BB)
    negatives = []
    for _ in range(count):
        has = weights_2BB.sum(1) > 0
        # a row of zeros cannot be drawn from: give it a uniform row, its draw is not used
        safe = weights_2BB + (~has)[:, None].float()
        drawn_21 = torch.multinomial(safe, 1, generator=generator)
        weights_2BB = weights_2BB.scatter(1, drawn_21, 0.0)
        drawn, has = drawn_21[:, 0].to(similarity_BB.device), has.to(similarity_BB.device)
        negatives.append(Negatives(drawn[:n], drawn[n:], has[:n], has[n:]))
    return negatives


def match_rows(excluded_BB: Tensor, count: int = 1) -> int:
    """Rows of the matching loss: B matched ones, and the negatives that can be drawn.

    Args:
        excluded_BB: bool, True where the pair is no negative.
        count: negatives a row.
    """
    fits_BB = ~excluded_BB
    drawn = sum(int(fits_BB.sum(dim).clamp(max=count).sum()) for dim in (0, 1))
    return len(excluded_BB) + drawn


def matching_loss(logits_R2: Tensor, label_R: Tensor) -> Tensor:
    """Cross-entropy of "the text fits the concept" (Eq. 4), a float32 scalar.

    Args:
        logits_R2: class 1 = match.
        label_R: int64, 1 for true pairs, 0 for negatives.
    """
    return F.cross_entropy(logits_R2.float(), label_R)

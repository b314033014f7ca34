"""Which of two pictures a text belongs to: the extra pre-training for NLVR2.

X-VLM, section 4.3 (and ALBEF's text-assignment task before it): a text is shown with two pictures;
the first is its own, the second is, or neither. The others are drawn from the batch, pictures that
look like the right one more often.

Legend: B texts and their pictures, E joint width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07
"""Of the similarity of pictures: a constant, whatever the model has learnt."""

FIRST, SECOND, NEITHER = 0, 1, 2
"""Classes: which of the two pictures is the text's own."""

_LEFT_OUT = -100


@dataclass(frozen=True)
class Assignment:
    """Two pictures for each text.

    Attributes:
        first_B: the picture shown first, int64.
        second_B: the one shown second, int64.
        label_B: one of the classes; negative where there is no other picture to show: that text is
            left out of the loss. int64.
    """

    first_B: Tensor
    second_B: Tensor
    label_B: Tensor


def assignment_weights(looks_BE: Tensor, excluded_BB: Tensor) -> Tensor:
    """How often picture c is drawn for text b: softmax of similarity, zero where excluded.

    ``(B, B)`` float32, also under autocast, without gradient, not normalised. Where a similarity is
    not finite all candidates of the row weigh the same: the loss then is not finite either, and
    says so.

    Args:
        looks_BE: unit vectors of the pictures.
        excluded_BB: True where picture c fits text b, too (the diagonal at least).
    """
    # similarities are divided by a small temperature: in bfloat16 they are coarse
    with torch.no_grad(), torch.autocast(looks_BE.device.type, enabled=False):
        looks_BE = looks_BE.float()
        weights_BB = (looks_BE @ looks_BE.T / TEMPERATURE).softmax(dim=1)
        weights_BB = torch.where(weights_BB.isfinite().all(1, keepdim=True), weights_BB, 1.0)
        return weights_BB.masked_fill(excluded_BB, 0.0)


def draw_assignment(
    weights_BB: Tensor, excluded_BB: Tensor, generator: torch.Generator
) -> Assignment:
    """Draw two pictures for each text: its own and another one (2 of 3), or two others.

    One batched draw. Own and other stand in either order equally often. Where there is one other
    picture only, it is shown beside the own one; where there is none, the text is left out.

    Args:
        weights_BB: see :func:`assignment_weights`.
        excluded_BB: see there.
        generator: on the CPU or on the device of the weights.
    """
    n, device = len(weights_BB), weights_BB.device
    # the two largest of weight / Exp(1) are two draws by weight without replacement, in their order
    noise_BB = torch.empty(n, n, device=generator.device).exponential_(generator=generator)
    chances_B2 = torch.rand(n, 2, device=generator.device, generator=generator).to(device)
    drawn_BB = (weights_BB / noise_BB.clamp(min=1e-30).to(device)).masked_fill(excluded_BB, -1.0)
    drawn_BB = F.pad(drawn_BB, (0, 1), value=-1.0)  # a batch of one picture, too, has two columns
    found_B2, other_B2 = drawn_BB.topk(2, dim=1)
    one_B, two_B = other_B2[:, 0], other_B2[:, 1]
    has_one_B, has_two_B = found_B2[:, 0] >= 0, found_B2[:, 1] >= 0
    own_B = torch.arange(n, device=device)
    shows_own_B = (chances_B2[:, 0] > 1 / 3) | ~has_two_B
    own_first_B = chances_B2[:, 1] > 0.5
    first_B = torch.where(shows_own_B & own_first_B, own_B, one_B)
    second_B = torch.where(shows_own_B, torch.where(own_first_B, one_B, own_B), two_B)
    label_B = torch.where(shows_own_B, torch.where(own_first_B, FIRST, SECOND), NEITHER)
    return Assignment(
        torch.where(has_one_B, first_B, own_B),
        torch.where(has_one_B, second_B, own_B),
        torch.where(has_one_B, label_B, _LEFT_OUT),
    )


def assignment_loss(logits_B3: Tensor, label_B: Tensor) -> Tensor:
    """Cross-entropy over the three classes, a float32 scalar; 0 where every text is left out.

    Args:
        logits_B3: scores of the classes.
        label_B: see :class:`Assignment`.
    """
    total = F.cross_entropy(logits_B3.float(), label_B, ignore_index=_LEFT_OUT, reduction="sum")
    return total / (label_B >= 0).sum().clamp(min=1)

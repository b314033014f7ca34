"""Box prediction (X-VLM, Eq. 6-7): L1 and generalised IoU.

GIoU: Rezatofighi et al., CVPR 2019. All boxes are fractions of the picture.

Legend: B texts, N of them with a box, K further boxes of all texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BoxLosses:
    """The two terms of Eq. 7, float32 scalars."""

    l1: Tensor
    giou: Tensor


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Centre and size -> corners, last axis 4."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], dim=-1)


def generalised_iou(boxes_xyxy: Tensor, targets_xyxy: Tensor) -> Tensor:
    """GIoU of pairs of boxes, ``(N, 4), (N, 4) -> (N,)``, in [-1, 1].

    Boxes are not clipped to the picture. One box of each pair must have area: targets do, they
    are checked where records are read.
    """
    low = torch.maximum(boxes_xyxy[:, :2], targets_xyxy[:, :2])
    high = torch.minimum(boxes_xyxy[:, 2:], targets_xyxy[:, 2:])
    intersection = (high - low).clamp(min=0).prod(1)
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(1)
    target_area = (targets_xyxy[:, 2:] - targets_xyxy[:, :2]).prod(1)
    union = area + target_area - intersection
    hull_low = torch.minimum(boxes_xyxy[:, :2], targets_xyxy[:, :2])
    hull_high = torch.maximum(boxes_xyxy[:, 2:], targets_xyxy[:, 2:])
    hull = (hull_high - hull_low).clamp(min=0).prod(1)
    return intersection / union - (hull - union) / hull


def box_losses(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> BoxLosses:
    """L1 over the four coordinates and 1 - GIoU, each a mean over the N boxes (Eq. 7).

    Args:
        boxes_cxcywh: predictions, ``(N, 4)``, fractions.
        targets_cxcywh: the boxes of the named concepts, ``(N, 4)``, fractions.

    Returns:
        Two scalars; zeros (with a gradient path) when N = 0.
    """
    boxes_cxcywh, targets_cxcywh = boxes_cxcywh.float(), targets_cxcywh.float()
    n = max(1, len(boxes_cxcywh))
    l1 = (boxes_cxcywh - targets_cxcywh).abs().sum() / n
    giou = generalised_iou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(targets_cxcywh))
    return BoxLosses(l1, (1 - giou).sum() / n)


@dataclass(frozen=True)
class OtherBoxes:
    """Further boxes that a text fits as well: "person" where there are three.

    Attributes:
        boxes_cxcywh_K4: fractions.
        text_K: the text each belongs to, int64.
    """

    boxes_cxcywh_K4: Tensor
    text_K: Tensor

    def to(self, device: torch.device | str) -> OtherBoxes:
        """The same boxes on another device."""
        return OtherBoxes(self.boxes_cxcywh_K4.to(device), self.text_K.to(device))

    def among(self, chosen_B: Tensor) -> OtherBoxes:
        """The boxes of the chosen texts (bool), renumbered to count those only."""
        number_B = chosen_B.long().cumsum(0) - 1
        kept_K = chosen_B[self.text_K]
        return OtherBoxes(self.boxes_cxcywh_K4[kept_K], number_B[self.text_K[kept_K]])


def nearest_targets(boxes_cxcywh: Tensor, targets_cxcywh: Tensor, others: OtherBoxes) -> Tensor:
    """For each prediction the nearest of the boxes that its text fits, ``(N, 4)``.

    A label that fits several things has no single box; with a fixed one among them the best answer
    would be their average, which fits none. Near is L1 + 1 - GIoU, the loss itself. No gradient
    flows through the choice.

    Args:
        boxes_cxcywh: predictions, ``(N, 4)``.
        targets_cxcywh: one true box of each text, ``(N, 4)``.
        others: the other boxes that fit.
    """
    with torch.no_grad():
        n = len(targets_cxcywh)
        candidates = torch.cat([targets_cxcywh, others.boxes_cxcywh_K4])
        text = torch.cat([torch.arange(n, device=others.text_K.device), others.text_K])
        predicted = boxes_cxcywh.float()[text]
        cost = (predicted - candidates).abs().sum(1)
        cost = cost - generalised_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(candidates))
        # rows by text, then by cost: the first row of each text is its nearest box
        order = cost.argsort(stable=True)
        order = order[text[order].argsort(stable=True)]
        first = torch.searchsorted(text[order], torch.arange(n, device=text.device))
        return candidates[order[first]]

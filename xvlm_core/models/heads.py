"""Heads on token 0 of the cross encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def two_layer_head(width: int, out: int) -> nn.Sequential:
    """Linear(D, 2D), LayerNorm(2D), GELU, Linear(2D, out): the matching and the box head.

    State-dict indices 0, 1 and 3, as in the released checkpoints.
    """
    return nn.Sequential(
        nn.Linear(width, 2 * width),
        nn.LayerNorm(2 * width, eps=1e-5),
        nn.GELU(),
        nn.Linear(2 * width, out),
    )


def in_float32(head: nn.Module, states: Tensor) -> Tensor:
    """What a head makes of some states, computed in float32 also where autocast is on.

    The heads see one token a text and cost next to nothing; eight bits of mantissa would be felt
    in a box (a pixel or two) and in similarities, which are divided by the temperature.
    """
    with torch.autocast(states.device.type, enabled=False):
        out: Tensor = head(states.float())
    return out

"""Heads on token 0 of the cross encoder."""

from __future__ import annotations

from torch import nn


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

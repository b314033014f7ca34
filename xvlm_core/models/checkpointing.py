"""Activation checkpointing: what a layer computed is not kept for backward but computed again.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016. Each layer keeps its input
alone. Random numbers are drawn again as they were, so that losses and gradients are the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Checkpointed:
    """A stack that runs its layers by :meth:`run_layer`; mixed into an ``nn.Module``.

    Attributes:
        checkpoints: whether the layers are computed again in backward.
    """

    checkpoints: bool = False

    def run_layer(self, layer: nn.Module, *inputs: Any) -> Tensor:
        """``layer(*inputs)``; plainly so where there is no backward, and in evaluation.

        The first input is a tensor on the layer's device: its generator is the one rewound.
        """
        if self.checkpoints and layer.training and torch.is_grad_enabled():
            # not re-entrant: works where no input needs a gradient, and in data parallel models
            again: Tensor = checkpoint(layer, *inputs, use_reentrant=False)
            return again
        out: Tensor = layer(*inputs)
        return out


class Blocks(Checkpointed, nn.Sequential):
    """Blocks of a picture encoder, one after the other.

    timm's own switch does not fit: it stays on in evaluation, and a variable of the environment
    decides whether it is re-entrant.
    """

    def forward(self, x: Tensor) -> Tensor:
        """What the last block makes of it."""
        for block in self:
            x = self.run_layer(block, x)
        return x


def checkpoint_activations(model: nn.Module, on: bool = True) -> int:
    """Switch activation checkpointing in every stack of layers of a model.

    Layers with state that a forward changes (batch norm) must not be in such a stack: they would
    see each batch twice.

    Returns:
        The number of stacks; 0: there is nothing in this model that can be checkpointed.
    """
    stacks = [module for module in model.modules() if isinstance(module, Checkpointed)]
    for stack in stacks:
        stack.checkpoints = on
    return len(stacks)

"""What ZeRO needs to be sound where ranks do not compute the same thing.

A part without regions has no box loss: its rank never calls the box head. DeepSpeed takes for
granted that all ranks call the same modules and get gradients for the same parameters in the same
order; where they do not, it adds up gradients of different parameters (stage 2), or waits for ever
(stage 3). Both are made impossible here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class InOrder:
    """Gradients are handed over in one order on every rank, and none is missing.

    A gradient that comes early waits for those before it; one that does not come is zero.

    Args:
        parameters: in the order.
        hand_over: what is done with the gradient of one.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], hand_over: Callable[[nn.Parameter], None]
    ) -> None:
        self._parameters = parameters
        self._hand_over = hand_over
        self._here: set[int] = set()
        self._next = 0

    def came(self, parameter: nn.Parameter) -> None:
        """A gradient is there."""
        self._here.add(id(parameter))
        while self._next < len(self._parameters):
            parameter = self._parameters[self._next]
            if id(parameter) not in self._here:
                return
            self._hand_over(parameter)
            self._next += 1

    def finish(self) -> None:
        """No more will come in this backward pass."""
        for parameter in self._parameters[self._next :]:
            if id(parameter) not in self._here:
                set_zero_gradient(parameter)
            self._hand_over(parameter)
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self._here.clear()
        self._next = 0


def set_zero_gradient(parameter: nn.Parameter) -> None:
    """Give a parameter a gradient of zero, also where its weights are shared out."""
    shape = getattr(parameter, "ds_shape", parameter.shape)
    zeros = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
    shared_out = parameter.data
    parameter.data = zeros  # a gradient must have the shape of what it is the gradient of
    parameter.grad = zeros
    parameter.data = shared_out


class KeptWhole:
    """Stage 3: the parameters of modules that not every part calls in the same way.

    DeepSpeed gathers the weights of a module when it is called, and all ranks take part. Here that
    is so for modules that the model says run in every part (``runs_in_every_part``); all other
    weights are gathered at the beginning of an update and whole until its end. This also covers
    whatever a model does with a parameter outside of a module's call.

    Args:
        model: before DeepSpeed got it.
    """

    def __init__(self, model: nn.Module) -> None:
        prefixes: Collection[str] = getattr(model, "runs_in_every_part", ())
        self._modules = [
            module
            for name, module in model.named_modules()
            if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
        ]
        self._hooks = [
            (frozenset(module._forward_pre_hooks), frozenset(module._forward_hooks))
            for module in self._modules
        ]
        self.parameters = list(
            dict.fromkeys(p for m in self._modules for p in m.parameters(recurse=False))
        )

    def unhook(self) -> None:
        """Take the modules out of DeepSpeed's hands (after it got the model)."""
        for module, (before, after) in zip(self._modules, self._hooks, strict=True):
            for hooks, own in ((module._forward_pre_hooks, before), (module._forward_hooks, after)):
                for key in set(hooks) - own:
                    del hooks[key]

    def gather(self) -> None:
        """Make them whole. They are shared out again by the step of the update."""
        missing: list[Any] = [p for p in self.parameters if p.ds_status.name == "NOT_AVAILABLE"]
        if missing:
            missing[0].all_gather(missing)


class Copies:
    """Whole float32 copies of a model whose weights will be shared out.

    Args:
        model: before DeepSpeed got it; only its structure is kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self._live = model
        # weights are no part of the structure, and buffers are the live ones
        without: dict[int, Tensor] = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
            for p in model.parameters()
        }
        without |= {id(buffer): buffer for buffer in model.buffers()}
        self._structure = copy.deepcopy(model, without)

    def filled(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """A copy with these weights, and the live buffers as they are now."""
        memo: dict[int, Tensor] = {
            id(p): nn.Parameter(weights[name], p.requires_grad)
            for name, p in self._structure.named_parameters()
        }
        live = dict(self._live.named_buffers())
        memo |= {id(b): live[name].clone() for name, b in self._structure.named_buffers()}
        return copy.deepcopy(self._structure, memo).train(self._live.training)

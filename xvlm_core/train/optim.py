"""AdamW and its parameter groups.

Kingma and Ba, "Adam", ICLR 2015; Loshchilov and Hutter, "Decoupled Weight Decay Regularization",
ICLR 2019.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from xvlm_core.config.schema import OptimSection

Compat = Literal["none", "official"]

# official.md 2.9: no decay where the name CONTAINS one of these
_OFFICIAL_NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")
# tables of positions: text.embeddings.position, pos_embed, relative_position_bias_table
_POSITIONS = re.compile(r"(?:^|[._])pos(?:ition|itions)?(?:[._]|$)")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share their weight decay and learning-rate factor.

    Attributes:
        names: parameters, in model order.
        n_elements: numbers in them.
        weight_decay: decoupled decay.
        lr_mult: factor on the learning rate.
    """

    names: tuple[str, ...]
    n_elements: int
    weight_decay: float
    lr_mult: float

    @property
    def n_tensors(self) -> int:
        """Parameters of the group."""
        return len(self.names)

    def line(self) -> str:
        """One line for the log."""
        return (
            f"{self.n_tensors} tensors, {self.n_elements:,} numbers: "
            f"decay {self.weight_decay:g}, learning rate x {self.lr_mult:g}"
        )


def _undecayed_by_module(model: nn.Module) -> frozenset[str]:
    """Names of norms, biases, scalars and position tables.

    Word and segment embeddings are decayed, as in the released code: they are matrices that the
    tied MLM decoder multiplies with. Position tables are added to states, like biases.
    """
    names = set()
    for prefix, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{own}" if prefix else own
            if is_norm or parameter.ndim <= 1 or _POSITIONS.search(name):
                names.add(name)
    return frozenset(names)


def parameter_groups(
    model: nn.Module,
    optim: OptimSection,
    *,
    compat: Compat = "none",
    larger_lr_names: Collection[str] = frozenset(),
    name_of: Callable[[str], str] = str,
) -> tuple[ParameterGroup, ...]:
    """Four groups: (decay, no decay) x (lr, lr * lr_mult); the order is the official one.

    Frozen parameters are in none. A group may be empty.

    Args:
        model: its trainable parameters are divided.
        optim: decay and lr_mult.
        compat: ``official``: no decay by the substring rule of the released code, which decays
            the temperature and the norms inside heads; else by module type.
        larger_lr_names: parameters at ``lr * lr_mult``.
        name_of: official name of a parameter (for the substring rule only).
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    unknown = set(larger_lr_names) - {name for name, _ in model.named_parameters()}
    assert not unknown, f"larger_lr_names that the model lacks: {sorted(unknown)}"
    if compat == "official":
        undecayed = frozenset(
            name for name in parameters if any(part in name_of(name) for part in _OFFICIAL_NO_DECAY)
        )
    else:
        undecayed = _undecayed_by_module(model)
    groups = []
    for larger in (False, True):
        for decayed in (True, False):
            names = tuple(
                name
                for name in parameters
                if (name in larger_lr_names) == larger and (name not in undecayed) == decayed
            )
            groups.append(
                ParameterGroup(
                    names,
                    sum(parameters[name].numel() for name in names),
                    optim.weight_decay if decayed else 0.0,
                    optim.lr_mult if larger else 1.0,
                )
            )
    return tuple(groups)


def build_optimizer(
    model: nn.Module,
    optim: OptimSection,
    groups: Iterable[ParameterGroup],
    *,
    compat: Compat = "none",
) -> torch.optim.Optimizer:
    """AdamW over the groups (empty ones left out): torch's fused one, or the official form."""
    parameters = dict(model.named_parameters())
    tree: list[dict[str, Any]] = [
        {
            "params": [parameters[name] for name in group.names],
            "weight_decay": group.weight_decay,
            "lr_mult": group.lr_mult,
        }
        for group in groups
        if group.names
    ]
    if compat == "official":
        return OfficialAdamW(tree, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    return torch.optim.AdamW(tree, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_mult"]


class OfficialAdamW(torch.optim.Optimizer):
    """AdamW as transformers had it until version 4 (official.md 2.9).

    It differs from torch's: eps is added outside the bias correction, and the decay is taken
    after the update, from the already updated parameter.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "no closure"
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                grad: Tensor | None = parameter.grad
                if grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                t = int(state["step"])
                state["exp_avg"].mul_(beta1).add_(grad, alpha=1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                size = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
                denominator = state["exp_avg_sq"].sqrt().add_(group["eps"])
                parameter.addcdiv_(state["exp_avg"], denominator, value=-size)
                if group["weight_decay"] > 0:
                    parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])

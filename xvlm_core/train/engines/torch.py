"""Plain PyTorch: one process, or data parallel (Li et al., "PyTorch Distributed", VLDB 2020)."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xvlm_core.tasks.base import Batch, Losses, Moment, Task
from xvlm_core.train.devices import Precision, autocast
from xvlm_core.train.engines.base import Update
from xvlm_core.train.optim import set_lr
from xvlm_core.train.ranks import Ranks
from xvlm_core.train.state import load_optimizer_tensors, optimizer_tensors

_OLD_NAME = "broadcast_buffers"


class Forward(nn.Module):
    """A model whose forward is any function of it.

    A task calls several methods of its model; wrappers that prepare for the backward pass want
    one forward.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        """``function(model)``."""
        return function(self.model)


class TorchEngine:
    """A model and its optimizer on one device a rank; whole on each.

    A parameter that no part of an update used has no gradient, and is not changed by it.

    Args:
        model: on ``device``, with its first weights.
        optimizer: over its parameters; its groups carry ``lr_mult``.
        device: of this rank.
        precision: of the forward pass; weights are float32.
        ranks: the processes.
        loss_scale: of float16: fixed; None: it adapts.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: Precision,
        ranks: Ranks,
        loss_scale: float | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.device = device
        self.precision = precision
        self.ranks = ranks
        self._forward: nn.Module = Forward(model)
        if ranks.world_size > 1:
            # running statistics are averaged by the loop; the option changed its name in torch 2.14
            options = inspect.signature(DistributedDataParallel).parameters
            name = "forward_sync_buffers" if "forward_sync_buffers" in options else _OLD_NAME
            self._forward = DistributedDataParallel(
                self._forward,
                find_unused_parameters=True,  # a part may lack one of the losses
                **{name: False},  # type: ignore[arg-type]
            )
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._scaler = _scaler(device, loss_scale) if precision == "fp16" else None
        self._adapts = loss_scale is None

    @property
    def can_overflow(self) -> bool:
        """See :class:`xvlm_core.train.engines.base.Engine`."""
        return self._scaler is not None and self._adapts and self._scaler.get_scale() > 1.0

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group, times its own factor."""
        set_lr(self.optimizer, lr)

    def begin(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def tables(self, task: Task, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """Rows of a part for its peers, without gradient."""
        with torch.no_grad(), autocast(self.device, self.precision):
            return task.tables(self.model, batch, moment)

    def losses(
        self, task: Task, batch: Batch, moment: Moment, shares: Mapping[str, float], *, last: bool
    ) -> tuple[Tensor, Losses]:
        """Forward pass of a part. DDP looks through the graph of the total alone."""
        found: list[Losses] = []

        def forward(model: nn.Module) -> Tensor:
            losses = task.losses(model, batch, moment)
            found.append(losses.detached())
            total = losses.total(shares)
            return self._parameters[0].sum() * 0.0 if total is None else total

        with self._reduction_if(last), autocast(self.device, self.precision):
            total: Tensor = self._forward(forward)
        return total, found[0]

    def _reduction_if(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if last or not isinstance(self._forward, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._forward.no_sync()

    def backward(self, total: Tensor, *, last: bool) -> None:
        """Add up gradients. DDP takes the mean over ranks: their sum is asked for."""
        total = total * self.ranks.world_size
        if self._scaler is not None:
            total = self._scaler.scale(total)
        total.backward()  # type: ignore[no-untyped-call]

    def update(self, clip_norm: float | None) -> Update:
        """Clip, check, step. The gradient is the same on every rank, and so is what is decided."""
        scale = None
        if self._scaler is not None:
            scale = float(self._scaler.get_scale())
            self._scaler.unscale_(self.optimizer)
        most = math.inf if clip_norm is None else clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, most).item()
        applied = math.isfinite(norm)
        if applied:
            self.optimizer.step()
        if self._scaler is not None:
            if self._adapts and not applied:  # also where the loss was not finite to begin with
                self._scaler.update(max(1.0, (scale or 1.0) * self._scaler.get_backoff_factor()))
                # given a scale, it would count on towards the next growth
                self._scaler.load_state_dict({**self._scaler.state_dict(), "_growth_tracker": 0})
            else:
                self._scaler.update(None if self._adapts else scale)
        return Update(norm, applied, scale)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The live model: its weights are float32 and whole."""
        yield self.model

    def optimizer_state(self) -> dict[str, Tensor]:
        """Whole tensors ``<key>/<parameter>`` of rank 0."""
        if not self.ranks.is_main:
            return {}
        return optimizer_tensors(self.model, self.optimizer)

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up such a state."""
        load_optimizer_tensors(self.model, self.optimizer, tensors)

    def scaler_state(self) -> dict[str, float]:
        """Scale, and updates since it last changed."""
        return {} if self._scaler is None else dict(self._scaler.state_dict())

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Take up such a state."""
        if self._scaler is not None and state:
            self._scaler.load_state_dict(dict(state))

    def close(self) -> None:
        """Nothing to free."""


def _scaler(device: torch.device, fixed: float | None) -> torch.amp.GradScaler:
    """The loss scale: 65,536 at first, halved where a gradient overflows; or a fixed one."""
    scaler = torch.amp.GradScaler(device.type, init_scale=fixed or 2.0**16)
    scaler.scale(torch.zeros((), device=device))  # or else it has no scale before its first loss
    return scaler

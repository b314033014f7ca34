"""DeepSpeed: ZeRO 0 to 3 (Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models", SC 2020).
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xvlm_core.config.schema import TrainSection
from xvlm_core.tasks.base import Batch, Losses, Moment, Task
from xvlm_core.train.devices import Precision, autocast
from xvlm_core.train.engines.base import Update
from xvlm_core.train.engines.deepspeed_setup import Session, configuration, import_deepspeed
from xvlm_core.train.engines.deepspeed_state import gather_state, groups_of, load_state
from xvlm_core.train.engines.deepspeed_zero import Copies, InOrder, KeptWhole, set_zero_gradient
from xvlm_core.train.engines.torch import Forward
from xvlm_core.train.optim import set_lr
from xvlm_core.train.ranks import Ranks


@dataclass
class LossScale:
    """Factor on the loss of a float16 pass, by the rule of ``torch.amp.GradScaler``.

    Micikevicius et al., "Mixed Precision Training", ICLR 2018. DeepSpeed has a rule of its own
    that ends the process at the least scale.

    Attributes:
        scale: now; halved where a gradient overflows, to 1 at least.
        adapts: False: it is fixed.
        good: updates since it last changed; doubled after ``interval`` of them.
        interval: see there.
    """

    scale: float = 2.0**16
    adapts: bool = True
    good: int = 0
    interval: int = 2000

    def made(self, applied: bool) -> None:
        """An update was made with it."""
        if not self.adapts:
            return
        if not applied:
            self.scale, self.good = max(1.0, self.scale / 2), 0
            return
        self.good += 1
        if self.good == self.interval:
            self.scale, self.good = self.scale * 2, 0


class DeepSpeedEngine:
    """A model and its optimizer, shared out over the ranks as ZeRO's stage says.

    Stage 0 shares out nothing, 1 the optimizer's state and the weights that it updates, 2 also
    gradients, 3 also the weights that the model computes with.

    Precision is a matter of the forward pass, as in the torch engine: weights, gradients and
    optimizer state are float32, and autocast casts. DeepSpeed's own modes would cast the weights:
    the temperature and the heads, which are computed in float32 on purpose, would have 8 bits.

    A parameter that no part of an update used has a gradient of zero, in every stage: it goes on by
    its momentum, and decays. (The torch engine leaves it as it is.)

    Parts are to be computed one after the other: ``losses``, ``backward``, ``losses``, ... The
    model may have two attributes that are of use here: ``runs_in_every_part``, prefixes of modules
    that every part calls, in the same order (stage 3 keeps whole what is not in them: see
    :class:`xvlm_core.train.engines.deepspeed_zero.KeptWhole`); and ``bounds``, limits of
    parameters, by name. What a forward pass clamps is a copy; here it is clamped after an update.

    Args:
        model: with its first weights, in float32; it belongs to the engine from now on.
        optimizer: AdamW over its parameters, ours or torch's; its groups carry ``lr_mult``.
        settings: ``zero_stage``, ``offload`` and ``loss_scale``.
        device: of this rank.
        precision: of the forward pass.
        ranks: the processes.
        zero: keys of DeepSpeed's ``zero_optimization`` to set otherwise (tests).

    Raises:
        MissingToolError: DeepSpeed is not installed, or this is not Linux.
        ConfigError: ``offload`` with stage 0.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        settings: TrainSection,
        device: torch.device,
        precision: Precision,
        ranks: Ranks,
        *,
        zero: Mapping[str, Any] | None = None,
    ) -> None:
        assert not optimizer.state, "a state is loaded afterwards"
        module = import_deepspeed(device)
        self.model, self.device, self.precision, self.ranks = model, device, precision, ranks
        self.stage = int(settings.zero_stage)
        self._optimizer = optimizer
        self._scale = LossScale()
        if settings.loss_scale is not None:
            self._scale = LossScale(settings.loss_scale, adapts=False)
        model.to(device)
        self._names: dict[nn.Parameter, str] = {p: name for name, p in model.named_parameters()}
        self._bounds = _bounds(model)
        with torch.no_grad():
            for name, (least, most) in self._bounds.items():
                model.get_parameter(name).clamp_(least, most)
        n_elements = sum(p.numel() for p in model.parameters())
        config = configuration(settings, device, n_elements, zero or {})
        self._copies = Copies(model) if self.stage == 3 else None
        self._whole = KeptWhole(model) if self.stage == 3 else None
        self._session = Session(module, Forward(model), optimizer, config, device, ranks)
        self._engine = self._session.engine
        if self._whole is not None:
            self._whole.unhook()
        self._groups = groups_of(self._engine, self._names, optimizer, self.stage)
        # about the order in which they come: the last layer's first
        self._trained = [p for p in self._names if p.requires_grad][::-1]
        self._in_order = self._put_in_order()
        self._engine.set_gradient_accumulation_boundary(False)
        self._unfinished = False

    def _put_in_order(self) -> InOrder | None:
        """From stage 2 on DeepSpeed reduces gradients as they come: let them come in order."""
        zero = self._engine.optimizer
        if self.stage < 2:
            return None
        if self.stage == 2:
            group = {p: i for i, group in enumerate(zero.bit16_groups) for p in group}
            reduce = zero.process_gradients
            order = InOrder(self._trained, lambda parameter: reduce(parameter, group[parameter]))
            zero.process_gradients = lambda parameter, _: order.came(parameter)
        else:
            order = InOrder(self._trained, zero.reduce_ready_partitions_and_remove_grads)
            zero.reduce_ready_partitions_and_remove_grads = order.came
        return order

    @property
    def can_overflow(self) -> bool:
        """See :class:`xvlm_core.train.engines.base.Engine`."""
        return self.precision == "fp16" and self._scale.adapts and self._scale.scale > 1.0

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group, times its own factor."""
        set_lr(self._optimizer, lr)

    def begin(self) -> None:
        """Forget the gradients: the step of an update did, unless one was left unfinished."""
        if self._unfinished:
            self._forget()
        self._engine.set_gradient_accumulation_boundary(False)
        if self.stage:
            # DeepSpeed takes the mean over ranks, and divides by this: the sum, without the scale
            self._engine.optimizer.override_loss_scale(self._factor() / self.ranks.world_size)

    def _factor(self) -> float:
        return self._scale.scale if self.precision == "fp16" else 1.0

    def tables(self, task: Task, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """Rows of a part for its peers, without gradient."""
        found: list[Mapping[str, Tensor]] = []

        def forward(model: nn.Module) -> Tensor:
            found.append(task.tables(model, batch, moment))
            return torch.zeros((), device=self.device)

        with torch.no_grad():
            self._run(forward)
        return found[0]

    def losses(
        self, task: Task, batch: Batch, moment: Moment, shares: Mapping[str, float], *, last: bool
    ) -> tuple[Tensor, Losses]:
        """Forward pass of a part."""
        found: list[Losses] = []

        def forward(model: nn.Module) -> Tensor:
            losses = task.losses(model, batch, moment)
            found.append(losses.detached())
            # also without a loss the backward pass begins as on the other ranks
            nothing = torch.zeros((), device=self.device, requires_grad=True)
            total = losses.total(shares)
            return nothing if total is None else total + nothing

        return self._run(forward), found[0]

    def _run(self, forward: Callable[[nn.Module], Tensor]) -> Tensor:
        """A forward pass by DeepSpeed's hooks."""
        if self._whole is not None:
            self._whole.gather()

        def under_autocast(model: nn.Module) -> Tensor:
            # inside: DeepSpeed switches off what it finds switched on
            with autocast(self.device, self.precision):
                return forward(model)

        values: Tensor = self._engine(under_autocast)
        return values

    def backward(self, total: Tensor, *, last: bool) -> None:
        """Add up gradients; reduce them over the ranks where the stage says so."""
        engine = self._engine
        self._unfinished = True
        engine.set_gradient_accumulation_boundary(last)
        # from stage 1 on DeepSpeed multiplies by what it will divide by
        engine.backward(total * (self.ranks.world_size if self.stage else self._factor()))
        if self._in_order is not None:
            self._in_order.finish()
        elif last:
            for parameter in self._trained:
                if parameter.grad is None:
                    set_zero_gradient(parameter)
            if self.stage == 1:
                engine.optimizer.setup_buckets()  # by hooks, where there was a gradient
        engine.allreduce_gradients()

    def update(self, clip_norm: float | None) -> Update:
        """Clip, check, step. The norm is that of all ranks, and so is what is decided."""
        scale = self._factor()
        norm = self._step_whole(clip_norm) if self.stage == 0 else self._step_shared(clip_norm)
        applied = math.isfinite(norm)
        if applied:
            self._keep_in_bounds()
        self._unfinished = False
        if self.precision != "fp16":
            return Update(norm, applied)
        self._scale.made(applied)
        return Update(norm, applied, scale)

    def _step_whole(self, clip_norm: float | None) -> float:
        # plain PyTorch, which would step whatever the gradient is
        for parameter in self._trained:
            assert parameter.grad is not None, "the last part was not computed"
            parameter.grad.mul_(self.ranks.world_size / self._factor())
        most = math.inf if clip_norm is None else clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self._trained, most).item()
        if math.isfinite(norm):
            self._engine.step()
        self._engine.zero_grad()
        return norm

    def _step_shared(self, clip_norm: float | None) -> float:
        # steps on no rank where the norm is not finite
        zero = self._engine.optimizer
        zero.clip_grad = clip_norm or 0.0
        self._engine.step()
        return math.inf if zero.overflow else float(zero._global_grad_norm)

    @torch.no_grad()
    def _keep_in_bounds(self) -> None:
        for name, (least, most) in self._bounds.items():
            parameter: Any = self.model.get_parameter(name)
            parameter.data.clamp_(least, most)
            if self.stage == 3:
                parameter.ds_tensor.data.clamp_(least, most)
            for group in self._groups:
                if any(member.name == name for member in group.members):
                    group.pieces(name, self.ranks.rank).clamp_(least, most)

    def _forget(self) -> None:
        zero = self._engine.optimizer
        if self._in_order is not None:
            self._in_order.forget()
        if self.stage == 0:
            self._engine.zero_grad()
            return
        # what its own step does with gradients that are not finite
        zero.zero_grad(set_to_none=True)
        if self.stage == 3:
            zero._pre_step()
            zero.averaged_gradients = {}
            return
        zero.micro_step_id = -1
        zero._release_ipg_buffers()
        for bucket in zero.ipg_buckets.values():
            bucket.clear()
        for number in range(len(zero.params_already_reduced)):
            zero.params_already_reduced[number] = False
        for number in zero.averaged_gradients:
            zero.averaged_gradients[number] = None
            zero.all_grad_tensors[number] = None

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The live model, whose weights are float32 and whole; in stage 3 a copy that has them."""
        if self._copies is None:
            yield self.model
            return
        partition = importlib.import_module("deepspeed.runtime.zero.partition_parameters")
        with partition.GatheredParameters(list(self._names)):
            weights = {name: p.detach().clone() for p, name in self._names.items()}
        yield self._copies.filled(weights)

    def optimizer_state(self) -> dict[str, Tensor]:
        """Whole tensors ``<key>/<parameter>`` on the CPU of rank 0; empty on the others."""
        return gather_state(self._groups, self._optimizer, self.device, self.ranks)

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up such a state, of any engine, stage and number of ranks.

        ZeRO counts updates by group, not by parameter: see
        :func:`xvlm_core.train.engines.deepspeed_state.load_state`.

        Raises:
            CheckpointError: it is of a model with other parameters.
        """
        load_state(self._groups, self._optimizer, tensors, self.ranks.rank)

    def scaler_state(self) -> dict[str, float]:
        """Scale, and updates since it last changed, as ``torch.amp.GradScaler`` has them."""
        if self.precision != "fp16":
            return {}
        return {
            "scale": self._scale.scale,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": self._scale.interval,
            "_growth_tracker": self._scale.good,
        }

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Take up such a state; a fixed scale stays."""
        if self.precision == "fp16" and state and self._scale.adapts:
            self._scale = LossScale(float(state["scale"]), good=int(state["_growth_tracker"]))

    def close(self) -> None:
        """End DeepSpeed in this process."""
        self._session.end()


def _bounds(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Limits of parameters: those a model names, and the temperature of one that clamps it."""
    found: dict[str, tuple[float, float]] = dict(getattr(model, "bounds", {}))
    if not found and hasattr(model, "clamp_temperature") and hasattr(model, "temp"):
        found = {"temp": model.config.temperature_range}  # type: ignore[union-attr,dict-item]
    return found

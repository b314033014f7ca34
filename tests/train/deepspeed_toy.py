"""A model with all that ZeRO can trip over, and plain PyTorch as what an engine must equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvlm_core.data.dropped import BadSamples
from xvlm_core.tasks.base import Losses, Moment
from xvlm_core.train.devices import Precision, autocast
from xvlm_core.train.optim import OfficialAdamW

PARTS = 4
CLIP = 0.5


@dataclass(frozen=True)
class Words:
    """What a module returns, and ZeRO's hooks cannot look into."""

    hidden_BTD: Tensor


@dataclass(frozen=True)
class TrapBatch:
    inputs_BT: Tensor
    boxes: bool
    finite: bool = True
    empty: bool = False
    record_ids: tuple[str, ...] = ("a",)
    dropped: Mapping[str, int] = field(default_factory=dict)
    bad: BadSamples = field(default_factory=BadSamples)
    n_pictures: int = 1

    def to(self, device: torch.device | str) -> TrapBatch:
        return replace(self, inputs_BT=self.inputs_BT.to(device))


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.word = nn.Embedding(11, width)
        self.kind = nn.Embedding(2, width)

    def forward(self, inputs_BT: Tensor) -> Words:
        return Words(self.word(inputs_BT) + self.kind.weight[0])  # a parameter, no call


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, 2 * width)
        self.second = nn.Linear(2 * width, width)

    def forward(self, words: Words) -> Words:
        hidden = words.hidden_BTD
        return Words(hidden + self.second(F.gelu(self.first(self.norm(hidden)))))


class Trap(nn.Module):
    """Sizes are odd, so that shares are cut through parameters and have padding."""

    larger_lr_names = frozenset(
        {"temp", "box.0.weight", "box.0.bias", "box.2.weight", "box.2.bias"}
    )

    def __init__(self, *, sharded: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        width = 5
        self.encoder = Encoder(width)
        self.layers = nn.ModuleList(Block(width) for _ in range(3))
        self.bias = nn.Parameter(torch.zeros(11))
        self.temp = nn.Parameter(torch.tensor(0.7))  # a scalar outside of every module's call
        self.box = nn.Sequential(nn.Linear(width, 3), nn.GELU(), nn.Linear(3, 4))
        self.frozen = nn.Parameter(torch.full((3,), 0.5), requires_grad=False)
        self.never = nn.Parameter(torch.ones(3))
        self.register_buffer("ramp", torch.arange(width) / width, persistent=False)
        if sharded:
            self.runs_in_every_part = ("layers",)

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        return {"temp": (0.65, 0.75)}

    def words(self, inputs_BT: Tensor) -> Tensor:
        words = self.encoder(inputs_BT)
        for layer in self.layers:
            words = layer(words)
        hidden_BTD: Tensor = words.hidden_BTD + self.ramp + self.frozen.mean()
        return hidden_BTD


class TrapTask:
    """Losses of a part: words from themselves; boxes only where the part has some."""

    def losses(self, model: Trap, batch: TrapBatch, moment: Moment) -> Losses:
        if batch.empty and not hasattr(model, "runs_in_every_part"):
            return Losses({}, {}, {"empty": 1})
        with torch.no_grad():
            model.temp.clamp_(*model.bounds["temp"])  # what it holds in a forward pass
        hidden = model.words(batch.inputs_BT)
        # tied: the words' table as decoder, by no module's call
        scores = F.linear(hidden, model.encoder.word.weight, model.bias).float() / model.temp
        parts = {"words": F.cross_entropy(scores.flatten(0, 1), batch.inputs_BT.flatten()) / PARTS}
        # first beyond its upper bound, then away from it
        parts["words"] = parts["words"] + model.temp * (0.0 if moment.step < 4 else 20.0) / PARTS
        if batch.boxes:
            parts["boxes"] = model.box(hidden[:, 0]).float().square().sum()
        if not batch.finite:  # the value is 0, its gradient is not finite
            parts["root"] = (model.get_parameter("layers.0.first.weight").sum() * 0).sqrt()
        return Losses(parts, {"boxes": 0.3}, {"seen": 1})

    def tables(self, model: Trap, batch: TrapBatch, moment: Moment) -> dict[str, Tensor]:
        return {"words": model.words(batch.inputs_BT).mean(1)}


def batch_of(step: int, part: int) -> TrapBatch:
    """Boxes in the last part alone; the first part of step 2 has no loss at all."""
    generator = torch.Generator().manual_seed(100 * step + part)
    inputs = torch.randint(0, 11, (2, 3), generator=generator)
    return TrapBatch(inputs, boxes=part == PARTS - 1 and step != 3, empty=(step, part) == (2, 0))


def optimizer_of(model: nn.Module, *, official: bool = False) -> torch.optim.Optimizer:
    larger: Any = model.larger_lr_names
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for large in (False, True):
        for decay in (0.1, 0.0):
            members = [
                p for name, p in named if (name in larger) == large and (p.ndim > 1) == (decay > 0)
            ]
            mult = 2.0 if large else 1.0
            groups.append({"params": members, "weight_decay": decay, "lr_mult": mult})
    groups = [group for group in groups if group["params"]]
    if official:
        return OfficialAdamW(groups, lr=0.01)
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), fused=True)


def lr_of(step: int) -> float:
    return 0.01 * (1 + step % 3)


def moment_of(step: int) -> Moment:
    return Moment(step, 0.0, torch.Generator())


@dataclass
class Reference:
    """Plain PyTorch in one process: all parts, gradients of zero where there is none."""

    official: bool = False
    precision: Precision = "fp32"
    sharded: bool = False
    norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = Trap(sharded=self.sharded)
        self.optimizer = optimizer_of(self.model, official=self.official)

    def train(self, steps: Sequence[int]) -> Reference:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        for step in steps:
            for group in self.optimizer.param_groups:
                group["lr"] = lr_of(step) * group["lr_mult"]
            self.optimizer.zero_grad()
            for part in range(PARTS):
                with autocast(torch.device("cpu"), self.precision):
                    losses = TrapTask().losses(self.model, batch_of(step, part), moment_of(step))
                total = losses.total()
                if total is not None:
                    total.backward()  # type: ignore[no-untyped-call]
            for p in trained:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            self.norms.append(float(torch.nn.utils.clip_grad_norm_(trained, CLIP)))
            self.optimizer.step()
        with torch.no_grad():
            self.model.temp.clamp_(*self.model.bounds["temp"])
        return self

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

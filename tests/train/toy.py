"""A small real task: a network with drop-out and norms, two kinds of update, a validation set."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.dropped import BadSamples
from xvlm_core.errors import DataError
from xvlm_core.tasks.base import Losses, Moment, Prediction, Score, Scores
from xvlm_core.train import runs
from xvlm_core.train.session import train
from xvlm_core.train.state import TrainResult
from xvlm_core.train.telemetry import Telemetry

TARGET = torch.tensor([0.5, -1.0, 2.0, 0.0])


@dataclass(frozen=True)
class ToyBatch:
    inputs: Tensor
    record_ids: tuple[str, ...]
    second: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)
    bad: BadSamples = field(default_factory=BadSamples)

    @property
    def n_pictures(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device | str) -> ToyBatch:
        return replace(self, inputs=self.inputs.to(device))


@dataclass(frozen=True)
class ToyFeed:
    steps_per_epoch: int = 4
    broken_at: int | None = None
    worker_dies_at: int | None = None

    def batches(self, step: int, part: int = 0) -> Sequence[ToyBatch]:
        if step == self.broken_at:
            raise DataError("picture 7.jpg cannot be read", where="record 7", try_="xvlm validate")
        if step == self.worker_dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        generator = torch.Generator().manual_seed(step)
        ids = tuple(f"{step}-{i}" for i in range(5))
        batch = ToyBatch(torch.randn(5, 4, generator=generator), ids)
        if step % 3:
            return (replace(batch, dropped={"too dark": 1} if step % 4 == 0 else {}),)
        return (batch, replace(batch, inputs=batch.inputs + 1, second=True))


class ToyModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(8, 1)
        self.late = nn.Parameter(torch.ones(()))  # without gradient in the first half of a run

    @property
    def larger_lr_names(self) -> frozenset[str]:
        return frozenset({"head.weight", "head.bias"})

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.dropout(self.norm(self.first(inputs)).relu())
        return self.head(hidden)[:, 0]


@dataclass
class ToyTask:
    name: str = "pretrain"
    selection: str | None = "closeness"
    notes: list[str] = field(default_factory=lambda: ["weights from a seed"])
    with_validation: bool = True
    toy_feed: ToyFeed = field(default_factory=ToyFeed)
    kill_at: int | None = None  # SIGKILL to the training process
    signal_at: tuple[int, int] | None = None  # (step, signal) to the training process
    signal_in_validation: int | None = None
    not_finite_at: int | None = None
    not_finite_gradient_at: int | None = None
    model: ToyModel | None = None

    def build_model(self, *, first_weights: bool = True) -> nn.Module:
        self.model = ToyModel()
        return self.model

    def save_model(self, model: nn.Module, folder: Path) -> None:
        save_file(model.state_dict(), folder / "model.safetensors")

    def load_weights(self, model: nn.Module, folder: Path) -> None:
        model.load_state_dict(load_file(folder / "model.safetensors"))

    def feed(self) -> ToyFeed:
        return self.toy_feed

    def losses(self, model: nn.Module, batch: ToyBatch, moment: Moment) -> Losses:
        if moment.step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.signal_at and moment.step == self.signal_at[0] and not batch.second:
            os.kill(os.getpid(), self.signal_at[1])
        # draws from both kinds of randomness: torch's own (drop-out) and the update's
        noise = torch.randn(len(batch.inputs), generator=moment.generator) * 0.1
        target = batch.inputs @ TARGET + noise
        parts = {"square": F.mse_loss(model(batch.inputs), target)}
        if batch.second:
            parts["second"] = F.l1_loss(model(batch.inputs), target)
        if moment.progress >= 0.5:
            parts["late"] = (model.late - 2) ** 2  # type: ignore[union-attr,operator]
        if moment.step == self.not_finite_at:
            parts["square"] = parts["square"] * float("inf")
        if moment.step == self.not_finite_gradient_at:
            zero = model.first.weight.sum() * 0  # type: ignore[union-attr,operator]
            parts["root"] = zero.sqrt()  # the value is 0, its gradient is not finite
        return Losses(parts, {"second": 0.5}, counts={"seen": len(batch.inputs)})

    def sizes(self, batch: ToyBatch, moment: Moment) -> dict[str, float | None]:
        names = ["square", *["second"] * batch.second, *["late"] * (moment.progress >= 0.5)]
        names += ["root"] * (moment.step == self.not_finite_gradient_at)
        return {name: float(len(batch.inputs)) for name in names}

    def tables(self, model: nn.Module, batch: ToyBatch, moment: Moment) -> dict[str, Tensor]:
        return {}

    def validation(self, rank: int = 0, world_size: int = 1) -> Iterator[ToyBatch]:
        if not self.with_validation:
            return
        generator = torch.Generator().manual_seed(0)
        for number in range(3):
            if number == 1 and self.signal_in_validation is not None:
                os.kill(os.getpid(), self.signal_in_validation)
            ids = tuple(f"val-{number}-{i}" for i in range(6))
            yield ToyBatch(torch.randn(6, 4, generator=generator), ids)

    def predict(self, model: nn.Module, batch: ToyBatch) -> list[Prediction]:
        assert not model.training
        torch.rand(3)  # a draw in validation must not change training
        errors = (model(batch.inputs) - batch.inputs @ TARGET).abs()
        pairs = zip(batch.record_ids, errors.tolist(), strict=True)
        return [{"id": id_, "error": error} for id_, error in pairs]

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        mean = sum(p["error"] for p in predictions) / len(predictions)
        return {"closeness": Score(-mean, "val", "negative mean error", len(predictions))}


def toy_recipe(**changes: Any) -> Recipe:
    """``toy_recipe(schedule={"max_steps": 3}, train={...})``."""
    tree: dict[str, Any] = {
        "task": "pretrain",
        "model": {"size": "tiny"},
        "data": {"images": {"stores": ["none"]}, "workers": 0},
        "optim": {"lr": 0.02},
        "schedule": {"max_steps": 20},
        "train": {
            "device": "cpu",
            "checkpoint_every": 4,
            "evaluate_every": 6,
            "log_every": 3,
            "keep_last": 2,
        },
    }
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return Recipe.model_validate_json(json.dumps(tree))


def run_toy(
    folder: Path,
    task: ToyTask | None = None,
    recipe: Recipe | None = None,
    telemetry: Telemetry | None = None,
) -> TrainResult:
    """Train the toy in ``folder``; continue if the run is there."""
    torch.set_num_threads(1)
    # loader processes of a killed process look for it this often (seconds; torch: 5)
    torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.1
    recipe = recipe or toy_recipe()
    resume = (folder / "run.json").exists()
    if resume:
        run = runs.read(folder)
    else:
        run = runs.create(folder, recipe=recipe, recipe_name="toy", command="xvlm pretrain toy")
    return train(task or ToyTask(), recipe, run, resume=resume, telemetry=telemetry or Telemetry())


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "torch",
        "torch.utils.data",
        "torch._dynamo",
        "safetensors.torch",
        "pydantic",
        "rich.progress",
        "yaml",
        "pytest",
    ]
)


def _child(function: Any, arguments: tuple[Any, ...]) -> None:
    # the context of this process's children: a fork server started here would die with it
    multiprocessing.set_start_method("fork", force=True)
    function(*arguments)


def in_process(function: Any, *arguments: Any) -> int:
    """Run in a fresh process; its exit code (negative: the signal that ended it)."""
    process = _CONTEXT.Process(target=_child, args=(function, arguments))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode

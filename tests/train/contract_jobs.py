"""Training sessions of the real task on several ranks, many one after the other: a job each.

The start of a process costs as much as twenty steps, so a group of ranks does all its jobs in the
same processes. What happened is read from the run's folder, or from the report of each rank.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.tasks.captions import second_stage
from tests.tasks.recipes import merged, recipe
from xvlm_core.config.schema import Recipe
from xvlm_core.errors import DataError, XvlmError
from xvlm_core.models.captioner import Captioner
from xvlm_core.models.decoding import Writing
from xvlm_core.tasks.base import Batch, Losses, Moment, Prediction, Scores
from xvlm_core.tasks.captioning import CaptioningTask
from xvlm_core.tasks.pretrain import PretrainTask
from xvlm_core.tasks.recipe_task import RecipeTask
from xvlm_core.train import divergence, loop, runs
from xvlm_core.train.engines import build
from xvlm_core.train.parts import GatheredPeers
from xvlm_core.train.ranks import Ranks
from xvlm_core.train.session import train
from xvlm_core.train.state import TrainResult
from xvlm_core.train.telemetry import Telemetry

# of ZeRO: nothing stays whole by being small, and gradients are reduced in many buckets
SMALL = {
    "stage3_param_persistence_threshold": 0,
    "reduce_bucket_size": 4096,
    "allgather_bucket_size": 64,
}
FAILED = "failed"
"""A file that a group of ranks leaves when it fails."""
STEPS, PARTS = 50, 2
"""Of a run, and of an update, unless a job says otherwise."""

BASE: dict[str, Any] = {
    # this size has no drop-out of its own
    "model": {"overrides": {"vision": {"drop_path": 0.3, "depths": [2]}, "text": {"dropout": 0.1}}},
    "data": {
        "images": {"batch_size": 6},
        "regions": {"max_images": 6, "batch_texts": 12},
        "mix": "joint",
    },
    "schedule": {"max_steps": STEPS},
    "train": {
        "device": "cpu",
        "precision": "fp32",
        "micro_batches": PARTS,
        "log_every": 1,
        "checkpoint_every": 1000,
        "keep_last": 100,
    },
}

DRAWN: dict[str, Any] = {
    "model": BASE["model"],
    "scoring": {"beams": 1},
    "schedule": {"max_steps": 5},
    "train": {**BASE["train"], "evaluate_every": 3},
}
"""Changes of a recipe whose captions are drawn and rewarded."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        kind: ``pictures``: not finite; ``gradient``: of finite losses, not finite; ``data``: a
            part cannot be read; ``steep``: losses whose gradient no float16 number holds.
        steps: when.
        parts: of which parts.
    """

    kind: str
    steps: Sequence[int]
    parts: Sequence[int]


@dataclass(frozen=True)
class Job:
    """A session.

    Attributes:
        name: of its run; with the number of ranks it is unique.
        changes: of the recipe.
        stop_at: the last rank receives SIGTERM during this step.
        go_on: the run, such as ``2/torch stopped``, that is continued in a copy.
        fault: what goes wrong.
        draws: it is the second stage of captioning, not pre-training.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    stop_at: int | None = None
    go_on: str | None = None
    fault: Fault | None = None
    draws: bool = False

    @property
    def last_bad_step(self) -> int:
        """Of the fault."""
        return 0 if self.fault is None else max(self.fault.steps)

    def recipe(self, root: Path) -> Recipe:
        """Over the stores in a folder."""
        if self.draws:
            return second_stage(root, **merged(DRAWN, dict(self.changes)))
        return recipe(root, **merged(BASE, dict(self.changes)))


@dataclass(frozen=True)
class Seen:
    """Records that a part was computed of."""

    step: int
    part: int
    records: tuple[str, ...]


@dataclass
class Report:
    """What one rank saw of a job."""

    result: TrainResult | None = None
    error: XvlmError | None = None
    seen: list[Seen] = field(default_factory=list)
    dtypes: set[str] = field(default_factory=set)
    shared_out: bool = False
    """Some weights were not whole between updates."""
    unchanged: bool | None = None
    """After the fault the weights in memory were those before it."""
    wrote: int = 0
    """Divergences that this rank wrote a file of."""
    predictions: list[Prediction] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    """Of each part whose captions are drawn: how often the decoder was called."""


@dataclass(frozen=True)
class FaultyFeed:
    """A feed with a fault."""

    feed: Any
    fault: Fault

    @property
    def steps_per_epoch(self) -> int:
        steps: int = self.feed.steps_per_epoch
        return steps

    def batches(self, step: int, part: int = 0) -> Sequence[Batch]:
        fault, batches = self.fault, self.feed.batches(step, part)
        if step not in fault.steps or part not in fault.parts:
            return batches  # type: ignore[no-any-return]
        if fault.kind == "data":
            raise DataError(f"part {part} cannot be read", try_="xvlm validate")
        if fault.kind != "pictures":
            return batches  # type: ignore[no-any-return]
        return [
            replace(b, pictures_ICHW=torch.full_like(b.pictures_ICHW, torch.nan, dtype=torch.float))
            for b in batches
        ]


class Watched(RecipeTask):
    """A task that tells what it sees, stops when it is told to, and may go wrong."""

    def __init__(self, recipe: Recipe, job: Job, ranks: Ranks, report: Report) -> None:
        super().__init__(recipe)
        self.job, self.report = job, report
        self.stops = ranks.rank == ranks.world_size - 1
        self.model: nn.Module | None = None
        self.before: list[Tensor] = []

    def build_model(self, *, first_weights: bool = True) -> nn.Module:
        self.model = super().build_model(first_weights=first_weights)
        return self.model

    def feed(self) -> Any:
        feed = super().feed()  # type: ignore[safe-super]
        return feed if self.job.fault is None else FaultyFeed(feed, self.job.fault)

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        peers, fault = moment.peers, self.job.fault
        assert isinstance(peers, GatheredPeers)
        self.report.seen.append(Seen(moment.step, peers.part, batch.record_ids))
        if moment.step == self.job.stop_at and self.stops:
            self.stops = False  # a second one has its usual effect
            signal.raise_signal(signal.SIGTERM)
        if fault is not None and not self.before and moment.step == fault.steps[0]:
            self.before = self.weights()
        if self.before and moment.step > self.job.last_bad_step and self.report.unchanged is None:
            self.compare()
        losses = super().losses(model, batch, moment)  # type: ignore[safe-super]
        self.report.dtypes |= {str(value.dtype) for value in losses.parts.values()}
        if fault is None or moment.step not in fault.steps or peers.part not in fault.parts:
            return losses
        parts = dict(losses.parts)
        if fault.kind == "gradient":
            parts["masked_lm"] = parts["masked_lm"] * 1.0
            parts["masked_lm"].register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: gradient * torch.nan
            )
        if fault.kind == "steep":
            parts["masked_lm"] = parts["masked_lm"] * 1e20
        return replace(losses, parts=parts)

    def weights(self) -> list[Tensor]:
        """Copies of what this rank holds between updates."""
        assert self.model is not None
        own = [getattr(p, "ds_tensor", p).data.clone() for p in self.model.parameters()]
        whole = [getattr(p, "ds_shape", p.shape).numel() for p in self.model.parameters()]
        self.report.shared_out = sum(map(len, map(torch.flatten, own))) < sum(whole)
        return own

    def compare(self) -> None:
        """The weights are those before the fault, or not."""
        assert self.before
        self.report.unchanged = all(map(torch.equal, self.before, self.weights()))

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        self.report.predictions = list(predictions)
        return super().score(predictions)


class WatchedTask(Watched, PretrainTask):
    """Pre-training."""


class WatchedDraws(Watched, CaptioningTask):
    """Captions that are drawn and rewarded: one ends early, another late or not at all."""

    def build_model(self, *, first_weights: bool = True) -> nn.Module:
        model = super().build_model(first_weights=first_weights)
        assert isinstance(model, Captioner)
        assert model.text.lm_head is not None
        if first_weights:
            with torch.no_grad():
                model.text.lm_head.bias[self.tokenizer.sep_id] += 4.0
        return model

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        calls, write = 0, Writing.write

        def counted(writing: Writing, ids_RT: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return write(writing, ids_RT)

        Writing.write = counted  # type: ignore[method-assign,assignment]
        try:
            return super().losses(model, batch, moment)
        finally:
            Writing.write = write  # type: ignore[method-assign]
            self.report.written.append(calls)


def _wait_for(path: Path, failed: Path, seconds: float = 900.0) -> None:
    """Another group of ranks makes it, or leaves word that it failed."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert not failed.exists(), "the other group failed"
        assert time.monotonic() < end, f"{path.name} was not made"
        time.sleep(0.1)


def _run_of(ranks: Ranks, job: Job, recipe: Recipe, base: Path) -> runs.RunInfo:
    folder = base / str(ranks.world_size) / job.name

    def make() -> runs.RunInfo:
        if job.go_on is None:
            return runs.create(folder, recipe=recipe, recipe_name="contract", command="contract")
        _wait_for(base / job.go_on / "over", base / FAILED)
        shutil.copytree(base / job.go_on, folder, ignore=shutil.ignore_patterns("over"))
        return runs.read(folder)

    return ranks.main_does(make)


def do(ranks: Ranks, job: Job, root: Path, base: Path) -> Report:
    """One job, on all ranks."""
    report = Report()
    recipe = job.recipe(root)
    task = (WatchedDraws if job.draws else WatchedTask)(recipe, job, ranks, report)
    run = _run_of(ranks, job, recipe, base)

    def diverged(*arguments: Any, write: bool) -> Any:
        task.compare()
        report.wrote += write
        return divergence.diverged(*arguments, write=write)

    loop.diverged = diverged  # type: ignore[attr-defined,assignment]
    try:
        report.result = train(
            task,
            recipe,
            run,
            resume=job.go_on is not None,
            telemetry=Telemetry(),
            ranks=ranks,
        )
    except XvlmError as error:
        report.error = error
    finally:
        loop.diverged = divergence.diverged  # type: ignore[attr-defined]
    ranks.main_does(lambda: (run.folder / "over").touch())
    return report


def do_all(ranks: Ranks, jobs: Sequence[Job], root: Path, base: Path) -> dict[str, Report]:
    """All jobs of a number of ranks, one after the other."""
    home = base / f"home {ranks.world_size} {ranks.rank}"
    home.mkdir()
    os.environ["HOME"] = str(home)
    os.chdir(home)
    _shares_everything_out()
    _lets_the_cpu_do_float16()
    return {job.name: do(ranks, job, root, base) for job in jobs}


def _shares_everything_out() -> None:
    try:
        import deepspeed  # noqa: F401
    except ImportError:
        return
    from xvlm_core.train.engines import deepspeed as engine

    engine.DeepSpeedEngine = partial(engine.DeepSpeedEngine, zero=SMALL)  # type: ignore[misc,assignment]


def _lets_the_cpu_do_float16() -> None:
    """It is refused because it is slow; it does work."""
    pick: Callable[..., Any] = build.pick_precision  # type: ignore[attr-defined]

    def any_precision(wanted: Any, device: torch.device) -> Any:
        return wanted if wanted == "fp16" else pick(wanted, device)

    build.pick_precision = any_precision  # type: ignore[attr-defined]


def lines_of(base: Path, run: str, kind: str = "train") -> Iterator[dict[str, Any]]:
    """The log of a run, such as ``2/torch``."""
    return (line for line in runs.read(base / run).log() if line["kind"] == kind)

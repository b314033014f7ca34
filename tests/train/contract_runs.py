"""The runs of the contract, made by groups of processes, and how two of them are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tasks.recipes import write_stores
from tests.train.contract_jobs import FAILED, Report, Seen, do_all, lines_of
from tests.train.contract_plan import jobs_of
from tests.train.ranks import on_ranks
from xvlm_core.train import checkpoint
from xvlm_core.train.state import OPTIMIZER_FILE
from xvlm_core.train.telemetry import TIMES

Line = Mapping[str, Any]

FLOAT32 = 1e-5
"""Relative. Two ranks add up the same two gradients as one rank does, which is commutative and so
the same to the bit. What is left is the global norm, a sum in another order where ZeRO cuts the
gradient, and by it the factor of the clipping: 1e-7 of what is learnt. (Seen in 50 steps: 3e-7 of
a loss, 7e-7 of a norm.)"""
BFLOAT16 = 2.0**-7
"""Relative: the numbers of bfloat16 lie up to that far apart. Weights, gradients and the optimizer
are float32, so two runs differ as little as in float32; but where a weight lies between two such
numbers, the least difference decides which one the forward pass sees. (Seen in 5 steps on three
ranks: 2e-3; on two ranks, which are the same to the bit but for a norm, nothing.)"""


@dataclass(frozen=True)
class Runs:
    """All runs, by names such as ``2/torch whole``: the number of ranks and the job.

    Attributes:
        root: of the stores.
        base: of the run folders.
        told: of each run, what each rank tells.
    """

    root: Path
    base: Path
    told: Mapping[str, Sequence[Report]]

    def log(self, run: str) -> list[dict[str, Any]]:
        """The lines of training, without times."""
        return [
            {key: value for key, value in line.items() if key not in TIMES}
            for line in lines_of(self.base, run)
        ]

    def seen(self, run: str) -> list[Seen]:
        """What all ranks computed, by step and part."""
        seen = [one for report in self.told[run] for one in report.seen]
        return sorted(seen, key=lambda one: (one.step, one.part))

    def tensors(self, run: str, step: int) -> dict[str, Tensor]:
        """Weights and optimizer state of a checkpoint."""
        folder = self.base / run / "checkpoints" / checkpoint.folder_name(step)
        checkpoint.verify(folder)
        model = load_file(folder / "model.safetensors")
        state = load_file(folder / OPTIMIZER_FILE)
        return {**{f"model: {name}": value for name, value in model.items()}, **state}

    def checkpoints(self, run: str) -> list[int]:
        """Steps of them."""
        return checkpoint.list_steps(self.base / run / "checkpoints")


def make_runs(root: Path, base: Path, engines: tuple[str, ...]) -> Runs:
    """All runs of the plan.

    Args:
        root: a folder for the stores.
        base: a folder for the run folders.
        engines: those that are there.
    """
    write_stores(root, 14, 5)

    def group(world: int) -> list[dict[str, Report]]:
        try:
            found = on_ranks(world, do_all, jobs_of(world, engines), root, base, seconds=1100)
            for report in found:
                if isinstance(report, BaseException):
                    raise report
        except BaseException:
            (base / FAILED).touch()
            raise
        return found

    # some jobs go on with runs of the other group: both at the same time
    with ThreadPoolExecutor() as pool:
        groups = {world: pool.submit(group, world) for world in (1, 2)}
    reports = {world: future.result() for world, future in groups.items()}
    reports[3] = group(3)
    told = {
        f"{world}/{name}": [of_rank[name] for of_rank in of_ranks]
        for world, of_ranks in reports.items()
        for name in of_ranks[0]
    }
    return Runs(root, base, told)


def curve(line: Line) -> dict[str, float]:
    return {
        key: value
        for key, value in line.items()
        if key not in ("kind", "step", "counts", "dropped", "overflows")
    }


def difference(one: Sequence[Line], other: Sequence[Line]) -> float:
    """The greatest relative one of all numbers of two logs, which have the same ones."""
    assert len(one) == len(other) > 0
    worst = 0.0
    for a, b in zip(map(curve, one), map(curve, other), strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert math.isfinite(a[key])
            worst = max(worst, abs(a[key] - b[key]) / max(abs(a[key]), 1e-12))
    return worst


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """To the bit."""
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name

"""The memory and the arithmetic of a run, before it is made. Imports no torch at the top.

Weights, gradients and optimizer state are sums; what an update computes is counted on the very
code of the task (:mod:`xvlm_core.train.counting`). ZeRO: Rajbhandari et al., SC 2020. All three are
float32 in both engines, whatever the precision: autocast casts (its copies of weights are counted
with the activations).

All figures are bytes of one rank, on its device.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xvlm_core.config.schema import Recipe

if TYPE_CHECKING:
    from xvlm_core.train.counting import Counted

Precision = Literal["fp32", "bf16", "fp16"]

A100_FLOPS = 312e12
"""A100, bfloat16, dense: operations a second (NVIDIA's data sheet)."""

PAPER_UTILISATION = 0.0546
"""Share of them that makes 3.5 days of the recipe 4m on 8 A100, as the paper says of its run.

By the operations counted here (texts as long as they may be, to which the released code pads them);
not a figure that the paper has.
"""


@dataclass(frozen=True)
class Memory:
    """One engine's memory on one rank.

    Attributes:
        engine: ``torch``, or ``deepspeed``.
        zero_stage: of deepspeed, else None.
        weights: and their moving average, if there is one.
        gradients: of all weights, and the buckets that they are summed up in.
        optimizer: its moments (ZeRO 1 to 3: and the weights that it updates).
        activations: what the forward pass of a part keeps for the backward pass; with the batch.
        rest: the process with its libraries, and the workspace of operations.
        peak: the most at once. Less than the sum: activations go while gradients come.
    """

    engine: Literal["torch", "deepspeed"]
    zero_stage: int | None
    weights: int
    gradients: int
    optimizer: int
    activations: int
    rest: int
    peak: int


@dataclass(frozen=True)
class Load:
    """What an update is: counted once, whatever the engine.

    Attributes:
        parameters: of the model.
        kept_whole: of these, the ones that ZeRO 3 does not share out while an update is made.
        bucket: the most of them that ZeRO sums up over ranks at once.
        buffers: bytes of its constant tensors.
        parts: of an update, over all ranks (``train.micro_batches``).
        precision: of the forward pass.
        counted: the worst kind of part.
        flops: of a step, over all parts: forward, times three for forward and backward.
        pictures: of a step, over all parts.
        looked_at: stores whose texts were taken; empty: the longest texts possible.
        process: bytes of a process that has loaded what training needs.
        moving_average: whether the weights have one.
        offload: whether deepspeed keeps the optimizer state in the host's memory.
    """

    parameters: int
    kept_whole: int
    bucket: int
    buffers: int
    parts: int
    precision: Precision
    counted: Counted
    flops: float
    pictures: float
    looked_at: tuple[str, ...]
    process: int
    moving_average: bool
    offload: bool


def load_of(recipe: Recipe, parts: int) -> Load:
    """Count a part of an update of a recipe.

    Args:
        recipe: resolved; its stores need not be there.
        parts: that an update is divided into.

    Raises:
        ConfigError: a batch cannot be divided so, or the recipe's tokenizer is missing.
    """
    import torch

    import xvlm_core.train.loop  # what a training process has in memory
    from xvlm_core.data.feeds import parts_of
    from xvlm_core.errors import MissingToolError
    from xvlm_core.models.build import build_model
    from xvlm_core.train.counting import count_part
    from xvlm_core.train.devices import pick_device
    from xvlm_core.train.engines.deepspeed_setup import BUCKET, import_deepspeed
    from xvlm_core.train.synthetic import synthetic_part, task_without_data

    assert xvlm_core.train.loop
    if recipe.train.engine == "deepspeed":
        with contextlib.suppress(MissingToolError):  # the estimate needs none
            import_deepspeed(pick_device(recipe.train.device))
    process = resident_bytes()
    train = recipe.train.model_copy(update={"micro_batches": parts})
    recipe = recipe.model_copy(update={"train": train})
    parts_of(recipe)
    precision: Precision = (
        recipe.train.precision
        if recipe.train.precision != "auto"
        else "bf16"
        if recipe.train.device != "cpu" and torch.cuda.is_available()
        else "fp32"
    )
    task = task_without_data(recipe)
    made = synthetic_part(recipe, task, parts)
    worst: Counted | None = None
    flops = 0.0
    for batch, often in made.batches:
        with torch.device("meta"):
            model = build_model(task.config)
        if recipe.train.activation_checkpointing:
            model.checkpoint_activations()
        counted = count_part(task, model, batch, precision=precision, n_parts=parts)
        flops += often * 3.0 * counted.flops * parts
        if worst is None or counted.peak() > worst.peak():
            worst = counted
    assert worst is not None
    n_elements = sum(p.numel() for p in model.parameters())
    called = tuple(f"{name}." for name in getattr(model, "runs_in_every_part", ()))
    kept_whole = sum(
        p.numel() for name, p in model.named_parameters() if not name.startswith(called)
    )
    return Load(
        parameters=n_elements,
        kept_whole=kept_whole,
        bucket=min(BUCKET, n_elements),
        buffers=sum(b.numel() * b.element_size() for b in model.buffers()),
        parts=parts,
        precision=precision,
        counted=worst,
        flops=flops,
        pictures=made.pictures,
        looked_at=made.looked_at,
        process=process,
        moving_average=recipe.train.ema is not None,
        offload=recipe.train.offload,
    )


def memory_of(load: Load, ranks: int) -> tuple[Memory, ...]:
    """The torch engine, then deepspeed's ZeRO stages 0 to 3, for one of so many ranks."""
    return (_torch(load, ranks), *(_zero(load, ranks, stage) for stage in range(4)))


def _torch(load: Load, ranks: int) -> Memory:
    """Weights and gradients in float32; DDP sums gradients up in buckets of their size."""
    whole = 4 * load.parameters
    weights = whole + load.buffers + (whole if load.moving_average else 0)
    buckets = whole if ranks > 1 else 0
    # gradients of a part before this one are there all the time
    step = load.counted.peak() if load.parts <= ranks else whole + load.counted.working
    optimizer = 2 * whole
    return Memory(
        engine="torch",
        zero_stage=None,
        weights=weights,
        gradients=whole + buckets,
        optimizer=optimizer,
        activations=load.counted.saved,
        rest=load.process + _workspace(load),
        peak=load.process + weights + buckets + optimizer + step,
    )


def _zero(load: Load, ranks: int, stage: int) -> Memory:
    """Stage 1 shares out the optimizer's state, 2 gradients too, 3 also weights.

    From stage 1 on the optimizer updates a copy of its share of the weights, from one flat piece
    of its share of the gradients, which is made for the update.
    """
    whole = 4 * load.parameters
    weights = whole + load.buffers
    if stage == 3:
        weights = whole // ranks + 4 * load.kept_whole + load.buffers
    if load.moving_average:
        weights += whole
    share = 1 / ranks if stage >= 2 else 1.0
    bucket = 4 * load.bucket if stage >= 1 else 0
    optimizer = 3 * whole // ranks if stage >= 1 else 2 * whole
    update = whole // ranks if stage >= 1 else 0
    if load.offload and stage >= 1:
        optimizer = update = 0
    gradients = int(whole * share)
    if load.parts <= ranks:
        step = load.counted.peak(share)
    else:
        step = gradients + load.counted.working
    return Memory(
        engine="deepspeed",
        zero_stage=stage,
        weights=weights,
        gradients=gradients + bucket,
        optimizer=optimizer,
        activations=load.counted.saved,
        rest=load.process + _workspace(load),
        peak=load.process + weights + optimizer + max(step + bucket, gradients + update),
    )


def _workspace(load: Load) -> int:
    return max(0, load.counted.working - load.counted.saved)


def days(flops: float, steps: int, gpus: int, *, utilisation: float = PAPER_UTILISATION) -> float:
    """Days of a run on A100s.

    Args:
        flops: of a step, forward and backward, over all parts.
        steps: of the run.
        gpus: that share them.
        utilisation: share of the data sheet's operations a second that is reached.
    """
    return flops * steps / (gpus * A100_FLOPS * utilisation) / 86_400


def resident_bytes() -> int:
    """Memory of this process that is in RAM now (at its worst, where that is all there is)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The most memory that this process had in RAM."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def in_gb(rows: Sequence[Memory]) -> list[tuple[str, ...]]:
    """Rows of a table: engine, then each part in 10^9 bytes."""
    made = []
    for row in rows:
        name = row.engine if row.zero_stage is None else f"deepspeed, ZeRO {row.zero_stage}"
        parts = (row.weights, row.gradients, row.optimizer, row.activations, row.rest, row.peak)
        made.append((name, *(f"{part / 1e9:.2f}" for part in parts)))
    return made

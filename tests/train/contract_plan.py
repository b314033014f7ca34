"""Which jobs each number of ranks does for the contract of the engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.tasks.recipes import merged
from tests.train.contract_jobs import Fault, Job

STAGES = (0, 1, 2, 3)
ZERO = tuple(f"zero{stage}" for stage in STAGES)
ENGINES = ("torch", *ZERO)

ALONE_STEPS = 5
STOP, END = 3, 8
"""Where runs are stopped, and where they and their uninterrupted likes are compared."""
ELASTIC_END = 20
BAD_STEP = 3
OVERFLOWS = (2, 3)
FLOAT16 = ((1, "torch"), (2, "torch"), (2, "zero0"), (2, "zero3"))
"""Numbers of ranks, and engines."""
EXTRA: dict[str, Any] = {"data": {"mix": "extra"}}
BF16: dict[str, Any] = {"train": {"precision": "bf16"}}
EMA: dict[str, Any] = {"train": {"ema": 0.6, "checkpoint_every": 1}}
RECOMPUTED: dict[str, Any] = {"train": {"activation_checkpointing": True}}
SCORED: dict[str, Any] = {
    "data": {"validation": ["regions"]},
    "schedule": {"max_steps": 2},
    "train": {"evaluate_every": 1},
}
ALONE: dict[str, Any] = {
    "losses": {name: {"weight": 0.0} for name in ("matching", "masked_lm", "box_l1", "box_giou")}
}
OFTEN: dict[str, Any] = {"train": {"checkpoint_every": 2}}
MEANS: dict[str, Any] = {"losses": {name: {"weight": 0.0} for name in ("contrastive", "matching")}}
CHECKPOINTS: dict[str, Any] = {"train": {"checkpoint_every": END}}


def parts(n: int) -> dict[str, Any]:
    return {"train": {"micro_batches": n}}


def float16(**train: Any) -> dict[str, Any]:
    return {"train": {"precision": "fp16", **train}}


def of(engine: str, *changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes of a recipe that make it one of an engine."""
    tree: dict[str, Any] = {"train": {"engine": "torch"}}
    if engine != "torch":
        tree = {"train": {"engine": "deepspeed", "zero_stage": int(engine[-1])}}
    for change in changes:
        tree = merged(tree, dict(change))
    return tree


def _on_one_and_two(world: int, engine: str) -> list[Job]:
    found = [
        Job(f"{engine} stopped", of(engine), stop_at=STOP),
        Job(
            f"{engine} whole",
            of(engine, CHECKPOINTS),
            stop_at=None if engine == "torch" else ELASTIC_END,  # a step of ZeRO 3 takes long
        ),
        Job(f"{engine} resumed", of(engine), stop_at=END, go_on=f"{world}/{engine} stopped"),
        Job(f"{engine} extra", of(engine, EXTRA), stop_at=END),
        Job(f"{engine} bf16", of(engine, BF16), stop_at=END),
        Job(f"{engine} alone", of(engine, ALONE), stop_at=ALONE_STEPS),
    ]
    if world == 2 and engine in ("torch", "zero3"):
        found.append(Job(f"{engine} means", of(engine, MEANS), stop_at=ALONE_STEPS))
    if world == 2 or engine == "torch":
        found += [
            Job(f"{engine} {kind}", of(engine, OFTEN), fault=fault)
            for kind, fault in (
                ("bad pictures", Fault("pictures", [BAD_STEP], [1])),
                ("bad gradient", Fault("gradient", [BAD_STEP], [1])),
            )
        ]
    if (world, engine) in FLOAT16:
        overflows = Fault("steep", OVERFLOWS, [1])
        found.append(Job(f"{engine} overflow", of(engine, float16()), stop_at=END, fault=overflows))
        endless = Fault("steep", range(1, 30), [0])
        found.append(Job(f"{engine} at scale 1", of(engine, float16()), fault=endless))
    if engine in ("torch", "zero3"):
        found.append(Job(f"{engine} scored", of(engine, SCORED)))
        if world == 2:
            found.append(Job(f"{engine} recomputed", of(engine, RECOMPUTED), stop_at=END))
    return found


def _torch_alone(world: int) -> list[Job]:
    """What does not depend on the engine, or what torch alone has."""
    found = [
        Job("ema", of("torch", EMA), stop_at=END),
        Job("ema stopped", of("torch", EMA), stop_at=STOP),
        Job("ema resumed", of("torch", EMA), stop_at=END, go_on=f"{world}/ema stopped"),
        Job("6 parts", of("torch", parts(6)), stop_at=END),
        Job("6 parts, bad pictures", of("torch", parts(6)), fault=Fault("pictures", [1], [4])),
        Job("elastic", of("torch"), stop_at=ELASTIC_END, go_on=f"{3 - world}/torch stopped"),
        Job("bad data of rank 1", of("torch"), fault=Fault("data", [BAD_STEP], [1])),
        Job("bad data", of("torch"), fault=Fault("data", [BAD_STEP], [0, 1])),
    ]
    return found if world == 2 else [job for job in found if "bad" not in job.name]


def _captions(world: int, engines: tuple[str, ...]) -> list[Job]:
    """Those that are drawn: the signal comes in a step that a validation follows."""
    found = [Job("drawn", of("torch"), draws=True)]
    if world == 2:
        found += [
            Job("drawn, stopped", of("torch"), stop_at=STOP, draws=True),
            Job("drawn, resumed", of("torch"), go_on="2/drawn, stopped", draws=True),
        ]
        if "zero3" in engines:
            found.append(Job("drawn, zero3", of("zero3"), draws=True))
    return found


def jobs_of(world: int, engines: tuple[str, ...]) -> list[Job]:
    """In an order in which no group of ranks waits long for a run of another."""
    if world == 3:
        return [
            Job("3 parts", of("torch", parts(3), CHECKPOINTS), stop_at=END),
            Job("6 parts", of("torch", parts(6)), stop_at=END),
            Job("bf16", of("torch", parts(3), BF16), stop_at=END),
            Job("stopped", of("torch", parts(3)), stop_at=STOP),
            Job("resumed", of("torch", parts(3)), stop_at=END, go_on="3/stopped"),
            Job(
                "bad pictures",
                of("torch", parts(3), OFTEN),
                fault=Fault("pictures", [BAD_STEP], [1]),
            ),
        ]
    found = [job for engine in engines for job in _on_one_and_two(world, engine)]
    found += _torch_alone(world)
    found += _captions(world, engines)
    if world == 1:
        found.append(Job("3 parts", of("torch", parts(3)), stop_at=END))
        found.append(Job("3 parts, bf16", of("torch", parts(3), BF16), stop_at=END))
    if world == 1 and "zero2" in engines:
        found.append(Job("to zero2", of("zero2"), stop_at=END, go_on="2/torch stopped"))
    if world == 2 and "zero3" in engines:
        found.append(Job("to zero3", of("zero3"), stop_at=ELASTIC_END, go_on="1/to zero2"))
    return found

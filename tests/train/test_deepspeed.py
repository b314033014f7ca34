"""Real DeepSpeed on CPUs over gloo. Few processes do many checks: its import takes seconds."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.tasks.recipes import recipe, write_stores
from tests.train.deepspeed_toy import (
    CLIP,
    PARTS,
    Reference,
    Trap,
    TrapBatch,
    TrapTask,
    batch_of,
    lr_of,
    moment_of,
    optimizer_of,
)
from tests.train.ranks import on_ranks
from xvlm_core.config.schema import TrainSection
from xvlm_core.errors import CheckpointError, ConfigError, MissingToolError
from xvlm_core.tasks.base import Losses, Moment
from xvlm_core.tasks.pretrain import PretrainTask
from xvlm_core.train.devices import Precision
from xvlm_core.train.engines.base import Update
from xvlm_core.train.engines.deepspeed import DeepSpeedEngine, LossScale
from xvlm_core.train.engines.deepspeed_setup import configuration, import_deepspeed
from xvlm_core.train.engines.deepspeed_state import OneParameter, Slice, load_state
from xvlm_core.train.engines.deepspeed_zero import InOrder
from xvlm_core.train.ranks import Ranks
from xvlm_core.train.state import load_optimizer_tensors, optimizer_tensors

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"
)
STAGES = (0, 1, 2, 3)
WORLDS = (1, 2)
CPU = torch.device("cpu")
# nothing stays whole by being small, and gradients are reduced in many buckets
SMALL = {
    "stage3_param_persistence_threshold": 0,
    "reduce_bucket_size": 64,
    "allgather_bucket_size": 64,
}
Arrays = dict[str, "np.ndarray[Any, Any]"]


# ---------------------------------------------------------------- in the processes


@contextlib.contextmanager
def engine_of(
    ranks: Ranks,
    stage: int,
    model: nn.Module | None = None,
    *,
    precision: Precision = "fp32",
    official: bool = False,
    **settings: Any,
) -> Iterator[DeepSpeedEngine]:
    model = Trap() if model is None else model
    optimizer = optimizer_of(model, official=official)
    section = TrainSection(zero_stage=stage, **settings)  # type: ignore[arg-type]
    engine = DeepSpeedEngine(model, optimizer, section, CPU, precision, ranks, zero=SMALL)
    try:
        yield engine
    finally:
        engine.close()


def train(
    engine: DeepSpeedEngine,
    steps: Sequence[int],
    change: Callable[[TrapBatch, int], TrapBatch] = lambda batch, _: batch,
) -> list[Update]:
    return [update_of(engine, step, change) for step in steps]


def forward_backward(
    engine: DeepSpeedEngine, step: int, change: Callable[[TrapBatch, int], TrapBatch]
) -> None:
    own = PARTS // engine.ranks.world_size
    task: Any = TrapTask()
    for number in range(own):
        part = engine.ranks.rank * own + number
        batch = change(batch_of(step, part), part)
        everything = {"words": 1.0, "boxes": 1.0, "root": 1.0}
        last = number == own - 1
        total, losses = engine.losses(task, batch, moment_of(step), everything, last=last)
        assert all(not value.requires_grad for value in losses.parts.values())
        engine.backward(total, last=last)


def update_of(
    engine: DeepSpeedEngine, step: int, change: Callable[[TrapBatch, int], TrapBatch]
) -> Update:
    engine.set_lr(lr_of(step))
    engine.begin()
    forward_backward(engine, step, change)
    return engine.update(CLIP)


def arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def weights_of(engine: DeepSpeedEngine) -> Arrays:
    with engine.whole_model() as model:
        return arrays(dict(model.named_parameters()))


def whole_state(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """The same on every rank, as read from a file."""
    state: dict[str, Tensor] = engine.ranks.agree(engine.optimizer_state())[0]
    return state


def equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)


def filled(weights: Arrays) -> Trap:
    model = Trap()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return model


def a_life(ranks: Ranks, stage: int) -> dict[str, Any]:
    """Six updates, with all that may go wrong between the third and the fourth."""
    found: dict[str, Any] = {}
    with engine_of(ranks, stage) as engine:
        found["first"] = weights_of(engine)
        found["no state"] = not whole_state(engine)
        norms = [update.norm for update in train(engine, [1, 2, 3])]
        middle, state = weights_of(engine), whole_state(engine)
        found["middle"], found["state"] = middle, arrays(state)
        found["live numbers"] = sum(p.numel() for p in engine.model.parameters())

        def bad(batch: TrapBatch, part: int) -> TrapBatch:
            return replace(batch, finite=part != PARTS - 1)

        (update,) = train(engine, [9], bad)
        found["bad update"] = update
        found["bad changed"] = not (
            equal(weights_of(engine), middle) and equal(arrays(whole_state(engine)), found["state"])
        )
        engine.begin()
        forward_backward(engine, 8, lambda batch, _: batch)  # and no update
        engine.begin()
        rows = engine.tables(TrapTask(), batch_of(7, 0), moment_of(7))["words"]  # type: ignore[arg-type]
        found["rows need gradient"] = rows.requires_grad
        found["rows"] = rows.numpy()
        norms += [update.norm for update in train(engine, [4, 5, 6])]
        found["norms"], found["last"] = norms, weights_of(engine)
        with engine.whole_model() as model, torch.no_grad():
            inputs = batch_of(7, 0).inputs_BT
            found["whole rows"] = model.words(inputs).mean(1).numpy()  # type: ignore[operator]
            found["training"] = model.training
        last = arrays(whole_state(engine))
    with engine_of(ranks, stage, filled(middle)) as engine:
        engine.load_optimizer_state(state)
        found["loaded"] = equal(arrays(whole_state(engine)), found["state"])
        train(engine, [4, 5, 6])
        found["bit for bit"] = equal(weights_of(engine), found["last"]) and equal(
            arrays(whole_state(engine)), last
        )
    # from plain PyTorch
    reference = Reference().train([1, 2, 3])
    with engine_of(ranks, stage, filled(arrays(reference.weights()))) as engine:
        engine.load_optimizer_state(optimizer_tensors(reference.model, reference.optimizer))
        train(engine, [4, 5, 6])
        found["from torch"] = weights_of(engine)
    return found


def short_life(ranks: Ranks, stage: int, model: nn.Module | None = None, **more: Any) -> Any:
    with engine_of(ranks, stage, model, **more) as engine:
        first = weights_of(engine)
        updates = train(engine, [1, 2, 3, 4])
        live = sum(p.numel() for p in engine.model.parameters())
        dtypes = {p.dtype for p in engine.model.parameters()}
        return {
            "first": first,
            "norms": [update.norm for update in updates],
            "weights": weights_of(engine),
            "float32": dtypes == {torch.float32},
            "live numbers": live,
        }


def overflow(ranks: Ranks, stage: int) -> Any:
    """A loss so steep that its gradient is infinite in float16, until the scale has gone down."""

    class Steep(TrapTask):
        def losses(self, model: Trap, batch: TrapBatch, moment: Moment) -> Losses:
            losses = super().losses(model, batch, moment)
            # float16 where autocast makes it so
            out = model.layers[0].first(torch.full((1, 5), 16.0)).sum() * 0.25  # type: ignore[operator]
            return Losses({"words": losses.parts.get("words", out * 0.0).float() + out.float()}, {})

    steep: Any = Steep()
    seen: list[tuple[Update, bool, bool]] = []
    with engine_of(ranks, stage, precision="fp16") as engine:
        for step in range(1, 8):
            before, could = weights_of(engine), engine.can_overflow
            engine.set_lr(0.001)
            engine.begin()
            own = PARTS // ranks.world_size
            for number in range(own):
                part = ranks.rank * own + number
                batch = replace(batch_of(step, part), empty=False)
                total, _ = engine.losses(
                    steep, batch, moment_of(step), {"words": 1.0}, last=number == own - 1
                )
                engine.backward(total, last=number == own - 1)
            update = engine.update(CLIP)
            seen.append((update, could, equal(before, weights_of(engine))))
        state = engine.scaler_state()
    with engine_of(ranks, stage, precision="fp16") as engine:
        engine.load_scaler_state(state)
        again = engine.scaler_state()
    torch.amp.GradScaler("cpu").load_state_dict(dict(state))  # the torch engine takes it up
    with engine_of(ranks, stage, precision="fp16", loss_scale=128.0) as engine:
        fixed = (engine.can_overflow, engine.scaler_state()["scale"])
        (update,) = train(engine, [1])
    return {"seen": seen, "state": (state, again), "fixed": (*fixed, update.loss_scale)}


class XvlmParts:
    """The last part has regions, the others have none: three ranks' box heads would idle."""

    def __init__(self, root: Path) -> None:
        torch.manual_seed(0)
        self.task = PretrainTask(recipe(root))
        self.model = self.task.build_model()
        feed = self.task.feed()
        updates = next(u for step in range(1, 50) if len(u := feed.batches(step)) == 2)
        self.region, self.caption = updates

    def optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": list(self.model.parameters()), "lr_mult": 1.0}]
        # else AdamW makes of a gradient near 0 a step of either sign
        return torch.optim.AdamW(groups, lr=0.03, eps=0.01, fused=True)

    def losses_of(self, part: int, run: Callable[[Any, Moment], Any]) -> Any:
        torch.manual_seed(part)  # drop-out
        batch = self.region if part == PARTS - 1 else self.caption
        return run(batch, Moment(1, 0.5, torch.Generator().manual_seed(part)))

    def share(self) -> dict[str, float]:
        names = ("contrastive", "matching", "masked_lm", "box_l1", "box_giou")
        return dict.fromkeys(names, 1 / PARTS)


def xvlm(ranks: Ranks, stage: int, root: Path, sharded: tuple[str, ...] = ()) -> Any:
    parts = XvlmParts(root)
    parts.model.runs_in_every_part = sharded  # type: ignore[assignment]
    section = TrainSection(zero_stage=stage)  # type: ignore[arg-type]
    zero = {**SMALL, "reduce_bucket_size": 4096}
    with torch.no_grad():
        parts.model.temp.fill_(0.9)  # type: ignore[operator]  # above its limit
    optimizer = parts.optimizer()
    engine = DeepSpeedEngine(parts.model, optimizer, section, CPU, "fp32", ranks, zero=zero)
    own = PARTS // ranks.world_size
    try:
        for _ in range(3):
            engine.begin()
            for number in range(own):
                last = number == own - 1

                def run(batch: Any, moment: Moment, last: bool = last) -> None:
                    total, _ = engine.losses(parts.task, batch, moment, parts.share(), last=last)
                    engine.backward(total, last=last)

                parts.losses_of(ranks.rank * own + number, run)
            engine.update(1.0)
        return weights_of(engine)
    finally:
        engine.close()


def checks(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """All that is asked of DeepSpeed, in one process a rank."""
    home = folder / f"home-{ranks.rank}-{ranks.world_size}"
    home.mkdir()
    os.environ["HOME"] = str(home)
    os.chdir(home)
    found: dict[Any, Any] = {}
    said = home / "said"
    with said.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        linear = torch.nn.functional.linear
        for stage in STAGES:
            found["life", stage] = a_life(ranks, stage)
            found["bf16", stage] = short_life(ranks, stage, precision="bf16")
        for stage in (1, 3):
            found["official", stage] = short_life(ranks, stage, official=True)
            found["offload", stage] = short_life(ranks, stage, offload=True)
        for stage in (0, 3):
            found["overflow", stage] = overflow(ranks, stage)
        for stage in (2, 3):
            found["xvlm", stage] = xvlm(ranks, stage, folder)
        found["xvlm", "3 by layer"] = xvlm(ranks, 3, folder, ("vision", "text.layers"))
        found["sharded"] = short_life(ranks, 3, Trap(sharded=True))
    sys.stdout.flush()
    found["linear"] = torch.nn.functional.linear is linear
    found["said"] = said.read_text()
    found["files"] = sorted(str(p) for p in home.rglob("*") if p.is_file() and p != said)
    return found


# ---------------------------------------------------------------- what they found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[Any, Any]]]:
    pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp("deepspeed")
    write_stores(folder)
    with ThreadPoolExecutor() as pool:
        runs = {world: pool.submit(on_ranks, world, checks, folder) for world in WORLDS}
        results = {world: run.result() for world, run in runs.items()}
    assert all(isinstance(one, dict) for ranks in results.values() for one in ranks)
    return results


def close(a: Mapping[str, Any], b: Mapping[str, Any], *, most: float = 1e-6) -> None:
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=most, err_msg=name)


every = pytest.mark.parametrize("world", WORLDS)
each_stage = pytest.mark.parametrize("stage", STAGES)


@needs_deepspeed
@every
@each_stage
def test_updates_are_those_of_plain_pytorch(found: Any, world: int, stage: int) -> None:
    """Gradients add up over parts and ranks, are clipped as a whole; rates are those of groups."""
    reference = Reference().train(range(1, 7))
    for rank in found[world]:
        life = rank["life", stage]
        close(life["last"], arrays(reference.weights()))
        np.testing.assert_allclose(life["norms"], reference.norms, rtol=1e-5)
    assert min(reference.norms) > CLIP


@needs_deepspeed
@every
@each_stage
def test_first_weights_are_exactly_those_given(found: Any, world: int, stage: int) -> None:
    given = arrays(dict(Trap().named_parameters()))
    for rank in found[world]:
        assert equal(rank["life", stage]["first"], given)
        assert equal(rank["bf16", stage]["first"], given)
        assert rank["life", stage]["no state"]


@needs_deepspeed
@every
@each_stage
def test_a_gradient_that_is_not_finite_on_one_rank_changes_nothing_on_any(
    found: Any, world: int, stage: int
) -> None:
    for rank in found[world]:
        update = rank["life", stage]["bad update"]
        assert not update.applied
        assert not np.isfinite(update.norm)
        assert not rank["life", stage]["bad changed"]


@needs_deepspeed
@every
@each_stage
def test_a_run_continues_bit_for_bit(found: Any, world: int, stage: int) -> None:
    for rank in found[world]:
        assert rank["life", stage]["loaded"]
        assert rank["life", stage]["bit for bit"]


@needs_deepspeed
@every
@each_stage
def test_state_is_whole_and_goes_to_and_from_plain_pytorch(
    found: Any, world: int, stage: int
) -> None:
    """So it goes to any stage and number of ranks too."""
    life = found[world][0]["life", stage]
    reference = Reference().train([1, 2, 3])
    close(life["state"], arrays(optimizer_tensors(reference.model, reference.optimizer)))
    assert {value.dtype for value in life["state"].values()} == {np.dtype("float32")}
    end = Reference().train(range(1, 7))
    for rank in found[world]:
        close(rank["life", stage]["from torch"], arrays(end.weights()))
    there = Reference()
    there.model = filled(life["middle"])
    there.optimizer = optimizer_of(there.model)
    tensors = {name: torch.from_numpy(value) for name, value in life["state"].items()}
    load_optimizer_tensors(there.model, there.optimizer, tensors)
    close(arrays(there.train([4, 5, 6]).weights()), arrays(end.weights()))


@needs_deepspeed
@every
@each_stage
def test_the_whole_model_computes_what_the_live_one_does(
    found: Any, world: int, stage: int
) -> None:
    def rows_after(steps: Sequence[int]) -> np.ndarray[Any, Any]:
        model = Reference().train(steps).model
        with torch.no_grad():
            rows: np.ndarray[Any, Any] = model.words(batch_of(7, 0).inputs_BT).mean(1).numpy()
        return rows

    rows, end = rows_after([1, 2, 3]), rows_after(range(1, 7))
    for rank in found[world]:
        life = rank["life", stage]
        np.testing.assert_allclose(life["rows"], rows, atol=1e-6)
        assert not life["rows need gradient"]
        np.testing.assert_allclose(life["whole rows"], end, atol=1e-6)
        assert life["training"]


@needs_deepspeed
@every
def test_stage_3_leaves_nothing_whole_between_updates(found: Any, world: int) -> None:
    for rank in found[world]:
        assert rank["life", 3]["live numbers"] == 0
        assert rank["sharded"]["live numbers"] == 0
        assert rank["life", 2]["live numbers"] > 0


@needs_deepspeed
@every
def test_weights_of_modules_that_every_part_runs_are_gathered_when_they_run(
    found: Any, world: int
) -> None:
    reference = Reference(sharded=True).train(range(1, 5))
    for rank in found[world]:
        close(rank["sharded"]["weights"], arrays(reference.weights()))


@needs_deepspeed
@every
@each_stage
def test_bfloat16_is_a_matter_of_the_forward_pass(found: Any, world: int, stage: int) -> None:
    reference = Reference(precision="bf16").train(range(1, 5))
    in_float32 = Reference().train(range(1, 5))
    for rank in found[world]:
        assert rank["bf16", stage]["float32"]
        close(rank["bf16", stage]["weights"], arrays(reference.weights()), most=1e-5)
    assert not np.allclose(in_float32.norms, reference.norms, rtol=1e-5)


@needs_deepspeed
@every
@pytest.mark.parametrize("stage", [1, 3])
def test_the_official_optimizer_is_shared_out_too(found: Any, world: int, stage: int) -> None:
    reference = Reference(official=True).train(range(1, 5))
    for rank in found[world]:
        close(rank["official", stage]["weights"], arrays(reference.weights()))


@needs_deepspeed
@every
@pytest.mark.parametrize("stage", [1, 3])
def test_optimizer_state_in_the_hosts_memory_changes_nothing(
    found: Any, world: int, stage: int
) -> None:
    reference = Reference().train(range(1, 5))
    for rank in found[world]:
        close(rank["offload", stage]["weights"], arrays(reference.weights()))
        np.testing.assert_allclose(rank["offload", stage]["norms"], reference.norms, rtol=1e-5)


@needs_deepspeed
@every
@pytest.mark.parametrize("stage", [0, 3])
def test_a_float16_overflow_backs_off_and_goes_on(found: Any, world: int, stage: int) -> None:
    for rank in found[world]:
        seen = rank["overflow", stage]["seen"]
        applied = [update.applied for update, _, _ in seen]
        assert not applied[0]
        assert applied[-1]
        assert applied == sorted(applied)
        scale = 2.0**16
        for update, could, unchanged in seen:
            assert update.loss_scale == scale
            assert unchanged == (not update.applied)
            assert could
            scale = scale if update.applied else scale / 2
        state, again = rank["overflow", stage]["state"]
        assert state == again
        assert state["scale"] == scale
        assert rank["overflow", stage]["fixed"] == (False, 128.0, 128.0)


@needs_deepspeed
@pytest.mark.parametrize("stage", [2, 3, "3 by layer"])
@every
def test_the_model_itself(found: Any, world: int, stage: int | str, tmp_path: Path) -> None:
    """Box heads idle on all ranks but the last, word embeddings are tied, a scalar divides."""
    write_stores(tmp_path)
    parts = XvlmParts(tmp_path)
    model, optimizer = parts.model, parts.optimizer()
    trained = list(model.parameters())
    with torch.no_grad():
        model.temp.fill_(0.9)  # type: ignore[operator]
    for _ in range(3):
        optimizer.zero_grad()
        for part in range(PARTS):

            def run(batch: Any, moment: Moment) -> None:
                total = parts.task.losses(model, batch, moment).total(parts.share())
                assert total is not None
                total.backward()  # type: ignore[no-untyped-call]

            parts.losses_of(part, run)
        for p in trained:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    model.clamp_temperature()  # type: ignore[operator]
    for rank in found[world]:
        close(rank["xvlm", stage], arrays(dict(model.named_parameters())), most=2e-6)


@needs_deepspeed
@every
def test_deepspeed_says_and_leaves_nothing(found: Any, world: int) -> None:
    for rank in found[world]:
        assert rank["said"] == ""
        assert rank["files"] == []
        assert rank["linear"]


# ---------------------------------------------------------------- without DeepSpeed


def test_without_deepspeed_the_error_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingToolError) as raised:
        import_deepspeed(CPU)
    assert raised.value.try_ == "pip install deepspeed"
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(MissingToolError, match="Darwin"):
        import_deepspeed(CPU)


def test_offload_needs_zero() -> None:
    settings = TrainSection(zero_stage=0, offload=True)
    with pytest.raises(ConfigError, match="offload") as raised:
        configuration(settings, CPU, 10, {})
    assert raised.value.where == "train.offload"


def test_gradients_are_handed_over_in_one_order_and_none_is_missing() -> None:
    parameters = [nn.Parameter(torch.ones(n)) for n in (1, 2, 3, 4)]
    handed: list[int] = []
    order = InOrder(parameters, lambda p: handed.append(p.numel()))
    for _ in range(2):
        handed.clear()
        for number in (1, 3):
            parameters[number].grad = torch.ones(number + 1)
            order.came(parameters[number])
        assert handed == []
        parameters[0].grad = torch.ones(1)
        order.came(parameters[0])
        assert handed == [1, 2]
        order.finish()
        assert handed == [1, 2, 3, 4]
        assert parameters[2].grad is not None
        assert parameters[2].grad.tolist() == [0, 0, 0]
        for parameter in parameters:
            parameter.grad = None


def test_a_loss_scale_doubles_after_a_while_and_never_falls_below_1() -> None:
    scale = LossScale(2.0, interval=3)
    seen = []
    for applied in (True, True, True, False, False, False, True):
        scale.made(applied)
        seen.append(scale.scale)
    assert seen == [2, 2, 4, 2, 1, 1, 1]


def test_a_state_of_another_model_is_refused() -> None:
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    groups = [OneParameter(name, p) for name, p in model.named_parameters()]
    for tensors in (
        {"exp_avg/other": torch.zeros(2)},
        {"exp_avg/weight": torch.zeros(2)},
        {"momentum/weight": torch.zeros(3, 2)},
    ):
        with pytest.raises(CheckpointError, match="another model"):
            load_state(groups, optimizer, tensors, 0)
    assert not optimizer.state


def test_a_group_counts_as_many_updates_as_its_most_updated_parameter() -> None:
    """ZeRO has one count a group; plain PyTorch one a parameter."""
    vector = torch.zeros(6)
    parameters = {"a": nn.Parameter(vector[:2]), "b": nn.Parameter(vector[2:5])}
    own = vector[2:4].clone()  # rank 1 of 3
    group = Slice(own, parameters, vector)
    optimizer = torch.optim.AdamW([own])
    state = {
        "step/a": torch.tensor(7.0),
        "step/b": torch.tensor(4.0),
        "exp_avg/a": torch.ones(2),
        "exp_avg/b": torch.tensor([1.0, 2.0, 3.0]),
    }
    load_state([group], optimizer, state, rank=1)
    assert optimizer.state[own]["step"] == 7
    assert optimizer.state[own]["exp_avg"].tolist() == [1, 2]
    assert optimizer.state[own]["exp_avg_sq"].tolist() == [0, 0]

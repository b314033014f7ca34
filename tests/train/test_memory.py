from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.tasks.recipes import grounding_recipe, recipe, write_stores
from xvlm_core.config.resolve import resolve
from xvlm_core.config.schema import Recipe
from xvlm_core.errors import ConfigError
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.base import Batch, Moment
from xvlm_core.train import memory
from xvlm_core.train.counting import Alive, Counted, count_part
from xvlm_core.train.memory import Load, Memory, load_of, memory_of
from xvlm_core.train.synthetic import synthetic_part, task_without_data

JOINT = {"data": {"mix": "joint", "images": {"batch_size": 6}, "regions": {"max_images": 6}}}
NO_DRAWS = {"losses": {"matching": {"weight": 0.0}}}


def hollow(task: Any) -> XVLM:
    with torch.device("meta"):
        return XVLM(task.config)


def counted(settings: Recipe, **more: Any) -> Counted:
    task = task_without_data(settings)
    batch, _ = synthetic_part(settings, task, 1).batches[0]
    return count_part(task, hollow(task), batch, precision="fp32", **more)


@dataclasses.dataclass
class Real:
    """What a real forward pass kept, and the products of forward and backward."""

    saved: int
    flops: int
    all_flops: int


def real(settings: Recipe, *, checkpoint: bool = False) -> Real:
    task = task_without_data(settings)
    batch, _ = synthetic_part(settings, task, 1).batches[0]
    model = XVLM(task.config).train()
    model.checkpoint_activations(checkpoint)
    weights = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor  # held: an address comes once
        return tensor

    given = list(tensors(batch))
    with FlopCounterMode(display=False) as products:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = task.losses(model, batch, Moment(1, 1.0, torch.Generator().manual_seed(0)))
        flops = products.get_total_flops()
        total = losses.total()
        assert total is not None
        total.backward()  # type: ignore[no-untyped-call]
    inputs = {t.untyped_storage()._cdata: t for t in given}
    alive = {**kept, **inputs}
    saved = sum(t.untyped_storage().nbytes() for t in alive.values())
    return Real(saved, flops, products.get_total_flops())


def tensors(batch: Batch) -> Iterator[Tensor]:
    assert dataclasses.is_dataclass(batch)
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            yield value


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    write_stores(tmp_path)
    return tmp_path


# ------------------------------------------------------------------ counting


@pytest.mark.parametrize(
    ("changes", "off"),
    [
        ({**JOINT, **NO_DRAWS}, 0.02),
        ({"data": {**JOINT["data"], "regions": None}, **NO_DRAWS}, 0.02),
        (JOINT, 0.15),  # a hard negative may be longer or shorter than the one that is counted
    ],
)
def test_what_is_counted_is_what_a_real_pass_keeps_and_computes(
    stores: Path, changes: dict[str, Any], off: float
) -> None:
    settings = recipe(stores, **changes)
    ours, theirs = counted(settings), real(settings)
    assert ours.saved == pytest.approx(theirs.saved, rel=off)
    assert ours.flops == pytest.approx(theirs.flops, rel=off)
    assert ours.all_flops == pytest.approx(theirs.all_flops, rel=off)


def test_grounding_is_counted_too(stores: Path) -> None:
    settings = grounding_recipe(stores, data={"regions": {"max_images": 6}})
    ours, theirs = counted(settings), real(settings)
    assert ours.saved == pytest.approx(theirs.saved, rel=0.02)
    assert ours.flops == pytest.approx(theirs.flops, rel=0.02)


def test_the_worst_moment_has_all_gradients_or_all_activations(stores: Path) -> None:
    settings = recipe(stores, **JOINT)
    ours = counted(settings)
    n_bytes = 4 * sum(p.numel() for p in hollow(task_without_data(settings)).parameters())
    assert max(one.gradients for one in ours.moments) == n_bytes
    assert ours.working >= ours.saved
    assert ours.working <= ours.peak() <= ours.working + n_bytes
    assert ours.peak(0.0) == ours.working


def test_more_pictures_need_more_and_checkpoints_less(stores: Path) -> None:
    few = counted(recipe(stores, **JOINT))
    more = {"data": {**JOINT["data"], "images": {"batch_size": 12}, "regions": {"max_images": 12}}}
    assert counted(recipe(stores, **more)).saved == pytest.approx(2 * few.saved, rel=0.15)
    task = task_without_data(recipe(stores, **JOINT))
    batch, _ = synthetic_part(recipe(stores, **JOINT), task, 1).batches[0]
    model = hollow(task)
    model.checkpoint_activations()
    again = count_part(task, model, batch, precision="fp32")
    assert again.saved < few.saved
    assert again.working < few.working
    assert again.flops == few.flops
    assert again.all_flops > few.all_flops


def test_parts_add_what_the_contrastive_loss_sees_of_the_others(stores: Path) -> None:
    alone = counted(recipe(stores, **JOINT))
    among = counted(recipe(stores, **JOINT), n_parts=8)
    settings = recipe(stores, **JOINT)
    batch, _ = synthetic_part(settings, task_without_data(settings), 1).batches[0]
    n_texts = batch.texts.packing.n_texts  # type: ignore[attr-defined]
    assert among.saved - alone.saved > 4 * (64 - 1) * n_texts**2, "the scores of all pairs"


# ------------------------------------------------------------------ a part of an update


def test_texts_are_those_of_the_stores_or_as_long_as_they_may_be(stores: Path) -> None:
    here = recipe(stores, **JOINT)
    part = synthetic_part(here, task_without_data(here), 1)
    assert set(part.looked_at) == {"captions", "regions"}
    nowhere = recipe(stores / "nowhere", **JOINT)
    longest = synthetic_part(nowhere, task_without_data(nowhere), 1)
    assert longest.looked_at == ()
    (batch, often), (long_batch, _) = part.batches[0], longest.batches[0]
    assert often == 1.0
    lengths = {group.length for group in long_batch.texts.packing.groups}  # type: ignore[attr-defined]
    assert lengths == {nowhere.text.max_tokens}
    assert long_batch.n_pictures == batch.n_pictures == 12
    regions = nowhere.data.regions
    assert regions is not None
    assert long_batch.texts.packing.n_texts == 6 + 6 * regions.max_regions  # type: ignore[attr-defined]


def test_a_part_is_its_share_of_the_batch_and_kinds_of_updates_have_their_frequency(
    stores: Path,
) -> None:
    changes = {
        "data": {
            "mix": "extra",
            "images": {"batch_size": 8},
            "regions": {"max_images": 4, "batch_texts": 8, "iter_perc": 0.25},
        }
    }
    settings = recipe(stores, **changes)
    part = synthetic_part(settings, task_without_data(settings), 2)
    (regions, seldom), (captions, always) = part.batches
    assert (regions.n_pictures, seldom) == (2, 0.25)
    assert regions.texts.packing.n_texts == 4  # type: ignore[attr-defined]
    assert (captions.n_pictures, always) == (4, 1.0)
    assert part.pictures == 8 + 0.25 * 4


def test_no_picture_is_read(stores: Path) -> None:
    for picture in (stores / "pictures").glob("*.png"):
        picture.unlink()
    settings = recipe(stores, **JOINT)
    assert synthetic_part(settings, task_without_data(settings), 1).looked_at


# ------------------------------------------------------------------ memory by part


def load(**changes: Any) -> Load:
    values: dict[str, Any] = {
        "parameters": 1000,
        "kept_whole": 100,
        "bucket": 500,
        "buffers": 16,
        "parts": 1,
        "precision": "fp32",
        "counted": Counted(5000, (Alive(4000, 100), Alive(1000, 4800), Alive(0, 6000)), 1, 3),
        "flops": 3.0,
        "pictures": 1,
        "looked_at": (),
        "process": 10_000,
        "moving_average": False,
        "offload": False,
    }
    return Load(**{**values, **changes})


def stage(rows: tuple[Memory, ...], number: int) -> Memory:
    (row,) = (row for row in rows if row.zero_stage == number)
    return row


def test_one_process() -> None:
    torch_row, *zero = memory_of(load(), 1)
    assert torch_row == Memory("torch", None, 4016, 4000, 8000, 5000, 11_000, 10_000 + 18_016)
    assert [row.zero_stage for row in zero] == [0, 1, 2, 3]
    assert zero[0].peak == torch_row.peak
    assert stage(memory_of(load(moving_average=True), 1), 0).weights == 8016


def test_parts_in_turn_have_the_gradients_all_the_time() -> None:
    (row, *zero) = memory_of(load(parts=4), 1)
    assert row.peak == 10_000 + 4016 + 8000 + 4000 + 6000
    assert zero[0].peak == row.peak
    assert memory_of(load(parts=4), 4)[0].peak == 10_000 + 4016 + 8000 + 4000 + 6000  # buckets


def test_zero_shares_out_what_its_stage_says() -> None:
    rows = memory_of(load(), 4)
    assert [stage(rows, n).optimizer for n in range(4)] == [8000, 3000, 3000, 3000]
    assert [stage(rows, n).gradients for n in range(4)] == [4000, 6000, 3000, 3000]
    assert [stage(rows, n).weights for n in range(4)] == [4016, 4016, 4016, 1416]
    assert stage(rows, 2).peak < stage(rows, 0).peak
    assert stage(rows, 3).peak < stage(rows, 2).peak
    held = memory_of(load(offload=True), 4)
    assert [stage(held, n).optimizer for n in range(4)] == [8000, 0, 0, 0]


def test_the_peak_is_never_more_than_the_sum_and_never_less_than_what_is_always_there() -> None:
    for ranks in (1, 2, 8):
        for row in memory_of(load(parts=8), ranks):
            always = row.weights + row.optimizer
            assert always < row.peak
            assert row.peak <= always + row.gradients + row.activations + row.rest + 1000


def test_parts_that_do_not_divide_the_batch_are_refused(stores: Path) -> None:
    with pytest.raises(ConfigError, match="equal parts"):
        load_of(recipe(stores, **JOINT), 5)


def test_precision_follows_the_recipe(stores: Path) -> None:
    settings = recipe(stores, **JOINT)
    full = load_of(settings, 1)
    half = load_of(recipe(stores, **JOINT, train={"precision": "bf16"}), 1)
    assert (full.precision, half.precision) == ("fp32", "bf16")
    assert half.counted.saved < full.counted.saved
    assert full.process > 50e6, "a process that has torch"


# ------------------------------------------------------------------ days


def test_the_papers_days_are_what_its_utilisation_was_taken_from() -> None:
    recipe_4m = resolve("pretrain/4m").recipe
    needs = load_of(recipe_4m, recipe_4m.official_ranks)
    assert recipe_4m.schedule.max_steps is not None
    found = memory.days(needs.flops, recipe_4m.schedule.max_steps, recipe_4m.official_ranks)
    assert found == pytest.approx(3.5, abs=0.01)
    assert needs.parameters == 215_637_241
    assert needs.pictures == 1024
    # one picture of Swin-B is 15.4 G multiplications with additions: the texts are on top
    assert needs.flops > 1024 * 3 * 2 * 15.4e9


def test_days_are_arithmetic() -> None:
    assert memory.days(312e12, 86_400, 1, utilisation=1.0) == pytest.approx(1.0)
    assert memory.days(312e12, 86_400, 4, utilisation=0.5) == pytest.approx(0.5)

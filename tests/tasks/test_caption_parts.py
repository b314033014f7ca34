"""The second stage of captioning where an update has parts, and in bfloat16."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tasks.captions import captions_recipe, second_stage, talkative
from tests.tasks.recipes import write_stores
from xvlm_core.data.batches import CaptionBatch
from xvlm_core.models.captioner import Captioner
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.captioning import CaptioningTask
from xvlm_core.tasks.registry import build_task
from xvlm_core.train.parts import shares


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_stores(folder)
    return folder


def built(root: Path) -> tuple[CaptioningTask, Captioner, CaptionBatch]:
    task = build_task(second_stage(root))
    assert isinstance(task, CaptioningTask)
    task.__dict__["reward"] = lambda captions, _: [float(len(caption) % 7) for caption in captions]
    return task, talkative(task), task.feed().batches(1)[0]


def some_of(batch: CaptionBatch, first: int, last: int) -> CaptionBatch:
    """Its pictures from one number to another, without the texts, which nothing reads."""
    return dataclasses.replace(
        batch,
        pictures_ICHW=batch.pictures_ICHW[first:last],
        references=batch.references[first:last],
        record_ids=batch.record_ids[first:last],
    )


def gradients(model: Captioner) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_parts_of_any_size_learn_together_what_the_whole_update_does(root: Path) -> None:
    """One generator draws for three pictures, then for one, as it does for four."""
    task, model, batch = built(root)
    model.eval()
    found = []
    for cuts in ((0, 4), (0, 3, 4)):
        moment = Moment(1, 0.0, torch.Generator().manual_seed(5))
        parts = [some_of(batch, *ends) for ends in itertools.pairwise(cuts)]
        value = 0.0
        for part, share in zip(parts, shares([task.sizes(p, moment) for p in parts]), strict=True):
            total = task.losses(model, part, moment).total(share.gradient)
            assert total is not None
            total.backward()  # type: ignore[no-untyped-call]
            value += total.item()
        found.append((value, gradients(model)))
    (whole, by_whole), (summed, by_parts) = found
    assert summed == pytest.approx(whole, abs=1e-5)
    assert by_parts.keys() == by_whole.keys()
    for name, wanted in by_whole.items():
        gap = (by_parts[name] - wanted).abs().max()
        assert gap <= 1e-4 * max(1e-2, wanted.abs().max().item()), name


def test_in_bfloat16_every_weight_learns_although_captions_are_drawn_without_a_gradient(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where autocast keeps what was cast while there was no gradient, as PyTorch 2.4 does."""
    task, model, batch = built(root)
    kept: dict[Tensor, Tensor] = {}
    linear, clear = torch.nn.functional.linear, torch.clear_autocast_cache

    def as_in_2_4(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if torch.is_autocast_enabled("cpu") and weight not in kept:
            kept[weight] = weight.to(torch.bfloat16)
        return linear(x, kept.get(weight, weight), bias)

    def forget() -> None:
        kept.clear()
        clear()

    monkeypatch.setattr("torch.nn.functional.linear", as_in_2_4)
    monkeypatch.setattr("torch.clear_autocast_cache", forget)
    noise: Any = torch.randn(batch.pictures_ICHW.shape, generator=torch.Generator().manual_seed(2))
    batch = dataclasses.replace(batch, pictures_ICHW=noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = task.losses(model, batch, Moment(1, 0.0, torch.Generator().manual_seed(0))).total()
    assert total is not None
    total.backward()  # type: ignore[no-untyped-call]
    learnt = gradients(model)
    without = [n for n, _ in model.named_parameters() if n not in learnt or not learnt[n].any()]
    # keys of a softmax have no bias
    assert all(name.endswith("key.bias") for name in without), without


def test_weights_are_whole_where_each_rank_decodes_other_numbers_of_steps(root: Path) -> None:
    """ZeRO 3 would wait for ever if it gathered them as modules are called."""
    assert built(root)[1].runs_in_every_part == ()
    assert talkative(build_task(captions_recipe(root))).runs_in_every_part

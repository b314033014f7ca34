"""Learning from two parts in one graph: by the formulas, without peers, shares or engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.train.contract_jobs import PARTS, Job
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.contrastive import contrastive_loss, excluded_pairs, similarity
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.pretrain import PretrainTask
from xvlm_core.tasks.pretrain_forward import concept_views
from xvlm_core.train.optim import build_optimizer, parameter_groups, set_lr
from xvlm_core.train.parts import seed_of
from xvlm_core.train.schedule import Plan

Losses = Mapping[str, Tensor]


def contrastive_run(root: Path, job: Job, steps: int) -> list[dict[str, Any]]:
    """Lines as of a log, of ``contrastive`` alone."""

    def losses(task: PretrainTask, model: XVLM, batches: Iterator[PretrainBatch]) -> Losses:
        concepts: list[Tensor] = []
        texts: list[Tensor] = []
        keys: list[Tensor] = []
        for batch in batches:
            assert batch.keys_B3 is not None
            patches = model.encode_pictures(batch.pictures_ICHW)
            states = model.encode_texts(batch.texts)
            concepts.append(model.picture_features(patches, concept_views(batch)))
            texts.append(model.text_features(states.first()))
            keys.append(batch.keys_B3)
        loss = contrastive_loss(
            similarity(torch.cat(concepts), torch.cat(texts), model.temp),
            excluded_pairs(torch.cat(keys)),
        )
        return {"contrastive": loss}

    return _run(root, job, steps, losses)


def means_run(root: Path, job: Job, steps: int) -> list[dict[str, Any]]:
    """Lines as of a log, of ``masked_lm`` and the box losses: means over the items of an update."""

    def losses(task: PretrainTask, model: XVLM, batches: Iterator[PretrainBatch]) -> Losses:
        sums: dict[str, Tensor] = {}
        items: dict[str, int] = {}
        for batch in batches:
            found = task.losses(model, batch, Moment(1, 0.0, torch.Generator())).parts
            boxes = int(batch.is_region_B.sum())
            n_items = {"masked_lm": len(batch.masked_label_M), "box_l1": boxes, "box_giou": boxes}
            for name, value in found.items():
                sums[name] = sums.get(name, torch.zeros(())) + value * n_items[name]
                items[name] = items.get(name, 0) + n_items[name]
        return {name: value / items[name] for name, value in sums.items()}

    return _run(root, job, steps, losses)


def _run(
    root: Path,
    job: Job,
    steps: int,
    losses: Callable[[PretrainTask, XVLM, Iterator[PretrainBatch]], Losses],
) -> list[dict[str, Any]]:
    recipe = job.recipe(root)
    task = PretrainTask(recipe)
    torch.manual_seed(recipe.seed)
    model = task.build_model().train()
    assert isinstance(model, XVLM)
    groups = parameter_groups(model, recipe.optim, larger_lr_names=model.larger_lr_names)
    optimizer = build_optimizer(model, recipe.optim, groups)
    plan, feed = Plan(recipe.schedule, recipe.schedule.max_steps), task.feed()

    def batches(step: int) -> Iterator[PretrainBatch]:
        for part in range(PARTS):
            (batch,) = feed.batches(step, part)
            torch.manual_seed(seed_of(recipe.seed, step, 0, part))  # drop-out
            yield batch.to("cpu")

    lines = []
    for step in range(1, steps + 1):
        lr = recipe.optim.lr * plan.factor(step, 0.0)
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        model.clamp_temperature()
        temperature = model.temp.item()
        found = losses(task, model, batches(step))
        total = torch.stack(list(found.values())).sum()
        total.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            model.parameters(), recipe.optim.clip_norm or math.inf
        )
        optimizer.step()
        line = {name: value.item() for name, value in found.items()}
        line |= {"loss": total.item(), "grad_norm": norm.item(), "lr": lr}
        if "contrastive" in found:
            line["temperature"] = temperature
        lines.append(line)
    return lines

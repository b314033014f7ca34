"""Contrastive learning over two parts in one graph: by the formulas, without peers or engines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.train.contract_jobs import PARTS, Job
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.contrastive import contrastive_loss, excluded_pairs, similarity
from xvlm_core.tasks.pretrain import PretrainTask
from xvlm_core.tasks.pretrain_forward import concept_views
from xvlm_core.train.optim import build_optimizer, parameter_groups, set_lr
from xvlm_core.train.parts import seed_of
from xvlm_core.train.schedule import Plan


def contrastive_run(root: Path, job: Job, steps: int) -> list[dict[str, Any]]:
    """Lines as of a log, of ``contrastive`` alone."""
    recipe = job.recipe(root)
    task = PretrainTask(recipe)
    torch.manual_seed(recipe.seed)
    model = task.build_model().train()
    assert isinstance(model, XVLM)
    groups = parameter_groups(model, recipe.optim, larger_lr_names=model.larger_lr_names)
    optimizer = build_optimizer(model, recipe.optim, groups)
    plan, feed = Plan(recipe.schedule, recipe.schedule.max_steps), task.feed()
    lines = []
    for step in range(1, steps + 1):
        lr = recipe.optim.lr * plan.factor(step, 0.0)
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        model.clamp_temperature()
        temperature = model.temp.item()
        concepts: list[Tensor] = []
        texts: list[Tensor] = []
        keys: list[Tensor] = []
        for part in range(PARTS):
            (batch,) = feed.batches(step, part)
            assert isinstance(batch, PretrainBatch)
            batch = batch.to("cpu")
            assert batch.keys_B3 is not None
            torch.manual_seed(seed_of(recipe.seed, step, 0, part))  # drop-out
            patches = model.encode_pictures(batch.pictures_ICHW)
            states = model.encode_texts(batch.texts)
            concepts.append(model.picture_features(patches, concept_views(batch)))
            texts.append(model.text_features(states.first()))
            keys.append(batch.keys_B3)
        loss = contrastive_loss(
            similarity(torch.cat(concepts), torch.cat(texts), model.temp),
            excluded_pairs(torch.cat(keys)),
        )
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(
            model.parameters(), recipe.optim.clip_norm or math.inf
        )
        optimizer.step()
        lines.append(
            {
                "contrastive": loss.item(),
                "loss": loss.item(),
                "temperature": temperature,
                "grad_norm": norm.item(),
                "lr": lr,
            }
        )
    return lines

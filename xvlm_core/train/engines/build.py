"""From a recipe to an engine with its model, on this rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from xvlm_core.config.schema import Recipe, TrainSection
from xvlm_core.errors import ConfigError
from xvlm_core.models.checkpointing import checkpoint_activations
from xvlm_core.tasks.base import Task
from xvlm_core.train.devices import Precision, pick_device, pick_precision
from xvlm_core.train.ema import Ema
from xvlm_core.train.engines.base import Engine
from xvlm_core.train.engines.torch import TorchEngine
from xvlm_core.train.optim import build_optimizer, parameter_groups
from xvlm_core.train.ranks import Ranks
from xvlm_core.train.saving import load_live_weights


@dataclass(frozen=True)
class Prepared:
    """What an engine is made of, and what is worth saying of it.

    Attributes:
        model: on its device, with its weights.
        optimizer: over its parameters.
        device: of this rank.
        precision: of the forward pass.
        average: the moving average of the weights, if there is one.
        notes: lines for the console.
        first_weights: where each tensor came from; empty for a run that goes on.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    device: torch.device
    precision: Precision
    average: Ema | None
    notes: list[str]
    first_weights: list[str]


def prepare(task: Task, recipe: Recipe, ranks: Ranks, continued: Path | None) -> Prepared:
    """Build the model, give it its weights, and put it on its device. Speaks to no other rank.

    Args:
        task: builds and loads its model.
        recipe: of the run.
        ranks: the processes.
        continued: the checkpoint whose weights the run continues with; None: first weights.

    Raises:
        MissingToolError: DeepSpeed or a GPU is asked for and is not there.
        ConfigError: the engine cannot do what is asked for.
        CheckpointError: weights are missing, damaged, or of another model.
    """
    settings = recipe.train
    device = pick_device(settings.device, ranks.place)
    precision = pick_precision(settings.precision, device)
    if settings.engine == "deepspeed":
        _require_deepspeed(settings, device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(recipe.seed)
    model = task.build_model(first_weights=continued is None)
    notes = list(task.notes) if continued is None else []
    first = list(getattr(task, "first_weights", [])) if continued is None else []
    if continued is not None:
        load_live_weights(task, model, continued)
    model.to(device).train()
    if settings.activation_checkpointing and not checkpoint_activations(model, on=True):
        notes.append("activation checkpointing: this model has nothing to apply it to")
    groups = parameter_groups(
        model,
        recipe.optim,
        compat=recipe.compat,
        larger_lr_names=getattr(model, "larger_lr_names", frozenset()),
        name_of=getattr(task, "official_name", str),
    )
    notes += [f"parameters: {group.line()}" for group in groups if group.names]
    optimizer = build_optimizer(model, recipe.optim, groups, compat=recipe.compat)
    average = None if settings.ema is None else Ema(model, settings.ema)
    return Prepared(model, optimizer, device, precision, average, notes, first)


def _require_deepspeed(settings: TrainSection, device: torch.device) -> None:
    from xvlm_core.train.engines.deepspeed_setup import import_deepspeed

    if settings.ema is not None:
        raise ConfigError(
            "the moving average needs the whole weights after each update, which DeepSpeed shares "
            "out",
            where="train.ema",
            try_="train.ema=null, or train.engine=torch",
        )
    import_deepspeed(device)


def build_engine(prepared: Prepared, recipe: Recipe, ranks: Ranks) -> Engine:
    """The engine of a recipe. All ranks call it together: it speaks to the others."""
    settings, device, precision = recipe.train, prepared.device, prepared.precision
    if settings.engine == "torch":
        scale = settings.loss_scale
        model, optimizer = prepared.model, prepared.optimizer
        return TorchEngine(model, optimizer, device, precision, ranks, scale)
    from xvlm_core.train.engines.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(prepared.model, prepared.optimizer, settings, device, precision, ranks)

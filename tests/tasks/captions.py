"""Recipes of captioning over painted pictures, and a model folder that writes something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.tasks.recipes import merged, recipe
from xvlm_core.config.schema import Recipe
from xvlm_core.models.captioner import Captioner
from xvlm_core.tasks.recipe_task import RecipeTask
from xvlm_core.train.synthetic import task_without_data

LENGTH = 12


def captions_recipe(root: Path, **changes: Any) -> Recipe:
    """Of the task ``captioning`` over the store ``captions``."""
    tree = {
        "task": "captioning",
        "data": {
            "regions": None,
            "images": {"batch_size": 4},
            "validation": ["captions"],
            "validation_split": "val",
        },
        "text": {"max_tokens": 20},
        "scoring": {"max_length": LENGTH},
    }
    return recipe(root, **merged(tree, changes))


def lm_recipe(root: Path, **changes: Any) -> Recipe:
    """Of the task ``caption_pretrain``."""
    tree = {
        "task": "caption_pretrain",
        "data": {"regions": None, "images": {"batch_size": 4}},
        "text": {"max_tokens": 20},
    }
    return recipe(root, **merged(tree, changes))


def second_stage(root: Path, **changes: Any) -> Recipe:
    """The same, where captions are drawn and rewarded."""
    tree = {
        "captioning": {"stage": "self_critical", "self_critical": {"samples": 3}},
        "init": {"checkpoint": "somewhere"},
    }
    return captions_recipe(root, **merged(tree, changes))


def talkative(task: RecipeTask, seed: int = 4) -> Captioner:
    """A model that learnt nothing, and says different things of different pictures."""
    torch.manual_seed(seed)
    model = task.build_model()
    assert isinstance(model, Captioner)
    with torch.no_grad():
        model.text.embeddings.word.weight.normal_(std=1.0)
        for layer in model.text.layers:
            if layer.cross_attention is not None:
                layer.cross_attention.output.weight.mul_(40)
    return model


def write_captioner(folder: Path, task: str = "captioning") -> Path:
    """A model folder of such a model."""
    make = captions_recipe if task == "captioning" else lm_recipe
    made = task_without_data(make(folder))
    made.save_model(talkative(made), folder)
    return folder

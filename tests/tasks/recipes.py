"""Recipes of a very small model over painted stores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.data.painted import painted_record, painted_store
from xvlm_core.config.schema import Recipe
from xvlm_core.data.records import Record
from xvlm_core.data.samples import BoxXYXY

MODEL: dict[str, Any] = {
    "size": "tiny",
    "overrides": {
        "vision": {"image_size": 64, "embed_dim": 16, "num_heads": [2], "depths": [1]},
        "text": {
            "hidden_size": 16,
            "num_heads": 2,
            "num_layers": 2,
            "fusion_layer": 1,
            "intermediate_size": 32,
        },
        "embed_dim": 8,
    },
}

BOXES: list[BoxXYXY] = [(0.0, 0.0, 30.0, 30.0), (60.0, 20.0, 110.0, 80.0)]
COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle", "star")


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    out = dict(tree)
    for key, value in changes.items():
        known = out.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            value = merged(known, value)
        out[key] = value
    return out


def recipe(root: Path, **changes: Any) -> Recipe:
    """A pre-training recipe over the stores ``captions`` and ``regions``, with changes."""
    tree: dict[str, Any] = {
        "task": "pretrain",
        "seed": 3,
        "model": MODEL,
        "data": {
            "root": str(root),
            "images": {"stores": ["captions"], "batch_size": 3},
            "regions": {"stores": ["regions"], "max_images": 2, "absent": 1},
            "augment": False,
            "workers": 0,
        },
        "text": {"tokenizer": "world", "max_words": 12, "max_tokens": 12},
        "schedule": {"max_steps": 10},
    }
    return Recipe.model_validate_json(json.dumps(merged(tree, changes)))


def grounding_recipe(root: Path, **changes: Any) -> Recipe:
    tree = {
        "task": "grounding",
        "data": {
            "images": None,
            "regions": {"caption": False},
            "validation": ["regions"],
            "validation_split": "val",
        },
    }
    return recipe(root, **merged(tree, changes))


def records(root: Path, n: int, split: str = "train", **more: Any) -> list[Record]:
    """Records with two regions, two captions and one absent phrase each."""
    made = []
    for i in range(n):
        colour, other = COLOURS[i % 5], COLOURS[(i + 1) % 5]
        shape, second = SHAPES[i % 4], SHAPES[(i + 1) % 4]
        made.append(
            painted_record(
                root,
                f"{split}-{i}",
                [(f"{colour} {shape}", BOXES[0]), (f"{other} {second}", BOXES[1])],
                captions=(f"a {colour} {shape} and a {other} {second}", f"a {shape}"),
                absent=(f"{COLOURS[(i + 3) % 5]} {SHAPES[(i + 2) % 4]}",),
                split=split,
                **more,
            )
        )
    return made


def write_stores(root: Path, train: int = 7, val: int = 3) -> None:
    """The stores ``captions`` and ``regions`` under ``root``, over the same pictures."""
    pictures = root / "pictures"
    made = records(pictures, train) + records(pictures, val, "val")
    for name in ("captions", "regions"):
        painted_store(root / name, pictures, made)


def store(root: Path, name: str, made: Sequence[Record]) -> None:
    painted_store(root / name, root / "pictures", made)

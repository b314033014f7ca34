"""Pairs of painted pictures with statements, and recipes over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.data.painted import paint, painted_record, painted_store
from tests.tasks.recipes import merged, recipe
from xvlm_core.config.schema import Recipe
from xvlm_core.data.records import Record, Statement
from xvlm_core.data.store import Store
from xvlm_core.train.synthetic import task_without_data

LEFT, RIGHT = (0.0, 0.0, 30.0, 90.0), (90.0, 0.0, 120.0, 90.0)


def pair(
    root: Path,
    name: str,
    *,
    text: str = "both pictures contain a red circle",
    label: bool | None = True,
    pictures: tuple[str, str] | None = None,
    split: str = "train",
    **meta: object,
) -> Record:
    """The left picture is bright at its left edge in channel 0, the right one in channel 1."""
    names = pictures or (f"{name}-left.png", f"{name}-right.png")
    paint(root / names[0], 120, 90, [LEFT])
    paint(root / names[1], 120, 90, [(0.0, 0.0, 0.0, 0.0), LEFT])
    return Record(
        id=name,
        images=names,
        width=120,
        height=90,
        statement=Statement(text, label),
        split=split,
        source="painted",
        meta=dict(meta),
    )


def write_pairs(root: Path, train: int = 6, val: int = 5, **more: Any) -> Store:
    """The store ``pairs`` under ``root``: statements true and false in turn."""
    pictures = root / "pictures"
    made = [pair(pictures, f"t{i}", label=bool(i % 2), **more) for i in range(train)]
    made += [pair(pictures, f"v{i}", label=bool(i % 2), split="val", **more) for i in range(val)]
    return painted_store(root / "pairs", pictures, made)


def write_pair_model(folder: Path, *, task: str = "nlvr2") -> Path:
    """A model folder of a model that learnt nothing, and answers differently to each pair."""
    data = {"regions": None, "images": None, "pairs": {"stores": ["pairs"]}}
    if task == "nlvr2_pretrain":
        data = {"regions": None}
    made = task_without_data(recipe(folder, task=task, data=data))
    torch.manual_seed(4)
    model = made.build_model()
    with torch.no_grad():
        model.text.embeddings.word.weight.normal_(std=1.0)
        if hasattr(model, "cls_head"):
            model.cls_head[3].weight.mul_(2)
    made.save_model(model, folder)
    return folder


def write_mixed(root: Path, singles: int, pairs: int) -> Store:
    """The store ``mixed``: single pictures and pairs, in turn."""
    pictures = root / "pictures"
    made: list[Record] = []
    for i in range(max(singles, pairs)):
        if i < singles:
            captions = (f"a red circle {i}",)
            made.append(
                painted_record(pictures, f"s{i}", [("red circle", LEFT)], captions=captions)
            )
        if i < pairs:
            made.append(pair(pictures, f"p{i}"))
    return painted_store(root / "mixed", pictures, made)


def pairs_recipe(root: Path, **changes: Any) -> Recipe:
    tree = {
        "task": "nlvr2",
        "data": {
            "images": None,
            "regions": None,
            "pairs": {"stores": ["pairs"], "batch_size": 4},
            "validation": ["pairs"],
            "validation_split": "val",
        },
    }
    return recipe(root, **merged(tree, changes))

"""``--dry-run`` of the verbs that train: every value with its origin, and what it amounts to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from xvlm_cli.output import Output, table
from xvlm_core.config.resolve import Resolved, describe
from xvlm_core.config.schema import Recipe
from xvlm_core.data.files import store_place
from xvlm_core.tasks.registry import missing_stores, stores_of

# float32 weight, its gradient, and the two moments of AdamW
BYTES_PER_PARAMETER = 16


def show(resolved: Resolved, out: Output, *, start_from: Path | None) -> None:
    """Print the plan; nothing is written."""
    recipe = resolved.recipe
    rows = describe(resolved)
    stores = _stores(recipe)
    parameters = _parameters(recipe)
    steps = _steps(recipe, all(store["found"] for store in stores), start_from)
    batch = _batch(recipe)
    memory = parameters * BYTES_PER_PARAMETER
    lines = table(("key", "value", "origin"), [(r.key, _text(r.value), r.origin) for r in rows])
    lines += [
        "",
        f"recipe      {resolved.name} ({resolved.path})",
        f"parameters  {parameters:,}",
        f"steps       {f'{steps:,}' if steps is not None else _unknown_steps(recipe)}",
        f"batch       {batch['text']}",
        f"memory      {_gigabytes(memory)} for weights, gradients and AdamW; activations on top",
    ]
    source = recipe.init.checkpoint
    if source is not None:
        lines.append(f"start       {start_from or f'{source}: not there'}")
    lines.append("stores")
    lines += [f"  {_store_line(store)}" for store in stores]
    out.result(
        {
            "recipe": resolved.name,
            "path": resolved.path,
            "values": [asdict(row) for row in rows],
            "parameters": parameters,
            "steps": steps,
            "batch": batch,
            "memory_bytes": memory,
            "stores": stores,
            "start_from": start_from,
        },
        lines,
    )


def _stores(recipe: Recipe) -> list[dict[str, Any]]:
    from xvlm_core.data.store import Store
    from xvlm_core.errors import DataError

    missing = {store.name: store.command for store in missing_stores(recipe)}
    rows: list[dict[str, Any]] = []
    for name in stores_of(recipe):
        place = store_place(recipe.data.root, name)
        row: dict[str, Any] = {"name": name, "path": place, "found": name not in missing}
        if row["found"]:
            try:
                manifest = Store.of_recipe(recipe.data, name).manifest
                row |= {"records": manifest.records, "splits": manifest.splits}
            except DataError as error:
                row |= {"found": False, "problem": error.what, "command": error.try_}
        else:
            row["command"] = missing[name]
        rows.append(row)
    return rows


def _store_line(store: dict[str, Any]) -> str:
    if store["found"]:
        splits = ", ".join(f"{name} {n:,}" for name, n in store["splits"].items())
        return f"{store['name']}: {store['records']:,} records ({splits})"
    return f"{store['name']}: {store.get('problem', 'missing')}: {store['command']}"


def _parameters(recipe: Recipe) -> int:
    """Counted on a model without memory."""
    import torch

    from xvlm_core.models.sizes import ALL_HEADS, Head
    from xvlm_core.models.xvlm import XVLM
    from xvlm_core.tasks.building import model_shape, tokenizer_of

    heads: tuple[Head, ...] = ALL_HEADS
    if recipe.task == "grounding":
        from xvlm_core.tasks.grounding import HEADS

        heads = HEADS
    config = model_shape(recipe, tokenizer_of(recipe), heads)
    with torch.device("meta"):
        model = XVLM(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _steps(recipe: Recipe, ready: bool, start_from: Path | None) -> int | None:
    from xvlm_core.train.schedule import total_steps

    if recipe.schedule.max_steps is not None:
        return recipe.schedule.max_steps
    data = recipe.data
    if data.size is not None:
        per_step = (
            data.images.batch_size if data.images else data.regions and data.regions.max_images
        )
        assert per_step, "the schema wants one of the two streams"
        return total_steps(recipe.schedule, -(-data.size // per_step))
    if not ready:
        return None
    from xvlm_core.tasks.registry import build_task

    task = build_task(recipe, start_from=start_from)
    return total_steps(recipe.schedule, task.feed().steps_per_epoch)


def _unknown_steps(recipe: Recipe) -> str:
    if recipe.schedule.epochs is not None:
        return f"{recipe.schedule.epochs:g} epochs (counted when the stores are there)"
    return f"as many as {recipe.schedule.max_seconds:g} s allow"


def _batch(recipe: Recipe) -> dict[str, Any]:
    """Pictures and texts of an update in this process, and in the official run."""
    data = recipe.data
    parts, row = [], {}
    if data.images is not None:
        row["pictures"] = data.images.batch_size
        parts.append(f"{data.images.batch_size} pictures with captions")
    if data.regions is not None:
        regions = data.regions
        texts = regions.max_images * regions.max_regions
        if regions.batch_texts is not None:
            texts = min(texts, regions.batch_texts)
        row |= {"region_pictures": regions.max_images, "region_texts": texts}
        parts.append(f"{regions.max_images} pictures with up to {texts} texts of regions")
    text = (" + " if data.mix == "joint" else "; ").join(parts)
    if recipe.official_ranks > 1:
        text += f" (the official run: {recipe.official_ranks} times that, one part a GPU)"
    return {**row, "official_ranks": recipe.official_ranks, "text": text}


def _text(value: object) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e8 else f"{n_bytes / 1e6:.0f} MB"

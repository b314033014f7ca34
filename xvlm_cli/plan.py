"""``--dry-run`` of the verbs that train: every value with its origin, and what it amounts to."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xvlm_cli.output import Output, table
from xvlm_core.config.resolve import Resolved, describe
from xvlm_core.config.schema import Recipe
from xvlm_core.data.files import store_place
from xvlm_core.tasks.registry import missing_stores, stores_of
from xvlm_core.train.launch import place_of


def show(
    resolved: Resolved, out: Output, *, start_from: Path | None, ranks: int | None = None
) -> None:
    """Print the plan; nothing is written.

    Args:
        resolved: the recipe.
        out: where to.
        start_from: the model that the first weights come from.
        ranks: processes that the run would have; None: as many as the environment says.

    Raises:
        ConfigError: the ranks cannot share a batch, as the run would say; or a value does not hold.
        DataError: the file of answers that the recipe names cannot be used.
    """
    from xvlm_core.sources.answers import read_answer_list
    from xvlm_core.train.parts import settle_parts

    ranks = ranks or place_of(os.environ).world_size
    recipe = resolved.recipe
    rows = describe(resolved)
    stores = _stores(recipe)
    settle_parts(recipe, ranks)
    if recipe.scoring.answers is not None:
        read_answer_list(Path(recipe.scoring.answers))
    out.note("counting the memory and the arithmetic of an update")  # the base model: half a minute
    needs = _Needs(recipe, ranks)
    steps = _steps(recipe, all(store["found"] for store in stores), start_from)
    batch = _batch(recipe, ranks)
    expected = needs.expected(steps)
    lines = table(("key", "value", "origin"), [(r.key, _text(r.value), r.origin) for r in rows])
    lines += [
        "",
        f"recipe      {resolved.name} ({resolved.path})",
        f"parameters  {needs.parameters:,}",
        f"steps       {f'{steps:,}' if steps is not None else _unknown_steps(recipe)}",
        f"batch       {batch['text']}",
        *needs.lines(),
    ]
    if expected is not None:
        lines.append(f"expected    {expected['text']}")
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
            "parameters": needs.parameters,
            "steps": steps,
            "batch": batch,
            "memory": needs.memory(),
            "flops_per_step": needs.flops,
            "expected": expected,
            "stores": stores,
            "start_from": start_from,
        },
        lines,
    )


class _Needs:
    """Memory of a rank, and arithmetic: for the ranks that are asked for, and for the paper's."""

    def __init__(self, recipe: Recipe, ranks: int) -> None:
        from xvlm_core.train.memory import load_of

        self.recipe = recipe
        wanted = [ranks]
        if _has_paper_hardware(recipe) and recipe.official_ranks != ranks:
            wanted.append(recipe.official_ranks)
        parts = {n: recipe.train.micro_batches or n for n in wanted}
        loads = {m: load_of(recipe, m) for m in set(parts.values())}
        self.loads = {n: loads[m] for n, m in parts.items() if m % n == 0}
        self.load = self.loads[ranks]

    @property
    def parameters(self) -> int:
        return self.load.parameters

    @property
    def flops(self) -> float:
        """Of a step, forward and backward."""
        return self.load.flops

    def memory(self) -> list[dict[str, Any]]:
        """For the document: bytes of one rank by engine and part."""
        from xvlm_core.train.memory import memory_of

        return [
            {
                "ranks": ranks,
                "micro_batches": load.parts,
                "precision": load.precision,
                "texts_of": list(load.looked_at),
                "engines": [asdict(row) for row in memory_of(load, ranks)],
            }
            for ranks, load in self.loads.items()
        ]

    def lines(self) -> list[str]:
        """For people: the same in GB."""
        from xvlm_core.train.memory import in_gb, memory_of

        made = []
        head = ("engine", "weights", "gradients", "optimizer", "activations", "rest", "peak")
        for ranks, load in self.loads.items():
            of = f"one of {ranks} ranks" if ranks > 1 else "one process"
            made += ["", f"memory of {of}, {load.precision}, 10^9 bytes"]
            made += [f"  {line}" for line in table(head, in_gb(memory_of(load, ranks)))]
        texts = (
            f"those of {', '.join(self.load.looked_at)}"
            if self.load.looked_at
            else "the longest there may be (no store is here to look at)"
        )
        made += [
            "  activations: of one part of the batch, counted with the CPU's kernels; texts:",
            f"  {texts}",
            "  rest: libraries and workspace; peak: the most at once, less than the sum, since",
            "  activations go while gradients come",
            "",
            f"arithmetic  {self.flops:.3g} operations a step (forward, times three)",
        ]
        return made

    def expected(self, steps: int | None) -> dict[str, Any] | None:
        """Days on the paper's hardware."""
        from xvlm_core.train.memory import A100_FLOPS, PAPER_UTILISATION, days

        if not _has_paper_hardware(self.recipe) or steps is None:
            return None
        gpus = self.recipe.official_ranks
        found = days(self.flops, steps, gpus)
        return {
            "days": found,
            "gpus": gpus,
            "gpu": "A100",
            "flops_per_gpu": A100_FLOPS,
            "utilisation": PAPER_UTILISATION,
            "text": f"{found:.1f} days on {gpus} A100: {self.flops:.3g} operations x {steps:,} "
            f"steps / ({gpus} x {A100_FLOPS:.3g} a second x {PAPER_UTILISATION:.2%}); that share "
            "makes the paper's 3.5 days of 4m",
        }


def _has_paper_hardware(recipe: Recipe) -> bool:
    return recipe.task == "pretrain" and recipe.official_ranks > 1


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


def _steps(recipe: Recipe, ready: bool, start_from: Path | None) -> int | None:
    from xvlm_core.train.schedule import total_steps

    if recipe.schedule.max_steps is not None:
        return recipe.schedule.max_steps
    data = recipe.data
    if data.size is not None:
        per_step = (
            data.images.batch_size
            if data.images
            else data.regions.max_images
            if data.regions
            else data.pairs.batch_size
            if data.pairs
            else data.questions and data.questions.batch_size
        )
        assert per_step, "the schema wants one of the streams"
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


def _batch(recipe: Recipe, ranks: int) -> dict[str, Any]:
    """Pictures and texts of an update over all ranks, and how they share it."""
    data, parts = recipe.data, recipe.train.micro_batches or ranks
    said: list[str] = []
    row: dict[str, Any] = {}
    if data.images is not None:
        row["pictures"] = data.images.batch_size
        said.append(f"{data.images.batch_size:,} pictures with captions")
    if data.regions is not None:
        regions = data.regions
        texts = regions.max_images * regions.max_regions
        if regions.batch_texts is not None:
            texts = min(texts, regions.batch_texts)
        row |= {"region_pictures": regions.max_images, "region_texts": texts}
        said.append(f"{regions.max_images:,} pictures with up to {texts:,} texts of regions")
    if data.pairs is not None:
        row["pairs"] = data.pairs.batch_size
        said.append(f"{data.pairs.batch_size:,} pairs of pictures")
    if data.questions is not None:
        row["question_pictures"] = data.questions.batch_size
        most = data.questions.per_picture
        n = f"up to {most}" if most else "all"
        said.append(f"{data.questions.batch_size:,} pictures with {n} of their questions each")
    text = (" + " if data.mix == "joint" else "; ").join(said)
    if parts > 1:
        one = data.mix == "joint" or len(said) == 1
        text += "; in" if one else "; each in"
        text += f" {parts} parts, "
        if ranks == 1:
            text += "one after the other"
        elif parts == ranks:
            text += "one on each rank"
        else:
            text += f"{parts // ranks} on each of {ranks} ranks, one after the other"
    return {
        **row,
        "ranks": ranks,
        "micro_batches": parts,
        "official_ranks": recipe.official_ranks,
        "text": text,
    }


def _text(value: object) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )

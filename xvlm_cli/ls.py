"""``xvlm ls``: runs, recipes, tasks, stores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xvlm_cli import output as outputs
from xvlm_cli.options import JsonOption, QuietOption, runs_root
from xvlm_cli.output import table

KINDS = ("runs", "recipes", "tasks", "stores")


def _complete(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def ls(
    what: Annotated[
        str, typer.Argument(help="runs, recipes, tasks or stores.", autocompletion=_complete)
    ] = "runs",
    data: Annotated[Path, typer.Option("--data", help="Folder of the stores.")] = Path("data"),
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List runs (newest first), recipes, tasks or stores."""
    out = outputs.begin("ls", json_document=json_document, quiet=quiet)
    from xvlm_core.errors import UsageError

    if what not in KINDS:
        raise UsageError(f"cannot list {what!r}", try_=f"xvlm ls {' | '.join(KINDS)}")
    listings = {"runs": _runs, "recipes": _recipes, "tasks": _tasks}
    rows, header, empty = listings[what]() if what in listings else _stores(data, out)
    lines = table(header, [[row.get(name) for name in header] for row in rows]) if rows else [empty]
    out.result({what: rows}, lines)


Listing = tuple[list[dict[str, Any]], tuple[str, ...], str]


def _runs() -> Listing:
    from xvlm_core.train import checkpoint, runs

    rows = []
    for run in runs.list_runs():
        steps = checkpoint.list_steps(run.checkpoints)
        best = run.best()
        rows.append(
            {
                "run": str(run.folder),
                "task": run.task,
                "recipe": run.recipe,
                "size": run.size,
                "status": run.status,
                "step": steps[-1] if steps else None,
                "best": None if best is None else round(best.value, 4),
                "best_step": None if best is None else best.step,
                "score": None if best is None else best.score,
                "created": run.created,
            }
        )
    header = ("run", "task", "recipe", "size", "status", "step", "best", "score")
    return rows, header, f"no runs in {runs_root()}/  (xvlm pretrain, finetune or demo makes one)"


def _recipes() -> Listing:
    from xvlm_core.config.recipes import find_recipe, recipe_names
    from xvlm_core.config.yaml_tree import load_mapping

    rows = []
    for name in recipe_names():
        _, file = find_recipe(name)
        tree = load_mapping(file.read_text(encoding="utf-8"), name).tree
        rows.append({"recipe": name, "task": tree["task"], "about": tree.get("about", "")})
    return rows, ("recipe", "task", "about"), "no recipes are installed"


def _tasks() -> Listing:
    from xvlm_core.tasks.registry import TASKS

    rows = [{"task": name, "about": about} for name, about in TASKS.items()]
    return rows, ("task", "about"), "no tasks"


def _stores(root: Path, out: outputs.Output) -> Listing:
    from xvlm_core.data.store import Store
    from xvlm_core.errors import DataError

    rows = []
    folders = sorted(root.iterdir()) if root.is_dir() else []
    for folder in folders:
        if not (folder / "manifest.json").is_file():
            continue
        try:
            manifest = Store.open(folder).manifest
        except DataError as error:
            out.warn(error.what)
            continue
        splits = ", ".join(f"{name} {n:,}" for name, n in manifest.splits.items())
        row = {"store": str(folder), "source": manifest.source, "records": manifest.records}
        rows.append({**row, "splits": splits, "by_split": dict(manifest.splits)})
    empty = f"no stores in {root}/  (xvlm prepare-data makes one)"
    return rows, ("store", "source", "records", "splits"), empty

"""``xvlm validate``: a store, a run, a model folder or a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xvlm_cli import output as outputs
from xvlm_cli.options import JsonOption, QuietOption
from xvlm_cli.output import Output
from xvlm_cli.progress import Progress

SHOWN = 20


def validate(
    place: Annotated[
        str, typer.Argument(metavar="PATH", help="A store, run, checkpoint, model or recipe.")
    ],
    decode: Annotated[
        bool, typer.Option("--decode", help="Store: decode every picture, not only its header.")
    ] = False,
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check that something is whole: counts, checksums, pictures, manifests, schema."""
    out = outputs.begin("validate", json_document=json_document, quiet=quiet)
    from xvlm_core.config.recipes import looks_like_path, recipe_names
    from xvlm_core.errors import DataError
    from xvlm_core.weights.folder import CONFIG

    path = Path(place).expanduser()
    names = {part for full in recipe_names() for part in (full, full.partition("/")[2])}
    if (path / "manifest.json").is_file():
        _store(path, out, decode=decode)
    elif (path / "run.json").is_file():
        _run(path, out)
    elif (path / CONFIG).is_file() or (path / "MANIFEST.json").is_file():
        _model(path, out)
    elif (path.is_file() and looks_like_path(place)) or place in names:
        _recipe(place, out)
    else:
        what = "is no store, run, model folder or recipe" if path.exists() else "does not exist"
        raise DataError(
            f"{path} {what}", where=str(path.absolute()), try_="xvlm ls stores, or xvlm ls runs"
        )


def _store(folder: Path, out: Output, *, decode: bool) -> None:
    from xvlm_core.data.boxes import box_problem
    from xvlm_core.data.images import PictureError, picture_size, read_picture
    from xvlm_core.data.store import Store
    from xvlm_core.errors import DataError

    store = Store.open(folder)
    store.verify()
    progress = Progress(quiet=out.quiet)
    problems: list[str] = []
    splits: dict[str, int] = {}
    for i in range(len(store)):
        record = store[i]
        splits[record.split] = splits.get(record.split, 0) + 1
        for which, name in enumerate(record.images):
            try:
                path = store.picture_path(record, which)
                size = read_picture(path).size if decode else picture_size(path)
            except PictureError as error:
                problems.append(f"{record.id}: {name}: {error.reason}")
                continue
            if which == 0 and size != (record.width, record.height):
                problems.append(
                    f"{record.id}: {name}: {size[0]} x {size[1]} pixels, the record says "
                    f"{record.width} x {record.height}"
                )
        for region in record.regions:
            reason = box_problem(region.box_xyxy_px, record.width, record.height)
            if reason is not None:
                box = list(region.box_xyxy_px)
                problems.append(f"{record.id}: box {box} of {region.text!r}: {reason}")
        progress(i + 1, len(store), "records")
    progress.close()
    if splits != dict(store.manifest.splits):
        problems.append(f"splits {splits}, the manifest says {dict(store.manifest.splits)}")
    for item, count in store.manifest.counts.items():
        if count["read"] != count["kept"] + sum(count["dropped"].values()):
            problems.append(f"{item}: read is not kept + dropped")
    value = {
        "kind": "store",
        "path": folder,
        "records": len(store),
        "splits": splits,
        "counts": store.manifest.counts,
        "problems": problems,
    }
    done = f"{folder}: a whole store, {len(store):,} records"
    out.result(value, [done, "checksums, records, boxes and pictures hold"] if not problems else "")
    if problems:
        more = len(problems) - SHOWN
        raise DataError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the store {folder}",
            details=problems[:SHOWN]
            + ([f"and {more} more (--json lists all)"] if more > 0 else []),
            where=f"pictures from {store.image_root}",
            try_=f"put the pictures back, or again: {store.manifest.command} --overwrite",
        )


def _run(folder: Path, out: Output) -> None:
    import json

    from xvlm_core.config.resolve import resolve
    from xvlm_core.errors import CheckpointError
    from xvlm_core.train import checkpoint, runs
    from xvlm_core.weights.folder import read_info

    run = runs.read(folder)
    problems: list[str] = []
    steps = checkpoint.list_steps(run.checkpoints)
    resolve(str(run.recipe_file))
    for step in steps:
        path = run.checkpoints / checkpoint.folder_name(step)
        try:
            checkpoint.verify(path)
            read_info(path)
        except CheckpointError as error:
            problems.append(error.what)
    lines = run.metrics.read_text(encoding="utf-8").splitlines() if run.metrics.is_file() else []
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            problems.append(f"{run.metrics.name}:{number} is not a line of metrics")
    value: dict[str, Any] = {
        "kind": "run",
        "path": folder,
        "task": run.task,
        "status": run.status,
        "checkpoints": steps,
        "problems": problems,
    }
    done = f"{folder}: a {run.task} run ({run.status}), {len(steps)} whole checkpoints"
    out.result(value, done if not problems else "")
    if problems:
        raise CheckpointError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the run {folder}",
            details=problems[:SHOWN],
            try_=f"xvlm {'pretrain' if run.task == 'pretrain' else 'finetune'} --resume {folder}  "
            "(goes on from the newest whole checkpoint)",
        )


def _model(folder: Path, out: Output) -> None:
    from xvlm_core.train import checkpoint
    from xvlm_core.weights.folder import load_model_folder

    checked = (folder / checkpoint.MANIFEST).is_file()
    if checked:
        checkpoint.verify(folder)
    loaded = load_model_folder(folder)
    n_parameters = sum(p.numel() for p in loaded.model.parameters())
    out.result(
        {
            "kind": "model",
            "path": folder,
            "task": loaded.info.task,
            "about": loaded.info.about,
            "size": loaded.info.config.size,
            "parameters": n_parameters,
            "checksums": checked,
        },
        [
            f"{folder}: {loaded.info.about or loaded.info.task}, {n_parameters:,} parameters",
            "checksums hold" if checked else "no checksums beside it; it loads",
        ],
    )


def _recipe(name: str, out: Output) -> None:
    from xvlm_core.config.resolve import resolve

    resolved = resolve(name)
    out.result(
        {
            "kind": "recipe",
            "name": resolved.name,
            "path": resolved.path,
            "task": resolved.recipe.task,
        },
        f"{resolved.path}: a whole recipe for the task {resolved.recipe.task}",
    )

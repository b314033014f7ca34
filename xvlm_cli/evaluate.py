"""``xvlm evaluate TASK``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xvlm_cli import output as outputs
from xvlm_cli.options import (
    DownloadOption,
    DryRunOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    complete_finetune,
)
from xvlm_cli.options import complete_run as complete_model
from xvlm_cli.output import Output, table
from xvlm_cli.progress import Progress

if TYPE_CHECKING:
    from xvlm_core.data.block_cache import CacheSettings
    from xvlm_core.data.store import Store

GROUNDING = "grounding"


def evaluate(
    task: Annotated[
        str,
        typer.Argument(
            help="grounding, or a recipe of fine-tuning (its validation store).",
            autocompletion=complete_finetune,
        ),
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "-c",
            help="Run, model folder or owner/name on the hub (default: XVLM_CHECKPOINT, else the "
            "newest run that fits).",
            autocompletion=complete_model,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", "-d", help="The store (default: the recipe's).")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", "-s", help="Which records.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="At most this many pictures.")
    ] = None,
    download: DownloadOption = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write predictions here (JSON lines).")
    ] = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a model on a split of a store; each figure with its convention.

    xvlm evaluate grounding --checkpoint runs/RUN --data data/refcoco+ --split val
    """
    out = outputs.begin("evaluate", json_document=json_document, quiet=quiet)
    from xvlm_core.errors import OutputError
    from xvlm_core.inference.checkpoints import find_checkpoint

    folder, split, cache = _data(task, data, split)
    store = _store(folder, split, cache)
    if output is not None and output.exists() and not overwrite:
        raise OutputError(f"{output} exists", try_="another -o, or --overwrite")
    found = find_checkpoint(checkpoint, GROUNDING, os.environ, download=download)
    (out.warn if found.builtin else out.note)(found.origin)
    if dry_run:
        pictures = min(len(store.indices(split)), limit or sys.maxsize)
        value = {"data": folder, "split": split, "pictures": pictures, "write": output}
        lines = [f"would ask about {pictures:,} pictures of {folder}, split {split}"]
        lines += [f"would write {output}"] if output is not None else []
        out.result({**value, "model": found.origin}, lines)
        return
    predictions, dropped, about = _predict(found.folder, store, split, limit, device, out)
    _report(predictions, dropped, about, found, store, split, output, out)


def _data(
    task: str, data: str | None, split: str | None
) -> tuple[Path | str, str, CacheSettings | None]:
    """The store and the split: given, or those that the recipe of the task validates on.

    And the cache of a remote one, if a recipe tells.

    Raises:
        UsageError: no such task, or a task alone and no store.
    """
    from xvlm_core.config.recipes import looks_like_path, nearest_names, recipe_names
    from xvlm_core.config.resolve import resolve
    from xvlm_core.data.block_cache import CacheSettings
    from xvlm_core.data.files import as_place, store_place
    from xvlm_core.errors import UsageError

    if task == GROUNDING:
        if data is None:
            raise UsageError(
                "which data?", try_="xvlm evaluate grounding --data data/refcoco+ --split val"
            )
        return as_place(data), split or "val", None
    known = recipe_names("finetune")
    if task not in known and f"finetune/{task}" not in known and not looks_like_path(task):
        near = [name.partition("/")[2] for name in nearest_names(task, "finetune")]
        raise UsageError(
            f"no task {task!r}; there are {GROUNDING}, "
            + ", ".join(name.partition("/")[2] for name in known),
            try_=f"xvlm evaluate {near[0] if near else GROUNDING}",
        )
    section = resolve(task, environ=os.environ, kind="finetune").recipe.data
    if data is None and not section.validation:
        raise UsageError(f"{task} validates on no store", try_="--data STORE")
    place = store_place(section.root, section.validation[0]) if data is None else as_place(data)
    return place, split or section.validation_split, CacheSettings.of(section)


def _store(folder: Path | str, split: str, cache: CacheSettings | None) -> Store:
    from xvlm_core.data.store import Store
    from xvlm_core.errors import DataError

    store = Store.open(folder, cache)
    if not len(store.indices(split)):
        there = [name for name, n in store.manifest.splits.items() if n]
        raise DataError(
            f"{folder} has no record of split {split!r}",
            where=str(folder),
            try_=f"--split {' or '.join(there)}" if there else "xvlm ls stores",
        )
    return store


def _predict(
    folder: Path, store: Store, split: str, limit: int | None, device: str, out: Output
) -> tuple[list[dict[str, Any]], dict[str, int], dict[str, Any]]:
    import torch

    from xvlm_core.inference.predictor import Predictor
    from xvlm_core.tasks.grounding_eval import GroundingEvaluation, predict

    predictor = Predictor.from_folder(folder, device)
    info = predictor.info
    evaluation = GroundingEvaluation.of_model(
        [store], split, predictor.tokenizer, predictor.info, limit=limit
    )
    progress = Progress(quiet=out.quiet)
    predictions: list[dict[str, Any]] = []
    pictures = 0
    with torch.inference_mode():
        for batch in evaluation.batches():
            predictions += predict(predictor.model, batch.to(predictor.device))
            pictures += batch.n_pictures
            progress(pictures, len(evaluation.places), "pictures")
    progress.close()
    about = {"task": info.task, "about": info.about, "size": info.config.size}
    return predictions, dict(evaluation.dropped), about


def _report(
    predictions: list[dict[str, Any]],
    dropped: dict[str, int],
    about: dict[str, Any],
    found: Any,
    store: Store,
    split: str,
    output: Path | None,
    out: Output,
) -> None:
    import json

    from xvlm_core.errors import DataError
    from xvlm_core.tasks.grounding_eval import score
    from xvlm_core.train.files import write_atomically

    if not predictions:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        raise DataError(
            f"nothing to score in split {split!r} of {store.place}"
            + (f": {reasons}" if reasons else ": no phrase with a box"),
            where=str(store.place),
            try_=f"xvlm validate {store.place}",
        )
    for reason, n in dropped.items():
        out.warn(f"{n} phrases left out: {reason}")
    if output is not None:
        lines = (json.dumps(prediction, ensure_ascii=False) for prediction in predictions)
        with outputs.writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(output, ("\n".join(lines) + "\n").encode())
    scores = score(predictions, split)
    rows = [(name, f"{s.value:.4f}", s.n, s.convention) for name, s in scores.items()]
    text = [found.origin, f"data: {store.place}, split {split}", ""]
    text += table(("score", "value", "n", "how"), rows)
    if output is not None:
        text.append(f"predictions: {output}")
    out.result(
        {
            "task": GROUNDING,
            "model": {"folder": found.folder, "origin": found.origin, **about},
            "data": store.place,
            "split": split,
            "scores": {name: vars(s) for name, s in scores.items()},
            "dropped": dropped,
            "predictions": output,
        },
        text,
    )

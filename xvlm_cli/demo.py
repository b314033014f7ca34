"""``xvlm demo``: make a world, pre-train, fine-tune, evaluate, draw; minutes on two CPU cores."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xvlm_cli import output as outputs
from xvlm_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption
from xvlm_cli.output import Output, table
from xvlm_cli.progress import Progress
from xvlm_core.errors import OutputError, UsageError

if TYPE_CHECKING:
    from xvlm_core.data.store import Store
    from xvlm_core.inference.predictor import Predictor
    from xvlm_core.tasks.base import Scores

PRETRAIN_SHARE = 0.6
"""Share of the training time that is pre-training; the rest is fine-tuning."""

MARK = "demo.json"
"""Says that a folder is a demo's, and may be replaced by the next."""

PICTURES_SHOWN, PHRASES_SHOWN = 6, 2


@dataclass(frozen=True)
class Settings:
    """What a demo does."""

    folder: Path
    seconds: float
    pictures: int
    test_pictures: int
    seed: int


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of everything.")] = Path(
        "demo"
    ),
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, help="Training time; longer is better.")
    ] = 300.0,
    pictures: Annotated[
        int, typer.Option("--pictures", min=16, help="Training pictures that are drawn.")
    ] = 10_000,
    test_pictures: Annotated[
        int, typer.Option("--test-pictures", min=8, help="Test pictures, and as many unseen.")
    ] = 300,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**63 - 1, help="Another seed, another world.")
    ] = 0,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Make data, train, evaluate and draw: see the whole path work in minutes on two CPU cores.

    xvlm demo --seconds 600
    """
    out = outputs.begin("demo", json_document=json_document, quiet=quiet)
    settings = Settings(output, seconds, pictures, test_pictures, seed)
    if dry_run:
        share = PRETRAIN_SHARE
        out.result(
            vars(settings),
            [
                f"would draw {pictures:,} pictures into {output}/data/world",
                f"would pre-train {seconds * share:.0f} s, fine-tune {seconds * (1 - share):.0f} s",
                f"would test on {test_pictures} pictures and {test_pictures} unseen ones",
                f"would write {output}/picture.png and {output}/results.json",
            ],
        )
        return
    if not math.isfinite(seconds):
        raise UsageError(f"--seconds {seconds} is no time", try_="xvlm demo --seconds 600")
    outputs.refuse_nonempty(output, overwrite=overwrite)
    _run(settings, overwrite, out)


def _run(settings: Settings, overwrite: bool, out: Output) -> None:
    begin = time.monotonic()
    folder = settings.folder
    _claim(folder, overwrite)
    out.note(f"1/5 drawing {settings.pictures:,} pictures of coloured shapes")
    _draw_world(settings, out)
    out.note("2/5 pre-training: contrastive, matching, masked words, boxes")
    pretrained = _train("pretrain/world", settings, PRETRAIN_SHARE, None, out)
    out.note("3/5 fine-tuning: boxes of phrases, and whether they are there at all")
    tuned = _train("finetune/world", settings, 1 - PRETRAIN_SHARE, pretrained, out)
    out.note("4/5 testing on pictures and combinations never seen")
    from xvlm_core.data.store import Store
    from xvlm_core.inference.predictor import Predictor

    predictor = Predictor.from_folder(tuned)
    store = Store.open(folder / "data" / "world")
    scores = {split: _evaluate(predictor, store, split) for split in ("test", "unseen")}
    out.note("5/5 drawing the answers")
    _draw_answers(predictor, store, folder / "picture.png")
    elapsed = time.monotonic() - begin
    result = {
        "seconds": elapsed,
        "model": tuned,
        "picture": folder / "picture.png",
        "scores": {
            split: {name: vars(score) for name, score in values.items()}
            for split, values in scores.items()
        },
    }
    text = json.dumps(result, indent=2, default=str)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    out.result(result, _lines(scores, settings, tuned, elapsed))


def _claim(folder: Path, overwrite: bool) -> None:
    """Make the folder, or empty that of an earlier demo; leave the mark that says it is one.

    Raises:
        OutputError: something else is in it (the user's own data and runs have the same names), or
            it cannot be written.
    """
    from xvlm_core.train.files import json_bytes, write_atomically

    with outputs.writing(folder):
        if overwrite and folder.is_dir() and any(folder.iterdir()):
            if not (folder / MARK).is_file():
                raise OutputError(
                    f"{folder} is not the folder of a demo (it has no {MARK}): not overwritten",
                    try_="another -o",
                )
            _forget(folder)
        folder.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["xvlm", *sys.argv[1:]])
        write_atomically(folder / MARK, json_bytes({"schema": 1, "command": command}))


def _forget(folder: Path) -> None:
    """Remove what an earlier demo left, and nothing else."""
    from xvlm_core.train.files import locked, remove_tree

    for run in (folder / "runs" / "pretrain", folder / "runs" / "grounding"):
        if run.is_dir():
            with locked(run):
                remove_tree(run)
    if (folder / "data" / "world").is_dir():
        remove_tree(folder / "data" / "world")
    for name in ("results.json", "picture.png"):
        (folder / name).unlink(missing_ok=True)
    for name in ("picture.png", "results.json"):
        (folder / name).unlink(missing_ok=True)


def _draw_world(settings: Settings, out: Output) -> None:
    from xvlm_core.sources.prepare import prepare

    progress = Progress(quiet=out.quiet)
    prepare(
        "world",
        settings.folder / "data" / "world",
        {
            "train": settings.pictures,
            "val": min(100, settings.test_pictures),
            "test": settings.test_pictures,
            "unseen": settings.test_pictures,
            "seed": settings.seed,
        },
        command=shlex.join(["xvlm", *sys.argv[1:]]),
        progress=progress,
    )
    progress.close()


def _train(
    recipe_name: str, settings: Settings, share: float, start_from: Path | None, out: Output
) -> Path:
    """Train a recipe for its share of the time; the best (else newest) checkpoint."""
    from xvlm_core.config.resolve import resolve
    from xvlm_core.tasks.registry import build_task, fingerprints
    from xvlm_core.train import runs
    from xvlm_core.train.session import train
    from xvlm_core.train.telemetry import console_telemetry

    flags: dict[str, Any] = {
        "data.root": str(settings.folder / "data"),
        "schedule.max_steps": None,
        "schedule.max_seconds": settings.seconds * share,
        "init.checkpoint": None,
        "seed": settings.seed,
    }
    recipe = resolve(recipe_name, (), flags, {}).recipe
    task = build_task(recipe, start_from=start_from)
    run = runs.create(
        settings.folder / "runs" / recipe.task,
        recipe=recipe,
        recipe_name=recipe_name,
        command=shlex.join(["xvlm", *sys.argv[1:]]),
        started_from=None if start_from is None else str(start_from),
        stores=fingerprints(recipe),
    )
    telemetry = console_telemetry(quiet=out.quiet)
    try:
        result = train(task, recipe, run, resume=False, telemetry=telemetry)
    finally:
        telemetry.close()
    if result.interrupted_by is not None:
        raise outputs.Interrupted(
            f"stopped by signal {result.interrupted_by}", result.interrupted_by, try_="xvlm demo"
        )
    checkpoint = run.checkpoint()
    assert checkpoint is not None, "a finished run has a checkpoint"
    return checkpoint


def _evaluate(predictor: Predictor, store: Store, split: str) -> Scores:
    import torch

    from xvlm_core.tasks import grounding_eval

    evaluation = grounding_eval.GroundingEvaluation.of_model(
        [store], split, predictor.tokenizer, predictor.info
    )
    with torch.no_grad():
        predictions = [
            answer
            for batch in evaluation.validation()
            for answer in grounding_eval.predict(predictor.model, batch.to(predictor.device))
        ]
    return grounding_eval.score(predictions, split)


def _draw_answers(predictor: Predictor, store: Store, path: Path) -> None:
    """One sheet of unseen pictures: phrases that are there, and one that is not."""
    from PIL import Image

    from xvlm_core.data.images import read_picture
    from xvlm_core.inference.draw import annotate, save_png

    panels = []
    for index in store.indices("unseen")[:PICTURES_SHOWN]:
        record = store[int(index)]
        step = max(1, len(record.regions) // PHRASES_SHOWN)
        phrases = [region.text for region in record.regions[::step][:PHRASES_SHOWN]]
        image = read_picture(store.picture(record))
        answers = predictor.ground(image, [*phrases, *record.absent[:1]])
        panels.append(annotate(image, answers))
    columns = 3
    width, height = panels[0].size
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for number, panel in enumerate(panels):
        sheet.paste(panel, (number % columns * width, number // columns * height))
    save_png(sheet, path)


def _lines(
    scores: dict[str, Scores], settings: Settings, model: Path, elapsed: float
) -> Sequence[str]:
    """The table: every figure of both splits, one row each."""
    names = list(dict.fromkeys(name for values in scores.values() for name in values))
    names.sort(key=lambda name: name.startswith("baseline"))
    rows = [
        [
            name,
            *(f"{values[name].value:.3f}" if name in values else "-" for values in scores.values()),
        ]
        for name in names
    ]
    return [
        *table(["", *scores], rows),
        "",
        f"pictures: {settings.test_pictures} a split, none seen in training; unseen: with "
        "combinations of colour and shape that no training picture has",
        f"model    {model}",
        f"picture  {settings.folder / 'picture.png'}",
        f"figures  {settings.folder / 'results.json'}",
        f"time     {elapsed:.0f} s",
    ]

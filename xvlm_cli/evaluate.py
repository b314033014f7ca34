"""``xvlm evaluate TASK``: a model, or saved predictions, scored on splits of a store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

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
from xvlm_cli.output import Output
from xvlm_core.tasks.evaluations import EVALUATED

if TYPE_CHECKING:
    from xvlm_cli.evaluate_files import PredictionFiles
    from xvlm_cli.evaluate_plan import Asked, Request
    from xvlm_cli.evaluate_report import Answered, KnownModel
    from xvlm_core.inference.checkpoints import FoundModel
    from xvlm_core.metrics.calibration import Temperature
    from xvlm_core.tasks.presence import HasPresence, PresenceReport
    from xvlm_core.train.launch import Place
    from xvlm_core.weights.folder import ModelInfo


def _complete(incomplete: str) -> list[str]:
    tasks = [task for task in EVALUATED if task.startswith(incomplete)]
    return [*tasks, *(name for name in complete_finetune(incomplete) if name not in tasks)]


def evaluate(
    task: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(EVALUATED)}, or a recipe of fine-tuning (its validation store).",
            autocompletion=_complete,
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Values that win over the recipe's: scoring.candidates=128"
        ),
    ] = None,
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
    split: Annotated[
        str | None,
        typer.Option(
            "--split", "-s", help="Which records: val,testA,testB; all: every split but train."
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", "-p", help="Score these (JSON lines) without a model."),
    ] = None,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Items that they lack count as wrong."),
    ] = False,
    calibrate_on: Annotated[
        str | None,
        typer.Option(
            "--calibrate-on",
            metavar="SPLIT",
            help="grounding: fit one temperature of the probabilities on this split.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="At most this many pictures (nlvr2: pairs) a split."),
    ] = None,
    download: DownloadOption = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Predictions go here (JSON lines; of several splits, a folder). Default: "
            "evaluations/ beside the model.",
        ),
    ] = None,
    no_files: Annotated[bool, typer.Option("--no-files", help="Write no predictions.")] = False,
    server_file: Annotated[
        bool,
        typer.Option(
            "--server-file",
            help="vqa: also the file of the test server, beside the predictions (where answers "
            "are hidden it is written unasked).",
        ),
    ] = False,
    java: Annotated[
        bool,
        typer.Option(
            "--java/--no-java",
            help="captioning: METEOR and SPICE, too, where Java and pycocoevalcap are there.",
        ),
    ] = True,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a model on splits of a store; each figure with its convention and 95 % interval.

    xvlm evaluate grounding --checkpoint runs/RUN --data data/refcoco+ --split val,testA,testB

    xvlm evaluate grounding --predictions FILE --data data/refcoco+ --split val
    """
    out = outputs.begin("evaluate", json_document=json_document, quiet=quiet)
    from xvlm_cli.evaluate_plan import Request
    from xvlm_core.train.launch import place_of

    request = Request(
        task=task,
        words=tuple(words or ()),
        checkpoint=checkpoint,
        data=data,
        splits=split,
        predictions=predictions,
        allow_missing=allow_missing,
        calibrate_on=calibrate_on,
        limit=limit,
        output=output,
        no_files=no_files,
        download=download,
        device=device,
        overwrite=overwrite,
        dry_run=dry_run,
        server_file=server_file,
        java=java,
    )
    place = place_of(os.environ)
    with _one_voice(place, out) as own:
        _run(request, place, own)


@contextlib.contextmanager
def _one_voice(place: Place, out: Output) -> Iterator[Output]:
    """Of several processes, rank 0 speaks, and another only of what it alone ran into."""
    from xvlm_core.errors import XvlmError

    if place.rank == 0:
        yield out
        return
    from xvlm_cli.last_words import RankOutput

    try:
        yield RankOutput(out, place.rank)
    except XvlmError as error:
        if error.raised_on_all or place.local_rank > 0:
            _leave(out, error.exit_code)
        out.json = False  # the one document is that of rank 0
        error.what = f"rank {place.rank}: {error.what}"
        raise
    _leave(out, 0)


def _leave(out: Output, code: int) -> NoReturn:
    out.json = False
    raise SystemExit(code)


def _run(request: Request, place: Place, out: Output) -> None:
    from xvlm_cli import evaluate_answers, evaluate_plan
    from xvlm_cli import evaluate_report as report
    from xvlm_cli.evaluate_files import PredictionFiles, prediction_files
    from xvlm_cli.evaluate_server import require_server

    _require_sense(request, place)
    asked = evaluate_plan.asked(request)
    require_server(asked.task, request.server_file)
    if asked.scored_as is not None:
        k = asked.scoring.candidates
        out.note(f"scoring.candidates={k}, as recipe {asked.scored_as} has it")
    if request.predictions is not None:
        answers = evaluate_answers.saved(request, asked)
        named = evaluate_answers.named_model(request, asked)
        model = None if named is None else report.known_model(named, out)
        _require_unlearnt(request, asked, model)
        info = None if model is None else model.info
        if request.dry_run:
            _say_plan(request, asked, None, info, PredictionFiles({}), out)
        elif place.rank == 0:
            answered = evaluate_answers.of_file(request, asked, answers, info)
            _report(request, asked, answered, None, model, PredictionFiles({}), out)
        return
    is_writer = place.rank == 0
    if is_writer and request.output is not None:  # before a model is looked for
        prediction_files(request, asked, None, out)
    from xvlm_core.inference.checkpoints import find_checkpoint

    found = find_checkpoint(request.checkpoint, asked.task, os.environ, download=request.download)
    (out.warn if found.builtin else out.note)(found.origin)
    known = report.known_model(found, out)
    _require_unlearnt(request, asked, known)
    files = prediction_files(request, asked, found, out) if is_writer else PredictionFiles({})
    if request.dry_run:
        _say_plan(request, asked, found, known.info, files, out)
        return
    answered = evaluate_answers.of_model(request, asked, found, place, out)
    if is_writer:
        _report(request, asked, answered, found, known, files, out)


def _require_unlearnt(request: Request, asked: Asked, model: KnownModel | None) -> None:
    """A temperature is not fitted on the split that this very model has learnt from."""
    from xvlm_cli.evaluate_plan import require_calibration

    if model is not None and model.background.trained_split is not None:
        require_calibration(asked.task, request.calibrate_on, model.background.trained_split)


def _require_sense(request: Request, place: Place) -> None:
    from xvlm_core.errors import UsageError

    if request.predictions is not None and request.output is not None:
        raise UsageError(
            "--predictions are there already: no others are made that -o could take",
            try_="leave one of them out",
        )
    if request.allow_missing and request.predictions is None:
        raise UsageError(
            "--allow-missing is about saved predictions, and none are given",
            try_="--predictions FILE",
        )
    if request.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"no such device: {request.device!r}", try_="--device cpu")
    if request.device == "cuda":
        from xvlm_cli.evaluate_answers import device_of

        device_of(request.device, place)


def _say_plan(
    request: Request,
    asked: Asked,
    found: FoundModel | None,
    info: ModelInfo | None,
    files: PredictionFiles,
    out: Output,
) -> None:
    from xvlm_cli.evaluate_answers import planned

    counts = planned(request, asked, info)
    lines = [f"would ask {asked.task} of {asked.data}"]
    if found is None:
        lines = [f"would score {request.predictions} as {asked.task} on {asked.data}"]
    for split, kinds in counts.items():
        lines.append(f"split {split}: " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.items()))
    lines += [f"would write {path}" for path in files.paths.values()]
    out.result(
        {
            "task": asked.task,
            "data": asked.data,
            "splits": counts,
            "scoring": asked.scoring,
            "write": list(files.paths.values()),
            "model": None if found is None else found.origin,
        },
        lines,
    )


# ---------------------------------------------------------------------- figures


def _report(
    request: Request,
    asked: Asked,
    answered: dict[str, Answered],
    found: FoundModel | None,
    model: KnownModel | None,
    files: PredictionFiles,
    out: Output,
) -> None:
    from xvlm_cli import evaluate_answers
    from xvlm_cli import evaluate_report as report
    from xvlm_cli.evaluate_server import write_server_files

    _require_items(asked, answered)
    paths = report.write(files, answered, out)
    answered = evaluate_answers.with_extra_scores(request, asked, answered, out)
    server = write_server_files(asked.task, paths, answered, wanted=request.server_file)
    temperature = _temperature(asked, answered)
    origin = found.origin if found is not None else f"predictions of {request.predictions}"
    value: dict[str, Any] = {
        "task": asked.task,
        "model": None,
        "data": asked.data,
        "scoring": asked.scoring,
        "temperature": None,
        "splits": {},
    }
    if model is not None:
        folder, info = None if found is None else found.folder, model.info
        about = {"task": info.task, "about": info.about, "size": info.config.size}
        value["model"] = {"folder": folder, "origin": origin, **about}
    text = [origin]
    if temperature is not None:
        assert asked.calibrate_on is not None
        split = asked.calibrate_on
        value["temperature"] = {
            "split": split,
            "predictions": paths.get(split),
            **vars(temperature),
        }
        text.append(report.temperature_line(temperature, split))
        report.warn(split, answered[split], out)
    for split in asked.splits:
        report.warn(split, answered[split], out)
        compared = report.beside_the_paper(asked, split, answered[split], model)
        presence = _presence(asked, answered[split], temperature)
        path = paths.get(split)
        value["splits"][split] = report.split_value(answered[split], compared, presence, path)
        text += ["", f"data: {asked.data}, split {split}", ""]
        if answered[split].scores:
            text += report.split_lines(answered[split], compared, presence, path)
        else:
            text += [f"{len(answered[split].predictions):,} answers; what is right is not told"]
        if split in server:
            value["splits"][split]["server_file"] = server[split]
            text.append(f"for the test server: {server[split]}")
    if len(asked.splits) == 1:  # as is usual: its figures without a detour
        value |= {"split": asked.splits[0], **value["splits"][asked.splits[0]]}
    out.result(value, text)


def _require_items(asked: Asked, answered: dict[str, Answered]) -> None:
    from xvlm_core.errors import DataError

    for split, found in answered.items():
        if found.predictions:
            continue
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in found.dropped.items())
        raise DataError(
            f"nothing to score in split {split!r} of {asked.data}"
            + (f": {reasons}" if reasons else f": no item for {asked.task}"),
            where=asked.data,
            try_=f"xvlm validate {asked.places[0]}",
        )


def _kind_with_presence(asked: Asked) -> type[HasPresence] | None:
    from xvlm_core.tasks.evaluations import evaluation_class

    kind: Any = evaluation_class(asked.task)
    return kind if hasattr(kind, "presence") else None


def _temperature(asked: Asked, answered: dict[str, Answered]) -> Temperature | None:
    from xvlm_core.tasks.presence import temperature_of

    split, kind = asked.calibrate_on, _kind_with_presence(asked)
    if split is None or kind is None:
        return None
    return temperature_of(kind, answered[split].predictions, split)


def _presence(
    asked: Asked, answered: Answered, temperature: Temperature | None
) -> PresenceReport | None:
    from xvlm_core.tasks.presence import presence_report

    kind = _kind_with_presence(asked)
    return None if kind is None else presence_report(kind, answered.predictions, temperature)

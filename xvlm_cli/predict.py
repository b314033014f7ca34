"""``xvlm predict TASK INPUT... PHRASE...``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from xvlm_cli import output as outputs
from xvlm_cli.options import DownloadOption, DryRunOption, JsonOption, OverwriteOption, QuietOption
from xvlm_cli.options import complete_run as complete_model
from xvlm_cli.predict_request import CaptionOptions, Request

TASKS = {
    "grounding": "xvlm_cli.predict_grounding",
    "retrieval": "xvlm_cli.predict_retrieval",
    "nlvr2": "xvlm_cli.predict_nlvr2",
    "vqa": "xvlm_cli.predict_vqa",
    "caption": "xvlm_cli.predict_caption",
}
"""What can be predicted, and the module that does it: its ``run(request, out)``."""

_TASK_OF = {
    "--explain": "grounding",
    "--proposals": "grounding",
    "--index": "retrieval",
    "--rebuild": "retrieval",
    "--region": "retrieval",
    "--answers": "vqa",
    "--open": "vqa",
    "--search": "caption",
    "--beams": "caption",
    "--captions": "caption",
    "--temperature": "caption",
    "--top-k": "caption",
    "--top-p": "caption",
    "--seed": "caption",
    "--max-length": "caption",
    "--min-length": "caption",
}
"""Options that one task alone has a use for."""


def _require_sense(task: str, given: Sequence[str], device: str) -> None:
    """What can be refused before a model is looked for."""
    from xvlm_core.errors import UsageError

    for option in given:
        if _TASK_OF[option] != task:
            raise UsageError(
                f"{option} is for {_TASK_OF[option]}, not for {task}", try_="leave it out"
            )
    if device not in ("auto", "cpu"):
        from xvlm_core.inference.reading import device_of

        device_of(device)


def _complete_task(incomplete: str) -> list[str]:
    return [task for task in TASKS if task.startswith(incomplete)]


def predict(
    task: Annotated[
        str,
        typer.Argument(
            help="grounding: the box of a phrase; retrieval: the pictures of a text, and the texts "
            "of a picture; nlvr2: is a statement about two pictures true? vqa: the answer "
            "of a question; caption: what it shows.",
            autocompletion=_complete_task,
        ),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT... TEXT...",
            help="Pictures, folders or globs, then texts; - reads JSON lines from stdin.",
        ),
    ] = None,
    phrase: Annotated[
        list[str] | None,
        typer.Option("--phrase", "-p", help="A phrase that is also the name of a file."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            "--checkpoint",
            "-c",
            help="Run, model folder or owner/name on the hub (default: XVLM_CHECKPOINT, else the "
            "newest run that fits, else the built-in shapes model).",
            autocompletion=complete_model,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the annotated pictures, or one .png."),
    ] = None,
    no_files: Annotated[
        bool, typer.Option("--no-files", help="Write no picture and no JSON file.")
    ] = False,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="grounding: also draw what each word looks at."),
    ] = False,
    proposals: Annotated[
        str | None,
        typer.Option("--proposals", help="grounding without boxes: a store of boxes."),
    ] = None,
    top: Annotated[
        int, typer.Option("--top", "-k", min=1, help="retrieval, vqa: answers to each question.")
    ] = 5,
    index: Annotated[
        Path | None,
        typer.Option("--index", help="retrieval: folder of the index (default: DIR/.xvlm-index)."),
    ] = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="retrieval: make the index anew.")
    ] = False,
    region: Annotated[
        bool, typer.Option("--region", help="retrieval: also which part of the picture it is.")
    ] = False,
    answers: Annotated[
        Path | None,
        typer.Option("--answers", help="vqa: file of the answers to choose from, one a line."),
    ] = None,
    open_answers: Annotated[
        bool, typer.Option("--open", help="vqa: write the answer freely, choose from no list.")
    ] = False,
    search: Annotated[
        str | None,
        typer.Option("--search", help="caption: beam, greedy or sample (default: beam)."),
    ] = None,
    beams: Annotated[
        int | None, typer.Option("--beams", min=1, help="caption: of the search (default: 3).")
    ] = None,
    captions: Annotated[
        int | None,
        typer.Option("--captions", min=1, help="caption: of each picture (default: 1)."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="caption, samples: scores are divided by it."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", min=1, help="caption, samples: of the best K words."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="caption, samples: of the best words of this probability."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="caption, samples: of the draws.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=2, help="caption: most tokens, with the prompt (20)."),
    ] = None,
    min_length: Annotated[
        int | None,
        typer.Option("--min-length", min=0, help="caption, beams: least tokens (5)."),
    ] = None,
    download: DownloadOption = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Ask a model about your own pictures.

    xvlm predict grounding image.jpg "man wearing backpack"
    """
    out = outputs.begin("predict", json_document=json_document, quiet=quiet)
    import difflib

    from xvlm_core.errors import UsageError

    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1, cutoff=0.3)
        raise UsageError(
            f"no task {task!r}; there is {', '.join(TASKS)}",
            try_=f'xvlm predict {near[0] if near else "grounding"} image.jpg "a phrase"',
        )
    given = {
        "--explain": explain,
        "--proposals": proposals is not None,
        "--index": index is not None,
        "--rebuild": rebuild,
        "--region": region,
        "--answers": answers is not None,
        "--open": open_answers,
        "--search": search is not None,
        "--beams": beams is not None,
        "--captions": captions is not None,
        "--temperature": temperature is not None,
        "--top-k": top_k is not None,
        "--top-p": top_p is not None,
        "--seed": seed is not None,
        "--max-length": max_length is not None,
        "--min-length": min_length is not None,
    }
    _require_sense(task, [option for option, is_given in given.items() if is_given], device)
    request = Request(
        task=task,
        words=tuple(words or ()),
        phrases=tuple(phrase or ()),
        checkpoint=checkpoint,
        output=output,
        no_files=no_files,
        download=download,
        device=device,
        overwrite=overwrite,
        dry_run=dry_run,
        explain=explain,
        proposals=proposals,
        top=top,
        index=index,
        rebuild=rebuild,
        region=region,
        answers=answers,
        open_answers=open_answers,
        captioning=CaptionOptions.of(
            search=search,
            beams=beams,
            captions=captions,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            max_length=max_length,
            min_length=min_length,
        ),
    )
    importlib.import_module(TASKS[task]).run(request, out)

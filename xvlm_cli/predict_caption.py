"""``xvlm predict caption``: what pictures show, in words."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvlm_cli.output import Output, table
from xvlm_cli.progress import Progress
from xvlm_cli.unreadable import raise_problems, read_in_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xvlm_cli.predict_request import CaptionOptions, Request
    from xvlm_core.inference.writing import How

_BATCH = 16
_EXAMPLE = 'xvlm predict caption "photos/*.jpg"'
_LINE = '{"image": "a.jpg"}'
_COLDEST = 1e-6
"""Of temperatures: below it a sample is what greedy search finds, and numbers overflow."""


def run(request: Request, out: Output) -> None:
    """Describe pictures."""
    from xvlm_core.inference.checkpoints import find_checkpoint

    _require_sense(request)
    paths = _read(request.words, out)
    found = find_checkpoint(request.checkpoint, "captioning", os.environ, download=request.download)
    out.note(found.origin)
    if request.dry_run:
        out.result(
            {"pictures": paths, "model": found.origin},
            [f"would describe {path}" for path in paths],
        )
        return
    _describe(paths, found, request, out)


def _require_sense(request: Request) -> None:
    """Refuse what means nothing here, before a picture or a model is looked for.

    Raises:
        UsageError: a value out of range, or a text.
    """
    from xvlm_core.errors import UsageError

    given = request.captioning
    if request.phrases:
        raise UsageError("a picture is described without a phrase", try_=_EXAMPLE)
    if request.output is not None:
        raise UsageError(
            "predict caption writes no file", try_=f"{_EXAMPLE} --json > captions.json"
        )
    if not _COLDEST <= given.temperature < math.inf:
        raise UsageError(
            f"--temperature {given.temperature:g} is not a number of at least {_COLDEST:g}",
            try_="--temperature 1, or --search greedy",
        )
    if not 0 < given.top_p <= 1:
        raise UsageError(f"--top-p {given.top_p:g} is not in (0, 1]", try_="--top-p 0.9")
    if given.search == "greedy" and given.captions > 1:
        raise UsageError(
            "a greedy search finds one caption", try_="--search beam or --search sample"
        )
    if given.search == "beam" and given.captions > given.beams:
        raise UsageError(
            f"{given.beams} beams find no {given.captions} captions",
            try_=f"--beams {given.captions}",
        )


def _read(words: Sequence[str], out: Output) -> list[Path]:
    """Pictures, each once: files, folders, globs; ``-`` reads JSON lines from standard input.

    Raises:
        UsageError: a word names no picture, or none was given.
        DataError: a picture that is not there, a folder without any, or a line that is not read.
    """
    from xvlm_cli.inputs import inputs_of
    from xvlm_cli.json_lines import URL, from_stdin
    from xvlm_core.errors import UsageError

    paths: list[Path] = []
    for word in words:
        if word == "-":
            paths += [
                line.picture(line.fields.get("image"), "no image in the line")
                for line in from_stdin(_LINE)
            ]
        elif URL.match(word):
            raise UsageError(f"{word} is a URL; nothing is fetched", try_="save the picture first")
        elif (found := inputs_of(word, out, None)) is not None:
            paths += found
        else:
            raise UsageError(f"{word!r} is neither a picture nor a folder", try_=_EXAMPLE)
    if not paths:
        raise UsageError("no picture was given", try_=_EXAMPLE)
    return list(dict.fromkeys(paths))


def _how(options: CaptionOptions) -> How:
    from xvlm_core.inference.generate import Sampling
    from xvlm_core.inference.writing import How

    return How(
        search=options.search,
        beams=options.beams,
        captions=options.captions,
        sampling=Sampling(options.temperature, options.top_k, options.top_p),
        seed=options.seed,
        max_length=options.max_length,
        min_length=options.min_length,
    )


def _describe(paths: Sequence[Path], found: Any, request: Request, out: Output) -> None:
    from xvlm_core.inference.writing import CaptionWriter

    writer = CaptionWriter.from_folder(found.folder, _how(request.captioning), request.device)
    progress = Progress(quiet=out.quiet)
    pictures: list[dict[str, Any]] = []
    problems: list[str] = []
    for batch in read_in_batches(paths, lambda path: path, _BATCH, problems):
        captions = writer.describe_many([image for _, image in batch], _BATCH)
        for (path, image), caption in zip(batch, captions, strict=True):
            size = {"width": image.width, "height": image.height}
            pictures.append({"image": path, **size, **caption.to_json()})
        progress(len(pictures), len(paths), "pictures")
    progress.close()
    if pictures:
        model = {"folder": found.folder, "origin": found.origin, "about": writer.info.about}
        out.result(
            {
                "task": "caption",
                "model": model,
                "search": request.captioning.search,
                "pictures": pictures,
                "failed": problems,
            },
            _lines(pictures, found),
        )
    raise_problems(problems, f"{len(pictures)} of {len(paths)} pictures were described")


def _lines(pictures: Sequence[dict[str, Any]], found: Any) -> list[str]:
    rows = [
        (str(row["image"]) if not place else "", one["caption"], f"{one['log_probability']:.3f}")
        for row in pictures
        for place, one in enumerate([row, *row.get("others", [])])
    ]
    header = ("picture", "caption", "log p / token")
    return [*table(header, rows), "", f"Answered by: {found.origin}"]

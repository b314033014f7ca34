"""``xvlm predict vqa``: ranked answers to questions about pictures."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from xvlm_cli.json_lines import read_all
from xvlm_cli.output import Output, table
from xvlm_cli.progress import Progress
from xvlm_cli.unreadable import raise_problems, read_in_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xvlm_cli.inputs import Item
    from xvlm_cli.predict_request import Request
    from xvlm_core.inference.answerer import Answerer

_BATCH = 16
_SHOWN = 60
"""Characters of a question for people; ``--json`` has it whole."""
_WORDS = 20
"""Unknown words that are named."""


def run(request: Request, out: Output) -> None:
    """Answer questions about pictures."""
    from xvlm_cli import inputs
    from xvlm_core.errors import DataError, UsageError
    from xvlm_core.inference.checkpoints import find_checkpoint
    from xvlm_core.sources.answers import read_answer_list

    if request.output is not None:
        raise UsageError(
            "vqa writes no files: its answers are on standard output", try_="--json > answers.json"
        )
    items = inputs.read(request.words, request.phrases, out, inputs.QUESTIONS)
    if request.open_answers and request.answers is not None:
        raise UsageError("--open needs no --answers", try_="leave one of them out")
    answers = None if request.answers is None else read_answer_list(request.answers).answers
    found = find_checkpoint(request.checkpoint, request.task, os.environ, download=request.download)
    out.note(found.origin)
    if request.dry_run:
        rows = [{"image": item.path, "questions": list(item.phrases)} for item in items]
        lines = [
            f"would ask about {item.path}: {', '.join(map(_short, item.phrases))}" for item in items
        ]
        out.result({"images": rows, "model": found.origin}, lines)
        return
    from xvlm_core.inference.answerer import Answerer

    try:
        answerer = Answerer.from_folder(
            found.folder, request.device, answers, freely=request.open_answers
        )
    except DataError as error:
        if request.answers is not None and error.where is None:  # the model tells two not apart
            error.where, error.try_ = str(request.answers), "take it out of the file"
        raise
    _answer(items, answerer, found, request.top, out)


def _answer(items: Sequence[Item], answerer: Answerer, found: Any, top: int, out: Output) -> None:
    from xvlm_core.inference.reading import read_text
    from xvlm_core.listing import some

    read = read_all(
        ((question, item.where) for item in items for question in item.phrases),
        partial(read_text, tokenizer=answerer.tokenizer, info=answerer.info),
    )
    progress = Progress(quiet=out.quiet)
    answered: list[dict[str, Any]] = []
    problems: list[str] = []
    for batch in read_in_batches(items, lambda item: item.path, _BATCH, problems):
        asked = [(image, item.phrases) for item, image in batch]
        for (item, _), answers in zip(batch, answerer.answer_many(asked, top), strict=True):
            answered.append({"image": item.path, "questions": [a.to_json() for a in answers]})
        progress(len(answered), len(items), "pictures")
    progress.close()
    unknown = dict.fromkeys(word for text in read.values() for word in text.unknown_words)
    if unknown:
        out.warn(f"words that the model does not know: {some([*map(_short, unknown)], _WORDS)}")
    for text in read.values():
        if text.cut:
            out.warn(
                f"a question is too long: {_short(text.given)!r}, {len(text.given.split())} words, "
                f"is read up to '...{text.read_as[-30:]}' (whole in --json)"
            )
    if answered:
        model = {"folder": found.folder, "origin": found.origin, "about": answerer.info.about}
        out.result(
            {"task": "vqa", "model": model, "images": answered, "failed": problems},
            _lines(answered, found),
        )
    raise_problems(problems, f"{len(answered)} of {len(items)} pictures were answered")


def _lines(answered: Sequence[dict[str, Any]], found: Any) -> list[str]:
    rows = []
    for row in answered:
        for question in row["questions"]:
            for place, answer in enumerate(question["answers"]):
                named = (row["image"], _short(question["question"])) if place == 0 else ("", "")
                rows.append((*named, _short(answer["answer"]), f"{answer['probability']:.3f}"))
    header = ("picture", "question", "answer", "probability")
    return [*table(header, rows), "", f"Answered by: {found.origin}"]


def _short(text: str) -> str:
    """A text on one line that a table has room for."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3].rstrip()}..."

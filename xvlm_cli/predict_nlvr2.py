"""``xvlm predict nlvr2``: how probably statements about two pictures are true."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from xvlm_cli.json_lines import read_all
from xvlm_cli.output import Output, table, writing
from xvlm_cli.progress import Progress
from xvlm_cli.unreadable import raise_problems
from xvlm_core.listing import some

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from xvlm_cli.pair_inputs import Pair
    from xvlm_cli.predict_request import Request

_BATCH = 16
_Shown = tuple[int, "Pair", Any, Any]
"""Number of a pair, the pair, and its two pictures."""


def run(request: Request, out: Output) -> None:
    """Judge statements about pairs of pictures."""
    from xvlm_cli import pair_inputs
    from xvlm_core.inference.checkpoints import find_checkpoint

    pairs = pair_inputs.read(request.words, request.phrases, out)
    targets: list[Path] = []
    if not request.no_files:
        targets = pair_inputs.targets(pairs, request.output, overwrite=request.overwrite)
    found = find_checkpoint(request.checkpoint, request.task, os.environ, download=request.download)
    out.note(found.origin)
    if request.dry_run:
        rows = [
            {"images": [pair.left, pair.right], "statements": list(pair.statements)}
            for pair in pairs
        ]
        lines = [f"would ask about {pair}: {', '.join(pair.statements)}" for pair in pairs]
        lines += [f"would write {target}" for target in targets]
        out.result({"pairs": rows, "write": targets, "model": found.origin}, lines)
        return
    _judge(pairs, targets, found, request.device, out)


def _judge(
    pairs: Sequence[Pair], targets: Sequence[Path], found: Any, device: str, out: Output
) -> None:
    from xvlm_core.inference.pair_judge import PairJudge
    from xvlm_core.inference.reading import read_text

    judge = PairJudge.from_folder(found.folder, device)
    read_all(
        ((statement, pair.where) for pair in pairs for statement in pair.statements),
        partial(read_text, tokenizer=judge.tokenizer, info=judge.info),
    )
    progress = Progress(quiet=out.quiet)
    answered: list[dict[str, Any]] = []
    problems: list[str] = []
    unknown: dict[str, None] = {}
    cut: dict[str, str] = {}
    for batch in _batches(pairs, problems):
        answers = judge.judge_many([(left, right, p.statements) for _, p, left, right in batch])
        for (number, pair, left, right), judgements in zip(batch, answers, strict=True):
            row: dict[str, Any] = {
                "images": [pair.left, pair.right],
                "judgements": [judgement.to_json() for judgement in judgements],
            }
            for judgement in judgements:
                unknown.update(dict.fromkeys(judgement.unknown_words))
                if judgement.cut:
                    cut[judgement.statement] = judgement.read_as
            if targets:
                row["drawn"], row["json"] = _write(
                    targets[number], left, right, judgements, row, found
                )
            answered.append(row)
        progress(len(answered), len(pairs), "pairs")
    progress.close()
    if unknown:
        out.warn(f"words that the model does not know: {', '.join(unknown)}")
    for statement, read_as in cut.items():
        out.warn(f"a statement is too long: of {statement[:40]!r}... only {read_as!r} was read")
    if answered:
        model = {"folder": found.folder, "origin": found.origin, "about": judge.info.about}
        out.result(
            {"task": "nlvr2", "model": model, "pairs": answered, "failed": problems},
            _lines(answered, found),
        )
    raise_problems(problems, f"{len(answered)} of {len(pairs)} pairs were answered", "pairs")


def _batches(pairs: Sequence[Pair], problems: list[str]) -> Iterator[list[_Shown]]:
    """Numbered pairs with their pictures; those that cannot be read go to ``problems``.

    A file that several pairs of a batch name is one picture.
    """
    from xvlm_core.data.images import PictureError, read_picture

    batch: list[_Shown] = []
    pictures: dict[Path, Any] = {}
    for number, pair in enumerate(pairs):
        try:
            for path in (pair.left, pair.right):
                if path not in pictures:
                    pictures[path] = read_picture(path)
        except PictureError as error:
            problems.append(f"pair {pair}: picture {path}: {error.reason}")
            continue
        batch.append((number, pair, pictures[pair.left], pictures[pair.right]))
        if len(batch) == _BATCH:
            yield batch
            batch, pictures = [], {}
    if batch:
        yield batch


def _write(
    target: Path, left: Any, right: Any, judgements: Sequence[Any], row: dict[str, Any], found: Any
) -> tuple[Path, Path]:
    """Both pictures with the answers and, beside them, the same as JSON."""
    from xvlm_cli.inputs import MARK, json_beside
    from xvlm_core.drawing import png_bytes
    from xvlm_core.inference.draw_pair import side_by_side
    from xvlm_core.train.files import json_bytes, write_atomically

    beside = json_beside(target)
    images = [str(image) for image in row["images"]]
    document = {"schema": MARK, **row, "images": images, "model": found.origin}
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, png_bytes(side_by_side(left, right, judgements)))
        write_atomically(beside, json_bytes({**document, "drawn": str(target)}))
    return target, beside


def _lines(answered: Sequence[dict[str, Any]], found: Any) -> list[str]:
    rows = [
        (
            *row["images"],
            judgement["statement"],
            str(judgement["answer"]).lower(),
            f"{judgement['probability']:.3f}",
        )
        for row in answered
        for judgement in row["judgements"]
    ]
    header = ("left", "right", "statement", "", "probability")
    lines = [*table(header, rows), "", f"Answered by: {found.origin}"]
    written = [str(row["drawn"]) for row in answered if "drawn" in row]
    if written:
        lines.append(f"Drawn: {some(written)}")
    return lines

"""``xvlm predict grounding``: boxes and probabilities of phrases."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from xvlm_cli.output import Output, table, writing
from xvlm_cli.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from xvlm_cli.inputs import Item
    from xvlm_cli.predict import Request

_BATCH = 16
_PROBABLE = 0.5


def run(request: Request, out: Output) -> None:
    """Find what phrases name: a box, and the probability that it is there at all."""
    from xvlm_cli import inputs
    from xvlm_core.inference.checkpoints import find_checkpoint

    items = inputs.read(request.words, request.phrases, out)
    targets: list[Path] = []
    if not request.no_files:
        targets = inputs.targets(items, request.output, overwrite=request.overwrite)
    found = find_checkpoint(request.checkpoint, request.task, os.environ, download=request.download)
    (out.warn if found.builtin else out.note)(found.origin)
    if request.dry_run:
        rows = [{"image": item.path, "phrases": list(item.phrases)} for item in items]
        lines = [f"would ask about {item.path}: {', '.join(item.phrases)}" for item in items]
        lines += [f"would write {target}" for target in targets]
        out.result({"pictures": rows, "write": targets, "model": found.origin}, lines)
        return
    _ground(items, targets, found, request.device, out)


def _ground(
    items: Sequence[Item], targets: Sequence[Path], found: Any, device: str, out: Output
) -> None:
    from xvlm_core.errors import DataError
    from xvlm_core.inference.predictor import Predictor

    predictor = Predictor.from_folder(found.folder, device)
    progress = Progress(quiet=out.quiet)
    pictures: list[dict[str, Any]] = []
    problems: list[str] = []
    unknown: dict[str, None] = {}
    cut: dict[str, str] = {}
    for batch in _batches(items, problems):
        answers = predictor.ground_many([(image, item.phrases) for _, item, image in batch])
        for (number, item, image), groundings in zip(batch, answers, strict=True):
            row: dict[str, Any] = {
                "image": item.path,
                "width": image.width,
                "height": image.height,
                "groundings": [grounding.to_json() for grounding in groundings],
            }
            for grounding in groundings:
                unknown.update(dict.fromkeys(grounding.unknown_words))
                if grounding.cut:
                    cut[grounding.phrase] = grounding.read_as
            if targets:
                row["annotated"], row["json"] = _write(
                    targets[number], image, groundings, row, found
                )
            pictures.append(row)
        progress(len(pictures), len(items), "pictures")
    progress.close()
    if unknown:
        out.warn(f"words that the model does not know: {', '.join(unknown)}")
    for phrase, read_as in cut.items():
        out.warn(f"a phrase is too long: of {phrase[:40]!r}... only {read_as!r} was read")
    if pictures:
        out.result(
            {
                "task": "grounding",
                "model": {
                    "folder": found.folder,
                    "origin": found.origin,
                    "builtin": found.builtin,
                    "about": predictor.info.about,
                },
                "pictures": pictures,
                "failed": problems,
            },
            _lines(pictures, found),
        )
    if problems:
        some = f"{len(problems)} of {len(items)} pictures" if len(items) > 1 else "the picture"
        raise DataError(
            problems[0] if len(problems) == 1 else f"{some} cannot be used",
            details=problems if len(problems) > 1 else (),
            where=f"{len(pictures)} of {len(items)} pictures were answered",
            try_="files that a picture viewer opens (JPEG, PNG, GIF, BMP, WebP, TIFF, PPM)",
        )


def _batches(items: Sequence[Item], problems: list[str]) -> Iterator[list[tuple[int, Item, Any]]]:
    """Numbered items with their pictures; those that cannot be read go to ``problems``."""
    from xvlm_core.data.images import PictureError, read_picture

    batch: list[tuple[int, Item, Any]] = []
    for number, item in enumerate(items):
        try:
            batch.append((number, item, read_picture(item.path)))
        except PictureError as error:
            problems.append(f"picture {item.path}: {error.reason}")
            continue
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(
    target: Path, image: Any, groundings: Sequence[Any], row: dict[str, Any], found: Any
) -> tuple[Path, Path]:
    """The annotated picture and, beside it, the same as JSON."""
    from xvlm_cli.inputs import MARK, json_beside
    from xvlm_core.drawing import png_bytes
    from xvlm_core.inference.draw import annotate
    from xvlm_core.train.files import json_bytes, write_atomically

    beside = json_beside(target)
    document = {"schema": MARK, **row, "image": str(row["image"]), "model": found.origin}
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, png_bytes(annotate(image, groundings)))
        write_atomically(beside, json_bytes({**document, "annotated": str(target)}))
    return target, beside


def _lines(pictures: Sequence[dict[str, Any]], found: Any) -> list[str]:
    rows = []
    for picture in pictures:
        for grounding in picture["groundings"]:
            box = ", ".join(f"{value:.1f}" for value in grounding["box_xyxy_px"])
            doubt = "" if grounding["probability"] >= _PROBABLE else "probably not there"
            row = (picture["image"], grounding["phrase"], f"{grounding['probability']:.3f}")
            rows.append((*row, f"[{box}]", doubt))
    header = ("picture", "phrase", "probability", "box (x1, y1, x2, y2 px)", "")
    lines = [*table(header, rows), "", f"Answered by: {found.origin}"]
    written = [str(p["annotated"]) for p in pictures if "annotated" in p]
    if written:
        more = f" and {len(written) - 3} more" if len(written) > 3 else ""
        lines.append(f"Drawn: {', '.join(written[:3])}{more}")
    return lines

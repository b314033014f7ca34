"""``xvlm predict grounding``: boxes and probabilities of phrases."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from xvlm_cli.json_lines import read_all
from xvlm_cli.output import Output, table, writing
from xvlm_cli.progress import Progress
from xvlm_cli.unreadable import raise_problems, read_in_batches
from xvlm_core.decision import is_probable
from xvlm_core.listing import some

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xvlm_cli.inputs import Item
    from xvlm_cli.predict_request import Request
    from xvlm_core.inference.proposals import ProposalIndex

_BATCH = 16


def run(request: Request, out: Output) -> None:
    """Find what phrases name: a box, and the probability that it is there at all."""
    from xvlm_cli import inputs
    from xvlm_core.errors import UsageError
    from xvlm_core.inference.checkpoints import PREDICT_GROUNDING, find_checkpoint

    if request.explain and request.no_files:
        raise UsageError("--explain draws, and --no-files writes no file", try_="one of them")
    items = inputs.read(request.words, request.phrases, out)
    targets: list[Path] = []
    if not request.no_files:
        targets = inputs.targets(
            items, request.output, overwrite=request.overwrite, explain=request.explain
        )
    index = _proposals(request.proposals) if request.proposals is not None else None
    found = find_checkpoint(
        request.checkpoint, PREDICT_GROUNDING, os.environ, download=request.download
    )
    (out.warn if found.builtin else out.note)(found.origin)
    if request.dry_run:
        rows = [{"image": item.path, "phrases": list(item.phrases)} for item in items]
        lines = [f"would ask about {item.path}: {', '.join(item.phrases)}" for item in items]
        written = list(targets)
        written += [inputs.explained_beside(target) for target in targets if request.explain]
        lines += [f"would write {target}" for target in written]
        out.result({"pictures": rows, "write": written, "model": found.origin}, lines)
        return
    _ground(items, targets, found, index, request, out)


def _ground(
    items: Sequence[Item],
    targets: Sequence[Path],
    found: Any,
    index: ProposalIndex | None,
    request: Request,
    out: Output,
) -> None:
    from xvlm_core.inference.predictor import Predictor
    from xvlm_core.inference.reading import read_text

    predictor = Predictor.from_folder(found.folder, request.device)
    read_all(
        ((phrase, item.where) for item in items for phrase in item.phrases),
        partial(read_text, tokenizer=predictor.tokenizer, info=predictor.info),
    )
    progress = Progress(quiet=out.quiet)
    pictures: list[dict[str, Any]] = []
    problems: list[str] = []
    unknown: dict[str, None] = {}
    cut: dict[str, str] = {}
    without: dict[str, list[Path]] = {}
    cold: list[str] = []
    numbered = list(enumerate(items))
    for batch in read_in_batches(numbered, lambda one: one[1].path, _BATCH, problems):
        boxes = None
        if index is not None:
            boxes = [_boxes(index, item, image, without) for (_, item), image in batch]
        answers = predictor.ground_many(
            [(image, item.phrases) for (_, item), image in batch],
            _BATCH,
            proposals=boxes,
            explain=request.explain,
        )
        for ((number, item), image), groundings in zip(batch, answers, strict=True):
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
                if _is_cold(grounding):
                    cold.append(f"{grounding.phrase!r} in {item.path}")
            if targets:
                if request.explain:
                    heat = groundings[0].heat
                    row["word_layer"] = None if heat is None else heat.word_layer
                    row["explained"] = str(_explain(targets[number], image, groundings))
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
    for reason, paths in without.items():
        instead = "the heat map's own box" if predictor.finds_without_boxes else "the box head"
        out.warn(f"{reason} for {some(paths)}: {instead} answers there")
    if cold:
        out.warn(f"the heat map speaks for no place, the box is a guess: {some(cold)}")
    if pictures:
        out.result(
            {
                "task": "grounding",
                "model": {
                    "folder": found.folder,
                    "origin": found.origin,
                    "builtin": found.builtin,
                    "about": predictor.info.about,
                    "finds_without_boxes": predictor.finds_without_boxes,
                    "cam_layer": predictor.layer,
                },
                "pictures": pictures,
                "failed": problems,
            },
            _lines(pictures, found, predictor.layer),
        )
    raise_problems(problems, f"{len(pictures)} of {len(items)} pictures were answered")


def _proposals(named: str) -> ProposalIndex:
    """A store (its folder), or a file: what ``ProposalIndex.of_file`` reads."""
    from pathlib import Path

    from xvlm_core.data.files import as_place
    from xvlm_core.data.store import Store
    from xvlm_core.errors import DataError
    from xvlm_core.inference.proposals import ProposalIndex

    if Path(named).is_file():
        return ProposalIndex.of_file(Path(named))
    index = ProposalIndex.of_stores([Store.open(as_place(named))])
    if not index.n_pictures:
        raise DataError(
            f"the store {named} has no proposals",
            where=named,
            try_="xvlm prepare-data proposals ...  (or without --proposals)",
        )
    return index


def _boxes(index: ProposalIndex, item: Item, image: Any, without: dict[str, list[Path]]) -> Any:
    """Those of a picture; None, and said, where there are none."""
    from xvlm_core.inference.proposals import usable

    found = index.of_picture(item.path, image.width, image.height)
    reason = found.missing
    if reason is None and not usable(found.boxes_xyxy_px, image.width, image.height):
        reason = "no proposal that is a box in the picture"
    if reason is None:
        return found.boxes_xyxy_px
    without.setdefault(reason, []).append(item.path)
    return None


def _is_cold(grounding: Any) -> bool:
    score = grounding.proposal_score
    return grounding.found_by == "no heat" or (score is not None and score <= 0)


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


def _explain(target: Path, image: Any, groundings: Sequence[Any]) -> Path:
    """Where each word looks, beside the annotated picture."""
    from xvlm_cli.inputs import explained_beside
    from xvlm_core.drawing import png_bytes
    from xvlm_core.inference.draw_explain import explain
    from xvlm_core.train.files import write_atomically

    beside = explained_beside(target)
    with writing(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(beside, png_bytes(explain(image, groundings)))
    return beside


_HOW = {
    "proposal": "the proposal with the most heat in the heat map of layer {}",
    "heat map": "found without boxes: heat map of layer {}",
    "no heat": "found without boxes: heat map of layer {}, which speaks for no place",
}


def _lines(pictures: Sequence[dict[str, Any]], found: Any, layer: int) -> list[str]:
    rows = []
    for picture in pictures:
        for grounding in picture["groundings"]:
            box = ", ".join(f"{value:.1f}" for value in grounding["box_xyxy_px"])
            doubt = "" if is_probable(grounding["probability"]) else "probably not there"
            row = (picture["image"], grounding["phrase"], f"{grounding['probability']:.3f}")
            rows.append((*row, f"[{box}]", doubt))
    header = ("picture", "phrase", "probability", "box (x1, y1, x2, y2 px)", "")
    lines = [*table(header, rows), "", f"Answered by: {found.origin}"]
    every = [grounding["found_by"] for picture in pictures for grounding in picture["groundings"]]
    for how, said in _HOW.items():
        n = every.count(how)
        if n:
            which = "" if n == len(every) else f" ({n} of {len(every)} boxes)"
            lines.append(f"Box: {said.format(layer)}{which}")
    for key, said in (("annotated", "Drawn"), ("explained", "Explained")):
        written = [picture[key] for picture in pictures if key in picture]
        if written:
            lines.append(f"{said}: {some(written)}")
    layers = [picture["word_layer"] for picture in pictures if "word_layer" in picture]
    if layers:
        words = "no layer" if layers[0] is None else f"layer {layers[0]}"
        lines.append(f"Heat maps: of whole phrases layer {layer}, of words {words}")
    return lines

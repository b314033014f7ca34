"""``xvlm predict retrieval``: the pictures of a text in a folder, or the texts of pictures.

A folder is a collection: ``predict retrieval DIR "text" ...`` ranks its pictures for each text, by
way of an index that stays in ``DIR/.xvlm-index``. Files (and patterns, which stand for files) are
asked about one by one: ``predict retrieval a.jpg "text one" "text two"`` ranks the texts of each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xvlm_cli.json_lines import read_all
from xvlm_cli.output import Output, table, writing
from xvlm_cli.progress import Progress
from xvlm_cli.unreadable import raise_problems
from xvlm_core.listing import some

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xvlm_cli.inputs import Item
    from xvlm_cli.predict_request import Request
    from xvlm_cli.retrieval_inputs import Asked
    from xvlm_core.inference.collection import Plan, Scanned
    from xvlm_core.inference.reading import ReadText
    from xvlm_core.inference.retriever import Match, Retriever
    from xvlm_core.inference.search_index import Builder, IndexFolder, SearchIndex

_PROBABLE = 0.5


def run(request: Request, out: Output) -> None:
    """Answer texts with pictures of a folder, or pictures with texts."""
    from xvlm_cli import retrieval_inputs
    from xvlm_core.errors import UsageError
    from xvlm_core.inference.checkpoints import PREDICT_RETRIEVAL, find_checkpoint
    from xvlm_core.weights.folder import read_info

    asked = retrieval_inputs.read(request.words, request.phrases, out)
    if asked.folder is None and (request.index is not None or request.rebuild):
        option = "--rebuild" if request.rebuild else "--index"
        raise UsageError(
            f"{option} is for a folder to be searched, and there are pictures alone",
            try_='xvlm predict retrieval FOLDER "a text"',
        )
    found = find_checkpoint(
        request.checkpoint, PREDICT_RETRIEVAL, os.environ, download=request.download
    )
    (out.warn if found.builtin else out.note)(found.origin)
    region = request.region
    if region and "box" not in read_info(found.folder).config.heads:
        out.warn("the model has no box head: which part of a picture it is, it cannot say")
        region = False
    if asked.folder is None:
        _rank(asked, found, request, out, region=region)
    else:
        _search(asked, asked.folder, found, request, out, region=region)


# ------------------------------------------------------------------ a folder


@dataclass(frozen=True)
class _Collection:
    """A folder to be searched, as it is, and its index, as it was."""

    place: IndexFolder
    scanned: Scanned
    index: SearchIndex | None
    builder: Builder
    todo: Plan


def _search(
    asked: Asked, root: Path, found: Any, request: Request, out: Output, *, region: bool
) -> None:
    from xvlm_cli import retrieval_inputs
    from xvlm_core.inference.collection import update
    from xvlm_core.inference.retriever import Retriever

    collection = _collection(root, found.folder, request, out)
    targets: list[Path] = []
    if not request.no_files:
        sources = [root / file.path for file in collection.scanned.files]
        targets = retrieval_inputs.targets(
            asked.texts, sources, request.output, overwrite=request.overwrite
        )
    if request.dry_run:
        _plan(asked, collection, targets, found, out)
        return
    retriever = Retriever.from_folder(found.folder, request.device)
    wanted = ((text, asked.where.get(text)) for text in asked.texts)
    texts = list(read_all(wanted, retriever.read).values())  # before the work: it may be refused
    _warn_of(texts, out)
    progress = Progress(quiet=out.quiet)
    updated = update(
        collection.place,
        collection.scanned,
        collection.index,
        collection.builder,
        retriever.picture_vectors,
        progress,
    )
    progress.close()
    n_pictures = len(updated.index.entries)
    if request.top > n_pictures:
        out.note(f"there are {n_pictures} pictures: so many answers to a text, not {request.top}")
    searched = retriever.search(texts, updated.index, root, request.top, region=region)
    queries = []
    for number, (text, matches) in enumerate(zip(texts, searched.answers, strict=True)):
        row = _query(text, matches, root, updated.index)
        if targets and matches:
            row["drawn"] = str(_draw_sheet(targets[number], text.given, row["pictures"]))
        queries.append(row)
    todo = collection.todo
    index_row = {
        "folder": collection.place.place,
        "pictures": n_pictures,
        "encoded": todo.to_encode - len(updated.problems),
        "kept": len(todo.kept) - todo.to_encode,
        "removed": todo.removed,
    }
    out.result(
        {
            "task": "retrieval",
            "direction": "text to pictures",
            "model": _model(found, retriever),
            "index": index_row,
            "queries": queries,
            "failed": [*collection.scanned.problems, *updated.problems, *searched.problems],
        },
        _lines_of_texts(queries, index_row, found),
    )
    problems = [*collection.scanned.problems, *updated.problems, *searched.problems]
    raise_problems(problems, f"{n_pictures} pictures were searched")


def _collection(root: Path, model: Path, request: Request, out: Output) -> _Collection:
    """The folder and its index; an index that does not fit is refused, unless made anew."""
    from xvlm_cli.inputs import OURS, SUFFIXES
    from xvlm_core.errors import DataError
    from xvlm_core.inference.collection import plan, scan
    from xvlm_core.inference.search_index import INDEX_FOLDER, Builder, IndexFolder, fingerprint
    from xvlm_core.weights.folder import read_info

    scanned = scan(root, SUFFIXES, OURS)
    if scanned.ours:
        out.note(f"{root}: {scanned.ours} annotated pictures are left out")
    place = (request.index or root / INDEX_FOLDER).expanduser()
    if scanned.not_entered - (place.parent == root and place.is_dir()):
        n = scanned.not_entered - (place.parent == root and place.is_dir())
        out.note(f"{root}: {n} folders that are hidden or links are not entered")
    if not scanned.files:
        raise DataError(
            f"no picture in the folder {root}",
            where=str(root.absolute()),
            details=scanned.problems[:5],
            try_="another folder; if the word is meant as a text, --phrase",
        )
    info = read_info(model)
    builder = Builder(fingerprint(model, info), info.about)
    folder = IndexFolder(place, root)
    index = None if request.rebuild else folder.read(builder)
    return _Collection(folder, scanned, index, builder, plan(scanned, index))


def _plan(
    asked: Asked, collection: _Collection, targets: Sequence[Path], found: Any, out: Output
) -> None:
    todo, place = collection.todo, collection.place.place
    n_files = len(collection.scanned.files)
    written = [str(place)] if todo.to_encode or todo.removed else []
    lines = [
        f"would encode {todo.to_encode:,} of {n_files:,} pictures: {todo.added:,} new, "
        f"{todo.changed:,} changed; {todo.removed:,} are gone",
        *(f"would look for: {text}" for text in asked.texts),
        *(f"would write {path}" for path in (*written, *targets)),
    ]
    value = {
        "texts": list(asked.texts),
        "pictures": n_files,
        "encode": todo.to_encode,
        "added": todo.added,
        "changed": todo.changed,
        "removed": todo.removed,
        "write": [*written, *targets],
        "model": found.origin,
    }
    out.result(value, lines)


def _query(
    text: ReadText, matches: Sequence[Match], root: Path, index: SearchIndex
) -> dict[str, Any]:
    pictures = []
    for rank, match in enumerate(matches, 1):
        entry = index.entries[match.number]
        row = {"rank": rank, "image": root / entry.path, **match.to_json()}
        pictures.append({**row, "width": entry.width, "height": entry.height})
    return {
        "text": text.given,
        "read_as": text.read_as,
        "unknown_words": list(text.unknown_words),
        "cut": text.cut,
        "pictures": pictures,
    }


def _draw_sheet(target: Path, text: str, pictures: Sequence[dict[str, Any]]) -> Path:
    from xvlm_core.data.images import read_picture
    from xvlm_core.drawing import png_bytes
    from xvlm_core.inference.contact_sheet import Cell, contact_sheet
    from xvlm_core.train.files import write_atomically

    cells = [
        Cell(
            read_picture(row["image"]),
            row["image"].name,
            row["probability"],
            tuple(row["box_xyxy_px"]) if "box_xyxy_px" in row else None,
        )
        for row in pictures
    ]
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, png_bytes(contact_sheet(text, cells)))
    return target


def _lines_of_texts(
    queries: Sequence[dict[str, Any]], index: dict[str, Any], found: Any
) -> list[str]:
    rows = [
        (query["text"], row["rank"], row["image"], *_scores(row))
        for query in queries
        for row in query["pictures"]
    ]
    header = ("text", "rank", "picture", *_SCORES)
    return [
        *table(*_without_empty(header, rows)),
        "",
        f"Answered by: {found.origin}",
        f"Index: {index['pictures']:,} pictures in {index['folder']}, {index['encoded']:,} of them "
        "encoded now",
        *_drawn(queries),
    ]


# ------------------------------------------------------------------ pictures


def _rank(asked: Asked, found: Any, request: Request, out: Output, *, region: bool) -> None:
    from xvlm_cli import retrieval_inputs
    from xvlm_core.inference.retriever import Retriever

    items = asked.items
    targets: list[Path] = []
    if region and not request.no_files:
        targets = retrieval_inputs.targets(
            [item.path.stem for item in items],
            [item.path for item in items],
            request.output,
            overwrite=request.overwrite,
        )
    if request.dry_run:
        rows = [{"image": item.path, "texts": list(item.phrases)} for item in items]
        lines = [f"would rank for {item.path}: {', '.join(item.phrases)}" for item in items]
        lines += [f"would write {target}" for target in targets]
        out.result({"pictures": rows, "write": targets, "model": found.origin}, lines)
        return
    retriever = Retriever.from_folder(found.folder, request.device)
    read = read_all(((text, item.where) for item in items for text in item.phrases), retriever.read)
    _warn_of(list(read.values()), out)
    ranked = retriever.rank(
        [item.path for item in items],
        [[read[text] for text in item.phrases] for item in items],
        request.top,
        region=region,
    )
    pictures = []
    for number, (item, matches) in enumerate(zip(items, ranked.answers, strict=True)):
        if matches is None:
            continue
        row = _picture(item, matches, read)
        if targets:
            row["drawn"] = str(_draw_boxes(targets[number], item.path, row["texts"]))
        pictures.append(row)
    if pictures:
        out.result(
            {
                "task": "retrieval",
                "direction": "picture to texts",
                "model": _model(found, retriever),
                "pictures": pictures,
                "failed": list(ranked.problems),
            },
            _lines_of_pictures(pictures, found),
        )
    raise_problems(ranked.problems, f"{len(pictures)} of {len(items)} pictures were answered")


def _picture(item: Item, matches: Sequence[Match], read: dict[str, ReadText]) -> dict[str, Any]:
    texts = []
    for rank, match in enumerate(matches, 1):
        text = read[item.phrases[match.number]]
        scores = {"rank": rank, "text": text.given, **match.to_json()}
        said = {"read_as": text.read_as, "unknown_words": list(text.unknown_words), "cut": text.cut}
        texts.append({**scores, **said})
    return {"image": item.path, "texts": texts}


def _draw_boxes(target: Path, picture: Path, texts: Sequence[dict[str, Any]]) -> Path:
    """The picture with the box of each text that the cross encoder looked at."""
    from xvlm_core.data.images import read_picture
    from xvlm_core.drawing import png_bytes
    from xvlm_core.inference.draw import annotate
    from xvlm_core.inference.predictor import Grounding
    from xvlm_core.train.files import write_atomically

    boxes = [
        Grounding(
            phrase=row["text"],
            box_xyxy_px=tuple(row["box_xyxy_px"]),
            probability=row["probability"],
            box_unclipped_xyxy_px=tuple(row["box_xyxy_px"]),
            read_as=row["read_as"],
        )
        for row in texts
        if "box_xyxy_px" in row
    ]
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, png_bytes(annotate(read_picture(picture), boxes)))
    return target


def _lines_of_pictures(pictures: Sequence[dict[str, Any]], found: Any) -> list[str]:
    rows = [
        (picture["image"], row["rank"], row["text"], *_scores(row))
        for picture in pictures
        for row in picture["texts"]
    ]
    header = ("picture", "rank", "text", *_SCORES)
    return [
        *table(*_without_empty(header, rows)),
        "",
        f"Answered by: {found.origin}",
        *_drawn(pictures),
    ]


# ------------------------------------------------------------------ both

_SCORES = ("probability", "similarity", "box (x1, y1, x2, y2 px)", "")


def _scores(row: dict[str, Any]) -> tuple[str, str, str, str]:
    probability = row["probability"]
    box = ", ".join(f"{value:.0f}" for value in row["box_xyxy_px"]) if "box_xyxy_px" in row else ""
    return (
        "-" if probability is None else f"{probability:.3f}",
        f"{row['similarity']:.3f}",
        f"[{box}]" if box else "",
        "probably not" if probability is not None and probability < _PROBABLE else "",
    )


def _without_empty(
    header: Sequence[str], rows: Sequence[Sequence[object]]
) -> tuple[list[str], list[list[object]]]:
    """The table without columns that say nothing in any row."""
    kept = [at for at in range(len(header)) if any(row[at] != "" for row in rows)]
    return [header[at] for at in kept], [[row[at] for at in kept] for row in rows]


def _drawn(rows: Sequence[dict[str, Any]]) -> list[str]:
    drawn = [row["drawn"] for row in rows if "drawn" in row]
    return [f"Drawn: {some(drawn)}"] if drawn else []


def _model(found: Any, retriever: Retriever) -> dict[str, Any]:
    return {
        "folder": found.folder,
        "origin": found.origin,
        "builtin": found.builtin,
        "about": retriever.info.about,
        "fingerprint": retriever.builder.fingerprint,
        "has_boxes": retriever.has_boxes,
    }


def _warn_of(texts: Sequence[ReadText], out: Output) -> None:
    unknown = dict.fromkeys(word for text in texts for word in text.unknown_words)
    if unknown:
        out.warn(f"words that the model does not know: {', '.join(unknown)}")
    for text in texts:
        if text.cut:
            out.warn(f"a text is too long: of {text.given[:40]!r}... only {text.read_as!r} is read")

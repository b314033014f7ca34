"""Your own pictures, described by JSON lines.

Two forms, also mixed. One text a line, lines of one picture being merged into one record, wherever
they stand::

    {"image": "a.jpg", "text": "a dog", "box": [10, 20, 110, 220]}
    {"image": "a.jpg", "text": "a dog runs on the beach"}

With a box the text names a part, without one it is a caption (``caption`` is another name of
``text``, and either may be a list). Or whole records, as in ``data.records`` (``captions``,
``regions``, ``absent``, ``questions``, ``images`` and ``statement``), where ``width`` and
``height`` may be left out. Boxes are those of the picture as shown (after EXIF orientation), unless
``width`` and ``height`` say that they are of the picture as stored.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from xvlm_core.data.images import PictureError
from xvlm_core.data.ledger import Item
from xvlm_core.data.records import (
    REGION_KINDS,
    Answer,
    Question,
    Record,
    Region,
    RegionKind,
    Statement,
)
from xvlm_core.data.store import StoreWriter
from xvlm_core.errors import DataError
from xvlm_core.sources.cleaning import Cleaner, Picture, PictureJob, check_pictures, corners
from xvlm_core.sources.lines import Line, LineProblem, Said, read_line
from xvlm_core.sources.registry import Progress
from xvlm_core.sources.strict_json import refuse_encoding

_BOM = b"\xef\xbb\xbf"
_CHUNK = 1024
_SLACK = 1e-6
"""Fractions may leave [0, 1] by this much: 0.1 + 0.2 + 0.7 is above 1 in floating point."""


@dataclass(frozen=True)
class _Placed:
    """A line and where it stands ("file:line")."""

    line: Line
    where: str


def image_root(options: dict[str, Any]) -> Path:
    """The folder that the pictures' paths start from.

    Raises:
        DataError: there is no such folder.
    """
    root: Path = options["images"]
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", try_="--images FOLDER")
    return root


def convert(writer: StoreWriter, options: dict[str, Any], progress: Progress) -> None:
    """Read the lines and add one record a picture (or whole record).

    Raises:
        DataError: a file is missing or is UTF-16, or (at the end) records have the same id.
    """
    root: Path = options["images"]
    cleaner = Cleaner(writer.ledger, min_box_area=options["min_box_area"])
    with ExitStack() as stack:
        files = [stack.enter_context(_open(path)) for path in options["annotations"]]
        names = [path.name for path in options["annotations"]]
        positions = _find_lines(files, names, cleaner)
        groups = iter(positions.values())
        done = 0
        while chunk := list(islice(groups, _CHUNK)):
            pictures = [_lines_of(group, files, names) for group in chunk]
            for record in _records(pictures, root, cleaner, options):
                writer.add(record)
            done += len(chunk)
            progress(done, len(positions), "pictures")


def _open(path: Path) -> IO[bytes]:
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the exit stack)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        start = file.read(4)
        refuse_encoding(path, start)
        file.seek(len(_BOM) if start.startswith(_BOM) else 0)
    except BaseException:
        file.close()
        raise
    return file


def _find_lines(
    files: list[IO[bytes]], names: list[str], cleaner: Cleaner
) -> dict[str | int, array[int]]:
    """Where the lines of each picture stand: (file, line number, byte offset), flat.

    Only positions are kept, not texts: millions of lines fit in memory. Lines that cannot be used
    are dropped here.
    """
    positions: dict[str | int, array[int]] = {}
    for number, file in enumerate(files):
        offset = file.tell()
        for line_number, raw in enumerate(file, 1):
            start, offset = offset, offset + len(raw)
            if not raw.strip():
                continue
            try:
                line = read_line(raw)
            except LineProblem as problem:
                where = f"{names[number]}:{line_number}"
                cleaner.lose("line", where, problem.reason, problem.seen)
                continue
            # A whole record stands alone: an id that comes twice is for the writer to refuse.
            alone = line.id is not None or len(line.images) == 2
            key = len(positions) if alone else line.images[0]
            positions.setdefault(key, array("q")).extend((number, line_number, start))
    return positions


def _lines_of(group: array[int], files: list[IO[bytes]], names: list[str]) -> list[_Placed]:
    lines = []
    for i in range(0, len(group), 3):
        number, line_number, offset = group[i : i + 3]
        files[number].seek(offset)
        line = read_line(files[number].readline())
        lines.append(_Placed(line, f"{names[number]}:{line_number}"))
    return lines


def _records(
    pictures: list[list[_Placed]], root: Path, cleaner: Cleaner, options: dict[str, Any]
) -> Iterator[Record]:
    jobs = [
        PictureJob(path, _stated(lines) if path is lines[0].line.images[0] else None)
        for lines in pictures
        for path in lines[0].line.images
    ]
    checked = check_pictures(root, jobs, decode=options["decode"])
    for lines in pictures:
        found = [next(checked) for _ in lines[0].line.images]
        record = _record(lines, found, cleaner, options)
        if record is not None:
            yield record
    assert next(checked, None) is None


def _stated(lines: list[_Placed]) -> tuple[int, int] | None:
    return next((p.line.size for p in lines if p.line.size is not None), None)


def _record(
    lines: list[_Placed],
    found: list[Picture | PictureError],
    cleaner: Cleaner,
    options: dict[str, Any],
) -> Record | None:
    first = lines[0].line
    item: Item = "pair" if len(found) == 2 else "picture"
    id = first.id or " ".join(first.images)
    split = next((p.line.split for p in lines if p.line.split), options["split"])
    problem = next((f for f in found if isinstance(f, PictureError)), None)
    statement = _statement(first, cleaner)
    if problem is None and first.statement is not None and statement is None:
        problem = PictureError("empty text", first.statement[0])
    if problem is not None:
        cleaner.lose(item, id, problem.reason, problem.seen)
        for placed in lines:
            _keep_line(cleaner)
            for said in placed.line.said:
                cleaner.lose(said.item, placed.where, f"{item}: {problem.reason}")
        return None
    pictures = cast(list[Picture], found)
    kept: list[object] = []
    for placed in lines:
        line = placed.line
        reason = None
        if line.size is not None and line.size != _stated(lines):
            reason = "size mismatch"
        elif line.split is not None and line.split != split:
            reason = "another split than the picture's first line"
        if reason is not None:
            cleaner.lose("line", placed.where, reason)
            for said in line.said:
                cleaner.lose(said.item, placed.where, f"line: {reason}")
            continue
        _keep_line(cleaner)
        cleaned = (_clean(said, placed.where, pictures, cleaner, options) for said in line.said)
        kept.extend(value for value in cleaned if value is not None)
    if not kept and statement is None:
        cleaner.lose(item, id, "no text left")
        return None
    cleaner.ledger.read(item)
    cleaner.ledger.keep(item)
    return Record(
        id=id,
        images=tuple(picture.path for picture in pictures),
        width=pictures[0].width,
        height=pictures[0].height,
        captions=tuple(value.text for value in kept if isinstance(value, _Caption)),
        regions=tuple(value for value in kept if isinstance(value, Region)),
        absent=tuple(value.text for value in kept if isinstance(value, _Absent)),
        questions=tuple(value for value in kept if isinstance(value, Question)),
        statement=statement,
        split=split,
        source=first.source,
        meta=first.meta,
    )


def _keep_line(cleaner: Cleaner) -> None:
    cleaner.ledger.read("line")
    cleaner.ledger.keep("line")


@dataclass(frozen=True)
class _Caption:
    text: str


@dataclass(frozen=True)
class _Absent:
    text: str


def _statement(line: Line, cleaner: Cleaner) -> Statement | None:
    if line.statement is None:
        return None
    text, label = line.statement
    cleaned = cleaner.clean_text(text)
    return None if cleaned is None else Statement(cleaned, cast("bool | None", label))


def _clean(
    said: Said, where: str, pictures: list[Picture], cleaner: Cleaner, options: dict[str, Any]
) -> _Caption | _Absent | Region | Question | None:
    if said.problem is not None:
        cleaner.lose(said.item, where, said.problem, said.text)
        return None
    if said.item == "region":
        return _region(said, where, pictures, cleaner, options)
    if said.item == "question":
        return _question(said, where, cleaner)
    text = cleaner.text(said.item, where, said.text)
    if text is None:
        return None
    return _Absent(text) if said.item == "absent" else _Caption(text)


def _region(
    said: Said, where: str, pictures: list[Picture], cleaner: Cleaner, options: dict[str, Any]
) -> Region | None:
    kind = options["kind"] if said.kind is None else said.kind
    if kind not in REGION_KINDS:
        cleaner.lose("region", where, "unknown region kind", kind)
        return None
    if len(pictures) == 2:
        cleaner.lose("region", where, "a box in a pair of pictures", said.box)
        return None
    box: object = said.box
    if not said.exact:
        box = corners(box, options["box_format"])
        if options["box_unit"] == "fraction":
            box = _in_pixels(box, pictures[0].box_frame)
    elif isinstance(box, list):
        box = corners(box, "xyxy")
    return cleaner.region(where, said.text, box, pictures[0], cast(RegionKind, kind), seen=said.box)


def _in_pixels(box_xyxy: object, frame: tuple[int, int]) -> object:
    """Fractions of width and height to pixels; what is no box comes back as it is."""
    if corners(box_xyxy, "xyxy") is box_xyxy:
        return box_xyxy
    assert isinstance(box_xyxy, list)
    return [
        side * (round(v) if abs(v - round(v)) <= _SLACK else v) if math.isfinite(v) else v
        for v, side in zip(box_xyxy, frame * 2, strict=True)
    ]


def _question(said: Said, where: str, cleaner: Cleaner) -> Question | None:
    answers = []
    for answer in said.answers if isinstance(said.answers, list) else [None]:
        text = answer.get("answer") if isinstance(answer, dict) else answer
        weight = answer.get("weight", 1.0) if isinstance(answer, dict) else 1.0
        ok = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight <= 1
        cleaned = cleaner.clean_text(text) if ok else None
        if cleaned is None:
            cleaner.lose("question", where, "malformed answers", said.answers)
            return None
        answers.append(Answer(cleaned, float(weight)))
    question = cleaner.text("question", where, said.text)
    return None if question is None else Question(said.id, question, tuple(answers))

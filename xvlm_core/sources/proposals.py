"""Boxes of a detector, without texts: what grounding without boxes chooses among.

Either one JSON object from image ids (as texts) to lists of boxes, of which the first four numbers
count, as ``dets.json`` of the released code (detections of MAttNet, ``xywh`` pixels)::

    {"581857": [[0, 11.2, 304.5, 420], ...], ...}

or JSON lines (``xyxy`` pixels, if nothing else is said)::

    {"image": "a.jpg", "boxes": [[10, 20, 110, 220], ...]}

One record a picture.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.base import Option, Plan, Rules, Source
from xvlm_core.sources.drafts import Draft, Event, Kept, Lost, Said, corners
from xvlm_core.sources.folders import asked_folders
from xvlm_core.sources.lines import (
    BOX_UNIT_OPTION,
    LineProblem,
    one_spelling,
    open_lines,
    parse_line,
)
from xvlm_core.sources.merging import file_names
from xvlm_core.sources.naming import FORMATS
from xvlm_core.sources.refer import Entry, Instances, entry_of, find_naming
from xvlm_core.sources.strict_json import read_object

_FIRST_KEY = re.compile(rb'\s*\{\s*"([^"\\]*)"\s*:')
_LINE_KEYS = frozenset({b"image", b"boxes", b"width", b"height", b"split"})


def proposals(
    id: str, boxes: Sequence[object], box_format: str, *, fraction: bool = False
) -> tuple[Said, ...]:
    """Boxes as found; of each the first four numbers count.

    Args:
        id: of the record.
        boxes: in ``box_format``.
        box_format: "xyxy", "xywh" or "cxcywh".
        fraction: they are fractions of width and height.
    """
    said = []
    for number, box in enumerate(boxes):
        found = box[:4] if isinstance(box, list) else box
        corner_box, where = corners(found, box_format), f"{id}[{number}]"
        said.append(
            Said("proposal", where=where, box_xyxy=corner_box, fraction=fraction, seen=found)
        )
    return tuple(said)


@dataclass(frozen=True)
class _Form:
    """How boxes are written.

    Attributes:
        box_format: "xyxy", "xywh" or "cxcywh"; None: what is usual in that kind of file.
        fraction: they are fractions of width and height.
        split: of all records.
    """

    box_format: str | None
    fraction: bool
    split: str

    def draft(self, id: str, entry: Entry, path: str, boxes: list[Any], usual: str) -> Draft:
        """The record of a picture, unchecked."""
        return Draft(
            id=id,
            pictures=(path,),
            said=proposals(id, boxes, self.box_format or usual, fraction=self.fraction),
            size=entry.size,
            split=self.split,
            same_as=entry.same_as,
            keep_empty=True,
        )


def plan(options: dict[str, Any]) -> Plan:
    """Find the files.

    Raises:
        UsageError: what to read, or how pictures are named by their ids, was not said.
        DataError: a folder or file is missing.
    """
    root, images = asked_folders(
        options,
        "the boxes and the pictures are",
        usage="xvlm prepare-data proposals --annotations dets.json --instances instances.json "
        "--images FOLDER",
    )
    paths: tuple[Path, ...] = options["annotations"]
    if not paths:
        assert root is not None
        paths = (root / "dets.json",)
        if not paths[0].is_file():
            raise DataError(f"no dets.json in {root}", try_="--annotations FILE")
    form = _Form(options["box_format"], options["box_unit"] == "fraction", options["split"])
    of_ids = [path for path in paths if not _has_lines(path)]
    inputs = paths
    if of_ids:
        instances = options["instances"]
        if instances is None and options["names"] is None and root is not None:
            instances = root / "instances.json"
            instances = instances if instances.is_file() else None
        entries = _entries(of_ids[0], instances, options["names"])
        inputs = paths if instances is None else (*paths, instances)

    def events() -> Iterator[Event]:
        if of_ids:
            yield from _of_ids(of_ids, entries(), images, form)
        for path, name in zip(paths, file_names(paths), strict=True):
            if path not in of_ids:
                yield from _of_lines(path, name, form)

    return Plan(events(), images, inputs)


def _has_lines(path: Path) -> bool:
    """Whether it is JSON lines rather than one object of image ids."""
    with open_lines(path) as file:
        match = _FIRST_KEY.match(file.read(4096))
    return path.suffix == ".jsonl" or (match is not None and match[1] in _LINE_KEYS)


# ---------------------------------------------------------------------- image ids

_Find = Callable[[str], "Entry | None"]


def _entries(path: Path, instances: Path | None, pattern: str | None) -> Callable[[], _Find]:
    """What finds a picture by its id; files are read when it is called."""
    if instances is not None and pattern is not None:
        raise UsageError("--instances and --names both name the pictures", try_="one of them")
    if pattern is not None:
        _check_pattern(pattern)
        return lambda: lambda id: _named(pattern, id)
    if instances is None:
        raise UsageError(
            f"{path} has image ids, and how pictures are named by them was not said",
            try_='--instances instances.json, or --names "COCO_train2014_{id:012d}.jpg"',
        )

    def read() -> _Find:
        pictures = Instances(instances, ()).pictures
        by_text = {str(id): entry for id, entry in pictures.items()}
        return by_text.get

    return read


def _check_pattern(pattern: str) -> None:
    try:
        fields = [
            field for _, field, _, _ in string.Formatter().parse(pattern) if field is not None
        ]
        fine = fields == ["id"] and len(pattern.format(id=1)) < 1000
    except (ValueError, TypeError):
        fine = False
    if not fine:
        raise UsageError(
            f"--names {pattern!r} is no pattern with one {{id}}",
            try_='--names "COCO_train2014_{id:012d}.jpg"',
        )


def _named(pattern: str, id: str) -> Entry | None:
    number = id.isascii() and id.isdigit() and len(id) < 20
    try:
        return Entry(pattern.format(id=int(id) if number else id))
    except ValueError:  # a pattern for numbers, and the id is none
        return None


def _of_ids(paths: list[Path], find: _Find, images: Path, form: _Form) -> Iterator[Event]:
    found = [(path, id, boxes) for path in paths for id, boxes in read_object(path).items()]
    entries = {id: find(id) for _, id, _ in found}
    naming = find_naming(images, (entry.name for entry in entries.values() if entry is not None))
    for path, id, boxes in found:
        if not isinstance(boxes, list):
            yield Lost("proposal", f"{path.name}: {id}", "malformed boxes", boxes)
            continue
        entry = entries[id]
        if entry is not None:
            yield form.draft(id, entry, naming.path(entry.name), boxes, "xywh")
            continue
        for number in range(len(boxes)):
            yield Lost("proposal", f"{id}[{number}]", "unknown image", id)


# ---------------------------------------------------------------------- JSON lines


def _of_lines(path: Path, name: str, form: _Form) -> Iterator[Event]:
    with open_lines(path) as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            where = f"{name}:{number}"
            try:
                draft = _of_line(parse_line(raw), form)
            except LineProblem as problem:
                yield Lost("line", where, problem.reason, problem.seen)
                continue
            yield Kept("line")
            yield draft


def _of_line(value: dict[str, Any], form: _Form) -> Draft:
    image, boxes = value.get("image"), value.get("boxes")
    if not isinstance(image, str):
        raise LineProblem("no image", image)
    if not isinstance(boxes, list):
        raise LineProblem("malformed boxes", boxes)
    path = one_spelling(image)
    return form.draft(path, entry_of(path, value), path, boxes, "xyxy")


SOURCE = Source(
    "proposals",
    "boxes of a detector, without texts, for grounding without boxes",
    (
        Option("root", Path, "folder with dets.json and instances.json"),
        Option(
            "annotations",
            Path,
            "boxes by image id, or JSON lines with image and boxes, instead of dets.json in ROOT",
            multiple=True,
        ),
        Option("instances", Path, "COCO annotations that name the pictures of the ids"),
        Option("names", str, 'names of the pictures, e.g. "COCO_train2014_{id:012d}.jpg"'),
        Option("images", Path, "folder of the pictures, train2014/ ... (default: ROOT)"),
        Option(
            "box_format",
            str,
            "what the four numbers of a box are (default: xywh by image id, xyxy in lines)",
            choices=FORMATS,
        ),
        BOX_UNIT_OPTION,
        Option("split", str, "split of all records", "train"),
    ),
    plan,
    Rules(invalid_boxes="clip"),
)

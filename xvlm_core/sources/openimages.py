"""Open Images V4 to V7: boxes, relations, attributes, and what is surely not in a picture.

Found by themselves, under the folder or ``annotations/``: ``*-annotations-bbox.csv``,
``*-vrd.csv``, class and attribute descriptions, and pictures in ``train/``, ``validation/`` and
``test/`` (or in ``train_0/`` to ``train_f/``, or in one folder). Where a split has a table in
several versions, the newest is read: V6 has the boxes of V4. Boxes are fractions of the picture, in
the order XMin, XMax, YMin, YMax; a box of a relation is the smallest around both objects.

Memory: about 60 bytes a picture and table while tables are sorted (V6: 0.1 GB for 1.7 million
pictures); the rows themselves are never held.

Names of classes are texts as they are. Some attributes are not: "Stand" and "(made of)Leather" are
said "standing" and "leather" (``SPOKEN``); the ledger lists them.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.base import PAPER, Option, Plan, Source
from xvlm_core.sources.drafts import Draft, Event, Lost, Repaired
from xvlm_core.sources.folders import asked_folders
from xvlm_core.sources.merging import file_names
from xvlm_core.sources.openimages_rows import MARKS, Meaning, Tabled
from xvlm_core.sources.openimages_tables import Content, Runs, Table, open_table
from xvlm_core.sources.strict_json import refuse_encoding

SPOKEN = {
    "Cry": "crying",
    "Jump": "jumping",
    "Lay": "lying",
    "Run": "running",
    "Sing": "singing",
    "Sit": "sitting",
    "Smile": "smiling",
    "Stand": "standing",
    "Talk": "talking",
    "Walk": "walking",
}
"""Attributes that are verbs, as they are said before a name."""

_MADE_OF = "(made of)"
_PARTS: dict[str, Content] = {"boxes": "boxes", "relations": "relations"}
_FOLDERS = ("", "annotations", "labels", "metadata", "csv", "data")
_FILES: dict[Content, tuple[str, ...]] = {
    "boxes": ("*-annotations-bbox.csv", "*-detection-bbox.csv"),
    "relations": ("*-vrd.csv",),
    "labels": ("*-human-imagelabels*.csv",),
    "photos": ("*images*-with-rotation.csv", "image_ids_and_rotation.csv"),
}
_CLASSES = ("*class-descriptions*.csv",)
_ATTRIBUTES = ("*attributes-description*.csv",)
_SPLIT = re.compile(r"(?:^|[_-])(train|validation|val|test)(?:[_-]|$)")
_SPLITS = ("train", "validation", "val", "test")
_VERSION = re.compile(r"oidv(\d+)")
_PICTURE = re.compile(r"([0-9a-f])[0-9a-f]{15}\.jpg")
_LOOKED_AT = 10_000
"""Files of a folder of which one must be a picture."""


def plan(options: dict[str, Any]) -> Plan:
    """Find the files and read their first lines.

    Raises:
        UsageError: neither ``root`` nor ``annotations`` and ``images`` are given, or there is no
            such part.
        DataError: a folder, file or column is missing.
    """
    root, images = asked_folders(
        options,
        "Open Images is",
        usage="xvlm prepare-data openimages --root FOLDER, or --annotations FILE ... --images "
        "FOLDER --classes FILE",
        of="Open Images",
    )
    tables = _tables(root, options)
    classes = options["classes"] or _search(root, _CLASSES)
    if not classes:
        raise DataError(
            f"no class-descriptions-boxable.csv in {root or images}", try_="--classes FILE"
        )
    attributes = _search(root, _ATTRIBUTES)
    unwanted = _unwanted(tables, options)
    places = {split: _place(images, split) for split in _splits(tables)}
    inputs = (*(table.path for table in tables), *classes, *attributes)
    events = _events(tables, classes, attributes, unwanted, places, options["split"])
    return Plan(events, images, inputs)


def _tables(root: Path | None, options: dict[str, Any]) -> tuple[Table, ...]:
    """Those that tell of pictures first."""
    given = [open_table(path) for path in options["annotations"]]
    parts = [part.strip() for part in (options["parts"] or ",".join(_PARTS)).split(",")]
    for part in parts:
        if part not in _PARTS:
            raise UsageError(
                f"--parts: Open Images has no {part!r}; there are: {', '.join(_PARTS)}",
                try_=f"--parts {next(iter(_PARTS))}",
            )
    if not given:
        for part in parts:
            given += map(open_table, _found(root, _PARTS[part], parts))
        given += map(open_table, _newest(root, "photos").values())
    labels = [open_table(path) for path in options["labels"]]
    if options["absent"] and not labels and all(table.content != "labels" for table in given):
        labels = [open_table(path) for path in _found(root, "labels", parts)]
    for table in labels:
        if table.content != "labels":
            raise DataError(
                f"{table.path} is no table of labels, but of {table.content}",
                try_=f"--annotations {table.path}",
            )
    first = [table for table in given if table.content in _PARTS.values()]
    if not first:
        raise UsageError(
            "no table of boxes or of relations is named",
            try_="--annotations train-annotations-bbox.csv",
        )
    tables = [*first, *(table for table in (*given, *labels) if table not in first)]
    names = file_names([table.path for table in tables])
    return tuple(replace(table, name=name) for table, name in zip(tables, names, strict=True))


def _found(root: Path | None, content: Content, parts: list[str]) -> list[Path]:
    found = _newest(root, content)
    if not found:
        others = [part for part in parts if part != content]
        flag = "--labels" if content == "labels" else "--annotations"
        without = f", or --parts {','.join(others)}" if others and content in parts else ""
        raise DataError(
            f"no {' or '.join(_FILES[content])} in {root}", try_=f"{flag} FILE{without}"
        )
    return list(found.values())


def _newest(root: Path | None, content: Content) -> dict[str, Path]:
    """One file a split: that of the newest version."""
    found: dict[str, Path] = {}
    for path in sorted(_search(root, _FILES[content]), key=_age):
        found[_split(path)] = path
    return dict(sorted(found.items(), key=lambda pair: pair[1].name))


def _age(path: Path) -> tuple[bool, int, str]:
    """Sorts by version; of image level labels, those of the classes that have boxes are last."""
    match = _VERSION.search(path.name)
    version = int(match[1]) if match else 0 if path.name.startswith("challenge") else 1
    return "boxable" in path.name, version, path.name


def _search(root: Path | None, patterns: Iterable[str]) -> list[Path]:
    """In the folder and the folders where annotations usually are; those of boxes first."""
    places = [root / folder for folder in _FOLDERS] if root is not None else []
    found = {path for place in places for pattern in patterns for path in place.glob(pattern)}
    return sorted(found, key=lambda path: ("boxable" not in path.name, path.name))


def _split(path: Path) -> str:
    """As the file is called, or a folder that it is in; empty: neither says."""
    match = _SPLIT.search(path.stem)
    names: list[str] = [match[1] if match else "", *(folder.name for folder in path.parents[:2])]
    name = next((name for name in names if name in _SPLITS), "")
    return "validation" if name == "val" else name


def _splits(tables: Iterable[Table]) -> set[str]:
    return {_split(table.path) for table in tables if table.content in _PARTS.values()}


def _unwanted(tables: Iterable[Table], options: dict[str, Any]) -> tuple[str, ...]:
    """Columns that mark the boxes to leave out."""
    flags = {"IsGroupOf": "groups", "IsDepiction": "depictions"}
    unwanted = tuple(mark for mark in MARKS if not options[flags[mark]])
    for table in tables:
        for mark in unwanted:
            if table.content == "boxes" and mark not in table.columns:
                raise DataError(
                    f"{table.path} does not tell which boxes are {flags[mark]}: no column {mark}",
                    details=[f"columns there: {', '.join(table.columns)}"],
                    try_=f"--{flags[mark]} to keep them all",
                )
    return unwanted


# ------------------------------------------------------------------ pictures


def _place(root: Path, split: str) -> str:
    """Where the pictures of a split are: what stands before the name, ``*`` for its first digit."""
    folders = [f"{split}/", f"images/{split}/", f"{split}/data/", f"{split}/images/"]
    folders += [f"{split}_*/", f"images/{split}_*/", f"{split}/{split}_*/"]
    places: list[str] = [*(folders if split else ()), "", "images/", "data/"]
    if not split:
        places += ["train/", "validation/", "test/"]
    for place in places:
        tried = [place.replace("*", digit) for digit in "0123456789abcdef"]
        if any(_has_pictures(root / folder) for folder in dict.fromkeys(tried)):
            return place
    raise DataError(
        f"no pictures of Open Images (<16 hex digits>.jpg) in {root}: "
        f"not in {', '.join(place or '.' for place in places)}",
        try_="--images FOLDER of the pictures, or --annotations the files of other splits",
    )


def _has_pictures(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(_PICTURE.fullmatch(e.name) for e in islice(entries, _LOOKED_AT))
    except OSError:
        return False


# ------------------------------------------------------------------ events


def _events(
    tables: tuple[Table, ...],
    classes: Iterable[Path],
    attributes: Iterable[Path],
    unwanted: tuple[str, ...],
    places: dict[str, str],
    split: str | None,
) -> Iterator[Event]:
    names: dict[str, str] = {}
    for path in classes:
        yield from _read_names(path, names)
    named: dict[str, str] = {}
    for path in attributes:
        yield from _read_names(path, named)
    texts = {label: _spoken(name) for label, name in named.items()}
    if any(table.content == "relations" for table in tables):
        for label, text in texts.items():
            if text != named[label]:
                where = f"attribute {label}: {text}"
                yield Repaired("region", where, "name of the attribute", named[label])
    runs = Runs()
    of_pictures = len([table for table in tables if table.content in _PARTS.values()])
    for number, table in enumerate(tables):
        yield from runs.read(number, table, None if number < of_pictures else runs.known)
    meaning = Meaning(tables, names, texts, unwanted)
    splits = [_split(table.path) for table in tables]
    for id, found in runs.pictures():
        name = splits[found[0].table]
        draft = Draft(
            id,
            (places[name].replace("*", id[0]) + f"{id}.jpg",),
            split=split or {"validation": "val", "": "train"}.get(name, name),
            same_as=(f"openimages:{id}",),
        )
        yield Tabled(draft, meaning, found)


def _spoken(name: str) -> str:
    """An attribute, as it is said before a name."""
    bare = name.strip()
    if bare.startswith(_MADE_OF):
        return bare.removeprefix(_MADE_OF).strip().lower()
    return SPOKEN.get(bare, bare)


def _read_names(path: Path, names: dict[str, str]) -> Iterator[Lost]:
    """Add the names of labels; the first of two for one label stays.

    Raises:
        DataError: it cannot be read, or has no labels in its first column.
    """
    try:
        data = path.read_bytes()
        refuse_encoding(path, data)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})") from error
    labels = 0
    first: list[str] = []
    for line, row in enumerate(text.splitlines(), 1):
        cells = next(csv.reader([row]), [])
        first = first or cells
        if not cells or (line == 1 and not cells[0].startswith("/")):  # a header
            continue
        if len(cells) != 2:
            yield Lost("line", f"{path.name}:{line}", "wrong number of columns", row)
            continue
        labels += cells[0].startswith("/")
        names.setdefault(cells[0].strip(), cells[1])
    if not labels:
        raise DataError(
            f"{path} has no labels such as /m/01g317 in its first column",
            details=[f"first line: {', '.join(first)}"],
            try_="--classes class-descriptions-boxable.csv",
        )


SOURCE = Source(
    "openimages",
    "Open Images V4 to V7: boxes, relations, attributes",
    (
        Option("root", Path, "folder of the csv files and of train/, validation/ and test/"),
        Option(
            "annotations",
            Path,
            "csv file of boxes or relations (or of photographs: their addresses), instead of those "
            "found in ROOT",
            multiple=True,
        ),
        Option("images", Path, "folder of train/, validation/ and test/ (default: ROOT)"),
        Option(
            "classes",
            Path,
            "csv file of the names of classes, instead of class-descriptions-boxable.csv in ROOT",
            multiple=True,
        ),
        Option("split", str, "split of all records (default: from the file name)"),
        Option("parts", str, f"what is read (default: {','.join(_PARTS)})"),
        Option("groups", bool, "keep boxes around more than five things (IsGroupOf)", True),
        Option("depictions", bool, "keep boxes around drawings and the like (IsDepiction)", True),
        Option(
            "absent",
            bool,
            "of the pictures with boxes or relations, read too what people saw is not there",
            False,
        ),
        Option(
            "labels",
            Path,
            "*-human-imagelabels.csv, instead of those that --absent finds in ROOT",
            multiple=True,
        ),
    ),
    plan,
    PAPER,
)

"""Which columns of a table are the picture, the text, the box: by their names, or as told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.naming import LABELS, nearest, plain, recognised
from xvlm_core.sources.strict_json import JsonProblem, parse

_BOXES: tuple[tuple[str, str], ...] = (
    ("xmin ymin xmax ymax", "xyxy"),
    ("x_min y_min x_max y_max", "xyxy"),
    ("x1 y1 x2 y2", "xyxy"),
    ("left top right bottom", "xyxy"),
    ("bbox_x1 bbox_y1 bbox_x2 bbox_y2", "xyxy"),
    ("x y width height", "xywh"),
    ("x y w h", "xywh"),
    ("left top width height", "xywh"),
    ("bbox_x bbox_y bbox_width bbox_height", "xywh"),
    ("bbox_x bbox_y bbox_w bbox_h", "xywh"),
    ("cx cy w h", "cxcywh"),
    ("x_center y_center width height", "cxcywh"),
    ("center_x center_y width height", "cxcywh"),
)
"""Usual names of four columns of a box, and what they mean."""

_SIZES = ("image_width image_height", "img_width img_height", "width height")
_DELIMITERS = {";": "semicolon", "\t": "tab", ",": "comma", "|": "pipe"}


@dataclass(frozen=True)
class Columns:
    """Places of columns, from 0.

    Attributes:
        names: of all columns.
        image: path of the picture.
        text: None: there is none.
        box: one column of four numbers, four of one, or none.
        split: None: there is none.
        kind: of the region; None: there is none.
        id: of the record; None: there is none.
        size: width and height of the picture; None: they are not stated.
        box_format: "xyxy", "xywh" or "cxcywh".
    """

    names: tuple[str, ...]
    image: int
    text: int | None
    box: tuple[int, ...]
    split: int | None
    kind: int | None
    id: int | None
    size: tuple[int, int] | None
    box_format: str

    @property
    def labels(self) -> bool:
        """Whether the texts are names of kinds of things."""
        return self.text is not None and plain(self.names[self.text]) in LABELS

    def chosen(self) -> dict[str, object]:
        """The names of the columns that are used, by what they are used for."""
        single = {
            "image": self.image,
            "text": self.text,
            "split": self.split,
            "kind": self.kind,
            "id": self.id,
        }
        found: dict[str, object] = {
            what: self.names[place] for what, place in single.items() if place is not None
        }
        if self.box:
            found["box"] = [self.names[place] for place in self.box]
            found["box_format"] = self.box_format
        if self.size is not None:
            found["size"] = [self.names[place] for place in self.size]
        return found


def find_columns(path: Path, names: tuple[str, ...], options: dict[str, Any]) -> Columns:
    """Find the columns of a file.

    Args:
        path: for messages.
        names: of its columns.
        options: ``image_column``, ``text_column``, ``box_columns``, ``split_column``,
            ``kind_column``, ``id_column`` and ``box_format`` (None: by their names),
            ``allow_empty``.

    Raises:
        UsageError: neither one nor four columns of a box.
        DataError: there is no such column, or several could be meant.
    """
    search = _Search(path, names)
    image = search.find("image", options["image_column"])
    if image is None:
        raise search.nothing("image")
    text = search.find("text", options["text_column"])
    if text is None and not options["allow_empty"]:
        raise search.nothing("text")
    box, box_format = search.box(options["box_columns"])
    id = options["id_column"]
    return Columns(
        names=names,
        image=image,
        text=text,
        box=box,
        split=search.find("split", options["split_column"]),
        kind=search.find("kind", options["kind_column"]),
        id=None if id is None else search.find("id", id),
        size=search.size(box),
        box_format=options["box_format"] or box_format,
    )


class _Search:
    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.path, self.names = path, names
        self.plain = [plain(name) for name in names]

    def find(self, what: str, wanted: str | None) -> int | None:
        """The column that is called as wanted, or as usual."""
        if wanted is not None:
            return self.named(what, wanted, f"--{what}-column")
        found = recognised(what, self.names)
        if len(found) > 1:
            raise DataError(
                f"{self.path}: the {what} could be in several columns: {', '.join(found)}",
                try_=f"--{what}-column {found[0]}",
            )
        return self.names.index(found[0]) if found else None

    def named(self, what: str, wanted: str, option: str) -> int:
        """The column of that name, spelt so or nearly so."""
        same = [i for i, name in enumerate(self.names) if name == wanted.strip()]
        same = same or [i for i, name in enumerate(self.plain) if name == plain(wanted)]
        if len(same) == 1:
            return same[0]
        if same:
            raise DataError(
                f"{self.path} has {len(same)} columns {wanted!r}",
                try_="--columns with a name of its own for each",
            )
        near = nearest(what, wanted, self.names) if what else None
        raise self._error(f"{self.path} has no column {wanted!r}", f"{option} {near or 'COLUMN'}")

    def nothing(self, what: str) -> DataError:
        """An error: the column is not recognised."""
        near = nearest(what, what, self.names)
        return self._error(
            f"{self.path}: which column is the {what} is not clear from its name",
            f"--{what}-column {near or 'COLUMN'}",
        )

    def _error(self, what: str, try_: str) -> DataError:
        if len(self.names) == 1:
            for char, name in _DELIMITERS.items():
                if char in self.names[0]:
                    try_ = f"--delimiter {name}"
        there = ", ".join(name or "(no name)" for name in self.names)
        return DataError(what, details=[f"columns there: {there}"], try_=try_)

    def box(self, wanted: str | None) -> tuple[tuple[int, ...], str]:
        """The columns of the box, and their format by their names."""
        if wanted is not None:
            parts = [part for part in wanted.split(",") if part.strip()]
            if len(parts) not in (1, 4):
                raise UsageError(
                    f"--box-columns {wanted!r} is neither one column nor four",
                    try_="--box-columns x1,y1,x2,y2",
                )
            found = tuple(self.named("box", part, "--box-columns") for part in parts)
            return found, _format([self.plain[place] for place in found])
        for usual, box_format in _BOXES:
            four = usual.split()
            if all(self.plain.count(name) == 1 for name in four):
                return tuple(self.plain.index(name) for name in four), box_format
        one = recognised("box", self.names)
        if len(one) > 1:
            raise DataError(
                f"{self.path}: the box could be in several columns: {', '.join(one)}",
                try_=f"--box-columns {one[0]}",
            )
        found = tuple(self.names.index(name) for name in one)
        return found, _format([self.plain[place] for place in found])

    def size(self, box: tuple[int, ...]) -> tuple[int, int] | None:
        """The columns of the size of the picture, if they are none of the box."""
        for usual in _SIZES:
            width, height = usual.split()
            if self.plain.count(width) == 1 and self.plain.count(height) == 1:
                places = self.plain.index(width), self.plain.index(height)
                if not set(places) & set(box):
                    return places
        return None


def _format(names: list[str]) -> str:
    for usual, box_format in _BOXES:
        if names == usual.split():
            return box_format
    last = names[0].rsplit("_", 1)[-1] if len(names) == 1 else ""
    return last if last in ("xyxy", "xywh", "cxcywh") else "xyxy"


_SEPARATORS = re.compile(r"[\s,;]+")


def box_of(cells: list[str]) -> object:
    """The box in one cell ("[1, 2, 3, 4]", "1 2 3 4") or four; None: they are empty.

    What is no number stays a text, for the check of boxes to find.
    """
    cells = [cell.strip() for cell in cells]
    if not any(cells):
        return None
    if len(cells) > 1:
        return [_number(cell) for cell in cells]
    try:
        return parse(cells[0])
    except JsonProblem:
        bare = cells[0].strip("()[]{} ")
        return [_number(part) for part in _SEPARATORS.split(bare)]


def _number(text: str) -> object:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() and abs(value) < 1 << 53 else value


def whole_number(text: str) -> int | None:
    """A number of pixels; None: not said.

    Raises:
        ValueError: it is none.
    """
    if not text.strip():
        return None
    value = _number(text)
    if not isinstance(value, int):
        raise ValueError(text)
    return value

"""Which columns of a table are the picture, the text, the box: by their names, or as told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.naming import (
    FOUR_SIDES,
    LABELS,
    SAY_FORMAT,
    format_of,
    four_sides,
    is_doubtful_box,
    nearest,
    plain,
    recognised,
)
from xvlm_core.sources.strict_json import JsonProblem, parse

_SIZES = ("image_width image_height", "img_width img_height", "width height")
_SIDES = {name for usual, _ in FOUR_SIDES for name in usual.split()} - {
    *("x", "y", "w", "h", "width", "height", "left", "top", "right", "bottom")
}
"""Names that mean nothing else."""
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

    def chosen(self, box_unit: str) -> dict[str, object]:
        """The names of the columns by what they are used for, and those that are not used.

        Args:
            box_unit: "px" or "fraction".
        """
        single = {
            "image": self.image,
            "text": self.text,
            "split": self.split,
            "kind": self.kind,
            "id": self.id,
        }
        used = {what: place for what, place in single.items() if place is not None}
        found: dict[str, object] = {what: self.names[place] for what, place in used.items()}
        if self.box:
            found["box"] = {
                "columns": [self.names[place] for place in self.box],
                "format": self.box_format,
                "unit": box_unit,
            }
        if self.size is not None:
            found["size"] = [self.names[place] for place in self.size]
        taken = {*used.values(), *self.box, *(self.size or ())}
        found["not_used"] = [name for place, name in enumerate(self.names) if place not in taken]
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
        DataError: there is no such column, several could be meant, or a box does not say what its
            numbers are; all of them are named at once.
    """
    search = _Search(path, names)
    image = search.find("image", options["image_column"], required=True)
    text = search.find("text", options["text_column"], required=not options["allow_empty"])
    box, named_format = search.box(options["box_columns"])
    box_format = options["box_format"] or named_format
    if box_format is None and is_doubtful_box(names[place] for place in box):
        search.problem(
            f": what the four numbers of the column {names[box[0]]!r} are is not said",
            SAY_FORMAT,
        )
    id = options["id_column"]
    columns = Columns(
        names=names,
        image=-1 if image is None else image,
        text=text,
        box=box,
        split=search.find("split", options["split_column"]),
        kind=search.find("kind", options["kind_column"]),
        id=None if id is None else search.find("id", id),
        size=search.size(box),
        box_format=box_format or "xyxy",
    )
    search.check()
    return columns


class _Search:
    """Finds columns by their names; what is wrong is collected, and said at once."""

    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self.path, self.names = path, names
        self.plain = [plain(name) for name in names]
        self.problems: list[tuple[str, str]] = []
        self.lists_columns = False

    def problem(self, what: str, try_: str) -> None:
        """Note what is wrong, as it goes on after the name of the file, and what to type."""
        if (what, try_) not in self.problems:
            self.problems.append((what, try_))

    def check(self) -> None:
        """Refuse the file if anything is wrong.

        Raises:
            DataError: naming it all.
        """
        if not self.problems:
            return
        first, *more = dict.fromkeys(what for what, _ in self.problems)
        what = "; ".join([f"{self.path}{first}", *(text.lstrip(": ") for text in more)])
        try_ = " ".join(dict.fromkeys(try_ for _, try_ in self.problems))
        if len(self.names) == 1:
            for char, name in _DELIMITERS.items():
                if char in self.names[0]:
                    try_ = f"--delimiter {name}"
        there = ", ".join(name or "(no name)" for name in self.names)
        details = [f"columns there: {there}"] if self.lists_columns else []
        raise DataError(what, details=details, try_=try_)

    def find(self, what: str, wanted: str | None, *, required: bool = False) -> int | None:
        """The column that is called as wanted, or as usual."""
        if wanted is not None:
            near = nearest(what, wanted, self.names) or "COLUMN"
            return self.named(wanted, f"--{what}-column {near}")
        found = recognised(what, self.names)
        if len(found) > 1:
            self.problem(
                f": the {what} could be in several columns: {', '.join(found)}",
                f"--{what}-column {found[0]}",
            )
        elif not found and required:
            near = nearest(what, what, self.names) or "COLUMN"
            self.missing(
                f": which column is the {what} is not clear from its name",
                f"--{what}-column {near}",
            )
        return self.names.index(found[0]) if found else None

    def _spelt(self, wanted: str) -> list[int]:
        """The columns of that name, spelt so or else nearly so."""
        same = [i for i, name in enumerate(self.names) if name == wanted.strip()]
        return same or [i for i, name in enumerate(self.plain) if name == plain(wanted)]

    def named(self, wanted: str, try_: str) -> int | None:
        """The column of that name; what to type is said if there is none."""
        same = self._spelt(wanted)
        if len(same) == 1:
            return same[0]
        if same:
            self.problem(
                f" has {len(same)} columns {wanted!r}",
                "--columns with a name of its own for each",
            )
        else:
            self.missing(f" has no column {wanted.strip()!r}", try_)
        return None

    def missing(self, what: str, try_: str) -> None:
        """Note that there is no such column: those that there are will be listed."""
        self.lists_columns = True
        self.problem(what, try_)

    def box(self, wanted: str | None) -> tuple[tuple[int, ...], str | None]:
        """The columns of the box, and their format if their names say it."""
        if wanted is not None:
            parts = [part for part in wanted.split(",") if part.strip()]
            if len(parts) not in (1, 4):
                raise UsageError(
                    f"--box-columns {wanted!r} is neither one column nor four",
                    try_="--box-columns x1,y1,x2,y2",
                )
            near = (
                part.strip() if self._spelt(part) else nearest("box", part, self.names) or "COLUMN"
                for part in parts
            )
            try_ = f"--box-columns {','.join(near)}"
            places = [self.named(part, try_) for part in parts]
            found = tuple(place for place in places if place is not None)
            return found, format_of(self.names[place] for place in found) if found else None
        four = four_sides(self.names)
        if four is not None:
            return tuple(self.names.index(name) for name in four[0]), four[1]
        one = recognised("box", self.names)
        if len(one) > 1:
            self.problem(
                f": the box could be in several columns: {', '.join(one)}",
                f"--box-columns {one[0]}",
            )
            return (), None
        self._refuse_parts(one)
        found = tuple(self.names.index(name) for name in one)
        return found, format_of(one) if one else None

    def _refuse_parts(self, whole: list[str]) -> None:
        """Two sides of a box and no box: texts of parts would become texts of the picture."""
        parts = [self.names[i] for i, name in enumerate(self.plain) if name in _SIDES]
        if len(parts) > 1 and not whole:
            self.missing(
                f": a box has four columns, and {', '.join(parts)} are not all",
                "--box-columns COLUMN,COLUMN,COLUMN,COLUMN",
            )

    def size(self, box: tuple[int, ...]) -> tuple[int, int] | None:
        """The columns of the size of the picture, if they are none of the box."""
        for usual in _SIZES:
            width, height = usual.split()
            if self.plain.count(width) == 1 and self.plain.count(height) == 1:
                places = self.plain.index(width), self.plain.index(height)
                if not set(places) & set(box):
                    return places
        return None


_SEPARATORS = re.compile(r"[\s,;]+")
_SPACES = re.compile(r"[\s;]+")
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")


def box_of(cells: list[str], *, decimal_comma: bool = False) -> object:
    """The box in one cell ("[1, 2, 3, 4]", "1 2 3 4") or four; None: they are empty.

    What is no number stays a text, for the check of boxes to find.

    Args:
        cells: one or four.
        decimal_comma: "359,17" is a number.
    """
    cells = [cell.strip() for cell in cells]
    if not any(cells):
        return None
    if len(cells) > 1:
        return [_number(cell, decimal_comma) for cell in cells]
    try:
        return parse(cells[0])
    except JsonProblem:
        bare = cells[0].strip("()[]{} ")
        spaced = [_number(part, decimal_comma) for part in _SPACES.split(bare)]
        if len(spaced) == 4 and not any(isinstance(part, str) for part in spaced):
            return spaced
        return [_number(part) for part in _SEPARATORS.split(bare)]


def _number(text: str, decimal_comma: bool = False) -> object:
    if decimal_comma and _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() and abs(value) < 1 << 53 else value


def whole_number(text: str, *, decimal_comma: bool = False) -> int | None:
    """A number of pixels; None: not said.

    Raises:
        ValueError: it is none.
    """
    if not text.strip():
        return None
    value = _number(text, decimal_comma)
    if not isinstance(value, int):
        raise ValueError(text)
    return value

"""Tables of Open Images: which they are by their columns, and where the rows of a picture stand.

A table has up to 15 million rows. Those of one picture mostly follow one another; only where such
a run starts is kept (25 bytes a run), so that it does not matter if they do not. A row is one line.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from xvlm_core.data.ledger import Item
from xvlm_core.errors import DataError
from xvlm_core.sources.drafts import Lost
from xvlm_core.sources.strict_json import refuse_encoding

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.uint64]

Content = Literal["relations", "boxes", "labels", "photos"]

IMAGE = "ImageID"
BOX = ("XMin", "XMax", "YMin", "YMax")
TWO_BOXES = tuple(f"{name}{number}" for number in (1, 2) for name in BOX)
COLUMNS: dict[Content, tuple[str, ...]] = {
    "relations": (IMAGE, "LabelName1", "LabelName2", *TWO_BOXES),
    "boxes": (IMAGE, "LabelName", *BOX),
    "labels": (IMAGE, "LabelName", "Confidence"),
    "photos": (IMAGE, "OriginalURL"),
}
"""Columns of each sort of table, which may have others too; of relations, the last is the name."""

_ITEMS: dict[Content, Item] = {
    "relations": "region",
    "boxes": "region",
    "labels": "absent",
    "photos": "line",
}
_ID = re.compile(rb"[0-9a-f]{16}")
_FILTERED_AT = 1 << 20


@dataclass(frozen=True)
class Table:
    """A file of rows.

    Attributes:
        path: of the file.
        name: in the ledger.
        content: what its rows say.
        columns: names of all its columns.
    """

    path: Path
    name: str
    content: Content
    columns: tuple[str, ...]

    @property
    def item(self) -> Item:
        """What a row is counted as."""
        return _ITEMS[self.content]


def open_table(path: Path) -> Table:
    """Read the names of the columns, which tell what the rows say.

    Raises:
        DataError: it cannot be read, or its columns are those of no table of Open Images.
    """
    try:
        with open(path, "rb") as file:
            start = file.readline(1 << 16)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    refuse_encoding(path, start)
    if not start.strip():
        raise DataError(f"{path} is an empty file, or starts with an empty line")
    line = start.decode("utf-8-sig", "replace")
    columns = tuple(cell.strip() for cell in cells_of(line) or [line])
    content = _content(columns)
    lacking = [name for name in COLUMNS[content] if name not in columns]
    # The last column of relations is told by its place.
    if content == "relations" and columns[-1] in COLUMNS["relations"]:
        lacking.append("RelationshipLabel (the last)")
    if lacking:
        raise DataError(
            f"{path} has no column {', '.join(lacking)}",
            details=[f"columns there: {', '.join(columns)}"],
            try_=f"--annotations FILE with a header of {','.join(COLUMNS[content])}, ...",
        )
    return Table(path, path.name, content, columns)


def _content(columns: Collection[str]) -> Content:
    """What a table with these columns says, even if one of its columns is missing."""
    if any(name in columns for name in ("LabelName1", "LabelName2", *TWO_BOXES)):
        return "relations"
    if any(name in columns for name in BOX):
        return "boxes"
    if "OriginalURL" in columns:
        return "photos"
    return "labels" if "Confidence" in columns else "boxes"


def cells_of(text: str) -> list[str] | None:
    """The cells of one row; None: a quote is never closed."""
    if '"' not in text:
        return text.rstrip("\r\n").split(",")
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error:
        return None


@dataclass(frozen=True)
class Run:
    """Lines that follow one another and are about one picture.

    Attributes:
        table: its number.
        offset: of the first byte.
        line: number of the first line, from 1.
        lines: how many.
    """

    table: int
    offset: int
    line: int
    lines: int


class Runs:
    """The runs of all tables."""

    def __init__(self) -> None:
        self._ids, self._tables = array("Q"), array("B")
        self._offsets, self._lines, self._counts = array("q"), array("I"), array("I")

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, number: int, table: Table, known: Ids | None = None) -> Iterator[Lost]:
        """Add a table.

        Args:
            number: of the table.
            table: to read.
            known: ids of pictures, sorted; the rows of others are passed over. None: all.

        Yields:
            Rows that name no picture.
        """
        found = self if known is None else Runs()
        for id, offset, line, lines in _runs(table):
            if isinstance(id, int):
                found._ids.append(id)
                found._tables.append(number)
                found._offsets.append(offset)
                found._lines.append(line)
                found._counts.append(lines)
            elif known is None:
                reason = "unknown image" if id else "no image"
                for more in range(lines):
                    yield Lost(table.item, f"{table.name}:{line + more}", reason, id)
            if known is not None and len(found) >= _FILTERED_AT:
                self._add_known(found, known)
                found = Runs()
        if known is not None:
            self._add_known(found, known)

    def _add_known(self, found: Runs, known: Ids) -> None:
        import numpy as np

        for at in np.flatnonzero(np.isin(np.asarray(found._ids), known)).tolist():
            self._ids.append(found._ids[at])
            self._tables.append(found._tables[at])
            self._offsets.append(found._offsets[at])
            self._lines.append(found._lines[at])
            self._counts.append(found._counts[at])

    @property
    def known(self) -> Ids:
        """Ids of the pictures, each once, sorted."""
        import numpy as np

        return np.unique(np.asarray(self._ids))

    def pictures(self) -> Iterator[tuple[str, tuple[Run, ...]]]:
        """Each picture with its runs, in the order of the first of them."""
        import numpy as np

        ids = np.asarray(self._ids)
        order = np.argsort(ids, kind="stable")
        in_order = ids[order]
        starts = np.flatnonzero(np.r_[True, in_order[1:] != in_order[:-1]][: len(ids)])
        ends = np.r_[starts[1:], len(ids)]
        for place in np.argsort(order[starts], kind="stable").tolist():
            runs = order[starts[place] : ends[place]].tolist()
            yield f"{self._ids[runs[0]]:016x}", tuple(map(self._run, runs))

    def _run(self, at: int) -> Run:
        return Run(self._tables[at], self._offsets[at], self._lines[at], self._counts[at])


def _runs(table: Table) -> Iterator[tuple[int | str, int, int, int]]:
    """(id, offset, line, lines) of each run; a text for what is no id of Open Images."""
    column = table.columns.index(IMAGE)
    before: bytes | None = None
    start = line = lines = 0
    with open(table.path, "rb") as file:
        offset = len(file.readline())
        for number, raw in enumerate(file, 2):
            cell = _cell(raw, column) if column else raw.partition(b",")[0]
            if cell != before and raw.strip():
                if lines and before is not None:
                    yield _id(before), start, line, lines
                before, start, line, lines = cell, offset, number, 0
            lines += 1
            offset += len(raw)
    if lines and before is not None:
        yield _id(before), start, line, lines


def _cell(raw: bytes, column: int) -> bytes:
    cells = raw.split(b",", column + 1)
    return cells[column] if column < len(cells) else b""


def _id(cell: bytes) -> int | str:
    cell = cell.strip(b'" \t\r\n')
    return int(cell, 16) if _ID.fullmatch(cell) else cell.decode("utf-8", "replace")

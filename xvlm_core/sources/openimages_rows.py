"""What the rows of Open Images say; they are read by the process that checks the picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import IO, Any

from xvlm_core.data.ledger import Item
from xvlm_core.sources.drafts import Draft, Lost, Said
from xvlm_core.sources.identity import same_as
from xvlm_core.sources.openimages_tables import BOX, TWO_BOXES, Run, Table, cells_of
from xvlm_core.sources.relations import box_around, joined

MARKS = {"IsGroupOf": "group", "IsDepiction": "depiction"}
"""Reason to leave out a box by the column that marks it."""

_IS = "is"
"""The relation of an object to its attribute."""


@dataclass(frozen=True)
class Meaning:
    """How rows are understood.

    Attributes:
        tables: by number.
        names: of classes, by label.
        attributes: texts of attributes, by label.
        unwanted: columns of ``MARKS``: boxes that have a 1 there are left out.
    """

    tables: tuple[Table, ...]
    names: Mapping[str, str]
    attributes: Mapping[str, str]
    unwanted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tabled:
    """A picture and where its rows stand; becomes a ``Draft`` where it is checked.

    Attributes:
        draft: the record, as yet without texts.
        meaning: of the rows.
        runs: where they stand.
    """

    draft: Draft
    meaning: Meaning
    runs: tuple[Run, ...]

    def expand(self) -> Iterator[Draft | Lost]:
        """The one draft, and what could not be used of the table of photographs."""
        said: list[Said] = []
        names: tuple[str, ...] = ()
        for row in self._rows():
            content = row.table.content
            if content == "photos":
                if row.problem is None:
                    names += same_as(url=row["OriginalURL"])
                else:
                    yield Lost("line", row.where, row.problem, row.text)
            elif row.problem is not None:
                said.append(Said(row.table.item, row.text, row.where, problem=row.problem))
            elif content == "boxes":
                said.append(self._object(row))
            elif content == "relations":
                said.append(self._relation(row))
            elif _is_zero(row["Confidence"]):
                said.append(self._absent(row))
        same = tuple(dict.fromkeys((*self.draft.same_as, *names)))
        yield replace(self.draft, said=tuple(said), same_as=same)

    def _rows(self) -> Iterator[_Row]:
        with ExitStack() as stack:
            files: dict[int, IO[bytes]] = {}
            for run in self.runs:
                table = self.meaning.tables[run.table]
                if run.table not in files:
                    files[run.table] = stack.enter_context(open(table.path, "rb"))
                file = files[run.table]
                file.seek(run.offset)
                for line in range(run.line, run.line + run.lines):
                    raw = file.readline()
                    if raw.strip():
                        yield _Row.of(table, line, raw)

    def _object(self, row: _Row) -> Said:
        label = row["LabelName"]
        name = self.meaning.names.get(label)
        if name is None:
            return _unknown("region", row, label)
        marked = (mark for mark in self.meaning.unwanted if row[mark].strip() == "1")
        seen = row.values(BOX)
        return Said(
            "region",
            name,
            row.where,
            _box_xyxy(seen),
            fraction=True,
            seen=seen,
            problem=next((MARKS[mark] for mark in marked), None),
        )

    def _relation(self, row: _Row) -> Said:
        relation = row.cells[-1].strip()
        labels = [row["LabelName1"], row["LabelName2"]]
        first, second = map(self.meaning.names.get, labels)
        if relation == _IS:
            second = self.meaning.attributes.get(labels[1], second)
        if first is None or second is None:
            return _unknown("region", row, labels[0 if first is None else 1])
        if relation == _IS:
            text, problem = joined(second, first)
        else:
            text, problem = joined(first, relation.replace("_", " "), second)
        seen = row.values(TWO_BOXES)
        return Said(
            "region",
            text,
            row.where,
            box_around(_box_xyxy(seen[:4]), _box_xyxy(seen[4:])),
            fraction=True,
            seen=seen,
            kind="attribute" if relation == _IS else "relation",
            problem=problem,
        )

    def _absent(self, row: _Row) -> Said:
        label = row["LabelName"]
        name = self.meaning.names.get(label)
        return _unknown("absent", row, label) if name is None else Said("absent", name, row.where)


@dataclass(frozen=True)
class _Row:
    """One row, read again.

    Attributes:
        table: that it is of.
        where: its place, for the ledger.
        cells: empty where there is a problem.
        text: of the row.
        problem: why it cannot be used.
    """

    table: Table
    where: str
    cells: Sequence[str]
    text: str
    problem: str | None = None

    @classmethod
    def of(cls, table: Table, line: int, raw: bytes) -> _Row:
        where = f"{table.name}:{line}"
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return cls(table, where, (), raw.decode("latin-1").strip(), "not UTF-8")
        cells = cells_of(text)
        problem = "malformed row" if cells is None else None
        if cells is not None and len(cells) != len(table.columns):
            problem = "wrong number of columns"
        return cls(table, where, (() if problem else cells) or (), text.strip(), problem)

    def __getitem__(self, column: str) -> str:
        return self.cells[self.table.columns.index(column)]

    def values(self, columns: Iterable[str]) -> list[float | str]:
        """Of columns, as numbers; what is none stays a text, for the check of boxes to find."""
        return [_number(self[column]) for column in columns]


def _unknown(item: Item, row: _Row, label: str) -> Said:
    return Said(item, label, row.where, problem="unknown category")


def _box_xyxy(xxyy: Sequence[Any]) -> list[Any]:
    x1, x2, y1, y2 = xxyy
    return [x1, y1, x2, y2]


def _number(cell: str) -> float | str:
    try:
        return float(cell) if "_" not in cell else cell
    except ValueError:
        return cell


def _is_zero(cell: str) -> bool:
    return _number(cell) == 0

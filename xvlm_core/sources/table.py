"""Your own pictures, described by a table: CSV or TSV with a header, one text a row.

Columns are found by their usual names (``naming.USUAL``; boxes as ``xmin, ymin, xmax, ymax``,
``x, y, width, height`` and the like) or named by options; rows of one picture are merged into one
record, wherever they stand. A row with a box names a part, without one it is a caption. What is
between the cells follows from the header; where it is no comma, "359,17" is a number. In a CSV file
cells may be quoted; in a TSV file a quote is an ordinary character. Splits called "training",
"Validation", "dev" and the like are train, val and test. Which columns were taken, and which were
not, stands in ``columns.json`` of the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.columns import Columns, box_of, find_columns, whole_number
from xvlm_core.sources.drafts import Event, Lost, Said
from xvlm_core.sources.lines import (
    BOX_UNIT_OPTION,
    EMPTY_OPTION,
    KINDS,
    Form,
    Line,
    LineProblem,
    box_format_option,
    one_spelling,
    open_lines,
)
from xvlm_core.sources.merging import Groups, Position, file_names
from xvlm_core.sources.naming import (
    SAVE_AS_UTF_8,
    is_picture_name,
    plain,
    recognised,
    split_name,
    usual_split,
)
from xvlm_core.sources.rows import Dialect, Row, read_rows

_DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
_COLUMN_OPTIONS = ("image_column", "text_column", "split_column", "kind_column", "id_column")


@dataclass(frozen=True)
class Table:
    """How one file is read.

    Attributes:
        path: the file.
        name: what it is called in the ledger.
        dialect: how cells are told apart.
        columns: which of them are what.
        form: how boxes are written.
    """

    path: Path
    name: str
    dialect: Dialect
    columns: Columns
    form: Form

    @property
    def decimal_comma(self) -> bool:
        """Whether "359,17" is a number."""
        return self.dialect.delimiter != ","


@dataclass(frozen=True)
class TableReader:
    """Reads rows again.

    Attributes:
        tables: the files.
        split: of records that name none.
        allow_empty: a picture without text is kept.
    """

    tables: tuple[Table, ...]
    split: str
    allow_empty: bool

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        return tuple(table.path for table in self.tables)

    def read(self, file: IO[bytes], at: Position) -> Line:
        """The row that starts where the file stands."""
        table = self.tables[at.file]
        row = next(read_rows(file, table.dialect, len(table.columns.names), line=at.line))
        return line_of_row(row, table)


def plan(options: dict[str, Any]) -> Plan:
    """Find the columns, and the rows of each picture.

    Raises:
        UsageError: options that do not fit together.
        DataError: a file is missing, empty or not UTF-8, or has no such column.
    """
    root: Path = options["images"]
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", try_="--images FOLDER")
    paths = tuple(options["annotations"])
    groups, lost, tables = Groups(), list[Lost](), list[Table]()
    for number, (path, name) in enumerate(zip(paths, file_names(paths), strict=True)):
        with open_lines(path) as file:
            table, line = _open_table(file, path, name, options)
            tables.append(table)
            lost.extend(_scan(file, number, table, line, groups))
    reader = TableReader(tuple(tables), split_name(options["split"]), options["allow_empty"])

    def events() -> Iterator[Event]:
        yield from lost
        yield from groups.events(reader)

    return Plan(
        events(), image_root=root, inputs=paths, total=len(groups), files=lambda: _chosen(tables)
    )


def _chosen(tables: list[Table]) -> Mapping[str, bytes]:
    chosen = {
        table.name: {
            **table.columns.chosen("fraction" if table.form.fraction else "px"),
            "delimiter": table.dialect.delimiter,
        }
        for table in tables
    }
    return {"columns.json": (json.dumps(chosen, indent=1, ensure_ascii=False) + "\n").encode()}


def _open_table(
    file: IO[bytes], path: Path, name: str, options: dict[str, Any]
) -> tuple[Table, int]:
    """The table, and the number of the line where its rows start (there the file stands)."""
    dialect = _dialect(file, path, options)
    start = file.tell()
    first = next(read_rows(file, dialect), None)
    if first is None:
        raise DataError(f"{path} is an empty file")
    if first.seen.startswith("PK\x03\x04"):
        raise DataError(f"{path} is no text but a workbook or archive", try_="save it as CSV")
    cells = None if first.cells is None else tuple(cell.strip() for cell in first.cells)
    if options["columns"] is not None:
        names = tuple(cell.strip() for cell in options["columns"].split(","))
    elif cells is None:
        raise DataError(
            f"{path}, line {first.line}: the names of the columns are {first.problem}",
            try_=SAVE_AS_UTF_8 if first.problem == "not UTF-8" else None,
        )
    elif any(is_picture_name(cell) for cell in cells):
        raise DataError(
            f"{path} has no header: line {first.line} is a row already ({first.seen})",
            details=["if four columns are a box: --box-format says what its numbers are"],
            try_=f"--columns {','.join(_guessed(cells))}",
        )
    else:
        names = cells
    columns = find_columns(path, names, options)
    form = Form(
        box_format=columns.box_format,
        fraction=options["box_unit"] == "fraction",
        kind=options["kind"] or ("object" if columns.labels else "phrase"),
        allow_empty=options["allow_empty"],
    )
    if cells != names:  # the first line is a row
        file.seek(start)
    return Table(path, name, dialect, columns, form), first.next_line if cells == names else 1


def _guessed(cells: tuple[str, ...]) -> list[str]:
    """Names for the columns of a row: what they probably are."""
    numbers = [place for place, cell in enumerate(cells) if _is_number(cell)]
    sides = dict(zip(numbers, ("x1", "y1", "x2", "y2"), strict=True)) if len(numbers) == 4 else {}
    names: list[str] = []
    for place, cell in enumerate(cells):
        if place in sides:
            name = sides[place]
        elif is_picture_name(cell):
            name = "image"
        elif usual_split(cell) is not None:
            name = "split"
        else:
            name = f"column{place + 1}" if _is_number(cell) else "text"
        names.append(f"column{place + 1}" if name in names else name)
    return names


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _dialect(file: IO[bytes], path: Path, options: dict[str, Any]) -> Dialect:
    """As said, or as the first row has it; the file stands where it stood."""
    said, suffix = options["delimiter"], path.suffix.lower()
    if said is None and suffix == ".tsv":
        return Dialect("\t", quoted=False)
    if said is None:
        usual = "," if suffix == ".csv" else "\t"
        chars = [usual, *(char for char in _DELIMITERS.values() if char != usual)]
        dialects = [Dialect(char, quoted=suffix == ".csv" or char != "\t") for char in chars]
        return max(dialects, key=lambda dialect: _likely(file, dialect, options))
    char = _DELIMITERS.get(said, said)
    if len(char) != 1 or char in '"\r\n':
        raise UsageError(
            f"--delimiter {said!r} is no single character",
            try_=f"--delimiter with one character, or one of {', '.join(_DELIMITERS)}",
        )
    return Dialect(char, quoted=suffix == ".csv" or char != "\t")


def _likely(file: IO[bytes], dialect: Dialect, options: dict[str, Any]) -> tuple[int, int, int]:
    """How well a dialect fits the first row: as many cells as told, known names, many cells."""
    start = file.tell()
    first = next(read_rows(file, dialect), None)
    file.seek(start)
    if first is None or first.cells is None:
        return (0, 0, 0)
    said = [options[name] for name in _COLUMN_OPTIONS if options[name] is not None]
    wanted = {plain(name) for name in (*said, *(options["box_columns"] or "").split(","))} - {""}
    known = sum(
        plain(cell) in wanted
        or is_picture_name(cell)
        or any(recognised(what, [cell]) for what in ("image", "text", "box", "split"))
        for cell in first.cells
    )
    columns = options["columns"]
    fits = columns is not None and len(first.cells) == len(columns.split(","))
    return (int(fits), known, len(first.cells))


def _scan(file: IO[bytes], number: int, table: Table, line: int, groups: Groups) -> Iterator[Lost]:
    """Put the rows of a file to their groups; those that cannot be used come out."""
    for row in read_rows(file, table.dialect, len(table.columns.names), line=line):
        try:
            groups.add(line_of_row(row, table), Position(number, row.line, row.offset))
        except LineProblem as problem:
            yield Lost("line", f"{table.name}:{row.line}", problem.reason, problem.seen)


def line_of_row(row: Row, table: Table) -> Line:
    """What a row says.

    Raises:
        LineProblem: the row's own problem, "no image", or "malformed size".
    """
    if row.cells is None:
        raise LineProblem(str(row.problem), row.seen)
    cells, columns, where = row.cells, table.columns, f"{table.name}:{row.line}"

    def cell(place: int | None) -> str | None:
        return None if place is None else cells[place].strip() or None

    image = cell(columns.image)
    if image is None:
        raise LineProblem("no image", row.seen)
    image, id, split = one_spelling(image), cell(columns.id), cell(columns.split)
    return Line(
        images=(image,),
        said=tuple(_said(row.cells, table, where)),
        where=where,
        merge_key=image if id is None else f"id\0{id}",
        id=id,
        size=_size(row, table),
        split=None if split is None else split_name(split),
    )


def _said(cells: tuple[str, ...], table: Table, where: str) -> Iterator[Said]:
    columns, form = table.columns, table.form
    text = None if columns.text is None else cells[columns.text]
    box = box_of([cells[place] for place in columns.box], decimal_comma=table.decimal_comma)
    if box is not None:
        kind = None if columns.kind is None else cells[columns.kind].strip() or None
        yield form.region(text, box, kind, where)
    elif text is not None and (text.strip() or not form.allow_empty):
        yield Said("caption", text, where)


def _size(row: Row, table: Table) -> tuple[int, int] | None:
    columns, comma = table.columns, table.decimal_comma
    if columns.size is None or row.cells is None:
        return None
    try:
        width, height = (
            whole_number(row.cells[place], decimal_comma=comma) for place in columns.size
        )
    except ValueError as error:
        raise LineProblem("malformed size", row.seen) from error
    return None if width is None or height is None else (width, height)


SOURCE = Source(
    name="table",
    help="your own pictures, described by a table (CSV, TSV)",
    options=(
        Option(
            "annotations",
            Path,
            "table with a header, one text a row: .csv, .tsv",
            required=True,
            multiple=True,
        ),
        Option("images", Path, "folder that the pictures' names start from", required=True),
        Option("image_column", str, "column of the picture's path (default: by its name)"),
        Option("text_column", str, "column of the text (default: by its name)"),
        Option(
            "box_columns",
            str,
            "x1,y1,x2,y2: four columns of the box, or one with all four (default: by their names)",
        ),
        box_format_option("column"),
        BOX_UNIT_OPTION,
        Option("kind_column", str, "column of the kind of text (default: kind)"),
        Option(
            "kind",
            str,
            "what the texts with a box are (default: object for a label or class, else phrase)",
            choices=KINDS,
        ),
        Option(
            "split_column",
            str,
            "column of the split (default: split); training, valid, dev, ... are train, val, test",
        ),
        Option("split", str, "split of rows that name none", "train"),
        Option("id_column", str, "column of an id: rows of one id are one record"),
        Option("columns", str, "names of the columns, a,b,c, of a file without header"),
        Option(
            "delimiter",
            str,
            "between cells: one character, comma, tab, semicolon or pipe (default: the one of "
            "these that the header has; tab in .tsv)",
        ),
        EMPTY_OPTION,
    ),
    plan=plan,
)

"""Rows of a table in a text file, with where each starts; a broken row costs itself only."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

_LONGEST = 131_072
"""Characters of one cell beyond which a quote is taken for one that was never closed."""


@dataclass(frozen=True)
class Dialect:
    """How cells are told apart.

    Attributes:
        delimiter: between cells.
        quoted: a cell may stand in quotes, and then hold delimiters and line ends; else a quote is
            an ordinary character.
    """

    delimiter: str
    quoted: bool


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        line: number of its first line, from 1.
        offset: of its first byte.
        next_line: number of the line after it.
        cells: as text; None: it cannot be read.
        problem: why not, or why it cannot be used: "not UTF-8", "malformed row" or "wrong number of
            columns".
        seen: what stands there.
    """

    line: int
    offset: int
    next_line: int
    cells: tuple[str, ...] | None
    problem: str | None = None
    seen: str = ""


def read_rows(
    file: IO[bytes], dialect: Dialect, columns: int | None = None, *, line: int = 1
) -> Iterator[Row]:
    """The rows from where the file stands; empty lines are skipped.

    Args:
        file: opened, after its byte order mark.
        dialect: how cells are told apart.
        columns: that a row has; None: any number.
        line: number of the line where the file stands.
    """
    while True:
        feed = _Feed(file, line)
        row = _next_row(feed, dialect, columns)
        if row is None:
            return
        line = row.next_line
        file.seek(feed.end)
        if row.cells != ():
            yield row


class _Feed:
    """Lines for the reader, counted."""

    def __init__(self, file: IO[bytes], line: int) -> None:
        self.file, self.line = file, line
        self.start = self.end = self.second = file.tell()
        self.lines = 0
        self.first = ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self.file.readline()
        if not raw:
            raise StopIteration
        self.end += len(raw)
        self.lines += 1
        text = raw.decode("utf-8", "surrogateescape")
        if self.lines == 1:
            self.second, self.first = self.end, text
        return text

    def give_back(self) -> None:
        """All lines but the first: a quote that was never closed took them in."""
        if self.lines > 1:
            self.lines, self.end = 1, self.second


def _next_row(feed: _Feed, dialect: Dialect, columns: int | None) -> Row | None:
    problem = None
    try:
        cells = _cells(feed, dialect)
    except csv.Error:
        cells, problem = (), "malformed row"
    if cells is None:
        return None
    seen = feed.first.rstrip("\r\n")[:80]
    if not _is_text("".join(cells) + seen):
        problem = "not UTF-8"
        seen = seen.encode("utf-8", "surrogateescape").decode("latin-1")
    elif cells and columns is not None and len(cells) != columns:
        problem = "wrong number of columns"
    if problem is not None:
        feed.give_back()
    usable = None if problem is not None else cells
    return Row(feed.line, feed.start, feed.line + feed.lines, usable, problem, seen)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes that were no UTF-8 became surrogates
        return False
    return True


def _cells(feed: _Feed, dialect: Dialect) -> tuple[str, ...] | None:
    """The cells of the next row; () for an empty line, None at the end."""
    if not dialect.quoted:
        text = next(feed, None)
        if text is None:
            return None
        text = text.rstrip("\r\n")
        return tuple(text.split(dialect.delimiter)) if text.strip() else ()
    csv.field_size_limit(_LONGEST)
    try:
        return tuple(next(csv.reader(feed, delimiter=dialect.delimiter, strict=True)))
    except StopIteration:
        return None

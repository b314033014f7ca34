"""Lines of one picture become one record, wherever they stand, over any number of files.

Only positions are kept in memory, not texts: files of many millions of lines can be read. The
lines of a picture are read again by the process that checks it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from xvlm_core.sources.drafts import Draft, Event, Kept, Lost, Said
from xvlm_core.sources.lines import Line, open_lines


@dataclass(frozen=True)
class Position:
    """Where a line stands.

    Attributes:
        file: number of the file.
        line: number of the line, from 1.
        offset: of its first byte.
    """

    file: int
    line: int
    offset: int


class Reader(Protocol):
    """How lines are read again. Picklable."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files."""
        ...

    @property
    def split(self) -> str:
        """Of records that name none."""
        ...

    @property
    def allow_empty(self) -> bool:
        """Whether a picture without text is kept."""
        ...

    def read(self, file: IO[bytes], at: Position) -> Line:
        """The line that stands there; it was read once before."""
        ...


class Groups:
    """The positions of the lines of each record, in the order of their first lines."""

    def __init__(self) -> None:
        self._at: dict[str | int, array[int]] = {}

    def __len__(self) -> int:
        return len(self._at)

    def add(self, line: Line, at: Position) -> None:
        """Put a line to those with the same merge key."""
        key = len(self._at) if line.merge_key is None else line.merge_key
        self._at.setdefault(key, array("q")).extend((at.file, at.line, at.offset))

    def events(self, reader: Reader) -> Iterator[Event]:
        """One event a record."""
        for at in self._at.values():
            yield Merged(reader, at)


@dataclass(frozen=True)
class Merged:
    """The lines of one record, to be read.

    Attributes:
        reader: that reads them.
        at: positions, flat: file, line and offset of each.
    """

    reader: Reader
    at: array[int]

    def expand(self) -> Iterator[Draft | Lost | Kept]:
        """A draft, and each line kept or lost."""
        return merge(self._lines(), self.reader.split, keep_empty=self.reader.allow_empty)

    def _lines(self) -> list[Line]:
        with ExitStack() as stack:
            files: dict[int, IO[bytes]] = {}
            lines = []
            for i in range(0, len(self.at), 3):
                at = Position(*self.at[i : i + 3])
                if at.file not in files:
                    files[at.file] = stack.enter_context(open_lines(self.reader.paths[at.file]))
                files[at.file].seek(at.offset)
                lines.append(self.reader.read(files[at.file], at))
            return lines


def merge(
    lines: Sequence[Line], split: str, *, keep_empty: bool = False
) -> Iterator[Draft | Lost | Kept]:
    """One draft of lines with the same merge key; what contradicts the first line is lost.

    Args:
        lines: in the order of the source.
        split: of a record that names none.
        keep_empty: a picture without text is kept.
    """
    first = lines[0]
    size = next((line.size for line in lines if line.size is not None), None)
    named = next((line.split for line in lines if line.split is not None), None)
    said: list[Said] = []
    for line in lines:
        reason = None
        if line.images != first.images:
            reason = "another picture than the first line of this id"
        elif line.size is not None and line.size != size:
            reason = "size mismatch"
        elif line.split is not None and line.split != named:
            reason = "another split than the picture's first line"
        if reason is None:
            yield Kept("line")
            said.extend(line.said)
            continue
        yield Lost("line", line.where, reason)
        for one in line.said:
            yield Lost(one.item, one.where, f"line: {reason}")
    yield Draft(
        id=first.id or " ".join(first.images),
        pictures=first.images,
        said=tuple(said),
        size=size,
        split=named or split,
        source=first.source or "",
        statement=first.statement,
        same_as=first.same_as,
        meta=first.meta,
        keep_empty=keep_empty,
    )


def file_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """What files are called in the ledger: their names, or whole paths where two have the same."""
    names = [path.name for path in paths]
    return tuple(
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, paths, strict=True)
    )

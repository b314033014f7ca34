"""What img2dataset leaves behind: shards of pictures, and lists of what could not be had.

A shard is ``00000.tar`` (webdataset form) or a folder ``00000`` (files form); beside it
``00000.parquet`` has a row for every address, also those that failed, and ``00000_stats.json`` the
counts.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, MissingToolError
from xvlm_core.sources.drafts import Event, Lost
from xvlm_core.sources.strict_json import read_object
from xvlm_core.sources.tar_index import BROKEN_OFF, check_tar, split_name
from xvlm_core.sources.webdataset import PICTURES, TEXTS, Part, Reading, WebSample, tar_events

_MAGIC = b"PAR1"
_FOLDER = re.compile(r"\d{4,}")
_STATUS = re.compile(r"\w{1,40}")


@dataclass(frozen=True)
class Shard:
    """A shard and what lies beside it.

    Attributes:
        path: the tar, or the folder; it may be missing where the parquet is not.
        parquet: if there is one that is to be read.
        stats: if there is one.
    """

    path: Path
    parquet: Path | None = None
    stats: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is there."""
        found = (self.path, self.parquet, self.stats)
        return tuple(path for path in found if path is not None and path.exists())


def find_shards(roots: Iterable[Path], *, parquet: bool = True) -> list[Shard]:
    """The shards in some folders (or tars that are named), sorted by name; files are looked at.

    Args:
        roots: folders or tars.
        parquet: read the parquet files.

    Returns:
        None found: an empty list.

    Raises:
        DataError: a file is missing, or is no tar or no whole parquet file.
        MissingToolError: there are parquet files, and nothing to read them with.
    """
    shards: dict[Path, None] = {}
    for root in roots:
        if not root.exists():
            raise DataError(f"there is no folder {root}", try_="name a folder with 00000.tar")
        found = [root.absolute()] if root.is_file() else _in_folder(root.absolute())
        shards.update((path, None) for path in found)
    result = [_with_lists(path, parquet) for path in shards]
    for shard in result:
        if shard.path.is_file():
            check_tar(shard.path)
            if shard.path.suffix != ".tar":
                raise DataError(f"{shard.path} is not named .tar")
        if shard.parquet is not None:
            _check_parquet(shard.parquet)
    if any(shard.parquet for shard in result):
        _pyarrow()
    return result


def _in_folder(root: Path) -> list[Path]:
    found: set[Path] = set()
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        names = set(files)
        shard_folders = [name for name in folders if _FOLDER.fullmatch(name)]
        found.update(here / name for name in shard_folders)
        folders[:] = [name for name in folders if name not in shard_folders]
        found.update(here / name for name in names if name.endswith(".tar"))
        for name in names:  # a shard of which only the list is left
            stem, extension = os.path.splitext(name)
            alone = f"{stem}.tar" not in names and stem not in folders + shard_folders
            if extension == ".parquet" and alone and _FOLDER.fullmatch(stem):
                found.add(here / f"{stem}.tar")
    return sorted(found)


def _with_lists(path: Path, parquet: bool) -> Shard:
    stem = path.name.removesuffix(".tar")
    rows, stats = path.with_name(f"{stem}.parquet"), path.with_name(f"{stem}_stats.json")
    return Shard(
        path, rows if parquet and rows.is_file() else None, stats if stats.is_file() else None
    )


def shard_events(shard: Shard, root: Path, reading: Reading) -> Iterator[Event]:
    """All that a shard says.

    Rows that failed are lost with their status; rows that did not fail and of which there is no
    picture as "missing".

    Args:
        shard: it.
        root: image root.
        reading: how texts are read.

    Raises:
        DataError: the parquet file is damaged, or lacks a column.
    """
    found: set[str] = set()
    broken = not shard.path.exists()
    events = (
        _folder_events(shard.path, root, reading)
        if shard.path.is_dir()
        else tar_events(shard.path, root, reading)
    )
    for event in () if broken else events:
        if isinstance(event, WebSample):
            found.add(event.id)
        elif isinstance(event, Lost) and event.reason in BROKEN_OFF:
            broken = True
        yield event
    place = shard.path.relative_to(root).as_posix().removesuffix(".tar")
    if shard.parquet is not None:
        yield from _failed_rows(shard.parquet, place, found)
    if shard.stats is not None and not broken:
        yield from _check_stats(shard.stats, f"{place}_stats.json", len(found))


def _folder_events(folder: Path, root: Path, reading: Reading) -> Iterator[Event]:
    """Samples of the files form."""
    place = folder.relative_to(root).as_posix()
    samples: dict[str, dict[str, str]] = {}
    for name in sorted(entry.name for entry in os.scandir(folder) if entry.is_file()):
        split = split_name(name)
        if split is not None:
            samples.setdefault(split[0], {}).setdefault(split[1], name)
    for key, names in samples.items():
        id = f"{place}/{key}"
        texts = {e: Part(folder / names[e]) for e in TEXTS if e in names}
        pictures = [names[e] for e in names if e in PICTURES]
        for name in pictures[1:]:
            yield Lost("picture", f"{place}/{name}", "more than one picture")
        if pictures:
            yield WebSample(id, (f"{place}/{pictures[0]}",), texts, reading)
        elif texts:
            yield Lost("caption", id, "no image")
        else:
            yield Lost("line", id, "no image", ", ".join(names.values()))


def _failed_rows(path: Path, place: str, found: set[str]) -> Iterator[Lost]:
    for row in _rows(path, ("key", "status", "error_message")):
        id = f"{place}/{row['key']}"
        status = row["status"]
        if status == "success":
            if id not in found:
                yield Lost("picture", id, "missing")
        elif isinstance(status, str) and _STATUS.fullmatch(status):
            yield Lost("picture", id, status, row.get("error_message"))
        else:
            yield Lost("picture", id, "failed", status)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file, some at a time; the last of the columns may be missing."""
    pyarrow = _pyarrow()
    try:
        with pyarrow.ParquetFile(path) as file:
            there = file.schema_arrow.names
            missing = [name for name in columns[:-1] if name not in there]
            if missing:
                raise DataError(
                    f"{path} has no column {missing[0]}",
                    where=f"its columns: {', '.join(there)}",
                    try_="--no-parquet",
                )
            wanted = [name for name in columns if name in there]
            for batch in file.iter_batches(columns=wanted):
                yield from batch.to_pylist()
    except DataError:
        raise
    except Exception as error:  # pyarrow has many, and of a damaged file any may come
        raise DataError(f"{path} is not a whole parquet file", try_="--no-parquet") from error


def _check_parquet(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4))
            whole = size >= 12 and start == file.read(4) == _MAGIC
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not whole:
        raise DataError(f"{path} is not a whole parquet file", try_="--no-parquet")


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingToolError(
            "pyarrow, which reads .parquet files, is not installed",
            where="without it, rows that failed to download are not counted: --no-parquet",
            try_="pip install pyarrow",
        ) from error


def _check_stats(path: Path, place: str, pictures: int) -> Iterator[Lost]:
    """The counts of img2dataset against what is there."""
    try:
        successes = read_object(path).get("successes")
    except DataError as error:
        yield Lost("line", place, "not JSON", error.what)
        return
    if successes is not None and successes != pictures:
        seen = f"{successes} successes, {pictures} pictures"
        yield Lost("line", place, "count mismatch", seen)

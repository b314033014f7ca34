"""A folder of pictures kept in step with its index: what is new is encoded, what is gone leaves.

Imports no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.errors import DataError
from xvlm_core.inference.search_index import Builder, Entry, IndexFolder, SearchIndex

Floats = NDArray[np.float32]
Encode = Callable[[Sequence[Image.Image]], Floats]
Progress = Callable[[int, "int | None", str], None]

BATCH = 16
"""Pictures encoded in one call."""

WRITE_EVERY_SECONDS = 60.0
"""How much work a process that is killed can lose."""

_READERS = 4


@dataclass(frozen=True)
class SeenFile:
    """A file that may be a picture: its path from the folder, its size, when it was written."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Scanned:
    """What is in a folder and the folders in it.

    Attributes:
        files: by path.
        not_entered: folders that are hidden or links.
        ours: pictures that xvlm drew, left out.
        problems: folders that cannot be read, a line each.
    """

    files: tuple[SeenFile, ...]
    not_entered: int
    ours: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What an index lacks of a folder.

    Attributes:
        kept: of each file its number in the index, None where it has to be encoded.
        added: files that are not in the index.
        changed: files that are another than when they were encoded.
        removed: pictures of the index that are gone.
    """

    kept: tuple[int | None, ...]
    added: int
    changed: int
    removed: int

    @property
    def to_encode(self) -> int:
        """Pictures to be encoded."""
        return self.added + self.changed


@dataclass(frozen=True)
class Updated:
    """The index as the folder is now, and the pictures that cannot be read, a line each."""

    index: SearchIndex
    problems: tuple[str, ...]


def scan(folder: Path, suffixes: Sequence[str], ours: Sequence[str]) -> Scanned:
    """Find the pictures of a folder and all folders in it; no file is opened.

    Args:
        folder: where to look. Folders that are hidden or links are not entered.
        suffixes: of pictures, small letters.
        ours: endings of pictures that xvlm drew.
    """
    files: list[SeenFile] = []
    problems: list[str] = []
    not_entered = drawn = 0

    def unreadable(error: OSError) -> None:
        problems.append(f"folder {error.filename}: {error.strerror}")

    for place, folders, names in os.walk(folder, onerror=unreadable):
        entered = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and not os.path.islink(os.path.join(place, name))
        ]
        not_entered += len(folders) - len(entered)
        folders[:] = entered
        for name in names:
            if os.path.splitext(name)[1].lower() not in suffixes or name.startswith("."):
                continue
            if name.endswith(tuple(ours)):
                drawn += 1
                continue
            path = Path(place, name)
            relative = path.relative_to(folder).as_posix()
            try:
                status = path.stat()
            except OSError as error:
                problems.append(f"picture {path}: {error.strerror}")
                continue
            files.append(SeenFile(relative, status.st_size, status.st_mtime_ns))
    files.sort(key=lambda file: file.path)
    return Scanned(tuple(files), not_entered, drawn, tuple(problems))


def plan(scanned: Scanned, index: SearchIndex | None) -> Plan:
    """What of an index still holds for a folder."""
    entries = index.entries if index is not None else ()
    number_of = {entry.path: number for number, entry in enumerate(entries)}
    kept: list[int | None] = []
    added = changed = 0
    for file in scanned.files:
        number = number_of.get(file.path)
        if number is None:
            added += 1
        elif (entries[number].size, entries[number].mtime_ns) != (file.size, file.mtime_ns):
            changed += 1
            number = None
        kept.append(number)
    return Plan(tuple(kept), added, changed, len(entries) - (len(kept) - added))


def update(
    folder: IndexFolder,
    scanned: Scanned,
    index: SearchIndex | None,
    builder: Builder,
    encode: Encode,
    progress: Progress,
) -> Updated:
    """Encode what is new or changed, leave out what is gone, write the index.

    Written from time to time, and when interrupted: what was encoded is not encoded again.

    Args:
        folder: where the index is.
        scanned: the pictures as they are.
        index: as it was; None: none of it serves.
        builder: the model.
        encode: unit vectors ``(n, E)`` of n upright pictures.
        progress: told how far it is.

    Raises:
        DataError: no picture can be read.
        OutputError: the index cannot be written.
    """
    todo = plan(scanned, index)
    rows: dict[int, tuple[Entry, Floats]] = {}
    for number, at in enumerate(todo.kept):
        if at is not None and index is not None:
            rows[number] = (index.entries[at], index.vectors_NE[at])
    missing = [number for number, at in enumerate(todo.kept) if at is None]
    problems: list[str] = []
    if not missing and not todo.removed and index is not None:
        return Updated(index, ())
    folder.prepare()
    written, last = len(rows) if index is not None else -1, time.monotonic()
    try:
        for done, (numbers, images) in enumerate(
            _pictures(folder.root, scanned, missing, problems), 1
        ):
            if images:
                vectors_NE = encode(images)
                for number, image, vector_E in zip(numbers, images, vectors_NE, strict=True):
                    file = scanned.files[number]
                    entry = Entry(file.path, file.size, file.mtime_ns, image.width, image.height)
                    rows[number] = (entry, vector_E)
            progress(min(done * BATCH, len(missing)), len(missing), "pictures encoded")
            if time.monotonic() - last > WRITE_EVERY_SECONDS:
                folder.write(_index_of(rows), builder)
                written, last = len(rows), time.monotonic()
    except BaseException:
        if len(rows) > max(written, 0):
            folder.write(_index_of(rows), builder)
        raise
    if not rows:
        raise DataError(
            f"no picture in {folder.root} can be read",
            where=str(folder.root),
            details=problems[:5],
            try_="files that a picture viewer opens (JPEG, PNG, GIF, BMP, WebP, TIFF, PPM)",
        )
    updated = _index_of(rows)
    if len(rows) != written or todo.removed or index is None:
        folder.write(updated, builder)
    return Updated(updated, tuple(problems))


def _index_of(rows: dict[int, tuple[Entry, Floats]]) -> SearchIndex:
    ordered = [rows[number] for number in sorted(rows)]
    return SearchIndex(
        tuple(entry for entry, _ in ordered), np.stack([vector_E for _, vector_E in ordered])
    )


def _pictures(
    root: Path, scanned: Scanned, numbers: Sequence[int], problems: list[str]
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Pictures by batches, each batch read while the one before is encoded."""

    def read(number: int) -> Image.Image | str:
        path = root / scanned.files[number].path
        try:
            return read_picture(path)
        except PictureError as error:
            return f"picture {path}: {error.reason}"

    batches = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]
    with ThreadPoolExecutor(_READERS) as pool:
        ahead = [pool.submit(read, number) for number in batches[0]] if batches else []
        for at, batch in enumerate(batches):
            results = [future.result() for future in ahead]
            following = batches[at + 1] if at + 1 < len(batches) else ()
            ahead = [pool.submit(read, number) for number in following]
            problems += [result for result in results if isinstance(result, str)]
            good = [
                (number, result)
                for number, result in zip(batch, results, strict=True)
                if not isinstance(result, str)
            ]
            yield [number for number, _ in good], [image for _, image in good]

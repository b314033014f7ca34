"""A store: a folder of records that is written once, whole or not at all, and read by number.

``records-00000.jsonl`` (one record a line), ``records-00000.idx.npy`` (where each line stands, and
its split), ``manifest.json`` and ``ledger.jsonl``. Pictures stay where they are: the manifest names
the image root; a root inside the store is kept relative, so that the folder can be moved. Of a
packed store, records and pictures are in ``shard-00000.tar``. A store that is only read may be at
any place that fsspec knows.
"""

from __future__ import annotations

import errno
import io
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from xvlm_core.data.block_cache import CacheSettings
from xvlm_core.data.files import Files, as_place, is_url, open_files, store_place
from xvlm_core.data.manifest import INDEX_DTYPE, MANIFEST, Manifest
from xvlm_core.data.numbers import RecordNumbers
from xvlm_core.data.records import SCHEMA_VERSION, Record, RecordError, record_from_json
from xvlm_core.data.store_writer import StoreWriter
from xvlm_core.errors import DataError, XvlmError

if TYPE_CHECKING:
    from xvlm_core.config.data_sections import DataSection

__all__ = ["Manifest", "Store", "StoreWriter"]

_KEPT_OPEN = 128
"""Indexes that are kept open: twice the shards that a window of the stream mixes."""

_MOST_PICTURE_BYTES = 1 << 30
"""Of a remote picture, which is read whole: twice the plain pixels of the largest we decode."""


class Store:
    """A prepared store, read by record number. Cheap to pickle: workers reopen its files.

    Attributes:
        place: where it is: a path, or a URL.
        folder: the same as a path (of a remote store good for its name alone).
        name: the folder's name.
        manifest: what it holds.
        image_root: where the pictures are: a path, or a URL.
    """

    def __init__(self, place: Path | str, manifest: Manifest, files: Files) -> None:
        self.place = place
        self.folder = Path(place)
        self.name = self.folder.name
        self.manifest = manifest
        self.files = files
        self.image_root = _image_root(place, manifest)
        self._pictures: Files | None = None
        self._ends = np.cumsum([shard.records for shard in manifest.shards], dtype=np.int64)
        self._indexes: dict[int, npt.NDArray[Any]] = {}

    @classmethod
    def open(cls, folder: Path | str, cache: CacheSettings | None = None) -> Store:
        """Open a store and check that its files are there and whole (by size).

        Args:
            folder: a folder, or a URL that fsspec knows.
            cache: of what is read from a URL.

        Raises:
            DataError: no store there, or it is damaged or of another version, or the place does
                not answer, or the pictures of a remote store are elsewhere.
            MissingToolError: fsspec lacks a package for the protocol.
        """
        if isinstance(folder, str):
            folder = as_place(folder)
        files = open_files(folder, cache)
        path = store_place(str(folder), MANIFEST)
        if files.size(MANIFEST) is None:
            raise DataError(
                f"no prepared data in {folder}", where=str(path), try_=_preparing(folder)
            )
        try:
            manifest = Manifest.model_validate_json(files.read_all(MANIFEST))
        except (OSError, ValidationError) as error:
            raise _damaged(folder, f"{path} is not a manifest", None) from error
        if manifest.schema_version != SCHEMA_VERSION:
            raise DataError(
                f"{folder} has schema version {manifest.schema_version}, "
                f"this version of xvlm reads {SCHEMA_VERSION}",
                where=str(path),
                try_=f"prepare it again: {manifest.command}",
            )
        for name in (n for s in manifest.shards for n in (s.file, s.index)):
            if os.path.basename(name) != name or "\\" in name or name in ("", ".", ".."):
                raise _damaged(folder, f"{path} names a file outside the store: {name!r}", None)
        try:
            sizes = files.sizes([n for s in manifest.shards for n in (s.file, s.index)])
        except ValueError as error:  # a name that leads out of the folder
            raise _damaged(folder, f"a file of {path} is {error}", manifest) from error
        for shard in manifest.shards:
            if sizes[shard.file] != shard.bytes:
                file = store_place(str(folder), shard.file)
                raise _damaged(folder, f"{file} is not {shard.bytes} bytes long", manifest)
            if sizes[shard.index] is None:
                file = store_place(str(folder), shard.index)
                raise _damaged(folder, f"{file} is missing", manifest)
        if manifest.records != sum(shard.records for shard in manifest.shards):
            raise _damaged(folder, f"{path} counts its records wrongly", None)
        files.keep(manifest.checksum)
        return cls(folder, manifest, files)

    @classmethod
    def of_recipe(cls, data: DataSection, name: str) -> Store:
        """Open a store of a recipe by its name; raises as ``open``."""
        return cls.open(store_place(data.root, name), CacheSettings.of(data))

    def __len__(self) -> int:
        return self.manifest.records

    def __getitem__(self, i: int) -> Record:
        """Record number ``i`` (0 to ``len - 1``).

        Raises:
            DataError: the bytes there are not a record.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)} in {self.place}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        row = self._index(number)[i - first]
        line = self._read(number, int(row["offset"]), int(row["length"]))
        try:
            return record_from_json(json.loads(line))
        except (ValueError, RecursionError, RecordError) as error:
            where = f"record {i} in {self._place_of(self.manifest.shards[number].file)}"
            raise _damaged(self.place, f"{where} is not a record", self.manifest) from error

    def picture_bytes(self, i: int) -> int:
        """Size of the picture files of record ``i`` when it was prepared; 0: they are inside."""
        number = int(np.searchsorted(self._ends, i, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        return int(self._index(number)[i - first]["pictures"])

    def numbers(self, split: str | None = None) -> RecordNumbers:
        """Record numbers of a split in store order (None: all), in little memory.

        Of shards that are wholly of one split nothing is read, of others their index.
        """
        pieces: list[tuple[int, int | npt.NDArray[Any]]] = []
        first = 0
        for number, shard in enumerate(self.manifest.shards):
            if split is None or list(shard.splits) == [split]:
                pieces.append((first, shard.records))
            elif split in shard.splits:
                code = list(shard.splits).index(split)
                splits = self._load_index(number, mapped=False)["split"]
                pieces.append((first, np.flatnonzero(splits == code).astype(np.uint32)))
            first += shard.records
        return RecordNumbers(pieces)

    def indices(self, split: str | None = None) -> npt.NDArray[np.int64]:
        """Record numbers of a split in store order (None: all) as an array."""
        return self.numbers(split).array()

    def picture(self, record: Record, which: int = 0) -> Path | bytes:
        """A record's picture: its real path, or, if remote or inside a tar file, its bytes.

        Args:
            record: of this store.
            which: 0, or 1 for the second picture of a pair.

        Raises:
            PictureError: the path leaves the image root, or the tar file is missing or cut off, or
                a remote picture is missing.
            DataError: a remote place does not answer.
        """
        from xvlm_core.data.images import byte_range, read_range, resolve_inside

        relative = record.images[which]
        if isinstance(self.image_root, str):
            return self._remote_picture(self.image_root, relative)
        span = byte_range(relative)
        if span is None:
            return resolve_inside(self.image_root, relative)
        return read_range(resolve_inside(self.image_root, span.file), span.offset, span.length)

    def _remote_picture(self, root: str, relative: str) -> bytes:
        from xvlm_core.data.images import PictureError, byte_range

        if self._pictures is None:
            # packed pictures are in the shards: what is known of those is known
            self._pictures = self.files if root == self.place else self.files.beside(root)
        span, files, url = byte_range(relative), self._pictures, f"{root}/{relative}"
        try:
            if span is None:
                return files.read_all(relative, most=_MOST_PICTURE_BYTES)
            if span.length > _MOST_PICTURE_BYTES:
                raise PictureError("too large", url)
            data = files.read(span.file, span.offset, span.length)
        except OSError as error:
            reason = "too large" if error.errno == errno.EFBIG else "missing"
            raise PictureError(reason, url) from error
        if len(data) < span.length:
            raise PictureError("truncated image", f"{url}: the file ends before")
        return data

    def verify(self) -> None:
        """Compare every file but the pictures with its checksum, the manifest with its own.

        Raises:
            DataError: naming the files that differ.
        """
        expected = dict(self.manifest.checksums)
        for shard in self.manifest.shards:
            expected |= {shard.file: shard.sha256, shard.index: shard.index_sha256}
        wrong = [
            name
            for name, checksum in expected.items()
            if self.files.size(name) is None or self.files.sha256(name) != checksum
        ]
        if self.manifest != self.manifest.sealed():
            wrong.append(MANIFEST)
        if wrong:
            raise _damaged(self.place, f"checksums differ: {', '.join(wrong)}", self.manifest)

    def _index(self, number: int) -> npt.NDArray[Any]:
        """The index of a shard, mapped. Only some are kept: a store may have thousands."""
        if number not in self._indexes:
            while len(self._indexes) >= _KEPT_OPEN:
                self._indexes.pop(next(iter(self._indexes)))
            self._indexes[number] = self._load_index(number, mapped=True)
        return self._indexes[number]

    def _load_index(self, number: int, *, mapped: bool) -> npt.NDArray[Any]:
        shard = self.manifest.shards[number]
        index: npt.NDArray[Any]
        try:
            if not mapped:
                data = self.files.read_all(shard.index)
                header = _usual_header(shard.records)
                size = len(header) + shard.records * INDEX_DTYPE.itemsize
                if len(data) == size and data.startswith(header):
                    return np.frombuffer(data, INDEX_DTYPE, offset=len(header))
            index = self.files.array(shard.index)
        except XvlmError:
            raise
        except Exception as error:  # NumPy reads the header as Python: any may come
            what = f"{shard.index} is not an index"
            raise _damaged(self.place, what, self.manifest) from error
        if index.dtype != INDEX_DTYPE or index.shape != (shard.records,):
            what = f"{shard.index} is not an index of {shard.records} records"
            raise _damaged(self.place, what, self.manifest)
        return index

    def _read(self, number: int, offset: int, length: int) -> bytes:
        file = self.manifest.shards[number].file
        try:
            return self.files.read(file, offset, length)
        except OSError as error:
            what = f"{self._place_of(file)} cannot be read ({error})"
            raise _damaged(self.place, what, self.manifest) from error

    def _place_of(self, name: str) -> Path | str:
        return store_place(str(self.place), name)

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "manifest": self.manifest, "files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@lru_cache(maxsize=16)
def _usual_header(records: int) -> bytes:
    """How an index of so many records begins. NumPy parses it as Python: ten times the time."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(INDEX_DTYPE)
    about = {"descr": descr, "fortran_order": False, "shape": (records,)}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def _image_root(place: Path | str, manifest: Manifest) -> Path | str:
    """Where the pictures of a store are.

    Raises:
        DataError: the store is remote, and they are not at a place that can be asked.
    """
    root = manifest.image_root
    if is_url(root):
        return root.rstrip("/")
    if isinstance(place, Path):
        return place / root  # an absolute root stands for itself
    path = Path(root)
    if path.is_absolute() or root.startswith("/"):
        raise DataError(
            f"{place}: its pictures are in {root} on the machine that prepared it",
            where=f"{place}/{MANIFEST}",
            try_=f"pack it, and copy it again: {_overwriting(manifest.command)} --pack",
        )
    if ".." in path.parts or "\\" in root:
        raise _damaged(place, f"its image root {root} is outside", manifest)
    inside = path.as_posix()
    return place if inside == "." else f"{place}/{inside}"


def _preparing(place: Path | str) -> str:
    if isinstance(place, Path):
        return f"xvlm prepare-data SOURCE -o {place}"
    name = place.rsplit("/", 1)[-1]
    return f"xvlm prepare-data SOURCE -o {name} --pack, and copy the folder to {place}"


def _damaged(folder: Path | str, what: str, manifest: Manifest | None) -> DataError:
    command = manifest.command if manifest else _preparing(folder)
    return DataError(
        f"the prepared data in {folder} is damaged: {what}",
        where=str(folder),
        try_=f"prepare it again: {_overwriting(command)}",
    )


def _overwriting(command: str) -> str:
    return command if "--overwrite" in command.split() else f"{command} --overwrite"

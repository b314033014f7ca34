"""A store: a folder of records that is written once, whole or not at all, and read by number.

``records-00000.jsonl`` (one record a line), ``records-00000.idx.npy`` (where each line stands, and
its split), ``manifest.json`` and ``ledger.jsonl``. Pictures stay where they are: the manifest names
the image root; a root inside the store is kept relative, so that the folder can be moved. Of a
packed store, records and pictures are in ``shard-00000.tar``.
"""

from __future__ import annotations

import io
import json
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from xvlm_core.data.manifest import INDEX_DTYPE, MANIFEST, Manifest, sha256_file
from xvlm_core.data.numbers import RecordNumbers
from xvlm_core.data.records import SCHEMA_VERSION, Record, RecordError, record_from_json
from xvlm_core.data.store_writer import StoreWriter
from xvlm_core.errors import DataError

__all__ = ["Manifest", "Store", "StoreWriter"]

_KEPT_OPEN = 128
"""Shards that are kept open: twice what a window of the stream mixes."""


class Store:
    """A prepared store, read by record number. Cheap to pickle: workers reopen its files.

    Attributes:
        folder: where it is.
        name: the folder's name.
        manifest: what it holds.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.name = folder.name
        self.manifest = manifest
        root = Path(manifest.image_root)
        self.image_root = root if root.is_absolute() else folder / root
        self._ends = np.cumsum([shard.records for shard in manifest.shards], dtype=np.int64)
        self._indexes: dict[int, npt.NDArray[Any]] = {}
        self._handles: dict[int, int] = {}

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Open a store and check that its files are there and whole (by size).

        Raises:
            DataError: no store there, or it is damaged or of another version.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(
                f"no prepared data in {folder}",
                where=str(path),
                try_=f"xvlm prepare-data SOURCE -o {folder}",
            )
        try:
            manifest = Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise _damaged(folder, f"{path} is not a manifest", None) from error
        if manifest.schema_version != SCHEMA_VERSION:
            raise DataError(
                f"{folder} has schema version {manifest.schema_version}, "
                f"this version of xvlm reads {SCHEMA_VERSION}",
                where=str(path),
                try_=f"prepare it again: {manifest.command}",
            )
        for shard in manifest.shards:
            if _size(folder, shard.file) != shard.bytes:
                what = f"{folder / shard.file} is not {shard.bytes} bytes long"
                raise _damaged(folder, what, manifest)
            if _size(folder, shard.index) is None:
                raise _damaged(folder, f"{folder / shard.index} is missing", manifest)
        return cls(folder, manifest)

    def __len__(self) -> int:
        return self.manifest.records

    def __getitem__(self, i: int) -> Record:
        """Record number ``i`` (0 to ``len - 1``).

        Raises:
            DataError: the bytes there are not a record.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)} in {self.folder}")
        number = int(np.searchsorted(self._ends, i, side="right"))
        first = int(self._ends[number - 1]) if number else 0
        row = self._index(number)[i - first]
        line = self._read(number, int(row["offset"]), int(row["length"]))
        try:
            return record_from_json(json.loads(line))
        except (ValueError, RecordError) as error:
            where = f"record {i} in {self.folder / self.manifest.shards[number].file}"
            raise _damaged(self.folder, f"{where} is not a record", self.manifest) from error

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
        """A record's picture: its real path, or, where it is inside a tar file, its bytes.

        Args:
            record: of this store.
            which: 0, or 1 for the second picture of a pair.

        Raises:
            PictureError: the path leaves the image root, or the tar file is missing or cut off.
        """
        from xvlm_core.data.images import byte_range, read_range, resolve_inside

        relative = record.images[which]
        span = byte_range(relative)
        if span is None:
            return resolve_inside(self.image_root, relative)
        return read_range(resolve_inside(self.image_root, span.file), span.offset, span.length)

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
            if not (self.folder / name).is_file() or sha256_file(self.folder / name) != checksum
        ]
        if self.manifest != self.manifest.sealed():
            wrong.append(MANIFEST)
        if wrong:
            raise _damaged(self.folder, f"checksums differ: {', '.join(wrong)}", self.manifest)

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
                with open(os.path.join(self.folder, shard.index), "rb") as file:
                    data = file.read()
                header = _usual_header(shard.records)
                size = len(header) + shard.records * INDEX_DTYPE.itemsize
                if len(data) == size and data.startswith(header):
                    return np.frombuffer(data, INDEX_DTYPE, offset=len(header))
            index = np.load(
                self.folder / shard.index, mmap_mode="r" if mapped else None, allow_pickle=False
            )
        except Exception as error:  # NumPy reads the header as Python: any may come
            what = f"{shard.index} is not an index"
            raise _damaged(self.folder, what, self.manifest) from error
        if index.dtype != INDEX_DTYPE or index.shape != (shard.records,):
            what = f"{shard.index} is not an index of {shard.records} records"
            raise _damaged(self.folder, what, self.manifest)
        return index

    def _read(self, number: int, offset: int, length: int) -> bytes:
        path = self.folder / self.manifest.shards[number].file
        try:
            if not hasattr(os, "pread"):  # Windows
                with open(path, "rb") as file:
                    file.seek(offset)
                    return file.read(length)
            if number not in self._handles:
                while len(self._handles) >= _KEPT_OPEN:
                    os.close(self._handles.pop(next(iter(self._handles))))
                self._handles[number] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            # Not seek and read: forked workers and threads share the file position.
            return os.pread(self._handles[number], length, offset)
        except OSError as error:
            raise _damaged(
                self.folder, f"{path} cannot be read ({error})", self.manifest
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["folder"], state["manifest"])  # type: ignore[misc]

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)


def _size(folder: Path, name: str) -> int | None:
    """Bytes of a file; None if it is not there. A store may have thousands: no ``Path`` is made."""
    try:
        status = os.stat(os.path.join(folder, name))
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@lru_cache(maxsize=16)
def _usual_header(records: int) -> bytes:
    """How an index of so many records begins. NumPy parses it as Python: ten times the time."""
    file = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(INDEX_DTYPE)
    about = {"descr": descr, "fortran_order": False, "shape": (records,)}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def _damaged(folder: Path, what: str, manifest: Manifest | None) -> DataError:
    command = manifest.command if manifest else f"xvlm prepare-data SOURCE -o {folder}"
    return DataError(
        f"the prepared data in {folder} is damaged: {what}",
        where=str(folder),
        try_=f"prepare it again: {_overwriting(command)}",
    )


def _overwriting(command: str) -> str:
    return command if "--overwrite" in command.split() else f"{command} --overwrite"

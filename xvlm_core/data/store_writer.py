"""Writing a store: whole and in place at the end, or nothing at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from xvlm_core.data.ledger import Item, Ledger
from xvlm_core.data.manifest import INDEX_DTYPE, LEDGER, MANIFEST, Manifest, Shard, sha256_file
from xvlm_core.data.records import SCHEMA_VERSION, Record
from xvlm_core.errors import DataError, OutputError


class StoreWriter:
    """Writes a store as a context manager: whole and in place at the end, or nothing at all.

    Files are written to a hidden folder beside the target, synced, and renamed into place.
    A source counts what it reads, keeps and drops in ``ledger``; at the end it is checked that
    read = kept + dropped and that what was counted as kept is what was written (an item type that
    the source never counted is counted from the records).

    Args:
        folder: where the store will be; must not exist, or be empty.
        image_root: folder that the records' picture paths start from. ``folder`` itself: the
            source writes pictures into ``work``.
        source: kind of source.
        command: what was typed; shown when the store must be made again.
        overwrite: replace an existing store.
        shard_records: records a file.

    Raises:
        OutputError: at once, if the folder is not empty (with ``overwrite``: not a store, or it
            holds the pictures to be read); later, if the disk is full or read-only.
        DataError: at the end, if records have the same id (naming them).
    """

    def __init__(
        self,
        folder: Path,
        *,
        image_root: Path,
        source: str,
        command: str,
        overwrite: bool = False,
        shard_records: int = 1_000_000,
    ) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.image_root = Path(os.path.realpath(image_root))
        self.source = source
        self.command = command
        self.ledger = Ledger()
        self._given = folder
        self._shard_records = shard_records
        self._refuse(overwrite)

    def _refuse(self, overwrite: bool) -> None:
        try:
            if not os.path.lexists(self.folder):
                return
            if not self.folder.is_dir():
                raise OutputError(f"{self._given} is not a folder", try_="another -o FOLDER")
            if not any(self.folder.iterdir()):
                return
        except OSError as error:
            raise _cannot_write(self._given, error) from error
        if not overwrite:
            raise OutputError(f"{self._given} is not empty", try_="--overwrite")
        if not (self.folder / MANIFEST).is_file():
            raise OutputError(
                f"{self._given} is not empty and not a prepared store: not overwritten",
                try_="another -o FOLDER",
            )
        if self.image_root != self.folder and self.image_root.is_relative_to(self.folder):
            raise OutputError(
                f"overwriting {self._given} would delete the pictures to be read",
                where=str(self.image_root),
                try_="another -o FOLDER",
            )

    def __enter__(self) -> StoreWriter:
        suffix = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.work = self.folder.parent / f".{self.folder.name}.partial-{suffix}"
        """The folder that becomes the store: for pictures that the source writes itself."""
        self._digests: set[bytes] = set()
        self._repeated: list[str] = []
        self._written: Counter[str] = Counter()
        self._splits: dict[str, int] = {}
        self._shards: list[Shard] = []
        self._checksums: dict[str, str] = {}
        try:
            with self.writing():
                self.work.mkdir(parents=True)
                # Closed in __exit__: they live as long as the writer does.
                self._ledger_file = open(self.work / LEDGER, "w", encoding="utf-8", newline="\n")
                self._open_shard()
        except BaseException:
            shutil.rmtree(self.work, ignore_errors=True)
            raise
        self.ledger = Ledger(_Guarded(self))
        return self

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turns an ``OSError`` of the block (disk full, read-only) into an ``OutputError``."""
        try:
            yield
        except OSError as error:
            raise _cannot_write(self._given, error) from error

    @property
    def records(self) -> int:
        """Number of records added."""
        return len(self._digests)

    def add(self, record: Record) -> None:
        """Append one record.

        Raises:
            OutputError: it cannot be written.
            DataError: it has text that is no Unicode.
        """
        try:
            line = record.to_line().encode("utf-8")
            digest = hashlib.blake2b(record.id.encode("utf-8"), digest_size=16).digest()
        except UnicodeEncodeError as error:
            raise DataError(f"record {record.id!r} has text that is no Unicode") from error
        if digest in self._digests:
            self._repeated.append(record.id)
            return
        self._digests.add(digest)
        split = self._splits.setdefault(record.split, 0)
        self._splits[record.split] = split + 1
        with self.writing():
            if len(self._lengths) == self._shard_records:
                self._close_shard()
                self._open_shard()
            self._file.write(line + b"\n")
        self._lengths.append(len(line))
        self._codes.append(list(self._splits).index(record.split))
        self._count(record)

    def _count(self, record: Record) -> None:
        self._written["pair" if len(record.images) == 2 else "picture"] += 1
        for item, n in (
            ("caption", len(record.captions)),
            ("region", len(record.regions)),
            ("absent", len(record.absent)),
            ("question", len(record.questions)),
        ):
            if n:
                self._written[item] += n

    def _open_shard(self) -> None:
        name = f"records-{len(self._shards):05d}"
        self._shard_name = name
        self._file = open(self.work / f"{name}.jsonl", "wb")  # noqa: SIM115 (closed in __exit__)
        self._lengths, self._codes = array("q"), array("q")

    def _close_shard(self) -> None:
        _sync(self._file)
        self._file.close()
        name = self._shard_name
        rows = np.zeros(len(self._lengths), INDEX_DTYPE)
        rows["length"], rows["split"] = self._lengths, self._codes
        if len(rows):
            rows["offset"][1:] = np.cumsum(rows["length"][:-1].astype(np.int64) + 1)
        with open(self.work / f"{name}.idx.npy", "wb") as file:
            np.save(file, rows, allow_pickle=False)
            _sync(file)
        self._shards.append(
            Shard(
                file=f"{name}.jsonl",
                index=f"{name}.idx.npy",
                records=len(rows),
                bytes=(self.work / f"{name}.jsonl").stat().st_size,
            )
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            for file in (self._file, self._ledger_file):
                # A full disk may fail again here, on what is left in the buffer.
                with suppress(OSError):
                    file.close()
            # After success it is gone: renamed into place.
            shutil.rmtree(self.work, ignore_errors=True)

    def _finish(self) -> None:
        if self._repeated:
            names = sorted(set(self._repeated))
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            raise DataError(
                f"records with the same id: {', '.join(names[:10])}{more}",
                try_="give each record an id of its own",
            )
        self._check_ledger()
        with self.writing():
            self._close_shard()
            _sync(self._ledger_file)
            self._ledger_file.close()
            # Pictures that a source wrote are not listed: their number may be in the millions.
            for name in [LEDGER, *(n for s in self._shards for n in (s.file, s.index))]:
                self._checksums[name] = sha256_file(self.work / name)
            self.manifest = self._manifest()
            with open(self.work / MANIFEST, "w", encoding="utf-8", newline="\n") as file:
                file.write(self.manifest.model_dump_json(indent=2) + "\n")
                _sync(file)
            _sync_folder(self.work)
            self._into_place()

    def _check_ledger(self) -> None:
        counts = self.ledger.counts
        for item, n in self._written.items():
            if item not in counts:
                self.ledger.read(cast(Item, item), n)
                self.ledger.keep(cast(Item, item), n)
        self.ledger.check()
        for item, count in self.ledger.counts.items():
            if item != "line" and count["kept"] != self._written[item]:
                raise AssertionError(
                    f"{item}: {count['kept']} counted as kept, {self._written[item]} written"
                )

    def _manifest(self) -> Manifest:
        root = self.image_root
        if root.is_relative_to(self.folder):
            root = root.relative_to(self.folder)
        records = "".join(self._checksums[shard.file] for shard in self._shards)
        return Manifest(
            schema_version=SCHEMA_VERSION,
            source=self.source,
            command=self.command,
            image_root=root.as_posix(),
            records=sum(shard.records for shard in self._shards),
            splits=self._splits,
            counts=self.ledger.counts,
            shards=tuple(self._shards),
            checksums=self._checksums,
            fingerprint=hashlib.sha256(records.encode()).hexdigest(),
        )

    def _into_place(self) -> None:
        old = self.work.with_name(self.work.name + ".old")
        existed = self.folder.exists()
        if existed:
            os.rename(self.folder, old)
        try:
            os.rename(self.work, self.folder)
        except OSError:
            if existed:
                os.rename(old, self.folder)
            raise
        _sync_folder(self.folder.parent)
        if existed:
            shutil.rmtree(old, ignore_errors=True)


class _Guarded:
    """The ledger's file: what goes wrong while writing is an ``OutputError``."""

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer

    def write(self, text: str) -> None:
        with self._writer.writing():
            self._writer._ledger_file.write(text)


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(
        f"cannot write {folder}: {reason}",
        where=str(error.filename) if error.filename else None,
        try_="another -o FOLDER, or make room or give write permission there",
    )

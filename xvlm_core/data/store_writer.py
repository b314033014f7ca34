"""Writing records to a store, one after the other, in this process."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from xvlm_core.data.ledger import Ledger
from xvlm_core.data.records import Record
from xvlm_core.data.shard_writer import Encoded, ShardWriter
from xvlm_core.data.store_folder import StoreFolder


class StoreWriter:
    """Writes records to a store, one after the other, as a context manager: whole or not at all.

    ``ledger`` belongs to the shard being written.

    Args:
        folder: where the store will be; must not exist, or be empty.
        image_root: folder that the records' picture paths start from. ``folder`` itself: pictures
            come with the records.
        source: kind of source.
        command: what was typed; shown when the store must be made again.
        overwrite: replace an existing store.
        shard_records: records a file.
        packed: pictures go into the shards.

    Raises:
        OutputError: as ``StoreFolder``.
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
        packed: bool = False,
    ) -> None:
        self.source, self.command = source, command
        self.store = StoreFolder(folder, image_root, overwrite=overwrite)
        self._shard_records, self._packed = shard_records, packed

    def __enter__(self) -> StoreWriter:
        self.store.begin("")
        try:
            with self.store.writing():
                self.store.clear()  # this writer continues nothing
                self._shard = self._open(0)
        except BaseException:
            self.store.remove()
            raise
        return self

    def _open(self, number: int) -> ShardWriter:
        shard = ShardWriter(self.store.work, number, packed=self._packed)
        shard.ledger = Ledger(_Guarded(self.store, shard.ledger_file))
        return shard

    @property
    def ledger(self) -> Ledger:
        """Of what is read, kept and dropped."""
        return self._shard.ledger

    def add(self, record: Record, pictures: tuple[Encoded, ...] = ()) -> None:
        """Append one record (and its pictures).

        Raises:
            OutputError: it cannot be written.
            DataError: it has text that is no Unicode.
        """
        with self.store.writing():
            if len(self._shard) == self._shard_records:
                self.store.add(self._shard.finish())
                self._shard = self._open(self._shard.number + 1)
            self._shard.add(record, pictures)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                with self.store.writing():
                    self.store.add(self._shard.finish())
                self.manifest = self.store.finish(
                    source=self.source, command=self.command, files={}, packed=self._packed
                )
        finally:
            self._shard.close()
            with suppress(OSError):
                self.store.remove()


class _Guarded:
    """A ledger's file: what goes wrong while writing is an ``OutputError``."""

    def __init__(self, store: StoreFolder, file: IO[str]) -> None:
        self._store, self._file = store, file

    def write(self, text: str) -> None:
        with self._store.writing():
            self._file.write(text)

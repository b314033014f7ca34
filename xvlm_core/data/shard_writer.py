"""Writing one shard: the records of some pictures, in place or packed into a tar file.

A packed shard is a plain tar that any webdataset reader can read: ``000000012.jpg`` (for a pair
``000000012.0.jpg`` and ``000000012.1.jpg``) and ``000000012.json``, the record. The index says
where each record stands, and each record where its pictures do (``shard-00000.tar@512+2048``).
Bytes depend on nothing but what is added: no time, no user, no machine.
"""

from __future__ import annotations

import dataclasses
import io
import os
import secrets
import tarfile
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from xvlm_core.data.ledger import Counts, Item, Ledger
from xvlm_core.data.manifest import INDEX_DTYPE, SAME_DTYPE, Shard, name_hash, sha256_file
from xvlm_core.data.records import Record
from xvlm_core.errors import DataError

PICTURES = "pictures"
"""Folder of a store for pictures that no file of the image root holds."""

PARTS = "parts"
"""Folder of what serves the making of a store alone."""

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}


@dataclass(frozen=True)
class Encoded:
    """A picture to be written into the store.

    Attributes:
        name: file name in the store, where it is not packed.
        data: the encoded picture.
        kind: format, as Pillow names it.
    """

    name: str
    data: bytes
    kind: str = "JPEG"


@dataclass(frozen=True)
class ShardDone:
    """A shard that is written and synced.

    Attributes:
        number: 0, 1, ...
        shard: for the manifest.
        counts: of the ledger.
    """

    number: int
    shard: Shard
    counts: Counts


def ledger_part(number: int) -> str:
    """Name of the ledger of one shard."""
    return f"{PARTS}/{number:05d}.ledger.jsonl"


def same_part(number: int) -> str:
    """Name of the names of photographs of one shard."""
    return f"{PARTS}/{number:05d}.same.npy"


def looks_part(number: int) -> str:
    """Name of the perceptual hashes of one shard."""
    return f"{PARTS}/{number:05d}.looks.npy"


class ShardWriter:
    """Writes shard ``number`` into a folder, over whatever an interrupted run left of it.

    Args:
        folder: exists.
        number: of the shard.
        packed: pictures go into the shard.

    Raises:
        OSError: from any method: the disk is full, read-only, ...
    """

    def __init__(self, folder: Path, number: int, *, packed: bool = False) -> None:
        self.folder, self.number, self.packed = folder, number, packed
        self.name = f"shard-{number:05d}.tar" if packed else f"records-{number:05d}.jsonl"
        self._bytes = 0
        self._splits: dict[str, int] = {}
        self._rows: dict[str, array[int]] = {
            key: array(code)
            for key, code in zip(
                ("offset", "length", "split", "id", "pictures"), "qqqQq", strict=True
            )
        }
        self._same: list[tuple[int, int]] = []
        self._looks: list[int] = []
        self._written: Counter[str] = Counter()
        (folder / PARTS).mkdir(exist_ok=True)
        # Names of its own until it is whole: a worker that outlives a killed run disturbs nobody.
        own = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._begun = folder / f"{self.name}.{own}"
        self._begun_ledger = folder / f"{ledger_part(number)}.{own}"
        # Both are closed in finish or close.
        self.ledger_file = open(  # noqa: SIM115
            self._begun_ledger, "w", encoding="utf-8", newline="\n"
        )
        self._file = open(self._begun, "wb")  # noqa: SIM115
        self._tar: tarfile.TarFile | None = None
        if packed:
            self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self.ledger = Ledger(self.ledger_file)

    def __len__(self) -> int:
        return len(self._rows["offset"])

    def add(
        self,
        record: Record,
        pictures: Sequence[Encoded] = (),
        looks: Sequence[int] = (),
        picture_bytes: int = 0,
    ) -> None:
        """Append one record.

        Args:
            record: its ``images`` are replaced where ``pictures`` are given.
            pictures: to be written too; packed: all of the record's.
            looks: perceptual hash of each picture, if wanted.
            picture_bytes: of its picture files, which stay where they are.

        Raises:
            DataError: it has text that is no Unicode.
        """
        key = f"{self.number:05d}{len(self):07d}"
        if pictures:
            paths = [
                self._write_picture(picture, key, number if len(pictures) > 1 else None)
                for number, picture in enumerate(pictures)
            ]
            record = dataclasses.replace(record, images=tuple(paths))
        try:
            line = record.to_line().encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"record {record.id!r} has text that is no Unicode") from error
        split = self._splits.setdefault(record.split, 0)
        self._splits[record.split] = split + 1
        number = len(self)
        rows = self._rows
        rows["offset"].append(self._write_line(line, key))
        rows["length"].append(len(line))
        rows["split"].append(list(self._splits).index(record.split))
        rows["id"].append(name_hash(record.id))
        rows["pictures"].append(picture_bytes)
        self._same += [(name_hash(name), number) for name in record.same_as]
        for one in looks:
            self._looks += [one, number]
        self._count(record)

    def _write_picture(self, picture: Encoded, key: str, which: int | None) -> str:
        if not self.packed:
            path = self.folder / PICTURES / picture.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.data)
            return f"{PICTURES}/{picture.name}"
        extension = _EXTENSIONS.get(picture.kind, picture.kind.lower())
        part = "" if which is None else f".{which}"
        offset = self._add_member(f"{key}{part}.{extension}", picture.data)
        return f"{self.name}@{offset}+{len(picture.data)}"

    def _add_member(self, name: str, data: bytes) -> int:
        assert self._tar is not None
        header = tarfile.TarInfo(name)
        header.size, header.mode = len(data), 0o644
        offset = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(header, io.BytesIO(data))
        return offset

    def _write_line(self, line: bytes, key: str) -> int:
        if self._tar is not None:
            return self._add_member(f"{key}.json", line)
        offset = self._bytes
        self._bytes += self._file.write(line + b"\n")
        return offset

    def _count(self, record: Record) -> None:
        self._written["pair" if len(record.images) == 2 else "picture"] += 1
        for item, n in (
            ("caption", len(record.captions)),
            ("region", len(record.regions)),
            ("absent", len(record.absent)),
            ("question", len(record.questions)),
            ("proposal", len(record.proposals_xyxy_px)),
        ):
            if n:
                self._written[item] += n

    def finish(self) -> ShardDone:
        """Write the index, sync everything, check the ledger.

        An item type that was never counted is counted from the records. That read = kept + dropped
        and that what was counted as kept is what was written is asserted.
        """
        self._check_ledger()
        if self._tar is not None:
            self._tar.close()
        for file in (self._file, self.ledger_file):
            sync(file)
            file.close()
        os.replace(self._begun, self.folder / self.name)
        os.replace(self._begun_ledger, self.folder / ledger_part(self.number))
        index = f"records-{self.number:05d}.idx.npy"
        rows = np.zeros(len(self), INDEX_DTYPE)
        for name, values in self._rows.items():
            rows[name] = values
        save_array(self.folder / index, rows)
        save_array(self.folder / same_part(self.number), np.array(self._same, SAME_DTYPE))
        looks = np.array(self._looks, np.uint64).reshape(-1, 2)
        save_array(self.folder / looks_part(self.number), looks)
        path = self.folder / self.name
        shard = Shard(
            file=self.name,
            index=index,
            records=len(rows),
            bytes=path.stat().st_size,
            splits=self._splits,
            sha256=sha256_file(path),
            index_sha256=sha256_file(self.folder / index),
        )
        return ShardDone(self.number, shard, self.ledger.counts)

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

    def close(self) -> None:
        """Close the files, and remove them if the shard is given up."""
        for file, path in ((self._file, self._begun), (self.ledger_file, self._begun_ledger)):
            with suppress(OSError):  # a full disk fails again on what is left in the buffer
                file.close()
            with suppress(OSError):
                path.unlink(missing_ok=True)


def save_array(path: Path, rows: np.ndarray[Any, Any]) -> None:
    """Write an array file and sync it."""
    begun = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    with open(begun, "wb") as file:
        np.save(file, rows, allow_pickle=False)
        sync(file)
    os.replace(begun, path)


def sync(file: IO[Any]) -> None:
    """Bring what was written to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""What a store says of itself: its manifest, and the names and layout of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

MANIFEST = "manifest.json"
LEDGER = "ledger.jsonl"
SAME = "same.npy"
"""Names of photographs, sorted: ``SAME_DTYPE``."""
LOOKS = "looks.npy"
"""Perceptual hash of the pictures and the number of the record, two ``uint64`` a row."""
INDEX_DTYPE = np.dtype(
    [("offset", "<i8"), ("length", "<i4"), ("split", "<i4"), ("id", "<u8"), ("pictures", "<i8")]
)
"""One row a record: byte offset, bytes without the newline, number of its split in the shard's
``splits``, ``name_hash`` of its id, bytes of its picture files outside the store (0: inside)."""

SAME_DTYPE = np.dtype([("name", "<u8"), ("record", "<i8")])
"""One row a name of a photograph: ``name_hash`` of it, and the number of the record."""


def name_hash(name: str) -> int:
    """64 bits that stand for a name."""
    data = name.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class Shard(BaseModel):
    """One file of records (with their pictures, if packed) and its index.

    Attributes:
        file: ``records-00000.jsonl``, or ``shard-00000.tar`` with pictures and records.
        index: ``records-00000.idx.npy``: ``INDEX_DTYPE``.
        records: their number.
        bytes: size of ``file``.
        splits: records of each split; the order gives the split numbers of the index.
        sha256: of ``file``.
        index_sha256: of ``index``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    index: str
    records: int = Field(ge=0, lt=1 << 40)
    bytes: int = Field(ge=0, lt=1 << 60)
    splits: dict[str, int]
    sha256: str
    index_sha256: str


class Manifest(BaseModel):
    """What a store holds and how it was made.

    Attributes:
        schema_version: of the record schema.
        source: the kind of source ("coco", "jsonl", "world", ...).
        command: what was typed to make it.
        image_root: folder of the pictures; relative to the store if inside it.
        packed: the pictures are in the shards.
        resized: longest side in pixels that larger pictures were reduced to.
        rules: the cleaning rules that were on.
        excluded: where the lists of excluded pictures came from.
        records: number of records.
        splits: records of each split.
        counts: read, kept, dropped, repaired of each item type.
        shards: the files of records.
        checksums: sha256 of every other file of the store but the pictures.
        fingerprint: sha256 over the records: equal data, equal fingerprint.
        checksum: sha256 of all that the manifest says besides (``sealed``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    source: str
    command: str
    image_root: str
    packed: bool = False
    resized: int | None = None
    rules: dict[str, Any] = {}
    excluded: tuple[str, ...] = ()
    records: int
    splits: dict[str, int]
    counts: dict[str, dict[str, Any]]
    shards: tuple[Shard, ...]
    checksums: dict[str, str]
    fingerprint: str
    checksum: str = ""

    def sealed(self) -> Manifest:
        """The same with its checksum."""
        plain = self.model_copy(update={"checksum": ""})
        checksum = hashlib.sha256(plain.model_dump_json().encode()).hexdigest()
        return plain.model_copy(update={"checksum": checksum})


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

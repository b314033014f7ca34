"""What a store says of itself: its manifest, and the names and layout of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

MANIFEST = "manifest.json"
LEDGER = "ledger.jsonl"
INDEX_DTYPE = np.dtype([("offset", "<i8"), ("length", "<i4"), ("split", "<i4")])
"""One row a record: byte offset, bytes without the newline, number of its split."""


class Shard(BaseModel):
    """One file of records and its index."""

    model_config = ConfigDict(frozen=True)

    file: str
    index: str
    records: int
    bytes: int


class Manifest(BaseModel):
    """What a store holds and how it was made.

    Attributes:
        schema_version: of the record schema.
        source: the kind of source ("coco", "jsonl", "world", ...).
        command: what was typed to make it.
        image_root: folder of the pictures; relative to the store if inside it.
        records: number of records.
        splits: records of each split; the order gives the split numbers of the index.
        counts: read, kept, dropped, repaired of each item type.
        shards: the files of records.
        checksums: sha256 of every other file of the store.
        fingerprint: sha256 over the records: equal data, equal fingerprint.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int
    source: str
    command: str
    image_root: str
    records: int
    splits: dict[str, int]
    counts: dict[str, dict[str, Any]]
    shards: tuple[Shard, ...]
    checksums: dict[str, str]
    fingerprint: str


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

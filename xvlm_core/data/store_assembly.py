"""Putting the shards of a store together: ids, ledgers, names of photographs, the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from xvlm_core.data.ledger import merged
from xvlm_core.data.manifest import LEDGER, LOOKS, SAME, SAME_DTYPE, Manifest, Shard
from xvlm_core.data.records import SCHEMA_VERSION
from xvlm_core.data.shard_writer import (
    ShardDone,
    ledger_part,
    looks_part,
    same_part,
    save_array,
    sync,
)
from xvlm_core.errors import DataError


def refuse_repeated_ids(work: Path, shards: list[Shard]) -> None:
    """Every record has an id of its own.

    Raises:
        DataError: naming those that come more than once.
    """
    indexes = [np.load(work / s.index, allow_pickle=False) for s in shards]
    hashes = np.concatenate([index["id"] for index in indexes])
    hashes.sort()
    repeated = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not repeated:
        return
    seen: dict[str, int] = {}
    for shard, index in zip(shards, indexes, strict=True):
        with open(work / shard.file, "rb") as file:
            for row in index[np.isin(index["id"], list(repeated))]:
                file.seek(int(row["offset"]))
                id = str(json.loads(file.read(int(row["length"])))["id"])
                seen[id] = seen.get(id, 0) + 1
    names = sorted(id for id, n in seen.items() if n > 1)
    if not names:  # two ids with one hash
        return
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    raise DataError(
        f"records with the same id: {', '.join(names[:10])}{more}",
        try_="give each record an id of its own",
    )


def join_ledgers(work: Path, shards: int) -> None:
    """One ledger of those of all shards."""
    with open(work / LEDGER, "wb") as whole:
        for number in range(shards):
            with open(work / ledger_part(number), "rb") as part:
                shutil.copyfileobj(part, whole)
        sync(whole)


def join_arrays(work: Path, shards: list[ShardDone]) -> list[str]:
    """Names of photographs and perceptual hashes of all shards; the names of the files made."""
    names = []
    first, same, looks = 0, [], []
    for done in shards:
        rows = np.load(work / same_part(done.number), allow_pickle=False)
        rows["record"] += first
        same.append(rows)
        seen = np.load(work / looks_part(done.number), allow_pickle=False)
        seen[:, 1] += np.uint64(first)
        looks.append(seen)
        first += done.shard.records
    all_same: np.ndarray[Any, Any] = np.concatenate([np.empty(0, SAME_DTYPE), *same])
    all_same.sort(order=("name", "record"))
    all_looks: np.ndarray[Any, Any] = np.concatenate([np.empty((0, 2), np.uint64), *looks])
    for name, rows in ((SAME, all_same), (LOOKS, all_looks)):
        if len(rows):
            save_array(work / name, rows)
            names.append(name)
    return names


def manifest_of(shards: list[ShardDone], **about: Any) -> Manifest:
    """The manifest of a store of these shards.

    Args:
        shards: in order; those without records are left out.
        about: the fields that do not follow from them.
    """
    splits: dict[str, int] = {}
    for done in shards:
        for split, n in done.shard.splits.items():
            splits[split] = splits.get(split, 0) + n
    kept = tuple(done.shard for done in shards if done.shard.records)
    return Manifest(
        schema_version=SCHEMA_VERSION,
        records=sum(shard.records for shard in kept),
        splits=splits,
        counts=merged(done.counts for done in shards),
        shards=kept,
        fingerprint=hashlib.sha256("".join(s.sha256 for s in kept).encode()).hexdigest(),
        **about,
    ).sealed()

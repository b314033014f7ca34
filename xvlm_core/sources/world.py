"""The synthetic world as a store, and as a stand-in for the stores that a recipe names.

Everything is a pure function of the seed: the bytes do not depend on the number of processes.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from xvlm_core.data.records import Record
from xvlm_core.data.store import Manifest, StoreWriter
from xvlm_core.errors import UsageError
from xvlm_core.sources.registry import Progress

if TYPE_CHECKING:
    from xvlm_core.config.schema import Recipe

_SPLITS = ("train", "val", "test", "unseen")
_CHUNK = 32
"""Pictures that a process draws at a time."""


@dataclass(frozen=True)
class _Job:
    """Pictures ``first`` to ``last - 1`` of a split, and where to write them."""

    seed: int
    split: str
    first: int
    last: int
    size: int
    folder: Path


def image_root(options: dict[str, Any]) -> None:
    """None: the pictures are part of the store."""


def convert(writer: StoreWriter, options: dict[str, Any], progress: Progress) -> None:
    """Draw the pictures and add their records, then those of the pairs.

    Raises:
        UsageError: no picture is asked for, or the size is none that the world can have.
        OutputError: a picture cannot be written.
    """
    from xvlm_core.world.grammar import pair_record

    sizes = {split: options[split] for split in _SPLITS}
    if not any(sizes.values()):
        raise UsageError("a world without pictures", try_="--train 1000")
    seed, size = options["seed"], options["size"]
    for record in _draw(writer, sizes, seed, size, options["workers"], progress):
        writer.add(record)
    for split, pictures in sizes.items():
        for index in range(min(options["pairs"], pictures // 2)):
            writer.add(pair_record(seed, split, index, size)[0])


def stand_in(
    recipe: Recipe,
    root: Path,
    *,
    command: str,
    train: int = 64,
    val: int = 32,
    size: int = 128,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    only: Collection[str] | None = None,
) -> dict[str, Manifest]:
    """Fill every store that a recipe names with pictures of the world.

    Each store has other pictures. Stores of ``data.images`` alone have captions only, as theirs
    would; splits are named as the recipe names them.

    Args:
        recipe: resolved.
        root: folder of the stores (the recipe's ``data.root``).
        command: what was typed.
        train: pictures of the training split, a store.
        val: pictures of the validation split, a store.
        size: side of the pictures in pixels.
        seed: another seed, other pictures.
        workers: processes; None: all cores.
        progress: told how far it is.
        overwrite: replace stores that are there.
        only: these stores alone; None: all that the recipe names.

    Returns:
        The manifests by the store's name.

    Raises:
        OutputError: one of the folders is not empty (nothing is written then).
        UsageError: a store is named by a path outside ``root``.
    """
    data = recipe.data
    captioned = data.images.stores if data.images else ()
    with_regions = data.regions.stores if data.regions else ()
    trained, validated = {*captioned, *with_regions}, set(data.validation)
    names = sorted(name for name in trained | validated if only is None or name in only)
    for name in names:
        if Path(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UsageError(f"store {name!r} is outside {root}", where="data of the recipe")
    writers = {
        name: StoreWriter(
            root / name,
            image_root=root / name,
            source=f"world (stand-in for {name})",
            command=command,
            overwrite=overwrite,
        )
        for name in names
    }
    renamed = {"train": data.train_split, "val": data.validation_split}
    for name, writer in writers.items():
        sizes = {"train": train if name in trained else 0, "val": val if name in validated else 0}
        own_seed = zlib.crc32(f"{name}/{seed}".encode())
        with_all = name in with_regions or name in validated
        with writer:
            for record in _draw(writer, sizes, own_seed, size, workers, progress):
                record = dataclasses.replace(record, split=renamed[record.split])
                writer.add(record if with_all else _captions_only(record))
    return {name: writer.manifest for name, writer in writers.items()}


def _captions_only(record: Record) -> Record:
    return dataclasses.replace(record, regions=(), absent=(), questions=(), meta={})


def _draw(
    writer: StoreWriter,
    sizes: dict[str, int],
    seed: int,
    size: int,
    workers: int | None,
    progress: Progress | None,
) -> Iterator[Record]:
    """Write the pictures of some splits; yield their records in order."""
    with writer.writing():
        (writer.work / "pictures").mkdir()
    jobs = [
        _Job(seed, split, first, min(first + _CHUNK, n), size, writer.work)
        for split, n in sizes.items()
        for first in range(0, n, _CHUNK)
    ]
    total, done = sum(sizes.values()), 0
    # Starting a process takes as long as some dozens of pictures.
    processes = min(workers or os.cpu_count() or 1, len(jobs) // 2)
    with ExitStack() as stack:
        if processes > 1:
            pool = ProcessPoolExecutor(
                processes,
                mp_context=_context(),
                initializer=_end_with_parent,
                initargs=(os.getpid(),),
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            chunks = pool.map(_draw_chunk, jobs)
        else:
            chunks = map(_draw_chunk, jobs)
        for _ in jobs:
            with writer.writing():
                records = next(chunks)
            yield from records
            done += len(records)
            if progress is not None:
                progress(done, total, f"pictures of {writer.folder.name}")


def _context() -> Any:
    # Forked processes need no importable __main__, so that a plain script can call this too. They
    # only draw: no threads, no torch.
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def _end_with_parent(parent: int) -> None:
    """In a worker: Ctrl-C and SIGTERM are the parent's to answer; a killed parent ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _draw_chunk(job: _Job) -> list[Record]:
    from PIL import Image

    from xvlm_core.world.grammar import world_record

    records = []
    for index in range(job.first, job.last):
        record, picture_hwc = world_record(job.seed, job.split, index, job.size)
        Image.fromarray(picture_hwc).save(job.folder / record.image, compress_level=1)
        records.append(record)
    return records

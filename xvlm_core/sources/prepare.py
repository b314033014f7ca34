"""From a source to a store: plan, cut into shards, have them done, put them together.

Continuing: a shard that is done has a line in the hidden folder and is not done again. Whether that
folder belongs to the same work is told by the source, its options and the state of its files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvlm_core.errors import DataError, OutputError, UsageError
from xvlm_core.sources import engines
from xvlm_core.sources.advice import about_boxes
from xvlm_core.sources.base import Plan, Progress, Rules, Source
from xvlm_core.sources.drafts import Event, Kept, Lost, Repaired
from xvlm_core.sources.registry import RUNNING, checked_options, find_source

if TYPE_CHECKING:
    from xvlm_core.data.manifest import Manifest
    from xvlm_core.data.shard_writer import ShardDone
    from xvlm_core.data.store_folder import StoreFolder

_SHARD_RECORDS = 2000
_PACKED_RECORDS = 1000


def prepare(
    source_name: str,
    output: Path,
    options: Mapping[str, object],
    *,
    command: str,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Convert a source to a store, or go on where an earlier run of the same work stopped.

    Args:
        source_name: a key of ``SOURCES``.
        output: folder of the store.
        options: by Python name; missing ones take their defaults.
        command: what was typed; the manifest and error messages repeat it.
        progress: told how far it is.
        overwrite: replace a store that is there.

    Returns:
        The manifest, with the counts of all that was read, kept, dropped and repaired.

    Raises:
        UsageError: unknown source or options.
        OutputError: the folder is not empty or cannot be written.
        DataError: the input is missing or damaged, or nothing of it could be kept.
        ToolError: a library that the source or the engine needs is not installed.
    """
    from xvlm_core.data.store_folder import StoreFolder

    source = find_source(source_name)
    values = checked_options(source, options)
    own = {option.name: values[option.name] for option in source.options}
    StoreFolder(output, None, overwrite=overwrite)  # refuses before anything is read
    plan = source.plan(own)
    return prepare_plan(
        source, plan, output, values, command=command, progress=progress, overwrite=overwrite
    )


def prepare_plan(
    source: Source,
    plan: Plan,
    output: Path,
    values: Mapping[str, Any],
    *,
    command: str,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Manifest:
    """As ``prepare``, of a plan that is made already.

    Args:
        source: of the plan.
        plan: what is read.
        output: folder of the store.
        values: all options of the source, typed (``checked_options``).
        command: for the manifest.
        progress: told how far it is.
        overwrite: replace a store that is there.
    """
    from xvlm_core.data.store_folder import StoreFolder
    from xvlm_core.sources.convert import Settings
    from xvlm_core.sources.exclusion import load_exclusions

    if values["resize"] is not None and not values["pack"]:
        raise UsageError("--resize writes smaller copies into the shards", try_="--pack --resize N")
    excluded = load_exclusions(values["exclude"], values["exclude_like"], values["same_photos"])
    rules = rules_of(plan.rules or source.rules, values)
    store = StoreFolder(output, plan.image_root, overwrite=overwrite)
    inside = [p for p in plan.inputs if Path(os.path.realpath(p)).is_relative_to(store.folder)]
    if overwrite and inside:
        raise OutputError(
            f"overwriting {output} would delete {inside[0]}, which is to be read",
            try_="another -o FOLDER",
        )
    store.begin(_key(source, plan, values))
    try:
        settings = Settings(
            work=store.work,
            source=source.name,
            image_root=plan.image_root,
            rules=rules,
            excluded=excluded,
            decode=values["decode"],
            packed=values["pack"],
            resize=values["resize"],
            looks=values["phash"],
        )
        _do_shards(store, settings, plan, values, progress)
        if not any(done.shard.records for done in store.done.values()):
            error = _nothing(source, store)
            store.remove()
            raise error
        return store.finish(
            source=source.name,
            command=command,
            files=dict(plan.files()),
            packed=values["pack"],
            resized=values["resize"],
            rules=dataclasses.asdict(rules),
            excluded=excluded.sources,
        )
    finally:
        if not store.has_work:
            store.remove()
        store.release()


def rules_of(usual: Rules, values: Mapping[str, Any]) -> Rules:
    """The cleaning rules of a source or plan, where the options do not say otherwise."""
    names = [field.name for field in dataclasses.fields(Rules)]
    said = {name: values[name] for name in names if values[name] is not None}
    return dataclasses.replace(usual, **said)


def _key(source: Source, plan: Plan, values: Mapping[str, Any]) -> str:
    """The same for the same work: what decides over any byte of the store."""
    import numpy as np
    import PIL

    from xvlm_core import __version__
    from xvlm_core.sources.exclusion import path_of

    options = {name: value for name, value in values.items() if name not in RUNNING}
    lists = (*values["exclude"], *values["exclude_like"], *values["same_photos"])
    inputs = [*plan.inputs, *map(path_of, lists)]
    states = []
    for path in inputs:
        try:
            status = os.stat(path)
            states.append([str(path), status.st_size, status.st_mtime_ns])
        except OSError:
            states.append([str(path), None, None])
    made_by = [__version__, sys.version, PIL.__version__, np.__version__]
    known = [made_by, source.name, options, str(plan.image_root), states]
    return hashlib.sha256(json.dumps(known, default=str).encode()).hexdigest()


def _do_shards(
    store: StoreFolder,
    settings: Any,
    plan: Plan,
    values: Mapping[str, Any],
    progress: Progress | None,
) -> None:
    usual = _PACKED_RECORDS if values["pack"] else _SHARD_RECORDS
    size = values["shard_records"] or plan.shard_records or usual
    earlier, seen = dict(store.events), 0
    told = 0
    sizes: dict[int, int] = {}
    digests: dict[int, str] = {}

    def jobs() -> Iterator[engines.Job]:
        nonlocal seen, told
        for number, (events, drafts) in enumerate(_chunks(_read(plan.events), size)):
            seen = number + 1
            job = engines.Job.of(number, events)
            digests[number] = job.digest
            if number in store.done and earlier.get(number) == job.digest:
                told += drafts
            else:
                sizes[number] = drafts
                yield job

    workers = values["workers"] or os.cpu_count() or 1
    with store.writing():
        for done in _engine(values["engine"], settings, jobs(), workers):
            store.add(done, digests[done.number])
            told += sizes.pop(done.number)
            if progress is not None:
                progress(told, plan.total, plan.unit)
    for number in [n for n in store.done if n >= seen]:
        del store.done[number]


def _engine(
    name: str, settings: Any, jobs: Iterator[engines.Job], workers: int
) -> Iterator[ShardDone]:
    if name == "ray":
        return engines.on_ray(settings, jobs, workers)
    if workers == 1:
        return engines.here(settings, jobs)
    return engines.in_processes(settings, jobs, workers)


def _read(events: Iterator[Event]) -> Iterator[Event]:
    """The events; a file of the source that cannot be read is the input's fault."""
    try:
        yield from events
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error


def _chunks(events: Iterator[Event], size: int) -> Iterator[tuple[list[Event], int]]:
    """Events of about ``size`` drafts each, and how many; what was only lost goes with them."""
    chunk: list[Event] = []
    drafts = 0
    for event in events:
        is_draft = not isinstance(event, Lost | Kept | Repaired)
        if is_draft and drafts == size:
            yield chunk, drafts
            chunk, drafts = [], 0
        chunk.append(event)
        drafts += is_draft
    yield chunk, drafts


def _nothing(source: Source, store: StoreFolder) -> DataError:
    from xvlm_core.data.ledger import examples_of, merged

    counts = merged(done.counts for done in store.done.values())
    found = [
        (n, item, reason)
        for item, count in counts.items()
        for reason, n in count["dropped"].items()
    ]
    lines = [f"{item}: {n} dropped, {reason}" for n, item, reason in sorted(found, reverse=True)]
    return DataError(
        f"nothing to keep in this {source.name} data",
        details=[*lines[:10], "such as", *examples_of(store.ledgers(), 5)],
        where=str(store.image_root),
        try_=about_boxes(source, counts) or f"xvlm prepare-data {source.name} --help",
    )

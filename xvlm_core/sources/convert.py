"""What every worker does with the events of one shard: a function of them and of the settings.

It does not matter which process does it, on which machine, or whether it was begun before: the
same bytes come out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from xvlm_core.data.images import PictureError, byte_range
from xvlm_core.data.leaks import HELD_OUT
from xvlm_core.data.looks import looks_of
from xvlm_core.data.records import Box, Record
from xvlm_core.data.resize import reduced
from xvlm_core.data.shard_writer import Encoded, ShardDone, ShardWriter
from xvlm_core.sources.base import Rules
from xvlm_core.sources.cleaning import Cleaner
from xvlm_core.sources.drafts import Draft, Event, Kept, Lost, Repaired
from xvlm_core.sources.exclusion import NOTHING, Exclusions
from xvlm_core.sources.pictures import Picture, PictureJob, check_pictures


@dataclass(frozen=True)
class Settings:
    """What is the same for all shards of a store.

    Attributes:
        work: folder to write into.
        source: its name.
        image_root: of its pictures; None: all embedded.
        rules: which texts and boxes are dropped.
        excluded: pictures to leave out.
        decode: read pictures in full.
        packed: pictures go into the shards.
        resize: longest side in pixels, None: as they are.
        looks: keep a perceptual hash of every picture.
    """

    work: Path
    source: str
    image_root: Path | None
    rules: Rules
    excluded: Exclusions = NOTHING
    decode: bool = False
    packed: bool = False
    resize: int | None = None
    looks: bool = False


def write_shard(settings: Settings, number: int, events: list[Event]) -> ShardDone:
    """Check, clean, count and write.

    Args:
        settings: of the store.
        number: of the shard.
        events: of the source, in order.

    Raises:
        OSError: the disk is full, read-only, ...
        DataError: a record has text that is no Unicode.
    """
    writer = ShardWriter(settings.work, number, packed=settings.packed)
    try:
        cleaner = Cleaner(writer.ledger, settings.rules)
        for draft, found in _checked(settings, _drafts(events, cleaner, settings)):
            _add(writer, cleaner, settings, draft, found)
        return writer.finish()
    finally:
        writer.close()


def _drafts(events: Iterable[Event], cleaner: Cleaner, settings: Settings) -> Iterator[Draft]:
    """The drafts that are not excluded; everything else goes to the ledger."""
    ledger = cleaner.ledger
    for event in _expanded(events):
        if isinstance(event, Draft):
            name = _excluded_by(settings, event)
            if name is None:
                yield event
            else:
                cleaner.lose_draft(event, "excluded", name)
        elif isinstance(event, Lost):
            cleaner.lose(event.item, event.id, event.reason, event.seen)
        elif isinstance(event, Kept):
            ledger.read(event.item, event.n)
            ledger.keep(event.item, event.n)
        else:
            ledger.repair(event.item, event.id, event.reason, event.seen)


def _excluded_by(settings: Settings, draft: Draft) -> str | None:
    """The name by which a draft is excluded. What is held out itself is not trained on."""
    if draft.split in HELD_OUT:
        return None
    paths = [p if isinstance(p, str) else p.name for p in draft.pictures]
    return settings.excluded.name_of(draft.id, paths, draft.same_as)


_FOUND = (Draft, Lost, Kept, Repaired)


def _expanded(events: Iterable[Event]) -> Iterator[Draft | Lost | Kept | Repaired]:
    for event in events:
        if isinstance(event, _FOUND):
            yield event
        else:
            yield from event.expand()


def _checked(
    settings: Settings, drafts: Iterable[Draft]
) -> Iterator[tuple[Draft, list[Picture | PictureError]]]:
    listed = list(drafts)
    jobs = (PictureJob(picture, draft.size) for draft in listed for picture in draft.pictures[:1])
    seconds = (PictureJob(picture) for draft in listed for picture in draft.pictures[1:])
    keep = settings.packed
    found = check_pictures(settings.image_root, jobs, decode=settings.decode, keep=keep)
    others = check_pictures(settings.image_root, seconds, decode=settings.decode, keep=keep)
    for draft in listed:
        yield draft, [next(found), *(next(others) for _ in draft.pictures[1:])]


def _add(
    writer: ShardWriter,
    cleaner: Cleaner,
    settings: Settings,
    draft: Draft,
    found: list[Picture | PictureError],
) -> None:
    looks: list[int] = []
    written: list[_Written] = []
    pictures = [picture for picture in found if isinstance(picture, Picture)]
    if len(pictures) == len(found):
        try:
            if settings.looks or settings.excluded.looks:
                looks = [looks_of(_source(settings, picture)) for picture in pictures]
            if settings.packed or not isinstance(draft.pictures[0], str):
                written = [_to_write(settings, picture) for picture in pictures]
        except PictureError as error:
            found = [error]
    twins = [settings.excluded.twin_of(one) for one in looks if draft.split not in HELD_OUT]
    if any(twins):
        cleaner.lose_draft(draft, "excluded", f"looks like {next(filter(None, twins))}")
        return
    record = cleaner.record(draft, found, settings.source)
    if record is None:
        return
    if written:
        record = _scaled(record, written[0])
    outside = [p.bytes for p in pictures if not written and byte_range(p.path) is None]
    writer.add(record, [w.picture for w in written], looks if settings.looks else (), sum(outside))


@dataclass(frozen=True)
class _Written:
    """A picture for the store, and by how much it was reduced."""

    picture: Encoded
    x: float = 1.0
    y: float = 1.0


def _source(settings: Settings, picture: Picture) -> Path | bytes:
    if picture.data is not None:
        return picture.data
    assert settings.image_root is not None
    return settings.image_root / picture.path


def _to_write(settings: Settings, picture: Picture) -> _Written:
    assert picture.data is not None
    side = max(picture.width, picture.height)
    if settings.resize is None or side <= settings.resize:
        return _Written(Encoded(picture.path, picture.data, picture.kind))
    data, width, height = reduced(picture.data, settings.resize)
    return _Written(Encoded(picture.path, data), width / picture.width, height / picture.height)


def _scaled(record: Record, written: _Written) -> Record:
    x, y = written.x, written.y
    if (x, y) == (1.0, 1.0):
        return record

    def box(found: Box) -> Box:
        x1, y1, x2, y2 = found
        return round(x1 * x, 4), round(y1 * y, 4), round(x2 * x, 4), round(y2 * y, 4)

    return dataclasses.replace(
        record,
        width=round(record.width * x),
        height=round(record.height * y),
        regions=tuple(
            dataclasses.replace(region, box_xyxy_px=box(region.box_xyxy_px))
            for region in record.regions
        ),
        proposals_xyxy_px=tuple(box(found) for found in record.proposals_xyxy_px),
    )

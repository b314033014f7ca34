"""Samples in tar files, as any webdataset writer makes them, and our own packed stores.

A sample has a picture (``.jpg``, ``.png``, ...) and texts: ``.txt`` holds one caption; ``.json``
an object with a caption, or a list of them, under ``--caption-key``; ``.cls`` the number of a class
(with ``--classes``). Pictures stay where they are: records name their bytes in the tar. A
``.json`` that holds a record of ours (a packed store) is taken whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_core.data.ledger import Item
from xvlm_core.data.records import Record, RecordError, record_from_json
from xvlm_core.errors import DataError
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.drafts import Draft, Event, Kept, Lost, Repaired, Said
from xvlm_core.sources.identity import same_as
from xvlm_core.sources.strict_json import JsonProblem, parse
from xvlm_core.sources.tar_index import (
    BROKEN_OFF,
    TarProblem,
    TarSample,
    check_tar,
    read_samples,
    split_name,
)

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm")
TEXTS = ("txt", "json", "cls")
CAPTION_KEYS = ("caption", "text", "TEXT")
MAX_TEXT = 1 << 24
"""Bytes above which a ``.txt`` or ``.json`` is refused."""

_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_RECORD = frozenset({"id", "width", "height", "split", "source"})


class PartProblem(ValueError):
    """A text of a sample that cannot be read; ``reason`` is a ledger word."""

    def __init__(self, reason: str, seen: object = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seen = seen


@dataclass(frozen=True)
class Part:
    """Where a text is: a file, or some bytes of a tar.

    Attributes:
        path: the file.
        offset: of the first byte.
        size: number of bytes; None: to the end.
    """

    path: Path
    offset: int = 0
    size: int | None = None

    def read(self) -> str:
        """The text, without a byte order mark.

        Raises:
            PartProblem: "too large", "unreadable", "unexpected end" or "not UTF-8".
        """
        if self.size is not None and self.size > MAX_TEXT:
            raise PartProblem("too large", self.size)
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(MAX_TEXT + 1 if self.size is None else self.size)
        except OSError as error:
            raise PartProblem("unreadable", str(self.path)) from error
        if len(data) > MAX_TEXT:
            raise PartProblem("too large", str(self.path))
        if self.size is not None and len(data) < self.size:
            raise PartProblem("unexpected end", str(self.path))
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise PartProblem("not UTF-8", data[:80].decode("latin-1")) from error


@dataclass(frozen=True)
class Reading:
    """How the texts of samples are read.

    Attributes:
        caption_keys: of the ``.json``; the first that is there counts.
        json_first: the caption is in the ``.json`` even if there is a ``.txt``.
        classes: name by number, for ``.cls``.
        split: of the records.
    """

    caption_keys: tuple[str, ...] = CAPTION_KEYS
    json_first: bool = False
    classes: tuple[str, ...] = ()
    split: str = "train"


@dataclass(frozen=True)
class WebSample:
    """A picture and where its texts are; they are read by the process that checks the picture.

    Attributes:
        id: of the record.
        pictures: one, or the two of a pair, as in ``Draft``.
        texts: by extension: "txt", "json", "cls".
        reading: how.
        cut: its tar breaks off here, so that texts may be missing.
    """

    id: str
    pictures: tuple[str, ...]
    texts: dict[str, Part]
    reading: Reading
    cut: bool = False

    def expand(self) -> Iterator[Draft | Lost | Kept | Repaired]:
        """The draft, and what of its texts is damaged."""
        item: Item = "pair" if len(self.pictures) == 2 else "picture"
        value: dict[str, Any] = {}
        if "json" in self.texts:
            try:
                value = self._json()
            except PartProblem as problem:
                yield Lost("line", f"{self.id}.json", problem.reason, problem.seen)
        if value.keys() >= _RECORD and ("image" in value or "images" in value):
            yield self._whole(value, item)
            return
        said: list[Said] = []
        try:
            said = self._said(value)
        except PartProblem as problem:
            yield Lost("caption", self.id, problem.reason, problem.seen)
        if not said or item == "pair":
            yield Lost(item, self.id, "unexpected end" if self.cut else "no text")
            return
        yield Draft(
            self.id,
            self.pictures,
            tuple(said),
            split=self.reading.split,
            same_as=same_as(url=value.get("url")),
        )

    def _json(self) -> dict[str, Any]:
        try:
            value = parse(self.texts["json"].read())
        except JsonProblem as problem:
            raise PartProblem(problem.reason, problem.seen) from problem
        if not isinstance(value, dict):
            raise PartProblem("not an object", value)
        return value

    def _said(self, value: dict[str, Any]) -> list[Said]:
        caption = next(
            (value[k] for k in self.reading.caption_keys if value.get(k) is not None), None
        )
        if "txt" in self.texts and not (self.reading.json_first and caption is not None):
            return [Said("caption", self.texts["txt"].read(), self.id)]
        if caption is not None:
            found = caption if isinstance(caption, list) else [caption]
            return [Said("caption", text, self.id) for text in found]
        if "cls" in self.texts and self.reading.classes:
            return [Said("caption", self._class_name(), self.id)]
        return []

    def _class_name(self) -> str:
        text = self.texts["cls"].read().strip()
        if text.isascii() and text.isdigit() and len(text) < 9:
            number = int(text)
            if number < len(self.reading.classes):
                return self.reading.classes[number]
        raise PartProblem("unknown category", text)

    def _whole(self, value: dict[str, Any], item: Item) -> Draft | Lost:
        try:
            record = record_from_json(value)
        except RecordError as error:
            return Lost(item, self.id, error.reason, error.seen)
        if len(record.images) != len(self.pictures):
            return Lost(item, self.id, "no image", list(record.images))
        return draft_of(record, self.pictures)


def draft_of(record: Record, pictures: tuple[str, ...]) -> Draft:
    """A record to be checked again, with its pictures elsewhere.

    Its boxes are of the picture as shown, which is what no stated size means.
    """
    id = record.id
    said = [Said("caption", text, id) for text in record.captions]
    said += [
        Said("region", r.text, id, list(r.box_xyxy_px), seen=list(r.box_xyxy_px), kind=r.kind)
        for r in record.regions
    ]
    said += [Said("absent", text, id) for text in record.absent]
    said += [
        Said(
            "question",
            question.question,
            id,
            answers=tuple((a.answer, a.weight) for a in question.answers),
            id=question.id,
        )
        for question in record.questions
    ]
    said += [
        Said("proposal", where=id, box_xyxy=list(box), seen=list(box))
        for box in record.proposals_xyxy_px
    ]
    statement = record.statement
    has_text = record.captions or record.regions or record.absent or record.questions
    return Draft(
        id,
        pictures,
        tuple(said),
        split=record.split,
        source=record.source,
        statement=(statement.text, statement.label) if statement else None,
        same_as=record.same_as,
        meta=record.meta,
        keep_empty=not has_text and statement is None,
    )


def tar_events(path: Path, root: Path, reading: Reading) -> Iterator[Event]:
    """All that a tar says; record ids are its path from the root, without ``.tar``, and the key.

    Args:
        path: of the tar.
        root: image root.
        reading: how texts are read.
    """
    place = path.relative_to(root).as_posix()
    for found in read_samples(path):
        if isinstance(found, TarProblem):
            yield lost_member(place, found)
        else:
            yield from _sample_events(path, place, found, reading)


def lost_member(place: str, problem: TarProblem) -> Lost:
    """A problem of a tar for the ledger: counted as what the member would have been."""
    split = split_name(problem.name)
    extension = split[1] if split else ""
    item: Item = "line"
    if problem.reason not in BROKEN_OFF:
        if extension in PICTURES:
            item = "picture"
        elif extension == "txt":
            item = "caption"
    return Lost(item, f"{place}:{problem.name}" if problem.name else place, problem.reason)


def _sample_events(path: Path, place: str, sample: TarSample, reading: Reading) -> Iterator[Event]:
    id = f"{place.removesuffix('.tar')}/{sample.key}"
    members = sample.members
    texts = {e: Part(path, members[e].offset, members[e].size) for e in TEXTS if e in members}
    pair = [e for which in "01" for e in members if e in [f"{which}.{p}" for p in PICTURES]]
    found = [e for e in members if e in PICTURES]
    for extension in found[1:]:
        yield Lost("picture", f"{place}:{members[extension].name}", "more than one picture")
    chosen = pair if len(pair) == 2 and not found else found[:1]
    if chosen:
        pictures = tuple(f"{place}@{members[e].offset}+{members[e].size}" for e in chosen)
        yield WebSample(id, pictures, texts, reading, sample.cut)
    elif "txt" in texts or "json" in texts:
        yield Lost("caption", id, "no image")
    else:
        yield Lost("line", id, "no image", ", ".join(members))


def find_tars(roots: Iterable[Path]) -> list[Path]:
    """The tars that are named, and those in the folders that are, sorted; each is looked at.

    Raises:
        DataError: there is none, or one is missing, empty, compressed or no tar.
    """
    tars: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            if not root.exists():
                raise DataError(f"there is no {root}", try_="name a .tar file, or a folder of them")
            tars[root.absolute()] = None
            continue
        names = (".tar", *_PACKED)  # compressed ones are refused, not passed over
        found = [f for f in sorted(root.rglob("*")) if f.name.endswith(names) and f.is_file()]
        if not found:
            raise DataError(f"there is no .tar file in {root}")
        tars.update((f.absolute(), None) for f in found)
    for tar in tars:
        check_tar(tar)
        if tar.suffix != ".tar":
            raise DataError(f"{tar} is not named .tar", try_=f"mv {tar} {tar.name}.tar")
    return list(tars)


def common_folder(paths: Sequence[Path]) -> Path:
    """The deepest folder that all files lie in."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def _classes(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}", try_="--classes FILE"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})") from error
    return tuple(line.strip() for line in text.splitlines())


def plan(options: dict[str, Any]) -> Plan:
    """Tars to samples.

    Raises:
        DataError: a tar or folder is missing, empty, compressed or no tar.
    """
    tars = find_tars(options["root"])
    root = common_folder(tars)
    key = options["caption_key"]
    reading = Reading(
        caption_keys=key or CAPTION_KEYS,
        json_first=bool(key),
        classes=_classes(options["classes"]),
        split=options["split"],
    )
    events = (event for tar in tars for event in tar_events(tar, root, reading))
    inputs = (*tars, options["classes"]) if options["classes"] else tuple(tars)
    return Plan(events, root, inputs)


SOURCE = Source(
    "webdataset",
    "tar files of samples (webdataset), or the shards of a packed store",
    (
        Option("root", Path, "tar files, or folders of them", required=True, multiple=True),
        Option(
            "caption_key",
            str,
            "key of the .json that holds the caption or a list of them; then before .txt "
            "(default: .txt, or else caption, text or TEXT)",
            multiple=True,
        ),
        Option("classes", Path, "names of the classes, one a line from 0, to read .cls as texts"),
        Option("split", str, "split of the records", "train"),
    ),
    plan,
)

"""NLVR2: true and false sentences about pairs of photographs.

``train.json``, ``dev.json``, ``test1.json`` (``test2.json``) of lil-lab, JSON lines in spite of
their names; or the lists of the released X-VLM code (``nlvr_train.json``, ``nlvr_dev.json``,
``nlvr_test.json``). Parts of these files (``balanced_dev.json``, ``unbalanced_test1.json``) can be
named. One record a sentence and pair; its first picture is the left one. Splits: "train", "val"
(dev), "test" (test1), "test2".

``meta["pair"]`` is the same for all sentences about one pair, which must never be split between
training and validation (``meta["directory"]``, 0 to 99 in the training pictures, keeps all pairs
of a set together). ``meta["same_sentence"]`` is the same for all pairs of one set that one sentence
was shown with: the consistency is the share of those with all pairs right.

A label is the text "True" or "False"; only sentences of test files may be without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.drafts import Draft, Event, Kept, Lost
from xvlm_core.sources.identity import same_as
from xvlm_core.sources.lines import LineProblem, open_lines, parse_line
from xvlm_core.sources.strict_json import iter_array

_FOLDERS = ("", "data", "nlvr2/data", "nlvr2", "annotations")
_FILES = ("train.json", "dev.json", "test1.json", "test2.json")
_LISTS = ("nlvr_train.json", "nlvr_dev.json", "nlvr_test.json")
_SPLITS = {"dev": "val", "test1": "test"}
_IDENTIFIER = re.compile(r"((train|dev|test1|test2)-\d+)-\d+-(\d+)")
_PICTURE = re.compile(r"(?:.*/)?(((?:train|dev|test1|test2)-\d+)-\d+)-img[01]\.\w+")
_LIST_SPLIT = re.compile(r"(?:^|[_.-])(train|dev|val|test\d?)$")
_LABELS = {"True": True, "False": False}
_MAX_LINE = 1 << 24
"""Bytes above which a line is refused."""
_LOOKED_AT = 50
"""Pairs of a file of which one must be there."""


@dataclass(frozen=True)
class _Pair:
    """A sentence about two pictures, as found.

    Attributes:
        id: of the record.
        split: as the files call it.
        pictures: paths that each may have, left and right.
        sentence: the text.
        label: a key of ``_LABELS``, or anything; None: not told.
        pair: the same for all sentences about the pictures.
        same_sentence: see the module.
        directory: of training pictures.
        urls: where the pictures came from.
    """

    id: str
    split: str
    pictures: tuple[list[str], list[str]]
    sentence: object
    label: object
    pair: str
    same_sentence: str | None = None
    directory: int | None = None
    urls: tuple[object, object] = (None, None)


def plan(options: dict[str, Any]) -> Plan:
    """Find the files and the pictures.

    Raises:
        UsageError: neither ``root`` nor ``annotations`` and ``images`` are given.
        DataError: a folder or file is missing or of another form, or none of the first pictures of
            a file is there.
    """
    root: Path | None = options["root"]
    images: Path | None = options["images"] or root
    if images is None or not (root or options["annotations"]):
        raise UsageError(
            "where NLVR2 is was not said",
            try_="xvlm prepare-data nlvr2 --root FOLDER, or --annotations FILE ... --images FOLDER",
        )
    for folder in (root, images):
        if folder is not None and not folder.is_dir():
            raise DataError(f"there is no folder {folder}", try_="--root FOLDER or --images FOLDER")
    paths = options["annotations"] or _in_folder(root) if root else options["annotations"]
    for path in paths:
        _check(path, images)
    reader = _Reader(images, options["split"])
    return Plan((e for path in paths for e in reader.events(path)), images, tuple(paths))


def _in_folder(root: Path) -> tuple[Path, ...]:
    for names in (_FILES, _LISTS):
        for folder in _FOLDERS:
            found = tuple(root / folder / name for name in names)
            found = tuple(path for path in found if path.is_file())
            if found:
                return found
    raise DataError(
        f"no {', '.join(_FILES[:3])} in {root}, and no {_LISTS[0]}",
        try_="--annotations FILE ..., and --images FOLDER of the pictures",
    )


def _check(path: Path, root: Path) -> None:
    """Refuse a file that is no NLVR2, or without pictures."""
    first = list(islice((m for m in _members(path) if not isinstance(m, Lost | Kept)), _LOOKED_AT))
    pairs = [pair for pair in (_pair(*member, path) for member in first) if isinstance(pair, _Pair)]
    if not pairs:
        keys = ", ".join(map(str, first[0][1])) if first else "none"
        raise DataError(
            f"{path} is not NLVR2: its first lines have no identifier and no pair of images",
            where=f"keys of the first: {keys}",
            try_="--annotations dev.json ..., of lil-lab or X-VLM",
        )
    if any(_has(root, name) for pair in pairs for names in pair.pictures for name in names):
        return
    raise DataError(
        f"none of the first {len(pairs)} pairs of {path.name} is in {root}: "
        f"no {', no '.join(pairs[0].pictures[0])}",
        try_="--images FOLDER of the pictures, or leave the file out: --annotations the others",
    )


def _has(root: Path, name: str) -> bool:
    try:
        return (root / name).is_file()
    except (OSError, ValueError):  # no file name: said when pictures are checked
        return False


def _members(path: Path) -> Iterator[Kept | Lost | tuple[str, dict[str, Any]]]:
    """(place, object) of the lines, each kept or lost as a line, or of the members of a list."""
    if _is_array(path):
        for number, member in enumerate(iter_array(path)):
            place = f"{path.stem}-{number}"
            if isinstance(member, dict):
                yield place, member
            else:
                yield Lost("pair", place, "not an object", member)
        return
    with open_lines(path) as file:
        number = 0
        while raw := file.readline(_MAX_LINE):
            number += 1
            place = f"{path.name}:{number}"
            if len(raw) == _MAX_LINE:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(_MAX_LINE)
                yield Lost("line", place, "too large")
                continue
            if not raw.strip():
                continue
            try:
                member = parse_line(raw)
            except LineProblem as problem:
                yield Lost("line", place, problem.reason, problem.seen)
                continue
            yield Kept("line")
            yield place, member


def _is_array(path: Path) -> bool:
    with open_lines(path) as file:
        start = file.read(64).lstrip()
    if not start:
        raise DataError(f"{path} is an empty file")
    return start.startswith(b"[")


def _pair(place: str, member: dict[str, Any], path: Path) -> _Pair | Lost:
    if "identifier" in member:
        return _pair_of_line(place, member)
    images = member.get("images")
    if not isinstance(images, list) or not images or not all(isinstance(p, str) for p in images):
        return Lost("pair", place, "no image", images)
    if len(images) != 2:
        return Lost("pair", place, "not two images", images)
    left, right = images
    match, other = _PICTURE.fullmatch(left), _PICTURE.fullmatch(right)
    split = _LIST_SPLIT.search(path.stem)
    same = match is not None and other is not None and match[1] == other[1]
    sentence = member.get("sentence")
    return _Pair(
        place,
        split[1] if split else "train",
        (_listed_names(left), _listed_names(right)),
        sentence,
        member.get("label"),
        match[1] if match and same else f"{left} {right}",
        f"{match[2]}: {sentence}" if match and same else None,
    )


def _listed_names(path: str) -> list[str]:
    """Paths that a picture of a list may have: as told, or in the other known folder."""
    return [path, path.removeprefix("images/") if path.startswith("images/") else f"images/{path}"]


def _pair_of_line(place: str, member: dict[str, Any]) -> _Pair | Lost:
    id = member["identifier"]
    match = _IDENTIFIER.fullmatch(id) if isinstance(id, str) else None
    if match is None:
        return Lost("pair", place, "malformed identifier", id)
    pair, split = id.rsplit("-", 1)[0], match[2]
    directory = member.get("directory")
    if isinstance(directory, bool) or not isinstance(directory, int):
        directory = None
    folders = [f"images/{split}/", f"{split}/", ""]
    if directory is not None:
        folders = [f"{folder}{directory}/" for folder in folders[:2]] + folders
    names = [[f"{folder}{pair}-img{side}.png" for folder in folders] for side in (0, 1)]
    return _Pair(
        id,
        split,
        (names[0], names[1]),
        member.get("sentence"),
        member.get("label"),
        pair,
        f"{match[1]}-{match[3]}",
        directory,
        (member.get("left_url"), member.get("right_url")),
    )


@dataclass
class _Reader:
    """Files to events; remembers what was there.

    Attributes:
        root: image root.
        split: of all records; None: that of the file.
    """

    root: Path
    split: str | None
    _seen: set[str] = field(default_factory=set)

    def events(self, path: Path) -> Iterator[Event]:
        """What a file says."""
        for member in _members(path):
            if isinstance(member, Kept | Lost):
                yield member
                continue
            pair = _pair(*member, path)
            yield pair if isinstance(pair, Lost) else self._event(pair)

    def _event(self, pair: _Pair) -> Draft | Lost:
        if pair.id in self._seen:
            return Lost("pair", pair.id, "repeated id")
        self._seen.add(pair.id)
        if pair.label is None:
            if not pair.split.startswith("test"):
                return Lost("pair", pair.id, "no label")
        elif not isinstance(pair.label, str) or pair.label not in _LABELS:
            return Lost("pair", pair.id, "malformed label", pair.label)
        label = None if pair.label is None else _LABELS[pair.label]
        if not isinstance(pair.sentence, str):
            return Lost("pair", pair.id, "text malformed", pair.sentence)
        meta: dict[str, Any] = {"pair": pair.pair}
        if pair.same_sentence is not None:
            meta["same_sentence"] = pair.same_sentence
        if pair.directory is not None:
            meta["directory"] = pair.directory
        sides = [
            f"nlvr2:{names[0].rsplit('/', 1)[-1].rsplit('.', 1)[0]}"
            for names in pair.pictures
            if _PICTURE.fullmatch(names[0])
        ]
        urls = [name for url in pair.urls for name in same_as(url=url)]
        left, right = (
            next((name for name in names if _has(self.root, name)), names[0])
            for names in pair.pictures
        )
        return Draft(
            pair.id,
            (left, right),
            split=self.split or _SPLITS.get(pair.split, pair.split),
            statement=(pair.sentence, label),
            same_as=tuple(dict.fromkeys([*sides, *urls])),
            meta=meta,
        )


SOURCE = Source(
    "nlvr2",
    "NLVR2: true and false sentences about pairs of photographs (of lil-lab, or X-VLM's lists)",
    (
        Option("root", Path, "folder of train.json, dev.json, test1.json and of the pictures"),
        Option(
            "annotations", Path, "file, or list of X-VLM, instead of those in ROOT", multiple=True
        ),
        Option("images", Path, "folder of images/train/ (or train/), dev/, test1/ (default: ROOT)"),
        Option("split", str, "split of all records (default: from the identifier)"),
    ),
    plan,
)

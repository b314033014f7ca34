"""Pictures that must not be in a store: those of the validation and test splits of other tasks.

A list is given as a file or as a prepared store, and a picture is found in it by its id, its file
name, any other name of the photograph (``sources.identity``), or by what it looks like. Lists that
say which names belong to one photograph (COCO's annotations give the COCO id and the address at
Flickr) close the gaps between data sets that have no name in common.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xvlm_core.data.leaks import HELD_OUT
from xvlm_core.data.manifest import MANIFEST
from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.identity import names_in, same_as
from xvlm_core.sources.strict_json import read_document

ALL = "all"
_A_NAME = 8
"""Letters from which on the name of a file, without folder and extension, tells it from others."""
_EXACTLY = "="
"""Before the path of a picture of a store: "1.jpg" of one is not "other/1.jpg" of another."""

LOOKS_BITS = 4
"""Perceptual hashes that differ in at most so many of 64 bits are of one photograph. Measured on
copies of 55 photographs of COCO at half size, at 200 pixels and saved again: at most 3; different
ones: at least 17."""

_NAMED = re.compile(r"[a-z0-9]+:\S+")


@dataclass(frozen=True)
class Exclusions:
    """Names and looks to leave out, and where they came from.

    Attributes:
        names: identities ("coco:391895"), bare ids and file names.
        looks: perceptual hashes (``data.looks``).
        sources: what was given, for the manifest.
    """

    names: frozenset[str] = frozenset()
    looks: frozenset[int] = frozenset()
    sources: tuple[str, ...] = ()
    _bands: dict[tuple[int, int], list[int]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for looks in self.looks:
            for band in _bands(looks):
                self._bands.setdefault(band, []).append(looks)

    def name_of(self, id: str, paths: Iterable[str], same: Sequence[str]) -> str | None:
        """The name by which a picture is excluded, or None.

        Args:
            id: of the record.
            paths: of its pictures.
            same: names of the photograph.
        """
        if not self.names:
            return None
        names = [*same, id]
        for path in paths:
            names += [path, path.rsplit("/", 1)[-1], f"{_EXACTLY}{path}", *names_in(path)]
        return next((name for name in names if name in self.names), None)

    def twin_of(self, looks: int) -> str | None:
        """The hash of an excluded picture that looks like this one, or None."""
        for band in _bands(looks):
            for other in self._bands.get(band, ()):
                if (other ^ looks).bit_count() <= LOOKS_BITS:
                    return f"{other:016x}"
        return None


NOTHING = Exclusions()


def _bands(looks: int) -> list[tuple[int, int]]:
    """Parts of a hash: two that differ in few bits are equal in one of them.

    A picture without any structure has none: all such look alike.
    """
    if not LOOKS_BITS < looks.bit_count() < 64 - LOOKS_BITS:
        return []
    width = -(-64 // (LOOKS_BITS + 1))
    mask = (1 << width) - 1
    return [(i, looks >> (i * width) & mask) for i in range(LOOKS_BITS + 1)]


def load_exclusions(
    lists: Sequence[str], like: Sequence[str] = (), same_photos: Sequence[str] = ()
) -> Exclusions:
    """Read what was given with ``--exclude``, ``--exclude-like`` and ``--same-photos``.

    Args:
        lists: files or stores, each with an optional ``:split,split`` (``:all``: every split;
            without: those that nothing is trained on). A file is a Karpathy split file, a JSON
            list, or a text with an id, a name ("coco:391895") or a file name a line.
        like: prepared stores that were made with ``--phash``, with splits as above.
        same_photos: COCO annotation files or prepared stores that tell names of one photograph.

    Raises:
        DataError: one is missing, or holds no such list.
        UsageError: a store has no perceptual hashes, or a text list is given splits.
    """
    names: set[str] = set()
    for text in lists:
        given = _Given.of(text)
        names |= _names_of_store(given) if given.is_store else _names_of_file(given)
    if same_photos:
        names = _with_other_names(names, [_Given.of(text) for text in same_photos])
    looks: set[int] = set()
    for text in like:
        looks |= _looks_of_store(_Given.of(text))
    return Exclusions(frozenset(names), frozenset(looks), tuple([*lists, *like]))


@dataclass(frozen=True)
class _Given:
    """A path with an optional choice of splits."""

    text: str
    path: Path
    splits: tuple[str, ...] | None

    @property
    def is_store(self) -> bool:
        return (self.path / MANIFEST).is_file()

    def wants(self, split: str) -> bool:
        """Whether pictures of that split are meant."""
        if self.splits is None:
            return split in HELD_OUT
        return self.splits == (ALL,) or split in self.splits

    @classmethod
    def of(cls, text: str) -> _Given:
        path, splits = Path(text), None
        if not path.exists() and ":" in text:
            name, _, rest = text.rpartition(":")
            path, splits = Path(name), tuple(part.strip() for part in rest.split(","))
        if not path.exists():
            raise DataError(
                f"no list of pictures {path}", try_="--exclude FILE, or --exclude STORE:val,test"
            )
        if path.is_dir() and not (path / MANIFEST).is_file():
            raise DataError(f"{path} is no prepared store", try_="--exclude FILE or STORE")
        return cls(text, path, splits)


def path_of(text: str) -> Path:
    """The path of ``PATH`` or ``PATH:split,split``; it need not exist."""
    path = Path(text)
    return path if path.exists() or ":" not in text else Path(text.rpartition(":")[0])


# ---------------------------------------------------------------------- lists


def _names_of_file(given: _Given) -> set[str]:
    path = given.path
    if path.suffix == ".json":
        content = read_document(path)
        if isinstance(content, dict) and isinstance(content.get("images"), list):
            return _names_of_karpathy(given, content)
        if isinstance(content, list) and content:
            return set().union(*(_names_of_entry(given, i, e) for i, e in enumerate(content, 1)))
        raise _no_list(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if not any(line.strip() for line in lines):
        raise DataError(f"{path} is an empty list", try_="one picture a line, or no --exclude")
    if given.splits is not None:
        raise UsageError(f"{path} is a list without splits", try_=f"--exclude {path}")
    found: set[str] = set()
    for number, line in enumerate(lines, 1):
        if line.strip():
            found |= _names_of_text(line.strip(), f"{path}, line {number}")
    return found


def _names_of_karpathy(given: _Given, content: dict[str, Any]) -> set[str]:
    """COCO ids, or of Flickr30K the photo ids, which are the file names."""
    names: set[str] = set()
    seen: set[str] = set()
    for image in content["images"]:
        if not isinstance(image, dict) or not isinstance(image.get("split"), str):
            raise _no_list(given.path)
        seen.add(image["split"])
        if not given.wants(image["split"]):
            continue
        file = image.get("filename")
        stem = file.rsplit(".", 1)[0] if isinstance(file, str) else None
        coco = image.get("cocoid")
        names |= set(same_as(coco=coco) or same_as(flickr=stem))
        if isinstance(file, str):
            names.add(file)
    _wanted(given, sorted(seen))
    return names


def _names_of_entry(given: _Given, number: int, entry: object) -> set[str]:
    where = f"{given.path}, entry {number}"
    if isinstance(entry, dict):  # the released fine-tuning lists: "image" is a path
        entry = entry.get("image")
    if isinstance(entry, int) and not isinstance(entry, bool):
        return {str(entry)}
    if isinstance(entry, str) and entry.strip():
        return _names_of_text(entry.strip(), where)
    raise _no_list(given.path)


def _names_of_text(text: str, where: str) -> set[str]:
    if text.isascii() and text.isdigit():
        return {str(int(text)), text}
    if _NAMED.fullmatch(text):
        return {text}
    name = text.replace("\\", "/").rsplit("/", 1)[-1]
    if "." not in name or " " in name.strip():
        raise DataError(
            f"{where}: {text[:80]!r} is no picture id and no file name",
            try_="one a line: 391895, coco:391895 or train2014/a.jpg",
        )
    return {text, *names_in(text)}


def _no_list(path: Path) -> DataError:
    return DataError(
        f"{path} is neither a list of pictures nor a Karpathy split file",
        try_="a text file with one id a line",
    )


# ---------------------------------------------------------------------- stores


def _names_of_store(given: _Given) -> set[str]:
    from xvlm_core.data.store import Store

    store = Store.open(given.path)
    wanted = _wanted(given, store.manifest.splits)
    names: set[str] = set()
    for split in wanted:
        for number in store.indices(split):
            record = store[int(number)]
            names.update(record.same_as)
            for path in record.images:
                name = path.rsplit("/", 1)[-1]
                long_enough = len(name.rsplit(".", 1)[0]) >= _A_NAME
                names.add(name if long_enough else f"{_EXACTLY}{path}")
    return names


def _looks_of_store(given: _Given) -> set[int]:
    import numpy as np

    from xvlm_core.data.manifest import LOOKS
    from xvlm_core.data.store import Store

    if not given.is_store:
        raise UsageError(
            f"{given.path} is no prepared store", try_="--exclude-like STORE (made with --phash)"
        )
    store = Store.open(given.path)
    path = given.path / LOOKS
    if not path.is_file():
        raise UsageError(
            f"{given.path} has no perceptual hashes",
            try_=f"{store.manifest.command} --phash --overwrite",
        )
    rows = np.load(path, allow_pickle=False)
    wanted = [store.indices(split) for split in _wanted(given, store.manifest.splits)]
    numbers = np.concatenate([np.asarray(part) for part in wanted])
    return {int(looks) for looks in rows[np.isin(rows[:, 1], numbers), 0]}


def _wanted(given: _Given, splits: Iterable[str]) -> list[str]:
    """The splits that are meant.

    Raises:
        DataError: there is none, or one that was asked for is not there.
    """
    there = list(splits)
    wanted = [split for split in there if given.wants(split)]
    unknown = [split for split in given.splits or () if split not in (*there, ALL)]
    if not wanted or unknown:
        raise DataError(
            f"{given.path} has no picture of {', '.join(unknown or given.splits or HELD_OUT)}",
            try_=f"--exclude {given.path}:{','.join(there) or ALL}",
        )
    return wanted


# ---------------------------------------------------------------------- names of one photograph


def _with_other_names(names: set[str], files: Sequence[_Given]) -> set[str]:
    """All names of the photographs that have one of the names."""
    groups: list[tuple[str, ...]] = []
    for given in files:
        groups += _groups_of_store(given.path) if given.is_store else _groups_of_coco(given.path)
    more = set(names)
    while True:  # two data sets may be joined by a third
        grown = more.union(*(group for group in groups if not more.isdisjoint(group)))
        if len(grown) == len(more):
            return grown
        more = grown


def _groups_of_store(path: Path) -> list[tuple[str, ...]]:
    from xvlm_core.data.store import Store

    store = Store.open(path)
    return [same for i in range(len(store)) if len(same := store[i].same_as) > 1]


def _groups_of_coco(path: Path) -> list[tuple[str, ...]]:
    content = read_document(path, without=frozenset({"annotations"}))
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise DataError(
            f"{path} does not tell the names of photographs",
            try_="--same-photos captions_train2017.json (with flickr_url), or a prepared store",
        )
    entries = [image for image in images if isinstance(image, dict)]
    return [same_as(coco=e.get("id"), url=e.get("flickr_url")) for e in entries]

"""Visual Genome: region descriptions, objects, attributes and relationships (versions 1.2 and 1.4).

``image_data.json`` lists the pictures; four more files, of up to 0.8 GB, each list what is said of
every picture. They are walked in step, in the order of ``image_data.json``, and what they say of a
picture is packed at once, to be unpacked where it is checked. Where a file has another order, or
lacks a picture, what it says of others waits packed: at worst all of it, in about a quarter of the
size of the file (9.2 of 34.4 MB, for 250,000 regions of random words).

What becomes of it: a region is a text of kind "region"; an object is its name, of kind "object"
(of several names, which are synonyms, the first that says anything); every attribute of an object
is "<attribute> <name>", of kind "attribute", with the box of the object; a relationship is
"<subject> <predicate> <object>", of kind "relation", with the smallest box around both. The ids in
the ledger tell the kinds apart: ``object 1058498``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.base import PAPER, Option, Plan, Source
from xvlm_core.sources.coco_layout import is_id
from xvlm_core.sources.drafts import Draft, Event, Lost
from xvlm_core.sources.folders import asked_folders
from xvlm_core.sources.identity import same_as
from xvlm_core.sources.strict_json import iter_array
from xvlm_core.sources.visual_genome_texts import (
    KINDS,
    NAMES,
    PICTURES,
    Described,
    Walk,
    image_id_of,
    other_layout,
)
from xvlm_core.sources.vqa_pictures import Folder, vg_names

_PARTS = ("regions", "objects", "relationships")
_FOLDERS = ("", "annotations/", "data/")
_LOOKED_AT = 50
"""Pictures of which one must be there."""


def plan(options: dict[str, Any]) -> Plan:
    """Find the files and read the list of pictures.

    Raises:
        UsageError: neither ``root`` nor ``annotations`` and ``images`` are given, or there is no
            such part.
        DataError: a folder or file is missing or of another layout, or none of the first pictures
            is there.
    """
    parts = _parts(options["parts"])
    root, images = asked_folders(
        options,
        "Visual Genome is",
        usage="xvlm prepare-data visual-genome --root FOLDER, or --annotations FILE ... "
        "--images FOLDER",
        of="Visual Genome",
    )
    given = _told_apart(options["annotations"])
    if parts is None:
        parts = [part for part in KINDS if part in given] if given else list(_PARTS)
    if not options["attributes"]:
        parts = [part for part in parts if part != "attributes"]
    elif "objects" in parts and "attributes" not in parts and (not given or "attributes" in given):
        parts.insert(parts.index("objects") + 1, "attributes")
    if not parts:
        raise UsageError("none of the files is to be read", try_="--parts regions")
    image_data = given.get(PICTURES) or _find(root, PICTURES, parts)
    files = {part: given.get(part) or _find(root, part, parts) for part in parts}
    pictures = _read_pictures(image_data)
    _refuse_missing(pictures, Folder(images))
    events = _events(pictures, files, Folder(images), options["split"] or "train")
    inputs = (image_data, *files.values())
    return Plan(events, images, inputs, total=len(pictures.entries))


def _parts(text: str | None) -> list[str] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if part not in KINDS:
            near = difflib.get_close_matches(part, KINDS, 1, 0.4)
            raise UsageError(
                f"--parts: Visual Genome has no {part!r}; there are: {', '.join(KINDS)}",
                try_=f"--parts {near[0] if near else ','.join(_PARTS)}",
            )
    return [part for part in KINDS if part in parts]


def _find(root: Path | None, part: str, parts: Sequence[str]) -> Path:
    name = NAMES[part]
    places = [root / folder for folder in _FOLDERS] if root is not None else []
    for place in places:
        if (place / f"{name}.json").is_file():
            return place / f"{name}.json"
    found = sorted(path for place in places for path in place.glob(f"{name}*.json"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise DataError(
            f"{root} has {name} several times: {names}",
            try_=f"--annotations {found[-1]} and the other files",
        )
    others = [other for other in parts if other != part]
    try_ = f"unpack it there, or --annotations FILE ... with {name}.json"
    if part == "attributes":
        try_ = "--no-attributes to do without"
    elif part != PICTURES and others:
        try_ = f"--parts {','.join(o for o in others if o != 'attributes')} to do without"
    raise DataError(f"there is no {name}.json in {root or 'what --annotations names'}", try_=try_)


def _told_apart(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by what is in them, whatever they are called."""
    found: dict[str, Path] = {}
    for path in paths:
        first = next(iter(iter_array(path)), None)
        keys = first.keys() if isinstance(first, dict) else ()
        part = next((part for part in KINDS if part in keys), None)
        if part is None and "url" in keys:
            part = PICTURES
        if part is None:
            raise DataError(
                f"{path} is no file of Visual Genome",
                details=[f"keys of its first entry: {', '.join(keys) or 'none'}"],
                try_="--annotations image_data.json, region_descriptions.json, objects.json, "
                "attributes.json or relationships.json",
            )
        if part in found:
            raise DataError(
                f"{found[part]} and {path} both have {part}", try_=f"--annotations {path} only"
            )
        found[part] = path
    return found


def _refuse_missing(pictures: _Pictures, folder: Folder) -> None:
    first = list(pictures.entries.items())[:_LOOKED_AT]
    if not first or any(folder.has(name) for id, entry in first for name in entry.names(id)):
        return
    id, entry = first[0]
    raise DataError(
        f"none of the first {len(first)} pictures is in {folder.root}: "
        f"no {', no '.join(entry.names(id)[:3])}",
        try_="--images FOLDER with VG_100K and VG_100K_2",
    )


@dataclass(frozen=True)
class _Entry:
    """A member of ``image_data.json``; ``name`` are the last two parts of its address."""

    name: str | None
    size: tuple[int, int] | None
    coco: int | None
    flickr: int | None

    def names(self, id: int) -> list[str]:
        """Paths that the picture may have, the likely one first."""
        return [*([self.name] if self.name else []), *vg_names(id)]


@dataclass
class _Pictures:
    entries: dict[int, _Entry] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)


def _read_pictures(path: Path) -> _Pictures:
    found = _Pictures()
    for number, member in enumerate(iter_array(path)):
        where = f"{path.name}[{number}]"
        if not isinstance(member, dict):
            found.lost.append(Lost("picture", where, "not an object", member))
            continue
        id = image_id_of(member)
        if number == 0 and not {"url", "width"} & member.keys():
            raise other_layout(path, member, PICTURES)
        if not isinstance(id, int):
            found.lost.append(Lost("picture", where, "no id", member))
        elif id in found.entries:
            found.lost.append(Lost("picture", where, "picture listed twice", id))
        else:
            found.entries[id] = _Entry(
                _last_two(member.get("url")),
                _size(member.get("width"), member.get("height")),
                *(key if is_id(key) else None for key in map(member.get, ("coco_id", "flickr_id"))),
            )
    return found


def _last_two(url: object) -> str | None:
    parts = url.strip().split("?", 1)[0].split("/") if isinstance(url, str) else []
    return "/".join(parts[-2:]) if len(parts) > 2 and parts[-1] else None


def _size(width: object, height: object) -> tuple[int, int] | None:
    return (width, height) if is_id(width) and is_id(height) else None


def _events(
    pictures: _Pictures, files: Mapping[str, Path], folder: Folder, split: str
) -> Iterator[Event]:
    yield from pictures.lost
    walks = [Walk(path, part, pictures.entries) for part, path in files.items()]
    for id, entry in pictures.entries.items():
        taken = [(walk.part, walk.take(id)) for walk in walks]
        for walk in walks:
            yield from walk.lose()
        draft = Draft(
            str(id),
            (folder.path(entry.names(id)),),
            size=entry.size,
            split=split,
            same_as=same_as(vg=id, coco=entry.coco, flickr=entry.flickr),
        )
        parts = tuple((part, data) for part, data in taken if data is not None)
        yield Described(draft, id, parts)
    for walk in walks:
        yield from walk.finish()


SOURCE = Source(
    "visual-genome",
    "Visual Genome: region descriptions, objects, attributes, relationships",
    (
        Option("root", Path, "folder of image_data.json, VG_100K/ and VG_100K_2/"),
        Option(
            "annotations",
            Path,
            "image_data.json or another file, instead of those found in ROOT",
            multiple=True,
        ),
        Option("images", Path, "folder of VG_100K/ and VG_100K_2/ (default: ROOT)"),
        Option("split", str, "split of all records (default: train)"),
        Option(
            "parts",
            str,
            f"what is read, of {','.join(KINDS)} (default: {','.join(_PARTS)})",
        ),
        Option("attributes", bool, "with objects, read their attributes too", True),
    ),
    plan,
    PAPER,
)

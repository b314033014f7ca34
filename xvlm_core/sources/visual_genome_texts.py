"""What the files of Visual Genome say of a picture, and walking one of them picture by picture.

Each file is one list with a member a picture, in it a list of what is said. What is said of a
picture is packed at once, so that what waits for its turn, or for another process, is small.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError
from xvlm_core.sources.coco_layout import is_id
from xvlm_core.sources.drafts import Draft, Lost, Said, corners
from xvlm_core.sources.relations import box_around, joined, says_something
from xvlm_core.sources.strict_json import iter_array

PICTURES = "pictures"
NAMES = {
    PICTURES: "image_data",
    "regions": "region_descriptions",
    "objects": "objects",
    "attributes": "attributes",
    "relationships": "relationships",
}
"""Names of the files, without what tells the version, by the key of the lists in them."""

_UNUSED = frozenset({"synsets", "merged_object_ids", "image_url"})


def _region(id: str, member: dict[str, Any], image: int) -> Iterator[Said]:
    seen = _box_xywh(member)
    problem = None if member.get("image_id", image) == image else "two image ids"
    yield Said(
        "region",
        member.get("phrase"),
        id,
        corners(seen, "xywh"),
        seen=seen,
        kind="region",
        problem=problem,
    )


def _object(id: str, member: dict[str, Any], image: int) -> Iterator[Said]:
    seen = _box_xywh(member)
    yield Said("region", _name(member), id, corners(seen, "xywh"), seen=seen)


def _attributes(id: str, member: dict[str, Any], image: int) -> Iterator[Said]:
    found = member.get("attributes")
    if found is None:
        return
    seen, name = _box_xywh(member), _name(member)
    for number, attribute in enumerate(found if isinstance(found, list) else [found]):
        text, problem = joined(attribute, name)
        yield Said(
            "region",
            text,
            f"{id}.{number}",
            corners(seen, "xywh"),
            seen=seen,
            kind="attribute",
            problem=problem,
        )


def _relation(id: str, member: dict[str, Any], image: int) -> Iterator[Said]:
    ends = [end if isinstance(end, dict) else {} for end in map(member.get, ("subject", "object"))]
    seen = [_box_xywh(end) for end in ends]
    text, problem = joined(_name(ends[0]), member.get("predicate"), _name(ends[1]))
    around = box_around(*(corners(box, "xywh") for box in seen))
    yield Said("region", text, id, around, seen=seen, kind="relation", problem=problem)


def _box_xywh(member: dict[str, Any]) -> list[Any]:
    sides = [member.get("w", member.get("width")), member.get("h", member.get("height"))]
    return [member.get("x"), member.get("y"), *sides]


def _name(member: dict[str, Any]) -> object:
    """``name``, or the first of ``names`` that says anything."""
    names = member.get("names")
    if not isinstance(names, list):
        return member.get("name") if names is None else names
    return next((n for n in names if not isinstance(n, str) or says_something(n)), "")


@dataclass(frozen=True)
class Kind:
    """What a member of a list is: its name in the ledger, the key of its id, and its texts."""

    name: str
    id: str
    say: Callable[[str, dict[str, Any], int], Iterator[Said]]


KINDS = {
    "regions": Kind("region", "region_id", _region),
    "objects": Kind("object", "object_id", _object),
    "attributes": Kind("attribute", "object_id", _attributes),
    "relationships": Kind("relation", "relationship_id", _relation),
}


def _said(part: str, members: Sequence[object], image: object) -> Iterator[Said]:
    """The texts of one picture in one file."""
    kind = KINDS[part]
    for number, member in enumerate(members):
        place = f"{part}[{number}] of picture {image}"
        if not isinstance(member, dict):
            yield Said("region", member, place, problem="not an object")
            continue
        id = member.get(kind.id)
        where = f"{kind.name} {id}" if is_id(id) else place
        yield from kind.say(where, member, image if is_id(image) else -1)


@dataclass(frozen=True)
class Described:
    """A picture with all that the files say about it; becomes a ``Draft`` where it is checked.

    Attributes:
        draft: the record, as yet without texts.
        image: id of the picture.
        parts: (part, packed list) pairs.
    """

    draft: Draft
    image: int
    parts: tuple[tuple[str, bytes], ...]

    def expand(self) -> Iterator[Draft]:
        """The one draft."""
        said = [one for part, data in self.parts for one in _said(part, _unpack(data), self.image)]
        yield replace(self.draft, said=tuple(said))


def _pack(members: list[Any]) -> bytes:
    return zlib.compress(json.dumps(members, separators=(",", ":")).encode(), 1)


def _unpack(data: bytes) -> list[Any]:
    members = json.loads(zlib.decompress(data))
    assert isinstance(members, list)
    return members


# ------------------------------------------------------------------ walking the files


class Walk:
    """What one file says, picture by picture, in any order.

    Args:
        path: the file.
        part: the key of its lists.
        known: ids of the pictures.
    """

    def __init__(self, path: Path, part: str, known: Mapping[int, object]) -> None:
        self.path, self.part, self.known = path, part, known
        self.lost: list[Lost] = []
        self._waiting: dict[int, bytes] = {}
        self._seen: set[int] = set()
        self._rest = self._packed()

    def take(self, image: int) -> bytes | None:
        """What is said of a picture, packed; None: nothing."""
        if image in self._waiting:
            return self._waiting.pop(image)
        for other, data in self._rest:
            if other == image:
                return data
            self._waiting[other] = data
        return None

    def lose(self) -> Iterator[Lost]:
        """What could not be attached up to where it has been read."""
        yield from self.lost
        self.lost.clear()

    def finish(self) -> Iterator[Lost]:
        """Read on to the end; what is left is of no known picture."""
        for _ in self._rest:
            raise AssertionError("every known picture was taken")
        yield from self.lose()

    def _packed(self) -> Iterator[tuple[int, bytes]]:
        name = self.path.name
        for number, member in enumerate(iter_array(self.path, without=_UNUSED)):
            if not isinstance(member, dict):
                self.lost.append(Lost("line", f"{name}[{number}]", "not an object", member))
                continue
            if number == 0 and self.part not in member:
                raise other_layout(self.path, member, self.part)
            members, image = member.get(self.part), image_id_of(member)
            if not isinstance(members, list):
                where = f"{name}[{number}]"
                self.lost.append(Lost("line", where, f"no list of {self.part}", members))
            elif image not in self.known:
                self._lose(members, image, "unknown image")
            elif image in self._seen:
                self._lose(members, image, "picture listed twice")
            else:
                self._seen.add(image)
                yield image, _pack(members)

    def _lose(self, members: list[Any], image: object, reason: str) -> None:
        for said in _said(self.part, members, image):
            self.lost.append(Lost(said.item, said.where, reason, image))


def image_id_of(member: dict[str, Any]) -> Any:
    """Of the picture that a member is about; the key is ``id`` in the file of regions."""
    id = member.get("image_id", member.get("id"))
    return id if is_id(id) else None if id is None else str(id)


def other_layout(path: Path, member: dict[str, Any], part: str) -> DataError:
    """An error: a file is not what it was taken for.

    Args:
        path: of the file.
        member: its first.
        part: what it was taken for.
    """
    there = ", ".join(map(str, member)) or "none"
    return DataError(
        f"{path} is not the {NAMES[part]} of Visual Genome: its entries have no {part!r}",
        details=[f"keys there: {there}"],
        try_=f"--annotations {NAMES[part]}.json and the other files",
    )

"""One line, or one member of a list, of the files that the released X-VLM code reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from xvlm_core.data.ledger import Item
from xvlm_core.sources.drafts import (
    Base64Picture,
    Draft,
    Embedded,
    Kept,
    Lost,
    Repaired,
    Said,
    corners,
)
from xvlm_core.sources.identity import names_in
from xvlm_core.sources.strict_json import JsonProblem, parse


@dataclass(frozen=True)
class Layout:
    """How one file is to be read.

    Attributes:
        image_key: key of the picture.
        caption_key: key of the texts.
        base64: the picture itself is in the file.
        regions: it has ``elems``; a caption is optional then.
        array: one JSON array, not lines.
        alternatives: every text of a part becomes a text, not only the first.
        attributes: attributes become texts.
        split: of the records.
    """

    image_key: str
    caption_key: str
    base64: bool
    regions: bool
    array: bool
    alternatives: bool
    attributes: bool
    split: str


@dataclass(frozen=True)
class PictureInLine:
    """A picture as base64 in a JSON line, read when asked for: thousands would not fit in memory.

    Attributes:
        name: of its file in the store.
        path: the file.
        offset: of the first byte of the line.
        size: number of bytes.
        key: of the picture.
    """

    name: str
    path: Path
    offset: int
    size: int
    key: str

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            PictureError: "not base64", or "unreadable" if the file has changed meanwhile.
        """
        from xvlm_core.data.images import PictureError

        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                text = parse(file.read(self.size).decode("utf-8"))[self.key]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise PictureError("unreadable", self.name) from error
        return Base64Picture(self.name, text).read()


@dataclass(frozen=True)
class OfficialLine:
    """Where a line stands; it is parsed by the process that checks the picture.

    Attributes:
        id: of the record: the file, and the number of the line.
        path: the file.
        offset: of the first byte.
        size: number of bytes.
        name: of the picture, where it is in the line.
        layout: of the file.
    """

    id: str
    path: Path
    offset: int
    size: int
    name: str
    layout: Layout

    def expand(self) -> Iterator[Draft | Lost | Kept | Repaired]:
        """The draft, or why there is none; the line itself is counted too."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                value = parse(file.read(self.size).decode("utf-8"))
        except OSError as error:
            yield Lost("line", self.id, "unreadable", str(error))
            return
        except UnicodeDecodeError:
            yield Lost("line", self.id, "not UTF-8")
            return
        except JsonProblem as problem:
            yield Lost("line", self.id, problem.reason, problem.seen)
            return
        if not isinstance(value, dict):
            yield Lost("line", self.id, "not an object", value)
            return
        image = value.get(self.layout.image_key)
        if not isinstance(image, str) or not image:
            yield Lost("line", self.id, "no image", image)
            return
        picture: str | Embedded = image
        if self.layout.base64:
            picture = cast(
                Embedded,
                PictureInLine(self.name, self.path, self.offset, self.size, self.layout.image_key),
            )
        yield Kept("line")
        yield Draft(
            self.id,
            (picture,),
            tuple(said_of(value, self.id, self.layout)),
            split=self.layout.split,
            same_as=() if self.layout.base64 else names_in(image),
        )


def said_of(value: dict[str, Any], where: str, layout: Layout) -> Iterator[Said]:
    """All texts of one object of a file, as found."""
    if layout.caption_key in value or not layout.regions:
        yield from (_captions("caption", value.get(layout.caption_key), where))
    if not layout.regions:
        return
    elems = value.get("elems", [])
    if not isinstance(elems, list):
        yield Said("region", elems, where, problem="malformed elems")
        return
    for number, elem in enumerate(elems):
        yield from _region(elem, f"{where}#{number}", layout)


def _region(elem: object, where: str, layout: Layout) -> Iterator[Said]:
    if not isinstance(elem, dict):
        yield Said("region", elem, where, problem="not an object")
        return
    box = elem.get("bb")
    box_xyxy = corners(box, "xywh")
    plain = list(_captions("region", elem.get("caption"), where, box_xyxy, box))
    plain = plain if layout.alternatives else plain[:1]
    yield from plain
    attributes = elem.get("attributes")
    if not layout.attributes or attributes is None:
        return
    for attribute in attributes if isinstance(attributes, list) else [attributes]:
        for said in plain:
            if not isinstance(attribute, str):
                yield Said("region", attribute, where, box_xyxy, seen=box, kind="attribute")
            elif isinstance(said.text, str):
                text = f"{attribute} {said.text}"
                yield Said("region", text, where, box_xyxy, seen=box, kind="attribute")


def _captions(
    item: Item, found: object, where: str, box_xyxy: object = None, seen: object = None
) -> Iterator[Said]:
    """A text, or each of a list of them; of none one that says so."""
    texts = found if isinstance(found, list) else [found]
    for text in texts or [None]:
        problem = "no text" if text is None and not (isinstance(found, list) and found) else None
        yield Said(item, text, where, box_xyxy, seen=seen, kind="region", problem=problem)

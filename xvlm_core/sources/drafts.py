"""What a source found, before anything is checked: drafts of records, and what was lost already.

Everything here is picklable, so that other processes, on this machine or another, can do the
checking. Nothing here reads a picture.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

from xvlm_core.data.ledger import Item


@dataclass(frozen=True)
class Said:
    """One text of a picture (or a proposal: a box without a text), as found.

    Attributes:
        item: what it is counted as: "caption", "region", "absent", "question" or "proposal".
        text: of any type: it is checked later.
        where: its place in the source, for the ledger: an annotation id, or ``file:line``.
        box_xyxy: as found, corners (``corners`` makes them); of regions and proposals.
        fraction: the box is in fractions of width and height, not in pixels.
        seen: the box as the source has it, for the ledger.
        kind: of a region.
        answers: of a question: (answer, weight) pairs; anything else is malformed.
        id: of a question.
        problem: a reason to drop it that is known already.
    """

    item: Item
    text: object = None
    where: str = ""
    box_xyxy: object = None
    fraction: bool = False
    seen: object = None
    kind: object = "object"
    answers: object = ()
    id: str = ""
    problem: str | None = None


@runtime_checkable
class Embedded(Protocol):
    """A picture that is no file of the image root: in an annotation, or drawn when asked for."""

    @property
    def name(self) -> str:
        """Of the file that it becomes in the store, unique there, e.g. "000000012.jpg"."""
        ...

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            PictureError: with a short reason.
        """
        ...


@dataclass(frozen=True)
class Base64Picture:
    """A picture as base64 text."""

    name: str
    text: object

    def read(self) -> bytes:
        """The decoded bytes.

        Raises:
            PictureError: "not base64".
        """
        from xvlm_core.data.images import PictureError

        if not isinstance(self.text, str):
            raise PictureError("not base64", self.name)
        try:
            return base64.b64decode(self.text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise PictureError("not base64", self.name) from error


@dataclass(frozen=True)
class PictureBytes:
    """An encoded picture that is at hand."""

    name: str
    data: bytes

    def read(self) -> bytes:
        """The bytes."""
        return self.data


@dataclass(frozen=True)
class Draft:
    """What becomes one record, unless its picture is damaged or nothing is left of its texts.

    Attributes:
        id: of the record, unique in the store.
        pictures: one, or two of a pair: a path from the image root (``a.tar@512+2048``: that many
            bytes of a tar file from that offset), or ``Embedded``.
        said: in the order of the source.
        size: stated width and height, if any; checked. Boxes are then those of the picture of
            that size: EXIF orientation is followed.
        split: of the record.
        source: of the record; empty: the source's name.
        statement: (text, label) about a pair.
        same_as: names of the same photograph elsewhere, to find it again in other data sets:
            "coco:391895", "flickr:4127484314" (photo id), "vg:2343", "url:...".
        meta: whatever else the source knows, plain JSON.
        keep_empty: keep the record even if it has no text (a picture with proposals, a test
            question without answer has its question; a plain folder of pictures has nothing).
    """

    id: str
    pictures: tuple[str | Embedded, ...]
    said: tuple[Said, ...] = ()
    size: tuple[int, int] | None = None
    split: str = "train"
    source: str = ""
    statement: tuple[object, object] | None = None
    same_as: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    keep_empty: bool = False


@dataclass(frozen=True)
class Lost:
    """Something that was read and cannot be used: counted as read and dropped.

    Attributes:
        item: what it is counted as.
        id: its place in the source.
        reason: a short word or two, always the same for the same cause.
        seen: the offending value.
    """

    item: Item
    id: str
    reason: str
    seen: object = None


@dataclass(frozen=True)
class Kept:
    """Something that was read and used but is no part of a record by itself (a ``line``)."""

    item: Item
    n: int = 1


@dataclass(frozen=True)
class Repaired:
    """Something that was changed, and is kept or dropped as any other."""

    item: Item
    id: str
    reason: str
    seen: object = None


@runtime_checkable
class Lazy(Protocol):
    """Work that the checking process does: reading lines again, drawing, parsing."""

    def expand(self) -> Iterable[Draft | Lost | Kept | Repaired]:
        """What it comes to (at most one draft)."""
        ...


Event: TypeAlias = "Draft | Lost | Kept | Repaired | Lazy"
"""One thing that a source says."""


def corners(box: object, box_format: str) -> object:
    """Four numbers in ``box_format`` to a list ``xyxy``; anything else comes back as it is.

    Args:
        box: as found in a file.
        box_format: "xyxy", "xywh" or "cxcywh".
    """
    if not isinstance(box, list) or len(box) != 4:
        return box
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in box):
        return box
    try:
        a, b, c, d = (float(v) for v in box)
    except OverflowError:
        return [float("inf")] * 4
    if box_format == "xywh":
        return [a, b, a + c, b + d]
    if box_format == "cxcywh":
        return [a - c / 2, b - d / 2, a + c / 2, b + d / 2]
    assert box_format == "xyxy", box_format
    return [a, b, c, d]

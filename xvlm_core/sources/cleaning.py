"""What every source does with texts, boxes and pictures before they become records.

Rules (paper, appendix A.1, as read in docs): a box is kept if its four numbers are finite, it has
an area, and no part of it is outside the picture (no tolerance); then, if it is not too small;
then, if something is left of its text after the cleaning that training does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from xvlm_core.data.boxes import box_problem
from xvlm_core.data.images import (
    MAX_PIXELS,
    PictureError,
    _open_file,
    _read_header,
    read_picture,
    resolve_inside,
)
from xvlm_core.data.ledger import Item, Ledger
from xvlm_core.data.records import Region, RegionKind
from xvlm_core.data.text import EmptyTextError, pre_caption, sanitize

_SIDEWAYS = (5, 6, 7, 8)
_THREADS = 16
_CHUNK = 1024

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """A picture that can be read.

    Attributes:
        path: from the image root, with forward slashes.
        width: pixels as shown, that is after EXIF orientation.
        height: the same.
        turn: EXIF orientation by which boxes must be turned, because they were drawn on the picture
            as stored; 1: they are right; None: whether they must be turned cannot be told.
    """

    path: str
    width: int
    height: int
    turn: int | None = 1

    @property
    def box_frame(self) -> tuple[int, int]:
        """Width and height of the picture that the boxes were drawn on."""
        sideways = self.turn in _SIDEWAYS
        return (self.height, self.width) if sideways else (self.width, self.height)


@dataclass(frozen=True)
class PictureJob:
    """A picture to check: its path, and the size that the annotations state, if any."""

    path: str
    stated: tuple[int, int] | None = None


def check_picture(root: Path, job: PictureJob, *, decode: bool = False) -> Picture:
    """Check that a picture is inside the root, is one, is whole, and has the stated size.

    Reads the header and the end of the file; decodes only if asked, or if the end looks cut off.

    Args:
        root: the image root.
        job: the picture, and the size that annotations state: as stored or as shown. A picture
            that EXIF turns, and whose stated size fits both, has boxes of an unknown frame. With
            no size stated, boxes are those of the picture as shown.
        decode: read all of it.

    Raises:
        PictureError: with a short reason, those of ``data.images`` or "size mismatch".
    """
    try:
        job.path.encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate: such a name cannot be stored
        raise PictureError("not a file name", repr(job.path)) from error
    path = resolve_inside(root, job.path)
    with _open_file(path) as file:
        image, orientation = _read_header(file, job.path, MAX_PIXELS)
        stored = image.size
    if decode or not _ends_whole(path):
        read_picture(path)
    shown = (stored[1], stored[0]) if orientation in _SIDEWAYS else stored
    turn: int | None = 1
    if job.stated is not None and job.stated not in (stored, shown):
        (w, h), (sw, sh) = job.stated, shown
        raise PictureError("size mismatch", f"{job.path}: stated {w}x{h}, really {sw}x{sh}")
    if job.stated is not None and orientation in range(2, 9):
        if stored == shown:
            turn = None
        elif job.stated == stored:
            turn = orientation
    return Picture(job.path, shown[0], shown[1], turn)


def check_pictures(
    root: Path, jobs: Iterable[PictureJob], *, decode: bool = False
) -> Iterator[Picture | PictureError]:
    """``check_picture`` of many, in order, some at a time: most of it is waiting for the disk."""

    def check(job: PictureJob) -> Picture | PictureError:
        try:
            return check_picture(root, job, decode=decode)
        except PictureError as error:
            return error

    remaining = iter(jobs)
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            yield from pool.map(check, chunk)


def _ends_whole(path: Path) -> bool:
    """Whether a file of a format with an end mark ends with it (or close to it)."""
    with open(path, "rb") as file:
        start = file.read(12)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        end = file.read()
    if start.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in end
    if start.startswith(b"\x89PNG"):
        return b"IEND" in end
    if start.startswith(b"GIF8"):
        return end.rstrip(b"\0").endswith(b";")
    if start.startswith(b"RIFF"):
        return size >= int.from_bytes(start[4:8], "little") + 8
    return True


def turn_box(box_xyxy_px: Box, width: int, height: int, orientation: int) -> Box:
    """A box on the stored picture (``width`` x ``height``) to the picture as shown.

    Args:
        box_xyxy_px: box in stored pixels.
        width: stored width.
        height: stored height.
        orientation: EXIF value, 1 to 8.
    """
    x1, y1, x2, y2 = box_xyxy_px
    points = [_turn_point(x, y, width, height, orientation) for x, y in ((x1, y1), (x2, y2))]
    (ax, ay), (bx, by) = points
    return min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)


def _turn_point(x: float, y: float, w: int, h: int, orientation: int) -> tuple[float, float]:
    return {
        1: (x, y),
        2: (w - x, y),
        3: (w - x, h - y),
        4: (x, h - y),
        5: (y, x),
        6: (h - y, x),
        7: (h - y, w - x),
        8: (y, w - x),
    }[orientation]


class Cleaner:
    """Texts and boxes in, what may be kept out; all of it counted in the ledger.

    Args:
        ledger: of the store.
        min_box_area: share of the picture below which a box is dropped.
    """

    def __init__(self, ledger: Ledger, *, min_box_area: float = 0.0) -> None:
        self.ledger = ledger
        self.min_box_area = min_box_area

    def text(self, item: Item, id: str, value: object) -> str | None:
        """A caption, question or absent phrase (counts it as read, and as kept or dropped)."""
        self.ledger.read(item)
        text = self._clean(item, id, value)
        if text is not None:
            self.ledger.keep(item)
        return text

    def region(
        self,
        id: str,
        text: object,
        box_xyxy_px: object,
        picture: Picture,
        kind: RegionKind,
        *,
        seen: object = None,
    ) -> Region | None:
        """A text with a box (counts it as read, and as kept or dropped).

        Args:
            id: where it stands in the source.
            text: as found.
            box_xyxy_px: as found, in the frame of ``picture.box_frame``.
            picture: that it belongs to.
            kind: of the region.
            seen: the box as the source has it, for the ledger.
        """
        self.ledger.read("region")
        seen = box_xyxy_px if seen is None else seen
        width, height = picture.box_frame
        reason = box_reason(box_xyxy_px, width, height, self.min_box_area)
        if reason is None and picture.turn is None:
            reason = "unclear which way up the box is"
        if reason is not None:
            self.ledger.drop("region", id, reason, seen)
            return None
        cleaned = self._clean("region", id, text)
        if cleaned is None:
            return None
        x1, y1, x2, y2 = (round(float(v), 4) for v in box_xyxy_px)  # type: ignore[attr-defined]
        box: Box = (x1, y1, x2, y2)
        if picture.turn not in (None, 1):
            assert picture.turn is not None
            box = turn_box(box, width, height, picture.turn)
            self.ledger.repair("region", id, "box turned to the picture as shown", seen)
        self.ledger.keep("region")
        return Region(cleaned, box, kind)

    def lose(self, item: Item, id: str, reason: str, seen: object = None) -> None:
        """Count an item as read and dropped."""
        self.ledger.read(item)
        self.ledger.drop(item, id, reason, seen)

    def clean_text(self, value: object) -> str | None:
        """A text that is not counted by itself (an answer, a statement); None if unusable."""
        if not isinstance(value, str):
            return None
        text = sanitize(value)
        try:
            pre_caption(text, 1)
        except EmptyTextError:
            return None
        return text

    def _clean(self, item: Item, id: str, value: object) -> str | None:
        text = self.clean_text(value)
        if text is None:
            reason = "empty text" if isinstance(value, str) else "text malformed"
            self.ledger.drop(item, id, reason, value)
            return None
        assert isinstance(value, str)
        if text != " ".join(value.split()):
            self.ledger.repair(item, id, "characters that cannot be shown removed", value)
        return text


def box_reason(
    box_xyxy_px: object, width: int, height: int, min_box_area: float = 0.0
) -> str | None:
    """Why a box is dropped, or None.

    Returns:
        "box malformed", "box not finite", "box has no area", "box outside the picture",
        "box too small", or None.
    """
    if not isinstance(box_xyxy_px, Sequence) or isinstance(box_xyxy_px, str):
        return "box malformed"
    try:
        reason = box_problem(box_xyxy_px, width, height)
    except OverflowError:  # an integer of hundreds of digits
        return "box not finite"
    if reason is not None:
        return reason
    x1, y1, x2, y2 = box_xyxy_px
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:  # box_problem has some tolerance
        return "box outside the picture"
    # A box of exactly the smallest area stays, whatever x + w - x came to.
    if (x2 - x1) * (y2 - y1) < min_box_area * width * height * (1 - 1e-9):
        return "box too small"
    return None


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

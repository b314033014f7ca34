"""Checking the pictures that a source names: there, whole, of the stated size, the right way up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from xvlm_core.data.images import (
    MAX_PIXELS,
    ImageRoot,
    PictureError,
    byte_range,
    open_encoded,
    parse_header,
    read_picture,
    read_range,
)
from xvlm_core.data.jpeg_header import ENOUGH, plain_jpeg
from xvlm_core.data.records import Box
from xvlm_core.sources.drafts import Embedded

_SIDEWAYS = (5, 6, 7, 8)
_THREADS = 16
_CHUNK = 256
_PROBED = 8
_SLOW = 0.5e-3
"""Seconds of waiting for a picture above which several are read at a time."""


@dataclass(frozen=True)
class Picture:
    """A picture that can be read.

    Attributes:
        path: from the image root, with forward slashes; of an embedded one its name.
        width: pixels as shown, that is after EXIF orientation.
        height: the same.
        turn: EXIF orientation by which boxes must be turned, because they were drawn on the picture
            as stored; 1: they are right; None: whether they must be turned cannot be told.
        kind: format by its first bytes, as Pillow names it.
        data: the encoded picture, if it was asked for.
        bytes: size of its file.
    """

    path: str
    width: int
    height: int
    turn: int | None = 1
    kind: str = "JPEG"
    data: bytes | None = None
    bytes: int = 0

    @property
    def box_frame(self) -> tuple[int, int]:
        """Width and height of the picture that the boxes were drawn on."""
        sideways = self.turn in _SIDEWAYS
        return (self.height, self.width) if sideways else (self.width, self.height)


@dataclass(frozen=True)
class PictureJob:
    """A picture to check: where it is, and the size that the annotations state, if any."""

    picture: str | Embedded
    stated: tuple[int, int] | None = None


def check_picture(
    root: Path | None, job: PictureJob, *, decode: bool = False, keep: bool = False
) -> Picture:
    """Check that a picture is inside the root, is one, is whole, and has the stated size.

    Reads the header and the end of the file; decodes only if asked, or if the end looks cut off.

    Args:
        root: the image root; None: pictures are embedded.
        job: the picture, and the size that annotations state: as stored or as shown. A picture
            that EXIF turns, and whose stated size fits both, has boxes of an unknown frame. With
            no size stated, boxes are those of the picture as shown.
        decode: read all of it.
        keep: return its bytes too (those of embedded pictures always are).

    Raises:
        PictureError: with a short reason, those of ``data.images`` or "size mismatch".
    """
    place = None if root is None else ImageRoot(root)
    return _checked(place, job, decode=decode, keep=keep)


def _checked(root: ImageRoot | None, job: PictureJob, *, decode: bool, keep: bool) -> Picture:
    source, name = _locate(root, job.picture)
    data = source if isinstance(source, bytes) else None
    with open_encoded(source) as file:
        try:
            start = file.read(ENOUGH)
            header = plain_jpeg(start)
            if header is not None and header.width * header.height <= MAX_PIXELS:
                stored, kind, orientation = (header.width, header.height), "JPEG", 1
            else:
                file.seek(0)
                image, orientation = parse_header(file, name, MAX_PIXELS)
                stored, kind = image.size, str(image.format)
            size = file.seek(0, os.SEEK_END)
            whole = _ends_whole(file, start, size)
            if keep and data is None:
                file.seek(0)
                data = file.read()
        except OSError as error:
            raise PictureError("unreadable", name) from error
    if decode or not whole:
        read_picture(source if data is None else data)
    shown = (stored[1], stored[0]) if orientation in _SIDEWAYS else stored
    turn: int | None = 1
    if job.stated is not None and job.stated not in (stored, shown):
        (w, h), (sw, sh) = job.stated, shown
        raise PictureError("size mismatch", f"{name}: stated {w}x{h}, really {sw}x{sh}")
    if job.stated is not None and orientation in range(2, 9):
        if stored == shown:
            turn = None
        elif job.stated == stored:
            turn = orientation
    return Picture(name, shown[0], shown[1], turn, kind, data, size)


def _locate(root: ImageRoot | None, picture: str | Embedded) -> tuple[Path | bytes, str]:
    """A file or bytes, and what the picture is called."""
    if not isinstance(picture, str):
        return picture.read(), picture.name
    assert root is not None, "pictures of a source without image root are embedded"
    try:
        picture.encode("utf-8")
    except UnicodeEncodeError as error:  # a lone surrogate: such a name cannot be stored
        raise PictureError("not a file name", repr(picture)) from error
    span = byte_range(picture)
    if span is not None:
        path = root.find(span.file)
        return read_range(path, span.offset, span.length), picture
    return root.find(picture), picture


def check_pictures(
    root: Path | None, jobs: Iterable[PictureJob], *, decode: bool = False, keep: bool = False
) -> Iterator[Picture | PictureError]:
    """``check_picture`` of many, in order; several at a time where that is waiting for a disk."""
    place = None if root is None else ImageRoot(root)

    def check(job: PictureJob) -> Picture | PictureError:
        try:
            return _checked(place, job, decode=decode, keep=keep)
        except PictureError as error:
            return error
        except OSError as error:  # a bad sector of a tar file, say: not what is being written
            return PictureError("unreadable", f"{job.picture}: {error.strerror or error}")

    remaining = iter(jobs)
    with ThreadPoolExecutor(_THREADS) as pool:  # starts no thread before it has something to do
        while chunk := list(islice(remaining, _CHUNK)):
            probed = [_timed(check, job) for job in chunk[:_PROBED]]
            yield from (found for found, _ in probed)
            waited = sorted(seconds for _, seconds in probed)[len(probed) // 2]
            apply = pool.map if waited > _SLOW else map
            yield from apply(check, chunk[_PROBED:])


def _timed(
    check: Callable[[PictureJob], Picture | PictureError], job: PictureJob
) -> tuple[Picture | PictureError, float]:
    """What comes of a job, and for how many seconds it waited."""
    begun, worked = time.perf_counter(), time.thread_time()
    found = check(job)
    return found, time.perf_counter() - begun - (time.thread_time() - worked)


def _ends_whole(file: IO[bytes], start: bytes, size: int) -> bool:
    """Whether a file of a format with an end mark ends with it (or close to it)."""
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

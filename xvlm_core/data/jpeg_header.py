"""The size of an ordinary JPEG from its first bytes, without starting Pillow.

Most pictures of every data set are such, and checking one takes a fraction of the time. Whatever
is out of the ordinary (EXIF data, which may turn the picture; several pictures in one file; damage)
is left to Pillow: ``plain_jpeg`` never gives an answer that Pillow would not give.
"""

from __future__ import annotations

from typing import NamedTuple

ENOUGH = 4096
"""Bytes that hold the header of nearly every ordinary picture."""

_START = b"\xff\xd8"
_FRAMES = (0xC0, 0xC1, 0xC2)
_TABLES, _SCAN, _ICC = 0xDB, 0xDA, 0xE2
_LEAST = {0xC4: 2, 0xDD: 4, 0xE0: 16, 0xEE: 14, 0xFE: 2}
"""Other segments without meaning for the size, and the bytes that Pillow reads of them."""


class PlainJpeg(NamedTuple):
    """What the header of an upright 8-bit JPEG says.

    Attributes:
        width: pixels.
        height: pixels.
        layers: 1 (grey), 3 (colours) or 4.
    """

    width: int
    height: int
    layers: int


def plain_jpeg(start: bytes) -> PlainJpeg | None:
    """The header of an ordinary JPEG; None where Pillow must look.

    Args:
        start: the first bytes of the file: the whole header, up to the pixels, must be in them.
    """
    if not start.startswith(_START):
        return None
    found: PlainJpeg | None = None
    at, end = 2, len(start) - 4
    while at <= end:
        if start[at] != 0xFF:
            return None
        marker, length = start[at + 1], start[at + 2] << 8 | start[at + 3]
        after = at + 2 + length
        if after > len(start):
            return None
        if marker == _TABLES:
            tables = start[at + 4 : after : 65]
            if length < 67 or (length - 2) % 65 or max(tables) > 15:
                return None
        elif marker in _FRAMES:
            layers = start[at + 9] if length > 8 else 0
            if found is not None or layers not in (1, 3, 4) or length != 8 + 3 * layers:
                return None
            if start[at + 4] != 8:
                return None
            height = start[at + 5] << 8 | start[at + 6]
            width = start[at + 7] << 8 | start[at + 8]
            found = PlainJpeg(width, height, layers)
        elif marker == _SCAN:
            return found if found is not None and 0 not in found and length > 2 else None
        elif marker == _ICC:
            if length < 16 or start[at + 4 : at + 16] != b"ICC_PROFILE\0":
                return None
        elif length < _LEAST.get(marker, 1 << 16):
            return None
        at = after
    return None

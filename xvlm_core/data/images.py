"""Reading pictures safely: header before pixels, upright, RGB, 8 bits, never outside the root."""

from __future__ import annotations

import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

MAX_PIXELS = 64_000_000
"""Width times height above which a picture is refused before it is decoded."""

BACKGROUND = (255, 255, 255)
"""What shows through transparent parts: white."""

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""Formats we decode. Others that Pillow knows start programs (EPS) or are rarely fuzzed."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|(?:file|data|http|https|ftp):")
_DRIVE = re.compile(r"[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)*[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""Names that need no closer look: nothing but letters, digits, and slashes and dots between."""


class PictureError(ValueError):
    """A picture that cannot be used; ``reason`` is a short ledger word.

    Reasons: "missing", "not a file", "unreadable", "empty file", "not an image", "truncated image",
    "damaged image", "too large", "unsupported pixel type"; from ``resolve_inside``:
    "outside the image root", "absolute path", "a URL", "not a file name".

    Attributes:
        which: number of the picture in its record: 1 for the second of a pair.
    """

    which = 0

    def __init__(self, reason: str, seen: object) -> None:
        super().__init__(f"{reason}: {seen}")
        self.reason = reason
        self.seen = seen

    def __reduce__(self) -> tuple[type[PictureError], tuple[str, object]]:
        return type(self), (self.reason, self.seen)


def read_picture(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to upright 8-bit RGB.

    The type comes from the first bytes, not the name; orientation follows EXIF; 16-bit grey is
    scaled (not clipped) to 8 bits; transparency is laid on white; of an animation the first frame.

    Args:
        source: a file, or its bytes.
        max_pixels: larger pictures are refused from the header, before any pixel is decoded.

    Raises:
        PictureError: with a short ``reason``.
    """
    name = _name(source)
    with open_encoded(source) as file:
        image, orientation = parse_header(file, name, max_pixels)
        try:
            image.load()
            image = _to_rgb(image, name)
        except PictureError:
            raise
        except (OSError, EOFError) as error:
            raise PictureError(_decode_reason(error), name) from error
        except Exception as error:
            raise PictureError("damaged image", name) from error
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    elif type(image) is not Image.Image:
        image = image.convert("RGB")  # a plain picture, without the reader and its file
    image.info.clear()  # or the next reader of the EXIF data turns the picture again
    return image


def picture_size(source: Path | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) in pixels after EXIF orientation, from the header alone.

    Raises:
        PictureError: with a short ``reason``.
    """
    with open_encoded(source) as file:
        image, orientation = parse_header(file, _name(source), max_pixels)
        width, height = image.size
    return (height, width) if orientation in _SIDEWAYS else (width, height)


_RANGE = re.compile(r"(.+\.tar)@(\d{1,15})\+(\d{1,12})")


@dataclass(frozen=True)
class ByteRange:
    """Some bytes of a file.

    Attributes:
        file: its path, as in the record.
        offset: of the first byte.
        length: number of bytes.
    """

    file: str
    offset: int
    length: int


def byte_range(relative: str) -> ByteRange | None:
    """What ``a.tar@512+2048`` stands for; None for a plain path."""
    match = _RANGE.fullmatch(relative) if isinstance(relative, str) else None
    return ByteRange(match[1], int(match[2]), int(match[3])) if match else None


def read_range(path: Path, offset: int, length: int) -> bytes:
    """Some bytes of a file, whole.

    Raises:
        PictureError: "missing", "empty file", or "truncated image" if the file ends before.
    """
    with open_encoded(path) as file:
        size = os.fstat(file.fileno()).st_size
        if offset + length > size:
            raise PictureError("truncated image", f"{path}: ends before byte {offset + length}")
        file.seek(offset)
        return file.read(length)


class ImageRoot:
    """Finds the pictures of an image root; nothing that it finds is outside.

    Links are followed before they are judged. The real place of a folder is remembered, so keep an
    ``ImageRoot`` only as long as folders stay where they are; files are looked at every time.

    Args:
        root: may itself be a link.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real_root: Path | None = None
        self._folders: dict[str, Path] = {}

    def find(self, relative: str) -> Path:
        """As ``resolve_inside``."""
        if not isinstance(relative, str) or not _PLAIN.fullmatch(relative):
            check_name(relative)
            return self._resolved(relative, relative)
        folder, _, name = relative.rpartition("/")
        real_folder = self._folders.get(folder)
        if real_folder is None:
            real_folder = self._resolved(folder, relative)
            self._folders[folder] = real_folder
        path = real_folder / name
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except OSError:  # missing, or of an impossible name: for the reader to say
            return path
        return self._resolved(relative, relative) if is_link else path

    def _resolved(self, place: str, named: str) -> Path:
        try:
            if self._real_root is None:
                self._real_root = self._root.resolve()
            real = (self._real_root / place).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise PictureError("not a file name", repr(named)) from error
        if not real.is_relative_to(self._real_root):
            raise PictureError("outside the image root", repr(named))
        return real


def resolve_inside(root: Path, relative: str) -> Path:
    """The real path of a picture that a record names, proven to lie inside the image root.

    Nothing is opened. Whether the file exists is for ``read_picture`` to say.

    Args:
        root: the image root; may itself be a link.
        relative: path from the root, with forward slashes.

    Raises:
        PictureError: the name leaves the root (``..``, links), is absolute, a URL, or no file name.
    """
    return ImageRoot(root).find(relative)


def check_name(relative: object) -> None:
    """Refuse what is no path down from a root: the part of ``resolve_inside`` that needs no disk.

    Raises:
        PictureError: as ``resolve_inside``, links aside.
    """
    if not isinstance(relative, str) or not relative.strip() or _CONTROL.search(relative):
        raise PictureError("not a file name", repr(relative))
    if _URL.match(relative):
        raise PictureError("a URL", repr(relative))
    if relative.startswith(("/", "\\")) or _DRIVE.match(relative):
        raise PictureError("absolute path", repr(relative))
    parts = relative.replace("\\", "/").split("/")
    if ".." in parts:
        raise PictureError("outside the image root", repr(relative))
    if "\\" in relative or parts[-1] in ("", "."):
        raise PictureError("not a file name", repr(relative))


def _name(source: Path | bytes) -> str:
    return f"{len(source)} bytes" if isinstance(source, bytes) else str(source)


def open_encoded(source: Path | bytes) -> IO[bytes]:
    """A picture file, or bytes, opened; the file must be a regular one and not be empty.

    Raises:
        PictureError: "missing", "empty file", "not a file", "not a file name" or "unreadable".
    """
    if isinstance(source, bytes):
        if not source:
            raise PictureError("empty file", _name(source))
        return io.BytesIO(source)
    try:
        status = os.stat(source)
        if not stat.S_ISREG(status.st_mode):
            raise PictureError("not a file", source)
        if status.st_size == 0:
            raise PictureError("empty file", source)
        return open(source, "rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PictureError("missing", source) from error
    except PictureError:
        raise
    except ValueError as error:  # a null character, or one that no file name of here can have
        raise PictureError("not a file name", source) from error
    except OSError as error:
        raise PictureError("unreadable", source) from error


def parse_header(file: IO[bytes], name: str, max_pixels: int) -> tuple[Image.Image, int]:
    """An image that is not decoded yet, checked for size, and the orientation still to apply.

    Args:
        file: from ``open_encoded``; must stay open as long as the image is used.
        name: for messages.
        max_pixels: larger pictures are refused.

    Raises:
        PictureError: "not an image", "too large" or "damaged image".
    """
    try:
        image = Image.open(file, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("too large", name) from error
    except Exception as error:
        raise PictureError("not an image", name) from error
    if image.width * image.height > max_pixels:
        raise PictureError("too large", f"{name} ({image.width} x {image.height})")
    if image.width == 0 or image.height == 0:
        raise PictureError("damaged image", name)
    return image, _orientation(image)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation from the header; 1 (upright) where there is none or it is damaged."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFF itself, and gives the turned size from the header on
    try:
        # Not PngImageFile.getexif: it decodes the whole picture to find a late chunk.
        return int(Image.Image.getexif(image).get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _decode_reason(error: OSError | EOFError) -> str:
    text = str(error).lower()
    if isinstance(error, EOFError) or "truncated" in text or "incomplete" in text:
        return "truncated image"
    return "damaged image"


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit_grey(image)
    if image.mode == "F":
        raise PictureError("unsupported pixel type", name)
    transparent = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")
    if transparent:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(background, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bit_grey(image: Image.Image) -> Image.Image:
    """0..65535 to 0..255 with rounding; a plain convert would cut off at 255."""
    values = np.asarray(image).astype(np.int64).clip(0, 65535)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")

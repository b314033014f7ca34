"""Where the files of a store are: a folder of this machine, or any place that fsspec knows."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from xvlm_core.data.block_cache import CacheSettings
from xvlm_core.data.manifest import MANIFEST, sha256_file

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
"""Two letters at least: ``c://`` is a drive."""

_KEPT_OPEN = 128
"""Files that are kept open: twice the shards that a window of the stream mixes."""


class Files(Protocol):
    """The files of a folder, by their names (with forward slashes). Cheap to pickle."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None: there is no such file."""

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """``size`` of many, with few questions."""

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Some bytes; fewer where the file ends before.

        Raises:
            OSError: missing, or not to be read (of this machine).
            DataError: the place does not answer.
        """

    def read_all(self, name: str, most: int | None = None) -> bytes:
        """A whole file; raises as ``read``, and ``OSError`` if it is larger than ``most``."""

    def array(self, name: str) -> npt.NDArray[Any]:
        """A ``.npy`` file, mapped instead of read where that can be; never unpickled.

        Raises:
            Exception: any, if it is none: NumPy reads the header as Python.
        """

    def sha256(self, name: str) -> str:
        """Hex sha256 of a file."""

    def keep(self, version: str) -> None:
        """Files read whole may be taken from the cache from now on, until the version changes."""

    def beside(self, url: str) -> Files:
        """The files of another remote place, with the same cache."""


class LocalFiles:
    """A folder of this machine; files that parts are read of stay open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handles: dict[str, int] = {}

    def size(self, name: str) -> int | None:
        """As ``Files``. A store may have thousands: no ``Path`` is made."""
        try:
            status = os.stat(os.path.join(self.folder, name))
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """As ``Files``."""
        return {name: self.size(name) for name in names}

    def read(self, name: str, offset: int, length: int) -> bytes:
        """As ``Files``."""
        path = self.folder / name
        if not hasattr(os, "pread"):  # Windows
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(length)
        if name not in self._handles:
            while len(self._handles) >= _KEPT_OPEN:
                os.close(self._handles.pop(next(iter(self._handles))))
            self._handles[name] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        # Not seek and read: forked workers and threads share the file position.
        return os.pread(self._handles[name], length, offset)

    def read_all(self, name: str, most: int | None = None) -> bytes:
        """As ``Files``."""
        with open(os.path.join(self.folder, name), "rb") as file:
            return file.read()

    def array(self, name: str) -> npt.NDArray[Any]:
        """As ``Files``: mapped, not read."""
        array: npt.NDArray[Any] = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        return array

    def sha256(self, name: str) -> str:
        """As ``Files``."""
        return sha256_file(self.folder / name)

    def keep(self, version: str) -> None:
        """As ``Files``: there is no cache."""

    def beside(self, url: str) -> Files:
        """As ``Files``."""
        return open_files(url)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_handles": {}}

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", {}).values():
            os.close(handle)


def is_url(place: Path | str) -> bool:
    """Whether a place is for fsspec: ``s3://bucket/stores``."""
    return isinstance(place, str) and _URL.match(place) is not None


def as_place(text: str) -> Path | str:
    """What a user typed: a URL stays one, all else is a path."""
    return text.rstrip("/") if is_url(text) else Path(text)


def store_place(root: str, name: str) -> Path | str:
    """The place of a store under ``data.root``. ``Path("s3://x")`` would lose a slash."""
    return f"{root.rstrip('/')}/{name}" if is_url(root) else Path(root) / name


def open_files(place: Path | str, cache: CacheSettings | None = None) -> Files:
    """The files of a place; nothing is asked of it yet.

    Raises:
        MissingToolError: fsspec lacks a package for the protocol.
        DataError: no such protocol.
    """
    if not is_url(place):
        return LocalFiles(Path(place))
    from xvlm_core.data.remote import RemoteFiles

    return RemoteFiles(str(place), cache or CacheSettings())


def is_store(place: Path | str) -> bool:
    """Whether there is a prepared store (its manifest).

    Raises:
        DataError: a remote place does not answer.
        MissingToolError: as ``open_files``.
    """
    return open_files(place).size(MANIFEST) is not None

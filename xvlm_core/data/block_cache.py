"""A folder of blocks of bounded size that several processes share, without a lock or an index.

Blocks are written whole or not at all, and one that is not as long as it says is no block. How much
there is, is told by the length of the tally file: every process appends to it, which no two
processes can do at once to harm. Only when that passes the limit is the folder looked through, and
what was used longest ago removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xvlm_core.errors import OutputError

if TYPE_CHECKING:
    from xvlm_core.config.data_sections import DataSection

_HEADER = struct.Struct(">4sQ")
_MAGIC = b"xvb1"
_TALLY = "xvlm-cache.tally"
_PART = ".part"
_OURS = re.compile(r"[0-9a-f]{64}(?:\.\d+)?|[0-9a-f]{32}\.part")
"""Names of blocks: nothing else is ever removed, whatever folder a user gives."""
_UNIT = 4096
"""Bytes for which the tally grows by one: what file systems hand out."""
_KEPT = 0.9
_FORGOTTEN_S = 3600.0
"""Age from which on the part of a block is what a killed process left."""

CACHE_GB = 20.0
"""What a cache may take unless a recipe says otherwise, in 10^9 bytes."""


@dataclass(frozen=True)
class CacheSettings:
    """Where what was read from remote places is kept on this machine.

    Attributes:
        folder: several processes and runs may share it; None: ``$XDG_CACHE_HOME/xvlm/stores``.
        limit_bytes: the most it may take; what was used longest ago goes first.
    """

    folder: Path | None = None
    limit_bytes: int = int(CACHE_GB * 1e9)

    @classmethod
    def of(cls, data: DataSection) -> CacheSettings:
        """As a recipe says."""
        folder = None if data.cache is None else Path(data.cache).expanduser()
        return cls(folder, int(data.cache_gb * 1e9))

    def place(self) -> Path:
        """The folder; nothing is made."""
        if self.folder is not None:
            return self.folder
        home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return Path(home).expanduser() / "xvlm" / "stores"


def hash_name(*parts: str) -> str:
    """A file name that stands for some texts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class BlockCache:
    """Blocks by name.

    Attributes:
        folder: made when the first block is.
        limit_bytes: the most that the blocks may take.
    """

    folder: Path
    limit_bytes: int

    def read(
        self, name: str, offset: int = 0, length: int | None = None, *, size: int | None = None
    ) -> bytes | None:
        """Bytes of a block, or None if it is not there or damaged.

        Args:
            name: of the block: 64 hex digits, and ``.NUMBER`` or not.
            offset: of the first byte.
            length: number of bytes; None: all that follow.
            size: bytes that the block must have; None: as many as it says.
        """
        path = self._path(name)
        try:
            with open(path, "rb") as file:
                head = file.read(_HEADER.size)
                there = os.fstat(file.fileno()).st_size - _HEADER.size
                whole = len(head) == _HEADER.size and _HEADER.unpack(head) == (_MAGIC, there)
                if not whole or (size is not None and there != size):
                    return None
                file.seek(_HEADER.size + offset)
                data = file.read(there - offset if length is None else length)
        except OSError:  # most often: not there
            return None
        with contextlib.suppress(OSError):  # removed by another process
            os.utime(path)
        return data

    def write(self, name: str, data: bytes) -> None:
        """Keep a block; older ones go if it has no place. One larger than the limit is not kept.

        Raises:
            OutputError: the folder cannot be written to.
        """
        units = -(-(len(data) + _HEADER.size) // _UNIT)
        if units * _UNIT > self.limit_bytes:
            return
        path = self._path(name)
        part = path.with_name(f"{uuid.uuid4().hex}{_PART}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(units)
            try:
                with open(part, "wb") as file:
                    file.write(_HEADER.pack(_MAGIC, len(data)))
                    file.write(data)
                os.replace(part, path)
            except OSError:
                with contextlib.suppress(OSError):
                    part.unlink()
                raise
        except OSError as error:
            raise OutputError(
                f"cannot write the cache {self.folder}: {error.strerror or error}",
                where=str(self.folder),
                try_="data.cache=FOLDER, or a smaller data.cache_gb",
            ) from error

    def used_bytes(self) -> int:
        """What the blocks take, looked up."""
        return sum(size for _, size, _ in self._blocks())

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _make_room(self, units: int) -> None:
        tally = self.folder / _TALLY
        known = tally.exists()
        with open(tally, "ab", buffering=0) as file:
            file.write(bytes(units))
            total = os.fstat(file.fileno()).st_size
        if known and total * _UNIT <= self.limit_bytes:
            return
        blocks = sorted(self._blocks())
        used = sum(size for _, size, _ in blocks) + units * _UNIT
        if used > self.limit_bytes:
            wanted = max(int(self.limit_bytes * _KEPT), units * _UNIT)
            for _, size, path in blocks:
                if used <= wanted:
                    break
                with contextlib.suppress(PermissionError):  # open (Windows)
                    with contextlib.suppress(FileNotFoundError):  # another process was faster
                        os.unlink(path)
                    used -= size
        os.truncate(tally, -(-used // _UNIT))

    def _blocks(self) -> list[tuple[int, int, str]]:
        """When each was used last, the bytes it takes, and where it is."""
        found = []
        forgotten = time.time_ns() - int(_FORGOTTEN_S * 1e9)
        with contextlib.suppress(OSError), os.scandir(self.folder) as folders:
            for folder in folders:
                if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):
                    continue
                with contextlib.suppress(OSError), os.scandir(folder) as files:
                    for file in files:
                        if not _OURS.fullmatch(file.name):
                            continue
                        with contextlib.suppress(OSError):
                            status = file.stat(follow_symlinks=False)
                            used = status.st_mtime_ns
                            if file.name.endswith(_PART):
                                used = 0 if used < forgotten else time.time_ns()
                            size = -(-status.st_size // _UNIT) * _UNIT
                            found.append((used, size, file.path))
        return found

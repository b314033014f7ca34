"""Files of a store at a place that fsspec knows, with a cache of bounded size on this machine.

Big files are read in blocks, pictures and indexes whole. Every part of an address goes through
``_url``: no name leads out of the root.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from xvlm_core.data.block_cache import BlockCache, CacheSettings, hash_name
from xvlm_core.data.images import check_name, resolve_inside
from xvlm_core.errors import DataError, MissingToolError, UsageError

BLOCK_BYTES = 4 << 20
"""Bytes that are asked for at once: some hundred records and pictures that follow one another."""

WAITS_S = (0.1, 0.5, 2.0)
"""Seconds before the second and each further try."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
"""Protocol and the extra of our package that fsspec needs for it."""

_VERSION = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "updated", "created")
"""What file systems tell that changes with a file."""

_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""No second try makes these better."""

_Answer = TypeVar("_Answer")


class _Info(NamedTuple):
    """What the place tells of a file: its bytes, and a text that changes with it."""

    size: int
    version: str


class RemoteFiles:
    """A remote folder. Safe to pickle, to fork and to share between threads.

    Args:
        url: of the folder.
        cache: where what was read is kept.
        version: of the store: whole files are kept for as long as it stays the same.

    Raises:
        UsageError: the address cannot have names put behind it.
        MissingToolError: fsspec lacks a package for the protocol.
        DataError: no such protocol.
    """

    def __init__(self, url: str, cache: CacheSettings, version: str = "") -> None:
        self.url = url.rstrip("/")
        self.cache = BlockCache(cache.place(), cache.limit_bytes)
        self.version = version
        self._infos: dict[str, _Info] = {}
        self._opened: tuple[int, Any] | None = None
        protocol = self.url.partition("://")[0].lower()
        self._is_http = protocol in ("http", "https")
        if "::" in url or (self._is_http and ("?" in url or "#" in url)):
            raise UsageError(f"{url} is no plain folder", try_="an address like s3://bucket/stores")
        self._system()

    # ------------------------------------------------------------------ Files

    def size(self, name: str) -> int | None:
        """As ``Files``; asked once."""
        try:
            return self._info(name).size
        except FileNotFoundError:
            return None

    def sizes(self, names: list[str]) -> dict[str, int | None]:
        """As ``Files``: from a listing of the folder, if the place lists."""
        if not self._is_http and len(names) > 2:
            try:
                self._system().invalidate_cache()
                listing = self._ask(lambda system, path: system.ls(path, detail=True), None)
            except FileNotFoundError:
                listing = []
            wanted = set(names)
            for entry in listing:
                name = str(entry["name"]).replace("\\", "/").rsplit("/", 1)[-1]
                if name in wanted and entry.get("size") is not None:
                    self._infos[name] = _info_of(entry)
        return {name: self.size(name) for name in names}

    def read(self, name: str, offset: int, length: int) -> bytes:
        """As ``Files``, by blocks from the cache.

        Raises:
            FileNotFoundError: there is no such file.
            DataError: the place does not answer.
            PictureError: the name leads out of the folder.
        """
        info = self._info(name)
        end = min(offset + length, info.size)
        key = hash_name(self._url(name), info.version, str(info.size), str(BLOCK_BYTES))
        parts = []
        while offset < end:
            number, start = divmod(offset, BLOCK_BYTES)
            size = min(BLOCK_BYTES, info.size - number * BLOCK_BYTES)
            wanted = min(size - start, end - offset)
            part = self.cache.read(f"{key}.{number}", start, wanted, size=size)
            if part is None:
                block = self._fetch(name, number * BLOCK_BYTES, size, info.size)
                self.cache.write(f"{key}.{number}", block)
                part = block[start : start + wanted]
            parts.append(part)
            offset += wanted
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_all(self, name: str, most: int | None = None) -> bytes:
        """As ``Files``. A store is written once: what is in the cache is not asked for again."""
        key = hash_name(self._url(name), self.version)
        data = self.cache.read(key) if self.version else None
        if data is None:
            size = self._info(name, remember=False).size
            if most is not None and size > most:
                raise OSError(errno.EFBIG, f"larger than {most:,} bytes", self._url(name))
            data = self._fetch(name, 0, size, size)
            if self.version:
                self.cache.write(key, data)
        return data

    def array(self, name: str) -> npt.NDArray[Any]:
        """As ``Files``: read; the indexes of shards are small."""
        array: npt.NDArray[Any] = np.load(io.BytesIO(self.read_all(name)), allow_pickle=False)
        return array

    def sha256(self, name: str) -> str:
        """As ``Files``: of what is there now, not of the cache."""
        digest, size = hashlib.sha256(), self._info(name, remember=False).size
        for start in range(0, size, BLOCK_BYTES):
            digest.update(self._fetch(name, start, min(BLOCK_BYTES, size - start), size))
        return digest.hexdigest()

    def keep(self, version: str) -> None:
        """As ``Files``."""
        self.version = version

    def beside(self, url: str) -> RemoteFiles:
        """As ``Files``."""
        cache = CacheSettings(self.cache.folder, self.cache.limit_bytes)
        return RemoteFiles(url, cache, self.version)

    # ------------------------------------------------------------------ the place

    def _url(self, name: str | None) -> str:
        """The address of a file, proven to be inside the folder; None: of the folder.

        Raises:
            PictureError: as ``images.resolve_inside``.
        """
        if name is None:
            return self.url
        check_name(name)
        # servers read %2e%2e as two dots, and what follows a ? is no name
        return f"{self.url}/{quote(name) if self._is_http else name}"

    def _path(self, system: Any, name: str | None) -> str:
        """What the file system calls a file (None: the folder)."""
        path = str(system._strip_protocol(self._url(name)))
        if name is not None and "file" in _protocols(system):  # links
            path = str(resolve_inside(Path(system._strip_protocol(self.url)), name))
        return path

    def _info(self, name: str, *, remember: bool = True) -> _Info:
        info = self._infos.get(name)
        if info is None:
            entry = self._ask(lambda system, path: system.info(path), name)
            if entry.get("type") == "directory":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._url(name))
            if entry.get("size") is None:
                raise DataError(
                    f"{self._url(name)}: the server does not tell how long it is",
                    where=self._url(name),
                    try_="copy the store to a folder of this machine",
                )
            info = _info_of(entry)
            if remember:
                self._infos[name] = info
        return info

    def _fetch(self, name: str, start: int, length: int, size: int) -> bytes:
        if not length:
            return b""

        def fetch(system: Any, path: str) -> bytes:
            data = bytes(system.cat_file(path, start=start, end=start + length))
            if len(data) == size > length:  # a server that knows no ranges
                data = data[start : start + length]
            if len(data) != length:
                raise OSError(f"{len(data):,} bytes came instead of {length:,}")
            return data

        return self._ask(fetch, name)

    def _ask(self, question: Callable[[Any, str], _Answer], name: str | None) -> _Answer:
        """Ask the place; if it does not answer, again after a while.

        Raises:
            FileNotFoundError: it says that there is no such file.
            DataError: it does not answer, or refuses.
        """
        system = self._system()
        path = self._path(system, name)
        for wait in (*WAITS_S, None):
            try:
                return question(system, path)
            except FileNotFoundError as error:
                url = self._url(name)
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error
            except Exception as error:  # every file system has errors of its own
                if wait is None or isinstance(error, _FINAL):
                    told = " ".join(str(error).split()) or type(error).__name__
                    raise DataError(
                        f"{self._url(name)} cannot be read: {told}",
                        where=self._url(name),
                        try_="see whether the place can be reached with your credentials, and "
                        "start again: what was read is kept",
                    ) from error
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _system(self) -> Any:
        """The file system, of this process: connections do not survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _open_system(self.url))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def _open_system(url: str) -> Any:
    import fsspec

    protocol = url.partition("://")[0].lower()
    try:
        return fsspec.core.url_to_fs(url)[0]
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        told = " ".join(str(error).split())
        raise MissingToolError(
            f"reading {protocol}:// needs a package that is not installed ({told})",
            where=url,
            try_=f"pip install 'xvlm[{extra}]'" if extra else f"what fsspec wants: {told}",
        ) from error
    except ValueError as error:
        raise DataError(
            f"no place is of the kind {protocol}://",
            where=url,
            try_="an address like s3://bucket/stores, or a folder",
        ) from error


def _info_of(entry: dict[str, Any]) -> _Info:
    told = (entry.get(key) for key in _VERSION)
    texts = [str(v.timestamp() if isinstance(v, datetime) else v) for v in told if v is not None]
    return _Info(int(entry["size"]), "\0".join(texts))


def _protocols(system: Any) -> tuple[str, ...]:
    protocol = system.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)

"""What is in a tar file of samples (webdataset), from its headers alone: nothing is unpacked.

A sample is all the members of one key: the path up to the first dot of the base name; what follows
that dot says what the member is (``shard/000012.jpg``, ``shard/000012.txt``). Members that could
touch anything outside (links, devices, ``..``) are problems, never opened.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xvlm_core.errors import DataError

MAX_MEMBER = 1 << 28
"""Bytes above which a member is refused: no picture or text is that large."""

_MAX_HEADER = 1 << 20
"""Bytes of one extended header (long names) beyond which it is taken for an attack."""

_BLOCK = tarfile.BLOCKSIZE
_TAIL = 1 << 20
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
}
_KEY = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\\]")


@dataclass(frozen=True)
class TarMember:
    """A regular file of a tar.

    Attributes:
        name: as in the tar, without a leading ``./``.
        offset: of its first byte in the tar.
        size: number of bytes.
    """

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarProblem:
    """A member that is refused, or the place where a tar breaks off.

    Attributes:
        name: of the member as in the tar; empty: of none.
        reason: a short word or two: "a link", "a device", "a pipe", "a sparse file", "not a file",
            "outside the image root", "absolute path", "not a file name", "not UTF-8", "too large",
            "duplicate member"; and of the tar: ``BROKEN_OFF``.
    """

    name: str
    reason: str


BROKEN_OFF = ("unexpected end", "damaged header", "data after the end")
"""Reasons that are about a tar, not about one member of it."""


@dataclass(frozen=True)
class TarSample:
    """The members of one key.

    Attributes:
        key: path and base name up to its first dot.
        members: by what follows that dot, in lower case ("jpg", "txt", "seg.png").
        cut: the tar breaks off in the middle of this sample, or right after it.
    """

    key: str
    members: dict[str, TarMember]
    cut: bool = False


def check_tar(path: Path) -> None:
    """Look at the first bytes.

    Raises:
        DataError: it cannot be read, is empty, is compressed, or is no tar.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_BLOCK)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not start:
        raise DataError(f"{path} is an empty file")
    for magic, (kind, tool) in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"{path} is compressed ({kind}); pictures are read in place, from a plain tar",
                try_=f"{tool} {path}",
            )
    if start.strip(b"\0"):
        try:
            tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
        except Exception as error:  # of a header made to break its reader, anything
            raise DataError(f"{path} is not a tar file") from error


def read_tar(path: Path) -> Iterator[TarMember | TarProblem]:
    """All regular members, in file order, and a problem for each other; folders are passed over.

    A tar that breaks off gives the whole members before the break, then one problem.

    Raises:
        DataError: as ``check_tar``.
    """
    check_tar(path)
    names: set[str] = set()
    with _Headers(io.FileIO(path)) as file:
        end = os.fstat(file.fileno()).st_size
        for info in _infos(file):
            if isinstance(info, TarProblem):
                yield info
                return
            if info.isdir():
                continue
            reason = _refused(info)
            name = info.name if reason else _plain(info.name)
            if not info.isreg() or info.issparse():
                yield TarProblem(name, reason or "not a file")
            elif info.offset_data + info.size > end:
                yield TarProblem(name, "unexpected end")
                return
            elif reason is not None:
                yield TarProblem(name, reason)
            elif name in names:
                yield TarProblem(name, "duplicate member")
            else:
                names.add(name)
                yield TarMember(name, info.offset_data, info.size)


def read_samples(path: Path) -> Iterator[TarSample | TarProblem]:
    """The samples of a tar, in the order of their first members, and before them its problems.

    Members of one key need not stand together. Members without an extension belong to no sample.

    Raises:
        DataError: as ``check_tar``.
    """
    samples: dict[str, TarSample] = {}
    last: str | None = None
    for member in read_tar(path):
        split = split_name(member.name)
        if isinstance(member, TarProblem):
            yield member
            cut = split[0] if split else last
            if member.reason in BROKEN_OFF and cut in samples:
                samples[cut] = dataclasses.replace(samples[cut], cut=True)
            continue
        if split is None:
            continue
        last, extension = split
        members = samples.setdefault(last, TarSample(last, {})).members
        if extension in members:  # a.jpg and a.JPG
            yield TarProblem(member.name, "duplicate member")
        else:
            members[extension] = member
    yield from samples.values()


def split_name(name: str) -> tuple[str, str] | None:
    """Key and lower-case extension of a member's name; None: it has no key or no extension."""
    match = _KEY.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


class _Headers(io.BufferedReader):
    """A file of which no more than a header is read at once, whatever size a header claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError("header too large")
        return super().read(size)


def _infos(file: _Headers) -> Iterator[tarfile.TarInfo | TarProblem]:
    """Headers in file order; at most one problem, at the end: how the tar breaks off."""
    archive: tarfile.TarFile | None = None
    last = -1
    while True:
        try:
            if archive is None:
                archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 (file is closed)
            info = archive.next()
        except Exception as error:  # of a header made to break its reader, anything
            text = str(error)
            cut = "unexpected end" in text or "truncated" in text
            yield TarProblem("", "unexpected end" if cut else "damaged header")
            return
        if info is None:
            break
        if info.size < 0 or info.offset_data <= last:  # it would go round for ever
            yield TarProblem("", "damaged header")
            return
        last = info.offset_data
        archive.members = []  # type: ignore[attr-defined]  # or all headers stay in memory
        yield info
    file.seek(archive.offset)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK:
        yield TarProblem("", "unexpected end")
    elif mark.strip(b"\0"):
        yield TarProblem("", "damaged header")
    elif file.read(_TAIL).strip(b"\0"):  # tars set end to end: what follows is not read
        yield TarProblem("", "data after the end")


def _refused(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "a link"
    if info.isfifo():
        return "a pipe"
    if info.isdev():
        return "a device"
    if info.issparse():
        return "a sparse file"
    if not info.isreg():
        return "not a file"
    if info.name.startswith("/") or re.match(r"[A-Za-z]:", info.name):
        return "absolute path"
    if ".." in info.name.replace("\\", "/").split("/"):
        return "outside the image root"
    try:
        info.name.encode("utf-8")
    except UnicodeEncodeError:
        return "not UTF-8"
    if _UNPRINTABLE.search(info.name) or not _plain(info.name).strip("."):
        return "not a file name"
    return "too large" if info.size > MAX_MEMBER else None


def _plain(name: str) -> str:
    """``./a//b.jpg`` is ``a/b.jpg``."""
    return str(PurePosixPath(name))

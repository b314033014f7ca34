"""What the command line says, and where: the result on stdout, everything else on stderr.

A verb calls :func:`begin` first, says things with :meth:`Output.note` and :meth:`Output.warn`, and
ends with one :meth:`Output.result`. Errors are raised as :class:`xvlm_core.errors.XvlmError`;
``app.main`` prints them and turns them into the exit code. With ``--json`` exactly one document
``{schema, ok, result, warnings, error}`` is written to stdout, also when something went wrong.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from xvlm_core.errors import OutputError, XvlmError

SCHEMA_VERSION = 1


class Interrupted(XvlmError):
    """The run was stopped by a signal after everything was saved (exit 130 or 143)."""

    code = "interrupted"

    def __init__(self, what: str, signal_number: int, *, try_: str | None = None) -> None:
        super().__init__(what, try_=try_ or "the same command again")
        self.exit_code = 128 + signal_number


class Output:
    """One command's output. ``json`` and ``quiet`` are set by :func:`begin`.

    From ``begin`` to ``finish``, what anything else prints goes to stderr: stdout is the result's.
    """

    def __init__(self, verb: str = "", *, json_document: bool = False) -> None:
        self.verb = verb
        self.json = json_document
        self.quiet = False
        self.warnings: list[str] = []
        self._result: Any = None
        self._text: str | None = None
        self._stdout: TextIO | None = None

    def take_stdout(self) -> None:
        """Keep stdout for the result; other prints go to stderr until :meth:`finish`."""
        if self._stdout is None:
            self._stdout, sys.stdout = sys.stdout, sys.stderr

    def give_back_stdout(self) -> None:
        """Undo :meth:`take_stdout`."""
        if self._stdout is not None:
            sys.stdout, self._stdout = self._stdout, None

    def note(self, text: str) -> None:
        """Say something in passing (stderr; not with ``--quiet``)."""
        if not self.quiet:
            _say(text)

    def warn(self, text: str) -> None:
        """Say something that must not be overlooked (stderr, and in the JSON document)."""
        self.warnings.append(text)
        _say(f"Warning: {text}")

    def result(self, value: Any, text: str | Iterable[str]) -> None:
        """The result: ``value`` goes into the JSON document, ``text`` is the human form of it."""
        self._result = value
        self._text = text if isinstance(text, str) else "\n".join(text)

    def finish(self, error: XvlmError | None = None) -> int:
        """Print result and error; return the exit code."""
        started = self._stdout is not None
        self.give_back_stdout()
        if self.json and (started or error is not None):
            document = self.document(error)
            text = json.dumps(document, ensure_ascii=False, default=_plain, indent=2)
            if _can_print(text, sys.stdout):
                self._write(text)
            else:
                self._write(json.dumps(document, default=_plain, indent=2))
        elif self._text:
            self._write(self._text)
        if error is not None:
            first, *rest = error.lines()
            _say("\n".join([f"Error: {first}", *rest]))
        return 0 if error is None else error.exit_code

    def document(self, error: XvlmError | None = None) -> dict[str, Any]:
        """The one JSON document of ``--json``."""
        return {
            "schema": f"xvlm.{self.verb}/{SCHEMA_VERSION}"
            if self.verb
            else f"xvlm/{SCHEMA_VERSION}",
            "ok": error is None,
            "result": self._result,
            "warnings": self.warnings,
            "error": None
            if error is None
            else {
                "code": error.code,
                "what": error.what,
                "where": error.where,
                "try": error.try_,
                "details": list(error.details),
                "exit_code": error.exit_code,
            },
        }

    def _write(self, text: str) -> None:
        text = harmless(text)
        if not _can_print(text, sys.stdout):  # a terminal of few letters must not end the command
            text = text.encode(sys.stdout.encoding, "backslashreplace").decode(sys.stdout.encoding)
        print(text, file=sys.stdout, flush=True)


_current = Output()


def start(*, json_document: bool) -> Output:
    """A fresh output; ``app.main`` calls this before the command line is parsed."""
    global _current
    _current = Output(json_document=json_document)
    return _current


def begin(verb: str, *, json_document: bool, quiet: bool = False) -> Output:
    """The output of a verb, with the options it was given. Each verb's first line."""
    _current.verb, _current.json, _current.quiet = verb, json_document, quiet
    _current.take_stdout()
    return _current


_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What a terminal obeys or turns around: names from foreign files must not."""


def harmless(text: str) -> str:
    """Text with its control characters made visible."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _say(text: str, stream: TextIO | None = None) -> None:
    text = harmless(text)
    # A closed stderr must not turn a finished command into a failed one.
    with contextlib.suppress(OSError, ValueError):
        print(text, file=stream or sys.stderr, flush=True)


def _can_print(text: str, stream: TextIO | None) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: object) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(value, "item"):  # a NumPy or torch scalar
        return value.item()
    raise TypeError(f"{type(value).__name__} in a result")


def as_user_error(error: OSError) -> XvlmError | None:
    """A full disk, a read-only or forbidden place: errors of the place, not of the program."""
    where = str(error.filename) if error.filename else None
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return OutputError(
            "no space left on the disk; nothing half-written was kept",
            where=where,
            try_="free some space (df -h .), or write elsewhere with -o",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OutputError(
            f"not permitted: {error.strerror}",
            where=where,
            try_="check the permissions (ls -ld), or write elsewhere with -o",
        )
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return OutputError(
            f"no place to write to: {error.strerror}", where=where, try_="another -o"
        )
    return None


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """An ``OSError`` of the block is the place's: an :class:`OutputError` that names it."""
    try:
        yield
    except OSError as error:
        found = as_user_error(error)
        if found is not None:
            found.where = str(place)  # not the name of a file in the making, or none at all
        raise found or OutputError(
            f"{place} cannot be written: {error.strerror or error}",
            where=str(error.filename) if error.filename else None,
            try_="another place, one that can be written",
        ) from error


def require_writable(path: Path) -> None:
    """Find out whether a file can be written, without leaving anything: before hours of work.

    Tried in the nearest folder on the way to it that is there.

    Raises:
        OutputError: it cannot.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        folder = path.parent
        names = [path.name]
        while not os.path.lexists(folder):
            names.append(folder.name)
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        for name in names:  # one may be too long
            with contextlib.suppress(FileNotFoundError):
                (folder / name).lstat()
        with tempfile.TemporaryFile(dir=folder):
            pass


def bug(error: BaseException) -> XvlmError:
    """One line about an error that is ours."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else None
    what = f"internal error: {type(error).__name__}: {error}".splitlines()[0]
    found = XvlmError(what, where=where, try_="the same command after XVLM_DEBUG=1 (traceback)")
    found.code = "bug"
    return found


def debug() -> bool:
    """Whether tracebacks were asked for."""
    return os.environ.get("XVLM_DEBUG", "") not in ("", "0")


def refuse_nonempty(folder: Path, *, overwrite: bool, resume: bool = False) -> None:
    """An output folder must be absent or empty, unless the command line says otherwise.

    Raises:
        OutputError: it is not empty, or is a file.
    """
    if folder.is_file() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder} is a file, a folder is needed", try_="another -o")
    if overwrite or resume or not folder.is_dir():
        return
    if any(folder.iterdir()):
        raise OutputError(
            f"the output folder {folder} is not empty",
            try_="another -o, or --overwrite to replace it",
        )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Left-aligned columns; numbers right-aligned."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(cells) and all(_is_number(row[i]) or not row[i] for row in cells)
        for i in range(len(header))
    ]
    widths = [max([len(header[i]), *(len(row[i]) for row in cells)]) for i in range(len(header))]
    lines = []
    for row in [list(header), *cells]:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(parts).rstrip())
    return lines


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return text == "-"
    return True

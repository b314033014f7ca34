"""JSON from strangers: one clear line for everything that can be wrong with it."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError


class JsonProblem(ValueError):
    """Text that is not JSON as we accept it; ``reason`` is a short ledger word."""

    def __init__(self, reason: str, seen: object = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seen = seen


def parse(text: str, *, without: frozenset[str] = frozenset()) -> Any:
    """Parse JSON, refusing objects with a repeated key (most parsers silently keep the last).

    ``NaN`` and ``Infinity`` are numbers here, so that a box with one is dropped alone.

    Args:
        text: the whole document.
        without: keys to leave out of every object, to save memory.

    Raises:
        JsonProblem: "not JSON", "nested too deep" or "repeated key".
    """

    try:
        return json.loads(text, object_pairs_hook=_strict_pairs(without))
    except json.JSONDecodeError as error:
        raise JsonProblem(
            "not JSON", f"{error.msg} (line {error.lineno}, column {error.colno})"
        ) from error
    except RecursionError as error:
        raise JsonProblem("nested too deep") from error
    except JsonProblem:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise JsonProblem("not JSON", str(error)) from error


def _strict_pairs(without: frozenset[str]) -> Any:
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(found)
        if len(result) != len(found):
            names = [name for name, _ in found]
            raise JsonProblem("repeated key", next(n for n in names if names.count(n) > 1))
        for name in without:
            result.pop(name, None)
        return result

    return pairs


_SPACE = re.compile(r"[ \t\n\r]*")
_PIECE = 1 << 20
_LONGEST = 1 << 28
"""Characters of one member beyond which it is taken for broken rather than long."""


def iter_array(path: Path, *, without: frozenset[str] = frozenset()) -> Iterator[Any]:
    """The members of a file that holds one JSON array, one at a time: it may be larger than memory.

    Args:
        path: the file, UTF-8, with or without a byte order mark.
        without: keys to leave out of every object, to save memory.

    Raises:
        DataError: missing, empty, not UTF-8, not an array, or not valid JSON from some place on
            (the members before it have been given out by then).
    """
    decoder = json.JSONDecoder(object_pairs_hook=_strict_pairs(without))
    try:
        with open(path, "rb") as file:
            refuse_encoding(path, file.read(4))
            file.seek(0)
            yield from _members(path, file, decoder)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _members(path: Path, file: Any, decoder: json.JSONDecoder) -> Iterator[Any]:
    text = _Text(path, file)
    if text.peek() == "":
        raise DataError(f"{path} is an empty file")
    if text.peek() != "[":
        raise DataError(f"{path} is not a JSON array", where=f"it starts with {text.peek()!r}")
    text.at += 1
    first = True
    while True:
        char = text.peek()
        if char == "]":
            text.at += 1
            if text.peek() != "":
                raise text.problem("more after the end of the array")
            return
        if not first:
            if char != ",":
                raise text.problem("a comma or ] is missing" if char else "it ends in the middle")
            text.at += 1
            text.peek()
        first = False
        yield text.value(decoder)


class _Text:
    """A window on a file that is decoded as it is read."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.text, self.at, self.before, self.ended = "", 0, 0, False

    def more(self) -> None:
        """Read on; at the end of the file set ``ended``."""
        data = self.file.read(max(_PIECE, len(self.text) - self.at))
        self.ended = not data
        try:
            new = self.decode(data, not data)
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path} is not UTF-8 ({error.reason})") from error
        self.before += self.at
        self.text, self.at = self.text[self.at :] + new, 0

    def peek(self) -> str:
        """Skip white space and show the next character; empty at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            assert match is not None
            self.at = match.end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more()

    def value(self, decoder: json.JSONDecoder) -> Any:
        """Parse one value; read on as long as it is not whole."""
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) - self.at > _LONGEST:
                    raise self.problem(error.msg, error.pos) from error
            except RecursionError as error:
                raise self.problem("nested too deep") from error
            except (JsonProblem, ValueError) as error:
                reason = error.reason if isinstance(error, JsonProblem) else str(error)
                raise self.problem(reason) from error
            else:
                # a number may go on in the next piece
                if end < len(self.text) or self.ended:
                    self.at = end
                    return value
            self.more()

    def problem(self, what: str, at: int | None = None) -> DataError:
        """An error that says where (in characters from the start)."""
        place = self.before + (self.at if at is None else at)
        return DataError(f"{self.path} is not valid JSON: {what} (character {place})")


def read_document(path: Path, *, without: frozenset[str] = frozenset()) -> Any:
    """A file that holds one JSON value.

    Args:
        path: the file, UTF-8, with or without a byte order mark.
        without: keys to leave out of every object, to save memory.

    Raises:
        DataError: missing, empty, not UTF-8, or not valid JSON.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if not data.strip():
        raise DataError(f"{path} is an empty file")
    refuse_encoding(path, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})") from error
    del data
    try:
        return parse(text, without=without)
    except JsonProblem as error:
        seen = f": {error.seen}" if error.seen is not None else ""
        what = "not valid JSON" if error.reason == "not JSON" else f"not valid JSON, {error.reason}"
        raise DataError(f"{path} is {what}{seen}") from error


def read_object(path: Path, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    """As ``read_document``; anything but an object is a ``DataError`` too."""
    value = read_document(path, without=without)
    if not isinstance(value, dict):
        raise DataError(f"{path} is not a JSON object but a {type(value).__name__}")
    return value


def refuse_encoding(path: Path, start: bytes) -> None:
    """Refuse a file whose byte order mark says that it is not UTF-8.

    Raises:
        DataError: naming the encoding.
    """
    utf_16, utf_32 = (b"\xff\xfe", b"\xfe\xff"), (b"\xff\xfe\0\0", b"\0\0\xfe\xff")
    if start.startswith(utf_16 + utf_32):
        name = "UTF-32" if start.startswith(utf_32) else "UTF-16"
        raise DataError(
            f"{path} is {name}, not UTF-8", try_=f"iconv -f {name} -t UTF-8 {path} > NEW_FILE"
        )

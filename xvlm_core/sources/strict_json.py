"""JSON from strangers: one clear line for everything that can be wrong with it."""

from __future__ import annotations

import json
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

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(found)
        if len(result) != len(found):
            names = [name for name, _ in found]
            raise JsonProblem("repeated key", next(n for n in names if names.count(n) > 1))
        for name in without:
            result.pop(name, None)
        return result

    try:
        return json.loads(text, object_pairs_hook=pairs)
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

"""JSON from strangers: one clear line for everything that can be wrong with it."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
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
        value = json.loads(text, object_pairs_hook=strict_pairs(without))
        if len(text) < _PIECE and text.count("[") + text.count("{") > _DEEPEST and _deep(value):
            raise JsonProblem("nested too deep")
        return value
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


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        inner = [v.values() if isinstance(v, dict) else v for v in level]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return False
    return True


def strict_pairs(without: frozenset[str] = frozenset()) -> Any:
    """An ``object_pairs_hook``: raises JsonProblem "repeated key", with the key as ``seen``."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(found)
        if len(result) != len(found):
            names = [name for name, _ in found]
            raise JsonProblem("repeated key", next(n for n in names if names.count(n) > 1))
        for name in without:
            result.pop(name, None)
        return result

    return pairs


_DEEPEST = 100
"""Levels of what may become part of a record. Python itself stops near 1000, sooner or later by
where it is called from: what can be read in one place could not be written or read in another."""
_SPACE = re.compile(r"[ \t\n\r]*")
_BETWEEN = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*\Z")
_FIRST_KEY = re.compile(r'\{[ \t\n\r]*"[^"\\]*"')
_PIECE = 1 << 20
_LONGEST = 1 << 28
"""Characters of one member beyond which it is taken for broken rather than long."""
_PATIENCE = 4
"""Runs of members that may fail to be cut well before members are read one by one."""


def iter_array(path: Path, *, without: frozenset[str] = frozenset()) -> Iterator[Any]:
    """The members of a file that holds one JSON array, one at a time: it may be larger than memory.

    Args:
        path: the file, UTF-8, with or without a byte order mark.
        without: keys to leave out of every object. Numbers in them are not even parsed.

    Raises:
        DataError: missing, empty, not UTF-8, not an array, or not valid JSON from some place on
            (the members before it have been given out by then).
    """
    with _opened(path) as text:
        if text.peek() != "[":
            raise DataError(f"{path} is not a JSON array", where=f"it starts with {text.peek()!r}")
        text.at += 1
        for batch in _Array(text, without):
            yield from batch
        if text.peek() != "":
            raise text.problem("more after the end of the array")


def iter_members(
    path: Path, arrays: Collection[str], *, without: frozenset[str] = frozenset()
) -> Iterator[tuple[str, Any]]:
    """The members of some arrays of a JSON object, one at a time, in file order.

    As ``{"images": [...], "annotations": [...]}``: the file may be larger than memory.

    Args:
        path: the file, UTF-8, with or without a byte order mark.
        arrays: keys of the arrays. What other keys have is read over.
        without: keys to leave out of every object. Numbers in them are not even parsed.

    Yields:
        (key, member).

    Raises:
        DataError: missing, empty, not UTF-8, not an object, one of the arrays is something else,
            or not valid JSON from some place on (the members before it have been given out then).
    """
    for key, batch in iter_batches(path, arrays, without=without):
        if batch is None:
            raise DataError(f"{path}: {key} is no list")
        for member in batch:
            yield key, member


def iter_batches(
    path: Path, arrays: Collection[str], *, without: frozenset[str] = frozenset()
) -> Iterator[tuple[str, list[Any] | None]]:
    """As ``iter_members``, but many members at a time, and every key that is there is told of.

    Yields:
        (key, members): an empty list where an array begins, then its members; None for a key of
        ``arrays`` whose value is no array.
    """
    with _opened(path) as text:
        if text.peek() != "{":
            value = text.value(text.decoder(without))
            raise DataError(f"{path} is not a JSON object but a {type(value).__name__}")
        text.at += 1
        seen: set[str] = set()
        while text.peek() != "}":
            if seen:
                text.expect(",", "a comma or } is missing")
            place = text.place
            key = text.key()
            if key in seen:
                raise text.problem(f"repeated key: {key}", place)
            seen.add(key)
            if key in arrays and text.peek() == "[":
                text.at += 1
                yield key, []
                for batch in _Array(text, without):
                    yield key, batch
            else:
                text.value(text.decoder(without))
                if key in arrays:
                    yield key, None
        text.at += 1
        if text.peek() != "":
            raise text.problem("more after the end of the object")


@contextmanager
def _opened(path: Path) -> Iterator[_Text]:
    try:
        with open(path, "rb") as file:
            refuse_encoding(path, file.read(4))
            file.seek(0)
            text = _Text(path, file)
            if text.peek() == "":
                raise DataError(f"{path} is an empty file")
            yield text
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


class _Text:
    """A window on a file that is decoded as it is read."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.text, self.at, self.before, self.ended = "", 0, 0, False

    @staticmethod
    def decoder(without: frozenset[str]) -> json.JSONDecoder:
        """That refuses repeated keys."""
        return json.JSONDecoder(object_pairs_hook=strict_pairs(without))

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

    def expect(self, char: str, otherwise: str) -> None:
        """Go past a character and the white space around it."""
        found = self.peek()
        if found != char:
            raise self.problem(otherwise if found else "it ends in the middle")
        self.at += 1
        self.peek()

    def key(self) -> str:
        """Go past a key and its colon."""
        place = self.place
        key = self.value(json.JSONDecoder()) if self.peek() == '"' else None
        if not isinstance(key, str):
            raise self.problem("a key in double quotes is missing", place)
        self.expect(":", "a colon is missing")
        return key

    def value(self, decoder: json.JSONDecoder) -> Any:
        """Parse one value; read on as long as it is not whole."""
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if self.ended or len(self.text) - self.at > _LONGEST:
                    raise self.problem(error.msg, self.before + error.pos) from error
            except RecursionError as error:
                raise self.problem("nested too deep") from error
            except JsonProblem as error:
                raise self.problem(f"{error.reason}: {error.seen}") from error
            except ValueError as error:
                raise self.problem(str(error)) from error
            else:
                # a number may go on in the next piece, after "1", "1." or "1e+"
                if end + 2 < len(self.text) or self.ended:
                    self.at = end
                    return value
            self.more()

    @property
    def place(self) -> int:
        """Where it is, in characters from the start."""
        return self.before + self.at

    def problem(self, what: str, place: int | None = None) -> DataError:
        """An error that says where."""
        place = self.place if place is None else place
        return DataError(f"{self.path} is not valid JSON: {what} (character {place})")


class _Array:
    """The members of an array, from after its ``[`` to after its ``]``, some at a time.

    A run of objects is cut out of the window where another one that begins with the same key
    follows, and parsed at once: the cut is right if the run is valid JSON. Where it is not, members
    are parsed one by one.
    """

    def __init__(self, text: _Text, without: frozenset[str]) -> None:
        self.text, self.failed, self.alone_until = text, 0, 0
        self.decoder = text.decoder(without)
        # White space, digits and whatever else, but balanced: [1, 2] or [[1, 2], [3, 4]].
        flat = r'\[[^\[\]{}"]*\]'
        # A key, not the end of one: no quote that is escaped.
        names = "|".join(re.escape(name) for name in sorted(without))
        numbers = rf'(?<!\\)"({names})"\s*:\s*\[(?:[^\[\]{{}}"]*|(?:\s*{flat}\s*,?)*\s*)\]'
        self.numbers = re.compile(numbers) if without else None

    def __iter__(self) -> Iterator[list[Any]]:
        text, first = self.text, True
        while (char := text.peek()) != "]":
            if not first:
                if char != ",":
                    raise text.problem(
                        "a comma or ] is missing" if char else "it ends in the middle"
                    )
                text.at += 1
                text.peek()
            first = False
            yield self.run() or [self.alone()]
        text.at += 1

    def alone(self) -> Any:
        """The next member, parsed by itself."""
        text = self.text
        value = text.value(self.decoder)
        if isinstance(value, int | float):  # of "1.5" that was cut off "1" and "1." are left
            char = text.peek()
            if char not in (",", "]"):
                raise text.problem("a comma or ] is missing" if char else "it ends in the middle")
        return value

    def run(self) -> list[Any]:
        """Members up to the last cut in the window; none if there is no good cut."""
        text = self.text
        if self.failed >= _PATIENCE or text.place < self.alone_until:
            return []
        if not text.ended and len(text.text) - text.at < _PIECE:
            text.more()
        cut = self.last_cut()
        if cut is None:
            return []
        run = "[" + text.text[text.at : cut] + "]"
        short = self.numbers.sub(r'"\1":0', run) if self.numbers else run
        try:
            members, end = self.decoder.raw_decode(short)
            if end < len(short):  # the array ends in the run
                members, end = self.decoder.raw_decode(run)
                text.at += end - 2
            else:
                text.at = cut
        except (ValueError, RecursionError):
            self.failed += 1
            self.alone_until = text.before + cut
            return []
        self.failed = 0
        assert isinstance(members, list)
        return members

    def last_cut(self) -> int | None:
        """Where the last member of the window that is followed by another one ends."""
        text, at = self.text.text, self.text.at
        start = _FIRST_KEY.match(text, at)
        place = len(text) if start else -1
        while start:
            place = text.rfind(start[0], at + 1, place)
            if place < 0:
                break
            between = _BETWEEN.search(text, max(at, place - 200), place)
            if between:
                return between.start() + 1
        return None


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

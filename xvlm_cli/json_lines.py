"""JSON lines on standard input: what ``predict ... -`` reads, checked line by line. No torch."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvlm_core.errors import DataError, UsageError, XvlmError
from xvlm_core.sources.strict_json import JsonProblem, strict_pairs

if TYPE_CHECKING:
    from xvlm_core.inference.reading import ReadText

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")

_NOTHING: dict[str, Any] = {}


@dataclass(frozen=True)
class Line:
    """One object.

    Attributes:
        where: for messages: ``standard input, line 3``.
        fields: of the object; none where the line holds something else.
        example: of a good line.
    """

    where: str
    fields: Mapping[str, Any]
    example: str

    def lacks(self, what: str) -> DataError:
        """The error that something is missing in the line."""
        return DataError(what, where=self.where, try_=self.example)

    def picture(self, value: object, otherwise: str) -> Path:
        """A path.

        Raises:
            DataError: it is none, in the words of ``otherwise``.
            UsageError: it is a URL.
        """
        if not isinstance(value, str) or not value or "\0" in value or not _is_text(value):
            raise self.lacks(otherwise)
        if URL.match(value):
            raise UsageError(
                f"{value} is a URL; nothing is fetched", where=self.where, try_=self.example
            )
        return Path(value)

    def texts(self, key: str, noun: str) -> tuple[str, ...]:
        """A list of texts, one at least, of each of which something is left after cleaning.

        Args:
            key: of the list.
            noun: what one of them is called.

        Raises:
            DataError: there is no list, or an empty one.
            UsageError: one of them is no text, or nothing is left of it.
        """
        found = self.fields.get(key)
        if isinstance(found, str):
            raise self.lacks(f"the {key} of the line are one text, not a list")
        if not isinstance(found, list) or not found:
            raise self.lacks(f"no {key} in the line")
        for text in found:
            require_text(text, noun, self.where, self.example)
        return tuple(found)


def from_stdin(example: str) -> list[Line]:
    """The lines of standard input; empty ones are passed over.

    Args:
        example: of a good line, for messages.

    Raises:
        DataError: a line is not JSON, or there is none.
    """
    # bytes where there are some: JSON is UTF-8 whatever the locale says
    stream: Iterable[str | bytes] = getattr(sys.stdin, "buffer", sys.stdin) or ()
    lines = [
        _line(line, f"standard input, line {number}", example)
        for number, line in enumerate(stream, 1)
        if line.strip()
    ]
    if not lines:
        raise DataError("standard input holds no line", try_=example)
    return lines


def _line(line: str | bytes, where: str, example: str) -> Line:
    try:
        text = line.decode("utf-8-sig") if isinstance(line, bytes) else line
        value: Any = json.loads(text, object_pairs_hook=strict_pairs())
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8 (byte {error.start})",
            where=where,
            try_="iconv -f LATIN1 -t UTF-8 FILE | xvlm predict ... -",
        ) from error
    except JsonProblem as problem:
        twice = f"the key {str(problem.seen)[:40]!r} stands twice in the line"
        raise DataError(twice, where=where, try_=example) from problem
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=where, try_=example) from error
    return Line(where, value if isinstance(value, dict) else _NOTHING, example)


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: bytes that were none come as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_text(text: object, noun: str, where: str | None, example: str) -> None:
    """Refuse what is no text, and a text of which cleaning leaves nothing: before any work.

    Raises:
        UsageError: it is such a one.
    """
    from xvlm_core.data.text import sanitize, says_something

    if not isinstance(text, str) or not text.strip():
        raise UsageError(f"a {noun} is empty or no text", where=where, try_=example)
    if not _is_text(text):
        raise UsageError(f"the {noun} {text[:40]!r} is not UTF-8 text", where=where, try_=example)
    if not says_something(sanitize(text)):
        raise UsageError(
            f"nothing is left of the {noun} {text[:40]!r} after cleaning",
            where=where,
            try_=example,
        )


def read_all(
    texts: Iterable[tuple[str, str | None]], read: Callable[[str], ReadText]
) -> dict[str, ReadText]:
    """Each text as the model reads it, before the first picture is looked at.

    Args:
        texts: each with the line that it came in; None: it was typed.
        read: makes tokens of a text; may refuse it.

    Raises:
        UsageError: one is refused; the line is named.
    """
    found: dict[str, ReadText] = {}
    for text, where in texts:
        if text in found:
            continue
        try:
            found[text] = read(text)
        except XvlmError as error:
            error.where = error.where or where
            raise
    return found

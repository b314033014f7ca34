"""What one JSON line says about a picture, before anything is checked against the picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from xvlm_core.data.ledger import Item
from xvlm_core.sources.strict_json import JsonProblem, parse

_WHOLE = frozenset({"captions", "regions", "absent", "questions", "statement", "images"})
"""A line with one of these keys is a whole record."""


class LineProblem(ValueError):
    """A line that says nothing usable; ``reason`` is a short ledger word."""

    def __init__(self, reason: str, seen: object = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seen = seen


@dataclass(frozen=True)
class Said:
    """One text of a line, as found.

    Attributes:
        item: what it is counted as.
        text: of any type: it is checked later.
        box: as found (regions only).
        exact: the box is ``xyxy`` pixels whatever the options say.
        kind: of the region, as found; None: not said.
        answers: of a question, as found.
        id: of a question, as found.
        problem: reason to drop it that is known already.
    """

    item: Item
    text: object
    box: object = None
    exact: bool = False
    kind: object = None
    answers: object = None
    id: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class Line:
    """A line that names a picture (or two).

    Attributes:
        images: paths, as found.
        said: its texts.
        id: of a whole record that has one.
        size: stated width and height, if both are.
        split: if said.
        statement: true or false sentence about a pair: its text and label.
        source: if said.
        meta: whatever else belongs to the record.
    """

    images: tuple[str, ...]
    said: tuple[Said, ...]
    id: str | None = None
    size: tuple[int, int] | None = None
    split: str | None = None
    statement: tuple[object, object] | None = None
    source: str = "jsonl"
    meta: dict[str, Any] = field(default_factory=dict)


def read_line(raw: bytes) -> Line:
    """Parse one line.

    Args:
        raw: without byte order mark; a line end is ignored.

    Raises:
        LineProblem: "not UTF-8", "not JSON", "nested too deep", "repeated key", "not an object",
            "no image", "malformed id", "malformed size", "malformed split", "malformed statement"
            or "not Unicode".
    """
    try:
        value = parse(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LineProblem("not UTF-8", raw[:80].decode("latin-1")) from error
    except JsonProblem as error:
        raise LineProblem(error.reason, error.seen) from error
    if not isinstance(value, dict):
        raise LineProblem("not an object", value)
    whole = bool(_WHOLE & value.keys())
    line = Line(
        images=_images(value),
        said=tuple(_said_whole(value) if whole else _said_simple(value)),
        id=_id(value) if whole else None,
        size=_size(value),
        split=_string(value, "split"),
        statement=_statement(value),
        source=_string(value, "source") or "jsonl",
        meta=value["meta"] if isinstance(value.get("meta"), dict) else {},
    )
    try:
        json.dumps([line.id, line.split, line.source, line.meta], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise LineProblem("not Unicode", line.id) from error
    return line


def _images(value: dict[str, Any]) -> tuple[str, ...]:
    images = value.get("images", [value.get("image")])
    if not isinstance(images, list) or not 1 <= len(images) <= 2:
        raise LineProblem("no image", images)
    if not all(isinstance(path, str) for path in images):
        raise LineProblem("no image", images)
    return tuple(_one_spelling(path) for path in images)


def _one_spelling(path: str) -> str:
    """``./a.jpg`` and ``a.jpg`` are one picture, not two that are each asked."""
    if path.startswith("/") or path.endswith(("/", ".")):
        return path  # no file of the image root: for the check of the picture to say
    return "/".join(part for part in path.split("/") if part not in (".", ""))


def _id(value: dict[str, Any]) -> str | None:
    id = value.get("id")
    if id is None:
        return None
    if isinstance(id, bool) or not isinstance(id, str | int) or id == "":
        raise LineProblem("malformed id", id)
    return str(id)


def _size(value: dict[str, Any]) -> tuple[int, int] | None:
    size = (value.get("width"), value.get("height"))
    if size == (None, None):
        return None
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in size):
        raise LineProblem("malformed size", list(size))
    return size  # type: ignore[return-value]


def _string(value: dict[str, Any], key: str) -> str | None:
    found = value.get(key)
    if found is not None and (not isinstance(found, str) or not found):
        raise LineProblem(f"malformed {key}", found)
    return found


def _statement(value: dict[str, Any]) -> tuple[object, object] | None:
    statement = value.get("statement")
    if statement is None:
        return None
    if not isinstance(statement, dict) or "text" not in statement:
        raise LineProblem("malformed statement", statement)
    label = statement.get("label")
    is_pair = isinstance(value.get("images"), list) and len(value["images"]) == 2
    if not is_pair or (label is not None and not isinstance(label, bool)):
        raise LineProblem("malformed statement", statement)
    return statement["text"], label


def _said_simple(value: dict[str, Any]) -> Iterator[Said]:
    has_box = "box" in value
    keys = [key for key in ("text", "caption") if key in value]
    if not keys:
        yield Said("region" if has_box else "caption", None, problem="no text")
    for number, key in enumerate(keys):
        is_region = has_box and number == 0
        texts = value[key] if isinstance(value[key], list) else [value[key]]
        if not texts:
            yield Said("region" if is_region else "caption", None, problem="no text")
        for text in texts:
            if is_region:
                yield Said("region", text, box=value["box"], kind=value.get("kind"))
            else:
                yield Said("caption", text)


def _said_whole(value: dict[str, Any]) -> Iterator[Said]:
    for text in _list(value, "captions"):
        yield text if isinstance(text, Said) else Said("caption", text)
    for region in _list(value, "regions"):
        if isinstance(region, Said):
            yield region
        elif not isinstance(region, dict):
            yield Said("region", None, box=region, problem="malformed region")
        else:
            exact = "box_xyxy_px" in region
            box = region["box_xyxy_px"] if exact else region.get("box")
            yield Said("region", region.get("text"), box, exact, region.get("kind"))
    for text in _list(value, "absent"):
        yield text if isinstance(text, Said) else Said("absent", text)
    for question in _list(value, "questions"):
        if isinstance(question, Said):
            yield question
        elif not isinstance(question, dict):
            yield Said("question", question, problem="malformed question")
        else:
            answers, id = question.get("answers", []), str(question.get("id", ""))
            yield Said("question", question.get("question"), answers=answers, id=id)


def _list(value: dict[str, Any], key: str) -> list[Any]:
    """The members of a list; for something that is no list one ``Said`` with the problem."""
    found = value.get(key, [])
    if isinstance(found, list):
        return found
    item: Item = key[:-1] if key != "absent" else "absent"  # type: ignore[assignment]
    return [Said(item, found, problem=f"malformed {key}")]

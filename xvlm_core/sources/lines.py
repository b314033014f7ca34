"""What one line says about a picture, before anything is checked against the picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from xvlm_core.data.ledger import Item
from xvlm_core.data.records import REGION_KINDS
from xvlm_core.errors import DataError
from xvlm_core.sources.base import Option
from xvlm_core.sources.drafts import Said, corners
from xvlm_core.sources.naming import FORMATS, split_name
from xvlm_core.sources.question_lines import answers_of
from xvlm_core.sources.strict_json import JsonProblem, parse, refuse_encoding

_BOM = b"\xef\xbb\xbf"
WHOLE = frozenset(
    {"captions", "regions", "absent", "questions", "statement", "images", "proposals_xyxy_px"}
)
"""A line with one of these keys is a whole record."""

BOX_UNIT_OPTION = Option(
    "box_unit", str, "pixels, or fractions of width and height", "px", choices=("px", "fraction")
)


def box_format_option(of: str) -> Option:
    """For files whose ``of`` (keys, columns) may say themselves what the numbers of a box are."""
    return Option(
        "box_format",
        str,
        f"what the four numbers of a box are (default: as their {of}s say, else xyxy; for a {of} "
        "bbox it must be said)",
        choices=FORMATS,
    )


BOX_OPTIONS = (
    Option("box_format", str, "what the four numbers of a box are", "xyxy", choices=FORMATS),
    BOX_UNIT_OPTION,
)
KINDS = REGION_KINDS
KIND_OPTION = Option("kind", str, "what the texts with a box are", "phrase", choices=KINDS)
EMPTY_OPTION = Option("allow_empty", bool, "keep pictures that have no text", False)


class LineProblem(ValueError):
    """A line that says nothing usable; ``reason`` is a short ledger word."""

    def __init__(self, reason: str, seen: object = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seen = seen


@dataclass(frozen=True)
class Form:
    """How lines are written.

    Attributes:
        image_key: of the picture's path; with dots: a key of an object inside.
        text_keys: of the text; with a box the first of them that is there names the part.
        box_keys: of the box: one key of a list, or four of numbers.
        split_key: of the split.
        id_key: of the record's id, in lines that are no whole records; None: they have none.
        foreign: keys were named, so a line is not a whole record of ours.
        box_format: of boxes that do not say it: "xyxy", "xywh" or "cxcywh".
        fraction: they are fractions of width and height.
        kind: of texts with a box that do not say it.
        allow_empty: a picture without text is kept.
    """

    image_key: str = "image"
    text_keys: tuple[str, ...] = ("text", "caption")
    box_keys: tuple[str, ...] = ("box",)
    split_key: str = "split"
    id_key: str | None = None
    foreign: bool = False
    box_format: str = "xyxy"
    fraction: bool = False
    kind: str = "phrase"
    allow_empty: bool = False

    def region(self, text: object, box: object, kind: object, where: str) -> Said:
        """A text with a box as found; a kind of None is not said."""
        return Said(
            "region",
            text,
            where,
            box_xyxy=corners(box, self.box_format),
            fraction=self.fraction,
            seen=box,
            kind=self.kind if kind is None else kind,
        )


@dataclass(frozen=True)
class Line:
    """A line that names a picture (or two).

    Attributes:
        images: paths, as found.
        said: its texts.
        where: its place in the source, "file:line".
        merge_key: lines with the same are one record; None: it stands alone.
        id: of the record, if said.
        size: stated width and height, if both are.
        split: if said, as stores call it.
        statement: true or false sentence about a pair: its text and label.
        source: if said.
        same_as: names of the same photograph elsewhere.
        meta: whatever else belongs to the record.
    """

    images: tuple[str, ...]
    said: tuple[Said, ...]
    where: str
    merge_key: str | None = None
    id: str | None = None
    size: tuple[int, int] | None = None
    split: str | None = None
    statement: tuple[object, object] | None = None
    source: str | None = None
    same_as: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)


def open_lines(path: Path) -> IO[bytes]:
    """A text file, opened after its byte order mark.

    Raises:
        DataError: it cannot be read, or is UTF-16 or UTF-32.
    """
    try:
        if path.exists() and not path.is_file():  # read twice, so neither a pipe nor a terminal
            raise DataError(f"{path} is no file", try_="write it to a file first")
        file = open(path, "rb")  # noqa: SIM115 (the caller closes it)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        start = file.read(4)
        refuse_encoding(path, start)
        file.seek(len(_BOM) if start.startswith(_BOM) else 0)
    except BaseException:
        file.close()
        raise
    return file


def parse_line(raw: bytes) -> dict[str, Any]:
    """The JSON object of one line; a line end is ignored.

    Raises:
        LineProblem: "not UTF-8", "not JSON", "nested too deep", "repeated key" or "not an object".
    """
    try:
        value = parse(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LineProblem("not UTF-8", raw[:80].decode("latin-1")) from error
    except JsonProblem as error:
        raise LineProblem(error.reason, error.seen) from error
    if not isinstance(value, dict):
        raise LineProblem("not an object", value)
    return value


def is_whole(value: dict[str, Any], form: Form) -> bool:
    """Whether an object is a record of ours rather than one text of a picture."""
    says_one = any(has(value, key) for key in (*form.text_keys, *form.box_keys))
    return not form.foreign and (bool(WHOLE & value.keys()) or not says_one)


def line_of(value: dict[str, Any], form: Form, where: str) -> Line:
    """What an object says.

    Args:
        value: one text of a picture, or a whole record.
        form: how it is written.
        where: its place in the source.

    Raises:
        LineProblem: "no image", "malformed id", "malformed size", "malformed split",
            "malformed source", "malformed statement", "malformed same_as" or "not Unicode".
    """
    whole = is_whole(value, form)
    images = _images(value, form)
    id = _id(
        value.get("id") if whole else None if form.id_key is None else find(value, form.id_key)
    )
    said = tuple(whole_said(value, form, where) if whole else _one_said(value, form, where))
    statement = _statement(value) if whole else None
    if not (said or statement or form.allow_empty or (whole and WHOLE & value.keys())):
        said = (Said("caption", where=where, problem="no text"),)
    split = _string(find(value, form.split_key), "split")
    line = Line(
        images=images,
        said=said,
        where=where,
        merge_key=_merge_key(images, id, whole),
        id=id,
        size=None if {"width", "height"} & set(form.box_keys) else _size(value),
        split=None if split is None else split_name(split),
        statement=statement,
        source=_string(value.get("source"), "source") if whole else None,
        same_as=_same_as(value) if whole else (),
        meta=value["meta"] if whole and isinstance(value.get("meta"), dict) else {},
    )
    names = [line.id, line.split, line.source, line.same_as, line.meta]
    if not _is_unicode(json.dumps(names, ensure_ascii=False)):
        raise LineProblem("not Unicode", line.id)
    return line


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which cannot be stored
        return False
    return True


_NOTHING = object()


def find(value: dict[str, Any], key: str) -> Any:
    """The value of a key, or of ``a.b`` that of ``b`` inside ``a``; a marker if there is none."""
    if key in value:
        return value[key]
    inner: Any = value
    for part in key.split("."):
        if not isinstance(inner, dict) or part not in inner:
            return _NOTHING
        inner = inner[part]
    return inner


def has(value: dict[str, Any], key: str) -> bool:
    """Whether ``find`` finds it."""
    return find(value, key) is not _NOTHING


def _merge_key(images: tuple[str, ...], id: str | None, whole: bool) -> str | None:
    """A whole record with an id stands alone: that an id comes twice is for the writer to say."""
    if len(images) == 2 or (whole and id is not None):
        return None
    return images[0] if id is None else f"id\0{id}"


def _images(value: dict[str, Any], form: Form) -> tuple[str, ...]:
    found = (
        value["images"] if not form.foreign and "images" in value else find(value, form.image_key)
    )
    images = found if isinstance(found, list) else [found]
    if not 1 <= len(images) <= 2 or not all(isinstance(path, str) for path in images):
        raise LineProblem("no image", None if found is _NOTHING else found)
    return tuple(one_spelling(path) for path in images)


def one_spelling(path: str) -> str:
    """``./a.jpg`` and ``a.jpg`` are one picture, not two that are each asked."""
    if path.startswith("/") or path.endswith(("/", ".")) or "://" in path:
        return path  # no file of the image root: for the check of the picture to say
    return "/".join(part for part in path.split("/") if part not in (".", ""))


def _id(id: Any) -> str | None:
    if id is None or id is _NOTHING:
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


def _string(found: Any, key: str) -> str | None:
    if found is None or found is _NOTHING:
        return None
    if not isinstance(found, str) or not found:
        raise LineProblem(f"malformed {key}", found)
    return found


def _same_as(value: dict[str, Any]) -> tuple[str, ...]:
    found = value.get("same_as", [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise LineProblem("malformed same_as", found)
    return tuple(found)


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


def _one_said(value: dict[str, Any], form: Form, where: str) -> Iterator[Said]:
    box = _box_of(value, form)
    has_box = box is not _NOTHING
    keys = [key for key in form.text_keys if has(value, key)]
    if not keys and has_box:
        yield Said("region", where=where, problem="no text")
    for number, key in enumerate(keys):
        is_region = has_box and number == 0
        item: Item = "region" if is_region else "caption"
        found = find(value, key)
        texts = found if isinstance(found, list) else [found]
        if not texts:
            yield Said(item, where=where, problem="no text")
        for text in texts:
            if is_region:
                yield form.region(text, box, value.get("kind"), where)
            else:
                yield Said("caption", text, where)


def _box_of(value: dict[str, Any], form: Form) -> Any:
    found = [find(value, key) for key in form.box_keys]
    if len(found) == 1:
        return found[0]
    if all(number is _NOTHING or number is None for number in found):
        return _NOTHING
    return [None if number is _NOTHING else number for number in found]


def whole_said(value: dict[str, Any], form: Form, where: str) -> Iterator[Said]:
    """The texts of an object with ``captions``, ``regions``, ``absent``, ``questions``."""
    for item, key in _LISTS:
        found = value.get(key, [])
        if not isinstance(found, list):
            yield Said(item, found, where, problem=f"malformed {key}")
            continue
        for member in found:
            yield _member(item, member, form, where)


_LISTS: tuple[tuple[Item, str], ...] = (
    ("caption", "captions"),
    ("region", "regions"),
    ("absent", "absent"),
    ("question", "questions"),
    ("proposal", "proposals_xyxy_px"),
)


def _member(item: Item, member: Any, form: Form, where: str) -> Said:
    if item == "proposal":
        return Said(item, where=where, box_xyxy=corners(member, "xyxy"), seen=member)
    if item in ("caption", "absent"):
        return Said(item, member, where)
    if not isinstance(member, dict):
        return Said(item, member, where, problem=f"malformed {item}")
    if item == "question":
        answers, id = answers_of(member), str(member.get("id", ""))
        problem = None if _is_unicode(id) else "malformed id"
        text = member.get("question")
        return Said(item, text, where, answers=answers, id=id, problem=problem)
    text, kind = member.get("text"), member.get("kind")
    if "box_xyxy_px" in member:  # whatever the form says
        pixels = replace(form, box_format="xyxy", fraction=False)
        return pixels.region(text, member["box_xyxy_px"], kind, where)
    return form.region(text, member.get("box"), kind, where)

"""Answers from a file, joined with what they are compared with. No model, no picture.

One JSON object a line: ``id`` and the fields of an answer (those of the evaluation's
``NO_ANSWER``), as ``xvlm evaluate`` writes them. What else is on a line is not read: targets come
from the data alone, by id. The file of a test server is read as well: a JSON list of objects with
``question_id`` and ``answer`` (VQA), or ``image_id`` and ``caption`` (COCO).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError
from xvlm_core.listing import some, some_lines
from xvlm_core.sources.strict_json import JsonProblem, refuse_encoding, strict_pairs
from xvlm_core.tasks.answer_fields import problem_of
from xvlm_core.tasks.base import Prediction


@dataclass(frozen=True)
class SavedAnswer:
    """The answer of a line, or of a member of a list.

    Attributes:
        line: its number, from 1.
        fields: of the answer.
        key: that its id was found under.
        unit: what is numbered, "line" or "member".
    """

    line: int
    fields: dict[str, Any]
    key: str = "id"
    unit: str = "line"


def read_answers(
    path: Path, no_answer: Mapping[str, Any], also: Sequence[str] = ()
) -> dict[str, SavedAnswer]:
    """The answers of a file, by id.

    Args:
        path: of the file.
        no_answer: the fields that an answer has.
        also: fields that it may have.

    Raises:
        DataError: the file is missing or empty; a line is damaged, lacks a field or has a value
            that no answer can have (the first such line is named); ids come twice (all of them
            are, with their lines).
    """
    shape = _shape(no_answer)
    found: dict[str, SavedAnswer] = {}
    again: dict[str, list[int]] = {}
    unit = "line"
    for unit, number, entry in _entries(path, shape):
        where = f"{path}, {unit} {number}"
        name, key, fields = _answer(entry, no_answer, also, _Place(where, shape))
        if name in found:
            again.setdefault(name, [found[name].line]).append(number)
        else:
            found[name] = SavedAnswer(number, fields, key, unit)
    if again:
        raise _twice(path, {name: [f"{unit}s", *lines] for name, lines in again.items()})
    if not found:
        raise DataError(f"{path} has no predictions", where=str(path), try_=shape)
    return found


_SERVER_KEYS = {"answer": "question_id", "caption": "image_id"}
"""The key of an id in the file of a test server, by the field that an answer has there."""


def _shape(fields: Iterable[str]) -> str:
    """What a file looks like, for messages."""
    names = ["id", *fields]
    text = (
        f"one JSON object a line with {', '.join(names[:-1])} and {names[-1]}, as xvlm evaluate "
        "writes them"
    )
    server = [f"{key} and {field}" for field, key in _SERVER_KEYS.items() if field in names]
    return "; or ".join([text, *(f"a JSON list of objects with {keys}" for keys in server)])


def _twice(path: Path, again: Mapping[str, Sequence[object]]) -> DataError:
    """Ids that are answered more than once, each with "lines" and their numbers."""
    twice = [
        f"{_short(name)}: {what} {', '.join(map(str, lines))}"
        for name, (what, *lines) in again.items()
    ]
    return DataError(
        f"{_counted(len(again), 'id')} of {path.name} {'is' if len(again) == 1 else 'are'} "
        "answered more than once",
        details=some_lines(twice),
        where=str(path),
        try_="one answer an id",
    )


@dataclass(frozen=True)
class _Place:
    """Where an answer is, and what it should look like: for messages."""

    where: str
    shape: str

    def bad(self, what: str) -> DataError:
        return DataError(f"a prediction {what}", where=self.where, try_=self.shape)


def _entries(path: Path, shape: str) -> Iterator[tuple[str, int, object]]:
    """The lines of a file, or the members of its list, as JSON values; each with its number."""
    data = _read(path)
    if data.lstrip()[:1] == b"[":
        members = _value(data, _Place(str(path), shape), "the list of predictions")
        assert isinstance(members, list), "it begins as one"
        for number, member in enumerate(members, start=1):
            yield "member", number, member
        return
    for number, text in enumerate(data.split(b"\n"), start=1):
        if text.strip():
            yield "line", number, _value(text, _Place(f"{path}, line {number}", shape))


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the predictions {path} cannot be read: {error.strerror or error}",
            where=str(path),
            try_="xvlm evaluate TASK  (writes them, and says where)",
        ) from None
    refuse_encoding(path, data[:4])
    return data.removeprefix(b"\xef\xbb\xbf")


def _value(text: bytes, place: _Place, what: str = "a prediction") -> object:
    try:
        return json.loads(
            text.decode("utf-8"), parse_constant=_no_number, object_pairs_hook=strict_pairs()
        )
    except UnicodeDecodeError as error:
        raise DataError(
            f"{what} is not UTF-8 (byte {error.start})",
            where=place.where,
            try_="save the file as UTF-8: iconv -f LATIN1 -t UTF-8 FILE > NEW_FILE",
        ) from None
    except JsonProblem as problem:
        raise DataError(
            f"{what} has the key {_short(str(problem.seen))} twice",
            where=place.where,
            try_=place.shape,
        ) from None
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        at = f" (line {line})" if line > 1 else ""  # a list may have several
        raise DataError(f"{what} is not JSON{at}", where=place.where, try_=place.shape) from None


def _answer(
    line: object, needed: Iterable[str], also: Iterable[str], place: _Place
) -> tuple[str, str, dict[str, Any]]:
    """Id, the key that it was under, and answer of a line."""
    if not isinstance(line, dict):
        raise place.bad("is not a JSON object")
    name, key = _name(line, needed, place)
    fields = {}
    for field in needed:
        if field not in line:
            raise place.bad(f"has no {field} (id {_short(name)})")
    for field in (*needed, *(field for field in also if field in line)):
        problem = problem_of(field, line[field])
        if problem:
            article = "an" if field[0] in "aeiou" else "a"
            raise place.bad(f"has {article} {field} that is {problem} (id {_short(name)})")
        fields[field] = line[field]
    return name, key, fields


def _name(line: Mapping[str, Any], needed: Iterable[str], place: _Place) -> tuple[str, str]:
    """Id of a line, and the key that it is under: ``id``, or that of the test server."""
    if isinstance(line.get("id"), str):
        return line["id"], "id"
    for field in needed:
        key = _SERVER_KEYS.get(field, "id")
        name = line.get(key)
        if key != "id" and isinstance(name, str | int) and not isinstance(name, bool):
            return str(name), key
    raise place.bad("has no id (a text)")


def _no_number(text: str) -> float:
    raise ValueError(text)


@dataclass(frozen=True)
class Joined:
    """Answers with what they are compared with.

    Attributes:
        predictions: of each part of the data, in its order.
        missing: ids that were counted as wrong.
    """

    predictions: list[list[Prediction]]
    missing: list[str]


def join(
    path: Path,
    answers: Mapping[str, SavedAnswer],
    references: Sequence[Iterable[Prediction]],
    no_answer: Mapping[str, Any],
    *,
    allow_missing: bool = False,
    left_out: Sequence[Collection[str]] = (),
) -> Joined:
    """Each reference with its answer.

    Args:
        path: of the file of the answers, for messages.
        answers: by id.
        references: of each part of the data; ids are unique over all of them.
        no_answer: what stands for an answer that is missing.
        allow_missing: count it as wrong.
        left_out: ids of items that cannot be scored (a picture without references), of each part;
            complete when ``references`` have been read. Answers to them are not looked at.

    Raises:
        DataError: answers to what was not asked; or missing ones, if they are not allowed.
    """
    parts = [list(part) for part in references]
    left = _as_in_data(path, answers, parts)
    n_answers = len(left)
    missing: list[str] = []
    predictions: list[list[Prediction]] = []
    for part in parts:
        rows: list[Prediction] = []
        for reference in part:
            answer = left.pop(reference["id"], None)
            if answer is None:
                missing.append(reference["id"])
            rows.append({**(no_answer if answer is None else answer.fields), **reference})
        predictions.append(rows)
    unscored = {name for part in left_out for name in part}
    unscored |= {_number(name) for name in unscored}
    left = {
        name: answer
        for name, answer in left.items()
        if not unscored & {name, _number(name, _GIVEN) if answer.key == "image_id" else name}
    }
    if left:
        lines = [f"{_short(name)}: {answer.unit} {answer.line}" for name, answer in left.items()]
        ids = f"{_counted(len(left), 'id')} of {path.name} {'is' if len(left) == 1 else 'are'} not"
        if len(left) == n_answers > 1:
            ids = f"none of the {_counted(n_answers, 'id')} of {path.name} is"
            lines = [*lines[:3], f"ids of the data: {some([_short(name) for name in missing])}"]
        raise DataError(
            f"{ids} in the data",
            details=some_lines(lines),
            where=str(path),
            try_="--data and --split that the predictions are of (several: --split testA,testB)",
        )
    if missing and not allow_missing:
        n = len(missing)
        raise DataError(
            f"{_counted(n, 'item')} of the data {'has' if n == 1 else 'have'} no prediction in "
            f"{path.name}",
            details=some_lines([_short(name) for name in missing]),
            where=str(path),
            try_="--allow-missing  (counts them as wrong)",
        )
    return Joined(predictions, missing)


_NUMBER = r"(\d{1,20})(?:\.(?:jpe?g|png))?"
_NUMBERED = re.compile(r"(?:.*/)?(?:COCO_[a-z]+\d{4}_)?" + _NUMBER, re.ASCII)
"""A record that has a number: ``val/391895``, ``val2014/COCO_val2014_000000391895.jpg``."""
_GIVEN = re.compile(r"(?:(?:.*/)?COCO_[a-z]+\d{4}_)?" + _NUMBER, re.ASCII)
"""A number as a file gives it. A folder in front is part of a name, but for COCO's own names."""


def _server_names(reference: Prediction, key: str) -> set[str]:
    """What an item is called in the file of a test server."""
    if key == "question_id":
        return {str(reference.get(key))}
    return {reference["id"], _number(str(reference.get("record")))}


def _number(name: str, form: re.Pattern[str] = _NUMBERED) -> str:
    """The number of a picture without zeros in front; a name without one as it is."""
    found = form.fullmatch(name)
    return str(int(found[1])) if found else name


def _as_in_data(
    path: Path, answers: Mapping[str, SavedAnswer], parts: Sequence[Sequence[Prediction]]
) -> dict[str, SavedAnswer]:
    """Answers by the ids of the data.

    An id of a test server that several items have is none, unless it is the very id of one.

    Raises:
        DataError: an item is answered more than once, under several names.
    """
    meant: dict[str, dict[str, str | None]] = {}
    for key in {answer.key for answer in answers.values()} - {"id"}:
        items = meant.setdefault(key, {})
        for part in parts:
            for reference in part:
                for name in _server_names(reference, key):
                    items[name] = None if name in items else reference["id"]
    found: dict[str, SavedAnswer] = {}
    again: dict[str, list[object]] = {}
    for name, answer in answers.items():
        items = meant.get(answer.key, {})
        number = _number(name, _GIVEN) if answer.key == "image_id" else name
        own = items.get(name) or items.get(number) or name
        if own in found:
            again.setdefault(own, [f"{answer.unit}s", found[own].line]).append(answer.line)
        else:
            found[own] = answer
    if again:
        raise _twice(path, again)
    return found


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:80]}..."

"""Answers from a file, joined with what they are compared with. No model, no picture.

One JSON object a line: ``id`` and the fields of an answer (those of the evaluation's
``NO_ANSWER``), as ``xvlm evaluate`` writes them. What else is on a line is not read: targets come
from the data alone, by id.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError
from xvlm_core.listing import some_lines
from xvlm_core.tasks.base import Prediction

_MOST_PIXELS = 1e9


@dataclass(frozen=True)
class SavedAnswer:
    """The answer of a line.

    Attributes:
        line: number of the line, from 1.
        fields: of the answer.
    """

    line: int
    fields: dict[str, Any]


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
    found: dict[str, SavedAnswer] = {}
    again: dict[str, list[int]] = {}
    for number, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        name, fields = _answer(text, no_answer, also, f"{path}, line {number}")
        if name in found:
            again.setdefault(name, [found[name].line]).append(number)
        else:
            found[name] = SavedAnswer(number, fields)
    if again:
        twice = [f"{name}: lines {', '.join(map(str, lines))}" for name, lines in again.items()]
        raise DataError(
            f"{_counted(len(again), 'id')} of {path.name} {'is' if len(again) == 1 else 'are'} "
            "answered more than once",
            details=some_lines(twice),
            where=str(path),
            try_="one line an id",
        )
    if not found:
        raise DataError(f"{path} has no predictions", where=str(path), try_=_SHAPE)
    return found


_SHAPE = "one JSON object a line with an id and an answer, as xvlm evaluate writes them"


def _lines(path: Path) -> Iterable[bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the predictions {path} cannot be read: {error.strerror or error}",
            where=str(path),
            try_="xvlm evaluate TASK  (writes them, and says where)",
        ) from None
    return data.removeprefix(b"\xef\xbb\xbf").split(b"\n")


def _answer(
    text: bytes, needed: Iterable[str], also: Iterable[str], where: str
) -> tuple[str, dict[str, Any]]:
    """Id and answer of a line."""
    try:
        line = json.loads(text.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError:
        raise _bad("is not UTF-8", where) from None
    except (ValueError, RecursionError):
        raise _bad("is not JSON", where) from None
    if not isinstance(line, dict):
        raise _bad("is not a JSON object", where)
    name = line.get("id")
    if not isinstance(name, str):
        raise _bad("has no id (a text)", where)
    fields = {}
    for field in needed:
        if field not in line:
            raise _bad(f"has no {field} (id {_short(name)})", where)
    for field in (*needed, *(field for field in also if field in line)):
        problem = _CHECKS.get(field, _anything)(line[field])
        if problem:
            raise _bad(f"has a {field} that is {problem} (id {_short(name)})", where)
        fields[field] = line[field]
    return name, fields


def _bad(what: str, where: str) -> DataError:
    return DataError(f"a prediction {what}", where=where, try_=_SHAPE)


def _no_number(text: str) -> float:
    raise ValueError(text)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def _box(value: object) -> str | None:
    """Why a value is no box in corners."""
    if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
        return "not four finite numbers"
    if any(abs(number) > _MOST_PIXELS for number in value):
        return "farther out than any picture reaches"
    x1, y1, x2, y2 = value
    return None if x1 <= x2 and y1 <= y2 else "not x1, y1, x2, y2 with x1 <= x2 and y1 <= y2"


def _probability(value: object) -> str | None:
    is_one = _is_number(value) and 0 <= value <= 1  # type: ignore[operator]
    return None if is_one else "not a number from 0 to 1"


def _texts(value: object) -> str | None:
    is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return None if is_list else "not a list of ids"


def _numbers(value: object) -> str | None:
    is_list = isinstance(value, list) and all(map(_is_number, value))
    return None if is_list else "not a list of finite numbers"


def _numbers_or_none(value: object) -> str | None:
    is_list = isinstance(value, list) and all(one is None or _is_number(one) for one in value)
    return None if is_list else "not a list of finite numbers and nulls"


def _count(value: object) -> str | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return None if is_count else "not a whole number from 0 on"


def _number_or_none(value: object) -> str | None:
    return None if value is None or _is_number(value) else "not a finite number or null"


def _text(value: object) -> str | None:
    return None if isinstance(value, str) else "not a text"


def _anything(value: object) -> str | None:
    return None


_CHECKS: dict[str, Callable[[object], str | None]] = {
    "box_xyxy_px": _box,
    "probability": _probability,
    "answer": _text,
    "caption": _text,
    "proposal_score": _number_or_none,
    "ranking": _texts,
    "by_similarity": _texts,
    "scores": _numbers_or_none,  # null: ranked by similarity, not scored
    "similarities": _numbers,
    "candidates": _count,
    "among": _count,
}
"""Fields of answers, and why a value is none."""


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
) -> Joined:
    """Each reference with its answer.

    Args:
        path: of the file of the answers, for messages.
        answers: by id.
        references: of each part of the data; ids are unique over all of them.
        no_answer: what stands for an answer that is missing.
        allow_missing: count it as wrong.

    Raises:
        DataError: answers to what was not asked; or missing ones, if they are not allowed.
    """
    left = dict(answers)
    missing: list[str] = []
    predictions: list[list[Prediction]] = []
    for part in references:
        rows: list[Prediction] = []
        for reference in part:
            answer = left.pop(reference["id"], None)
            if answer is None:
                missing.append(reference["id"])
            rows.append({**(no_answer if answer is None else answer.fields), **reference})
        predictions.append(rows)
    if left:
        lines = [f"{_short(name)}: line {answer.line}" for name, answer in left.items()]
        raise DataError(
            f"{_counted(len(left), 'id')} of {path.name} {'is' if len(left) == 1 else 'are'} "
            "not in the data",
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


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:80]}..."

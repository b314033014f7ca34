"""What the fields of a saved answer may hold."""

from __future__ import annotations

import math
from collections.abc import Callable

_MOST_PIXELS = 1e9


def problem_of(field: str, value: object) -> str | None:
    """Why a value is none of a field, in the words after "that is"; None: it can be.

    Args:
        field: its name; what is not known may be anything.
        value: as JSON has it.
    """
    check = _CHECKS.get(field)
    return None if check is None else check(value)


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

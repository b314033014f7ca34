"""Texts of several parts, as "<subject> <predicate> <object>", and the box of such a text."""

from __future__ import annotations


def joined(*parts: object) -> tuple[object, str | None]:
    """One text of several, and why there is none.

    Args:
        parts: as found.

    Returns:
        (text, None), or (the parts, "text malformed" or "empty text"): a part that says nothing
        would leave a text that means something else.
    """
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) < len(parts):
        return list(parts), "text malformed"
    if not all(says_something(text) for text in texts):
        return list(parts), "empty text"
    return " ".join(" ".join(text.split()) for text in texts), None


def says_something(text: str) -> bool:
    """Whether there is a letter or a digit in it."""
    return any(char.isalnum() for char in text)


def box_around(first_xyxy: object, second_xyxy: object) -> object:
    """The smallest box around two.

    Args:
        first_xyxy: of the subject, as ``drafts.corners`` gives it.
        second_xyxy: of the object.

    Returns:
        ``[x1, y1, x2, y2]``; or, if one of the two cannot be a box by itself, that one as it is,
        so that it is dropped for what is wrong with it.
    """
    for box in (first_xyxy, second_xyxy):
        if not isinstance(box, list) or len(box) != 4:
            return box
        if not all(isinstance(v, float) for v in box):
            return box
        x1, y1, x2, y2 = box
        if not (x1 < x2 and y1 < y2):  # not a number is not less either
            return box
    assert isinstance(first_xyxy, list)
    assert isinstance(second_xyxy, list)
    low = [min(a, b) for a, b in zip(first_xyxy[:2], second_xyxy[:2], strict=True)]
    high = [max(a, b) for a, b in zip(first_xyxy[2:], second_xyxy[2:], strict=True)]
    return low + high

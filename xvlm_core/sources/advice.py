"""What the counts of a preparation say about the options that it was given."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from xvlm_core.data.ledger import damaged
from xvlm_core.sources.base import Source

if TYPE_CHECKING:
    from xvlm_core.data.ledger import Counts

BELOW_A_PIXEL = "box below a pixel"
_INVALID = ("box has no area", "box outside the picture", "box not finite")
_MANY = 0.2
"""Share of the boxes that are invalid from which on it is the reading that is wrong."""
_FEW = 5
"""Boxes from which nothing is concluded."""


def about_boxes(source: Source, counts: Counts) -> str | None:
    """What to type where boxes were probably read in another form than they were written in."""
    names = {option.name for option in source.options}
    count = counts.get("region")
    if count is None or not {"box_format", "box_unit"} <= names:
        return None
    dropped, read = count["dropped"], count["read"]
    if read < _FEW:
        return None
    if dropped.get(BELOW_A_PIXEL, 0) > _MANY * read:
        return "--box-unit fraction  (the numbers of many boxes are all below 1)"
    if sum(dropped.get(reason, 0) for reason in _INVALID) > _MANY * read:
        return (
            "--box-format xywh, or cxcywh, or xyxy  (many boxes have no area or leave the picture)"
        )
    return None


def most_lost(counts: Counts, allowed: float) -> tuple[list[str], float]:
    """Items of which more were damaged or missing than allowed, and the share that would do.

    Args:
        counts: of the store.
        allowed: share.

    Returns:
        A line an item, and the largest of their shares, rounded up to two digits.
    """
    problems, share = [], 0.0
    for item, reasons in damaged(counts).items():
        lost, read = sum(reasons.values()), counts[item]["read"]
        if lost > allowed * read:
            listed = ", ".join(f"{n:,} {reason}" for reason, n in reasons.items())
            problems.append(f"{item}: {lost:,} of {read:,} ({listed})")
            share = max(share, lost / read)
    return problems, min(1.0, math.ceil(share * 100) / 100)

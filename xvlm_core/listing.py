"""Long lists in short words. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence


def some(things: Sequence[object], most: int = 3) -> str:
    """The first few, and how many more there are: ``a, b, c and 1,204 more``."""
    more = len(things) - most
    return ", ".join(map(str, things[:most])) + (f" and {more:,} more" if more > 0 else "")


def some_lines(lines: Sequence[str], most: int = 5) -> list[str]:
    """The first few lines, and one that says how many more there are."""
    more = len(lines) - most
    return [*lines[:most], *([f"and {more:,} more"] if more > 0 else [])]

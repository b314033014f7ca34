"""The ledger: what was read, kept, dropped and repaired while a store was made, with reasons.

Nothing is lost silently: for every item type, read = kept + dropped. Each loss and each repair is
one line of ``ledger.jsonl``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from json.encoder import encode_basestring as _quoted
from pathlib import Path
from typing import Any, Literal, Protocol

from xvlm_core.data.text import sanitize

Item = Literal["line", "picture", "caption", "region", "question", "pair", "absent", "proposal"]
"""What is counted. A ``line`` is a line of an input file that should hold an item of any type."""

CHOICES = frozenset(
    {
        "box has no area",
        "box not finite",
        "box outside the picture",
        "box too small",
        "crowd",
        "depiction",
        "empty text",
        "excluded",
        "failed_to_download",
        "failed_to_resize",
        "group",
        "no answer with a word",
        "no text left",
        "text overlap",
    }
)
"""Reasons to drop something that is as it should be, or as such data always is. Any other reason
says that something is damaged or missing."""

_SEEN_LIMIT = 200

Counts = dict[str, dict[str, Any]]
"""``{item: {"read": n, "kept": n, "dropped": {reason: n}, "repaired": {reason: n}}}``."""


class Lines(Protocol):
    """What a ledger writes to: an open text file, for example."""

    def write(self, text: str, /) -> object:
        """Append text."""


class Ledger:
    """Counts by item type; losses and repairs also go, one JSON line each, to ``lines``.

    Args:
        lines: an open text file, or None to only count.
    """

    def __init__(self, lines: Lines | None = None) -> None:
        self._lines = lines
        self._read: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._dropped: dict[str, Counter[str]] = {}
        self._repaired: dict[str, Counter[str]] = {}
        self._examples: dict[tuple[str, str], str] = {}

    def read(self, item: Item, n: int = 1) -> None:
        """Count ``n`` items found in the source."""
        self._read[item] += n

    def keep(self, item: Item, n: int = 1) -> None:
        """Count ``n`` items that went into the store."""
        self._kept[item] += n

    def drop(self, item: Item, id: str, reason: str, seen: object = None) -> None:
        """Count and list one item that is left out.

        Args:
            item: its type.
            id: where it stands in the source (a record id, an annotation id, ``file:line``).
            reason: a short word or two, always the same for the same cause.
            seen: the offending value.
        """
        self._dropped.setdefault(item, Counter())[reason] += 1
        self._examples.setdefault((item, reason), id)
        self._write(item, "dropped", id, reason, seen)

    def repair(self, item: Item, id: str, reason: str, seen: object = None) -> None:
        """List one item that is changed (and kept or dropped as any other)."""
        self._repaired.setdefault(item, Counter())[reason] += 1
        self._write(item, "repaired", id, reason, seen)

    def _write(self, item: str, what: str, id: str, reason: str, seen: object) -> None:
        if self._lines is None:
            return
        # As json.dumps does it, which takes four times as long.
        self._lines.write(
            f'{{"item": {_quoted(item)}, "what": {_quoted(what)}, "id": {_quoted(sanitize(id))}, '
            f'"reason": {_quoted(reason)}, "seen": {_json(_short(seen))}}}\n'
        )

    @property
    def counts(self) -> Counts:
        """All counts, sorted by name, as plain JSON."""
        items = self._read.keys() | self._kept.keys() | self._dropped.keys()
        return {
            item: {
                "read": self._read[item],
                "kept": self._kept[item],
                "dropped": dict(sorted(self._dropped.get(item, Counter()).items())),
                "repaired": dict(sorted(self._repaired.get(item, Counter()).items())),
            }
            for item in sorted(items | self._repaired.keys())
        }

    @property
    def losses(self) -> int:
        """Number of items dropped, of all types."""
        return sum(sum(reasons.values()) for reasons in self._dropped.values())

    def summary(self) -> list[str]:
        """One line a reason of loss, most frequent first, each with an example."""
        losses = [
            (n, item, reason)
            for item, reasons in self._dropped.items()
            for reason, n in reasons.items()
        ]
        return [
            f"{item}: {n} dropped, {reason} (first: {sanitize(self._examples[item, reason])})"
            for n, item, reason in sorted(losses, key=lambda loss: (-loss[0], loss[1], loss[2]))
        ]

    def check(self) -> None:
        """Assert read = kept + dropped for every item type."""
        for item, count in self.counts.items():
            dropped = sum(count["dropped"].values())
            if count["read"] != count["kept"] + dropped:
                raise AssertionError(
                    f"{item}: read {count['read']} != kept {count['kept']} + dropped {dropped}"
                )


def examples_of(
    files: Iterable[Path], most: int, *, among: Callable[[str], bool] | None = None
) -> list[str]:
    """Some of what was dropped, a line each.

    Args:
        files: ledgers.
        most: lines.
        among: whether a reason counts; None: all that stand for themselves ("picture: missing"
            does not).
    """
    found: list[str] = []
    for path in files:
        with open(path, encoding="utf-8") as file:
            for text in file:
                line = json.loads(text)
                wanted = among(line["reason"]) if among else ": " not in line["reason"]
                if line["what"] == "dropped" and wanted:
                    seen = "" if line["seen"] is None else f" ({line['seen']})"
                    found.append(f"{line['item']} {line['id']}: {line['reason']}{seen}")
                if len(found) == most:
                    return found
    return found


def is_damage(reason: str) -> bool:
    """Whether a reason to drop says that something is damaged or missing, in its own right."""
    return ": " not in reason and reason not in CHOICES


def damaged(counts: Counts) -> dict[str, dict[str, int]]:
    """What was dropped because it is damaged or missing, not by choice: {item: {reason: n}}.

    What went with a damaged picture ("picture: missing") is not counted again.
    """
    found: dict[str, dict[str, int]] = {}
    for item, count in counts.items():
        for reason, n in count["dropped"].items():
            if is_damage(reason):
                found.setdefault(item, {})[reason] = n
    return found


def merged(parts: Iterable[Counts]) -> Counts:
    """The sums of several counts."""
    items: dict[str, dict[str, Any]] = {}
    for part in parts:
        for item, count in part.items():
            total = items.setdefault(
                item, {"read": 0, "kept": 0, "dropped": Counter(), "repaired": Counter()}
            )
            total["read"] += count["read"]
            total["kept"] += count["kept"]
            total["dropped"].update(count["dropped"])
            total["repaired"].update(count["repaired"])
    return {
        item: {
            **items[item],
            "dropped": dict(sorted(items[item]["dropped"].items())),
            "repaired": dict(sorted(items[item]["repaired"].items())),
        }
        for item in sorted(items)
    }


def _json(value: bool | int | str | None) -> str:
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _short(seen: object) -> bool | int | str | None:
    """A small JSON value: numbers as they are, everything else as a short printable text."""
    if seen is None or isinstance(seen, bool | int):
        return seen
    text = seen[: 2 * _SEEN_LIMIT] if isinstance(seen, str) else str(seen)
    text = sanitize(text[: 2 * _SEEN_LIMIT])
    return text if len(text) <= _SEEN_LIMIT else text[: _SEEN_LIMIT - 3] + "..."

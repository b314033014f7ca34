"""Whether a picture that a task is evaluated on is in the training data.

Pictures are compared by the names of the photograph that both stores know (``Record.same_as``):
what has no name in common is not found here, which is what ``--exclude-like`` is for. Only hashes
of names are read, so that millions of pictures take seconds and little memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xvlm_core.data.files import is_store, store_place
from xvlm_core.data.manifest import SAME
from xvlm_core.data.store import Store

if TYPE_CHECKING:
    import numpy.typing as npt

    from xvlm_core.config.data_sections import DataSection

HELD_OUT = ("val", "valid", "validation", "dev", "test", "testA", "testB", "test2", "test-dev")
"""Splits that nothing is trained on."""

_EXAMPLES = 5


@dataclass(frozen=True)
class Leak:
    """Pictures of one training store that are in the held-out splits of another.

    Attributes:
        training: name of the store that is trained on.
        held_out: name of the other, with its splits.
        pictures: records of the training store, how many.
        examples: some of them: (record id, record id in the other, the name they share).
        exclude: what ``--exclude`` takes to leave them out.
    """

    training: str
    held_out: str
    pictures: int
    examples: tuple[tuple[str, str, str], ...]
    exclude: str


@dataclass(frozen=True)
class LeakReport:
    """What was compared with what.

    Attributes:
        leaks: found.
        compared: held-out stores that were compared.
        missing: held-out stores that are not prepared.
        nameless: stores whose pictures have no names to compare.
    """

    leaks: tuple[Leak, ...]
    compared: tuple[str, ...]
    missing: tuple[str, ...]
    nameless: tuple[str, ...]

    def notes(self) -> list[str]:
        """What was compared, a line each."""
        if not self.compared:
            return []
        found = sum(leak.pictures for leak in self.leaks)
        what = f"{found:,} held-out pictures are" if found else "no held-out picture is"
        return [f"leaks: {what} in the training data ({', '.join(self.compared)})"]

    def warnings(self) -> list[str]:
        """What could not be compared, a line each."""
        lines = []
        if self.missing:
            lines.append(f"leaks: not prepared, so not compared: {', '.join(self.missing)}")
        if self.nameless:
            lines.append(f"leaks: no names of photographs in {', '.join(self.nameless)}")
        return lines


def find_leaks(data: DataSection) -> LeakReport:
    """Compare the training stores of a recipe with its ``held_out`` ones.

    Raises:
        DataError: a store is damaged.
    """
    sections = (data.images, data.regions, data.questions)
    streams = [stream.stores for stream in sections if stream is not None]
    training = list(dict.fromkeys(name for names in streams for name in names))
    leaks: list[Leak] = []
    compared, missing, nameless = [], [], []
    opened = {name: Store.of_recipe(data, name) for name in training if _is_there(data, name)}
    for text in data.held_out:
        name, _, chosen = text.partition(":")
        if not _is_there(data, name):
            missing.append(name)
            continue
        other = Store.of_recipe(data, name)
        splits = [
            s for s in other.manifest.splits if s in (chosen.split(",") if chosen else HELD_OUT)
        ]
        names = _names(other)
        if names is None:
            nameless.append(name)
            continue
        held = _rows_of(names, other, splits)
        compared.append(f"{name} {'+'.join(splits)}")
        for own_name, own in opened.items():
            own_names = _names(own)
            if own_names is None:
                continue
            leak = _compare(own, own_names, other, held, data.train_split)
            if leak is not None:
                exclude = f"{store_place(data.root, name)}:{','.join(splits)}"
                leaks.append(Leak(own_name, f"{name} ({', '.join(splits)})", *leak, exclude))
    nameless += [name for name, store in opened.items() if compared and _names(store) is None]
    return LeakReport(tuple(leaks), tuple(compared), tuple(missing), tuple(nameless))


def _is_there(data: DataSection, name: str) -> bool:
    return is_store(store_place(data.root, name))


def _names(store: Store) -> npt.NDArray[Any] | None:
    """``SAME_DTYPE`` rows sorted by name, mapped, not read."""
    return None if store.files.size(SAME) is None else store.files.array(SAME)


def _rows_of(names: npt.NDArray[Any], store: Store, splits: Sequence[str]) -> npt.NDArray[Any]:
    numbers = [np.asarray(store.indices(split)) for split in splits]
    wanted = np.concatenate(numbers) if numbers else np.empty(0, np.int64)
    rows: npt.NDArray[Any] = names[np.isin(names["record"], wanted)]
    return rows


def _compare(
    own: Store,
    own_names: npt.NDArray[Any],
    other: Store,
    held: npt.NDArray[Any],
    train_split: str,
) -> tuple[int, tuple[tuple[str, str, str], ...]] | None:
    """How many training records share a name with a held-out one, and some of them."""
    first = np.searchsorted(own_names["name"], held["name"], side="left")
    last = np.searchsorted(own_names["name"], held["name"], side="right")
    pairs = [
        (int(own_names["record"][i]), int(held["record"][row]))
        for row in np.flatnonzero(last > first)
        for i in range(first[row], last[row])
    ]
    found: dict[int, tuple[str, str, str]] = {}
    for number, held_number in sorted(set(pairs)):
        if number in found:
            continue
        mine, theirs = own[number], other[held_number]
        shared = [name for name in mine.same_as if name in theirs.same_as]
        if shared and mine.split == train_split:  # a hash alone proves nothing
            found[number] = (mine.id, theirs.id, shared[0])
    if not found:
        return None
    return len(found), tuple(list(found.values())[:_EXAMPLES])

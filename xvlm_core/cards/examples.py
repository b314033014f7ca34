"""Examples to look at: records chosen over all splits and kinds, with their pictures decoded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from xvlm_core.cards.card import TRUTH
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.errors import DataError

_CANDIDATES = 60
"""Records of each split that are looked at, for each example wanted, at most 600 in all."""


@dataclass(frozen=True)
class Shown:
    """A picture of an example, or why there is none.

    Attributes:
        path: as the record has it.
        image: upright, RGB; None if it cannot be read.
        problem: a short reason if it cannot be read or is not of the stated size.
    """

    path: str
    image: Image.Image | None
    problem: str = ""


@dataclass(frozen=True)
class Example:
    """A record and its pictures."""

    number: int
    record: Record
    pictures: tuple[Shown, ...]


def choose_examples(store: Store, count: int, seed: int = 0) -> list[int]:
    """Numbers of records that show as much as possible: splits in turn, kinds not yet shown first.

    Args:
        store: an open store.
        count: how many; fewer if the store has fewer.
        seed: another seed, other examples.

    Returns:
        Different record numbers, ascending.
    """
    candidates = {
        split: _candidates(store, split, count, random.Random(f"{seed} {split}"))
        for split in store.manifest.splits
    }
    chosen: list[int] = []
    shown: set[str] = set()
    pictures: set[str] = set()
    while len(chosen) < count and any(candidates.values()):
        for found in candidates.values():
            if not found or len(chosen) == count:
                continue
            best = max(
                range(len(found)),
                key=lambda at, found=found: (  # type: ignore[misc]
                    found[at][1].image not in pictures,
                    len(_kinds(found[at][1]) - shown),
                    -at,
                ),
            )
            number, record = found.pop(best)
            chosen.append(number)
            shown |= _kinds(record)
            pictures.update(record.images)
    return sorted(chosen)


def examples(store: Store, numbers: Sequence[int]) -> Iterator[Example]:
    """The records of these numbers with their pictures, decoded one after the other."""
    for number in numbers:
        record = store[number]
        pictures = tuple(_shown(store, record, which) for which in range(len(record.images)))
        yield Example(number, record, pictures)


def truth(label: bool | None) -> str:
    """A statement's label in words."""
    return TRUTH[2] if label is None else TRUTH[0] if label else TRUTH[1]


def _candidates(
    store: Store, split: str, count: int, rng: random.Random
) -> list[tuple[int, Record]]:
    """Some records of a split, evenly spread, in an order of their own."""
    numbers = store.indices(split)
    n = min(len(numbers), _CANDIDATES * count, max(600 // len(store.manifest.splits), count))
    if not n:
        return []
    steps = np.linspace(0, len(numbers), n, endpoint=False) + rng.random() * len(numbers) / n
    found = []
    for at in sorted({int(step) for step in steps}):
        try:
            found.append((int(numbers[at]), store[int(numbers[at])]))
        except DataError:  # named by whoever checks the store
            continue
    rng.shuffle(found)
    return found


def _kinds(record: Record) -> set[str]:
    kinds: set[str] = {region.kind for region in record.regions}
    for name, there in (
        ("caption", record.captions),
        ("absent", record.absent),
        ("question", record.questions),
        ("statement", record.statement),
        ("proposal", record.proposals_xyxy_px),
    ):
        if there:
            kinds.add(name)
    return kinds


def _shown(store: Store, record: Record, which: int) -> Shown:
    path = record.images[which]
    try:
        image = read_picture(store.picture(record, which))
    except PictureError as error:
        return Shown(path, None, error.reason)
    if which == 0 and image.size != (record.width, record.height):
        stated = f"{record.width} x {record.height}"
        return Shown(path, image, f"{image.width} x {image.height}, the record says {stated}")
    return Shown(path, image)

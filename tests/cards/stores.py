"""A small store with records of every kind, for the card, the sheet and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from xvlm_core.data.records import Answer, Question, Record, Region, Statement
from xvlm_core.data.store import Store, StoreWriter

COMMAND = "xvlm prepare-data jsonl mine.jsonl -o data/mine"

EVERYTHING: tuple[Record, ...] = (
    Record(
        "one",
        ("one.png",),
        100,
        50,
        captions=("A dog.", "A dog.", "a small white dog on the grass"),
        regions=(
            Region("dog", (0.0, 0.0, 10.0, 5.0), "object"),
            Region("dog", (0.0, 0.0, 10.0, 5.0), "object"),
            Region("white dog", (0.0, 0.0, 10.0, 5.0), "attribute"),
            Region("dog on grass", (50.0, 25.0, 100.0, 50.0), "relation"),
        ),
        absent=("a cat",),
    ),
    Record(
        "two",
        ("two.png",),
        200,
        200,
        captions=("A dog.", "собака"),
        regions=(
            Region("a dog at the left", (0.0, 0.0, 200.0, 200.0), "phrase"),
            Region("the lower half", (0.0, 100.0, 200.0, 200.0), "region"),
        ),
        proposals_xyxy_px=((1.0, 2.0, 30.0, 40.0), (0.0, 0.0, 9.0, 9.0)),
        split="val",
    ),
    Record(
        "three",
        ("two.png",),
        200,
        200,
        questions=(
            Question("q1", "what is it?", (Answer("dog", 1.0), Answer("wolf", 0.3))),
            Question("q2", "狗在哪里"),
        ),
        split="val",
    ),
    Record(
        "four",
        ("one.png", "two.png"),
        100,
        50,
        statement=Statement("both have a dog", True),
        split="test",
    ),
)


def paint(folder: Path, sizes: dict[str, tuple[int, int]]) -> None:
    """One-coloured pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        Image.new("RGB", size, (90, 140, 200)).save(folder / name)


def make_store(
    folder: Path,
    records: Sequence[Record] = EVERYTHING,
    *,
    source: str = "jsonl",
    pictures: bool = True,
    dropped: Sequence[str] = (),
) -> Store:
    """A store of these records; the pictures lie in ``pictures`` beside it.

    Args:
        folder: of the store.
        records: to write.
        source: of the manifest.
        pictures: paint them, in the size of the first record that names them.
        dropped: reasons of regions that were dropped, one each.
    """
    root = folder.parent / "pictures"
    root.mkdir(parents=True, exist_ok=True)
    if pictures:
        sizes: dict[str, tuple[int, int]] = {}
        for record in records:
            sizes.setdefault(record.image, (record.width, record.height))
        paint(root, sizes)
    with StoreWriter(folder, image_root=root, source=source, command=COMMAND) as writer:
        kept = sum(len(record.regions) for record in records)
        if dropped:
            writer.ledger.read("region", kept + len(dropped))
            writer.ledger.keep("region", kept)
            for number, reason in enumerate(dropped):
                writer.ledger.drop("region", f"mine.jsonl:{number}", reason)
        for record in records:
            writer.add(record)
    return Store.open(folder)

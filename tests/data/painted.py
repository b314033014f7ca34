"""Pictures whose objects can be found again: each region is painted into a colour channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xvlm_core.data.records import Record, Region
from xvlm_core.data.samples import BoxXYXY, SampleMaker, SampleSettings
from xvlm_core.data.store import Store, StoreWriter
from xvlm_core.data.tokenizer import SPECIAL_TOKENS, Tokenizer

WORDS = ("red", "green", "blue", "box", "ball", "left", "of", "the", "a", "dog", "##gy", "near")
TOKENIZER = Tokenizer.from_vocab([*SPECIAL_TOKENS, *WORDS])
SIDE, GRID = 64, 4


def paint(path: Path, width: int, height: int, boxes_xyxy_px: Sequence[BoxXYXY]) -> None:
    """Black, with box k at full brightness in colour channel k (at most three)."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    for channel, (x1, y1, x2, y2) in enumerate(boxes_xyxy_px[:3]):
        pixels[int(y1) : int(y2), int(x1) : int(x2), channel] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def painted_record(
    root: Path,
    name: str,
    regions: Sequence[tuple[str, BoxXYXY]],
    *,
    size: tuple[int, int] = (120, 90),
    captions: Sequence[str] = (),
    absent: Sequence[str] = (),
    split: str = "train",
    **meta: object,
) -> Record:
    """A record and its picture, ``root/name.png``."""
    paint(root / f"{name}.png", *size, [box for _, box in regions])
    return Record(
        id=name,
        images=(f"{name}.png",),
        width=size[0],
        height=size[1],
        captions=tuple(captions),
        regions=tuple(Region(text, box, "object") for text, box in regions),
        absent=tuple(absent),
        split=split,
        source="painted",
        meta=dict(meta),
    )


def painted_store(folder: Path, root: Path, records: Sequence[Record]) -> Store:
    """A store of the records, whose pictures lie in ``root``."""
    with StoreWriter(
        folder, image_root=root, source="painted", command="xvlm prepare-data jsonl"
    ) as writer:
        for record in records:
            writer.add(record)
    return Store.open(folder)


def settings(**changes: object) -> SampleSettings:
    values: dict[str, object] = {
        "image_size": SIDE,
        "grid": GRID,
        "max_words": 8,
        "max_tokens": 8,
        **changes,
    }
    return SampleSettings(**values)  # type: ignore[arg-type]


def maker(seed: int = 1, **changes: object) -> SampleMaker:
    return SampleMaker(settings(**changes), TOKENIZER, seed)


def extent(picture: NDArray[np.uint8], channel: int) -> BoxXYXY | None:
    """Bounding box of what is bright in a channel."""
    rows, columns = np.nonzero(picture[:, :, channel] > 127)
    if not len(rows):
        return None
    return (
        float(columns.min()),
        float(rows.min()),
        float(columns.max() + 1),
        float(rows.max() + 1),
    )

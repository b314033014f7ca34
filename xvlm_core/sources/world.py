"""The synthetic world as a store, and as a stand-in for the stores that a recipe names.

Everything is a pure function of the seed.
"""

from __future__ import annotations

import dataclasses
import io
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from xvlm_core.errors import UsageError
from xvlm_core.sources.base import Option, Plan, Progress, Source
from xvlm_core.sources.drafts import Draft, Event, PictureBytes, Said

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from xvlm_core.config.schema import Recipe
    from xvlm_core.data.manifest import Manifest
    from xvlm_core.data.records import Box, Record

_SPLITS = ("train", "val", "test", "unseen")
_SHARD = 250
"""Pictures that a process draws at a time: drawing takes longer than reading."""


@dataclass(frozen=True)
class _ToDraw:
    """A picture of the world, or a pair, drawn by whoever does its shard.

    Attributes:
        seed: of the world.
        split: in the world.
        index: of the picture, or of the pair.
        size: side in pixels.
        pair: two pictures and a statement.
        captions_only: leave out everything that names a part.
        split_name: split of the record.
        proposals: give the boxes of all things as proposals, as a detector without error would.
        proposals_only: these alone, without a text.
    """

    seed: int
    split: str
    index: int
    size: int
    pair: bool = False
    captions_only: bool = False
    split_name: str = ""
    proposals: bool = False
    proposals_only: bool = False

    def expand(self) -> Iterator[Draft]:
        """Draw it.

        Raises:
            UsageError: the size is none that the world can have.
        """
        from xvlm_core.world.grammar import pair_record, world_record

        pictures: tuple[npt.NDArray[np.uint8], ...]
        if self.pair:
            record, pictures = pair_record(self.seed, self.split, self.index, self.size)
        else:
            record, picture = world_record(self.seed, self.split, self.index, self.size)
            pictures = (picture,)
        if self.proposals or self.proposals_only:
            record = dataclasses.replace(record, proposals_xyxy_px=_boxes_of_things(record))
        if self.captions_only or self.proposals_only:
            record = dataclasses.replace(record, regions=(), absent=(), questions=(), meta={})
        if self.proposals_only:
            record = dataclasses.replace(record, captions=())
        if self.split_name:
            record = dataclasses.replace(record, split=self.split_name)
        names = [name.rsplit("/", 1)[-1] for name in record.images]
        encoded = [_png(name, one) for name, one in zip(names, pictures, strict=True)]
        yield _draft(record, tuple(encoded))


def _boxes_of_things(record: Record) -> tuple[Box, ...]:
    """The true boxes of the things in a picture, in a random order that is the record's own.

    In the order of the scene a position would tell which thing a text is about.
    """
    boxes = [thing["box_xyxy_px"] for thing in record.meta.get("scene", ())]
    boxes.sort(key=lambda box: zlib.crc32(repr(box).encode()))
    return tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes)


def _png(name: str, picture_hwc: npt.NDArray[np.uint8]) -> PictureBytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture_hwc).save(buffer, "PNG", compress_level=1)
    return PictureBytes(name, buffer.getvalue())


def _draft(record: Record, pictures: tuple[PictureBytes, ...]) -> Draft:
    said = [Said("caption", text) for text in record.captions]
    said += [
        Said("region", region.text, box_xyxy=list(region.box_xyxy_px), kind=region.kind)
        for region in record.regions
    ]
    said += [Said("absent", text) for text in record.absent]
    said += [Said("proposal", box_xyxy=list(box)) for box in record.proposals_xyxy_px]
    said += [
        Said(
            "question",
            question.question,
            answers=[(answer.answer, answer.weight) for answer in question.answers],
            id=question.id,
        )
        for question in record.questions
    ]
    statement = record.statement
    return Draft(
        id=record.id,
        pictures=pictures,
        said=tuple(said),
        split=record.split,
        source=record.source,
        statement=None if statement is None else (statement.text, statement.label),
        meta=record.meta,
    )


def plan(options: dict[str, Any]) -> Plan:
    """The pictures of all splits, then the pairs.

    Raises:
        UsageError: no picture is asked for.
    """
    sizes = {split: options[split] for split in _SPLITS}
    if not any(sizes.values()):
        raise UsageError("a world without pictures", try_="--train 1000")
    seed, size = options["seed"], options["size"]
    singles = {} if options["pairs_only"] else sizes
    pairs = {split: min(options["pairs"], n // 2) for split, n in sizes.items()}
    if not singles and not any(pairs.values()):
        raise UsageError("a world without pairs", try_="--pairs-only --pairs 1000 --train 2000")

    def events() -> Iterator[Event]:
        for split, n in singles.items():
            for index in range(n):
                yield _ToDraw(seed, split, index, size, proposals=options["proposals"])
        for split, n in pairs.items():
            for index in range(n):
                yield _ToDraw(seed, split, index, size, pair=True)

    total = sum(singles.values()) + sum(pairs.values())
    return Plan(events(), None, (), total, shard_records=_SHARD)


SOURCE = Source(
    "world",
    "synthetic pictures of coloured shapes with exact texts and boxes",
    (
        Option("train", int, "pictures of the split train", 1000, minimum=0),
        Option("val", int, "pictures of the split val", 200, minimum=0),
        Option("test", int, "pictures of the split test", 200, minimum=0),
        Option("unseen", int, "pictures with unseen combinations", 200, minimum=0),
        Option("pairs", int, "pairs with a statement, a split (at most half)", 0, minimum=0),
        Option("pairs_only", bool, "leave out the records of single pictures", False),
        Option("proposals", bool, "also the true boxes of all things, as of a detector", False),
        Option("seed", int, "another seed, another world", 0, minimum=0),
        Option("size", int, "side of the pictures in pixels", 128, minimum=16, maximum=4096),
    ),
    plan,
)


def stand_in(
    recipe: Recipe,
    root: Path,
    *,
    command: str,
    train: int = 64,
    val: int = 32,
    size: int = 128,
    seed: int = 0,
    workers: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    only: Collection[str] | None = None,
) -> dict[str, Manifest]:
    """Fill every store that a recipe names with pictures of the world.

    Each store has other pictures. Stores of ``data.images`` alone have captions only, as theirs
    would; splits are named as the recipe names them. A store of ``data.pairs`` has half as many
    pairs, and single pictures only if it is another stream's, too. A store of proposals has the
    pictures of the validation split of a validation store (the first one, the second, ...), with
    the true boxes of all things.

    Args:
        recipe: resolved.
        root: folder of the stores (the recipe's ``data.root``).
        command: what was typed.
        train: pictures of the training split, a store.
        val: pictures of the validation split, a store.
        size: side of the pictures in pixels.
        seed: another seed, other pictures.
        workers: processes; None: all cores.
        progress: told how far it is.
        overwrite: replace stores that are there.
        only: these stores alone; None: all that the recipe names.

    Returns:
        The manifests by the store's name.

    Raises:
        OutputError: one of the folders is not empty (nothing is written then).
        UsageError: a store is named by a path outside ``root``.
    """
    data = recipe.data
    captioned = data.images.stores if data.images else ()
    with_regions = data.regions.stores if data.regions else ()
    paired = data.pairs.stores if data.pairs else ()
    trained, validated = {*captioned, *with_regions, *paired}, set(data.validation)
    proposed = [name for name in recipe.scoring.proposals if name not in trained | validated]
    pictures_of = {
        name: data.validation[min(number, len(data.validation) - 1)] if data.validation else name
        for number, name in enumerate(proposed)
    }
    every = trained | validated | set(proposed)
    names = sorted(name for name in every if only is None or name in only)
    for name in names:
        if Path(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UsageError(f"store {name!r} is outside {root}", where="data of the recipe")
    from xvlm_core.data.store_folder import StoreFolder
    from xvlm_core.sources.prepare import prepare_plan
    from xvlm_core.sources.registry import checked_options

    for name in names:  # before anything is written
        StoreFolder(root / name, None, overwrite=overwrite)
    manifests = {}
    values = checked_options(SOURCE, {"workers": workers})
    for name in names:
        splits = {
            "train": (train if name in trained else 0, data.train_split),
            "val": (val if name in validated or name in pictures_of else 0, data.validation_split),
        }
        own_seed = zlib.crc32(f"{pictures_of.get(name, name)}/{seed}".encode())
        captions_only = name not in with_regions and name not in validated
        boxes = name in pictures_of
        has_pairs = name in paired or (bool(paired) and name in validated)
        kinds = [False] if name in (*captioned, *with_regions) or not has_pairs else []
        kinds += [True] if has_pairs else []
        events = [
            _ToDraw(own_seed, split, index, size, pair, captions_only, new_name, False, boxes)
            for pair in kinds
            for split, (n, new_name) in splits.items()
            for index in range(n // 2 if pair else n)
        ]
        total = len(events)
        manifests[name] = prepare_plan(
            dataclasses.replace(SOURCE, name=f"world (stand-in for {name})"),
            Plan(iter(events), None, (), total, shard_records=_SHARD),
            root / name,
            {**values, "seed": own_seed, "size": size, "captions_only": captions_only, **splits},
            command=command,
            progress=progress,
            overwrite=overwrite,
        )
    return manifests

"""Objects365: boxes with category names, in the COCO layout, in files of several gigabytes.

Two things about its 365 names. Some are given as alternatives ("Moniter/TV"): the text is the first
one, since the cleaning of texts makes "moniter tv" of both. And some are misspelt: those of which
it is certain what is meant are put right (``SPELLINGS``). The ledger lists both, once a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError
from xvlm_core.sources.base import PAPER, Option, Plan, Source
from xvlm_core.sources.coco_layout import Entry, Layout, Place
from xvlm_core.sources.drafts import Draft, Event, Repaired
from xvlm_core.sources.folders import asked_folders, first_that_fits

SPELLINGS = {
    "Bakset": "Basket",
    "Ballon": "Balloon",
    "Billards": "Billiards",
    "Buttefly": "Butterfly",
    "Campel": "Camel",
    "Cutting/chopping Board": "Cutting Board",
    "Dinning Table": "Dining Table",
    "Extention Cord": "Extension Cord",
    "Hotair ballon": "Hot air balloon",
    "Moniter/TV": "Monitor",
    "Mushroon": "Mushroom",
    "Noddles": "Noodles",
    "Table Teniis paddle": "Table Tennis paddle",
    "Tape Measur/ Ruler": "Tape Measure",
}
"""What is meant by a name that is misspelt (or whose first alternative alone means little)."""

_FILES = ("*objv2_*.json", "*objects365*.json", "*obj365*.json")
_FOLDERS = ("", "annotations/", "train/", "val/", "test/")
_SPLIT = re.compile(r"(?:^|[_-])(train|val|test)(?:[_-]|$)")
_VERSION = re.compile(r"^images/v[12]/")
_MARKS = ("iscrowd", "isfake", "isreflected")
_OPTIONS = {"crowd": (1, "crowd"), "fakes": (2, "depiction"), "reflected": (4, "depiction")}


def text_of(name: str) -> str:
    """What a category's name says in a text: see the module.

    Args:
        name: of the category, as the files have it.
    """
    return SPELLINGS.get(name.strip()) or name.split("/", 1)[0].strip() or name


def plan(options: dict[str, Any]) -> Plan:
    """Find the annotation files.

    Raises:
        UsageError: neither ``root`` nor ``annotations`` and ``images`` are given.
        DataError: there is no such folder, or no annotation file in it.
    """
    root, images = asked_folders(
        options,
        "Objects365 is",
        usage="xvlm prepare-data objects365 --root FOLDER, or --annotations FILE --images FOLDER",
        of="Objects365",
    )
    paths = options["annotations"] or _annotation_files(images if root is None else root)
    return Plan(_events(paths, images, options), images, tuple(paths))


def _annotation_files(root: Path) -> tuple[Path, ...]:
    found = {path for folder in _FOLDERS for name in _FILES for path in root.glob(folder + name)}
    if not found:
        raise DataError(
            f"no zhiyuan_objv2_*.json or objects365_*.json in {root}", try_="--annotations FILE"
        )
    return tuple(sorted(found))


def _events(paths: tuple[Path, ...], root: Path, options: dict[str, Any]) -> Iterator[Event]:
    unwanted = dict(mark for name, mark in _OPTIONS.items() if not options[name])
    seen: dict[int, str] = {}
    told: set[str] = set()
    for path in paths:
        layout = Layout(_MARKS)
        layout.read(path)
        both = sorted(seen.keys() & layout.pictures.keys())
        if both:
            raise DataError(
                f"{len(both)} image ids are in {seen[both[0]]} and in {path.name}, such as "
                f"{both[0]}",
                try_=f"--annotations {path}, and the other into another store",
            )
        if len(paths) > 1:
            seen.update(dict.fromkeys(layout.pictures, path.name))
        match = _SPLIT.search(path.stem)
        split = match[1] if match else "train"
        yield from layout.lost
        for id, name in layout.categories.items():
            text = layout.categories[id] = text_of(name)
            if text != name.strip() and name not in told:
                told.add(name)
                yield Repaired("region", f"category {id}: {text}", "name of the category", name)
        yield from layout.unattached()
        place = _place(root, split, layout)
        yield from layout.annotated(
            unwanted, partial(_draft, place=place, split=options["split"] or split)
        )


def _place(root: Path, split: str, layout: Layout) -> Place:
    """Where the pictures are: ``train/patch8/...``, or less tidy."""
    names = (_short(entry.name) for entry in layout.pictures.values())
    folders = (f"{split}/", "", "images/", f"images/{split}/", f"{split}/images/")
    versions = (f"{split}/images/v1/", f"{split}/images/v2/", "images/v1/", "images/v2/")
    places = [Place(folder) for folder in (*folders, *versions)]
    places += [Place(folder, flat=True) for folder in folders]
    return first_that_fits(root, names, places) or Place(f"{split}/")


def _short(name: str) -> str:
    return _VERSION.sub("", name)


def _draft(id: int, entry: Entry, *, place: Place, split: str) -> Draft:
    return Draft(
        str(id),
        (place.path(_short(entry.name)),),
        size=entry.size,
        split=split,
        same_as=(f"objects365:{id}",),
    )


SOURCE = Source(
    "objects365",
    "Objects365: object boxes (zhiyuan_objv2_train.json, objects365_train.json)",
    (
        Option("root", Path, "folder of the annotations, of train/ and of val/"),
        Option(
            "annotations",
            Path,
            "annotation file, instead of those found in ROOT",
            multiple=True,
        ),
        Option("images", Path, "folder that train/patch0/... starts from (default: ROOT)"),
        Option("split", str, "split of all records (default: from the file name)"),
        Option("crowd", bool, "keep boxes around many objects (iscrowd)", True),
        Option("fakes", bool, "keep boxes around drawings and statues (isfake)", True),
        Option("reflected", bool, "keep boxes around mirror images (isreflected)", True),
    ),
    plan,
    PAPER,
)

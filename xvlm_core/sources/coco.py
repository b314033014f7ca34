"""COCO and everything in its annotation layout: captions, and boxes with category names.

Found by themselves under the folder: COCO and CVAT (``annotations/instances_*.json``,
``captions_*.json``), Roboflow (``train/_annotations.coco.json``), Label Studio (``result.json``),
or the only JSON file there is. Boxes are ``xywh`` pixels in the files. The paper's rules are on for
COCO's own files, known by their names (``instances_train2017.json``); exports of other data keep
their small boxes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.base import PAPER, Option, Plan, Rules, Source
from xvlm_core.sources.coco_layout import Entry, Layout, Place
from xvlm_core.sources.drafts import Draft, Event
from xvlm_core.sources.folders import first_that_fits
from xvlm_core.sources.identity import coco_in
from xvlm_core.sources.naming import split_name

_SUBSET = re.compile(
    r"(?:^|[_-])((training|train|validation|valid|val|testing|test|dev)\d*)$", re.IGNORECASE
)
_OF_COCO = re.compile(r"(?:instances|captions)_(?:train|val|test)20(?:14|17)\.json")
_YEAR = re.compile(r"(?:train|val|test)20\d\d")
_OLD_NAME = re.compile(r"COCO_((?:train|val|test)\d{4})_\d{12}\.\w+")
_ROBOFLOW = "_annotations.coco.json"


@dataclass(frozen=True)
class _Subset:
    """Annotation files that are about the same pictures (instances and captions of one split)."""

    name: str
    paths: tuple[Path, ...]

    @property
    def split(self) -> str:
        """Of its records, as the name has it."""
        match = _SUBSET.search(self.name)
        return split_name(match[2]) if match else "train"


def plan(options: dict[str, Any]) -> Plan:
    """Find the annotation files.

    Raises:
        UsageError: neither ``root`` nor ``annotations`` are given.
        DataError: there is no such folder, or no annotation file in it.
    """
    root, paths, images = options["root"], tuple(options["annotations"]), options["images"]
    if root is not None and root.is_file():
        root, paths = None, (*paths, root)
    if root is None and not paths:
        raise UsageError(
            "where COCO is was not said",
            try_="xvlm prepare-data coco --root FOLDER, or --annotations FILE --images FOLDER",
        )
    for folder in (root, images):
        if folder is not None and not folder.is_dir():
            raise DataError(f"there is no folder {folder}", try_="--root FOLDER of COCO")
    paths = paths or _annotation_files(root)
    place = images or root or _folder_of(paths)
    rules = None if all(_OF_COCO.fullmatch(path.name) for path in paths) else Rules()
    return Plan(_events(paths, place, options), place, paths, rules=rules)


def _folder_of(paths: tuple[Path, ...]) -> Path:
    """Where the pictures of annotation files are looked for."""
    folder = Path(os.path.commonpath([path.resolve().parent for path in paths]))
    return folder.parent if folder.name == "annotations" else folder


def _annotation_files(root: Path) -> tuple[Path, ...]:
    folder = root / "annotations"
    found = [*folder.glob("instances_*.json"), *folder.glob("captions_*.json")]
    if not found:
        found = [*root.glob(_ROBOFLOW), *root.glob(f"*/{_ROBOFLOW}")]
    if not found:
        found = [*root.glob("*.json"), *folder.glob("*.json")]
        if len(found) > 1:
            names = ", ".join(sorted(path.name for path in found)[:10])
            raise DataError(
                f"which JSON file of {root} has the annotations is unclear: {names}",
                try_=f"--annotations {min(found)}",
            )
    if not found:
        raise DataError(
            f"no instances_*.json or captions_*.json in {folder}, no {_ROBOFLOW} in {root} or its "
            "folders, and no other JSON file",
            try_="unpack COCO's annotations there, or give --annotations FILE",
        )
    return tuple(sorted(found))


def _subset_of(path: Path) -> str:
    """``train2017`` of ``instances_train2017.json``; empty if the name has no such part."""
    if path.name == _ROBOFLOW:
        return path.parent.name if _SUBSET.fullmatch(path.parent.name) else ""
    match = _SUBSET.search(path.stem)
    return match[1] if match else ""


def _events(paths: tuple[Path, ...], root: Path, options: dict[str, Any]) -> Iterator[Event]:
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(_subset_of(path), []).append(path)
    subsets = [_Subset(name, tuple(files)) for name, files in groups.items()]
    of_coco = all(_YEAR.fullmatch(subset.name) for subset in subsets)
    # Own data counts the pictures of each split from 0 or 1; COCO's ids are the same everywhere.
    prefixed = len(subsets) > 1 and not of_coco
    seen: dict[int, str] = {}
    for subset in subsets:
        layout = Layout()
        for path in subset.paths:
            layout.read(path)
        both = sorted(seen.keys() & layout.pictures.keys())
        if both and not prefixed:
            raise DataError(
                f"{len(both)} image ids are in {seen[both[0]]!r} and in {subset.name!r}: "
                f"{_few(both)}",
                try_="prepare them into two stores",
            )
        seen.update(dict.fromkeys(layout.pictures, subset.name))
        draft = partial(
            _draft,
            prefix=f"{subset.name or 'all'}/" if prefixed else "",
            place=_place(root, subset, layout),
            split=split_name(options["split"] or subset.split),
        )
        yield from layout.lost
        yield from layout.unattached()
        yield from layout.annotated({} if options["crowd"] else {1: "crowd"}, draft)


def _place(root: Path, subset: _Subset, layout: Layout) -> Place:
    """Where the pictures are: in a folder named as the subset, beside the annotations, ..."""
    name = subset.name
    folders = [name] if name else []
    for entry in list(layout.pictures.values())[:1]:
        old = _OLD_NAME.fullmatch(entry.name)
        folders += [old[1]] if old else []
        folders += (entry.coco_url or "").split("/")[-2:-1]
    folders += [f"images/{name}", f"{name}/images"] if name else []
    folders += [*_beside(root, subset), "", "images", "data"]
    unique = dict.fromkeys(f"{folder}/" if folder else "" for folder in folders)
    places = [Place(folder, flat) for flat in (False, True) for folder in unique]
    names = (entry.name for entry in layout.pictures.values())
    found = first_that_fits(root, names, places)
    return found or Place(f"{name}/" if name and (root / name).is_dir() else "")


def _beside(root: Path, subset: _Subset) -> list[str]:
    try:
        folder = subset.paths[0].parent.resolve().relative_to(root.resolve()).as_posix()
    except ValueError:  # the annotations are somewhere else
        return []
    return [] if folder == "." else [folder]


def _draft(id: int, entry: Entry, *, prefix: str, place: Place, split: str) -> Draft:
    of_coco = entry.coco_url is not None or coco_in(entry.name) == id
    return Draft(
        f"{prefix}{id}",
        (place.path(entry.name),),
        size=entry.size,
        split=split,
        same_as=(f"coco:{id}",) if of_coco else (),
    )


def _few(ids: list[int]) -> str:
    more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
    return ", ".join(str(id) for id in ids[:10]) + more


SOURCE = Source(
    "coco",
    "COCO captions and object boxes, and all that is annotated in its layout (CVAT, Roboflow, "
    "Label Studio)",
    (
        Option(
            "root", Path, "COCO folder (annotations/, train2017/, val2017/), or one annotation file"
        ),
        Option(
            "annotations",
            Path,
            "annotation file, instead of those found in ROOT",
            multiple=True,
        ),
        Option(
            "images",
            Path,
            "folder that the pictures' names start from (default: ROOT, or where the file is)",
        ),
        Option("split", str, "split of all records (default: from the file name)"),
        Option("crowd", bool, "keep boxes around many objects (iscrowd)", True),
    ),
    plan,
    PAPER,
    rules_for="COCO's own files",
)

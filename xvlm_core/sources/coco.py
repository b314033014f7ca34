"""COCO and everything in its annotation layout: captions, and boxes with category names.

Boxes are ``xywh`` pixels in the files. Pictures are found as ``ROOT/train2017/000000000009.jpg``
(a folder named as the annotation file's last part) or as ``ROOT/file_name``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from xvlm_core.data.images import PictureError
from xvlm_core.data.records import Record, Region
from xvlm_core.data.store import StoreWriter
from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.cleaning import Cleaner, Picture, PictureJob, check_pictures, corners
from xvlm_core.sources.registry import Progress
from xvlm_core.sources.strict_json import read_document, read_object

_SUBSET = re.compile(r"(?:^|[_-])((train|val|test)\d*)$")
_UNUSED = frozenset({"segmentation", "keypoints"})
_HELD_OUT = ("val", "test")


@dataclass
class _Image:
    """One entry of ``images``, with the annotations that name it."""

    id: int
    path: str
    size: tuple[int, int] | None
    captions: list[dict[str, Any]] = field(default_factory=list)
    boxes: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Subset:
    """The annotation files of one split (instances and captions), merged by image."""

    name: str
    split: str
    images: dict[int, _Image] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)


def image_root(options: dict[str, Any]) -> Path:
    """The folder that the pictures' paths start from.

    Raises:
        UsageError: neither ``root`` nor ``annotations`` and ``images`` are given.
        DataError: there is no such folder.
    """
    root: Path | None = options["images"] or options["root"]
    if root is None or (options["root"] is None and not options["annotations"]):
        raise UsageError(
            "where COCO is was not said",
            try_="xvlm prepare-data coco --root FOLDER, or --annotations FILE --images FOLDER",
        )
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", try_="--root FOLDER of COCO")
    return root


def convert(writer: StoreWriter, options: dict[str, Any], progress: Progress) -> None:
    """Read the annotation files and add one record a picture.

    Raises:
        DataError: a file is missing, damaged, or gives one id to different things.
    """
    root = image_root(options)
    excluded = read_ids(options["exclude_ids"]) if options["exclude_ids"] else frozenset()
    cleaner = Cleaner(writer.ledger, min_box_area=options["min_box_area"])
    groups: dict[str, list[Path]] = {}
    for path in _annotation_files(options):
        groups.setdefault(_subset_of(path), []).append(path)
    seen: dict[int, str] = {}
    for name, paths in groups.items():
        subset = _load(name, paths, root, options["split"], cleaner)
        both = sorted(seen.keys() & subset.images.keys())
        if both:
            raise DataError(
                f"{len(both)} image ids are in {seen[both[0]]!r} and in {name!r}: {_few(both)}",
                try_="prepare them into two stores",
            )
        seen.update(dict.fromkeys(subset.images, name))
        for record in _records(subset, root, excluded, cleaner, options, progress):
            writer.add(record)


def _annotation_files(options: dict[str, Any]) -> list[Path]:
    if options["annotations"]:
        return list(options["annotations"])
    folder: Path = options["root"] / "annotations"
    found = [
        path
        for path in sorted(folder.glob("*.json"))
        if path.name.startswith(("instances_", "captions_"))
    ]
    if not found:
        raise DataError(
            f"no instances_*.json or captions_*.json in {folder}",
            try_="unpack COCO's annotations there, or give --annotations FILE",
        )
    return found


def _subset_of(path: Path) -> str:
    """``train2017`` of ``instances_train2017.json``; empty if the name has no such part."""
    match = _SUBSET.search(path.stem)
    return match[1] if match else ""


def _load(name: str, paths: list[Path], root: Path, split: str | None, cleaner: Cleaner) -> _Subset:
    match = _SUBSET.search(name)
    subset = _Subset(name, split or (match[2] if match else "train"))
    folder = f"{name}/" if name and (root / name).is_dir() else ""
    for path in paths:
        content = read_object(path, without=_UNUSED)
        _check_layout(path, content)
        _merge_images(subset, path, content["images"], folder)
        _merge_categories(subset, path, content.get("categories", []))
        if subset.conflicts:
            raise DataError(
                f"{path} gives one id to different things: no box can be placed",
                details=subset.conflicts[:10],
            )
        for annotation in content["annotations"]:
            _attach(subset, path, annotation, cleaner)
    return subset


def _check_layout(path: Path, content: dict[str, Any]) -> None:
    problems = []
    for key in ("images", "annotations"):
        if key not in content:
            problems.append(f"the key {key} is missing")
        elif not isinstance(content[key], list):
            problems.append(f"{key} is no list")
    if not isinstance(content.get("categories", []), list):
        problems.append("categories is no list")
    if problems:
        raise DataError(f"{path} is not in the COCO layout: {' and '.join(problems)}")


def _merge_images(subset: _Subset, path: Path, entries: list[Any], folder: str) -> None:
    for number, entry in enumerate(entries):
        id, name = _named(entry, "file_name", f"{path}: images[{number}]")
        width, height = entry.get("width"), entry.get("height")
        size = (width, height) if _is_id(width) and _is_id(height) else None
        image = _Image(id, folder + name, size)
        known = subset.images.setdefault(id, image)
        if (known.path, known.size) != (image.path, image.size):
            subset.conflicts.append(f"image id {id}: {known.path} and {image.path}")


def _merge_categories(subset: _Subset, path: Path, entries: list[Any]) -> None:
    for number, entry in enumerate(entries):
        id, name = _named(entry, "name", f"{path}: categories[{number}]")
        known = subset.categories.setdefault(id, name)
        if known != name:
            subset.conflicts.append(f"category id {id}: {known!r} and {name!r}")


def _named(entry: Any, key: str, where: str) -> tuple[int, str]:
    id, name = (entry.get("id"), entry.get(key)) if isinstance(entry, dict) else (None, None)
    if not _is_id(id) or not isinstance(name, str):
        raise DataError(f"{where} has no id or no {key}")
    return id, name


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _few(ids: list[int]) -> str:
    more = f" and {len(ids) - 10} more" if len(ids) > 10 else ""
    return ", ".join(str(id) for id in ids[:10]) + more


def _attach(subset: _Subset, path: Path, annotation: Any, cleaner: Cleaner) -> None:
    """Give an annotation to its image, or drop it where it has none."""
    if not isinstance(annotation, dict):
        cleaner.lose("line", path.name, "annotation is not an object", annotation)
        return
    image_id = annotation.get("image_id")
    image = subset.images.get(image_id) if _is_id(image_id) else None
    is_caption = "caption" in annotation and "bbox" not in annotation
    if image is None:
        id = str(annotation.get("id"))
        cleaner.lose("caption" if is_caption else "region", id, "unknown image", image_id)
    elif is_caption:
        image.captions.append(annotation)
    else:
        image.boxes.append(annotation)


def _records(
    subset: _Subset,
    root: Path,
    excluded: frozenset[int],
    cleaner: Cleaner,
    options: dict[str, Any],
    progress: Progress,
) -> Iterator[Record]:
    images = list(subset.images.values())
    wanted = [image for image in images if image.id not in excluded]
    for image in images:
        if image.id in excluded:
            _lose_picture(image, "excluded", None, cleaner)
    jobs = (PictureJob(image.path, image.size) for image in wanted)
    checked = check_pictures(root, jobs, decode=options["decode"])
    for done, (image, picture) in enumerate(zip(wanted, checked, strict=True), 1):
        if isinstance(picture, PictureError):
            _lose_picture(image, picture.reason, picture.seen, cleaner)
        else:
            record = _record(subset, image, picture, cleaner, options["crowd"])
            if record is not None:
                yield record
        if done % 1000 == 0 or done == len(wanted):
            progress(done, len(wanted), f"pictures of {subset.name or 'COCO'}")


def _lose_picture(image: _Image, reason: str, seen: object, cleaner: Cleaner) -> None:
    """Drop a picture and, each with its own line, all that was said about it."""
    cleaner.lose("picture", str(image.id), reason, seen)
    for caption in image.captions:
        cleaner.lose("caption", str(caption.get("id")), f"picture: {reason}")
    for box in image.boxes:
        cleaner.lose("region", str(box.get("id")), f"picture: {reason}")


def _record(
    subset: _Subset, image: _Image, picture: Picture, cleaner: Cleaner, crowd: bool
) -> Record | None:
    captions = [
        cleaner.text("caption", str(annotation.get("id")), annotation["caption"])
        for annotation in image.captions
    ]
    regions = [_region(subset, box, picture, cleaner, crowd) for box in image.boxes]
    kept_captions = tuple(text for text in captions if text is not None)
    kept_regions = tuple(region for region in regions if region is not None)
    if not kept_captions and not kept_regions:
        cleaner.lose("picture", str(image.id), "no text left")
        return None
    cleaner.ledger.read("picture")
    cleaner.ledger.keep("picture")
    return Record(
        id=str(image.id),
        images=(picture.path,),
        width=picture.width,
        height=picture.height,
        captions=kept_captions,
        regions=kept_regions,
        split=subset.split,
        source="coco",
    )


def _region(
    subset: _Subset, annotation: dict[str, Any], picture: Picture, cleaner: Cleaner, crowd: bool
) -> Region | None:
    id, category = str(annotation.get("id")), annotation.get("category_id")
    name = subset.categories.get(category) if _is_id(category) else None
    if name is None:
        cleaner.lose("region", id, "unknown category", category)
        return None
    if annotation.get("iscrowd") and not crowd:
        cleaner.lose("region", id, "crowd")
        return None
    seen = annotation.get("bbox")
    box_xyxy_px = corners(seen, "xywh")
    return cleaner.region(id, name, box_xyxy_px, picture, "object", seen=seen)


def read_ids(path: Path) -> frozenset[int]:
    """Picture ids to leave out.

    Accepted: one id or file name a line (the digits before the extension count), a JSON list of
    ids, or a Karpathy split file, of which the ids of ``val`` and ``test`` are taken.

    Raises:
        DataError: missing, or something in it is no id.
    """
    if path.suffix == ".json":
        return _ids_of_json(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    ids = set()
    for number, line in enumerate(lines, 1):
        match = re.search(r"(\d+)(?:\.\w+)?$", line.strip())
        if match:
            ids.add(int(match[1]))
        elif line.strip():
            raise DataError(f"{path}, line {number}: no picture id in {line.strip()[:80]!r}")
    return frozenset(ids)


def _ids_of_json(path: Path) -> frozenset[int]:
    content = read_document(path)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        entries = [entry for entry in content["images"] if isinstance(entry, dict)]
        content = [e.get("cocoid") for e in entries if e.get("split") in _HELD_OUT]
    if not isinstance(content, list) or not all(_is_id(id) for id in content):
        raise DataError(
            f"{path} is neither a list of ids nor a Karpathy split file",
            try_="a text file with one id a line",
        )
    return frozenset(content)

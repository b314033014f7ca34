"""The layout of REFER: what its refs point to, and where the COCO pictures that they name are.

``refs(WHO).p`` is a list of refs, each of one thing in one picture, with the expressions that
people used for it; ``instances.json`` has the boxes, in the COCO layout. One data set may have
several refs files, which divide the pictures differently (``unc``, ``umd``, ``google``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.coco_layout import is_id
from xvlm_core.sources.folders import LOOKED_AT, first_that_fits
from xvlm_core.sources.identity import coco_in, flickr_photo, same_as
from xvlm_core.sources.plain_pickle import read_plain_pickle
from xvlm_core.sources.strict_json import iter_members

_REFS = re.compile(r"refs\((\w+)\)\.p")
_REF_NUMBER = re.compile(r"_\d+(\.\w+)$")
_NAME_2014 = re.compile(r"COCO_((?:train|val|test)\d{4})_(\d{12})\.jpg")
_FOLDERS = ("", "images/", "coco/", "images/coco/")
_STYLES = ("2014", "as written", "flat", "2017", "2017 flat")


class Problem(ValueError):
    """Why a ref cannot be used; ``reason`` is a short ledger word."""

    def __init__(self, reason: str, seen: object = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.seen = seen


@dataclass(frozen=True)
class Entry:
    """A picture as annotations state it.

    Attributes:
        name: its file name.
        size: stated width and height in pixels, if both are.
        flickr_url: where the photograph came from, if said.
    """

    name: str
    size: tuple[int, int] | None = None
    flickr_url: object = None

    @property
    def same_as(self) -> tuple[str, ...]:
        """Names of the photograph elsewhere."""
        return same_as(coco=coco_in(self.name), flickr=flickr_photo(self.flickr_url))


@dataclass(frozen=True)
class Target:
    """What a ref points to.

    Attributes:
        ref_id: its number in the refs file.
        ann_id: of the annotation that has the box.
        split: of all its expressions.
        picture: that the box is in.
        box_xywh_px: as found.
        category: name, if known.
    """

    ref_id: int
    ann_id: int
    split: str
    picture: Entry
    box_xywh_px: object
    category: str | None

    @property
    def meta(self) -> dict[str, Any]:
        """What the record keeps of it."""
        named = {} if self.category is None else {"category": self.category}
        return {"ref_id": self.ref_id, "ann_id": self.ann_id, **named}


def entry_of(name: str, member: dict[str, Any]) -> Entry:
    """A picture by its name and an object that may have ``width``, ``height``, ``flickr_url``."""
    width, height = member.get("width"), member.get("height")
    size = (width, height) if is_id(width) and is_id(height) else None
    return Entry(name, size, member.get("flickr_url"))


# ---------------------------------------------------------------------- refs and instances


def refs_file(root: Path, by: str | None) -> Path:
    """The refs file of a folder: the only one, or that of ``by``.

    Raises:
        DataError: there is none, or not that one.
        UsageError: there are several and ``by`` does not say which.
    """
    matches = {path: _REFS.fullmatch(path.name) for path in sorted(root.glob("refs(*).p"))}
    found = {match[1]: path for path, match in matches.items() if match}
    if not found:
        inside = sorted({path.parent for path in root.glob("*/refs(*).p")})
        raise DataError(
            f"no refs(unc).p, refs(umd).p or refs(google).p in {root}",
            try_=f"--root {inside[0]}" if inside else "--root FOLDER of one data set of REFER",
        )
    if by is None and len(found) > 1:
        raise UsageError(
            f"{root} has the splits of {', '.join(found)}: which one was not said",
            try_=" or ".join(f"--by {name}" for name in found),
        )
    if by is not None and by not in found:
        raise DataError(f"no refs({by}).p in {root}", try_=f"--by {next(iter(found))}")
    return found[by] if by is not None else next(iter(found.values()))


def instances_file(root: Path) -> Path:
    """The file of the boxes.

    Raises:
        DataError: it is not there.
    """
    path = root / "instances.json"
    if not path.is_file():
        raise DataError(f"no instances.json in {root}", try_="unpack it beside the refs(...).p")
    return path


def read_refs(path: Path) -> list[Any]:
    """The refs, unchecked; every one may be anything plain.

    Raises:
        DataError: the file is missing, damaged, no list, or asks for more than plain values.
    """
    refs = read_plain_pickle(path)
    if not isinstance(refs, list):
        raise DataError(f"{path} is no list of refs but a {type(refs).__name__}")
    size = path.stat().st_size
    spent = len(refs)
    for ref in refs:
        for sentence in sentences_of(ref):
            spent += 1
            if isinstance(sentence, dict):
                spent += sum(_length(sentence.get(key)) for key in ("sent", "raw"))
        if spent > 4 * size:  # parts that the pickle shares would multiply when written out
            raise DataError(f"{path} holds the same lists again and again: not read")
    return refs


def _length(text: object) -> int:
    return len(text) if isinstance(text, str) else 0


def sentences_of(ref: object) -> list[Any]:
    """The expressions of a ref; empty if it has none."""
    found = ref.get("sentences") if isinstance(ref, dict) else None
    return found if isinstance(found, list) else []


class Instances:
    """The wanted annotations of an ``instances.json``, and its pictures.

    Args:
        path: the file, read as a stream.
        ann_ids: which annotations are wanted; if none are, the file need not have any.

    Raises:
        DataError: it is missing, damaged or of another layout, or gives one id to two things.
    """

    def __init__(self, path: Path, ann_ids: Collection[int]) -> None:
        self.path = path
        self.pictures: dict[int, Entry] = {}
        self._boxes: dict[int, tuple[object, object, object]] = {}
        self._categories: dict[int, str] = {}
        arrays, seen = ("images", "annotations", "categories"), set()
        unused = frozenset({"segmentation"})
        for key, member in iter_members(path, arrays, without=unused):
            seen.add(key)
            id = member.get("id") if isinstance(member, dict) else None
            if not is_id(id):
                continue
            if key == "annotations":
                if id in ann_ids:
                    box = (member.get("image_id"), member.get("category_id"), member.get("bbox"))
                    self._once(self._boxes, id, box, "annotation")
            elif key == "images":
                if isinstance(member.get("file_name"), str):
                    self._once(self.pictures, id, entry_of(member["file_name"], member), "image")
            elif isinstance(member.get("name"), str):
                self._once(self._categories, id, member["name"], "category")
        missing = [key for key in arrays[: 2 if ann_ids else 1] if key not in seen]
        if missing:
            raise DataError(f"{path} has no {' and no '.join(missing)}")

    def _once(self, known: dict[int, Any], id: int, value: object, what: str) -> None:
        if known.setdefault(id, value) != value:
            raise DataError(f"{self.path} gives the {what} id {id} to two different things")

    def target(self, ref: object) -> Target:
        """What a ref points to.

        Raises:
            Problem: "not an object", "no id", "no split", "unknown annotation", "annotation of
                another picture" or "unknown image".
        """
        if not isinstance(ref, dict):
            raise Problem("not an object")
        ref_id, ann_id, split = ref.get("ref_id"), ref.get("ann_id"), ref.get("split")
        if not is_id(ref_id) or not is_id(ann_id):
            raise Problem("no id")
        if not isinstance(split, str) or not re.fullmatch(r"\w{1,40}", split, re.ASCII):
            raise Problem("no split")
        if ann_id not in self._boxes:
            raise Problem("unknown annotation", ann_id)
        image_id, category_id, box = self._boxes[ann_id]
        if is_id(ref.get("image_id")) and ref["image_id"] != image_id:
            raise Problem("annotation of another picture", f"{ref['image_id']}, not {image_id}")
        picture = self.pictures.get(image_id) if is_id(image_id) else None
        if picture is None:
            name = ref.get("file_name")
            if not isinstance(name, str) or len(name) > 255:
                raise Problem("unknown image", image_id)
            picture = Entry(without_ref_number(name))
        category = self._categories.get(category_id) if is_id(category_id) else None
        return Target(ref_id, ann_id, split, picture, box, category)


def without_ref_number(name: str) -> str:
    """``COCO_train2014_000000581857_16.jpg``, as refs write it, to the name of the picture."""
    return name if _NAME_2014.fullmatch(name) else _REF_NUMBER.sub(r"\1", name)


# ---------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Naming:
    """How the pictures of COCO are named under the image root.

    Attributes:
        root: the image root.
        folder: of all pictures, from the image root; ends in a slash or is empty.
        style: "2014" (``train2014/COCO_train2014_000000581857.jpg``), "as written", "flat" (the
            same without folders), "2017" (``train2017/000000581857.jpg``) or "2017 flat".
    """

    root: Path
    folder: str = ""
    style: str = "as written"

    def path(self, written: str) -> str:
        """Of a picture, from the image root.

        Args:
            written: its name in the annotations, with or without folders.
        """
        name = written.rsplit("/", 1)[-1]
        match = _NAME_2014.fullmatch(name)
        if self.style == "as written" or (match is None and self.style != "flat"):
            name = written
        elif self.style == "2014" and match:
            name = f"{match[1]}/{name}"
        elif self.style.startswith("2017") and match:
            name = f"{match[2]}.jpg"
            if self.style == "2017":  # 2017 divides the pictures differently
                in_val = (self.root / self.folder / "val2017" / name).is_file()
                name = f"{'val' if in_val else 'train'}2017/{name}"
        return self.folder + name


def find_naming(root: Path, names: Iterable[str]) -> Naming:
    """The naming by which one of the first pictures is there.

    Raises:
        DataError: none is; names what was tried.
    """
    looked_at = list(islice(dict.fromkeys(names), LOOKED_AT))
    namings = [Naming(root, folder, style) for folder in _FOLDERS for style in _STYLES]
    found = first_that_fits(root, looked_at, namings)
    if found is not None:
        return found
    if not looked_at:
        return namings[0]
    tried = dict.fromkeys(naming.path(looked_at[0]) for naming in namings if not naming.folder)
    raise DataError(
        f"none of the first {len(looked_at)} pictures is in {root}: no {', no '.join(tried)}",
        try_="--images FOLDER of COCO's pictures (the one that has train2014/)",
    )

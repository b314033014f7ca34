"""The COCO annotation layout, read into little memory: files of it have up to 25 million boxes.

One object with the lists ``images``, ``annotations`` and ``categories``, in any order. Files are
read as a stream; of each box, only its numbers are held.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from xvlm_core.errors import DataError
from xvlm_core.sources.drafts import Draft, Lost, Said, corners
from xvlm_core.sources.identity import flickr_photo, same_as
from xvlm_core.sources.strict_json import iter_batches

_KEYS = ("images", "annotations", "categories")
_UNUSED = frozenset({"segmentation", "keypoints"})
_NUMBERS = {int, float}
_INT64 = 1 << 62
_INT32 = 1 << 30


@dataclass(frozen=True)
class Entry:
    """A member of ``images``.

    Attributes:
        name: its ``file_name``.
        size: stated width and height, if both are whole numbers.
        flickr_url: where the photograph came from, if said.
        coco_url: where COCO has it, if said.
    """

    name: str
    size: tuple[int, int] | None
    flickr_url: str | None = None
    coco_url: str | None = None


@dataclass(frozen=True)
class Labels:
    """What the numbers of the annotations mean.

    Attributes:
        names: of the categories, by id.
        unwanted: reason to drop a box with one of the marks, by the mark's bit.
    """

    names: dict[int, str]
    unwanted: dict[int, str]


@dataclass(frozen=True)
class Annotated:
    """A picture with all that the files say about it; becomes a ``Draft`` where it is checked.

    Attributes:
        draft: the record, as yet without texts.
        labels: the meaning of the numbers.
        flickr_url: where the photograph came from, if said.
        captions: (annotation id, text) pairs.
        ids: of the boxes' annotations.
        categories: of the boxes.
        marks: bits of the boxes' marks.
        boxes_xywh_px: of the boxes.
        odd: annotations that do not fit into numbers, by place in the lists above.
    """

    draft: Draft
    labels: Labels
    flickr_url: str | None = None
    captions: Sequence[tuple[str, object]] = ()
    ids: Sequence[int] = ()
    categories: Sequence[int] = ()
    marks: Sequence[int] = ()
    boxes_xywh_px: Sequence[list[float]] = ()
    odd: dict[int, dict[str, Any]] = field(default_factory=dict)

    def expand(self) -> Iterator[Draft]:
        """The one draft."""
        said = [Said("caption", text, where) for where, text in self.captions]
        names, unwanted = self.labels.names, self.labels.unwanted
        rows = zip(self.ids, self.categories, self.marks, self.boxes_xywh_px, strict=True)
        for place, (id, category, marks, box) in enumerate(rows):
            if place in self.odd:
                said.append(self._odd(self.odd[place], marks))
                continue
            name = names.get(category)
            if name is None:
                said.append(_unknown(id, category))
                continue
            x, y, w, h = box
            problem = _unwanted(marks, unwanted)
            corner_box = [x, y, x + w, y + h]
            said.append(Said("region", name, str(id), corner_box, seen=box, problem=problem))
        photo = same_as(flickr=flickr_photo(self.flickr_url))
        yield replace(self.draft, said=tuple(said), same_as=(*self.draft.same_as, *photo))

    def _odd(self, annotation: dict[str, Any], marks: int) -> Said:
        id, category = annotation.get("id"), annotation.get("category_id")
        name = self.labels.names.get(category) if is_id(category) else None
        if name is None:
            return _unknown(id, category)
        seen = annotation.get("bbox")
        problem = _unwanted(marks, self.labels.unwanted)
        if problem is None and seen == []:  # tools write this for what has no box
            problem = "box has no area"
        return Said("region", name, str(id), corners(seen, "xywh"), seen=seen, problem=problem)


def _unknown(id: object, category: object) -> Said:
    return Said("region", None, str(id), seen=category, problem="unknown category")


def _unwanted(marks: int, unwanted: dict[int, str]) -> str | None:
    if not marks:
        return None
    return next((reason for bit, reason in unwanted.items() if marks & bit), None)


class Layout:
    """What files in the COCO layout say, merged by picture.

    Args:
        marks: keys of annotations that are 0 or 1; the first is bit 1, the second bit 2, ...
    """

    def __init__(self, marks: Sequence[str] = ("iscrowd",)) -> None:
        self.pictures: dict[int, Entry] = {}
        self.categories: dict[int, str] = {}
        self.lost: list[Lost] = []
        self._marks = [(key, 1 << bit) for bit, key in enumerate(marks)]
        self._captions: dict[int, list[tuple[str, object]]] = {}
        self._ids, self._images = array("q"), array("q")
        self._categories, self._bits = array("i"), array("B")
        self._boxes = array("d")
        self._odd: dict[int, dict[str, Any]] = {}

    def read(self, path: Path) -> None:
        """Add a file.

        Raises:
            DataError: it is missing, damaged or of another layout, or it gives one id to different
                things.
        """
        conflicts: list[str] = []
        seen: dict[str, int] = {}
        problems = []
        for key, members in iter_batches(path, _KEYS, without=_UNUSED):
            if members is None:
                problems.append(f"{key} is no list")
                members = []
            first = seen.setdefault(key, 0)
            seen[key] += len(members)
            if key == "images":
                self._add_pictures(path, members, first, conflicts)
            elif key == "categories":
                self._add_categories(path, members, first, conflicts)
            else:
                self._add_annotations(path, members, first)
        missing = [f"the key {key} is missing" for key in _KEYS[:2] if key not in seen]
        if missing or problems:
            raise DataError(f"{path} is not in the COCO layout: {' and '.join(missing + problems)}")
        if conflicts:
            raise DataError(
                f"{path} gives one id to different things: no box can be placed",
                details=conflicts[:10],
            )

    def _add_pictures(
        self, path: Path, members: list[Any], first: int, conflicts: list[str]
    ) -> None:
        for number, member in enumerate(members, first):
            reason = _picture_problem(member)
            if reason is not None:
                where = f"{path.name}: images[{number}]"
                self.lost.append(Lost("picture", where, reason, member))
                continue
            id, name = member["id"], member["file_name"]
            entry = Entry(
                name.replace("\\", "/"),
                _size(member.get("width"), member.get("height")),
                _text(member.get("flickr_url")),
                _text(member.get("coco_url")),
            )
            known = self.pictures.setdefault(id, entry)
            if (known.name, known.size) != (entry.name, entry.size):
                conflicts.append(f"image id {id}: {known.name} and {entry.name}")

    def _add_categories(
        self, path: Path, members: list[Any], first: int, conflicts: list[str]
    ) -> None:
        for number, member in enumerate(members, first):
            id, name = (
                (member.get("id"), member.get("name")) if isinstance(member, dict) else (None, None)
            )
            if not is_id(id) or not isinstance(name, str):
                raise DataError(f"{path}: categories[{number}] has no id or no name")
            known = self.categories.setdefault(id, name)
            if known != name:
                conflicts.append(f"category id {id}: {known!r} and {name!r}")

    def _add_annotations(self, path: Path, members: list[Any], first: int) -> None:
        ids, images, categories = self._ids, self._images, self._categories
        bits, boxes, keys = self._bits, self._boxes, self._marks
        for number, member in enumerate(members, first):
            if type(member) is not dict:
                where = f"{path.name}: annotations[{number}]"
                self.lost.append(Lost("line", where, "not an object", member))
                continue
            image = member.get("image_id")
            if not is_id(image):
                self.lost.append(_orphan(member, image))
                continue
            if "bbox" not in member and "caption" in member:
                caption = (str(member.get("id")), member["caption"])
                self._captions.setdefault(image, []).append(caption)
                continue
            mark = 0
            for key, bit in keys:
                if member.get(key):
                    mark |= bit
            box, id, category = member.get("bbox"), member.get("id"), member.get("category_id")
            if (
                is_id(id)
                and type(category) is int
                and -_INT32 < category < _INT32
                and type(box) is list
                and len(box) == 4
                and {*map(type, box)} <= _NUMBERS
            ):
                try:
                    boxes.fromlist(box)
                except OverflowError:  # an integer of hundreds of digits; nothing was added
                    self._add_odd(member)
                    id = category = 0
            else:
                self._add_odd(member)
                id = category = 0
            ids.append(id)
            categories.append(category)
            images.append(image)
            bits.append(mark)

    def _add_odd(self, member: dict[str, Any]) -> None:
        self._odd[len(self._ids)] = {key: member.get(key) for key in ("id", "category_id", "bbox")}
        self._boxes.extend((0.0, 0.0, 0.0, 0.0))

    def unattached(self) -> Iterator[Lost]:
        """Annotations of pictures that no file has, in file order."""
        import numpy as np

        for image, captions in self._captions.items():
            if image not in self.pictures:
                for where, _ in captions:
                    yield Lost("caption", where, "unknown image", image)
        known = np.fromiter(self.pictures, np.int64, len(self.pictures))
        images = np.asarray(self._images)
        for place in np.flatnonzero(~np.isin(images, known)).tolist():
            id = self._odd[place]["id"] if place in self._odd else self._ids[place]
            yield Lost("region", str(id), "unknown image", self._images[place])

    def annotated(
        self, unwanted: dict[int, str], draft: Callable[[int, Entry], Draft]
    ) -> Iterator[Annotated]:
        """Every picture with what is said about it, in the order of ``images``.

        Args:
            unwanted: see ``Labels``.
            draft: makes the record of a picture, as yet without texts, from its id and entry.
        """
        import numpy as np

        labels = Labels(self.categories, unwanted)
        images = np.asarray(self._images)
        order = np.argsort(images, kind="stable")
        wanted = np.fromiter(self.pictures, np.int64, len(self.pictures))
        starts = np.searchsorted(images, wanted, "left", order).tolist()
        ends = np.searchsorted(images, wanted, "right", order).tolist()
        ids = np.asarray(self._ids)
        categories = np.asarray(self._categories)
        bits = np.asarray(self._bits)
        boxes_xywh_px = np.asarray(self._boxes).reshape(-1, 4)
        for (id, entry), start, end in zip(self.pictures.items(), starts, ends, strict=True):
            captions = self._captions.get(id, ())
            if start == end:
                yield Annotated(draft(id, entry), labels, entry.flickr_url, captions)
                continue
            rows = order[start:end]
            odd = {}
            if self._odd:
                places = enumerate(rows.tolist())
                odd = {at: self._odd[row] for at, row in places if row in self._odd}
            yield Annotated(
                draft(id, entry),
                labels,
                entry.flickr_url,
                captions,
                ids[rows].tolist(),
                categories[rows].tolist(),
                bits[rows].tolist(),
                boxes_xywh_px[rows].tolist(),
                odd,
            )


def is_id(value: object) -> TypeGuard[int]:
    """Whether it is an integer of at most 62 bits (``True`` is none)."""
    return type(value) is int and -_INT64 < value < _INT64


def _picture_problem(member: object) -> str | None:
    if not isinstance(member, dict):
        return "not an object"
    if not is_id(member.get("id")):
        return "no id"
    return None if isinstance(member.get("file_name"), str) else "no image"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _size(width: object, height: object) -> tuple[int, int] | None:
    sides = [_whole(width), _whole(height)]
    return None if None in sides else (sides[0], sides[1])  # type: ignore[return-value]


def _whole(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if is_id(value) else None


def _orphan(annotation: dict[str, Any], image: object) -> Lost:
    is_caption = "caption" in annotation and "bbox" not in annotation
    item = "caption" if is_caption else "region"
    return Lost(item, str(annotation.get("id")), "unknown image", image)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Place:
    """How a picture's path follows from its name.

    Attributes:
        folder: from the image root, ends in a slash or is empty.
        flat: only the last part of the name counts.
    """

    folder: str = ""
    flat: bool = False

    def path(self, name: str) -> str:
        """From the image root."""
        return self.folder + (name.rsplit("/", 1)[-1] if self.flat else name)

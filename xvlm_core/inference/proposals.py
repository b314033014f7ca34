"""Boxes of a detector by picture: found again by the names that a picture has in another store."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from xvlm_core.data.boxes import box_problem
from xvlm_core.data.records import Box, Record
from xvlm_core.data.store import Store
from xvlm_core.errors import DataError
from xvlm_core.sources.identity import coco_in, names_in

Boxes = NDArray[np.float64]

_LINE = '{"image": "a.jpg", "boxes": [[x1, y1, x2, y2], ...]}'


@dataclass(frozen=True)
class Proposals:
    """What there is to choose from in a picture.

    Attributes:
        boxes_xyxy_px: as they were found, ``(K, 4)``; also those that are no box in the picture.
        missing: why there are none, if so: "no proposals", "several pictures of that name", or
            "proposals of another size".
    """

    boxes_xyxy_px: Boxes
    missing: str | None = None

    @classmethod
    def none(cls, reason: str) -> Proposals:
        """Nothing to choose from."""
        return cls(np.zeros((0, 4)), reason)


@dataclass(frozen=True)
class _Entry:
    boxes_xyxy_px: Boxes
    size: tuple[int, int] | None


class ProposalIndex:
    """Finds the proposals of a picture.

    A picture is known by the names of its photograph ("coco:391895", also where a file's name gives
    it away), by its path, or by its file's name alone where only one picture has that name.

    Make one with :meth:`of_stores` or :meth:`of_file`.

    Attributes:
        n_pictures: that there are proposals for.
    """

    def __init__(self) -> None:
        self.n_pictures = 0
        self._by_name: dict[str, list[_Entry]] = {}

    @classmethod
    def of_stores(cls, stores: Iterable[Store]) -> ProposalIndex:
        """The records of stores that have proposals, of whatever split."""
        index = cls()
        for store in stores:
            for number in range(len(store)):
                record = store[number]
                if record.proposals_xyxy_px:
                    size = (record.width, record.height)
                    boxes = np.array(record.proposals_xyxy_px, dtype=np.float64)
                    index._add(_names_of(record), _Entry(boxes, size))
        return index

    @classmethod
    def of_file(cls, path: Path) -> ProposalIndex:
        """JSON lines of a picture and its boxes (``xyxy``), or ``dets.json`` of the released code.

        The latter is one JSON object from COCO ids to lists of boxes, of which the first four
        numbers count (``xywh``).

        Raises:
            DataError: neither, or a line is malformed.
        """
        index = cls()
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"proposals cannot be read: {error}", where=str(path)) from error
        for names, boxes in _of_ids(text, path) if _is_object(text) else _of_lines(text, path):
            index._add(names, _Entry(boxes, None))
        if not index.n_pictures:
            raise DataError(f"no proposals in {path}", where=str(path), try_=_LINE)
        return index

    def of_record(self, record: Record) -> Proposals:
        """Those of a record's picture; boxes of a picture of another size are none of it."""
        return self._find(_names_of(record), (record.width, record.height))

    def of_picture(self, path: Path, width: int, height: int) -> Proposals:
        """Those of a file."""
        return self._find(_names(path.as_posix(), ()), (width, height))

    def _add(self, names: Sequence[str], entry: _Entry) -> None:
        self.n_pictures += 1
        for name in names:
            self._by_name.setdefault(name, []).append(entry)

    def _find(self, names: Sequence[str], size: tuple[int, int]) -> Proposals:
        reason = "no proposals"
        for name in names:
            found = self._by_name.get(name, [])
            fitting = [entry for entry in found if entry.size in (None, size)]
            if fitting and (len(found) == 1 or name != names[-1]):
                boxes = [entry.boxes_xyxy_px for entry in fitting]
                return Proposals(np.concatenate(boxes))
            if found:
                several = "several pictures of that name"
                reason = several if fitting else "proposals of another size"
        return Proposals.none(reason)


def usable(boxes_xyxy_px: Boxes, width: int, height: int) -> tuple[Box, ...]:
    """Boxes cut to the picture, without those of which nothing is left."""
    cut = np.nan_to_num(boxes_xyxy_px).clip(0, [width, height, width, height])
    rows = [(float(a), float(b), float(c), float(d)) for a, b, c, d in cut]
    return tuple(row for row in rows if box_problem(row, width, height) is None)


def _names_of(record: Record) -> list[str]:
    """Of a record's picture; in a packed store its file has lost its name, and the id stands in."""
    packed = "@" in record.image
    return _names(record.id if packed else record.image, record.same_as)


def _names(path: str, same_as: Sequence[str]) -> list[str]:
    """Names of a picture, the surest first, that of its file alone last."""
    return list(dict.fromkeys((*same_as, *names_in(path), f"path:{path}", f"file:{_last(path)}")))


def _last(path: str) -> str:
    return PurePosixPath(path).name


def _is_object(text: str) -> bool:
    """Whether it is one JSON object of ids, rather than JSON lines."""
    first = text.lstrip()[:200].replace(" ", "")
    return first.startswith("{") and not first.startswith(('{"image"', '{"boxes"', '{"width"'))


def _of_ids(text: str, path: Path) -> Iterator[tuple[list[str], Boxes]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}", where=str(path), try_=_LINE) from error
    for id, boxes in value.items():
        xywh = _numbers(boxes, f"{path}: {id}")
        corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
        number = coco_in(id)
        if id.isascii() and id.isdigit() and len(id) <= 12:
            number = int(id)
        yield ([f"coco:{number}"] if number is not None else [f"file:{_last(id)}"]), corners


def _of_lines(text: str, path: Path) -> Iterator[tuple[list[str], Boxes]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"not JSON: {error}", where=where, try_=_LINE) from error
        image = value.get("image") if isinstance(value, dict) else None
        if not isinstance(image, str) or not image:
            raise DataError("no image in the line", where=where, try_=_LINE)
        yield _names(image, ()), _numbers(value.get("boxes"), where)


def _numbers(boxes: object, where: str) -> Boxes:
    """The first four numbers of each box, ``(K, 4)``."""
    rows = []
    for box in boxes if isinstance(boxes, list) else [None]:
        four = box[:4] if isinstance(box, list) else []
        numbers = [v for v in four if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) != 4 or not np.isfinite(np.array(numbers, dtype=np.float64)).all():
            raise DataError(f"malformed boxes: {str(box)[:60]}", where=where, try_=_LINE)
        rows.append(numbers)
    return np.array(rows, dtype=np.float64).reshape(-1, 4)

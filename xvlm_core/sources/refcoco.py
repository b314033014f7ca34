"""Referring expressions: RefCOCO, RefCOCO+ and RefCOCOg. Every expression is a record of its own.

Read from the files of REFER (``refs(unc).p`` and ``instances.json``), or from one of these JSON
files, which are told apart by what they hold:

- MDETR (``finetune_refcoco+_train.json``): COCO layout, an image with ``caption`` an expression;
- the released code of X-VLM (``refcoco+_train.json``): a list of ``image``, ``text``, ``ref_id``;
  boxes and splits are those of REFER;
- VLUE (``refcoco+_vlue_test.json``): the same with ``bbox``, and ``dets``, boxes of a detector.

Boxes are ``xywh`` pixels in all of them. Pictures are those of COCO, named as in 2014 or 2017.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.base import Option, Plan, Rules, Source
from xvlm_core.sources.coco_layout import is_id
from xvlm_core.sources.drafts import Draft, Event, Lost, Said, corners
from xvlm_core.sources.folders import LOOKED_AT, asked_folders
from xvlm_core.sources.proposals import proposals
from xvlm_core.sources.refer import (
    Entry,
    Instances,
    Naming,
    Problem,
    Target,
    entry_of,
    find_naming,
    instances_file,
    read_refs,
    refs_file,
    sentences_of,
)
from xvlm_core.sources.strict_json import iter_array, iter_members

_SPLIT = re.compile(r"(?:^|[_-])(train|val|testA|testB|test)$")
_UNUSED = frozenset({"segmentation", "tokens_positive", "tokens_negative"})
_HELD = 5000
"""Expressions among which the names of the first pictures are looked for."""


@dataclass(frozen=True)
class _Expression:
    """A text and the thing it names, in whatever file they were.

    Attributes:
        id: of the record.
        text: as found.
        split: of the record.
        picture: that it is about.
        boxes_xywh_px: of the thing, as found: one (MDETR's layout could have more).
        meta: of the record.
        proposals_xywh_px: boxes of a detector, as found; anything but a list is malformed.
    """

    id: str
    text: object
    split: str
    picture: Entry
    boxes_xywh_px: tuple[object, ...]
    meta: dict[str, Any]
    proposals_xywh_px: object = ()

    def draft(self, naming: Naming) -> Draft:
        """The record, unchecked."""
        said = [
            Said("region", self.text, self.id, corners(box, "xywh"), seen=box, kind="phrase")
            for box in self.boxes_xywh_px
        ]
        return Draft(
            id=self.id,
            pictures=(naming.path(self.picture.name),),
            said=(*said, *self._proposals()),
            size=self.picture.size,
            split=self.split,
            same_as=self.picture.same_as,
            meta=self.meta,
        )

    def _proposals(self) -> tuple[Said, ...]:
        found = self.proposals_xywh_px
        if isinstance(found, list | tuple):
            return proposals(self.id, found, "xywh")
        return (Said("proposal", where=self.id, seen=found, problem="malformed boxes"),)


def plan(options: dict[str, Any]) -> Plan:
    """Find the files.

    Raises:
        UsageError: neither ``root`` nor ``annotations`` and ``images`` are given, or which refs
            file is meant is unclear.
        DataError: a folder or file is missing, damaged, or holds something else.
    """
    annotations: tuple[Path, ...] = options["annotations"]
    root, images = asked_folders(
        options,
        "the expressions and the pictures are",
        usage="xvlm prepare-data refcoco --root FOLDER --images FOLDER of COCO's pictures",
    )
    if not annotations:
        if options["split"] is not None:
            raise UsageError(
                "--split is for files of --annotations; refs(...).p have their own splits",
                try_="leave --split out",
            )
        assert root is not None
        return _plan_refs(root, images, options)
    if options["text"] != "sent":
        raise UsageError(
            f"--text {options['text']}: only refs(...).p have more than one text an expression",
            try_="leave --text or --annotations out",
        )
    return _plan_json(root, images, options)


def _plan_refs(root: Path, images: Path, options: dict[str, Any]) -> Plan:
    path, instances_path = refs_file(root, options["by"]), instances_file(root)
    refs = read_refs(path)

    def events() -> Iterator[Event]:
        instances = Instances(instances_path, _ann_ids(refs))
        yield from _drafts(_of_refs(path, refs, instances, options["text"]), images)

    total = sum(len(sentences_of(ref)) for ref in refs)
    return Plan(events(), images, (path, instances_path), total, "expressions")


def _drafts(found: Iterator[_Expression | Lost], images: Path) -> Iterator[Event]:
    """Records of expressions; where the pictures are is seen from the first of them."""
    held: list[_Expression | Lost] = []
    names: dict[str, None] = {}
    for one in islice(found, _HELD):
        held.append(one)
        if isinstance(one, _Expression):
            names[one.picture.name] = None
        if len(names) >= LOOKED_AT:
            break
    naming = find_naming(images, names)
    for one in chain(held, found):
        yield one.draft(naming) if isinstance(one, _Expression) else one


def _ann_ids(refs: Iterable[Any]) -> set[int]:
    found = (ref.get("ann_id") for ref in refs if isinstance(ref, dict))
    return {id for id in found if is_id(id)}


def _of_refs(
    path: Path, refs: list[Any], instances: Instances, key: str
) -> Iterator[_Expression | Lost]:
    # What comes out of the pickle may be shared or endless: only single texts and numbers go on.
    for number, ref in enumerate(refs):
        sentences = sentences_of(ref)
        place = f"{path.name}: refs[{number}]"
        if not sentences:
            is_object = isinstance(ref, dict)
            yield Lost("region", place, "no text" if is_object else "not an object")
            continue
        try:
            target = instances.target(ref)
        except Problem as problem:
            for _ in sentences:
                yield Lost("region", place, problem.reason, problem.seen)
            continue
        for sentence in sentences:
            sent_id = sentence.get("sent_id") if isinstance(sentence, dict) else None
            if not is_id(sent_id):
                reason = "no id" if isinstance(sentence, dict) else "not an object"
                yield Lost("region", place, reason)
                continue
            text = sentence.get(key)
            yield _of_target(
                f"{target.ref_id}-{sent_id}",
                text if isinstance(text, str) else None,
                target,
                {"sent_id": sent_id},
            )


def _of_target(id: str, text: object, target: Target, more: dict[str, Any]) -> _Expression:
    meta = {**target.meta, **more}
    return _Expression(id, text, target.split, target.picture, (target.box_xywh_px,), meta)


# ---------------------------------------------------------------------- JSON files


def _plan_json(root: Path | None, images: Path, options: dict[str, Any]) -> Plan:
    paths: tuple[Path, ...] = options["annotations"]
    kinds = {path: _kind(path) for path in paths}
    of_released = [path for path, kind in kinds.items() if kind == "released"]
    refs, inputs = list[Any](), paths
    if of_released:
        if root is None:
            raise UsageError(
                f"{of_released[0]} has no boxes: they are in the folder of REFER",
                try_="--root FOLDER that has instances.json and refs(...).p",
            )
        refer = (refs_file(root, options["by"]), instances_file(root))
        refs, inputs = read_refs(refer[0]), (*paths, *refer)
    splits = {path: options["split"] or _split_of(path) for path in paths if kinds[path] == "mdetr"}

    def expressions() -> Iterator[_Expression | Lost]:
        targets = {}
        if of_released:
            refs_path, instances_path = inputs[-2:]
            targets = _targets(refs_path, refs, Instances(instances_path, _ann_ids(refs)))
        lists = _Lists(targets, options["split"])
        for path, kind in kinds.items():
            if kind == "mdetr":
                yield from _of_mdetr(path, splits[path])
            else:
                yield from lists.read(path)

    return Plan(_drafts(expressions(), images), images, inputs, unit="expressions")


def _kind(path: Path) -> str:
    """Of an annotation file: "mdetr", "vlue" or "released".

    Raises:
        UsageError: it is a refs file.
        DataError: it is none of them.
    """
    if path.suffix == ".p":
        raise UsageError(f"{path} is no JSON", try_=f"--root {path.parent}, without --annotations")
    try:
        with open(path, "rb") as file:
            start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    if start == b"{":
        members = iter_members(path, ("images",), without=_UNUSED)
        for _, first in members:
            if isinstance(first, dict) and "caption" in first:
                return "mdetr"
            break
        raise DataError(
            f"{path} has no images with a caption: it is no file of MDETR",
            try_="leave --annotations out to read refs(...).p and instances.json of ROOT; boxes of "
            f"a detector: xvlm prepare-data proposals --annotations {path}",
        )
    first = next(iter_array(path), None)
    keys = first.keys() if isinstance(first, dict) else set()
    if not {"image", "text", "ref_id"} <= keys:
        there = f"its first member has {', '.join(map(str, keys)) or 'no keys'}"
        raise DataError(
            f"{path} is no list of image, text and ref_id: {there}",
            try_="--annotations refcoco+_train.json",
        )
    return "vlue" if "bbox" in keys else "released"


def _split_of(path: Path) -> str:
    match = _SPLIT.search(path.stem)
    if match is None:
        raise UsageError(
            f"the name of {path} does not tell its split", try_="--split train (or val, testA ...)"
        )
    return match[1]


def _of_mdetr(path: Path, split: str) -> Iterator[_Expression | Lost]:
    images: dict[int, dict[str, Any]] = {}
    boxes: dict[int, list[dict[str, Any]]] = {}
    categories: dict[object, str] = {}
    arrays = ("images", "annotations", "categories")
    for key, member in iter_members(path, arrays, without=_UNUSED):
        if not isinstance(member, dict):
            yield Lost("line", f"{path.name}: {key}", "not an object", member)
            continue
        id = member.get("image_id" if key == "annotations" else "id")
        if not is_id(id):
            yield Lost("line", f"{path.name}: {key}", "no id", member)
        elif key == "images":
            if images.setdefault(id, member) != member:
                raise DataError(f"{path} gives the image id {id} to two different things")
        elif key == "annotations":
            boxes.setdefault(id, []).append(member)
        elif isinstance(member.get("name"), str):
            categories[id] = member["name"]
    for id in sorted(boxes.keys() - images.keys()):
        for box in boxes[id]:
            yield Lost("region", f"{path.name}: {box.get('id')}", "unknown image", id)
    for id, image in images.items():
        where, found = f"{split}-{id}", boxes.get(id, [])
        if not isinstance(image.get("file_name"), str):
            yield Lost("region", where, "no image", image)
        elif not found:
            yield Lost("region", where, "unknown annotation", image.get("caption"))
        else:
            entry = entry_of(image["file_name"], image)
            ann_id, category_id = found[0].get("original_id"), found[0].get("category_id")
            meta: dict[str, Any] = {"ann_id": ann_id} if is_id(ann_id) else {}
            if is_id(category_id) and category_id in categories:
                meta["category"] = categories[category_id]
            given = tuple(box.get("bbox") for box in found)
            yield _Expression(where, image.get("caption"), split, entry, given, meta)


def _targets(path: Path, refs: list[Any], instances: Instances) -> dict[int, Target | Problem]:
    targets: dict[int, Target | Problem] = {}
    for ref in refs:
        ref_id = ref.get("ref_id") if isinstance(ref, dict) else None
        if not is_id(ref_id):
            continue
        if ref_id in targets:
            raise DataError(f"{path} has the ref_id {ref_id} twice")
        try:
            targets[ref_id] = instances.target(ref)
        except Problem as problem:
            targets[ref_id] = problem
    return targets


class _Lists:
    """Lists of ``image``, ``text`` and ``ref_id``; expressions of a ref are counted over all."""

    def __init__(self, targets: dict[int, Target | Problem], split: str | None) -> None:
        self.targets, self.split = targets, split
        self.numbers: Counter[int] = Counter()

    def read(self, path: Path) -> Iterator[_Expression | Lost]:
        """The members of a file."""
        for number, member in enumerate(iter_array(path)):
            try:
                yield self._expression(member)
            except Problem as problem:
                yield Lost("region", f"{path.name}[{number}]", problem.reason, problem.seen)

    def _expression(self, member: Any) -> _Expression:
        if not isinstance(member, dict):
            raise Problem("not an object", member)
        name, ref_id = member.get("image"), member.get("ref_id")
        if not isinstance(name, str):
            raise Problem("no image", name)
        if not is_id(ref_id):
            raise Problem("no id", ref_id)
        id = f"{ref_id}-{self.numbers[ref_id]}"
        self.numbers[ref_id] += 1
        if "bbox" in member:
            return _Expression(
                id,
                member.get("text"),
                self.split or "test",
                entry_of(name, member),
                (member["bbox"],),
                {"ref_id": ref_id},
                member.get("dets", ()),
            )
        target = self.targets.get(ref_id, Problem("unknown ref", ref_id))
        if isinstance(target, Problem):
            raise Problem(target.reason, target.seen)
        if target.picture.name.rsplit("/", 1)[-1] != name.rsplit("/", 1)[-1]:
            raise Problem("annotation of another picture", f"{target.picture.name}, not {name}")
        expression = _of_target(id, member.get("text"), target, {})
        return expression if self.split is None else replace(expression, split=self.split)


SOURCE = Source(
    "refcoco",
    "expressions with the box of what they name: RefCOCO, RefCOCO+, RefCOCOg",
    (
        Option("root", Path, "folder of one of them: instances.json and refs(unc).p or others"),
        Option("images", Path, "folder of COCO's pictures, train2014/ ... (default: ROOT)"),
        Option("by", str, "whose splits, if ROOT has several", choices=("unc", "umd", "google")),
        Option("text", str, "cleaned or as typed", "sent", choices=("sent", "raw")),
        Option(
            "annotations",
            Path,
            "JSON of MDETR, of the released code or of VLUE, instead of refs(...).p",
            multiple=True,
        ),
        Option("split", str, "split of all of --annotations (default: from file name or REFER)"),
    ),
    plan,
    # Boxes may pass the edge by a rounding; to drop them would change what is evaluated.
    Rules(invalid_boxes="half-px"),
)

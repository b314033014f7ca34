"""A folder of pictures, with what is said about each beside it, in a list, or in its folder's name.

Beside ``a.jpg`` may lie ``a.txt`` (a caption a line) and ``a.json`` (``caption`` or ``captions``,
``regions`` with ``text`` and ``box``, as in ``jsonl``). ``metadata.jsonl`` in any of the folders
is read as Hugging Face's ``imagefolder`` reads it: ``file_name``, a text, and ``objects`` with
``bbox`` (left, top, width, height) and ``categories``. With ``--labels-from folder`` the name of
the folder is a caption. With ``--classes`` the lines of ``a.txt`` are boxes as YOLO writes them:
number of the class, centre, width and height, in fractions. They may also be in ``labels/`` where
the pictures are in ``images/``; a picture without boxes is then a background picture, left out by
choice. ``training``, ``valid``, ``dev`` and the like are the splits train, val and test.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError
from xvlm_core.sources import yolo
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.drafts import Draft, Event, Kept, Lost, Said, corners
from xvlm_core.sources.lines import (
    BOX_OPTIONS,
    EMPTY_OPTION,
    KIND_OPTION,
    Form,
    LineProblem,
    find,
    has,
    one_spelling,
    open_lines,
    parse_line,
    whole_said,
)
from xvlm_core.sources.naming import PICTURE_SUFFIXES, split_name, usual_split

_COCO = "_annotations.coco.json"
_TEXT_KEYS = ("text", "caption", "captions")
_METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Reading:
    """How what lies beside a picture is read.

    Attributes:
        root: the folder.
        form: how boxes of JSON files are written.
        classes: names of the classes of YOLO files, by number; None: they are no such files.
        labels: the folder's name is a caption.
        splits: the first folder's name is a split.
        split: of all other pictures.
    """

    root: Path
    form: Form
    classes: tuple[str, ...] | None
    labels: bool
    splits: bool
    split: str


@dataclass(frozen=True)
class Beside:
    """A picture of which the files beside it are still to be read.

    Attributes:
        reading: how.
        path: of the picture, from the folder.
        listed: what ``metadata.jsonl`` says about it.
    """

    reading: Reading
    path: str
    listed: tuple[Said, ...] = ()

    def expand(self) -> Iterator[Draft | Lost | Kept]:
        """The picture with all that is said about it."""
        said = [*self.listed, *self._beside(), *self._label()]
        split, _ = self._folders()
        if not said and not self.reading.form.allow_empty:
            background = self.reading.classes is not None  # nothing is missing there
            yield Lost("picture", self.path, "no text left" if background else "no text")
            return
        yield Draft(
            id=self.path,
            pictures=(self.path,),
            said=tuple(said),
            split=split,
            keep_empty=self.reading.form.allow_empty,
        )

    def _folders(self) -> tuple[str, list[str]]:
        """The split, and the folders between it and the picture."""
        folders = self.path.split("/")[:-1]
        if self.reading.classes is not None:
            folders = [folder for folder in folders if folder != "images"]
        split = usual_split(folders[0]) if self.reading.splits and folders else None
        if split is not None:
            return split, folders[1:]
        return self.reading.split, folders

    def _label(self) -> Iterator[Said]:
        _, folders = self._folders()
        if self.reading.labels and folders:
            yield Said("caption", re.sub(r"[_-]+", " ", folders[-1]), self.path)

    def _read(self, name: str) -> bytes:
        """A file beside the picture; empty if there is none.

        Raises:
            LineProblem: "outside the image root", "unreadable" or "not UTF-8".
        """
        path = self.reading.root / name
        if not path.is_file():
            return b""
        if not _inside(path, self.reading.root):
            raise LineProblem("outside the image root", name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LineProblem("unreadable", name) from error
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise LineProblem("not UTF-8", name)
        return data.removeprefix(b"\xef\xbb\xbf")

    def _beside(self) -> Iterator[Said]:
        beside = Path(self.path).with_suffix("")
        texts = (f"{beside}.txt",) if self.reading.classes is None else yolo.label_files(self.path)
        for names, read in ((texts, self._text), ((f"{beside}.json",), self._json)):
            for name in names:
                try:
                    data = self._read(name)
                    if data.strip():
                        yield from read(name, data)
                        break
                except LineProblem as problem:
                    yield Said("caption", problem.seen, name, problem=problem.reason)

    def _text(self, name: str, data: bytes) -> Iterator[Said]:
        for number, raw in enumerate(data.splitlines(), 1):
            where = f"{name}:{number}"
            if not raw.strip():
                continue
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError:
                yield Said("caption", raw.decode("latin-1"), where, problem="not UTF-8")
                continue
            if self.reading.classes is not None:
                yield yolo.box_of_line(text, where, self.reading.classes)
            elif yolo.is_box(text):
                yield Said("caption", text, where, problem="numbers of a box (see --classes)")
            else:
                yield Said("caption", text, where)

    def _json(self, name: str, data: bytes) -> Iterator[Said]:
        value = parse_line(data)
        yield from _captions(value, name)
        yield from whole_said({**value, "captions": []}, self.reading.form, name)


def _inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _captions(value: dict[str, Any], where: str) -> Iterator[Said]:
    for key in _TEXT_KEYS:
        found = find(value, key) if has(value, key) else []
        for text in found if isinstance(found, list) else [found]:
            yield Said("caption", text, where)


def plan(options: dict[str, Any]) -> Plan:
    """List the pictures of the folder.

    Raises:
        DataError: there is no such folder, no picture in it, or a list is damaged.
    """
    root: Path = options["root"]
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", try_="xvlm prepare-data image-folder FOLDER")
    form = Form(
        box_format=options["box_format"],
        fraction=options["box_unit"] == "fraction",
        kind=options["kind"],
        allow_empty=options["allow_empty"],
    )
    found = _walk(root)
    _refuse_others(root, found, options)
    named = options["classes"] is not None
    is_yolo = named and any("images" in name.split("/")[:-1] for name in found.pictures)
    reading = Reading(
        root=root,
        form=form,
        classes=yolo.class_names(options["classes"]) if named else None,
        labels=options["labels_from"] == "folder",
        splits=(options["split_from"] or ("folder" if is_yolo else "none")) == "folder",
        split=split_name(options["split"]),
    )
    lines, listed = _listed(root, found.lists)
    inputs = [root, *(root / name for name in (*found.lists, *found.beside))]
    if options["classes"] is not None:
        inputs.append(options["classes"])

    def events() -> Iterator[Event]:
        yield from found.lost
        yield from lines
        for path in found.pictures:
            yield Beside(reading, path, tuple(listed.pop(path, ())))
        for path, said in listed.items():  # named by a list, but not there
            yield Draft(id=path, pictures=(path,), said=tuple(said), split=reading.split)

    return Plan(events(), image_root=root, inputs=tuple(inputs), total=len(found.pictures))


def _refuse_others(root: Path, found: _Found, options: dict[str, Any]) -> None:
    """Folders whose texts would not be found, or not be understood."""
    told = options["labels_from"] is not None or options["allow_empty"] or bool(found.lists)

    def has_texts() -> bool:
        pictures = {name.rpartition(".")[0] for name in found.pictures}
        return told or any(name.rpartition(".")[0] in pictures for name in found.beside)

    if found.coco and options["classes"] is None and not has_texts():
        folder = (root / found.coco[0]).parent
        raise DataError(
            f"nothing is said beside the pictures of {root}, but {found.coco[0]} is there",
            try_=f"xvlm prepare-data coco {root if folder.parent == root else folder}",
        )
    if not found.pictures:
        raise DataError(f"no picture in {root}", try_="xvlm prepare-data image-folder FOLDER")
    labels = root.resolve().parent / "labels"
    if root.resolve().name == "images" and labels.is_dir() and not has_texts():
        raise DataError(
            f"nothing is said beside the pictures of {root}, but {labels} is there",
            try_=f"xvlm prepare-data image-folder {labels.parent} --classes FILE",
        )
    if options["classes"] is None:
        files = [*(name for name in found.beside if name.endswith(".txt")), *found.yaml]
        yolo.refuse_unnamed(root, files, other_texts=has_texts)


_NOT_READ = frozenset(
    {".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".raw", ".cr2", ".dng", ".nef", ".svg"}
)
"""Suffixes of pictures in formats that are not read."""


@dataclass(frozen=True)
class _Found:
    """Paths from the root, sorted; hidden ones are not looked at.

    Attributes:
        pictures: by their suffix.
        lists: ``metadata.jsonl`` of any folder.
        beside: files that may lie beside a picture.
        yaml: what may name the classes of boxes.
        coco: annotations in the layout of COCO.
        lost: links that leave the root, pictures in formats that are not read.
    """

    pictures: list[str]
    lists: list[str]
    beside: list[str]
    yaml: list[str]
    coco: list[str]
    lost: list[Lost]


def _walk(root: Path) -> _Found:
    found = _Found(*([] for _ in range(6)))
    for folder, folders, files in os.walk(root, onerror=_unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        start = "" if Path(folder) == root else f"{Path(folder).relative_to(root).as_posix()}/"
        for name in folders:
            path = Path(folder) / name
            # A link to a folder inside adds nothing; its pictures are found where they are.
            if path.is_symlink() and not _inside(path, root):
                found.lost.append(Lost("picture", f"{start}{name}/", "outside the image root"))
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name == _METADATA and not _inside(Path(folder) / name, root):
                found.lost.append(Lost("line", start + name, "outside the image root"))
            elif name == _METADATA:
                found.lists.append(start + name)
            elif name == "metadata.csv":
                raise DataError(
                    f"{start}{name} in {root} is a table",
                    try_=f"xvlm prepare-data table {folder}/{name} --images {folder}",
                )
            elif Path(name).suffix.lower() in PICTURE_SUFFIXES:
                found.pictures.append(start + name)
            elif Path(name).suffix.lower() in _NOT_READ:
                found.lost.append(Lost("picture", start + name, "format not read"))
            elif name == _COCO:
                found.coco.append(start + name)
            elif Path(name).suffix in (".txt", ".json"):
                found.beside.append(start + name)
            elif Path(name).suffix in (".yaml", ".yml", ".names"):
                found.yaml.append(start + name)
    return found


def _unreadable(error: OSError) -> None:
    raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error


def _listed(root: Path, lists: list[str]) -> tuple[list[Lost | Kept], dict[str, list[Said]]]:
    """What the lists say, by picture."""
    events: list[Lost | Kept] = []
    said: dict[str, list[Said]] = {}
    for name in lists:
        folder = name[: -len(_METADATA)]
        with open_lines(root / name) as file:
            for number, raw in enumerate(file, 1):
                where = f"{name}:{number}"
                if not raw.strip():
                    continue
                try:
                    value = parse_line(raw)
                    if not isinstance(value.get("file_name"), str):
                        raise LineProblem("no image", value.get("file_name"))
                except LineProblem as problem:
                    events.append(Lost("line", where, problem.reason, str(problem.seen)[:80]))
                    continue
                events.append(Kept("line"))
                path = one_spelling(folder + value["file_name"])
                said.setdefault(path, []).extend(_of_metadata(value, where))
    return events, said


def _of_metadata(value: dict[str, Any], where: str) -> Iterator[Said]:
    yield from _captions(value, where)
    if "objects" not in value:
        return
    objects = value["objects"] if isinstance(value["objects"], dict) else {}
    boxes = objects.get("bbox")
    names = next((objects[key] for key in ("categories", "category") if key in objects), None)
    if not isinstance(boxes, list) or not isinstance(names, list) or len(boxes) != len(names):
        yield Said("region", value["objects"], where, problem="malformed objects")
        return
    for box, name in zip(boxes, names, strict=True):
        yield Said("region", name, where, box_xyxy=corners(box, "xywh"), seen=box)


SOURCE = Source(
    name="image-folder",
    help="a folder of pictures with texts beside them (a.txt, a.json, metadata.jsonl)",
    options=(
        Option("root", Path, "folder of pictures; folders inside are looked into", required=True),
        Option(
            "labels_from",
            str,
            "folder: the name of a picture's folder is its caption",
            choices=("folder",),
        ),
        Option(
            "split_from",
            str,
            "folder: the first folder is the split (train, valid, test and the like; default: "
            "folder for YOLO's images/train, else none)",
            choices=("folder", "none"),
        ),
        Option("split", str, "split of all other pictures", "train"),
        Option(
            "classes",
            Path,
            "class names, one a line, or YOLO's data.yaml: a.txt or labels/ has its boxes",
        ),
        EMPTY_OPTION,
        *BOX_OPTIONS,
        KIND_OPTION,
    ),
    plan=plan,
)

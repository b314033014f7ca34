"""The lists that the released X-VLM code reads, so that work done for it can go on here.

Pre-training: files of JSON lines, any number of them in a folder. A line has a picture (base64
under ``binary``, or a path under ``image_rpath``) and a ``caption``, a text or a list of them; or
``elems``, parts of the picture: ``{"caption": ..., "bb": [x, y, w, h], "attributes": ...}`` in
pixels. Files whose name has ``_SUCCESS`` are left aside, as there. Where the released code draws
one of several captions or attributes, all of them are kept: an attribute is put before its caption,
as a text of its own.

Fine-tuning: JSON arrays of ``{"image": ..., "caption": ...}`` for retrieval and captioning; the
texts of one picture become one record. Reference files (``*_gt.json``) are in COCO layout and are
left aside: the source ``coco`` reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.drafts import Draft, Event, Kept, Lost, Said
from xvlm_core.sources.identity import names_in
from xvlm_core.sources.official_records import Layout, OfficialLine, said_of
from xvlm_core.sources.strict_json import JsonProblem, iter_array, parse, refuse_encoding
from xvlm_core.sources.webdataset import common_folder

IMAGE_KEYS = ("binary", "image_rpath", "image")
CAPTION_KEYS = ("caption", "desc", "text")
MAX_LINE = 1 << 28
"""Bytes above which a line is refused; a picture in base64 is in it."""

_BOM = b"\xef\xbb\xbf"
_SAMPLE = 100
_LONGEST_PATH = 1024
_SPLIT = re.compile(r"(?:^|[_.-])(train|val|test)$")


def plan(options: dict[str, Any]) -> Plan:
    """Official lists to records.

    Raises:
        UsageError: some of the files hold their pictures and others name them.
        DataError: a file is missing or damaged, or has not the keys.
    """
    roots: tuple[Path, ...] = options["root"]
    files = [path for root in roots for path in _files(root)]
    layouts = {path: _layout(path, options) for path in dict.fromkeys(files)}
    inside = [path for path, layout in layouts.items() if layout.base64]
    if inside and len(inside) < len(layouts):
        other = next(path for path, layout in layouts.items() if not layout.base64)
        raise UsageError(
            f"{inside[0]} holds its pictures and {other} names them",
            try_="prepare them apart, into two stores",
        )
    images = None if inside else _image_root(options["images"], roots[0])
    folder = common_folder(list(layouts))
    events = (e for n, path in enumerate(layouts) for e in _events(path, n, folder, layouts[path]))
    return Plan(events, images, tuple(layouts))


def _image_root(images: Path | None, root: Path) -> Path:
    if images is None:
        return root if root.is_dir() else root.parent
    if not images.is_dir():
        raise DataError(f"there is no folder {images}", try_="--images FOLDER")
    return images


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root.absolute()]
    if not root.is_dir():
        raise DataError(f"there is no {root}", try_="name a file, or a folder of them")
    found = [
        path.absolute()
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and "_SUCCESS" not in path.name
        and not path.name.startswith((".", "_"))
        and not path.name.endswith("_gt.json")
    ]
    if not found:
        raise DataError(f"there is no file in {root}")
    return found


def _layout(path: Path, options: dict[str, Any]) -> Layout:
    """What the first records of a file show, where the options say nothing."""
    array, sample = _sample(path)
    best: dict[str, str | None] = {}
    for value in sample:
        regions = "elems" in value
        image_key = _key(value, options["image_key"], IMAGE_KEYS)
        caption_key = _key(value, options["caption_key"], CAPTION_KEYS)
        best = best or {"--image-key": image_key, "--caption-key": caption_key}
        if image_key is not None and (caption_key is not None or regions):
            match = _SPLIT.search(path.stem) if array else None
            image = value[image_key]
            long = isinstance(image, str) and len(image) > _LONGEST_PATH
            return Layout(
                image_key,
                caption_key or "caption",
                base64=image_key == "binary" or long,
                regions=regions,
                array=array,
                alternatives=options["alternatives"],
                attributes=options["attributes"],
                split=options["split"] or (match[1] if match else "train"),
            )
    if not sample:
        raise DataError(f"none of the first lines of {path} is a JSON object")
    flag = next((flag for flag, key in best.items() if key is None), "--image-key")
    wanted = options[flag[2:].replace("-", "_")]
    what = "a picture" if flag == "--image-key" else "a caption"
    raise DataError(
        f"{path} has no key {wanted!r}" if wanted else f"{path} has no key known to hold {what}",
        where=f"its keys: {', '.join(map(str, sample[0]))}",
        try_=f"{flag} KEY",
    )


def _key(value: dict[str, Any], given: str | None, known: tuple[str, ...]) -> str | None:
    return next((key for key in ((given,) if given else known) if key in value), None)


def _sample(path: Path) -> tuple[bool, list[dict[str, Any]]]:
    """Whether a file is an array, and some of its first objects."""
    found: list[dict[str, Any]] = []
    array: bool | None = None
    for _, offset, raw in _lines(path):
        if array is None:
            array = raw.lstrip().startswith(b"[")
            if array:
                break
        try:
            value = parse(raw.decode("utf-8"))
        except (UnicodeDecodeError, JsonProblem):
            value = None
        if isinstance(value, dict):
            found.append(value)
        if len(found) == _SAMPLE or offset > MAX_LINE:
            break
    if array is None:
        raise DataError(f"{path} is an empty file")
    if array:
        for value in iter_array(path):
            if isinstance(value, dict):
                found.append(value)
            if len(found) == _SAMPLE:
                break
    return array, found


def _events(path: Path, number: int, folder: Path, layout: Layout) -> Iterator[Event]:
    place = path.relative_to(folder).as_posix()
    if layout.array:
        yield from _array_events(path, place, layout)
        return
    for line, offset, raw in _lines(path):
        id = f"{place}:{line}"
        if len(raw) > MAX_LINE:
            yield Lost("line", id, "too large")
        else:
            name = f"{number:05d}-{line:09d}.jpg"
            yield OfficialLine(id, path, offset, len(raw), name, layout)


def _array_events(path: Path, place: str, layout: Layout) -> Iterator[Event]:
    """The members of an array, those of one picture together.

    All texts of the file are in memory: the largest there is has 0.6 million of them.
    """
    said: dict[str, list[Said]] = {}
    meta: dict[str, dict[str, Any]] = {}
    for number, value in enumerate(iter_array(path)):
        where = f"{place}[{number}]"
        if not isinstance(value, dict):
            yield Lost("line", where, "not an object", value)
            continue
        image = value.get(layout.image_key)
        if not isinstance(image, str) or not image:
            yield Lost("line", where, "no image", image)
            continue
        yield Kept("line")
        said.setdefault(image, []).extend(said_of(value, where, layout))
        if isinstance(value.get("image_id"), str | int):
            meta.setdefault(image, {"image_id": value["image_id"]})
    for image, texts in said.items():
        yield Draft(
            f"{place.removesuffix('.json')}/{image}",
            (image,),
            tuple(texts),
            split=layout.split,
            same_as=names_in(image),
            meta=meta.get(image, {}),
        )


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """(number, offset, line) of the lines that are not empty; one that is too long comes cut.

    Raises:
        DataError: the file cannot be read, or is UTF-16.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(4)
            refuse_encoding(path, start)
            offset = len(_BOM) if start.startswith(_BOM) else 0
            file.seek(offset)
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                if line.strip():
                    yield number, offset, line
                while not line.endswith(b"\n") and len(line) > MAX_LINE:
                    line = file.readline(MAX_LINE + 1)
                offset = file.tell()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


SOURCE = Source(
    "xvlm-official",
    "the JSON lines and lists that the released X-VLM code reads (pictures, captions, regions)",
    (
        Option("root", Path, "files, or folders of them", required=True, multiple=True),
        Option(
            "images",
            Path,
            "folder that the pictures' paths start from (default: the folder of the files)",
        ),
        Option(
            "image_key",
            str,
            "key of the picture: base64, or a path (default: binary, image_rpath or image)",
        ),
        Option("caption_key", str, "key of the text (default: caption, desc or text)"),
        Option("alternatives", bool, "keep all texts of a region that has several, not one", True),
        Option(
            "attributes", bool, "keep attributes of regions, each with its caption as a text", True
        ),
        Option("split", str, "split of the records (default: from the name of a list, or train)"),
    ),
    plan,
)

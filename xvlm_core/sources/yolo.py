"""Boxes as YOLO writes them: a text file a picture, a box a line, classes by their numbers.

The file lies beside the picture, or in ``labels`` where the picture is in ``images``
(``images/train/a.jpg`` and ``labels/train/a.txt``, ``train/images/a.jpg`` and
``train/labels/a.txt``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from xvlm_core.errors import DataError
from xvlm_core.sources.drafts import Said, corners
from xvlm_core.sources.lines import open_lines
from xvlm_core.sources.naming import SAVE_AS_UTF_8

_LINE = re.compile(r"\s*\d+(?:\s+-?\d*\.?\d+(?:[eE][-+]?\d+)?){4}\s*")
_NAMES = ("classes.txt", "data.yaml", "data.yml", "dataset.yaml", "obj.names")
"""Files that name the classes, as tools call them."""
_ODD_VALUES = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""From PyYAML, on a tag that its text does not fit."""
_LOOKED_AT = 100


def is_box(line: str) -> bool:
    """Whether it is the number of a class and the four numbers of a box."""
    return _LINE.fullmatch(line) is not None


def box_of_line(line: str, where: str, classes: Sequence[str]) -> Said:
    """A line as a named box in fractions, or why it is none."""
    if not is_box(line):
        return Said("region", line, where, problem="malformed region")
    first, *numbers = line.split()
    if int(first) >= len(classes):
        return Said("region", first, where, problem="unknown category")
    box_cxcywh = [float(number) for number in numbers]
    return Said(
        "region",
        classes[int(first)],
        where,
        box_xyxy=corners(box_cxcywh, "cxcywh"),
        fraction=True,
        seen=box_cxcywh,
    )


def label_files(picture: str) -> tuple[str, ...]:
    """Where the boxes of a picture may be, from the same folder as its path, most likely first."""
    beside = PurePosixPath(picture).with_suffix(".txt")
    parts = list(beside.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if not places:
        return (str(beside),)
    parts[places[-1]] = "labels"
    return str(beside), "/".join(parts)


def class_names(path: Path) -> tuple[str, ...]:
    """Names of the classes by number: a name a line, or ``names`` of a YAML file.

    Raises:
        DataError: the file cannot be read, is empty, or has no such names.
    """
    with open_lines(path) as file:
        try:
            text = file.read().decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not UTF-8 (byte {error.start})", try_=SAVE_AS_UTF_8
            ) from error
    if path.suffix in (".yaml", ".yml"):
        return _of_yaml(path, text)
    names = text.splitlines()
    while names and not names[-1].strip():
        names.pop()
    if not names:
        raise DataError(f"{path} is an empty file", try_="--classes FILE with a class name a line")
    return tuple(name.strip() for name in names)


def _of_yaml(path: Path, text: str) -> tuple[str, ...]:
    import yaml

    try:
        tree: Any = yaml.safe_load(text)
    except (yaml.YAMLError, *_ODD_VALUES) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not readable as YAML: {line}") from error
    found = tree.get("names") if isinstance(tree, dict) else None
    if isinstance(found, dict) and sorted(found, key=str) == sorted(range(len(found)), key=str):
        found = [found[number] for number in range(len(found))]
    if not isinstance(found, list) or not found or not all(isinstance(n, str) for n in found):
        raise DataError(
            f"{path} has no list of class names under 'names'",
            try_="--classes FILE with a class name a line",
        )
    return tuple(name.strip() for name in found)


def refuse_unnamed(root: Path, files: Sequence[str], *, other_texts: Callable[[], bool]) -> None:
    """Refuse a folder of boxes of which no one said what the numbers of the classes mean.

    Args:
        root: the folder.
        files: text and YAML files in it, from ``root``.
        other_texts: whether there is something else to read.

    Raises:
        DataError: naming a file with such boxes, or one with the names of classes.
    """
    naming = [name for name in files if PurePosixPath(name).name in _NAMES]
    texts = [name for name in files if name.endswith(".txt") and name not in naming]
    boxes = next((name for name in texts[:_LOOKED_AT] if _starts_with_box(root, name)), None)
    if boxes is None and (not naming or other_texts()):
        return
    at = root / naming[0] if naming else "FILE (a class name a line, or YOLO's data.yaml)"
    what = f"{boxes} has boxes" if boxes is not None else f"{naming[0]} names classes"
    raise DataError(
        f"{what} as YOLO writes them, and what the numbers of the classes mean was not said",
        where=str(root),
        try_=f"--classes {at}",
    )


def _starts_with_box(root: Path, name: str) -> bool:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        return False
    try:
        with open(path, "rb") as file:
            lines = file.read(4096).removeprefix(b"\xef\xbb\xbf").decode("latin-1").splitlines()
    except OSError:  # said when all are read
        return False
    first = next((line for line in lines if line.strip()), "")
    return is_box(first)

"""easy-VQA: 48,248 questions about 5,000 pictures of one shape, from the package ``easy-vqa``.

Small enough to train on in minutes: ``pip install easy-vqa`` is all that it takes. Nothing of the
package is imported: its files are read.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xvlm_core.errors import DataError, MissingToolError
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.coco_layout import is_id
from xvlm_core.sources.drafts import Draft, Event, Lost, Said
from xvlm_core.sources.strict_json import read_document

_SPLITS = ("train", "test")
_PACKAGE = "easy_vqa"


def plan(options: dict[str, Any]) -> Plan:
    """Find the files of the package.

    Raises:
        MissingToolError: the package is not installed, and no folder is given.
        DataError: there are no questions in the folder.
    """
    root: Path = options["root"] or _package_folder()
    folder = root if (root / "train").is_dir() else root / "data"
    paths = tuple(folder / split / "questions.json" for split in _SPLITS)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"there is no file {missing[0]}",
            try_="--root FOLDER with train/questions.json and test/questions.json, or "
            "pip install easy-vqa",
        )
    return Plan(_events(paths), folder, paths)


def _package_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingToolError(
            "the package easy-vqa is not installed",
            try_="pip install easy-vqa, or --root FOLDER of its data",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _events(paths: tuple[Path, ...]) -> Iterator[Event]:
    for path in paths:
        split = path.parent.name
        content = read_document(path)
        if not isinstance(content, list):
            raise DataError(f"{path} is not a list of questions but a {type(content).__name__}")
        questions: dict[int, list[Said]] = {
            int(picture.stem): []
            for picture in sorted(path.parent.glob("images/*.png"))
            if picture.stem.isascii() and picture.stem.isdigit()
        }
        for number, row in enumerate(content):
            where = f"{split}/questions.json: [{number}]"
            reason = _problem(row)
            if reason is not None:
                yield Lost("question", where, reason, row)
                continue
            text, answer, picture = row
            said = Said("question", text, where, answers=((answer, 1.0),), id=f"{split}-{number}")
            questions.setdefault(picture, []).append(said)
        for picture, asked in sorted(questions.items()):
            yield Draft(
                id=f"{split}/{picture}",
                pictures=(f"{split}/images/{picture}.png",),
                said=tuple(asked),
                split=split,
            )


def _problem(row: object) -> str | None:
    if not isinstance(row, list) or len(row) != 3:
        return "wrong number of columns"
    return None if is_id(row[2]) else "no image"


SOURCE = Source(
    "easy-vqa",
    "easy-VQA: questions about pictures of one shape (pip install easy-vqa)",
    (Option("root", Path, "folder of its data (default: that of the installed package)"),),
    plan,
)

"""What ``predict retrieval`` was given: a folder and texts, or pictures and texts. No torch."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xvlm_cli.inputs import RETRIEVED, Item, inputs_of, require_ours
from xvlm_cli.json_lines import URL, Line, from_stdin, require_text
from xvlm_cli.output import Output
from xvlm_core.errors import DataError, OutputError, UsageError

_EXAMPLE = 'xvlm predict retrieval pictures "a dog on the grass"'
_PICTURE_EXAMPLE = 'xvlm predict retrieval image.jpg "a dog" "a cat"'
_LINE = '{"image": "a.jpg", "texts": ["a dog", "a cat"]}'
_FOLDER_LINE = '{"texts": ["a dog", "a cat"]}'
_NAME_LENGTH = 40


@dataclass(frozen=True)
class Asked:
    """A collection and texts to look for in it, or pictures and the texts to choose from.

    Attributes:
        folder: the collection; None: ``items`` are asked about one by one.
        texts: to look for in the folder.
        items: pictures with their texts.
        where: the line of each text to look for that came in one.
    """

    folder: Path | None
    texts: tuple[str, ...]
    items: tuple[Item, ...]
    where: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class _Given:
    """What a line holds."""

    where: str
    image: Path | None
    texts: tuple[str, ...]


def read(words: Sequence[str], more_texts: Sequence[str], out: Output) -> Asked:
    """A folder is a collection: its pictures are ranked for each text. Of files, texts are ranked.

    ``-`` reads JSON lines from standard input: texts, and their picture unless there is a folder.

    Raises:
        UsageError: no folder and no picture, both, two folders, no text, an empty one, or a URL.
        DataError: a picture that is not there, or a line that is not read.
    """
    folders: dict[Path, None] = {}
    pictures: dict[Path, None] = {}
    texts: list[str] = []
    lines: list[_Given] = []
    for word in words:
        if word == "-":
            lines += [_given(line) for line in from_stdin(_LINE)]
        elif URL.match(word):
            raise UsageError(f"{word} is a URL; nothing is fetched", try_="save the pictures first")
        elif (folder := _folder(word)) is not None:
            folders[folder] = None
        elif (found := inputs_of(word, out)) is not None:
            pictures.update(dict.fromkeys(found))
        else:
            texts.append(word)
    texts += more_texts
    for text in texts:
        require_text(text, "text", None, _EXAMPLE)
    if folders:
        return _of_folder(list(folders), list(pictures), texts, lines)
    items = [Item(path, tuple(dict.fromkeys(texts))) for path in pictures]
    for line in lines:
        if line.image is None:
            raise DataError("no image in the line, and no folder", where=line.where, try_=_LINE)
        items.append(Item(line.image, line.texts, line.where))
    if not items:
        raise UsageError("no folder and no picture was given", try_=_EXAMPLE)
    if pictures and not texts:
        raise UsageError(
            "no text was given (a word that names a file counts as a picture)",
            try_=f'xvlm predict retrieval {next(iter(pictures))} "a dog" "a cat"',
        )
    if texts and not pictures:
        raise UsageError("texts belong into the lines of standard input", try_=_LINE)
    return Asked(None, (), tuple(items))


def _of_folder(
    folders: Sequence[Path],
    pictures: Sequence[Path],
    texts: Sequence[str],
    lines: Sequence[_Given],
) -> Asked:
    if len(folders) > 1:
        raise UsageError(
            f"one folder is searched at a time, not {len(folders)}: {folders[0]}, {folders[1]}",
            try_="a folder that holds both, or one call each",
        )
    if pictures:
        raise UsageError(
            f"{folders[0]} is a folder to be searched, {pictures[0]} is a picture: only one of "
            "them at a time (if it is meant as a text, --phrase)",
            try_=f"{_EXAMPLE}; or {_PICTURE_EXAMPLE}",
        )
    asked: dict[str, str | None] = dict.fromkeys(texts)
    for line in lines:
        if line.image is not None:
            raise UsageError(
                "an image in the line, and a folder to be searched",
                where=line.where,
                try_=_FOLDER_LINE,
            )
        for text in line.texts:
            asked.setdefault(text, line.where)
    if not asked:
        raise UsageError(
            "no text was given (a word that names a file or folder is no text)",
            try_=f'xvlm predict retrieval {folders[0]} "a dog on the grass"',
        )
    where = {text: line_of for text, line_of in asked.items() if line_of is not None}
    return Asked(folders[0], tuple(asked), (), where)


def _folder(word: str) -> Path | None:
    if not word.strip():
        return None
    path = Path(word)
    try:
        with contextlib.suppress(RuntimeError):  # no such user: a name that begins with ~
            path = path.expanduser()
        return path if path.is_dir() else None
    except (OSError, ValueError):  # too long for a name, or a null character: a text
        return None


def _given(line: Line) -> _Given:
    texts = tuple(dict.fromkeys(line.texts("texts", "text")))
    image = line.fields.get("image")
    if image is None:
        return _Given(line.where, None, texts)
    return _Given(line.where, line.picture(image, "the image of the line is no path"), texts)


def targets(
    names: Sequence[str], sources: Sequence[Path], output: Path | None, *, overwrite: bool
) -> list[Path]:
    """Where each drawing goes: ``NAME.retrieved.png`` here or in ``-o``, no name twice.

    Args:
        names: texts, or names of pictures without their ending.
        sources: pictures that are to be read.
        output: a folder, or one ``.png`` for one drawing.
        overwrite: files that xvlm did not write may be replaced.

    Raises:
        OutputError: a file is there that is not one of ours, or one ``.png`` for many drawings.
    """
    is_png = output is not None and output.suffix.lower() == ".png" and not output.is_dir()
    if output is not None and is_png:
        if len(names) > 1:
            raise OutputError(
                f"{output} is one file, and there are {len(names)} drawings", try_="-o FOLDER"
            )
        wanted = [output]
    elif output is not None and output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file", try_="-o FOLDER, or -o FILE.png")
    else:
        wanted = []
        taken: set[str] = set()
        for name in names:
            stem, number = _stem(name), 1
            file = f"{stem}{RETRIEVED}"
            while file.lower() in taken:  # also on disks that do not tell capitals apart
                number += 1
                file = f"{stem}-{number}{RETRIEVED}"
            taken.add(file.lower())
            wanted.append((output or Path()) / file)
    require_ours(wanted, sources, overwrite=overwrite)
    return wanted


def _stem(name: str) -> str:
    """A name for a file, of letters and digits."""
    return re.sub(r"[\W_]+", "-", name)[:_NAME_LENGTH].strip("-") or "text"

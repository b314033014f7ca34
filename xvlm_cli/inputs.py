"""What ``predict`` was given: pictures and phrases, and where the answers go. No torch."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xvlm_cli.json_lines import URL, Line, from_stdin, require_text
from xvlm_cli.output import Output
from xvlm_core.errors import DataError, OutputError, UsageError

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip
ANNOTATED = ".grounded.png"
EXPLAINED = ".explained.png"
JUDGED = ".judged.png"
RETRIEVED = ".retrieved.png"
OURS = (ANNOTATED, EXPLAINED, JUDGED, RETRIEVED)
MARK = "xvlm.predict/1"
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Asking:
    """What a task asks of a picture, for messages.

    Attributes:
        task: its name.
        noun: what one text is called; with an s, the key of a line.
        example: a good text.
    """

    task: str
    noun: str
    example: str

    @property
    def key(self) -> str:
        """Of the texts in a line."""
        return f"{self.noun}s"

    @property
    def line(self) -> str:
        """A good line of standard input."""
        return json.dumps({"image": "a.jpg", self.key: [self.example]})

    def command(self, picture: object = "image.jpg") -> str:
        """What to type."""
        return f'xvlm predict {self.task} {picture} "{self.example}"'


PHRASES = Asking("grounding", "phrase", "man wearing backpack")
QUESTIONS = Asking("vqa", "question", "what colour is the dog?")


@dataclass(frozen=True)
class Item:
    """A picture and what to look for in it.

    Attributes:
        path: of the picture.
        phrases: to look for.
        where: the line that named them; None: they were typed.
    """

    path: Path
    phrases: tuple[str, ...]
    where: str | None = field(default=None, compare=False)


def read(
    words: Sequence[str], more_phrases: Sequence[str], out: Output, asking: Asking = PHRASES
) -> list[Item]:
    """Pictures and phrases (or questions) from the words of the command line.

    A word that is a file, a folder or a pattern that matches files is an input; the others are
    phrases. ``-`` reads JSON lines from standard input.

    Raises:
        UsageError: no picture, no phrase, an empty phrase, or a URL.
        DataError: a picture that is not there, a folder without any, or a line that is not read.
    """
    pictures: list[Path] = []
    phrases: list[str] = []
    lines: list[Item] = []
    for word in words:
        if word == "-":
            lines += [_item(line, asking) for line in from_stdin(asking.line)]
        elif URL.match(word):
            raise UsageError(f"{word} is a URL; nothing is fetched", try_="save the picture first")
        elif (found := inputs_of(word, out, asking.noun)) is not None:
            pictures += found
        else:
            phrases.append(word)
    phrases += more_phrases
    for phrase in phrases:
        require_text(phrase, asking.noun, None, asking.command())
    if not pictures and not lines:
        raise UsageError("no picture was given", try_=asking.command())
    if pictures and not phrases:
        raise UsageError(
            f"no {asking.noun} was given (a word that names a file or folder counts as a picture)",
            try_=asking.command(pictures[0]),
        )
    if phrases and not pictures:
        raise UsageError(
            f"{asking.key} belong into the lines of standard input", try_=asking.command()
        )
    unique = dict.fromkeys(pictures)
    return [Item(path, tuple(phrases)) for path in unique] + lines


def inputs_of(word: str, out: Output, noun: str | None = "phrase") -> list[Path] | None:
    """The pictures that a word names; None where it is a phrase.

    Args:
        word: as typed.
        out: where annotated pictures that are left out are told.
        noun: what a text is called here, for messages; None: none can be asked.
    """
    meant = f"; if it is meant as a {noun}, --phrase" if noun else ""
    if not word.strip():
        return None
    path = Path(word)
    try:
        with contextlib.suppress(RuntimeError):  # no such user: a name that begins with ~
            path = path.expanduser()
        if path.is_file():
            return [path]
        if path.is_dir():
            return _in_folder(path, out, meant)
    except (OSError, ValueError):  # too long for a name, or a null character: a phrase
        return None
    is_picture_name = path.suffix.lower() in SUFFIXES
    if _GLOB.search(word):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        files = [file for file in found if file.is_file() and not file.name.endswith(OURS)]
        if files:
            return files
        if is_picture_name or ("*" in word and "/" in word):
            raise DataError(
                f"no file matches {word}",
                where=str(Path.cwd()),
                try_=f"ls {path.parent}{meant}",
            )
        return None
    if word.endswith("/"):
        raise DataError(
            f"folder {word} is not there",
            where=str(path.absolute()),
            try_=f"the path of a folder{meant}",
        )
    if is_picture_name:
        raise DataError(
            f"picture {word} is not there",
            where=str(path.absolute()),
            try_=f"the path of a picture{meant}",
        )
    return None


def _in_folder(folder: Path, out: Output, meant: str) -> list[Path]:
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES]
    pictures = [file for file in files if not file.name.endswith(OURS)]
    if len(files) > len(pictures):
        out.note(f"{folder}: {len(files) - len(pictures)} annotated pictures are left out")
    if not pictures:
        raise DataError(
            f"no picture in the folder {folder}",
            where=str(folder.absolute()),
            try_=f"another folder{meant}",
        )
    return pictures


def _item(line: Line, asking: Asking) -> Item:
    image = line.picture(line.fields.get("image"), "no image in the line")
    return Item(image, line.texts(asking.key, asking.noun), line.where)


def targets(
    items: Sequence[Item], output: Path | None, *, overwrite: bool, explain: bool = False
) -> list[Path]:
    """Where each annotated picture goes: ``NAME.grounded.png`` here or in ``-o``, no name twice.

    With ``explain`` there is room for ``explained_beside`` of each, too.

    Raises:
        OutputError: a file is there that is not one of ours, or one ``.png`` for many pictures.
    """
    is_png = output is not None and output.suffix.lower() == ".png"
    if output is not None and not is_png and output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file", try_="-o FOLDER, or -o FILE.png")
    if output is not None and is_png and not output.is_dir():
        if len(items) > 1:
            raise OutputError(
                f"{output} is one file, and there are {len(items)} pictures", try_="-o FOLDER"
            )
        wanted = [output]
    else:
        wanted = _names(items, output or Path())
    written = [*wanted, *(explained_beside(target) for target in wanted if explain)]
    require_ours(
        [*written, *(json_beside(target) for target in wanted)],
        [item.path for item in items],
        overwrite=overwrite,
    )
    return wanted


def require_ours(files: Sequence[Path], sources: Sequence[Path], *, overwrite: bool) -> None:
    """Nothing is written over what xvlm did not write, nor over what is to be read.

    Args:
        files: pictures and ``.json`` files that would be written.
        sources: pictures that are to be read.
        overwrite: files of others may be replaced, too.

    Raises:
        OutputError: a file is in the way.
    """
    for file in files:
        is_ours = _our_json if file.suffix == ".json" else _our_picture
        if file.is_dir() or (file.exists() and not overwrite and not is_ours(file)):
            raise OutputError(
                f"{file} is there already, and xvlm did not write it",
                where=str(file.absolute()),
                try_="-o FOLDER, or --overwrite",
            )
    # not Path.resolve: it raises where links go in a circle
    read = {os.path.realpath(source) for source in sources}
    clash = next((file for file in files if os.path.realpath(file) in read), None)
    if clash is not None:
        raise OutputError(f"{clash} is one of the pictures to be read", try_="-o FOLDER")


def json_beside(target: Path) -> Path:
    """``image.grounded.json`` for ``image.grounded.png``."""
    return target.with_suffix(".json")


def explained_beside(target: Path) -> Path:
    """``image.explained.png`` for ``image.grounded.png``, and ``x.explained.png`` for ``x.png``."""
    return target.with_name(target.name.removesuffix(ANNOTATED).removesuffix(".png") + EXPLAINED)


def _names(items: Sequence[Item], folder: Path) -> list[Path]:
    taken: set[str] = set()
    names = []
    for item in items:
        stem, number = item.path.stem, 1
        name = f"{stem}{ANNOTATED}"
        while name.lower() in taken:  # also on disks that do not tell capitals apart
            number += 1
            name = f"{stem}-{number}{ANNOTATED}"
        taken.add(name.lower())
        names.append(folder / name)
    return names


def _our_picture(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software") == "xvlm"
    except (OSError, ValueError, SyntaxError):
        return False


def _our_json(path: Path) -> bool:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("schema") == MARK

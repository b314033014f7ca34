"""What ``predict nlvr2`` was given: pairs of pictures with statements. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xvlm_cli.inputs import JUDGED, inputs_of, json_beside, require_ours
from xvlm_cli.json_lines import URL, Line, from_stdin, require_text
from xvlm_cli.output import Output
from xvlm_core.errors import OutputError, UsageError

_EXAMPLE = 'xvlm predict nlvr2 a.jpg b.jpg "both pictures contain a dog"'
_LINE = '{"images": ["a.jpg", "b.jpg"], "statements": ["both pictures contain a dog"]}'


@dataclass(frozen=True)
class Pair:
    """Two pictures and what may be true of them.

    Attributes:
        left, right: the pictures.
        statements: about both.
        where: the line that named them; None: they were typed.
    """

    left: Path
    right: Path
    statements: tuple[str, ...]
    where: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.left} {self.right}"


def read(words: Sequence[str], more_statements: Sequence[str], out: Output) -> list[Pair]:
    """Pairs and statements from the words of the command line.

    Two words (or a pattern, or a folder) name the pictures, the left one first; the others are
    statements. ``-`` reads JSON lines from standard input.

    Raises:
        UsageError: not two pictures, no statement, an empty one, or a URL.
        DataError: a picture that is not there, or a line that is not read.
    """
    pictures: list[Path] = []
    statements: list[str] = []
    pairs: list[Pair] = []
    for word in words:
        if word == "-":
            pairs += [_pair(line) for line in from_stdin(_LINE)]
        elif URL.match(word):
            raise UsageError(f"{word} is a URL; nothing is fetched", try_="save the picture first")
        elif (found := inputs_of(word, out)) is not None:
            pictures += found
        else:
            statements.append(word)
    statements += more_statements
    for statement in statements:
        require_text(statement, "statement", None, _EXAMPLE)
    if pairs and not pictures:
        if statements:
            raise UsageError("statements belong into the lines of standard input", try_=_LINE)
        return pairs
    if len(pictures) != 2:
        raise UsageError(
            f"a statement is about two pictures; {len(pictures) or 'none'} "
            f"{'was' if len(pictures) == 1 else 'were'} given",
            try_=f"{_EXAMPLE}; many pairs: {_LINE} a line, and - to read them",
        )
    if not statements:
        raise UsageError(
            "no statement was given (a word that names a file counts as a picture)",
            try_=f'xvlm predict nlvr2 {pictures[0]} {pictures[1]} "both pictures contain a dog"',
        )
    return [Pair(pictures[0], pictures[1], tuple(statements)), *pairs]


def targets(pairs: Sequence[Pair], output: Path | None, *, overwrite: bool) -> list[Path]:
    """Where each drawing goes: ``LEFT-RIGHT.judged.png`` here or in ``-o``, no name twice.

    Raises:
        OutputError: a file is there that is not one of ours, or one ``.png`` for many pairs.
    """
    is_png = output is not None and output.suffix.lower() == ".png"
    if output is not None and is_png and not output.is_dir():
        if len(pairs) > 1:
            raise OutputError(
                f"{output} is one file, and there are {len(pairs)} pairs", try_="-o FOLDER"
            )
        wanted = [output]
    elif output is not None and output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file", try_="-o FOLDER, or -o FILE.png")
    else:
        wanted = _names(pairs, output or Path())
    files = [*wanted, *(json_beside(target) for target in wanted)]
    sources = [path for pair in pairs for path in (pair.left, pair.right)]
    require_ours(files, sources, overwrite=overwrite)
    return wanted


def _names(pairs: Sequence[Pair], folder: Path) -> list[Path]:
    taken: set[str] = set()
    names = []
    for pair in pairs:
        stem, number = f"{pair.left.stem}-{pair.right.stem}", 1
        name = f"{stem}{JUDGED}"
        while name.lower() in taken:  # also on disks that do not tell capitals apart
            number += 1
            name = f"{stem}-{number}{JUDGED}"
        taken.add(name.lower())
        names.append(folder / name)
    return names


def _pair(line: Line) -> Pair:
    images = line.fields.get("images")
    if not isinstance(images, list) or len(images) != 2:
        raise line.lacks("no two images in the line")
    left, right = (line.picture(image, "an image of the line is no path") for image in images)
    return Pair(left, right, line.texts("statements", "statement"), line.where)

"""Your own pictures, described by JSON lines.

Two forms, also mixed. One text a line, lines of one picture being merged into one record, wherever
they stand::

    {"image": "a.jpg", "text": "a dog", "box": [10, 20, 110, 220]}
    {"image": "a.jpg", "text": "a dog runs on the beach"}

With a box the text names a part, without one it is a caption (``caption`` is another name of
``text``, and either may be a list). Other names of these keys can be given. Or whole records, as in
``data.records`` (``captions``, ``regions``, ``absent``, ``questions``, ``images`` and
``statement``), where ``width`` and ``height`` may be left out. Boxes are those of the picture as
shown (after EXIF orientation), unless ``width`` and ``height`` say that they are of the picture as
stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.drafts import Event, Lost
from xvlm_core.sources.lines import (
    BOX_OPTIONS,
    EMPTY_OPTION,
    KIND_OPTION,
    WHOLE,
    Form,
    Line,
    LineProblem,
    has,
    line_of,
    open_lines,
    parse_line,
)
from xvlm_core.sources.merging import Groups, Position, file_names
from xvlm_core.sources.naming import nearest

_LOOKED_AT = 100


@dataclass(frozen=True)
class JsonReader:
    """Reads lines of JSON files again.

    Attributes:
        paths: the files.
        names: what they are called in the ledger.
        form: how lines are written.
        split: of records that name none.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    form: Form
    split: str

    @property
    def allow_empty(self) -> bool:
        """Whether a picture without text is kept."""
        return self.form.allow_empty

    def read(self, file: IO[bytes], at: Position) -> Line:
        """The line that starts where the file stands."""
        return line_of(parse_line(file.readline()), self.form, f"{self.names[at.file]}:{at.line}")


def plan(options: dict[str, Any]) -> Plan:
    """Find the lines of each picture.

    Raises:
        UsageError: not four keys of a box.
        DataError: a file is missing or not UTF-8, or no line has a key that was named.
    """
    root: Path = options["images"]
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", try_="--images FOLDER")
    paths = tuple(options["annotations"])
    reader = JsonReader(paths, file_names(paths), _form(options), options["split"])
    groups, lost, keys = Groups(), list[Lost](), _Keys(reader, options)
    for number, path in enumerate(paths):
        with open_lines(path) as file:
            lost.extend(_scan(file, number, reader, groups, keys))
    keys.check()

    def events() -> Iterator[Event]:
        yield from lost
        yield from groups.events(reader)

    return Plan(events(), image_root=root, inputs=paths, total=len(groups))


def _scan(
    file: IO[bytes], number: int, reader: JsonReader, groups: Groups, keys: _Keys
) -> Iterator[Lost]:
    """Put the lines of a file to their groups; those that cannot be used come out."""
    offset = file.tell()
    for line_number, raw in enumerate(file, 1):
        start, offset = offset, offset + len(raw)
        if not raw.strip():
            continue
        where = f"{reader.names[number]}:{line_number}"
        try:
            value = parse_line(raw)
            keys.look(value)
            groups.add(line_of(value, reader.form, where), Position(number, line_number, start))
        except LineProblem as problem:
            yield Lost("line", where, problem.reason, str(problem.seen)[:80])


class _Keys:
    """Which keys there are, to say what to type when those looked for are not among them."""

    def __init__(self, reader: JsonReader, options: dict[str, Any]) -> None:
        form = reader.form
        wanted: dict[str, tuple[str, ...]] = {"image": (form.image_key,)}
        if options["text_key"] is not None or not form.allow_empty:
            wanted["text"] = form.text_keys
        if options["box_key"] is not None or options["box_keys"] is not None:
            wanted["box"] = form.box_keys
        if options["split_key"] is not None:
            wanted["split"] = (form.split_key,)
        if form.id_key is not None:
            wanted["id"] = (form.id_key,)
        self.names, self.wanted, self.missing = reader.names, wanted, set(wanted)
        self.others = {} if form.foreign else {"text": WHOLE, "image": {"images"}}
        self.there: dict[str, None] = {}
        self.objects = 0

    def look(self, value: dict[str, Any]) -> None:
        """Note what an object has of that which is looked for."""
        self.objects += 1
        if self.objects <= _LOOKED_AT:
            for key, inner in value.items():
                self.there[key] = None
                if isinstance(inner, dict):
                    self.there.update(dict.fromkeys(f"{key}.{name}" for name in inner))
        for meaning in tuple(self.missing):
            keys = (*self.wanted[meaning], *self.others.get(meaning, ()))
            if any(has(value, key) for key in keys):
                self.missing.remove(meaning)

    def check(self) -> None:
        """Refuse files of which no line has what is looked for.

        Raises:
            DataError: naming the keys that there are, and the option to type.
        """
        if not self.objects:
            return
        for meaning in (m for m in self.wanted if m in self.missing):
            keys = self.wanted[meaning]
            option = f"--{meaning}-key" + ("s" if len(keys) == 4 else "")
            key = ",".join(keys) if len(keys) == 4 else keys[0]
            raise DataError(
                f"no line of {', '.join(self.names)} has a key {key!r} ({meaning})",
                details=[f"keys there: {', '.join(self.there)}"],
                try_=f"{option} {nearest(meaning, key, self.there) or 'KEY'}",
            )


def _form(options: dict[str, Any]) -> Form:
    box_keys: tuple[str, ...] = (options["box_key"] or "box",)
    if options["box_keys"] is not None:
        box_keys = tuple(key.strip() for key in options["box_keys"].split(","))
        if len(box_keys) != 4 or not all(box_keys) or options["box_key"] is not None:
            raise UsageError(
                f"--box-keys {options['box_keys']!r} is not four keys",
                try_="--box-keys x1,y1,x2,y2 (or --box-key of one list)",
            )
    text = options["text_key"]
    foreign = text is not None or options["box_key"] is not None or options["box_keys"] is not None
    return Form(
        image_key=options["image_key"] or "image",
        text_keys=("text", "caption") if text is None else (text,),
        box_keys=box_keys,
        split_key=options["split_key"] or "split",
        id_key=options["id_key"],
        foreign=foreign,
        box_format=options["box_format"],
        fraction=options["box_unit"] == "fraction",
        kind=options["kind"],
        allow_empty=options["allow_empty"],
    )


SOURCE = Source(
    name="jsonl",
    help="your own pictures, described by JSON lines",
    options=(
        Option(
            "annotations",
            Path,
            'JSON lines, e.g. {"image": "a.jpg", "text": "a dog", "box": [1, 2, 30, 40]}',
            required=True,
            multiple=True,
        ),
        Option("images", Path, "folder that the pictures' names start from", required=True),
        *BOX_OPTIONS,
        KIND_OPTION,
        Option("split", str, "split of lines that name none", "train"),
        EMPTY_OPTION,
        Option("image_key", str, "key of the picture's path (default: image; a.b: b inside a)"),
        Option("text_key", str, "key of the text (default: text or caption)"),
        Option("box_key", str, "key of the box, a list of four numbers (default: box)"),
        Option("box_keys", str, "four keys with a number each instead, e.g. x1,y1,x2,y2"),
        Option("split_key", str, "key of the split (default: split)"),
        Option(
            "id_key", str, "key of an id: lines of one id are one record (default: of one picture)"
        ),
    ),
    plan=plan,
)

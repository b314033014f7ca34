"""Your own pictures, described by JSON lines.

Three forms, also mixed; lines of one picture are merged into one record, wherever they stand. One
text a line::

    {"image": "a.jpg", "text": "a dog", "box": [10, 20, 110, 220]}
    {"image": "a.jpg", "text": "a dog runs on the beach"}

With a box the text names a part, without one it is a caption (``caption`` is another name of
``text``, and either may be a list). Where a file has none of these keys, usual other names are
taken (``naming.USUAL``: ``file_name``, ``label``, ``bbox``, ...), and any can be given; which were
taken, and which not, stands in ``columns.json`` of the store. One question a line, with its answer
or what each of several people answered::

    {"image": "a.jpg", "question": "how many dogs?", "answer": "2"}
    {"image": "a.jpg", "question": "how many dogs?", "answers": ["2", "2", "two"], "id": "17"}

Or whole records, as in ``data.records`` (``captions``, ``regions``, ``absent``, ``questions``,
``images`` and ``statement``), where ``width`` and ``height`` may be left out. Boxes are those of
the picture as shown (after EXIF orientation), unless ``width`` and ``height`` say that they are of
the picture as stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from xvlm_core.errors import DataError
from xvlm_core.sources.base import Option, Plan, Source
from xvlm_core.sources.drafts import Event, Lost
from xvlm_core.sources.keys import UsedKeys, WantedKeys, find_form, first_objects
from xvlm_core.sources.lines import (
    BOX_UNIT_OPTION,
    EMPTY_OPTION,
    KINDS,
    Form,
    Line,
    LineProblem,
    box_format_option,
    line_of,
    open_lines,
    parse_line,
)
from xvlm_core.sources.merging import Groups, Position, file_names
from xvlm_core.sources.naming import split_name
from xvlm_core.sources.question_lines import as_record


@dataclass(frozen=True)
class JsonReader:
    """Reads lines of JSON files again.

    Attributes:
        paths: the files.
        names: what they are called in the ledger.
        forms: how lines of each are written.
        split: of records that name none.
        allow_empty: a picture without text is kept.
    """

    paths: tuple[Path, ...]
    names: tuple[str, ...]
    forms: tuple[Form, ...]
    split: str
    allow_empty: bool

    def read(self, file: IO[bytes], at: Position) -> Line:
        """The line that starts where the file stands."""
        where = f"{self.names[at.file]}:{at.line}"
        form = self.forms[at.file]
        return line_of(_object(file.readline(), form), form, where)


def _object(raw: bytes, form: Form) -> dict[str, Any]:
    value = parse_line(raw)
    return value if form.foreign else as_record(value)  # a key that was named stays what it is


def plan(options: dict[str, Any]) -> Plan:
    """Find the keys, and the lines of each picture.

    Raises:
        UsageError: not four keys of a box.
        DataError: a file is missing or not UTF-8, no line has a key that was named, or it is not
            clear which key is meant or what the numbers of a box are.
    """
    root: Path = options["images"]
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", try_="--images FOLDER")
    paths = tuple(options["annotations"])
    names = file_names(paths)
    groups, lost, wanted = Groups(), list[Lost](), WantedKeys(names, options)
    used: dict[str, UsedKeys] = {}
    for number, (path, name) in enumerate(zip(paths, names, strict=True)):
        with open_lines(path) as file:
            objects = list(map(as_record, first_objects(file)))
            used[name] = UsedKeys(find_form(str(path), objects, options))
            lost.extend(_scan(file, number, name, groups, wanted, used[name]))
    wanted.check()
    forms = tuple(used[name].form for name in names)
    split = split_name(options["split"])
    reader = JsonReader(paths, names, forms, split, options["allow_empty"])

    def events() -> Iterator[Event]:
        yield from lost
        yield from groups.events(reader)

    return Plan(
        events(), image_root=root, inputs=paths, total=len(groups), files=lambda: _chosen(used)
    )


def _chosen(used: dict[str, UsedKeys]) -> Mapping[str, bytes]:
    chosen = {name: keys.chosen() for name, keys in used.items()}
    return {"columns.json": (json.dumps(chosen, indent=1) + "\n").encode()}


def _scan(
    file: IO[bytes], number: int, name: str, groups: Groups, wanted: WantedKeys, used: UsedKeys
) -> Iterator[Lost]:
    """Put the lines of a file to their groups; those that cannot be used come out."""
    offset = file.tell()
    for line_number, raw in enumerate(file, 1):
        start, offset = offset, offset + len(raw)
        if not raw.strip():
            continue
        where = f"{name}:{line_number}"
        try:
            value = _object(raw, used.form)
            wanted.look(value, used.form)
            used.look(value)
            groups.add(line_of(value, used.form, where), Position(number, line_number, start))
        except LineProblem as problem:
            yield Lost("line", where, problem.reason, str(problem.seen)[:80])


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
        box_format_option("key"),
        BOX_UNIT_OPTION,
        Option(
            "kind",
            str,
            "what the texts with a box are (default: object for a label or class, else phrase)",
            choices=KINDS,
        ),
        Option("split", str, "split of lines that name none", "train"),
        EMPTY_OPTION,
        Option(
            "image_key",
            str,
            "key of the picture's path (default: image, or by its name; a.b: b in a)",
        ),
        Option("text_key", str, "key of the text (default: text or caption, or by its name)"),
        Option(
            "box_key", str, "key of the box, a list of four numbers (default: box, or by its name)"
        ),
        Option("box_keys", str, "four keys with a number each instead, e.g. x1,y1,x2,y2"),
        Option(
            "split_key",
            str,
            "key of the split (default: split); training, valid, dev, ... are train, val, test",
        ),
        Option(
            "id_key", str, "key of an id: lines of one id are one record (default: of one picture)"
        ),
    ),
    plan=plan,
)

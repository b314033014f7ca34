"""Which keys of JSON lines are the picture, the text, the box: by their names, or as told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice
from typing import IO, Any

from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.lines import WHOLE, Form, LineProblem, has, is_whole, parse_line
from xvlm_core.sources.naming import (
    LABELS,
    SAY_FORMAT,
    format_of,
    four_sides,
    is_doubtful_box,
    nearest,
    plain,
    recognised,
)

_LOOKED_AT = 100
_MOST_KEYS, _OTHERS = 100, "(others)"
"""Keys that are counted one by one: they may be different in every line."""
_OF_RECORDS = frozenset({"id", "kind", "width", "height", "meta", "source", "same_as"})
"""Keys that have a meaning in lines of any form."""


def first_objects(file: IO[bytes]) -> list[dict[str, Any]]:
    """The objects of the first lines; the file stands where it stood."""
    start = file.tell()
    found = []
    for raw in islice(file, _LOOKED_AT):
        try:
            found.append(parse_line(raw))
        except LineProblem:  # counted when all lines are read
            continue
    file.seek(start)
    return found


def find_form(name: str, objects: list[dict[str, Any]], options: dict[str, Any]) -> Form:
    """How the lines of a file are written.

    A key that is not told is the plain one (``image``, ``text`` or ``caption``, ``box``,
    ``split``), or where no line has that, what it is usually called.

    Args:
        name: of the file, for messages.
        objects: of its first lines.
        options: ``image_key``, ``text_key``, ``box_key``, ``box_keys``, ``split_key``, ``id_key``,
            ``box_format``, ``box_unit``, ``kind`` and ``allow_empty``.

    Raises:
        UsageError: not four keys of a box.
        DataError: several keys could be meant, or a box does not say what its numbers are; all of
            that is named at once.
    """
    search = _Search(objects)
    image_key = options["image_key"] or search.key("image", ("image", "images"))
    text = options["text_key"]
    text_keys = search.text() if text is None else (text,)
    box_keys, said = _box_keys(options), options["box_key"] or options["box_keys"]
    if said is None:
        box_keys = search.box()
    box_format = options["box_format"] or format_of(box_keys)
    if box_format is None and is_doubtful_box(box_keys):
        search.problems[f"what the four numbers of {box_keys[0]!r} are is not said"] = SAY_FORMAT
    form = Form(
        image_key=image_key,
        text_keys=text_keys,
        box_keys=box_keys,
        split_key=options["split_key"] or search.key("split", ("split",)),
        id_key=options["id_key"],
        foreign=text is not None or said is not None,
        box_format=box_format or "xyxy",
        fraction=options["box_unit"] == "fraction",
        kind=options["kind"] or ("object" if plain(text_keys[-1]) in LABELS else "phrase"),
        allow_empty=options["allow_empty"],
    )
    if search.problems:
        raise DataError(
            f"{name}: {'; '.join(search.problems)}",
            details=[f"keys there: {', '.join(search.there)}"],
            try_=" ".join(search.problems.values()),
        )
    return form


def _box_keys(options: dict[str, Any]) -> tuple[str, ...]:
    if options["box_keys"] is None:
        return (options["box_key"] or "box",)
    keys = tuple(key.strip() for key in options["box_keys"].split(","))
    if len(keys) != 4 or not all(keys) or options["box_key"] is not None:
        raise UsageError(
            f"--box-keys {options['box_keys']!r} is not four keys",
            try_="--box-keys x1,y1,x2,y2 (or --box-key of one list)",
        )
    return keys


class _Search:
    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.there = dict.fromkeys(key for value in objects for key in value)
        one_text = [value for value in objects if not WHOLE & value.keys()]
        self.of_texts = dict.fromkeys(key for value in one_text for key in value)
        self.problems: dict[str, str] = {}

    def key(self, what: str, plain_keys: tuple[str, ...]) -> str:
        """The one key of that meaning."""
        found = [] if self.there.keys() & set(plain_keys) else recognised(what, self.there)
        return self._only(what, found) or plain_keys[0]

    def text(self) -> tuple[str, ...]:
        """Keys of the text, in lines that are no whole records."""
        plain_keys = ("text", "caption")
        found = [] if self.of_texts.keys() & set(plain_keys) else recognised("text", self.of_texts)
        usual = self._only("text", found)
        return plain_keys if usual is None else (*plain_keys, usual)

    def box(self) -> tuple[str, ...]:
        """One key of a box, or four."""
        if "box" in self.of_texts:
            return ("box",)
        four = four_sides(self.of_texts)
        if four is not None:
            return four[0]
        return (self._only("box", recognised("box", self.of_texts)) or "box",)

    def _only(self, what: str, found: list[str]) -> str | None:
        if len(found) > 1:
            several = f"the {what} could be under several keys: {', '.join(found)}"
            self.problems[several] = f"--{what}-key {found[0]}"
        return found[0] if found else None


class UsedKeys:
    """Which keys of a file were used, and how often the others were there.

    Args:
        form: of its lines.
    """

    def __init__(self, form: Form) -> None:
        self.form = form
        both = _tops([form.image_key, form.split_key]) | _OF_RECORDS
        ids = [] if form.id_key is None else [form.id_key]
        self._of_whole = both | WHOLE
        self._of_one = both | _tops([*form.text_keys, *form.box_keys, *ids])
        self._seen: set[str] = set()
        self._unused: Counter[str] = Counter()
        self._whole = 0

    def look(self, value: dict[str, Any]) -> None:
        """Count the keys of a line."""
        whole = is_whole(value, self.form)
        used = self._of_whole if whole else self._of_one
        self._whole += whole and bool(WHOLE & value.keys())
        self._seen.update(value.keys() & used)
        for key in value.keys() - used:
            known = key in self._unused or len(self._unused) < _MOST_KEYS
            self._unused[key if known else _OTHERS] += 1

    def chosen(self) -> dict[str, object]:
        """The keys by what they are used for, and the number of lines of each that is not."""
        form = self.form
        single = {"image": form.image_key, "split": form.split_key, "id": form.id_key}
        found: dict[str, object] = {
            what: key for what, key in single.items() if key is not None and self._was_there(key)
        }
        texts = [key for key in form.text_keys if self._was_there(key)]
        if texts:
            found["text"] = texts[0] if len(texts) == 1 else texts
        if any(self._was_there(key) for key in form.box_keys):
            unit = "fraction" if form.fraction else "px"
            box = {"columns": [*form.box_keys], "format": form.box_format, "unit": unit}
            found["box"] = box
        if self._whole:
            found["whole_records"] = self._whole
        return {**found, "not_used": dict(sorted(self._unused.items()))}

    def _was_there(self, key: str) -> bool:
        return bool(_tops([key]) & self._seen)


def _tops(keys: Iterable[str]) -> frozenset[str]:
    """``a.b`` may be a key, or that of an object under ``a``."""
    return frozenset(part for key in keys for part in (key, key.split(".")[0]))


class WantedKeys:
    """Which keys there are, to say what to type when those looked for are not among them.

    Args:
        names: of the files.
        options: those of the source.
    """

    def __init__(self, names: tuple[str, ...], options: dict[str, Any]) -> None:
        meanings = ["image"]
        if options["text_key"] is not None or not options["allow_empty"]:
            meanings.append("text")
        if options["box_key"] is not None or options["box_keys"] is not None:
            meanings.append("box")
        meanings += [what for what in ("split", "id") if options[f"{what}_key"] is not None]
        self.names = names
        self.missing: dict[str, tuple[str, ...]] = dict.fromkeys(meanings, ("",))
        self.there: dict[str, None] = {}
        self.objects = 0

    def look(self, value: dict[str, Any], form: Form) -> None:
        """Note what an object has of that which is looked for."""
        self.objects += 1
        if self.objects <= _LOOKED_AT:
            for key, inner in value.items():
                self.there[key] = None
                if isinstance(inner, dict):
                    self.there.update(dict.fromkeys(f"{key}.{name}" for name in inner))
        for meaning in tuple(self.missing):
            keys = self.missing[meaning] = _keys_of(form, meaning)
            others = {} if form.foreign else {"text": WHOLE, "image": {"images"}}
            if any(has(value, key) for key in (*keys, *others.get(meaning, ()))):
                del self.missing[meaning]

    def check(self) -> None:
        """Refuse files of which no line has what is looked for.

        Raises:
            DataError: naming the keys that there are, and the options to type.
        """
        if not self.objects or not self.missing:
            return
        problems, words = [], []
        for meaning, keys in self.missing.items():
            option = f"--{meaning}-key" + ("s" if len(keys) == 4 else "")
            key = ",".join(keys) if len(keys) == 4 else keys[0]
            problems.append(f"{key!r} ({meaning})")
            words.append(f"{option} {nearest(meaning, key, self.there) or 'KEY'}")
        raise DataError(
            f"no line of {', '.join(self.names)} has a key {' or '.join(problems)}",
            details=[f"keys there: {', '.join(self.there)}"],
            try_=" ".join(words),
        )


def _keys_of(form: Form, meaning: str) -> tuple[str, ...]:
    if meaning == "text":
        return form.text_keys
    if meaning == "box":
        return form.box_keys
    key = {"image": form.image_key, "split": form.split_key, "id": form.id_key}[meaning]
    assert key is not None, meaning
    return (key,)

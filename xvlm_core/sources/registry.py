"""The sources that can be prepared, the options each takes, and the one function that does it.

Imports nothing heavy: the command line lists sources and options from here.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvlm_core.errors import DataError, UsageError

if TYPE_CHECKING:
    from xvlm_core.data.manifest import Manifest

Progress = Callable[[int, "int | None", str], None]
"""Called with (done, total or None, what is counted) as a source goes on."""


@dataclass(frozen=True)
class Option:
    """One option of a source.

    Attributes:
        name: Python name; the flag has dashes.
        type: ``str``, ``int``, ``float``, ``bool`` or ``Path``.
        help: one line.
        default: value when not given.
        required: must be given.
        multiple: may be given several times; the value is a tuple.
        choices: the only values allowed, if any.
        minimum: smallest number allowed, if any.
        maximum: largest number allowed, if any.
    """

    name: str
    type: type
    help: str
    default: Any = None
    required: bool = False
    multiple: bool = False
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    @property
    def flag(self) -> str:
        """As typed on the command line."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True)
class Source:
    """A kind of data that can be prepared.

    ``module`` has ``image_root(options) -> Path | None`` (None: the source writes the pictures
    into the store) and ``convert(writer, options, progress) -> None``.
    """

    name: str
    help: str
    module: str
    options: tuple[Option, ...]


_MIN_BOX_AREA = "drop boxes whose area is below this share of the picture"
_DECODE = "decode every picture in full, not only its header (slow)"

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "coco",
            "COCO captions and object boxes (instances_*.json, captions_*.json)",
            "xvlm_core.sources.coco",
            (
                Option("root", Path, "COCO folder: annotations/, train2017/, val2017/"),
                Option(
                    "annotations",
                    Path,
                    "annotation file, instead of those in ROOT/annotations",
                    multiple=True,
                ),
                Option("images", Path, "folder that file_name starts from (default: ROOT)"),
                Option("split", str, "split of all records (default: from the file name)"),
                Option("exclude_ids", Path, "file with picture ids to leave out"),
                Option("min_box_area", float, _MIN_BOX_AREA, 0.01, minimum=0),
                Option("crowd", bool, "keep boxes around many objects (iscrowd)", True),
                Option("decode", bool, _DECODE, False),
            ),
        ),
        Source(
            "jsonl",
            "your own pictures, described by JSON lines",
            "xvlm_core.sources.jsonl",
            (
                Option(
                    "annotations",
                    Path,
                    'JSON lines, e.g. {"image": "a.jpg", "text": "a dog", "box": [1, 2, 30, 40]}',
                    required=True,
                    multiple=True,
                ),
                Option("images", Path, "folder that the pictures' names start from", required=True),
                Option(
                    "box_format",
                    str,
                    "what the four numbers of a box are",
                    "xyxy",
                    choices=("xyxy", "xywh", "cxcywh"),
                ),
                Option(
                    "box_unit",
                    str,
                    "pixels, or fractions of width and height",
                    "px",
                    choices=("px", "fraction"),
                ),
                Option(
                    "kind",
                    str,
                    "what the texts with a box are",
                    "phrase",
                    choices=("object", "attribute", "region", "relation", "phrase"),
                ),
                Option("split", str, "split of lines that name none", "train"),
                Option("min_box_area", float, _MIN_BOX_AREA, 0.0, minimum=0),
                Option("decode", bool, _DECODE, False),
            ),
        ),
        Source(
            "world",
            "synthetic pictures of coloured shapes with exact texts and boxes",
            "xvlm_core.sources.world",
            (
                Option("train", int, "pictures of the split train", 1000, minimum=0),
                Option("val", int, "pictures of the split val", 200, minimum=0),
                Option("test", int, "pictures of the split test", 200, minimum=0),
                Option("unseen", int, "pictures with unseen combinations", 200, minimum=0),
                Option(
                    "pairs", int, "pairs with a statement, a split (at most half)", 0, minimum=0
                ),
                Option("seed", int, "another seed, another world", 0, minimum=0),
                Option(
                    "size", int, "side of the pictures in pixels", 128, minimum=16, maximum=4096
                ),
                Option("workers", int, "processes (default: all cores)", minimum=1),
            ),
        ),
    )
}


def find_source(name: str) -> Source:
    """The source of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, 1)
        raise UsageError(
            f"no source {name!r}; there are: {', '.join(SOURCES)}",
            try_=f"xvlm prepare-data {near[0] if near else next(iter(SOURCES))}",
        )
    return SOURCES[name]


def checked_options(source: Source, options: Mapping[str, object]) -> dict[str, Any]:
    """All options of a source, typed, defaults filled in. A value of None counts as not given.

    Raises:
        UsageError: naming all that is unknown, missing or not allowed.
    """
    known = {option.name: option for option in source.options}
    problems = [
        f"{source.name} has no option --{name.replace('_', '-')}"
        for name in options
        if name not in known
    ]
    values: dict[str, Any] = {}
    for option in source.options:
        given = options.get(option.name)
        if given is None or (option.multiple and given == ()):
            values[option.name] = () if option.multiple else option.default
            if option.required:
                problems.append(f"{option.flag} is missing ({option.help})")
            continue
        single = isinstance(given, str | Path) or not isinstance(given, Sequence)
        items = [given] if single else list(given)  # type: ignore[call-overload]
        try:
            typed = [_typed(option, item) for item in items]
        except ValueError as error:
            problems.append(str(error))
            continue
        if not option.multiple and not single:
            problems.append(f"{option.flag} takes one value")
            continue
        values[option.name] = tuple(typed) if option.multiple else typed[0]
    if problems:
        raise UsageError(
            problems[0],
            details=problems[1:],
            try_=f"xvlm prepare-data {source.name} --help",
        )
    return values


def _typed(option: Option, value: object) -> Any:
    wrong = f"{option.flag} {value!r} is not of type {option.type.__name__}"
    if option.type is bool:
        if not isinstance(value, bool):
            raise ValueError(wrong)
        return value
    if isinstance(value, bool):
        raise ValueError(wrong)
    try:
        typed = option.type(value)
    except (TypeError, ValueError) as error:
        raise ValueError(wrong) from error
    if option.choices and typed not in option.choices:
        raise ValueError(f"{option.flag} {typed!r} is none of {', '.join(option.choices)}")
    if isinstance(typed, float) and not math.isfinite(typed):
        raise ValueError(wrong)
    if option.minimum is not None and typed < option.minimum:
        raise ValueError(f"{option.flag} {typed} is below {option.minimum:g}")
    if option.maximum is not None and typed > option.maximum:
        raise ValueError(f"{option.flag} {typed} is above {option.maximum:g}")
    return typed


def prepare(
    source_name: str,
    output: Path,
    options: Mapping[str, object],
    *,
    command: str,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Convert a source to a store.

    Args:
        source_name: a key of ``SOURCES``.
        output: folder of the store.
        options: by Python name; missing ones take their defaults.
        command: what was typed; the manifest and error messages repeat it.
        progress: told how far it is.
        overwrite: replace a store that is there.

    Returns:
        The manifest, with the counts of all that was read, kept, dropped and repaired.

    Raises:
        UsageError: unknown source or options.
        OutputError: the folder is not empty or cannot be written.
        DataError: the input is missing or damaged, or nothing of it could be kept.
    """
    from xvlm_core.data.store import StoreWriter

    source = find_source(source_name)
    values = checked_options(source, options)
    module = importlib.import_module(source.module)
    root = module.image_root(values)
    writer = StoreWriter(
        output,
        image_root=output if root is None else root,
        source=source.name,
        command=command,
        overwrite=overwrite,
    )
    with writer:
        module.convert(writer, values, progress or _quiet)
        if writer.records == 0:
            raise DataError(
                f"nothing to keep in this {source.name} data",
                details=writer.ledger.summary()[:10],
                where=str(root) if root else None,
                try_=f"xvlm prepare-data {source.name} --help",
            )
    return writer.manifest


def _quiet(done: int, total: int | None, what: str) -> None:
    pass

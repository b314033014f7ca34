"""The sources that can be prepared, and the options that all of them take.

Imports nothing heavy: the command line lists sources and options from here.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xvlm_core.errors import UsageError
from xvlm_core.sources.base import Option, Rules, Source

_MODULES = (
    "coco",
    "karpathy",
    "visual_genome",
    "refcoco",
    "vqa",
    "nlvr2",
    "web_pairs",
    "objects365",
    "openimages",
    "xvlm_official",
    "image_folder",
    "table",
    "jsonl",
    "webdataset",
    "proposals",
    "easy_vqa",
    "world",
)


def _load(name: str) -> Source:
    source: Source = importlib.import_module(f"xvlm_core.sources.{name}").SOURCE
    return source


SOURCES: dict[str, Source] = {source.name: source for source in map(_load, _MODULES)}

COMMON = (
    Option(
        "exclude",
        str,
        "train on no picture of this list: a file of ids or names, a Karpathy split file, or a "
        "prepared store; their val and test, or PATH:split,split, or PATH:all",
        multiple=True,
    ),
    Option(
        "exclude_like",
        str,
        "train on nothing that looks like a picture of this prepared store (made with --phash)",
        multiple=True,
    ),
    Option(
        "same_photos",
        str,
        "COCO annotations or a prepared store that tell other names of the excluded photographs",
        multiple=True,
    ),
    Option(
        "invalid_boxes",
        str,
        "when a box is invalid: to the last digit, as integers, with half a pixel of tolerance, or "
        "never (cut to the picture)",
        choices=("strict", "int", "half-px", "clip"),
    ),
    Option(
        "min_box_area", float, "drop boxes below this share of the picture", minimum=0, maximum=1
    ),
    Option(
        "max_text_overlap",
        float,
        "drop a region text that overlaps more with an earlier one of its picture",
        minimum=0,
        maximum=1,
    ),
    Option(
        "text_overlap",
        str,
        "shared words over all words, or over those of the shorter text",
        choices=("jaccard", "shorter"),
    ),
    Option("decode", bool, "decode every picture in full, not only its header (slow)", False),
    Option("phash", bool, "keep a perceptual hash of every picture (slow)", False),
    Option("pack", bool, "put the pictures into tar shards with the records", False),
    Option("resize", int, "with --pack: reduce pictures to this longest side, pixels", minimum=16),
    Option("shard_records", int, "records a shard", minimum=1),
    Option("workers", int, "processes (default: all cores)", minimum=1),
    Option("engine", str, "who does the work", "local", choices=("local", "ray")),
    Option(
        "allow_damage",
        float,
        "share of the items that may be damaged or missing without exit code 4",
        0.0,
        minimum=0,
        maximum=1,
    ),
)
"""Options of every source."""

RUNNING = frozenset({"workers", "engine", "allow_damage"})
"""Options that change no byte of the store."""


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


def options_of(source: Source) -> tuple[Option, ...]:
    """Its own options and those of every source; the rules' help says what is on if not said."""
    rules, none = dataclasses.asdict(source.rules), dataclasses.asdict(Rules())
    common = []
    for option in COMMON:
        if option.name in rules:
            usual = f"{rules[option.name]}"
            if source.rules_for and rules[option.name] != none[option.name]:
                usual += f" for {source.rules_for}, else {none[option.name]}"
            option = dataclasses.replace(option, help=f"{option.help} (default: {usual})")
        common.append(option)
    return (*source.options, *common)


def checked_options(source: Source, options: Mapping[str, object]) -> dict[str, Any]:
    """All options of a source, typed, defaults filled in. A value of None counts as not given.

    Raises:
        UsageError: naming all that is unknown, missing or not allowed.
    """
    all_options = options_of(source)
    known = {option.name: option for option in all_options}
    problems = [
        f"{source.name} has no option --{name.replace('_', '-')}"
        for name in options
        if name not in known
    ]
    values: dict[str, Any] = {}
    for option in all_options:
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
        if option.type is Path and len({os.path.realpath(item) for item in typed}) < len(typed):
            problems.append(f"{option.flag} has the same file twice")
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

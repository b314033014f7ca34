"""What a source is: its name, its options, and a plan of what to read.

Imports nothing heavy: the command line lists sources and options from here. A source only says
what its files say (``drafts``); checking pictures, cleaning texts and boxes, counting and writing
are the same for all of them (``cleaning``, ``prepare``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xvlm_core.sources.drafts import Event

Progress = Callable[[int, "int | None", str], None]
"""Called with (done, total or None, what is counted) as a source goes on."""

InvalidBoxes = Literal["strict", "int", "half-px", "clip"]
TextOverlap = Literal["jaccard", "shorter"]


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
class Rules:
    """What is dropped although it is well-formed (paper, appendix A.1), in this order.

    Attributes:
        invalid_boxes: "strict": a box is dropped unless it has an area and lies in the picture, to
            the last digit; "int": the four numbers are first cut to integers, as the released
            loader does; "half-px": half a pixel of tolerance, then cut to the picture; "clip": any
            box is cut to the picture, and dropped if nothing is left.
        min_box_area: boxes below this share of the picture are dropped (paper: 0.01).
        max_text_overlap: a region text (of kind region or relation) is dropped if it overlaps by
            more than this with one of the same picture that was kept (paper: 0.75; 1: never).
        text_overlap: shared words over all words ("jaccard"), or over those of the shorter text.
    """

    invalid_boxes: InvalidBoxes = "strict"
    min_box_area: float = 0.0
    max_text_overlap: float = 1.0
    text_overlap: TextOverlap = "jaccard"


PAPER = Rules(min_box_area=0.01, max_text_overlap=0.75)
"""The rules of the paper."""


@dataclass(frozen=True)
class Plan:
    """What a source will read.

    Attributes:
        events: what the files say, in an order that never changes; read once, by one process.
        image_root: folder that the pictures' paths start from; None: they are all ``Embedded``.
        inputs: the files read. If one of them changes, begun work is not continued.
        total: number of drafts, if known.
        unit: what ``total`` counts.
        files: further files of the store (name: content), asked for after the last event.
        shard_records: drafts a shard where the option does not say it; None: the usual number.
        rules: that are on for this data if nothing is said; None: the source's.
    """

    events: Iterator[Event]
    image_root: Path | None
    inputs: tuple[Path, ...]
    total: int | None = None
    unit: str = "pictures"
    files: Callable[[], Mapping[str, bytes]] = dict
    shard_records: int | None = None
    rules: Rules | None = None


@dataclass(frozen=True)
class Source:
    """A kind of data that can be prepared.

    Attributes:
        name: as typed.
        help: one line.
        options: of its own; ``registry.COMMON`` has those of every source. The first that is a
            ``Path`` may be given without its flag.
        plan: typed options in, plan out; raises ``UsageError`` or ``DataError``. Files are opened
            when ``events`` is iterated or before, and damage of a whole file is a ``DataError``.
        rules: which of the cleaning rules are on if nothing is said.
        rules_for: the data that they are on for, where that is not all; its plan says so.
    """

    name: str
    help: str
    options: tuple[Option, ...]
    plan: Callable[[dict[str, Any]], Plan]
    rules: Rules = field(default_factory=Rules)
    rules_for: str = ""

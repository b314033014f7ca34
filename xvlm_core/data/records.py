"""The record: what the data says about one picture (or one pair of pictures).

Every source is converted to this schema, and everything after it reads nothing else. Boxes are
pixels of the picture after EXIF orientation, ``(x1, y1, x2, y2)``, floats, half-open.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

RegionKind = Literal["object", "attribute", "region", "relation", "phrase"]
REGION_KINDS: tuple[RegionKind, ...] = get_args(RegionKind)

SCHEMA_VERSION = 2

Box = tuple[float, float, float, float]


class RecordError(ValueError):
    """One reason why a JSON object is no record; ``reason`` is a short ledger word."""

    def __init__(self, reason: str, seen: object) -> None:
        super().__init__(f"{reason}: {seen!r}")
        self.reason = reason
        self.seen = seen


@dataclass(frozen=True)
class Region:
    """A text about a part of the picture."""

    text: str
    box_xyxy_px: Box
    kind: RegionKind = "object"


@dataclass(frozen=True)
class Answer:
    """One accepted answer of a question, with its weight in [0, 1]."""

    answer: str
    weight: float = 1.0


@dataclass(frozen=True)
class Question:
    """A question about the picture and its answers."""

    id: str
    question: str
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True)
class Statement:
    """A sentence about a pair of pictures: true, false, or unknown (``None``)."""

    text: str
    label: bool | None = None


@dataclass(frozen=True)
class Record:
    """One picture with its texts of every grain.

    Attributes:
        id: unique in the store.
        images: one path (two of a pair), relative to the image root of the store;
            ``a.tar@512+2048``: that many bytes of a tar file from that offset.
        width: pixels after EXIF orientation.
        height: the same.
        captions: texts of the whole picture.
        regions: texts of parts.
        absent: texts that are known not to be in the picture (verified negatives).
        questions: with their answers.
        proposals_xyxy_px: boxes of a detector, without texts.
        statement: about a pair.
        split: "train", "val", "test", ...
        source: where it comes from.
        same_as: names of the same photograph elsewhere ("coco:391895"; see ``sources.identity``).
        meta: whatever else the source knows.
    """

    id: str
    images: tuple[str, ...]
    width: int
    height: int
    captions: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    absent: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    proposals_xyxy_px: tuple[Box, ...] = ()
    statement: Statement | None = None
    split: str = "train"
    source: str = ""
    same_as: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def image(self) -> str:
        """Path of the (first) picture, relative to the image root."""
        return self.images[0]

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object; empty fields are left out."""
        out: dict[str, Any] = {"id": self.id}
        if len(self.images) == 1:
            out["image"] = self.images[0]
        else:
            out["images"] = list(self.images)
        out["width"], out["height"] = self.width, self.height
        if self.captions:
            out["captions"] = list(self.captions)
        if self.regions:
            out["regions"] = [
                {"text": r.text, "box_xyxy_px": list(r.box_xyxy_px), "kind": r.kind}
                for r in self.regions
            ]
        if self.absent:
            out["absent"] = list(self.absent)
        if self.questions:
            out["questions"] = [
                {
                    "id": q.id,
                    "question": q.question,
                    "answers": [{"answer": a.answer, "weight": a.weight} for a in q.answers],
                }
                for q in self.questions
            ]
        if self.proposals_xyxy_px:
            out["proposals_xyxy_px"] = [list(box) for box in self.proposals_xyxy_px]
        if self.statement is not None:
            out["statement"] = {"text": self.statement.text, "label": self.statement.label}
        out["split"], out["source"] = self.split, self.source
        if self.same_as:
            out["same_as"] = list(self.same_as)
        if self.meta:
            out["meta"] = self.meta
        return out

    def to_line(self) -> str:
        """The record as one JSON line (no newline), keys in schema order."""
        return json.dumps(self.to_json(), ensure_ascii=False, separators=(",", ":"))


def _texts(value: object, reason: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise RecordError(reason, value)
    return tuple(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _box(value: object) -> Box:
    if not isinstance(value, list) or len(value) != 4 or not all(_is_number(v) for v in value):
        raise RecordError("malformed box", value)
    try:
        x1, y1, x2, y2 = (float(v) for v in value)
    except OverflowError as error:  # an integer of hundreds of digits
        raise RecordError("box not finite", str(value)[:40]) from error
    if not all(math.isfinite(v) for v in (x1, y1, x2, y2)):
        raise RecordError("box not finite", value)
    return x1, y1, x2, y2


def _region(value: object) -> Region:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise RecordError("malformed region", value)
    kind = value.get("kind", "object")
    if kind not in REGION_KINDS:
        raise RecordError("unknown region kind", kind)
    return Region(value["text"], _box(value.get("box_xyxy_px")), kind)


def _question(value: object) -> Question:
    if not isinstance(value, dict) or not isinstance(value.get("question"), str):
        raise RecordError("malformed question", value)
    answers = value.get("answers", [])
    if not isinstance(answers, list) or not all(
        isinstance(a, dict)
        and isinstance(a.get("answer"), str)
        and _is_number(a.get("weight", 1.0))
        and 0 <= a.get("weight", 1.0) <= 1
        for a in answers
    ):
        raise RecordError("malformed answers", answers)
    return Question(
        str(value.get("id", "")),
        value["question"],
        tuple(Answer(a["answer"], float(a.get("weight", 1.0))) for a in answers),
    )


def record_from_json(value: object) -> Record:
    """Parse one JSON object of a store.

    Raises:
        RecordError: the object does not follow the schema; the reason says how.
    """
    if not isinstance(value, dict):
        raise RecordError("not an object", value)
    if not isinstance(value.get("id"), str) or not value["id"]:
        raise RecordError("missing id", value.get("id"))
    if "image" in value:
        images: tuple[str, ...] = (value["image"],)
    else:
        images = _texts(value.get("images"), "missing image")
    if not images or not all(isinstance(path, str) and path for path in images):
        raise RecordError("missing image", images)
    width: Any = value.get("width")
    height: Any = value.get("height")
    if not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in (width, height)):
        raise RecordError("malformed size", [width, height])
    statement = value.get("statement")
    if statement is not None:
        if not isinstance(statement, dict) or not isinstance(statement.get("text"), str):
            raise RecordError("malformed statement", statement)
        label = statement.get("label")
        if label is not None and not isinstance(label, bool):
            raise RecordError("malformed statement", statement)
        statement = Statement(statement["text"], label)
    regions, questions = value.get("regions", []), value.get("questions", [])
    if not isinstance(regions, list):
        raise RecordError("malformed region", regions)
    if not isinstance(questions, list):
        raise RecordError("malformed question", questions)
    proposals = value.get("proposals_xyxy_px", [])
    if not isinstance(proposals, list):
        raise RecordError("malformed box", proposals)
    meta = value.get("meta", {})
    return Record(
        id=value["id"],
        images=images,
        width=width,
        height=height,
        captions=_texts(value.get("captions", []), "malformed captions"),
        regions=tuple(_region(r) for r in regions),
        absent=_texts(value.get("absent", []), "malformed absent"),
        questions=tuple(_question(q) for q in questions),
        proposals_xyxy_px=tuple(_box(box) for box in proposals),
        statement=statement,
        split=str(value.get("split", "train")),
        source=str(value.get("source", "")),
        same_as=_texts(value.get("same_as", []), "malformed same_as"),
        meta=meta if isinstance(meta, dict) else {},
    )

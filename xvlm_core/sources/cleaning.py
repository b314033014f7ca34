"""What is kept of texts and boxes before they become records.

Rules (paper, appendix A.1; ``base.Rules``), in this order: a box is kept if its four numbers are
finite, it has an area, and no part of it is outside the picture (no tolerance); then, if it is not
too small; then, if something is left of its text after the cleaning that training does; then, for
texts of regions and relations, if it says something new about the picture. What is dropped by an
earlier rule never suppresses a good one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from xvlm_core.data.boxes import box_problem
from xvlm_core.data.images import PictureError
from xvlm_core.data.ledger import Item, Ledger
from xvlm_core.data.records import (
    REGION_KINDS,
    Answer,
    Box,
    Question,
    Record,
    Region,
    RegionKind,
    Statement,
)
from xvlm_core.data.text import pre_caption, sanitize, says_something
from xvlm_core.sources.advice import BELOW_A_PIXEL
from xvlm_core.sources.base import Rules
from xvlm_core.sources.drafts import Draft, Said, corners
from xvlm_core.sources.pictures import Picture, turn_box

_SLACK = 1e-6
"""Fractions may leave [0, 1] by this much: 0.1 + 0.2 + 0.7 is above 1 in floating point."""

_OVERLAPPING = ("region", "relation")
_ALL_WORDS = 1_000_000


class Cleaner:
    """Texts and boxes in, what may be kept out; all of it counted in the ledger.

    Args:
        ledger: of the store.
        rules: what is dropped although it is well-formed.
    """

    def __init__(self, ledger: Ledger, rules: Rules | None = None) -> None:
        self.ledger = ledger
        self.rules = Rules() if rules is None else rules

    def record(
        self, draft: Draft, found: Sequence[Picture | PictureError], source: str
    ) -> Record | None:
        """A draft and its pictures as a record, all counted.

        Args:
            draft: what the source found.
            found: each of its pictures, or what is wrong with it.
            source: name of the source.

        Returns:
            None if a picture has a problem or nothing is left to say about it.
        """
        item: Item = "pair" if len(draft.pictures) == 2 else "picture"
        problem = next((f for f in found if isinstance(f, PictureError)), None)
        statement = self._statement(draft)
        if problem is None and draft.statement is not None and statement is None:
            problem = PictureError("empty text", draft.statement[0])
        if problem is not None:
            self.lose_draft(draft, problem.reason, problem.seen)
            return None
        pictures = [f for f in found if isinstance(f, Picture)]
        kept = _Kept()
        for said in draft.said:
            self._keep(said, pictures, kept)
        if not kept and statement is None and not draft.keep_empty:
            self.lose(item, draft.id, "no text left")
            return None
        self.ledger.read(item)
        self.ledger.keep(item)
        return Record(
            id=draft.id,
            images=tuple(picture.path for picture in pictures),
            width=pictures[0].width,
            height=pictures[0].height,
            captions=tuple(kept.captions),
            regions=tuple(kept.regions),
            absent=tuple(kept.absent),
            questions=tuple(kept.questions),
            proposals_xyxy_px=tuple(kept.proposals),
            statement=statement,
            split=draft.split,
            source=draft.source or source,
            same_as=draft.same_as,
            meta=draft.meta,
        )

    def lose_draft(self, draft: Draft, reason: str, seen: object = None) -> None:
        """Drop a picture (or pair) and, each with its own line, all that was said about it."""
        item: Item = "pair" if len(draft.pictures) == 2 else "picture"
        self.lose(item, draft.id, reason, seen)
        for said in draft.said:
            self.lose(said.item, said.where or draft.id, f"{item}: {reason}")

    def lose(self, item: Item, id: str, reason: str, seen: object = None) -> None:
        """Count an item as read and dropped."""
        self.ledger.read(item)
        self.ledger.drop(item, id, reason, seen)

    # ------------------------------------------------------------------ one thing said

    def _keep(self, said: Said, pictures: list[Picture], kept: _Kept) -> None:
        self.ledger.read(said.item)
        where = said.where
        if said.problem is not None:
            self.ledger.drop(said.item, where, said.problem, said.text)
        elif said.item in ("region", "proposal"):
            self._keep_box(said, pictures, kept)
        elif said.item == "question":
            self._keep_question(said, kept)
        else:
            text = self._text(said.item, where, said.text)
            if text is not None:
                self.ledger.keep(said.item)
                (kept.absent if said.item == "absent" else kept.captions).append(text)

    def _keep_question(self, said: Said, kept: _Kept) -> None:
        answers = self._answers(said.answers)
        if answers is None:
            self.ledger.drop("question", said.where, "malformed answers", said.answers)
            return
        text = self._text("question", said.where, said.text)
        if text is not None:
            self.ledger.keep("question")
            kept.questions.append(Question(said.id, text, answers))

    def _answers(self, found: object) -> tuple[Answer, ...] | None:
        if not isinstance(found, list | tuple):
            return None
        answers = []
        for pair in found:
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                return None
            text, weight = pair
            ok = isinstance(weight, int | float) and not isinstance(weight, bool)
            cleaned = self.clean_text(text) if ok and 0 <= weight <= 1 else None
            if cleaned is None:
                return None
            answers.append(Answer(cleaned, float(weight)))
        return tuple(answers)

    def _keep_box(self, said: Said, pictures: list[Picture], kept: _Kept) -> None:
        where = said.where
        seen = said.box_xyxy if said.seen is None else said.seen
        if said.item == "region" and said.kind not in REGION_KINDS:
            self.ledger.drop("region", where, "unknown region kind", said.kind)
            return
        if len(pictures) == 2:
            self.ledger.drop(said.item, where, "a box in a pair of pictures", seen)
            return
        picture = pictures[0]
        box_xyxy: object = said.box_xyxy
        if said.fraction:
            box_xyxy = _in_pixels(box_xyxy, picture.box_frame)
        reason, box = checked_box(box_xyxy, *picture.box_frame, self.rules)
        if reason is None and picture.turn is None:
            reason = "unclear which way up the box is"
        if box is not None and said.item == "region" and not said.fraction and _tiny(box):
            reason = BELOW_A_PIXEL
        if reason is not None or box is None:
            self.ledger.drop(said.item, where, str(reason), seen)
            return
        text = ""
        if said.item == "region":
            cleaned = self._text("region", where, said.text)
            if cleaned is None:
                return
            text = cleaned
            if said.kind in _OVERLAPPING and self._says_nothing_new(text, kept):
                self.ledger.drop("region", where, "text overlap", text)
                return
        if list(box) != box_xyxy and said.item == "region" and _moved(box, box_xyxy):
            self.ledger.repair(said.item, where, "box cut to the picture", seen)
        if picture.turn not in (None, 1):
            assert picture.turn is not None
            box = turn_box(box, *picture.box_frame, picture.turn)
            self.ledger.repair(said.item, where, "box turned to the picture as shown", seen)
        self.ledger.keep(said.item)
        if said.item == "region":
            kept.regions.append(Region(text, box, cast(RegionKind, said.kind)))
        else:
            kept.proposals.append(box)

    def _says_nothing_new(self, text: str, kept: _Kept) -> bool:
        """Whether a text overlaps too much with an earlier one; else it is remembered."""
        limit = self.rules.max_text_overlap
        if limit >= 1:
            return False
        words = frozenset(pre_caption(text, _ALL_WORDS).split())
        for other in kept.word_sets:
            shared = len(words & other)
            if self.rules.text_overlap == "shorter":
                all_words = min(len(words), len(other))
            else:
                all_words = len(words) + len(other) - shared
            if shared > limit * all_words:
                return True
        kept.word_sets.append(words)
        return False

    def _statement(self, draft: Draft) -> Statement | None:
        if draft.statement is None:
            return None
        text, label = draft.statement
        cleaned = self.clean_text(text)
        return None if cleaned is None else Statement(cleaned, cast("bool | None", label))

    # ------------------------------------------------------------------ texts

    def clean_text(self, value: object) -> str | None:
        """A text that is not counted by itself (an answer, a statement); None if unusable."""
        if not isinstance(value, str):
            return None
        text = sanitize(value)
        return text if says_something(text) else None

    def _text(self, item: Item, where: str, value: object) -> str | None:
        text = self.clean_text(value)
        if text is None:
            reason = "empty text" if isinstance(value, str) else "text malformed"
            self.ledger.drop(item, where, reason, value)
            return None
        assert isinstance(value, str)
        if text != value and text != " ".join(value.split()):
            self.ledger.repair(item, where, "characters that cannot be shown removed", value)
        return text


class _Kept:
    """What is kept of one draft."""

    def __init__(self) -> None:
        self.captions: list[str] = []
        self.regions: list[Region] = []
        self.absent: list[str] = []
        self.questions: list[Question] = []
        self.proposals: list[Box] = []
        self.word_sets: list[frozenset[str]] = []

    def __bool__(self) -> bool:
        texts = self.captions or self.regions or self.absent or self.questions
        return bool(texts or self.proposals)


def checked_box(
    box_xyxy_px: object, width: int, height: int, rules: Rules
) -> tuple[str | None, Box | None]:
    """Why a box is dropped, or the box that is kept (cut to the picture where rules say so).

    Args:
        box_xyxy_px: as found.
        width: of the picture that it was drawn on.
        height: the same.
        rules: which boxes are invalid or too small.

    Returns:
        ("box malformed", "box not finite", "box has no area", "box outside the picture" or "box
        too small", None), or (None, the box).
    """
    mode = rules.invalid_boxes
    reason = None if mode == "strict" else box_reason(box_xyxy_px, width, height)
    if mode == "int" or reason in ("box outside the picture", "box has no area"):
        if reason in ("box malformed", "box not finite"):
            return reason, None
        x1, y1, x2, y2 = (float(v) for v in box_xyxy_px)  # type: ignore[attr-defined]
        if not _tolerable((x1, y1, x2, y2), width, height, mode):
            return reason or "box has no area", None
        box_xyxy_px = [max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))]
    reason = box_reason(box_xyxy_px, width, height, rules.min_box_area)
    if reason is not None:
        return reason, None
    x1, y1, x2, y2 = (round(float(v), 4) for v in box_xyxy_px)  # type: ignore[attr-defined]
    if x1 == x2 or y1 == y2:  # rounding took it
        return "box has no area", None
    return None, (x1, y1, x2, y2)


def _tolerable(box_xyxy_px: Box, width: int, height: int, mode: str) -> bool:
    x1, y1, x2, y2 = box_xyxy_px
    if mode == "clip":
        return True
    if mode == "half-px":
        return x1 >= -0.5 and y1 >= -0.5 and x2 <= width + 0.5 and y2 <= height + 0.5
    x, y = int(x1), int(y1)  # the released loader cuts left, top, width and height
    w, h = int(round(x2 - x1, 6)), int(round(y2 - y1, 6))
    return x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height


def _tiny(box_xyxy_px: Box) -> bool:
    """Below a pixel both ways: fractions that were taken for pixels are such."""
    x1, y1, x2, y2 = box_xyxy_px
    return x2 - x1 < 1 and y2 - y1 < 1


def _moved(box_xyxy_px: Box, found: object) -> bool:
    values = cast("Sequence[float]", found)
    return any(abs(a - float(b)) > 1e-3 for a, b in zip(box_xyxy_px, values, strict=True))


def _in_pixels(box_xyxy: object, frame: tuple[int, int]) -> object:
    """Fractions of width and height to pixels; what is no box comes back as it is."""
    if corners(box_xyxy, "xyxy") is box_xyxy:
        return box_xyxy
    assert isinstance(box_xyxy, list)
    return [
        side * (round(v) if abs(v - round(v)) <= _SLACK else v) if math.isfinite(v) else v
        for v, side in zip(box_xyxy, frame * 2, strict=True)
    ]


def box_reason(
    box_xyxy_px: object, width: int, height: int, min_box_area: float = 0.0
) -> str | None:
    """Why a box is dropped, or None.

    Returns:
        "box malformed", "box not finite", "box has no area", "box outside the picture",
        "box too small", or None.
    """
    if type(box_xyxy_px) is list and len(box_xyxy_px) == 4:  # most are this, and sound
        x1, y1, x2, y2 = box_xyxy_px
        numbers = type(x1) is float and type(y1) is float and type(x2) is float
        if numbers and type(y2) is float and 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height:
            return _size_reason(x1, y1, x2, y2, min_box_area * width * height)
    if not isinstance(box_xyxy_px, Sequence) or isinstance(box_xyxy_px, str | bytes):
        return "box malformed"
    if len(box_xyxy_px) != 4:
        return "box malformed"
    try:
        reason = box_problem(box_xyxy_px, width, height)
    except OverflowError:  # an integer of hundreds of digits
        return "box not finite"
    if reason is not None:
        return reason
    x1, y1, x2, y2 = box_xyxy_px
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:  # box_problem has some tolerance
        return "box outside the picture"
    return _size_reason(x1, y1, x2, y2, min_box_area * width * height)


def _size_reason(x1: float, y1: float, x2: float, y2: float, least_area: float) -> str | None:
    # A box of exactly the smallest area stays, whatever x + w - x came to.
    return "box too small" if (x2 - x1) * (y2 - y1) < least_area * (1 - 1e-9) else None

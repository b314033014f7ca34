from __future__ import annotations

import math

import pytest

from xvlm_core.data.images import PictureError
from xvlm_core.data.ledger import Ledger
from xvlm_core.data.records import Record
from xvlm_core.sources.base import PAPER, InvalidBoxes, Rules, TextOverlap
from xvlm_core.sources.cleaning import Cleaner, box_reason
from xvlm_core.sources.drafts import Draft, Said, corners
from xvlm_core.sources.pictures import Picture


@pytest.mark.parametrize(
    ("box_xyxy_px", "reason"),
    [
        ([0, 0, 160, 90], None),
        ([10.4, 10.4, 60.6, 60.6], None),
        ([-0.0001, 0, 100, 90], "box outside the picture"),
        ([0, 0, 160.0001, 90], "box outside the picture"),
        ([0, 0, 160, 90.0001], "box outside the picture"),
        ([500, 500, 510, 510], "box outside the picture"),
        ([60, 60, 30, 40], "box has no area"),
        ([10, 10, 10, 50], "box has no area"),
        ([10, 10, 13, 13], "box too small"),
        ([0, 0, 16, 9], None),  # exactly 1 %
        ([0, 0, 16, 8.99], "box too small"),
        ([10.4, 3.3, 10.4 + 16, 3.3 + 9], None),  # 1 %, but for rounding
        ([math.nan, 0, 1, 1], "box not finite"),
        ([0, 0, math.inf, 1], "box not finite"),
        ([0, 0, 10**400, 1], "box not finite"),
        (["10", "10", "50", "50"], "box malformed"),
        ([True, 0, 50, 50], "box malformed"),
        ([10, 10, 50], "box malformed"),
        ("1234", "box malformed"),
        (None, "box malformed"),
        ({}, "box malformed"),
    ],
)
def test_reasons_of_boxes(box_xyxy_px: object, reason: str | None) -> None:
    assert box_reason(box_xyxy_px, 160, 90, 0.01) == reason


def test_formats_of_boxes() -> None:
    assert corners([1, 2, 3, 4], "xyxy") == [1, 2, 3, 4]
    assert corners([1, 2, 3, 4], "xywh") == [1, 2, 4, 6]
    assert corners([10, 20, 4, 8], "cxcywh") == [8, 16, 12, 24]
    for wrong in (None, "1234", [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, True]):
        assert corners(wrong, "xywh") is wrong
    assert corners([10**400, 1, 1, 1], "xywh") == [math.inf] * 4


PICTURE = Picture("a.jpg", 160, 90)


def cleaned(said: list[Said], rules: Rules | None = None) -> tuple[Record | None, Ledger]:
    ledger = Ledger()
    record = Cleaner(ledger, rules).record(Draft("1", ("a.jpg",), tuple(said)), [PICTURE], "x")
    ledger.check()
    return record, ledger


def test_texts_are_cleaned_or_dropped_with_a_reason() -> None:
    good = [" a  dog,\n running ", "a\x00 \u202edog\ud800"]
    empty = ["", "  ", "...", '?!;:"()*#~', "\u200b"]
    record, ledger = cleaned([Said("caption", text) for text in (*good, *empty, None, 17, ["a"])])
    assert record is not None
    assert record.captions == ("a dog, running", "a dog\ufffd")
    assert ledger.counts["caption"] == {
        "read": 10,
        "kept": 2,
        "dropped": {"empty text": 5, "text malformed": 3},
        "repaired": {"characters that cannot be shown removed": 1},
    }


def region(text: object, box_xyxy: object, kind: str = "object") -> Said:
    return Said("region", text, box_xyxy=box_xyxy, kind=kind)


def test_the_box_is_judged_before_the_text_and_the_text_before_the_overlap() -> None:
    said = [
        region("", [0, 0, 3, 3], "region"),
        region("", [0, 0, 30, 30], "region"),
        region("a red bus", [0, 0, 3, 3], "region"),
        region("a red bus", [0, 0, 30, 30], "region"),
        region("A red bus!", [0, 0, 40, 40], "region"),
    ]
    record, ledger = cleaned(said, PAPER)
    assert record is not None
    assert [r.box_xyxy_px for r in record.regions] == [(0, 0, 30, 30)]
    assert ledger.counts["region"]["dropped"] == {
        "box too small": 2,
        "empty text": 1,
        "text overlap": 1,
    }


@pytest.mark.parametrize(
    ("measure", "texts", "kept"),
    [
        # three of four words: exactly 75 % stays
        ("jaccard", ["a b c", "a b c d"], 2),
        # four of five: dropped
        ("jaccard", ["a b c d", "a b c d e"], 1),
        # a part of a longer text says nothing new by the other measure
        ("shorter", ["a b c", "a b c d e f g h"], 1),
        ("jaccard", ["a b c", "a b c d e f g h"], 2),
        # what was dropped suppresses nothing
        ("jaccard", ["a b c d", "a b c d e", "a b c d e f"], 2),
    ],
)
def test_texts_of_regions_that_overlap(measure: TextOverlap, texts: list[str], kept: int) -> None:
    rules = Rules(max_text_overlap=0.75, text_overlap=measure)
    for kind, expected in (("region", kept), ("relation", kept), ("object", len(texts))):
        said = [region(text, [0, 0, 30, 30], kind) for text in texts]
        record, _ = cleaned(said, rules)
        assert record is not None
        assert len(record.regions) == expected, kind


@pytest.mark.parametrize(
    ("mode", "box_xyxy", "expected"),
    [
        ("strict", [0, 0, 160.2, 90], None),
        ("int", [0, 0, 160.2, 90], (0, 0, 160, 90)),
        ("int", [-0.9, 0, 100, 90], (0, 0, 100, 90)),
        ("int", [-1, 0, 100, 90], None),
        ("int", [10, 10, 10.9, 50], None),
        ("half-px", [-0.5, 0, 160.5, 90], (0, 0, 160, 90)),
        ("half-px", [-0.6, 0, 100, 90], None),
        ("clip", [-50, -50, 80, 900], (0, 0, 80, 90)),
        ("clip", [200, 0, 300, 90], None),
        ("clip", [50, 0, 40, 90], None),
        ("clip", [math.nan, 0, 40, 90], None),
    ],
)
def test_what_is_an_invalid_box_is_a_named_choice(
    mode: InvalidBoxes, box_xyxy: list[float], expected: object
) -> None:
    record, ledger = cleaned([region("dog", box_xyxy)], Rules(invalid_boxes=mode))
    assert (record.regions[0].box_xyxy_px if record else None) == expected
    repaired = {"box cut to the picture": 1} if expected else {}
    assert ledger.counts["region"]["repaired"] == repaired


def test_fractions_become_pixels() -> None:
    said = Said("region", "dog", box_xyxy=[0.25, 0.5, 1.0000001, 1], fraction=True)
    record, _ = cleaned([said])
    assert record is not None
    assert record.regions[0].box_xyxy_px == (40, 45, 160, 90)


def test_a_damaged_picture_takes_all_that_was_said_with_it() -> None:
    ledger = Ledger()
    said = (Said("caption", "a dog", "c1"), Said("proposal", where="p1", box_xyxy=[0, 0, 1, 1]))
    found = [PictureError("missing", "a.jpg")]
    assert Cleaner(ledger).record(Draft("1", ("a.jpg",), said), found, "x") is None
    ledger.check()
    assert {item: count["dropped"] for item, count in ledger.counts.items()} == {
        "picture": {"missing": 1},
        "caption": {"picture: missing": 1},
        "proposal": {"picture: missing": 1},
    }


def test_a_record_without_anything_said_is_kept_when_asked() -> None:
    for keep_empty in (False, True):
        draft = Draft("1", ("a.jpg",), keep_empty=keep_empty)
        record = Cleaner(Ledger()).record(draft, [PICTURE], "x")
        assert (record is not None) == keep_empty


@pytest.mark.parametrize(
    "answers", [None, "yes", [("yes", 2)], [("yes", True)], [("", 0.5)], [("yes",)], [None]]
)
def test_malformed_answers_are_named(answers: object) -> None:
    record, ledger = cleaned([Said("question", "is it?", answers=answers)])
    assert record is None
    assert ledger.counts["question"]["dropped"] == {"malformed answers": 1}

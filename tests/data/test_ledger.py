from __future__ import annotations

import io
import json

import pytest

from xvlm_core.data.ledger import Ledger


def test_counts_balance_by_item_and_reason() -> None:
    ledger = Ledger()
    ledger.read("region", 5)
    ledger.keep("region", 3)
    ledger.drop("region", "a", "box too small")
    ledger.drop("region", "b", "box too small")
    ledger.repair("region", "c", "turned")
    assert ledger.counts == {
        "region": {
            "read": 5,
            "kept": 3,
            "dropped": {"box too small": 2},
            "repaired": {"turned": 1},
        }
    }
    ledger.check()


@pytest.mark.parametrize(("read", "kept"), [(2, 2), (1, 1), (0, 0)])
def test_an_imbalance_is_found(read: int, kept: int) -> None:
    ledger = Ledger()
    ledger.read("caption", read)
    ledger.keep("caption", kept)
    ledger.drop("caption", "x", "empty text")
    with pytest.raises(AssertionError, match=f"caption: read {read} != kept {kept} \\+ dropped 1"):
        ledger.check()


def test_every_loss_is_a_line_that_is_json_and_utf8_and_short() -> None:
    lines = io.StringIO()
    ledger = Ledger(lines)
    ledger.drop("caption", "a:1", "empty text", "lone \ud800 surrogate" + "x" * 10_000)
    ledger.drop("region", "a:2", "box not finite", [float("nan"), 1, 2, 3])
    ledger.repair("region", "a:3", "turned", 7)
    text = lines.getvalue()
    text.encode("utf-8")
    parsed = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [(line["item"], line["what"], line["id"], line["reason"]) for line in parsed] == [
        ("caption", "dropped", "a:1", "empty text"),
        ("region", "dropped", "a:2", "box not finite"),
        ("region", "repaired", "a:3", "turned"),
    ]
    assert len(parsed[0]["seen"]) <= 200
    assert parsed[2]["seen"] == 7


def test_the_summary_has_the_most_frequent_loss_first_with_an_example() -> None:
    ledger = Ledger()
    ledger.drop("caption", "only", "empty text")
    ledger.drop("picture", "first.jpg", "missing")
    ledger.drop("picture", "second.jpg", "missing")
    assert ledger.summary() == [
        "picture: 2 dropped, missing (first: first.jpg)",
        "caption: 1 dropped, empty text (first: only)",
    ]
    assert ledger.losses == 3

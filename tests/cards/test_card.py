"""Every number of the card is that of records that can be counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cards.stores import EVERYTHING, make_store
from xvlm_cli.data_card import card_lines
from xvlm_core.cards.builder import make_card
from xvlm_core.cards.card import DataCard
from xvlm_core.cards.paper import beside_paper
from xvlm_core.cards.scripts import NO_LETTERS, OTHER, script_of
from xvlm_core.cards.tables import card_tables
from xvlm_core.cards.tallies import Repeats, Repetition, Spread, Tally, Words
from xvlm_core.data.records import Record, Region


@pytest.fixture
def card(tmp_path: Path) -> DataCard:
    dropped = ("box too small", "box too small", "text overlap")
    return make_card(make_store(tmp_path / "mine", dropped=dropped))


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a dog", "Latin"),
        ("köpek", "Latin"),
        ("ＦＵＬＬ ｗｉｄｔｈ", "Latin"),
        ("собака", "Cyrillic"),
        ("狗在哪里 ok", "Han"),
        ("犬はどこですか", "Kana"),
        ("ｲﾇ", "Kana"),
        ("개는 어디에", "Hangul"),
        ("أين الكلب", "Arabic"),
        ("कुत्ता कहाँ है", "Devanagari"),
        ("σκύλος", "Greek"),
        ("כלב", "Hebrew"),
        ("สุนัข", "Thai"),
        ("நாய்", "Tamil"),
        ("ძაღლი", OTHER),
        ("3 + 4 = 7", NO_LETTERS),
        ("犬 🐶 ٣", "Han"),
        ("", NO_LETTERS),
        ("dog собака и кот", "Cyrillic"),
    ],
)
def test_a_text_is_in_the_script_of_most_of_its_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def test_quantiles_are_numbers_that_were_added() -> None:
    tally = Tally()
    for value in range(1, 101):
        tally.add(value)
    assert tally.spread() == Spread(100, 50.5, 1, 5, 25, 50, 75, 95, 100)
    assert tally.spread(also_zeros=100).median == 0
    assert tally.spread(also_zeros=100).mean == 25.25
    assert Tally().spread() == Spread(0)


def test_a_text_that_one_picture_repeats_counts_once_over_pictures() -> None:
    repeats = Repeats()
    for text, picture in (("a", "1"), ("b", "1"), ("a", "1"), ("a", "2")):
        repeats.add(text, inside=picture)
    assert repeats.result() == Repetition(total=3, distinct=2, repeated=1)
    assert repeats.result().again == 1


def test_above_the_limit_repeats_are_estimated_from_a_sample_and_say_so() -> None:
    repeats = Repeats(limit=1000)
    for i in range(20_000):
        repeats.add(f"text {i}")
        if i % 4 == 0:
            repeats.add(f"text {i}")
    found = repeats.result()
    assert found.total == 25_000
    assert found.distinct == pytest.approx(20_000, rel=0.1)
    assert found.repeated == pytest.approx(5_000, rel=0.2)
    assert found.sampled <= 1 / 16
    assert len(repeats._seen) <= 1000


def test_above_the_limit_rare_words_are_forgotten_and_the_common_ones_stay() -> None:
    words = Words(limit=100)
    for i in range(1000):
        words.add(["the", f"rare{i}"])
    assert not words.exact
    assert words.distinct <= 100
    assert words.most_common(1) == {"the": 1000}


def test_amounts_of_every_kind(card: DataCard) -> None:
    totals = {kind: (amount.total, amount.records) for kind, amount in card.amounts.items()}
    assert totals == {
        "caption": (5, 2),
        "object": (2, 1),
        "attribute": (1, 1),
        "region": (1, 1),
        "relation": (1, 1),
        "phrase": (1, 1),
        "absent": (1, 1),
        "question": (2, 1),
        "answer": (2, 1),
        "statement": (1, 1),
        "proposal": (2, 1),
    }
    captions = card.amounts["caption"].per_record
    assert (captions.n, captions.mean, captions.least, captions.most) == (4, 1.25, 0, 3)
    assert card.statements == {"true": 1}
    assert {name: (s.records, s.pictures) for name, s in card.splits.items()} == {
        "train": (1, 1),
        "val": (2, 1),
        "test": (1, 2),
    }
    assert card.splits["val"].totals["question"] == 2


def test_sizes_and_places_of_boxes(card: DataCard) -> None:
    boxes = card.boxes
    assert boxes.total == 6
    shares = {name: n for name, n in boxes.shares.items() if n}
    assert shares == {"1-2 %": 3, "25-50 %": 1, ">= 50 %": 2}
    assert list(boxes.coco_sizes.values()) == [3, 1, 2]
    assert boxes.centre_xy is not None
    assert boxes.centre_xy == pytest.approx(((3 * 0.05 + 0.75 + 1.0) / 6, (0.15 + 0.75 + 1.25) / 6))
    assert boxes.thirds == ((3, 0, 0), (0, 1, 0), (0, 1, 1))
    assert (boxes.area_percent.least, boxes.area_percent.most) == (1, 100)
    assert (card.widths_px.least, card.widths_px.most, card.heights_px.mean) == (100, 200, 125)


def test_texts_scripts_and_words(card: DataCard) -> None:
    captions = card.texts["caption"]
    assert (captions.words.most, captions.characters.most) == (7, 30)
    assert captions.longest == "a small white dog on the grass"
    assert card.scripts == {"Latin": 15, "Cyrillic": 1, "Han": 1}
    assert next(iter(card.common_words.items())) == ("dog", 11)
    assert card.common_labels["dog"] == 2
    assert card.common_answers == {"dog": 1, "wolf": 1}
    assert card.vocabulary == 20
    assert any("Han" in note for note in card.notes)


def test_duplicates(card: DataCard) -> None:
    found = card.duplicates
    # "A dog." three times, "dog" three times (two boxes and an answer)
    assert (found.texts.total, found.texts.again) == (17, 4)
    assert (found.captions.total, found.captions.repeated) == (4, 1)
    assert (found.pictures.total, found.pictures.distinct) == (5, 2)
    assert found.captions_in_record == 1
    assert found.regions_in_record == 1
    assert found.boxes_in_record == 2


def test_the_card_is_json(card: DataCard) -> None:
    document = json.loads(json.dumps(card.to_json()))
    assert document["amounts"]["caption"]["per_record"]["most"] == 3
    assert document["ledger"]["region"]["dropped"] == {"box too small": 2, "text overlap": 1}


def test_a_limited_card_says_what_it_is_of(tmp_path: Path) -> None:
    records = [Record(f"{i}", ("one.png",), 10, 10, captions=("a",)) for i in range(10)]
    card = make_card(make_store(tmp_path / "mine", records), limit=4)
    assert card.records_read == 4
    assert card.amounts["caption"].total == 4
    assert any("4 of 10 records" in note for note in card.notes)


def test_lines_have_every_reason_and_fit_a_terminal(card: DataCard) -> None:
    lines = card_lines(card)
    assert lines[0] == "mine: jsonl, 4 records (train 1, val 2, test 1), 2 pictures"
    assert any(
        line.split() == ["text", "overlap", "region", "dropped", "1", "11.1"] for line in lines
    )
    assert max(map(len, lines)) <= 100
    without = card_lines(card, ledger=False)
    assert not any("text overlap" in line for line in without)


def test_hostile_texts_do_not_reach_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b[31mred\u202egnp.exe"
    record = Record("one", ("one.png",), 10, 10, captions=(evil,), split="tr\x1bain")
    lines = card_lines(make_card(make_store(tmp_path / "mine", [record])))
    assert not any(c in line for line in lines for c in "\x1b\u202e")


def test_an_empty_store_has_a_card(tmp_path: Path) -> None:
    card = make_card(make_store(tmp_path / "mine", []))
    assert card_lines(card)[0].startswith("mine: jsonl, 0 records")


# ------------------------------------------------------------------ beside the paper


def coco_records(split: str = "train") -> list[Record]:
    region = Region("dog", (0.0, 0.0, 5.0, 5.0), "object")
    return [
        Record("1", ("one.png",), 10, 10, captions=("a", "b"), regions=(region,), split=split),
        Record("2", ("two.png",), 10, 10, captions=("c",), regions=(region,), split="val"),
    ]


def test_coco_stands_beside_the_paper_with_its_training_split(tmp_path: Path) -> None:
    dropped = ["box too small"] * 2
    store = make_store(tmp_path / "c", coco_records(), source="coco", dropped=dropped)
    compared = beside_paper(make_card(store))
    assert compared is not None
    rows = {row.what: (row.ours, row.paper) for row in compared.rows}
    assert rows == {
        "pictures (Table 1)": ("1", "0.11M"),
        "captions (Table 1)": ("2", "0.55M"),
        "objects (Table 5)": ("1", "446,873 of 859,999"),
        "boxes with a text kept, of all read": ("50.0%", "52.0% (Table 5)"),
    }
    notes = " ".join(compared.notes)
    assert "without val" in notes
    assert "not comparable" in notes
    assert any(
        table.title == "beside COCO in the X-VLM paper" for table in card_tables(make_card(store))
    )


@pytest.mark.parametrize(
    ("source", "name", "paper"),
    [
        ("visual-genome", "x", "Visual Genome"),
        ("karpathy", "x", "COCO"),
        ("web-pairs", "cc12m", "CC-12M"),
        ("web-pairs", "my-cc-3m", "CC-3M"),
        ("web-pairs", "mine", None),
        ("jsonl", "coco", None),
        ("world", "x", None),
    ],
)
def test_only_data_of_the_paper_stands_beside_it(
    tmp_path: Path, source: str, name: str, paper: str | None
) -> None:
    compared = beside_paper(make_card(make_store(tmp_path / name, coco_records(), source=source)))
    assert (compared.name if compared else None) == paper


def test_rounded_numbers_are_written_as_the_paper_has_them(tmp_path: Path) -> None:
    compared = beside_paper(make_card(make_store(tmp_path / "o", source="objects365")))
    assert compared is not None
    assert [row.paper for row in compared.rows] == ["0.58M", "2.0M"]


def test_kinds_that_the_paper_has_no_row_for_are_named(tmp_path: Path) -> None:
    store = make_store(tmp_path / "vg", EVERYTHING, source="visual-genome")
    compared = beside_paper(make_card(store))
    assert compared is not None
    assert any("no row for 1 attributes and 1 relations" in note for note in compared.notes)

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.sources.conftest import Prepare, Prepared
from xvlm_core.data.records import Answer, Question, Region, Statement
from xvlm_core.errors import DataError, UsageError
from xvlm_core.sources.prepare import prepare


@pytest.fixture
def convert(tmp_path: Path, pictures: Path, prepare_store: Prepare) -> Any:
    """Prepare lines (objects, texts or bytes) against the folder of pictures."""

    def run(lines: list[Any] | bytes, **options: Any) -> Prepared:
        if isinstance(lines, list):
            lines = "\n".join(
                line if isinstance(line, str) else json.dumps(line) for line in lines
            ).encode()
        path = tmp_path / "mine.jsonl"
        path.write_bytes(lines)
        return prepare_store("jsonl", {"annotations": [path], "images": pictures, **options})

    return run


def test_lines_of_one_picture_become_one_record_wherever_they_stand(convert: Any) -> None:
    done = convert(
        [
            {"image": "ok.jpg", "text": "a red dog", "box": [1, 2, 30, 40]},
            {"image": "other.png", "text": "the blue sea"},
            {"image": "ok.jpg", "text": "dogs on a beach"},
            {"image": "ok.jpg", "caption": ["two dogs", "a beach"]},
            {"image": "ok.jpg", "text": "the left dog", "box": [5, 6, 70, 80], "kind": "object"},
        ]
    )
    first, second = done.records
    assert (first.id, first.image, first.width, first.height) == ("ok.jpg", "ok.jpg", 160, 90)
    assert first.captions == ("dogs on a beach", "two dogs", "a beach")
    assert first.regions == (
        Region("a red dog", (1, 2, 30, 40), "phrase"),
        Region("the left dog", (5, 6, 70, 80), "object"),
    )
    assert second.captions == ("the blue sea",)
    assert first.split == "train"
    assert done.count("line")["kept"] == 5


def test_a_picture_spelt_in_two_ways_is_one_record(convert: Any) -> None:
    (record,) = convert(
        [
            {"image": "ok.jpg", "text": "a dog"},
            {"image": "./ok.jpg", "text": "a beach"},
            {"image": ".//ok.jpg", "text": "the sea"},
        ]
    ).records
    assert record.image == "ok.jpg"
    assert record.captions == ("a dog", "a beach", "the sea")


@pytest.mark.parametrize(
    ("box_format", "box_unit", "box"),
    [
        ("xyxy", "px", [16, 9, 80, 72]),
        ("xywh", "px", [16, 9, 64, 63]),
        ("cxcywh", "px", [48, 40.5, 64, 63]),
        ("xyxy", "fraction", [0.1, 0.1, 0.5, 0.8]),
        ("xywh", "fraction", [0.1, 0.1, 0.4, 0.7]),
        ("cxcywh", "fraction", [0.3, 0.45, 0.4, 0.7]),
    ],
)
def test_box_formats_and_units_mean_the_same_box(
    convert: Any, box_format: str, box_unit: str, box: list[float]
) -> None:
    done = convert(
        [{"image": "ok.jpg", "text": "a dog", "box": box}], box_format=box_format, box_unit=box_unit
    )
    assert done.records[0].regions[0].box_xyxy_px == pytest.approx((16, 9, 80, 72))


def test_fractions_may_pass_the_edge_by_rounding_only(convert: Any) -> None:
    lines = [
        {"image": "ok.jpg", "text": "a", "box": [0.7, 0, 0.3 + 1e-9, 1]},
        {"image": "ok.jpg", "text": "b", "box": [0.5, 0, 0.51, 1]},
    ]
    done = convert(lines, box_format="xywh", box_unit="fraction")
    assert done.records[0].regions[0].box_xyxy_px[2] == 160
    assert done.dropped("region") == {"box outside the picture": 1}


def test_whole_records_are_taken_as_they_are(convert: Any) -> None:
    record = {
        "id": "r1",
        "image": "ok.jpg",
        "width": 160,
        "height": 90,
        "captions": ["a beach"],
        "regions": [
            {"text": "a dog", "box_xyxy_px": [1, 2, 30, 40], "kind": "attribute"},
            {"text": "a cat", "box": [0.5, 0.5, 1, 1]},
            {"text": "a cow", "box_xyxy_px": [1, 2, 30, 400]},
            {"text": "a cow", "box_xyxy_px": [1, 2, 30, 40], "kind": "cow"},
            "a cow",
        ],
        "absent": ["a plane", ""],
        "questions": [
            {"id": "q", "question": "how many dogs?", "answers": [{"answer": "2", "weight": 0.5}]},
            {"question": "what?", "answers": ["sea"]},
            {"question": "which?", "answers": ["2", " 2", {"answer": "two"}, "2"]},
            {"question": "where?", "answer": "here"},
            {"question": "who?", "answer": None},
            {"question": "when?", "answer": " "},
            {"question": "why?", "answers": [{"answer": "x", "weight": 7}]},
            3,
        ],
        "split": "val",
        "source": "mine",
        "meta": {"page": 7},
    }
    done = convert([record], box_unit="fraction")
    [only] = done.records
    assert only.id == "r1"
    assert only.regions == (
        Region("a dog", (1, 2, 30, 40), "attribute"),
        Region("a cat", (80, 45, 160, 90), "phrase"),
    )
    assert only.absent == ("a plane",)
    assert only.questions == (
        Question("q", "how many dogs?", (Answer("2", 0.5),)),
        Question("", "what?", (Answer("sea", 1.0),)),
        Question("", "which?", (Answer("2", 0.75), Answer("two", 0.25))),
        Question("", "where?", (Answer("here", 1.0),)),
        Question("", "who?"),
    )
    assert (only.split, only.source, only.meta) == ("val", "mine", {"page": 7})
    assert done.dropped("region") == {
        "box outside the picture": 1,
        "malformed region": 1,
        "unknown region kind": 1,
    }
    assert done.dropped("question") == {"malformed answers": 2, "malformed question": 1}
    assert done.dropped("absent") == {"empty text": 1}


def test_one_question_a_line_with_what_people_answered(convert: Any) -> None:
    lines = [
        {"image": "ok.jpg", "question": "how many?", "answers": ["2", "2", "two", "3"], "id": 17},
        {"image": "ok.jpg", "question": "what colour?", "answer": "red", "question_id": "c"},
        {"image": "ok.jpg", "text": "a beach"},
        {"image": "ok.jpg", "question": "who?", "answers": "me", "split": "train"},
    ]
    done = convert(lines)
    [only] = done.records
    assert only.captions == ("a beach",)
    assert only.questions == (
        Question("17", "how many?", (Answer("2", 0.5), Answer("two", 0.25), Answer("3", 0.25))),
        Question("c", "what colour?", (Answer("red", 1.0),)),
    )
    assert done.dropped("question") == {"malformed answers": 1}


def test_a_question_beside_a_text_takes_nothing_away_nor_does_a_key_that_was_named(
    convert: Any,
) -> None:
    line = {"image": "ok.jpg", "question": "how many?", "answer": "2"}
    [only] = convert([{**line, "text": "a beach"}]).records
    assert (only.captions, only.questions) == (("a beach",), ())
    [only] = convert([line], text_key="question").records
    assert (only.captions, only.questions) == (("how many?",), ())


def test_a_store_can_be_prepared_again_from_its_own_records(convert: Any, tmp_path: Path) -> None:
    first = convert(
        [
            {"image": "ok.jpg", "text": "a red dog", "box": [1, 2, 30, 40]},
            {"image": "other.png", "text": "the blue sea", "split": "val"},
        ]
    )
    again = convert((tmp_path / "store-0" / "records-00000.jsonl").read_bytes())
    assert again.records == first.records


def test_pairs_of_pictures_with_a_statement(convert: Any) -> None:
    pair = {"id": "p", "images": ["ok.jpg", "other.png"]}
    done = convert(
        [
            {**pair, "statement": {"text": "both are red", "label": False}},
            {**pair, "id": "q", "images": ["ok.jpg", "none.png"], "statement": {"text": "a"}},
            {**pair, "id": "r", "statement": {"text": "...", "label": True}},
            {**pair, "id": "s", "statement": {"text": "a", "label": "yes"}},
            {
                **pair,
                "id": "t",
                "image": "ok.jpg",
                "images": ["ok.jpg"],
                "statement": {"text": "a"},
            },
        ]
    )
    [only] = done.records
    assert only.images == ("ok.jpg", "other.png")
    assert only.statement == Statement("both are red", False)
    assert done.dropped("pair") == {"missing": 1, "empty text": 1}
    assert done.dropped("line") == {"malformed statement": 2}


def test_two_records_may_have_the_same_picture(convert: Any) -> None:
    line = {"image": "ok.jpg", "captions": ["a dog"]}
    done = convert([{"id": 1, **line}, {"id": "2", **line}, line])
    assert [record.id for record in done.records] == ["1", "2", "ok.jpg"]


def test_the_same_record_id_twice_is_refused(convert: Any) -> None:
    line = {"id": "r", "image": "ok.jpg", "captions": ["a dog"]}
    with pytest.raises(DataError, match="records with the same id: r"):
        convert([line, {**line, "image": "other.png"}])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "not JSON"),
        ('{"image": "ok.jpg", "text": "a', "not JSON"),
        ("[1, 2]", "not an object"),
        ('"text"', "not an object"),
        ("[" * 100_000, "nested too deep"),
        ('{"image": "ok.jpg", "text": "a", "text": "b"}', "repeated key"),
        ('{"text": "a dog"}', "no image"),
        ('{"image": 3, "text": "a dog"}', "no image"),
        ('{"images": ["a", "b", "c"], "captions": ["a dog"]}', "no image"),
        ('{"image": "ok.jpg", "text": "a", "width": "160", "height": 90}', "malformed size"),
        ('{"image": "ok.jpg", "text": "a", "split": 1}', "malformed split"),
        ('{"id": [], "image": "ok.jpg", "captions": ["a"]}', "malformed id"),
        ('{"image": "ok.jpg", "text": "a", "split": "\\ud800"}', "not Unicode"),
    ],
)
def test_a_broken_line_is_listed_with_its_number(convert: Any, line: str, reason: str) -> None:
    good = {"image": "ok.jpg", "text": "a dog"}
    done = convert([good, "", line, good])
    assert done.lost("line") == {"mine.jsonl:3": reason}
    assert done.records[0].captions == ("a dog", "a dog")


def test_a_line_that_is_not_utf8_is_dropped_alone(convert: Any) -> None:
    good = b'{"image": "ok.jpg", "text": "a dog"}\n'
    done = convert(good + b'{"image": "ok.jpg", "text": "caf\xe9"}\n' + good)
    assert done.lost("line") == {"mine.jsonl:2": "not UTF-8"}


def test_byte_order_mark_and_crlf_are_no_part_of_anything(convert: Any) -> None:
    line = '{"image": "ok.jpg", "text": "a dog"}\r\n'
    done = convert(b"\xef\xbb\xbf" + (line * 2).encode())
    assert done.records[0].captions == ("a dog", "a dog")
    assert done.count("line") == {"read": 2, "kept": 2, "dropped": {}, "repaired": {}}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_named(convert: Any, encoding: str) -> None:
    with pytest.raises(DataError, match=f"is {encoding.upper()}, not UTF-8"):
        convert('{"image": "ok.jpg", "text": "a dog"}\n'.encode(encoding))


def test_odd_texts_are_cleaned_or_dropped(convert: Any) -> None:
    values: list[object] = [
        "",
        "...",
        "\u200b",
        None,
        17,
        [],
        ["a man", ""],
        "lone \ud800 surrogate",
        "word " * 10_000,
        "a\tman\non\r\na moped",
    ]
    lines: list[Any] = [{"image": "ok.jpg", "caption": value} for value in values]
    done = convert([*lines, {"image": "ok.jpg"}])
    assert done.dropped("caption") == {"empty text": 4, "text malformed": 2, "no text": 2}
    assert [text[:30] for text in done.records[0].captions] == [
        "a man",
        "lone \ufffd surrogate",
        "word word word word word word ",
        "a man on a moped",
    ]


def test_texts_of_a_lost_picture_are_each_counted(convert: Any) -> None:
    good = {"image": "ok.jpg", "text": "a dog"}
    lost = [
        {"image": "none.jpg", "text": "a dog", "box": [1, 2, 3, 4]},
        {"image": "none.jpg", "caption": ["a", "b"]},
        {"image": "cut.jpg", "text": "a dog"},
    ]
    done = convert([good, *lost])
    assert done.lost("picture") == {"none.jpg": "missing", "cut.jpg": "truncated image"}
    assert done.dropped("caption") == {"picture: missing": 2, "picture: truncated image": 1}
    assert done.dropped("region") == {"picture: missing": 1}


def test_a_box_that_is_null_is_no_caption(convert: Any) -> None:
    good = {"image": "ok.jpg", "text": "a dog"}
    done = convert([good, {"image": "ok.jpg", "text": "left dog", "box": None}])
    assert done.records[0].captions == ("a dog",)
    assert done.dropped("region") == {"box malformed": 1}


def test_lines_that_contradict_the_first_of_their_picture_are_dropped(convert: Any) -> None:
    done = convert(
        [
            {"image": "ok.jpg", "text": "a", "width": 160, "height": 90, "split": "val"},
            {"image": "ok.jpg", "text": "b", "width": 320, "height": 180},
            {"image": "ok.jpg", "text": "c", "split": "train"},
            {"image": "ok.jpg", "text": "d"},
        ]
    )
    assert done.records[0].captions == ("a", "d")
    assert done.records[0].split == "val"
    assert list(done.lost("line")) == ["mine.jsonl:2", "mine.jsonl:3"]
    assert done.lost("caption") == {
        "mine.jsonl:2": "line: size mismatch",
        "mine.jsonl:3": "line: another split than the picture's first line",
    }


def test_paths_never_leave_the_image_root(convert: Any, pictures: Path) -> None:
    (pictures / "link.jpg").symlink_to("/etc/passwd")
    (pictures / "up").symlink_to("..")
    shutil.copy(pictures / "ok.jpg", pictures.parent / "out.jpg")
    reasons = {
        "../out.jpg": "outside the image root",
        "sub/../../out.jpg": "outside the image root",
        "..\\out.jpg": "outside the image root",
        "link.jpg": "outside the image root",
        "up/out.jpg": "outside the image root",
        str(pictures / "ok.jpg"): "absolute path",
        "C:\\ok.jpg": "absolute path",
        "file:///etc/passwd": "a URL",
        "http://127.0.0.1:1/x.jpg": "a URL",
        "": "not a file name",
        ".": "not a file name",
        "ok.jpg\u0000.png": "not a file name",
        "ok.jpg\n": "not a file name",
        "\ud800.jpg": "not a file name",
        "~/ok.jpg": "missing",
    }
    done = convert([{"image": name, "text": "a dog"} for name in [*reasons, "ok.jpg"]])
    assert [r.id for r in done.records] == ["ok.jpg"]
    found = [x["reason"] for x in done.ledger if x["item"] == "picture"]
    assert found == list(reasons.values())


def test_many_pictures_over_many_files(tmp_path: Path, pictures: Path, prepare_store: Any) -> None:
    for i in range(1500):
        os.link(pictures / "ok.jpg", pictures / f"{i}.jpg")
    files = []
    for part in range(2):
        files.append(tmp_path / f"{part}.jsonl")
        lines = [json.dumps({"image": f"{i}.jpg", "text": f"{part} {i}"}) for i in range(1500)]
        files[-1].write_text("\n".join(lines) + "\n")
    told: list[tuple[int, int | None]] = []
    done = prepare_store(
        "jsonl",
        {"annotations": files, "images": pictures},
        progress=lambda n, total, what: told.append((n, total)),
    )
    assert [r.captions for r in done.records] == [(f"0 {i}", f"1 {i}") for i in range(1500)]
    assert told[-1] == (1500, 1500)


def test_lines_of_others_are_read_by_their_keys(convert: Any) -> None:
    done = convert(
        [
            {"img": {"file": "ok.jpg"}, "phrase": "a dog", "bb": [1, 2, 29, 38], "set": "val"},
            {"img": {"file": "ok.jpg"}, "phrase": ["a", "b"], "captions": ["no text of ours"]},
            {"img": {"file": "other.png"}, "phrase": "sea", "set": "train", "width": "wide"},
            {"img": {"file": "other.png"}, "phrase": "sea", "set": "train"},
        ],
        image_key="img.file",
        text_key="phrase",
        box_key="bb",
        split_key="set",
        box_format="xywh",
    )
    first, second = done.records
    assert (first.id, first.split) == ("ok.jpg", "val")
    assert first.regions == (Region("a dog", (1, 2, 30, 40), "phrase"),)
    assert first.captions == ("a", "b")
    assert (second.captions, second.split) == (("sea",), "train")
    assert done.lost("line") == {"mine.jsonl:3": "malformed size"}


def test_a_box_may_stand_under_four_keys(convert: Any) -> None:
    done = convert(
        [
            {"image": "ok.jpg", "text": "a", "x": 1, "y": 2, "width": 29, "height": 38},
            {"image": "ok.jpg", "text": "b", "x": 1, "y": 2, "width": 29},
            {"image": "ok.jpg", "text": "c", "x": 1, "y": 2, "width": None, "height": "38"},
            {"image": "ok.jpg", "text": "d", "x": None},
        ],
        box_keys="x, y,width,height",
        box_format="xywh",
    )
    assert done.records[0].regions == (Region("a", (1, 2, 30, 40), "phrase"),)
    assert done.records[0].captions == ("d",)
    assert done.dropped("region") == {"box malformed": 2}


def test_lines_of_one_id_become_one_record(convert: Any) -> None:
    done = convert(
        [
            {"image": "ok.jpg", "text": "a", "ref": 7},
            {"image": "ok.jpg", "text": "b", "ref": 8},
            {"image": "ok.jpg", "text": "c", "ref": 7},
            {"image": "other.png", "text": "d", "ref": 7},
            {"image": "ok.jpg", "text": "e", "ref": True},
            {"image": "ok.jpg", "text": "f"},
        ],
        id_key="ref",
    )
    assert {r.id: r.captions for r in done.records} == {
        "7": ("a", "c"),
        "8": ("b",),
        "ok.jpg": ("f",),
    }
    assert done.lost("line") == {
        "mine.jsonl:4": "another picture than the first line of this id",
        "mine.jsonl:5": "malformed id",
    }


@pytest.mark.parametrize(
    ("options", "key", "hint"),
    [
        ({"image_key": "imag"}, "'imag' (image)", "--image-key file_name"),
        (
            {"image_key": "imag", "text_key": "txet"},
            "'imag' (image) or 'txet' (text)",
            "--image-key file_name --text-key text",
        ),
        ({"image_key": "filename"}, "'filename' (image)", "--image-key file_name"),
        ({"image_key": "file_name", "text_key": "txet"}, "'txet' (text)", "--text-key text"),
        ({"image_key": "file_name", "box_key": "boxx"}, "'boxx' (box)", "--box-key box_xyxy"),
        (
            {"image_key": "file_name", "box_keys": "a,b,c,d"},
            "'a,b,c,d' (box)",
            "--box-keys box_xyxy",
        ),
        ({"image_key": "file_name", "id_key": "nr"}, "'nr' (id)", "--id-key KEY"),
    ],
)
def test_a_key_that_no_line_has_is_named_with_those_that_are_there(
    convert: Any, options: dict[str, str], key: str, hint: str
) -> None:
    line = {"file_name": "ok.jpg", "text": "a dog", "box_xyxy": [1, 2, 3, 4], "more": {"x": 1}}
    with pytest.raises(DataError) as caught:
        convert([line, line], **options)
    assert caught.value.what == f"no line of mine.jsonl has a key {key}"
    assert caught.value.details == ("keys there: file_name, text, box_xyxy, more, more.x",)
    assert caught.value.try_ == hint


def test_usual_names_of_keys_are_known(convert: Any) -> None:
    (record,) = convert(
        [
            {"File Name": "ok.jpg", "label": "dog", "bbox_xywh": [1, 2, 29, 38], "subset": "dev"},
            {"File Name": "ok.jpg", "label": "a beach"},
        ]
    ).records
    assert record.regions == (Region("dog", (1, 2, 30, 40), "object"),)
    assert (record.captions, record.split) == (("a beach",), "val")


def test_four_usual_keys_are_a_box(convert: Any) -> None:
    line = {"image": "ok.jpg", "text": "a", "xmin": 1, "ymin": 2, "width": 29, "height": 38}
    assert convert([line]).records[0].regions[0].box_xyxy_px == (1, 2, 30, 40)
    line = {"image": "ok.jpg", "text": "a", "xmin": 1, "ymin": 2, "xmax": 30, "ymax": 40}
    (record,) = convert([line | {"width": 160, "height": 90}]).records
    assert record.regions[0].box_xyxy_px == (1, 2, 30, 40)


def test_plain_keys_go_before_usual_ones(convert: Any, tmp_path: Path) -> None:
    line = {"image": "ok.jpg", "file_name": "x", "text": "a", "label": "b", "box": [1, 2, 30, 40]}
    (record,) = convert([line | {"bbox": [9, 9, 9, 9]}]).records
    assert record.regions == (Region("a", (1, 2, 30, 40), "phrase"),)
    chosen = json.loads((tmp_path / "store-0" / "columns.json").read_text())
    assert chosen["mine.jsonl"]["not_used"] == {"bbox": 1, "file_name": 1, "label": 1}


def test_a_box_key_that_says_no_format_is_not_guessed(convert: Any) -> None:
    line = {"image": "ok.jpg", "text": "a dog", "bbox": [16, 9, 64, 63]}
    for options in ({}, {"box_key": "bbox"}):
        with pytest.raises(DataError, match="what the four numbers of 'bbox' are") as caught:
            convert([line], **options)
        assert str(caught.value.try_).startswith("--box-format xywh")
    (record,) = convert([line], box_format="xywh").records
    assert record.regions[0].box_xyxy_px == (16, 9, 80, 72)


def test_several_usual_keys_are_not_guessed_between(convert: Any) -> None:
    with pytest.raises(DataError, match=r"several keys: path, file; .*keys: label, name") as caught:
        convert([{"path": "ok.jpg", "file": "x", "label": "dog", "name": "x"}])
    assert caught.value.try_ == "--image-key path --text-key label"
    assert caught.value.details == ("keys there: path, file, label, name",)


def test_every_file_has_its_own_keys(tmp_path: Path, pictures: Path, prepare_store: Any) -> None:
    lines = {
        "a.jsonl": {"image": "ok.jpg", "text": "a dog"},
        "b.jsonl": {"file_name": "ok.jpg", "caption": "a cat", "box_xywh": [1, 2, 29, 38]},
    }
    for name, line in lines.items():
        (tmp_path / name).write_text(json.dumps(line))
    files = [tmp_path / name for name in lines]
    (record,) = prepare_store("jsonl", {"annotations": files, "images": pictures}).records
    assert record.captions == ("a dog",)
    assert record.regions == (Region("a cat", (1, 2, 30, 40), "phrase"),)


def test_what_was_taken_and_what_was_not_stands_in_the_store(convert: Any, tmp_path: Path) -> None:
    one = {"image": "ok.jpg", "caption": "a", "box": [1, 2, 30, 40], "split": "val", "id": 3}
    convert(
        [
            one | {"objects": {"bbox": [[1, 2, 3, 4]]}, "width": 160, "height": 90},
            {"image": "other.png", "captions": ["b"], "text": "c", "objects": {}, "meta": {}},
            {"image": "other.png", "text": "d"},
        ],
        box_unit="px",
    )
    assert json.loads((tmp_path / "store-0" / "columns.json").read_text()) == {
        "mine.jsonl": {
            "image": "image",
            "split": "split",
            "text": ["text", "caption"],
            "box": {"columns": ["box"], "format": "xyxy", "unit": "px"},
            "whole_records": 1,
            "not_used": {"objects": 2, "text": 1},
        }
    }
    convert([{"image": "ok.jpg", "t": "a", "captions": ["b"]}], text_key="t")
    chosen = json.loads((tmp_path / "store-1" / "columns.json").read_text())
    assert chosen["mine.jsonl"] == {"image": "image", "text": "t", "not_used": {"captions": 1}}


def test_keys_without_end_are_not_all_listed(convert: Any, tmp_path: Path) -> None:
    convert([{"image": "ok.jpg", "text": "a", f"key{i}": 1} for i in range(150)])
    chosen = json.loads((tmp_path / "store-0" / "columns.json").read_text())
    assert len(chosen["mine.jsonl"]["not_used"]) == 101
    assert chosen["mine.jsonl"]["not_used"]["(others)"] == 50


def test_splits_are_called_as_everywhere(convert: Any) -> None:
    names = {
        "Training": "train",
        "TRAIN": "train",
        "valid": "val",
        "Test": "test",
        "testA": "testA",
    }
    for said, split in names.items():
        lines = [{"image": "ok.jpg", "text": "a", "split": said}, {"image": "ok.jpg", "text": "b"}]
        assert convert(lines).records[0].split == split
        whole = [{"image": "ok.jpg", "captions": ["a"], "split": said}]
        assert convert(whole).records[0].split == split
        assert convert(lines[1:], split=said).records[0].split == split


def test_pictures_without_text_are_kept_if_asked_for(convert: Any) -> None:
    lines = [{"image": "ok.jpg"}, {"image": "other.png", "text": "the sea"}, {"image": "none.jpg"}]
    done = convert(lines)
    assert [r.id for r in done.records] == ["other.png"]
    assert done.lost("picture") == {"ok.jpg": "no text left", "none.jpg": "missing"}
    done = convert(lines, allow_empty=True)
    assert [(r.id, r.captions) for r in done.records] == [
        ("ok.jpg", ()),
        ("other.png", ("the sea",)),
    ]


def test_names_of_the_photograph_and_proposals_survive(convert: Any, tmp_path: Path) -> None:
    line = {
        "image": "ok.jpg",
        "captions": ["a beach"],
        "proposals_xyxy_px": [[1, 2, 30, 40], [1, 2, 3]],
        "same_as": ["coco:9"],
    }
    done = convert([line, {**line, "image": "other.png", "same_as": "coco:9"}])
    assert done.records[0].proposals_xyxy_px == ((1, 2, 30, 40),)
    assert done.records[0].same_as == ("coco:9",)
    assert done.dropped("proposal") == {"box malformed": 1}
    assert done.lost("line") == {"mine.jsonl:2": "malformed same_as"}
    again = convert((tmp_path / "store-0" / "records-00000.jsonl").read_bytes())
    assert again.records == done.records


def test_files_of_one_name_are_told_apart(
    tmp_path: Path, pictures: Path, prepare_store: Any
) -> None:
    files = [tmp_path / "a" / "x.jsonl", tmp_path / "b" / "x.jsonl"]
    for file in files:
        file.parent.mkdir()
        file.write_text('{"image": "ok.jpg", "text": "a dog"}\n{broken\n')
    done = prepare_store("jsonl", {"annotations": files, "images": pictures})
    assert list(done.lost("line")) == [f"{file}:2" for file in files]


def test_several_processes_make_the_same_store(
    tmp_path: Path, pictures: Path, prepare_store: Any
) -> None:
    path = tmp_path / "mine.jsonl"
    names = ["ok.jpg", "other.png", "whole.jpg", "none.jpg"]
    lines = [{"image": name, "text": f"{name} {i}"} for i in range(3) for name in names]
    path.write_text("\n".join(map(json.dumps, lines)))
    options = {"annotations": [path], "images": pictures, "shard_records": 1}
    one, two = (prepare_store("jsonl", {**options, "workers": n}) for n in (1, 2))
    assert (one.records, one.ledger) == (two.records, two.ledger)
    assert len(one.records) == 3


def test_options_that_are_wrong_are_refused(convert: Any, tmp_path: Path) -> None:
    good = [{"image": "ok.jpg", "text": "a dog"}]
    with pytest.raises(UsageError, match="--box-format 'yxyx' is none of xyxy, xywh, cxcywh"):
        convert(good, box_format="yxyx")
    for keys in ("a,b", "a,b,c,"):
        with pytest.raises(UsageError, match="is not four keys"):
            convert(good, box_keys=keys)
    with pytest.raises(DataError, match="there is no folder"):
        convert(good, images=tmp_path / "none")
    with pytest.raises(DataError, match="cannot read"):
        convert(good, annotations=[tmp_path / "none.jsonl"])


# The agreed samples


def test_hostile_lines_of_the_sample(shared: Path, tmp_path: Path, prepare_store: Prepare) -> None:
    hostile = tmp_path / "hostile"
    shutil.copytree(shared / "data" / "hostile", hostile)
    hostile.chmod(0o755)
    (hostile / "link_out.jpg").symlink_to("/etc/passwd")

    def run(name: str) -> Prepared:
        return prepare_store("jsonl", {"annotations": [hostile / name], "images": hostile})

    done = run("captions_odd.jsonl")
    lost = {int(id.rpartition(":")[2]) for id in done.lost("caption")}
    assert lost == {1, 2, 3, 4, 6, 14, 15, 16, 17, 18}  # 17: its empty text only
    assert done.count("caption")["kept"] == 9
    done = run("path_traversal.jsonl")
    assert done.count("picture")["kept"] == 1
    assert [x["reason"] for x in done.ledger if x["id"] == "link_out.jpg"] == [
        "outside the image root"
    ]
    assert run("truncated.jsonl").lost("line") == {"truncated.jsonl:6": "not JSON"}
    assert list(run("middle_broken.jsonl").lost("line")) == [
        f"middle_broken.jsonl:{n}" for n in (2, 5, 6)
    ]
    assert run("bom_crlf.jsonl").count("caption")["kept"] == 5
    with pytest.raises(DataError, match="is UTF-16, not UTF-8"):
        run("utf16.jsonl")


def test_hostile_pictures_of_the_sample(
    shared: Path, tmp_path: Path, prepare_store: Prepare
) -> None:
    hostile = shared / "data" / "hostile"
    names = sorted(p.name for p in hostile.iterdir() if p.suffix in (".jpg", ".png", ".gif"))
    path = tmp_path / "all.jsonl"
    path.write_text("\n".join(json.dumps({"image": name, "text": "a dog"}) for name in names))
    done = prepare_store("jsonl", {"annotations": [path], "images": hostile})
    assert done.lost("picture") == {
        "zero_byte.jpg": "empty file",
        "truncated.jpg": "truncated image",
        "bomb_30000x30000.png": "too large",
        "html_page.jpg": "not an image",
    }
    assert len(done.records) == 8


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    options = {"annotations": [tmp_path / "pipe"], "images": tmp_path}
    with pytest.raises(DataError, match="pipe is no file"):
        prepare("jsonl", tmp_path / "store", options, command="x")

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xvlm_core.errors import DataError
from xvlm_core.listing import some
from xvlm_core.tasks.saved_predictions import join, read_answers

NONE: dict[str, Any] = {"box_xyxy_px": None, "probability": None}


def line(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "box_xyxy_px": [1, 2, 3.5, 4], "probability": 0.25, **more}


def saved(folder: Path, *lines: Any) -> Path:
    path = folder / "p.jsonl"
    path.write_bytes(
        b"".join(
            (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines
        )
    )
    return path


def refusal(path: Path, none: dict[str, Any] = NONE) -> str:
    with pytest.raises(DataError) as caught:
        read_answers(path, none)
    assert caught.value.exit_code == 4
    assert caught.value.try_
    return "\n".join(caught.value.lines())


def test_answers_come_by_id_with_the_fields_of_an_answer_alone(tmp_path: Path) -> None:
    path = saved(tmp_path, line("a", present=True, phrase="x"), b"", b"  \r", line("b"))
    found = read_answers(path, NONE)
    assert list(found) == ["a", "b"]
    assert found["b"].line == 4
    assert found["a"].fields == {"box_xyxy_px": [1, 2, 3.5, 4], "probability": 0.25}


def test_a_mark_of_the_byte_order_and_windows_line_ends_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(line("ä")).encode() + b"\r\n")
    assert list(read_answers(path, NONE)) == ["ä"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"id": "\xff"}', "is not UTF-8"),
        (b'["a"]', "is not a JSON object"),
        (b'{"id": "b", "id": "c", "probability": 1}', "has the key id twice"),
        (b'{"probability": NaN, "id": "b"}', "is not JSON"),
        ({"box_xyxy_px": [0, 0, 1, 1], "probability": 1}, "has no id"),
        (line("b", id=7), "has no id"),
        ({"id": "b", "probability": 1}, "has no box_xyxy_px (id b)"),
        ({"id": "b", "box_xyxy_px": [0, 0, 1, 1]}, "has no probability (id b)"),
        (line("b", box_xyxy_px=[0, 0, 1]), "not four finite numbers"),
        (line("b", box_xyxy_px=[0, 0, 1, "1"]), "not four finite numbers"),
        (line("b", box_xyxy_px=[0, 0, 1, True]), "not four finite numbers"),
        (line("b", box_xyxy_px=None), "not four finite numbers"),
        (line("b", box_xyxy_px=[0, 0, 1, 10**400]), "not four finite numbers"),
        (b'{"id": "b", "probability": 1, "box_xyxy_px": [0, 0, 1, 1e999]}', "not four finite"),
        (line("b", box_xyxy_px=[0, 0, 1, 1e300]), "farther out"),
        (line("b", box_xyxy_px=[50, 50, 10, 10]), "x1 <= x2"),
        (line("b", probability=1.01), "not a number from 0 to 1"),
        (line("b", probability=-0.1), "not a number from 0 to 1"),
        (line("b", probability="0.5"), "not a number from 0 to 1"),
        (line("b", probability=True), "not a number from 0 to 1"),
    ],
)
def test_what_is_no_answer_is_named_with_its_line(tmp_path: Path, bad: Any, says: str) -> None:
    told = refusal(saved(tmp_path, line("a"), bad, line("c")))
    assert says in told
    assert "p.jsonl, line 2" in told
    assert len(told) < 600, "one clear line"


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("ranking", ["x"], ["x", 3]),
        ("scores", [0.5, -2], ["0.5"]),
        ("candidates", 16, 1.5),
        ("anything else", {"a": 1}, None),
    ],
)
def test_fields_of_other_tasks(tmp_path: Path, field: str, good: Any, bad: Any) -> None:
    found = read_answers(saved(tmp_path, {"id": "a", field: good}), {field: None})
    assert found["a"].fields == {field: good}
    if bad is not None:
        assert field in refusal(saved(tmp_path, {"id": "a", field: bad}), {field: None})


def test_what_an_answer_may_say_besides(tmp_path: Path) -> None:
    path = saved(tmp_path, line("a", proposal_score=None), line("b"), line("c", proposal_score=2))
    found = read_answers(path, NONE, ("proposal_score",))
    assert [a.fields.get("proposal_score", "no") for a in found.values()] == [None, "no", 2]
    bad = saved(tmp_path, line("a", proposal_score="high"))
    with pytest.raises(DataError, match="proposal_score that is not a finite number"):
        read_answers(bad, NONE, ("proposal_score",))


def test_ids_that_come_twice_are_all_named_with_their_lines(tmp_path: Path) -> None:
    told = refusal(saved(tmp_path, line("a"), line("b"), line("a"), line("b"), line("a")))
    assert "2 ids" in told
    assert "a: lines 1, 3, 5" in told
    assert "b: lines 2, 4" in told


@pytest.mark.parametrize("data", [b"", b"\n \n"])
def test_a_file_without_an_answer(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(data)
    assert "has no predictions" in refusal(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "gone.jsonl")
    assert "cannot be read" in refusal(tmp_path)


REFERENCES = [{"id": "a", "target": 1}, {"id": "b", "target": 2}, {"id": "c", "target": 3}]


def test_answers_meet_what_they_are_compared_with_in_the_order_of_the_data(tmp_path: Path) -> None:
    path = saved(tmp_path, line("c", probability=1), line("a", target="made up"), line("b"))
    answers = read_answers(path, NONE)
    joined = join(path, answers, [REFERENCES[:2], REFERENCES[2:]], NONE)
    assert [[p["id"] for p in part] for part in joined.predictions] == [["a", "b"], ["c"]]
    assert joined.predictions[0][0]["target"] == 1, "the data say what is right, not the file"
    assert joined.predictions[1][0]["probability"] == 1
    assert joined.missing == []
    assert len(answers) == 3


def test_ids_that_the_data_lack_are_listed(tmp_path: Path) -> None:
    path = saved(tmp_path, *[line(name) for name in "abcdefghi"])
    with pytest.raises(DataError, match=r"6 ids of p\.jsonl are not in the data") as caught:
        join(path, read_answers(path, NONE), [REFERENCES], NONE, allow_missing=True)
    assert caught.value.details == (
        "d: line 4",
        "e: line 5",
        "f: line 6",
        "g: line 7",
        "h: line 8",
        "and 1 more",
    )


def test_missing_ids_are_listed_or_counted_as_wrong(tmp_path: Path) -> None:
    path = saved(tmp_path, line("b"))
    answers = read_answers(path, NONE)
    with pytest.raises(DataError, match="2 items of the data have no prediction") as caught:
        join(path, answers, [REFERENCES], NONE)
    assert caught.value.details == ("a", "c")
    assert caught.value.exit_code == 4
    assert "--allow-missing" in str(caught.value.try_)
    joined = join(path, answers, [REFERENCES], NONE, allow_missing=True)
    assert joined.missing == ["a", "c"]
    assert joined.predictions[0][0] == {**NONE, **REFERENCES[0]}


CAPTION: dict[str, Any] = {"caption": ""}
ANSWER: dict[str, Any] = {"answer": ""}


def listed(folder: Path, *members: Any) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(list(members), indent=1), "utf-8")
    return path


PICTURES = [
    {"id": "val/391895", "record": "val/391895"},
    {"id": "COCO_val2014_000000006818.jpg", "record": "COCO_val2014_000000006818.jpg"},
    {"id": "0:flickr/77", "record": "77"},
]


def test_the_file_of_the_caption_server_is_read_as_it_is(tmp_path: Path) -> None:
    rows = [
        {"image_id": 6818, "caption": "b"},
        {"image_id": 391895, "caption": "a"},
        {"image_id": "000000000077", "caption": "c"},
    ]
    path = listed(tmp_path, *rows)
    joined = join(path, read_answers(path, CAPTION), [PICTURES], CAPTION)
    assert [p["caption"] for p in joined.predictions[0]] == ["a", "b", "c"]
    path = saved(tmp_path, *rows)
    joined = join(path, read_answers(path, CAPTION), [PICTURES], CAPTION)
    assert [p["caption"] for p in joined.predictions[0]] == ["a", "b", "c"]


def test_the_file_of_the_vqa_server_is_read_as_it_is(tmp_path: Path) -> None:
    asked = [{"id": "train/6818#0", "question_id": "68180"}, {"id": "9", "question_id": "9"}]
    path = listed(tmp_path, {"question_id": 9, "answer": "b"}, {"question_id": 68180, "answer": ""})
    joined = join(path, read_answers(path, ANSWER), [asked], ANSWER)
    assert [p["answer"] for p in joined.predictions[0]] == ["", "b"]


def test_a_number_that_two_pictures_have_is_neither(tmp_path: Path) -> None:
    path = listed(tmp_path, {"image_id": 7, "caption": "a"}, {"image_id": 8, "caption": "b"})
    twins = [{"id": name, "record": name} for name in ("train/7", "val/7", "val/8")]
    with pytest.raises(DataError, match=r"1 id of results\.json is not in the data") as caught:
        join(path, read_answers(path, CAPTION), [twins[:2], twins[2:]], CAPTION)
    assert caught.value.details == ("7: member 1",)


@pytest.mark.parametrize("given", ["test/7", "1:b/val/7", "8.5", "7.x"])
def test_a_name_with_a_folder_or_a_point_is_no_number(tmp_path: Path, given: str) -> None:
    """A file of another split, or of another store: its pictures have the same numbers."""
    path = listed(tmp_path, {"image_id": given, "caption": "a"})
    asked = [{"id": name, "record": name} for name in ("val/7", "8.1")]
    with pytest.raises(DataError, match=r"not in the data|none of the"):
        join(path, read_answers(path, CAPTION), [asked], CAPTION, allow_missing=True)


@pytest.mark.parametrize("given", ["val2014/COCO_val2014_000000000007.jpg", "000000000007.jpg"])
def test_coco_s_own_names_are_numbers(tmp_path: Path, given: str) -> None:
    path = listed(tmp_path, {"image_id": given, "caption": "a"})
    joined = join(path, read_answers(path, CAPTION), [[{"id": "v/7", "record": "v/7"}]], CAPTION)
    assert joined.predictions[0][0]["caption"] == "a"


def test_two_names_of_one_picture_are_two_answers(tmp_path: Path) -> None:
    path = listed(
        tmp_path,
        {"image_id": 391895, "caption": "a"},
        {"image_id": "val/391895", "caption": "b"},
    )
    with pytest.raises(DataError, match="answered more than once") as caught:
        join(path, read_answers(path, CAPTION), [PICTURES], CAPTION, allow_missing=True)
    assert caught.value.details == ("val/391895: members 1, 2",)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'[{"image_id": 1, "caption": "a"},\n {"image_id": 2, "caption"]', "(line 2)"),
        (b'[{"image_id": 1, "caption": "a"}, 3]', "member 2"),
        (b'[{"image_id": 1, "caption": "a"}, {"image_id": 2}]', "no caption (id 2)"),
        (b'[{"image_id": true, "caption": "a"}]', "no id"),
        (b'[{"question_id": 1, "caption": "a"}]', "no id"),
        (b'[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]', "members 1, 2"),
        (b"[]", "no predictions"),
        (b'[{"image_id": 1, "caption": "\xe9"}]', "iconv"),
        ('{"id": "a", "caption": "b"}'.encode("utf-16"), "UTF-16"),
    ],
)
def test_a_damaged_list_is_told_with_what_a_list_looks_like(
    tmp_path: Path, text: bytes, says: str
) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text)
    told = refusal(path, CAPTION)
    assert says in told
    assert "results.json" in told


def test_what_a_file_should_look_like_names_the_fields_of_the_task(tmp_path: Path) -> None:
    path = saved(tmp_path, {"id": "a", "answer": 3})
    told = refusal(path, ANSWER)
    assert "has an answer that is not a text (id a)" in told
    assert "with id and answer, as xvlm evaluate writes them; or a JSON list" in told
    assert "question_id and answer" in told
    assert "a JSON list" not in refusal(saved(tmp_path, {"id": "a"}))


def test_predictions_of_other_data_are_told_as_such(tmp_path: Path) -> None:
    path = saved(tmp_path, line("x"), line("y"))
    with pytest.raises(DataError, match=r"none of the 2 ids of p\.jsonl is in the data"):
        join(path, read_answers(path, NONE), [REFERENCES], NONE, allow_missing=True)
    with pytest.raises(DataError) as caught:
        join(path, read_answers(path, NONE), [REFERENCES], NONE)
    assert caught.value.details[-1] == f"ids of the data: {some([r['id'] for r in REFERENCES])}"


def test_answers_to_what_cannot_be_scored_are_no_error(tmp_path: Path) -> None:
    left_out: set[str] = set()

    def scored() -> Iterator[dict[str, Any]]:
        yield PICTURES[0]
        left_out.add("val/17")  # no reference caption: known when the data have been read

    rows = [{"image_id": 391895, "caption": "a"}, {"image_id": 17, "caption": "b"}]
    path = listed(tmp_path, *rows)
    answers = read_answers(path, CAPTION)
    joined = join(path, answers, [scored()], CAPTION, left_out=[left_out])
    assert [p["caption"] for p in joined.predictions[0]] == ["a"]
    with pytest.raises(DataError, match="1 id of"):
        join(path, answers, [scored()], CAPTION)

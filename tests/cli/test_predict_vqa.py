from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.tasks.questions import ANSWERS, write_question_model

COLOUR, THERE = "What colour is the circle?", "is there a star"


@pytest.fixture(scope="session")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_question_model(tmp_path_factory.mktemp("models") / "vqa")


@pytest.fixture
def shots(tmp_path: Path) -> list[str]:
    for name in ("a.png", "b.png"):
        pixels = np.random.default_rng(ord(name[0])).integers(0, 255, (30, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return ["a.png", "b.png"]


def stdin(monkeypatch: pytest.MonkeyPatch, *lines: Any) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_questions_about_pictures_have_ranked_answers(
    xvlm: Run, shots: list[str], answerer: Path
) -> None:
    done = xvlm("predict", "vqa", *shots, COLOUR, THERE, "-c", answerer, "--top", 3)
    assert done.code == 0
    for said in ("a.png", "b.png", COLOUR, THERE, "probability", "Answered by"):
        assert said in done.out
    words = ("predict", "vqa", *shots, COLOUR, THERE, "-c", answerer, "--json")
    rows = xvlm(*words, "--top", 99).document()["result"]["images"]
    assert [row["image"] for row in rows] == shots
    for row in rows:
        assert [q["question"] for q in row["questions"]] == [COLOUR, THERE]
        for question in row["questions"]:
            assert sorted(a["answer"] for a in question["answers"]) == sorted(ANSWERS)
            probabilities = [a["probability"] for a in question["answers"]]
            assert probabilities == sorted(probabilities, reverse=True)
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)
            assert question["answer"] == question["answers"][0]["answer"]
    few = xvlm(*words, "--top", 2).document()["result"]["images"][0]["questions"][0]
    assert few["answers"] == rows[0]["questions"][0]["answers"][:2]
    assert not [p for p in Path().iterdir() if p.suffix not in (".png", ".jsonl")]


def test_other_answers_can_be_chosen_from_and_one_can_be_written_freely(
    xvlm: Run, shots: list[str], answerer: Path
) -> None:
    Path("mine.txt").write_text("cyan\npurple\n")
    words = ("predict", "vqa", "a.png", COLOUR, "-c", answerer, "--json")
    (asked,) = xvlm(*words, "--answers", "mine.txt").document()["result"]["images"][0]["questions"]
    assert {a["answer"] for a in asked["answers"]} == {"cyan", "purple"}
    (asked,) = xvlm(*words, "--open").document()["result"]["images"][0]["questions"]
    assert len(asked["answers"]) == 1
    assert 0 < asked["probability"] <= 1
    assert "leave one" in xvlm(*words[:-1], "--open", "--answers", "mine.txt").refusal(2)
    Path("mine.txt").write_text("cyan\ncyan\n")
    assert "cannot be chosen" in xvlm(*words[:-1], "--answers", "mine.txt").refusal(4)
    Path("mine.txt").write_text("cyan\n")
    assert "fewer than two" in xvlm(*words[:-1], "--answers", "mine.txt").refusal(4)
    assert "--open is for vqa" in xvlm("predict", "grounding", "a.png", "x", "--open").refusal(2)


def test_lines_of_standard_input_are_one_call(
    xvlm: Run, shots: list[str], answerer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [{"image": shots[i % 2], "questions": [COLOUR] * (1 + i % 3)} for i in range(40)]
    stdin(monkeypatch, *asked)
    rows = xvlm("predict", "vqa", "-", "-c", answerer, "--json").document()["result"]["images"]
    assert [(row["image"], len(row["questions"])) for row in rows] == [
        (line["image"], len(line["questions"])) for line in asked
    ]
    alone = xvlm("predict", "vqa", "a.png", COLOUR, "-c", answerer, "--json").document()
    (one,) = alone["result"]["images"][0]["questions"]
    assert rows[6]["questions"][0]["answer"] == one["answer"]
    assert rows[6]["questions"][0]["probability"] == pytest.approx(one["probability"], abs=1e-5)


def test_a_question_of_500_words_is_cut_and_that_is_said(
    xvlm: Run, shots: list[str], answerer: Path
) -> None:
    long = " ".join(["red"] * 500)
    done = xvlm("predict", "vqa", "a.png", long, "-c", answerer, "--json")
    document = done.document()
    (asked,) = document["result"]["images"][0]["questions"]
    assert asked["cut"]
    assert asked["read_as"] == " ".join(["red"] * 11), "CLS and eleven words"
    assert asked["question"] == long
    assert any("a question is too long" in warning for warning in document["warnings"])


def test_a_table_and_warnings_have_room_for_500_words(
    xvlm: Run, shots: list[str], answerer: Path
) -> None:
    unheard_of = " ".join(f"word{n}" for n in range(500))
    done = xvlm("predict", "vqa", "a.png", " ".join(["red"] * 500), unheard_of, "-c", answerer)
    assert done.code == 0
    assert "red red" in done.out
    assert "word0 word1" in done.out
    assert max(map(len, [*done.out.splitlines(), *done.err.splitlines()])) < 300
    assert "500 words" in done.err
    again = xvlm("predict", "vqa", "a.png", "red\ncircle?", "-c", answerer, "--top", "1")
    assert "red circle?" in again.out, "a row is a line"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes\nno\nyes\n", "line 3 is the same as line 1: 'yes'"),
        ("yes\n", "fewer than two answers"),
        ("red\nRED\n", "reads like 'red': 'RED'"),
        ('{"red": 0, "blue": 1}', "not a list of answers but an object"),
        ('["red", " "]', "has no word"),
    ],
)
def test_a_list_that_is_none_is_refused_and_its_file_named(
    text: str, said: str, xvlm: Run, shots: list[str], answerer: Path
) -> None:
    Path("list.txt").write_text(text)
    told = xvlm("predict", "vqa", "a.png", COLOUR, "-c", answerer, "--answers", "list.txt")
    refused = told.refusal(4)
    assert said in refused
    assert "Where: list.txt" in refused
    assert "Try: " in refused
    assert "--help" not in refused


def test_words_that_the_model_does_not_know_are_said(
    xvlm: Run, shots: list[str], answerer: Path
) -> None:
    words = ("predict", "vqa", "a.png", "is there a \u4e9e", COLOUR, "-c", answerer)
    document = xvlm(*words, "--json").document()
    assert "words that the model does not know: \u4e9e" in document["warnings"]
    asked = document["result"]["images"][0]["questions"]
    assert [question["unknown_words"] for question in asked] == [["\u4e9e"], []]


def test_each_answer_of_the_table_has_its_own_probability(
    xvlm: Run, shots: list[str], answerer: Path
) -> None:
    words = ("predict", "vqa", "a.png", COLOUR, "-c", answerer, "--top", 3)
    (asked,) = xvlm(*words, "--json").document()["result"]["images"][0]["questions"]
    lines = xvlm(*words).out.splitlines()
    for place, one in enumerate(asked["answers"]):
        (row,) = [line for line in lines if line.endswith(f"{one['probability']:.3f}")]
        assert one["answer"] in row
        assert (COLOUR in row) == (place == 0), "the question stands beside the best answer"


def test_an_unreadable_picture_is_named_and_the_rest_is_answered(
    xvlm: Run, shots: list[str], answerer: Path
) -> None:
    Path("torn.png").write_bytes(b"no picture")
    done = xvlm("predict", "vqa", "torn.png", "a.png", COLOUR, "-c", answerer, "--json")
    assert done.code == 4
    document = json.loads(done.out)
    assert [row["image"] for row in document["result"]["images"]] == ["a.png"]
    assert document["error"]["what"] == "picture torn.png: not an image"
    assert document["result"]["failed"] == ["picture torn.png: not an image"]
    assert "1 of 2 pictures were answered" in document["error"]["where"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["a.png", ""], 2, "a question is empty"),
        (["a.png", " "], 2, "a question is empty"),
        (["a.png", "?!"], 2, "nothing is left of the question"),
        (["a.png"], 2, "no question was given"),
        ([COLOUR], 2, "no picture was given"),
        (["a.png", "http://x/b.png", COLOUR], 2, "is a URL"),
        (["gone.png", COLOUR], 4, "gone.png is not there"),
        (["gone.png", COLOUR], 4, "meant as a question, --phrase"),
        (["a.png", COLOUR, "-o", "out"], 2, "vqa writes no files"),
        (["a.png", COLOUR, "--answers", "gone.txt"], 4, "cannot read gone.txt"),
    ],
)
def test_what_is_refused(
    words: list[str], code: int, said: str, xvlm: Run, shots: list[str], answerer: Path
) -> None:
    assert said in xvlm("predict", "vqa", *words, "-c", answerer).refusal(code)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", 4),
        ('{"image": "a.png"}', 4),
        ('{"image": "a.png", "questions": []}', 4),
        ('{"image": "a.png", "questions": [""]}', 2),
        ('{"questions": ["x"]}', 4),
        ("", 4),
    ],
)
def test_a_bad_line_is_named(
    text: str, code: int, xvlm: Run, answerer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(monkeypatch, text)
    assert "standard input" in xvlm("predict", "vqa", "-", "-c", answerer).refusal(code)


def test_what_is_wrong_with_a_line_is_said_in_plain_words(
    xvlm: Run, answerer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = b'{"image": "a.png", "questions": ["red?"]}\n'
    bad = good.replace(b"red", b"caf\xe9")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(good + bad)))
    said = xvlm("predict", "vqa", "-", "-c", answerer).refusal(4)
    assert "not UTF-8 (byte 37)" in said
    assert "standard input, line 2" in said
    assert "codec" not in said
    twice = b'{"image": "a.png", "questions": ["red?"], "image": "b.png"}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(twice)))
    said = xvlm("predict", "vqa", "-", "-c", answerer).refusal(4)
    assert "the key 'image' stands twice in the line" in said
    stdin(monkeypatch, {"image": "a.png", "questions": "red?"})
    said = xvlm("predict", "vqa", "-", "-c", answerer).refusal(4)
    assert "questions of the line are one text, not a list" in said


def test_a_model_without_a_list_says_how_to_give_one(
    xvlm: Run, shots: list[str], tmp_path: Path
) -> None:
    model = write_question_model(tmp_path / "bare", answers=())
    said = xvlm("predict", "vqa", "a.png", COLOUR, "-c", model).refusal(5)
    assert "which answers it chooses from" in said
    assert "--answers FILE" in said
    assert xvlm("predict", "vqa", "a.png", COLOUR, "-c", model, "--open").code == 0


def test_a_dry_run_reads_no_picture(xvlm: Run, answerer: Path) -> None:
    Path("a.png").write_bytes(b"no picture")
    done = xvlm("predict", "vqa", "a.png", COLOUR, "-c", answerer, "--dry-run")
    assert done.code == 0
    assert COLOUR in done.out

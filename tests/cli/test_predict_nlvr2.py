from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.tasks.pairs import write_pair_model

TRUE = "both pictures contain a red circle"


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair_model(tmp_path_factory.mktemp("models") / "nlvr2")


@pytest.fixture
def shots(tmp_path: Path) -> list[str]:
    for name in ("a.png", "b.png", "c.png"):
        pixels = np.random.default_rng(ord(name[0])).integers(0, 255, (30, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return ["a.png", "b.png", "c.png"]


def stdin(monkeypatch: pytest.MonkeyPatch, *lines: Any) -> None:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def line(left: str, right: str, *statements: str) -> dict[str, list[str]]:
    return {"images": [left, right], "statements": list(statements)}


def test_a_statement_about_two_pictures(xvlm: Run, shots: list[str], judge: Path) -> None:
    done = xvlm("predict", "nlvr2", "a.png", "b.png", TRUE, "neither is red", "-c", judge)
    assert done.code == 0
    for said in ("a.png", "b.png", TRUE, "neither is red", "probability", "a-b.judged.png"):
        assert said in done.out
    with Image.open("a-b.judged.png") as drawn:
        assert drawn.info["Software"] == "xvlm"
        assert drawn.width > drawn.height
    written = json.loads(Path("a-b.judged.json").read_text())
    assert written["images"] == ["a.png", "b.png"]
    first, second = written["judgements"]
    assert (first["statement"], second["statement"]) == (TRUE, "neither is red")
    for judgement in (first, second):
        assert 0 <= judgement["probability"] <= 1
        assert judgement["answer"] == (judgement["probability"] >= 0.5)
    assert xvlm("predict", "nlvr2", "a.png", "b.png", TRUE, "-c", judge).code == 0, "its own files"


def test_left_and_right_are_as_typed(xvlm: Run, shots: list[str], judge: Path) -> None:
    words = ("predict", "nlvr2", TRUE, "-c", judge, "--json", "--no-files")
    one = xvlm(*words, "a.png", "b.png").document()["result"]["pairs"][0]
    other = xvlm(*words, "b.png", "a.png").document()["result"]["pairs"][0]
    assert (one["images"], other["images"]) == (["a.png", "b.png"], ["b.png", "a.png"])
    assert one["judgements"][0]["probability"] != other["judgements"][0]["probability"]
    same = xvlm(*words, "a.png", "a.png").document()["result"]["pairs"][0]
    assert same["images"] == ["a.png", "a.png"]
    assert not list(Path().glob("*.judged.*"))


def test_many_pairs_on_standard_input_are_one_call(
    xvlm: Run, shots: list[str], judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [line(shots[i % 3], shots[(i + 1) % 3], TRUE, f"picture {i}") for i in range(50)]
    stdin(monkeypatch, *asked)
    words = ("predict", "nlvr2", "-", "-c", judge, "--json")
    result = xvlm(*words, "--no-files").document()["result"]
    assert [row["images"] for row in result["pairs"]] == [row["images"] for row in asked]
    assert all(len(row["judgements"]) == 2 for row in result["pairs"])
    repeated = [row["judgements"][0]["probability"] for row in result["pairs"][::3]]
    assert repeated == pytest.approx([repeated[0]] * len(repeated), abs=1e-5)
    stdin(monkeypatch, asked[0], asked[1], asked[3])
    rows = xvlm(*words, "-o", "out").document()["result"]["pairs"]
    names = [Path(row["drawn"]).name for row in rows]
    assert names == ["a-b.judged.png", "b-c.judged.png", "a-b-2.judged.png"]
    assert all(Path(row["drawn"]).is_file() for row in rows)


def test_an_unreadable_picture_is_named_and_the_rest_is_answered(
    xvlm: Run, shots: list[str], judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("torn.png").write_bytes(b"no picture")
    stdin(
        monkeypatch,
        line("a.png", "torn.png", TRUE),
        line("a.png", "b.png", TRUE),
        line("gone.png", "b.png", TRUE),
    )
    done = xvlm("predict", "nlvr2", "-", "-c", judge, "--json", "--no-files")
    assert done.code == 4
    document = json.loads(done.out)
    assert [row["images"] for row in document["result"]["pairs"]] == [["a.png", "b.png"]]
    error = document["error"]
    assert error["details"] == [
        "pair a.png torn.png: picture torn.png: not an image",
        "pair gone.png b.png: picture gone.png: missing",
    ]
    assert "1 of 3 pairs were answered" in error["where"]
    assert document["result"]["failed"] == error["details"]


def test_a_pair_that_cannot_be_read_at_all(xvlm: Run, shots: list[str], judge: Path) -> None:
    Path("torn.png").write_bytes(b"no picture")
    err = xvlm("predict", "nlvr2", "a.png", "torn.png", TRUE, "-c", judge, "--no-files").refusal(4)
    assert "torn.png: not an image" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["a.png", TRUE], 2, "two pictures; 1 was given"),
        (["a.png", "b.png", "c.png", TRUE], 2, "two pictures; 3 were given"),
        ([TRUE], 2, "none were given"),
        (["a.png", "b.png"], 2, "no statement"),
        (["a.png", "b.png", " "], 2, "empty"),
        (["a.png", "http://x/b.png", TRUE], 2, "is a URL"),
        (["a.png", "gone.png", TRUE], 4, "gone.png is not there"),
        (["a.png", "b.png", "?!"], 2, "nothing is left"),
    ],
)
def test_what_is_refused(
    words: list[str], code: int, said: str, xvlm: Run, shots: list[str], judge: Path
) -> None:
    assert said in xvlm("predict", "nlvr2", *words, "-c", judge, "--no-files").refusal(code)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", 4),
        ("[]", 4),
        ('{"images": ["a.png"], "statements": ["x"]}', 4),
        ('{"images": ["a.png", 3], "statements": ["x"]}', 4),
        ('{"images": ["a.png", "http://x/b.png"], "statements": ["x"]}', 2),
        ('{"images": ["a.png", "b.png"]}', 4),
        ('{"images": ["a.png", "b.png"], "statements": [" "]}', 2),
        ("", 4),
    ],
)
def test_a_bad_line_is_named(
    text: str, code: int, xvlm: Run, judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [line("a.png", "b.png", TRUE)] if text else []
    stdin(monkeypatch, *good, text)
    err = xvlm("predict", "nlvr2", "-", "-c", judge, "--no-files").refusal(code)
    assert "line 2" in err or not text


def test_files_of_others_and_inputs_are_not_written_over(
    xvlm: Run, shots: list[str], judge: Path
) -> None:
    words = ("predict", "nlvr2", "a.png", "b.png", TRUE, "-c", judge)
    before = Path("a.png").read_bytes()
    assert "to be read" in xvlm(*words, "-o", "a.png", "--overwrite").refusal(2)
    assert Path("a.png").read_bytes() == before
    os.rename("c.png", "a-b.judged.png")
    assert "did not write it" in xvlm(*words).refusal(2)
    assert xvlm(*words, "--overwrite").code == 0


def test_a_dry_run_says_what_would_be_done(xvlm: Run, shots: list[str], judge: Path) -> None:
    done = xvlm("predict", "nlvr2", "a.png", "b.png", TRUE, "-c", judge, "--dry-run")
    assert done.code == 0
    assert "a.png b.png" in done.out
    assert "a-b.judged.png" in done.out
    assert not Path("a-b.judged.png").exists()


def test_a_model_for_something_else_is_refused(xvlm: Run, shots: list[str], model: Path) -> None:
    err = xvlm("predict", "nlvr2", "a.png", "b.png", TRUE, "-c", model).refusal(5)
    assert "not for nlvr2" in err


def test_words_the_model_does_not_know_are_said(xvlm: Run, shots: list[str], judge: Path) -> None:
    words = ("predict", "nlvr2", "a.png", "b.png", "both 犬", "-c", judge, "--no-files")
    assert "does not know: 犬" in xvlm(*words).err

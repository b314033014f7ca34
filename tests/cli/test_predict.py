from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run, write_model

PHRASE = "man wearing backpack"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with three pictures and a text file."""
    folder = tmp_path / "shots"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def answers(result: Any) -> dict[str, list[str]]:
    return {
        row["image"]: [grounding["phrase"] for grounding in row["groundings"]]
        for row in result["pictures"]
    }


def test_the_command_of_the_readme(xvlm: Run, picture: Path, pretrained: Path) -> None:
    """``xvlm predict grounding image.jpg "man wearing backpack"``: box, probability, picture."""
    shutil.copytree(pretrained, "runs/pretrain-x")
    done = xvlm("predict", "grounding", "image.jpg", PHRASE)
    assert done.code == 0
    assert PHRASE in done.out
    assert "probability" in done.out
    assert "pretrain-x" in done.out, "which model answered"
    assert "pretrain-x" in done.err
    with Image.open("image.grounded.png") as drawn:
        assert drawn.info["Software"] == "xvlm"
    written = json.loads(Path("image.grounded.json").read_text())
    (grounding,) = written["groundings"]
    x1, y1, x2, y2 = grounding["box_xyxy_px"]
    assert 0 <= x1 <= x2 <= 60
    assert 0 <= y1 <= y2 <= 40
    assert 0 <= grounding["probability"] <= 1


def test_the_same_command_again_replaces_its_own_files(
    xvlm: Run, picture: Path, model: Path
) -> None:
    words = ("predict", "grounding", "image.jpg", PHRASE, "-c", model)
    assert xvlm(*words).code == 0
    assert xvlm(*words).code == 0


@pytest.mark.parametrize("name", ["image.grounded.png", "image.grounded.json"])
def test_files_of_others_are_not_replaced(
    name: str, xvlm: Run, picture: Path, model: Path, tmp_path: Path
) -> None:
    mine = tmp_path / name
    Image.new("RGB", (3, 3)).save(mine, "PNG")
    before = mine.read_bytes()
    words = ("predict", "grounding", "image.jpg", PHRASE, "-c", model)
    assert "--overwrite" in xvlm(*words).refusal(2)
    assert mine.read_bytes() == before
    assert xvlm(*words, "--overwrite").code == 0
    assert mine.read_bytes() != before


def test_files_folders_globs_and_many_phrases(
    xvlm: Run, picture: Path, pictures: Path, model: Path
) -> None:
    words = ("predict", "grounding", "-c", model, "--json", "-o", "out")
    both = ["a red circle", "a dog?"]
    result = xvlm(*words, "image.jpg", "shots", *both).document()["result"]
    assert answers(result) == {
        "image.jpg": both,
        "shots/0.png": both,
        "shots/1.png": both,
        "shots/2.png": both,
    }
    result = xvlm(*words, "shots/[01].png", "shots/0.png", *both).document()["result"]
    assert list(answers(result)) == ["shots/0.png", "shots/1.png"]
    assert len(list(Path("out").glob("*.grounded.png"))) == 4


def test_pictures_of_one_name_get_files_of_their_own(
    xvlm: Run, pictures: Path, model: Path
) -> None:
    shutil.copytree(pictures, "more")
    words = ("predict", "grounding", "shots/0.png", "more/0.png", "dog", "-c", model, "--json")
    rows = xvlm(*words).document()["result"]["pictures"]
    assert [row["annotated"] for row in rows] == ["0.grounded.png", "0-2.grounded.png"]
    assert all(Path(row["annotated"]).is_file() for row in rows)


def test_annotated_pictures_are_not_inputs(xvlm: Run, pictures: Path, model: Path) -> None:
    words = ("predict", "grounding", "shots", "dog", "-c", model, "-o", "shots", "--json")
    first, second = xvlm(*words).document(), xvlm(*words).document()
    assert answers(first["result"]) == answers(second["result"])


def test_json_lines_on_standard_input(
    xvlm: Run, pictures: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"image": "shots/0.png", "phrases": ["a dog", "a cat"]},
        {"image": "shots/1.png", "phrases": ["a tree"]},
    ]
    text = "".join(json.dumps(line) + "\n\n" for line in lines)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    words = ("predict", "grounding", "-", "-c", model, "--no-files", "--json")
    result = xvlm(*words).document()["result"]
    assert answers(result) == {"shots/0.png": ["a dog", "a cat"], "shots/1.png": ["a tree"]}
    assert not list(Path().glob("*.grounded.*"))


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", 4),
        ("[]", 4),
        ('{"image": "shots/0.png"}', 4),
        ('{"phrases": ["x"]}', 4),
        ('{"image": "shots/0.png", "phrases": [" "]}', 2),
        ('{"image": "http://x/y.jpg", "phrases": ["x"]}', 2),
        ('{"image": "a\\u0000b.jpg", "phrases": ["x"]}', 4),
        ('{"image": "shots/0.png", "phrases": ["\\ud800"]}', 2),
        ("", 4),
    ],
)
def test_a_bad_line_is_named(
    line: str, code: int, xvlm: Run, pictures: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(line))
    error = xvlm("predict", "grounding", "-", "-c", model).refusal(code)
    assert "line 1" in error or not line


def test_a_word_that_names_a_file_can_still_be_a_phrase(
    xvlm: Run, picture: Path, pictures: Path, model: Path
) -> None:
    words = ("predict", "grounding", "image.jpg", "--phrase", "shots", "-c", model, "--json")
    assert answers(xvlm(*words).document()["result"]) == {"image.jpg": ["shots"]}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("grounding", "gone.jpg", "dog"), 4, "gone.jpg is not there"),
        (("grounding", "gone/*.jpg", "dog"), 4, "no file matches"),
        (("grounding", "empty", "dog"), 4, "no picture in the folder"),
        (("grounding", "image.jpg", ""), 2, "a phrase is empty"),
        (("grounding", "image.jpg", " \t"), 2, "a phrase is empty"),
        (("grounding", "image.jpg"), 2, "no phrase"),
        (("grounding", "dog"), 2, "no picture"),
        (("grounding",), 2, "no picture"),
        (("grounding", "https://a.b/c.jpg", "dog"), 2, "URL"),
        (("groundin", "image.jpg", "dog"), 2, "no task"),
        (("grounding", "image.jpg", "dog", "-o", "file/out"), 2, "file"),
        (("grounding", "image.jpg", "dog", "--device", "abacus"), 2, "abacus"),
        (("grounding", "image.jpg", "?!"), 2, "nothing is left"),
        (("grounding", "image.jpg", "gone/*", "dog"), 4, "no file matches gone/*"),
        (("grounding", "image.jpg", "gone/", "dog"), 4, "folder gone/ is not there"),
        (("grounding", "image.jpg", "dog \udcff"), 2, "UTF-8"),
        (("grounding", "image.jpg", "dog", "-o", "file"), 2, "file is a file"),
        (("grounding", "~no-such-user/a.jpg", "dog"), 4, "is not there"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...], code: int, says: str, xvlm: Run, picture: Path, model: Path
) -> None:
    Path("empty").mkdir()
    Path("file").touch()
    error = xvlm("predict", *words, "-c", model).refusal(code)
    assert says in error
    assert not list(Path().rglob("*.grounded.*"))


@pytest.mark.parametrize("content", [b"", b"no picture at all", "cut"])
def test_a_picture_that_cannot_be_read(
    content: bytes | str, xvlm: Run, picture: Path, model: Path
) -> None:
    if isinstance(content, str):
        content = picture.read_bytes()[:300]
    picture.write_bytes(content)
    error = xvlm("predict", "grounding", "image.jpg", "dog", "-c", model).refusal(4)
    assert "image.jpg" in error
    assert not list(Path().glob("*.grounded.*"))


def test_the_readable_ones_are_answered_and_the_others_named(
    xvlm: Run, pictures: Path, model: Path
) -> None:
    (pictures / "1.png").write_bytes(b"broken")
    done = xvlm("predict", "grounding", "shots", "dog", "-c", model, "--json", "-o", "out")
    assert done.code == 4
    document = done.document()
    assert list(answers(document["result"])) == ["shots/0.png", "shots/2.png"]
    assert "shots/1.png" in document["error"]["what"]
    names = sorted(path.name for path in Path("out").glob("*.png"))
    assert names == ["0.grounded.png", "2.grounded.png"]
    drawn = {row["image"]: row["annotated"] for row in document["result"]["pictures"]}
    assert drawn["shots/2.png"] == "out/2.grounded.png"


def test_a_picture_that_is_read_is_never_written_over(
    xvlm: Run, pictures: Path, model: Path
) -> None:
    words = ("predict", "grounding", "shots/0.png", "dog", "-c", model, "--overwrite")
    before = (pictures / "0.png").read_bytes()
    xvlm(*words, "-o", "shots/0.png").refusal(2)
    assert (pictures / "0.png").read_bytes() == before
    xvlm("predict", "grounding", "shots", "dog", "-c", model, "-o", "one.png").refusal(2)


def test_models_are_looked_for_in_the_agreed_order(
    xvlm: Run, picture: Path, model: Path, pretrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("predict", "grounding", "image.jpg", "dog", "--no-files", "--json")

    def origin(*more: str | Path) -> str:
        return str(xvlm(*words, *more).document()["result"]["model"]["origin"])

    shutil.copytree(pretrained, "runs/pretrain-x")
    assert "pretrain-x" in origin()
    monkeypatch.setenv("XVLM_CHECKPOINT", str(model))
    assert "XVLM_CHECKPOINT" in origin()
    assert "--checkpoint" in origin("--checkpoint", "runs/pretrain-x")


@pytest.mark.parametrize("given", ["gone", "image.jpg", "."])
def test_what_is_no_model_is_refused(given: str, xvlm: Run, picture: Path) -> None:
    xvlm("predict", "grounding", "image.jpg", "dog", "-c", given).refusal(5)


def test_a_model_of_another_task_is_refused(xvlm: Run, picture: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", heads=("contrastive",))
    error = xvlm("predict", "grounding", "image.jpg", "dog", "-c", other).refusal(5)
    assert "head" in error


def test_a_truncated_model_is_refused(xvlm: Run, picture: Path, model: Path) -> None:
    shutil.copytree(model, "m")
    weights = Path("m/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:5000])
    xvlm("predict", "grounding", "image.jpg", "dog", "-c", "m").refusal(5)


def test_words_the_model_does_not_know_are_said(xvlm: Run, picture: Path, model: Path) -> None:
    document = xvlm(
        "predict", "grounding", "image.jpg", "red 日本語", "-c", model, "--no-files", "--json"
    ).document()
    assert any("日本語" in warning for warning in document["warnings"])


def test_a_phrase_that_is_cut_is_said(xvlm: Run, picture: Path, model: Path) -> None:
    words = ("predict", "grounding", "image.jpg", "red circle " * 40, "-c", model, "--json")
    document = xvlm(*words).document()
    assert any("too long" in warning for warning in document["warnings"])
    assert document["result"]["pictures"][0]["groundings"][0]["cut"]
    short = xvlm("predict", "grounding", "image.jpg", "red circle", "-c", model, "--json")
    assert not any("too long" in warning for warning in short.document()["warnings"])


def test_lines_on_standard_input_are_utf8_whatever_the_locale(
    xvlm: Run, pictures: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("predict", "grounding", "-", "-c", model, "--no-files", "--json")
    line = json.dumps({"image": "shots/0.png", "phrases": ["é"]}, ensure_ascii=False)

    def given(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))

    given(line.encode("utf-8-sig"))
    assert answers(xvlm(*words).document()["result"]) == {"shots/0.png": ["é"]}
    given(line.encode("latin-1"))
    error = xvlm(*words).document()["error"]
    assert (error["exit_code"], error["where"]) == (4, "standard input, line 1")


def test_a_link_that_leads_to_itself_is_one_unreadable_picture(
    xvlm: Run, pictures: Path, model: Path
) -> None:
    (pictures / "loop.png").symlink_to("loop.png")
    done = xvlm("predict", "grounding", "shots", "dog", "-c", model, "--json").document()
    assert done["error"]["exit_code"] == 4
    assert len(done["result"]["pictures"]) == 3
    assert "loop.png" in done["error"]["what"]


def test_a_file_name_that_is_no_utf8_is_answered(xvlm: Run, picture: Path, model: Path) -> None:
    try:
        shutil.copy(picture, "\udcff.jpg")
    except (OSError, UnicodeEncodeError):
        pytest.skip("this disk takes UTF-8 names only")
    done = xvlm("predict", "grounding", "\udcff.jpg", "dog", "-c", model)
    assert done.code == 0, done.err
    assert json.loads(Path("\udcff.grounded.json").read_bytes())["image"] == "\udcff.jpg"

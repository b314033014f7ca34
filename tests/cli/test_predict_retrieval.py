from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run, write_model

TEXTS = ("a red circle", "blue square")


def paint(path: Path, seed: int, size: tuple[int, int] = (50, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size).save(path)


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """Four pictures in a folder and one in it, and a text file."""
    for number in range(3):
        paint(tmp_path / "shots" / f"{number}.png", number)
    paint(tmp_path / "shots" / "deep" / "er" / "3.jpg", 3)
    (tmp_path / "shots" / "notes.txt").write_text("no picture")
    return tmp_path / "shots"


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "searcher"
    return write_model(folder, task="pretrain", heads=("contrastive", "matching", "box"))


@pytest.fixture(scope="module")
def without_boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "without"
    model = write_model(folder, task="retrieval", heads=("contrastive", "matching"))
    from safetensors.numpy import load_file, save_file

    state = load_file(model / "model.safetensors")
    state["vision_proj.bias"] = state["vision_proj.bias"] + 1  # another model than the searcher
    arrays = {name: np.asarray(value) for name, value in state.items()}
    save_file(arrays, model / "model.safetensors", metadata={"format": "pt"})
    return model


def images(query: Any) -> list[str]:
    return [row["image"] for row in query["pictures"]]


# ---------------------------------------------------------------- a folder


def test_a_folder_is_searched_for_each_text(xvlm: Run, shots: Path, searcher: Path) -> None:
    done = xvlm("predict", "retrieval", "shots", *TEXTS, "-c", searcher)
    assert done.code == 0
    for text in TEXTS:
        assert text in done.out
    assert "probability" in done.out
    assert "similarity" in done.out
    assert "shots/deep/er/3.jpg" in done.out
    for name in ("a-red-circle", "blue-square"):
        with Image.open(f"{name}.retrieved.png") as sheet:
            assert sheet.info["Software"] == "xvlm"
            assert sheet.width > 4 * 256, "four pictures beside each other"


def test_the_document_has_everything(xvlm: Run, shots: Path, searcher: Path) -> None:
    words = ("predict", "retrieval", "shots", *TEXTS, "象", "-c", searcher, "--json", "--region")
    document = xvlm(*words, "-k", "3", "-o", "sheets").document()
    result = document["result"]
    assert result["direction"] == "text to pictures"
    assert result["index"] == {
        "folder": "shots/.xvlm-index", "pictures": 4, "encoded": 4, "kept": 0, "removed": 0,
    }  # fmt: skip
    assert [query["text"] for query in result["queries"]] == [*TEXTS, "象"]
    assert any("象" in warning for warning in document["warnings"])
    for query in result["queries"]:
        assert [row["rank"] for row in query["pictures"]] == [1, 2, 3]
        odds = [row["probability"] for row in query["pictures"]]
        assert odds == sorted(odds, reverse=True)
        for row in query["pictures"]:
            assert (row["width"], row["height"]) == (50, 40)
            x1, y1, x2, y2 = row["box_xyxy_px"]
            assert 0 <= x1 <= x2 <= 50
            assert 0 <= y1 <= y2 <= 40
            assert -1 <= row["similarity"] <= 1
        assert Path(query["drawn"]).is_file()
        assert Path(query["drawn"]).parent == Path("sheets")


def test_the_sheet_has_the_box_of_the_region(xvlm: Run, shots: Path, searcher: Path) -> None:
    words = ("predict", "retrieval", "shots", TEXTS[0], "-c", searcher)
    assert xvlm(*words, "-o", "plain.png").code == 0
    assert xvlm(*words, "-o", "boxes.png", "--region").code == 0
    with Image.open("plain.png") as plain, Image.open("boxes.png") as boxes:
        assert plain.size == boxes.size
        assert plain.tobytes() != boxes.tobytes()


def test_unchanged_pictures_are_not_encoded_again(xvlm: Run, shots: Path, searcher: Path) -> None:
    words = ("predict", "retrieval", "shots", *TEXTS, "-c", searcher, "--json", "--no-files")
    first = xvlm(*words).document()["result"]
    again = xvlm(*words).document()["result"]
    assert (again["index"]["encoded"], again["index"]["kept"]) == (0, 4)
    assert again["queries"] == first["queries"]
    assert not list(Path().glob("*.png"))
    paint(shots / "new.png", 9)
    paint(shots / "0.png", 10, (90, 70))
    (shots / "1.png").unlink()
    third = xvlm(*words).document()["result"]
    assert third["index"]["encoded"] == 2
    assert third["index"]["removed"] == 1
    fresh = xvlm(*words, "--index", "elsewhere").document()["result"]
    assert fresh["index"]["encoded"] == 4
    for query, other in zip(third["queries"], fresh["queries"], strict=True):
        assert set(images(query)) == set(images(other))
        assert "shots/1.png" not in images(query)
        scores = [{r["image"]: r["similarity"] for r in q["pictures"]} for q in (query, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_sheets_in_the_folder_are_not_part_of_it(xvlm: Run, shots: Path, searcher: Path) -> None:
    words = ("predict", "retrieval", "shots", *TEXTS, "-c", searcher, "-o", "shots", "--json")
    first, second = xvlm(*words).document()["result"], xvlm(*words).document()["result"]
    assert first["index"]["pictures"] == second["index"]["pictures"] == 4


def test_more_answers_than_pictures_are_said(xvlm: Run, shots: Path, searcher: Path) -> None:
    words = ("predict", "retrieval", "shots", "dog", "-c", searcher, "--no-files", "-k", "50")
    done = xvlm(*words)
    assert done.code == 0
    assert "there are 4 pictures" in done.err
    assert "there are" not in xvlm(*words[:-1], "4").err


def test_another_model_is_refused_until_told_to_rebuild(
    xvlm: Run, shots: Path, searcher: Path, without_boxes: Path
) -> None:
    assert xvlm("predict", "retrieval", "shots", "dog", "-c", searcher, "--no-files").code == 0
    words = ("predict", "retrieval", "shots", "dog", "-c", without_boxes, "--no-files")
    for more in ((), ("--dry-run",)):
        error = xvlm(*words, *more).refusal(4)
        assert "built by another model: a model of the tests" in error
        assert 'Try: xvlm predict retrieval shots "a text" --rebuild' in error
    result = xvlm(*words, "--rebuild", "--json").document()["result"]
    assert result["index"]["encoded"] == 4
    assert xvlm(*words).code == 0


def test_a_damaged_index_is_refused_until_told_to_rebuild(
    xvlm: Run, shots: Path, searcher: Path
) -> None:
    words = ("predict", "retrieval", "shots", "dog", "-c", searcher, "--no-files")
    assert xvlm(*words).code == 0
    (shots / ".xvlm-index" / "index.json").write_text("{")
    assert "--rebuild" in xvlm(*words).refusal(4)
    assert xvlm(*words, "--rebuild").code == 0
    assert xvlm(*words).code == 0


def test_unreadable_pictures_are_listed_after_the_answer(
    xvlm: Run, shots: Path, searcher: Path
) -> None:
    (shots / "broken.jpg").write_bytes(b"no picture")
    (shots / "empty.png").touch()
    words = ("predict", "retrieval", "shots", "dog", "-c", searcher, "--no-files")
    done = xvlm(*words, "--json")
    assert done.code == 4
    document = done.document()
    assert len(document["result"]["queries"][0]["pictures"]) == 4
    assert sorted(document["error"]["details"]) == [
        "picture shots/broken.jpg: not an image",
        "picture shots/empty.png: empty file",
    ]
    assert document["result"]["failed"] == document["error"]["details"]
    done = xvlm(*words)
    assert done.code == 4
    assert "shots/0.png" in done.out
    assert "broken.jpg: not an image" in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_cannot_be_written_is_searched_with_an_index_elsewhere(
    xvlm: Run, shots: Path, searcher: Path
) -> None:
    shots.chmod(0o555)
    try:
        words = ("predict", "retrieval", "shots", "dog", "-c", searcher, "--no-files")
        assert "--index" in xvlm(*words).refusal(2)
        assert xvlm(*words, "--index", "elsewhere").code == 0
    finally:
        shots.chmod(0o755)


def test_dry_run_says_what_would_be_encoded_and_writes_nothing(
    xvlm: Run, shots: Path, searcher: Path
) -> None:
    words = ("predict", "retrieval", "shots", *TEXTS, "-c", searcher)
    result = xvlm(*words, "--dry-run", "--json").document()["result"]
    assert (result["encode"], result["pictures"]) == (4, 4)
    assert result["write"] == [
        "shots/.xvlm-index", "a-red-circle.retrieved.png", "blue-square.retrieved.png",
    ]  # fmt: skip
    assert not (shots / ".xvlm-index").exists()
    assert not list(Path().glob("*.png"))
    assert xvlm(*words, "--no-files").code == 0
    (shots / "0.png").unlink()
    done = xvlm(*words, "--dry-run")
    assert "would encode 0 of 3 pictures" in done.out
    assert "1 are gone" in done.out


def test_files_of_others_are_not_replaced(xvlm: Run, shots: Path, searcher: Path) -> None:
    mine = Path("dog.retrieved.png")
    Image.new("RGB", (3, 3)).save(mine)
    before = mine.read_bytes()
    words = ("predict", "retrieval", "shots", "dog", "-c", searcher)
    assert "--overwrite" in xvlm(*words).refusal(2)
    assert mine.read_bytes() == before
    assert xvlm(*words, "--overwrite").code == 0
    assert xvlm(*words).code == 0, "its own file"


def test_texts_of_one_name_get_sheets_of_their_own(xvlm: Run, shots: Path, searcher: Path) -> None:
    words = ("predict", "retrieval", "shots", "a dog", "A dog!", "-c", searcher, "--json")
    queries = xvlm(*words).document()["result"]["queries"]
    assert [query["drawn"] for query in queries] == ["a-dog.retrieved.png", "A-dog-2.retrieved.png"]


def test_texts_from_standard_input(
    xvlm: Run, shots: Path, searcher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"texts": ["a dog"]}, {"texts": ["a cat", "a dog"]}]
    text = "\n".join(json.dumps(line) for line in lines)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    words = ("predict", "retrieval", "shots", "-", "-c", searcher, "--no-files", "--json")
    queries = xvlm(*words).document()["result"]["queries"]
    assert [query["text"] for query in queries] == ["a dog", "a cat"]


# ---------------------------------------------------------------- pictures


def test_the_texts_of_each_picture_are_ranked(xvlm: Run, shots: Path, searcher: Path) -> None:
    words = ("predict", "retrieval", "shots/0.png", "shots/1.png", *TEXTS, "-c", searcher)
    done = xvlm(*words)
    assert done.code == 0
    assert "probability" in done.out
    result = xvlm(*words, "--json").document()["result"]
    assert result["direction"] == "picture to texts"
    assert [row["image"] for row in result["pictures"]] == ["shots/0.png", "shots/1.png"]
    for row in result["pictures"]:
        assert sorted(text["text"] for text in row["texts"]) == sorted(TEXTS)
        odds = [text["probability"] for text in row["texts"]]
        assert odds == sorted(odds, reverse=True)
    assert not (shots / ".xvlm-index").exists()
    assert not list(Path().glob("*.png"))


def test_both_directions_agree_on_a_pair(xvlm: Run, shots: Path, searcher: Path) -> None:
    tail = (*TEXTS, "-c", searcher, "--json", "--no-files", "--region")
    queries = xvlm("predict", "retrieval", "shots", *tail).document()["result"]["queries"]
    pictures = xvlm("predict", "retrieval", "shots/[012].png", *tail).document()["result"]
    pairs = {
        (query["text"], row["image"]): (row["similarity"], row["probability"], *row["box_xyxy_px"])
        for query in queries
        for row in query["pictures"]
    }
    compared = 0
    for picture in pictures["pictures"]:
        for row in picture["texts"]:
            scores = (row["similarity"], row["probability"], *row["box_xyxy_px"])
            assert scores == pytest.approx(pairs[row["text"], picture["image"]], abs=1e-3)
            compared += 1
    assert compared == 6


def test_the_region_of_each_text_is_drawn(xvlm: Run, shots: Path, searcher: Path) -> None:
    words = ("predict", "retrieval", "shots/0.png", *TEXTS, "-c", searcher, "--region", "--json")
    (row,) = xvlm(*words).document()["result"]["pictures"]
    assert row["drawn"] == "0.retrieved.png"
    with Image.open("0.retrieved.png") as drawn:
        assert drawn.info["Software"] == "xvlm"


def test_lines_of_pictures_with_texts(
    xvlm: Run, shots: Path, searcher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        {"image": "shots/0.png", "texts": ["a dog", "a cat", "a tree"]},
        {"image": "shots/none.png", "texts": ["a dog"]},
        {"image": "shots/2.png", "texts": ["a house"]},
    ]
    text = "".join(json.dumps(line) + "\n\n" for line in lines)
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    done = xvlm("predict", "retrieval", "-", "-c", searcher, "-k", "2", "--json")
    assert done.code == 4
    document = done.document()
    assert [len(row["texts"]) for row in document["result"]["pictures"]] == [2, 1]
    assert document["result"]["pictures"][1]["texts"][0]["text"] == "a house"
    assert "none.png" in document["error"]["what"]


def test_dry_run_of_pictures(xvlm: Run, shots: Path, searcher: Path) -> None:
    words = ("predict", "retrieval", "shots/0.png", *TEXTS, "-c", searcher, "--dry-run", "--region")
    result = xvlm(*words, "--json").document()["result"]
    assert result["pictures"] == [{"image": "shots/0.png", "texts": list(TEXTS)}]
    assert result["write"] == ["0.retrieved.png"]
    assert not Path("0.retrieved.png").exists()


def test_a_model_without_boxes_says_so(xvlm: Run, shots: Path, without_boxes: Path) -> None:
    words = ("predict", "retrieval", "shots", "dog", "-c", without_boxes, "--region", "--json")
    document = xvlm(*words).document()
    assert any("no box head" in warning for warning in document["warnings"])
    assert "box_xyxy_px" not in document["result"]["queries"][0]["pictures"][0]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "no folder and no picture"),
        (("shots",), 2, "no text"),
        (("shots/0.png",), 2, "no text"),
        (("a dog",), 2, "no folder and no picture"),
        (("shots", "more", "a dog"), 2, "one folder"),
        (("shots", "shots/0.png", "a dog"), 2, "only one of them"),
        (("shots", " "), 2, "empty"),
        (("shots", "?!"), 2, "nothing is left"),
        (("http://x.org/pictures", "a dog"), 2, "URL"),
        (("gone/", "a dog"), 4, "not there"),
        (("gone.png", "a dog"), 4, "not there"),
        (("void", "a dog"), 4, "no picture"),
        (("shots", "a dog", "--index", "shots/notes.txt"), 2, "is a file"),
        (("shots", "a dog", "--index", "more"), 2, "is no index"),
        (("shots/0.png", "a dog", "--rebuild"), 2, "--rebuild is for a folder"),
        (("shots/0.png", "a dog", "--index", "x"), 2, "--index is for a folder"),
        (("shots", "a dog", "a cat", "-o", "one.png"), 2, "one file"),
    ],
)
def test_bad_requests(
    words: tuple[str, ...], code: int, said: str, xvlm: Run, shots: Path, searcher: Path
) -> None:
    paint(Path("more") / "a.png", 1)
    Path("void").mkdir()
    assert said in xvlm("predict", "retrieval", *words, "-c", searcher).refusal(code)
    assert not (shots / ".xvlm-index").exists()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", 4),
        ("[]", 4),
        ('{"image": "shots/0.png"}', 4),
        ('{"texts": ["x"]}', 4),
        ('{"image": "shots/0.png", "texts": [" "]}', 2),
        ('{"image": "http://x/y.jpg", "texts": ["x"]}', 2),
        ('{"image": "a\\u0000b.jpg", "texts": ["x"]}', 4),
        ('{"image": 3, "texts": ["x"]}', 4),
        ('{"image": "shots/0.png", "texts": ["\\ud800"]}', 2),
        ("", 4),
    ],
)
def test_a_bad_line_is_named(
    line: str, code: int, xvlm: Run, shots: Path, searcher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(line))
    error = xvlm("predict", "retrieval", "-", "-c", searcher).refusal(code)
    assert not line or "standard input, line 1" in error


def test_an_image_in_a_line_and_a_folder_are_refused(
    xvlm: Run, shots: Path, searcher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"image": "a.jpg", "texts": ["x"]}'))
    assert "line 1" in xvlm("predict", "retrieval", "shots", "-", "-c", searcher).refusal(2)


def test_a_model_that_cannot_search_is_refused(xvlm: Run, shots: Path, model: Path) -> None:
    error = xvlm("predict", "retrieval", "shots", "dog", "-c", model).refusal(5)
    assert "grounding" in error
    error = xvlm("predict", "retrieval", "shots", "dog").refusal(5)
    assert "no model for" in error, "the built-in one has no vectors"


def test_the_newest_run_answers(xvlm: Run, shots: Path, pretrained: Path) -> None:
    shutil.copytree(pretrained, "runs/pretrain-x")
    done = xvlm("predict", "retrieval", "shots", "a red circle")
    assert done.code == 0
    assert "pretrain-x" in done.out

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sources.conftest import Prepare
from xvlm_core.data.records import Answer, Question
from xvlm_core.errors import DataError, MissingToolError
from xvlm_core.sources.easy_vqa import plan

TRAIN = [
    ["what is the blue shape?", "rectangle", 0],
    ["is there a circle?", "no", 1],
    ["what color is the shape?", "blue", 0],
]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """What the package has: two training pictures, one of the test."""
    data = tmp_path / "easy_vqa" / "data"
    for name in ("train/images/0.png", "train/images/1.png", "test/images/0.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (10, 10, 200)).save(data / name)
    (data / "train" / "questions.json").write_text(json.dumps(TRAIN))
    (data / "test" / "questions.json").write_text(json.dumps([["is it red?", "yes", 0]]))
    return tmp_path / "easy_vqa"


def test_questions_of_a_picture_become_one_record(package: Path, prepare_store: Prepare) -> None:
    done = prepare_store("easy-vqa", {"root": package})
    assert [(r.id, r.image, r.split, r.source) for r in done.records] == [
        ("train/0", "train/images/0.png", "train", "easy-vqa"),
        ("train/1", "train/images/1.png", "train", "easy-vqa"),
        ("test/0", "test/images/0.png", "test", "easy-vqa"),
    ]
    assert done.records[0].questions == (
        Question("train-0", "what is the blue shape?", (Answer("rectangle", 1.0),)),
        Question("train-2", "what color is the shape?", (Answer("blue", 1.0),)),
    )
    assert done.manifest.splits == {"train": 2, "test": 1}
    again = prepare_store("easy-vqa", {"root": package / "data"})
    assert again.records == done.records


def test_a_picture_without_questions_is_counted(package: Path, prepare_store: Prepare) -> None:
    images = package / "data" / "train" / "images"
    (images / "0.png").rename(images / "7.png")
    done = prepare_store("easy-vqa", {"root": package})
    assert done.lost("picture") == {"train/0": "missing", "train/7": "no text left"}


def test_bad_questions_are_dropped_alone(package: Path, prepare_store: Prepare) -> None:
    rows: list[Any] = [*TRAIN, ["what?", "a"], "what?", ["what?", "a", "0"], ["", "a", 1]]
    (package / "data" / "train" / "questions.json").write_text(
        json.dumps([*rows, ["is it there?", "no", 5]])
    )
    done = prepare_store("easy-vqa", {"root": package})
    assert done.lost("question") == {
        "train/questions.json: [3]": "wrong number of columns",
        "train/questions.json: [4]": "wrong number of columns",
        "train/questions.json: [5]": "no image",
        "train/questions.json: [6]": "empty text",
        "train/questions.json: [7]": "picture: missing",
    }
    assert done.count("question")["kept"] == 4


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingToolError, match="easy-vqa is not installed") as caught:
        plan({"root": None})
    assert "pip install easy-vqa" in str(caught.value.try_)
    assert caught.value.exit_code == 7


def test_a_wrong_folder_or_file_is_named(
    tmp_path: Path, package: Path, prepare_store: Prepare
) -> None:
    with pytest.raises(DataError, match=r"there is no file .*train/questions\.json"):
        prepare_store("easy-vqa", {"root": tmp_path})
    (package / "data" / "test" / "questions.json").write_text("{}")
    with pytest.raises(DataError, match="is not a list of questions but a dict"):
        prepare_store("easy-vqa", {"root": package})


def test_the_package_has_what_its_authors_say() -> None:
    if importlib.util.find_spec("easy_vqa") is None:
        pytest.skip("easy-vqa is not installed")
    drafts = list(plan({"root": None}).events)
    splits = {draft.split for draft in drafts}  # type: ignore[union-attr]
    assert splits == {"train", "test"}
    assert len(drafts) == 5000
    assert sum(len(draft.said) for draft in drafts) == 48248  # type: ignore[union-attr]

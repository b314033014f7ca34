"""All texts of ``predict`` are read before the first picture, or before a model is looked for."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Run, write_model
from tests.tasks.pairs import write_pair_model
from xvlm_core.data import images
from xvlm_core.listing import some, some_lines

LINES = {
    "grounding": lambda text: {"image": "a.png", "phrases": ["a red circle", text]},
    "nlvr2": lambda text: {"images": ["a.png", "a.png"], "statements": ["both are red", text]},
    "retrieval": lambda text: {"image": "a.png", "texts": ["a red circle", text]},
}
NOUNS = {"grounding": "phrase", "nlvr2": "statement", "retrieval": "text"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    heads = ("contrastive", "matching")
    return {
        "grounding": write_model(root / "grounding"),
        "nlvr2": write_pair_model(root / "nlvr2"),
        "retrieval": write_model(root / "retrieval", task="retrieval", heads=heads),
    }


@pytest.fixture
def no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a picture, and looking at it is an error."""
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")

    def never(source: object) -> None:
        raise AssertionError("a picture was looked at")

    for module in ("predictor", "pair_judge", "retriever", "collection", "reading"):
        monkeypatch.setattr(f"xvlm_core.inference.{module}.read_picture", never, raising=False)
    monkeypatch.setattr(images, "read_picture", never)


def give(monkeypatch: pytest.MonkeyPatch, *texts: object, task: str) -> None:
    lines = [json.dumps(LINES[task](text)) for text in texts]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n".join(lines)))


@pytest.mark.parametrize("task", LINES)
@pytest.mark.parametrize("text", ["", " \t", "?!", "(...)", "\u200b", 3, None, "\ud800"])
def test_a_text_of_which_nothing_is_left_is_named_before_a_model_is_looked_for(
    task: str, text: object, xvlm: Run, no_picture: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, "fine", text, "fine", task=task)
    said = xvlm("predict", task, "-", "-c", "gone", "--no-files").refusal(2)
    assert "standard input, line 3" in said, "empty lines count"
    assert NOUNS[task] in said


@pytest.mark.parametrize("task", LINES)
def test_a_typed_text_of_which_nothing_is_left(task: str, xvlm: Run, no_picture: None) -> None:
    pictures = ["a.png", "a.png"] if task == "nlvr2" else ["a.png"]
    words = ("predict", task, *pictures, "a red circle", "?!", "-c", "gone")
    assert f"nothing is left of the {NOUNS[task]} '?!'" in xvlm(*words).refusal(2)


@pytest.mark.parametrize("task", LINES)
def test_what_the_model_cannot_read_is_named_before_the_first_picture(
    task: str,
    xvlm: Run,
    no_picture: None,
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tokenizer drops this letter, cleaning does not."""
    give(monkeypatch, "fine", "fine", "\ufffd", task=task)
    said = xvlm("predict", task, "-", "-c", models[task], "--no-files").refusal(2)
    assert "standard input, line 5" in said
    assert "has no letter" in said


def test_the_line_of_a_text_for_a_folder_is_named(
    xvlm: Run, no_picture: None, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"texts": ["a"]}\n{"texts": ["b", "\ufffd"]}\n'))
    said = xvlm("predict", "retrieval", ".", "-", "-c", models["retrieval"]).refusal(2)
    assert "standard input, line 2" in said


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("grounding", "a.png", "a dog", "--proposals", "gone"), 4, "no prepared data in gone"),
        (("grounding", "a.png", "a dog", "--device", "tpu"), 2, "no such device"),
        (("nlvr2", "a.png", "a.png", "a dog", "--explain"), 2, "--explain is for grounding"),
        (("retrieval", "a.png", "a dog", "--proposals", "x"), 2, "--proposals is for grounding"),
        (("grounding", "a.png", "a dog", "--region"), 2, "--region is for retrieval"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_looked_for(
    words: tuple[str, ...], code: int, says: str, xvlm: Run, no_picture: None
) -> None:
    said = xvlm("predict", *words, "-c", "no-such-model").refusal(code)
    assert says in said
    assert "no-such-model" not in said


def test_long_lists_are_said_short() -> None:
    assert some(["a", "b", "c"]) == "a, b, c"
    assert some(range(1237)) == "0, 1, 2 and 1,234 more"
    assert some_lines(["a", "b", "c"], 2) == ["a", "b", "and 1 more"]
    assert some_lines(["a", "b"], 2) == ["a", "b"]

"""From a pre-trained run to figures, the file of the test server and saved predictions."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.data.painted import painted_store
from tests.tasks.questions import (
    asked,
    question,
    questions_of,
    write_list,
    write_question_model,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two questions of val, and three of test whose answers are hidden."""
    pictures = tmp_path / "pictures"
    hidden = [dataclasses.replace(q, answers=()) for q in questions_of("9", 3)]
    made = [
        asked(pictures, "t", [question("1"), question("2", blue=1.0)]),
        asked(pictures, "v", [question("3", red=0.4, blue=0.6), question("4")], split="val"),
        asked(pictures, "x", hidden, split="test"),
    ]
    painted_store(tmp_path / "asked", pictures, made)
    write_list(tmp_path / "asked", ["red", "blue", "green"])
    return tmp_path / "asked"


@pytest.fixture(scope="session")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_question_model(tmp_path_factory.mktemp("models") / "vqa", answers=())


def test_pretraining_fine_tuning_evaluation_and_an_answer(
    xvlm: Run, pretrained: Path, tmp_path: Path
) -> None:
    from xvlm_core.sources.prepare import prepare

    root = tmp_path / "data"
    options = {"train": 12, "val": 6, "test": 0, "unseen": 0, "pairs": 0, "workers": 1, "size": 64}
    prepare("world", root / "world", options, command="xvlm prepare-data world -o data/world")
    shutil.copytree(pretrained, "runs/pretrain-x")
    more = (f"data.root={root}", "data.workers=0", "data.questions.batch_size=4")
    tuned = xvlm("finetune", "world-vqa", "--max-steps", "2", "--json", *more)
    assert tuned.code == 0, tuned.err
    assert "pretrain-x" in tuned.err, "what it starts from is said"
    result = tuned.document()["result"]
    assert result["dropped"] == {}
    assert {"accuracy", "exact match", "baseline: one answer"} <= set(result["scores"])
    assert any(name.startswith("accuracy, questions: ") for name in result["scores"])
    assert result["best"]["score"] == "accuracy"
    config = json.loads((Path(result["checkpoint"]) / "config.json").read_text())
    assert (config["task"], config["config"]["decoder_layers"]) == ("vqa", 2)
    assert len(config["answers"]) > 5
    done = xvlm("evaluate", "world-vqa", "--json", f"data.root={root}")
    assert done.code == 0, done.err
    scores = done.document()["result"]["scores"]
    assert scores["accuracy"]["value"] == pytest.approx(result["scores"]["accuracy"]["value"])
    shutil.copy(next((root / "world").rglob("*.png")), "a.png")
    answer = xvlm("predict", "vqa", "a.png", "how many circles are there?", "--json")
    assert "newest vqa run" in answer.document()["result"]["model"]["origin"]


def test_hidden_answers_give_the_file_of_the_test_server_and_no_figure(
    xvlm: Run, store: Path, answerer: Path
) -> None:
    words = ("evaluate", "vqa", "-d", store, "-c", answerer)
    done = xvlm(*words, "-s", "val,test", "-o", "out", "--json")
    assert done.code == 0, done.err
    splits = done.document()["result"]["splits"]
    assert splits["test"]["scores"] == {}
    assert splits["val"]["scores"]["accuracy"]["n"] == 2
    assert "server_file" not in splits["val"]
    rows = json.loads(Path(splits["test"]["server_file"]).read_text())
    assert [set(row) for row in rows] == [{"question_id", "answer"}] * 3
    assert {row["answer"] for row in rows} <= {"red", "blue", "green"}, "the list of the store"
    told = xvlm(*words, "-s", "val", "-o", "val.jsonl", "--server-file")
    assert "for the test server: val.result.json" in told.out
    ids = [row["question_id"] for row in json.loads(Path("val.result.json").read_text())]
    assert ids == [3, 4]
    said = xvlm(*words, "-s", "test", "-o", "again.jsonl")
    assert said.code == 0
    assert "what is right is not told" in said.out
    refused = xvlm("evaluate", "grounding", "-d", store, "--server-file", "-s", "val")
    assert "--server-file is for vqa" in refused.refusal(2)


def test_saved_predictions_are_scored_without_a_model(xvlm: Run, store: Path) -> None:
    lines = [{"id": "3", "answer": "Blue."}, {"id": "4", "answer": "the red"}]
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("evaluate", "vqa", "-d", store, "-s", "val", "-p", "p.jsonl")
    scores = xvlm(*words, "--json").document()["result"]["scores"]
    assert scores["accuracy"]["value"] == 1
    assert "VQA v2" in scores["accuracy"]["convention"]
    Path("p.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert "1 item of the data has no prediction" in xvlm(*words).refusal(4)
    done = xvlm(*words, "--allow-missing", "--json")
    assert done.document()["result"]["scores"]["accuracy"]["value"] == 0.5
    Path("p.jsonl").write_text('{"id": "3", "answer": 2}\n')
    assert "has an answer that is not a text" in xvlm(*words).refusal(4)
    Path("p.jsonl").write_bytes(b'{"id": "3", "answer": "\xff"}\n')
    assert "is not UTF-8" in xvlm(*words).refusal(4)
    other = {"id": "99", "answer": "red"}
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, other]))
    assert "not in the data" in xvlm(*words).refusal(4)


def test_what_would_be_asked_and_learnt_is_said(xvlm: Run, store: Path, answerer: Path) -> None:
    done = xvlm("evaluate", "vqa", "-d", store, "-s", "test", "-c", answerer, "--dry-run")
    assert "split test: 1 pictures, 3 questions" in done.out
    changes = (
        f"data.root={store.parent}",
        "data.questions={stores: [asked], batch_size: 2, per_picture: 1}",
        "data.validation=[]",
        "init.checkpoint=null",
        "model={size: tiny, image_size: 64}",
        "text={tokenizer: world, max_tokens: 20}",
    )
    plan = xvlm("finetune", "vqa", "--dry-run", *changes)
    assert plan.code == 0, plan.err
    assert "2 pictures with up to 1 of their questions each" in plan.out


def test_a_validation_without_a_figure_and_answers_alike_are_said(xvlm: Run, store: Path) -> None:
    words = (
        "finetune", "world-vqa", "--max-steps", "1", f"data.root={store.parent}",
        "data.questions.stores=[asked]", "data.validation=[asked]", "init.checkpoint=null",
        "data.workers=0", "data.questions.batch_size=1",
    )  # fmt: skip
    Path("alike.txt").write_text("red\nblue\nRed\n")
    said = xvlm(*words, "scoring.answers=alike.txt").refusal(4)
    assert "reads like 'red': 'Red'" in said
    assert "Where: alike.txt" in said
    missing = xvlm(*words, "scoring.answers=none.txt", "--dry-run").refusal(4)
    assert "cannot read none.txt" in missing, "without a look at the stores"
    done = xvlm(*words, "data.validation_split=test", "--json")
    assert done.code == 0, done.err
    assert done.document()["result"]["scores"] == {}
    assert "nothing to compare answers with in split test of asked" in done.err
    assert "no figure" not in xvlm(*words).err

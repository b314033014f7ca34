from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run

SMALL = ("--seconds", "2", "--pictures", "32", "--test-pictures", "8")


def test_the_demo_trains_tests_and_draws(xvlm: Run, tmp_path: Path) -> None:
    done = xvlm("demo", *SMALL, "--json")
    result = done.document()["result"]
    for split in ("test", "unseen"):
        scores = result["scores"][split]
        kinds = {"label", "attribute", "superlative", "relation", "pair"}
        for kind in kinds | ({"unseen"} if split == "unseen" else set()):
            assert scores[f"accuracy@0.5 [{kind}]"]["n"] > 0
        for name in ("mean IoU", "presence AUC", "baseline: random object"):
            assert 0 <= scores[name]["value"] <= 1
        assert scores["accuracy@0.5"]["split"] == split
    with Image.open(tmp_path / "demo" / "picture.png") as picture:
        assert picture.size[0] == 3 * 384
    written = json.loads((tmp_path / "demo" / "results.json").read_text(encoding="utf-8"))
    assert written["scores"] == result["scores"]
    # what it leaves is a run like any other, and the model that answers is the fine-tuned one
    runs = {run.name for run in (tmp_path / "demo" / "runs").iterdir()}
    assert runs == {"pretrain", "grounding"}
    assert "runs/grounding" in result["model"]
    recorded = json.loads(
        (tmp_path / "demo" / "runs" / "grounding" / "run.json").read_text(encoding="utf-8")
    )
    assert "runs/pretrain" in recorded["started_from"]
    for step in ("1/5", "2/5", "3/5", "4/5", "5/5"):
        assert step in done.err


def test_an_earlier_demo_is_replaced_only_when_asked(xvlm: Run, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    assert "--overwrite" in xvlm("demo", *SMALL).refusal(2)
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["mine.txt"]


def test_dry_run_says_what_would_be_done_and_writes_nothing(xvlm: Run, tmp_path: Path) -> None:
    done = xvlm("demo", "--dry-run", "--seconds", "100")
    assert done.code == 0
    assert "would pre-train 60 s, fine-tune 40 s" in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("--pictures", "1"), ("--seconds", "0"), ("--seconds", "inf")])
def test_impossible_sizes_are_refused(words: tuple[str, ...], xvlm: Run) -> None:
    xvlm("demo", *words).refusal(2)


def test_the_next_demo_replaces_an_earlier_one_and_nothing_of_the_user(
    xvlm: Run, tmp_path: Path
) -> None:
    kept = [tmp_path / "data" / "mine" / "records", tmp_path / "runs" / "mine" / "run.json"]
    for path in kept:
        path.parent.mkdir(parents=True)
        path.touch()
    # a folder of work: data/ and runs/ are the user's
    assert "not the folder of a demo" in xvlm("demo", *SMALL, "-o", ".", "--overwrite").refusal(2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "runs"]

    assert xvlm("demo", *SMALL).code == 0
    kept += [tmp_path / "demo" / "data" / "mine.txt", tmp_path / "demo" / "runs" / "mine.txt"]
    for path in kept:
        path.touch()
    old = tmp_path / "demo" / "runs" / "grounding" / "old"
    old.touch()
    assert xvlm("demo", *SMALL, "--overwrite").code == 0
    assert not old.exists()
    assert all(path.exists() for path in kept)

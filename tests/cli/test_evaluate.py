from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def test_every_score_has_its_convention_and_number(
    xvlm: Run, model: Path, world_store: Path
) -> None:
    words = ("evaluate", "grounding", "-c", model, "--data", world_store, "--split", "val")
    document = xvlm(*words, "--json").document()
    scores = document["result"]["scores"]
    assert {"accuracy@0.5", "accuracy@0.5 plain", "presence AUC"} <= set(scores)
    for score in scores.values():
        assert score["convention"]
        assert score["split"] == "val"
        assert score["n"] > 0
    text = xvlm(*words).out
    assert "inclusive-pixel IoU" in text
    assert "--checkpoint" in text, "which model answered"


def test_predictions_are_written_once_each(xvlm: Run, model: Path, world_store: Path) -> None:
    words = ("evaluate", "grounding", "-c", model, "--data", world_store, "-o", "out/p.jsonl")
    document = xvlm(*words, "--json").document()
    rows = [json.loads(line) for line in Path("out/p.jsonl").read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    scores = document["result"]["scores"]
    assert sum(row["present"] for row in rows) == scores["accuracy@0.5"]["n"]
    assert "--overwrite" in xvlm(*words).refusal(2)
    assert xvlm(*words, "--overwrite").code == 0


def test_a_recipe_names_the_store_and_the_split(xvlm: Run, model: Path, world_store: Path) -> None:
    shutil.copytree(world_store, "data/world")
    result = xvlm("evaluate", "world", "-c", model, "--json").document()["result"]
    assert (result["data"], result["split"]) == ("data/world", "val")


def test_limit_counts_pictures(xvlm: Run, model: Path, world_store: Path) -> None:
    words = ("evaluate", "grounding", "-c", model, "--data", world_store, "--json")
    every = xvlm(*words).document()["result"]["scores"]["accuracy@0.5"]["n"]
    first = xvlm(*words, "--limit", "1").document()["result"]["scores"]["accuracy@0.5"]["n"]
    assert 0 < first < every


def test_pictures_that_are_gone_are_said(xvlm: Run, model: Path, world_store: Path) -> None:
    shutil.copytree(world_store, "world")
    for path in sorted(Path("world").rglob("*.png")):
        if "val" in path.as_posix():
            path.unlink()
            break
    words = ("evaluate", "grounding", "-c", model, "--data", "world", "--json")
    document = xvlm(*words).document()
    assert document["result"]["dropped"]["missing"] > 0
    assert any("missing" in warning for warning in document["warnings"])


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("grounding",), 2, "which data"),
        (("groundin", "--data", "x"), 2, "no task"),
        (("grounding", "--data", "gone"), 4, "no prepared data in gone"),
        (("grounding", "--data", "STORE", "--split", "vall"), 4, "no record of split 'vall'"),
        (("grounding", "--data", "STORE", "-c", "gone"), 5, "gone"),
        (("refcoco+",), 4, "data/refcoco+"),
    ],
)
def test_what_is_refused(
    words: tuple[str, ...], code: int, says: str, xvlm: Run, world_store: Path
) -> None:
    given = [str(world_store) if word == "STORE" else word for word in words]
    assert says in xvlm("evaluate", *given).refusal(code)

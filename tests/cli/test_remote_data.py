"""Commands on stores at places that fsspec knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from xvlm_core.data import remote


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS_S", (0.0,))


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_training_on_a_remote_folder_is_training_on_the_local_one(
    xvlm: Run, world_store: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    more = ("data.validation_limit=2", "data.workers=1", "train.log_every=1")
    for name, root in (("a", str(world_store.parent)), ("b", world_store.parent.as_uri())):
        words = ("pretrain", "--recipe", "world", "--max-steps", "2", "-o", name)
        done = xvlm(*words, f"data.root={root}", f"data.cache={cache}", *more)
        assert done.code == 0, done.err
    assert len(losses(tmp_path / "a")) == 2
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert list(cache.glob("??/*")), "what was read is kept where the recipe says"


def test_evaluate_validate_and_the_plan_take_a_url(
    xvlm: Run, world_store: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    url = world_store.as_uri()
    words = ("evaluate", "grounding", "--checkpoint", model, "--limit", "2", "--json", "--data")
    here, there = (xvlm(*words, place).document()["result"] for place in (world_store, url))
    assert there["data"] == url
    assert there["scores"] == here["scores"]
    found = xvlm("validate", url, "--sample", "0", "--json").document()["result"]
    assert found["problems"] == []
    assert found["path"] == url
    root = f"data.root={world_store.parent.as_uri()}"
    plan = xvlm("pretrain", "--recipe", "world", root, "--dry-run", "--json").document()["result"]
    assert [store["found"] for store in plan["stores"]] == [True]
    assert plan["stores"][0]["path"] == url


def test_missing_remote_stores_are_named_by_their_address(xvlm: Run, tmp_path: Path) -> None:
    url = tmp_path.as_uri()
    error = xvlm("pretrain", "--recipe", "16m", f"data.root={url}/").refusal(4)
    assert f"are not in {url}/" in error
    assert f"--pack, and copy data/coco to {url}/coco" in error
    assert "-o data  " in error
    assert f"no prepared data in {url}" in xvlm("evaluate", "grounding", "--data", url).refusal(4)


def test_a_place_that_cannot_be_is_one_clear_line(xvlm: Run) -> None:
    error = xvlm("pretrain", "--recipe", "world", "data.root=abacus://bucket").refusal(4)
    assert "no place is of the kind abacus://" in error

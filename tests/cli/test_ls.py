from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from xvlm_core.config.recipes import recipe_names
from xvlm_core.tasks.registry import TASKS


def test_recipes_with_task_and_about(xvlm: Run) -> None:
    rows = xvlm("ls", "recipes", "--json").document()["result"]["recipes"]
    assert {row["recipe"] for row in rows} == set(recipe_names())
    assert {row["task"] for row in rows} == set(TASKS)
    assert all(row["about"] for row in rows)
    assert "pretrain/16m" in xvlm("ls", "recipes").out


def test_tasks(xvlm: Run) -> None:
    said = xvlm("ls", "tasks").out
    assert all(task in said for task in TASKS)


def test_stores_and_their_splits(xvlm: Run, world_store: Path) -> None:
    done = xvlm("ls", "stores", "--data", world_store.parent, "--json").document()
    (row,) = done["result"]["stores"]
    assert row["records"] == 16
    assert row["by_split"] == {"train": 12, "val": 4}
    assert "xvlm prepare-data" in xvlm("ls", "stores").out


def test_a_damaged_store_is_a_warning_not_a_gap(xvlm: Run, tmp_path: Path) -> None:
    (tmp_path / "data" / "broken").mkdir(parents=True)
    (tmp_path / "data" / "broken" / "manifest.json").write_text("{")
    document = xvlm("ls", "stores", "--json").document()
    assert document["result"]["stores"] == []
    assert "broken" in document["warnings"][0]


def test_runs_newest_first(xvlm: Run, pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no runs" in xvlm("ls").out
    monkeypatch.setenv("XVLM_RUNS", str(pretrained.parent))
    (row,) = xvlm("ls", "--json").document()["result"]["runs"]
    assert row["run"] == str(pretrained)
    assert (row["task"], row["status"], row["step"]) == ("pretrain", "finished", 2)
    assert row["recipe"] == "pretrain/world"
    assert str(pretrained) in xvlm("ls").out


def test_a_damaged_run_is_a_warning_not_a_gap(xvlm: Run, tmp_path: Path) -> None:
    (tmp_path / "runs" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "broken" / "run.json").write_text("{")
    done = xvlm("ls", "--json")
    (warning,) = done.document()["warnings"]
    assert "broken" in warning
    assert f"Warning: {warning}" in done.err


def test_something_else_is_refused(xvlm: Run) -> None:
    assert "runs | recipes | tasks | stores" in xvlm("ls", "models").refusal(2)

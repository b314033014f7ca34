from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.train.toy import toy_recipe
from xvlm_core.config.schema import Recipe
from xvlm_core.errors import CheckpointError, OutputError
from xvlm_core.train import checkpoint, runs


def make(root: Path, name: str | None = None, **changes: object) -> runs.RunInfo:
    return runs.create(
        None if name is None else root / name,
        root=root,
        recipe=toy_recipe(**changes),
        recipe_name="recipes/pretrain/16m.yaml",
        command="xvlm pretrain 16m",
    )


def add_checkpoint(run: runs.RunInfo, step: int) -> Path:
    return checkpoint.write(
        run.checkpoints,
        step,
        lambda folder: (folder / "config.json").write_text(str(step)) and None,  # type: ignore[func-returns-value]
        keep_last=9,
        keep=(),
    )


def test_runs_of_one_second_do_not_collide(tmp_path: Path) -> None:
    made = [make(tmp_path) for _ in range(5)]
    assert len({run.folder for run in made}) == 5
    assert all(run.name.startswith("pretrain-16m-2") for run in made)
    listed = runs.list_runs(tmp_path)
    assert [run.name for run in listed] == [run.name for run in reversed(made)], "newest first"


def test_a_run_reads_back_as_written(tmp_path: Path) -> None:
    run = make(tmp_path, optim={"lr": 1e-8, "eps": 1e-8})
    assert runs.read(run.folder) == run
    assert run.versions["torch"]
    text = run.recipe_file.read_text()
    assert Recipe.model_validate_json(json.dumps(yaml.safe_load(text))) == toy_recipe(
        optim={"lr": 1e-8, "eps": 1e-8}
    )
    assert "!!" not in text, "plain YAML"
    assert runs.read(run.with_status("diverged").folder).status == "diverged"


def test_the_root_is_an_environment_variable_or_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XVLM_RUNS", raising=False)
    assert runs.runs_root() == Path("runs")
    monkeypatch.setenv("XVLM_RUNS", str(tmp_path / "mine"))
    assert runs.list_runs() == []
    run = runs.create(recipe=toy_recipe(), recipe_name="world", command="")
    assert run.folder.parent == tmp_path / "mine"
    assert runs.list_runs() == [run]


def test_a_folder_with_something_in_it_is_refused_or_overwritten_if_it_is_a_run(
    tmp_path: Path,
) -> None:
    run = make(tmp_path, "run")
    (run.folder / "old").write_text("x")
    with pytest.raises(OutputError, match="not empty") as caught:
        make(tmp_path, "run")
    assert caught.value.try_
    assert "--overwrite" in caught.value.try_
    arguments = {"recipe": toy_recipe(), "recipe_name": "toy", "command": "", "overwrite": True}
    runs.create(run.folder, **arguments)  # type: ignore[arg-type]
    assert not (run.folder / "old").exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("x")
    with pytest.raises(OutputError, match="not a run folder"):
        runs.create(other, **arguments)  # type: ignore[arg-type]
    assert (other / "chapter1.tex").exists()


def test_checkpoint_is_the_best_else_the_newest_whole_one(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert run.checkpoint() is None
    one, two = add_checkpoint(run, 1), add_checkpoint(run, 2)
    assert run.checkpoint() == two
    run.write_best(runs.Best(1, "accuracy", 0.5))
    assert run.checkpoint() == one
    assert run.newest_checkpoint() == two
    (one / "config.json").write_text("edited")
    with pytest.warns(checkpoint.CheckpointWarning, match="best checkpoint"):
        assert run.checkpoint() == two
    run.write_best(None)
    assert run.best() is None


def test_newest_has_a_loadable_checkpoint_and_is_of_the_task(tmp_path: Path) -> None:
    old, empty = make(tmp_path), make(tmp_path)
    add_checkpoint(old, 1)
    assert runs.newest(tmp_path) == old
    assert runs.newest(tmp_path, "pretrain") == old
    assert runs.newest(tmp_path, "grounding") is None
    add_checkpoint(empty, 1)
    assert runs.newest(tmp_path) == empty
    (empty.checkpoints / "step-00000001" / "config.json").unlink()
    with pytest.warns(checkpoint.CheckpointWarning):
        assert runs.newest(tmp_path) == old


def test_a_damaged_run_is_left_out_with_a_warning(tmp_path: Path) -> None:
    good, bad = make(tmp_path), make(tmp_path)
    (bad.folder / "run.json").write_text("{")
    with pytest.warns(runs.RunWarning, match=bad.name):
        assert runs.list_runs(tmp_path) == [good]
    with pytest.raises(CheckpointError, match="damaged"):
        runs.read(bad.folder)
    with pytest.raises(CheckpointError, match="not a run"):
        runs.read(tmp_path / "nothing")


def test_runs_and_checkpoints_import_no_torch() -> None:
    code = (
        "import sys, xvlm_core.train.runs, xvlm_core.train.checkpoint, xvlm_core.train.schedule,"
        " xvlm_core.train.telemetry; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Who made a model: written by the run, read back, and damage is told from absence."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.tasks.recipes import recipe
from xvlm_core.errors import CheckpointError
from xvlm_core.train import checkpoint, runs
from xvlm_core.weights.provenance import (
    ProvenanceWarning,
    of_model,
    read_provenance,
    remember_start,
    write_provenance,
)


@dataclass(frozen=True)
class Score:
    value: float
    split: str = "val"
    convention: str = "IoU >= 0.5"
    n: int = 7
    reference: str | None = None


def new_run(tmp_path: Path, name: str = "one", started_from: Path | None = None) -> runs.RunInfo:
    return runs.create(
        tmp_path / "runs" / name,
        recipe=recipe(tmp_path),
        recipe_name="pretrain/world",
        command="xvlm pretrain --recipe world",
        started_from=None if started_from is None else str(started_from),
        stores={"captions": "abc"},
    )


def save(run: runs.RunInfo, step: int, scores: dict[str, Score] | None = None) -> Path:
    """A checkpoint that holds no more than its provenance and something like weights."""

    def files(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(f"{run.name} {step}".encode())
        write_provenance(folder, run, step, scores or {})

    return checkpoint.write(run.checkpoints, step, files, keep_last=1, keep=())


def test_a_checkpoint_says_who_made_it(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    folder = save(run, 3, {"box": Score(0.25), "broken": Score(float("nan"))})
    checkpoint.verify(folder)
    found = read_provenance(folder)
    assert found is not None
    assert (found.task, found.recipe_name, found.size) == ("pretrain", "pretrain/world", "tiny")
    assert (found.run, found.step) == ("one", 3)
    assert found.stores == {"captions": "abc"}
    assert found.recipe is not None
    assert found.recipe["seed"] == 3
    assert found.recipe_sha256 == hashlib.sha256(run.recipe_file.read_bytes()).hexdigest()
    assert found.command == "xvlm pretrain --recipe world"
    assert {"xvlm", "torch"} <= set(found.versions)
    assert (found.created, found.started_from) == (run.created, None)
    assert found.saved >= found.created[:19]
    box, broken = found.scores["box"], found.scores["broken"]
    assert (box.value, box.split, box.convention, box.n) == (0.25, "val", "IoU >= 0.5", 7)
    assert broken.value is None


def test_a_folder_without_provenance_has_none(tmp_path: Path) -> None:
    assert read_provenance(tmp_path) is None
    assert of_model(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "damaged"),
        (b"[]", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b'{"task": "x"}', "damaged: recipe_name"),
        (b'{"task": "x", "recipe_name": "y", "step": -1}', "damaged: step"),
        (b'{"schema_version": 99}', "newer xvlm"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "provenance.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_provenance(tmp_path)
    assert caught.value.exit_code == 5
    assert caught.value.try_
    assert "\n" not in caught.value.what


def test_what_a_newer_version_adds_is_passed_over(tmp_path: Path) -> None:
    folder = save(new_run(tmp_path), 1)
    path = folder / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "more": 1}))
    assert read_provenance(folder) is not None


def test_the_model_a_run_starts_from_is_remembered_as_it_was(tmp_path: Path) -> None:
    first = save(new_run(tmp_path, "first"), 2, {"box": Score(0.5)})
    digest = hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest()
    run = new_run(tmp_path, "second", started_from=first)
    remember_start(run)
    save(runs.read(tmp_path / "runs" / "first"), 4)  # retention deletes step 2
    assert not first.exists()
    found = read_provenance(save(run, 1))
    assert found is not None
    assert found.started_from is not None
    assert found.started_from.place == str(first)
    assert found.started_from.weights_sha256 == digest
    before = found.started_from.provenance
    assert before is not None
    assert (before.run, before.step, before.scores["box"].value) == ("first", 2, 0.5)


def test_a_start_that_is_gone_or_damaged_costs_no_checkpoint(tmp_path: Path) -> None:
    gone = read_provenance(save(new_run(tmp_path, "a", tmp_path / "gone"), 1))
    assert gone is not None
    assert gone.started_from is not None
    assert gone.started_from.weights_sha256 is None

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "provenance.json").write_bytes(b"{")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"w")
    with pytest.warns(ProvenanceWarning, match="damaged"):
        found = read_provenance(save(new_run(tmp_path, "b", tmp_path / "model"), 1))
    assert found is not None
    assert found.started_from is not None
    assert found.started_from.weights_sha256 == hashlib.sha256(b"w").hexdigest()

    file = tmp_path / "released.th"
    file.write_bytes(b"th")
    run = new_run(tmp_path, "c", file)
    save(run, 1)
    (run.folder / "started_from.json").write_bytes(b"{")
    with pytest.warns(ProvenanceWarning, match="damaged"):
        again = read_provenance(save(run, 2))
    assert again is not None
    assert again.started_from is not None
    assert again.started_from.place == str(file)


def test_a_start_from_the_hubs_cache_is_told_by_its_id(tmp_path: Path) -> None:
    source = tmp_path / "hub" / "models--owner--shapes" / "snapshots" / ("a" * 40)
    source.mkdir(parents=True)
    found = read_provenance(save(new_run(tmp_path, "a", source), 1))
    assert found is not None
    assert found.started_from is not None
    assert found.started_from.place == f"hub:owner/shapes@{'a' * 40}"


def test_scores_made_after_the_checkpoint_are_found_in_the_log(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    folder = save(run, 2)
    score = {"value": 0.5, "split": "val", "convention": "c", "n": 4, "reference": None}
    lines = [
        {"kind": "eval", "step": 1, "scores": {"box": {**score, "value": 0.1}}},
        {"kind": "eval", "step": 2, "scores": {"box": score}},
        {"kind": "train", "step": 3},
        {"kind": "eval", "step": 3, "scores": {"box": {**score, "value": 0.9}}},
    ]
    run.metrics.write_text("\n".join(json.dumps(line) for line in lines) + '\n{"kind": "ev')
    found = of_model(folder)
    assert found is not None
    assert (found.scores["box"].value, found.scores["box"].n) == (0.5, 4)
    assert read_provenance(folder) != found


def test_a_checkpoint_of_an_older_version_is_told_by_its_run(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    folder = save(run, 2)
    (folder / "provenance.json").unlink()
    found = of_model(folder)
    assert found is not None
    assert (found.run, found.step, found.saved) == ("one", 2, "")
    assert found.stores == {"captions": "abc"}


@pytest.mark.parametrize("spoil", ["recipe.yaml", "metrics.jsonl"])
def test_what_is_missing_in_the_run_is_left_out(tmp_path: Path, spoil: str) -> None:
    run = new_run(tmp_path)
    (run.folder / spoil).unlink(missing_ok=True)
    found = read_provenance(save(run, 1))
    assert found is not None
    assert (found.recipe is None) == (spoil == "recipe.yaml")
    assert of_model(run.checkpoints / "step-00000001") == found


def test_scores_may_be_mappings(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    write: Callable[[Path], None] = lambda folder: write_provenance(  # noqa: E731
        folder, run, 1, {"box": {"value": 0.5, "split": "val", "convention": "", "n": 1}}
    )
    folder = checkpoint.write(run.checkpoints, 1, write, keep_last=1, keep=())
    found = read_provenance(folder)
    assert found is not None
    assert found.scores["box"].value == 0.5


def test_no_torch_is_needed() -> None:
    code = "import sys, xvlm_core.weights.provenance; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]

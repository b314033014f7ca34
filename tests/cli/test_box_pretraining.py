"""The extra box pre-training: between pre-training and fine-tuning for grounding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.cli.conftest import Run
from xvlm_cli import checkpoints
from xvlm_core.config.recipes import recipe_names
from xvlm_core.config.resolve import resolve
from xvlm_core.errors import CheckpointError
from xvlm_core.inference.checkpoints import find_checkpoint
from xvlm_core.train import runs


@pytest.fixture
def boxed(xvlm: Run, pretrained: Path, world_store: Path) -> Path:
    """A run of it, in a folder with the pre-training run that it started from."""
    shutil.copytree(pretrained, "runs/pretrain-x")
    Path("data").mkdir()
    Path("data/world").symlink_to(world_store)
    words = ("--max-steps", "2", "-o", "runs/box", "--json", "data.validation_limit=2")
    done = xvlm("pretrain", "--recipe", "world-box", *words, "train.log_every=1")
    assert "starting from pretrain run runs/pretrain-x" in done.err
    return Path(done.document()["result"]["run"])


def test_boxes_alone_are_learnt_and_the_other_heads_stay(boxed: Path, pretrained: Path) -> None:
    text = (boxed / "metrics.jsonl").read_text(encoding="utf-8")
    assert "box_l1" in text
    assert "box_giou" in text
    assert "contrastive" not in text
    assert "masked_lm" not in text
    before = load_file(pretrained / "checkpoints" / "step-00000002" / "model.safetensors")
    after = load_file(boxed / "checkpoints" / "step-00000002" / "model.safetensors")
    changed = {name for name in before if not (before[name] == after[name]).all()}
    assert any(name.startswith("bbox_head.") for name in changed)
    for head in ("itm_head.", "vision_proj.", "text_proj.", "temp"):
        mine = [name for name in before if name.startswith(head)]
        assert mine, head
        assert not changed.intersection(mine), head
    assert any(name.startswith("vision") for name in changed), "not the head alone"


def test_fine_tuning_starts_from_it(xvlm: Run, boxed: Path) -> None:
    words = ("--max-steps", "1", "data.validation_limit=2", "--json")
    done = xvlm("finetune", "world", "init.checkpoint=newest-box_pretrain", *words)
    assert f"starting from box_pretrain run {boxed}" in done.err
    assert done.document()["ok"]


def test_what_names_no_run_starts_from_the_full_pretraining_before_it(boxed: Path) -> None:
    assert runs.newest() == runs.read(boxed), "it is the newest of all"
    found = checkpoints.find("newest-pretrain")
    assert found.path.is_relative_to("runs/pretrain-x")
    assert checkpoints.find("newest-box_pretrain").path.is_relative_to(boxed)
    recipes = [resolve(name).recipe for name in recipe_names("finetune")]
    assert "newest-box_pretrain" not in {recipe.init.checkpoint for recipe in recipes}


def test_it_finds_boxes_and_does_not_retrieve(boxed: Path) -> None:
    found = find_checkpoint(boxed, "grounding", {})
    assert found.folder.is_relative_to(boxed)
    for task in ("retrieval", "weak_grounding"):
        with pytest.raises(CheckpointError, match=f"is for box_pretrain, not for {task}"):
            find_checkpoint(boxed, task, {})
        other = find_checkpoint(None, task, {})
        assert other.folder.is_relative_to("runs/pretrain-x"), "the newest that fits"


def test_without_a_pretraining_run_it_says_how_to_make_one(xvlm: Run, world_store: Path) -> None:
    root = f"data.root={world_store.parent}"
    error = xvlm("pretrain", "--recipe", "world-box", root).refusal(5)
    assert "Try: xvlm pretrain" in error
    error = xvlm("finetune", "world", root, "init.checkpoint=newest-box_pretrain").refusal(5)
    assert "Try: xvlm pretrain --recipe box" in error

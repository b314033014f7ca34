"""The extra box pre-training: between pre-training and fine-tuning for grounding."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.cli.conftest import Run


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
    done = xvlm("finetune", "world", *words)
    assert f"starting from pretrain run {boxed}" in done.err
    assert done.document()["ok"]


def test_without_a_pretraining_run_it_says_how_to_make_one(xvlm: Run, world_store: Path) -> None:
    root = f"data.root={world_store.parent}"
    error = xvlm("pretrain", "--recipe", "world-box", root).refusal(5)
    assert "Try: xvlm pretrain" in error

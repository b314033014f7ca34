"""Retrieval through the command line: fine-tuned, validated, foretold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run

FAST = ("--max-steps", "1", "data.workers=0", "data.images.batch_size=4")


@pytest.fixture
def with_run(xvlm: Run, pretrained: Path, world_store: Path) -> Run:
    shutil.copytree(pretrained, "runs/pretrain-x")
    Path("data").mkdir()
    for name in ("world", "coco-karpathy"):
        Path("data", name).symlink_to(world_store)
    return xvlm


def test_it_starts_from_pretraining_and_is_scored_by_recall(with_run: Run) -> None:
    done = with_run("finetune", "world-retrieval", *FAST, "--json")
    result = done.document()["result"]
    scores = result["scores"]
    record = json.loads((Path(result["run"]) / "run.json").read_text())
    assert (record["task"], record["started_from"]) == (
        "retrieval",
        "runs/pretrain-x/checkpoints/step-00000002",
    )
    assert {f"{way} R@{k}" for way in ("text", "image") for k in (1, 5, 10)} < set(scores)
    assert scores["image R@10"]["value"] == 1.0, "there are four pictures"
    assert "the 4 nearest of 4" in scores["image R@1"]["convention"], "candidates were clipped"
    six = [scores[f"{way} R@{k}"]["value"] for way in ("text", "image") for k in (1, 5, 10)]
    assert scores["r_mean"]["value"] == pytest.approx(sum(six) / 6)


def test_a_tiny_model_on_coco(with_run: Run) -> None:
    words = ("model.size=tiny", "model.image_size=null", "model.window_size=null")
    done = with_run(
        "finetune", "coco-retrieval", *FAST, *words, "text.max_tokens=30", "--json"
    )  # fmt: skip
    assert done.document()["result"]["step"] == 1


def test_memory_and_time_are_foretold(with_run: Run) -> None:
    done = with_run("finetune", "world-retrieval", "--dry-run", "--json")
    assert done.document()["result"]["memory"]


def test_a_pretrained_model_is_evaluated_without_fine_tuning(with_run: Run) -> None:
    words = ("--checkpoint", "runs/pretrain-x", "--data", "data/world", "--split", "val")
    scores = with_run("evaluate", "retrieval", *words, "--json").document()["result"]["scores"]
    assert scores["r_mean"]["n"] > 4

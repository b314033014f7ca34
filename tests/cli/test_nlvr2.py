"""From a pre-trained run to an answer about two pictures, and what is said on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture(scope="session")
def pairs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` with a store ``world`` of single pictures and pairs."""
    from xvlm_core.sources.prepare import prepare

    root = tmp_path_factory.mktemp("data")
    options = {"train": 12, "val": 6, "test": 0, "unseen": 0, "pairs": 6, "workers": 1, "size": 64}
    prepare("world", root / "world", options, command="xvlm prepare-data world -o data/world")
    return root


def test_pretraining_extra_pretraining_fine_tuning_and_an_answer(
    xvlm: Run, pretrained: Path, pairs_root: Path
) -> None:
    shutil.copytree(pretrained, "runs/pretrain-x")
    more = (f"data.root={pairs_root}", "data.workers=0")
    extra = xvlm(
        "pretrain", "--recipe", "world-nlvr2", "--max-steps", "2", "--json", *more,
        "data.images.batch_size=6",
    )  # fmt: skip
    assert extra.code == 0, extra.err
    assert "pretrain-x" in extra.err, "what it starts from is said"
    notes = extra.document()["result"]["first_weights"]
    assert "fresh: ta_head" in notes
    assert any("copied" in note for note in notes)
    assert extra.document()["result"]["dropped"] == {}, "pairs are no pictures with captions"
    tuned = xvlm(
        "finetune", "world-nlvr2", "--max-steps", "2", "--json", *more, "data.pairs.batch_size=4"
    )
    assert tuned.code == 0, tuned.err
    result = tuned.document()["result"]
    assert "fresh: cls_head" in result["first_weights"]
    assert set(result["scores"]) == {"accuracy", "baseline: majority"}
    assert result["scores"]["accuracy"]["n"] == 3
    assert result["best"]["score"] == "accuracy"
    assert result["dropped"] == {}
    shutil.copy(next((pairs_root / "world").rglob("*.png")), "a.png")
    answer = xvlm("predict", "nlvr2", "a.png", "a.png", "both pictures contain a circle", "--json")
    assert answer.code == 0
    assert "newest nlvr2 run" in answer.document()["result"]["model"]["origin"]
    config = json.loads((Path(result["checkpoint"]) / "config.json").read_text())
    assert (config["task"], config["config"]["text"]["num_layers"]) == ("nlvr2", 6)


def test_the_verb_follows_from_the_task(xvlm: Run, pairs_root: Path) -> None:
    said = xvlm("finetune", "pretrain/world-nlvr2").refusal(3)
    assert "xvlm pretrain --recipe pretrain/world-nlvr2" in said
    said = xvlm("pretrain", "--recipe", "finetune/world-nlvr2").refusal(3)
    assert "xvlm finetune finetune/world-nlvr2" in said


def test_a_run_goes_on_by_the_verb_of_its_task(
    xvlm: Run, pretrained: Path, pairs_root: Path
) -> None:
    started = xvlm(
        "pretrain", "--recipe", "world-nlvr2", "--max-steps", "1", "-o", "runs/extra",
        f"data.root={pairs_root}", "data.workers=0", "data.images.batch_size=3",
        f"init.checkpoint={pretrained}",
    )  # fmt: skip
    assert started.code == 0, started.err
    said = xvlm("finetune", "--resume", "-o", "runs/extra").refusal(2)
    assert "xvlm pretrain --resume runs/extra" in said
    assert xvlm("pretrain", "--resume", "-o", "runs/extra").code == 0


def test_without_extra_pretraining_it_is_said_how_to_get_or_to_leave_it(
    xvlm: Run, pairs_root: Path
) -> None:
    said = xvlm("finetune", "world-nlvr2", f"data.root={pairs_root}").refusal(5)
    assert "no nlvr2_pretrain run" in said
    assert "xvlm pretrain --recipe nlvr2" in said
    assert "init.checkpoint=newest-pretrain" in said


def test_a_model_of_two_pictures_starts_no_grounding(
    xvlm: Run, pairs_root: Path, tmp_path: Path
) -> None:
    from tests.tasks.pairs import write_pair_model

    model = write_pair_model(tmp_path / "pairs")
    said = xvlm("finetune", "world", f"data.root={pairs_root}", "--init", model).refusal(5)
    assert "two pictures" in said

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.fixture
def with_run(xvlm: Run, pretrained: Path, world_store: Path) -> Run:
    """A folder with a pre-training run and the data of the world and of refcoco+."""
    shutil.copytree(pretrained, "runs/pretrain-x")
    Path("data").mkdir()
    for name in ("world", "refcoco+"):
        Path("data", name).symlink_to(world_store)
    return xvlm


def test_without_data_it_names_the_store_and_the_stand_in(xvlm: Run) -> None:
    error = xvlm("finetune", "refcoco+").refusal(4)
    assert "refcoco+: xvlm prepare-data" in error
    assert "Try: xvlm prepare-data world --as finetune/refcoco+ -o data" in error


def test_it_starts_from_the_newest_pretraining_run_and_says_so(with_run: Run) -> None:
    done = with_run("finetune", "world", "--max-steps", "1", "data.validation_limit=2", "--json")
    result = done.document()["result"]
    assert "starting from pretrain run runs/pretrain-x, step-00000002" in done.err
    record = json.loads((Path(result["run"]) / "run.json").read_text())
    assert record["started_from"] == "runs/pretrain-x/checkpoints/step-00000002"
    assert record["task"] == "grounding"
    assert result["scores"]["accuracy@0.5"]["convention"]


def test_a_tiny_model_on_refcoco_plus(with_run: Run) -> None:
    words = ("model.size=tiny", "model.image_size=null", "model.window_size=null")
    done = with_run(
        "finetune", "refcoco+", "--max-steps", "1", *words, "data.workers=0",
        "data.validation_limit=2", "text.max_tokens=30", "--json",
    )  # fmt: skip
    assert done.document()["result"]["step"] == 1


def test_without_a_pretraining_run_it_says_how_to_make_one(xvlm: Run, world_store: Path) -> None:
    error = xvlm("finetune", "world", f"data.root={world_store.parent}").refusal(5)
    assert "Try: xvlm pretrain" in error
    assert not Path("runs").exists()


def test_a_model_of_another_size_is_refused_and_leaves_no_run(with_run: Run) -> None:
    error = with_run("finetune", "refcoco+", "--max-steps", "1").refusal(5)
    assert "another size (tiny)" in error
    assert "Try: model.size=tiny" in error
    assert [path.name for path in Path("runs").iterdir()] == ["pretrain-x"]


def test_init_names_another_model(with_run: Run, model: Path) -> None:
    words = ("finetune", "world", "--max-steps", "1", "data.validation_limit=2")
    done = with_run(*words, "--init", str(model))
    assert done.code == 0
    assert f"starting from model {model}" in done.err
    with_run(*words, "--init", "gone").refusal(5)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "which task"),
        (("refcoko",), 3, "near: finetune/refcoco"),
        (("pretrain/16m",), 3, "task pretrain"),
        (("refcoco+", "losses.matchign.weight=1"), 3, "losses.matching"),
        (("--resume",), 5, "no unfinished run"),
    ],
)
def test_what_is_refused(words: tuple[str, ...], code: int, says: str, xvlm: Run) -> None:
    assert says in xvlm("finetune", *words).refusal(code)


def test_dry_run_says_where_it_would_start(with_run: Run) -> None:
    result = with_run("finetune", "world", "--dry-run", "--json").document()["result"]
    assert result["start_from"] == "runs/pretrain-x/checkpoints/step-00000002"
    assert [path.name for path in Path("runs").iterdir()] == ["pretrain-x"]


def test_a_finetuned_run_is_resumed_by_its_name(with_run: Run) -> None:
    with_run("finetune", "world", "--max-steps", "1", "data.validation_limit=2", "-o", "runs/g")
    done = with_run("finetune", "--resume", "runs/g", "--json")
    assert done.document()["result"]["run"] == "runs/g"
    # a pre-training run is not fine-tuning's to go on with
    assert with_run("finetune", "--resume", "--json").code == 5
    for words in (("--resume", "runs/pretrain-x"), ("world", "--resume", "runs/pretrain-x")):
        error = with_run("finetune", *words).refusal(2)
        assert "xvlm pretrain --resume runs/pretrain-x" in error
    assert "xvlm finetune" in with_run("pretrain", "--resume", "runs/g").refusal(2)

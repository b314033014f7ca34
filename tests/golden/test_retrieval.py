"""Recorded outputs of retrieval, also of a model that was written down and read again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.golden.case import assert_close
from tests.golden.retrieval_outputs import INPUTS, TOKENIZER, evaluation, step
from tests.golden.task_case import TaskCase
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.folder import ModelInfo, load_weights, save_model_folder
from xvlm_core.weights.official import from_official, to_official


@pytest.fixture
def folder(golden_root: Path | None) -> Path:
    if golden_root is None or not (golden_root / "retrieval" / "io.safetensors").is_file():
        pytest.skip("no golden cases here")
    return golden_root / "retrieval"


def check(case: TaskCase) -> None:
    with torch.no_grad():
        made = step(case) | evaluation(case)
    names = set(case.io) - INPUTS
    assert names == set(made), "recorded tensors that nothing reproduces"
    for name in sorted(names):
        assert_close(name, made[name].value, case.io[name], made[name].where)


def test_recorded_outputs_of_the_released_code_are_reproduced(folder: Path) -> None:
    check(TaskCase.read(folder))


@pytest.mark.parametrize("pictures", [1, 5])
def test_batches_change_nothing(folder: Path, pictures: int) -> None:
    case = TaskCase.read(folder)
    with torch.no_grad():
        made = evaluation(case, pictures_a_batch=pictures)
    for name, one in made.items():
        case.equal(name, one.value)


def test_recorded_figures_are_reproduced(folder: Path) -> None:
    """Up to the three that were scored: the released code leaves the order of the rest to chance.

    Ours takes the rest by similarity.
    """
    case = TaskCase.read(folder)
    with torch.no_grad():
        evaluation(case)
    scores, recorded = case.meta["scores"], case.meta["metrics_k3"]
    for ours, theirs in (("text", "txt"), ("image", "img")):
        assert scores[f"{ours} R@1"].value * 100 == pytest.approx(recorded[f"{theirs}_r1"])
    # all five pictures are among the first five, whatever their order
    assert scores["image R@5"].value * 100 == pytest.approx(recorded["img_r5"])


def test_a_model_that_went_through_our_folder_and_back_computes_the_same(
    folder: Path, tmp_path: Path
) -> None:
    case = TaskCase.read(folder)
    assert isinstance(case.model, XVLM)
    info = ModelInfo(
        task="retrieval",
        about="recorded",
        trained_on="",
        max_words=30,
        max_tokens=12,
        config=case.model.config,
    )
    save_model_folder(tmp_path / "model", case.model, TOKENIZER, info)
    ours = XVLM(case.model.config).eval()
    load_weights(ours, tmp_path / "model")
    check(dataclasses.replace(case, model=ours))
    official = to_official(ours.state_dict(), ours.config)
    released = load_file(folder / "weights.safetensors")
    assert set(official) == set(released)
    assert all(torch.equal(official[name], released[name]) for name in released)
    again = XVLM(ours.config).eval()
    again.load_state_dict(from_official(official, ours.config).state)
    check(dataclasses.replace(case, model=again))

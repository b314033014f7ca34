from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.recipes import grounding_recipe, records, store, write_stores
from xvlm_core.data.batches import GroundingBatch
from xvlm_core.errors import ConfigError, DataError
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.grounding import GroundingTask
from xvlm_core.tasks.registry import build_task


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_stores(folder)
    return folder


def moment(progress: float = 0.0) -> Moment:
    return Moment(1, progress, torch.Generator().manual_seed(0))


def built(root: Path, **changes: Any) -> tuple[GroundingTask, XVLM, GroundingBatch]:
    torch.manual_seed(0)
    task = build_task(grounding_recipe(root, **changes))
    assert isinstance(task, GroundingTask)
    model = task.build_model()
    assert isinstance(model, XVLM)
    return task, model, task.feed().batches(1)[0]


def test_the_model_carries_the_two_heads_it_answers_with(root: Path) -> None:
    _, model, _ = built(root)
    assert hasattr(model, "itm_head")
    assert hasattr(model, "bbox_head")
    assert not hasattr(model, "vision_proj")
    assert model.text.lm_head is None


def test_boxes_are_learnt_from_phrases_that_are_there_and_matching_from_all(root: Path) -> None:
    task, model, batch = built(root)
    losses = task.losses(model, batch, moment())
    assert set(losses.parts) == {"box_l1", "box_giou", "matching"}
    assert losses.counts == {"absent": 2}
    moved = batch.boxes_cxcywh_B4.clone()
    moved[~batch.present_B] = 0.9
    again = task.losses(model, dataclasses.replace(batch, boxes_cxcywh_B4=moved), moment())
    assert torch.equal(again.parts["box_l1"], losses.parts["box_l1"])
    everything = torch.ones_like(batch.present_B)
    swapped = task.losses(model, dataclasses.replace(batch, present_B=everything), moment())
    assert not torch.equal(swapped.parts["matching"], losses.parts["matching"])


def test_a_batch_whose_phrases_are_all_absent_has_no_box_loss_to_speak_of(root: Path) -> None:
    task, model, batch = built(root)
    nothing = dataclasses.replace(batch, present_B=torch.zeros_like(batch.present_B))
    losses = task.losses(model, nothing, moment())
    assert losses.parts["box_l1"].item() == losses.parts["box_giou"].item() == 0
    losses.total().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(
    ("losses", "progress", "names"),
    [
        ({}, 0.0, {"box_l1", "box_giou", "matching"}),
        ({"matching": {"weight": 0.0}}, 0.5, {"box_l1", "box_giou"}),
        ({"box_giou": {"weight": 0.0}}, 0.5, {"box_l1", "matching"}),
        ({"box_l1": {"start": 0.4}, "matching": {"start": 0.2}}, 0.1, {"box_giou"}),
        ({"box_l1": {"start": 0.4}, "matching": {"start": 0.2}}, 0.2, {"box_giou", "matching"}),
        ({n: {"start": 0.5} for n in ("box_l1", "box_giou", "matching")}, 0.4, set()),
    ],
)
def test_losses_start_when_the_recipe_says(
    root: Path, losses: dict[str, Any], progress: float, names: set[str]
) -> None:
    task, model, batch = built(root, losses=losses)
    if not names:
        model.encode_pictures = lambda *_: pytest.fail("pictures encoded")  # type: ignore[method-assign]
    made = task.losses(model, batch, moment(progress))
    assert set(made.parts) == names
    assert set(made.weights) == names


def test_a_recipe_without_regions_is_refused(root: Path) -> None:
    data = {"regions": None, "images": {"stores": ["captions"]}}
    with pytest.raises(ConfigError, match=r"data\.regions") as caught:
        built(root, data=data)
    assert caught.value.exit_code == 3
    assert caught.value.try_


def test_matching_without_absent_phrases_is_refused(root: Path) -> None:
    regions = {"regions": {"absent": 0}}
    with pytest.raises(ConfigError, match="say yes to anything") as caught:
        built(root, data=regions)
    assert caught.value.where == "data.regions.absent"
    _, _, batch = built(root, data=regions, losses={"matching": {"weight": 0.0}})
    assert batch.present_B.all()


def test_validation_on_nothing_is_refused_before_training(root: Path) -> None:
    with pytest.raises(DataError, match="no record of split 'dev'") as caught:
        built(root, data={"validation_split": "dev"})
    assert "data.validation_split=" in str(caught.value.try_)


def test_a_few_steps_find_the_boxes_of_a_picture(root: Path) -> None:
    store(root, "one", records(root / "pictures", 1))
    task, model, batch = built(root, data={"regions": {"stores": ["one"], "max_images": 1}})
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        losses = task.losses(model, batch, moment())
        losses.total().backward()
        optimizer.step()
    assert losses.parts["box_l1"].item() < 0.2
    assert losses.parts["matching"].item() < 0.3
    with torch.no_grad():
        said = model.ground(batch.pictures_ICHW, batch.texts, batch.picture_of_text_B)
    assert said.match_probability_B[batch.present_B].min() > 0.5
    assert said.match_probability_B[~batch.present_B].max() < 0.5

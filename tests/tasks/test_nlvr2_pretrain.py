from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.pairs import pairs_recipe, write_pairs
from tests.tasks.recipes import merged, recipe, write_stores
from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.errors import ConfigError
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.objectives.pair_assignment import Assignment, assignment_loss
from xvlm_core.tasks import nlvr2_pretrain
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.nlvr2_pretrain import Nlvr2PretrainTask
from xvlm_core.tasks.registry import build_task
from xvlm_core.train.optim import build_optimizer, parameter_groups
from xvlm_core.train.synthetic import synthetic_part, task_without_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_stores(folder)
    write_pairs(folder)
    return folder


def extra_recipe(root: Path, **changes: Any) -> Recipe:
    tree = {"task": "nlvr2_pretrain", "data": {"regions": None, "images": {"batch_size": 5}}}
    return recipe(root, **merged(tree, changes))


def built(root: Path, **changes: Any) -> tuple[Nlvr2PretrainTask, NLVR2, PretrainBatch]:
    torch.manual_seed(0)
    task = build_task(extra_recipe(root, **changes))
    assert isinstance(task, Nlvr2PretrainTask)
    model = task.build_model()
    assert isinstance(model, NLVR2)
    return task, model, task.feed().batches(1)[0]


def moment(seed: int = 0, progress: float = 0.0) -> Moment:
    return Moment(1, progress, torch.Generator().manual_seed(seed))


def test_the_model_has_one_linear_head_of_three_classes(root: Path) -> None:
    _, model, _ = built(root)
    assert model.config.text.pictures == 2
    assert tuple(model.ta_head.weight.shape) == (3, model.config.text.hidden_size)
    assert not hasattr(model, "cls_head")


def test_the_loss_is_that_of_the_pictures_that_were_drawn(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model, batch = built(root)
    wanted = Assignment(
        *(torch.tensor(x) for x in ([0, 0, 2, 4, 1], [3, 1, 0, 0, 4], [0, 1, 0, 2, 1]))
    )
    monkeypatch.setattr(nlvr2_pretrain, "draw_assignment", lambda *_: wanted)
    losses = task.losses(model, batch, moment())
    patches = model.encode_pictures(batch.pictures_ICHW)
    rows = batch.picture_of_text_B
    states = model.look(
        model.encode_texts(batch.texts), patches, rows[wanted.first_B], rows[wanted.second_B]
    )
    expected = assignment_loss(model.assignment_logits(states.first()), wanted.label_B)
    assert torch.allclose(losses.parts["pair_assignment"], expected)


def test_the_projection_that_others_are_drawn_by_does_not_learn(root: Path) -> None:
    task, model, batch = built(root)
    assert not any(p.requires_grad for p in model.vision_proj.parameters())
    before = model.vision_proj.weight.clone()
    optim = task.recipe.optim
    groups = parameter_groups(model, optim, larger_lr_names=model.larger_lr_names)
    optimizer = build_optimizer(model, optim, groups)
    task.losses(model, batch, moment()).total().backward()
    optimizer.step()
    assert torch.equal(model.vision_proj.weight, before)
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert "vision_proj.weight" in without
    assert any(p.grad.any() for n, p in model.named_parameters() if n.startswith("vision.backbone"))
    assert model.larger_lr_names == {"ta_head.weight", "ta_head.bias"}


def test_draws_change_from_update_to_update_and_follow_its_generator(root: Path) -> None:
    task, model, batch = built(root)
    made = {
        seed: task.losses(model, batch, moment(seed)).parts["pair_assignment"] for seed in range(4)
    }
    again = task.losses(model, batch, moment(2)).parts["pair_assignment"]
    assert torch.equal(again, made[2])
    assert len({round(loss.item(), 6) for loss in made.values()}) > 1


def test_a_batch_of_one_picture_has_nothing_to_learn_and_says_so(root: Path) -> None:
    task, model, batch = built(root, data={"images": {"batch_size": 1}})
    losses = task.losses(model, batch, moment())
    assert losses.parts["pair_assignment"].item() == 0
    assert losses.counts["texts_without_other"] == 1
    assert task.sizes(batch, moment()) == {"pair_assignment": 0.0}
    losses.total().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    two = built(root, data={"images": {"batch_size": 2}})[2]
    assert task.sizes(two, moment()) == {"pair_assignment": 2.0}
    assert "texts_without_other" not in task.losses(model, two, moment()).counts


def test_a_picture_that_fits_the_text_as_well_is_no_other(root: Path) -> None:
    task, model, batch = built(root)
    assert batch.keys_B3 is not None
    everything = dataclasses.replace(batch, keys_B3=torch.ones_like(batch.keys_B3))
    assert task.sizes(everything, moment()) == {"pair_assignment": 0.0}
    assert task.losses(model, everything, moment()).counts["texts_without_other"] == 5


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"images": None, "regions": {"stores": ["regions"]}}, "data.images"),
        ({"regions": {"stores": ["regions"]}}, "data.regions"),
        ({"validation": ["regions"]}, "data.validation"),
        ({"pairs": {"stores": ["pairs"]}, "validation": ["pairs"]}, "data.pairs, data.validation"),
    ],
)
def test_a_recipe_with_other_data_is_refused(root: Path, data: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match="pictures with captions") as caught:
        built(root, data=data)
    assert caught.value.where == where
    assert caught.value.try_


def test_fine_tuning_goes_on_from_it(root: Path, tmp_path: Path) -> None:
    pretrain = build_task(recipe(root))
    pretrain.save_model(pretrain.build_model(), tmp_path / "pretrain")
    extra = build_task(extra_recipe(root), start_from=tmp_path / "pretrain")
    model = extra.build_model()
    assert "fresh: ta_head" in extra.notes
    assert any("copied" in note for note in extra.notes)
    extra.save_model(model, tmp_path / "extra")
    tuned = build_task(pairs_recipe(root), start_from=tmp_path / "extra")
    own = tuned.build_model().state_dict()
    assert "fresh: cls_head" in tuned.notes
    for name, value in model.state_dict().items():
        assert name in own or name.startswith(("ta_head.", "vision_proj."))
        assert name not in own or torch.equal(own[name], value), name


def test_an_update_is_foretold(root: Path) -> None:
    settings = extra_recipe(root)
    ((batch, often),) = synthetic_part(settings, task_without_data(settings), 1).batches
    assert (batch.n_pictures, often) == (5, 1.0)

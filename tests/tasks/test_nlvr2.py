from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.data.painted import extent, painted_store
from tests.tasks.pairs import pair, pairs_recipe, write_mixed, write_pairs
from xvlm_core.config.resolve import resolve
from xvlm_core.data.batches import PairBatch
from xvlm_core.data.feeds import StoreStream
from xvlm_core.data.pair_samples import PairSample, PairSampleMaker
from xvlm_core.data.record_kinds import numbers_of
from xvlm_core.data.records import Record
from xvlm_core.errors import ConfigError, DataError
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.building import sample_settings, token_limit
from xvlm_core.tasks.nlvr2 import Nlvr2Task
from xvlm_core.tasks.registry import build_task
from xvlm_core.train.synthetic import synthetic_part, task_without_data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pairs(folder)
    return folder


def moment(progress: float = 0.0) -> Moment:
    return Moment(1, progress, torch.Generator().manual_seed(0))


def built(root: Path, **changes: Any) -> tuple[Nlvr2Task, NLVR2, PairBatch]:
    torch.manual_seed(0)
    task = build_task(pairs_recipe(root, **changes))
    assert isinstance(task, Nlvr2Task)
    model = task.build_model()
    assert isinstance(model, NLVR2)
    return task, model, task.feed().batches(1)[0]


# ------------------------------------------------------------------ model and loss


def test_the_cross_layers_are_doubled_and_the_head_has_two_classes(root: Path) -> None:
    _, model, _ = built(root)
    text = model.config.text
    assert (text.pictures, text.fusion_layer, text.num_layers) == (2, 1, 3), "1 text, 1 x 2 cross"
    assert model.config.heads == ("statement",)
    assert model.cls_head[3].out_features == 2
    assert not hasattr(model, "vision_proj")
    shape = task_without_data(resolve("finetune/nlvr2").recipe).config
    assert (shape.text.fusion_layer, shape.text.num_layers) == (6, 18)


def test_the_loss_is_the_cross_entropy_of_true_and_false(root: Path) -> None:
    task, model, batch = built(root)
    assert len(batch.label_B) == 4
    assert batch.n_pictures == 8
    losses = task.losses(model, batch, moment())
    logits = model.statement_logits(
        model.read(batch.pictures_ICHW, batch.texts, batch.first_B, batch.second_B).first()
    )
    truth = [int(name[1:]) % 2 for name in batch.record_ids]
    assert batch.label_B.tolist() == truth
    expected = F.cross_entropy(logits, torch.tensor(truth))
    assert torch.allclose(losses.parts["statement"], expected)
    assert task.sizes(batch, moment()) == {"statement": 4.0}
    losses.total().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_left_and_right_are_told_apart(root: Path) -> None:
    task, model, batch = built(root)
    swapped = dataclasses.replace(batch, first_B=batch.second_B, second_B=batch.first_B)
    one, other = (task.losses(model, b, moment()).parts["statement"] for b in (batch, swapped))
    assert not torch.allclose(one, other)


def test_a_loss_that_has_not_started_encodes_nothing(root: Path) -> None:
    task, model, batch = built(root, losses={"statement": {"start": 0.5}})
    model.encode_pictures = lambda *_: pytest.fail("pictures encoded")  # type: ignore[method-assign]
    assert not task.losses(model, batch, moment(0.4)).parts
    assert model.runs_in_every_part == (), "a part may skip the encoders"
    assert built(root)[1].runs_in_every_part


def test_a_recipe_without_pairs_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.pairs") as caught:
        built(root, data={"pairs": None, "images": {"stores": ["captions"]}})
    assert caught.value.exit_code == 3
    assert caught.value.try_


def test_a_few_steps_learn_a_pair(root: Path, tmp_path: Path) -> None:
    made = [
        pair(tmp_path, "a", text="a red circle", label=True),
        pair(tmp_path, "b", text="a blue square", label=False),
    ]
    painted_store(tmp_path / "pairs", tmp_path, made)
    task, model, batch = built(tmp_path, data={"pairs": {"batch_size": 2}, "validation": []})
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        losses = task.losses(model, batch, moment())
        losses.total().backward()
        optimizer.step()
    assert losses.parts["statement"].item() < 0.1


# ------------------------------------------------------------------ samples


def maker(root: Path, **changes: Any) -> PairSampleMaker:
    return task_without_data(pairs_recipe(root, **changes)).sample_maker()  # type: ignore[return-value]


def sample_of(record: Record, root: Path, made: PairSampleMaker, epoch: int) -> PairSample:
    return made.of_pair(record, lambda which: root / record.images[which], epoch)


def mirrored(picture: np.ndarray, channel: int) -> bool | None:
    """Whether what was at the left edge is at the right; None where the crop lost it."""
    box = extent(picture, channel)
    if box is None or box[2] - box[0] > 40:
        return None
    return (box[0] + box[2]) / 2 > 32


def flips(record: Record, root: Path, made: PairSampleMaker) -> set[tuple[bool, bool]]:
    found = set()
    for epoch in range(40):
        sample = sample_of(record, root, made, epoch)
        sides = (mirrored(sample.picture, 0), mirrored(sample.second, 1))
        if None not in sides:
            found.add(sides)
    return found


def test_each_picture_of_a_pair_is_mirrored_by_itself(tmp_path: Path) -> None:
    record = pair(tmp_path, "a", text="both pictures contain a red circle")
    every = {(False, False), (False, True), (True, False), (True, True)}
    assert flips(record, tmp_path, maker(tmp_path, data={"augment": True})) == every


def test_no_picture_is_mirrored_where_the_statement_names_a_side(tmp_path: Path) -> None:
    record = pair(tmp_path, "a", text="the Left picture contains a red circle")
    careful = maker(tmp_path, data={"augment": True})
    assert flips(record, tmp_path, careful) == {(False, False)}
    released = maker(tmp_path, compat="official", data={"augment": True})
    assert len(flips(record, tmp_path, released)) == 4, "whatever the text says, as released"


def test_a_sample_is_the_same_whoever_makes_it_and_another_in_another_pass(tmp_path: Path) -> None:
    record = pair(tmp_path, "a")
    made = maker(tmp_path, data={"augment": True})
    one, same = (sample_of(record, tmp_path, made, 0) for _ in range(2))
    other = sample_of(record, tmp_path, made, 1)
    assert np.array_equal(one.picture, same.picture)
    assert np.array_equal(one.second, same.second)
    assert not np.array_equal(one.picture, other.picture)
    assert (one.label, one.texts[0].words) == (True, "both pictures contain a red circle")


def test_no_statement_is_cut_in_the_released_fine_tuning(tmp_path: Path) -> None:
    settings = pairs_recipe(tmp_path)
    config = task_without_data(settings).config
    assert token_limit(settings, config) == settings.text.max_tokens == 12
    official = pairs_recipe(tmp_path, compat="official")
    assert token_limit(official, config) == config.text.max_positions
    assert sample_settings(official, config).careful_flip is False


# ------------------------------------------------------------------ what cannot be used


def test_a_pair_with_one_unreadable_picture_is_left_out_counted_and_named(tmp_path: Path) -> None:
    made = [pair(tmp_path / "pictures", name) for name in ("good", "torn", "mute", "open")]
    made[2] = dataclasses.replace(
        made[2], statement=dataclasses.replace(made[2].statement, text="?!")
    )
    made[3] = dataclasses.replace(
        made[3], statement=dataclasses.replace(made[3].statement, label=None)
    )
    painted_store(tmp_path / "pairs", tmp_path / "pictures", made)
    (tmp_path / "pictures" / "torn-right.png").write_bytes(b"no picture")
    _, _, batch = built(tmp_path, data={"validation": []})
    assert batch.record_ids == ("good",)
    assert batch.n_pictures == 2
    assert dict(batch.dropped) == {"not an image": 1, "empty text": 1, "no label": 1}
    assert batch.bad.n == 1, "the other two are no damage"
    (bad,) = batch.bad.examples
    assert (bad.record_id, bad.reason, bad.file) == ("torn", "not an image", "torn-right.png")


def test_in_a_store_of_both_kinds_an_update_of_n_pairs_has_n(tmp_path: Path) -> None:
    store = write_mixed(tmp_path, singles=7, pairs=4)
    task, _, batch = built(tmp_path, data={"pairs": {"stores": ["mixed"]}, "validation": []})
    assert sorted(batch.record_ids) == ["p0", "p1", "p2", "p3"]
    assert not batch.dropped
    assert task.feed().steps_per_epoch == 1
    assert StoreStream([store], "train", 2, 1, "images").n_records == 7, "nor are pairs pictures"
    assert len(numbers_of(store, "train", pairs=True)) == 4


def test_a_store_without_any_pair_is_said(tmp_path: Path) -> None:
    write_mixed(tmp_path, singles=2, pairs=0)
    with pytest.raises(DataError, match="no pair of pictures of split 'train' in mixed") as caught:
        built(tmp_path, data={"pairs": {"stores": ["mixed"]}, "validation": []})
    assert caught.value.where == "data.pairs.stores"


# ------------------------------------------------------------------ foretelling


def test_a_part_of_an_update_is_foretold_with_and_without_the_stores(root: Path) -> None:
    settings = pairs_recipe(root)
    there = synthetic_part(settings, task_without_data(settings), 2)
    ((batch, often),) = there.batches
    assert isinstance(batch, PairBatch)
    assert (batch.n_pictures, often) == (4, 1.0)
    assert there.looked_at == ("pairs",)
    nowhere = pairs_recipe(root / "nowhere")
    ((longest, _),) = synthetic_part(nowhere, task_without_data(nowhere), 2).batches
    assert isinstance(longest, PairBatch)
    assert longest.n_pictures == 4
    assert {group.length for group in longest.texts.packing.groups} == {12}

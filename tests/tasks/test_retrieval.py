"""The task of retrieval: several captions of one picture, and what may be a negative."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.data.painted import painted_record, painted_store
from tests.tasks.recipes import BOXES, merged, recipe, write_stores
from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.data.feeds import CaptionFeed, with_one_caption
from xvlm_core.data.records import Record
from xvlm_core.errors import ConfigError
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.contrastive import (
    contrastive_loss,
    excluded_pairs,
    multi_positive_loss,
    same_picture,
)
from xvlm_core.tasks import pretrain_forward as forward
from xvlm_core.tasks.base import Losses, Moment
from xvlm_core.tasks.registry import build_task
from xvlm_core.tasks.retrieval import RetrievalTask
from xvlm_core.train.parts import shares

PICTURES = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_stores(folder, train=PICTURES)
    return folder


def retrieval_recipe(root: Path, **changes: Any) -> Recipe:
    """Eight captions an update, of five pictures: some come twice."""
    tree = {
        "task": "retrieval",
        "data": {
            "images": {"batch_size": 8},
            "regions": None,
            "validation": ["captions"],
        },
    }
    return recipe(root, **merged(tree, changes))


def built(root: Path, **changes: Any) -> tuple[RetrievalTask, XVLM]:
    torch.manual_seed(0)
    task = build_task(retrieval_recipe(root, **changes))
    model = task.build_model()
    assert isinstance(task, RetrievalTask)
    assert isinstance(model, XVLM)
    return task, model.eval()


def moment(peers: Any = None) -> Moment:
    draws = torch.Generator().manual_seed(0)
    return Moment(1, 0.0, draws) if peers is None else Moment(1, 0.0, draws, peers)


def twice(batch: PretrainBatch) -> list[tuple[int, int]]:
    ids = batch.record_ids
    return [(b, c) for b in range(len(ids)) for c in range(b) if ids[b] == ids[c]]


# ---------------------------------------------------------------------- the loss


def test_with_one_text_a_picture_it_is_the_contrastive_loss() -> None:
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    eye = torch.eye(6, dtype=torch.bool)
    assert multi_positive_loss(scores, eye).item() == pytest.approx(contrastive_loss(scores).item())


def test_the_target_of_a_picture_with_several_texts_is_spread_over_them() -> None:
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    keys = torch.tensor([[0, 0, n] for n in (7, 3, 7, 9, 7)])
    same = same_picture(keys)
    assert same.tolist() == [[a == b for b in (7, 3, 7, 9, 7)] for a in (7, 3, 7, 9, 7)]
    target = same.float() / same.float().sum(1, keepdim=True)
    expected = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    assert multi_positive_loss(scores, same).item() == pytest.approx(expected.item())
    assert expected.item() != pytest.approx(contrastive_loss(scores).item(), rel=1e-3)


def test_same_words_of_another_picture_are_neither_right_nor_wrong() -> None:
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    keys = torch.tensor([[1, 0, 5], [2, 0, 5], [1, 0, 6], [3, 0, 8]])
    loss = multi_positive_loss(scores, same_picture(keys), excluded_pairs(keys))
    loss.backward()
    assert loss.isfinite()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 2] == scores.grad[2, 0] == 0
    assert (scores.grad[[0, 1, 2], [3, 2, 1]] > 0).all(), "the others are wrong answers"
    # without the pair that was left out
    row = scores.detach()[2, [1, 2, 3]].log_softmax(0)[1]
    other = scores.detach()[0, [0, 1, 3]].log_softmax(0)[:2].mean()
    rows = multi_positive_rows(scores.detach(), same_picture(keys), excluded_pairs(keys))
    assert (rows[2].item(), rows[0].item()) == pytest.approx((-row.item(), -other.item()))


def multi_positive_rows(scores: Any, same: Any, excluded: Any) -> torch.Tensor:
    """The rows of the first direction, by a loop."""
    rows = []
    for b in range(len(scores)):
        kept = [c for c in range(len(scores)) if same[b, c] or not excluded[b, c]]
        logs = scores[b, kept].log_softmax(0)
        rows.append(-torch.stack([logs[kept.index(c)] for c in kept if same[b, c]]).mean())
    return torch.stack(rows)


def test_the_loss_is_that_of_a_loop_over_rows() -> None:
    scores = torch.randn(4, 4, generator=torch.Generator().manual_seed(4))
    keys = torch.tensor([[1, 0, 5], [2, 0, 5], [1, 0, 6], [3, 0, 8]])
    same, excluded = same_picture(keys), excluded_pairs(keys)
    both = [multi_positive_rows(s, same, excluded).mean() for s in (scores, scores.T)]
    loss = multi_positive_loss(scores, same, excluded)
    assert loss.item() == pytest.approx(torch.stack(both).mean().item())


# ---------------------------------------------------------------------- what is read


def test_every_caption_comes_once_before_one_comes_again(root: Path) -> None:
    made = Record("r", ("r.png",), 8, 8, captions=("a", "b", "c"))
    for lap in range(4):
        turns = [with_one_caption(made, 3, 3 * lap + turn).captions for turn in range(3)]
        assert sorted(turns) == [("a",), ("b",), ("c",)]
    orders = {
        tuple(with_one_caption(made, seed, turn).captions for turn in range(3))
        for seed in range(20)
    }
    assert len(orders) > 1
    assert with_one_caption(dataclasses.replace(made, captions=()), 3, 1).captions == ()


def test_an_epoch_of_as_many_pairs_as_captions_reads_each_pair_once(root: Path) -> None:
    task, _ = built(root, data={"images": {"batch_size": 5}, "size": 2 * PICTURES})
    feed = task.feed()
    assert isinstance(feed, CaptionFeed)
    assert feed.steps_per_epoch == 2
    for epoch in range(3):
        pairs = []
        for step in (1, 2):
            (batch,) = feed.batches(2 * epoch + step)
            texts = batch.keys_B3[:, 0].tolist() if batch.keys_B3 is not None else []
            pairs += list(zip(batch.record_ids, texts, strict=True))
        assert len(set(pairs)) == len(pairs) == 2 * PICTURES


def test_records_of_two_stores_with_the_same_id_are_two_pictures(
    root: Path, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        pictures = tmp_path / "pictures" / name
        made = [painted_record(pictures, "same", [("box", BOXES[0])], captions=("red",))]
        painted_store(tmp_path / name, pictures, made)
    images = {"stores": ["one", "two"], "batch_size": 2}
    task, _ = built(tmp_path, data={"images": images, "validation": []})
    (batch,) = task.feed().batches(1)
    assert isinstance(batch, PretrainBatch)
    assert batch.keys_B3 is not None
    assert same_picture(batch.keys_B3).tolist() == [[True, False], [False, True]]
    (epoch_later,) = task.feed().batches(2)
    assert isinstance(epoch_later, PretrainBatch)
    assert epoch_later.keys_B3 is not None
    assert set(epoch_later.keys_B3[:, 2].tolist()) == set(batch.keys_B3[:, 2].tolist())


def test_crops_keep_at_least_half_and_texts_are_cut_unless_as_released(root: Path) -> None:
    settings = built(root)[0].sample_maker().settings
    assert (settings.crop_scale, settings.max_tokens) == ((0.5, 1.0), 12)
    released = built(root, compat="official")[0].sample_maker().settings
    assert (released.crop_scale, released.max_tokens) == ((0.5, 1.0), 64)


# ---------------------------------------------------------------------- the task


def step_of(root: Path, **changes: Any) -> tuple[RetrievalTask, XVLM, PretrainBatch]:
    task, model = built(root, **changes)
    (batch,) = task.feed().batches(1)
    assert isinstance(batch, PretrainBatch)
    assert twice(batch), "a picture comes with several captions"
    return task, model, batch


def test_both_losses_reach_their_heads(root: Path) -> None:
    task, model, batch = step_of(root)
    losses = task.losses(model, batch, moment())
    assert set(losses.parts) == {"contrastive", "matching"}
    total = losses.total()
    assert total is not None
    total.backward()
    reached = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert reached == {"vision", "text", "vision_proj", "text_proj", "temp", "itm_head"}
    assert {n.split(".")[0] for n, _ in model.named_parameters()} == reached


def test_what_has_no_weight_is_not_computed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, model, batch = step_of(root, losses={"matching": {"weight": 0.0}})
    monkeypatch.setattr(XVLM, "fuse", None)
    assert set(task.losses(model, batch, moment()).parts) == {"contrastive"}
    assert set(task.sizes(batch, moment())) == {"contrastive"}
    assert model.runs_in_every_part == ()


@pytest.mark.parametrize("compat", ["none", "official"])
def test_texts_of_the_same_picture_are_positives_and_never_negatives(
    root: Path, compat: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model, batch = step_of(root, compat=compat)
    drawn = []
    real = forward.draw_negatives

    def watched(scores: Any, excluded: Any, generator: Any, count: int) -> Any:
        drawn.extend(real(scores, excluded, generator, count))
        return drawn[-count:]

    monkeypatch.setattr(forward, "draw_negatives", watched)
    for seed in range(20):
        at = dataclasses.replace(moment(), generator=torch.Generator().manual_seed(seed))
        losses = task.losses(model, batch, at)
    ids = batch.record_ids
    for one in drawn:
        for b in range(len(ids)):
            assert ids[one.concept_of_text_B[b]] != ids[b]
            assert ids[one.text_of_concept_B[b]] != ids[b]
    # the contrastive loss is that of a target over all captions of a picture
    out = forward.pretrain_forward(
        model, batch, forward.Wanted(matching=False, masked_lm=False, box=False)
    )
    assert out.similarity_GG is not None
    same = torch.tensor([[a == b for b in ids] for a in ids])
    target = same.float() / same.float().sum(1, keepdim=True)
    scores = out.similarity_GG
    if compat == "none":  # the same words are left out
        assert batch.keys_B3 is not None
        alike = batch.keys_B3[:, 0][:, None] == batch.keys_B3[:, 0]
        scores = scores.masked_fill(alike & ~same, -1e9)
    expected = (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2
    assert losses.parts["contrastive"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_same_words_are_negatives_as_released_only(root: Path, tmp_path: Path) -> None:
    made = [
        painted_record(tmp_path, f"p{i}", [("box", BOXES[i])], captions=("red circle",))
        for i in range(2)
    ]
    painted_store(tmp_path / "captions", tmp_path, made)
    for compat, without in (("none", 4), ("official", 0)):
        images = {"batch_size": 2}
        task, model = built(tmp_path, compat=compat, data={"images": images, "validation": []})
        (batch,) = task.feed().batches(1)
        losses = task.losses(model, batch, moment())
        assert losses.counts["rows_without_negative"] == without, compat
        assert (losses.parts["contrastive"].item() < 1e-6) == (compat == "none")


@pytest.mark.parametrize(("compat", "temperature"), [("none", 0.5), ("official", 3.0)])
def test_the_temperature_is_clamped_unless_as_released(
    root: Path, compat: str, temperature: float
) -> None:
    task, model, batch = step_of(root, compat=compat)
    with torch.no_grad():
        model.temp.fill_(3.0)
    losses = task.losses(model, batch, moment())
    assert losses.gauges["temperature"].item() == temperature


class Prepared:
    """The parts of an update, one after the other, with the tables of all."""

    def __init__(self, tables: list[dict[str, torch.Tensor]], part: int) -> None:
        self.tables = tables
        self.part = part
        self.n_parts = len(tables)

    def table(self, name: str, rows: torch.Tensor) -> tuple[torch.Tensor, int]:
        every = [rows if n == self.part else t[name] for n, t in enumerate(self.tables)]
        return torch.cat(every), sum(len(one) for one in every[: self.part])


@pytest.mark.parametrize("matching", [0.0, 1.0])
def test_two_parts_are_one_in_the_contrastive_loss(root: Path, matching: float) -> None:
    """Positives of one picture are found in the other part, and the gradients add up."""
    weights = {"matching": {"weight": matching}}
    whole_task, model, batch = step_of(root, losses=weights)
    task, _ = built(root, losses=weights, train={"micro_batches": 2})
    parts = [task.feed().batches(1, part)[0] for part in (0, 1)]
    ids = [set(part.record_ids) for part in parts]
    assert ids[0] & ids[1], "a picture is in both"

    def gradient(losses: Losses) -> torch.Tensor:
        model.zero_grad()
        losses.parts["contrastive"].backward()
        return torch.cat(
            [p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]
        ).clone()

    expected = whole_task.losses(model, batch, moment())
    reference = gradient(expected)
    tables = [task.tables(model, part, moment()) for part in parts]
    assert set(tables[0]) == {"concepts", "texts", "keys"}
    found, sums = [], torch.zeros(())
    for number, part in enumerate(parts):
        losses = task.losses(model, part, moment(Prepared(tables, number)))
        found.append(losses.parts["contrastive"].item())
        sums = sums + gradient(losses)
    assert found == pytest.approx([expected.parts["contrastive"].item()] * 2, rel=1e-5)
    assert (sums - reference).abs().max() <= 1e-5 * reference.abs().max()
    sizes = [task.sizes(part, moment()) for part in parts]
    assert all(size["contrastive"] is None for size in sizes)
    if matching:
        rows = [len(part.record_ids) * 3 for part in parts]
        total = sum(rows)
        for share, n in zip(shares(sizes), rows, strict=True):
            assert share.gradient["matching"] == pytest.approx(n / total)


def test_as_released_the_encoders_get_a_share_of_the_gradient(root: Path) -> None:
    gradients = []
    for ranks in (1, 4):
        task, model, batch = step_of(root, compat="official", official_ranks=ranks)
        task.losses(model, batch, moment()).parts["contrastive"].backward()
        assert model.vision_proj.weight.grad is not None
        assert model.temp.grad is not None
        gradients.append((model.vision_proj.weight.grad.norm(), model.temp.grad))
        assert task.sizes(batch, moment())["matching"] == 1.0
    assert gradients[0][0].item() == pytest.approx(4 * gradients[1][0].item(), rel=1e-4)
    assert gradients[0][1].item() == pytest.approx(gradients[1][1].item(), rel=1e-4)


def test_without_pictures_with_captions_it_is_refused(root: Path) -> None:
    regions = {"stores": ["regions"], "max_images": 2}
    tree = {"data": {"images": None, "regions": regions}}
    with pytest.raises(ConfigError, match=r"no data\.images"):
        built(root, **tree)

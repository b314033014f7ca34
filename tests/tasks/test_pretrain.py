from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.models.shapes import bench_config, region_batch
from tests.tasks.recipes import recipe, write_stores
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.base import Losses, Moment
from xvlm_core.tasks.pretrain import PretrainTask
from xvlm_core.tasks.pretrain_forward import PretrainOutputs, Wanted, pretrain_forward

FIVE = {"contrastive", "matching", "masked_lm", "box_l1", "box_giou"}
THREE = FIVE - {"box_l1", "box_giou"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_stores(folder)
    return folder


def moment(progress: float = 0.0, seed: int = 0) -> Moment:
    return Moment(1, progress, torch.Generator().manual_seed(seed))


def batches(task: PretrainTask) -> tuple[PretrainBatch, PretrainBatch]:
    """A region batch and a caption batch."""
    for step in range(1, 50):
        updates = task.feed().batches(step)
        if len(updates) == 2:
            return updates[0], updates[1]
    raise AssertionError("no region update in 50 steps")


def built(root: Path, **changes: Any) -> tuple[PretrainTask, XVLM]:
    torch.manual_seed(0)
    task = PretrainTask(recipe(root, **changes))
    model = task.build_model()
    assert isinstance(model, XVLM)
    return task, model


def test_five_losses_with_regions_and_three_without(root: Path) -> None:
    task, model = built(root)
    region, caption = batches(task)
    for batch, names in ((region, FIVE), (caption, THREE)):
        losses = task.losses(model, batch, moment())
        assert set(losses.parts) == names
        assert all(p.dtype == torch.float32 and p.isfinite() for p in losses.parts.values())
        model.zero_grad()
        losses.total().backward()
        reached = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
        heads = {"vision", "text", "vision_proj", "text_proj", "temp", "itm_head"}
        assert reached == (heads | {"bbox_head"} if batch is region else heads)


def test_losses_are_weighted_and_weightless_ones_are_not_computed(root: Path) -> None:
    weights = {"contrastive": {"weight": 2.0}, "box_l1": {"weight": 0.0}}
    task, model = built(root, losses=weights)
    losses = task.losses(model, batches(task)[0], moment())
    assert set(losses.parts) == FIVE - {"box_l1"}
    expected = sum(v.item() * (2 if n == "contrastive" else 1) for n, v in losses.parts.items())
    assert losses.total().item() == pytest.approx(expected, rel=1e-5)


def test_losses_start_when_the_recipe_says_and_cost_nothing_before(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = {
        "matching": {"start": 0.3},
        "masked_lm": {"start": 0.6},
        "contrastive": {"start": 0.1},
    }
    starts |= {"box_l1": {"start": 0.5}, "box_giou": {"start": 0.5}}
    task, model = built(root, losses=starts)
    region, _ = batches(task)
    seen: list[str] = []
    for name in ("encode_pictures", "fuse", "match_logits", "boxes"):
        call = getattr(model, name)

        def watched(*args: Any, name: str = name, call: Any = call) -> Any:
            seen.append(name)
            return call(*args)

        monkeypatch.setattr(model, name, watched)
    tokens = model.text.predict_tokens
    monkeypatch.setattr(
        model.text, "predict_tokens", lambda x: (seen.append("predict_tokens"), tokens(x))[1]
    )
    expected = {
        0.0: (set(), set()),
        0.099: (set(), set()),
        0.1: ({"contrastive"}, {"encode_pictures"}),
        0.3: (
            {"contrastive", "matching"},
            {"encode_pictures", "fuse", "match_logits"},
        ),
        0.5: (FIVE - {"masked_lm"}, {"encode_pictures", "fuse", "match_logits", "boxes"}),
        0.6: (FIVE, {"encode_pictures", "fuse", "match_logits", "boxes", "predict_tokens"}),
    }
    for progress, (names, calls) in expected.items():
        seen.clear()
        losses = task.losses(model, region, moment(progress))
        assert set(losses.parts) == names, progress
        assert set(seen) == calls, progress


def test_a_caption_batch_costs_nothing_while_only_boxes_are_learnt(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, model = built(root, losses={n: {"weight": 0.0} for n in THREE})
    region, caption = batches(task)
    assert set(task.losses(model, region, moment()).parts) == {"box_l1", "box_giou"}
    monkeypatch.setattr(model, "encode_pictures", lambda *_: pytest.fail("pictures encoded"))
    assert task.losses(model, caption, moment()).parts == {}


def test_before_the_cross_encoder_is_needed_there_are_no_hidden_states() -> None:
    model = XVLM(bench_config()).eval()
    batch = region_batch([4, 5, 3], [0, 1, 1], 2)
    out = pretrain_forward(model, batch, Wanted(matching=False, masked_lm=False, box=False))
    assert out.hidden is None
    assert out.similarity_GG is not None
    nothing = Wanted(contrastive=False, matching=False, masked_lm=False, box=False)
    assert pretrain_forward(model, batch, nothing) == PretrainOutputs()


def gradients(losses: Losses, model: XVLM) -> dict[str, torch.Tensor]:
    model.zero_grad()
    losses.total().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_the_official_contrastive_gradient_is_that_of_one_rank(root: Path) -> None:
    only = {n: {"weight": 0.0} for n in FIVE - {"contrastive"}}
    found = {}
    for ranks in (1, 8):
        task, model = built(root, compat="official", official_ranks=ranks, losses=only)
        losses = task.losses(model, batches(task)[1], moment())
        found[ranks] = (losses.total().item(), gradients(losses, model))
    assert found[1][0] == pytest.approx(found[8][0], rel=1e-6)
    assert set(found[1][1]) == set(found[8][1])
    for name, whole in found[1][1].items():
        share = found[8][1][name]
        expected = whole if name == "temp" else whole / 8
        assert torch.allclose(share, expected, rtol=1e-3, atol=1e-8), name
    task, model = built(root, official_ranks=8, losses=only)
    plain = gradients(task.losses(model, batches(task)[1], moment()), model)
    assert plain["vision_proj.weight"].norm() > 4 * found[8][1]["vision_proj.weight"].norm()


def test_the_official_contrastive_loss_takes_every_other_text_as_a_negative(root: Path) -> None:
    task, model = built(root)
    released, _ = built(root, compat="official")
    batch = dataclasses.replace(batches(task)[0], keys_B3=torch.ones_like(batches(task)[0].keys_B3))
    ours = task.losses(model, batch, moment()).parts["contrastive"]
    batch = dataclasses.replace(batch, keys_B3=None)  # as an official batch is made
    theirs = released.losses(model, batch, moment()).parts["contrastive"]
    assert ours.item() == 0
    assert theirs.item() > 0.1


def test_one_text_or_only_excluded_pairs_leave_the_negatives_out_and_count_them(
    root: Path,
) -> None:
    task, model = built(root)
    one = dataclasses.replace(
        region_batch([4], [0], 1, side=64), mask_BP=torch.ones(1, 16, dtype=torch.bool)
    )
    region, _ = batches(task)
    excluded = dataclasses.replace(region, keys_B3=torch.ones_like(region.keys_B3))
    vocabulary = model.config.text.vocab_size
    one = dataclasses.replace(
        one,
        texts=PackedTexts(one.texts.ids_N % vocabulary, one.texts.packing),
        masked=PackedTexts(one.masked.ids_N % vocabulary, one.masked.packing),
        masked_label_M=one.masked_label_M % vocabulary,
    )
    for batch in (one, excluded):
        losses = task.losses(model, batch, moment())
        assert losses.counts["rows_without_negative"] == 2 * batch.texts.packing.n_texts
        assert losses.total().isfinite()
        losses.total().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(grad.isfinite().all() for grad in grads)


def test_negatives_are_drawn_by_the_generator_of_the_update(root: Path) -> None:
    task, model = built(root)
    model.eval()
    region, _ = batches(task)
    values = [task.losses(model, region, moment(0, s)).parts["matching"].item() for s in range(8)]
    again = float(task.losses(model, region, moment(0, 3)).parts["matching"])
    assert again == values[3]
    assert len(set(values)) > 1


@pytest.mark.parametrize("with_boxes", [True, False])
def test_named_phrases_stand_against_absent_ones_with_and_without_box_losses(
    with_boxes: bool,
) -> None:
    model = XVLM(bench_config()).eval()
    batch = region_batch([4, 5, 3], [0, 1, 1], 2)
    absent = PackedTexts.from_lists([[2, 9, 8], [2, 7]])
    batch = dataclasses.replace(batch, absent=absent, picture_of_absent_A=torch.tensor([0, 1]))
    out = pretrain_forward(model, batch, Wanted(box=with_boxes), generator=moment().generator)
    assert out.presence_label_Q is not None
    assert out.presence_logits_Q2 is not None
    assert out.presence_label_Q.tolist() == [1, 1, 1, 0, 0]
    assert (out.boxes_cxcywh_N4 is not None) == with_boxes
    # each row is what inference says of the phrase and the whole picture
    texts = batch.texts.join(absent)
    pictures = torch.cat([batch.picture_of_text_B, torch.tensor([0, 1])])
    answers = model.ground(batch.pictures_ICHW, texts, pictures)
    said = out.presence_logits_Q2.softmax(-1)[:, 1]
    assert torch.allclose(said, answers.match_probability_B, atol=1e-5)
    if out.boxes_cxcywh_N4 is not None:
        assert torch.allclose(out.boxes_cxcywh_N4, answers.boxes_cxcywh_B4[:3], atol=1e-5)


def test_similarities_are_float32_in_bfloat16_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = XVLM(bench_config()).eval()
    draw = torch.Generator().manual_seed(0)
    concept, text = (F.normalize(torch.randn(3, 32, generator=draw), dim=-1) for _ in range(2))
    monkeypatch.setattr(model, "picture_features", lambda *_: concept)
    monkeypatch.setattr(model, "text_features", lambda *_: text)
    batch = region_batch([4, 5, 3], [0, 1, 1], 2)
    wanted = Wanted(matching=False, masked_lm=False, box=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = pretrain_forward(model, batch, wanted)
    assert out.similarity_GG is not None
    assert out.similarity_GG.dtype == torch.float32
    exact = concept.double() @ text.double().T / model.temp.double()
    assert torch.allclose(out.similarity_GG.double(), exact, atol=1e-5)


@pytest.mark.parametrize("compat", ["none", "official"])
def test_a_bfloat16_update_has_float32_losses_near_those_of_float32(
    root: Path, compat: str
) -> None:
    task, model = built(root, compat=compat, official_ranks=2)
    region, _ = batches(task)
    exact = task.losses(model, region, moment()).parts
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = task.losses(model, region, moment())
    for name, value in losses.parts.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), abs=0.05), name
    found = gradients(losses, model)
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in found.values())


def test_the_temperature_is_clamped_before_it_is_used(root: Path) -> None:
    task, model = built(root)
    with torch.no_grad():
        model.temp.fill_(7.0)
    task.losses(model, batches(task)[1], moment())
    assert float(model.temp) == pytest.approx(0.5)


def test_a_step_of_training_lowers_the_loss(root: Path) -> None:
    task, model = built(root)
    region, caption = batches(task)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    totals = []
    for _ in range(30):
        for batch in (region, caption):
            optimizer.zero_grad()
            losses = task.losses(model, batch, moment())
            losses.total().backward()
            optimizer.step()
        totals.append(float(losses.total()))
    assert totals[-1] < 0.8 * totals[0]


def test_counts_of_texts_reach_the_log(root: Path) -> None:
    task, model = built(root, text={"max_tokens": 4})
    losses = task.losses(model, batches(task)[0], moment())
    assert losses.counts["cut_tokens"] > 0


def test_saved_weights_are_loaded_bit_for_bit_and_score_the_same(
    root: Path, tmp_path: Path
) -> None:
    task, model = built(root, data={"validation": ["regions"]})
    task.save_model(model, tmp_path)
    again = task.build_model()
    task.load_weights(again, tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    scores = []
    for one in (model, again):
        one.eval()
        with torch.no_grad():
            predictions = [p for batch in task.validation() for p in task.predict(one, batch)]
        scores.append(task.score(predictions))
    assert len(predictions) == 9, "three pictures, two phrases and an absent one each"
    assert scores[0] == scores[1]
    assert task.selection in scores[0]
    assert task.info().trained_on == "captions (painted), regions (painted)"


def test_parameters_have_the_released_names(root: Path) -> None:
    task, model = built(root)
    names = {task.official_name(name) for name, _ in model.named_parameters()}
    assert "text_encoder.bert.encoder.layer.0.attention.output.LayerNorm.weight" in names
    assert len(names) == len(list(model.named_parameters()))


def test_first_weights_are_accounted_for(root: Path) -> None:
    task, _ = built(root)
    assert task.notes == [
        "all weights start from random numbers (init.vision and init.text are null)"
    ]

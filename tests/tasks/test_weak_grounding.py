"""Grounding without boxes is learnt from pictures and phrases alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tasks.recipes import BOXES, grounding_recipe, merged, records, store, write_stores
from xvlm_core.config.resolve import resolve
from xvlm_core.config.schema import ScoringSection
from xvlm_core.data import augment
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.data.records import Record, Region
from xvlm_core.errors import ConfigError
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.contrastive import same_picture
from xvlm_core.sources.prepare import prepare
from xvlm_core.sources.world import stand_in
from xvlm_core.tasks.base import Moment
from xvlm_core.tasks.registry import build_task, missing_stores
from xvlm_core.tasks.weak_grounding import WeakGroundingTask
from xvlm_core.tasks.weak_grounding_eval import BY_PROPOSAL, WeakGroundingEvaluation
from xvlm_core.train.evaluation import evaluate
from xvlm_core.weights.folder import load_model_folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_stores(folder)
    return folder


def moment() -> Moment:
    return Moment(1, 0.0, torch.Generator().manual_seed(0))


def task_of(root: Path, **changes: Any) -> WeakGroundingTask:
    torch.manual_seed(0)
    tree = {"task": "weak_grounding", "data": {"regions": {"absent": 0, "max_images": 4}}}
    task = build_task(grounding_recipe(root, **merged(tree, changes)))
    assert isinstance(task, WeakGroundingTask)
    return task


def built(root: Path, **changes: Any) -> tuple[WeakGroundingTask, XVLM, PretrainBatch]:
    task = task_of(root, **changes)
    model = task.build_model()
    assert isinstance(model, XVLM)
    return task, model, task.feed().batches(1)[0]


def test_the_model_has_no_box_head(root: Path) -> None:
    _, model, _ = built(root)
    assert not hasattr(model, "bbox_head")
    assert model.text.lm_head is None
    assert hasattr(model, "itm_head")
    assert hasattr(model, "vision_proj")


def test_boxes_play_no_part_in_training(root: Path) -> None:
    """Batches and losses are the same whatever the boxes say."""
    made = records(root / "pictures", 7)
    nonsense = [
        dataclasses.replace(
            record,
            regions=tuple(Region(r.text, (3.0, 3.0, 3.0, 1e6), r.kind) for r in record.regions),
        )
        for record in made
    ]
    store(root, "moved", nonsense)
    batches, losses = [], []
    for name in ("regions", "moved"):
        task, model, batch = built(root, data={"regions": {"stores": [name]}, "validation": []})
        batches.append(batch)
        losses.append(task.losses(model, batch, moment()).parts)
    assert batches[0].record_ids == batches[1].record_ids
    assert torch.equal(batches[0].pictures_ICHW, batches[1].pictures_ICHW)
    assert torch.equal(batches[0].texts.ids_N, batches[1].texts.ids_N)
    assert not batches[1].is_region_B.any()
    assert batches[1].mask_BP is None
    assert set(losses[0]) == {"contrastive", "matching"}
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name])


def test_expressions_of_one_picture_belong_together_where_each_is_a_record(root: Path) -> None:
    first, second, *_ = records(root / "pictures", 7)
    twin = dataclasses.replace(
        first, id="another expression", regions=(Region("a thing", BOXES[1], "phrase"),)
    )
    store(root, "expressions", [first, twin, second])
    regions = {"stores": ["expressions"], "max_images": 3, "max_regions": 1}
    for compat in ("none", "official"):
        task = task_of(root, compat=compat, data={"regions": regions, "validation": []})
        (batch,) = task.feed().batches(1)
        assert batch.keys_B3 is not None
        ids = batch.record_ids
        together = {
            frozenset((ids[a], ids[b])) for a, b in same_picture(batch.keys_B3).nonzero().tolist()
        }
        assert frozenset((first.id, twin.id)) in together
        assert not any(second.id in pair and len(pair) > 1 for pair in together)


def test_every_phrase_comes_once_at_most_and_all_in_turn(root: Path) -> None:
    task, _, batch = built(root)
    texts = [task.tokenizer.decode(ids) for ids in unpacked(batch)]
    picture = batch.picture_of_text_B.tolist()
    assert len(set(zip(picture, texts, strict=True))) == len(texts) == 8
    one = task_of(root, data={"regions": {"max_regions": 1}})
    assert one.feed().batches(1)[0].texts.packing.n_texts == 4
    seen = {
        one.tokenizer.decode(ids)
        for step in range(1, 30)
        for ids in unpacked(one.feed().batches(step)[0])
    }
    assert seen == {region.text for r in records(root / "pictures", 7) for region in r.regions}


def unpacked(batch: PretrainBatch) -> list[list[int]]:
    packing, ids = batch.texts.packing, batch.texts.ids_N.tolist()
    return [ids[s : s + n] for s, n in zip(packing.starts, packing.lengths, strict=True)]


def test_phrases_of_one_picture_are_no_negatives_of_each_other(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _, batch = built(root)
    alone, model, own = built(root, data={"regions": {"max_images": 1}})
    same = batch.picture_of_text_B[:, None] == batch.picture_of_text_B[None]
    assert batch.excluded_BB[same].all()
    assert not batch.excluded_BB.all()
    logits: list[int] = []
    fuse = model.fuse

    def spy(states: Any, patches: Tensor, views: Any, view_of_text: Tensor) -> Any:
        logits.append(len(view_of_text))
        return fuse(states, patches, views, view_of_text)

    monkeypatch.setattr(model, "fuse", spy)
    assert set(own.picture_of_text_B.tolist()) == {0}
    losses = alone.losses(model, own, moment())
    assert logits == [own.texts.packing.n_texts], "no negative is left to draw"
    assert losses.counts["rows_without_negative"] == 2 * own.texts.packing.n_texts
    contrastive = losses.parts["contrastive"].item()
    assert contrastive == pytest.approx(np.log(own.texts.packing.n_texts), abs=0.7)
    assert task.sizes(batch, moment())["contrastive"] is None


def test_official_flips_whatever_the_text_says_and_cuts_nothing(root: Path) -> None:
    ours = task_of(root).sample_maker().settings
    assert (ours.careful_flip, ours.max_tokens) == (True, 12)
    official = task_of(root, compat="official").sample_maker().settings
    assert (official.careful_flip, official.max_tokens) == (False, 64)
    careful = task_of(root, compat="official", data={"careful_flip": True}).sample_maker()
    assert careful.settings.careful_flip


@pytest.mark.parametrize("compat", ["none", "official"])
def test_a_phrase_that_names_a_side_keeps_its_picture(
    compat: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [
        dataclasses.replace(record, regions=(Region("left star", (1.0, 1.0, 9.0, 9.0)),))
        for record in records(root / "pictures", 4)
    ]
    store(root, f"sided-{compat}", left)
    changes: dict[str, Any] = {
        "compat": compat,
        "data": {"regions": {"stores": [f"sided-{compat}"]}, "augment": True, "validation": []},
    }
    maker = task_of(root, **changes).sample_maker()
    allowed: list[bool] = []
    plain = augment.uncropped_picture

    def spy(*args: Any, allow_flip: bool) -> Any:
        allowed.append(allow_flip)
        return plain(*args, allow_flip=allow_flip)

    monkeypatch.setattr(augment, "uncropped_picture", spy)
    for epoch in range(3):
        sample = maker.of_phrases(left[0], root / "pictures" / left[0].image, epoch)
        assert sample.picture.shape == (64, 64, 3)
    assert allowed == [compat == "official"] * 3


def test_all_of_the_picture_is_seen_mirrored_or_not() -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[:, :32] = 200
    seen = set()
    for number in range(40):
        rng = np.random.default_rng(number)
        view = augment.uncropped_picture(image, rng, 64)
        kept = augment.uncropped_picture(image, np.random.default_rng(number), 64, allow_flip=False)
        seen.add((bool(view[32, 16, 0] > view[32, 48, 0]), bool(kept[32, 16, 0] > kept[32, 48, 0])))
    assert {mirrored for mirrored, _ in seen} == {True, False}
    assert {kept for _, kept in seen} == {True}


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"regions": None, "images": {"stores": ["captions"]}}, "data.regions"),
        ({"regions": {"absent": 1}}, "data.regions.absent"),
    ],
)
def test_recipes_that_cannot_be_meant_are_refused(
    data: dict[str, Any], where: str, root: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        task_of(root, data=data)
    assert caught.value.where == where
    assert caught.value.try_


def test_a_layer_without_a_picture_is_refused_before_training(root: Path) -> None:
    with pytest.raises(ConfigError, match="attends to no picture"):
        task_of(root, scoring={"cam_layer": 0})


def test_a_few_steps_tell_the_phrases_of_pictures_apart(root: Path) -> None:
    task, model, batch = built(root)
    # the painted pictures are all alike
    noise = torch.randn(batch.pictures_ICHW.shape, generator=torch.Generator().manual_seed(2))
    batch = dataclasses.replace(batch, pictures_ICHW=noise)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 121):
        losses = task.losses(model, batch, Moment(step, 0.0, generator))
        total = losses.total()
        assert total is not None
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # a picture comes with two phrases: no less than log 2
    assert np.log(2) - 1e-3 < losses.parts["contrastive"].item() < 0.9
    assert losses.parts["matching"].item() < 0.4


def test_validation_is_grounding_by_heat_maps_among_proposals(root: Path, tmp_path: Path) -> None:
    options = {"train": 4, "val": 3, "test": 0, "unseen": 0, "workers": 1}
    prepare("world", tmp_path / "world", options, command="x")
    prepare("world", tmp_path / "boxes", {**options, "proposals": True}, command="x")
    task = task_of(
        tmp_path,
        data={"regions": {"stores": ["world"]}, "validation": ["world"]},
        scoring={"proposals": ["boxes"]},
    )
    assert isinstance(task.evaluation, WeakGroundingEvaluation)
    assert task.selection == "accuracy@0.5"
    found = evaluate(task, task.build_model(), torch.device("cpu"))
    assert found is not None
    assert {p["found_by"] for p in found.predictions} == {BY_PROPOSAL}
    official = task_of(
        tmp_path,
        compat="official",
        data={"regions": {"stores": ["world"]}, "validation": ["world"]},
    )
    assert isinstance(official.evaluation, WeakGroundingEvaluation)
    assert official.evaluation.compat_official


@pytest.mark.parametrize("compat", ["none", "official"])
def test_a_model_is_scored_as_its_run_was(root: Path, tmp_path: Path, compat: str) -> None:
    task = task_of(root, compat=compat)
    task.save_model(task.build_model(), tmp_path / "model")
    loaded, stores = load_model_folder(tmp_path / "model"), task.validation_stores
    for scoring, official in (
        (None, compat == "official"),
        (ScoringSection(), compat == "official"),
        (ScoringSection(compat="none"), False),
        (ScoringSection(compat="official"), True),
    ):
        later = WeakGroundingEvaluation.of_model(
            stores, "val", loaded.tokenizer, loaded.info, scoring=scoring
        )
        assert later.compat_official == official, scoring
    assert isinstance(task.evaluation, WeakGroundingEvaluation)
    assert task.evaluation.compat_official == (compat == "official")


def test_a_world_stands_in_for_the_detections_too(tmp_path: Path) -> None:
    recipe = resolve("finetune/refcoco+-weak").recipe
    data = recipe.data.model_copy(update={"root": str(tmp_path)})
    recipe = recipe.model_copy(update={"data": data})
    assert {store.name for store in missing_stores(recipe)} == {"refcoco+", "refcoco+-proposals"}
    stand_in(recipe, tmp_path, command="x", train=2, val=3, size=64, workers=1)
    assert not missing_stores(recipe)
    from xvlm_core.data.store import Store
    from xvlm_core.inference.proposals import ProposalIndex

    boxes, pictures = Store.open(tmp_path / "refcoco+-proposals"), Store.open(tmp_path / "refcoco+")
    index = ProposalIndex.of_stores([boxes])
    asked: Sequence[Record] = [pictures[int(i)] for i in pictures.indices("val")]
    assert len(asked) == 3
    for record in asked:
        found = {tuple(box) for box in index.of_record(record).boxes_xyxy_px.tolist()}
        assert found == {tuple(thing["box_xyxy_px"]) for thing in record.meta["scene"]}
    assert not any(boxes[n].regions or boxes[n].captions for n in range(len(boxes)))


def test_the_recipe_has_the_released_values() -> None:
    recipe = resolve("finetune/refcoco+-weak").recipe
    regions, optim = recipe.data.regions, recipe.optim
    assert regions is not None
    assert (regions.max_images, recipe.train.micro_batches) == (160, recipe.official_ranks)
    assert (regions.max_regions, regions.batch_texts, regions.absent) == (1, None, 0)
    assert (recipe.text.max_words, recipe.text.max_tokens) == (30, 40)
    shape = recipe.model.shape()
    assert (shape.vision.image_size, shape.vision.window_size, shape.vision.grid) == (384, 12, 12)
    assert (optim.lr, optim.lr_mult, optim.weight_decay, optim.clip_norm) == (2e-5, 1.0, 0.01, None)
    assert (recipe.schedule.kind, recipe.schedule.epochs, recipe.schedule.warmup) == (
        "linear",
        5,
        0.1,
    )
    assert (recipe.scoring.cam_layer, recipe.scoring.proposals) == (9, ("refcoco+-proposals",))
    assert recipe.data.careful_flip is None
    assert recipe.losses.box_l1.weight == recipe.losses.box_giou.weight == 0

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tasks.recipes import grounding_recipe, recipe, records, store, write_stores
from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import GroundingBatch, PretrainBatch
from xvlm_core.data.dropped import BadSample
from xvlm_core.data.feeds import GroundingFeed, PretrainFeed, StoreStream
from xvlm_core.data.samples import Sample, SampleMaker
from xvlm_core.data.store import Store
from xvlm_core.data.stream import coin
from xvlm_core.errors import DataError
from xvlm_core.tasks.building import model_shape, sample_settings, tokenizer_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_stores(tmp_path)
    return tmp_path


def maker_of(settings: Recipe) -> SampleMaker:
    tokenizer = tokenizer_of(settings)
    shape = model_shape(settings, tokenizer, ("box",))
    return SampleMaker(sample_settings(settings, shape), tokenizer, settings.seed)


def opened(settings: Recipe, names: tuple[str, ...]) -> list[Store]:
    return [Store.open(Path(settings.data.root) / name) for name in names]


def pretrain_feed(settings: Recipe) -> PretrainFeed:
    data = settings.data
    images = opened(settings, data.images.stores) if data.images else []
    regions = opened(settings, data.regions.stores) if data.regions else []
    return PretrainFeed(settings, images, regions, maker_of(settings))


def grounding_feed(settings: Recipe) -> GroundingFeed:
    assert settings.data.regions is not None
    stores = opened(settings, settings.data.regions.stores)
    return GroundingFeed(settings, stores, maker_of(settings))


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, PretrainBatch | GroundingBatch):
        names = [field.name for field in dataclasses.fields(one)]
        return all(equal(getattr(one, name), getattr(other, name)) for name in names)
    if hasattr(one, "ids_N"):
        return torch.equal(one.ids_N, other.ids_N) and one.packing == other.packing
    return bool(one == other)


def test_the_batches_of_a_step_do_not_depend_on_what_was_asked_before(root: Path) -> None:
    feed = pretrain_feed(recipe(root, data={"augment": True}))
    inorder = {step: feed.batches(step) for step in range(1, 9)}
    worker = pickle.loads(pickle.dumps(feed))
    for step in (5, 1, 8, 3):
        for one, other in zip(worker.batches(step), inorder[step], strict=True):
            assert equal(one, other)
    assert not equal(inorder[1][-1], inorder[2][-1])
    other_seed = pretrain_feed(recipe(root, seed=4, data={"augment": True}))
    assert not equal(other_seed.batches(1)[-1], inorder[1][-1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_region_update_goes_before_the_captions_where_the_coin_says(
    root: Path, share: float
) -> None:
    feed = pretrain_feed(recipe(root, data={"regions": {"iter_perc": share}}))
    both = 0
    for step in range(1, 31):
        updates = feed.batches(step)
        assert not updates[-1].is_region_B.any()
        assert updates[-1].n_pictures == 3
        if coin(3, step, "regions") < share:
            both += 1
            first, second = updates
            assert first.is_region_B.any()
            assert first.counts["region_updates"] == 1
            assert "parts_without_region" not in first.counts
            assert "region_updates" not in second.counts
            assert first.n_pictures == 2
        else:
            assert len(updates) == 1
    assert {0.0: both == 0, 0.3: 3 < both < 16, 1.0: both == 30}[share]


def test_without_captions_every_step_is_a_region_update(root: Path) -> None:
    feed = pretrain_feed(recipe(root, data={"images": None, "regions": {"iter_perc": 0.0}}))
    for step in range(1, 6):
        (update,) = feed.batches(step)
        assert update.is_region_B.any()


def test_a_region_update_without_any_region_is_counted(root: Path) -> None:
    only_the_caption_fits = {"max_regions": 1, "iter_perc": 1.0}
    feed = pretrain_feed(recipe(root, data={"regions": only_the_caption_fits}))
    first, _ = feed.batches(1)
    assert not first.is_region_B.any()
    assert first.counts == {"region_updates": 1, "parts_without_region": 1}


def test_captions_only(root: Path) -> None:
    feed = pretrain_feed(recipe(root, data={"regions": None}))
    (update,) = feed.batches(1)
    assert update.mask_BP is None
    assert feed.steps_per_epoch == 3, "seven pictures, three a step"


def test_a_joint_step_is_one_update_and_the_limit_is_on_region_texts(root: Path) -> None:
    changes = {"mix": "joint", "regions": {"batch_texts": 2}}
    feed = pretrain_feed(recipe(root, data=changes))
    for step in range(1, 6):
        (update,) = feed.batches(step)
        assert update.n_pictures == 5
        assert update.texts.packing.n_texts == 3 + 2
        assert not update.is_region_B[:3].any()
        assert (update.picture_of_text_B[3:] >= 3).all()
    free = pretrain_feed(recipe(root, data={"mix": "joint", "regions": {"batch_texts": None}}))
    (update,) = free.batches(1)
    assert update.texts.packing.n_texts == 3 + 2 * 3


def test_captions_of_one_record_from_both_streams_are_no_negatives(root: Path) -> None:
    feed = pretrain_feed(recipe(root, data={"mix": "joint", "regions": {"max_images": 7}}))
    (update,) = feed.batches(1)
    rows = update.picture_of_text_B.tolist()
    met = 0
    for a in range(3):
        for b in range(3, len(rows)):
            same = update.record_ids[rows[a]] == update.record_ids[rows[b]]
            if same and not update.is_region_B[b]:
                assert update.excluded_BB[a, b]
                met += 1
    assert met == 3


@pytest.mark.parametrize(("compat", "texts"), [("none", 6), ("official", 11)])
def test_a_short_region_batch_is_filled_with_repeats_only_as_released(
    root: Path, compat: str, texts: int
) -> None:
    changes = {"regions": {"batch_texts": 11, "iter_perc": 1.0}}
    feed = pretrain_feed(recipe(root, compat=compat, data=changes))
    assert feed.batches(1)[0].texts.packing.n_texts == texts


@pytest.mark.parametrize("size", [None, 100])
def test_an_epoch_is_as_long_as_the_recipe_says(root: Path, size: int | None) -> None:
    pretrain = pretrain_feed(recipe(root, data={"size": size}))
    assert pretrain.steps_per_epoch == (3 if size is None else 34)
    regions = pretrain_feed(recipe(root, data={"size": size, "images": None}))
    assert regions.steps_per_epoch == (4 if size is None else 50)
    grounding = grounding_feed(grounding_recipe(root, data={"size": size}))
    assert grounding.steps_per_epoch == (4 if size is None else 50)


def test_every_training_record_comes_once_a_pass_and_looks_different_in_the_next(
    root: Path,
) -> None:
    feed = pretrain_feed(recipe(root, data={"regions": None, "augment": True}))
    first = [i for step in range(1, 8) for i in feed.batches(step)[0].record_ids]
    assert sorted(first) == sorted(3 * [f"train-{i}" for i in range(7)])
    pictures = {}
    for step in range(1, 8):
        batch = feed.batches(step)[0]
        for at, (name, picture) in enumerate(
            zip(batch.record_ids, batch.pictures_ICHW, strict=True)
        ):
            epoch = ((step - 1) * 3 + at) // 7
            pictures[name, epoch] = picture
    assert len(pictures) == 21
    assert not torch.equal(pictures["train-0", 0], pictures["train-0", 1])


def test_records_that_cannot_be_used_are_counted_by_reason(root: Path) -> None:
    (root / "pictures" / "train-2.png").unlink()
    (root / "pictures" / "train-4.png").write_bytes(b"no picture")
    feed = pretrain_feed(recipe(root, data={"regions": None, "images": {"batch_size": 7}}))
    (batch,) = feed.batches(1)
    assert batch.n_pictures == 5
    assert batch.dropped == {"missing": 1, "not an image": 1}


def bad_of(samples: list[BadSample]) -> set[tuple[str, str, str, str]]:
    return {(s.store, s.record_id, s.reason, s.file) for s in samples}


def test_damaged_samples_are_named_and_those_left_out_by_their_nature_are_not(root: Path) -> None:
    made = records(root / "pictures", 7)
    made[0] = dataclasses.replace(made[0], regions=())
    made[1] = dataclasses.replace(made[1], width=119)
    made[3] = dataclasses.replace(made[3], images=("../outside.png",))
    made[4] = dataclasses.replace(made[4], captions=())
    made[5] = dataclasses.replace(made[5], captions=("?!",))
    store(root, "damaged", made)
    (root / "pictures" / "train-2.png").unlink()
    everything = {
        "images": {"stores": ["damaged"], "batch_size": 7},
        "regions": {"stores": ["damaged"], "max_images": 7, "iter_perc": 1.0},
    }
    regions, images = pretrain_feed(recipe(root, data=everything)).batches(1)
    unread = {
        ("damaged", "train-2", "missing", "train-2.png"),
        ("damaged", "train-3", "outside the image root", "../outside.png"),
    }
    other_size = ("damaged", "train-1", "size mismatch", "train-1.png")
    assert images.dropped == {
        "missing": 1, "outside the image root": 1, "no caption": 1, "empty text": 1
    }  # fmt: skip
    assert (images.bad.n, bad_of([*images.bad.examples])) == (2, unread)
    assert regions.dropped == {
        "missing": 1, "outside the image root": 1, "no region": 1, "size mismatch": 1
    }  # fmt: skip
    assert (regions.bad.n, bad_of([*regions.bad.examples])) == (3, {*unread, other_size})

    (joint,) = pretrain_feed(recipe(root, data={**everything, "mix": "joint"})).batches(1)
    assert (joint.bad.n, bad_of([*joint.bad.examples])) == (5, {*unread, other_size})
    assert joint.dropped["missing"] == 2
    regions_only = {"regions": {"stores": ["damaged"], "max_images": 7}}
    (grounding,) = grounding_feed(grounding_recipe(root, data=regions_only)).batches(1)
    assert (grounding.bad.n, bad_of([*grounding.bad.examples])) == (3, {*unread, other_size})


def test_of_many_damaged_samples_ten_are_named_and_all_are_counted(root: Path) -> None:
    store(root, "broken", records(root / "pictures", 20))
    for i in range(1, 18):
        (root / "pictures" / f"train-{i}.png").write_bytes(b"")
    broken = {"regions": None, "images": {"stores": ["broken"], "batch_size": 20}}
    (batch,) = pretrain_feed(recipe(root, data=broken)).batches(1)
    assert batch.dropped == {"empty file": 17}
    assert batch.bad.n == 17
    assert len(set(batch.bad.examples)) == 10
    assert batch.bad.lines()[10:] == ["and more"]


def test_the_name_of_a_damaged_sample_is_printable() -> None:
    bad = BadSample("coco", "data/coco", "7\x1b[31m", "missing", "a\nb.jpg")
    assert bad.line() == "coco 7[31m: missing (a b.jpg)"


def test_a_step_without_any_usable_record_takes_those_of_the_next(root: Path) -> None:
    made = records(root / "pictures", 6)
    bad = [dataclasses.replace(r, captions=()) if i != 3 else r for i, r in enumerate(made)]
    store(root, "mostly-bad", bad)
    feed = pretrain_feed(
        recipe(root, data={"regions": None, "images": {"stores": ["mostly-bad"], "batch_size": 1}})
    )
    lost = 0
    for step in range(1, 7):
        (batch,) = feed.batches(step)
        assert batch.record_ids == ("train-3",)
        lost += batch.dropped.get("no caption", 0)
    assert lost > 0


def test_data_without_any_usable_record_is_an_error(root: Path) -> None:
    made = [dataclasses.replace(r, captions=()) for r in records(root / "pictures", 6)]
    store(root, "bad", made)
    feed = pretrain_feed(
        recipe(root, data={"regions": None, "images": {"stores": ["bad"], "batch_size": 2}})
    )
    with pytest.raises(
        DataError, match=r"no usable sample from step 1 on: .* no caption"
    ) as caught:
        feed.batches(1)
    assert caught.value.exit_code == 4
    assert str(root / "bad") in str(caught.value.where)
    assert not caught.value.details, "nothing is damaged"
    assert str(caught.value.try_).startswith("data.images.stores=[...]"), "another store is needed"


def test_data_of_which_nothing_can_be_read_is_an_error_that_names_samples(root: Path) -> None:
    for picture in (root / "pictures").iterdir():
        picture.unlink()
    with pytest.raises(DataError, match=r"no usable sample from step 1 on: \d+ missing") as caught:
        pretrain_feed(recipe(root, data={"regions": None})).batches(1)
    assert "captions train-0: missing (train-0.png)" in caught.value.details
    assert str(caught.value.try_).startswith("xvlm validate ")


def test_a_split_without_records_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match="no record of split 'trian'") as caught:
        pretrain_feed(recipe(root, data={"train_split": "trian"}))
    assert caught.value.try_


def test_several_stores_are_one_stream(root: Path) -> None:
    more = [dataclasses.replace(r, id=f"more-{r.id}") for r in records(root / "pictures", 5)]
    store(root, "more", more)
    stores = [Store.open(root / "regions"), Store.open(root / "more")]
    stream = StoreStream(stores, "train", 12, 3, "regions")
    samples, dropped = stream.samples(1, 0, maker_of(recipe(root)).of_regions)
    assert len({sample.record_id for sample in samples}) == 12
    assert not dropped.reasons


def test_grounding_phrases_are_not_masked_and_have_their_absent_ones(root: Path) -> None:
    feed = grounding_feed(grounding_recipe(root, data={"regions": {"max_images": 7}}))
    (batch,) = feed.batches(1)
    assert batch.n_pictures == 7
    assert int(batch.present_B.sum()) == 14, "no captions"
    assert int((~batch.present_B).sum()) == 7
    assert equal(pickle.loads(pickle.dumps(feed)).batches(1)[0], batch)


def test_without_matching_no_absent_phrase_is_read(root: Path) -> None:
    feed = grounding_feed(grounding_recipe(root, losses={"matching": {"weight": 0.0}}))
    assert feed.batches(1)[0].present_B.all()


def test_grounding_samples_name_the_box_that_is_whole(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    make = SampleMaker.of_regions

    def watched(self: SampleMaker, *args: Any, **kwargs: Any) -> Sample:
        asked.append(kwargs)
        return make(self, *args, **kwargs)

    monkeypatch.setattr(SampleMaker, "of_regions", watched)
    grounding_feed(grounding_recipe(root)).batches(1)
    assert asked == 2 * [{"mask": False, "whole_first": True}]

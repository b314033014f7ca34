from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.painted import GRID, SIDE, TOKENIZER, maker, painted_record
from xvlm_core.data.augment import CLIP_MEAN, CLIP_STD
from xvlm_core.data.collate import grounding_batch, meaning_keys, pretrain_batch
from xvlm_core.data.dropped import BadSample, BadSamples, Dropped
from xvlm_core.data.masking import MaskedText
from xvlm_core.data.samples import BoxXYXY, Sample, SampleText
from xvlm_core.objectives.contrastive import excluded_pairs

PICTURE = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)


def text(words: str, patches: list[int] | None = None) -> SampleText:
    """A text of some words; with patches it names a part."""
    ids = TOKENIZER.encode(words, 20).ids
    masked = MaskedText((ids[0], TOKENIZER.mask_id, *ids[2:]), (1,), (ids[1],))
    if patches is None:
        return SampleText(words, ids, masked)
    mask = np.zeros(GRID * GRID, dtype=bool)
    mask[patches] = True
    return SampleText(words, ids, masked, (16.0, 0.0, 32.0, 48.0), mask)


def sample(record: str, *texts: SampleText, **more: object) -> Sample:
    own = frozenset(t.words for t in texts)
    return Sample(record, PICTURE, texts, own_words=own, **more)  # type: ignore[arg-type]


def painted_samples(tmp_path: Path) -> list[Sample]:
    boxes: list[tuple[str, BoxXYXY]] = [
        ("red box", (0.0, 0.0, 30.0, 20.0)),
        ("a green doggy near the ball", (60.0, 30.0, 110.0, 80.0)),
    ]
    made = []
    for name in ("one", "two", "three"):
        record = painted_record(tmp_path, name, boxes, captions=("a ball",))
        made.append(maker().of_regions(record, tmp_path / record.image, 0))
    return made


def test_masked_token_indices_point_at_the_tokens_to_predict(tmp_path: Path) -> None:
    samples = painted_samples(tmp_path)
    batch = pretrain_batch(samples)
    texts = [t for s in samples for t in s.texts]
    assert batch.masked.packing == batch.texts.packing
    at = batch.masked_token_M
    assert torch.equal(batch.texts.ids_N[at], batch.masked_label_M)
    untouched = torch.ones(len(batch.texts.ids_N), dtype=torch.bool)
    untouched[at] = False
    assert torch.equal(batch.texts.ids_N[untouched], batch.masked.ids_N[untouched])
    wanted = [t.masked.labels for t in texts if t.masked]
    assert len(at) == sum(map(len, wanted)) == len(set(at.tolist()))
    for b, t in enumerate(texts):  # by text: the words that stood there
        assert t.masked is not None
        start = batch.masked.packing.starts[b]
        own = [int(batch.texts.ids_N[start + p]) for p in t.masked.positions]
        assert TOKENIZER.decode(own) == TOKENIZER.decode(t.masked.labels)
        stop = start + len(t.ids)
        assert tuple(batch.masked.ids_N[start:stop].tolist()) == t.masked.ids


def test_texts_know_their_picture_box_and_patches(tmp_path: Path) -> None:
    samples = painted_samples(tmp_path)
    bad = BadSamples(2, (BadSample("coco", "data/coco", "x", "missing", "x.png"),))
    batch = pretrain_batch(samples, dropped=Dropped(Counter(missing=2, other=1), bad))
    rows = [(i, t) for i, s in enumerate(samples) for t in s.texts]
    assert batch.picture_of_text_B.tolist() == [i for i, _ in rows]
    assert batch.is_region_B.tolist() == [t.box_xyxy_px is not None for _, t in rows]
    assert batch.mask_BP is not None
    for b, (_, t) in enumerate(rows):
        box = batch.boxes_cxcywh_B4[b]
        if t.box_xyxy_px is None:
            assert box.tolist() == [0.5, 0.5, 1.0, 1.0]
            assert batch.mask_BP[b].all()
            continue
        corners = torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2]) * SIDE
        assert corners.tolist() == pytest.approx(t.box_xyxy_px, abs=1e-4)
        assert t.mask_P is not None
        assert batch.mask_BP[b].tolist() == t.mask_P.tolist()
    assert batch.record_ids == ("one", "two", "three")
    assert (batch.dropped, batch.bad) == ({"missing": 2, "other": 1}, bad)
    pixel = (torch.from_numpy(samples[1].picture[5, 7]) / 255 - torch.tensor(CLIP_MEAN)).double()
    shown = batch.pictures_ICHW[1, :, 5, 7].double()
    assert torch.allclose(shown, pixel / torch.tensor(CLIP_STD), atol=1e-5)


def test_a_batch_of_captions_has_no_mask_and_no_region() -> None:
    batch = pretrain_batch([sample("one", text("a ball")), sample("two", text("the dog"))])
    assert batch.mask_BP is None
    assert not batch.is_region_B.any()
    assert batch.absent is None
    assert batch.picture_of_absent_A is None


def test_pairs_of_equal_words_or_equal_concept_are_no_negatives_and_no_others() -> None:
    everything = list(range(GRID * GRID))
    texts = [
        text("a ball"),  # 0: caption of picture 0
        text("the dog"),  # 1: another caption of picture 0
        text("red box", [1, 2]),  # 2
        text("blue box", [1, 2]),  # 3: the patches of 2
        text("green box", [1, 2]),  # 4: those patches in picture 1
        text("red box", [5]),  # 5: the words of 2, in picture 1
        text("a box", everything),  # 6: all of picture 1
        text("a ball near the dog"),  # 7: a caption of picture 1
        text("blue dog"),  # 8: caption of picture 2, which is the record of picture 0
        text("dog of the box", everything),  # 9: a region that fills the crop of picture 2
    ]
    pictures = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    records = ["x", "x", "x", "x", "y", "y", "y", "y", "x", "x"]
    expected = {(0, 1), (2, 3), (2, 5), (6, 7), (0, 8), (1, 8), (8, 9)}
    found = excluded_pairs(meaning_keys(texts, pictures, records))
    assert torch.equal(found, found.T)
    assert found.diagonal().all()
    pairs = {(a, b) for a, b in itertools.combinations(range(len(texts)), 2) if found[a, b]}
    assert pairs == expected


def test_keys_hold_across_the_parts_of_an_update() -> None:
    def keys(part: int) -> torch.Tensor:
        texts = [text("a ball"), text("red box", [1, 2])]
        return meaning_keys(texts, [0, 0], ["x", "x"], part=part)

    both = excluded_pairs(torch.cat([keys(0), keys(1)]))
    pairs = {(a, b) for a, b in itertools.combinations(range(4), 2) if both[a, b]}
    assert pairs == {(0, 2), (1, 3)}, "the same record and words; other crops of the picture"
    other = meaning_keys([text("a dog", [1, 2])], [0], ["y"], part=1)
    assert not excluded_pairs(torch.cat([keys(0), other]))[:2, 2].any()


def words_of(ids: torch.Tensor, starts: tuple[int, ...], lengths: tuple[int, ...]) -> list[str]:
    return [TOKENIZER.decode(ids[s : s + n].tolist()) for s, n in zip(starts, lengths, strict=True)]


def words(batch: object) -> list[str]:
    packed = batch.texts  # type: ignore[attr-defined]
    return words_of(packed.ids_N, packed.packing.starts, packed.packing.lengths)


MANY = ["red box", "green box", "blue box", "red ball", "green ball", "blue ball", "dog"]


@pytest.mark.parametrize("wanted", [1, 3, 7, 20])
def test_at_most_so_many_texts_are_kept_and_none_twice(wanted: int) -> None:
    samples = [sample("one", *map(text, MANY[:4])), sample("two", *map(text, MANY[4:]))]
    drawn = set()
    for seed in range(20):
        batch = pretrain_batch(samples, batch_texts=wanted, rng=np.random.default_rng(seed))
        kept = words(batch)
        assert len(kept) == min(wanted, len(MANY)) == len(set(kept))
        assert batch.n_pictures == 2, "pictures stay"
        for word, picture in zip(kept, batch.picture_of_text_B.tolist(), strict=True):
            assert (word in MANY[4:]) == (picture == 1)
        drawn |= set(kept)
    assert drawn == set(MANY)


@pytest.mark.parametrize("wanted", [1, 5, 7, 8, 14, 15, 40])
def test_the_official_batch_has_exactly_so_many_texts(wanted: int) -> None:
    samples = [sample("one", *map(text, MANY[:4])), sample("two", *map(text, MANY[4:]))]
    batch = pretrain_batch(
        samples, batch_texts=wanted, rng=np.random.default_rng(0), compat_official=True
    )
    kept = words(batch)
    assert len(kept) == wanted
    most = max(kept.count(word) for word in MANY)
    assert most == max(1, -(-wanted // len(MANY))), "no text again before all have come"
    assert int(batch.excluded_BB.sum()) == wanted, "repeats are negatives of each other"


def test_repeats_of_a_text_are_no_negatives_by_default() -> None:
    twice = [sample("one", text("red box")), sample("two", text("red box"))]
    assert pretrain_batch(twice).excluded_BB.all()


def test_captions_of_a_joint_batch_stay_whatever_the_limit_on_region_texts() -> None:
    samples = [sample("one", text("a ball")), sample("two", *(text(w, [3]) for w in MANY))]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        batch = pretrain_batch(samples, batch_texts=2, always=1, rng=rng)
        assert words(batch)[0] == "a ball"
        assert batch.is_region_B.tolist() == [False, True, True]
    only = pretrain_batch(samples[:1], batch_texts=2, always=1, rng=np.random.default_rng(0))
    assert words(only) == ["a ball"]


def test_one_text_is_a_batch() -> None:
    batch = pretrain_batch([sample("one", text("red box", [3]))])
    assert batch.excluded_BB.tolist() == [[True]]


def test_absent_texts_keep_their_picture_and_losses_of_text_are_counted() -> None:
    samples = [
        sample("one", text("red box"), absent=(text("dog"),), cut=2),
        sample("two", text("blue box"), absent=(text("a dog"), text("ball")), empty=1),
    ]
    batch = pretrain_batch(samples)
    assert batch.absent is not None
    assert batch.picture_of_absent_A is not None
    packing = batch.absent.packing
    assert words_of(batch.absent.ids_N, packing.starts, packing.lengths) == ["dog", "a dog", "ball"]
    assert batch.picture_of_absent_A.tolist() == [0, 1, 1]
    assert batch.counts == {"cut_tokens": 2, "empty_texts": 1}
    moved = batch.to("cpu")
    assert torch.equal(moved.excluded_BB, batch.excluded_BB)
    assert moved.counts == batch.counts


# ------------------------------------------------------------------ grounding


def test_borrowed_absent_phrases_are_of_other_pictures_and_never_the_records_own() -> None:
    one = sample("one", text("red box", [1]), text("dog", [2]))
    two = Sample(
        "two", PICTURE, (text("blue ball", [1]),), own_words=frozenset({"blue ball", "dog"})
    )
    three = sample("three", text("red box", [1]))
    borrowed: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
    for seed in range(30):
        batch = grounding_batch([one, two, three], negatives=2, rng=np.random.default_rng(seed))
        rows = zip(words(batch), batch.picture_of_text_B.tolist(), strict=True)
        absent: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for (word, picture), present in zip(rows, batch.present_B.tolist(), strict=True):
            if not present:
                absent[picture].append(word)
        for picture, found in absent.items():
            assert len(found) == len(set(found)) <= 2
            borrowed[picture] |= set(found)
        assert torch.equal(batch.boxes_cxcywh_B4[~batch.present_B].unique(), torch.zeros(1))
    # "dog" is another text of the second record, though not one of this sample
    assert borrowed == {0: {"blue ball"}, 1: {"red box"}, 2: {"dog", "blue ball"}}


def test_named_absent_phrases_are_used_before_borrowed_ones() -> None:
    named = sample("one", text("red box", [1]), absent=(text("ball"), text("dog")))
    batch = grounding_batch(
        [named, sample("two", text("blue box", [1]))], negatives=1, rng=np.random.default_rng(0)
    )
    rows = list(
        zip(words(batch), batch.picture_of_text_B.tolist(), batch.present_B.tolist(), strict=True)
    )
    assert ("ball", 0, False) in rows
    assert ("red box", 1, False) in rows
    assert sum(not present for *_, present in rows) == 2


def test_without_negatives_or_with_one_picture_every_phrase_is_there() -> None:
    one, two = sample("one", text("red box", [1])), sample("two", text("dog", [2]))
    rng = np.random.default_rng(0)
    assert grounding_batch([one, two], negatives=0, rng=rng).present_B.all()
    alone = grounding_batch([one], negatives=3, rng=rng)
    assert alone.present_B.tolist() == [True]
    box = alone.boxes_cxcywh_B4[0].tolist()
    assert box == pytest.approx([24 / SIDE, 24 / SIDE, 16 / SIDE, 48 / SIDE])

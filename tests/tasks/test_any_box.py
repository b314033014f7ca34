"""An object label names every thing of its kind: any of their boxes is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.painted import TOKENIZER, maker, painted_record, painted_store
from xvlm_core.data.collate import grounding_batch, pretrain_batch
from xvlm_core.data.records import Record
from xvlm_core.data.samples import Sample
from xvlm_core.tasks import grounding_eval

ONE, TWO, THREE = (0.0, 0.0, 30.0, 30.0), (60.0, 0.0, 90.0, 30.0), (0.0, 60.0, 30.0, 90.0)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    texts = [("red box", ONE), ("green ball", THREE), ("red box", TWO)]
    return painted_record(tmp_path, "p", texts, absent=("blue dog",))


def sample_of(record: Record, root: Path, *, official: bool = False) -> Sample:
    make = maker(augment=False, compat_official=official, absent=1)
    return make.of_regions(record, root / record.image, 0)


def test_a_sample_knows_the_other_boxes_of_its_label(record: Record, tmp_path: Path) -> None:
    sample = sample_of(record, tmp_path)
    boxes = {text.box_xyxy_px for text in sample.texts if text.words == "red box"}
    for text in sample.texts:
        if text.words == "red box":
            assert {text.box_xyxy_px, *text.others_xyxy_px} == boxes
        else:
            assert text.others_xyxy_px == ()
    assert len(boxes) == 2
    official = sample_of(record, tmp_path, official=True)
    assert all(text.others_xyxy_px == () for text in official.texts)


def test_batches_carry_the_other_boxes_by_text_number(record: Record, tmp_path: Path) -> None:
    sample = sample_of(record, tmp_path)
    rng = np.random.default_rng(0)
    for batch in (
        pretrain_batch([sample, sample]),
        grounding_batch([sample, sample], negatives=1, rng=rng),
    ):
        assert batch.others is not None
        assert len(batch.others.text_K) == 4
        for number, box in zip(batch.others.text_K, batch.others.boxes_cxcywh_K4, strict=True):
            own = batch.boxes_cxcywh_B4[number]
            assert not torch.allclose(own, box)
            twins = [b for b in range(6) if torch.allclose(batch.boxes_cxcywh_B4[b], box)]
            assert twins, "the other box is the own box of a text with the same label"
    moved = pretrain_batch([sample]).to("cpu")
    assert moved.others is not None


def test_a_label_is_asked_once_and_any_of_its_things_is_right(
    record: Record, tmp_path: Path
) -> None:
    store = painted_store(tmp_path / "store", tmp_path, [record])
    evaluation = grounding_eval.GroundingEvaluation(
        [store], "train", TOKENIZER, image_size=64, max_words=8, max_tokens=8
    )
    (batch,) = evaluation.validation()
    assert [item.phrase for item in batch.items] == ["red box", "green ball", "blue dog"]

    def accuracy(box_of_red: tuple[float, ...]) -> float:
        answers = {"red box": box_of_red, "green ball": THREE, "blue dog": ONE}
        predictions = [
            {
                "id": item.id,
                "phrase": item.phrase,
                "kind": item.kind,
                "like": item.like,
                "box_xyxy_px": answers[item.phrase],
                "probability": 0.5,
                "present": item.box_xyxy_px is not None,
                "target_xyxy_px": item.box_xyxy_px,
                "other_targets_xyxy_px": item.others_xyxy_px,
                "width": item.width,
                "height": item.height,
                "objects_xyxy_px": item.objects_xyxy_px,
            }
            for item in batch.items
        ]
        return grounding_eval.score(predictions, "train")["accuracy@0.5"].value

    assert accuracy(ONE) == accuracy(TWO) == 1.0
    assert accuracy(THREE) == 0.5


def test_what_is_dropped_after_the_last_phrase_is_told_too(tmp_path: Path) -> None:
    good, gone = (
        painted_record(tmp_path, name, [("red box", ONE)]) for name in ("a-good", "b-gone")
    )
    store = painted_store(tmp_path / "store", tmp_path, [good, gone])
    (tmp_path / gone.image).unlink()
    evaluation = grounding_eval.GroundingEvaluation(
        [store], "train", TOKENIZER, image_size=64, max_words=8, max_tokens=8, batch_records=1
    )
    batches = list(evaluation.validation())
    assert [len(batch.items) for batch in batches] == [1, 0]
    assert batches[1].dropped == {"missing": 1}
    assert batches[1].n_pictures == 0

"""Batches move whole: every tensor they hold, and nothing else changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.models.shapes import region_batch
from xvlm_core.data.batches import GroundingBatch, PretrainBatch
from xvlm_core.data.dropped import BadSample, BadSamples
from xvlm_core.models.packing import PackedTexts
from xvlm_core.objectives.box import OtherBoxes

OTHERS = OtherBoxes(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
BAD = BadSamples(2, (BadSample("coco", "data/coco", "7", "missing", "7.jpg"),))


def pretrain() -> PretrainBatch:
    batch = region_batch([3, 4], [0, 1], 2)
    texts = PackedTexts.from_lists([[2, 5]])
    picture = torch.zeros(1, dtype=torch.int64)
    return dataclasses.replace(
        batch,
        others=OTHERS,
        absent=texts,
        picture_of_absent_A=picture,
        dropped={"missing": 2},
        bad=BAD,
    )


def grounding() -> GroundingBatch:
    batch = region_batch([3, 4], [0, 1], 2)
    return GroundingBatch(
        pictures_ICHW=batch.pictures_ICHW,
        texts=batch.texts,
        picture_of_text_B=batch.picture_of_text_B,
        boxes_cxcywh_B4=batch.boxes_cxcywh_B4,
        present_B=torch.tensor([True, False]),
        others=OTHERS,
        record_ids=batch.record_ids,
        dropped={"missing": 2},
        bad=BAD,
    )


def tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedTexts | OtherBoxes | PretrainBatch | GroundingBatch):
        fields = dataclasses.fields(value)
        return [t for f in fields for t in tensors(getattr(value, f.name))]
    return []


@pytest.mark.parametrize("batch", [pretrain(), grounding()], ids=["pretrain", "grounding"])
def test_every_tensor_moves_and_the_rest_stays(batch: PretrainBatch | GroundingBatch) -> None:
    moved = batch.to("meta")
    assert type(moved) is type(batch)
    assert len(tensors(moved)) == len(tensors(batch)) > 6
    assert {t.device.type for t in tensors(moved)} == {"meta"}
    assert {t.device.type for t in tensors(batch)} == {"cpu"}
    assert moved.texts.packing == batch.texts.packing
    assert (moved.record_ids, moved.dropped) == (batch.record_ids, {"missing": 2})
    assert moved.bad == batch.bad == BAD
    assert moved.n_pictures == 2

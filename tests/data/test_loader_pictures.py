from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.data.painted import maker, painted_record
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.data.collate import pretrain_batch
from xvlm_core.data.samples import Sample
from xvlm_core.train.feeding import feed_from


class One:
    """A feed of the same batch at every step."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def batches(self, step: int, part: int = 0) -> tuple[PretrainBatch, ...]:
        return (pretrain_batch(self.samples),)


def test_pictures_of_loader_processes_are_those_made_here_to_the_bit(tmp_path: Path) -> None:
    record = painted_record(tmp_path, "a", [("red box", (0.0, 0.0, 30.0, 20.0))])
    samples = [maker().of_regions(record, tmp_path / record.image, epoch) for epoch in range(3)]
    here = pretrain_batch(samples).pictures_ICHW
    assert here.dtype == torch.float32
    feed = feed_from(One(samples), 1, workers=1)  # type: ignore[arg-type]
    try:
        ((batch,),) = next(feed)
    finally:
        feed.close()
    assert isinstance(batch, PretrainBatch)
    assert batch.pictures_ICHW.dtype == torch.uint8  # a quarter of the bytes
    moved = batch.to("cpu").pictures_ICHW
    assert torch.equal(moved, here)
    assert moved.is_contiguous()
    assert torch.equal(batch.to("cpu").to("cpu").pictures_ICHW, here)

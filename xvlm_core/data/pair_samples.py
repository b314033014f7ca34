"""Samples of pairs: two pictures and a statement about both that is true or false (NLVR2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from xvlm_core.data import augment
from xvlm_core.data.batches import PairBatch
from xvlm_core.data.collate import counts_of, pictures_of
from xvlm_core.data.dropped import BadSamples, Dropped
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.records import Record
from xvlm_core.data.samples import Sample, SampleMaker, SampleProblem
from xvlm_core.models.packing import PackedTexts

SCALE = (0.5, 1.0)
"""Share of a picture that a random crop keeps (official.md 2.8, "train")."""

NO_PAIR = "no statement about two pictures"
NO_LABEL = "no label"
"""The statement is known, but not whether it is true (test files)."""

PictureOf = Callable[[int], Path | bytes]
"""The picture (a file, or its bytes) with a number, 0 or 1, of a record."""


@dataclass(frozen=True, kw_only=True)
class PairSample(Sample):
    """A pair: ``picture`` is its left one, ``texts`` has the statement alone.

    Attributes:
        second: the right picture, uint8 ``(R, R, 3)``.
        label: whether the statement is true.
    """

    second: NDArray[np.uint8]
    label: bool


class PairSampleMaker(SampleMaker):
    """Makes samples of pairs. Picklable."""

    def of_pair(self, record: Record, picture_of: PictureOf, epoch: int) -> PairSample:
        """Both pictures, each augmented by itself, and the statement.

        Args:
            record: of a pair.
            picture_of: its pictures.
            epoch: which pass over the data.

        Raises:
            PictureError: one of the pictures cannot be read; ``which`` says which.
            SampleProblem: no pair, no label, or nothing is left of the statement.
        """
        statement = record.statement
        if statement is None or len(record.images) != 2:
            raise SampleProblem(NO_PAIR)
        if statement.label is None:
            raise SampleProblem(NO_LABEL)
        rng = augment.generator(self.seed, epoch, record.id, "pair")
        text = self._text(statement.text, rng, mask=False)
        if text is None:
            raise SampleProblem("empty text")
        may_flip = self._may_flip([statement.text])
        pictures = [
            self._view(picture_of, which, record, epoch, may_flip=may_flip) for which in (0, 1)
        ]
        return PairSample(
            record_id=record.id,
            picture=pictures[0],
            second=pictures[1],
            texts=(text,),
            label=statement.label,
            cut=text.cut,
        )

    def _view(
        self, picture_of: PictureOf, which: int, record: Record, epoch: int, *, may_flip: bool
    ) -> NDArray[np.uint8]:
        size = self.settings.image_size
        try:
            if not self.settings.augment:
                return augment.test_picture(read_picture(picture_of(which)), size)
            rng = augment.generator(self.seed, epoch, record.id, f"picture {which} of the pair")
            image = self._read(picture_of(which))
            return augment.pretrain_picture(image, rng, size, scale=SCALE, allow_flip=may_flip)
        except PictureError as problem:
            problem.which = which
            raise


def pair_batch(samples: Sequence[Sample], *, dropped: Dropped | None = None) -> PairBatch:
    """One batch of pairs: the left pictures, then the right ones.

    Args:
        samples: at least one, all of pairs.
        dropped: samples left out so far.
    """
    pairs = [sample for sample in samples if isinstance(sample, PairSample)]
    assert len(pairs) == len(samples), "samples of pairs"
    rows = torch.arange(len(pairs))
    seconds = [replace(pair, picture=pair.second) for pair in pairs]
    return PairBatch(
        pictures_ICHW=pictures_of([*pairs, *seconds]),
        texts=PackedTexts.from_lists([pair.texts[0].ids for pair in pairs]),
        first_B=rows,
        second_B=rows + len(pairs),
        label_B=torch.tensor([int(pair.label) for pair in pairs]),
        record_ids=tuple(pair.record_id for pair in pairs),
        dropped=dict(dropped.reasons) if dropped else {},
        bad=dropped.bad if dropped else BadSamples(),
        counts=counts_of(pairs),
    )

"""Samples -> batches: pack, stack, and say which texts are no negatives of each other."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from xvlm_core.data import augment
from xvlm_core.data.batches import GroundingBatch, PretrainBatch
from xvlm_core.data.dropped import BadSamples, Dropped
from xvlm_core.data.samples import BoxXYXY, Sample, SampleText
from xvlm_core.models.packing import PackedTexts
from xvlm_core.objectives.box import OtherBoxes

WHOLE_CXCYWH = (0.5, 0.5, 1.0, 1.0)


def pictures_of(samples: Sequence[Sample]) -> Tensor:
    """Pictures ``(I, 3, R, R)``: normalised, float32.

    In a loader process they stay uint8, a quarter of the bytes to hand over; ``batch.to``
    normalises them on the device.
    """
    if get_worker_info() is not None:
        return torch.from_numpy(np.stack([s.picture for s in samples])).permute(0, 3, 1, 2)
    return torch.from_numpy(np.stack([augment.normalise(sample.picture) for sample in samples]))


def fraction_cxcywh(box_xyxy_px: BoxXYXY, side: int) -> tuple[float, float, float, float]:
    """A box of the resized picture as centre and size in fractions."""
    x1, y1, x2, y2 = (value / side for value in box_xyxy_px)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def meaning_keys(
    texts: Sequence[SampleText],
    picture_of_text: Sequence[int],
    whole_of_text: Sequence[str],
    *,
    part: int = 0,
) -> Tensor:
    """What makes two texts fit each other's concepts, as numbers, ``(B, 3)`` int64.

    Texts that share the number of a column, if it is not 0, are no negatives of each other: the
    same words; the same patches of the same picture (a box over all patches is the whole picture);
    the whole of the same picture, whatever the crop. Numbers can be compared between the parts of
    an update, also those of other processes.

    Args:
        texts: B texts.
        picture_of_text: number of the picture of each; one picture in two crops has two numbers.
        whole_of_text: what tells the whole picture of each from others: its record, or its name.
        part: that the texts are in: numbers of pictures count from 0 in each.
    """
    rows = []
    for text, picture, name in zip(texts, picture_of_text, whole_of_text, strict=True):
        whole = text.mask_P is None or text.mask_P.all()
        patches = b"" if whole or text.mask_P is None else text.mask_P.tobytes()
        rows.append(
            (
                _number("words", text.words),
                _number("patches", part, picture, patches),
                _number("record", name) if text.mask_P is None else 0,
            )
        )
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


def _number(*parts: object) -> int:
    """63 bits, the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def pretrain_batch(
    samples: Sequence[Sample],
    *,
    batch_texts: int | None = None,
    always: int = 0,
    rng: np.random.Generator | None = None,
    dropped: Dropped | None = None,
    part: int = 0,
    compat_official: bool = False,
) -> PretrainBatch:
    """One batch of pictures with texts of every grain.

    Args:
        samples: at least one.
        batch_texts: keep at most this many texts, drawn at random (pictures stay). Under
            ``compat_official`` exactly this many: missing ones are repeats, as released.
        always: the texts of the first so many samples stay, and do not count in ``batch_texts``
            (captions of a joint batch).
        rng: for that draw; needed where ``batch_texts`` is given.
        dropped: samples left out so far.
        part: number of the batch among the parts of its update.
        compat_official: see above; and every other text is a negative, whatever it says.
    """
    pairs = [(i, text) for i, sample in enumerate(samples) for text in sample.texts]
    if batch_texts is not None:
        assert rng is not None, "drawing texts needs a generator"
        stay = [pair for pair in pairs if pair[0] < always]
        rest = [pair for pair in pairs if pair[0] >= always]
        pairs = stay + (_resampled(rest, batch_texts, rng, repeat=compat_official) if rest else [])
    texts = [text for _, text in pairs]
    picture_of_text = [i for i, _ in pairs]
    side = samples[0].picture.shape[0]
    masked = PackedTexts.from_lists([(t.masked.ids if t.masked else t.ids) for t in texts])
    token, label = [], []
    for b, text in enumerate(texts):
        if text.masked is not None:
            token += [masked.packing.starts[b] + at for at in text.masked.positions]
            label += list(text.masked.labels)
    keys_B3 = None
    if not compat_official:
        wholes = [samples[i].picture_id or samples[i].record_id for i in picture_of_text]
        keys_B3 = meaning_keys(texts, picture_of_text, wholes, part=part)
    absent = [(i, text) for i, sample in enumerate(samples) for text in sample.absent]
    return PretrainBatch(
        pictures_ICHW=pictures_of(samples),
        texts=PackedTexts.from_lists([t.ids for t in texts]),
        picture_of_text_B=torch.tensor(picture_of_text),
        mask_BP=_masks(texts),
        boxes_cxcywh_B4=torch.tensor(
            [
                WHOLE_CXCYWH if t.box_xyxy_px is None else fraction_cxcywh(t.box_xyxy_px, side)
                for t in texts
            ]
        ),
        others=_others(texts, side),
        is_region_B=torch.tensor([t.box_xyxy_px is not None for t in texts]),
        keys_B3=keys_B3,
        masked=masked,
        masked_token_M=torch.tensor(token, dtype=torch.int64),
        masked_label_M=torch.tensor(label, dtype=torch.int64),
        absent=PackedTexts.from_lists([t.ids for _, t in absent]) if absent else None,
        picture_of_absent_A=torch.tensor([i for i, _ in absent]) if absent else None,
        record_ids=tuple(sample.record_id for sample in samples),
        dropped=dict(dropped.reasons) if dropped else {},
        bad=dropped.bad if dropped else BadSamples(),
        counts=counts_of(samples),
    )


def retrieval_batch(
    samples: Sequence[Sample],
    *,
    dropped: Dropped | None = None,
    part: int = 0,
    compat_official: bool = False,
) -> PretrainBatch:
    """One batch of whole pictures with captions; a picture may come with several of them.

    Its keys say which texts belong to one picture (the last column).

    Args:
        samples: at least one, of captions.
        dropped: samples left out so far.
        part: number of the batch among the parts of its update.
        compat_official: the same words of another picture are negatives.
    """
    batch = pretrain_batch(samples, dropped=dropped, part=part)
    if not compat_official:
        return batch
    assert batch.keys_B3 is not None, "every text of this batch has keys"
    keys_B3 = batch.keys_B3 * torch.tensor([0, 0, 1])
    return dataclasses.replace(batch, keys_B3=keys_B3)


def _others(texts: Sequence[SampleText], side: int) -> OtherBoxes | None:
    """Further boxes of the texts, by text number."""
    rows = [
        (b, fraction_cxcywh(box_xyxy_px, side))
        for b, text in enumerate(texts)
        for box_xyxy_px in text.others_xyxy_px
    ]
    if not rows:
        return None
    return OtherBoxes(torch.tensor([box for _, box in rows]), torch.tensor([b for b, _ in rows]))


def counts_of(samples: Sequence[Sample]) -> dict[str, int]:
    """What was done to the texts of a batch, for the log."""
    counts = {
        "cut_tokens": sum(sample.cut for sample in samples),
        "empty_texts": sum(sample.empty for sample in samples),
    }
    return {name: n for name, n in counts.items() if n}


def _masks(texts: Sequence[SampleText]) -> Tensor | None:
    regions = [text.mask_P for text in texts if text.mask_P is not None]
    if not regions:
        return None
    whole = np.ones_like(regions[0])
    rows = [whole if text.mask_P is None else text.mask_P for text in texts]
    return torch.from_numpy(np.stack(rows))


def _resampled(
    pairs: list[tuple[int, SampleText]], count: int, rng: np.random.Generator, *, repeat: bool
) -> list[tuple[int, SampleText]]:
    """At most ``count`` pairs; with ``repeat`` exactly so many (official.md 2.6)."""
    if len(pairs) >= count:
        return [pairs[i] for i in rng.permutation(len(pairs))[:count]]
    if not repeat:
        return pairs
    if 2 * len(pairs) >= count:
        return pairs + [pairs[i] for i in rng.permutation(len(pairs))[: count - len(pairs)]]
    return (pairs * (count // len(pairs) + 1))[:count]


def grounding_batch(
    samples: Sequence[Sample],
    *,
    negatives: int,
    rng: np.random.Generator,
    dropped: Dropped | None = None,
) -> GroundingBatch:
    """Pictures with phrases to find, and phrases that are not there.

    Where a record names no absent phrase, phrases of other pictures of the batch serve, unless
    the record has the same words itself.

    Args:
        samples: at least one.
        negatives: absent phrases a picture (0: none).
        rng: draws the phrases of other pictures.
        dropped: samples left out so far.
    """
    side = samples[0].picture.shape[0]
    rows: list[tuple[int, SampleText, bool]] = []
    for i, sample in enumerate(samples):
        rows += [(i, text, True) for text in sample.texts]
    others = [(i, text) for i, text, _ in rows]
    for i, sample in enumerate(samples):
        absent = list(sample.absent[:negatives])
        for at in rng.permutation(len(others)).tolist():
            if len(absent) >= negatives or sample.absent:
                break
            owner, text = others[at]
            known = {t.words for t in absent} | sample.own_words
            if owner != i and text.words not in known:
                absent.append(text)
        rows += [(i, text, False) for text in absent]
    zero = (0.0, 0.0, 0.0, 0.0)
    boxes = []
    for _, text, present in rows:
        box = text.box_xyxy_px
        whole = WHOLE_CXCYWH if box is None else fraction_cxcywh(box, side)
        boxes.append(whole if present else zero)
    return GroundingBatch(
        pictures_ICHW=pictures_of(samples),
        texts=PackedTexts.from_lists([text.ids for _, text, _ in rows]),
        picture_of_text_B=torch.tensor([i for i, _, _ in rows]),
        present_B=torch.tensor([present for _, _, present in rows]),
        boxes_cxcywh_B4=torch.tensor(boxes),
        others=_others([text for _, text, present in rows if present], side),
        record_ids=tuple(sample.record_id for sample in samples),
        dropped=dict(dropped.reasons) if dropped else {},
        bad=dropped.bad if dropped else BadSamples(),
        counts=counts_of(samples),
    )

"""Batches: frozen tensors that a task computes its losses from.

Legend: I pictures, R their side, B texts, P patches, M masked tokens, A absent texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from xvlm_core.data.augment import CLIP_MEAN, CLIP_STD
from xvlm_core.data.dropped import BadSamples
from xvlm_core.models.packing import PackedTexts
from xvlm_core.objectives.box import OtherBoxes
from xvlm_core.objectives.contrastive import excluded_pairs

BatchT = TypeVar("BatchT", bound="PictureBatch")


@dataclass(frozen=True, kw_only=True)
class PictureBatch:
    """What every batch of texts and pictures has.

    Attributes:
        pictures_ICHW: normalised pictures, float32; uint8 as long as they come from a loader
            process and are on no device yet (see ``to``).
        texts: the B texts.
        record_ids: of the I pictures (pairs: of the B pairs).
        dropped: samples (in evaluation: phrases) left out while the batch was made, by reason.
        bad: of these, the ones that are damage (training only).
        counts: what was done to the texts (cut tokens, empty texts), for the log.
    """

    pictures_ICHW: Tensor
    texts: PackedTexts
    record_ids: tuple[str, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    bad: BadSamples = field(default_factory=BadSamples)
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def n_pictures(self) -> int:
        """I."""
        return len(self.pictures_ICHW)

    def to(self: BatchT, device: torch.device | str) -> BatchT:
        """The same batch on a device, its pictures normalised."""
        moved: dict[str, Any] = {}
        for name in (f.name for f in dataclasses.fields(self)):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                moved[name] = value.to(device, non_blocking=True)
            elif isinstance(value, PackedTexts | OtherBoxes):
                moved[name] = value.to(device)
        moved["pictures_ICHW"] = _normalised(moved["pictures_ICHW"])
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class TextPictureBatch(PictureBatch):
    """Texts about a picture each.

    Attributes:
        picture_of_text_B: picture of each text, int64.
        boxes_cxcywh_B4: box of each text as fractions of the picture.
        others: further boxes that texts fit as well, by text number; None: there are none.
    """

    picture_of_text_B: Tensor
    boxes_cxcywh_B4: Tensor
    others: OtherBoxes | None = None


def _normalised(pictures_ICHW: Tensor) -> Tensor:
    """Float32, to the bit as ``augment.normalise``."""
    if pictures_ICHW.dtype != torch.uint8:
        return pictures_ICHW
    values = pictures_ICHW.to(torch.float32, memory_format=torch.contiguous_format)
    # By tensors: CUDA multiplies with the reciprocal of a number.
    most, mean, std = (
        torch.tensor(value, device=values.device).view(1, -1, 1, 1)
        for value in ((255.0,), CLIP_MEAN, CLIP_STD)
    )
    return values.div_(most).sub_(mean).div_(std)


@dataclass(frozen=True, kw_only=True)
class PretrainBatch(TextPictureBatch):
    """Pictures with texts of every grain; a text about the whole has the box .5, .5, 1, 1.

    Attributes:
        mask_BP: patches that each text is about, bool; None when every text is about the whole
            picture.
        is_region_B: True where the text names a part (it has box losses).
        keys_B3: texts that share the number of a column (not 0) fit each other's concepts: they
            are no negatives (same words; same patches; same whole picture). None: all are.
        masked: the texts with masked tokens.
        masked_token_M: packed index in ``masked`` of each token to predict.
        masked_label_M: the tokens that stood there.
        absent: texts known not to be in their picture; None when there are none.
        picture_of_absent_A: their pictures.
    """

    mask_BP: Tensor | None
    is_region_B: Tensor
    keys_B3: Tensor | None
    masked: PackedTexts
    masked_token_M: Tensor
    masked_label_M: Tensor
    absent: PackedTexts | None = None
    picture_of_absent_A: Tensor | None = None

    @property
    def excluded_BB(self) -> Tensor:
        """Text c fits the concept of text b: never a negative of it. With the diagonal."""
        if self.keys_B3 is not None:
            return excluded_pairs(self.keys_B3)
        n = self.texts.packing.n_texts
        return torch.eye(n, dtype=torch.bool, device=self.picture_of_text_B.device)


@dataclass(frozen=True, kw_only=True)
class GroundingBatch(TextPictureBatch):
    """Pictures with phrases to find; the box of an absent phrase is zeros, and not used.

    Attributes:
        present_B: False where the phrase is known (or drawn) not to be in the picture.
        items: for evaluation, what each phrase is: see :class:`GroundingItem`.
    """

    present_B: Tensor
    items: tuple[GroundingItem, ...] = ()


@dataclass(frozen=True)
class GroundingItem:
    """One phrase of one picture, as evaluation needs it.

    Attributes:
        id: unique in the split.
        record: the record it belongs to.
        phrase: the text before cleaning.
        kind: finer kind for the breakdown (world: label, attribute, ...; else the region kind).
        box_xyxy_px: true box in the original picture; None: the phrase is absent.
        others_xyxy_px: further boxes that are right as well: an object label names every thing of
            its kind.
        width: pixels of the original picture.
        height: the same.
        like: kind of region that it is worded as: an absent phrase is compared with present ones
            of the same wording; None: with all.
        objects_xyxy_px: boxes of the single things in the picture, for a baseline.
        image: the picture, by its path: many records may be about one.
    """

    id: str
    record: str
    phrase: str
    kind: str
    box_xyxy_px: tuple[float, float, float, float] | None
    width: int
    height: int
    like: str | None = None
    objects_xyxy_px: tuple[tuple[float, float, float, float], ...] = ()
    others_xyxy_px: tuple[tuple[float, float, float, float], ...] = ()
    image: str = ""


@dataclass(frozen=True, kw_only=True)
class PairBatch(PictureBatch):
    """Statements about two pictures each; a picture that several have is there once.

    Attributes:
        first_B: the picture shown first (left) to each text, int64.
        second_B: the one shown second.
        label_B: 1 where the statement is true, 0 where not, int64.
        items: for evaluation, what each statement is: see :class:`PairItem`.
    """

    first_B: Tensor
    second_B: Tensor
    label_B: Tensor
    items: tuple[PairItem, ...] = ()


@dataclass(frozen=True)
class PairItem:
    """One statement about one pair of pictures, as evaluation needs it.

    Attributes:
        id: unique in the split.
        record: the record it belongs to.
        statement: the text before cleaning.
        label: whether it is true.
        group: the same for all pairs that one sentence was written for; None: not known.
    """

    id: str
    record: str
    statement: str
    label: bool
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class QuestionBatch(PictureBatch):
    """Questions (``texts``) about a picture each; a picture may have several of them.

    Attributes:
        picture_of_question_Q: picture of each question, int64.
        answers: for training: tokens of the A answers, CLS in front; the end is not among them.
        next_N: the token that follows each token of the answers, int64: the end after the last.
        question_of_answer_A: question of each answer, int64.
        weight_A: share of the people who gave it.
        items: for evaluation, what each question is: see :class:`QuestionItem`.
    """

    picture_of_question_Q: Tensor
    answers: PackedTexts = field(default_factory=lambda: PackedTexts.from_lists([]))
    next_N: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    question_of_answer_A: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    weight_A: Tensor = field(default_factory=lambda: torch.zeros(0))
    items: tuple[QuestionItem, ...] = ()


@dataclass(frozen=True)
class QuestionItem:
    """One question, as evaluation needs it.

    Attributes:
        id: unique in the split.
        question_id: as the data name it; not always unique.
        record: the record it belongs to.
        question: the text before cleaning.
        answers: of the people, each as often as it was given; none: they are hidden.
        kind: type of the question as the data have it ("what color" in VQA v2, "count" in the
            world), for the breakdown; None: not known.
        answer_kind: type of its answers ("yes/no"); None: not known.
    """

    id: str
    question_id: str
    record: str
    question: str
    answers: tuple[str, ...] = ()
    kind: str | None = None
    answer_kind: str | None = None


@dataclass(frozen=True, kw_only=True)
class CaptionBatch(PictureBatch):
    """Captions (``texts``) to be written: CLS, prompt, words, SEP.

    Attributes:
        picture_of_text_B: picture of each caption, int64.
        given: tokens at the beginning of each that are not learnt: CLS and the prompt.
        references: of each picture, cleaned captions that a reward compares with.
        drawn: texts that stand for what a model would draw, for a forecast; None: it draws.
        items: for evaluation, what each picture is: see :class:`CaptionItem`; no text then.
    """

    picture_of_text_B: Tensor
    given: int = 1
    references: tuple[tuple[str, ...], ...] = ()
    drawn: PackedTexts | None = None
    items: tuple[CaptionItem, ...] = ()


@dataclass(frozen=True)
class CaptionItem:
    """One picture to be described, as evaluation needs it.

    Attributes:
        id: unique in the split.
        record: the record it belongs to.
        references: its captions, before cleaning.
    """

    id: str
    record: str
    references: tuple[str, ...]

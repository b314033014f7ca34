"""The Predictor: pictures and phrases in, boxes and probabilities out.

The command line, the web page and Python all call this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from xvlm_core.data.boxes import clip_box_xyxy_px
from xvlm_core.errors import CheckpointError
from xvlm_core.inference.heat_answers import FoundBy, Heat, Place, WordSpan, answer
from xvlm_core.inference.heatmap import cam_layer
from xvlm_core.inference.proposals import usable
from xvlm_core.inference.reading import (
    Picture,
    ReadText,
    device_of,
    in_batches,
    listed,
    model_pixels,
    read_text,
    upright_rgb,
)
from xvlm_core.models.packing import PackedTexts
from xvlm_core.weights.folder import LoadedModel, load_model_folder

BoxXYXY = tuple[float, float, float, float]

MAX_PHRASES_AT_ONCE = 256
"""Phrases that the cross encoder reads in one call: bounds the memory."""

_NEEDED_HEADS = ("matching",)


@dataclass(frozen=True)
class Grounding:
    """Where a phrase is in a picture.

    Attributes:
        phrase: as it was given.
        box_xyxy_px: in pixels of the original picture (after EXIF orientation), half-open,
            clipped to the picture.
        probability: that the phrase is in the picture at all, from the matching head. The box of
            an improbable phrase is a guess.
        box_unclipped_xyxy_px: as the model said it: what metrics are computed on.
        read_as: the text that the model read (cleaned, cut to its length).
        unknown_words: words of it that the model's vocabulary lacks.
        cut: whether the phrase was longer than what the model reads.
        found_by: what the box is: of the box head; the proposal with the most heat; what is hot in
            the heat map; or, where the map speaks for no place, the whole picture ("no heat").
        proposal_score: of the chosen proposal; 0 or less: nothing speaks for any of them.
        heat: where each word looks, where that was asked for.
    """

    phrase: str
    box_xyxy_px: BoxXYXY
    probability: float
    box_unclipped_xyxy_px: BoxXYXY
    read_as: str
    unknown_words: tuple[str, ...] = ()
    cut: bool = False
    found_by: FoundBy = "box head"
    proposal_score: float | None = None
    heat: Heat | None = field(default=None, compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The answer as a JSON object."""
        return {
            "phrase": self.phrase,
            "box_xyxy_px": list(self.box_xyxy_px),
            "probability": self.probability,
            "box_unclipped_xyxy_px": list(self.box_unclipped_xyxy_px),
            "read_as": self.read_as,
            "unknown_words": list(self.unknown_words),
            "cut": self.cut,
            "found_by": self.found_by,
            "proposal_score": self.proposal_score,
        }


@dataclass(frozen=True)
class _Question:
    """One phrase of one picture of a call, ready for the model."""

    picture: int
    text: ReadText
    words: tuple[WordSpan, ...]


@dataclass(frozen=True)
class _Prepared:
    """A picture as the model sees it, its original size in pixels, boxes to choose from."""

    pixels_CHW: NDArray[np.float32]
    width: int
    height: int
    proposals_xyxy_px: NDArray[np.float64] | None


class Predictor:
    """A loaded model that answers.

    Make one with :meth:`from_folder`. Answers do not depend on how pictures and phrases are put
    into batches (up to float32 rounding). A model without a box head, which learnt from whole
    pictures alone, answers from the heat map of its attention.

    Attributes:
        finds_without_boxes: whether it is such a model.
        layer: of the text stack, whose attention makes heat maps.
    """

    def __init__(self, loaded: LoadedModel, device: str = "auto", layer: int | None = None) -> None:
        """Take a loaded model to a device ("auto": the GPU if there is one).

        Args:
            loaded: the model.
            device: where it answers.
            layer: of heat maps; None: see :func:`xvlm_core.inference.heatmap.cam_layer`.

        Raises:
            CheckpointError: the model has no matching head.
            ConfigError: the layer attends to no picture.
            UsageError: there is no such device.
        """
        lacking = [head for head in _NEEDED_HEADS if head not in loaded.info.config.heads]
        if lacking:
            raise CheckpointError(
                f"this model of task {loaded.info.task} cannot find phrases: "
                f"it has no {' and no '.join(lacking)} head",
                try_="take a model of task grounding or pretrain (xvlm ls runs)",
            )
        self.info = loaded.info
        self.finds_without_boxes = "box" not in loaded.info.config.heads
        self.layer = cam_layer(loaded.info.config, layer)
        self.tokenizer = loaded.tokenizer
        self.device = device_of(device)
        self.model = loaded.model.to(self.device).eval()

    @classmethod
    def from_folder(cls, path: Path | str, device: str = "auto") -> Predictor:
        """Load a model folder (see :func:`xvlm_core.inference.checkpoints.find_checkpoint`).

        Raises:
            CheckpointError: missing, damaged, or a model that cannot find phrases.
            UsageError: there is no such device.
        """
        return cls(load_model_folder(Path(path)), device)

    def ground(
        self,
        image: Picture,
        phrases: Sequence[str],
        *,
        proposals: ArrayLike | None = None,
        explain: bool = False,
    ) -> list[Grounding]:
        """Find phrases in one picture; one answer a phrase, in their order.

        Args:
            image: a file, or a Pillow image of any mode.
            phrases: what to look for.
            proposals: see :meth:`ground_many`.
            explain: see :meth:`ground_many`.

        Raises:
            DataError: the picture cannot be read.
            UsageError: nothing is left of a phrase after cleaning.
        """
        boxes = None if proposals is None else [proposals]
        return self.ground_many([(image, phrases)], proposals=boxes, explain=explain)[0]

    def ground_many(
        self,
        items: Iterable[tuple[Picture, Sequence[str]]],
        batch_size: int = 16,
        *,
        proposals: Sequence[ArrayLike | None] | None = None,
        explain: bool = False,
    ) -> list[list[Grounding]]:
        """Find phrases in many pictures.

        Pictures are read when their batch comes, so ``items`` may be longer than memory. A
        picture is encoded once for all its phrases (of a batch, up to ``MAX_PHRASES_AT_ONCE``).

        Args:
            items: pictures with their phrases.
            batch_size: pictures encoded in one call.
            proposals: for each picture boxes ``xyxy`` in pixels: the one with the most heat is the
                answer. None, or none in the picture: the model's own box.
            explain: also say where each word looks.

        Returns:
            For each picture the answers to its phrases, in order.

        Raises:
            DataError: a picture cannot be read.
            UsageError: nothing is left of a phrase after cleaning.
        """
        answers: list[list[Grounding]] = []
        for batch in in_batches(items, batch_size):
            some = proposals and proposals[len(answers) : len(answers) + len(batch)]
            answers += self._ground_batch(batch, some or [None] * len(batch), explain)
        return answers

    def _ground_batch(
        self,
        batch: Sequence[tuple[Picture, Sequence[str]]],
        proposals: Sequence[ArrayLike | None],
        explain: bool,
    ) -> list[list[Grounding]]:
        questions = [
            self._question(number, phrase)
            for number, (_, phrases) in enumerate(batch)
            for phrase in listed(phrases, "phrases")
        ]
        pictures = [
            self._prepare(image, boxes) for (image, _), boxes in zip(batch, proposals, strict=True)
        ]
        answers: list[list[Grounding]] = [[] for _ in batch]
        for start in range(0, len(questions), MAX_PHRASES_AT_ONCE):
            some = questions[start : start + MAX_PHRASES_AT_ONCE]
            found = self._answer(some, pictures, explain)
            for question, one in zip(some, found, strict=True):
                answers[question.picture].append(one)
        return answers

    @torch.inference_mode()
    def _answer(
        self, questions: Sequence[_Question], pictures: Sequence[_Prepared], explain: bool
    ) -> list[Grounding]:
        asked = sorted({question.picture for question in questions})
        row_of = {picture: row for row, picture in enumerate(asked)}
        pixels_ICHW = torch.from_numpy(np.stack([pictures[i].pixels_CHW for i in asked]))
        pixels_ICHW = pixels_ICHW.to(self.device)
        texts = PackedTexts.from_lists([question.text.ids for question in questions]).to(
            self.device
        )
        picture_B = torch.tensor([row_of[question.picture] for question in questions])
        picture_B = picture_B.to(self.device)
        places = [_place(question, pictures[question.picture]) for question in questions]
        found = answer(
            self.model, pixels_ICHW, texts, picture_B, places, self.layer, explain=explain
        )
        answers = []
        for question, one in zip(questions, found, strict=True):
            width, height = pictures[question.picture].width, pictures[question.picture].height
            answers.append(
                Grounding(
                    phrase=question.text.given,
                    box_xyxy_px=_box(clip_box_xyxy_px(one.box_xyxy_px, width, height)),
                    probability=one.probability,
                    box_unclipped_xyxy_px=_box(one.box_xyxy_px),
                    read_as=question.text.read_as,
                    unknown_words=question.text.unknown_words,
                    cut=question.text.cut,
                    found_by=one.found_by,
                    proposal_score=one.proposal_score,
                    heat=one.heat,
                )
            )
        return answers

    def _prepare(self, picture: Picture, proposals: ArrayLike | None) -> _Prepared:
        image = upright_rgb(picture)
        side = self.info.config.vision.image_size
        boxes = None
        if proposals is not None:
            found = np.asarray(proposals, dtype=np.float64).reshape(-1, 4)
            boxes = np.array(usable(found, image.width, image.height)).reshape(-1, 4)
            boxes = boxes if len(boxes) else None
        return _Prepared(model_pixels(image, side), image.width, image.height, boxes)

    def _question(self, picture: int, phrase: str) -> _Question:
        text = read_text(phrase, self.tokenizer, self.info)
        return _Question(picture, text, self._word_spans(text.cleaned, len(text.ids)))

    def _word_spans(self, text: str, n_tokens: int) -> tuple[WordSpan, ...]:
        """The words of a text with their tokens: a word is tokenised the same wherever it is."""
        spans, at = [], 1
        for word in text.split():
            end = at + len(self.tokenizer.encode(word, len(word) + 2).ids) - 1
            if at < min(end, n_tokens):
                spans.append(WordSpan(word, at, min(end, n_tokens)))
            at = end
        return tuple(spans)


def _place(question: _Question, picture: _Prepared) -> Place:
    return Place(picture.width, picture.height, picture.proposals_xyxy_px, question.words)


def _box(box_xyxy_px: NDArray[np.float64]) -> BoxXYXY:
    x1, y1, x2, y2 = (float(v) for v in box_xyxy_px)
    return x1, y1, x2, y2

"""Pictures and questions in; ranked answers, or one that is written freely, out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xvlm_core.errors import CheckpointError
from xvlm_core.inference.answer_ranking import Candidates, rank_answers
from xvlm_core.inference.answer_writing import write_answers
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
from xvlm_core.models.text import TextStates
from xvlm_core.models.vqa import VQA
from xvlm_core.weights.folder import LoadedModel, load_model_folder

MAX_QUESTIONS_AT_ONCE = 64
"""Questions that are answered in one call: bounds the memory."""

Asked = tuple[Picture, Sequence[str]]
"""A picture and the questions about it."""


@dataclass(frozen=True)
class RankedAnswer:
    """One answer.

    Attributes:
        answer: as the list has it.
        probability: among the answers that were scored; they sum to 1. Of an answer that was
            written freely: among all texts there are.
    """

    answer: str
    probability: float


@dataclass(frozen=True)
class Answered:
    """What the model answers to a question.

    Attributes:
        question: as it was given.
        answers: the best first.
        read_as: the text that the model read (cleaned, cut to its length).
        unknown_words: words of it that the model's vocabulary lacks.
        cut: whether the question was longer than what the model reads.
    """

    question: str
    answers: tuple[RankedAnswer, ...]
    read_as: str
    unknown_words: tuple[str, ...] = ()
    cut: bool = False

    def to_json(self) -> dict[str, Any]:
        """The answer as a JSON object."""
        return {
            "question": self.question,
            "answer": self.answers[0].answer,
            "probability": self.answers[0].probability,
            "answers": [vars(answer) for answer in self.answers],
            "read_as": self.read_as,
            "unknown_words": list(self.unknown_words),
            "cut": self.cut,
        }


class Answerer:
    """A loaded VQA model that answers.

    Answers do not depend on how pictures and questions are put into batches (up to float32
    rounding).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        device: str = "auto",
        answers: Sequence[str] | None = None,
        *,
        freely: bool = False,
    ) -> None:
        """Take a loaded model to a device ("auto": the GPU if there is one).

        Args:
            loaded: the model.
            device: where it goes.
            answers: to choose from; None: those that it was trained with.
            freely: write answers word by word instead.

        Raises:
            CheckpointError: the model answers no questions, or knows no answers to choose from.
            DataError: the answers cannot be told apart.
            UsageError: there is no such device.
        """
        model = loaded.model
        if not isinstance(model, VQA):
            raise CheckpointError(
                f"this model of task {loaded.info.task} answers no questions",
                try_="take a model of task vqa (xvlm ls runs)",
            )
        self.info = loaded.info
        self.tokenizer = loaded.tokenizer
        self.candidates: Candidates | None = None
        if not freely:
            chosen = tuple(loaded.info.answers if answers is None else answers)
            if not chosen and answers is None:
                raise CheckpointError(
                    "the model does not say which answers it chooses from",
                    try_="--answers FILE  (one answer a line), or --open",
                )
            positions = loaded.info.config.text.max_positions
            self.candidates = Candidates.of(chosen, self.tokenizer, positions)
        self.device = device_of(device)
        self.model: VQA = model.to(self.device).eval()

    @classmethod
    def from_folder(
        cls,
        path: Path | str,
        device: str = "auto",
        answers: Sequence[str] | None = None,
        *,
        freely: bool = False,
    ) -> Answerer:
        """Load a model folder; arguments and errors as of the class.

        Raises:
            CheckpointError: missing or damaged.
        """
        return cls(load_model_folder(Path(path)), device, answers, freely=freely)

    def answer(self, picture: Picture, questions: Sequence[str], top: int = 5) -> list[Answered]:
        """Answer questions about a picture; one answer each, in their order.

        Args:
            picture: a file, or a Pillow image of any mode.
            questions: about it.
            top: answers of the list that are named, best first.

        Raises:
            DataError: the picture cannot be read.
            UsageError: nothing is left of a question after cleaning.
        """
        return self.answer_many([(picture, questions)], top)[0]

    def answer_many(
        self, asked: Iterable[Asked], top: int = 5, batch_size: int = 16
    ) -> list[list[Answered]]:
        """Answer questions about many pictures; each is encoded once for all of its own.

        Args:
            asked: pictures, read when their batch comes, with their questions.
            top: answers of the list that are named, best first.
            batch_size: pictures a batch.

        Returns:
            For each picture the answers to its questions, in order.

        Raises:
            DataError: a picture cannot be read.
            UsageError: nothing is left of a question after cleaning.
        """
        return [
            answers
            for batch in in_batches(asked, batch_size)
            for answers in self._answer_batch(batch, top)
        ]

    @torch.inference_mode()
    def _answer_batch(self, batch: Sequence[Asked], top: int) -> list[list[Answered]]:
        read = [
            (picture, read_text(question, self.tokenizer, self.info))
            for picture, (_, questions) in enumerate(batch)
            for question in listed(questions, "questions")
        ]
        out: list[list[Answered]] = [[] for _ in batch]
        if not read:
            return out
        side = self.info.config.vision.image_size
        pixels = np.stack([model_pixels(upright_rgb(picture), side) for picture, _ in batch])
        patches_IPS = self.model.encode_pictures(torch.from_numpy(pixels).to(self.device))
        whole = self.model.whole(len(batch))
        for start in range(0, len(read), MAX_QUESTIONS_AT_ONCE):
            some = read[start : start + MAX_QUESTIONS_AT_ONCE]
            texts = PackedTexts.from_lists([text.ids for _, text in some]).to(self.device)
            own = torch.tensor([picture for picture, _ in some], device=self.device)
            states = self.model.fuse(self.model.encode_texts(texts), patches_IPS, whole, own)
            for (picture, text), answers in zip(some, self._answers(states, top), strict=True):
                out[picture].append(_answered(text, answers))
        return out

    def _answers(self, questions: TextStates, top: int) -> list[tuple[RankedAnswer, ...]]:
        if self.candidates is None:
            written = write_answers(self.model, questions, self.tokenizer)
            return [(RankedAnswer(one.text, one.probability),) for one in written]
        ranking = rank_answers(self.model, questions, self.candidates)
        names = self.candidates.answers
        best = zip(
            ranking.answer_QK[:, :top].tolist(),
            ranking.probability_QK[:, :top].tolist(),
            strict=True,
        )
        return [tuple(RankedAnswer(names[n], p) for n, p in zip(*row, strict=True)) for row in best]


def _answered(text: ReadText, answers: tuple[RankedAnswer, ...]) -> Answered:
    return Answered(text.given, answers, text.read_as, text.unknown_words, text.cut)

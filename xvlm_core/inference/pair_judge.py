"""Two pictures and statements about both in, the probability that each is true out."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from xvlm_core.decision import is_probable
from xvlm_core.errors import CheckpointError
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
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.models.packing import PackedTexts
from xvlm_core.weights.folder import LoadedModel, load_model_folder

MAX_STATEMENTS_AT_ONCE = 256
"""Statements that the cross encoder reads in one call: bounds the memory."""

Question = tuple[Picture, Picture, Sequence[str]]
"""The left picture, the right one, and statements about them."""


@dataclass(frozen=True)
class Judgement:
    """What the model thinks of a statement.

    Attributes:
        statement: as it was given.
        probability: that it is true of the two pictures.
        read_as: the text that the model read (cleaned, cut to its length).
        unknown_words: words of it that the model's vocabulary lacks.
        cut: whether the statement was longer than what the model reads.
    """

    statement: str
    probability: float
    read_as: str
    unknown_words: tuple[str, ...] = ()
    cut: bool = False

    @property
    def is_true(self) -> bool:
        """The answer: true from a probability of 0.5 on."""
        return is_probable(self.probability)

    def to_json(self) -> dict[str, Any]:
        """The answer as a JSON object."""
        return {
            "statement": self.statement,
            "probability": self.probability,
            "answer": self.is_true,
            "read_as": self.read_as,
            "unknown_words": list(self.unknown_words),
            "cut": self.cut,
        }


@dataclass(frozen=True)
class _Asked:
    """One statement of a call: the pair that it is about, and its text."""

    pair: int
    text: ReadText


class PairJudge:
    """A loaded NLVR2 model that answers.

    Answers do not depend on how pairs and statements are put into batches (up to float32
    rounding).
    """

    def __init__(self, loaded: LoadedModel, device: str = "auto") -> None:
        """Take a loaded model to a device ("auto": the GPU if there is one).

        Raises:
            CheckpointError: the model judges no statements.
            UsageError: there is no such device.
        """
        model = loaded.model
        if not isinstance(model, NLVR2) or "statement" not in loaded.info.config.heads:
            raise CheckpointError(
                f"this model of task {loaded.info.task} cannot judge statements about two pictures",
                try_="take a model of task nlvr2 (xvlm ls runs)",
            )
        self.info = loaded.info
        self.tokenizer = loaded.tokenizer
        self.device = device_of(device)
        self.model: NLVR2 = model.to(self.device).eval()

    @classmethod
    def from_folder(cls, path: Path | str, device: str = "auto") -> PairJudge:
        """Load a model folder (see :func:`xvlm_core.inference.checkpoints.find_checkpoint`).

        Raises:
            CheckpointError: missing, damaged, or a model that judges no statements.
            UsageError: there is no such device.
        """
        return cls(load_model_folder(Path(path)), device)

    def judge(self, left: Picture, right: Picture, statements: Sequence[str]) -> list[Judgement]:
        """Judge statements about two pictures; one answer each, in their order.

        Args:
            left: a file, or a Pillow image of any mode.
            right: the same.
            statements: about both.

        Raises:
            DataError: a picture cannot be read.
            UsageError: nothing is left of a statement after cleaning.
        """
        return self.judge_many([(left, right, statements)])[0]

    def judge_many(
        self, questions: Iterable[Question], batch_size: int = 16
    ) -> list[list[Judgement]]:
        """Judge statements about many pairs.

        A picture is encoded once for all pairs of a batch that it is in. Pictures are read when
        their batch comes.

        Args:
            questions: pairs with their statements.
            batch_size: pairs a batch.

        Returns:
            For each pair the answers to its statements, in order.

        Raises:
            DataError: a picture cannot be read.
            UsageError: nothing is left of a statement after cleaning.
        """
        return [
            answers
            for batch in in_batches(questions, batch_size)
            for answers in self._judge_batch(batch)
        ]

    @torch.inference_mode()
    def _judge_batch(self, batch: Sequence[Question]) -> list[list[Judgement]]:
        asked = [
            _Asked(pair, read_text(statement, self.tokenizer, self.info))
            for pair, (_, _, statements) in enumerate(batch)
            for statement in listed(statements, "statements")
        ]
        answers: list[list[Judgement]] = [[] for _ in batch]
        if not asked:
            return answers
        shown = _Shown(self.info.config.vision.image_size)
        pairs = torch.tensor(
            [[shown.number(left), shown.number(right)] for left, right, _ in batch]
        )
        pixels_ICHW = torch.from_numpy(np.stack(shown.pixels)).to(self.device)
        patches_IPS = self.model.encode_pictures(pixels_ICHW)
        for start in range(0, len(asked), MAX_STATEMENTS_AT_ONCE):
            some = asked[start : start + MAX_STATEMENTS_AT_ONCE]
            texts = PackedTexts.from_lists([one.text.ids for one in some]).to(self.device)
            pair_B2 = pairs[[one.pair for one in some]].to(self.device)
            states = self.model.look(
                self.model.encode_texts(texts), patches_IPS, pair_B2[:, 0], pair_B2[:, 1]
            )
            true_B = self.model.statement_logits(states.first()).softmax(-1)[:, 1]
            for one, probability in zip(some, true_B.double().cpu().tolist(), strict=True):
                text = one.text
                answers[one.pair].append(
                    Judgement(text.given, probability, text.read_as, text.unknown_words, text.cut)
                )
        return answers


class _Shown:
    """The pictures of a batch as the model sees them, each once."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.pixels: list[NDArray[np.float32]] = []
        self._numbers: dict[Hashable, int] = {}

    def number(self, picture: Picture) -> int:
        """Of a file by its path, of an image in memory by the very object."""
        key = id(picture) if isinstance(picture, Image.Image) else str(picture)
        if key not in self._numbers:
            self._numbers[key] = len(self.pixels)
            self.pixels.append(model_pixels(upright_rgb(picture), self.side))
        return self._numbers[key]

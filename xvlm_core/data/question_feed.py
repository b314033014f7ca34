"""The training data of VQA: pictures with questions and weighted answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from xvlm_core.config.schema import Recipe
from xvlm_core.data import augment
from xvlm_core.data.batches import QuestionBatch
from xvlm_core.data.feeds import StoreStream, StreamFeed, parts_of
from xvlm_core.data.numbers import RecordNumbers
from xvlm_core.data.question_samples import (
    QuestionSample,
    QuestionSampleMaker,
    answered,
    question_batch,
)
from xvlm_core.data.record_kinds import numbers_of
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.data.stream import Place


class _Turns:
    """The questions of the records of a store, dealt out: so many of a picture at a time.

    Each turn has a number; a turn is a picture with the questions whose turn it is.
    """

    def __init__(self, store: Store, numbers: RecordNumbers, per_picture: int) -> None:
        self.numbers = numbers
        counts = [len(answered(store[number])) for number in numbers.array().tolist()]
        turns: npt.NDArray[np.int64] = -(-np.array(counts, dtype=np.int64) // per_picture)
        self.ends = np.cumsum(turns)
        self.per_picture = per_picture

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def find(self, turn: int) -> tuple[int, int]:
        """The record of a turn, and which one of its turns it is, from 0."""
        row = int(np.searchsorted(self.ends, turn, side="right"))
        first = int(self.ends[row - 1]) if row else 0
        return self.numbers[row], turn - first


class QuestionStream(StoreStream):
    """Pictures with their questions; every question that has an answer comes once in a pass.

    Where a picture has more than ``per_picture``, they come in several turns of it, in another
    division in each pass: for that, every record is looked at once when a run begins.

    Args:
        stores: where the records are.
        split: which of them.
        batch_size: pictures a step, over all parts.
        seed: of the run.
        parts: equal parts that a step is divided into.
        per_picture: at most so many questions of a picture at a time; None: all.

    Raises:
        DataError: none of the stores has such a record of the split.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        split: str,
        batch_size: int,
        seed: int,
        parts: int,
        per_picture: int | None,
    ) -> None:
        self.per_picture = per_picture
        self.turns: list[_Turns] = []
        super().__init__(stores, split, batch_size, seed, "questions", parts)
        self.seed = seed

    def numbers(self, store: Store, split: str) -> RecordNumbers:
        """Of records; where these come in turns: of turns."""
        numbers = numbers_of(store, split, pairs=False)
        if self.per_picture is None:
            return numbers
        turns = _Turns(store, numbers, self.per_picture)
        self.turns.append(turns)
        return RecordNumbers.of(len(turns))

    def record_at(self, place: Place) -> Record:
        """The record with the questions whose turn it is."""
        if self.per_picture is None:
            return super().record_at(place)
        number, turn = self.turns[place.store].find(place.record)
        record = self.stores[place.store][number]
        questions = answered(record)
        rng = augment.generator(self.seed, place.epoch, record.id, "question order")
        order = rng.permutation(len(questions)).tolist()
        some = order[turn * self.per_picture : (turn + 1) * self.per_picture]
        return replace(record, questions=tuple(questions[n] for n in some))


class QuestionFeed(StreamFeed):
    """Pictures with questions and answers."""

    def __init__(self, recipe: Recipe, stores: Sequence[Store], maker: QuestionSampleMaker) -> None:
        questions = recipe.data.questions
        assert questions is not None, "the task reads data.questions"
        self.recipe = recipe
        self.maker = maker
        self.stream = QuestionStream(
            stores,
            recipe.data.train_split,
            questions.batch_size,
            recipe.seed,
            parts_of(recipe),
            questions.per_picture,
        )

    def batches(self, step: int, part: int = 0) -> tuple[QuestionBatch, ...]:
        """A part of the update of step 1, 2, ..."""
        samples, dropped = self.stream.samples_of(step, part, self._make)
        return (question_batch(samples, self.maker.tokenizer.sep_id, dropped=dropped),)

    def _make(self, store: Store, record: Record, epoch: int) -> QuestionSample:
        return self.maker.of_questions(record, store.picture(record), epoch)

"""Samples of questions: a picture, what is asked about it, and what people answered (VQA)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from xvlm_core.data import augment
from xvlm_core.data.batches import QuestionBatch
from xvlm_core.data.collate import counts_of, pictures_of
from xvlm_core.data.dropped import BadSamples, Dropped
from xvlm_core.data.images import read_picture
from xvlm_core.data.records import Question, Record
from xvlm_core.data.samples import (
    Sample,
    SampleMaker,
    SampleProblem,
    SampleSettings,
    SampleText,
)
from xvlm_core.data.text import pre_question
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.models.packing import PackedTexts

SCALE = (0.5, 1.0)
"""Share of a picture that a random crop keeps (official.md 2.8, "train without flip")."""

NO_QUESTION = "no question with an answer"


@dataclass(frozen=True)
class WeightedAnswer:
    """An answer as tokens, CLS in front, and the share of the people who gave it."""

    ids: tuple[int, ...]
    weight: float


@dataclass(frozen=True, kw_only=True)
class QuestionSample(Sample):
    """A picture; ``texts`` are the questions about it.

    Attributes:
        answers: of each question, at least one.
        unusable_answers: that were left out: empty, or too long for the model.
    """

    answers: tuple[tuple[WeightedAnswer, ...], ...]
    unusable_answers: int = 0


def question_tokens(
    question: str, tokenizer: Tokenizer, max_words: int, max_tokens: int
) -> SampleText | None:
    """A question as the model reads it; None where nothing is left of it."""
    words = pre_question(question, max_words)
    encoded = tokenizer.encode(words, max_tokens)
    if len(encoded.ids) < 2:
        return None
    return SampleText(words, encoded.ids, None, cut=encoded.cut)


def answer_tokens(answer: str, tokenizer: Tokenizer, max_tokens: int) -> tuple[int, ...] | None:
    """Tokens of an answer, CLS in front, without the end; None where it is empty or too long.

    As released: no cleaning but that of the tokenizer, and never cut.
    """
    encoded = tokenizer.encode(answer, max_tokens)
    return encoded.ids if len(encoded.ids) > 1 and not encoded.cut else None


def answered(record: Record) -> tuple[Question, ...]:
    """The questions of a record whose answers are known."""
    return tuple(q for q in record.questions if any(a.weight > 0 for a in q.answers))


class QuestionSampleMaker(SampleMaker):
    """Makes samples of questions. Picklable.

    Args:
        settings: how records become samples.
        tokenizer: of the model.
        seed: of the run.
        max_answer_tokens: that the decoder reads, CLS included.
    """

    def __init__(
        self, settings: SampleSettings, tokenizer: Tokenizer, seed: int, max_answer_tokens: int
    ) -> None:
        super().__init__(settings, tokenizer, seed)
        self.max_answer_tokens = max_answer_tokens

    def of_questions(self, record: Record, source: Path | bytes, epoch: int) -> QuestionSample:
        """A picture with all questions of the record, and their answers.

        It is mirrored in half of the samples, unless a question or an answer of it names a side.

        Args:
            record: with the questions.
            source: its picture: the file, or its bytes.
            epoch: which pass over the data.

        Raises:
            PictureError: the picture cannot be read.
            SampleProblem: no question with an answer, or nothing is left of them after cleaning.
        """
        questions = answered(record)
        if not questions:
            raise SampleProblem(NO_QUESTION)
        texts, answers, said, unusable = [], [], [], 0
        settings = self.settings
        for question in questions:
            text = question_tokens(
                question.question, self.tokenizer, settings.max_words, settings.max_tokens
            )
            if text is None:
                continue
            own, lost = self._answers(question)
            unusable += lost
            if own:
                texts.append(text)
                answers.append(own)
                said += [question.question, *(answer.answer for answer in question.answers)]
        if not texts:
            raise SampleProblem(NO_QUESTION if unusable else "empty text")
        size = settings.image_size
        if settings.augment:
            # of another part of the questions of a picture: another view of it
            asked = f"questions {questions[0].id or questions[0].question}"
            rng = augment.generator(self.seed, epoch, record.id, asked)
            picture = augment.pretrain_picture(
                self._read(source), rng, size, scale=SCALE, allow_flip=self._may_flip(said)
            )
        else:
            picture = augment.test_picture(read_picture(source), size)
        return QuestionSample(
            record_id=record.id,
            picture=picture,
            texts=tuple(texts),
            answers=tuple(answers),
            unusable_answers=unusable,
            cut=sum(text.cut for text in texts),
            empty=len(questions) - len(texts),
        )

    def _answers(self, question: Question) -> tuple[tuple[WeightedAnswer, ...], int]:
        """Answers that are written in the same tokens are one; and how many are left out."""
        weights: dict[tuple[int, ...], float] = {}
        lost = 0
        for answer in question.answers:
            if answer.weight <= 0:
                continue
            ids = answer_tokens(answer.answer, self.tokenizer, self.max_answer_tokens)
            if ids is None:
                lost += 1
            else:
                weights[ids] = weights.get(ids, 0.0) + answer.weight
        return tuple(WeightedAnswer(ids, weight) for ids, weight in weights.items()), lost


def question_batch(
    samples: Sequence[Sample], end: int, *, dropped: Dropped | None = None
) -> QuestionBatch:
    """One batch of pictures with questions and answers.

    Args:
        samples: at least one, all of questions.
        end: the token that ends an answer (SEP).
        dropped: samples left out so far.
    """
    made = [sample for sample in samples if isinstance(sample, QuestionSample)]
    assert len(made) == len(samples), "samples of questions"
    questions = [text for sample in made for text in sample.texts]
    answers = [own for sample in made for own in sample.answers]
    rows = [(q, answer) for q, own in enumerate(answers) for answer in own]
    packed = PackedTexts.from_lists([answer.ids for _, answer in rows])
    counts = Counter(counts_of(made))
    counts["unusable_answers"] = sum(sample.unusable_answers for sample in made)
    return QuestionBatch(
        pictures_ICHW=pictures_of(made),
        texts=PackedTexts.from_lists([text.ids for text in questions]),
        picture_of_question_Q=torch.tensor(
            [i for i, sample in enumerate(made) for _ in sample.texts]
        ),
        answers=packed,
        next_N=packed.following(end),
        question_of_answer_A=torch.tensor([q for q, _ in rows]),
        weight_A=torch.tensor([answer.weight for _, answer in rows]),
        record_ids=tuple(sample.record_id for sample in made),
        dropped=dict(dropped.reasons) if dropped else {},
        bad=dropped.bad if dropped else BadSamples(),
        counts={name: n for name, n in counts.items() if n},
    )

"""VQA, evaluated: every question of a split once, its answer ranked in a list or written freely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from xvlm_core.config.schema import ScoringSection
from xvlm_core.data import augment
from xvlm_core.data.batches import QuestionBatch, QuestionItem
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.question_samples import question_tokens
from xvlm_core.data.records import Question, Record
from xvlm_core.data.store import Store
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.inference.answer_ranking import Candidates, Scheme, rank_answers
from xvlm_core.inference.answer_writing import write_answers
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.vqa import VQA
from xvlm_core.tasks.base import Batch, Prediction, Scores
from xvlm_core.tasks.split_items import Place, SplitItems
from xvlm_core.tasks.vqa_answers import answers_to_choose_from
from xvlm_core.tasks.vqa_scores import SELECTION, score
from xvlm_core.weights.folder import ModelInfo

_UNKNOWN = "?"
"""In place of the answers of people that have no word: no prediction is equal to it."""
_PEOPLE = 10


class VqaEvaluation(SplitItems):
    """The questions of some stores' split, in order, each once; nothing is padded or repeated.

    A :class:`xvlm_core.tasks.store_evaluation.StoreEvaluation`. Questions whose answers are hidden
    are asked as well, and count in no figure.

    Args:
        *args: of :class:`SplitItems`.
        answers: to choose from; empty: those of the stores.
        scheme: how (:class:`~xvlm_core.config.schema.ScoringSection`).
        k: answers that are scored in two steps.
        max_answer_tokens: that the decoder reads, CLS included.
        train_split: whose answers are chosen from where nothing else is known.
        **kwargs: of :class:`SplitItems`.
    """

    NO_ANSWER: ClassVar[dict[str, Any]] = {"answer": ""}
    ALSO_SAID: ClassVar[tuple[str, ...]] = ("probability",)
    """What a saved answer may have beside: those of other programs do not."""

    selection: str | None = SELECTION

    def __init__(
        self,
        *args: Any,
        answers: Sequence[str] = (),
        scheme: str = "auto",
        k: int = 128,
        max_answer_tokens: int,
        train_split: str = "train",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.answers = tuple(answers)
        self.scheme = scheme
        self.k = k
        self.max_answer_tokens = max_answer_tokens
        self.train_split = train_split
        self.answers_file: str | None = None
        self._candidates: Candidates | None = None
        self._repeated: frozenset[tuple[str, str]] | None = None

    @classmethod
    def of_model(
        cls,
        stores: Sequence[Store],
        split: str,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        scoring: ScoringSection | None = None,
        limit: int | None = None,
    ) -> Self:
        """Questions as a model wants them.

        Raises:
            DataError: the file of answers is not there, or not all of its answers can be told
                apart.
        """
        scoring = scoring or ScoringSection()
        positions = info.config.text.max_positions
        official = (scoring.compat or info.compat) == "official"
        made = cls(
            stores,
            split,
            tokenizer,
            image_size=info.config.vision.image_size,
            max_words=scoring.max_words or info.max_words,
            max_tokens=positions if scoring.max_words else info.max_tokens,
            limit=limit,
            answers=info.answers,
            scheme="released" if official and scoring.scheme == "auto" else scoring.scheme,
            k=scoring.candidates,
            max_answer_tokens=positions,
        )
        if scoring.answers is not None:
            made.answers = answers_to_choose_from(scoring.answers, stores, made.train_split)
            made.answers_file = scoring.answers
        return made

    def candidates(self) -> Candidates:
        """The answers to choose from.

        Raises:
            DataError: there are none, or they cannot be told apart.
        """
        if self._candidates is None:
            stores = list({id(place.store): place.store for place in self.places}.values())
            answers = self.answers or answers_to_choose_from(None, stores, self.train_split)
            self._candidates = Candidates.of(
                answers, self.tokenizer, self.max_answer_tokens, self.answers_file
            )
        return self._candidates

    # ------------------------------------------------------------------ items

    def references(self) -> Iterator[Prediction]:
        """Of every question: ``id`` and what ``score`` wants beside."""
        self.forget_dropped()
        for place in self.places:
            for item, _ in self._asked(place, place.record()):
                yield _reference(item)

    def validation(self, rank: int = 0, world_size: int = 1) -> Iterator[QuestionBatch]:
        """Batches of pictures with their questions; a picture is there once for all of its own.

        The shares of the ranks, one after the other, are all questions in order.
        """
        if self.scheme != "open":
            self.candidates()
        for places in self.shares(rank, world_size):
            yield self._batch(places)

    def _batch(self, places: Sequence[Place]) -> QuestionBatch:
        pictures: list[NDArray[np.float32]] = []
        items: list[QuestionItem] = []
        tokens: list[tuple[int, ...]] = []
        picture_of: list[int] = []
        for place in places:
            record = place.record()
            asked = list(self._asked(place, record))
            if not asked:
                continue
            try:
                image = read_picture(place.store.picture(record))
            except PictureError as problem:
                self.drop(f"{place.prefix}{record.id}", problem.reason, len(asked))
                continue
            for item, ids in asked:
                items.append(item)
                tokens.append(ids)
                picture_of.append(len(pictures))
            pictures.append(augment.normalise(augment.test_picture(image, self.image_size)))
        return QuestionBatch(
            pictures_ICHW=torch.from_numpy(np.stack(pictures)) if pictures else torch.zeros(0, 3),
            texts=PackedTexts.from_lists(tokens),
            picture_of_question_Q=torch.tensor(picture_of, dtype=torch.int64),
            items=tuple(items),
            record_ids=tuple(dict.fromkeys(item.record for item in items)),
            dropped=self.newly_dropped(),
        )

    def _asked(
        self, place: Place, record: Record
    ) -> Iterator[tuple[QuestionItem, tuple[int, ...]]]:
        """The questions of a record with their tokens."""
        for number, question in enumerate(record.questions):
            name = self._name(place, record, question, number)
            text = question_tokens(
                question.question, self.tokenizer, self.max_words, self.max_tokens
            )
            if text is None:
                self.drop(f"{place.prefix}{name}", "empty text")
            else:
                yield _item(record, question, number, f"{place.prefix}{name}"), text.ids

    def _name(self, place: Place, record: Record, question: Question, number: int) -> str:
        """The question's own id, or one made of the record's where others have the same."""
        if self._repeated is None:
            ids: Counter[tuple[str, str]] = Counter()
            for one in self.places:
                ids.update((one.prefix, q.id) for q in one.record().questions)
            self._repeated = frozenset(id for id, n in ids.items() if n > 1)
        is_own = question.id and (place.prefix, question.id) not in self._repeated
        return question.id if is_own else f"{record.id}#{number}"

    # ------------------------------------------------------------------ answers

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The best answer to each question, and how probable it is among those that were scored."""
        assert isinstance(model, VQA)
        assert isinstance(batch, QuestionBatch)
        if not batch.items:
            return []
        states = model.read(batch.pictures_ICHW, batch.texts, batch.picture_of_question_Q)
        if self.scheme == "open":
            written = write_answers(model, states, self.tokenizer)
            found = [(one.text, one.probability) for one in written]
        else:
            candidates = self.candidates()
            scheme: Scheme | None = None if self.scheme == "auto" else self.scheme  # type: ignore[assignment]
            ranking = rank_answers(model, states, candidates, scheme=scheme, k=self.k)
            best = ranking.answer_QK[:, 0].tolist()
            probabilities = ranking.probability_QK[:, 0].tolist()
            found = [
                (candidates.answers[number], probability)
                for number, probability in zip(best, probabilities, strict=True)
            ]
        return [
            {**_reference(item), "answer": answer, "probability": probability}
            for item, (answer, probability) in zip(batch.items, found, strict=True)
        ]

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """See :func:`xvlm_core.tasks.vqa_scores.score`."""
        return score(predictions, self.split)

    @staticmethod
    def submission(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
        """The file of the test server of VQA: ``question_id`` and ``answer`` of each question."""
        return [
            {"question_id": _server_id(p["question_id"]), "answer": p["answer"]}
            for p in predictions
        ]


def _server_id(name: str) -> int | str:
    return int(name) if name.isascii() and name.isdigit() else name


def _item(record: Record, question: Question, number: int, name: str) -> QuestionItem:
    types = _of(record.meta.get("types"), question.id)
    kinds = record.meta.get("question_kinds")
    kind = answer_kind = None
    if isinstance(types, list) and len(types) == 2:
        kind, answer_kind = (text if isinstance(text, str) and text else None for text in types)
    elif isinstance(kinds, list) and number < len(kinds) and isinstance(kinds[number], str):
        kind = kinds[number]
    return QuestionItem(
        id=name,
        question_id=question.id or name,
        record=record.id,
        question=question.question,
        answers=_people(record, question),
        kind=kind,
        answer_kind=answer_kind,
    )


def _people(record: Record, question: Question) -> tuple[str, ...]:
    """What each of the people answered, from the shares (see :mod:`xvlm_core.sources.vqa`)."""
    if not any(answer.weight > 0 for answer in question.answers):
        return ()
    told = _of(record.meta.get("people"), question.id)
    n = told if isinstance(told, int) and 0 < told <= 1000 else _PEOPLE
    # a small share is still somebody's
    times = [max(1, round(n * a.weight)) if a.weight > 0 else 0 for a in question.answers]
    given = [a.answer for a, k in zip(question.answers, times, strict=True) for _ in range(k)]
    return (*given, *[_UNKNOWN] * (n - len(given)))


def _of(values: object, key: str) -> object:
    return values.get(key) if isinstance(values, dict) else None


def _reference(item: QuestionItem) -> Prediction:
    return {
        "id": item.id,
        "question_id": item.question_id,
        "record": item.record,
        "question": item.question,
        "answers": list(item.answers),
        "kind": item.kind,
        "answer_kind": item.answer_kind,
    }

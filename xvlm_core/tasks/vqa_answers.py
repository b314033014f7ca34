"""The answers that a VQA model chooses from: as recorded with the data, or built from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from xvlm_core.data.question_samples import answered
from xvlm_core.data.store import Store
from xvlm_core.errors import DataError
from xvlm_core.sources.answers import build_answer_list, parse_answers, read_answer_list

ANSWERS = "answers.json"
"""Of a store: written by ``xvlm prepare-data vqa``."""

_PEOPLE = 10


def answers_to_choose_from(
    named: str | None, stores: Sequence[Store], train_split: str
) -> tuple[str, ...]:
    """The list: a file, else that of the first store that has one, else what people answered.

    Args:
        named: the file (``scoring.answers``).
        stores: of the questions.
        train_split: whose answers are counted where no store has a list.

    Raises:
        DataError: the list cannot be read, or an answer of it comes twice or has no word; or there
            are fewer than two.
    """
    if named is not None:
        return read_answer_list(Path(named)).answers
    for store in stores:
        if store.files.size(ANSWERS) is not None:
            where = f"{store.place}/{ANSWERS}"
            return parse_answers(store.files.read_all(ANSWERS), where)
    return _given_in(stores, train_split)


def _given_in(stores: Sequence[Store], split: str) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    for store in stores:
        for number in store.numbers(split).array().tolist():
            for question in answered(store[number]):
                for answer in question.answers:
                    if answer.weight > 0:
                        counts[answer.answer] += max(1, round(_PEOPLE * answer.weight))
    names = ", ".join(store.name for store in stores)
    if not counts:
        raise DataError(
            f"no answers to choose from: {names} has neither {ANSWERS} nor an answered question of "
            f"split {split!r}",
            where=names,
            try_="a store with questions (xvlm prepare-data vqa or jsonl), or scoring.answers=FILE "
            "(one answer a line)",
        )
    found = build_answer_list(counts).answers
    if len(found) < 2:
        raise DataError(
            f"every question of {names} has the answer {found[0]!r}: there is nothing to choose "
            "from",
            where=names,
            try_="scoring.answers=FILE  (one answer a line)",
        )
    return found

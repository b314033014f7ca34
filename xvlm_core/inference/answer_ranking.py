"""The answers of a list, ranked by their probability after a question (X-VLM, section 4.3).

Li et al., "Align before Fuse", NeurIPS 2021, section 5, ranks in two steps: the candidates whose
first word is the most probable, then these by the probability of the whole answer. The released
code counts the first word twice there (official.md 3.2).

Legend: Q questions, A answers of the list, K of them ranked, N tokens, V vocabulary.

A prefix that several answers share is one row of the decoder: "red" is a part of "red and blue".
Rows are read in portions, so that memory does not grow with the list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from xvlm_core.data.question_samples import answer_tokens
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import DataError
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.text import TextStates
from xvlm_core.models.vqa import VQA

EXACT_UP_TO = 200
"""Answers of a list up to which every one of them is scored."""

Scheme = Literal["exact", "two-step", "released"]
"""Every answer scored; the best by their first word scored; the same, that word counted twice."""

_MOST_SCORES = 1 << 26
"""Vocabulary scores held at a time (float32: 256 MiB)."""
_MOST_TOKENS = 1 << 14
"""Tokens that the decoder reads at a time."""


@dataclass(frozen=True)
class Candidates:
    """The answers of a list as tokens.

    Attributes:
        answers: as they are written.
        tokens: of each, CLS in front, at least one more; the end (SEP) is not among them.
        end: the token that ends an answer.
    """

    answers: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    end: int

    @classmethod
    def of(
        cls,
        answers: Sequence[str],
        tokenizer: Tokenizer,
        max_tokens: int,
        where: str | None = None,
    ) -> Candidates:
        """Make tokens of answers.

        Args:
            answers: two at least.
            tokenizer: of the model.
            max_tokens: that its decoder reads, CLS included.
            where: the file that they are from, for messages.

        Raises:
            DataError: fewer than two; or one is empty, comes twice, or is too long for the model;
                or two are the same to its tokenizer.
        """
        tokens, problems = [], []
        seen: dict[tuple[int, ...], str] = {}
        for answer in answers:
            ids = answer_tokens(answer, tokenizer, max_tokens)
            if ids is None:
                empty = len(tokenizer.encode(answer, max_tokens).ids) < 2
                problems.append(f"{'is empty' if empty else 'is too long'}: {answer[:40]!r}")
            elif ids in seen:
                same = "comes twice" if seen[ids] == answer else f"reads like {seen[ids][:40]!r}"
                problems.append(f"{same}: {answer[:40]!r}")
            else:
                seen[ids] = answer
                tokens.append(ids)
        if problems:
            what = f"{len(problems)} of {len(answers)} answers to choose from cannot be used"
            raise DataError(
                f"an answer to choose from {problems[0]}" if len(problems) == 1 else what,
                details=problems[:5] if len(problems) > 1 else (),
                where=where,
                try_="take it out of the list, or text.tokenizer=bert-base-uncased",
            )
        if len(tokens) < 2:
            raise DataError(
                f"a list of {len(tokens) or 'no'} answer{'s' * (not tokens)}: there is nothing to "
                "choose from",
                where=where,
                try_="scoring.answers=FILE  (one answer a line)",
            )
        return cls(tuple(answers), tuple(tokens), tokenizer.sep_id)

    def __len__(self) -> int:
        return len(self.answers)


@dataclass(frozen=True)
class Ranking:
    """Answers of Q questions, best first.

    Attributes:
        answer_QK: their numbers in the list, int64.
        probability_QK: softmax of the scores of the K; sums to 1.
        log_probability_QK: of the whole answer among all texts there are, every token once.
    """

    answer_QK: Tensor
    probability_QK: Tensor
    log_probability_QK: Tensor


def scheme_for(n_answers: int) -> Scheme:
    """How a list of this length is ranked where nothing else is asked for."""
    return "exact" if n_answers <= EXACT_UP_TO else "two-step"


def rank_answers(
    model: VQA,
    questions: TextStates,
    candidates: Candidates,
    *,
    scheme: Scheme | None = None,
    k: int = 128,
) -> Ranking:
    """Rank the answers of a list after each question.

    Args:
        model: in evaluation mode.
        questions: what ``model.read`` gave for Q questions.
        candidates: the list.
        scheme: None: see :func:`scheme_for`.
        k: answers that are scored in two steps, the best by their first word; of equal ones the
            first of the list (released: as ``torch.topk`` has it).
    """
    scheme = scheme or scheme_for(len(candidates))
    first_QA = first_words(model, questions, candidates)
    n_questions, n_answers = first_QA.shape
    if scheme == "exact":
        wanted_QK = torch.arange(n_answers, device=first_QA.device).expand(n_questions, -1)
    elif scheme == "released":
        wanted_QK = first_QA.topk(min(k, n_answers), dim=1).indices
    else:
        wanted_QK = first_QA.sort(dim=1, descending=True, stable=True).indices[:, :k]
    first_QK = first_QA.gather(1, wanted_QK)
    whole_QK = first_QK + rest_of_answers(model, questions, candidates, wanted_QK)
    score_QK = whole_QK + first_QK if scheme == "released" else whole_QK
    probability_QK, order_QK = score_QK.softmax(-1).sort(dim=1, descending=True, stable=True)
    return Ranking(wanted_QK.gather(1, order_QK), probability_QK, whole_QK.gather(1, order_QK))


def first_words(model: VQA, questions: TextStates, candidates: Candidates) -> Tensor:
    """Log-probability of the first word of each answer, ``(Q, A)`` float32."""
    n, device = questions.packing.n_texts, questions.hidden_ND.device
    start = candidates.tokens[0][0]
    words_A = torch.tensor([tokens[1] for tokens in candidates.tokens], device=device)
    most = max(1, _MOST_SCORES // model.config.text.vocab_size)
    parts = []
    for first in range(0, n, most):
        own = torch.arange(first, min(first + most, n), device=device)
        texts = PackedTexts.from_lists([[start]] * len(own)).to(device)
        # texts of one length lie in their order
        logits_QV = model.answer_logits(questions, texts, own)
        parts.append(logits_QV.log_softmax(-1)[:, words_A])
    return torch.cat(parts) if parts else torch.zeros(0, len(candidates), device=device)


def rest_of_answers(
    model: VQA, questions: TextStates, candidates: Candidates, wanted_QK: Tensor
) -> Tensor:
    """Log-probability of all that follows the first word, the end included, ``(Q, K)`` float32."""
    out_QK = torch.zeros(wanted_QK.shape, device=questions.hidden_ND.device)
    for portion in _portions(candidates, wanted_QK, model.config.text.vocab_size):
        portion.score(model, questions, out_QK)
    return out_QK


@dataclass
class _Portion:
    """Rows that the decoder reads at once, and what is to be looked up in them.

    Attributes:
        question: of each row.
        rows: tokens, CLS in front.
        places: (row, position) of each state that a next token follows from.
        terms: (place, next token, question, column of the result) of each token to be scored.
    """

    question: list[int] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    terms: list[tuple[int, int, int, int]] = field(default_factory=list)
    n_tokens: int = 0

    def add(self, question: int, row: _Row) -> None:
        first = len(self.places)
        self.places += [(len(self.rows), position) for position in row.positions]
        place_of = {position: first + n for n, position in enumerate(row.positions)}
        self.terms += [(place_of[at], token, question, column) for at, token, column in row.terms]
        self.question.append(question)
        self.rows.append(row.tokens)
        self.n_tokens += len(row.tokens)

    def score(self, model: VQA, questions: TextStates, out_QK: Tensor) -> None:
        """Add what the rows say to the result."""
        device = questions.hidden_ND.device
        asked = sorted(set(self.question))
        number_of = {question: n for n, question in enumerate(asked)}
        texts = PackedTexts.from_lists(self.rows)
        starts = texts.packing.starts
        place_P = torch.tensor([starts[row] + at for row, at in self.places], device=device)
        own_R = torch.tensor([number_of[question] for question in self.question], device=device)
        states = model.answer_states(questions.select(asked), texts.to(device), own_R)
        logits_PV = model.decoder.predict_tokens(states.hidden_ND[place_P])
        total_P = logits_PV.logsumexp(-1)
        place_T, token_T, question_T, column_T = torch.tensor(self.terms, device=device).T
        found_T = logits_PV[place_T, token_T] - total_P[place_T]
        out_QK.index_put_((question_T, column_T), found_T, accumulate=True)


@dataclass
class _Row:
    """One row of the decoder for one question.

    Attributes:
        tokens: CLS in front.
        positions: whose next token is asked for in this row.
        terms: (position, next token, column of the result).
    """

    tokens: tuple[int, ...]
    positions: list[int]
    terms: list[tuple[int, int, int]] = field(default_factory=list)


def _rows_of(candidates: Candidates, wanted: Sequence[int]) -> list[_Row]:
    """Rows that hold the given answers, every state that a token follows from in one of them.

    An answer that begins another one has no row of its own.
    """
    rows: list[_Row] = []
    before: tuple[int, ...] = ()
    owners: list[_Row] = []  # of each position of ``before``: the row in which it is read
    order = sorted(range(len(wanted)), key=lambda n: candidates.tokens[wanted[n]], reverse=True)
    for column in order:  # a longer answer comes before its beginnings
        tokens = candidates.tokens[wanted[column]]
        shared = _shared(tokens, before)
        owners = owners[:shared]
        if shared < len(tokens):
            rows.append(_Row(tokens, list(range(max(1, shared), len(tokens)))))
            owners += [rows[-1]] * (len(tokens) - shared)
        for at, token in enumerate((*tokens[2:], candidates.end), 1):
            owners[at].terms.append((at, token, column))
        before = tokens
    return rows


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens at the beginning that are the same."""
    for at, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return at
    return min(len(one), len(other))


def _portions(candidates: Candidates, wanted_QK: Tensor, vocab_size: int) -> Iterator[_Portion]:
    most_places = max(1, _MOST_SCORES // vocab_size)
    known: dict[tuple[int, ...], list[_Row]] = {}
    portion = _Portion()
    for question, wanted in enumerate(wanted_QK.tolist()):
        key = tuple(wanted)
        if key not in known:
            known = {key: _rows_of(candidates, wanted)}  # the next question's is often the same
        for row in known[key]:
            full = len(portion.places) + len(row.positions) > most_places
            if portion.rows and (full or portion.n_tokens + len(row.tokens) > _MOST_TOKENS):
                yield portion
                portion = _Portion()
            portion.add(question, row)
    if portion.rows:
        yield portion

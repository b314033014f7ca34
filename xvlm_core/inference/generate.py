"""Searches and samples: which text a decoder writes.

The rules are those of the released X-VLM code (``models/xbert.py``) and, for beams, of the library
it calls (transformers 4.12, ``generation_beam_search.py``). Lengths count the given tokens.

Legend: S sources (pictures, questions), R rows (texts that are written), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xvlm_core.models.decoding import Speaker, Writing

_NEVER = float("-inf")


@dataclass(frozen=True)
class Lengths:
    """When a text ends.

    Attributes:
        end_id: the token that ends it (SEP).
        max_length: the most tokens, with those that are given, and the end.
        min_length: beams: a text of fewer tokens does not end.
    """

    end_id: int
    max_length: int = 20
    min_length: int = 5


@dataclass(frozen=True)
class Written:
    """A text that was written about a source.

    Attributes:
        ids: its tokens, with those that were given, and the end (greedy, samples: always; beams:
            where there was room for it).
        logprobs: greedy and samples: of each token that was written, the end included. A text that
            reaches the greatest length ends with the end in place of the last token; the
            probability is that of the token that was drawn.
        score: beams: sum of the log-probabilities over the length without the end; else their mean.
        drawn: greedy and samples: as ``ids``, with the token that was drawn last in its place.
    """

    ids: tuple[int, ...]
    score: float
    logprobs: tuple[float, ...] = ()
    drawn: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: that scores are divided by.
        top_k: only the most probable so many tokens; None: all.
        top_p: only the most probable tokens that have this probability together; 1: all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0


def greedy(speaker: Speaker, prompt: Sequence[int], lengths: Lengths) -> list[Written]:
    """The most probable token at each step; one text about each source."""
    return [rows[0] for rows in _one_by_one(speaker, prompt, lengths, 1, None, None)]


def sample(
    speaker: Speaker,
    prompt: Sequence[int],
    lengths: Lengths,
    generator: torch.Generator,
    *,
    n: int = 1,
    how: Sampling | None = None,
) -> list[list[Written]]:
    """Texts drawn token by token, n about each source.

    The draws of a source depend on its place only, not on how sources are put into batches: a
    generator gives the same texts to eight pictures at once and to twice four.

    Args:
        speaker: what writes.
        prompt: the tokens that are given.
        lengths: when a text ends.
        generator: on any device.
        n: texts a source.
        how: they are drawn; None: from what the model says.

    Returns:
        For each source its texts. Log-probabilities are the model's own, whatever ``how``.
    """
    shape = (speaker.n_sources * n, lengths.max_length - len(prompt))
    # a number for each token that may be drawn; those of texts that end are not used
    draws_RT = torch.rand(
        shape, generator=generator, device=generator.device, dtype=torch.float64
    ).to(speaker.device)
    return _one_by_one(speaker, prompt, lengths, n, draws_RT, how or Sampling())


def _one_by_one(
    speaker: Speaker,
    prompt: Sequence[int],
    lengths: Lengths,
    n: int,
    draws_RT: Tensor | None,
    how: Sampling | None,
) -> list[list[Written]]:
    """A text goes on alone: greedy, and samples."""
    room = _room(speaker, prompt, lengths)
    writing, logits_RV = _read(speaker, prompt, n)
    device = logits_RV.device
    row_R = torch.arange(len(logits_RV), device=device)  # which text each row is
    is_open_R = torch.ones(len(row_R), dtype=torch.bool, device=device)
    ids = torch.zeros(len(row_R), room, dtype=torch.int64, device=device)
    logprobs = torch.zeros(len(row_R), room, device=device)
    count = torch.zeros(len(row_R), dtype=torch.int64, device=device)
    for step in range(room):
        if how is None or draws_RT is None:
            next_R = logits_RV.argmax(-1)
        else:
            next_R = _drawn(logits_RV, draws_RT[row_R, step], how)
        logp_R = logits_RV.log_softmax(-1).gather(1, next_R[:, None])[:, 0]
        is_last = step == room - 1
        of = row_R[is_open_R]
        ids[of, step], logprobs[of, step] = next_R[is_open_R], logp_R[is_open_R]
        count[of] = step + 1
        is_open_R = is_open_R & (next_R != lengths.end_id)
        if is_last:
            break
        # the texts of a source stay together until all of them have ended
        some_S = is_open_R.view(-1, n).any(1).nonzero()[:, 0]
        if not len(some_S):
            break
        if len(some_S) < writing.n_sources:
            writing.keep(some_S)
            row_R, is_open_R, next_R = (
                x.view(-1, n)[some_S].reshape(-1) for x in (row_R, is_open_R, next_R)
            )
        logits_RV = writing.write(next_R[:, None])
    rows = zip(ids.tolist(), logprobs.tolist(), count.tolist(), strict=True)
    texts = [
        Written(
            ids=(*prompt, *row[: length - 1], lengths.end_id),
            score=sum(logp[:length]) / length,
            logprobs=tuple(logp[:length]),
            drawn=(*prompt, *row[:length]),
        )
        for row, logp, length in rows
    ]
    return [texts[start : start + n] for start in range(0, len(texts), n)]


def _drawn(logits_RV: Tensor, draw_R: Tensor, how: Sampling) -> Tensor:
    """A token of each row, by a number in [0, 1): where the sum of probabilities passes it."""
    assert how.temperature > 0, "a temperature is positive"
    scores_RV = logits_RV.double() / how.temperature
    if how.top_k is not None and how.top_k < scores_RV.shape[1]:
        least_R1 = scores_RV.topk(how.top_k, dim=1).values[:, -1:]
        scores_RV = scores_RV.masked_fill(scores_RV < least_R1, _NEVER)
    if how.top_p < 1:
        sorted_RV, order_RV = scores_RV.sort(dim=1, descending=True)
        probability_RV = sorted_RV.softmax(-1)
        before_RV = probability_RV.cumsum(1) - probability_RV
        is_out_RV = torch.zeros_like(before_RV, dtype=torch.bool)
        is_out_RV.scatter_(1, order_RV, before_RV >= max(how.top_p, 1e-12))
        scores_RV = scores_RV.masked_fill(is_out_RV, _NEVER)
    sums_RV = scores_RV.softmax(-1).cumsum(1)
    # to the sum that is there: rounding may leave it a little off one
    wanted_R1 = draw_R[:, None] * sums_RV[:, -1:]
    found_R = torch.searchsorted(sums_RV, wanted_R1, right=True)[:, 0]
    return found_R.clamp(max=logits_RV.shape[1] - 1)


def most_beams(vocabulary: int) -> int:
    """The most beams of a search: each begins with two tokens of its own to choose from."""
    return (vocabulary - 1) // 2


def beam_search(
    speaker: Speaker, prompt: Sequence[int], lengths: Lengths, beams: int = 3
) -> list[list[Written]]:
    """The best texts that a search with some beams finds about each source, best first.

    Of the beams' continuations the best ``2 * beams`` are looked at in their order; one that ends
    counts if it is among the first ``beams``. A source is done once ``beams`` texts have ended and
    none that goes on has a greater sum over its length than the worst of them has over its own.
    Texts that have not ended at the greatest length compete as they are. There is no other penalty.
    """
    room = _room(speaker, prompt, lengths)
    assert beams >= 1, "a search has a beam"
    writing, logits_RV = _read(speaker, prompt, beams)
    vocabulary, device = logits_RV.shape[1], logits_RV.device
    assert beams <= most_beams(vocabulary), "each beam has a token of its own to begin with"
    searches = [_Search(tuple(prompt), beams) for _ in range(speaker.n_sources)]
    left = list(range(len(searches)))
    # at first all beams are the same: the first one counts
    sums_R = torch.tensor([0.0, *[_NEVER] * (beams - 1)], device=device).repeat(len(left))
    for step in range(room):
        length = len(prompt) + step
        logp_RV = logits_RV.log_softmax(-1)
        if length < lengths.min_length:
            logp_RV[:, lengths.end_id] = _NEVER
        total_SX = (logp_RV + sums_R[:, None]).view(len(left), beams * vocabulary)
        best_SC, at_SC = total_SX.topk(2 * beams, dim=1)
        going = []
        for place, totals, at in zip(
            range(len(left)), best_SC.tolist(), at_SC.tolist(), strict=True
        ):
            search = searches[left[place]]
            search.go_on(totals, at, vocabulary, lengths.end_id)
            if not search.is_done:
                going.append(place)
        left = [left[place] for place in going]
        if not left or step == room - 1:
            break
        rows, tokens, sums = [], [], []
        for place, number in enumerate(left):
            rows += [place * beams + beam for beam in searches[number].came_from]
            tokens += [text[-1] for text in searches[number].texts]
            sums += searches[number].sums
        writing.keep(torch.tensor(going, device=device))
        writing.take(torch.tensor(rows, device=device))
        sums_R = torch.tensor(sums, device=device)
        logits_RV = writing.write(torch.tensor(tokens, device=device)[:, None])
    return [search.found(lengths) for search in searches]


@dataclass
class _Search:
    """The beams of a source, and the texts that have ended."""

    prompt: tuple[int, ...]
    beams: int
    texts: list[tuple[int, ...]] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)
    came_from: list[int] = field(default_factory=list)
    ended: list[Written] = field(default_factory=list)
    is_done: bool = False

    def __post_init__(self) -> None:
        self.texts = [self.prompt] * self.beams

    def go_on(
        self, totals: Sequence[float], at: Sequence[int], vocabulary: int, end_id: int
    ) -> None:
        """Take the candidates of a step, best first.

        Args:
            totals: sums of log-probabilities.
            at: beam and token: ``beam * vocabulary + token``.
            vocabulary: tokens that there are.
            end_id: the one that ends a text.
        """
        length = len(self.texts[0])
        texts, sums, came_from = [], [], []
        for rank, (total, place) in enumerate(zip(totals, at, strict=True)):
            beam, token = divmod(place, vocabulary)
            if token == end_id:
                if rank < self.beams and total > _NEVER:
                    self._end(self.texts[beam], total)
                continue
            texts.append((*self.texts[beam], token))
            sums.append(total)
            came_from.append(beam)
            if len(texts) == self.beams:
                break
        self.texts, self.sums, self.came_from = texts, sums, came_from
        worst = min((text.score for text in self.ended), default=_NEVER)
        self.is_done = len(self.ended) >= self.beams and worst >= totals[0] / length

    def _end(self, text: tuple[int, ...], total: float) -> None:
        self.ended.append(Written(text, total / len(text)))
        if len(self.ended) > self.beams:
            self.ended.remove(min(self.ended, key=lambda one: one.score))

    def found(self, lengths: Lengths) -> list[Written]:
        """The texts, best first; they end where there is room."""
        if not self.is_done:
            for text, total in zip(self.texts, self.sums, strict=True):
                self._end(text, total)
        return [
            Written((*one.ids, lengths.end_id)[: lengths.max_length], one.score)
            for one in sorted(self.ended, key=lambda one: -one.score)
        ]


def _room(speaker: Speaker, prompt: Sequence[int], lengths: Lengths) -> int:
    """How many tokens may be written."""
    room = lengths.max_length - len(prompt)
    assert room > 0, "the greatest length leaves room for a token"
    assert lengths.max_length <= speaker.max_positions, "the model has a position for each token"
    return room


def _read(speaker: Speaker, prompt: Sequence[int], n: int) -> tuple[Writing, Tensor]:
    """The prompt, once a source; then n rows of it, and the scores of the first token."""
    writing = speaker.begin()
    sources = writing.n_sources
    ids_ST = torch.tensor([list(prompt)] * sources, device=speaker.device).view(sources, -1)
    logits_SV = writing.write(ids_ST)
    rows_R = torch.arange(sources, device=speaker.device).repeat_interleave(n)
    writing.take(rows_R)
    return writing, logits_SV[rows_R]

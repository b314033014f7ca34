"""Masked language modelling: which tokens are predicted and what stands in their place."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MaskedText:
    """A text with masks: ``labels[i]`` is the true id at ``positions[i]`` (sorted) of ``ids``."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    labels: tuple[int, ...]


def mask_tokens(
    ids: Sequence[int],
    starts_word: Sequence[bool],
    rng: np.random.Generator,
    *,
    mask_prob: float = 0.25,
    max_masks: int,
    skipgram_prb: float = 0.2,
    skipgram_size: int = 3,
    mask_id: int,
    vocab_size: int,
    special_ids: Collection[int],
    compat_official: bool = False,
) -> MaskedText:
    """Draw the tokens to predict, whole words and short runs, and replace them.

    The rule of the official code: min(``max_masks``, max(1, round(``mask_prob`` x length)))
    positions, CLS counted in the length and never chosen; candidates in random order, each with
    probability ``skipgram_prb`` widened to a run of 2..``skipgram_size`` tokens, then to whole
    words; a surplus is cut at random, so a word may end partly masked. Of the chosen tokens 80 %
    become ``mask_id``, 10 % a random token, 10 % stay.

    Args:
        ids: token ids with CLS in front, at least one token after it.
        starts_word: False for a piece that continues a word ("##...").
        rng: source of the draws.
        mask_prob: share of the tokens to predict.
        max_masks: most tokens to predict.
        skipgram_prb: probability of a run instead of one word.
        skipgram_size: longest run.
        mask_id: id of [MASK].
        vocab_size: random tokens are drawn below this.
        special_ids: ids never used as random tokens.
        compat_official: draw random tokens from the whole vocabulary, special ids included.
    """
    length = len(ids)
    assert len(starts_word) == length, (len(starts_word), length)
    assert length > 1, "nothing to mask"
    wanted = min(max_masks, max(1, round(length * mask_prob)))
    positions = _draw_positions(starts_word, wanted, rng, skipgram_prb, skipgram_size)
    masked = list(ids)
    for position in positions:
        if rng.random() < 0.8:
            masked[position] = mask_id
        elif rng.random() < 0.5:
            masked[position] = _random_token(
                rng, vocab_size, () if compat_official else special_ids
            )
    return MaskedText(tuple(masked), positions, tuple(ids[p] for p in positions))


def _draw_positions(
    starts_word: Sequence[bool],
    wanted: int,
    rng: np.random.Generator,
    skipgram_prb: float,
    skipgram_size: int,
) -> tuple[int, ...]:
    length = len(starts_word)
    chosen: set[int] = set()
    for candidate in (rng.permutation(length - 1) + 1).tolist():
        if len(chosen) >= wanted:
            break
        if candidate in chosen:
            continue
        start, end = candidate, candidate + 1
        if skipgram_size >= 2 and rng.random() < skipgram_prb:
            end = candidate + int(rng.integers(2, skipgram_size, endpoint=True))
        while start > 1 and not starts_word[start]:
            start -= 1
        while end < length and not starts_word[end]:
            end += 1
        chosen.update(range(start, min(end, length)))
    positions = sorted(chosen)
    if len(positions) > wanted:
        positions = sorted(rng.choice(positions, size=wanted, replace=False).tolist())
    return tuple(positions)


def _random_token(rng: np.random.Generator, vocab_size: int, excluded: Collection[int]) -> int:
    assert len(set(excluded)) < vocab_size, "every token is excluded"
    while True:
        token = int(rng.integers(vocab_size))
        if token not in excluded:
            return token

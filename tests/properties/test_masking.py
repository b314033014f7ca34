"""Masked language modelling: what is chosen, what stands there then, what stays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.cases import cases
from xvlm_core.data.masking import MaskedText, mask_tokens

CLS, MASK, VOCAB = 2, 3, 500
SPECIAL = frozenset({0, 1, CLS, MASK, 4})
seeds = st.integers(0, 2**32)


@dataclass(frozen=True)
class Text:
    """CLS and words of some pieces each."""

    words: tuple[int, ...]

    @property
    def ids(self) -> list[int]:
        return [CLS, *range(100, 100 + sum(self.words))]

    @property
    def starts_word(self) -> list[bool]:
        return [True, *(piece == 0 for word in self.words for piece in range(word))]

    @property
    def word_of(self) -> list[int]:
        """Number of the word at each position after CLS (which has -1)."""
        return [-1, *(number for number, word in enumerate(self.words) for _ in range(word))]


texts = st.lists(st.integers(1, 5), min_size=1, max_size=25).map(lambda w: Text(tuple(w)))
shares = st.one_of(st.sampled_from([0.0, 0.15, 0.25, 1.0]), st.floats(0, 1))


def mask(text: Text, seed: int, **options: float) -> MaskedText:
    settings = {"max_masks": 1000, "mask_prob": 0.25, **options}
    return mask_tokens(
        text.ids,
        text.starts_word,
        np.random.default_rng(seed),
        mask_id=MASK,
        vocab_size=VOCAB,
        special_ids=SPECIAL,
        **settings,  # type: ignore[arg-type]
    )


@cases(150)
@given(texts, seeds, shares, st.integers(1, 12), shares, st.integers(2, 5))
def test_cls_stays_labels_are_the_true_ids_and_nothing_else_is_changed(
    text: Text, seed: int, share: float, most: int, runs: float, longest: int
) -> None:
    options = {
        "mask_prob": share,
        "max_masks": most,
        "skipgram_prb": runs,
        "skipgram_size": longest,
    }
    masked = mask(text, seed, **options)
    assert len(masked.ids) == len(text.ids)
    assert masked.ids[0] == CLS
    assert 0 not in masked.positions
    assert list(masked.positions) == sorted(set(masked.positions))
    assert masked.labels == tuple(text.ids[p] for p in masked.positions)
    for position, (now, before) in enumerate(zip(masked.ids, text.ids, strict=True)):
        if position in masked.positions:
            assert now in (MASK, before) or (now not in SPECIAL and 0 <= now < VOCAB)
        else:
            assert now == before
    assert masked == mask(text, seed, **options), "a function of the generator alone"


@cases(120)
@given(texts, seeds, shares, st.integers(1, 12), shares)
def test_the_number_is_the_share_of_the_text_at_least_one_and_at_most_the_limit(
    text: Text, seed: int, share: float, most: int, runs: float
) -> None:
    found = len(mask(text, seed, mask_prob=share, max_masks=most, skipgram_prb=runs).positions)
    length = len(text.ids)
    assert 1 <= found <= most
    assert found <= length - 1
    near = share * length
    if 1 <= near <= min(most, length - 1):
        assert abs(found - near) <= 0.5
    else:
        assert found == (1 if near < 1 else min(most, length - 1))


@cases(120)
@given(texts, seeds, shares)
def test_words_are_taken_whole_so_that_few_are_touched(text: Text, seed: int, share: float) -> None:
    """Words are added until there are enough pieces, so without the last one there were too few."""
    positions = mask(text, seed, mask_prob=share, skipgram_prb=0.0).positions
    lengths = [text.words[word] for word in {text.word_of[p] for p in positions}]
    assert sum(lengths) - max(lengths) < len(positions)


@cases(100)
@given(st.integers(1, 6), st.integers(1, 12), st.data(), seeds)
def test_where_the_number_is_that_of_some_whole_words_they_are_masked_whole(
    pieces: int, words: int, data: st.DataObject, seed: int
) -> None:
    text = Text((pieces,) * words)
    some = data.draw(st.integers(1, words))
    positions = mask(text, seed, mask_prob=1.0, max_masks=some * pieces, skipgram_prb=0.0).positions
    touched = sorted({text.word_of[p] for p in positions})
    assert len(touched) == some
    starts = [0, *accumulate(text.words)]
    whole = [1 + p for word in touched for p in range(starts[word], starts[word + 1])]
    assert list(positions) == whole


@cases(80)
@given(st.integers(4, 60), seeds, st.integers(2, 4))
def test_a_run_of_words_is_masked_together(length: int, seed: int, longest: int) -> None:
    text = Text((1,) * length)
    options = {"mask_prob": 1.0, "max_masks": 2, "skipgram_prb": 1.0, "skipgram_size": longest}
    first, second = mask(text, seed, **options).positions
    # Of one run, or of the run of the last word alone and another one.
    assert second - first < longest or second == length


@cases(40)
@given(st.integers(120, 200), seeds)
def test_most_become_the_mask_some_another_token_some_stay(words: int, seed: int) -> None:
    text = Text((5,) * words)
    masked = mask(text, seed, mask_prob=1.0)
    assert masked.positions == tuple(range(1, len(text.ids))), "all of it"
    now = np.array(masked.ids[1:])
    share = np.mean(now == MASK), np.mean(now == masked.labels)
    # Five standard deviations: sqrt(0.8 x 0.2) and sqrt(0.1 x 0.9), over the root of the number.
    assert abs(share[0] - 0.8) < 5 * 0.4 / np.sqrt(len(now))
    assert abs(share[1] - 0.1) < 5 * 0.3 / np.sqrt(len(now))
    assert not np.isin(now[now != MASK], list(SPECIAL)).any()

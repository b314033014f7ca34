from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvlm_core.data.masking import MaskedText, mask_tokens

MASK, CLS, VOCAB = 3, 2, 1000
SPECIAL = frozenset(range(10))


def mask(
    ids: list[int], starts: list[bool], rng: np.random.Generator, **options: object
) -> MaskedText:
    given = {"max_masks": 8, "mask_id": MASK, "vocab_size": VOCAB, "special_ids": SPECIAL}
    return mask_tokens(ids, starts, rng, **{**given, **options})  # type: ignore[arg-type]


def sentence(length: int) -> list[int]:
    return [CLS, *range(100, 99 + length)]


@pytest.mark.parametrize(
    ("length", "wanted"), [(2, 1), (4, 1), (6, 2), (9, 2), (10, 2), (14, 4), (30, 8), (100, 8)]
)
def test_number_to_predict_is_a_quarter_rounded_half_to_even(length: int, wanted: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert len(mask(sentence(length), [True] * length, rng).positions) == wanted


@given(st.integers(2, 40), st.integers(0, 2**32), st.data())
def test_labels_are_the_true_ids_and_cls_is_never_chosen(
    length: int, seed: int, data: st.DataObject
) -> None:
    starts = [True, *data.draw(st.lists(st.booleans(), min_size=length - 1, max_size=length - 1))]
    ids = sentence(length)
    masked = mask(ids, starts, np.random.default_rng(seed))
    assert list(masked.positions) == sorted(set(masked.positions))
    assert 1 <= len(masked.positions) <= 8
    assert masked.positions[0] > 0
    assert masked.ids[0] == CLS
    assert [ids[p] for p in masked.positions] == list(masked.labels)
    untouched = set(range(length)) - set(masked.positions)
    assert all(masked.ids[p] == ids[p] for p in untouched)


def test_eighty_ten_ten() -> None:
    rng = np.random.default_rng(1)
    masks = kept = random = 0
    for _ in range(2000):
        masked = mask(sentence(33), [True] * 33, rng)
        for position, label in zip(masked.positions, masked.labels, strict=True):
            now = masked.ids[position]
            masks += now == MASK
            kept += now == label
            random += now not in (MASK, label)
    total = masks + kept + random
    assert total == 16_000
    assert masks / total == pytest.approx(0.8, abs=0.015)
    assert kept / total == pytest.approx(0.1, abs=0.01)
    assert random / total == pytest.approx(0.1, abs=0.01)


def random_tokens(compat: bool) -> set[int]:
    rng, found = np.random.default_rng(2), set()
    ids = [CLS, *[15] * 39]
    for _ in range(2000):
        masked = mask(ids, [True] * 40, rng, vocab_size=20, compat_official=compat)
        found |= {masked.ids[p] for p in masked.positions}
    return found


def test_random_tokens_are_never_special_except_under_compat() -> None:
    assert random_tokens(compat=False) == {MASK, *range(10, 20)}
    assert random_tokens(compat=True) == set(range(20))


def test_a_word_is_masked_whole_where_the_number_allows() -> None:
    starts = [True, *[True, False, False] * 10]
    rng = np.random.default_rng(3)
    for _ in range(200):
        masked = mask(sentence(31), starts, rng, max_masks=6, mask_prob=0.2, skipgram_prb=0.0)
        words = {(p - 1) // 3 for p in masked.positions}
        assert len(masked.positions) == 6
        assert len(words) == 2, "six places are two whole words of three pieces"


def test_a_surplus_is_cut_so_that_a_word_may_end_partly_masked() -> None:
    starts = [True, True, False, False, False]
    rng = np.random.default_rng(4)
    seen = {mask(sentence(5), starts, rng).positions for _ in range(200)}
    assert seen == {(1,), (2,), (3,), (4,)}


def runs(positions: tuple[int, ...]) -> int:
    return 1 + sum(b - a > 1 for a, b in pairwise(positions))


def test_skip_grams_mask_runs_of_two_or_three() -> None:
    rng = np.random.default_rng(5)
    lengths = set()
    for _ in range(300):
        masked = mask(sentence(200), [True] * 200, rng, max_masks=3, skipgram_prb=1.0)
        lengths.add(runs(masked.positions))
    assert 1 in lengths, "a run of three fills the three places"
    share = {}
    for probability in (0.0, 0.2):
        rng = np.random.default_rng(6)
        adjacent = 0
        for _ in range(2000):
            masked = mask(sentence(200), [True] * 200, rng, max_masks=2, skipgram_prb=probability)
            adjacent += runs(masked.positions) == 1
        share[probability] = adjacent / 2000
    assert share[0.0] == pytest.approx(0.01, abs=0.01)
    # First candidate a run: a run of two fills both places, of three two thirds of the time after
    # the cut; or the second candidate is a run and the cut leaves neighbours.
    assert 0.15 < share[0.2] < 0.27


def test_every_position_is_equally_likely() -> None:
    rng = np.random.default_rng(7)
    counts = np.zeros(12)
    for _ in range(6000):
        counts[list(mask(sentence(12), [True] * 12, rng, skipgram_prb=0.0).positions)] += 1
    assert counts[0] == 0
    assert counts[1:] / counts.sum() == pytest.approx(1 / 11, abs=0.01)


def test_a_text_that_starts_with_a_continuation_is_masked_too() -> None:
    masked = mask(sentence(3), [True, False, False], np.random.default_rng(8))
    assert len(masked.positions) == 1


def test_same_generator_same_masks() -> None:
    ids, starts = sentence(20), [True] * 20
    first, again = (mask(ids, starts, np.random.default_rng(9)) for _ in range(2))
    assert first == again
    assert mask(ids, starts, np.random.default_rng(10)) != first

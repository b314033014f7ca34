from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xvlm_core.data.numbers import RecordNumbers

pieces = st.lists(
    st.one_of(
        st.integers(0, 9),
        st.lists(st.integers(0, 200), max_size=9, unique=True).map(sorted),
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(pieces)
def test_numbers_are_those_of_their_pieces(found: list[int | list[int]]) -> None:
    first, expected, given_pieces = 0, [], []
    for piece in found:
        if isinstance(piece, int):
            given_pieces.append((first, piece))
            expected += range(first, first + piece)
            first += piece
        else:
            given_pieces.append((first, np.array(piece, np.int64)))
            expected += [first + i for i in piece]
            first += 201
    numbers = RecordNumbers(given_pieces)  # type: ignore[arg-type]
    for one in (numbers, pickle.loads(pickle.dumps(numbers)), RecordNumbers.of(numbers.array())):
        assert len(one) == len(expected)
        assert [one[i] for i in range(len(expected))] == expected
        assert one.array().tolist() == expected
        for outside in (-1, len(expected)):
            with pytest.raises(IndexError):
                one[outside]


def test_a_whole_store_is_one_run() -> None:
    numbers = RecordNumbers([(0, 5000), (5000, 5000), (10_000, 1)])
    assert len(pickle.dumps(numbers)) < 400
    assert (len(numbers), numbers[10_000]) == (10_001, 10_000)
    assert RecordNumbers.of(7).array().tolist() == list(range(7))

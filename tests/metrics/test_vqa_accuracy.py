"""Accuracy of VQA by hand: shares of three others, leave-one-out, and the odd normalisation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvlm_core.metrics.vqa_accuracy import exact_match, vqa_accuracy


def people(**counts: int) -> list[str]:
    return [answer.replace("_", " ") for answer, n in counts.items() for _ in range(n)]


@pytest.mark.parametrize(
    ("agreeing", "expected"),
    [
        (0, 0.0),
        (1, 9 / 10 * 1 / 3),  # who agrees has no other; nine have one
        (2, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        (3, (3 * 2 / 3 + 7) / 10),
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_an_answer_counts_as_far_as_three_others_gave_it(agreeing: int, expected: float) -> None:
    given_ = people(red=agreeing, blue=10 - agreeing)
    assert vqa_accuracy("red", given_) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("Red.", people(red=10), 1.0),
        (" the red\n", people(red=10), 1.0),
        ("two", people(**{"2": 5, "3": 5}), 1.0),
        ("dont know", people(**{"don't_know": 6, "no": 4}), 1.0),
        ("black and white", people(**{"black,_white": 3, "black_and_white": 7}), 1.0),
        # what people said loses its punctuation, and nothing else
        ("2", people(two=6, **{"3": 4}), 0.0),
        ("red", people(Red=6, blue=4), 0.0),
        ("no sir", ["no, sir"] * 6 + ["no"] * 4, 1.0),
        ("yes", ["yes!"] * 6 + ["no"] * 4, 0.0),  # a space stays where the mark was
        # and not even punctuation where all said the same
        ("no sir", ["no, sir"] * 10, 0.0),
        ("", people(red=10), 0.0),
    ],
)
def test_answers_are_compared_as_the_released_tool_does(
    answer: str, references: list[str], expected: float
) -> None:
    assert vqa_accuracy(answer, references) == pytest.approx(expected)


def test_of_one_person_the_answer_is_theirs_or_wrong() -> None:
    assert vqa_accuracy("red", ["red"]) == 1
    assert vqa_accuracy("blue", ["red"]) == 0
    assert vqa_accuracy("red", ["red", "red"]) == pytest.approx(1 / 3), "two are too few"


@given(st.text(max_size=30), st.lists(st.text(max_size=30), min_size=1, max_size=12))
def test_any_text_has_an_accuracy_and_the_order_of_people_does_not_matter(
    answer: str, given_: list[str]
) -> None:
    value = vqa_accuracy(answer, given_)
    assert 0 <= value <= 1
    assert vqa_accuracy(answer, given_[::-1]) == pytest.approx(value)


def test_exact_match_is_with_what_most_people_said() -> None:
    assert exact_match("The dog", ["dog", "dog", "cat"])
    assert not exact_match("cat", ["dog", "dog", "cat"])
    assert exact_match("cat", ["dog", "cat"]), "equally many"
    assert exact_match("two", ["2", "two"])
    assert not exact_match("red", [])
    unknown = ["red"] * 4 + ["?"] * 6
    assert exact_match("red", unknown), "those whose answer is not known do not outvote it"
    assert not exact_match("", unknown)
    assert not exact_match("the", ["a", "the"]), "nothing is no answer"

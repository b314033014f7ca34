from __future__ import annotations

import json
from pathlib import Path

import pytest

from xvlm_core.errors import DataError
from xvlm_core.sources.answers import (
    build_answer_list,
    is_wordless,
    normalise_answer,
    parse_answers,
    read_answer_list,
    without_punctuation,
)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("Umbrella.", "umbrella"),
        ("a train", "train"),
        ("The Cat and THE dog", "cat and dog"),
        ("three", "3"),
        ("None", "0"),
        ("ten of a hundred", "10 of hundred"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),  # two missing apostrophes are too many
        ("yalld've", "yalld've"),
        ("y'alld've", "y'all'd've"),
        ("twas", "'twas"),
        ("somebody'd", "somebodyd"),  # the wrong way round, as there
        ("Im", "im"),  # only "i'm" in lower case could be looked up, and is not there
        ("let's", "let's"),
        ("  two\tdogs\n", "2 dogs"),
        ("t-shirt", "t shirt"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("yes,no", "yes no"),
        ("yes, no", "yes no"),
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),  # a comma between digits deletes every mark
        ("t-shirt , hat", "t shirt hat"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("12.", "12"),
        ("U.S.A.", "usa"),
        ("10:30", "10:30"),
        ("man's", "man's"),
        ("#1!", "#1"),
        ("a", ""),
        ("?", ""),
        ("", ""),
    ],
)
def test_answers_are_normalised_as_by_vqaeval(text: str, normalised: str) -> None:
    assert normalise_answer(text) == normalised


def test_normalised_answers_of_people_only_lose_punctuation() -> None:
    assert without_punctuation("The T-Shirt.") == "The T Shirt"
    assert without_punctuation(" two ,dogs") == " two dogs"


def test_a_mark_with_a_space_beside_it_is_deleted_wherever_it_stands() -> None:
    assert without_punctuation("a-b -c") == "ab c"
    assert without_punctuation("a-b") == "a b"


def test_at_most_32_full_stops_are_removed_as_vqaeval_does() -> None:
    assert without_punctuation("." * 40) == "." * 8


def test_what_a_model_cannot_say_is_wordless() -> None:
    assert is_wordless("?")
    assert is_wordless(" ... ")
    assert is_wordless("\u200b")
    assert not is_wordless("0")


def test_lists_are_built_from_normalised_answers_by_count_then_text() -> None:
    counts = {"Two": 1, "2": 2, "b": 2, "c": 2, "a cat": 3, "yes": 9, "?": 50, "the": 40}
    built = build_answer_list(counts)
    assert built.answers == ("yes", "2", "cat", "b", "c")
    assert built.source == "built"
    assert build_answer_list(dict(reversed(counts.items()))) == built
    assert build_answer_list(counts, size=2).answers == ("yes", "2")
    assert build_answer_list(counts, min_count=3).answers == ("yes", "2", "cat")


def test_a_count_that_no_answer_reaches_is_refused() -> None:
    with pytest.raises(DataError, match="none of 1 different answers was given 9 times") as error:
        build_answer_list({"yes": 3, "Yes": 2}, min_count=9)
    assert "--answer-min-count" in str(error.value.try_)


def test_coverage_is_the_share_of_given_answers_in_the_list() -> None:
    built = build_answer_list({"yes": 5, "no": 3, "a dog": 2}, size=2)
    assert built.coverage({"Yes!": 6, "no": 1, "dog": 3}) == 0.7
    assert built.coverage({}) is None


def test_the_file_of_a_store_says_answers_source_and_coverage() -> None:
    built = build_answer_list({"caf\u00e9": 3, "no": 1})
    assert json.loads(built.to_json({"Caf\u00e9": 1, "tea": 3})) == {
        "answers": ["caf\u00e9", "no"],
        "source": "built",
        "coverage": 0.25,
    }


@pytest.mark.parametrize("text", ['["yes", "a T-shirt", "2"]', "yes\n\n a T-shirt \r\n2\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_given_lists_are_read_as_they_are(tmp_path: Path, text: str, bom: str) -> None:
    path = tmp_path / "answers"
    path.write_bytes((bom + text).encode())
    assert read_answer_list(path).answers == ("yes", "a T-shirt", "2")
    assert read_answer_list(path).source == "given"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "fewer than two answers: there is nothing to choose from"),
        ("[]", "fewer than two answers"),
        ('["yes"]', "fewer than two answers"),
        ('["yes", "no", "yes"]', "[2] is the same as [0]: 'yes'"),
        ("yes\nno\n\nyes\n", "line 4 is the same as line 1: 'yes'"),
        ('["yes", "", "no"]', "[1] has no word: ''"),
        ('["yes", "no", 3]', "[2] is no text: 3"),
        ('{"yes": 1}', "is not a list of answers but an object"),
        ('["yes", "no"', "is not valid JSON: Expecting ',' delimiter"),
        ("[" * 100_000, "is not valid JSON: nested too deep"),
        ('{"answers": ["yes"], "source": "given"}', "fewer than two answers"),
        ('["yes", "\\t", "no"]', "[1] has no word: '\\t'"),
        ('["yes", null]', "[1] is no text: null"),
        ('["' + "ha" * 500 + '", "' + "ha" * 500 + '"]', "[1] is the same as [0]: 'hahaha"),
    ],
)
def test_lists_to_choose_from_that_are_none_are_refused(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "answers.json"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_answer_list(path)
    assert "answers.json" in str(error.value)
    assert str(error.value.where) == str(path)
    assert error.value.try_
    told = "\n".join(error.value.lines())
    assert said in told
    assert len(told) < 600 + 3 * len(str(path)), "for people"


def test_a_list_of_many_repetitions_is_refused_in_a_few_lines(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_text("yes\nno\n" * 500)
    with pytest.raises(DataError, match="998 of the answers") as error:
        read_answer_list(path)
    assert len(error.value.details) == 11
    assert error.value.details[-1] == "and 988 more"


def test_the_answers_of_a_store_are_a_list_to_choose_from(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(build_answer_list({"a cat": 3, "no": 1}).to_json({}))
    assert read_answer_list(path).answers == ("cat", "no")


@pytest.mark.parametrize("content", ['["yes"]', '{"answers": ["yes"]}', '{"answers": ["a", "a"]}'])
def test_a_list_of_a_store_that_is_none_asks_for_another(content: str) -> None:
    with pytest.raises(DataError) as error:
        parse_answers(content.encode(), "data/vqa/answers.json")
    assert error.value.where == "data/vqa/answers.json"
    assert "scoring.answers=FILE" in str(error.value.try_)


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.json") as error:
        read_answer_list(tmp_path / "none.json")
    assert "one answer a line" in str(error.value.try_)


def test_a_list_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.txt"
    path.write_bytes("yes\nno".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16"):
        read_answer_list(path)
    path.write_bytes(b"caf\xe9\nno")
    with pytest.raises(DataError, match="is not UTF-8") as error:
        read_answer_list(path)
    assert "iconv" in str(error.value.try_)

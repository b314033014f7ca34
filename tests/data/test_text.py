from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xvlm_core.data.text import (
    EmptyTextError,
    names_a_side,
    pre_caption,
    pre_question,
    sanitize,
)


@pytest.mark.parametrize(
    ("text", "max_words", "cleaned"),
    [
        ("A man's dog, (black & white)...  runs!", 30, "a mans dog black & white runs"),
        ("A man's dog, (black & white)...  runs!", 5, "a mans dog black &"),
        ('Two-story house / barn; "old" #1', 30, "two story house barn old 1"),
        ("<person> and <PERSON> walking", 30, "person and person walking"),
        ("tab\tand  double", 30, "tab\tand double"),
        ("multi\n\nline\n", 30, "multi line"),
        ("\tends stay\t", 30, "\tends stay\t"),
        ("  Ünïcode Café \n", 30, "ünïcode café"),
    ],
)
def test_caption_is_cleaned_as_in_the_official_code(
    text: str, max_words: int, cleaned: str
) -> None:
    assert pre_caption(text, max_words) == cleaned


@pytest.mark.parametrize("text", ["", "   ", ".", " , . ", '?!;:"()*#~', "\t", "-/-"])
def test_caption_of_which_nothing_is_left_raises(text: str) -> None:
    with pytest.raises(EmptyTextError):
        pre_caption(text, 30)


@pytest.mark.parametrize(
    ("text", "max_words", "cleaned"),
    [
        ("What time is it: 10:30 a.m.?", 5, "what time is it 1030"),
        (
            "Is this a left-handed person / pitcher?",
            30,
            "is this a left handed person   pitcher",
        ),
        ("How many   dogs are there? ", 5, "how many   dogs"),
        ("  leading space", 30, "  leading space"),
        ("", 5, ""),
    ],
)
def test_question_keeps_runs_of_spaces_as_in_the_official_code(
    text: str, max_words: int, cleaned: str
) -> None:
    assert pre_question(text, max_words) == cleaned


@given(st.text(), st.integers(1, 8))
def test_caption_has_at_most_max_words_and_no_deleted_character(text: str, max_words: int) -> None:
    try:
        cleaned = pre_caption(text, max_words)
    except EmptyTextError:
        return
    assert len(cleaned.split(" ")) <= max_words
    assert not set(cleaned) & set(",.'!?\"()*#:;~-/")


@pytest.mark.parametrize(
    "text", ["word " * 10_000, " " * 50_000, "\n " * 20_000 + "x", "x" * 50_000]
)
def test_ten_thousand_words_take_no_time(text: str) -> None:
    start = time.perf_counter()
    for clean in (lambda: pre_caption("a" + text, 30), lambda: pre_question(text, 30)):
        assert clean() is not None
    sanitize("\u200b" + text)
    names_a_side(text)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    "text", ["the LEFT dog", "right", "left-handed", "leftmost cup", "to the right."]
)
def test_side_is_named_by_the_word(text: str) -> None:
    assert names_a_side(text)


@pytest.mark.parametrize(
    "text", ["bright light", "upright piano", "leftover pizza", "copyright", "cleft"]
)
def test_substring_names_no_side_except_under_compat(text: str) -> None:
    assert not names_a_side(text)
    assert names_a_side(text, compat_official=True)


def test_compat_side_is_case_sensitive() -> None:
    assert not names_a_side("Left of the tree", compat_official=True)


def test_sanitize_replaces_lone_surrogates_so_that_utf8_can_be_written() -> None:
    assert sanitize("lone \ud800 surrogate") == "lone \ufffd surrogate"
    sanitize("\udfff\ud800").encode("utf-8")


@pytest.mark.parametrize(
    ("text", "sane"),
    [
        ("a\u200bb", "ab"),
        ("\u200b", ""),
        ("\ufeffbom", "bom"),
        ("\u202eabc\u202c", "abc"),
        ("nul\x00 bell\x07", "nul bell"),
        ("tab\tnew\r\nline\u2028sep\u3000wide", "tab new line sep wide"),
        ("soft\u00adhyphen", "softhyphen"),
        ("plain text", "plain text"),
        ("Ünï 日本 😀", "Ünï 日本 😀"),
    ],
)
def test_sanitize_removes_control_direction_and_zero_width_characters(text: str, sane: str) -> None:
    assert sanitize(text) == sane


@given(st.text(alphabet=st.characters()))
def test_sanitize_twice_is_sanitize_once(text: str) -> None:
    once = sanitize(text)
    assert sanitize(once) == once
    once.encode("utf-8")

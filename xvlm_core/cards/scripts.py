"""The writing system of a text: that of most of its letters. A script is not yet a language."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

NO_LETTERS = "no letters"
OTHER = "other"

WITHOUT_SPACES = ("Han", "Kana", "Thai")
"""Scripts whose words are not separated by spaces."""

_SCRIPTS = {
    "LATIN": "Latin",
    "CYRILLIC": "Cyrillic",
    "GREEK": "Greek",
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "KATAKANA-HIRAGANA": "Kana",
    "HANGUL": "Hangul",
    "ARABIC": "Arabic",
    "HEBREW": "Hebrew",
    "DEVANAGARI": "Devanagari",
    "BENGALI": "Bengali",
    "TAMIL": "Tamil",
    "THAI": "Thai",
}
"""First word of a letter's Unicode name: name of its script."""

_WIDTHS = ("FULLWIDTH", "HALFWIDTH")
_LATIN_LETTER = re.compile("[A-Za-z]")
_ENOUGH = 2_000
"""Characters of a text that are looked at."""


def script_of(text: str) -> str:
    """The script of most of a text's letters; of two equally frequent ones, the first to appear.

    Returns:
        "Latin", "Cyrillic", "Greek", "Han", "Kana" (Hiragana and Katakana), "Hangul", "Arabic",
        "Hebrew", "Devanagari", "Bengali", "Tamil", "Thai", ``OTHER``, or ``NO_LETTERS``.
    """
    text = text[:_ENOUGH]
    if text.isascii():
        return "Latin" if _LATIN_LETTER.search(text) else NO_LETTERS
    letters = Counter(_script_of_letter(c) for c in text if c.isalpha())
    return letters.most_common(1)[0][0] if letters else NO_LETTERS


@lru_cache(maxsize=1 << 16)
def _script_of_letter(letter: str) -> str:
    words = unicodedata.name(letter, "").split()
    if words and words[0] in _WIDTHS:
        del words[0]
    return _SCRIPTS.get(words[0], OTHER) if words else OTHER

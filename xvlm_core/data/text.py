"""Cleaning of captions and questions, as in the official X-VLM code, and what texts say of sides.

``sanitize`` is for sources (hostile characters out, nothing else changed); ``pre_caption`` and
``pre_question`` make the text that the model reads.
"""

from __future__ import annotations

import re
import unicodedata

_PUNCTUATION = ",.'!?\"()*#:;~"
_CLEANING = str.maketrans(dict.fromkeys(_PUNCTUATION) | {"-": " ", "/": " "})
_SPACES = re.compile(r"\s{2,}")
_WORD = re.compile(r"[0-9A-Za-z]")

_SIDE_WORD = re.compile(r"\b(?:left|right)(?:most|ward|wards|hand|s)?\b")
"""The word left or right, and the words made of it that name a side ("leftmost")."""

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_INVISIBLE = frozenset("\u034f\u115f\u1160\u3164\uffa0")
"""Characters that draw nothing although Unicode counts them as marks or letters."""


class EmptyTextError(ValueError):
    """Nothing is left of a text after cleaning; ``reason`` is a short ledger word."""

    reason = "empty text"


def pre_caption(text: str, max_words: int) -> str:
    """Clean a caption or region text (``pre_caption`` of the official code).

    Lower case; ``, . ' ! ? " ( ) * # : ; ~`` deleted; ``-`` and ``/`` to a space; ``<person>`` to
    ``person``; two or more white-space characters to one space (a single tab or newline stays);
    the first ``max_words`` words, split on the space.

    Raises:
        EmptyTextError: nothing but white space is left.
    """
    cleaned = text.lower().translate(_CLEANING).replace("<person>", "person")
    cleaned = _SPACES.sub(" ", cleaned).rstrip("\n").strip(" ")
    cleaned = " ".join(cleaned.split(" ")[:max_words])
    if not cleaned.strip():
        raise EmptyTextError(f"nothing is left of {text[:40]!r} after cleaning")
    return cleaned


def says_something(text: str) -> bool:
    """Whether anything is left of a text after the cleaning of ``pre_caption``."""
    if _WORD.search(text):  # never removed
        return True
    try:
        pre_caption(text, 1)
    except EmptyTextError:
        return False
    return True


def pre_question(text: str, max_words: int) -> str:
    """Clean a question (``pre_question`` of the official code); may be empty.

    As ``pre_caption``, but runs of spaces and leading spaces stay and count as (empty) words.
    """
    cleaned = text.lower().translate(_CLEANING).rstrip(" ")
    return " ".join(cleaned.split(" ")[:max_words])


def names_a_side(text: str, *, compat_official: bool = False) -> bool:
    """Whether a horizontal flip of the picture would make the text wrong.

    Args:
        text: a caption, question or region text, cleaned or not.
        compat_official: test for the substrings ``left`` and ``right``, case-sensitive, as the
            official code does ("bright" counts, "Left" does not).
    """
    if compat_official:
        return "left" in text or "right" in text
    return _SIDE_WORD.search(text.lower()) is not None


def sanitize(text: str) -> str:
    """Remove what cannot be stored or seen, and fold white space.

    Lone surrogates become U+FFFD (the text can be written as UTF-8); control, bidirectional and
    zero-width characters are removed; any run of white space becomes one space.
    """
    if text.isascii() and text.isprintable():
        if "  " not in text and not text.startswith(" ") and not text.endswith(" "):
            return text
    else:
        text = text.translate({ord(c): _sane(c) for c in set(text)})
    return " ".join(text.split())


def _sane(character: str) -> str:
    if character.isspace():
        return " "
    if character in _INVISIBLE:
        return ""
    category = unicodedata.category(character)
    if category == "Cs":
        return _REPLACEMENT
    return "" if category in ("Cc", "Cf") else character

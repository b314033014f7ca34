"""The Penn Treebank tokens that captions are scored on, in pure Python.

Equal to pycocoevalcap's ``PTBTokenizer``, which runs the Java tokeniser of Stanford CoreNLP 3.4.1
(``-preserveLines -lowerCase``) and then takes out punctuation; tests hold it to that. A caption's
tokens depend on the caption alone. In the reference the first characters of the next caption decide
whether the dot belongs to a last word such as ``J.`` or ``No.``; here nothing follows.
"""

from __future__ import annotations

import re
from functools import lru_cache

from xvlm_core.metrics.caption.ptb_rules import RULES

_SIGNS = "'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"
PUNCTUATION = frozenset(_SIGNS.split())
"""Tokens that do not count. Brackets are in lower case by then, so they do count."""

# All rules at once: of each, its token in one group, and an empty group where it ends, with what
# must follow.
_SCANNER = re.compile("".join(f"(?=({rule.token})(?:{rule.after})()|)" for rule in RULES))
_WRITTEN = tuple(rule.written for rule in RULES)
_TIDY = tuple(tuple(rule.tidy.items()) for rule in RULES)

# Between spaces, what nothing behind the space can change: no digit, dot or the like that may begin
# a longer token. And, at the end of the text, whatever there is.
_APART = re.compile(r"[!-'*,/:;=-~-]+(?=[ \n](?:[!-~]|\Z))|[!-~]+(?=\n\Z)")
_BEYOND = re.compile("[\U00010000-\U0010ffff]")


def tokenise(text: str) -> list[str]:
    """The tokens of a caption, in lower case and without punctuation.

    Args:
        text: of any characters; ends of lines are spaces. (The reference takes some of them, such
            as a carriage return, for the end of the caption and then mixes up all that follow.)
    """
    text += "\n"
    if text.isascii():
        tokens: list[str] = []
        for part in text.split(" "):
            apart = _apart(part)
            if apart is None:
                return _scan(text)
            tokens += apart
        return tokens
    if max(text) <= "\uffff":
        return _scan(text)
    # the reference sees two halves of what lies beyond the basic plane
    return [_whole(token) for token in _scan(_BEYOND.sub(_halved, text))]


def _scan(text: str) -> list[str]:
    tokens: list[str] = []
    place, end = 0, len(text)
    after_blank = True
    while place < end:
        apart = _APART.match(text, place) if after_blank else None
        if apart:
            tokens += _alone(apart[0])
            place = apart.end() + 1
            continue
        token, stop = _next(text, place)
        if token and token not in PUNCTUATION:
            tokens.append(token)
        after_blank = text[stop - 1] in " \n"
        place = stop
    return tokens


@lru_cache(maxsize=1 << 16)
def _apart(part: str) -> tuple[str, ...] | None:
    """Tokens of a part between spaces; None: they depend on what stands behind it.

    Captions have many words, few different ones, and hardly any that is not apart.
    """
    word = part.rstrip("\n")
    if not word:
        return ()
    found = _APART.match(f"{part} ." if word == part else part)
    return _alone(word) if found and found[0] == word else None


@lru_cache(maxsize=1 << 16)
def _alone(word: str) -> tuple[str, ...]:
    text = word + "\n"
    tokens = []
    place = 0
    while place < len(word):
        token, place = _next(text, place)
        if token and token not in PUNCTUATION:
            tokens.append(token)
    return tuple(tokens)


def _next(text: str, place: int) -> tuple[str, int]:
    """The token at a place, in lower case, and where it ends; "": a character that is lost."""
    found = _SCANNER.match(text, place)
    assert found, "each rule may also match nothing"
    spans = found.regs
    best, reach = -1, place
    for rule in range(len(_WRITTEN)):
        stop = spans[2 * rule + 2][1]
        if stop > reach:
            best, reach = rule, stop
    if best < 0:
        return "", place + 1
    stop = spans[2 * best + 1][1]
    written = _WRITTEN[best]
    if written is not None:
        return written.lower(), stop
    token = text[place:stop]
    for part, instead in _TIDY[best]:
        token = token.replace(part, instead)
    return token.lower(), stop


def _halved(beyond: re.Match[str]) -> str:
    code = ord(beyond[0]) - 0x10000
    return chr(0xD800 + (code >> 10)) + chr(0xDC00 + (code & 0x3FF))


def _whole(token: str) -> str:
    return token.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

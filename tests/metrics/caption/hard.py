"""Strings that are hard to tokenise, and captions to score: made, the same in each run."""

from __future__ import annotations

import random

_TEXT_SIGNS = "abcdnstxyABDFMNSTUX0123456789''''``\"\"....,,,----/:;!?()[]{}<>&@#$%^*_+=|\\~"
_TEXT_PIECES = (
    "the a man a can cannot gonna isn't it's dog's U.S. Mr. etc. No. 5 12 1/2 555 1234 -- ..."
    " &amp; &lt; &apos; &nbsp; <b> </b> http:// www. .com a@b.c @x #tag don ’ ‘ “ ” — – … é ñ 日本"
    " 한국 ½ ² ° € £ ¢ \u00ad ‐ 😀 ❤ 🏽 ™ \u200b \u0301 Ltd. co. e.g. p.m. non-U.S. pro- anti-"
    " S&P-500 AT&T .txt .jpg :-) ;) ^_^ 'em 'til '90s '99 o'clock O'Brien y'all c'mon n't 've 'll"
    " St. J. I'm he'd $5 US$ 3.14 1,000 (555) 555-1234 -LRB- C++ F# km/h and/or w/ x x's s'"
    " 12/25/2004 10:30 1st 20-year-old gimme 'Tis rock'n'roll l'eau \u0663 \u05d0 \u0e01\u0e34"
    " <br/> \u2019s"
)
_TEXT_WORDS = (
    "a the man woman dog cat horse riding on in with of red bus street two people standing near"
    " table pizza's tennis ball it's blue small large black and white"
)
_SIGNS = list(_TEXT_SIGNS)
_PIECES = [*_TEXT_PIECES.split(" "), "\u00a0"]
_WORDS = _TEXT_WORDS.split()


def strings(n: int, seed: int = 20150319) -> list[str]:
    """Pieces of all kinds, with and without spaces between them."""
    rng = random.Random(seed)
    return [_string(rng) for _ in range(n)]


def _string(rng: random.Random) -> str:
    signs = rng.choice((0.3, 0.9))
    spaces = rng.choice((0.1, 0.35, 0.35))
    out = []
    for _ in range(rng.randint(0, 9)):
        out.append(rng.choice(_SIGNS if rng.random() < signs else _PIECES))
        if rng.random() < spaces:
            out.append(" ")
    return "".join(out)


def captions(n: int, seed: int = 7) -> tuple[list[str], list[list[str]]]:
    """Candidates and references of n pictures; some without words, some the same."""
    rng = random.Random(seed)

    def caption() -> str:
        return " ".join(rng.choice(_WORDS) for _ in range(rng.choice((0, 1, 2, 3, 5, 9, 12, 20))))

    references = [[caption() for _ in range(rng.randint(1, 6))] for _ in range(n)]
    candidates = []
    for own in references:
        words = rng.choice(own).split()
        kind = rng.random()
        if kind < 0.5 and words:
            words[rng.randrange(len(words))] = rng.choice(_WORDS)
        elif kind < 0.8:
            words = caption().split()
        candidates.append(" ".join(words))
    return candidates, references

"""Phrases of words that the world does not know: nothing in any picture is called that.

They teach a model of shapes that "backpack" is not there, instead of leaving it to chance.
"""

from __future__ import annotations

import string
from collections.abc import Collection

import numpy as np

from xvlm_core.world.scenes import COLOURS, SHAPES

_TEMPLATES = (
    "{0}",
    "{0} {1}",
    "{0} {1} {2}",
    "{colour} {0}",
    "{0} {shape}",
    "{0} left of the {colour} {shape}",
    "{shape} above the {0}",
)
_LETTERS_PER_WORD = (2, 9)


def foreign_phrase(rng: np.random.Generator, known: Collection[str]) -> str:
    """A phrase with at least one word of random letters that is none of the known words."""
    template = _TEMPLATES[int(rng.integers(len(_TEMPLATES)))]
    words = [_word(rng, known) for _ in range(3)]
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    shape = SHAPES[int(rng.integers(len(SHAPES)))]
    return template.format(*words, colour=colour, shape=shape)


def _word(rng: np.random.Generator, known: Collection[str]) -> str:
    while True:
        letters = rng.integers(26, size=int(rng.integers(*_LETTERS_PER_WORD)))
        word = "".join(string.ascii_lowercase[i] for i in letters)
        if word not in known:
            return word

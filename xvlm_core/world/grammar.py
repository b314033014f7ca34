"""Records of the synthetic world: a picture with texts of every grain, and two with a statement.

``world_record`` and ``pair_record`` are pure functions of (seed, split, index, size). Texts are
lower case without punctuation, so the cleaning of captions leaves them as they are.
"""

from __future__ import annotations

import string
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from xvlm_core.data.records import Answer, Question, Record, Region, Statement
from xvlm_core.world import texts
from xvlm_core.world.foreign import foreign_phrase
from xvlm_core.world.referring import (
    CORNERS,
    RELATIONS,
    SUPERLATIVES,
    Noun,
    absent_of,
    phrases_of,
    plural_of,
)
from xvlm_core.world.scenes import (
    COLOURS,
    DEFAULT_SIZE_PX,
    SHAPES,
    draw,
    generator,
    make_scene,
)

SOURCE = "world"
_TEXT_STREAM, _PAIR_STREAM, _FOREIGN_STREAM = 1, 2, 3
"""Texts have their own random numbers: the pictures do not change with the grammar."""

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = string.ascii_lowercase + string.digits


def image_name(split: str, index: int) -> str:
    """Path of picture ``index`` of a split, relative to the image root."""
    return f"pictures/{split}-{index:06d}.png"


def world_record(
    seed: int, split: str, index: int, size: int = DEFAULT_SIZE_PX
) -> tuple[Record, npt.NDArray[np.uint8]]:
    """Picture ``index`` of a split with all its texts.

    ``meta`` has ``phrase_kinds`` (label, attribute, superlative, relation, pair or unseen; one
    for each region), ``absent_kinds`` (random, hard, or foreign: of words that the world does not
    know), ``absent_like`` (the kind of region that each is worded as), ``question_kinds``, and
    ``scene`` (what stands where).

    Args:
        seed: one seed, one world.
        split: train, val, test, or unseen (combinations that the others never show or name).
        index: number of the picture, from 0.
        size: width and height in px.

    Returns:
        The record and the picture, uint8 ``(size, size, 3)``.

    Raises:
        UsageError: see ``make_scene``.
    """
    scene = make_scene(seed, split, index, size)
    rng = generator(seed, split, index, _TEXT_STREAM)
    identity = f"{SOURCE}-{split}-{index:06d}"
    phrases = phrases_of(scene, rng)
    absent = absent_of(scene, split, rng)
    foreign = foreign_phrase(generator(seed, split, index, _FOREIGN_STREAM), _known_words())
    captions = texts.captions_of(scene, rng)
    asked = texts.questions_of(scene, split, phrases, rng)
    record = Record(
        id=identity,
        images=(image_name(split, index),),
        width=scene.width,
        height=scene.height,
        captions=tuple(captions),
        regions=tuple(Region(p.text, p.box_xyxy_px, p.region_kind) for p in phrases),
        absent=(*(a.text for a in absent), foreign),
        questions=tuple(
            Question(f"{identity}-q{i}", q.question, (Answer(q.answer),))
            for i, q in enumerate(asked)
        ),
        split=split,
        source=SOURCE,
        meta={
            "seed": seed,
            "phrase_kinds": [p.kind for p in phrases],
            "absent_kinds": [*(a.kind for a in absent), "foreign"],
            "absent_like": [*(a.like for a in absent), "foreign"],
            "question_kinds": [q.kind for q in asked],
            "scene": [shape.describe() for shape in scene.shapes],
        },
    )
    return record, draw(scene)


def pair_record(
    seed: int, split: str, index: int, size: int = DEFAULT_SIZE_PX
) -> tuple[Record, tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """Pictures ``2 * index`` (left) and ``2 * index + 1`` (right) with a true or false statement.

    The pictures are those of ``world_record``: a split of n pictures has the pairs 0 to n // 2 - 1.

    Returns:
        The record and the two pictures, uint8 ``(size, size, 3)``.

    Raises:
        UsageError: see ``make_scene``.
    """
    rng = generator(seed, split, index, _PAIR_STREAM)
    numbers = (2 * index, 2 * index + 1)
    left, right = (make_scene(seed, split, number, size) for number in numbers)
    statement, label = texts.statement_of(left, right, split, rng)
    record = Record(
        id=f"{SOURCE}-{split}-pair-{index:06d}",
        images=(image_name(split, numbers[0]), image_name(split, numbers[1])),
        width=left.width,
        height=left.height,
        statement=Statement(statement, label),
        split=split,
        source=SOURCE,
        meta={
            "seed": seed,
            "scenes": [[shape.describe() for shape in s.shapes] for s in (left, right)],
        },
    )
    return record, (draw(left), draw(right))


@lru_cache(maxsize=1)
def _known_words() -> frozenset[str]:
    return frozenset(vocabulary())


def vocabulary() -> list[str]:
    """Every word that a text or an answer of the world can have, sorted.

    Foreign absent phrases are made of words that are not among them.
    """
    templates = (
        *texts.ONE_TEMPLATES,
        *texts.TWO_TEMPLATES,
        *texts.THREE_TEMPLATES,
        *texts.SPATIAL_TEMPLATES,
        *texts.SPATIAL_THREE_TEMPLATES,
        *texts.COUNT_TEMPLATES,
        texts.SUPERLATIVE_TEMPLATE,
        *texts.QUESTION_TEMPLATES.values(),
        *texts.STATEMENT_TEMPLATES.values(),
        *RELATIONS,
        *SUPERLATIVES,
        *CORNERS,
        *texts.answer_vocabulary(),
        "in the corner",
        "striped plain a an",
    )
    words = {word for text in templates for word in text.split() if "{" not in word}
    words |= {*COLOURS, *SHAPES, *(plural_of(shape) for shape in SHAPES)}
    words |= {Noun().text(), Noun().text(plural=True)}
    return sorted(words | set(texts.NUMBER_WORDS[1:]))


def wordpiece_vocabulary() -> list[str]:
    """A WordPiece vocabulary: special tokens, characters and their ``##`` forms, then the words.

    Any word of letters and digits can be tokenised with it, known or not.
    """
    characters = [*_CHARACTERS, *(f"##{character}" for character in _CHARACTERS)]
    return list(dict.fromkeys((*_SPECIAL_TOKENS, *characters, *vocabulary())))

"""Texts about whole pictures: captions, questions with answers, statements about two pictures.

The words of every text come from the templates here and the names in ``scenes`` and
``referring``; ``grammar.vocabulary`` is derived from the same tables.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from xvlm_core.world.referring import (
    CORNER_STRICT,
    CORNERS,
    RELATIONS,
    SUPERLATIVES,
    Noun,
    Phrase,
    anchor_noun,
    extreme,
    fitting,
    holds,
    in_corner,
    nouns_of,
)
from xvlm_core.world.scenes import COLOURS, SHAPES, Scene, pairs_of, pick, sample

CAPTIONS = 5
NUMBER_WORDS = ("one", "two", "three", "four", "five", "six")

ONE_TEMPLATES = ("{a}", "there is {a}", "a picture of {a}")
TWO_TEMPLATES = ("{a} and {b}", "there is {a} and {b}", "a picture of {a} and {b}", "{a} with {b}")
THREE_TEMPLATES = ("{a} {b} and {c}", "there is {a} {b} and {c}", "a picture of {a} {b} and {c}")
SPATIAL_TEMPLATES = ("{a} {r} {b}", "{a} is {r} {b}", "there is {a} {r} {b}")
SPATIAL_THREE_TEMPLATES = ("{a} is {r} {b} and {s} {c}", "{a} {r} {b} and {s} {c}")
COUNT_TEMPLATES = ("{n} {p}", "there are {n} {p}", "a picture of {n} {p}")
SUPERLATIVE_TEMPLATE = "the {w} shape is {a}"

QUESTION_TEMPLATES = {
    "colour": "what colour is the {n}",
    "shape": "what shape is the {n}",
    "size": "what size is the {n}",
    "striped": "is the {n} striped",
    "count": "how many {n} are there",
    "exist": "is there {n}",
    "where": "where is the {n}",
    "relation": "is the {n} {r} the {m}",
}
DIGITS = ("0", "1", "2", "3", "4", "5", "6")
MIDDLE = "middle"
_MIDDLE_STRICT = 0.08

STATEMENT_TEMPLATES = {
    "both": "both pictures contain {a}",
    "exactly one": "exactly one picture contains {a}",
    "neither": "neither picture contains {a}",
    "left": "the left picture contains {a}",
    "right": "the right picture contains {a}",
    "left more": "the left picture contains more {p} than the right picture",
    "right more": "the right picture contains more {p} than the left picture",
    "same": "both pictures contain the same number of {p}",
    "total": "there are {n} {p} in total",
}


@dataclass(frozen=True)
class Asked:
    """A question, its kind, and its one answer."""

    question: str
    answer: str
    kind: str


def answer_vocabulary() -> list[str]:
    """Every answer that a question can have, sorted."""
    places = (*CORNERS, MIDDLE)
    return sorted({*COLOURS, *SHAPES, *DIGITS, *places, "small", "large", "yes", "no"})


def with_article(text: str) -> str:
    """The text with "a" or "an" before it."""
    return f"an {text}" if text[0] in "aeiou" else f"a {text}"


def _described(scene: Scene, number: int, rng: np.random.Generator) -> str:
    """A true description of an object, with an attribute or two now and then."""
    s = scene.shapes[number]
    size = s.size if rng.random() < 0.35 else None
    striped = s.striped if rng.random() < (0.6 if s.striped else 0.15) else None
    return with_article(Noun(s.colour, s.shape, size, striped).text())


def _different(scene: Scene, count: int, rng: np.random.Generator) -> list[int] | None:
    """Some objects of which no two have the same colour and shape."""
    by_pair: dict[tuple[str, str], list[int]] = {}
    for i, s in enumerate(scene.shapes):
        by_pair.setdefault(s.pair, []).append(i)
    if len(by_pair) < count:
        return None
    return [pick(rng, numbers) for numbers in sample(rng, list(by_pair.values()), count)]


def _enumeration(scene: Scene, rng: np.random.Generator) -> str | None:
    draw = rng.random()
    count = 1 if draw < 0.2 else 2 if draw < 0.6 else 3
    chosen = _different(scene, count, rng)
    if chosen is None:
        return None
    template = pick(rng, (ONE_TEMPLATES, TWO_TEMPLATES, THREE_TEMPLATES)[count - 1])
    names = zip("abc", chosen, strict=False)
    return template.format(**{key: _described(scene, i, rng) for key, i in names})


def _spatial(scene: Scene, rng: np.random.Generator) -> str | None:
    count = 3 if rng.random() < 0.3 else 2
    chosen = _different(scene, count, rng)
    if chosen is None:
        return None
    relations = []
    for other in chosen[1:]:
        true = [r for r in RELATIONS if holds(scene, r, chosen[0], other)]
        if not true:
            return None
        relations.append(pick(rng, true))
    words = {key: _described(scene, i, rng) for key, i in zip("abc", chosen, strict=False)}
    words |= dict(zip("rs", relations, strict=False))
    return pick(rng, SPATIAL_TEMPLATES if count == 2 else SPATIAL_THREE_TEMPLATES).format(**words)


def _counted(scene: Scene, rng: np.random.Generator) -> str | None:
    nouns = [noun for noun in nouns_of(scene.shapes) if len(fitting(scene, noun)) >= 2]
    if not nouns:
        return None
    noun = pick(rng, nouns)
    number = NUMBER_WORDS[len(fitting(scene, noun)) - 1]
    return pick(rng, COUNT_TEMPLATES).format(n=number, p=noun.text(plural=True))


def _superlative(scene: Scene, rng: np.random.Generator) -> str | None:
    word = pick(rng, tuple(SUPERLATIVES))
    target = extreme(scene, word, list(range(len(scene.shapes))))
    if target is None:
        return None
    return SUPERLATIVE_TEMPLATE.format(w=word, a=_described(scene, target, rng))


_CAPTION_FORMS: tuple[Callable[[Scene, np.random.Generator], str | None], ...] = (
    _enumeration,
    _enumeration,
    _enumeration,
    _spatial,
    _spatial,
    _counted,
    _superlative,
)


def captions_of(scene: Scene, rng: np.random.Generator) -> list[str]:
    """``CAPTIONS`` different true captions, each of one to three objects or a count."""
    found: dict[str, None] = {}
    for _ in range(200):
        caption = pick(rng, _CAPTION_FORMS)(scene, rng)
        if caption is not None:
            found[caption] = None
        if len(found) == CAPTIONS:
            return list(found)
    raise AssertionError(f"too few captions of {scene}")


def _split_nouns(split: str) -> dict[str, list[Noun]]:
    """Nouns by class: every one that texts of the split may use."""
    return {
        "pair": [Noun(*pair) for pair in pairs_of(split)],
        "shape": [Noun(shape=shape) for shape in SHAPES],
        "colour": [Noun(colour=colour) for colour in COLOURS],
    }


_NOUNS = {split: _split_nouns(split) for split in ("train", "unseen")}


def _near(options: list[Noun], scenes: tuple[Scene, ...]) -> list[Noun]:
    """The options of which a part (colour or shape) is in a scene; all, if there is none."""
    colours = {s.colour for scene in scenes for s in scene.shapes}
    shapes = {s.shape for scene in scenes for s in scene.shapes}
    return [n for n in options if n.colour in colours or n.shape in shapes] or options


def nouns_for(split: str) -> dict[str, list[Noun]]:
    """Nouns by class (pair, shape, colour) that texts of the split may use."""
    return _NOUNS["unseen" if split == "unseen" else "train"]


def questions_of(
    scene: Scene, split: str, phrases: list[Phrase], rng: np.random.Generator
) -> list[Asked]:
    """At most one question of each kind; each has exactly one right answer.

    Args:
        scene: the picture asked about.
        split: decides which pairs may be named.
        phrases: of this scene (``referring.phrases_of``).
        rng: its random numbers.
    """
    asked: list[Asked] = []

    def ask(kind: str, answer: str, **words: str) -> None:
        asked.append(Asked(QUESTION_TEMPLATES[kind].format(**words), answer, kind))

    names: list[tuple[str, Noun, int]] = [
        (p.text, p.noun, p.target) for p in phrases if p.target is not None
    ]
    names += [
        (noun.text(), noun, fits[0])
        for noun in nouns_of(scene.shapes)
        if len(fits := fitting(scene, noun)) == 1 and (noun.colour is None or noun.shape is None)
    ]
    colourless = [name for name in names if name[1].colour is None]
    if colourless:
        text, _, target = pick(rng, colourless)
        ask("colour", scene.shapes[target].colour, n=text)
    shapeless = [name for name in names if name[1].shape is None]
    if shapeless:
        text, _, target = pick(rng, shapeless)
        ask("shape", scene.shapes[target].shape, n=text)
    sizeless = [n for n in names if n[1].size is None and not _says_size(n[0])]
    if sizeless:
        text, _, target = pick(rng, sizeless)
        ask("size", scene.shapes[target].size, n=text)
    _ask_striped(scene, names, ask, rng)
    _ask_counts(scene, split, ask, rng)
    _ask_where(scene, names, ask, rng)
    _ask_relation(scene, ask, rng)
    return asked


_Ask = Callable[..., None]
_Names = list[tuple[str, Noun, int]]


def _says_size(text: str) -> bool:
    return text.startswith(("largest", "smallest"))


def _ask_striped(scene: Scene, names: _Names, ask: _Ask, rng: np.random.Generator) -> None:
    """Only where both answers are possible, so that neither is the better guess."""
    by_fill: dict[bool, list[str]] = {True: [], False: []}
    for text, noun, target in names:
        if noun.striped is None:
            by_fill[scene.shapes[target].striped].append(text)
    wanted = bool(rng.random() < 0.5)
    if by_fill[True] and by_fill[False]:
        ask("striped", "yes" if wanted else "no", n=pick(rng, by_fill[wanted]))


def _ask_counts(scene: Scene, split: str, ask: _Ask, rng: np.random.Generator) -> None:
    if rng.random() < 0.7:
        noun = pick(rng, nouns_of(scene.shapes))
    else:
        noun = pick(rng, nouns_for(split)[pick(rng, ("shape", "colour"))])
    ask("count", DIGITS[len(fitting(scene, noun))], n=noun.text(plural=True))
    options = nouns_for(split)[pick(rng, ("pair", "pair", "shape", "colour"))]
    wanted = bool(rng.random() < 0.5)
    matching = [n for n in _near(options, (scene,)) if bool(fitting(scene, n)) == wanted]
    if not matching:
        matching = [n for n in options if bool(fitting(scene, n)) == wanted]
    noun = pick(rng, matching)
    ask("exist", "yes" if wanted else "no", n=with_article(noun.text()))


_PLACE_WORDS = frozenset((*" ".join(CORNERS).split(), *SUPERLATIVES)) - {"largest", "smallest"}


def _says_place(text: str) -> bool:
    return not _PLACE_WORDS.isdisjoint(text.split())


def place_of(scene: Scene, number: int) -> str | None:
    """The quarter of the picture, or its middle, that clearly holds the object, or ``None``."""
    for corner in CORNERS:
        if in_corner(scene, corner, number, CORNER_STRICT):
            return corner
    x, y = scene.shapes[number].centre_xy_px
    away = max(abs(x / scene.width - 0.5), abs(y / scene.height - 0.5))
    return MIDDLE if away <= _MIDDLE_STRICT else None


def _ask_where(scene: Scene, names: _Names, ask: _Ask, rng: np.random.Generator) -> None:
    placed = [
        (text, place)
        for text, _, target in names
        if not _says_place(text) and (place := place_of(scene, target)) is not None
    ]
    if placed:
        text, place = pick(rng, placed)
        ask("where", place, n=text)


def _ask_relation(scene: Scene, ask: _Ask, rng: np.random.Generator) -> None:
    named = [
        (i, noun)
        for i in range(len(scene.shapes))
        if (noun := anchor_noun(scene, i, rng)) is not None
    ]
    wanted = bool(rng.random() < 0.5)
    options = [
        (first, relation, second)
        for (a, first), (b, second) in permutations(named, 2)
        for relation in RELATIONS
        if (holds(scene, relation, a, b) if wanted else holds(scene, relation, b, a))
    ]
    if options:
        first, relation, second = pick(rng, options)
        ask("relation", "yes" if wanted else "no", n=first.text(), r=relation, m=second.text())


def statement_of(
    left: Scene, right: Scene, split: str, rng: np.random.Generator
) -> tuple[str, bool]:
    """A statement about two pictures and whether it is true.

    The form, the class of noun and the number of a total are chosen among those that could be
    either, so none of them says by itself whether it is true.
    """
    wanted = bool(rng.random() < 0.5)
    forms = [(form, noun_class) for form in STATEMENT_TEMPLATES for noun_class in nouns_for(split)]
    for form, noun_class in sample(rng, forms, len(forms)):
        nouns = _near(nouns_for(split)[noun_class], (left, right))
        # by what they say beside the form and the noun (the number of a total), then by truth
        said = _said(form, nouns, left, right)
        either = [texts for texts in said.values() if texts[True] and texts[False]]
        if either:
            return pick(rng, pick(rng, either)[wanted]), wanted
    raise AssertionError(f"nothing to say of {left} and {right}")


def _said(
    form: str, nouns: list[Noun], left: Scene, right: Scene
) -> dict[str, dict[bool, list[str]]]:
    """The true and the false statements of a form, by the number word in them."""
    template = STATEMENT_TEMPLATES[form]
    said: dict[str, dict[bool, list[str]]] = {}
    for noun in nouns:
        a, b = len(fitting(left, noun)), len(fitting(right, noun))
        if "{p}" in template and a + b == 0:
            continue
        numbers = enumerate(NUMBER_WORDS[1:], 2) if form == "total" else [(a + b, "")]
        for number, word in numbers:
            if abs(number - a - b) > 1:
                continue
            text = template.format(a=with_article(noun.text()), p=noun.text(plural=True), n=word)
            truth = number == a + b if form == "total" else _is_true(form, a, b)
            said.setdefault(word, {True: [], False: []})[truth].append(text)
    return said


def _is_true(form: str, left: int, right: int) -> bool:
    """Whether a form holds when the noun fits so many objects of the two pictures."""
    return {
        "both": left > 0 and right > 0,
        "exactly one": (left > 0) != (right > 0),
        "neither": left == right == 0,
        "left": left > 0,
        "right": right > 0,
        "left more": left > right,
        "right more": right > left,
        "same": left == right,
    }[form]

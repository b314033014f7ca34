"""Reads the texts of the world by itself and says what they mean, given only what stands where.

Shares no code and no constant with ``xvlm_core.world``. Two readers: the strict one wants a clear
margin, the lenient one takes any; a good phrase means the same to both.
"""

from __future__ import annotations

import re
from itertools import permutations
from typing import Any

Objects = list[dict[str, Any]]

COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "cyan", "pink"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "diamond"]
UNSEEN = {
    "red star",
    "green triangle",
    "blue diamond",
    "yellow circle",
    "orange cross",
    "purple square",
    "cyan star",
    "pink triangle",
}
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
PLURALS = {f"{s}s": s for s in (*SHAPES, "shape") if s != "cross"} | {"crosses": "cross"}

NOUN = (
    r"(?:small |large )?(?:striped |plain )?"
    rf"(?:(?:{'|'.join(COLOURS)}) )?(?:{'|'.join((*SHAPES, 'shape', *PLURALS))})"
)
RELATION = r"left of|right of|above|below"
SUPERLATIVE = r"leftmost|rightmost|topmost|bottommost|largest|smallest"
INDEFINITE = rf"(?:an (?=[aeiou])|a (?![aeiou]))({NOUN})"


def centre(thing: dict[str, Any]) -> tuple[float, float]:
    x1, y1, x2, y2 = thing["box_xyxy_px"]
    return (x1 + x2) / 2, (y1 + y2) / 2


def side(thing: dict[str, Any]) -> float:
    x1, y1, x2, y2 = thing["box_xyxy_px"]
    return max(x2 - x1, y2 - y1)


def named(noun: str, objects: Objects) -> set[int]:
    """Numbers of the objects that a noun with adjectives fits."""
    assert re.fullmatch(NOUN, noun), noun
    fits = set(range(len(objects)))
    for word in noun.split():
        word = PLURALS.get(word, word)
        for i, thing in enumerate(objects):
            true = {
                "striped": thing["striped"],
                "plain": not thing["striped"],
                "shape": True,
            }.get(word, word in (thing["colour"], thing["shape"], thing["size"]))
            if not true:
                fits.discard(i)
    return fits


def amount(relation: str, a: dict[str, Any], b: dict[str, Any]) -> float:
    (ax, ay), (bx, by) = centre(a), centre(b)
    return {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}[relation]


def related(relation: str, a: dict[str, Any], b: dict[str, Any], px: int, strict: bool) -> bool:
    difference = amount(relation, a, b)
    return difference >= 0.08 * px - 1e-9 if strict else difference > 0


def most(word: str, candidates: set[int], objects: Objects, px: int, strict: bool) -> set[int]:
    def value(i: int) -> float:
        x, y = centre(objects[i])
        return {
            "leftmost": -x,
            "rightmost": x,
            "topmost": -y,
            "bottommost": y,
            "largest": side(objects[i]),
            "smallest": -side(objects[i]),
        }[word]

    margin = (0.03 if word in ("largest", "smallest") else 0.08) * px - 1e-9
    return {
        i
        for i in candidates
        if all(value(i) - value(j) >= (margin if strict else 0) for j in candidates - {i})
    }


def cornered(place: str, i: int, objects: Objects, px: int, strict: bool) -> bool:
    x, y = centre(objects[i])
    vertical, horizontal = place.split()
    across = x if horizontal == "left" else px - x
    down = y if vertical == "top" else px - y
    return max(across, down) <= (0.33 if strict else 0.45) * px + 1e-9


def meant(phrase: str, objects: Objects, px: int, strict: bool) -> set[int]:
    """Numbers of the objects that a phrase about one object may mean."""
    if match := re.fullmatch(rf"({SUPERLATIVE}) ({NOUN})", phrase):
        return most(match[1], named(match[2], objects), objects, px, strict)
    if match := re.fullmatch(rf"({NOUN}) in the ((?:top|bottom) (?:left|right)) corner", phrase):
        fits = named(match[1], objects)
        return {i for i in fits if cornered(match[2], i, objects, px, strict)}
    if match := re.fullmatch(rf"({NOUN}) ({RELATION}) the ({NOUN})", phrase):
        (anchor,) = named(match[3], objects)
        return {
            i
            for i in named(match[1], objects) - {anchor}
            if related(match[2], objects[i], objects[anchor], px, strict)
        }
    return named(phrase, objects)


def the_one(phrase: str, objects: Objects, px: int) -> int:
    """The object that a phrase means; fails if the readers disagree or it is not exactly one."""
    strict, lenient = (meant(phrase, objects, px, s) for s in (True, False))
    assert strict == lenient, (phrase, strict, lenient)
    assert len(strict) == 1, (phrase, strict)
    return strict.pop()


def box_of(phrase: str, objects: Objects, px: int) -> list[float]:
    """The box that a region phrase means."""
    boxes = [objects[the_one(part, objects, px)]["box_xyxy_px"] for part in phrase.split(" and ")]
    low = [min(b[k] for b in boxes) for k in (0, 1)]
    return low + [max(b[k] for b in boxes) for k in (2, 3)]


def needs_all_its_words(phrase: str, objects: Objects) -> bool:
    """Whether the phrase without its superlative, relation, corner or attribute fits several."""
    if match := re.fullmatch(rf"({NOUN}) (?:{RELATION}) the ({NOUN})", phrase):
        return len(named(match[1], objects) - named(match[2], objects)) >= 2
    noun = re.sub(rf"^(?:{SUPERLATIVE}) | in the .*", "", phrase)
    if noun != phrase:
        return len(named(noun, objects)) >= 2
    words = phrase.split()
    attributes = [w for w in words if w in ("small", "large", "striped", "plain")]
    return all(
        len(named(" ".join(w for w in words if w != attribute), objects)) >= 2
        for attribute in attributes
    )


def is_true_caption(caption: str, objects: Objects, px: int) -> bool:
    """Whether a caption is true to the strict reader; fails on what it cannot read."""
    if match := re.fullmatch(rf"the ({SUPERLATIVE}) shape is {INDEFINITE}", caption):
        return the_one(f"{match[1]} shape", objects, px) in named(match[2], objects)
    text = re.sub(r"^(there (is|are)|a picture of) ", "", caption)
    if match := re.fullmatch(rf"({'|'.join(NUMBERS)}) ({NOUN})", text):
        assert match[2].split()[-1] in PLURALS, caption
        return len(named(match[2], objects)) == NUMBERS[match[1]]
    a, r = INDEFINITE, rf"({RELATION})"
    relations: list[str] = []
    if match := re.fullmatch(rf"{a}(?: is)? {r} {a}(?: and {r} {a})?", text):
        parts = match.groups()
        nouns = [part for part in (parts[0], parts[2], parts[4]) if part]
        relations = [part for part in (parts[1], parts[3]) if part]
    else:
        match = re.fullmatch(rf"{a}(?: {a})?(?: (?:and|with) {a})?", text)
        assert match, caption
        nouns = [part for part in match.groups() if part]
    return any(
        all(i in named(noun, objects) for i, noun in zip(chosen, nouns, strict=True))
        and all(
            related(relation, objects[chosen[0]], objects[other], px, strict=True)
            for relation, other in zip(relations, chosen[1:], strict=False)
        )
        for chosen in permutations(range(len(objects)), len(nouns))
    )


def answer(question: str, objects: Objects, px: int) -> str:
    """The right answer of a question; fails on what it cannot read or what is not clear."""
    if match := re.fullmatch(r"what (colour|shape|size) is the (.*)", question):
        return str(objects[the_one(match[2], objects, px)][match[1]])
    if match := re.fullmatch(r"is the (.*) striped", question):
        return "yes" if objects[the_one(match[1], objects, px)]["striped"] else "no"
    if match := re.fullmatch(rf"how many ({NOUN}) are there", question):
        assert match[1].split()[-1] in PLURALS, question
        return str(len(named(match[1], objects)))
    if match := re.fullmatch(rf"is there {INDEFINITE}", question):
        return "yes" if named(match[1], objects) else "no"
    if match := re.fullmatch(r"where is the (.*)", question):
        i = the_one(match[1], objects, px)
        for place in ("top left", "top right", "bottom left", "bottom right"):
            if cornered(place, i, objects, px, strict=True):
                return place
        assert all(abs(value / px - 0.5) <= 0.08 for value in centre(objects[i])), question
        return "middle"
    match = re.fullmatch(rf"is the ({NOUN}) ({RELATION}) the ({NOUN})", question)
    assert match, question
    a, b = (objects[the_one(match[k], objects, px)] for k in (1, 3))
    true = related(match[2], a, b, px, strict=True)
    assert true or amount(match[2], a, b) <= -0.08 * px + 1e-9, question
    return "yes" if true else "no"


def is_true_statement(statement: str, left: Objects, right: Objects) -> bool:
    """Whether a statement about two pictures is true; fails on what it cannot read."""

    def counts(noun: str) -> tuple[int, int]:
        return len(named(noun, left)), len(named(noun, right))

    if match := re.fullmatch(rf"there are (\w+) ({NOUN}) in total", statement):
        return sum(counts(match[2])) == NUMBERS[match[1]]
    if match := re.fullmatch(rf"both pictures contain the same number of ({NOUN})", statement):
        a, b = counts(match[1])
        return a == b
    more = rf"the (left|right) picture contains more ({NOUN}) than the (left|right) picture"
    if match := re.fullmatch(more, statement):
        assert match[1] != match[3], statement
        a, b = counts(match[2])
        return a > b if match[1] == "left" else b > a
    match = re.fullmatch(
        rf"(both pictures|exactly one picture|neither picture|the left picture|the right picture)"
        rf" contains? {INDEFINITE}",
        statement,
    )
    assert match, statement
    in_left, in_right = (count > 0 for count in counts(match[2]))
    return {
        "both pictures": in_left and in_right,
        "exactly one picture": in_left != in_right,
        "neither picture": not in_left and not in_right,
        "the left picture": in_left,
        "the right picture": in_right,
    }[match[1]]

"""Phrases that mean exactly one part of a scene, and phrases that mean none.

Every comparison has a margin: what is nearly level is neither left nor right. A phrase is given
only when it singles its object out both for a strict reader (who wants the margin) and for a
lenient one (who does not).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from xvlm_core.data.records import RegionKind
from xvlm_core.world.scenes import (
    UNSEEN_PAIRS,
    Pair,
    Scene,
    Shape,
    pairs_of,
    pick,
    sample,
)

PhraseKind = Literal["label", "attribute", "superlative", "relation", "pair", "unseen"]
AbsentKind = Literal["random", "hard"]
Box = tuple[float, float, float, float]

RELATIONS: dict[str, tuple[int, int]] = {
    "left of": (0, -1),
    "right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
"""Words of a relation: axis (x, y) and sign of the first object's offset from the second."""

SUPERLATIVES: dict[str, tuple[int | None, int]] = {
    "leftmost": (0, -1),
    "rightmost": (0, 1),
    "topmost": (1, -1),
    "bottommost": (1, 1),
    "largest": (None, 1),
    "smallest": (None, -1),
}
"""Axis (x, y, or the longest side) and sign of what is compared."""

CORNERS: dict[str, tuple[int, int]] = {
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
}
"""Signs of (x, y) from the middle of the picture."""

PLACE_MARGIN = 0.08
SIDE_MARGIN = 0.03
"""Least difference of centres, and of longest sides, as a part of the picture's side."""

CORNER_STRICT, CORNER_LENIENT = 0.33, 0.45
"""How far from both edges a centre in a corner is, as a part of the picture's side."""

_MOST_SUPERLATIVES, _MOST_RELATIONS, _MOST_PAIRS = 5, 5, 4
_GENERIC = "shape"


@dataclass(frozen=True)
class Noun:
    """What is said of an object; ``None`` is not said."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    striped: bool | None = None

    def fits(self, shape: Shape) -> bool:
        """Whether all that is said is true of the object."""
        return (
            (self.colour is None or self.colour == shape.colour)
            and (self.shape is None or self.shape == shape.shape)
            and (self.size is None or self.size == shape.size)
            and (self.striped is None or self.striped == shape.striped)
        )

    def text(self, plural: bool = False) -> str:
        """The words: size, fill, colour, shape."""
        words = []
        if self.size is not None:
            words.append(self.size)
        if self.striped is not None:
            words.append("striped" if self.striped else "plain")
        if self.colour is not None:
            words.append(self.colour)
        head = self.shape or _GENERIC
        words.append(plural_of(head) if plural else head)
        return " ".join(words)


@dataclass(frozen=True)
class Phrase:
    """A phrase with the box it means; ``target`` is the object's number (``None``: two)."""

    text: str
    box_xyxy_px: Box
    region_kind: RegionKind
    kind: PhraseKind
    noun: Noun
    target: int | None


@dataclass(frozen=True)
class Absent:
    """A phrase that nothing in the picture fits; ``like``: the kind of region it is worded as."""

    text: str
    kind: AbsentKind
    like: RegionKind


def plural_of(head: str) -> str:
    """Plural of the name of a shape."""
    return head + ("es" if head.endswith("ss") else "s")


def fitting(scene: Scene, noun: Noun) -> list[int]:
    """Numbers of the objects that the noun fits."""
    return [i for i, shape in enumerate(scene.shapes) if noun.fits(shape)]


def nouns_of(shapes: Iterable[Shape]) -> list[Noun]:
    """Every noun without attributes that fits some object, in a fixed order, the longest first."""
    nouns: dict[Noun, None] = {}
    shapes = tuple(shapes)
    for s in shapes:
        nouns[Noun(s.colour, s.shape)] = None
    for s in shapes:
        nouns[Noun(shape=s.shape)] = None
    for s in shapes:
        nouns[Noun(colour=s.colour)] = None
    nouns[Noun()] = None
    return list(nouns)


def offset(scene: Scene, relation: str, first: int, second: int) -> float:
    """How far, in px, the first object lies in the relation's direction from the second."""
    axis, sign = RELATIONS[relation]
    a, b = scene.shapes[first].centre_xy_px[axis], scene.shapes[second].centre_xy_px[axis]
    return sign * (a - b)


def holds(scene: Scene, relation: str, first: int, second: int) -> bool:
    """Whether the relation is clearly true (by the margin)."""
    return offset(scene, relation, first, second) >= PLACE_MARGIN * scene.width


def extreme(scene: Scene, word: str, candidates: list[int]) -> int | None:
    """The one candidate that is clearly the leftmost (...) of at least two, or ``None``."""
    if len(candidates) < 2:
        return None
    axis, sign = SUPERLATIVES[word]
    margin = (SIDE_MARGIN if axis is None else PLACE_MARGIN) * scene.width
    values = []
    for i in candidates:
        shape = scene.shapes[i]
        values.append(sign * (shape.side_px if axis is None else shape.centre_xy_px[axis]))
    best = max(range(len(values)), key=values.__getitem__)
    second = max(value for i, value in enumerate(values) if i != best)
    return candidates[best] if values[best] - second >= margin else None


def in_corner(scene: Scene, corner: str, number: int, limit: float) -> bool:
    """Whether the object's centre is nearer than ``limit`` to both edges of the corner."""
    inside = True
    for centre, length, sign in zip(
        scene.shapes[number].centre_xy_px, (scene.width, scene.height), CORNERS[corner], strict=True
    ):
        inside = inside and (centre if sign < 0 else length - centre) <= limit * length
    return inside


def only_in_corner(scene: Scene, corner: str, candidates: list[int]) -> int | None:
    """The one candidate in the corner, if there are at least two and no other is near it."""
    near = [i for i in candidates if in_corner(scene, corner, i, CORNER_LENIENT)]
    if len(candidates) < 2 or len(near) != 1:
        return None
    return near[0] if in_corner(scene, corner, near[0], CORNER_STRICT) else None


def phrases_of(scene: Scene, rng: np.random.Generator) -> list[Phrase]:
    """Phrases of every kind, each text once, each with exactly one meaning."""
    found = _names(scene)
    found += sample(rng, superlatives_of(scene), _MOST_SUPERLATIVES)
    found += sample(rng, _relations(scene, rng), _MOST_RELATIONS)
    found += _pairs(scene, rng)
    return found


def _phrase(
    scene: Scene, text: str, region_kind: RegionKind, kind: PhraseKind, noun: Noun, target: int
) -> Phrase:
    return Phrase(text, scene.shapes[target].box_xyxy_px, region_kind, kind, noun, target)


def _names(scene: Scene) -> list[Phrase]:
    """Labels, and where a label fits several: with the fewest attributes that single one out."""
    found: dict[str, Phrase] = {}
    for i, s in enumerate(scene.shapes):
        kind: PhraseKind = "unseen" if s.pair in UNSEEN_PAIRS else "label"
        label = Noun(s.colour, s.shape)
        if len(fitting(scene, label)) == 1:
            found[label.text()] = _phrase(scene, label.text(), "object", kind, label, i)
            continue
        by_size = Noun(s.colour, s.shape, size=s.size)
        by_fill = Noun(s.colour, s.shape, striped=s.striped)
        by_both = Noun(s.colour, s.shape, s.size, s.striped)
        attribute: PhraseKind = "unseen" if kind == "unseen" else "attribute"
        unique = [n for n in (by_size, by_fill) if len(fitting(scene, n)) == 1]
        if not unique and len(fitting(scene, by_both)) == 1:
            unique = [by_both]
        for noun in unique:
            found[noun.text()] = _phrase(scene, noun.text(), "attribute", attribute, noun, i)
    return list(found.values())


def superlatives_of(scene: Scene) -> list[Phrase]:
    """All phrases like "leftmost star", "largest shape", "star in the top left corner"."""
    found = []
    for noun in nouns_of(scene.shapes):
        candidates = fitting(scene, noun)
        if len(candidates) < 2:
            continue
        for word in SUPERLATIVES:
            target = extreme(scene, word, candidates)
            if target is not None:
                text = f"{word} {noun.text()}"
                found.append(_phrase(scene, text, "phrase", "superlative", noun, target))
        for corner in CORNERS:
            target = only_in_corner(scene, corner, candidates)
            if target is not None:
                text = f"{noun.text()} in the {corner} corner"
                found.append(_phrase(scene, text, "phrase", "superlative", noun, target))
    return found


def anchor_noun(scene: Scene, number: int, rng: np.random.Generator) -> Noun | None:
    """A noun without attributes that fits this object only, or ``None``."""
    s = scene.shapes[number]
    options = (Noun(s.colour, s.shape), Noun(shape=s.shape))
    unique = [noun for noun in options if len(fitting(scene, noun)) == 1]
    return pick(rng, unique) if unique else None


def _relations(scene: Scene, rng: np.random.Generator) -> list[Phrase]:
    """Phrases like "circle left of the square" where "circle" alone fits other objects too."""
    found = []
    anchors = [(i, anchor_noun(scene, i, rng)) for i in range(len(scene.shapes))]
    for noun in nouns_of(scene.shapes):
        fits = fitting(scene, noun)
        if len(fits) < 2:
            continue
        for anchor, anchor_name in anchors:
            candidates = [i for i in fits if i != anchor]
            if anchor_name is None or len(candidates) < 2:
                continue
            for relation in RELATIONS:
                lenient = [i for i in candidates if offset(scene, relation, i, anchor) > 0]
                if len(lenient) == 1 and holds(scene, relation, lenient[0], anchor):
                    text = f"{noun.text()} {relation} the {anchor_name.text()}"
                    found.append(_phrase(scene, text, "relation", "relation", noun, lenient[0]))
    return found


def _pairs(scene: Scene, rng: np.random.Generator) -> list[Phrase]:
    """Phrases like "red circle and blue square", with the box around both."""
    labelled = [
        (i, noun)
        for i, s in enumerate(scene.shapes)
        if len(fitting(scene, noun := Noun(s.colour, s.shape))) == 1
    ]
    twos = [(a, b) for a in labelled for b in labelled if a[0] < b[0]]
    found = []
    for two in sample(rng, twos, _MOST_PAIRS):
        (a, first), (b, second) = sample(rng, two, 2)
        box_a, box_b = scene.shapes[a].box_xyxy_px, scene.shapes[b].box_xyxy_px
        box: Box = (
            min(box_a[0], box_b[0]),
            min(box_a[1], box_b[1]),
            max(box_a[2], box_b[2]),
            max(box_a[3], box_b[3]),
        )
        text = f"{first.text()} and {second.text()}"
        found.append(Phrase(text, box, "region", "pair", first, None))
    return found


def absent_pairs(scene: Scene, split: str) -> tuple[list[Pair], list[Pair]]:
    """Pairs that no object has, as (random, hard); hard: the colour and the shape are both there.

    Outside the split ``unseen`` no pair of ``UNSEEN_PAIRS`` is among them: to call them absent
    would teach that they do not exist.
    """
    present = {s.pair for s in scene.shapes}
    colours = {s.colour for s in scene.shapes}
    shapes = {s.shape for s in scene.shapes}
    free = [pair for pair in pairs_of(split) if pair not in present]
    hard = [pair for pair in free if pair[0] in colours and pair[1] in shapes]
    return [pair for pair in free if pair not in hard], hard


def absent_of(scene: Scene, split: str, rng: np.random.Generator) -> list[Absent]:
    """Phrases that fit nothing, each text once: two random ones and up to five hard ones.

    In the split ``unseen`` every second random one names a pair of ``UNSEEN_PAIRS``, so that
    such a name does not give away that it is there.
    """
    far, crossed = absent_pairs(scene, split)
    chosen = sample(rng, far, 2)
    if split == "unseen":
        chosen = chosen[:1]
        chosen += sample(rng, [p for p in far if p in UNSEEN_PAIRS and p not in chosen], 1)
    found = [Absent(Noun(*pair).text(), "random", "object") for pair in chosen]
    labels = [Noun(*pair).text() for pair in sample(rng, crossed, 2)]
    attributes = sample(rng, _wrong_attributes(scene), 2)
    relations = sample(rng, _wrong_relations(scene, rng), 1)
    found += [Absent(text, "hard", "object") for text in labels]
    found += [Absent(text, "hard", "attribute") for text in attributes]
    return found + [Absent(text, "hard", "relation") for text in relations]


def _wrong_attributes(scene: Scene) -> list[str]:
    """Labels of objects that are there, with a size or fill that none of them has."""
    texts = []
    for colour, shape in dict.fromkeys(s.pair for s in scene.shapes):
        for noun in (
            Noun(colour, shape, size="small"),
            Noun(colour, shape, size="large"),
            Noun(colour, shape, striped=True),
            Noun(colour, shape, striped=False),
        ):
            if not fitting(scene, noun):
                texts.append(noun.text())
    return texts


def _wrong_relations(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Relations between objects that are there, in which they clearly do not stand."""
    texts = []
    labels = [noun for noun in nouns_of(scene.shapes) if noun.shape is not None]
    for anchor in range(len(scene.shapes)):
        name = anchor_noun(scene, anchor, rng)
        if name is None:
            continue
        for noun in labels:
            candidates = fitting(scene, noun)
            if anchor in candidates:
                continue
            for relation in RELATIONS:
                nearest = max(offset(scene, relation, i, anchor) for i in candidates)
                if nearest <= -PLACE_MARGIN * scene.width:
                    texts.append(f"{noun.text()} {relation} the {name.text()}")
    return texts

"""Time of caption scores, ours and pycocoevalcap's: ``python benchmarks/caption_scores.py``.

BLEU-1 to 4, ROUGE-L and CIDEr of 5,000 captions against 5 references each, from plain texts:
tokens included, in pycocoevalcap by Java. The figures of the two must be the same. Captions are
made, or are put together from the halves of those in COCO annotation files (``--coco``).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import Spent, compare, say, timed
from xvlm_core.metrics.caption.external import java_problem
from xvlm_core.metrics.caption.scores import CaptionScores, score_captions

GOAL = 5.0
"""What the ratio of times should reach."""

SAME = 1e-9

_WHO = "man woman boy girl dog cat horse bird person child player skier cow giraffe zebra elephant"
_WHAT = (
    "frisbee skateboard surfboard kite umbrella phone laptop pizza sandwich bench bus train truck"
    " motorcycle bicycle clock vase couch bed table chair tv toilet sink refrigerator book bottle"
)
_HOW = "small large young old red blue green black white brown wooden parked tall two-story"
_DOES = "riding holding sitting on|standing near|looking at|eating|walking past|lying under|next to"
_WHERE = "in a field|on the street|at the beach|in a kitchen|near a house|on a sunny day|at night"
_RARE = (
    "that's parked|with a \"STOP\" sign|at 10:30 a.m.|in the 1950's|(seen from above)|- a close-up|"
    "isn't moving|on Main St. downtown|& its owner|number 42|for $5.00"
)


def made(n: int, rng: random.Random) -> list[list[str]]:
    """N groups of six captions, each group about one thing."""
    groups = []
    for _ in range(n):
        who, what, where = _one(_WHO, rng), _one(_WHAT, rng), _one(_WHERE, rng, "|")
        groups.append([_caption(who, what, where, rng) for _ in range(6)])
    return groups


def _caption(who: str, what: str, where: str, rng: random.Random) -> str:
    if rng.random() < 0.3:
        who = _one(_WHO, rng)
    if rng.random() < 0.3:
        what = _one(_WHAT, rng)
    parts = [rng.choice(("A", "The", "Two", "There is a")), who, _one(_DOES, rng, "|"), "a"]
    if rng.random() < 0.5:
        parts.insert(1, _one(_HOW, rng))
    if rng.random() < 0.5:
        parts.append(_one(_HOW, rng))
    parts.append(what)
    if rng.random() < 0.7:
        parts.append(where)
    if rng.random() < 0.1:
        parts.append(_one(_RARE, rng, "|"))
    return " ".join(parts) + rng.choice((".", ".", ".", "", " ."))


def _one(words: str, rng: random.Random, between: str = " ") -> str:
    return rng.choice(words.split(between))


def recombined(files: Sequence[Path], n: int, rng: random.Random) -> list[list[str]]:
    """N groups of six captions: halves of a picture's captions, with a half of another's."""
    by_picture: dict[str, list[str]] = {}
    for file in files:
        for annotation in json.loads(file.read_text(encoding="utf-8"))["annotations"]:
            by_picture.setdefault(str(annotation["image_id"]), []).append(annotation["caption"])
    pictures = list(by_picture.values())
    groups = []
    for _ in range(n):
        first, second = rng.choice(pictures), rng.choice(pictures)
        groups.append([_half(rng.choice(first), 0) + _half(rng.choice(second), 1) for _ in "6" * 6])
    return groups


def _half(caption: str, which: int) -> str:
    words = caption.split(" ")
    middle = len(words) // 2
    return " ".join(words[middle:] if which else [*words[:middle], ""])


def pycocoevalcap_scores(
    candidates: dict[str, str], references: dict[str, list[str]]
) -> dict[str, float]:
    """BLEU, ROUGE-L and CIDEr as pycocoevalcap's own evaluation takes them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer: Any = PTBTokenizer()
    gts = tokenizer.tokenize({i: [{"caption": t} for t in own] for i, own in references.items()})
    res = tokenizer.tokenize({i: [{"caption": text}] for i, text in candidates.items()})
    bleu, _ = Bleu(4).compute_score(gts, res, verbose=0)
    scores = {f"BLEU-{n}": float(value) for n, value in enumerate(bleu, start=1)}
    scores["ROUGE-L"] = float(Rouge().compute_score(gts, res)[0])
    scores["CIDEr"] = float(Cider().compute_score(gts, res)[0])
    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 where the goal is missed or the figures differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--coco", type=Path, nargs="*", default=[], help="captions_*.json of COCO")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    problem = java_problem()
    if problem is not None:
        say(f"nothing to compare with: {problem}")
        return 7
    rng = random.Random(0)
    groups = (
        recombined(options.coco, options.pictures, rng)
        if options.coco
        else made(options.pictures, rng)
    )
    candidates = {f"picture {i}": group[0] for i, group in enumerate(groups)}
    references = {f"picture {i}": group[1:] for i, group in enumerate(groups)}
    found: list[CaptionScores] = []
    expected: list[dict[str, float]] = []

    def ours() -> Spent:
        wanted = ("bleu", "rouge-l", "cider")
        return timed(lambda: found.append(score_captions(candidates, references, wanted)))

    def theirs() -> Spent:
        return timed(lambda: expected.append(pycocoevalcap_scores(candidates, references)))

    n = options.pictures
    measure = compare("captions scored a second", ours, theirs, n, options.turns, GOAL)
    gap = max(abs(found[0].corpus[name] - value) for name, value in expected[0].items())
    result = {**asdict(measure), "ratio": measure.ratio, "cpu_ratio": measure.cpu_ratio, "gap": gap}
    if options.json:
        print(json.dumps(result))
    else:
        print(f"captions scored: {n:,} x 5 references, tokens included")
        print(f"pycocoevalcap:   {n / measure.theirs:.2f} s")
        print(f"ours:            {n / measure.ours:.2f} s")
        print(f"ratio:           {measure.ratio:.1f} (goal {GOAL:g}), {measure.cpu_ratio:.1f} CPU")
        print(f"largest gap:     {gap:.1e}")
    return 0 if measure.ratio >= GOAL and gap < SAME else 1


if __name__ == "__main__":
    sys.exit(main())

"""All scores of a set of captions, as the COCO caption evaluation takes them. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from xvlm_core.errors import DataError, UsageError
from xvlm_core.metrics.caption import external
from xvlm_core.metrics.caption.bleu import Bleu
from xvlm_core.metrics.caption.cider import Cider
from xvlm_core.metrics.caption.frequencies import DocumentFrequencies
from xvlm_core.metrics.caption.ngrams import Floats, Score
from xvlm_core.metrics.caption.ptb import tokenise
from xvlm_core.metrics.caption.rouge import RougeL
from xvlm_core.metrics.caption.table import NgramTable

METRICS = ("bleu", "meteor", "rouge-l", "cider", "spice")
"""What the COCO caption evaluation reports."""

KNOWN = (*METRICS, "plain-cider")

_NEEDS_JAVA: dict[str, tuple[str, Callable[[Sequence[str], Sequence[Sequence[str]]], Score]]] = {
    "meteor": ("METEOR", external.meteor),
    "spice": ("SPICE", external.spice),
}
_NAMED = 3


@dataclass(frozen=True)
class CaptionScores:
    """Scores of a set of captions.

    Attributes:
        image_ids: the pictures, in the order of the arrays.
        corpus: by name (``BLEU-4``, ``CIDEr``, ...), the score of the whole set, as a number: in
            [0, 1], CIDEr in [0, 10].
        each: by the same names, of each picture, ``(N,)``.
        skipped: by name, why a score that was asked for is not there, in one line.
    """

    image_ids: tuple[str, ...]
    corpus: Mapping[str, float]
    each: Mapping[str, Floats]
    skipped: Mapping[str, str] = field(default_factory=dict)


def score_captions(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Iterable[str] = METRICS,
    *,
    frequencies: DocumentFrequencies | None = None,
) -> CaptionScores:
    """Score one caption a picture against the picture's references.

    Texts are tokenised first (``ptb.tokenise``).

    Args:
        candidates: by picture, its caption.
        references: by picture, at least one text; the same pictures.
        metrics: of ``KNOWN``. METEOR and SPICE need Java and pycocoevalcap, and are named in
            ``skipped`` where these are missing or broken.
        frequencies: for CIDEr; None: those of ``references``.

    Raises:
        DataError: the pictures are not the same, or one has no references.
        UsageError: a metric is not known.
    """
    wanted = list(dict.fromkeys(metrics))
    for name in wanted:
        if name not in KNOWN:
            raise UsageError(
                f"no caption metric is called {name!r}", try_=f"one of {', '.join(KNOWN)}"
            )
    check_pictures(candidates, references)
    ids = tuple(candidates)
    tokens = [tokenise(candidates[image]) for image in ids]
    other_tokens = [[tokenise(text) for text in references[image]] for image in ids]
    table = NgramTable.of(tokens, other_tokens)

    found: dict[str, Score] = {}
    skipped: dict[str, str] = {}
    java: str | None = None
    if _NEEDS_JAVA.keys() & set(wanted):
        java = external.java_problem()
    for name in wanted:
        if name == "bleu":
            for n, score in enumerate(Bleu().score_table(table), start=1):
                found[f"BLEU-{n}"] = score
        elif name == "rouge-l":
            found["ROUGE-L"] = RougeL().score(tokens, other_tokens)
        elif name == "cider":
            found["CIDEr"] = Cider(frequencies).score_table(table)
        elif name == "plain-cider":
            found["plain CIDEr"] = Cider(frequencies, form="cider").score_table(table)
        else:
            title, score_by = _NEEDS_JAVA[name]
            try:
                if java is not None:
                    raise external.Unavailable(java)
                found[title] = score_by(
                    [" ".join(own) for own in tokens],
                    [[" ".join(text) for text in own] for own in other_tokens],
                )
            except external.Unavailable as reason:
                skipped[title] = str(reason)
    return CaptionScores(
        ids,
        {name: score.corpus for name, score in found.items()},
        {name: score.each for name, score in found.items()},
        skipped,
    )


def check_pictures(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    """See that each picture has one caption and at least one reference.

    Raises:
        DataError: it is not so; up to three of the pictures are named.
    """
    strange = [image for image in candidates if image not in references]
    if strange and len(strange) == len(candidates):
        raise DataError(
            f"none of the captioned pictures has references: {_some(strange)}",
            try_="captions of the split that the references are of",
        )
    if strange:
        raise DataError(
            f"captions of pictures that are not among the references: {_some(strange)}",
            try_="captions of this split alone",
        )
    bare = [image for image in candidates if not references[image]]
    if bare:
        raise DataError(
            f"no reference captions for {_some(bare)}", try_="references for each picture"
        )
    missing = [image for image in references if image not in candidates]
    if missing:
        raise DataError(
            f"no caption for {_some(missing)}", try_="a caption for each picture of the split"
        )
    if not candidates:
        raise DataError("no captions to score", try_="at least one picture with references")


def _some(images: Sequence[str]) -> str:
    named = ", ".join(map(str, images[:_NAMED]))
    rest = len(images) - _NAMED
    return named if rest <= 0 else f"{named} and {rest:,} more"

"""How a figure of ours came about otherwise than the paper's: only what is known, in words.

What is not recorded of a model is said not to be; nothing is claimed of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from xvlm_core.metrics.paper import PaperFigure

if TYPE_CHECKING:
    from xvlm_core.weights.background import Background

_TWICE = "the released code counts those twice that fill up a last batch"
_COUNTED = {
    "nlvr2": f"each pair counts once; {_TWICE}",
    "grounding": f"each expression counts once; {_TWICE}",
    "weak_grounding": f"each expression counts once; {_TWICE}",
}
_PAPERS_DATA = "the paper's 4M: COCO, VG, SBU, CC3M; 16M: CC12M, Objects365 and OpenImages besides"
_CANDIDATES = {"coco-karpathy": 256, "flickr30k": 128}
"""k_test of the released configurations."""


@dataclass(frozen=True)
class Model:
    """What is known of the model that answered.

    Attributes:
        size: named size.
        image_size: side of the pictures that it saw, pixels.
        about: what it says of itself.
        background: how it was trained.
    """

    size: str
    image_size: int
    about: str
    background: Background


@dataclass(frozen=True)
class Answers:
    """What is known of how the answers were found.

    Attributes:
        n: items.
        split: of the data.
        found_by: grounding without boxes: boxes by what they are; empty: not known.
        proposals: the stores that proposals are from; empty: the records' own.
        candidates: retrieval: how many were ranked by matching; None: not known.
    """

    n: int
    split: str
    found_by: Mapping[str, int] = field(default_factory=dict)
    proposals: Sequence[str] = ()
    candidates: int | None = None

    @classmethod
    def of(
        cls,
        predictions: Sequence[Mapping[str, Any]],
        *,
        n: int,
        split: str,
        proposals: Sequence[str],
    ) -> Answers:
        """Those that predictions tell of."""
        present = [p for p in predictions if p.get("present", False)]
        known = all("found_by" in p for p in present)
        return cls(
            n,
            split,
            Counter(p["found_by"] for p in present) if known else {},
            proposals,
            max((p["candidates"] for p in predictions if "candidates" in p), default=None),
        )


def caveats(found: PaperFigure, answers: Answers, model: Model | None) -> list[str]:
    """How our figure came about otherwise than the paper's, in words.

    Args:
        found: the paper's.
        answers: ours.
        model: that answered; None: not known.
    """
    out = []
    if found.n is not None and answers.n != found.n:
        out.append(f"{found.metric}: {answers.n:,} items here, {found.n:,} in the official split")
    if model is None:
        out.append("which model answered is not known")
    else:
        out += [*_shape(found, model), *_training(found, answers.split, model)]
    if found.task in _COUNTED:
        out.append(_COUNTED[found.task])
    if found.task == "weak_grounding":
        out.append(_boxes(answers))
    return out + _ranking(found, answers)


def _shape(found: PaperFigure, model: Model) -> list[str]:
    out, size = [], model.image_size
    if model.size != "base":
        out.append(f"the model here is of size {model.size}, the paper's has 216 M parameters")
    if found.image_size is None:
        out.append(f"pictures of {size} px here; the paper does not say how large its are")
    elif size != found.image_size:
        out.append(f"pictures of {size} px here, of {found.image_size} px in the paper")
    return out


def _training(found: PaperFigure, split: str, model: Model) -> list[str]:
    known = model.background
    if not known.is_recorded:
        itself = f" (it says of itself: {model.about})" if model.about else ""
        return [f"how the model here was trained is not recorded{itself}"]
    return [*_pretraining(known), *_extra_step(found.task, known), *_choice(found, split, known)]


def _pretraining(known: Background) -> list[str]:
    if known.pretrained_on:
        stores = ", ".join(known.pretrained_on)
        before = "" if known.is_whole else f" (before that, as {known.start} was)"
        return [f"pre-trained on the stores {stores} here{before}; {_PAPERS_DATA}"]
    if known.is_whole:
        return [f"not pre-trained here; {_PAPERS_DATA}"]
    said = f"what the model here was pre-trained on is not recorded (it starts from {known.start})"
    return [f"{said}; {_PAPERS_DATA}"]


def _extra_step(task: str, known: Background) -> list[str]:
    """The step between pre-training and fine-tuning that the paper's model of a task has."""
    done, what = {
        "nlvr2": (known.on_pairs, "pre-training on texts with two pictures"),
        "grounding": (known.on_boxes, "pre-training on boxes alone"),
        "captioning": (known.on_captions, "pre-training to write captions"),
    }.get(task, (True, ""))
    if done:
        return []
    if known.is_whole:
        return [f"without the extra {what} here; the paper's model has it"]
    return [f"whether the model here had the paper's extra {what} is not recorded"]


def _choice(found: PaperFigure, split: str, known: Background) -> list[str]:
    out = []
    if known.chosen_on == split:
        out.append(f"the checkpoint was chosen on this very split ({split})")
    elif found.task == "retrieval" and known.chosen_on is not None:
        out.append(f"chosen on {known.chosen_on} here, on test in the released code")
    of_refcoco = any("refcoco" in name.lower() for name in known.pretrained_on)
    if found.dataset == "refcoco+" and known.is_whole and not of_refcoco:
        out.append("the released 16M configuration also names RefCOCO expressions as region data")
    return out


def _boxes(answers: Answers) -> str:
    """Out of what the boxes of grounding without boxes were chosen."""
    paper = "in the paper it is one of MAttNet's proposals"
    chosen = answers.found_by.get("proposal", 0)
    n = chosen + answers.found_by.get("heat map", 0)  # the others have no heat: nothing was chosen
    if not n:
        return f"out of what the box of an expression was chosen is not recorded; {paper}"
    if not chosen:
        return f"without proposals here: the box is what is hot in the heat map; {paper}"
    where = ", ".join(answers.proposals) or "the records themselves"
    some = "" if chosen == n else f" for {chosen:,} of {n:,} expressions"
    return f"the box is one of the proposals of {where} here{some}; {paper}"


def _ranking(found: PaperFigure, answers: Answers) -> list[str]:
    k, usual = answers.candidates, _CANDIDATES.get(found.dataset)
    if not found.task.startswith("retrieval") or k is None or usual in (None, k):
        return []
    return [f"the {k:,} nearest are ranked by matching here, {usual} in the released configuration"]

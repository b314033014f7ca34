"""The figures of grounding, from predictions alone. NumPy only.

A prediction has the answer (``box_xyxy_px``: corners in pixels of the original picture, neither
clipped nor rounded; ``probability``: that the phrase is there at all) and what it is compared with:
``id``, ``image``, ``phrase``, ``kind``, ``like``, ``present``, ``target_xyxy_px``,
``other_targets_xyxy_px``, ``width``, ``height``, ``objects_xyxy_px``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xvlm_core.data.boxes import cxcywh_to_xyxy
from xvlm_core.decision import PROBABLE, is_probable
from xvlm_core.metrics.bootstrap import Interval, interval, intervals
from xvlm_core.metrics.box_accuracy import (
    HIT_IOU,
    accuracy_at,
    best_constant_box,
    iou_inclusive_pixel,
    iou_plain,
    mean_iou,
)
from xvlm_core.metrics.calibration import ece, ece_interval, roc_auc, roc_auc_interval
from xvlm_core.tasks.base import Prediction, Score, Scores
from xvlm_core.tasks.presence import pictures_of

Floats = NDArray[np.float64]

SELECTION = "accuracy@0.5"

NO_ANSWER: dict[str, Any] = {"box_xyxy_px": None, "probability": None}
"""What stands for a missing answer: no box, and the wrong side of presence."""

SMALL, LARGE = 32.0**2, 96.0**2
"""Area of a box in pixels of the original picture below which it is small, from which on large:
COCO's limits (https://cocodataset.org/#detection-eval), there of the mask, here of the box."""


def score(predictions: Sequence[Prediction], split: str) -> Scores:
    """Accuracy of the boxes of phrases that are there; ROC area of present against absent.

    The headline uses the IoU of the released code (inclusive pixels); the breakdowns by kind and
    size and the baselines use the plain one. Each id counts once. Intervals: of 95 %, by the
    bootstrap over pictures.
    """
    unique = {p["id"]: p for p in predictions}
    assert len(unique) == len(predictions), "an id is predicted twice"
    answered = [_as_wrong_as_can_be(p) for p in predictions]
    present = [p for p in answered if p["present"]]
    scores: Scores = {}
    if present:
        scores |= _box_scores(present, split)
    absent = [p for p in answered if not p["present"]]
    if present and absent:
        scores |= _presence_scores(present, absent, split)
    return scores


def presence(predictions: Sequence[Prediction]) -> tuple[list[float], list[bool]]:
    """What was said of each phrase's being there, and whether it is."""
    answered = [_as_wrong_as_can_be(p) for p in predictions]
    return [p["probability"] for p in answered], [p["present"] for p in answered]


def _as_wrong_as_can_be(prediction: Prediction) -> Prediction:
    """The prediction, with an answer in place of one that is missing."""
    filled = dict(prediction)
    if filled["box_xyxy_px"] is None:
        filled["box_xyxy_px"] = (0.0, 0.0, 0.0, 0.0)
    if filled["probability"] is None:
        filled["probability"] = 0.0 if filled["present"] else 1.0
    return filled


def size_of(area_px: float) -> str:
    """small, medium or large."""
    return "small" if area_px < SMALL else "medium" if area_px < LARGE else "large"


def _box_scores(present: Sequence[Prediction], split: str) -> Scores:
    boxes = np.array([p["box_xyxy_px"] for p in present], dtype=np.float64)
    targets = np.array([p["target_xyxy_px"] for p in present], dtype=np.float64)
    # the box that counts is the nearest of those that the phrase names
    right = [np.array([p["target_xyxy_px"], *p["other_targets_xyxy_px"]]) for p in present]
    pairs = list(zip(boxes, right, strict=True))
    plain = np.array([iou_plain(box[None], some).max() for box, some in pairs])
    inclusive = np.array(
        [iou_inclusive_pixel(_xywh(box[None]), _xywh(some)).max() for box, some in pairs]
    )
    hits = (plain >= HIT_IOU).astype(np.float64)
    columns: dict[str, tuple[Floats, str]] = {
        SELECTION: ((inclusive >= HIT_IOU).astype(np.float64), "inclusive-pixel IoU, as released"),
        "accuracy@0.5 plain": (hits, "plain IoU"),
        "mean IoU": (plain, "plain IoU"),
    }
    kinds = np.array([p["kind"] for p in present], dtype=object)
    for kind in sorted(set(kinds)):
        columns[f"accuracy@0.5 [{kind}]"] = (np.where(kinds == kind, hits, np.nan), "plain IoU")
    areas = (targets[:, 2:] - targets[:, :2]).prod(axis=1)
    sizes = np.array([size_of(area) for area in areas], dtype=object)
    for size, limits in (
        ("small", "of less than 32 x 32 px"),
        ("medium", "of 32 x 32 up to 96 x 96 px"),
        ("large", "of 96 x 96 px or more"),
    ):
        if (sizes == size).any():
            columns[f"accuracy@0.5 [size: {size}]"] = (
                np.where(sizes == size, hits, np.nan),
                f"plain IoU, true box {limits} of the original",
            )
    spread = intervals(
        {name: column for name, (column, _) in columns.items()}, pictures_of(present)
    )
    scores: Scores = {}
    for name, (column, convention) in columns.items():
        counted = column[~np.isnan(column)]
        scores[name] = Score(
            mean_iou(counted), split, convention, len(counted), interval=spread[name]
        )
    return scores | _baselines(present, targets, right, split)


def _baselines(
    present: Sequence[Prediction], targets: Floats, right: Sequence[Floats], split: str
) -> Scores:
    """What is reached without a look; they too may name any of the things that a phrase fits."""
    n = len(present)
    sizes = np.array([[p["width"], p["height"]] * 2 for p in present], dtype=np.float64)
    fractions = targets / sizes
    centre = (fractions[:, :2] + fractions[:, 2:]) / 2
    constant = best_constant_box(np.concatenate([centre, fractions[:, 2:] - fractions[:, :2]], 1))
    constant_px = cxcywh_to_xyxy(np.array(constant.box_cxcywh)) * sizes
    hits = [iou_plain(box, some).max() for box, some in zip(constant_px, right, strict=True)]
    objects = [np.array(p["objects_xyxy_px"], dtype=np.float64).reshape(-1, 4) for p in present]
    return {
        "baseline: best constant box": Score(
            accuracy_at(hits), split, "plain IoU, box chosen on this very split", n
        ),
        "baseline: random object": Score(
            _random_object(objects, right), split, "plain IoU, exact expectation", n
        ),
    }


def _random_object(objects: Sequence[Floats], right: Sequence[Floats]) -> float:
    """Expected accuracy of a true object drawn uniformly; without any, the phrase is missed."""
    expected = [
        accuracy_at(iou_plain(some[:, None], boxes[None]).max(axis=1)) if len(some) else 0.0
        for some, boxes in zip(objects, right, strict=True)
    ]
    return float(np.mean(expected))


def _presence_scores(
    present: Sequence[Prediction], absent: Sequence[Prediction], split: str
) -> Scores:
    scores: Scores = {}
    kinds = sorted({p["kind"] for p in absent})
    for name, some in [("", list(absent))] + [
        (f" [{kind}]", [p for p in absent if p["kind"] == kind]) for kind in kinds
    ]:
        if name and len(kinds) == 1:
            continue
        found = like_with_like(present, some)
        if found.n:
            convention = "ROC area, absent phrases against present ones worded alike"
            scores[f"presence AUC{name}"] = Score(
                found.area, split, convention, found.n, interval=found.interval
            )
    for kind in kinds:
        some = [p for p in absent if p["kind"] == kind]
        alarms = [float(is_probable(p["probability"])) for p in some]
        scores[f"false alarms [{kind}]"] = Score(
            sum(alarms) / len(alarms),
            split,
            f"absent phrases said to be there: {PROBABLE} or more",
            len(alarms),
            interval=interval(alarms, pictures_of(some)),
        )
    rows = [*present, *absent]
    said, there = [p["probability"] for p in rows], [p["present"] for p in rows]
    scores["presence ECE"] = Score(
        ece(said, there),
        split,
        "calibration error, 10 bins (smaller: better)",
        len(rows),
        interval=ece_interval(said, there, pictures_of(rows)),
    )
    return scores


@dataclass(frozen=True)
class LikeWithLike:
    """A ROC area within wordings.

    Attributes:
        area: that of each wording, weighted by its number of pairs.
        n: the phrases that count.
        interval: 95 % of what as many pictures, drawn again, would give.
    """

    area: float
    n: int
    interval: Interval | None


def like_with_like(present: Sequence[Prediction], absent: Sequence[Prediction]) -> LikeWithLike:
    """ROC area within each wording.

    A phrase of another wording is told apart without a look at the picture ("leftmost ..." is
    always there): comparing unlike with unlike would flatter.
    """
    rows = [*present, *absent]
    said, there = [p["probability"] for p in rows], [p["present"] for p in rows]
    total = pairs = 0.0
    groups: list[list[int]] = []
    for like in dict.fromkeys(p["like"] for p in absent):
        negatives = [n for n, p in enumerate(absent, len(present)) if p["like"] == like]
        positives = [n for n, p in enumerate(present) if like is None or p["like"] == like]
        if positives:
            group, weight = [*positives, *negatives], len(positives) * len(negatives)
            area = roc_auc([said[n] for n in group], [there[n] for n in group])
            total, pairs = total + weight * area, pairs + weight
            groups.append(group)
    if not groups:
        return LikeWithLike(0.5, 0, None)
    spread = roc_auc_interval(said, there, pictures_of(rows), groups)
    return LikeWithLike(total / pairs, sum(map(len, groups)), spread)


def _xywh(boxes_xyxy: Floats) -> Floats:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)

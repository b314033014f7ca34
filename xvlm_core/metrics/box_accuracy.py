"""Intersection over union, accuracy of predicted boxes, and the baselines to compare it with.

NumPy only. Two conventions of IoU stand side by side, each named wherever a figure is shown:

* plain: area of the intersection over area of the union, continuous boxes;
* inclusive pixel: the released X-VLM code's (official.md 3.4), with which RefCOCO+ rows are made.
  Since x2 = x + w - 1 and the overlap counts + 1, it differs from the plain one in a single point:
  an overlap of at most one pixel in either direction counts as none.

All IoU functions broadcast: ``iou_plain(a[:, None], b[None])`` is the table of all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

HIT_IOU = 0.5
"""A box is right when its IoU with the true one is at least this."""

_GRID = 9
_STARTS = 8
_MAX_TARGETS_IN_FIRST_ROUND = 1024
_CHUNK_PAIRS = 100_000


def iou_plain(boxes_xyxy: ArrayLike, other_boxes_xyxy: ArrayLike) -> Floats:
    """IoU of continuous boxes.

    Args:
        boxes_xyxy: corners ``(..., 4)``, any unit; an inverted box has no area.
        other_boxes_xyxy: corners in the same unit, a shape that broadcasts with the first.

    Returns:
        IoU in [0, 1], float64, the broadcast shape without its last axis; 0 where neither box has
        an area. Scaling an axis of both boxes changes nothing, so fractions and pixels agree.
    """
    a, b = _boxes(boxes_xyxy), _boxes(other_boxes_xyxy)
    shared = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    size_a = (a[..., 2:] - a[..., :2]).clip(0)
    size_b = (b[..., 2:] - b[..., :2]).clip(0)
    # An overlap is never longer than either box: an inverted box has none.
    shared = np.minimum(shared, np.minimum(size_a, size_b)).clip(0)
    return _ratio(shared.prod(axis=-1), size_a.prod(axis=-1), size_b.prod(axis=-1))


def iou_inclusive_pixel(boxes_xywh: ArrayLike, other_boxes_xywh: ArrayLike) -> Floats:
    """IoU as the released code computes it for RefCOCO+ (official.md 3.4).

    x2 = x + w - 1, y2 = y + h - 1; the overlap counts + 1 and is zero unless x1 < x2 and y1 < y2
    strictly; the union is made of w * h without + 1.

    Args:
        boxes_xywh: corner and size in pixels of the original picture ``(..., 4)``, neither
            clipped nor rounded; sizes are positive.
        other_boxes_xywh: the same, a shape that broadcasts with the first.

    Returns:
        IoU in [0, 1], float64, the broadcast shape without its last axis.
    """
    a, b = _boxes(boxes_xywh), _boxes(other_boxes_xywh)
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:] - 1, b[..., :2] + b[..., 2:] - 1)
    overlaps = (low < high).all(axis=-1)
    intersection = np.where(overlaps, (high - low + 1).prod(axis=-1), 0.0)
    return _ratio(intersection, a[..., 2:].prod(axis=-1), b[..., 2:].prod(axis=-1))


def accuracy_at(ious: ArrayLike, threshold: float = HIT_IOU) -> float:
    """Share of the N items whose IoU is at least ``threshold``; N > 0."""
    values = np.asarray(ious, dtype=np.float64)
    assert values.size, "the accuracy of no items is undefined"
    return float((values >= threshold).mean())


def mean_iou(ious: ArrayLike) -> float:
    """Mean IoU of the N items; N > 0."""
    values = np.asarray(ious, dtype=np.float64)
    assert values.size, "the mean of no items is undefined"
    return float(values.mean())


@dataclass(frozen=True)
class KindAccuracy:
    """Figures of one kind of phrase: accuracy at the threshold, mean IoU, number of items."""

    accuracy: float
    mean_iou: float
    n: int


def accuracy_by(
    kinds: Sequence[str], ious: ArrayLike, threshold: float = HIT_IOU
) -> dict[str, KindAccuracy]:
    """Accuracy and mean IoU of each kind, kinds in alphabetical order.

    Args:
        kinds: kind of each of N items.
        ious: IoU of each, ``(N,)``.
        threshold: IoU of a hit.
    """
    values = np.asarray(ious, dtype=np.float64)
    assert values.shape == (len(kinds),), "one IoU for each kind"
    names = np.asarray(kinds, dtype=object)
    table: dict[str, KindAccuracy] = {}
    for kind in sorted(set(kinds)):
        own = values[names == kind]
        table[kind] = KindAccuracy(accuracy_at(own, threshold), mean_iou(own), len(own))
    return table


@dataclass(frozen=True)
class ConstantBox:
    """The box that answers every phrase, and how often it is right."""

    box_cxcywh: tuple[float, float, float, float]
    accuracy: float


def best_constant_box(targets_cxcywh: ArrayLike, threshold: float = HIT_IOU) -> ConstantBox:
    """The best single answer to all phrases, chosen on these very targets (plain IoU).

    A baseline that looks at neither picture nor phrase, and is allowed to see the answers: what a
    model reaches beyond it, it owes to looking. The search takes a grid and the targets themselves
    as candidates and improves the best of them by steps of falling size; it is deterministic.

    Args:
        targets_cxcywh: true boxes as fractions of their pictures, ``(N, 4)``; N > 0.
        threshold: IoU of a hit.
    """
    targets_xyxy = _xyxy(_boxes(targets_cxcywh))
    assert targets_xyxy.ndim == 2, "targets are (N, 4)"
    assert len(targets_xyxy), "no targets"
    few_xyxy = _thinned(targets_xyxy)
    candidates = _candidates(few_xyxy)
    scores = _constant_scores(candidates, few_xyxy, threshold)
    starts = candidates[np.argsort(-scores, kind="stable")[:_STARTS]]
    good = _climb(starts, few_xyxy, threshold)
    best = good[[_constant_scores(good, targets_xyxy, threshold).argmax()]]
    x1, y1, x2, y2 = (float(v) for v in _climb(best, targets_xyxy, threshold)[0])
    accuracy = accuracy_at(iou_plain((x1, y1, x2, y2), targets_xyxy), threshold)
    return ConstantBox(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), accuracy)


def _boxes(boxes: ArrayLike) -> Floats:
    array = np.asarray(boxes, dtype=np.float64)
    assert array.shape[-1:] == (4,), f"boxes are (..., 4), not {array.shape}"
    return array


def _ratio(intersection: Floats, area: Floats, other_area: Floats) -> Floats:
    union = np.asarray(area + other_area - intersection)
    out: Floats = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    return out


def _xyxy(boxes_cxcywh: Floats) -> Floats:
    half = boxes_cxcywh[..., 2:] / 2
    return np.concatenate([boxes_cxcywh[..., :2] - half, boxes_cxcywh[..., :2] + half], axis=-1)


def _climb(boxes_xyxy: Floats, targets_xyxy: Floats, threshold: float) -> Floats:
    """Move the edges of each box, by steps of falling size, as long as its score rises."""
    boxes, scores = boxes_xyxy, _constant_scores(boxes_xyxy, targets_xyxy, threshold)
    rows = np.arange(len(boxes))
    step = 1 / (2 * _GRID)
    while step > 1e-3:
        better = True
        while better:
            around = boxes[:, None] + step * _neighbours()
            new = _constant_scores(around.reshape(-1, 4), targets_xyxy, threshold)
            new = new.reshape(len(boxes), -1)
            choice = new.argmax(axis=1)
            gain = new[rows, choice] > scores
            boxes = np.where(gain[:, None], around[rows, choice], boxes)
            scores = np.where(gain, new[rows, choice], scores)
            better = bool(gain.any())
        step /= 2
    return boxes


def _candidates(targets_xyxy: Floats) -> Floats:
    """Every box with corners on a grid over the picture, and the targets."""
    lines = np.linspace(0, 1, _GRID + 1)
    x1, x2 = (lines[i] for i in np.triu_indices(_GRID + 1, k=1))
    n = len(x1)
    across, down = np.repeat(np.arange(n), n), np.tile(np.arange(n), n)
    grid = np.stack([x1[across], x1[down], x2[across], x2[down]], axis=-1)
    return np.concatenate([grid, np.unique(targets_xyxy, axis=0)])


def _thinned(targets_xyxy: Floats) -> Floats:
    """All targets, or every k-th where there are many: enough to choose where to start."""
    return targets_xyxy[:: -(-len(targets_xyxy) // _MAX_TARGETS_IN_FIRST_ROUND)]


def _neighbours() -> Floats:
    """The 80 moves of the four edges by -1, 0 or 1."""
    moves = np.stack(np.meshgrid(*[[-1.0, 0.0, 1.0]] * 4), axis=-1).reshape(-1, 4)
    return moves[moves.any(axis=1)]


def _constant_scores(candidates_xyxy: Floats, targets_xyxy: Floats, threshold: float) -> Floats:
    """Hits of each candidate; the mean IoU, below 1 hit, guides where hits are equal."""
    rows = max(1, _CHUNK_PAIRS // len(targets_xyxy))
    scores = []
    for start in range(0, len(candidates_xyxy), rows):
        ious = iou_plain(candidates_xyxy[start : start + rows, None], targets_xyxy[None])
        scores.append((ious >= threshold).sum(axis=1) + 0.5 * ious.mean(axis=1))
    return np.concatenate(scores)

"""Boxes in NumPy: formats, crops that keep a box, patch masks. The name says the format.

``xyxy`` corners (half-open), ``xywh`` corner and size, ``cxcywh`` centre and size; ``_px`` pixels,
otherwise fractions of the picture. The last axis has the four numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Boxes = NDArray[np.float64]

_TOLERANCE_PX = 1e-3
"""A box may leave its picture by this much: sums of rounded numbers do."""

_ROUNDING = 1e-6
"""Share of a patch that a box edge may cross by rounding alone (float32 sums) and not count."""


def cxcywh_to_xyxy(boxes_cxcywh: ArrayLike) -> Boxes:
    """Centre and size to corners, (..., 4)."""
    cx, cy, w, h = _columns(boxes_cxcywh)
    return np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=-1)


def xywh_to_xyxy(boxes_xywh: ArrayLike) -> Boxes:
    """Corner and size to corners, (..., 4)."""
    x, y, w, h = _columns(boxes_xywh)
    return np.stack([x, y, x + w, y + h], axis=-1)


def xyxy_to_xywh(boxes_xyxy: ArrayLike) -> Boxes:
    """Corners to corner and size, (..., 4)."""
    x1, y1, x2, y2 = _columns(boxes_xyxy)
    return np.stack([x1, y1, x2 - x1, y2 - y1], axis=-1)


def clip_box_xyxy_px(box_xyxy_px: ArrayLike, width: float, height: float) -> Boxes:
    """Cut boxes (..., 4) at the edges of a picture of ``width`` x ``height`` pixels."""
    x1, y1, x2, y2 = _columns(box_xyxy_px)
    return np.stack(
        [x1.clip(0, width), y1.clip(0, height), x2.clip(0, width), y2.clip(0, height)], axis=-1
    )


def box_problem(box_xyxy_px: Sequence[object], width: float, height: float) -> str | None:
    """Why a box is no box of a picture of ``width`` x ``height`` pixels; None if it is one.

    Returns:
        "box malformed" (not four numbers), "box not finite", "box has no area" (empty or
        inverted), "box outside the picture" (any part of it), or None.
    """
    numbers = [
        float(v)
        for v in box_xyxy_px
        if isinstance(v, (int, float, np.integer, np.floating)) and not isinstance(v, bool)
    ]
    if len(numbers) != 4 or len(box_xyxy_px) != 4:
        return "box malformed"
    if not all(map(math.isfinite, numbers)):
        return "box not finite"
    x1, y1, x2, y2 = numbers
    if x2 <= x1 or y2 <= y1:
        return "box has no area"
    slack = _TOLERANCE_PX
    if x1 < -slack or y1 < -slack or x2 > width + slack or y2 > height + slack:
        return "box outside the picture"
    return None


def patch_mask(box_xywh_px: Sequence[float], grid: int, patch: int) -> NDArray[np.bool_]:
    """Which patches of a ``grid`` x ``grid`` picture a box touches, (grid * grid,), row-major.

    The official rule: every patch the box touches, at least one. ``patch`` is the side of a patch
    in pixels of the resized picture (32 for Swin), in which the box is given too.
    """
    x, y, w, h = box_xywh_px
    first_column, end_column = _patch_range(x, x + w, grid, patch)
    first_row, end_row = _patch_range(y, y + h, grid, patch)
    mask = np.zeros((grid, grid), dtype=bool)
    mask[first_row:end_row, first_column:end_column] = True
    return mask.reshape(-1)


def _patch_range(start: float, end: float, grid: int, patch: int) -> tuple[int, int]:
    first = min(max(math.floor(start / patch + _ROUNDING), 0), grid - 1)
    return first, max(first + 1, min(math.ceil(end / patch - _ROUNDING), grid))


@dataclass(frozen=True)
class Crop:
    """A rectangle of whole pixels, half-open: columns left..right-1, rows top..bottom-1."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top


class CarriedBoxes(NamedTuple):
    """Boxes that survive a crop: their indices (K,) and their place in the new picture (K, 4)."""

    kept: NDArray[np.intp]
    boxes_xyxy_px: Boxes


def crop_with_boxes(
    width: int,
    height: int,
    keep_box_xyxy_px: Sequence[float],
    rng: np.random.Generator,
    *,
    compat_official: bool = False,
) -> Crop:
    """A random crop of the picture that contains one box, uniform in each of its four edges.

    Args:
        width: of the picture, pixels.
        height: of the picture, pixels.
        keep_box_xyxy_px: the box that stays whole; it must lie in the picture.
        rng: source of the draws.
        compat_official: cut the numbers of the box (corner and size) to integers first.
    """
    assert box_problem(keep_box_xyxy_px, width, height) is None, keep_box_xyxy_px
    box = np.asarray(keep_box_xyxy_px, dtype=np.float64)
    x1, y1, x2, y2 = (float(v) for v in (_cut_to_integers(box) if compat_official else box))
    # At least a pixel stays even of a box that rounding put wholly outside.
    column, row = (min(max(math.floor(v), 0), side - 1) for v, side in ((x1, width), (y1, height)))
    left = int(rng.integers(column, endpoint=True))
    top = int(rng.integers(row, endpoint=True))
    right = int(rng.integers(max(min(math.ceil(x2), width), column + 1), width, endpoint=True))
    bottom = int(rng.integers(max(min(math.ceil(y2), height), row + 1), height, endpoint=True))
    return Crop(left, top, right, bottom)


def carry_boxes(
    boxes_xyxy_px: ArrayLike,
    crop: Crop,
    flip: bool,
    size: int,
    min_inside: float = 0.5,
    *,
    compat_official: bool = False,
) -> CarriedBoxes:
    """Boxes of a picture that is cropped, mirrored if ``flip``, and resized to ``size`` square.

    A box is kept if strictly more than ``min_inside`` of its area lies in the crop; it is then
    cut at the edge of the crop. Kept boxes keep their order.

    Args:
        boxes_xyxy_px: (N, 4), of the whole picture.
        crop: as from ``crop_with_boxes``.
        flip: whether the cropped picture is mirrored left to right.
        size: side of the resized picture, pixels.
        min_inside: share of a box's own area.
        compat_official: cut the numbers of the boxes to integers first; a box without area
            after that is dropped.
    """
    boxes = np.asarray(boxes_xyxy_px, dtype=np.float64).reshape(-1, 4)
    if compat_official:
        boxes = _cut_to_integers(boxes)
    offset = np.array([crop.left, crop.top, crop.left, crop.top], dtype=np.float64)
    inside = clip_box_xyxy_px(boxes - offset, crop.width, crop.height)
    own_area, inside_area = _area(boxes), _area(inside)
    kept = np.flatnonzero((own_area > 0) & (inside_area > min_inside * own_area))
    x1, y1, x2, y2 = _columns(inside[kept])
    if flip:
        x1, x2 = crop.width - x2, crop.width - x1
    across, down = size / crop.width, size / crop.height
    return CarriedBoxes(kept, np.stack([x1 * across, y1 * down, x2 * across, y2 * down], axis=-1))


def _columns(boxes: ArrayLike) -> tuple[Boxes, Boxes, Boxes, Boxes]:
    array = np.asarray(boxes, dtype=np.float64)
    assert array.shape[-1:] == (4,), array.shape
    return array[..., 0], array[..., 1], array[..., 2], array[..., 3]


def _area(boxes_xyxy: Boxes) -> NDArray[np.float64]:
    x1, y1, x2, y2 = _columns(boxes_xyxy)
    area: NDArray[np.float64] = (x2 - x1).clip(0) * (y2 - y1).clip(0)
    return area


def _cut_to_integers(boxes_xyxy_px: Boxes) -> Boxes:
    """Corner and size cut to integers; sizes that are whole but for rounding stay whole."""
    rounded: Boxes = np.round(xyxy_to_xywh(boxes_xyxy_px), 6)
    return xywh_to_xyxy(np.trunc(rounded))

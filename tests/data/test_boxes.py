from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from xvlm_core.data.augment import crop_and_resize
from xvlm_core.data.boxes import (
    Crop,
    box_problem,
    carry_boxes,
    clip_box_xyxy_px,
    crop_with_boxes,
    cxcywh_to_xyxy,
    patch_mask,
    xywh_to_xyxy,
    xyxy_to_xywh,
)

sizes = st.integers(8, 300)


@st.composite
def pictures_with_a_box(draw: st.DrawFn) -> tuple[int, int, tuple[float, float, float, float]]:
    width, height = draw(sizes), draw(sizes)
    w, h = draw(st.floats(1, width)), draw(st.floats(1, height))
    x, y = draw(st.floats(0, width - w)), draw(st.floats(0, height - h))
    return width, height, (x, y, min(x + w, width), min(y + h, height))


def test_each_format_means_what_its_name_says() -> None:
    xyxy, xywh, cxcywh = (10, 20, 40, 80), (10, 20, 30, 60), (25, 50, 30, 60)
    assert xyxy_to_xywh(xyxy).tolist() == list(xywh)
    assert xywh_to_xyxy(xywh).tolist() == list(xyxy)
    assert cxcywh_to_xyxy(cxcywh).tolist() == list(xyxy)
    assert xyxy_to_xywh(np.array([[xyxy, xyxy]])).shape == (1, 2, 4)


def test_clipping_cuts_at_the_picture() -> None:
    boxes = clip_box_xyxy_px([[-5, 3, 70, 90], [100, 100, 200, 200]], 60, 40)
    assert boxes.tolist() == [[0, 3, 60, 40], [60, 40, 60, 40]]


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ((0, 0, 160, 90), None),
        ((10.4, 10.4, 60.6, 60.6), None),
        ((0, 0, 160.0000001, 90), None),
        ((math.nan, 0, 10, 10), "box not finite"),
        ((0, 0, math.inf, 10), "box not finite"),
        ((60, 60, 30, 40), "box has no area"),
        ((10, 10, 10, 60), "box has no area"),
        ((10, 10, 60, 10), "box has no area"),
        ((-5, 10, 45, 60), "box outside the picture"),
        ((10, -1, 60, 49), "box outside the picture"),
        ((140, 10, 190, 60), "box outside the picture"),
        ((10, 60, 60, 110), "box outside the picture"),
        ((500, 500, 510, 510), "box outside the picture"),
        (("10", "10", "50", "50"), "box malformed"),
        ((10, 10, 50), "box malformed"),
        ((10, 10, 50, 50, 50), "box malformed"),
        ((True, 0, 10, 10), "box malformed"),
    ],
)
def test_invalid_boxes_are_named(box: tuple[float, ...], problem: str | None) -> None:
    assert box_problem(box, 160, 90) == problem


def patches(box_xywh_px: tuple[float, float, float, float], grid: int) -> set[tuple[int, int]]:
    mask = patch_mask(box_xywh_px, grid, 32).reshape(grid, grid)
    return {(int(row), int(column)) for row, column in np.argwhere(mask)}


@pytest.mark.parametrize(
    ("box_xywh_px", "expected"),
    [
        ((0, 0, 128, 128), {(r, c) for r in range(4) for c in range(4)}),
        ((0, 0, 32, 32), {(0, 0)}),
        ((0, 0, 33, 32), {(0, 0), (0, 1)}),
        ((31, 64, 2, 1), {(2, 0), (2, 1)}),
        ((40, 40, 0, 0), {(1, 1)}),
        ((64, 64, 0, 0), {(2, 2)}),
        ((32, 0, 32.00001, 32), {(0, 1)}),
        ((32, 0, 32.001, 32), {(0, 1), (0, 2)}),
        ((128, 128, 0, 0), {(3, 3)}),
        ((127.5, 0, 30, 10), {(0, 3)}),
        ((64, 32, 32, 64), {(1, 2), (2, 2)}),
        ((63.9999999, 0, 32.0000001, 32), {(0, 2)}),
    ],
)
def test_patch_mask_has_every_patch_the_box_touches(
    box_xywh_px: tuple[float, float, float, float], expected: set[tuple[int, int]]
) -> None:
    assert patches(box_xywh_px, 4) == expected


@given(pictures_with_a_box())
def test_patch_mask_is_a_full_rectangle_of_at_least_one_patch(
    given_picture: tuple[int, int, tuple[float, float, float, float]],
) -> None:
    width, height, box = given_picture
    resized = np.array(box) * [224 / width, 224 / height, 224 / width, 224 / height]
    mask = patch_mask(xyxy_to_xywh(resized).tolist(), 7, 32).reshape(7, 7)
    assert mask.dtype == bool
    assert mask.any()
    assert np.array_equal(mask, np.outer(mask.any(axis=1), mask.any(axis=0)))


@given(pictures_with_a_box(), st.integers(0, 2**32), st.booleans(), st.booleans())
def test_the_kept_box_stays_whole_and_inside(
    given_picture: tuple[int, int, tuple[float, float, float, float]],
    seed: int,
    flip: bool,
    compat: bool,
) -> None:
    width, height, box = given_picture
    rng = np.random.default_rng(seed)
    crop = crop_with_boxes(width, height, box, rng, compat_official=compat)
    assert 0 <= crop.left < crop.right <= width
    assert 0 <= crop.top < crop.bottom <= height
    kept, boxes = carry_boxes([box], crop, flip, 224, compat_official=compat)
    assert kept.tolist() == [0]
    assert boxes.min() >= 0
    assert boxes.max() <= 224 + 1e-9
    if not compat:
        scale = 224 * 224 / (crop.width * crop.height)
        own = (box[2] - box[0]) * (box[3] - box[1])
        carried = np.prod(xyxy_to_xywh(boxes[0])[2:])
        assert carried == pytest.approx(own * scale, rel=1e-6)


@given(pictures_with_a_box(), st.integers(0, 2**32))
def test_flipping_twice_is_the_identity(
    given_picture: tuple[int, int, tuple[float, float, float, float]], seed: int
) -> None:
    width, height, box = given_picture
    crop = crop_with_boxes(width, height, box, np.random.default_rng(seed))
    once = carry_boxes([box], crop, True, 100).boxes_xyxy_px
    twice = carry_boxes(once, Crop(0, 0, 100, 100), True, 100).boxes_xyxy_px
    unflipped = carry_boxes([box], crop, False, 100).boxes_xyxy_px
    assert twice == pytest.approx(unflipped, abs=1e-6)


@given(st.integers(40, 120), st.integers(40, 120), st.integers(0, 2**32), st.booleans())
def test_carried_boxes_lie_on_the_pixels_of_their_object(
    width: int, height: int, seed: int, flip: bool
) -> None:
    rng = np.random.default_rng(seed)
    x1, y1 = int(rng.integers(width - 12)), int(rng.integers(height - 12))
    x2, y2 = int(rng.integers(x1 + 12, width + 1)), int(rng.integers(y1 + 12, height + 1))
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[y1:y2, x1:x2] = 255
    crop = crop_with_boxes(width, height, (x1, y1, x2, y2), rng)
    size = 224
    out = np.asarray(crop_and_resize(Image.fromarray(pixels), crop, size, flip=flip))[..., 0]
    ((left, top, right, bottom),) = carry_boxes([(x1, y1, x2, y2)], crop, flip, size).boxes_xyxy_px
    rows, columns = np.flatnonzero((out > 127).any(1)), np.flatnonzero((out > 127).any(0))
    assert columns[0] == pytest.approx(left, abs=1)
    assert columns[-1] + 1 == pytest.approx(right, abs=1)
    assert rows[0] == pytest.approx(top, abs=1)
    assert rows[-1] + 1 == pytest.approx(bottom, abs=1)


def test_a_crop_reaches_every_place_that_keeps_the_box() -> None:
    rng = np.random.default_rng(0)
    crops = {crop_with_boxes(12, 10, (2.5, 1, 9.5, 10), rng) for _ in range(2000)}
    assert {crop.left for crop in crops} == {0, 1, 2}
    assert {crop.top for crop in crops} == {0, 1}
    assert {crop.right for crop in crops} == {10, 11, 12}
    assert {crop.bottom for crop in crops} == {10}


def test_boxes_are_kept_by_strictly_more_than_half_of_their_area() -> None:
    crop = Crop(10, 0, 110, 100)
    boxes = [(0, 0, 20, 10), (0, 0, 20.1, 10), (50, 50, 60, 60), (0, 0, 9, 9), (90, 0, 120, 50)]
    kept, carried = carry_boxes(boxes, crop, False, 200)
    assert kept.tolist() == [1, 2, 4]
    assert carried == pytest.approx(
        np.array([(0, 0, 20.2, 20), (80, 100, 100, 120), (160, 0, 200, 100)])
    )
    assert carry_boxes(boxes, crop, False, 200, min_inside=0.0).kept.tolist() == [0, 1, 2, 4]
    assert carry_boxes(np.zeros((0, 4)), crop, True, 200).boxes_xyxy_px.shape == (0, 4)


def test_compat_cuts_corner_and_size_to_integers() -> None:
    crop = Crop(0, 0, 100, 100)
    box = (10.9, 20.2, 40.1, 60.2)
    exact = carry_boxes([box], crop, False, 100).boxes_xyxy_px
    cut = carry_boxes([box], crop, False, 100, compat_official=True).boxes_xyxy_px
    assert exact[0].tolist() == pytest.approx(list(box))
    assert cut.tolist() == [[10, 20, 39, 60]]
    assert len(carry_boxes([(5, 5, 5.9, 9)], crop, False, 100, compat_official=True).kept) == 0

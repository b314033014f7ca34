"""Boxes: what is carried through crop, flip and resize, which patches it touches, what is kept."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from tests.properties.cases import cases
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
from xvlm_core.data.images import read_picture
from xvlm_core.data.records import Box
from xvlm_core.sources.base import InvalidBoxes, Rules
from xvlm_core.sources.cleaning import checked_box
from xvlm_core.sources.drafts import corners
from xvlm_core.sources.pictures import turn_box

sides = st.integers(1, 400)
sizes = st.sampled_from([32, 64, 224, 384])
numbers = st.floats(-1e4, 1e4, allow_nan=False)
seeds = st.integers(0, 2**32)


def stored(value: float) -> float:
    """As boxes stand in a store: four decimals."""
    return round(value, 4)


@st.composite
def spans(draw: st.DrawFn, side: int) -> tuple[float, float]:
    """Two different places from 0 to ``side``, often whole or at the edges."""
    places = st.one_of(st.integers(0, side), st.floats(0, side).map(stored))
    a, b = sorted((draw(places), draw(places)))
    assume(b - a >= 1e-4)
    return float(a), float(b)


@st.composite
def boxes_in(draw: st.DrawFn, width: int, height: int) -> Box:
    (x1, x2), (y1, y2) = draw(spans(width)), draw(spans(height))
    return x1, y1, x2, y2


@st.composite
def crops_in(draw: st.DrawFn, width: int, height: int) -> Crop:
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
    return Crop(left, top, right, bottom)


@st.composite
def scenes(draw: st.DrawFn, most: int = 6) -> tuple[int, int, list[Box], Crop]:
    """A picture's width and height, boxes in it, and a crop of it."""
    width, height = draw(sides), draw(sides)
    boxes = draw(st.lists(boxes_in(width, height), min_size=1, max_size=most))
    return width, height, boxes, draw(crops_in(width, height))


Scene = tuple[int, int, list[Box], Crop]


def exact_area(x1: float, y1: float, x2: float, y2: float) -> Fraction:
    return Fraction(max(x2, x1) - x1) * Fraction(max(y2, y1) - y1)


def share_inside(box: Box, crop: Crop) -> Fraction:
    x1, y1, x2, y2 = map(Fraction, box)
    across = max(min(x2, crop.right) - max(x1, crop.left), Fraction(0))
    down = max(min(y2, crop.bottom) - max(y1, crop.top), Fraction(0))
    return across * down / ((x2 - x1) * (y2 - y1))


@cases(120)
@given(scenes(), st.booleans(), sizes, st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_kept_boxes_lie_in_the_new_picture_and_are_those_with_the_share_inside(
    scene: Scene, flip: bool, size: int, least: float
) -> None:
    _, _, boxes, crop = scene
    kept, carried = carry_boxes(boxes, crop, flip, size, least)
    assert carried.shape == (len(kept), 4)
    assert (carried >= -1e-9).all()
    assert (carried <= size + 1e-9).all()
    assert (carried[:, 2:] > carried[:, :2]).all()
    assert kept.tolist() == sorted(kept.tolist())
    for number, box in enumerate(boxes):
        share = share_inside(box, crop)
        if abs(share - Fraction(least)) > Fraction(1, 10**6):
            assert (number in kept) == (share > least), (box, float(share))


@cases(80)
@given(scenes(), sizes)
def test_a_flip_mirrors_each_box_and_twice_is_the_identity(scene: Scene, size: int) -> None:
    _, _, boxes, crop = scene
    kept, plain = carry_boxes(boxes, crop, False, size)
    kept_mirrored, mirrored = carry_boxes(boxes, crop, True, size)
    assert kept.tolist() == kept_mirrored.tolist()
    assert mirrored[:, [1, 3]] == pytest.approx(plain[:, [1, 3]])
    assert mirrored[:, 0] + plain[:, 2] == pytest.approx(np.full(len(kept), size), abs=1e-6)
    assert mirrored[:, 2] + plain[:, 0] == pytest.approx(np.full(len(kept), size), abs=1e-6)
    again, twice = carry_boxes(mirrored, Crop(0, 0, size, size), True, size)
    assert len(again) == len(kept)
    assert twice == pytest.approx(plain, abs=1e-6)


@cases(80)
@given(scenes(), st.booleans(), st.integers(2, 5), sizes)
def test_carrying_and_resizing_can_change_places(
    scene: Scene, flip: bool, times: int, size: int
) -> None:
    _, _, boxes, crop = scene
    kept, carried = carry_boxes(boxes, crop, flip, size)
    larger = Crop(*(times * v for v in (crop.left, crop.top, crop.right, crop.bottom)))
    kept_first, resized_first = carry_boxes(np.array(boxes) * times, larger, flip, size)
    kept_then, resized_then = carry_boxes(boxes, crop, flip, size * times)
    clear = [abs(share_inside(box, crop) - Fraction(1, 2)) > 1e-9 for box in boxes]
    if all(clear):
        assert kept.tolist() == kept_first.tolist() == kept_then.tolist()
        assert resized_first == pytest.approx(carried, abs=1e-6)
        assert resized_then == pytest.approx(carried * times, abs=1e-6)


@cases(100)
@given(scenes(), st.booleans(), sizes, st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_point_of_an_object_stays_in_its_box(
    scene: Scene, flip: bool, size: int, at: tuple[float, float]
) -> None:
    _, _, boxes, crop = scene
    kept, carried = carry_boxes(boxes, crop, flip, size, 0.0)
    for number, (left, top, right, bottom) in zip(kept, carried, strict=True):
        x1, y1, x2, y2 = boxes[number]
        x, y = x1 + at[0] * (x2 - x1), y1 + at[1] * (y2 - y1)
        inside = crop.left <= x <= crop.right and crop.top <= y <= crop.bottom
        u, v = (x - crop.left) / crop.width, (y - crop.top) / crop.height
        u = 1 - u if flip else u
        in_box = left - 1e-6 <= u * size <= right + 1e-6 and top - 1e-6 <= v * size <= bottom + 1e-6
        assert in_box == inside or min(abs(u), abs(v), abs(1 - u), abs(1 - v)) < 1e-6


def iou(one: Any, other: Any) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(across, 0) * max(down, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, other)]
    return float(shared / (sum(areas) - shared))


@cases(80)
@given(scenes(most=4), sizes)
def test_flips_and_resizes_leave_the_overlap_of_boxes_alone(scene: Scene, size: int) -> None:
    width, height, boxes, _ = scene
    whole = Crop(0, 0, width, height)
    kept, carried = carry_boxes(boxes, whole, True, size)
    assert len(kept) == len(boxes), "a crop of the whole picture keeps every box"
    for one, carried_one in zip(boxes, carried, strict=True):
        for other, carried_other in zip(boxes, carried, strict=True):
            assert iou(carried_one, carried_other) == pytest.approx(iou(one, other), abs=1e-4)


@st.composite
def tolerated(draw: st.DrawFn) -> tuple[int, int, Box]:
    """A box that ``box_problem`` has nothing against: it may leave the picture by rounding."""
    width, height = draw(sides), draw(sides)
    x1, y1, x2, y2 = draw(boxes_in(width, height))
    slips = st.sampled_from([0.0, 0.0, 1e-3, -1e-3, 5e-4])
    box = tuple(v + draw(slips) for v in (x1, y1, x2, y2))
    edge = draw(st.sampled_from(["", "", "right", "left"]))
    if edge == "right":
        box = (width + 2e-4, box[1], width + 8e-4, box[3])
    elif edge == "left":
        box = (-8e-4, box[1], -2e-4, box[3])
    assume(box_problem(box, width, height) is None)
    return width, height, box  # type: ignore[return-value]


@cases(120)
@given(tolerated(), seeds)
def test_a_crop_around_a_box_has_all_of_it_and_at_least_a_pixel(
    given_picture: tuple[int, int, Box], seed: int
) -> None:
    width, height, box = given_picture
    crop = crop_with_boxes(width, height, box, np.random.default_rng(seed))
    assert 0 <= crop.left < crop.right <= width
    assert 0 <= crop.top < crop.bottom <= height
    x1, y1, x2, y2 = box
    assert crop.left <= x1 + 1e-3
    assert crop.top <= y1 + 1e-3
    assert crop.right >= x2 - 1e-3
    assert crop.bottom >= y2 - 1e-3
    assert crop == crop_with_boxes(width, height, box, np.random.default_rng(seed))


@cases(60)
@given(tolerated(), seeds)
def test_under_compat_a_crop_has_the_box_cut_to_integers(
    given_picture: tuple[int, int, Box], seed: int
) -> None:
    width, height, (x1, y1, x2, y2) = given_picture
    assume(x2 - x1 >= 1 and y2 - y1 >= 1)
    rng = np.random.default_rng(seed)
    box = (x1, y1, x2, y2)
    crop = crop_with_boxes(width, height, box, rng, compat_official=True)
    assert 0 <= crop.left < crop.right <= width
    assert 0 <= crop.top < crop.bottom <= height
    assert carry_boxes([box], crop, False, 64, compat_official=True).kept.tolist() == [0]


# ---------------------------------------------------------------------------------- patches


@cases(120)
@given(st.data(), st.integers(1, 12), st.sampled_from([16, 32]), st.booleans())
def test_the_patches_of_a_box_are_those_that_it_touches_and_at_least_one(
    data: st.DataObject, grid: int, patch: int, tiny: bool
) -> None:
    side = grid * patch
    x1, y1, x2, y2 = data.draw(boxes_in(side, side))
    if tiny:
        x2, y2 = x1, y1
    mask = patch_mask((x1, y1, x2 - x1, y2 - y1), grid, patch).reshape(grid, grid)
    assert mask.any()
    assert np.array_equal(mask, np.outer(mask.any(axis=1), mask.any(axis=0)))
    for on, start, end in ((mask.any(axis=0), x1, x2), (mask.any(axis=1), y1, y2)):
        for number in range(grid):
            shared = min(end, (number + 1) * patch) - max(start, number * patch)
            if shared > 2e-6 * patch:
                assert on[number], (number, start, end)
            if shared < -1e-6 * patch:
                assert not on[number], (number, start, end)
        assert on.sum() <= (end - start) / patch + 2


# ---------------------------------------------------------------------------------- formats


@cases(80)
@given(st.lists(numbers, min_size=4, max_size=4))
def test_formats_turn_into_one_another_and_back(four: list[float]) -> None:
    assert xyxy_to_xywh(xywh_to_xyxy(four)) == pytest.approx(np.array(four), abs=1e-6)
    x1, y1, x2, y2 = cxcywh_to_xyxy(four)
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx(tuple(four[:2]), abs=1e-6)
    assert (x2 - x1, y2 - y1) == pytest.approx(tuple(four[2:]), abs=1e-6)
    assert corners(four, "xyxy") == four
    assert corners(four, "xywh") == pytest.approx(xywh_to_xyxy(four).tolist())
    assert corners(four, "cxcywh") == pytest.approx([x1, y1, x2, y2])


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**300, 10**310)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


def four_numbers(box: object) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in box)


fours = st.lists(st.sampled_from([0, 1.5, -3, 10**400, math.inf]), min_size=4, max_size=4)


@cases(80)
@given(st.one_of(anything, fours), st.sampled_from(["xyxy", "xywh", "cxcywh"]))
def test_what_is_no_four_numbers_comes_back_from_corners_as_it_is(box: object, form: str) -> None:
    found = corners(box, form)
    if not four_numbers(box):
        assert found is box
    else:
        assert isinstance(found, list)
        assert all(isinstance(v, float) for v in found)


@cases(80)
@given(st.lists(numbers, min_size=4, max_size=4), sides, sides)
def test_clipping_stays_inside_and_changes_nothing_that_is(
    box: list[float], width: int, height: int
) -> None:
    clipped = clip_box_xyxy_px(box, width, height)
    assert (clipped >= 0).all()
    assert (clipped <= [width, height, width, height]).all()
    assert np.array_equal(clip_box_xyxy_px(clipped, width, height), clipped)
    for value, old, limit in zip(clipped, box, (width, height) * 2, strict=True):
        assert value == old or (old < 0 and value == 0) or (old > limit and value == limit)


# ---------------------------------------------------------------------------------- turns

INVERSE = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}
orientations = st.integers(1, 8)


@cases(80)
@given(st.data(), sides, sides, orientations)
def test_turning_and_turning_back_is_the_identity(
    data: st.DataObject, width: int, height: int, orientation: int
) -> None:
    box = data.draw(boxes_in(width, height))
    shown = (height, width) if orientation >= 5 else (width, height)
    turned = turn_box(box, width, height, orientation)
    assert turned[0] < turned[2]
    assert turned[1] < turned[3]
    assert min(turned) >= 0
    assert max(turned[2] - shown[0], turned[3] - shown[1]) <= 0
    assert turn_box(turned, *shown, INVERSE[orientation]) == pytest.approx(box, abs=1e-6)
    others = {turn_box((0, 0, 1, 2), 5, 9, other) for other in range(1, 9)}
    assert len(others) == 8, "eight orientations are eight different turns"


@cases(100)
@given(st.data(), st.integers(1, 24), st.integers(1, 24), orientations)
def test_a_turned_box_lies_on_the_pixels_of_the_picture_as_read(
    data: st.DataObject, width: int, height: int, orientation: int
) -> None:
    x1, x2 = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(
        data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True))
    )
    stored_pixels = np.zeros((height, width), np.uint8)
    stored_pixels[y1:y2, x1:x2] = 255
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(stored_pixels).save(file, "PNG", exif=exif)
    shown = np.asarray(read_picture(file.getvalue()))[..., 0]
    left, top, right, bottom = map(int, turn_box((x1, y1, x2, y2), width, height, orientation))
    expected = np.zeros_like(shown)
    expected[top:bottom, left:right] = 255
    assert np.array_equal(shown, expected)


# ---------------------------------------------------------------------------------- rules

MODES: tuple[InvalidBoxes, ...] = get_args(InvalidBoxes)


@st.composite
def loose_boxes(draw: st.DrawFn) -> tuple[int, int, list[float]]:
    """Boxes near a picture: around its edges, thin as a rounding, inverted, far outside."""
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    slips = st.sampled_from([0.0, 1e-9, 1e-5, 4e-5, 5e-4, 0.4, 0.5, 0.6, 0.99995, 1.0, 30.0])

    def place(side: int) -> float:
        base = draw(st.one_of(st.sampled_from([0, side]), st.integers(0, side), st.floats(0, side)))
        return float(base) + draw(slips) * draw(st.sampled_from([-1, 1]))

    return width, height, [place(width), place(height), place(width), place(height)]


@cases(250)
@given(loose_boxes(), st.sampled_from([0.0, 0.0, 0.01, 0.3]))
def test_a_box_that_is_kept_lies_in_the_picture_and_has_an_area_under_every_rule(
    given_picture: tuple[int, int, list[float]], least: float
) -> None:
    width, height, box = given_picture
    kept = {}
    for mode in MODES:
        reason, found = checked_box(box, width, height, Rules(mode, least))
        assert (reason is None) != (found is None)
        if found is None:
            continue
        kept[mode] = found
        x1, y1, x2, y2 = found
        assert 0 <= x1 < x2 <= width, mode
        assert 0 <= y1 < y2 <= height, mode
        assert all(isinstance(v, float) for v in found)
        assert (x2 - x1) * (y2 - y1) >= least * width * height * 0.999
        cut = clip_box_xyxy_px(box, width, height)
        assert found == pytest.approx(cut.tolist(), abs=6e-5)
        assert checked_box(list(found), width, height, Rules(mode))[1] == found or mode == "int"
    if "strict" in kept:
        assert kept["strict"] == pytest.approx(box, abs=6e-5), "never changed"
        assert kept["half-px"] == kept["strict"]
    if "half-px" in kept:
        assert kept["clip"] == kept["half-px"]
    if "int" in kept:
        assert kept["clip"] == kept["int"]


kinds_of_slips = st.sampled_from(["not", "hair", "near", "half", "far"])
one_slip = st.builds(
    lambda side, slip: [slip if i == side else "not" for i in range(4)],
    st.integers(0, 3),
    kinds_of_slips,
)


@cases(80)
@given(st.one_of(one_slip, one_slip, st.lists(kinds_of_slips, min_size=4, max_size=4)))
def test_each_rule_keeps_more_than_the_stricter_one(slips: list[str]) -> None:
    by = {"not": 0.0, "hair": 5e-4, "near": 0.25, "half": 0.5, "far": 7.0}
    outward = [by[slip] for slip in slips]
    box = [-outward[0], -outward[1], 20 + outward[2], 10 + outward[3]]
    kept = {mode: checked_box(box, 20, 10, Rules(mode))[1] for mode in MODES}
    assert (kept["strict"] is not None) == (set(slips) == {"not"})
    assert (kept["half-px"] is not None) == ("far" not in slips)
    assert kept["clip"] == (0.0, 0.0, 20.0, 10.0)


@cases(80)
@given(st.one_of(anything, fours), sides, sides, st.sampled_from(MODES))
def test_anything_at_all_is_a_box_or_has_a_reason(
    found: object, width: int, height: int, mode: InvalidBoxes
) -> None:
    reason, box = checked_box(found, width, height, Rules(mode))
    if not four_numbers(found):
        assert reason == "box malformed"
    elif box is not None:
        assert all(map(math.isfinite, box))
    assert reason is None or reason.startswith("box ")

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from xvlm_core.metrics.box_accuracy import (
    accuracy_at,
    accuracy_by,
    best_constant_box,
    iou_inclusive_pixel,
    iou_plain,
    mean_iou,
)

position = st.floats(0, 600, allow_nan=False, width=32)
side = st.floats(0.25, 600, allow_nan=False, width=32)
box_xywh = st.tuples(position, position, side, side)


def xyxy(box_xywh: tuple[float, ...]) -> np.ndarray:
    x, y, w, h = box_xywh
    return np.array([x, y, x + w, y + h])


# ---------------------------------------------------------------- worked by hand


def test_plain_iou_of_boxes_worked_by_hand() -> None:
    # 10 x 10 boxes shifted by 5 in x: 50 shared of 150.
    assert iou_plain([0, 0, 10, 10], [5, 0, 15, 10]) == pytest.approx(1 / 3, abs=1e-15)
    # a 4 x 4 box inside 8 x 8: 16 of 64.
    assert iou_plain([0, 0, 8, 8], [2, 2, 6, 6]) == 0.25
    # touching, and apart.
    assert iou_plain([0, 0, 10, 10], [10, 0, 20, 10]) == 0
    assert iou_plain([0, 0, 10, 10], [30, 30, 40, 40]) == 0


def test_plain_iou_of_boxes_without_area_is_zero() -> None:
    assert iou_plain([3, 3, 3, 3], [3, 3, 3, 3]) == 0
    assert iou_plain([8, 0, 2, 10], [0, 0, 10, 10]) == 0
    assert iou_plain([8, 8, 2, 2], [0, 0, 10, 10]) == 0  # inverted twice


def test_plain_iou_broadcasts_to_all_pairs() -> None:
    a = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [50, 50, 60, 60]])
    table = iou_plain(a[:, None], a[None, :2])
    assert table.shape == (3, 2)
    np.testing.assert_allclose(table, [[1, 1 / 3], [1 / 3, 1], [0, 0]])


def test_inclusive_iou_of_boxes_worked_by_hand() -> None:
    # pixels 0..9 and 5..14 share 5..9: (9 - 5 + 1) * 10 = 50 of 100 + 100 - 50.
    assert iou_inclusive_pixel([0, 0, 10, 10], [5, 0, 10, 10]) == pytest.approx(1 / 3, abs=1e-15)
    assert iou_inclusive_pixel([2, 3, 4, 5], [2, 3, 4, 5]) == 1
    # two shared pixel columns count: 2 * 10 of 180.
    assert iou_inclusive_pixel([0, 0, 10, 10], [8, 0, 10, 10]) == pytest.approx(20 / 180)


def test_inclusive_iou_counts_an_overlap_of_one_pixel_as_none() -> None:
    assert iou_inclusive_pixel([0, 0, 10, 10], [9, 0, 10, 10]) == 0
    assert iou_plain([0, 0, 10, 10], [9, 0, 19, 10]) > 0.05
    # a box of one pixel does not even match itself
    assert iou_inclusive_pixel([4, 4, 1, 1], [4, 4, 1, 1]) == 0


@pytest.mark.parametrize(
    ("box", "other", "plain", "inclusive"),
    [
        # one pixel shared, at a corner: 1 of 10*10 + 10*10 - 1
        ((0, 0, 10, 10), (9, 9, 19, 19), 1 / 199, 0),
        # one row shared, of 10
        ((0, 0, 10, 10), (0, 9, 10, 19), 10 / 190, 0),
        # a little more than one pixel across, all of it down
        ((0, 0, 10, 10), (8.75, 0, 18.75, 10), 12.5 / 187.5, 12.5 / 187.5),
        # edges touch; corners touch; one pixel apart
        ((0, 0, 10, 10), (10, 0, 20, 10), 0, 0),
        ((0, 0, 10, 10), (10, 10, 20, 20), 0, 0),
        ((0, 0, 10, 10), (11, 0, 21, 10), 0, 0),
        # a box that hangs out of the picture on two sides is scored as it is: 100 of 400
        ((-10, -10, 10, 10), (0, 0, 10, 10), 1 / 4, 1 / 4),
        # one wholly outside, whatever its size
        ((-50, -50, 0, 0), (0, 0, 10, 10), 0, 0),
        ((700, 0, 800, 100), (0, 0, 10, 10), 0, 0),
        # exactly half: 10 x 5 of 10 x 10
        ((0, 0, 10, 5), (0, 0, 10, 10), 1 / 2, 1 / 2),
        # a sliver inside: one pixel wide, so nothing of it counts in pixels
        ((4, 0, 5, 10), (0, 0, 10, 10), 1 / 10, 0),
        # two pixels wide: both conventions agree
        ((4, 0, 6, 10), (0, 0, 10, 10), 2 / 10, 2 / 10),
    ],
)
def test_both_conventions_worked_by_hand(
    box: tuple[float, ...], other: tuple[float, ...], plain: float, inclusive: float
) -> None:
    def xywh(b: tuple[float, ...]) -> list[float]:
        return [b[0], b[1], b[2] - b[0], b[3] - b[1]]

    for a, b in ((box, other), (other, box)):
        assert iou_plain(a, b) == pytest.approx(plain, abs=1e-15)
        assert iou_inclusive_pixel(xywh(a), xywh(b)) == pytest.approx(inclusive, abs=1e-15)


# The boxes and figures of the recorded grounding case (original code), repeated here.
RECORDED_PREDICTED_XYWH = [
    [310.7968444824219, 312.3538818359375, 612.8527221679688, 195.40103149414062],
    [255.7789764404297, 146.4713592529297, 470.6286926269531, 249.79183959960938],
    [135.48858642578125, 270.9523010253906, 328.95947265625, 251.50596618652344],
    [376.72467041015625, 294.4547424316406, 322.1519470214844, 96.3106918334961],
]
RECORDED_TRUE_XYWH = [
    [310.79998779296875, 312.3500061035156, 612.8499755859375, 195.39999389648438],
    [349.8999938964844, 146.47000122070312, 470.6300048828125, 249.7899932861328],
    [267.07000732421875, 321.25, 328.9599914550781, 251.50999450683594],
    [0.0, 0.0, 20.0, 20.0],
]
RECORDED_IOU = [0.9999490976333618, 0.6666689515113831, 0.3157980144023895, 0.0]


def test_inclusive_iou_and_accuracy_equal_the_recorded_figures() -> None:
    ious = iou_inclusive_pixel(RECORDED_PREDICTED_XYWH, RECORDED_TRUE_XYWH)
    np.testing.assert_allclose(ious, RECORDED_IOU, atol=1e-6)
    splits = ["val", "testA", "testB", "val"]
    by = accuracy_by(splits, ious)
    assert {name: row.accuracy for name, row in by.items()} == {"val": 0.5, "testA": 1, "testB": 0}


def test_inclusive_iou_reproduces_the_golden_case_when_present(golden_root: Path | None) -> None:
    if golden_root is None or not (golden_root / "grounding_bbox").is_dir():
        pytest.skip("no recorded cases beside the repository")
    io = load_file(golden_root / "grounding_bbox" / "io.safetensors")
    np.testing.assert_allclose(
        iou_inclusive_pixel(io["pred_xywh_px"], io["gt_xywh_px"]), io["iou_inclusive"], atol=1e-6
    )


# ---------------------------------------------------------------- properties


@given(box_xywh, box_xywh)
def test_iou_is_symmetric_and_a_share(a: tuple[float, ...], b: tuple[float, ...]) -> None:
    for value, turned in (
        (iou_plain(xyxy(a), xyxy(b)), iou_plain(xyxy(b), xyxy(a))),
        (iou_inclusive_pixel(a, b), iou_inclusive_pixel(b, a)),
    ):
        assert value == turned
        assert 0 <= value <= 1 + 1e-12


@given(box_xywh)
def test_plain_iou_of_a_box_with_itself_is_one(a: tuple[float, ...]) -> None:
    assert iou_plain(xyxy(a), xyxy(a)) == pytest.approx(1, abs=1e-12)


@given(box_xywh, box_xywh, st.floats(0.01, 100), st.floats(0.01, 100))
def test_plain_iou_is_the_same_in_fractions_and_pixels(
    a: tuple[float, ...], b: tuple[float, ...], across: float, down: float
) -> None:
    scale = np.array([across, down, across, down])
    assert iou_plain(xyxy(a) * scale, xyxy(b) * scale) == pytest.approx(
        float(iou_plain(xyxy(a), xyxy(b))), abs=1e-9
    )


@given(box_xywh, box_xywh)
def test_inclusive_iou_is_the_plain_one_wherever_more_than_one_pixel_is_shared(
    a: tuple[float, ...], b: tuple[float, ...]
) -> None:
    p, q = xyxy(a), xyxy(b)
    shared = np.minimum(p[2:], q[2:]) - np.maximum(p[:2], q[:2])
    plain, inclusive = float(iou_plain(p, q)), float(iou_inclusive_pixel(a, b))
    if (shared > 1.001).all():
        assert inclusive == pytest.approx(plain, abs=1e-9)
    elif (shared < 0.999).any():
        assert inclusive == 0


@given(st.lists(st.tuples(box_xywh, box_xywh), min_size=1, max_size=5))
def test_the_two_conventions_are_close_on_big_boxes(
    pairs: list[tuple[tuple[float, ...], tuple[float, ...]]],
) -> None:
    # Dropping a strip of at most one pixel costs at most 1 / (longer of the two sides).
    for a, b in pairs:
        gap = float(iou_plain(xyxy(a), xyxy(b))) - float(iou_inclusive_pixel(a, b))
        assert -1e-9 <= gap <= 1 / max(1, min(max(a[2], b[2]), max(a[3], b[3]))) + 1e-9


# ---------------------------------------------------------------- accuracy


def test_a_hit_is_an_iou_of_at_least_one_half() -> None:
    assert accuracy_at([0.5, np.nextafter(0.5, 0), 0.9, 0.0]) == 0.5
    assert accuracy_at([0.5, 0.7, 0.9, 0.0], 0.7) == 0.5


def test_mean_iou_and_the_breakdown_by_kind() -> None:
    by = accuracy_by(["object", "relation", "object", "object"], [0.6, 0.2, 0.4, 0.8])
    assert list(by) == ["object", "relation"]
    assert by["object"].accuracy == pytest.approx(2 / 3)
    assert by["object"].mean_iou == pytest.approx(0.6)
    assert (by["object"].n, by["relation"].n) == (3, 1)
    assert (by["relation"].accuracy, by["relation"].mean_iou) == (0, 0.2)
    assert mean_iou([0.6, 0.2, 0.4, 0.8]) == pytest.approx(0.5)


# ---------------------------------------------------------------- baselines


def test_best_constant_box_finds_the_box_that_all_targets_share() -> None:
    targets = np.tile([0.41, 0.37, 0.13, 0.29], (7, 1))
    found = best_constant_box(targets)
    assert found.accuracy == 1
    np.testing.assert_allclose(found.box_cxcywh, targets[0], atol=2e-3)


def test_best_constant_box_answers_the_larger_of_two_crowds() -> None:
    small = np.tile([0.2, 0.2, 0.1, 0.1], (6, 1))
    large = np.tile([0.7, 0.7, 0.4, 0.4], (4, 1))
    found = best_constant_box(np.concatenate([large, small]))
    assert found.accuracy == 0.6
    np.testing.assert_allclose(found.box_cxcywh, small[0], atol=0.03)


def test_best_constant_box_hits_between_targets_that_hit_no_target_exactly() -> None:
    # Neighbours overlap each other by 1/3 (a miss); the box between them hits both (5/7.5 > 0.5).
    found = best_constant_box([[0.3, 0.5, 0.2, 0.2], [0.4, 0.5, 0.2, 0.2]])
    assert found.accuracy == 1
    assert found.box_cxcywh[0] == pytest.approx(0.35, abs=0.05)


def test_best_constant_box_is_beaten_by_no_box_of_a_finer_search() -> None:
    draw = np.random.default_rng(0)
    size = draw.uniform(0.15, 0.35, (300, 2))
    centre = size / 2 + draw.uniform(0, 1, (300, 2)) * (1 - size)
    targets = np.concatenate([centre, size], axis=1)
    found = best_constant_box(targets)
    half = targets[:, 2:] / 2
    targets_xyxy = np.concatenate([centre - half, centre + half], axis=1)
    corners = draw.uniform(0, 1, (40_000, 2, 2))
    rivals = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    best = max(
        (iou_plain(part[:, None], targets_xyxy[None]) >= 0.5).mean(axis=1).max()
        for part in np.array_split(rivals, 20)
    )
    assert found.accuracy >= best
    cx, cy, w, h = found.box_cxcywh
    own = iou_plain([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], targets_xyxy)
    assert accuracy_at(own) == found.accuracy

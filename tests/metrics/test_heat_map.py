"""Boxes from heat maps, against plain loops over the pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xvlm_core.metrics.heat_map import best_box, best_proposal, proposal_scores, resize


def by_pixels(heat: np.ndarray, box: tuple[float, ...], width: int, height: int) -> float:
    """The score as it is written down: a loop over the map of the picture's size."""
    map_hw = F.interpolate(
        torch.from_numpy(heat)[None, None], size=(height, width), mode="bicubic"
    )[0, 0].numpy()
    x1, y1, x2, y2 = box
    total = 0.0
    for row in range(max(0, int(y1)), min(height, int(y2))):
        for column in range(max(0, int(x1)), min(width, int(x2))):
            total += float(map_hw[row, column])
    return total / float(np.sqrt((x2 - x1) * (y2 - y1)))


@pytest.mark.parametrize("size", [(40, 30), (7, 61), (3, 977), (500, 1)])
@pytest.mark.parametrize("n", [1, 4, 7, 12])
def test_the_map_is_resized_as_torch_does(n: int, size: tuple[int, int]) -> None:
    heat = np.random.default_rng(n).normal(size=(2, n, n))
    ours = resize(heat, *size)
    theirs = F.interpolate(
        torch.from_numpy(heat)[None], size=size[::-1], mode="bicubic", align_corners=False
    )[0]
    assert ours == pytest.approx(theirs.numpy(), abs=1e-12)


def test_the_score_is_the_sum_over_whole_pixels_by_the_root_of_the_area() -> None:
    rng = np.random.default_rng(0)
    heat, width, height = rng.random((4, 4)), 33, 21
    corners = rng.random((20, 2, 2)) * (width - 2, height - 2)
    boxes = np.concatenate([corners.min(1), corners.max(1) + 1.5], axis=1)
    scores = proposal_scores(heat, boxes, width, height)
    for box, score in zip(boxes.tolist(), scores, strict=True):
        assert score == pytest.approx(by_pixels(heat, tuple(box), width, height), abs=1e-10)


def test_what_lies_outside_the_picture_has_no_heat() -> None:
    heat = np.ones((4, 4))
    boxes = [(-10, -10, 10, 10), (30, 10, 60, 30), (100, 100, 120, 120), (-20, 0, -1, 20)]
    scores = proposal_scores(heat, boxes, 40, 20)
    assert scores[0] == pytest.approx(100 / 20)
    assert scores[1] == pytest.approx(100 / 600**0.5)
    assert np.isneginf(scores[2:]).all()


def test_a_box_without_area_is_never_chosen() -> None:
    heat = np.zeros((4, 4))
    boxes = [(5, 5, 5, 15), (15, 5, 5, 15), (float("nan"), 0, 1, 1), (0.2, 0.2, 0.7, 0.7)]
    assert best_proposal(heat, boxes, 20, 20).index is None
    choice = best_proposal(heat, [*boxes, (1, 1, 9, 9)], 20, 20)
    assert (choice.index, choice.score) == (4, 0)
    assert best_proposal(heat, [], 20, 20).index is None


def test_the_best_proposal_is_the_one_over_the_heat() -> None:
    heat = np.zeros((4, 4))
    heat[1, 2] = 1
    boxes = [(0, 0, 40, 40), (0, 20, 20, 40), (18, 9, 32, 21), (0, 0, 10, 10)]
    assert best_proposal(heat, boxes, 40, 40).index == 2


def test_the_box_of_a_map_is_around_what_is_hot_and_connected() -> None:
    heat = np.zeros((8, 8))
    heat[1:3, 4:7] = 1
    heat[0, 0] = heat[7, 0] = 0.9  # elsewhere
    x1, y1, x2, y2 = best_box(heat)
    assert (x1, y1, x2, y2) == pytest.approx((4 / 8, 1 / 8, 7 / 8, 3 / 8), abs=0.07)


def test_the_box_does_not_depend_on_the_scale_of_the_map() -> None:
    heat = np.random.default_rng(3).random((12, 12)) ** 8
    assert best_box(heat) == best_box(heat * 1e-9)


def test_a_map_without_heat_speaks_for_no_place() -> None:
    assert best_box(np.zeros((8, 8))) == (0, 0, 1, 1)


def test_a_map_that_is_hot_all_over_is_the_whole_picture() -> None:
    assert best_box(np.ones((8, 8))) == (0, 0, 1, 1)

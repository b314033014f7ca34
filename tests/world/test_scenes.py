"""Pictures of the world: same seed same bytes, tight boxes, names that fit the pixels."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from xvlm_core.errors import UsageError
from xvlm_core.world.scenes import (
    BACKGROUND_GREY,
    COLOURS,
    NOISE_LIMIT,
    SHAPES,
    SPLITS,
    UNSEEN_PAIRS,
    Shape,
    draw,
    make_scene,
)

SCENES = [
    make_scene(seed, split, index) for seed in (0, 7) for split in SPLITS for index in range(60)
]
PICTURES = [draw(scene) for scene in SCENES]


def object_pixels(picture: np.ndarray, background: int) -> np.ndarray:
    """Which pixels cannot be background, whatever the noise."""
    return np.abs(picture.astype(int) - background).max(-1) > NOISE_LIMIT


def crop(pixels: np.ndarray, shape: Shape) -> np.ndarray:
    x1, y1, x2, y2 = (int(v) for v in shape.box_xyxy_px)
    return pixels[y1:y2, x1:x2]


def test_every_colour_is_told_from_every_background_in_spite_of_the_noise():
    low, high = BACKGROUND_GREY
    for name, rgb in COLOURS.items():
        far = max(max(value - high, low - value) for value in rgb)
        assert far > 2 * NOISE_LIMIT, name


def test_every_two_colours_are_far_apart():
    rgb = np.array(list(COLOURS.values()), float)
    distance = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + 1e3 * np.eye(len(rgb))
    assert distance.min() > 80


def test_no_object_pixel_leaves_its_box():
    for scene, picture in zip(SCENES, PICTURES, strict=True):
        found = object_pixels(picture, scene.background)
        for shape in scene.shapes:
            crop(found, shape)[:] = False
        assert not found.any()


def test_boxes_are_tight_around_the_drawn_pixels():
    for scene, picture in zip(SCENES, PICTURES, strict=True):
        found = object_pixels(picture, scene.background)
        for shape in scene.shapes:
            inside = crop(found, shape)
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert edge.any(), shape


@pytest.mark.parametrize("size", [64, 96, 128, 224])
def test_boxes_are_inside_the_picture_and_do_not_overlap(size):
    for index in range(40):
        scene = make_scene(3, "train", index, size)
        assert draw(scene).shape == (size, size, 3)
        used = np.zeros((size, size), int)
        for shape in scene.shapes:
            x1, y1, x2, y2 = shape.box_xyxy_px
            assert 0 <= x1 < x2 <= size
            assert 0 <= y1 < y2 <= size
            assert all(value == int(value) for value in shape.box_xyxy_px)
            crop(used, shape)[:] += 1
        assert used.max() == 1


def test_small_and_large_are_the_sizes_they_say():
    for scene in SCENES:
        for shape in scene.shapes:
            low, high = (17, 24) if shape.size == "small" else (32, 43)
            assert low <= shape.side_px <= high


def test_objects_have_the_colour_they_are_called_by():
    rgb = np.array(list(COLOURS.values()), float)
    for scene, picture in zip(SCENES, PICTURES, strict=True):
        found = object_pixels(picture, scene.background)
        for shape in scene.shapes:
            pixels = crop(picture, shape)[crop(found, shape)].astype(float)
            coloured = pixels[pixels.min(-1) < 215]  # not a stripe
            nearest = np.linalg.norm(np.median(coloured, axis=0) - rgb, axis=-1).argmin()
            assert tuple(COLOURS)[nearest] == shape.colour


def test_striped_objects_and_only_they_have_white_stripes():
    for scene, picture in zip(SCENES, PICTURES, strict=True):
        found = object_pixels(picture, scene.background)
        for shape in scene.shapes:
            pixels = crop(picture, shape)[crop(found, shape)]
            white = float((pixels.min(-1) >= 220).mean())
            assert 0.25 < white < 0.75 if shape.striped else white == 0, shape


def test_objects_have_the_outline_they_are_called_by():
    for scene, picture in zip(SCENES, PICTURES, strict=True):
        found = object_pixels(picture, scene.background)
        for shape in scene.shapes:
            mask = crop(found, shape)
            height = mask.shape[0]
            top, middle, bottom = (float(mask[r].mean()) for r in (0, height // 2, height - 1))
            share = float(mask.mean())
            seen = {
                "square": share == 1,
                "circle": 0.74 < share < 0.83 and middle == 1 and top < 0.6,
                "triangle": top < 0.2 and bottom == 1 and 0.45 < share < 0.58,
                "diamond": top < 0.2 and bottom < 0.2 and middle > 0.9 and 0.48 < share < 0.57,
                "cross": middle == 1 and 0.25 < top < 0.45 and top == bottom and share < 0.62,
                "star": top < 0.2 and not mask[-1, mask.shape[1] // 2] and 0.25 < share < 0.5,
            }
            assert [name for name, true in seen.items() if true] == [shape.shape], (shape, share)


def test_noise_has_the_stated_spread_and_no_mean():
    for scene, picture in zip(SCENES[:40], PICTURES, strict=False):
        free = ~object_pixels(picture, scene.background)
        for shape in scene.shapes:
            crop(free, shape)[:] = False
        noise = picture[free].astype(float) - scene.background
        assert abs(noise.mean()) < 0.2
        assert 5.8 < noise.std() < 6.2


def test_counts_and_shares_are_as_stated():
    scenes = [make_scene(11, "train", index) for index in range(1500)]
    shapes = [shape for scene in scenes for shape in scene.shapes]
    assert {len(scene.shapes) for scene in scenes} == {2, 3, 4, 5, 6}
    assert 3.9 < len(shapes) / len(scenes) < 4.1
    assert 0.22 < np.mean([shape.striped for shape in shapes]) < 0.28
    assert 0.45 < np.mean([shape.size == "large" for shape in shapes]) < 0.55
    low, high = BACKGROUND_GREY
    greys = {scene.background for scene in scenes}
    assert (min(greys), max(greys)) == (low, high)
    pairs = Counter(shape.pair for shape in shapes)
    assert len(pairs) == len(COLOURS) * len(SHAPES) - len(UNSEEN_PAIRS)
    assert min(pairs.values()) > 0.3 * max(pairs.values())


def test_colours_and_shapes_are_used_again_more_often_than_chance():
    scenes = [make_scene(11, "train", index) for index in range(600)]
    again = np.mean([len({s.pair for s in scene.shapes}) < len(scene.shapes) for scene in scenes])
    assert again > 0.35  # of 4 objects drawn from 40 pairs: 0.14


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_unseen_pairs_stand_in_no_picture_of_the_other_splits(split):
    for index in range(500):
        assert not {s.pair for s in make_scene(5, split, index).shapes} & set(UNSEEN_PAIRS)


def test_every_unseen_picture_has_an_unseen_pair_and_all_of_them_occur():
    found = Counter()
    for index in range(500):
        unseen = {s.pair for s in make_scene(5, "unseen", index).shapes} & set(UNSEEN_PAIRS)
        assert unseen
        found.update(unseen)
    assert set(found) == set(UNSEEN_PAIRS)


def test_each_part_of_an_unseen_pair_is_known_from_training():
    assert len(UNSEEN_PAIRS) == 8
    parts = {part for i in range(300) for s in make_scene(5, "train", i).shapes for part in s.pair}
    assert parts == {*COLOURS, *SHAPES}


def test_pictures_do_not_depend_on_the_order_they_are_made_in():
    forward = [draw(make_scene(2, "val", i)).tobytes() for i in range(12)]
    backward = [draw(make_scene(2, "val", i)).tobytes() for i in reversed(range(12))]
    assert forward == backward[::-1]


def test_another_index_split_or_seed_is_another_picture():
    keys = [(s, split, i) for s in (0, 1, 2) for split in SPLITS for i in range(20)]
    pictures = {draw(make_scene(*key)).tobytes() for key in keys}
    assert len(pictures) == len(keys)


def digest() -> str:
    state = hashlib.sha256()
    for split in SPLITS:
        for index in (0, 1, 10**9):
            scene = make_scene(0, split, index)
            state.update(repr(scene).encode())
            state.update(draw(scene).tobytes())
    return state.hexdigest()


def test_pictures_of_seed_0_are_those_of_the_published_benchmark():
    """Change this only together with every figure measured on the world."""
    assert digest() == "6a881311e2f114aeb56893dac58b0c60cc9c272de28436259847be3b4e3e2afc"


def test_another_process_draws_the_same_bytes():
    code = "from tests.world.test_scenes import digest; print(digest())"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert other.stdout.strip() == digest()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, "trian", 0), "trian"),
        ((-1, "train", 0), "-1"),
        ((0, "train", -2), "-2"),
        ((0, "train", 0, 16), "16"),
    ],
)
def test_impossible_requests_are_named(arguments, named):
    with pytest.raises(UsageError, match=named):
        make_scene(*arguments)

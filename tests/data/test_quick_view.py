"""Training without ``compat: official``: the same views, resized by another program."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from xvlm_core.data.augment import pretrain_picture, region_picture
from xvlm_core.data.boxes import Crop


def smooth_noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def close(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """At least 50 dB."""
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return bool(a.shape == b.shape and error <= 255**2 / 10**5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [Crop(0, 0, 200, 136), Crop(13, 20, 190, 100), Crop(5, 5, 9, 6)])
@pytest.mark.parametrize("size", [32, 224])
def test_a_view_of_an_array_is_that_of_the_picture(crop: Crop, size: int, flip: bool) -> None:
    image = smooth_noise(200, 136)
    seed = next(s for s in range(99) if np.random.default_rng(s).integers(5, size=2).sum() == 0)
    views = [
        region_picture(source, np.random.default_rng(seed), size, crop=crop, flip=flip)
        for source in (image, np.asarray(image).copy())
    ]
    assert close(*views)
    assert views[1].flags.c_contiguous
    assert not close(views[0], views[1][:, ::-1])


def test_pretraining_draws_the_same_crop_and_flip() -> None:
    image = smooth_noise(200, 136)
    same = 0
    for seed in range(20):
        views = [
            pretrain_picture(source, np.random.default_rng(seed), 64)
            for source in (image, np.asarray(image).copy())
        ]
        same += close(*views)
    assert same >= 15  # sharpening and equalising carry a difference of one further

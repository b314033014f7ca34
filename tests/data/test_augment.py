from __future__ import annotations

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from xvlm_core.data import augment
from xvlm_core.data.augment import ALL_OPS, COLOUR_OPS
from xvlm_core.data.boxes import Crop
from xvlm_core.data.operations import apply_operation, auto_contrast, equalize, rotate, sharpness

OPENCV_5 = [
    (37, 53, "Sharpness", 1.36, "3ed78245ff404b3b"),
    (37, 53, "ShearX", 0.21, "632708cd5e336850"),
    (37, 53, "ShearY", 0.21, "eb7ab01165ff2f88"),
    (37, 53, "TranslateX", 7.0, "6cd6a25507c793b2"),
    (37, 53, "TranslateY", 7.0, "588216148f87ec17"),
    (37, 53, "Rotate", 21.0, "da420de102c16cda"),
    (37, 53, "ShearX", -0.21, "1ed8c1e0ba44c7ec"),
    (37, 53, "ShearY", -0.21, "135565b8d458b382"),
    (37, 53, "TranslateX", -7.0, "d1a6f88213b2534f"),
    (37, 53, "TranslateY", -7.0, "974f78fbbdd07a87"),
    (37, 53, "Rotate", -21.0, "489ad823462a1a29"),
    (224, 231, "Sharpness", 1.36, "df7e1063b6952673"),
    (224, 231, "ShearX", 0.21, "b40137a02b5d4bb5"),
    (224, 231, "ShearY", 0.21, "a404769cc34bcf08"),
    (224, 231, "TranslateX", 7.0, "03787b2ebbd80ad2"),
    (224, 231, "TranslateY", 7.0, "6b94cd8d642f60f2"),
    (224, 231, "Rotate", 21.0, "01c93a394708c7cf"),
    (224, 231, "ShearX", -0.21, "3ae233c20110587c"),
    (224, 231, "ShearY", -0.21, "41b9abc8dd113025"),
    (224, 231, "TranslateX", -7.0, "7b081db4f26c31ba"),
    (224, 231, "TranslateY", -7.0, "e51308e8e5278c3f"),
    (224, 231, "Rotate", -21.0, "1b789fa92dbb2b67"),
]
"""Height, width, operation, magnitude, and the digest of what OpenCV 5.0.0 makes of ``picture``."""


def picture(height: int, width: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    channels = [(x * x * 7 + y * 13) % 251, (x * 5 + y * y * 3) % 256, (x * y + 31 * x) % 239]
    return np.stack(channels, axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("height", "width", "name", "magnitude", "digest"), OPENCV_5)
def test_operations_give_the_integers_of_opencv(
    height: int, width: int, name: str, magnitude: float, digest: str
) -> None:
    out = apply_operation(name, picture(height, width), magnitude)
    assert out.shape == (height, width, 3)
    contiguous = np.ascontiguousarray(out).tobytes()
    assert hashlib.blake2b(contiguous, digest_size=8).hexdigest() == digest


def test_warps_equal_opencv_on_random_pictures() -> None:
    cv2 = pytest.importorskip("cv2", minversion="5.0")
    rng = np.random.default_rng(0)
    for _ in range(10):
        height, width = (int(v) for v in rng.integers(32, 401, 2))
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        degrees, shear = rng.uniform(-40, 40), rng.uniform(-0.4, 0.4)
        matrices = {
            "Rotate": (degrees, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)),
            "ShearX": (shear, np.array([[1, shear, 0], [0, 1, 0]], dtype=np.float32)),
            "ShearY": (shear, np.array([[1, 0, 0], [shear, 1, 0]], dtype=np.float32)),
            "TranslateX": (2.3, np.array([[1, 0, -2.3], [0, 1, 0]], dtype=np.float32)),
            "TranslateY": (-9.0, np.array([[1, 0, 0], [0, 1, 9]], dtype=np.float32)),
        }
        for name, (magnitude, matrix) in matrices.items():
            theirs = cv2.warpAffine(image, matrix, (width, height), borderValue=(128,) * 3)
            np.testing.assert_array_equal(apply_operation(name, image, magnitude), theirs, name)


def test_contrast_and_equalize_equal_pillow() -> None:
    rng = np.random.default_rng(1)
    for low, high in ((0, 256), (30, 200), (100, 140)):
        image = rng.integers(low, high, (60, 80, 3), dtype=np.uint8)
        pillow = Image.fromarray(image)
        theirs = np.asarray(ImageOps.autocontrast(pillow)).astype(int)
        assert np.abs(auto_contrast(image) - theirs).max() <= 1
        np.testing.assert_array_equal(equalize(image), np.asarray(ImageOps.equalize(pillow)))


def test_pictures_of_one_colour_survive_every_operation() -> None:
    image = np.full((40, 40, 3), 77, dtype=np.uint8)
    for name in ALL_OPS:
        out = apply_operation(name, image, augment.magnitude(name, 7, np.random.default_rng(0)))
        assert out.shape == image.shape
        if name != "Brightness":
            assert (out[15:25, 15:25] == 77).all(), name


def test_sharpness_keeps_the_border_and_wraps_around() -> None:
    image = picture(20, 20)
    out = sharpness(image, 1.36)
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        np.testing.assert_array_equal(out[edge], image[edge])
    spot = np.zeros((3, 3, 3), dtype=np.uint8)
    spot[1, 1] = 255
    assert (sharpness(spot, 1.36)[1, 1] == 55).all(), "311 wraps to 55"


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (9, 2), (1, 400)])
def test_tiny_pictures_pass(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    for name in ALL_OPS:
        for seed in range(2):
            rng = np.random.default_rng(seed)
            out = apply_operation(name, image, augment.magnitude(name, 7, rng))
            assert out.shape == image.shape
            assert out.dtype == np.uint8


def test_no_operation_writes_to_its_input() -> None:
    image = picture(40, 50)
    image.flags.writeable = False
    for name in ALL_OPS:
        apply_operation(name, image, augment.magnitude(name, 7, np.random.default_rng(0)))


def test_rotation_is_anticlockwise_and_fills_with_grey() -> None:
    image = np.zeros((64, 64, 3), dtype=np.uint8)
    image[28:36, 48:60] = 255
    turned = rotate(image, 90.0)
    assert turned[5:15, 30:34].min() > 200, "what was on the right is now on top"
    assert (rotate(image, 45.0)[0, 0] == 128).all()


def test_magnitudes_of_level_seven() -> None:
    rng = np.random.default_rng(0)
    drawn = {name: {augment.magnitude(name, 7, rng) for _ in range(60)} for name in ALL_OPS}
    for name in ("Identity", "AutoContrast", "Equalize"):
        assert drawn[name] == {None}
    for name in ("Brightness", "Sharpness"):
        assert list(drawn[name]) == pytest.approx([1.36])
    for name, size in (("ShearX", 0.21), ("TranslateY", 7.0), ("Rotate", 21.0)):
        assert sorted(drawn[name]) == pytest.approx([-size, size])  # type: ignore[type-var]


def test_rand_augment_leaves_a_quarter_and_the_share_of_identity_unchanged() -> None:
    image = picture(40, 40)
    rng = np.random.default_rng(0)
    names = ("Identity", "Brightness")
    unchanged = sum(
        np.array_equal(augment.rand_augment(image, rng, names), image) for _ in range(3000)
    )
    # Each of the two draws changes the picture with probability 0.5 x 0.5.
    assert unchanged / 3000 == pytest.approx(0.75**2, abs=0.03)


def test_colour_operations_move_nothing() -> None:
    assert ALL_OPS[:5] == COLOUR_OPS
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    image[20:40, 10:30] = 200
    rng = np.random.default_rng(0)
    for _ in range(100):
        out = augment.rand_augment(image, rng, COLOUR_OPS).astype(int).sum(axis=2)
        assert out[21:39, 11:29].min() > out[:19].max()


def test_generator_is_a_function_of_its_arguments() -> None:
    def draw(*key: object) -> float:
        return float(augment.generator(*key).random())  # type: ignore[arg-type]

    assert draw(1, 2, "a", "mask") == draw(1, 2, "a", "mask")
    keys = [
        (1, 2, "a", "mask"),
        (2, 1, "a", "mask"),
        (1, 3, "a", "mask"),
        (1, 2, "b", "mask"),
        (1, 2, "a", "flip"),
        (12, 0, "a", "mask"),
        (1, 20, "a", "mask"),
        (1, 2, "a', 'mask", ""),
    ]
    assert len({draw(*key) for key in keys}) == len(keys)


def test_generator_is_the_same_in_another_process() -> None:
    code = (
        "from xvlm_core.data.augment import generator;"
        "print(generator(7, 3, 'coco-12', 'picture').integers(2**60))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {f"{augment.generator(7, 3, 'coco-12', 'picture').integers(2**60)}\n"}


@pytest.mark.parametrize("size", [(100, 80), (64, 200), (31, 33)])
def test_random_crops_have_area_and_aspect_in_range(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        crop = augment._random_rectangle(size, rng, (0.2, 1.0), (3 / 4, 4 / 3))
        assert 0 <= crop.left < crop.right <= size[0]
        assert 0 <= crop.top < crop.bottom <= size[1]
        assert 0.7 < crop.width / crop.height < 1.4
        shares.append(crop.width * crop.height / (size[0] * size[1]))
    assert 0.18 < min(shares) < 0.25
    assert max(shares) <= 1.0


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 10), Crop(493, 0, 506, 10)), ((9, 900), Crop(0, 444, 9, 456)), ((1, 1), None)],
)
def test_pictures_too_long_for_a_crop_give_the_central_one(
    size: tuple[int, int], expected: Crop | None
) -> None:
    rng = np.random.default_rng(0)
    crop = augment._random_rectangle(size, rng, (0.9, 1.0), (3 / 4, 4 / 3))
    assert crop == (expected or Crop(0, 0, 1, 1))


def test_crop_then_resize_is_bicubic_of_the_rectangle() -> None:
    image = Image.fromarray(picture(50, 70))
    crop = Crop(5, 7, 41, 33)
    theirs = image.crop((5, 7, 41, 33)).resize((32, 32), Image.Resampling.BICUBIC)
    assert augment.crop_and_resize(image, crop, 32) == theirs
    assert augment.crop_and_resize(image, crop, 32, flip=True) == ImageOps.mirror(
        image.crop((5, 7, 41, 33))
    ).resize((32, 32), Image.Resampling.BICUBIC)


def test_test_picture_is_the_whole_picture_resized() -> None:
    image = Image.fromarray(picture(50, 70))
    out = augment.test_picture(image, 24)
    np.testing.assert_array_equal(out, np.asarray(image.resize((24, 24), Image.Resampling.BICUBIC)))
    assert out.flags.writeable


def gradient() -> Image.Image:
    """Dark on the left, bright on the right."""
    row = np.linspace(0, 255, 64).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(row[None, :, None], (64, 64, 3)).copy())


def test_pictures_are_flipped_half_of_the_time_unless_forbidden() -> None:
    def flipped(seed: int, allow: bool) -> bool:
        rng = np.random.default_rng(seed)
        out = augment.pretrain_picture(gradient(), rng, 32, allow_flip=allow).astype(int)
        assert out.shape == (32, 32, 3)
        return bool(out[12:20, 8:12].mean() > out[12:20, 20:24].mean())

    assert sum(flipped(seed, allow=True) for seed in range(400)) == pytest.approx(200, abs=50)
    assert sum(flipped(seed, allow=False) for seed in range(400)) == 0


def test_forbidding_the_flip_changes_nothing_else() -> None:
    image = gradient()
    for seed in range(20):
        one, other = (
            augment.pretrain_picture(image, np.random.default_rng(seed), 32, allow_flip=allow)
            for allow in (True, False)
        )
        if np.array_equal(one, other):
            return
    pytest.fail("no seed of twenty gave an unflipped picture")


def test_region_picture_follows_its_crop() -> None:
    image = gradient()
    rng = np.random.default_rng(0)
    out = augment.region_picture(image, rng, 32, crop=Crop(0, 0, 64, 64), flip=True)
    assert out[:, 2].mean() > out[:, -3].mean()


def test_normalise_equals_to_tensor_and_normalize() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchvision.transforms.functional")
    image = picture(20, 30)
    tensor = functional.to_tensor(image)
    theirs = functional.normalize(tensor, list(augment.CLIP_MEAN), list(augment.CLIP_STD))
    ours = augment.normalise(image)
    assert ours.dtype == np.float32
    assert torch.equal(torch.from_numpy(ours), theirs)


def test_normalise_has_clips_mean_and_deviation() -> None:
    black = augment.normalise(np.zeros((2, 2, 3), dtype=np.uint8))
    assert black.shape == (3, 2, 2)
    assert black[:, 0, 0] == pytest.approx([-1.7922626, -1.7520971, -1.4802198], rel=1e-5)


@pytest.mark.slow
def test_two_warps_of_a_picture_take_milliseconds() -> None:
    image = picture(224, 224)
    rotate(image, 21.0)
    start = time.perf_counter()
    for _ in range(10):
        rotate(rotate(image, 21.0), -21.0)
    assert (time.perf_counter() - start) / 10 < 0.03

"""Augmentation of pictures: crops, flips, normalisation, and RandAugment(2, 7).

Every function that draws takes a ``numpy.random.Generator``; ``generator`` makes one from the
seed, the epoch and the record, so that a sample looks the same whichever worker makes it.
The operations of RandAugment are those of the official code, bit for bit (``operations``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xvlm_core.data.boxes import Crop
from xvlm_core.data.operations import ALL_OPS, COLOUR_OPS, FILL, apply_operation

__all__ = [
    "ALL_OPS",
    "CLIP_MEAN",
    "CLIP_STD",
    "COLOUR_OPS",
    "apply_operation",
    "crop_and_resize",
    "generator",
    "magnitude",
    "normalise",
    "pretrain_picture",
    "rand_augment",
    "region_picture",
    "size_of",
    "test_picture",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_MAX_LEVEL = 10
_MAX_ROTATION_DEGREES = 30.0
_MAX_SHEAR = 0.3
_MAX_TRANSLATION_PX = 10.0

_MEAN = np.array(CLIP_MEAN, dtype=np.float32)
_STD = np.array(CLIP_STD, dtype=np.float32)


def generator(seed: int, epoch: int, record_id: str, purpose: str) -> np.random.Generator:
    """The generator of one record in one epoch for one purpose ("picture", "mask", ...).

    The same arguments give the same draws in every process and on every machine.
    """
    key = repr((int(seed), int(epoch), record_id, purpose))
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def magnitude(name: str, level: int, rng: np.random.Generator) -> float | None:
    """Magnitude of an operation at ``level`` of 10, its sign drawn; None if it has none."""
    share = level / _MAX_LEVEL
    if name in ("Brightness", "Sharpness"):
        return share * 1.8 + 0.1
    if name in ("ShearX", "ShearY"):
        size = share * _MAX_SHEAR
    elif name in ("TranslateX", "TranslateY"):
        size = share * _MAX_TRANSLATION_PX
    elif name == "Rotate":
        size = share * _MAX_ROTATION_DEGREES
    else:
        return None
    return -size if rng.random() > 0.5 else size


def rand_augment(
    image: NDArray[np.uint8],
    rng: np.random.Generator,
    operations: Sequence[str] = ALL_OPS,
    *,
    number: int = 2,
    level: int = 7,
    fill: int = FILL,
) -> NDArray[np.uint8]:
    """RandAugment: ``number`` operations drawn with replacement, each applied with probability 0.5.

    Args:
        image: uint8 (H, W, 3), RGB; not written to.
        rng: source of the draws.
        operations: names to draw from: ``ALL_OPS``, or ``COLOUR_OPS`` where boxes must hold.
        number: operations drawn.
        level: strength, of 10.
        fill: grey of what a warp brings in from outside.
    """
    for choice in rng.integers(len(operations), size=number):
        name = operations[choice]
        if rng.random() > 0.5:
            continue
        image = apply_operation(name, image, magnitude(name, level, rng), fill)
    return image


def _random_rectangle(
    picture_size: tuple[int, int],
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Crop:
    """A random part of a picture of that width and height.

    Follows torchvision's ``RandomResizedCrop``: ten tries for a rectangle whose area is a
    fraction in ``scale`` of the picture's and whose aspect lies in ``ratio`` (log-uniform); then
    the largest central rectangle within ``ratio``.
    """
    width, height = picture_size
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(height - h + 1))
            left = int(rng.integers(width - w + 1))
            return Crop(left, top, left + w, top + h)
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return Crop(left, top, left + w, top + h)


def size_of(image: Image.Image | NDArray[np.uint8]) -> tuple[int, int]:
    """Width and height."""
    if isinstance(image, Image.Image):
        return image.size
    return image.shape[1], image.shape[0]


def crop_and_resize(
    image: Image.Image, crop: Crop | None, size: int, *, flip: bool = False
) -> Image.Image:
    """Cut out ``crop`` (the whole picture if None), mirror if asked, resize square, bicubic."""
    if crop is not None:
        image = image.crop((crop.left, crop.top, crop.right, crop.bottom))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _view(
    picture: Image.Image | NDArray[np.uint8], crop: Crop, size: int, *, flip: bool
) -> NDArray[np.uint8]:
    """As ``crop_and_resize``, as uint8 (size, size, 3): of an array in a fifth of the time.

    PyTorch's bicubic with antialiasing is Pillow's, with weights of fewer bits: one value in forty
    differs, nearly always by one (62 dB).
    """
    if isinstance(picture, Image.Image):
        return np.array(crop_and_resize(picture, crop, size, flip=flip))
    import torch  # here: reading pictures needs no framework

    cut_1CHW = torch.from_numpy(picture)[
        None, crop.top : crop.bottom, crop.left : crop.right
    ].permute(0, 3, 1, 2)
    resized_1CHW = torch.nn.functional.interpolate(
        cut_1CHW, size=(size, size), mode="bicubic", antialias=True
    )
    if flip:
        resized_1CHW = resized_1CHW.flip(-1)
    view: NDArray[np.uint8] = resized_1CHW[0].permute(1, 2, 0).contiguous().numpy()
    return view


def pretrain_picture(
    image: Image.Image | NDArray[np.uint8],
    rng: np.random.Generator,
    size: int,
    *,
    scale: tuple[float, float] = (0.2, 1.0),
    allow_flip: bool = True,
) -> NDArray[np.uint8]:
    """Training view of a whole picture: random crop, flip, RandAugment with all operations.

    Args:
        image: RGB; a Pillow picture is resized as Pillow does, an array (H, W, 3) faster.
        rng: source of the draws; the same number is drawn whether a flip is allowed or not.
        size: side of the result in pixels.
        scale: fraction of the area that the crop keeps: from 0.2 in pre-training, from 0.5 in
            fine-tuning.
        allow_flip: False where a text names a side (``text.names_a_side``).

    Returns:
        uint8 (size, size, 3).
    """
    crop = _random_rectangle(size_of(image), rng, scale, ratio=(3 / 4, 4 / 3))
    return _flipped_and_changed(image, rng, size, crop, allow_flip=allow_flip)


def uncropped_picture(
    image: Image.Image | NDArray[np.uint8],
    rng: np.random.Generator,
    size: int,
    *,
    allow_flip: bool = True,
) -> NDArray[np.uint8]:
    """Training view of all of a picture: flip, RandAugment with all operations.

    For texts about parts whose boxes are not known: a crop could cut off what they are about.

    Args:
        image: as of :func:`pretrain_picture`.
        rng: source of the draws.
        size: side of the result in pixels.
        allow_flip: False where a text names a side.

    Returns:
        uint8 (size, size, 3).
    """
    crop = Crop(0, 0, *size_of(image))
    return _flipped_and_changed(image, rng, size, crop, allow_flip=allow_flip)


def _flipped_and_changed(
    image: Image.Image | NDArray[np.uint8],
    rng: np.random.Generator,
    size: int,
    crop: Crop,
    *,
    allow_flip: bool,
) -> NDArray[np.uint8]:
    flip = bool(rng.random() < 0.5) and allow_flip
    if isinstance(image, Image.Image):
        resized = crop_and_resize(image, crop, size)  # mirrored after it: as released
        view = np.array(resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else resized)
    else:
        view = _view(image, crop, size, flip=flip)
    return rand_augment(view, rng, ALL_OPS)


def region_picture(
    image: Image.Image | NDArray[np.uint8],
    rng: np.random.Generator,
    size: int,
    *,
    crop: Crop,
    flip: bool,
) -> NDArray[np.uint8]:
    """Training view where boxes must hold: a given crop and flip, RandAugment of colours only.

    Args:
        image: RGB; a Pillow picture is resized as Pillow does, an array (H, W, 3) faster.
        rng: source of the draws.
        size: side of the result in pixels.
        crop: what is cut out.
        flip: whether it is mirrored.

    Returns:
        uint8 (size, size, 3); ``boxes.carry_boxes`` with the same crop and flip gives its boxes.
    """
    return rand_augment(_view(image, crop, size, flip=flip), rng, COLOUR_OPS)


def test_picture(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The whole picture as uint8 (size, size, 3), bicubic, aspect not kept."""
    return np.array(crop_and_resize(image, None, size))


def normalise(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Uint8 (H, W, 3) to float32 (3, H, W) with CLIP's mean and standard deviation."""
    out = np.empty((3, *image.shape[:2]), np.float32)
    for channel in range(3):  # one after the other: it stays in the cache
        values = out[channel]
        values[...] = image[..., channel]
        values /= np.float32(255)
        values -= _MEAN[channel]
        values /= _STD[channel]
    return out

"""The ten operations of the official RandAugment, on uint8 pictures (H, W, 3).

The official code calls OpenCV. Here the same integers come from NumPy alone: OpenCV 5's affine
warp computes in float32 with fused multiply-add, which float64 arithmetic followed by one
rounding to float32 reproduces; it computes coordinates in one order in blocks of sixteen columns
and in another in the columns that remain (`_coordinates`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]
Coefficients = tuple[float, float, float, float, float, float]

COLOUR_OPS = ("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness")
"""Operations that move no pixel: usable where boxes must hold."""

ALL_OPS = (*COLOUR_OPS, "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")

FILL = 128
"""Grey of what a warp brings in from outside the picture."""

_VECTOR = 16
_MARGIN = 2
_ROWS = 32


def identity(image: Picture) -> Picture:
    """The picture itself."""
    return image


def auto_contrast(image: Picture) -> Picture:
    """Stretch each channel to 0..255 (a channel of one value stays)."""
    tables = []
    for counts in _histograms(image):
        used = np.flatnonzero(counts)
        low, high = int(used[0]), int(used[-1])
        if high <= low:
            tables.append(np.arange(256, dtype=np.uint8))
            continue
        scale = 255 / (high - low)
        tables.append((np.arange(256) * scale - low * scale).clip(0, 255).astype(np.uint8))
    return _looked_up(image, tables)


def equalize(image: Picture) -> Picture:
    """Equalise the histogram of each channel (as ``PIL.ImageOps.equalize``)."""
    tables = []
    for counts in _histograms(image):
        step = int(counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        if step == 0:
            tables.append(np.arange(256, dtype=np.uint8))
            continue
        below = np.concatenate(([step // 2], counts[:-1])).cumsum()
        tables.append((below // step).clip(0, 255).astype(np.uint8))
    return _looked_up(image, tables)


def _histograms(image: Picture) -> NDArray[np.int64]:
    """How often each value comes, (3, 256)."""
    return np.array(Image.fromarray(image).histogram()).reshape(3, 256)


def _looked_up(image: Picture, tables: Sequence[Picture]) -> Picture:
    """Every value replaced by what the table (256,) of its channel has for it."""
    return np.array(Image.fromarray(image).point(np.concatenate(tables).tolist()))


def brightness(image: Picture, factor: float) -> Picture:
    """Multiply by ``factor``, cut off at 255."""
    table = (np.arange(256, dtype=np.float32) * np.float32(factor)).clip(0, 255)
    values = bytearray(image.tobytes().translate(table.astype(np.uint8).tobytes()))
    return np.frombuffer(values, np.uint8).reshape(image.shape)


def sharpness(image: Picture, factor: float) -> Picture:
    """Move away from (``factor`` > 1) or towards a smoothed picture; the border pixels stay.

    As in the official code, results outside 0..255 wrap around.
    """
    if min(image.shape[:2]) < 3 or factor == 1.0:
        return image
    wide = image.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    smooth = ((2 * total + 13) // 26).astype(np.float32)
    sharp = smooth + np.float32(factor) * (image[1:-1, 1:-1].astype(np.float32) - smooth)
    out = image.copy()
    out[1:-1, 1:-1] = sharp.astype(np.int32).astype(np.uint8)
    return out


def shear_x(image: Picture, factor: float, fill: int = FILL) -> Picture:
    """Shift row y by ``factor * y`` pixels to the right."""
    return _warp(image, (1.0, float(np.float32(factor)), 0.0, 0.0, 1.0, 0.0), fill)


def shear_y(image: Picture, factor: float, fill: int = FILL) -> Picture:
    """Shift column x by ``factor * x`` pixels down."""
    return _warp(image, (1.0, 0.0, 0.0, float(np.float32(factor)), 1.0, 0.0), fill)


def translate_x(image: Picture, offset_px: float, fill: int = FILL) -> Picture:
    """Move the picture ``offset_px`` pixels to the left."""
    if offset_px != int(offset_px):
        return _warp(image, (1.0, 0.0, -float(np.float32(offset_px)), 0.0, 1.0, 0.0), fill)
    return _translate_x(image, int(offset_px), fill)


def translate_y(image: Picture, offset_px: float, fill: int = FILL) -> Picture:
    """Move the picture ``offset_px`` pixels up."""
    if offset_px != int(offset_px):
        return _warp(image, (1.0, 0.0, 0.0, 0.0, 1.0, -float(np.float32(offset_px))), fill)
    return _translate_x(image.swapaxes(0, 1), int(offset_px), fill).swapaxes(0, 1)


def rotate(image: Picture, degrees: float, fill: int = FILL) -> Picture:
    """Turn anticlockwise about the centre (W / 2, H / 2)."""
    height, width = image.shape[:2]
    cx, cy = width / 2, height / 2
    angle = degrees * (math.pi / 180)
    a, b = math.cos(angle), math.sin(angle)
    return _warp(image, (a, b, (1 - a) * cx - b * cy, -b, a, b * cx + (1 - a) * cy), fill)


_WITHOUT_MAGNITUDE: dict[str, Callable[[Picture], Picture]] = {
    "Identity": identity,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
}
_COLOUR: dict[str, Callable[[Picture, float], Picture]] = {
    "Brightness": brightness,
    "Sharpness": sharpness,
}
_WARPS: dict[str, Callable[[Picture, float, int], Picture]] = {
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
}


def apply_operation(
    name: str, image: Picture, magnitude: float | None = None, fill: int = FILL
) -> Picture:
    """Apply the operation called ``name`` (one of ``ALL_OPS``) to a picture uint8 (H, W, 3).

    ``magnitude`` is a factor, a shear, pixels or degrees, signed; None for operations without one.
    The input is never written to; it may be returned.
    """
    assert image.dtype == np.uint8, image.dtype
    assert image.ndim == 3, image.shape
    assert image.shape[2] == 3, image.shape
    if name in _WITHOUT_MAGNITUDE:
        return _WITHOUT_MAGNITUDE[name](image)
    assert magnitude is not None, f"{name} needs a magnitude"
    if name in _COLOUR:
        return _COLOUR[name](image, magnitude)
    return _WARPS[name](image, magnitude, fill)


def _translate_x(image: Picture, offset: int, fill: int) -> Picture:
    out = np.full_like(image, fill)
    width = image.shape[1]
    if abs(offset) < width:
        if offset >= 0:
            out[:, : width - offset] = image[:, offset:]
        else:
            out[:, -offset:] = image[:, :offset]
    return out


@dataclass(frozen=True)
class _Map:
    """Where each pixel of a warped picture comes from, in a picture with a margin all round.

    ``index`` (H, W) int64 is the flat index of the upper left neighbour; ``across`` and ``down``
    (H, W, 1) float64 are the shares of the right and lower neighbours, None where all are 0.
    """

    index: NDArray[np.int64]
    across: NDArray[np.float64] | None
    down: NDArray[np.float64] | None


@lru_cache(maxsize=16)
def _map(height: int, width: int, forward: Coefficients) -> _Map:
    """The source of each pixel under the inverse of ``forward`` (a 2 x 3 matrix by rows)."""
    m00, m01, m02, m10, m11, m12 = forward
    determinant = m00 * m11 - m01 * m10
    scale = 1.0 / determinant if determinant != 0 else 0.0
    a00, a11, a01, a10 = m11 * scale, m00 * scale, -m01 * scale, -m10 * scale
    source_x = _coordinates(height, width, a00, a01, -a00 * m02 - a01 * m12)
    source_y = _coordinates(height, width, a10, a11, -a10 * m02 - a11 * m12)
    left, top = np.floor(source_x), np.floor(source_y)
    across = (source_x - left).astype(np.float64)[..., None]
    down = (source_y - top).astype(np.float64)[..., None]
    columns = left.clip(-_MARGIN, width).astype(np.int64) + _MARGIN
    rows = top.clip(-_MARGIN, height).astype(np.int64) + _MARGIN
    return _Map(
        index=rows * (width + 2 * _MARGIN) + columns,
        across=across if across.any() else None,
        down=down if down.any() else None,
    )


def _coordinates(height: int, width: int, ax: float, ay: float, a: float) -> NDArray[np.float32]:
    """``ax * x + ay * y + a`` in float32 (H, W), rounded where OpenCV rounds."""
    fx, fy, f1 = np.float32(ax), np.float32(ay), np.float32(a)
    x = np.arange(width, dtype=np.float64)[None]
    y = np.arange(height, dtype=np.float32)[:, None]
    along = np.float64(fx) * x
    of_row = (fy * y).astype(np.float64)
    out = (along + (fy * y + f1).astype(np.float64)).astype(np.float32)
    tail = width - width % _VECTOR
    out[:, tail:] = (along[:, tail:] + of_row).astype(np.float32) + f1
    return out


def _warp(image: Picture, forward: Coefficients, fill: int) -> Picture:
    """Bilinear affine warp with a constant border, equal to ``cv2.warpAffine``."""
    height, width = image.shape[:2]
    source = _map(height, width, forward)
    stride = width + 2 * _MARGIN
    framed = np.full((height + 2 * _MARGIN, stride, 3), fill, dtype=np.uint8)
    framed[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = image
    pixels = framed.reshape(-1, 3)
    out = np.empty_like(image, order="C")
    for top in range(0, height, _ROWS):  # what is computed in between stays in the cache
        rows = slice(top, top + _ROWS)
        index = source.index[rows]
        across = None if source.across is None else source.across[rows]
        values = _between(pixels, index, 1, across)
        if source.down is not None:
            lower = _between(pixels[stride:], index, 1, across)
            mixed = (lower - values) * source.down[rows]
            mixed += values
            values = mixed.astype(np.float32)
        out[rows] = np.rint(values, out=values)
    return out


def _between(
    pixels: Picture, index: NDArray[np.int64], step: int, share: NDArray[np.float64] | None
) -> NDArray[np.float32]:
    """``a + share * (b - a)`` of neighbours ``step`` apart, rounded to float32, (H, W, 3)."""
    first = pixels.take(index, axis=0).astype(np.float32)
    if share is None:
        return first
    mixed = (pixels[step:].take(index, axis=0) - first) * share
    mixed += first
    return mixed.astype(np.float32)

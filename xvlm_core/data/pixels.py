"""Decoding for training: the pixels that ``images.read_picture`` gives, sooner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xvlm_core.data.images import MAX_PIXELS, open_encoded, read_picture
from xvlm_core.data.jpeg_header import ENOUGH, plain_jpeg

_COLOURS = 3


def read_pixels(source: Path | bytes) -> NDArray[np.uint8]:
    """A picture as uint8 (H, W, 3): upright, 8 bits, RGB; the same numbers as ``read_picture``.

    Ordinary colour JPEGs go to torchvision, which decodes with the same library in one piece;
    all others, and damaged ones, to Pillow (all of them where torchvision has no decoder: it is
    to be removed there some day).

    Args:
        source: a file, or its bytes.

    Raises:
        PictureError: as ``read_picture``.
    """
    pixels = None
    with open_encoded(source) as file:
        start = file.read(ENOUGH)
        header = plain_jpeg(start)
        plain = header is not None and header.layers == _COLOURS
        if plain and header is not None and header.width * header.height <= MAX_PIXELS:
            pixels = _decoded(bytearray(start + file.read()))
    return np.array(read_picture(source)) if pixels is None else pixels


def _decoded(data: bytearray) -> NDArray[np.uint8] | None:
    """The pixels of a JPEG; None where it is damaged, or torchvision came without a decoder."""
    import torch  # here: reading pictures needs no framework

    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped]

        pixels_CHW = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), ImageReadMode.RGB)
    except (ImportError, RuntimeError):
        return None
    pixels: NDArray[np.uint8] = pixels_CHW.permute(1, 2, 0).numpy()
    return pixels

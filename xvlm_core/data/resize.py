"""Smaller copies of pictures for a packed store."""

from __future__ import annotations

import io

from PIL import Image

from xvlm_core.data.images import read_picture

_QUALITY = 95


def reduced(data: bytes, longest: int) -> tuple[bytes, int, int]:
    """A picture whose longest side is ``longest``, upright, as JPEG (quality 95, full colour).

    Args:
        data: an encoded picture.
        longest: side in pixels, smaller than the picture's.

    Returns:
        The encoded picture, its width and its height.

    Raises:
        PictureError: it cannot be decoded.
    """
    image = read_picture(data)
    scale = longest / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return buffer.getvalue(), *size

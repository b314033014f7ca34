"""Perceptual hashes: the same photograph in another size or saved again has nearly the same one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from xvlm_core.data.images import read_picture


def looks_of(source: Path | bytes) -> int:
    """64 bits: whether each of 8 x 8 cells is darker than its right neighbour (dHash).

    Raises:
        PictureError: it cannot be read.
    """
    grey = read_picture(source).convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(grey).astype(np.int16)
    bits = (values[:, 1:] > values[:, :-1]).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")

"""What a model is asked with: pictures of any kind as pixels, texts as tokens, the device.

Everything that answers reads its questions here, so that a picture or a text means the same to all.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from xvlm_core.data.augment import normalise, test_picture
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.text import EmptyTextError, pre_caption, sanitize
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import DataError, UsageError
from xvlm_core.weights.folder import ModelInfo

Picture = Image.Image | Path | str
"""A file, or a Pillow image of any mode."""

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class ReadText:
    """A text, ready for the model.

    Attributes:
        given: as it came.
        cleaned: what the tokens were made of: cleaned, cut to the model's number of words.
        read_as: what the model reads: ``cleaned``, cut to the model's number of tokens.
        ids: its tokens, CLS in front.
        unknown_words: words of it that the vocabulary lacks.
        cut: whether the text was longer than what the model reads.
    """

    given: str
    cleaned: str
    read_as: str
    ids: tuple[int, ...]
    unknown_words: tuple[str, ...]
    cut: bool


def in_batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """As many at once as are wanted; the last batch may be smaller.

    Raises:
        UsageError: the size is below 1.
    """
    if size < 1:
        raise UsageError(f"batch size {size} is below 1", try_="--batch-size 16")
    each = iter(items)
    while batch := list(islice(each, size)):
        yield batch


def listed(texts: Sequence[str], what: str) -> Sequence[str]:
    """The same texts, unless they are one: its letters would be asked about.

    Args:
        texts: phrases, questions, statements.
        what: they are.

    Raises:
        UsageError: a single text.
    """
    if isinstance(texts, str):
        raise UsageError(
            f"{what} must be a list, not the single text {texts[:40]!r}", try_=f"[{texts[:40]!r}]"
        )
    return texts


def read_text(text: str, tokenizer: Tokenizer, info: ModelInfo) -> ReadText:
    """Clean a text and make tokens of it.

    Args:
        text: as a person wrote it.
        tokenizer: the model's.
        info: the model's: how many words and tokens it reads.

    Raises:
        UsageError: nothing is left of it after cleaning.
    """
    try:
        whole = pre_caption(sanitize(text), len(text))
        cleaned = pre_caption(sanitize(text), info.max_words)
    except EmptyTextError:
        raise UsageError(
            f"nothing is left of the phrase {text[:40]!r} after cleaning",
            try_='a phrase of words, e.g. "red circle"',
        ) from None
    encoded = tokenizer.encode(cleaned, info.max_tokens)
    if len(encoded.ids) < 2:
        raise UsageError(
            f"the phrase {text[:40]!r} has no letter that the model reads",
            try_='a phrase of words, e.g. "red circle"',
        )
    words = dict.fromkeys(cleaned.split())
    return ReadText(
        given=text,
        cleaned=cleaned,
        read_as=tokenizer.decode(encoded.ids) if encoded.cut else cleaned,
        ids=encoded.ids,
        unknown_words=tuple(word for word in words if _is_unknown(word, tokenizer)),
        cut=encoded.cut > 0 or cleaned != whole,
    )


def _is_unknown(word: str, tokenizer: Tokenizer) -> bool:
    return tokenizer.unk_id in tokenizer.encode(word, len(word) + 2).ids


def model_pixels(image: Image.Image, side: int) -> NDArray[np.float32]:
    """An upright RGB picture as the model sees it, ``(3, side, side)``."""
    return normalise(test_picture(image, side))


def device_of(name: str) -> torch.device:
    """The device of a name ("auto": the GPU if there is one).

    Raises:
        UsageError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no such device: {name!r}", try_="--device cpu") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {name} is not there: this machine has {torch.cuda.device_count()} GPUs",
            try_="--device cpu",
        )
    return device


def upright_rgb(picture: Picture) -> Image.Image:
    """The picture as ``read_picture`` gives it, whether it comes as a file or from memory.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if not isinstance(picture, Image.Image):
            return read_picture(Path(picture))
        image = ImageOps.exif_transpose(picture)
        if image.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
            image = image.convert("RGB")
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        # Transparency, palettes and 16 bits are treated as in a file: by the same code.
        file = io.BytesIO()
        premultiplied = image.mode in ("PA", "La", "RGBa")
        image = image.convert("RGBA") if premultiplied else image
        image.save(file, "TIFF" if image.mode == "F" else "PNG")
        return read_picture(file.getvalue())
    except PictureError as error:
        named = "the picture in memory" if isinstance(picture, Image.Image) else str(picture)
        raise DataError(
            f"picture {named} cannot be used: {error.reason}",
            where=None if isinstance(picture, Image.Image) else str(picture),
            try_="give a JPEG, PNG, GIF, BMP, WebP, TIFF or PPM file that opens in a viewer",
        ) from None

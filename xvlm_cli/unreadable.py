"""Pictures of an answering verb: those that cannot be read are listed after the other answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from PIL import Image

Asked = TypeVar("Asked")


def read_in_batches(
    asked: Iterable[Asked], path_of: Callable[[Asked], Path], size: int, problems: list[str]
) -> Iterator[list[tuple[Asked, Image.Image]]]:
    """What is asked about, each with its picture; what cannot be read goes to ``problems``.

    Args:
        asked: pictures with whatever belongs to them.
        path_of: the file of each.
        size: of a batch.
        problems: a line is added for each picture that cannot be read.
    """
    from xvlm_core.data.images import PictureError, read_picture

    batch: list[tuple[Asked, Image.Image]] = []
    for one in asked:
        path = path_of(one)
        try:
            batch.append((one, read_picture(path)))
        except PictureError as error:
            problems.append(f"picture {path}: {error.reason}")
            continue
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def raise_problems(problems: Sequence[str], where: str, kind: str = "pictures") -> None:
    """End, after the answers, where something could not be read.

    Args:
        problems: a line each; nothing happens without any.
        where: how far it went: "3 of 4 pictures were answered".
        kind: what is counted.

    Raises:
        DataError: something could not be read.
    """
    from xvlm_core.errors import DataError

    if problems:
        raise DataError(
            problems[0] if len(problems) == 1 else f"{len(problems)} {kind} cannot be used",
            details=problems if len(problems) > 1 else (),
            where=where,
            try_="files that a picture viewer opens (JPEG, PNG, GIF, BMP, WebP, TIFF, PPM)",
        )

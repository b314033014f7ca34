"""Where a data set and its pictures are: the folders that were named, how pictures are named."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from xvlm_core.errors import DataError, UsageError

LOOKED_AT = 50
"""Pictures of which one must be there for a naming to be recognised."""


def asked_folders(
    options: dict[str, Any], what: str, *, usage: str, of: str = ""
) -> tuple[Path | None, Path]:
    """The folders of the options ``root`` and ``images``; pictures are in the former by default.

    Args:
        options: of a source that also has ``annotations``.
        what: is looked for ("Open Images").
        usage: what to type where it was not said.
        of: whose folder ``--root`` should be; empty: it may be either of the two that is missing.

    Returns:
        ``root``, which is None only if ``annotations`` are given, and the image root.

    Raises:
        UsageError: neither ``root`` nor ``annotations`` and ``images`` are given.
        DataError: there is no such folder.
    """
    root: Path | None = options["root"]
    images: Path | None = options["images"] or root
    if images is None or (root is None and not options["annotations"]):
        raise UsageError(f"where {what} was not said", try_=usage)
    for folder in (root, images):
        if folder is not None and not folder.is_dir():
            raise DataError(
                f"there is no folder {folder}",
                try_=f"--root FOLDER of {of}" if of else "--root FOLDER or --images FOLDER",
            )
    return root, images


class Naming(Protocol):
    """A way in which pictures may be named under an image root."""

    def path(self, picture: Any, /) -> str:
        """Of a picture, from the image root."""


_Found = TypeVar("_Found", bound=Naming)


def first_that_fits(
    root: Path, pictures: Iterable[object], namings: Iterable[_Found]
) -> _Found | None:
    """The first naming by which one of the first pictures is there, or None."""
    looked_at = list(islice(pictures, LOOKED_AT))
    for naming in namings:
        for picture in looked_at:
            try:
                if (root / naming.path(picture)).is_file():
                    return naming
            except (OSError, ValueError):  # no file name: said when pictures are checked
                continue
    return None

"""Writes the contact sheet and the page of a store."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from xvlm_core.cards.builder import make_card
from xvlm_core.cards.card import DataCard
from xvlm_core.cards.examples import choose_examples
from xvlm_core.cards.page import card_page
from xvlm_core.cards.sheet import contact_sheet
from xvlm_core.data.store import Store
from xvlm_core.drawing import png_bytes
from xvlm_core.errors import OutputError


def write_samples(
    store: Store, count: int, png: Path, html: Path, card: DataCard | None = None
) -> None:
    """Draw ``count`` examples into a picture, and with the data card into a page.

    Existing files are replaced.

    Args:
        store: an open store.
        count: examples.
        png: the picture to write.
        html: the page to write.
        card: of the store, if it is made already.

    Raises:
        OutputError: a file cannot be written, or would be inside the store.
        DataError: a record is damaged.
    """
    inside = Path(os.path.realpath(store.folder))
    for path in (png, html):
        if Path(os.path.realpath(path)).is_relative_to(inside):
            raise OutputError(
                f"{path} would be inside the store", where=str(inside), try_="-o ANOTHER_FOLDER"
            )
    numbers = choose_examples(store, count)
    page = card_page(store, numbers, make_card(store) if card is None else card)
    _write(png, png_bytes(contact_sheet(store, numbers)))
    _write(html, page.encode("utf-8"))


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}",
            where=str(path.parent),
            try_="-o FOLDER, one that can be written",
        ) from error

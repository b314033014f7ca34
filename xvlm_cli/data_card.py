"""A data card on the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from xvlm_cli.output import table

if TYPE_CHECKING:
    from xvlm_core.cards.card import DataCard

_WIDTH = 100
_WIDEST_CELL = 60


def card_lines(card: DataCard, *, ledger: bool = True) -> list[str]:
    """The card as lines of text: short aligned tables.

    Args:
        card: of a store.
        ledger: with what was read, kept, dropped and repaired (where it is not said elsewhere).
    """
    from xvlm_core.cards.tables import LEDGER_TABLES, LONGEST_TABLE, card_tables, headline
    from xvlm_core.data.text import sanitize

    def shown(cells: Iterable[str]) -> list[str]:
        return [sanitize(cell)[:_WIDEST_CELL] for cell in cells]

    left_out = (LONGEST_TABLE, *(() if ledger else LEDGER_TABLES))
    lines = [sanitize(headline(card))]
    for found in card_tables(card):
        if found.title in left_out:
            continue
        lines += ["", found.title]
        if any(found.header):
            lines += table(shown(found.header), map(shown, found.rows))
        else:
            for name, text in found.rows:
                lines += textwrap.wrap(
                    sanitize(f"{name}: {text}"),
                    _WIDTH,
                    subsequent_indent="  ",
                    break_on_hyphens=False,
                )
        for note in found.notes:
            lines += textwrap.wrap(
                sanitize(note), _WIDTH, subsequent_indent="  ", break_on_hyphens=False
            )
    return lines

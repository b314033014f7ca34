"""Texts without padding: the tokens of a batch in one row, grouped by length.

Legend: B texts, N tokens of all texts together, D width.

Linear layers and norms see the N real tokens. Attention sees rows: texts of equal length stand
next to each other, so that each group is a plain view ``(rows, length, D)`` and no operation
touches a padded position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LengthGroup:
    """``rows`` texts of ``length`` tokens each, from token ``start``, in packed rows ``row``..."""

    start: int
    row: int
    rows: int
    length: int

    @property
    def stop(self) -> int:
        """First token after the group."""
        return self.start + self.rows * self.length


@dataclass(frozen=True)
class Packing:
    """Where each text lies in the packed row of tokens.

    Packed order is by length; ``order[r]`` is the text in packed row r. Everything a caller sees
    (``first_token``, results by text) is indexed by the text's own number in the batch.
    """

    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        assert all(length > 0 for length in self.lengths), "a text has at least one token"

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Text number in each packed row (stable sort by length)."""
        return tuple(sorted(range(len(self.lengths)), key=lambda b: self.lengths[b]))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First packed token of each text, by text number."""
        starts, at = [0] * len(self.lengths), 0
        for b in self.order:
            starts[b] = at
            at += self.lengths[b]
        return tuple(starts)

    @cached_property
    def groups(self) -> tuple[LengthGroup, ...]:
        """The runs of equal length, in packed order."""
        groups: list[LengthGroup] = []
        start = row = 0
        while row < len(self.order):
            length = self.lengths[self.order[row]]
            rows = 1
            while row + rows < len(self.order) and self.lengths[self.order[row + rows]] == length:
                rows += 1
            groups.append(LengthGroup(start, row, rows, length))
            start += rows * length
            row += rows
        return tuple(groups)

    @property
    def n_texts(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """N."""
        return sum(self.lengths)

    def positions(self, device: torch.device | str) -> Tensor:
        """Position of each packed token inside its text, ``(N,)`` int64."""
        rows = [torch.arange(g.length).repeat(g.rows) for g in self.groups]
        return torch.cat(rows).to(device)

    def text_of_token(self, device: torch.device | str) -> Tensor:
        """The text that each packed token belongs to, by text number, ``(N,)`` int64."""
        lengths = torch.tensor([self.lengths[b] for b in self.order])
        return torch.tensor(self.order).repeat_interleave(lengths).to(device)

    def first_tokens(self, device: torch.device | str) -> Tensor:
        """Packed index of the first token (CLS) of each text, by text number, ``(B,)``."""
        return torch.tensor(self.starts, device=device)

    def select(self, texts: Sequence[int]) -> tuple[Packing, Tensor]:
        """A packing of the given texts (repeats allowed) and the tokens to gather for it.

        Returns:
            The new packing and the packed indices ``(N',)`` (CPU) into this one's tokens, such
            that ``hidden[indices]`` lies as the new packing says.
        """
        packing = Packing(tuple(self.lengths[b] for b in texts))
        starts = torch.tensor([self.starts[texts[r]] for r in packing.order])
        parts = [
            (starts[g.row : g.row + g.rows, None] + torch.arange(g.length)).reshape(-1)
            for g in packing.groups
        ]
        return packing, torch.cat(parts)


@dataclass(frozen=True)
class PackedTexts:
    """Token ids of B texts, packed.

    Attributes:
        ids_N: token ids in packed order, ``(N,)`` int64.
        packing: where each text lies.
    """

    ids_N: Tensor
    packing: Packing

    @classmethod
    def from_lists(cls, texts: Sequence[Sequence[int]]) -> PackedTexts:
        """Pack lists of token ids (each starts with CLS)."""
        packing = Packing(tuple(len(text) for text in texts))
        flat = [token for b in packing.order for token in texts[b]]
        return cls(torch.tensor(flat, dtype=torch.int64), packing)

    def to(self, device: torch.device | str) -> PackedTexts:
        """The same texts on another device."""
        return PackedTexts(self.ids_N.to(device, non_blocking=True), self.packing)

    def following(self, end: int) -> Tensor:
        """The token that follows each packed token in its text, ``(N,)`` int64.

        Args:
            end: what follows the last one.
        """
        parts = [
            F.pad(self.ids_N[g.start : g.stop].view(g.rows, g.length)[:, 1:], (0, 1), value=end)
            for g in self.packing.groups
        ]
        return torch.cat([self.ids_N[:0], *(part.reshape(-1) for part in parts)])

    def join(self, other: PackedTexts) -> PackedTexts:
        """These texts followed by the other's, packed together."""
        packing = Packing(self.packing.lengths + other.packing.lengths)
        starts = self.packing.starts + tuple(
            self.packing.n_tokens + start for start in other.packing.starts
        )
        index = [torch.arange(starts[b], starts[b] + packing.lengths[b]) for b in packing.order]
        ids_N = torch.cat([self.ids_N, other.ids_N])
        return PackedTexts(ids_N[torch.cat(index).to(ids_N.device)], packing)

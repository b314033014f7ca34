"""Running statistics (batch norm) of an update in several parts.

Each part changes them from where the update found them; afterwards they are the mean of what the
parts left. So they too do not depend on which rank computed which part. Models without them (the
released one) pay nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xvlm_core.train.ranks import Ranks


class RunningStatistics:
    """Those of a model.

    Args:
        model: its batch norms are looked after.
        ranks: each has as many parts.
        own: parts a rank.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, own: int) -> None:
        self.ranks = ranks
        self.own = own
        self._buffers: list[Tensor] = []
        self._first: list[Tensor] = []
        self._sum: list[Tensor] = []
        if ranks.world_size * own > 1:
            kind = torch.nn.modules.batchnorm._NormBase
            norms = [module for module in model.modules() if isinstance(module, kind)]
            self._buffers = [buffer for norm in norms for buffer in norm.buffers()]

    def begin(self) -> None:
        """An update begins."""
        self._first = [buffer.clone() for buffer in self._buffers]
        self._sum = [torch.zeros_like(buffer, dtype=torch.float64) for buffer in self._buffers]

    def undo(self) -> None:
        """Forget what a pass changed that is made again."""
        for buffer, first in zip(self._buffers, self._first, strict=True):
            buffer.copy_(first)

    def part_done(self) -> None:
        """A part was computed: the next one starts where it did."""
        for buffer, total in zip(self._buffers, self._sum, strict=True):
            total += buffer
        self.undo()

    def finish(self) -> None:
        """All parts were computed: take the mean over those of all ranks."""
        for buffer, total in zip(self._buffers, self._sum, strict=True):
            buffer.copy_(self.ranks.mean(total / self.own))

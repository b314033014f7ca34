"""The parts of an update: which rank computes which, their random numbers, and what they share.

An update is computed in M parts (``train.micro_batches``) by W ranks, M / W each, one after the
other. Every number of an update is a function of its parts alone, so the same recipe gives the same
run on 1, 2, ... M ranks: a part's draws are seeded by its place in the run, a mean over the items
of an update is the sum of the parts' means times their shares, and a loss over all parts
(contrastive) sees the rows of the others.

Large batches in little memory (Gao et al., "Scaling Deep Contrastive Learning Batch Size under
Memory Limited Setup", RepL4NLP 2021): where a rank has several parts, their rows are computed
first without gradient; then each part is computed again with gradient, its own rows in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from xvlm_core.config.schema import Recipe
from xvlm_core.data.feeds import parts_of
from xvlm_core.errors import ConfigError
from xvlm_core.train.ranks import Ranks


def settle_parts(recipe: Recipe, world_size: int) -> Recipe:
    """The recipe with ``train.micro_batches`` said: as many as ranks, if it did not.

    Raises:
        ConfigError: the ranks cannot share the parts evenly, or the parts a batch.
    """
    parts = recipe.train.micro_batches
    if parts is None:
        train = recipe.train.model_copy(update={"micro_batches": world_size})
        recipe = recipe.model_copy(update={"train": train})
    elif parts % world_size:
        fitting = [str(n) for n in range(1, parts + 1) if parts % n == 0]
        more = -(-parts // world_size) * world_size
        raise ConfigError(
            f"{world_size} processes cannot share the {parts} micro-batches of an update evenly",
            where="train.micro_batches",
            try_=f"{', '.join(fitting)} processes, or a new run with train.micro_batches={more}",
        )
    parts_of(recipe)
    return recipe


def seed_of(
    seed: int, step: int, update: int, part: int, purpose: Literal["layers", "draws"] = "layers"
) -> int:
    """63 bits that depend on the place of a part in the run alone, and on what they are for.

    Args:
        seed: of the run.
        step: 1, 2, ...
        update: of the step.
        part: of the update.
        purpose: drop-out inside layers, or the draws of a task.
    """
    place = (seed, step, update, part, int(purpose == "draws"))
    (word,) = np.random.SeedSequence(place).generate_state(1, np.uint64)
    return int(word) & ((1 << 63) - 1)


class GatheredPeers:
    """The other parts of an update: of other ranks, and this rank's own that come before or after.

    Args:
        ranks: each has ``own`` parts.
        part: number of this one among all.
        own: parts a rank.
        prepared: tables of all parts, one tensor a part, where a rank has several; None: they are
            gathered when they are asked for.
    """

    def __init__(
        self,
        ranks: Ranks,
        part: int,
        own: int,
        prepared: Mapping[str, Sequence[Tensor]] | None = None,
    ) -> None:
        self.ranks = ranks
        self.part = part
        self.n_parts = ranks.world_size * own
        self.prepared = prepared
        self.rows_are_finite: list[Tensor] = []

    def table(self, name: str, rows: Tensor) -> tuple[Tensor, int]:
        """See :class:`xvlm_core.tasks.base.Peers`."""
        if rows.is_floating_point():
            self.rows_are_finite.append(rows.detach().isfinite().all())
        if self.n_parts == 1:
            return rows, 0
        found = self.ranks.gather_rows(rows) if self.prepared is None else self.prepared[name]
        tables = [rows if part == self.part else table for part, table in enumerate(found)]
        return torch.cat(tables), sum(len(table) for table in tables[: self.part])


def gather_tables(ranks: Ranks, own: Sequence[Mapping[str, Tensor]]) -> dict[str, Sequence[Tensor]]:
    """Tables of all parts from those of this rank's parts.

    Args:
        ranks: all have as many parts.
        own: the tables of each part of this rank; the same names in each.
    """
    tables: dict[str, Sequence[Tensor]] = {}
    for name in own[0]:
        # one part of every rank at a time: part p of rank r is number r * len(own) + p of all
        gathered = [ranks.gather_rows(part[name]) for part in own]
        tables[name] = [
            gathered[p][rank] for rank in range(ranks.world_size) for p in range(len(own))
        ]
    return tables


Sizes = Mapping[str, float | None]
"""Of a part: see :meth:`xvlm_core.tasks.base.Task.sizes`."""


@dataclass(frozen=True)
class Share:
    """What the losses of a part weigh in its update; losses without any item there are left out.

    Attributes:
        gradient: factor on a loss when it is differentiated. A loss over all parts has 1: of its
            gradient each part has its own rows' share already.
        value: factor on the value of a loss in the sum over parts.
        own: names of the losses over this part's items alone.
        n_parts: of the update.
    """

    gradient: Mapping[str, float]
    value: Mapping[str, float]
    own: frozenset[str]
    n_parts: int


def shares(sizes: Sequence[Sizes]) -> list[Share]:
    """The share of each part of an update.

    Args:
        sizes: of all parts.
    """
    totals: dict[str, float] = {}
    for one in sizes:
        for name, size in one.items():
            totals[name] = totals.get(name, 0.0) + (size or 0.0)
    found = []
    for one in sizes:
        own = {name: size / totals[name] for name, size in one.items() if size}
        over_all = [name for name, size in one.items() if size is None]
        found.append(
            Share(
                {**own, **dict.fromkeys(over_all, 1.0)},
                {**own, **dict.fromkeys(over_all, 1.0 / len(sizes))},
                frozenset(own),
                len(sizes),
            )
        )
    return found

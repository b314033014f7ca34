"""What the ranks tell each other around an update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from xvlm_core.errors import XvlmError
from xvlm_core.tasks.base import Batch, Losses
from xvlm_core.train.bad_samples import Seen
from xvlm_core.train.parts import GatheredPeers, Share, Sizes
from xvlm_core.train.state import add_counts


@dataclass(frozen=True)
class Ready:
    """Before a step.

    Attributes:
        error: what kept this rank from having its batches.
        signal: that this process received.
        sizes: of each update, those of this rank's parts.
        seen: samples of this rank's batches, and the damage among them.
    """

    error: XvlmError | None
    signal: int | None
    sizes: Sequence[Sequence[Sizes]] = ()
    seen: Sequence[Seen] = ()


@dataclass(frozen=True)
class Outcome:
    """After the parts of an update, before the weights change.

    Attributes:
        values: this rank's contribution to each number of the update; they add up.
        counts: likewise.
        dropped: samples left out, by reason.
        pictures: in this rank's parts.
        guilty: records of this rank's parts in which something was not finite.
        signal: that this process received.
        seconds: training time so far by this rank's clock.
    """

    values: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    pictures: int = 0
    guilty: Sequence[str] = ()
    signal: int | None = None
    seconds: float = 0.0


def outcome_of(losses: Losses, share: Share, batch: Batch, peers: GatheredPeers) -> Outcome:
    """What a part adds to the numbers of its update, read from the device in one go."""
    named = {name: losses.parts[name] for name in losses.parts if name in share.value}
    tensors = [*named.values(), *losses.gauges.values(), *peers.rows_are_finite]
    if not tensors:
        return Outcome({}, losses.counts)
    numbers = torch.stack([tensor.detach().float() for tensor in tensors]).tolist()
    parts = dict(zip(named, numbers, strict=False))
    gauges = dict(zip(losses.gauges, numbers[len(named) :], strict=False))
    values = {name: share.value[name] * number for name, number in parts.items()}
    values["loss"] = sum(losses.weights.get(name, 1.0) * value for name, value in values.items())
    values |= {name: number / share.n_parts for name, number in gauges.items()}
    own = [parts[name] for name in share.own if name in parts]
    healthy = all(math.isfinite(number) for number in own) and all(
        numbers[len(named) + len(gauges) :]
    )
    return Outcome(values, losses.counts, guilty=() if healthy else batch.record_ids)


@dataclass(frozen=True)
class Whole:
    """The outcomes of all ranks as one."""

    values: dict[str, float]
    counts: dict[str, int]
    dropped: dict[str, int]
    pictures: int
    guilty: list[str]

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return all(math.isfinite(value) for value in self.values.values())


def summed(outcomes: Sequence[Outcome]) -> Whole:
    """All ranks' outcomes, added up."""
    values: dict[str, float] = {}
    counts: dict[str, int] = {}
    dropped: dict[str, int] = {}
    for outcome in outcomes:
        for name, value in outcome.values.items():
            values[name] = values.get(name, 0.0) + value
        add_counts(counts, outcome.counts)
        add_counts(dropped, outcome.dropped)
    pictures = sum(outcome.pictures for outcome in outcomes)
    return Whole(values, counts, dropped, pictures, [id_ for o in outcomes for id_ in o.guilty])


def first_signal(said: Sequence[Ready | Outcome]) -> int | None:
    """The signal of the lowest rank that received one."""
    return next((one.signal for one in said if one.signal is not None), None)


_NAMED_RECORDS = 4


def data_position(step: int, batches: Sequence[Batch]) -> str:
    """Where a step stands in the data, in a few words."""
    records = [record_id for batch in batches for record_id in batch.record_ids]
    more = len(records) - _NAMED_RECORDS
    return f"step {step}, records {', '.join(records[:_NAMED_RECORDS])}" + (
        f" and {more} more" if more > 0 else ""
    )

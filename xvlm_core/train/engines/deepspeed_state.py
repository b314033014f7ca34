"""Whole tensors from the shares of the ranks, and back.

DeepSpeed's optimizer does not see parameters: it sees one vector a group, of which each rank holds
a share. Where a parameter lies in it depends on the ZeRO stage. What is saved is whole, by
parameter, so that it fits any stage and any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xvlm_core.errors import CheckpointError
from xvlm_core.train.ranks import Ranks

AVERAGES = ("exp_avg", "exp_avg_sq")
"""State of AdamW that has the shape of the parameter; ``step`` has none."""


@dataclass(frozen=True)
class Member:
    """A parameter of a group.

    Attributes:
        name: in the model.
        shape: whole.
        start: its first number in the group's vector (stage 3: in each rank's share of it).
        size: numbers of it there.
    """

    name: str
    shape: torch.Size
    start: int
    size: int


class Group(Protocol):
    """Parameters that are one vector to the optimizer.

    Attributes:
        own: this rank's share: what the optimizer updates, and its state belongs to.
        members: in order.
        shared_out: whether the ranks hold different shares.
    """

    own: Tensor
    members: Sequence[Member]
    shared_out: bool

    def join(self, shares: Sequence[Tensor]) -> dict[str, Tensor]:
        """Whole tensors, by parameter, from the shares of all ranks."""

    def share(self, whole: Mapping[str, Tensor], rank: int) -> Tensor:
        """A rank's share of whole tensors; zeros for parameters that are missing."""

    def pieces(self, name: str, rank: int) -> Tensor:
        """What a rank's share has of a parameter, as a view."""


class OneParameter:
    """Stage 0: every rank has everything."""

    shared_out: bool = False

    def __init__(self, name: str, parameter: nn.Parameter) -> None:
        self.own: Tensor = parameter
        self.members: Sequence[Member] = (Member(name, parameter.shape, 0, parameter.numel()),)

    def join(self, shares: Sequence[Tensor]) -> dict[str, Tensor]:
        """See :class:`Group`."""
        return {self.members[0].name: shares[0]}

    def share(self, whole: Mapping[str, Tensor], rank: int) -> Tensor:
        """See :class:`Group`."""
        return whole.get(self.members[0].name, torch.zeros_like(self.own))

    def pieces(self, name: str, rank: int) -> Tensor:
        """See :class:`Group`."""
        return self.own


class Slice:
    """Stages 1 and 2: parameters one after the other; the vector is cut evenly, wherever that is.

    Args:
        own: this rank's cut.
        parameters: by name; each is a view of ``vector``.
        vector: all weights of the group.
    """

    shared_out: bool = True

    def __init__(self, own: Tensor, parameters: Mapping[str, nn.Parameter], vector: Tensor) -> None:
        self.own = own
        self.members: Sequence[Member] = [
            Member(name, p.shape, int(p.storage_offset() - vector.storage_offset()), p.numel())
            for name, p in parameters.items()
        ]

    def join(self, shares: Sequence[Tensor]) -> dict[str, Tensor]:
        """See :class:`Group`."""
        vector = torch.cat(list(shares))
        return {m.name: vector[m.start : m.start + m.size].view(m.shape) for m in self.members}

    def share(self, whole: Mapping[str, Tensor], rank: int) -> Tensor:
        """See :class:`Group`."""
        found = torch.zeros(len(self.own))
        for member in self.members:
            if member.name in whole:
                first, last = self._overlap(member, rank)
                begin = rank * len(self.own)
                piece = whole[member.name].flatten()[first - member.start : last - member.start]
                found[first - begin : last - begin] = piece
        return found

    def pieces(self, name: str, rank: int) -> Tensor:
        """See :class:`Group`."""
        (member,) = (m for m in self.members if m.name == name)
        first, last = self._overlap(member, rank)
        begin = rank * len(self.own)
        return self.own[first - begin : last - begin]

    def _overlap(self, member: Member, rank: int) -> tuple[int, int]:
        begin, end = rank * len(self.own), (rank + 1) * len(self.own)
        first = min(max(member.start, begin), end)
        return first, max(first, min(member.start + member.size, end))


class Slices:
    """Stage 3: every parameter is cut evenly; a share is the cuts one after the other.

    Args:
        own: this rank's share.
        parameters: by name, as DeepSpeed knows them.
    """

    shared_out: bool = True

    def __init__(self, own: Tensor, parameters: Mapping[str, Any]) -> None:
        self.own = own
        members = []
        start = 0
        for name, parameter in parameters.items():
            size = int(parameter.partition_numel())
            members.append(Member(name, torch.Size(parameter.ds_shape), start, size))
            start += size
        self.members: Sequence[Member] = members

    def join(self, shares: Sequence[Tensor]) -> dict[str, Tensor]:
        """See :class:`Group`."""
        return {
            m.name: torch.cat([share[m.start : m.start + m.size] for share in shares])[
                : m.shape.numel()
            ].view(m.shape)
            for m in self.members
        }

    def share(self, whole: Mapping[str, Tensor], rank: int) -> Tensor:
        """See :class:`Group`."""
        found = torch.zeros(len(self.own))
        for member in self.members:
            if member.name in whole:
                piece = whole[member.name].flatten()[rank * member.size : (rank + 1) * member.size]
                found[member.start : member.start + len(piece)] = piece
        return found

    def pieces(self, name: str, rank: int) -> Tensor:
        """See :class:`Group`."""
        (member,) = (m for m in self.members if m.name == name)
        return self.own[member.start : member.start + member.size]


def groups_of(
    engine: Any, names: Mapping[nn.Parameter, str], optimizer: torch.optim.Optimizer, stage: int
) -> list[Group]:
    """The groups of a DeepSpeed engine, in the optimizer's order.

    Args:
        engine: DeepSpeed's.
        names: of the model's parameters.
        optimizer: the one that was given to it.
        stage: ZeRO.
    """

    def named(parameters: Sequence[nn.Parameter]) -> dict[str, nn.Parameter]:
        return {names[parameter]: parameter for parameter in parameters}

    if stage == 0:
        return [
            OneParameter(names[parameter], parameter)
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
    zero = engine.optimizer
    if stage < 3:
        return [
            Slice(own, named(parameters), vector)
            for own, parameters, vector in zip(
                zero.single_partition_of_fp32_groups,
                zero.bit16_groups,
                zero.bit16_groups_flat,
                strict=True,
            )
        ]
    return [
        Slices(own, named(parameters))
        for own, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
    ]


def gather_state(
    groups: Sequence[Group], optimizer: torch.optim.Optimizer, device: torch.device, ranks: Ranks
) -> dict[str, Tensor]:
    """The optimizer's state as whole tensors ``<key>/<parameter>``, on the CPU of rank 0."""
    tensors: dict[str, Tensor] = {}
    for group in groups:
        state = optimizer.state.get(group.own)
        if not state:  # no update yet
            continue
        for key in AVERAGES:
            shares = [state[key].detach()]
            if group.shared_out:
                shares = ranks.gather_rows(shares[0].to(device))
            if ranks.is_main:
                for name, tensor in group.join(shares).items():
                    tensors[f"{key}/{name}"] = tensor.to("cpu", copy=True).contiguous()
        if ranks.is_main:
            for member in group.members:
                step = state["step"].detach().float()
                tensors[f"step/{member.name}"] = step.to("cpu", copy=True)
    return tensors


def load_state(
    groups: Sequence[Group],
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    rank: int,
) -> None:
    """Take up a state of any engine.

    A group has one count of updates: the greatest of its members', where they differ (in a state of
    the torch engine, a parameter that had no gradient was not updated).

    Raises:
        CheckpointError: it is of a model with other parameters. Nothing was changed.
    """
    members = {member.name: member for group in groups for member in group.members}
    by_key: dict[str, dict[str, Tensor]] = {key: {} for key in (*AVERAGES, "step")}
    for full_name, value in tensors.items():
        key, _, name = full_name.partition("/")
        shape = torch.Size() if key == "step" else members[name].shape if name in members else None
        if key not in by_key or name not in members or value.shape != shape:
            raise CheckpointError(
                f"the optimizer state is of another model: {name or full_name} does not fit",
                try_="resume with the recipe of the run (recipe.yaml in its folder)",
            )
        by_key[key][name] = value
    for group in groups:
        steps = [by_key["step"][m.name] for m in group.members if m.name in by_key["step"]]
        if not steps:
            optimizer.state.pop(group.own, None)
            continue
        # a fused optimizer counts on the device
        counts_on = group.own.device if optimizer.defaults.get("fused") else torch.device("cpu")
        state = {"step": torch.stack(steps).max().float().to(counts_on, copy=True)}
        for key in AVERAGES:
            share = group.share(by_key[key], rank)
            state[key] = share.to(group.own.device, torch.float32, copy=True)
        optimizer.state[group.own] = state

"""What a training step allocates and computes, counted without doing either.

The very code of a task runs, forward and backward, on tensors that have a shape and no numbers
(torch's FakeTensor); every allocation, every release and every product is written down. Whole
numbers of the batch (which text is of which picture) stay real, since the code branches on them.

The kernels are those that PyTorch takes on the CPU. Those of a GPU keep somewhat less: its
attention does not store its weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.flop_counter import flop_registry

from xvlm_core.tasks.base import Batch, Losses, Moment, Task

_aten = torch.ops.aten


@dataclass(frozen=True)
class Alive:
    """Bytes at one moment, beyond the weights: gradients of weights, and all else."""

    gradients: int
    working: int


@dataclass(frozen=True)
class Counted:
    """One part of an update.

    Attributes:
        saved: bytes that the forward pass keeps for the backward pass, the batch included, the
            weights not.
        moments: the worst moments: any other has fewer gradients and less of the rest than one of
            these.
        flops: floating-point operations of the forward pass, two for a multiplication with an
            addition.
        all_flops: with the backward pass.
    """

    saved: int
    moments: tuple[Alive, ...]
    flops: int
    all_flops: int

    @property
    def working(self) -> int:
        """The most bytes at once beyond weights and their gradients."""
        return max(moment.working for moment in self.moments)

    def peak(self, share: float = 1.0) -> int:
        """The most bytes at once beyond weights.

        Args:
            share: bytes that a byte of float32 gradients takes.
        """
        return max(int(share * one.gradients) + one.working for one in self.moments)


def count_part(
    task: Task,
    model: nn.Module,
    batch: Batch,
    *,
    precision: str,
    n_parts: int = 1,
    progress: float = 1.0,
) -> Counted:
    """Forward and backward of one part of an update.

    Args:
        task: whose losses.
        model: on the ``meta`` device; its tensors are replaced by counted ones.
        batch: on the CPU.
        precision: fp32, bf16 or fp16: of the forward pass; weights are float32.
        n_parts: of the update, of this size each: the contrastive loss sees all of them.
        progress: of the run: losses that join later than this take no part.
    """
    mode = _Counting()
    _make_fake(model, mode.fake)
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        mode.know(tensor)
    batch = _with_fake_pictures(batch, mode)
    saved = dict(mode.given)

    def keep(tensor: Tensor) -> Tensor:
        number, size = mode.number(tensor)
        if number is not None:
            saved[number] = size
        return tensor

    moment = Moment(1, progress, torch.Generator().manual_seed(0), _Peers(n_parts))
    cast: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if precision != "fp32":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        cast = torch.autocast("cpu", dtype=dtype)
    model.train()
    with mode:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), cast:
            losses: Losses = task.losses(model, batch, moment)
        forward = mode.flops
        total = losses.total()
        if total is not None:
            total.backward()  # type: ignore[no-untyped-call]
        del losses, total
    gradients = [mode.number(p.grad)[0] for p in model.parameters() if p.grad is not None]
    return Counted(
        saved=sum(saved.values()),
        moments=mode.worst_moments({number for number in gradients if number is not None}),
        flops=forward,
        all_flops=mode.flops,
    )


class _Peers:
    """Other parts that are as large as this one."""

    def __init__(self, n_parts: int) -> None:
        self.n_parts = n_parts

    def table(self, name: str, rows: Tensor) -> tuple[Tensor, int]:
        return torch.cat([rows, *[rows.detach()] * (self.n_parts - 1)]), 0


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs operations on fake tensors where one of the inputs is fake; writes down what they take.

    Attributes:
        given: bytes of the batch, by number of the storage.
        flops: floating-point operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.given: dict[int, int] = {}
        self.flops = 0
        self._numbers = itertools.count()
        self._alive: dict[int, tuple[int, int]] = {}  # address of a storage: its number, bytes
        self._events: list[tuple[int, int]] = []  # number of a storage, bytes more or less
        self._weights: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # device, layout ... of a tensor: nothing is computed
            return func(*args, **kwargs)
        if not any(isinstance(value, FakeTensor) for value in tree_iter((args, kwargs))):
            out = func(*args, **kwargs)
        else:
            args = _real_choices(func, args)
            with self.fake:
                out = func(*args, **kwargs)
            out = tree_map(_plausible(func, args), out)
            formula = flop_registry.get(func.overloadpacket)
            if formula is not None:
                self.flops += formula(*args, **kwargs, out_val=out)
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._write_down(value)
        return out

    def know(self, tensor: Tensor) -> None:
        """A weight: it was there before, and is not counted."""
        self._weights.add(tensor.untyped_storage()._cdata)

    def give(self, tensor: Tensor) -> None:
        """A tensor of the batch."""
        self._write_down(tensor)
        number, size = self.number(tensor)
        if number is not None:
            self.given[number] = size

    def number(self, tensor: Tensor) -> tuple[int | None, int]:
        """Number and bytes of a storage; None: it is a weight, or not of this count."""
        return self._alive.get(tensor.untyped_storage()._cdata, (None, 0))

    def _write_down(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._alive or address in self._weights:
            return
        number, size = next(self._numbers), storage.nbytes()
        self._alive[address] = number, size
        self._events.append((number, size))
        weakref.finalize(storage, self._free, address)

    def _free(self, address: int) -> None:
        number, size = self._alive.pop(address)
        self._events.append((number, -size))

    def worst_moments(self, gradients: set[int]) -> tuple[Alive, ...]:
        """Those that no other moment has more of both than.

        Args:
            gradients: numbers of the storages that are gradients of weights.
        """
        most: dict[int, int] = {}  # by gradients: the most of the rest
        mine = rest = 0
        for number, change in self._events:
            if number in gradients:
                mine += change
            else:
                rest += change
            most[mine] = max(most.get(mine, 0), rest)
        worst: list[Alive] = []
        for mine in sorted(most, reverse=True):
            if not worst or most[mine] > worst[-1].working:
                worst.append(Alive(mine, most[mine]))
        return tuple(worst) or (Alive(0, 0),)


def _real_choices(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """``x[mask]`` needs to know how many are chosen: real masks become real numbers of rows."""
    if func is not _aten.index.Tensor:
        return args
    indices: list[Any] = []
    for index in args[1]:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            indices += index.nonzero().unbind(1)
        else:
            indices.append(index)
    return (args[0], indices, *args[2:])


def _plausible(func: Any, args: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Numbers that the code branches on: whatever is asked is true, and draws are spread evenly."""

    def real(value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return value
        if value.dtype == torch.bool and not any(value is one for one in args):
            return torch.ones(value.shape, dtype=torch.bool)
        if func is _aten.multinomial.default:
            return (torch.arange(value.numel()) + 1).remainder(args[0].shape[-1]).view(value.shape)
        return value

    return real


def _make_fake(model: nn.Module, fake: FakeTensorMode) -> None:
    """Replace parameters and buffers by fake ones on the CPU."""
    known: dict[int, nn.Parameter] = {}

    def like(tensor: Tensor) -> Tensor:
        with fake:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in known:
                    wanted = parameter.requires_grad
                    known[id(parameter)] = nn.Parameter(like(parameter), requires_grad=wanted)
                module._parameters[name] = known[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = like(buffer)


def _with_fake_pictures(batch: Batch, mode: _Counting) -> Batch:
    """The batch on the device, with pictures that take no memory; all of it written down."""
    assert dataclasses.is_dataclass(batch)
    assert not isinstance(batch, type)
    pictures: Tensor = batch.pictures_ICHW
    with mode.fake:
        hollow = torch.empty(pictures.shape, dtype=torch.float32, device="cpu")
    for tensor in _tensors_of(batch, "pictures_ICHW"):
        mode.give(tensor)
    mode.give(hollow)
    made: Batch = dataclasses.replace(batch, pictures_ICHW=hollow)
    return made


def _tensors_of(batch: Any, without: str) -> Iterable[Tensor]:
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if field.name != without and isinstance(value, Tensor):
            yield value

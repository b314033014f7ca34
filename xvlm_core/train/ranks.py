"""The processes of a run, and all that they say to each other. Nothing else calls torch.distributed
(but the engines, which reduce gradients).

A run in one process has one rank and opens nothing. With several, tensors travel over NCCL or
gloo, decisions (small Python objects of our own processes) over gloo. What all ranks must do
alike is decided here: :meth:`Ranks.together` makes an error of one rank the error of all.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from xvlm_core.errors import ConfigError, LostRankError, OutputError, UsageError, XvlmError
from xvlm_core.train.launch import Place, restarts
from xvlm_core.train.network import choose_interface

T = TypeVar("T")

_AGAIN = "start all processes again"


class Ranks:
    """This process among those of a run.

    Attributes:
        place: rank, number of ranks, and how the run was started.
        store: the key-value store that the ranks met at; None when alone.
    """

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        self.store: TCPStore | None = None
        self._control: Any = None

    @property
    def rank(self) -> int:
        """0 to ``world_size - 1``."""
        return self.place.rank

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.place.world_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    # ------------------------------------------------------------------ decisions

    def agree(self, value: T) -> list[T]:
        """The value of every rank, in their order, on every rank.

        Raises:
            LostRankError: another process is gone.
        """
        if self._control is None:
            return [value]
        values: list[T | None] = [None] * self.world_size
        with peers_may_be_gone():
            dist.all_gather_object(values, value, group=self._control)
        return values  # type: ignore[return-value]

    def together(self, action: Callable[[], T]) -> T:
        """Do something on every rank; an error on one is raised on all.

        The action must not speak to other ranks: one that failed before would not answer.

        Raises:
            XvlmError: of the lowest rank that had one (what this rank did is lost).
        """
        if self._control is None:
            return action()
        result, error = _attempt(action)
        self.raise_first(error)
        return result  # type: ignore[return-value]

    def main_does(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 alone; its result, or its error, comes to every rank."""
        if self._control is None:
            return action()
        result, error = _attempt(action) if self.is_main else (None, None)
        results = self.agree((result, error))
        self.raise_first_of([results[0][1]])
        return results[0][0]  # type: ignore[return-value]

    def require_equal(self, mine: Mapping[str, str]) -> None:
        """Refuse to go on where ranks differ in what must be the same.

        Args:
            mine: names and values.

        Raises:
            ConfigError: they differ; with the names, and who has what.
        """
        said = self.agree(dict(mine))
        names = list(dict.fromkeys(name for one in said for name in one))
        lines = []
        for name in names:
            by_value: dict[str, list[str]] = {}
            for rank, one in enumerate(said):
                by_value.setdefault(one.get(name, "none"), []).append(str(rank))
            if len(by_value) > 1:
                who = "; ".join(f"{value} (rank {', '.join(r)})" for value, r in by_value.items())
                lines.append(f"{name}: {who}")
        if lines:
            error = ConfigError(
                f"the processes of this run differ in {len(lines)} "
                f"{'thing' if len(lines) == 1 else 'things'} that must be the same",
                details=lines[:8] + ([f"and {len(lines) - 8} more"] if len(lines) > 8 else []),
                try_="the same environment, recipe and data on every node",
            )
            error.raised_on_all = True
            raise error

    def raise_first(self, error: XvlmError | None) -> None:
        """Raise the error of the lowest rank that has one, on all ranks."""
        self.raise_first_of(self.agree(error))

    def raise_first_of(self, errors: Sequence[XvlmError | None]) -> None:
        """The same, where the ranks' errors are known already."""
        for rank, found in enumerate(errors):
            if found is not None:
                if rank and not found.where:
                    found.where = f"rank {rank} of {self.world_size}"
                found.raised_on_all = self.world_size > 1
                raise found

    # ------------------------------------------------------------------ tensors

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """The rows of every rank, detached; their numbers may differ.

        Args:
            rows: ``(n, ...)``, all of one type, on the device of the run.
        """
        if self.world_size == 1:
            return [rows.detach()]
        counts = self.agree(len(rows))
        padded = rows.detach().new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows.detach()
        tables = [torch.empty_like(padded) for _ in counts]
        with peers_may_be_gone():
            dist.all_gather(tables, padded)
        return [table[:count] for table, count in zip(tables, counts, strict=True)]

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the ranks, in place."""
        if self.world_size > 1:
            with peers_may_be_gone():
                dist.all_reduce(values)
            values /= self.world_size
        return values


def _attempt(action: Callable[[], T]) -> tuple[T | None, XvlmError | None]:
    try:
        return action(), None
    except XvlmError as error:
        return None, error
    except OSError as error:
        reason = error.strerror or str(error)
        where = None if error.filename is None else str(error.filename)
        return None, OutputError(
            f"a file of the run cannot be read or written: {reason}",
            where=where,
            try_="free some space (df -h .) or make it accessible, then continue with --resume",
        )


def _first_line(error: RuntimeError) -> str:
    """What torch says, without the place in its source and the advice."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^\]]*:\d+\] |\. This is typically .*", "", line)[:200]


_CONNECTION = re.compile(r"gloo|nccl|ProcessGroup|connection|Broken pipe|socket|store", re.I)


@contextlib.contextmanager
def peers_may_be_gone() -> Iterator[None]:
    """A broken connection in place of an answer: another process died.

    Raises:
        LostRankError: for what the libraries say of a connection; other errors pass.
    """
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no type of their own for it
        if not _CONNECTION.search(str(error)):
            raise
        raise LostRankError(
            "another process of this run is gone",
            where=_first_line(error),
            try_=_AGAIN,
        ) from error


@contextlib.contextmanager
def open_ranks(place: Place, device: torch.device, timeout_seconds: float) -> Iterator[Ranks]:
    """Meet the other processes of a run, and leave them at the end.

    Args:
        place: of this process.
        device: where the tensors of the run are: gloo for the CPU, NCCL for GPUs.
        timeout_seconds: an answer that takes longer is an error.

    Raises:
        UsageError: the port of rank 0 is in use.
        LostRankError: the others did not come.
    """
    ranks = Ranks(place)
    if place.world_size == 1:
        yield ranks
        return
    assert place.master is not None, "several processes meet at a place"
    ranks.store = _meet(place)
    with peers_may_be_gone():
        choose_interface(place, ranks.store)
    timeout = timedelta(seconds=timeout_seconds)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            # torchrun starts the processes anew, around the same store
            store=PrefixStore(f"run/{restarts()}", ranks.store),
            rank=place.rank,
            world_size=place.world_size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
        ranks._control = dist.new_group(backend="gloo", timeout=timeout)
        yield ranks
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


_MEETING_SECONDS = 300.0


def _within(seconds: float, action: Callable[[], T]) -> T:
    """Do something that may never return, in a thread: at a port that another program listens on,
    torch waits for its answer without end, and hears no signal meanwhile.

    Raises:
        RuntimeError: it did not return in time, or what it raised.
    """
    found: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def attempt() -> None:
        try:
            found.put((action(), None))
        except Exception as error:
            found.put((None, error))

    threading.Thread(target=attempt, name="xvlm-meeting", daemon=True).start()
    try:
        result, error = found.get(timeout=seconds)
    except queue.Empty as silence:
        why = f"no answer in {seconds:.0f} s: does another program listen there?"
        raise RuntimeError(why) from silence
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _meet(place: Place) -> TCPStore:
    """The store of the run: rank 0 holds it (torchrun's agent may hold it already)."""
    assert place.master is not None
    host, _, port = place.master.rpartition(":")
    agents = place.by == "torchrun" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"

    def meet() -> TCPStore:
        return TCPStore(
            host,
            int(port),
            world_size=place.world_size,
            is_master=place.rank == 0 and not agents,
            timeout=timedelta(seconds=_MEETING_SECONDS),
            wait_for_workers=not agents,
        )

    try:
        return _within(_MEETING_SECONDS + 2, meet)
    except RuntimeError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise UsageError(
                f"port {port} of {host} is in use",
                where=f"process 0 of {place.world_size} on {socket.gethostname()}",
                try_=f"--master {host}:{int(port) + 1}, or end what uses it",
            ) from error
        raise LostRankError(
            f"the {place.world_size} processes of this run did not all come to {host}:{port}",
            where=f"process {place.rank} on {socket.gethostname()}: " + _first_line(error),
            try_="check that every node was started, and that the port is open",
        ) from error

"""The batches of each step, made ahead by loader processes.

The feed is a function of step and part, so a loader has no state: to resume is to start at a step.
"""

from __future__ import annotations

import itertools
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from xvlm_core.errors import DataError, XvlmError
from xvlm_core.tasks.base import Batch, Feed

_AHEAD = 2  # parts of steps that each worker prepares


class _Steps(Dataset[Sequence[Batch] | XvlmError]):
    """Index = (step, part). An error the user caused travels as a value, with all that it says."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __getitem__(self, place: tuple[int, int]) -> Sequence[Batch] | XvlmError:
        try:
            return tuple(self.feed.batches(*place))
        except XvlmError as error:
            return error


class _From(torch.utils.data.Sampler[tuple[int, int]]):
    """The parts of steps from a first one on, without end."""

    def __init__(self, first: int, parts: range) -> None:
        self.first = first
        self.parts = parts

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, part) for step in itertools.count(self.first) for part in self.parts)


def _start_worker(_: int) -> None:
    """Leave signals that a terminal or a scheduler sends to all processes to the main one."""

    def once(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)
    sys.excepthook = _say_unless_cut_off
    torch.set_num_threads(1)


def _say_unless_cut_off(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """The usual traceback, but for a main process that died while it was given a tensor.

    Python's own thread that hands tensors over shows such an end here. That process's end is said
    by others.
    """
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


def feed_from(
    feed: Feed, first_step: int, workers: int, parts: range = range(1)
) -> Generator[list[Sequence[Batch]], None, None]:
    """The batches of step ``first_step``, ``first_step + 1``, ... without end; to be closed.

    What is yielded for a step has an entry for each part, with the batch of each update.

    Args:
        feed: travels to the workers once.
        first_step: 1 or later.
        parts: those of this rank.
        workers: loader processes; 0: in this process, when asked for.

    Raises:
        XvlmError: what the feed raised.
        DataError: a loader process was killed.
    """
    loader = DataLoader(
        _Steps(feed),
        batch_size=None,
        sampler=_From(first_step, parts),
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # or else it would draw from the model's random numbers
    )
    iterator = _iterate(loader)
    try:
        while True:
            step = []
            for _ in parts:
                item = next(iterator)
                if isinstance(item, XvlmError):
                    raise item
                step.append(item)
            yield step
    except (RuntimeError, OSError, EOFError) as error:
        # what the feed itself raised in a worker begins with "Caught"
        if workers == 0 or str(error).startswith("Caught"):
            raise
        raise DataError(
            "a loader process died", where=str(error), try_="data.workers=0, or more memory"
        ) from error
    finally:
        # now: a traceback may keep the iterator, and with it the workers, alive for long
        getattr(iterator, "_shutdown_workers", lambda: None)()


def _iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the workers, without torch's handler of SIGCHLD.

    It raises in the main process wherever that happens to be when a worker dies (inside a lock,
    say: a dead-lock). Without it the next batch that is asked for raises, some seconds later.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)

"""The batches of each step, made ahead by loader processes.

The feed is a function of the step, so a loader has no state: to resume is to start at a step.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Generator, Iterator, Sequence
from types import FrameType

import torch
from torch.utils.data import DataLoader, Dataset

from xvlm_core.errors import DataError, XvlmError
from xvlm_core.tasks.base import Batch, Feed

_AHEAD = 2  # steps that each worker prepares


class _Steps(Dataset[Sequence[Batch] | XvlmError]):
    """Index = step. An error the user caused travels as a value, with all that it says."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __getitem__(self, step: int) -> Sequence[Batch] | XvlmError:
        try:
            return tuple(self.feed.batches(step))
        except XvlmError as error:
            return error


class _From(torch.utils.data.Sampler[int]):
    """Steps from a first one on, without end."""

    def __init__(self, first: int) -> None:
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first)


def _start_worker(_: int) -> None:
    """Leave signals that a terminal or a scheduler sends to all processes to the main one."""

    def once(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, once)
    torch.set_num_threads(1)


def feed_from(feed: Feed, first_step: int, workers: int) -> Generator[Sequence[Batch], None, None]:
    """The batches of step ``first_step``, ``first_step + 1``, ... without end; to be closed.

    Args:
        feed: travels to the workers once.
        first_step: 1 or later.
        workers: loader processes; 0: in this process, when asked for.

    Raises:
        XvlmError: what the feed raised.
        DataError: a loader process was killed.
    """
    loader = DataLoader(
        _Steps(feed),
        batch_size=None,
        sampler=_From(first_step),
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # or else it would draw from the model's random numbers
    )
    iterator = iter(loader)
    try:
        while True:
            item = next(iterator)
            if isinstance(item, XvlmError):
                raise item
            yield item
    except (RuntimeError, ConnectionError, EOFError) as error:
        raise worker_died(error) or error from error
    finally:
        # at once: a traceback may keep the iterator, and with it the workers, alive
        getattr(iterator, "_shutdown_workers", lambda: None)()


def worker_died(error: Exception) -> DataError | None:
    """The error to show if a loader process was killed.

    torch raises it wherever the main process happens to be when it learns of it.
    """
    if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
        return None
    return DataError(
        f"a loader process died: {str(error).splitlines()[0]}",
        try_="data.workers=0, or more (shared) memory",
    )

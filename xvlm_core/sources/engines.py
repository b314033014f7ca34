"""Who does the shards: this process, other processes, or a Ray cluster. The bytes are the same."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xvlm_core.errors import DataError, MissingToolError
from xvlm_core.sources.drafts import Event

if TYPE_CHECKING:
    from xvlm_core.data.shard_writer import ShardDone
    from xvlm_core.sources.convert import Settings


@dataclass(frozen=True)
class Job:
    """A shard to do.

    Attributes:
        number: of the shard.
        events: what it is made of.
        packed: the same as bytes, as they travel to other processes.
    """

    number: int
    events: list[Event]
    packed: bytes

    @classmethod
    def of(cls, number: int, events: list[Event]) -> Job:
        """Events, and the bytes that stand for them."""
        return cls(number, events, pickle.dumps(events, pickle.HIGHEST_PROTOCOL))

    @property
    def digest(self) -> str:
        """Differs if the events do."""
        return hashlib.sha256(self.packed).hexdigest()


_RARELY = (50_000, 20, 100)
"""Thresholds of the garbage collector."""


def here(settings: Settings, jobs: Iterable[Job]) -> Iterator[ShardDone]:
    """One after the other, in this process."""
    from xvlm_core.sources.convert import write_shard

    with _rare_collections():
        for job in jobs:
            yield write_shard(settings, job.number, job.events)


def in_processes(settings: Settings, jobs: Iterable[Job], workers: int) -> Iterator[ShardDone]:
    """In other processes, as they finish. Only a few shards are read ahead.

    Raises:
        DataError: a process was killed (most often: no memory left).
    """
    from concurrent.futures.process import BrokenProcessPool

    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers,
        mp_context=_context(),
        initializer=_start_worker,
        initargs=(os.getpid(), settings),
    )
    try:
        running: set[Future[ShardDone]] = set()
        with _rare_collections():
            for job in jobs:
                running.add(pool.submit(_work, job.number, job.packed))
                while len(running) > workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, perhaps for want of memory",
            try_="the same command with fewer --workers: it continues where it stopped",
        ) from error
    except BaseException:
        # Ctrl-C, or an error: what the others are doing now will be done again
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Millions of small objects are made, and hardly a cycle: looking for some takes a sixth."""
    before = gc.get_threshold()
    gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)


_settings: Settings | None = None


def _work(number: int, packed: bytes) -> ShardDone:
    from xvlm_core.sources.convert import write_shard

    assert _settings is not None
    return write_shard(_settings, number, pickle.loads(packed))


def _start_worker(parent: int, settings: Settings) -> None:
    """In a worker: Ctrl-C and SIGTERM are the parent's to answer; a killed parent ends it."""
    global _settings
    _settings = settings
    gc.freeze()  # what the parent holds is none of this process's garbage
    gc.set_threshold(*_RARELY)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _context() -> Any:
    # Forked processes need no importable __main__, so that a plain script can call this too. They
    # only read, check and write: no torch.
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def on_ray(settings: Settings, jobs: Iterable[Job], workers: int | None) -> Iterator[ShardDone]:
    """On a Ray cluster: that of ``RAY_ADDRESS``, or one that is started here.

    The store's folder and the pictures must be on a file system that all machines see.

    Args:
        settings: of the store.
        jobs: the shards.
        workers: shards at a time; None: as many as the cluster has processors.

    Raises:
        MissingToolError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingToolError("Ray is not installed", try_="pip install 'xvlm[ray]'") from error
    from xvlm_core.sources.convert import write_shard

    mine = not ray.is_initialized()
    try:
        if mine:
            address = os.environ.get("RAY_ADDRESS")
            local = (
                {}
                if address
                else {"num_cpus": workers or os.cpu_count(), "include_dashboard": False}
            )
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **local)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise MissingToolError(
            f"Ray cannot be reached: {error}", try_="ray start --head, or unset RAY_ADDRESS"
        ) from error
    try:
        task = ray.remote(write_shard)
        shared = ray.put(settings)
        at_once = workers or int(ray.cluster_resources().get("CPU", 1))
        running: list[Any] = []
        for job in jobs:
            running.append(task.remote(shared, job.number, job.events))
            while len(running) > at_once:
                done, running = ray.wait(running)
                yield from ray.get(done)
        while running:
            done, running = ray.wait(running)
            yield from ray.get(done)
    finally:
        if mine:
            ray.shutdown()

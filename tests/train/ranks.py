"""Several ranks of one run, as real processes over gloo."""

from __future__ import annotations

import multiprocessing
import queue
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from xvlm_core.train.launch import Place
from xvlm_core.train.ranks import open_ranks

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "torch.utils.data", "torch._dynamo", "safetensors.torch", "pydantic", "timm"]
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def places(world_size: int) -> list[Place]:
    if world_size == 1:
        return [Place()]
    master = f"127.0.0.1:{free_port()}"
    return [Place(r, world_size, r, world_size, master, "xvlm") for r in range(world_size)]


def _child(function: Any, place: Place, arguments: tuple[Any, ...], results: Any) -> None:
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.1
    try:
        with open_ranks(place, torch.device("cpu"), 60) as ranks:
            results.put((place.rank, function(ranks, *arguments), None))
    except BaseException as error:
        results.put((place.rank, error, traceback.format_exc()))


def _next(
    results: Any, processes: Sequence[Any], found: Mapping[int, Any], seconds: float
) -> tuple[int, Any, str | None]:
    """What the next rank has to tell; an error where one ended without a word."""
    end = time.monotonic() + seconds
    while True:
        # seen before the queue is looked at: what a process put there comes before its end
        codes = {rank: p.exitcode for rank, p in enumerate(processes) if rank not in found}
        try:
            told: tuple[int, Any, str | None] = results.get(timeout=1)
            return told
        except queue.Empty:
            ended = {rank: code for rank, code in codes.items() if code is not None}
            assert not ended, f"ranks ended without a word, with exit codes {ended}"
            assert time.monotonic() < end, f"after {seconds} s there is no word of {list(codes)}"


def on_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, seconds: float = 150.0
) -> list[Any]:
    """What ``function(ranks, *arguments)`` returns on each rank, or what it raised.

    Args:
        world_size: processes.
        function: of a module.
        arguments: its further ones; they are pickled.
        seconds: the most that is waited for a rank.
    """
    results = _CONTEXT.Queue()
    processes = [
        _CONTEXT.Process(target=_child, args=(function, place, arguments, results))
        for place in places(world_size)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        for _ in processes:
            rank, value, trace = _next(results, processes, found, seconds)
            if trace and not hasattr(value, "exit_code"):
                print(f"rank {rank}:\n{trace}")
            found[rank] = value
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [found[rank] for rank in range(world_size)]

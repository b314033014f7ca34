"""Several ranks of one run, as real processes over gloo."""

from __future__ import annotations

import multiprocessing
import socket
import traceback
from collections.abc import Callable
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


def on_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``function(ranks, *arguments)`` returns on each rank, or what it raised."""
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
            rank, value, trace = results.get(timeout=150)
            if trace and not hasattr(value, "exit_code"):
                print(f"rank {rank}:\n{trace}")
            found[rank] = value
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [found[rank] for rank in range(world_size)]

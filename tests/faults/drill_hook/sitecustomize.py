"""Test side only: tells the drill where a training process stands, and sets its trap.

Python imports this module by itself in each process that has the folder on its path. It does
something in the training processes of a drill alone (``XVLM_DRILL`` names a file, see
``tests.faults.drill_session``). Nothing of the product knows of it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

_SECONDS = 3600.0
_OPERATIONS = ("make_folder", "write", "sync", "rename", "remove_file", "remove_folder")


class Hook:
    """What is done in one training process."""

    def __init__(self, order: dict[str, Any], rank: int) -> None:
        self.rank = rank
        self.trap: dict[str, Any] = order["trap"] or {"kind": "none", "rank": -1}
        self.mine = self.trap["rank"] == rank
        self.log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self.operations = 0
        self.writes = 0

    def say(self, text: str) -> None:
        os.write(self.log, f"{self.rank} {os.getpid()} {time.time():.3f} {text}\n".encode())

    def is_set(self, kind: str) -> bool:
        return bool(self.mine and self.trap["kind"] == kind)

    def die(self) -> None:
        self.say("trap")
        os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        from xvlm_core.train import checkpoint, files, watch

        self.say("here")
        beat, enter, write = watch.Watch.beat, watch.Watch.__enter__, checkpoint.write

        def beat_and_say(self_: Any, where: str) -> None:
            beat(self_, where)
            self.say(f"at {where}")
            if self.is_set("stall") and where.startswith(f"step {self.trap['step']},"):
                self.say("trap")
                time.sleep(_SECONDS)

        def enter_and_poison(self_: Any) -> Any:
            if self.is_set("nan"):
                self.poison()
            return enter(self_)

        def write_or_die(folder: Path, step: int, *rest: Any, **more: Any) -> Path:
            self.say(f"writing {step}")
            self.writes += 1
            if self.writes == self.trap.get("write"):
                self.operations = 0
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            armed = self.is_set("byte") and self.writes >= self.trap["number"]
            if armed:  # the kernel ends the process at exactly this byte of a file
                self.say("armed")
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.trap["bytes"], limits[1]))
            written = write(folder, step, *rest, **more)
            if armed:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            self.say(f"saved {step}")
            return written

        watch.Watch.beat = beat_and_say  # type: ignore[method-assign,assignment]
        watch.Watch.__enter__ = enter_and_poison  # type: ignore[method-assign]
        checkpoint.write = write_or_die  # type: ignore[assignment]
        if self.is_set("operation"):
            for name in _OPERATIONS:
                setattr(files.Files, name, self.counted(name, getattr(files.Files, name)))

    def counted(self, name: str, method: Any) -> Any:
        """A change of the disk; at the trap's number half of a file is written, or nothing done."""

        def operation(files: Any, path: Path, *rest: Any) -> None:
            begun = self.writes >= self.trap["write"]
            if begun and self.operations == self.trap["number"]:
                if name == "write":
                    path.write_bytes(rest[0][: len(rest[0]) // 2])
                self.die()
            self.operations += 1
            method(files, path, *rest)

        return operation

    def poison(self) -> None:
        """A picture of one part of a step is not finite."""
        from dataclasses import replace

        from xvlm_core.train import feeding

        get = feeding._Steps.__getitem__

        def poisoned(steps: Any, place: tuple[int, int]) -> Any:
            batches: Any = get(steps, place)
            if place != (self.trap["step"], self.rank):
                return batches
            self.say("trap")
            batch: Any = batches[0]
            pictures = batch.pictures_ICHW.float().clone()
            pictures[0, 0, 0, 0] = float("nan")
            return (replace(batch, pictures_ICHW=pictures),)

        feeding._Steps.__getitem__ = poisoned  # type: ignore[method-assign]


def _begin() -> None:
    path = os.environ.get("XVLM_DRILL")
    if path is None or "xvlm_cli" not in sys.orig_argv:
        return
    order = json.loads(Path(path).read_text())
    if order["ranks"] > 1 and "RANK" not in os.environ:
        return  # the launcher
    Hook(order, int(os.environ.get("RANK", "0"))).install()


_begin()

"""One command line of a drill: started, watched from outside, hit, and seen to its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
HOOK = Path(__file__).resolve().parent / "drill_hook"
ORPHAN_SECONDS = 30.0
"""A process that is alive so long after the fault is an orphan."""
_GIVE_UP_SECONDS = 180.0
_POLL_SECONDS = 0.005


@dataclass(frozen=True)
class Told:
    """A line that a training process wrote: who, and what."""

    rank: int
    pid: int
    text: str


@dataclass
class Session:
    """A command line and all its processes.

    Args:
        folder: for what it writes besides the run: log, stdout, stderr.
        words: after ``python -m xvlm_cli``.
        ranks: training processes.
        cwd: where it runs.
        trap: see ``drill_hook``; what the process of rank ``trap["rank"]`` does to itself.
    """

    folder: Path
    words: Sequence[str]
    ranks: int
    cwd: Path
    trap: Mapping[str, Any] | None = None
    told: list[Told] = field(default_factory=list)
    hit_at: float | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.log, order = self.folder / "log", self.folder / "order.json"
        self.log.touch()
        order.write_text(json.dumps({"log": str(self.log), "ranks": self.ranks, "trap": self.trap}))
        self._mark = f"XVLM_DRILL={order}".encode()
        self._seen = 0
        self._rest = b""
        environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("XVLM_")},
            "XVLM_DRILL": str(order),
            "PYTHONPATH": f"{HOOK}{os.pathsep}{REPOSITORY}",
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.started = time.monotonic()
        with (self.folder / "stdout").open("wb") as out, (self.folder / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "xvlm_cli", *self.words],
                cwd=self.cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    # ------------------------------------------------------------------ what it says

    def read(self) -> list[Told]:
        """New lines of the training processes."""
        with self.log.open("rb") as stream:
            stream.seek(self._seen)
            data = stream.read()
        self._seen += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        new = []
        for line in lines:
            rank, pid, _, text = line.decode().split(" ", 3)
            new.append(Told(int(rank), int(pid), text))
        self.told += new
        return new

    def has_said(self, text: str) -> bool:
        """Whether a training process wrote this."""
        return any(told.text == text for told in self.told)

    def steps_made(self) -> int:
        """Updates that were surely made, by what rank 0 said; 0: none in this session."""
        made = 0
        for told in self.told:
            if begun := re.match(r"at step (\d+),", told.text):
                made = max(made, int(begun[1]) - 1)
            elif saved := re.fullmatch(r"(?:writing|saved) (\d+)", told.text):
                made = max(made, int(saved[1]))
        return made

    def saved(self) -> int:
        """The last step whose checkpoint was written in this session; 0: none."""
        found = (re.fullmatch(r"saved (\d+)", told.text) for told in self.told)
        return max((int(match[1]) for match in found if match), default=0)

    @property
    def stderr(self) -> str:
        """All of it so far."""
        return (self.folder / "stderr").read_text(errors="replace")

    # ------------------------------------------------------------------ who is there

    def alive(self) -> list[int]:
        """Processes of this session, whatever became of their parents."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    if self._mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def pid_of(self, rank: int) -> int | None:
        """The process of a rank, once it is one."""
        return next((told.pid for told in self.told if told.rank == rank), None)

    def workers_of(self, rank: int) -> list[int]:
        """Loader processes of a rank."""
        parent = self.pid_of(rank)
        return [pid for pid in self.alive() if parent is not None and _parent(pid) == parent]

    # ------------------------------------------------------------------ what is done to it

    def run_until(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition; False: the command line ended before, or took too long."""
        until = time.monotonic() + _GIVE_UP_SECONDS
        while time.monotonic() < until:
            self.read()
            if condition():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(_POLL_SECONDS)
        return False

    def send(self, number: int, pids: Sequence[int]) -> bool:
        """Send a signal; whether any process got it."""
        sent = False
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                sent = True
        if sent:
            self.hit_at = time.monotonic()
        return sent

    def end(self) -> End:
        """Wait for the end of every process; those that do not end are counted, and killed."""
        until = time.monotonic() + _GIVE_UP_SECONDS
        orphans = 0
        ended = None
        while time.monotonic() < until:
            self.read()
            code = self.process.poll()
            if self.hit_at is None and (self.has_said("trap") or self.has_said("armed")):
                self.hit_at = time.monotonic()
            if code is not None and ended is None:
                ended = time.monotonic()
            # after the launcher's end, or a while after the fault: who is left?
            begin = self.hit_at or ended
            late = begin is not None and time.monotonic() - begin > ORPHAN_SECONDS
            if ended is not None or late:
                left = self.alive()
                if ended is not None and not left:
                    break
                if late:
                    orphans = max(orphans, len(left))
                    if ended is not None and time.monotonic() - ended > ORPHAN_SECONDS:
                        break
            time.sleep(0.02)
        now = time.monotonic()
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = self.process.wait()
        self.read()
        return End(code if code >= 0 else 128 - code, now - (self.hit_at or self.started), orphans)


@dataclass(frozen=True)
class End:
    """How a session ended.

    Attributes:
        code: of the command line, as a shell tells it.
        seconds: from the fault (or the start) to the end of the last process.
        orphans: processes that were alive 30 s after the fault.
    """

    code: int
    seconds: float
    orphans: int


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None

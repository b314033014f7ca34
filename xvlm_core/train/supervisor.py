"""Starts the processes of a run on one machine and sees them to their end. Imports no torch.

What holds, whatever happens to a process: when one fails, the others end too, all of it within
20 s; a signal to the supervisor reaches each process once; nothing is left running. (That the
processes end when the supervisor itself is killed is their own doing: they watch its process id.)
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Any

from xvlm_core.errors import LostRankError, UsageError
from xvlm_core.train.launch import LAUNCHER_PID, Address

REPORT_FD = "XVLM_REPORT_FD"
"""Environment variable of a rank: the file descriptor that its last words are written to."""

_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_LOST = LostRankError.exit_code
_REPORT_BYTES = 1 << 20
_LAST_WORDS = 1.0  # seconds to read what ended processes wrote


@dataclass(frozen=True)
class Job:
    """What is started on this machine.

    Attributes:
        command: the command line of every process.
        processes: how many are started here; one a GPU.
        nodes: machines of the run, each with as many processes.
        node_rank: number of this machine, from 0.
        master: where the processes meet: a port of the machine with number 0.
        environ: the environment they inherit; the places are added.
    """

    command: Sequence[str]
    processes: int
    master: Address
    nodes: int = 1
    node_rank: int = 0
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    def environment(self, local_rank: int) -> dict[str, str]:
        """The environment of one process; the CPU cores are shared out if nothing says how."""
        threads = max(1, _cores() // self.processes)
        return {
            "OMP_NUM_THREADS": str(threads),
            **self.environ,
            "RANK": str(self.node_rank * self.processes + local_rank),
            "WORLD_SIZE": str(self.nodes * self.processes),
            "LOCAL_RANK": str(local_rank),
            "LOCAL_WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": self.master.host,
            "MASTER_PORT": str(self.master.port),
            LAUNCHER_PID: str(os.getpid()),
        }


@dataclass(frozen=True)
class Patience:
    """How long the supervisor waits, in seconds.

    Attributes:
        others: after a failure, for the other processes to find out and end by themselves.
        terminate: after SIGTERM to the rest, before SIGKILL.
        stop: after a signal to the supervisor was passed on, before SIGKILL.
    """

    others: float = 4.0
    terminate: float = 10.0
    stop: float = 25.0


@dataclass(frozen=True)
class Outcome:
    """How the processes ended.

    Attributes:
        code: exit code of the whole.
        rank: the process that decided it: the first that failed by itself; None: all ended well.
        killed_by: number of the signal that killed that process, if one did.
        reports: what each process of this machine wrote to its report, by rank.
    """

    code: int
    rank: int | None
    killed_by: int | None
    reports: Mapping[int, bytes]


def supervise(job: Job, patience: Patience | None = None) -> Outcome:
    """Start the processes of a job, wait until all have ended, and say how.

    Rank 0 has our stdout and stderr; of the others stdout is dropped, and stderr is passed on line
    by line with ``[rank 1]`` before it. Each writes its last words to the descriptor ``REPORT_FD``.

    Args:
        job: what to start.
        patience: how long to wait for what.

    Raises:
        UsageError: the port of ``job.master`` is taken, and this machine is to listen on it.
    """
    if job.node_rank == 0:
        require_free(job.master)
    ranks: list[_Rank] = []
    with _Signals() as signals:
        try:
            for local_rank in range(job.processes):
                ranks.append(_Rank.start(job, local_rank))
            return _Watch(ranks, signals, patience or Patience()).outcome()
        finally:
            for rank in ranks:
                rank.kill()
            until = time.monotonic() + _LAST_WORDS
            for rank in ranks:
                rank.close(until)


def free_address() -> Address:
    """A free port of this machine, for processes of this machine only."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        return Address("127.0.0.1", listener.getsockname()[1])


def require_free(master: Address) -> None:
    """The port must be free on this machine.

    Raises:
        UsageError: it is in use, or may not be listened on.
    """
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            listener = socket.socket(family, socket.SOCK_STREAM)
        except OSError:  # a machine without IPv6
            continue
        with listener:
            # as torch's store does: a port that was just given up counts as free
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind((everywhere, master.port))
                listener.listen()
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    why = "in use" if error.errno == errno.EADDRINUSE else "not permitted"
                    raise UsageError(
                        f"port {master.port} of this machine is {why}",
                        where="--master",
                        try_=f"--master {Address(master.host, free_address().port)}, on every node",
                    ) from error


class _Signals:
    """Signals to the supervisor, remembered instead of obeyed.

    The processes are sessions of their own, so that Ctrl-C in a terminal, which reaches the whole
    group, reaches only the supervisor: each process gets it once, from here.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received.append(signal.SIGTERM if number == signal.SIGHUP else number)


class _Rank:
    """One process, and the threads that read what it says."""

    def __init__(self, rank: int, process: subprocess.Popen[bytes], report: IO[bytes]) -> None:
        self.rank = rank
        self.process = process
        self.sent: set[int] = set()
        self._report = b""
        self._readers = [threading.Thread(target=self._read_report, args=[report], daemon=True)]
        if process.stderr is not None:
            readers = threading.Thread(target=self._pass_on, args=[process.stderr], daemon=True)
            self._readers.append(readers)
        for reader in self._readers:
            reader.start()

    @classmethod
    def start(cls, job: Job, local_rank: int) -> _Rank:
        environ = job.environment(local_rank)
        first = environ["RANK"] == "0"
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(
                job.command,
                env={**environ, REPORT_FD: str(writing)},
                stdin=subprocess.DEVNULL,
                stdout=None if first else subprocess.DEVNULL,
                stderr=None if first else subprocess.PIPE,
                pass_fds=[writing],
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return cls(int(environ["RANK"]), process, os.fdopen(reading, "rb"))

    def poll(self) -> int | None:
        """Exit code as subprocess tells it (a signal is negative), None while it runs."""
        code = self.process.poll()
        if code not in (None, 0, *_STOPPED):
            self._sweep()
        return code

    def send(self, number: int) -> None:
        self.sent.add(number)
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.sent.add(signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            self._sweep()

    def _sweep(self) -> None:
        # its loader processes, which it may not have ended
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self, until: float) -> bytes:
        """Read the last of it; what it wrote to its report."""
        # a process that outlives its parent would hold the pipes open: do not wait for that
        for reader in self._readers:
            reader.join(timeout=max(0.0, until - time.monotonic()))
        return self._report

    def _read_report(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 1 << 16):
                self._report = (self._report + chunk)[-_REPORT_BYTES:]

    def _pass_on(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                with contextlib.suppress(OSError, ValueError):  # our stderr may be closed
                    sys.stderr.write(f"[rank {self.rank}] {text}\n")
                    sys.stderr.flush()


class _Watch:
    """Waits for processes; tells the others when one fails, and all when a signal comes."""

    def __init__(self, ranks: Sequence[_Rank], signals: _Signals, patience: Patience) -> None:
        self._ranks = ranks
        self._signals = signals
        self._patience = patience
        self._passed_on: list[tuple[int, float]] = []
        self._codes: dict[_Rank, int] = {}
        self._failed: list[_Rank] = []
        self._terminate_at: float | None = None
        self._kill_at: float | None = None

    def outcome(self) -> Outcome:
        """Wait for all, and say how they ended."""
        while len(self._codes) < len(self._ranks):
            self._collect()
            self._pass_on()
            now = time.monotonic()
            if self._kill_at is not None and now >= self._kill_at:
                for rank in self._living():
                    rank.kill()
            elif self._terminate_at is not None and now >= self._terminate_at:
                self._terminate_at = None
                for rank in self._living():
                    rank.send(signal.SIGTERM)
            else:
                time.sleep(0.1)
        until = time.monotonic() + _LAST_WORDS
        return self._decide({rank.rank: rank.close(until) for rank in self._ranks})

    def _living(self) -> Iterator[_Rank]:
        return (rank for rank in self._ranks if rank not in self._codes)

    def _collect(self) -> None:
        for rank in list(self._living()):
            code = rank.poll()
            if code is None:
                continue
            self._codes[rank] = code
            if code == 0 or self._as_told(rank):
                continue
            self._failed.append(rank)
            if self._kill_at is not None:
                continue
            now = time.monotonic()
            if code in _STOPPED:
                # someone stopped this process, and it agreed with the others on a last step: they
                # may still be saving
                self._kill_at = now + self._patience.stop
            else:
                self._terminate_at = now + self._patience.others
                self._kill_at = self._terminate_at + self._patience.terminate

    def _as_told(self, rank: _Rank) -> bool:
        """Whether it ended because of a signal that we sent."""
        code = self._codes[rank]
        return bool(rank.sent) and (-code in rank.sent or code in _STOPPED)

    def _pass_on(self) -> None:
        """A signal goes to all; a second one, of a user who lost patience, goes to all again."""
        while self._signals.received:
            number, now = self._signals.received.pop(0), time.monotonic()
            # `timeout` and the like send a signal twice at once
            if self._passed_on and now < self._passed_on[-1][1] + 1:
                continue
            if len(self._passed_on) == 2:
                continue
            self._passed_on.append((number, now))
            if self._kill_at is None:
                self._kill_at = now + self._patience.stop
            for rank in self._living():
                rank.send(number)

    def _decide(self, reports: Mapping[int, bytes]) -> Outcome:
        if self._passed_on:
            stopped = [rank for rank in self._ranks if self._as_told(rank)]
            if stopped:
                code = self._codes[stopped[0]]
                code = code if code in _STOPPED else 128 + self._passed_on[0][0]
                return Outcome(code, stopped[0].rank, None, reports)
        if not self._failed:
            return Outcome(0, None, None, reports)
        # a process that dies takes the others with it, which then say they lost one
        first = min(self._failed, key=lambda rank: self._weight(self._codes[rank]))
        code = self._codes[first]
        if code < 0:
            return Outcome(_LOST, first.rank, -code, reports)
        same = [rank.rank for rank in self._failed if self._codes[rank] == code]
        return Outcome(code, min(same), None, reports)

    @staticmethod
    def _weight(code: int) -> int:
        return 0 if code < 0 else 2 if code == _LOST else 1


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

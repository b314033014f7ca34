"""Ends a process of a run that stands still, or whose peers or launcher are gone.

A main thread that waits in a collective for a dead peer waits for ever and sees no signal. So
daemon threads watch: they need the interpreter for moments only, and end the process with
``os._exit``. Each rank tells the others through the store of the run, over a connection of its own,
that it lives and where it stands. Imports no torch until several ranks are watched.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Protocol

from xvlm_core.errors import LostRankError
from xvlm_core.train.launch import LAUNCHER_PID, Place
from xvlm_core.train.pulses import Peer, Pulse, Pulses

_THREADS = "xvlm-watch"


class Store(Protocol):
    """Torch's TCPStore, as far as it is used here: where it is."""

    @property
    def host(self) -> str:
        """The machine of the server."""

    @property
    def port(self) -> int:
        """The port that it listens on."""


@dataclass(frozen=True)
class Timing:
    """How patient a watch is, in seconds.

    Attributes:
        heartbeat: between two signs of life.
        gone: a peer that is silent, or a store that does not answer, for so long is gone.
        grace: a peer that ended with an error gives the others so long to end by themselves.
        launcher: after SIGTERM to itself, because the launcher is gone, before it ends.
        report: for writing what is said before the end: a disk or a pipe may hang too.
    """

    heartbeat: float = 2.0
    gone: float = 20.0
    grace: float = 5.0
    launcher: float = 25.0
    report: float = 5.0


class Watch:
    """Watches this process, and its peers, while it trains.

    Args:
        place: of this process.
        store: of the run; None when alone.
        stall_seconds: without a beat of any rank for so long, the run stands still.
        folder: of the run: ``stalled-rank-<rank>.txt`` is written there.
        resume: the command that continues the run, for the message.
        last_words: told of the error before the process ends, besides stderr.
        timing: how patient it is.
    """

    def __init__(
        self,
        place: Place,
        store: Store | None,
        stall_seconds: float,
        folder: Path,
        *,
        resume: str | None = None,
        last_words: Callable[[LostRankError], object] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._place, self._folder = place, folder
        self._stall_seconds, self._timing = stall_seconds, timing or Timing()
        self._resume = resume or f"--resume -o {folder}"
        self._last_words = last_words
        self._pulse = Pulse(place.rank, socket.gethostname(), os.getpid(), time.monotonic())
        self._pulses: Pulses | None = None
        if store is not None and place.world_size > 1:
            self._pulses = Pulses(
                self._pulse,
                place.world_size,
                (store.host, store.port),
                self._timing.heartbeat,
                answer_seconds=self._timing.gone / 2,
            )
        self._left = threading.Event()
        self._guard = threading.Thread(target=self._run, name=_THREADS, daemon=True)

    # ------------------------------------------------------------------ the main thread's side

    def __enter__(self) -> Watch:
        """Watch."""
        follow_launcher(self._timing.launcher)
        self.beat("the start")
        if self._pulses is not None:
            self._pulses.start()
            self.beat("the start")
        self._guard.start()
        return self

    def beat(self, where: str) -> None:
        """Something was finished: the run does not stand still.

        Args:
            where: what it was, with its place in the data: ``step 120, records a, b, c``.
        """
        self._pulse.beat(where, time.monotonic())

    @contextlib.contextmanager
    def holding(self, where: str) -> Iterator[None]:
        """Around what may keep other threads from running, such as a library that writes a file.

        The peers are told before, and take a silence of up to ``stall_seconds`` for life.
        """
        self.beat(where)
        self._pulse.holding = True
        if self._pulses is not None:
            # worth a wait: once the interpreter is held, nobody can be told
            self._pulses.publish(self._timing.gone / 2)
        try:
            yield
        finally:
            self._pulse.holding = False
            self.beat(where)
            if self._pulses is not None:
                # said now: a peer that is lost before it says so would be waited for as long
                self._pulses.publish(0)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Say goodbye, and watch no more. Rank 0, who may hold the store, leaves last."""
        self._left.set()
        self._guard.join(self._timing.heartbeat)
        faulthandler.cancel_dump_traceback_later()
        if self._pulses is None:
            return
        self._pulse.state = "done" if kind is None else "failed"
        if kind is not None:
            self._pulse.words = " ".join(f"{kind.__name__}: {error}".split())[:300]
        self._pulses.say_goodbye(self._timing.gone / 2)
        if self._place.rank == 0:
            self._wait_for_others(self._stall_seconds if kind is None else self._hear_seconds)
        self._pulses.stop(self._timing.heartbeat)

    # ------------------------------------------------------------------ the guard's side

    @property
    def _hear_seconds(self) -> float:
        """By then every rank has heard what this one published."""
        return 2.5 * self._timing.heartbeat

    def _run(self) -> None:
        tick = self._timing.heartbeat / 2
        before = time.monotonic()
        while not self._left.is_set():
            # for a main thread that hangs and holds the interpreter: this needs none. It does not
            # end the process, which may just have been stopped for as long
            with contextlib.suppress(OSError, ValueError, RuntimeError):
                faulthandler.dump_traceback_later(self._stall_seconds + 10 * tick, file=2)
            self._left.wait(tick)
            now = time.monotonic()
            lost = now - before - tick
            if (
                lost > self._timing.gone / 4
            ):  # this process did not run: it was stopped, or its machine is busy
                self._pulse.beat_at = min(now, self._pulse.beat_at + lost)
                if self._pulses is not None:
                    self._pulses.forgive(lost)
            before = now
            if not self._left.is_set():
                self._check(now)

    def _check(self, now: float) -> None:
        peers = self._pulses.peers() if self._pulses is not None else []
        since = now - max([self._pulse.beat_at, *(peer.beat_at for peer in peers)])
        if since > self._stall_seconds:
            self._end(
                "stalled",
                f"nothing was finished for {since:.0f} s: the run stands still "
                f"(last: {self._pulse.where})",
                speaks=True,
                stacks=True,
            )
        if self._pulses is None:
            return
        # of the others is known how they stood when the store last answered
        answered_at = self._pulses.answered_at
        for peer in peers:
            told = self._about(peer, answered_at)
            if told:
                stands = peer.state == "stalled"
                self._end(
                    "stalled" if stands else "ended",
                    told,
                    speaks=stands or self._is_lowest(peers, answered_at),
                    stacks=stands,
                )
        silent = now - answered_at
        if silent > self._timing.gone and not any(p.rank == 0 and p.state == "done" for p in peers):
            host = {p.rank: p.host for p in peers}.get(0) or self._pulses.address[0]
            here = [p for p in peers if p.host == self._pulse.host and p.rank != 0]
            self._end(
                "ended",
                f"rank 0 on host {host} is gone since {silent:.0f} s (the store at port "
                f"{self._pulses.address[1]} does not answer); all processes end",
                speaks=self._is_lowest(here, answered_at),
                stacks=False,
            )

    def _about(self, peer: Peer, now: float) -> str | None:
        """What is wrong with a peer, if anything is."""
        name = f"rank {peer.rank} on host {peer.host}"
        silent = now - peer.heard_at
        if peer.state == "stalled":
            return f"{name} stands still ({peer.where})"
        if peer.state in ("failed", "ended") and now - peer.state_at > self._timing.grace:
            return f"{name} ended: {peer.words}"
        patience = self._stall_seconds if peer.holding else self._timing.gone
        if peer.state == "alive" and silent > patience:
            return (
                f"{name} is gone since {silent:.0f} s; all processes end (it was at {peer.where})"
            )
        return None

    def _lives(self, peer: Peer, now: float) -> bool:
        return peer.state == "alive" and self._about(peer, now) is None

    def _is_lowest(self, peers: list[Peer], now: float) -> bool:
        """Whether no lower rank says the same, or has said it."""
        speak = [p.rank for p in peers if p.state == "ended" or self._lives(p, now)]
        return self._place.rank < min(speak, default=self._place.world_size)

    def _wait_for_others(self, seconds: float) -> None:
        """Until no other rank needs the store, or for some seconds."""
        assert self._pulses is not None
        begin = time.monotonic()
        while (waited := time.monotonic() - begin) < seconds and not self._pulses.is_broken:
            peers, answered_at = self._pulses.peers(), self._pulses.answered_at
            unheard = self._place.world_size - 1 - len(peers)  # they may be about to come
            if not any(self._lives(peer, answered_at) for peer in peers) and (
                not unheard or waited > self._timing.gone
            ):
                return
            self._pulses.publish(self._timing.heartbeat)
            time.sleep(min(0.05, self._timing.heartbeat / 4))

    # ------------------------------------------------------------------ the end

    def _end(self, state: str, what: str, *, speaks: bool, stacks: bool) -> None:
        """Say what there is to say, and end this process with code 8.

        Args:
            state: what the other ranks are told.
            what: what happened, in a line.
            speaks: the line goes to stderr.
            stacks: so do the stacks; the file gets them in any case.
        """
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            faulthandler.cancel_dump_traceback_later()
        error = LostRankError(what, where=self._where(), try_=f"continue with {self._resume}")
        self._pulse.words = what
        self._pulse.state = state

        def report() -> None:
            text = self._report(error)
            shown = [*error.lines(), text] if stacks else error.lines() if speaks else []
            if shown:
                _to_stderr("\n".join(shown) + "\n")
            with contextlib.suppress(OSError):
                self._file.write_text("\n".join([*error.lines(), text]), encoding="utf-8")
            if self._last_words is not None:
                self._last_words(error)
            sys.stdout.flush()

        reporter = threading.Thread(target=report, name=_THREADS, daemon=True)
        try:
            reporter.start()
            if self._pulses is not None:
                self._pulses.say_goodbye(self._timing.report)
                if self._place.rank == 0:  # while there is a store the others hear of it
                    self._wait_for_others(self._hear_seconds)
            reporter.join(self._timing.report)
        finally:
            os._exit(LostRankError.exit_code)

    @property
    def _file(self) -> Path:
        return self._folder / f"stalled-rank-{self._place.rank}.txt"

    def _where(self) -> str:
        return f"rank {self._place.rank} of {self._place.world_size}; stacks in {self._file}"

    def _report(self, error: LostRankError) -> str:
        now, pulse = time.monotonic(), self._pulse
        lines = [
            f"rank {pulse.rank}: process {pulse.pid} on {pulse.host}, "
            f"{datetime.now(timezone.utc).isoformat(timespec='seconds')}",
            f"rank {pulse.rank} last finished {pulse.where}, {now - pulse.beat_at:.1f} s ago",
        ]
        for peer in self._pulses.peers() if self._pulses is not None else []:
            lines.append(
                f"rank {peer.rank} last finished {peer.where}, {now - peer.beat_at:.1f} s ago; "
                f"{peer.state}, heard of {now - peer.heard_at:.1f} s ago"
            )
        return "\n".join([*lines, _stacks()])


def _stacks() -> str:
    """The Python stacks of all threads of this process, the main one first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    parts = []
    for ident, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != main):
        name = names.get(ident, "a thread not made by Python")
        if not name.startswith(_THREADS):
            stack = "".join(traceback.format_stack(frame))
            parts.append(f"\nThread {name} (most recent call last):\n{stack}")
    return "".join(parts)


def _to_stderr(text: str) -> None:
    # not sys.stderr: the thread that hangs may hold its lock
    data = text.encode("utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(2, data) :]


# ---------------------------------------------------------------------- the launcher

_followed = threading.Event()


def follow_launcher(seconds: float = Timing.launcher) -> None:
    """From now on this process does not outlive its launcher.

    The launcher is the process that ``XVLM_LAUNCHER_PID`` names; without it nothing is done. When
    it is gone this process gets SIGTERM, once, so that training finishes the step and saves; if it
    is still there later, it is ended with code 8. To call this again changes nothing.

    Args:
        seconds: from SIGTERM to the end.
    """
    launcher = os.environ.get(LAUNCHER_PID, "")
    if not launcher.isdecimal() or _followed.is_set():
        return
    _followed.set()
    threading.Thread(
        target=_follow, args=(int(launcher), seconds), name=f"{_THREADS}-launcher", daemon=True
    ).start()


def _follow(launcher: int, seconds: float) -> None:
    while os.getppid() == launcher:
        time.sleep(min(0.5, seconds / 4))
    _aside("the launcher of this process is gone: it finishes the step, saves and ends")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(seconds)
    _aside(
        f"the launcher is gone since {seconds:.0f} s, and this process has not ended: it does now"
    )
    os._exit(LostRankError.exit_code)


def _aside(text: str) -> None:
    # stderr may be a pipe that nobody reads any more
    threading.Thread(
        target=_to_stderr, args=(text + "\n",), name=f"{_THREADS}-says", daemon=True
    ).start()
    time.sleep(0.05)

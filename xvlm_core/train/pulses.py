"""Signs of life between the ranks of a run, through its store. Imports no torch until it connects.

Each rank writes one key, again and again, and reads those of the others. Clocks are not compared:
a peer lives as long as what it writes changes.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Literal

from xvlm_core.train.launch import restarts

State = Literal["alive", "done", "failed", "stalled", "ended"]
"""``done``: left as it should; ``failed``: with an error; ``stalled``, ``ended``: by its watch."""


@dataclass
class Pulse:
    """What a rank tells of itself; written by its main thread and its watch.

    Attributes:
        rank: of this process.
        host: its machine.
        pid: its process id there.
        beat_at: when it last finished something (``time.monotonic()`` of this process).
        where: what that was.
        beats: how often it did.
        state: how it stands.
        holding: it may be silent for long.
        words: why it ended.
    """

    rank: int
    host: str
    pid: int
    beat_at: float
    where: str = ""
    beats: int = 0
    state: str = "alive"
    holding: bool = False
    words: str = ""

    def beat(self, where: str, now: float) -> None:
        """Something was finished."""
        self.where = where
        self.beats += 1
        self.beat_at = now


@dataclass(frozen=True)
class Peer:
    """What is known of another rank. Times are ``time.monotonic()`` of this process.

    Attributes:
        rank: its number.
        host: its machine.
        where: what it last finished.
        beats: how often it finished something.
        beat_at: when that number was last seen to grow.
        heard_at: when anything was last heard of it.
        state: how it stands.
        state_at: since when it does.
        holding: it said that it may be silent for long.
        words: why it ended.
        number: of its last sign of life.
    """

    rank: int
    host: str
    where: str
    beats: int
    beat_at: float
    heard_at: float
    state: str
    state_at: float
    holding: bool
    words: str
    number: int


def _heard(before: Peer | None, told: Mapping[str, Any], rank: int, now: float) -> Peer:
    """What is known after a sign of life, which may be the one seen before."""
    number, beats, state = int(told["number"]), int(told["beats"]), str(told["state"])
    if before is not None and before.number == number:
        return before
    return Peer(
        rank=rank,
        host=str(told["host"]),
        where=str(told["where"]),
        beats=beats,
        # at first sight: as old as it says, by its own clock's differences
        beat_at=now - float(told["since"])
        if before is None or beats != before.beats
        else before.beat_at,
        heard_at=now,
        state=state,
        state_at=before.state_at if before is not None and before.state == state else now,
        holding=bool(told["holding"]),
        words=str(told["words"]),
        number=number,
    )


class Pulses:
    """The thread that writes and reads. It may hang in the store: who asks it never does.

    Args:
        pulse: what is told.
        world_size: ranks of the run.
        address: host and port of the store.
        heartbeat: seconds between two signs of life.
        answer_seconds: an answer of the store that takes longer is none.
    """

    def __init__(
        self,
        pulse: Pulse,
        world_size: int,
        address: tuple[str, int],
        heartbeat: float,
        answer_seconds: float,
    ) -> None:
        self.address = address
        self.answered_at = time.monotonic()
        self._pulse, self._world_size = pulse, world_size
        self._heartbeat, self._answer_seconds = heartbeat, answer_seconds
        self._prefix = f"xvlm/pulse/{restarts()}"
        self._client: Any = None
        self._peers: dict[int, Peer] = {}
        self._lock = threading.Lock()
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._turn = threading.Condition()
        self._begun = self._ended = 0  # exchanges with the store
        self._succeeded, self._said_goodbye = True, False
        self._thread = threading.Thread(target=self._run, name="xvlm-watch-pulses", daemon=True)

    def start(self) -> None:
        """Begin; returns when the others can hear of this rank, or the store did not answer.

        A rank that fails in its first moments must have been heard of: one that never was is not
        missed. Torch may spend seconds in asking for the name of an address (a slow name server).
        """
        self._exchange_once()
        self.answered_at = time.monotonic()
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End, waiting for some seconds at most."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(seconds)

    def publish(self, seconds: float) -> None:
        """Write and read now; returns when it is done, or after some seconds."""
        with self._turn:
            wanted = self._begun + 1  # the one in progress may have read the pulse already
            self._wake.set()
            self._turn.wait_for(lambda: self._ended >= wanted or self._said_goodbye, seconds)

    def say_goodbye(self, seconds: float) -> None:
        """Tell how this rank ended, again and again, until it is told or some seconds are over.

        A rank that leaves untold is waited for by the others, and then missed.
        """
        until = time.monotonic() + seconds
        while not self._said_goodbye and (left := until - time.monotonic()) > 0:
            self.publish(left)
            if self.is_broken:  # refused at once, it may be: not asked in a tight loop
                time.sleep(min(left, self._heartbeat / 4))

    @property
    def is_broken(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return not self._succeeded

    def peers(self) -> list[Peer]:
        """All other ranks that were heard of."""
        with self._lock:
            return list(self._peers.values())

    def forgive(self, seconds: float) -> None:
        """This process did not run for some seconds: it could hear nothing."""
        now = time.monotonic()
        with self._lock:
            self.answered_at = min(now, self.answered_at + seconds)
            for rank, peer in self._peers.items():
                self._peers[rank] = replace(
                    peer,
                    heard_at=min(now, peer.heard_at + seconds),
                    beat_at=min(now, peer.beat_at + seconds),
                    state_at=min(now, peer.state_at + seconds),
                )

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._exchange_once()
            # rank 0 looks on until the others have left; for them the store may be gone now
            if self._said_goodbye and self._pulse.rank != 0:
                return
            self._wake.wait(self._heartbeat)

    def _exchange_once(self) -> None:
        with self._turn:
            self._begun += 1
            self._wake.clear()
        try:
            self._exchange()
            self._succeeded = True
        except (RuntimeError, OSError):  # torch's errors of the store are RuntimeErrors
            self._client, self._succeeded = None, False
        with self._turn:
            self._ended = self._begun
            self._turn.notify_all()

    def _exchange(self) -> None:
        client = self._client = self._client or self._connect()
        pulse = self._pulse
        told = {
            "number": self._begun,
            "beats": pulse.beats,
            "since": max(0.0, time.monotonic() - pulse.beat_at),
            "where": pulse.where[:2000],
            "state": pulse.state,
            "holding": pulse.holding,
            "words": pulse.words,
            "host": pulse.host,
        }
        client.set(self._key(pulse.rank), json.dumps(told))
        if told["state"] != "alive":
            self._said_goodbye = True
            if pulse.rank != 0:
                return
        others = [rank for rank in range(self._world_size) if rank != pulse.rank]
        # to get a key that is not there yet waits for it
        there = [r for r in others if r in self._peers or client.check([self._key(r)])]
        answers = client.multi_get([self._key(rank) for rank in there]) if there else []
        now = time.monotonic()
        with self._lock:
            self.answered_at = now
            for rank, answer in zip(there, answers, strict=True):
                self._peers[rank] = _heard(self._peers.get(rank), json.loads(answer), rank, now)

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    def _connect(self) -> Any:
        # asked first: torch writes pages to stderr about a store that does not answer
        socket.create_connection(self.address, timeout=self._answer_seconds).close()
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        return TCPStore(
            *self.address,
            None,
            False,
            timeout=timedelta(seconds=max(1.0, self._answer_seconds)),
            wait_for_workers=False,
        )

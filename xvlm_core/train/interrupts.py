"""SIGTERM and SIGINT: finish the step, save, stop. Imports no torch."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

_WATCHED = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """Remembers the first signal; a second one has its usual effect (it stops at once).

    Outside the main thread, where Python delivers no signals, it watches nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        """Watch."""
        if threading.current_thread() is threading.main_thread():
            for number in _WATCHED:
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Watch no more."""
        self._restore()

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.number = number
        # not what was there before: a shell starts background jobs with SIGINT ignored
        for watched in self._before:
            usual = signal.default_int_handler if watched == signal.SIGINT else signal.SIG_DFL
            signal.signal(watched, usual)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """SIGTERM and SIGINT wait until this is over, and then have the effect that they had before.

    For the imports of torch and timm: a process that leaves them half-way is aborted by its C++ at
    its end (SIGABRT, and a line that nobody understands), whatever it wanted to end with.
    """
    received: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _WATCHED:
            before[int(number)] = signal.signal(number, lambda got, _: received.append(got))
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
    if received:
        signal.raise_signal(received[0])

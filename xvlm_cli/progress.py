"""Progress of the verbs that do not train: one live line on a terminal, a few plain ones else."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_LIVE_SECONDS, _PLAIN_SECONDS = 0.2, 10.0


class Progress:
    """Callable with (done, total or None, what is counted).

    Args:
        quiet: say nothing.
        stream: standard error unless told otherwise.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live = self._stream.isatty()
        self._last = time.monotonic()
        self._width = 0

    def __call__(self, done: int, total: int | None, what: str) -> None:
        """Show where things stand, not more often than is useful."""
        if self._quiet:
            return
        now = time.monotonic()
        if now - self._last < (_LIVE_SECONDS if self._live else _PLAIN_SECONDS):
            return
        self._last = now
        text = f"{done:,} of {total:,} {what}" if total else f"{done:,} {what}"
        if self._live:
            self._stream.write(f"\r{text.ljust(self._width)}")
            self._width = max(self._width, len(text))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Wipe the live line."""
        if self._width:
            self._stream.write(f"\r{' ' * self._width}\r")
            self._stream.flush()
            self._width = 0

"""What a run says while it goes: ``metrics.jsonl`` always, and a console. Imports no torch.

A :class:`Sink` gets every line; one that shows nothing is an empty list of sinks.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from xvlm_core.errors import OutputError

if TYPE_CHECKING:
    import torch

Line = Mapping[str, Any]
"""One line of ``metrics.jsonl``: ``kind`` is ``train`` or ``eval``, ``step`` is the step.

A ``train`` line has a key for each loss that was computed (mean over the updates since the last
line that computed it) and those of :data:`NOT_LOSSES`; an ``eval`` line has ``scores``.
"""

TIMES = frozenset({"pictures_per_s", "data_wait", "seconds", "memory_gb", "ranks"})
"""Keys that differ between two runs that are otherwise the same."""

NOT_LOSSES = TIMES | {
    "kind",
    "step",
    "lr",
    "grad_norm",
    "counts",
    "dropped",
    "temperature",
    "loss_scale",
    "overflows",
}
"""Keys of a ``train`` line that are no losses.

``dropped`` and ``overflows`` (updates not made, of float16) count from the start of the run;
``memory_gb`` is that of :func:`memory_gb` on rank 0; ``ranks`` has ``rank``, ``pictures_per_s`` and
``data_wait`` of each, where there are several.
"""

UNEVEN = 0.1
"""Ranks whose rates differ by more than this share of the fastest are shown."""


@dataclass(frozen=True)
class Outlook:
    """What a console shows besides the line itself.

    Attributes:
        step: steps made.
        total: steps of the run, if they are limited.
        progress: share of the run that is over.
        seconds_left: expected training time, if known.
    """

    step: int
    total: int | None
    progress: float
    seconds_left: float | None


class Sink(Protocol):
    """Somewhere lines go."""

    def line(self, line: Line, outlook: Outlook) -> None:
        """A line of the log."""

    def note(self, text: str) -> None:
        """Something worth a sentence (once a run, not once a step)."""

    def close(self) -> None:
        """The run is over, or stopped."""


class Telemetry:
    """All sinks of a run."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self._sinks = tuple(sinks)

    def line(self, line: Line, outlook: Outlook) -> None:
        """Pass a line to every sink."""
        for sink in self._sinks:
            sink.line(line, outlook)

    def note(self, text: str) -> None:
        """Pass a note to every sink."""
        for sink in self._sinks:
            sink.note(text)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


def console_telemetry(
    *, quiet: bool = False, stream: TextIO | None = None, others: Sequence[Sink] = ()
) -> Telemetry:
    """A live bar if the stream (standard error) is a terminal, else a plain line each log line.

    Args:
        quiet: neither of them.
        stream: None: standard error.
        others: sinks besides.
    """
    if quiet:
        return Telemetry(others)
    stream = stream or sys.stderr
    return Telemetry([BarSink(stream) if stream.isatty() else PlainSink(stream), *others])


def describe(line: Line, outlook: Outlook) -> str:
    """A log line as a person reads it; of a kind that was not computed there is no word."""
    total = f"/{outlook.total}" if outlook.total is not None else ""
    words = [f"step {line['step']}{total}"]
    if line["kind"] == "eval":
        for name, score in line["scores"].items():
            value = score["value"]
            words.append(f"{name} -" if value is None else f"{name} {value:.4f}")
        return "  ".join([*words, *_dropped(line)])
    words += [f"{name} {value:.3f}" for name, value in line.items() if name not in NOT_LOSSES]
    words.append(f"lr {line['lr']:.2e}")
    words.append(f"{line['pictures_per_s']:.1f} pictures/s")
    words.append(f"waiting for data {line['data_wait']:.0%}")
    if "memory_gb" in line:
        words.append(f"{line['memory_gb']:.1f} GB")
    if line.get("overflows"):
        words.append(f"overflows {line['overflows']} (loss scale {line['loss_scale']:g})")
    if outlook.seconds_left is not None:
        words.append(f"{duration(outlook.seconds_left)} left")
    return "\n".join(["  ".join([*words, *_dropped(line)]), *_uneven(line)])


def _uneven(line: Line) -> list[str]:
    """A line more where a rank is slower than another."""
    ranks = sorted(line.get("ranks", ()), key=lambda part: float(part["pictures_per_s"]))
    if not ranks:
        return []
    slow, fast = ranks[0], ranks[-1]
    if slow["pictures_per_s"] >= (1 - UNEVEN) * fast["pictures_per_s"]:
        return []
    return [
        f"  rank {slow['rank']} makes {slow['pictures_per_s']:.1f} pictures/s (waiting for data "
        f"{slow['data_wait']:.0%}), rank {fast['rank']} {fast['pictures_per_s']:.1f}"
    ]


def _dropped(line: Line) -> list[str]:
    counts = line["dropped"]
    if not counts:
        return []
    parts = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))
    return [f"dropped {sum(counts.values())} ({parts})"]


def memory_gb(device: torch.device) -> float:
    """The most memory, in 10^9 bytes, that this process has had so far.

    Args:
        device: a GPU: what torch has allocated on it; else what the process had in RAM.
    """
    if device.type == "cuda":
        from torch import cuda

        return cuda.max_memory_allocated(device) / 1e9
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (most if sys.platform == "darwin" else most * 1024) / 1e9


def duration(seconds: float) -> str:
    """``1:02:03`` or ``02:03``."""
    minutes, seconds_left = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes:02}:{seconds_left:02}"


class PlainSink:
    """One line of text a log line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def line(self, line: Line, outlook: Outlook) -> None:
        """Print it."""
        print(describe(line, outlook), file=self._stream, flush=True)

    def note(self, text: str) -> None:
        """Print it."""
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to do."""


class BarSink:
    """A live bar with the last log line beside it; evaluations and notes stay above it."""

    def __init__(self, stream: TextIO) -> None:
        self._progress = Progress(
            BarColumn(bar_width=16, table_column=Column(width=16)),
            TextColumn("{task.percentage:>3.0f}%", table_column=Column(width=4)),
            # wraps where the terminal is narrow: nothing is cut off
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=1)),
            console=Console(file=stream),
            expand=True,
        )
        self._bar: TaskID | None = None

    def line(self, line: Line, outlook: Outlook) -> None:
        """Move the bar."""
        if line["kind"] == "eval":
            self.note(describe(line, outlook))
            return
        if self._bar is None:
            self._progress.start()
            self._bar = self._progress.add_task("", total=1.0)
        self._progress.update(
            self._bar, completed=outlook.progress, description=describe(line, outlook)
        )

    def note(self, text: str) -> None:
        """Print above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


class MetricsFile:
    """``metrics.jsonl``: appended to, and cut back where a run is continued from."""

    def __init__(self, path: Path, *, keep_to_step: int) -> None:
        """Open for appending.

        Args:
            path: the file.
            keep_to_step: lines beyond this step (made after the checkpoint that the run
                continues from) are removed, and so is a torn last line.

        Raises:
            OutputError: the file cannot be written.
        """
        self.path = path
        try:
            self.kept = self._cut(keep_to_step)
            self._stream = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._refused(error) from error

    def _cut(self, keep_to_step: int) -> list[dict[str, Any]]:
        kept: list[dict[str, Any]] = []
        if not self.path.exists():
            return kept
        end = 0
        with self.path.open("r+b") as stream:
            for raw in stream:
                try:
                    line = json.loads(raw)
                    if not raw.endswith(b"\n") or line["step"] > keep_to_step:
                        break
                except (ValueError, KeyError, TypeError):
                    break
                kept.append(line)
                end += len(raw)
            stream.truncate(end)
        return kept

    def _refused(self, error: OSError) -> OutputError:
        return OutputError(
            f"{self.path} cannot be written: {error.strerror}",
            try_="free some space or make it writable, then continue with --resume",
        )

    def line(self, line: Line, outlook: Outlook) -> None:
        """Append it."""
        try:
            self._stream.write(json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n")
            self._stream.flush()
        except OSError as error:
            raise self._refused(error) from error

    def sync(self) -> None:
        """Make what was written durable."""
        os.fsync(self._stream.fileno())

    def note(self, text: str) -> None:
        """Notes are for people."""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

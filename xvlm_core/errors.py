"""Typed errors: every mistake a user can make, with its exit code and what to type next.

A user error is printed as up to three lines (what, where, ``Try:``) and ends the program with
the exit code of its class. What a user cannot cause is an ``assert``, never one of these.
"""

from __future__ import annotations

from collections.abc import Sequence


class XvlmError(Exception):
    """Base of all errors a user can cause.

    Args:
        what: one line: what is wrong, with the offending value.
        where: the file, record, key or step where it was seen.
        try_: what to type next (a command, a key, a value).
        details: further findings of the same kind, one line each (all are reported together).

    Attributes:
        raised_on_all: every process of the run raises it: rank 0 says it.
        raised_on_machine: every process of the run on this machine does: the first of them says it.
    """

    exit_code = 1
    code = "error"
    raised_on_all = False
    raised_on_machine = False

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        try_: str | None = None,
        details: Sequence[str] = (),
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.try_ = try_
        self.details = tuple(details)

    def lines(self) -> list[str]:
        """The error as printed: what, details, where, ``Try:``."""
        lines = [self.what, *(f"  {detail}" for detail in self.details)]
        if self.where:
            lines.append(f"Where: {self.where}")
        if self.try_:
            lines.append(f"Try: {self.try_}")
        return lines


class UsageError(XvlmError):
    """The command line asks for something impossible (exit 2)."""

    exit_code = 2
    code = "usage"


class OutputError(UsageError):
    """A place to write to is refused: not empty, read-only, full (exit 2)."""

    code = "output"


class ConfigError(XvlmError):
    """A recipe, an override or an environment value does not hold (exit 3)."""

    exit_code = 3
    code = "config"


class DataError(XvlmError):
    """Pictures, annotations or a prepared store are missing or damaged (exit 4)."""

    exit_code = 4
    code = "data"


class CheckpointError(XvlmError):
    """A checkpoint or model folder is missing, damaged, or of another task or size (exit 5)."""

    exit_code = 5
    code = "checkpoint"


class DivergedError(XvlmError):
    """A loss or gradient is not finite (exit 6)."""

    exit_code = 6
    code = "diverged"


class MissingToolError(XvlmError):
    """An optional dependency is not installed (exit 7)."""

    exit_code = 7
    code = "missing_tool"


class LostRankError(XvlmError):
    """A process of a run died or stands still: the others end too, and it can go on (exit 8)."""

    exit_code = 8
    code = "lost_rank"

"""What the processes of a run say last, and how their supervisor says it for them.

A supervised process prints no result and no error: it writes them to its supervisor, which prints
those of rank 0, or of the process that failed first. Under torchrun and ``srun``, where nobody
collects, rank 0 prints, and another process only an error of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, NoReturn

from xvlm_cli import output as outputs
from xvlm_cli import training
from xvlm_cli.output import Output
from xvlm_cli.training_request import TrainingRequest
from xvlm_core.config.recipes import kind_of_task
from xvlm_core.errors import ConfigError, DivergedError, LostRankError, UsageError, XvlmError
from xvlm_core.train import runs
from xvlm_core.train.supervisor import REPORT_FD, Outcome

# What all processes of a machine run into: where nobody collects, the first of them says it.
_COMMON = (UsageError.exit_code, ConfigError.exit_code, DivergedError.exit_code)


class RankOutput(Output):
    """The output of one of several processes: only rank 0 speaks in passing."""

    def __init__(self, of: Output, rank: int) -> None:
        super().__init__(of.verb, json_document=of.json)
        self.quiet = of.quiet or rank > 0
        self.warnings = of.warnings
        self.value: Any = None
        self.text = ""
        self._rank = rank

    def warn(self, text: str) -> None:
        """Say a warning (rank 0), and keep it."""
        if self._rank == 0:
            super().warn(text)
        else:
            self.warnings.append(text)

    def result(self, value: Any, text: str | Iterable[str]) -> None:
        """Keep the result, and the human form of it."""
        self.value, self.text = value, text if isinstance(text, str) else "\n".join(text)
        super().result(self.value, self.text)


def train_as_rank(request: TrainingRequest, out: Output) -> None:
    """Train as one of several processes; leave the last words to the supervisor if there is one.

    Raises:
        XvlmError: what stopped the run, if this process is to say it.
        SystemExit: another process says it.
    """
    from xvlm_cli.app import _Terminated

    # or else every rank prints what torch's C++ thinks of each broken connection
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    rank = request.place.rank
    own = RankOutput(out, rank)
    error: XvlmError | None = None
    try:
        training.train(replace(request, last_words=lambda error: report(own, error)), own)
    except KeyboardInterrupt:
        error = outputs.Interrupted("interrupted", signal.SIGINT)
    except _Terminated:
        error = outputs.Interrupted("terminated", signal.SIGTERM)
    except Exception as problem:
        if outputs.debug():
            traceback.print_exc()
        error = _as_error(problem)
    code = 0 if error is None else error.exit_code
    if error is not None and error.try_ is None:
        error.try_ = f"xvlm {own.verb} --help"
    if report(own, error):
        _leave(out, code)
    if rank == 0:
        out.result(own.value, own.text)
    elif (
        error is None
        or error.raised_on_all  # rank 0 says it
        or (request.place.local_rank > 0 and (error.raised_on_machine or code in _COMMON))
    ):
        _leave(out, code)
    else:
        out.json = False  # the one document is that of rank 0
        error.what = f"rank {rank}: {error.what}"
    if error is not None:
        raise error


def _as_error(problem: Exception) -> XvlmError:
    if isinstance(problem, XvlmError):
        return problem
    user = outputs.as_user_error(problem) if isinstance(problem, OSError) else None
    return user or outputs.bug(problem)


def report(own: Output, error: XvlmError | None) -> bool:
    """Write the last words to the supervisor: the result, and the error that ended the process.

    Only the first call of a process is heard. Any thread may call it.

    Returns:
        Whether there is a supervisor that reads them; else the process speaks for itself.
    """
    number = os.environ.pop(REPORT_FD, "")
    if not number.isdecimal():
        return False
    text = own.text if isinstance(own, RankOutput) else ""
    words = {**own.document(error), "text": text}
    data = json.dumps(words, default=outputs._plain).encode()
    try:
        with os.fdopen(int(number), "wb") as stream:
            stream.write(data)
    except OSError:  # the supervisor is gone
        return False
    return True


def _leave(out: Output, code: int) -> NoReturn:
    """End without another word."""
    out.give_back_stdout()
    raise SystemExit(code)


def say_for(
    outcome: Outcome, request: TrainingRequest, typed: str, out: Output, since: datetime
) -> None:
    """Say what the processes said last, as if it were ours.

    Args:
        outcome: how they ended.
        request: what was typed.
        typed: the options that say how many processes, for the command that goes on.
        out: where the result goes.
        since: when they were started (UTC).

    Raises:
        XvlmError: the error of the process that failed first, with its exit code.
        LostRankError: that process was killed.
    """
    reports = {rank: _read(report) for rank, report in outcome.reports.items()}
    first = reports.get(0)
    if first is not None:
        out.warnings.extend(text for text in first["warnings"] if text not in out.warnings)
        out.result(first["result"], first["text"])
    if outcome.rank is None:
        return
    rank, resume = outcome.rank, _resume_command(request, typed, since)
    if outcome.killed_by is not None:
        because = " (out of memory?)" if outcome.killed_by == signal.SIGKILL else ""
        raise LostRankError(
            f"rank {rank} was killed by signal {outcome.killed_by}{because}", try_=resume
        )
    # where several failed alike, one may have died without a word
    for other in (rank, *sorted(reports)):
        said = (reports[other] or {}).get("error")
        if said is not None and said["exit_code"] == outcome.code:
            raise _error(said, other, typed)
    if outcome.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        number = outcome.code - 128
        raise outputs.Interrupted(f"stopped by signal {number}", number, try_=resume)
    if outcome.code == LostRankError.exit_code:
        raise LostRankError(
            f"rank {rank} lost another process, or stood still: see the lines above", try_=resume
        )
    error = XvlmError(
        f"rank {rank} ended with exit code {outcome.code}: see the lines above",
        try_="the same command after XVLM_DEBUG=1 (traceback)",
    )
    error.exit_code = outcome.code
    raise error


def _read(report: bytes) -> dict[str, Any] | None:
    """What a process reported; None: nothing, or not all of it, before it died."""
    with contextlib.suppress(ValueError):
        found = json.loads(report)
        if isinstance(found, dict) and {"warnings", "result", "text", "error"} <= set(found):
            return found
    return None


def _error(said: Mapping[str, Any], rank: int, typed: str) -> XvlmError:
    """The error that a process reported."""
    try_ = said["try"]
    if try_ and "--resume -o" in try_ and "--gpus" not in try_:
        try_ = f"{try_} {typed}"
    error = XvlmError(
        said["what"] if rank == 0 else f"rank {rank}: {said['what']}",
        where=said["where"],
        try_=try_,
        details=said["details"],
    )
    error.code, error.exit_code = said["code"], said["exit_code"]
    return error


def _resume_command(request: TrainingRequest, typed: str, since: datetime) -> str:
    """What goes on with the run that these processes trained; else the same command."""
    folder = request.output
    if folder is None:
        folder = next(
            (
                run.folder
                for run in runs.list_runs()
                if kind_of_task(run.task) == request.kind
                and (request.resume or run.created >= since.isoformat(timespec="microseconds"))
            ),
            None,
        )
    if folder is None or not (folder / "run.json").is_file():
        return "the same command again"
    device = request.flags.get("train.device")
    more = f" --device {device}" if device else ""
    return f"xvlm {request.verb} --resume -o {folder} {typed}{more}"

"""One session of a run: from its start, or its last checkpoint, to its end or a signal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from xvlm_core.config.schema import Recipe
from xvlm_core.errors import DivergedError, LostRankError
from xvlm_core.tasks.base import Task
from xvlm_core.train.files import locked
from xvlm_core.train.interrupts import Interrupts
from xvlm_core.train.loop import Loop
from xvlm_core.train.ranks import Ranks
from xvlm_core.train.runs import RunInfo, Status, resume_command
from xvlm_core.train.state import TrainResult
from xvlm_core.train.telemetry import Telemetry
from xvlm_core.train.upload import Uploader
from xvlm_core.train.watch import Watch


def train(
    task: Task,
    recipe: Recipe,
    run: RunInfo,
    *,
    resume: bool,
    telemetry: Telemetry,
    ranks: Ranks | None = None,
    last_words: Callable[[LostRankError], object] | None = None,
) -> TrainResult:
    """Train to the end of the recipe, to a signal, or to divergence. All ranks call it alike.

    Args:
        task: model, data, losses, predictions, scores. May have ``official_name``, a function
            that gives the released code's name of a parameter (for ``compat: official``).
        recipe: the resolved recipe.
        run: the run's folder; its status is kept up to date by rank 0, which alone writes to it.
        resume: continue from the newest whole checkpoint (from the start if there is none yet).
        telemetry: what is shown (closed at the end); ``metrics.jsonl`` is written in any case.
        ranks: the processes; None: this one alone.
        last_words: told of the error before a process ends that stands still, or whose peers are
            gone (it ends with exit code 8, whatever it is doing).

    Raises:
        DivergedError: a loss or the gradient is not finite. The update was not made.
        CheckpointError: (resume) all checkpoints are damaged.
        OutputError: another process trains this run, or its folder cannot be written.
        DataError: from the task's feed, or more samples were bad than ``data.max_bad`` allows.
        LostRankError: another process of the run is gone.
    """
    ranks = ranks or Ranks()
    with contextlib.ExitStack() as stack:
        ranks.main_does(lambda: stack.enter_context(locked(run.folder)) and None)
        interrupts = stack.enter_context(Interrupts())
        # closed after the status is written, which the copy has too, and after the watch: a long
        # copy is no standstill
        uploader = stack.enter_context(_uploads(recipe, run, ranks, telemetry, interrupts))
        watch = stack.enter_context(
            Watch(
                ranks.place,
                ranks.store,
                recipe.train.stall_seconds,
                run.folder,
                resume=resume_command(recipe, run),
                last_words=last_words,
            )
        )
        ranks.main_does(lambda: run.with_status("running") and None)
        try:
            loop = Loop(task, recipe, run, telemetry, interrupts, resume, ranks, watch, uploader)
            with contextlib.closing(loop):
                result = loop.run()
        except DivergedError:
            _note_status(run, "diverged", ranks)
            raise
        except BaseException as error:
            if isinstance(error, LostRankError):  # now it is known which run goes on
                error.try_ = resume_command(recipe, run)
            _note_status(run, "interrupted", ranks)
            raise
        status: Status = "finished" if result.interrupted_by is None else "interrupted"
        ranks.main_does(lambda: run.with_status(status) and None)
        return result


_UPLOAD_SECONDS = 600.0
_GRACE_SECONDS = 10.0
"""Of the 30 s that a scheduler leaves after SIGTERM."""


@contextlib.contextmanager
def _uploads(
    recipe: Recipe, run: RunInfo, ranks: Ranks, telemetry: Telemetry, interrupts: Interrupts
) -> Iterator[Uploader | None]:
    """What copies the checkpoints elsewhere, if the recipe says where to; on rank 0 alone."""
    url = recipe.train.upload
    uploader: Uploader | None = None

    def start() -> None:
        nonlocal uploader
        uploader = None if url is None else Uploader(url, run.folder)

    ranks.main_does(start)
    try:
        yield uploader
    finally:
        if uploader is not None:
            stopped = interrupts.number is not None
            for line in uploader.close(_GRACE_SECONDS if stopped else _UPLOAD_SECONDS).lines():
                telemetry.note(line)


def _note_status(run: RunInfo, status: Status, ranks: Ranks) -> None:
    """Write the status of a run that ends with an error; a full disk must not hide the error."""
    if ranks.is_main:
        with contextlib.suppress(OSError):
            run.with_status(status)

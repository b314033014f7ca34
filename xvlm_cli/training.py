"""What ``pretrain`` and ``finetune`` share: from a recipe's name to a finished run."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xvlm_cli import checkpoints, plan
from xvlm_cli.output import Interrupted, Output, refuse_nonempty
from xvlm_core.config.resolve import Resolved, resolve
from xvlm_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    OutputError,
    UsageError,
    XvlmError,
)
from xvlm_core.tasks.registry import fingerprints, require_stores
from xvlm_core.train import runs
from xvlm_core.train.files import remove_tree
from xvlm_core.train.launch import ALONE, Place


@dataclass(frozen=True)
class Request:
    """What was typed."""

    verb: str
    kind: str
    recipe: str | None
    words: Sequence[str]
    flags: Mapping[str, Any]
    output: Path | None
    resume: bool
    overwrite: bool
    dry_run: bool
    place: Place = ALONE


def train(request: Request, out: Output) -> None:
    """Run a request: check all that can be checked, then train.

    Raises:
        XvlmError: the first of the checks that fails, or what stopped the run.
    """
    run = _run_to_resume(request) if request.resume else None
    overrides = list(request.words)
    if run is not None:
        resolved = _recipe_of(run, request, overrides)
    else:
        assert request.recipe is not None
        resolved = resolve(request.recipe, overrides, request.flags, os.environ, kind=request.kind)
        _check_task(resolved, request)
        if request.output is not None and not request.dry_run:
            refuse_nonempty(request.output, overwrite=request.overwrite)
    if request.dry_run:
        plan.show(resolved, out, start_from=_start_from(resolved, run, out, lenient=True))
        return
    require_stores(resolved.recipe, resolved.name)
    if run is not None:
        runs.check_stores(run, fingerprints(resolved.recipe))
    start_from = _start_from(resolved, run, out)
    _train(resolved, request, out, run, start_from)


def _check_task(resolved: Resolved, request: Request) -> None:
    if (resolved.recipe.task == "pretrain") != (request.kind == "pretrain"):
        other = "finetune" if request.kind == "pretrain" else "pretrain --recipe"
        raise ConfigError(
            f"recipe {resolved.name} is for the task {resolved.recipe.task}",
            where=resolved.path,
            try_=f"xvlm {other} {resolved.name}",
        )


def _run_to_resume(request: Request) -> runs.RunInfo:
    """``-o RUN``, else the newest run of the verb's kind that is not finished."""
    if request.overwrite:
        raise UsageError(
            "--resume goes on with a run, --overwrite deletes it", try_="leave one of them out"
        )
    if request.output is not None:
        run = runs.read(request.output)
        if (run.task == "pretrain") != (request.kind == "pretrain"):
            other = "pretrain" if run.task == "pretrain" else "finetune"
            raise UsageError(
                f"run {run.name} is of the task {run.task}",
                where=str(run.folder),
                try_=f"xvlm {other} --resume {run.folder}",
            )
        return run
    for run in runs.list_runs():
        if (run.task == "pretrain") == (request.kind == "pretrain") and run.status != "finished":
            return run
    raise CheckpointError(
        f"no unfinished run to resume in {runs.runs_root()}",
        try_="xvlm ls runs, then --resume -o RUN",
    )


# What may differ when a run goes on: where it runs and what it bears, not what it computes.
_FREE = (
    "train.device",
    "data.workers",
    "data.max_bad",
    "data.cache",
    "data.cache_gb",
    "train.log_every",
)


def _recipe_of(run: runs.RunInfo, request: Request, overrides: Sequence[str]) -> Resolved:
    """The recipe a run was started with."""
    changed = [key for key in request.flags if key not in _FREE]
    changed += [word for word in overrides if word.partition("=")[0] not in _FREE]
    if changed:
        raise UsageError(
            f"a resumed run keeps its recipe; not allowed: {', '.join(changed)}",
            try_="start a new run from its weights: init.checkpoint=" + str(run.folder),
        )
    if request.recipe is not None and not _same_recipe(request.recipe, run.recipe):
        raise UsageError(
            f"run {run.name} was started with recipe {run.recipe}, not {request.recipe}",
            try_="leave the recipe out, or name another run (xvlm ls runs)",
        )
    runs.check_recipe(run)
    return resolve(str(run.recipe_file), overrides, request.flags)


def _same_recipe(asked: str, recorded: str) -> bool:
    return asked in (recorded, recorded.rpartition("/")[2])


def _start_from(
    resolved: Resolved, run: runs.RunInfo | None, out: Output, *, lenient: bool = False
) -> Path | None:
    """The model that the first weights come from, said aloud; None: as ``init`` says otherwise."""
    source = resolved.recipe.init.checkpoint
    if run is not None:
        source = run.started_from
    if source is None:
        return None
    try:
        download = resolved.recipe.init.download and not lenient
        found = checkpoints.find(source, download=download, ask="init.download=true")
    except CheckpointError:
        # A run that goes on has its own weights; where it started from may be gone by now.
        if lenient or run is not None:
            return None
        raise
    if run is None:
        out.note(f"starting from {found.said}")
    return found.path


def _train(
    resolved: Resolved,
    request: Request,
    out: Output,
    run: runs.RunInfo | None,
    start_from: Path | None,
) -> None:
    from xvlm_core.tasks.registry import build_task
    from xvlm_core.train.loop import train as train_loop
    from xvlm_core.train.telemetry import console_telemetry

    recipe = resolved.recipe
    if start_from is None and run is None:
        _require_first_weights(resolved, request.verb)
    if run is None:
        refuse_leaks(resolved, request.verb, out)
    task = build_task(recipe, start_from=start_from)
    fresh = run is None
    if run is None:
        run = runs.create(
            request.output,
            recipe=recipe,
            recipe_name=resolved.name,
            command=shlex.join(["xvlm", *sys.argv[1:]]),
            started_from=None if start_from is None else str(start_from),
            stores=fingerprints(recipe),
            overwrite=request.overwrite,
        )
    out.note(f"run {run.folder}")
    telemetry = console_telemetry(quiet=out.quiet)
    try:
        result = train_loop(task, recipe, run, resume=request.resume, telemetry=telemetry)
    except XvlmError:
        if fresh and not run.checkpoints.is_dir() and not run.metrics.is_file():
            remove_tree(run.folder)  # it never began: leave nothing behind
        raise
    finally:
        telemetry.close()
    _report(run, result, task.notes, out, request.verb)


def refuse_leaks(resolved: Resolved, verb: str, out: Output) -> None:
    """No picture that a task is evaluated on may be in the training data, unless it is allowed.

    Raises:
        DataError: some are; with the stores, some examples, and what to type.
    """
    from xvlm_core.data.leaks import find_leaks
    from xvlm_core.data.store import Store

    data = resolved.recipe.data
    if not data.held_out:
        return
    report = find_leaks(data)
    for text in report.notes():
        out.note(text)
    for text in report.warnings():
        out.warn(text)
    if not report.leaks:
        return
    lines = []
    for leak in report.leaks:
        store = Store.of_recipe(data, leak.training)
        mine, theirs, name = leak.examples[0]
        lines.append(
            f"{leak.training}: {leak.pictures:,} of {leak.held_out}, such as {mine} "
            f"({name}, there {theirs}); without them: {store.manifest.command} --overwrite "
            f"--exclude {leak.exclude}"
        )
    if data.leaks == "allow":
        for line in lines:
            out.warn(f"trained on although held out: {line}")
        return
    name = f"--recipe {resolved.name}" if verb == "pretrain" else resolved.name
    raise DataError(
        "pictures that tasks are evaluated on are in the training data",
        details=lines,
        where="data.held_out",
        try_=f"prepare without them, as said above; or xvlm {verb} {name} data.leaks=allow",
    )


def _require_first_weights(resolved: Resolved, verb: str) -> None:
    """Both files of first weights must be there before a run folder is made.

    Raises:
        ConfigError: a hub id that may not be fetched; all are named, with what to type.
    """
    from xvlm_core.weights.pretrained import find_weights

    init = resolved.recipe.init
    problems: list[XvlmError] = []
    for key, source in (("init.vision", init.vision), ("init.text", init.text)):
        if source is None:
            continue
        try:
            find_weights(source, init.download, key=key)
        except XvlmError as error:
            problems.append(error)
    if not problems:
        return
    if not all(isinstance(problem, ConfigError) for problem in problems):
        raise next(problem for problem in problems if not isinstance(problem, ConfigError))
    name = f"--recipe {resolved.name}" if verb == "pretrain" else resolved.name
    keys = [str(problem.where) for problem in problems]
    raise ConfigError(
        "the first weights are not here, and nothing is downloaded unless asked",
        details=[
            *(problem.what for problem in problems),
            f"from local files: {' '.join(f'{key}=/path/to/weights' for key in keys)}",
            f"from random numbers: {' '.join(f'{key}=null' for key in keys)}",
        ],
        where=", ".join(keys),
        try_=f"xvlm {verb} {name} init.download=true",
    )


def _report(run: runs.RunInfo, result: Any, notes: Sequence[str], out: Output, verb: str) -> None:
    scores = {name: vars(score) for name, score in (result.scores or {}).items()}
    best = run.best()
    checkpoint = run.checkpoint()
    _warn_of_dropped(result, out)
    lines = [f"run         {run.folder}", f"steps       {result.step:,}"]
    lines.append(f"seconds     {result.seconds:.1f}")
    if checkpoint is not None:
        lines.append(f"checkpoint  {checkpoint}")
    if best is not None:
        lines.append(f"best        {best.score} {best.value:.4f} at step {best.step:,}")
    out.result(
        {
            "run": run.folder,
            "step": result.step,
            "seconds": result.seconds,
            "checkpoint": checkpoint,
            "best": None if best is None else vars(best),
            "scores": scores,
            "dropped": dict(result.dropped),
            "validation_dropped": dict(result.validation_dropped),
            "first_weights": list(notes),
        },
        lines,
    )
    if result.interrupted_by is not None:
        raise Interrupted(
            f"stopped by signal {result.interrupted_by} after step {result.step}; all is saved",
            result.interrupted_by,
            try_=f"xvlm {verb} --resume -o {run.folder}",
        )


def _warn_of_dropped(result: Any, out: Output) -> None:
    places = (
        ("samples were left out of training", result.dropped),
        ("items were left out of validation", result.validation_dropped),
    )
    for what, counts in places:
        if counts:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(counts.items()))
            out.warn(f"{sum(counts.values()):,} {what}: {reasons}")


def split_words(
    words: Sequence[str], *, resume: bool, output: Path | None
) -> tuple[list[str], Path | None]:
    """Overrides, and the run that ``--resume RUN`` names (the one word that is no override).

    Raises:
        OutputError: two different runs are named.
    """
    runs_named = [word for word in words if "=" not in word] if resume else []
    if not runs_named:
        return list(words), output
    named = Path(runs_named[0])
    if len(runs_named) > 1 or (output is not None and output != named):
        raise OutputError("more than one run to resume", try_="--resume RUN")
    return [word for word in words if "=" in word], named

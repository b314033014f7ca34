"""What ``pretrain`` and ``finetune`` share: from a recipe's name to a finished run."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvlm_cli import checkpoints, plan
from xvlm_cli.output import Interrupted, Output, refuse_nonempty
from xvlm_cli.resuming import nothing_left, recipe_to_resume, run_to_resume
from xvlm_cli.training_request import TrainingRequest
from xvlm_core.config.recipes import kind_of_task
from xvlm_core.config.resolve import Resolved, resolve
from xvlm_core.config.schema import Recipe
from xvlm_core.config.yaml_tree import leaves
from xvlm_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    OutputError,
    XvlmError,
)
from xvlm_core.tasks.registry import fingerprints, require_stores
from xvlm_core.train import runs
from xvlm_core.train.files import remove_tree

if TYPE_CHECKING:
    from xvlm_core.train.ranks import Ranks
    from xvlm_core.train.telemetry import Sink, Telemetry


def train(request: TrainingRequest, out: Output) -> None:
    """Run a request: check all that can be checked, then train.

    Raises:
        XvlmError: the first of the checks that fails, or what stopped the run.
    """
    try:
        ready = _checked(request, out)
    except XvlmError as error:
        error.raised_on_machine = True  # all look at the same
        raise
    if ready is not None:
        _train(ready.resolved, request, out, ready.run, ready.start_from)


@dataclass(frozen=True)
class _Ready:
    """What is to be trained."""

    resolved: Resolved
    run: runs.RunInfo | None
    start_from: Path | None


def _checked(request: TrainingRequest, out: Output) -> _Ready | None:
    """What a request comes to; None: nothing is left to do."""
    run = run_to_resume(request) if request.resume else None
    if run is not None:
        resolved = recipe_to_resume(run, request)
    else:
        assert request.recipe is not None
        words, flags = request.words, request.flags
        resolved = resolve(request.recipe, words, flags, os.environ, kind=request.kind)
        _check_task(resolved, request)
        if not request.dry_run and request.place.world_size == 1:
            refuse_used_output(request)
    if request.dry_run:
        first = _start_from(resolved, run, out, lenient=True)
        plan.show(resolved, out, start_from=first, ranks=request.place.world_size)
        return None
    require_stores(resolved.recipe, resolved.name)
    if run is not None:
        runs.check_stores(run, fingerprints(resolved.recipe))
        if run.status == "finished":
            out.result(*nothing_left(run))
            return None
    return _Ready(resolved, run, _start_from(resolved, run, out))


def refuse_used_output(request: TrainingRequest) -> None:
    """The folder of a new run must be absent or empty; one that was barely begun is judged later.

    Raises:
        OutputError: it is not empty, or is a file.
    """
    if request.output is not None and not runs.is_barely_begun(request.output):
        refuse_nonempty(request.output, overwrite=request.overwrite)


def _check_task(resolved: Resolved, request: TrainingRequest) -> None:
    if kind_of_task(resolved.recipe.task) != request.kind:
        other = "finetune" if request.kind == "pretrain" else "pretrain --recipe"
        raise ConfigError(
            f"recipe {resolved.name} is for the task {resolved.recipe.task}",
            where=resolved.path,
            try_=f"xvlm {other} {resolved.name}",
        )


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
    request: TrainingRequest,
    out: Output,
    run: runs.RunInfo | None,
    start_from: Path | None,
) -> None:
    from xvlm_core.train.interrupts import held_back

    with held_back():  # all of torch and timm
        import xvlm_core.models.xvlm
        import xvlm_core.train.session
        import xvlm_core.weights.pretrained  # noqa: F401
        from xvlm_core.train.devices import pick_device
        from xvlm_core.train.ranks import open_ranks

    settings = resolved.recipe.train
    device = pick_device(settings.device, request.place)
    # the watch speaks first, and says more
    with open_ranks(request.place, device, settings.stall_seconds + 60) as ranks:
        _train_here(resolved, request, out, run, start_from, ranks)


def _train_here(
    resolved: Resolved,
    request: TrainingRequest,
    out: Output,
    run: runs.RunInfo | None,
    start_from: Path | None,
    ranks: Ranks,
) -> None:
    """This rank's part of a run; all do the same, and rank 0 writes and speaks."""
    from xvlm_core.tasks.registry import build_task
    from xvlm_core.train.parts import settle_parts
    from xvlm_core.train.session import train as train_loop
    from xvlm_core.weights.provenance import remember_start

    if run is None:  # of several, rank 0 alone can tell: for the others it may have made it already
        ranks.main_does(lambda: refuse_used_output(request))
    places = {"run": str(run.folder) if run else "", "start": str(start_from)}
    ranks.require_equal({**_what_ranks_share(resolved), **places})
    if start_from is None and run is None:
        ranks.together(lambda: _require_first_weights(resolved, request.verb))
    if run is None:
        ranks.main_does(lambda: refuse_leaks(resolved, request.verb, out))
    recipe = ranks.together(lambda: settle_parts(resolved.recipe, ranks.world_size))
    task = ranks.together(lambda: build_task(recipe, start_from=start_from))
    fresh = run is None

    def created() -> runs.RunInfo:
        made = runs.create(
            request.output,
            recipe=recipe,
            recipe_name=resolved.name,
            command=shlex.join(["xvlm", *sys.argv[1:]]),
            started_from=None if start_from is None else str(start_from),
            stores=fingerprints(recipe),
            overwrite=request.overwrite,
        )
        remember_start(made)  # later the model may be gone
        return made

    run = run or ranks.main_does(created)
    out.note(f"run {run.folder}")
    telemetry = _telemetry(recipe, run, out, ranks)
    try:
        result = train_loop(
            task,
            recipe,
            run,
            resume=request.resume,
            telemetry=telemetry,
            ranks=ranks,
            last_words=request.last_words,
        )
    except XvlmError:
        has_figures = run.metrics.is_file() and run.metrics.stat().st_size > 0
        if fresh and ranks.is_main and not run.checkpoints.is_dir() and not has_figures:
            remove_tree(run.folder)  # leave nothing behind
        raise
    finally:
        telemetry.close()
    if recipe.data.validation and not _is_validated(result):
        out.warn(
            "no figure was taken: there is nothing to compare answers with in split "
            f"{recipe.data.validation_split} of {', '.join(recipe.data.validation)}"
        )
    _report(run, result, task.notes, out, request.verb)


def _telemetry(recipe: Recipe, run: runs.RunInfo, out: Output, ranks: Ranks) -> Telemetry:
    from xvlm_core.train.telemetry import Telemetry, console_telemetry
    from xvlm_core.train.trackers import open_trackers

    trackers: list[Sink] = []

    def start() -> None:
        trackers.extend(open_trackers(recipe.train.track, run, recipe))

    ranks.main_does(start)
    return console_telemetry(quiet=out.quiet, others=trackers) if ranks.is_main else Telemetry()


def _what_ranks_share(resolved: Resolved) -> dict[str, str]:
    """What must be the same for all processes of a run."""
    recipe = resolved.recipe
    versions = {f"version of {name}": value for name, value in runs.versions().items()}
    data = {f"data of {name}": value[:16] for name, value in fingerprints(recipe).items()}
    values = {
        f"recipe: {key}": json.dumps(value)
        for key, value in leaves(recipe.model_dump(mode="json"))
        if key != "data.root"
    }
    return {**versions, **data, **values}


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
            "overflows": result.overflows,
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


def _is_validated(result: Any) -> bool:
    """Whether there was something to validate with, or is still to be: the run was stopped."""
    tried = result.scores or result.validation_dropped
    return bool(tried) or result.interrupted_by is not None


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

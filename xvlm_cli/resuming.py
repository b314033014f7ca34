"""``--resume``: which run goes on, and what may differ when it does."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xvlm_core.config.recipes import kind_of_task
from xvlm_core.config.resolve import Resolved, resolve
from xvlm_core.config.yaml_tree import leaves
from xvlm_core.errors import CheckpointError, UsageError
from xvlm_core.train import runs

if TYPE_CHECKING:
    from xvlm_cli.training_request import TrainingRequest

FREE = (
    "train.device",
    "train.threads",
    "train.engine",
    "train.zero_stage",
    "train.offload",
    "train.activation_checkpointing",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_last",
    "train.track",
    "train.upload",
    "train.stall_seconds",
    "data.workers",
    "data.max_bad",
    "data.cache",
    "data.cache_gb",
    "about",
)
"""What may differ when a run goes on: where it runs and what it bears, not what it computes."""


_SHOWN = 6


def run_to_resume(request: TrainingRequest) -> runs.RunInfo:
    """``-o RUN``, else the newest run of the verb's kind that is not finished.

    Raises:
        UsageError: that run is another verb's.
        CheckpointError: there is no such run.
    """
    if request.overwrite:
        raise UsageError(
            "--resume goes on with a run, --overwrite deletes it", try_="leave one of them out"
        )
    if request.output is not None:
        run = runs.read(request.output)
        verb = kind_of_task(run.task)
        if verb != request.kind:
            raise UsageError(
                f"run {run.name} is of the task {run.task}",
                where=str(run.folder),
                try_=f"xvlm {verb} --resume {run.folder}",
            )
        return run
    for run in runs.list_runs():
        if kind_of_task(run.task) == request.kind and run.status != "finished":
            return run
    raise CheckpointError(
        f"no unfinished run to resume in {runs.runs_root()}",
        try_="xvlm ls runs, then --resume -o RUN",
    )


def recipe_to_resume(run: runs.RunInfo, request: TrainingRequest) -> Resolved:
    """The recipe that a run was started with, and what harmless was typed besides.

    Raises:
        UsageError: what was typed differs from it in more than that; each key is named.
        CheckpointError: it was changed, or is gone.
        ConfigError: what was typed does not hold.
    """
    runs.check_recipe(run)
    recorded = resolve(str(run.recipe_file))
    if request.recipe is None:
        asked = resolve(str(run.recipe_file), request.words, request.flags)
    else:
        asked = resolve(request.recipe, request.words, request.flags, os.environ, kind=request.kind)
    was, now = _values(recorded), _values(asked)
    if now.get("train.micro_batches") is None:  # settled by the number of processes, once
        now["train.micro_batches"] = was["train.micro_batches"]
    changed = [key for key in {**was, **now} if was.get(key) != now.get(key)]
    refused = [key for key in changed if not _is_free(key)]
    if refused:
        of = f" of recipe {request.recipe}" if request.recipe else ""
        more = len(refused) - _SHOWN
        raise UsageError(
            f"a resumed run keeps its recipe; {len(refused)} "
            f"{'value' if len(refused) == 1 else 'values'}{of} differ: "
            + ", ".join(refused[:_SHOWN])
            + (f" and {more} more" if more > 0 else ""),
            details=[f"{k}: {_said(was, k)} in the run, {_said(now, k)} now" for k in refused],
            where=str(run.recipe_file),
            try_=f"xvlm {request.verb} --resume {run.folder}  (as it was), or a new run from its "
            f"weights: init.checkpoint={run.folder}",
        )
    words = [*request.words] if request.recipe is None else []
    flags = request.flags if request.recipe is None else {}
    if request.recipe is not None:  # the harmless ones of a whole recipe
        words = [f"{key}={_yaml(now[key])}" for key in changed if key in now]
    return resolve(str(run.recipe_file), words, flags)


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _values(resolved: Resolved) -> dict[str, Any]:
    return dict(leaves(resolved.recipe.model_dump(mode="json")))


def _said(values: dict[str, Any], key: str) -> str:
    return _yaml(values[key]) if key in values else "not there"


def _yaml(value: Any) -> str:
    return json.dumps(value)


def nothing_left(run: runs.RunInfo) -> tuple[dict[str, Any], Sequence[str]]:
    """What is said of a finished run that was to be resumed: value and lines."""
    from xvlm_core.train.checkpoint import step_of

    checkpoint, best = run.checkpoint(), run.best()
    newest = run.newest_checkpoint()
    step = None if newest is None else step_of(newest)
    last: dict[str, Any] = next(
        (line for line in reversed(run.log()) if line["kind"] == "eval"), {}
    )
    value = {
        "run": run.folder,
        "step": step,
        "already_finished": True,
        "checkpoint": checkpoint,
        "best": None if best is None else vars(best),
        "scores": last.get("scores", {}) if last.get("step") == step else {},
        "validation_dropped": last.get("dropped", {}),
    }
    lines = [f"run {run.folder} is finished: nothing is left to do", f"checkpoint  {checkpoint}"]
    return value, lines

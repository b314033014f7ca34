"""Where the lines of ``metrics.jsonl`` go besides: TensorBoard, wandb, trackio. Imports no torch.

Each package is imported only when it is wanted. A tracker that fails is told of once and dropped:
it never ends a run.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import io
import json
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from xvlm_core.config.schema import Recipe
from xvlm_core.errors import MissingToolError
from xvlm_core.train.files import json_bytes, write_atomically
from xvlm_core.train.runs import RunInfo
from xvlm_core.train.telemetry import Line, Outlook, Sink

CLOSE_SECONDS = 60.0
"""A tracker that needs longer to send the rest is left behind."""

TRACKERS_FILE = "trackers.json"
"""In the run folder: ``{"id": ...}``, by which trackers know the run again."""

PROJECT = "xvlm"


class TrackerWarning(UserWarning):
    """A tracker failed, or keeps its lines elsewhere than expected."""


class _Tracker(Protocol):
    """One of the packages."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step."""

    def close(self) -> None:
        """The run is over."""


def open_trackers(names: Sequence[str], run: RunInfo, recipe: Recipe) -> list[Sink]:
    """Open trackers; on a run that goes on, those of its first session are continued.

    Args:
        names: of ``tensorboard``, ``wandb`` and ``trackio``.
        run: what is tracked. TensorBoard writes to ``tensorboard/`` in its folder, wandb to
            ``wandb/``, trackio to ``TRACKIO_DIR``.
        recipe: shown beside the run.

    Returns:
        A sink for each tracker that could be opened; the others are warned of.

    Raises:
        MissingToolError: a package is not installed.
    """
    kinds: dict[str, Callable[[Any, RunInfo, Recipe], _Tracker]]
    kinds = {"tensorboard": _TensorBoard, "wandb": _Wandb, "trackio": _Trackio}
    modules = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}
    loaded = {name: _load(name, modules[name]) for name in names}
    sinks: list[Sink] = []
    for name, module in loaded.items():
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # ours is for results
                sinks.append(_TrackerSink(name, kinds[name](module, run, recipe)))
        except Exception as error:  # whatever a package of others does
            _warn(f"{name} could not be opened, and gets nothing: {_told(error)}")
    return sinks


def flatten(line: Line) -> dict[str, float]:
    """The numbers of a line under one name each: ``scores/x``, ``ranks/0/pictures_per_s``."""
    flat: dict[str, float] = {}
    for key, value in line.items():
        if key in ("kind", "step"):
            continue
        if key == "scores":
            value = {name: score["value"] for name, score in value.items()}
        elif key == "ranks":
            value = {str(part["rank"]): {**part, "rank": None} for part in value}
        _flatten(key, value, flat)
    return flat


def _flatten(name: str, value: Any, flat: dict[str, float]) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _flatten(f"{name}/{key}", part, flat)
    elif isinstance(value, (int, float)):
        flat[name] = value


class _TrackerSink:
    """Passes lines to a tracker until it fails."""

    def __init__(self, name: str, tracker: _Tracker) -> None:
        self._name = name
        self._tracker: _Tracker | None = tracker

    def line(self, line: Line, outlook: Outlook) -> None:
        """Its numbers."""
        if self._tracker is None:
            return
        try:
            self._tracker.log(int(line["step"]), flatten(line))
        except Exception as error:  # whatever a package of others does
            self._tracker = None
            _warn(
                f"{self._name} failed at step {line['step']}, and gets nothing more: {_told(error)}"
            )

    def note(self, text: str) -> None:
        """Notes are for people."""

    def close(self) -> None:
        """Let it send the rest, for a bounded time."""
        tracker, self._tracker = self._tracker, None
        if tracker is None:
            return
        errors: list[Exception] = []

        def close() -> None:
            try:
                tracker.close()
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=close, name=f"{self._name}-close", daemon=True)
        with contextlib.redirect_stdout(io.StringIO()):
            thread.start()
            thread.join(CLOSE_SECONDS)
        if thread.is_alive():
            _warn(f"{self._name} did not send its last lines within {CLOSE_SECONDS:.0f} s")
        elif errors:
            _warn(f"{self._name} failed at the end: {_told(errors[0])}")


class _TensorBoard:
    def __init__(self, module: Any, run: RunInfo, recipe: Recipe) -> None:
        self._open: Callable[..., Any] = module.SummaryWriter
        self._folder = run.folder / "tensorboard"
        self._text = f"```\n{json.dumps(recipe.model_dump(mode='json'), indent=1)}\n```"
        self._writer: Any = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is None:
            # what an earlier session wrote from here on, after its last checkpoint, did not count
            goes_on = self._folder.is_dir() and any(self._folder.iterdir())
            self._writer = self._open(
                log_dir=str(self._folder), purge_step=step if goes_on else None, flush_secs=30
            )
            if not goes_on:
                self._writer.add_text("recipe", self._text, step)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _Wandb:
    def __init__(self, module: Any, run: RunInfo, recipe: Recipe) -> None:
        mode = _wandb_mode(module)
        self._run = module.init(
            project=None if os.environ.get("WANDB_PROJECT") else PROJECT,
            id=_id_of(run.folder),
            name=run.name,
            resume="allow",
            dir=str(run.folder),
            mode=mode,
            config=recipe.model_dump(mode="json"),
            # neither what the terminal shows nor code or its repository leaves the machine
            settings=module.Settings(console="off", silent=True, save_code=False, disable_git=True),
        )
        # its own count of calls goes on where a killed session ended, after the checkpoint that a
        # run continues from, and takes no earlier step
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        if mode == "offline":
            _warn(
                "wandb has no login on this machine: the run is kept here; send it with "
                f"wandb sync {run.folder / 'wandb'}/offline-*"
            )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def close(self) -> None:
        self._run.finish()


def _wandb_mode(module: Any) -> str | None:
    """``offline`` where it would ask for a login: nobody may be there to answer."""
    if module.setup().settings.mode != "online":
        return None
    try:
        known = module.login(prompt=False, verify=False)
    except TypeError:  # of older versions it always asks
        known = module.api.api_key
    return None if known else "offline"


class _Trackio:
    def __init__(self, module: Any, run: RunInfo, recipe: Recipe) -> None:
        # it keeps the run in a variable of the context, and finishes it again, on stdout, at exit
        self._context, self._finish = contextvars.copy_context(), module.finish
        self._run = self._context.run(
            module.init,
            project=PROJECT,
            # all runs of all folders are in one place, known by their names
            name=f"{run.name}-{_id_of(run.folder)}",
            resume="allow",
            config=recipe.model_dump(mode="json"),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._context.run(self._finish)


def _load(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingToolError(
            f"{name} is not installed ({' '.join(str(error).split())})",
            where="train.track",
            try_="pip install 'xvlm[track]'",
        ) from error


def _id_of(folder: Path) -> str:
    path = folder / TRACKERS_FILE
    try:
        return str(json.loads(path.read_bytes())["id"])
    except (OSError, ValueError, KeyError, TypeError):
        made = uuid.uuid4().hex[:8]
        write_atomically(path, json_bytes({"id": made}))
        return made


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _warn(text: str) -> None:
    with contextlib.suppress(Warning):  # where warnings are errors
        warnings.warn(text, TrackerWarning, stacklevel=3)

"""Run folders: made, listed, found. Imports no torch.

::

    runs/pretrain-16m-20261125-021530/
      run.json        what the run is and how it stands
      recipe.yaml     the resolved recipe
      metrics.jsonl   one JSON object a line: {"kind": "train" | "eval", "step": ..., ...}
      best.json       {"step", "score", "value"} of the best checkpoint so far
      checkpoints/    see xvlm_core.train.checkpoint
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from xvlm_core.config.recipes import kind_of_task
from xvlm_core.config.schema import Recipe
from xvlm_core.errors import CheckpointError, DataError, OutputError
from xvlm_core.train import checkpoint as checkpoints
from xvlm_core.train.files import json_bytes, locked, remove_tree, write_atomically

Status = Literal["running", "finished", "interrupted", "diverged"]
SCHEMA_VERSION = 1
_OF_A_BEGINNING = re.compile(r"recipe\.yaml|\.(?:recipe\.yaml|run\.json)\.\d+")
_PACKAGES = ("xvlm", "torch", "timm", "transformers", "safetensors", "numpy", "deepspeed")


class RunWarning(UserWarning):
    """A run folder that cannot be read was left out of a list."""


@dataclass(frozen=True)
class Best:
    """The best checkpoint so far: its step, and the score that says so."""

    step: int
    score: str
    value: float


@dataclass(frozen=True)
class RunInfo:
    """One run folder.

    Attributes:
        folder: where it is.
        task: what is learnt.
        recipe: name of the recipe it was started with.
        command: the exact command line.
        created: ISO 8601, UTC, microseconds.
        status: how it stands; a run that was killed still says ``running``.
        size: named size of the model.
        started_from: the model folder its first weights came from, if any.
        versions: versions of Python and of the packages that matter.
        recipe_sha256: of ``recipe.yaml`` as it was written; None: not recorded.
        stores: fingerprint of each store that the run reads, as far as recorded.
    """

    folder: Path
    task: str
    recipe: str
    command: str
    created: str
    status: Status
    size: str
    started_from: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    recipe_sha256: str | None = None
    stores: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The log, one JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"

    def best(self) -> Best | None:
        """What ``best.json`` says, or None."""
        path = self.folder / "best.json"
        try:
            content = json.loads(path.read_bytes())
            return Best(int(content["step"]), str(content["score"]), float(content["value"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{path} is unreadable: {error}", RunWarning, stacklevel=2)
            return None

    def log(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, but for a torn last one; none where there is no log."""
        lines: list[dict[str, Any]] = []
        with contextlib.suppress(OSError, ValueError):
            for text in self.metrics.read_text(encoding="utf-8").splitlines():
                lines.append(json.loads(text))
        return lines

    def checkpoint(self) -> Path | None:
        """The best checkpoint if it is whole, else the newest whole one, else None."""
        best = self.best()
        if best is not None:
            folder = self.checkpoints / checkpoints.folder_name(best.step)
            try:
                checkpoints.verify(folder)
            except CheckpointError as error:
                warnings.warn(
                    f"best checkpoint of run {self.name}: {error.what}; the newest is taken",
                    checkpoints.CheckpointWarning,
                    stacklevel=2,
                )
            else:
                return folder
        return checkpoints.newest(self.checkpoints)

    def newest_checkpoint(self) -> Path | None:
        """The newest whole checkpoint: where ``--resume`` continues."""
        return checkpoints.newest(self.checkpoints)

    def with_status(self, status: Status) -> RunInfo:
        """The same run with another status, written to ``run.json``."""
        changed = replace(self, status=status)
        changed._write()
        return changed

    def write_best(self, best: Best | None) -> None:
        """Replace ``best.json``; None: there is no best checkpoint, and so no file."""
        path = self.folder / "best.json"
        if best is None:
            path.unlink(missing_ok=True)
        else:
            write_atomically(path, json_bytes(asdict(best)))

    def _write(self) -> None:
        content: dict[str, Any] = {"schema": SCHEMA_VERSION, **asdict(self)}
        del content["folder"]
        write_atomically(self.folder / "run.json", json_bytes(content))


def runs_root() -> Path:
    """Where runs are kept: ``XVLM_RUNS``, else ``./runs``."""
    return Path(os.environ.get("XVLM_RUNS") or "runs")


def create(
    folder: Path | None = None,
    *,
    recipe: Recipe,
    recipe_name: str,
    command: str,
    root: Path | None = None,
    started_from: str | None = None,
    stores: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> RunInfo:
    """Make a run folder with ``run.json`` and ``recipe.yaml``.

    Args:
        folder: where; None: a new folder under ``root``, named after task, recipe and time.
        recipe: the resolved recipe.
        recipe_name: name or path of the recipe, for the folder's name and for ``xvlm ls``.
        command: the exact command line.
        root: where runs are kept; None: :func:`runs_root`.
        started_from: the model folder that the first weights come from.
        stores: fingerprint of each store that the run reads.
        overwrite: delete the run that is in ``folder`` first.

    Raises:
        OutputError: ``folder`` is not empty (and is not to be overwritten, is no run, or is being
            trained), or cannot be written.
    """
    now = datetime.now(timezone.utc)
    text = yaml.safe_dump(
        recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True
    ).encode()
    try:
        if folder is None:
            folder = _new_folder(root or runs_root(), recipe.task, recipe_name, now)
        else:
            _empty(folder, overwrite, text)
            folder.mkdir(parents=True, exist_ok=True)
        run = RunInfo(
            folder=folder,
            task=recipe.task,
            recipe=recipe_name,
            command=command,
            created=now.isoformat(timespec="microseconds"),
            status="running",
            size=recipe.model.size,
            started_from=started_from,
            versions=versions(),
            recipe_sha256=hashlib.sha256(text).hexdigest(),
            stores=dict(stores or {}),
        )
        write_atomically(run.recipe_file, text)
        run._write()
    except OSError as error:
        raise OutputError(
            f"run folder {folder or root or runs_root()} cannot be written: {error.strerror}",
            try_="name another folder, or set XVLM_RUNS to one that can be written",
        ) from error
    return run


def _new_folder(root: Path, task: str, recipe_name: str, now: datetime) -> Path:
    stem = re.sub(r"\.ya?ml$", "", recipe_name.rsplit("/", 1)[-1])
    slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    base = slug if slug.startswith(task) else "-".join(part for part in (task, slug) if part)
    base = f"{base}-{now.astimezone().strftime('%Y%m%d-%H%M%S')}"
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = root / (base if number == 1 else f"{base}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:  # another run of this second
            number += 1
        else:
            return folder


def is_barely_begun(folder: Path) -> bool:
    """Whether a folder has nothing but what a process leaves that is killed while it makes a run.

    The recipe may be there, and hidden parts of files, but no ``run.json``: it is no run yet.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return bool(names) and all(map(_OF_A_BEGINNING.fullmatch, names))


def _empty(folder: Path, overwrite: bool, recipe: bytes) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file", try_="name a folder")
    if not any(folder.iterdir()):
        return
    if is_barely_begun(folder):
        written = folder / "recipe.yaml"
        if not written.exists() or written.read_bytes() == recipe:  # else it may be someone's own
            for path in folder.iterdir():
                path.unlink()
            return
    if not overwrite:
        raise OutputError(
            f"run folder {folder} is not empty",
            try_="--resume continues it, --overwrite deletes it, or name another folder",
        )
    if not (folder / "run.json").is_file():
        raise OutputError(
            f"{folder} is not a run folder (it has no run.json): not deleted",
            try_="name another folder",
        )
    with locked(folder):  # not under the feet of a process that trains it
        remove_tree(folder)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def read(folder: Path) -> RunInfo:
    """The run in a folder.

    Raises:
        CheckpointError: the folder is no run, or its ``run.json`` is damaged.
    """
    path = folder / "run.json"
    try:
        content = json.loads(path.read_bytes())
        if content["status"] not in get_args(Status):
            raise ValueError(f"unknown status {content['status']!r}")
        return RunInfo(
            folder=folder,
            task=str(content["task"]),
            recipe=str(content["recipe"]),
            command=str(content["command"]),
            created=str(content["created"]),
            status=content["status"],
            size=str(content["size"]),
            started_from=content.get("started_from"),
            versions=dict(content.get("versions", {})),
            recipe_sha256=content.get("recipe_sha256"),
            stores=dict(content.get("stores", {})),
        )
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is not a run (it has no run.json)", try_="xvlm ls runs"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}", where=str(path), try_="xvlm ls runs"
        ) from error


def resume_command(recipe: Recipe, run: RunInfo) -> str:
    """What to type to go on with a run."""
    return f"xvlm {kind_of_task(recipe.task)} --resume -o {run.folder}"


def check_recipe(run: RunInfo) -> None:
    """The recipe of a run that goes on must be the one it was started with, to the byte.

    Raises:
        CheckpointError: it is gone, or was changed.
    """
    try:
        found = hashlib.sha256(run.recipe_file.read_bytes()).hexdigest()
    except OSError as error:
        what = f"{run.recipe_file} cannot be read: {error.strerror}"
    else:
        if run.recipe_sha256 in (None, found):
            return
        what = f"{run.recipe_file} was changed since the run was started"
    raise CheckpointError(
        what,
        where=str(run.folder),
        try_=f"put it back, or start a new run from its weights: init.checkpoint={run.folder}",
    )


def check_stores(run: RunInfo, fingerprints: Mapping[str, str]) -> None:
    """The data of a run that goes on must be what it was started with.

    Args:
        run: what goes on.
        fingerprints: of the stores as they are now.

    Raises:
        DataError: other data is in the place of a store.
    """
    changed = [name for name, was in run.stores.items() if fingerprints.get(name, was) != was]
    if changed:
        raise DataError(
            f"other data than run {run.name} was started with: {', '.join(changed)}",
            where=", ".join(f"{name} has another fingerprint" for name in changed),
            try_=f"prepare it as before, or start a new run: init.checkpoint={run.folder}",
        )


def list_runs(root: Path | None = None) -> list[RunInfo]:
    """All runs under a folder, newest first. Damaged ones are left out with a warning each."""
    root = root or runs_root()
    if not root.is_dir():
        return []
    found = []
    for folder in root.iterdir():
        if not (folder / "run.json").is_file():
            continue
        try:
            found.append(read(folder))
        except CheckpointError as error:
            warnings.warn(error.what, RunWarning, stacklevel=2)
    return sorted(found, key=lambda run: (run.created, run.name), reverse=True)


def newest(root: Path | None = None, task: str | None = None) -> RunInfo | None:
    """The newest run (of a task) that has a loadable checkpoint."""
    for run in list_runs(root):
        if (task is None or run.task == task) and run.checkpoint() is not None:
            return run
    return None

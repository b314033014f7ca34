"""Which model answers: the one named, the environment's, the newest fitting run, or the built-in.

Imports no torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from xvlm_core.errors import CheckpointError
from xvlm_core.train import checkpoint as run_checkpoints
from xvlm_core.train import runs
from xvlm_core.weights import hub
from xvlm_core.weights.folder import CONFIG, TOKENIZER, WEIGHTS, ModelInfo, read_info

BUILTIN = "builtin"
"""The word that names the packaged model where a folder is expected."""

PREDICT_GROUNDING = "predict grounding"
"""Finding phrases, with a box head or, where the model learnt without boxes, by a heat map."""

PREDICT_RETRIEVAL = "predict retrieval"
"""Searching: all that has vectors of pictures and texts, and a matching head."""

_FITTING: dict[str, tuple[str, ...]] = {
    # A pre-trained model has the box and the matching head too; where boxes came last, the matching
    # head may lag behind.
    "grounding": ("grounding", "pretrain", "box_pretrain"),
    PREDICT_GROUNDING: ("grounding", "weak_grounding", "pretrain", "box_pretrain", "retrieval"),
    # The heat map needs the matching head alone.
    "weak_grounding": ("weak_grounding", "retrieval", "pretrain", "grounding"),
    "pretrain": ("pretrain",),
    "nlvr2": ("nlvr2",),
    "vqa": ("vqa",),
    "captioning": ("captioning", "caption_pretrain"),
    # A pre-trained model retrieves as it is: zero-shot.
    "retrieval": ("retrieval", "pretrain"),
    PREDICT_RETRIEVAL: ("retrieval", "pretrain", "weak_grounding"),
}
_NEEDED_HEADS: dict[str, tuple[str, ...]] = {
    "grounding": ("box", "matching"),
    PREDICT_GROUNDING: ("matching",),
    "weak_grounding": ("matching",),
    "nlvr2": ("statement",),
    "retrieval": ("contrastive", "matching"),
    PREDICT_RETRIEVAL: ("contrastive", "matching"),
}
_LIST = "xvlm ls runs  (lists the models that are there)"


@dataclass(frozen=True)
class FoundModel:
    """The model that answers.

    Attributes:
        folder: its model folder (``config.json``, ``model.safetensors``, ``tokenizer.json``).
        origin: one plain sentence: which model it is, and why this one.
        builtin: whether it is the packaged one, which knows coloured shapes only.
    """

    folder: Path
    origin: str
    builtin: bool = False


def find_checkpoint(
    explicit: Path | str | None,
    task: str,
    environ: Mapping[str, str],
    runs_root: Path | None = None,
    *,
    download: bool = False,
) -> FoundModel:
    """Find the model for a task.

    In this order: ``explicit`` (``--checkpoint``), ``XVLM_CHECKPOINT``, the newest fitting run
    (a fine-tuned one before a pre-trained one), the built-in shapes model. What is named is taken
    or refused, never passed over.

    Args:
        explicit: a model folder, a run (its folder, or its name under ``runs_root``; its best
            checkpoint is taken), the word ``builtin``, or a model on the hub
            (``owner/name[@revision]``); None: not given.
        task: what the model is for.
        environ: the environment variables.
        runs_root: where runs are kept; None: ``XVLM_RUNS``, else ``./runs``.
        download: fetch a model from the hub if it is not here, as ``XVLM_DOWNLOAD=1`` allows too.

    Raises:
        CheckpointError: the model named is not there, damaged, or of another task; or there is
            no model at all.
    """
    root = runs_root if runs_root is not None else Path(environ.get("XVLM_RUNS") or "runs")
    name, named_by = explicit, "--checkpoint"
    if name is None:
        name, named_by = environ.get("XVLM_CHECKPOINT") or None, "XVLM_CHECKPOINT"
    if name is not None:
        hub_id = _hub_id(str(name), root)
        if hub_id is None:
            return _named(str(name), named_by, task, root)
        fetched = hub.fetch(hub_id, download=hub.may_download(download, environ))
        _check(fetched.folder, task)
        return FoundModel(fetched.folder, f"The model {fetched.said} answers ({named_by}).")
    for fitting in _FITTING.get(task, (task,)):
        found = _newest(root, fitting, task)
        if found is not None:
            return found
    builtin = builtin_folder()
    if builtin is not None and _is_fitting(builtin, task):
        return _builtin(task)
    no_other = "no built-in model is installed" if builtin is None else "the built-in one cannot"
    raise CheckpointError(
        f"no model for {task}: no run in {root} fits, and {no_other}",
        where=str(root),
        try_="xvlm demo  (trains a small one), or --checkpoint FOLDER"
        if builtin is None
        else "xvlm ls recipes  (what trains one), or --checkpoint FOLDER",
    )


def builtin_folder() -> Path | None:
    """The packaged shapes model, or None where it is not installed."""
    folder = resources.files("xvlm_core.inference").joinpath(BUILTIN)
    if isinstance(folder, Path) and (folder / CONFIG).is_file():
        return folder
    return None


def _is_fitting(folder: Path, task: str) -> bool:
    try:
        _check(folder, task)
    except CheckpointError:
        return False
    return True


def _builtin(task: str) -> FoundModel:
    folder = builtin_folder()
    if folder is None:
        raise CheckpointError(
            "no built-in model is installed", try_="--checkpoint FOLDER, or xvlm demo"
        )
    _check(folder, task)
    return FoundModel(
        folder,
        "The built-in shapes model answers: it knows coloured shapes only.",
        builtin=True,
    )


def _newest(root: Path, run_task: str, task: str) -> FoundModel | None:
    """The newest run of ``run_task`` whose checkpoint can serve ``task``."""
    for run in runs.list_runs(root):
        if run.task != run_task:
            continue
        folder = run.checkpoint()
        if folder is None:
            continue
        try:
            _check(folder, task)
        except CheckpointError as error:
            message = f"run {run.name} is passed over: {error.what}"
            warnings.warn(message, runs.RunWarning, stacklevel=3)
            continue
        return FoundModel(
            folder, f"The newest {run.task} run answers: {run.name}, {_step(folder)}."
        )
    return None


def _named(name: str, named_by: str, task: str, root: Path) -> FoundModel:
    path = _existing(name, named_by, root)
    if path is None:
        return _builtin(task)
    if (path / "run.json").is_file():
        run = runs.read(path)
        folder = run.checkpoint()
        if folder is None:
            raise CheckpointError(
                f"run {run.name} has no complete checkpoint (status: {run.status})",
                where=str(path),
                try_="continue it with --resume until it writes one, or name another run",
            )
        origin = f"Run {run.name} answers, {_step(folder)} ({named_by})."
    else:
        folder = path
        if (path / run_checkpoints.MANIFEST).is_file():  # a copy, or one checkpoint of a run
            run_checkpoints.verify(path)
        origin = f"The model in {path} answers ({named_by})."
    _check(folder, task)
    return FoundModel(folder, origin)


def _hub_id(name: str, root: Path) -> hub.HubId | None:
    """The hub's model that a name stands for; None: something of this machine."""
    if Path(name).expanduser().exists() or (root / name).is_dir():
        return None
    return hub.parse(name)


def _existing(name: str, named_by: str, root: Path) -> Path | None:
    """What a name stands for: a folder, a run's name, or (None) the built-in model."""
    path = Path(name).expanduser()
    if path.is_file() and path.name in (CONFIG, WEIGHTS, TOKENIZER):
        return path.parent
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, not a model folder",
            where=named_by,
            try_=f"the folder that holds {CONFIG}, {WEIGHTS} and {TOKENIZER}, or a run",
        )
    if path.is_dir():
        return path
    if name == BUILTIN:
        return None
    if path.name == name and (root / name).is_dir():
        return root / name
    raise CheckpointError(f"no model at {name}: it is not there", where=named_by, try_=_LIST)


def _check(folder: Path, task: str) -> ModelInfo:
    """The model folder is whole and serves the task; the weights' header is read, no weight."""
    info = read_info(folder)
    if info.task not in _FITTING.get(task, (task,)):
        raise CheckpointError(
            f"the model in {folder} is for {info.task}, not for {task}",
            where=str(folder / CONFIG),
            try_=f"name a model of task {' or '.join(_FITTING.get(task, (task,)))} (xvlm ls runs)",
        )
    lacking = [h for h in _NEEDED_HEADS.get(task, ()) if h not in info.config.heads]
    if lacking:
        raise CheckpointError(
            f"the model in {folder} cannot serve {task}: it has no {' and no '.join(lacking)} head",
            where=str(folder / CONFIG),
            try_=_LIST,
        )
    for needed in (WEIGHTS, TOKENIZER):
        if not (folder / needed).is_file():
            raise CheckpointError(
                f"{folder} has no {needed}",
                where=str(folder),
                try_="give the folder of a complete checkpoint (xvlm ls runs)",
            )
    _check_weights(folder / WEIGHTS)
    return info


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged or truncated: {error}",
            where=str(path),
            try_="use another checkpoint of the run (xvlm ls runs), or copy the file again",
        ) from None


def _step(folder: Path) -> str:
    return f"step {run_checkpoints.step_of(folder):,}"

"""From what is typed (a run, a checkpoint, ``newest-pretrain`` ...) to a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xvlm_core.errors import CheckpointError
from xvlm_core.train import checkpoint as checkpoints
from xvlm_core.train import runs
from xvlm_core.weights import hub
from xvlm_core.weights.folder import CONFIG

NEWEST = "newest-"

_EXAMPLES = {
    "pretrain": "xvlm pretrain --recipe 16m",
    "box_pretrain": "xvlm pretrain --recipe box, or init.checkpoint=newest-pretrain",
    "nlvr2_pretrain": "xvlm pretrain --recipe nlvr2, or init.checkpoint=newest-pretrain",
    "caption_pretrain": "xvlm pretrain --recipe caption-lm, or init.checkpoint=newest-pretrain",
    "captioning": "xvlm finetune caption",
}
"""What makes a run of a task."""


@dataclass(frozen=True)
class Found:
    """A model folder (or a released checkpoint file), and how to say which one it is."""

    path: Path
    said: str


def find(text: str, *, download: bool = False, ask: str = "--download") -> Found:
    """The model that a word of the command line means.

    Args:
        text: ``newest-TASK``, a run folder (its best checkpoint), a checkpoint, a model folder, a
            released checkpoint file, or a model on the hub (``owner/name[@revision]``), in this
            order.
        download: fetch it from the hub if it is not here, as ``XVLM_DOWNLOAD=1`` allows too.
        ask: what to type to allow that, for messages.

    Raises:
        CheckpointError: nothing there, no whole checkpoint, or a damaged one.
        UsageError: ``hub:`` and no id after it.
    """
    if text.startswith(NEWEST) and not Path(text).exists():
        return newest(text.removeprefix(NEWEST))
    path = Path(text).expanduser()
    if path.is_file():
        return Found(path, f"file {path}")
    if (path / "run.json").is_file():
        return _of_run(runs.read(path))
    if (path / CONFIG).is_file():
        if (path / checkpoints.MANIFEST).is_file():
            checkpoints.verify(path)
        return Found(path, f"model {path}")
    hub_id = None if path.exists() else hub.parse(text)
    if hub_id is not None:
        fetched = hub.fetch(hub_id, download=hub.may_download(download), ask=ask)
        return Found(fetched.folder, f"model {fetched.said}")
    what = "is neither a run nor a model folder" if path.exists() else "does not exist"
    raise CheckpointError(f"{path} {what}", where=str(path.absolute()), try_="xvlm ls runs")


def newest(task: str) -> Found:
    """The newest run of a task that has a checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    run = runs.newest(task=task)
    if run is None:
        example = _EXAMPLES.get(task, f"xvlm finetune {task}")
        raise CheckpointError(
            f"no {task} run with a checkpoint",
            where=str(runs.runs_root().absolute()),
            try_=f"{example}, or name a model with --init or --checkpoint",
        )
    return _of_run(run)


def _of_run(run: runs.RunInfo) -> Found:
    folder = run.checkpoint()
    if folder is None:
        raise CheckpointError(
            f"run {run.name} has no whole checkpoint yet",
            where=str(run.folder),
            try_="xvlm ls runs  (another run), or continue this one with --resume",
        )
    kind = f"{run.task} run {run.folder}"
    return Found(folder, f"{kind}, {folder.name}")
